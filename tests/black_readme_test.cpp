// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The README is true: black_answers_test.cpp runs its code, and first-hour/run.mjs its commands.
// Here its tables are compared with the headers, and its first lines with what a new user needs.

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
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

// The number of the line where `place` begins, from 1.
long lineOf(const std::string &text, const std::string &place) {
    const std::size_t at = text.find(place);
    REQUIRE_MESSAGE(at != std::string::npos, "missing: ", place);
    return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
}

std::size_t occurrences(const std::string &text, const std::string &part) {
    std::size_t count = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++count;
    return count;
}

// A section of a README, without its heading.
std::string sectionOf(const std::string &title, const char *path = "README.md") {
    const std::string readme = read(path), heading = "\n## " + title + '\n';
    const std::size_t begin = readme.find(heading);
    REQUIRE_MESSAGE(begin != std::string::npos, "missing: ", title);
    const std::size_t text = begin + heading.size();
    return readme.substr(text, readme.find("\n## ", text) - text);
}

// The anchor of a heading: "Who is this?" has #who-is-this.
std::string anchorOf(const std::string &heading) {
    std::string anchor;
    for (const char c : heading) {
        if (c == ' ') anchor += '-';
        else if (c == '-' || std::isalnum(static_cast<unsigned char>(c)) != 0)
            anchor += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    return anchor;
}

// The first C++ block in a text.
std::string codeIn(const std::string &text) {
    const std::string fence = "\n```cpp\n";
    const std::size_t begin = text.find(fence) + fence.size();
    return text.substr(begin, text.find("```\n", begin) - begin);
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
    Fields fields;
    for (const std::string &line : linesOf(sectionOf("Configuration"))) {
        if (line.substr(0, 3) != "| `") continue;
        const std::size_t name = line.find('`', 3), value = line.find("| `", name) + 3;
        fields[line.substr(3, name - 3)] = line.substr(value, line.find('`', value) - value);
    }
    return fields;
}

}  // namespace

TEST_CASE("The README's program is examples/readme.cpp, word for word") {
    const std::string program = read("examples/readme.cpp");
    CHECK(program.size() > 300);
    CHECK(read("README.md").find("```cpp\n" + program + "```\n") != std::string::npos);
}

// (Without the comments that stand above each of them there.)
TEST_CASE("examples/README.md has functions of examples/game.cpp, word for word") {
    const std::string game = read("examples/game.cpp");
    const std::string code = indented(codeIn(sectionOf("game", "examples/README.md")), 4);
    std::size_t functions = 0, end = 0;
    for (std::size_t at = 0; at < code.size(); at = end + 1, ++functions) {
        end = std::min(code.find("\n\n", at), code.size() - 1) + 1;
        const std::string function = code.substr(at, end - at);
        CAPTURE(function);
        CHECK(game.find('\n' + function) != std::string::npos);
    }
    CHECK(functions == 3);
}

TEST_CASE("Each block of the README's code has a test in tests/black_answers_test.cpp") {
    const std::string tests = read("tests/black_answers_test.cpp");
    const std::string code = read(".build/readme.h"), begin = "\nnamespace ";
    CHECK(occurrences(code, begin) == occurrences(read("README.md"), "\n```cpp\n") + 1);  // hooks
    for (std::size_t at = 0; (at = code.find(begin, at)) != code.npos;) {
        at += begin.size();
        const std::string name = code.substr(at, code.find(' ', at) - at);
        CAPTURE(name);
        const bool isUsed = tests.find("using namespace " + name + ';') != tests.npos ||
                            tests.find(name + "::") != tests.npos;
        CHECK(isUsed);
    }
}

// "- **`shutdown()`** is for hooks, ..." has a test case "In short: `shutdown()` ..."
TEST_CASE("Each short answer of the README has a test in tests/black_answers_test.cpp") {
    const std::string tests = read("tests/black_answers_test.cpp");
    const std::string answers = sectionOf("Ready answers");
    int count = 0;
    for (const std::string &line : linesOf(answers.substr(answers.find("### In short")))) {
        if (line.substr(0, 4) != "- **") continue;
        const std::string title = line.substr(4, line.find("**", 4) - 4);
        CAPTURE(title);
        CHECK(tests.find("TEST_CASE(\"In short: " + title) != tests.npos);
        ++count;
    }
    CHECK(count >= 8);
}

TEST_CASE("The README's table has all hooks of server.h, with `override`") {
    std::set<std::string> declared, listed;
    for (const std::string &line : linesOf(read("server.h")))
        if (line.substr(0, 17) == "    virtual void " && line.find(" call") == line.npos)
            declared.insert(line.substr(17, line.find(')') - 16));
    for (const std::string &line : linesOf(sectionOf("Hooks")))
        if (line.substr(0, 8) == "| `void ") {
            listed.insert(line.substr(8, line.find(')') - 7));
            CHECK(line.substr(line.find(')'), 11) == ") override`");
        }
    CHECK(declared.size() == 14);
    CHECK(listed == declared);
}

TEST_CASE("The README names the packages of jsoncpp that .ci/deps installs") {
    const std::string deps = read(".ci/deps"), readme = read("README.md");
    const std::size_t begin = deps.find("base     jsoncpp ");
    std::istringstream row(deps.substr(begin, deps.find('\n', begin) - begin));
    const std::istream_iterator<std::string> words(row);
    std::vector<std::string> packages(words, {});  // base, jsoncpp, apt, dnf, pacman, apk, brew
    REQUIRE(packages.size() == 7);
    for (std::size_t i = 2; i < packages.size(); ++i) {
        CAPTURE(packages[i]);
        CHECK(readme.find("`" + packages[i] + "` on ") != readme.npos);
    }
}

TEST_CASE("All links within the README lead to a heading") {
    const std::string readme = read("README.md");
    std::set<std::string> anchors;
    for (const std::string &line : linesOf(readme))
        if (line.substr(0, 3) == "## " || line.substr(0, 4) == "### ")
            anchors.insert(anchorOf(line.substr(line.find(' ') + 1)));
    for (std::size_t at = 0; (at = readme.find("](#", at)) != readme.npos;) {
        at += 3;
        const std::string anchor = readme.substr(at, readme.find(')', at) - at);
        CAPTURE(anchor);
        CHECK(anchors.count(anchor) == 1);
    }
}

TEST_CASE("The README has the commands by line 15, the whole program by line 50") {
    const std::string readme = read("README.md");
    CHECK(lineOf(readme, "make deps run") <= 15);
    CHECK(lineOf(readme, "make deps test") <= 15);
    CHECK(lineOf(readme, "int main() { ChatServer().run(); }") <= 50);
}

TEST_CASE("The README's configuration table has all fields of config.h, with their defaults") {
    const Fields fields = fieldsOfConfig();
    CHECK(fields.size() >= 20);
    CHECK(fieldsOfReadme() == fields);
}
