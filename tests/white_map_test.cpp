// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The map at the top of server.cpp, compared with the file that it is a map of.

#include "white.h"

#include <cctype>
#include <fstream>

namespace {

using Lines = std::vector<std::string>;

Lines readLines() {
    std::ifstream file("server.cpp");  // tests run from the repository's top folder
    REQUIRE(file.good());
    Lines lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

bool startsWith(const std::string &text, const std::string &start) {
    return text.compare(0, start.size(), start) == 0;
}

// The comment that the file begins with, behind the two lines of the licence.
Lines map() {
    const Lines lines = readLines();
    const auto begin = std::find(lines.begin(), lines.end(), "");
    REQUIRE(begin - lines.begin() == 2);
    return {begin + 1, std::find(begin + 1, lines.end(), "")};
}

// The columns of a line of the map: what stands between two or more spaces.
Lines columns(const std::string &line) {
    Lines found;
    std::size_t begin = line.find_first_not_of("/ ");
    while (begin < line.size()) {
        const std::size_t end = std::min(line.find("  ", begin), line.size());
        found.push_back(line.substr(begin, end - begin));
        begin = line.find_first_not_of(' ', end);
    }
    return found;
}

// "1. What the parts are made of", and the like.
bool isSection(const std::string &title) {
    const std::size_t digits = title.find_first_not_of("0123456789");
    return digits != 0 && digits != title.npos && title.compare(digits, 2, ". ") == 0;
}

bool inName(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':';
}

// The names in "parseFrameHeader (reserved bits, opcodes, lengths), unmask", or in
// "MessageReader: frames become messages". What has a space in it is prose.
Lines namesIn(std::string text) {
    const std::size_t open = text.find(" ("), colon = text.find(": ");
    if (open != text.npos) text.erase(open, text.find(')', open) + 1 - open);
    Lines names;
    for (text = text.substr(0, colon) + ", "; !text.empty(); text.erase(0, text.find(", ") + 2)) {
        const std::string name = text.substr(0, text.find(", "));
        if (!name.empty() && std::all_of(name.begin(), name.end(), inName)) names.push_back(name);
    }
    return names;
}

// Whether a function of that name, or one of that class, begins in this line and has a body:
// its '{' comes before any ';'.
bool isDefinedAt(const Lines &lines, std::size_t i, const std::string &name) {
    const std::string &line = lines[i];
    if (line.empty() || line[0] == ' ' || line[0] == '/' || line[0] == '#') return false;
    const std::size_t place = line.find(name);
    if (place == line.npos || (place > 0 && inName(line[place - 1]) && line[place - 1] != ':'))
        return false;
    const std::string behind = line.substr(place + name.size(), 2);
    if (behind[0] != '(' && behind != "::") return false;
    std::string rest = line.substr(place);
    while (rest.find_first_of("{;") == rest.npos && ++i < lines.size()) rest += lines[i];
    const std::size_t end = rest.find_first_of("{;");
    return end != rest.npos && rest[end] == '{';
}

bool isDefined(const Lines &lines, const std::string &name) {
    for (std::size_t i = 0; i < lines.size(); ++i)
        if (isDefinedAt(lines, i, name)) return true;
    return false;
}

// Of each section, its title and its lines.
std::vector<std::pair<std::string, Lines>> sections() {
    std::vector<std::pair<std::string, Lines>> found;
    const Lines lines = readLines();
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const Lines title = columns(lines[i]);
        const bool banner = i > 0 && startsWith(lines[i - 1], "// ====");
        if (banner && title.size() == 1 && isSection(title[0])) found.push_back({title[0], {}});
        if (!found.empty()) found.back().second.push_back(lines[i]);
    }
    return found;
}

}  // namespace

TEST_CASE("the map is a page: at most 60 lines") {
    CHECK(map().size() > 40);
    CHECK(map().size() <= 60);
}

TEST_CASE("the map's sections are the file's banners, in order, name for name") {
    Lines listed, banners;
    for (const std::string &line : map())
        if (const Lines parts = columns(line); !parts.empty() && isSection(parts[0]))
            listed.push_back(parts[0]);
    for (const auto &[title, lines] : sections()) banners.push_back(title);
    REQUIRE(listed.size() == banners.size());
    for (std::size_t i = 0; i < listed.size(); ++i) {
        CHECK(listed[i] == banners[i]);
        CHECK(startsWith(listed[i], std::to_string(i + 1) + ". "));
    }
}

TEST_CASE("what the map names in a section is defined there") {
    const auto found = sections();
    std::size_t i = 0, names = 0;
    for (const std::string &line : map()) {
        const Lines parts = columns(line);
        if (parts.size() < 2 || !isSection(parts[0])) continue;
        REQUIRE(i < found.size());
        for (const std::string &name : namesIn(parts[1])) {
            CAPTURE(name);
            CAPTURE(found[i].first);
            CHECK(isDefined(found[i].second, name));
            ++names;
        }
        ++i;
    }
    CHECK(names > 30);
}

TEST_CASE("what the map says to enforce a rule of the RFC is defined in the file") {
    const Lines lines = readLines(), top = map();
    auto line = std::find(top.begin(), top.end(), "// Where the rules of RFC 6455 are enforced:");
    REQUIRE(line != top.end());
    std::size_t rules = 0, names = 0;
    for (++line; line != top.end() && columns(*line).size() == 3; ++line, ++rules)
        for (const std::string &name : namesIn(columns(*line)[2])) {
            CAPTURE(name);
            CHECK(isDefined(lines, name));
            ++names;
        }
    CHECK(rules >= 9);
    CHECK(names >= 15);
    CHECK_FALSE(isDefined(lines, "parseFrameHeade"));
    CHECK_FALSE(isDefined(lines, "arseFrameHeader"));
    CHECK_FALSE(isDefined(lines, "isOpcodeAtAll"));
}
