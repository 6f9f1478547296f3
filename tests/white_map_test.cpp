// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The map at the top of server.cpp, compared with the rest of the file.

#include "source.h"
#include "white.h"

namespace {

// The comment at the top of the file, below the two lines of the licence.
Lines map() {
    const Lines lines = readLines("server.cpp");
    const auto begin = std::find(lines.begin(), lines.end(), "");
    REQUIRE(begin - lines.begin() == 2);
    return {begin + 1, std::find(begin + 1, lines.end(), "")};
}

// The columns of a line of the map, which two or more spaces separate.
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

// The names in "parseFrameHeader (reserved bits, opcodes, lengths), unmask", or in
// "MessageReader: frames become messages". Parts with a space in them are prose.
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

// "1. What the parts are made of" in the banner "// === 1. What the parts are made of ======",
// wherever it is indented. Nothing for other lines.
std::string bannerTitle(const std::string &line) {
    const std::string start = "// === ";
    const std::size_t begin = line.find_first_not_of(' '), end = line.rfind(" ===");
    if (begin == line.npos || line.compare(begin, start.size(), start) != 0) return "";
    if (end == line.npos || end < begin + start.size()) return "";
    return line.substr(begin + start.size(), end - begin - start.size());
}

// The title of each section, and its lines.
std::vector<std::pair<std::string, Lines>> sections() {
    std::vector<std::pair<std::string, Lines>> found;
    for (const std::string &line : readLines("server.cpp")) {
        const std::string title = bannerTitle(line);
        if (!title.empty()) found.push_back({title, {}});
        if (!found.empty()) found.back().second.push_back(line);
    }
    return found;
}

}  // namespace

TEST_CASE("the map has at most 60 lines") {
    CHECK(map().size() > 40);
    CHECK(map().size() <= 60);
}

TEST_CASE("the map lists the file's sections, in their order and with their titles") {
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

TEST_CASE("the names that the map lists for a section are defined there") {
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

TEST_CASE("the functions that the map lists for the rules of the RFC are defined") {
    const Lines lines = readLines("server.cpp"), top = map();
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
}

TEST_CASE("lines that define a function, and others") {
    const std::pair<Lines, bool> rows[] = {
        {{"int f(int a) {"}, true},
        {{"    static int f(int a) { return a; }"}, true},
        {{"std::vector<int> C::f(std::pair<int, int> a,", "    int b = g()) const {"}, true},
        {{"void f() noexcept { g(); }"}, true},
        {{"f::f(int a)", "    : a_(a) {}"}, true},
        {{"int f::size() const { return 0; }"}, true},
        {{"int f(int a);"}, false},
        {{"int f(int a);", "void g() {"}, false},
        {{"    f([&] {", "        g();", "    });"}, false},
        {{"    return f({1, 2});"}, false},
        {{"    if (f(1)) {"}, false},
        {{"        int f() {"}, false},
        {{"// int f() {"}, false},
        {{"int ff() {"}, false},
        {{"int f2() {"}, false},
        {{""}, false},
    };
    for (const auto &[lines, defined] : rows) {
        const auto &shown = lines[0];  // clang captures no structured binding
        CAPTURE(shown);
        CHECK(isDefinedAt(lines, 0, "f") == defined);
    }
    CHECK(bannerTitle("    // === 3. Reading =====") == "3. Reading");
    CHECK(bannerTitle("// --- the clocks ---").empty());
    CHECK(bannerTitle("// ===").empty());
}
