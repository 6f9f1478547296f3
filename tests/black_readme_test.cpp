// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The README is true: its program is the one that is compiled, its table of configuration
// has the fields and defaults of config.h, and what a newcomer needs stands at the top.

#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

std::string read(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> linesOf(const std::string &text) {
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        lines.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return lines;
}

// What is before `place` in the text, as a line number that counts from 1.
long lineOf(const std::string &text, const std::string &place) {
    const std::size_t at = text.find(place);
    REQUIRE_MESSAGE(at != std::string::npos, "missing: ", place);
    return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
}

// The first block of C++ below a heading of the README.
std::string codeUnder(const std::string &heading) {
    const std::string readme = read("README.md"), fence = "\n```cpp\n";
    const std::size_t section = readme.find('\n' + heading + '\n');
    REQUIRE_MESSAGE(section != std::string::npos, "missing: ", heading);
    const std::size_t begin = readme.find(fence, section) + fence.size();
    return readme.substr(begin, readme.find("```\n", begin) - begin);
}

std::string indented(const std::string &code, std::size_t columns) {
    std::string all;
    for (const std::string &line : linesOf(code))
        all += (line.empty() ? line : std::string(columns, ' ') + line) + '\n';
    return all;
}

using Fields = std::map<std::string, std::string>;  // name, default

// "    double pingSeconds = 20;", "    std::vector<std::string> protocols;"
Fields fieldsOfConfig() {
    Fields fields;
    for (const std::string &line : linesOf(read("config.h"))) {
        const bool isField = line.size() > 5 && line.substr(0, 4) == "    " && line[4] != '/' &&
                             line.back() == ';' && line.find('(') == std::string::npos;
        if (!isField) continue;
        const std::size_t equals = std::min(line.find(" = "), line.size() - 1);
        const std::size_t name = line.rfind(' ', equals - 1) + 1;
        const bool given = equals + 3 < line.size();
        fields[line.substr(name, equals - name)] =
            given ? line.substr(equals + 3, line.size() - equals - 4) : "{}";
    }
    return fields;
}

// "| `pingSeconds` | `20` | what it is |"
Fields fieldsOfReadme() {
    const std::string readme = read("README.md");
    const std::size_t begin = readme.find("\n## Configuration\n");
    REQUIRE(begin != std::string::npos);
    Fields fields;
    for (const std::string &line :
         linesOf(readme.substr(begin, readme.find("\n## ", begin + 4) - begin))) {
        if (line.substr(0, 3) != "| `") continue;
        const std::size_t name = line.find('`', 3), value = line.find("| `", name) + 3;
        fields[line.substr(3, name - 3)] = line.substr(value, line.find('`', value) - value);
    }
    return fields;
}

}  // namespace

TEST_CASE("the README's program is examples/readme.cpp, word for word") {
    const std::string program = read("examples/readme.cpp");
    CHECK(program.size() > 300);
    CHECK(read("README.md").find("```cpp\n" + program + "```\n") != std::string::npos);
}

TEST_CASE("the README's code of the game is in examples/game.cpp, word for word") {
    const std::string code = indented(codeUnder("## The game"), 4);
    CHECK(code.size() > 500);
    CHECK(read("examples/game.cpp").find(code) != std::string::npos);
}

TEST_CASE("the commands stand by line 15, the whole program by line 50") {
    const std::string readme = read("README.md");
    CHECK(lineOf(readme, "make deps run") <= 15);
    CHECK(lineOf(readme, "make deps test") <= 15);
    CHECK(lineOf(readme, "int main() { ChatServer().run(); }") <= 50);
}

TEST_CASE("the README's table of configuration has all fields of config.h, with their defaults") {
    const Fields fields = fieldsOfConfig();
    CHECK(fields.size() >= 20);
    CHECK(fieldsOfReadme() == fields);
}
