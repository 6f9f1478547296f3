// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// server.cpp as a text: its lines, and where a function is defined. For the tests that compare the
// texts with it.

#ifndef WS_TESTS_SOURCE_H
#define WS_TESTS_SOURCE_H

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

using Lines = std::vector<std::string>;

// The lines of a file. Tests run in the top folder.
inline Lines readLines(const std::string &name) {
    std::ifstream file(name);
    REQUIRE(file.good());
    Lines lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

inline bool startsWith(const std::string &text, const std::string &start) {
    return text.compare(0, start.size(), start) == 0;
}

inline bool inName(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':';
}

// The index of the ')' that closes the first '(' of a text.
inline std::size_t closingParenthesis(const std::string &text) {
    int depth = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '(') ++depth;
        if (text[i] == ')' && --depth == 0) return i;
    }
    return text.npos;
}

// Whether a function of that name, or one of that class, begins in this line and has a body. It
// may stand inside a structure, indented by one step. A call has no body behind its arguments.
inline bool isDefinedAt(const Lines &lines, std::size_t i, const std::string &name) {
    const std::size_t indent = lines[i].find_first_not_of(' ');
    const bool canBegin = indent == 0 || indent == 4;
    if (!canBegin || lines[i][indent] == '/' || lines[i][indent] == '#') return false;
    const std::size_t place = lines[i].find(name);
    if (place == lines[i].npos ||
        (place > 0 && inName(lines[i][place - 1]) && lines[i][place - 1] != ':'))
        return false;
    std::string rest = lines[i].substr(place + name.size());
    if (rest[0] != '(' && rest.compare(0, 2, "::") != 0) return false;
    while (closingParenthesis(rest) == rest.npos && rest.find(';') == rest.npos &&
           i + 1 < lines.size())
        rest += lines[++i];
    const std::size_t end = closingParenthesis(rest);
    if (end == rest.npos) return false;
    rest.erase(0, end + 1);
    if (i + 1 < lines.size()) rest += lines[i + 1];  // where the list of initializers may stand
    for (const char *word : {" const", " noexcept"})
        if (startsWith(rest, word)) rest.erase(0, std::strlen(word));
    const std::size_t next = rest.find_first_not_of(' ');
    return next != rest.npos && (rest[next] == '{' || rest[next] == ':');
}

inline bool isDefined(const Lines &lines, const std::string &name) {
    for (std::size_t i = 0; i < lines.size(); ++i)
        if (isDefinedAt(lines, i, name)) return true;
    return false;
}

#endif
