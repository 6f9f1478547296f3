// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The README is true: its code is compiled and tested elsewhere, its configuration table has the
// fields and defaults of config.h, and its first lines have what a new user needs.

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
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

using Answers = std::map<std::string, std::string>;  // title, code

// The lines between each "// [title]" and "// [end]", less the indentation of the markers.
Answers testedAnswers() {
    Answers answers;
    std::string title;
    std::size_t columns = 0;
    for (const std::string &line : linesOf(read("tests/black_answers_test.cpp"))) {
        const std::size_t mark = line.find_first_not_of(' ');
        if (mark != line.npos && line.substr(mark, 4) == "// [" && line.back() == ']') {
            title = line.substr(mark + 4, line.size() - mark - 5);
            if (title == "end") title.clear();
            columns = mark;
        } else if (!title.empty()) {
            answers[title] += line.substr(std::min(columns, line.size())) + '\n';
        }
    }
    return answers;
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

TEST_CASE("The ready answers are those of tests/black_answers_test.cpp, word for word") {
    const std::string readme = sectionOf("Ready answers");
    const Answers tested = testedAnswers();
    CHECK(tested.size() >= 12);
    for (const auto &answer : tested) {
        const std::string &title = answer.first, &code = answer.second;
        CAPTURE(title);
        const auto lines = std::count(code.begin(), code.end(), '\n');
        CHECK(lines >= 3);
        CHECK(lines <= 8);
        CHECK(readme.find("### " + title + "\n```cpp\n" + code + "```\n") != readme.npos);
        CHECK(readme.find('[' + title + "](#" + anchorOf(title) + ')') != readme.npos);
    }
    CHECK(occurrences(readme, "\n### ") == tested.size());
    CHECK(occurrences(readme, "\n```cpp\n") == tested.size());
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
