// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The table of rules in rfc6455.md: the functions, the guards and the tests that it names exist.
// That the tests notice when a guard is broken is up to `make mutate`.

#include "source.h"
#include "white.h"

namespace {

// The parts of a text between separators that no backslash precedes; spaces around them are cut.
Lines split(const std::string &text, const std::string &separator) {
    Lines parts(1);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && text.compare(i + 1, separator.size(), separator) == 0) continue;
        const bool cuts =
            text.compare(i, separator.size(), separator) == 0 && (i == 0 || text[i - 1] != '\\');
        if (!cuts) parts.back() += text[i];
        if (cuts) parts.emplace_back(), i += separator.size() - 1;
    }
    for (std::string &part : parts) part = std::string(trim(part));
    return parts;
}

// What stands in backticks.
Lines spans(const std::string &text) {
    Lines found;
    const Lines parts = split(text, "`");
    for (std::size_t i = 1; i < parts.size(); i += 2) found.push_back(parts[i]);
    return found;
}

// The cells of each row of the table, but the headings.
std::vector<Lines> rules() {
    std::vector<Lines> found;
    for (const std::string &line : readLines("tests/rfc6455.md")) {
        if (!startsWith(line, "| ") || startsWith(line, "| section |")) continue;
        Lines cells = split(line, "|");
        found.emplace_back(cells.begin() + 1, cells.end() - 1);
    }
    return found;
}

// One space instead of several, and of line breaks.
std::string flowing(const Lines &lines) {
    std::string text;
    for (const std::string &line : lines)
        for (const char c : line + ' ')
            if (c != ' ' || (!text.empty() && text.back() != ' ')) text += c;
    return text;
}

std::size_t count(const std::string &text, const std::string &piece) {
    std::size_t times = 0;
    for (std::size_t i = 0; (i = text.find(piece, i)) != text.npos; ++i) ++times;
    return times;
}

// The text of all functions of that name; one without a class is not that of a class.
std::string functionText(const Lines &lines, const std::string &name) {
    Lines found;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const std::size_t place = lines[i].find(name);
        if (!isDefinedAt(lines, i, name) || (place > 0 && lines[i][place - 1] == ':')) continue;
        const std::string end = std::string(lines[i].find_first_not_of(' '), ' ') + '}';
        const bool whole = lines[i].back() == '}';
        found.push_back(lines[i]);
        while (!whole && lines[i] != end && i + 1 < lines.size()) found.push_back(lines[++i]);
    }
    return flowing(found);
}

// From the beginning of a test case to that of the next; empty if there is none of that name.
std::string testText(const std::string &text, const std::string &name) {
    const std::string start = "TEST_CASE(\"";
    const std::size_t begin = text.find(start + name + '"');
    if (begin == text.npos) return {};
    return text.substr(begin, text.find(start, begin + 1) - begin);
}

// What is wrong with a row, as a sentence; empty if nothing is.
std::string wrongWith(const Lines &cells) {
    static const Lines source = readLines("server.cpp");
    if (cells.size() != 5) return "a row has five cells";
    const std::string &guards = cells[3], &tests = cells[4];
    if (!startsWith(guards, "`")) {
        const bool reason = startsWith(guards, "does not apply: because ") ||
                            startsWith(guards, "not kept: because ") ||
                            startsWith(guards, "the program's, not the server's: because ");
        return reason && tests == "–" ? "" : "there is neither a guard nor a reason";
    }
    for (const std::string &guard : split(guards, "<br>")) {
        const Lines names = spans(guard);
        if (names.size() != 2) return "a guard is a function and a piece of code";
        const std::string text = functionText(source, names[0]);
        if (text.empty()) return "there is no function " + names[0];
        if (count(text, names[1]) != 1) return names[0] + "() does not have this once: " + names[1];
    }
    for (const std::string &test : split(tests, "<br>")) {
        const Lines names = spans(test);
        if (names.size() < 2 || names.size() > 3) return "a test is a file, a case, maybe a row";
        const std::string file = "tests/" + names[0] + "_test.cpp";
        if (!std::ifstream(file).good()) return "there is no " + file;
        const std::string text = testText(flowing(readLines(file)), names[1]);
        if (text.empty()) return file + " has no test case " + names[1];
        if (names.size() == 3 && count(text, '"' + names[2] + '"') == 0)
            return "the test case has no row " + names[2];
    }
    return {};
}

}  // namespace

TEST_CASE("each rule of the table has a guard and a test that exist, or a reason") {
    const std::vector<Lines> rows = rules();
    CHECK(rows.size() > 100);
    for (const Lines &cells : rows) {
        CAPTURE(flowing(cells));
        CHECK(wrongWith(cells) == "");
    }
}

TEST_CASE("rows that name what does not exist are found") {
    const std::string guard = "`parseFrameHeader` `control && !header.fin`";
    const std::string test = "`white_frames` `the examples of RFC 6455 5.7 that a client sends`";
    struct Row {
        std::string guard, test, wrong;
    };
    const Row rows[] = {
        {guard, test, ""},
        {guard + "<br>" + guard, test + " `a masked Pong`<br>" + test, ""},
        {"`MessageReader::read` `utf8_ == kInvalid`", test, ""},
        {"does not apply: because it binds the client", "–", ""},
        {"`read` `utf8_ == kInvalid`", test, "read() does not have this once: utf8_ == kInvalid"},
        {"`parseFrame` `control`", test, "there is no function parseFrame"},
        {"`parseFrameHeader` `kTooBig`", test,
         "parseFrameHeader() does not have this once: kTooBig"},
        {"`parseFrameHeader` `bad(`", test, "parseFrameHeader() does not have this once: bad("},
        {"`parseFrameHeader`", test, "a guard is a function and a piece of code"},
        {"does not apply", "–", "there is neither a guard nor a reason"},
        {"does not apply: because it binds the client", test,
         "there is neither a guard nor a reason"},
        {"", "", "there is neither a guard nor a reason"},
        {guard, "–", "a test is a file, a case, maybe a row"},
        {guard, "`white_frames`", "a test is a file, a case, maybe a row"},
        {guard, "`white_frame` `x`", "there is no tests/white_frame_test.cpp"},
        {guard, "`white_frames` `x`", "tests/white_frames_test.cpp has no test case x"},
        {guard, test + " `a ping`", "the test case has no row a ping"},
        {guard, test + " `an unmasked Ping`", "the test case has no row an unmasked Ping"},
    };
    for (const Row &row : rows) {
        CAPTURE(row.guard);
        CAPTURE(row.test);
        CHECK(wrongWith({"5.4", "A rule.", "MUST", row.guard, row.test}) == row.wrong);
    }
    CHECK_FALSE(wrongWith({"5.4", "A rule."}).empty());
}
