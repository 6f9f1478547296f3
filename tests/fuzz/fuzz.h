// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the fuzz targets share: server.cpp itself, included so that they reach its parts;
// check(); and parsers that do not rely on the code under test.

#ifndef WS_TESTS_FUZZ_H
#define WS_TESTS_FUZZ_H

#include "../../server.cpp"

#include <cstdlib>

// A rule that must hold for any input. The fuzzer keeps an input that breaks it.
inline void check(bool holds, const char *rule) {
    if (holds) return;
    std::fprintf(stderr, "broken: %s\n", rule);
    std::abort();
}

// The fuzzer's bytes, consumed from the front. After the last one come zeros.
class Input {
  public:
    Input(const unsigned char *bytes, std::size_t size)
        : rest_(reinterpret_cast<const char *>(bytes), size) {}

    bool empty() const { return rest_.empty(); }
    unsigned byte() {
        const std::string_view one = bytes(1);
        return one.empty() ? 0 : static_cast<unsigned char>(one[0]);
    }
    std::string_view bytes(std::size_t most) {
        const std::string_view taken = rest_.substr(0, most);
        rest_.remove_prefix(taken.size());
        return taken;
    }

  private:
    std::string_view rest_;
};

// --- UTF-8, by its definition: decode it, and see whether it was the shortest form --------

// The size of the first character; 0 if the text does not begin with a whole, valid one.
inline std::size_t characterSize(std::string_view text) {
    constexpr std::array<unsigned long, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
    const auto lead = static_cast<unsigned char>(text[0]);
    if (lead < 0x80) return 1;
    const std::size_t size = lead < 0xC0   ? 0
                             : lead < 0xE0 ? 2
                             : lead < 0xF0 ? 3
                             : lead < 0xF8 ? 4
                                           : 0;
    if (size == 0 || text.size() < size) return 0;
    unsigned long value = lead & (0x7FUL >> size);
    for (const char c : text.substr(1, size - 1)) {
        if ((c & 0xC0) != 0x80) return 0;
        value = value << 6 | (c & 0x3F);
    }
    const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
    return value >= kLeast[size] && value <= 0x10FFFF && !surrogate ? size : 0;
}

// What is left after the last whole character.
inline std::string_view textRest(std::string_view text) {
    while (!text.empty() && characterSize(text) > 0) text.remove_prefix(characterSize(text));
    return text;
}

inline bool isText(std::string_view text) { return textRest(text).empty(); }

// Whether more bytes could still complete the text. Every lead byte allows 0x80 or 0xBF as
// the second byte, so trying these two is enough.
inline bool canBecomeText(std::string_view text) {
    const std::string_view rest = textRest(text);
    for (std::size_t missing = 0; missing < 4; ++missing)
        for (const char filler : {'\x80', '\xBF'})
            if (isText(std::string(rest).append(missing, filler))) return true;
    return false;
}

// --- answers, as a client reads them ------------------------------------------------------

struct Answer {
    int status = 0;  // 0: its head is not complete
    std::size_t head = 0, body = 0;
};

// Checks the response at the start of `bytes`: its lines end with CR LF and contain no other
// control characters. Returns what its head announces.
inline Answer readAnswer(std::string_view bytes) {
    Answer answer;
    const std::size_t end = bytes.find("\r\n\r\n");
    if (end == bytes.npos) return answer;
    answer.head = end + 4;
    bool closes = false;
    for (std::string_view lines = bytes.substr(0, end + 2); !lines.empty();) {
        const std::string_view line = lines.substr(0, lines.find("\r\n"));
        lines.remove_prefix(line.size() + 2);
        for (const char c : line)
            check(c < 0 || c >= ' ' || c == '\t', "an answer's head has no control characters");
        if (answer.status == 0) {
            check(line.size() >= 13 && line.substr(0, 9) == "HTTP/1.1 ",
                  "an answer begins with a status line");
            answer.status = std::atoi(std::string(line.substr(9, 3)).c_str());
        } else {
            check(line.find(": ") != line.npos, "a header line has a colon");
        }
        if (line.substr(0, 16) == "Content-Length: ")
            answer.body = std::stoul(std::string(line.substr(16)));
        closes = closes || line.substr(0, 17) == "Connection: close";
    }
    check(answer.status == 101 || (answer.status >= 200 && answer.status <= 599),
          "an answer has a valid status");
    check(closes == (answer.status != 101), "every answer but 101 closes the connection");
    return answer;
}

#endif
