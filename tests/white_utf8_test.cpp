// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// UTF-8 (section 14): RFC 3629, compared with an oracle that computes with code points and has
// no table of bytes. The byte at which a text is refused is the first one that makes it invalid.

#include "white.h"

namespace {

struct Verdict {
    std::size_t badAt = 0;  // how many bytes it takes to refuse it; 0: it is not refused
    bool complete = true;   // and does not end inside a character
    bool operator==(const Verdict &other) const {
        return badAt == other.badAt && complete == other.complete;
    }
};

// The lead byte says how many bytes a character has; its bits and those of the bytes behind it
// are the code point. Each byte is fine if the character can still become a code point that is
// allowed and needs that many bytes.
Verdict oracle(std::string_view text) {
    constexpr long kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    Verdict verdict;
    int size = 0, rest = 0;
    long code = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const int byte = static_cast<unsigned char>(text[i]);
        const bool continuation = byte >= 128 && byte < 192;
        if (continuation != (rest > 0) || byte >= 248) return {i + 1, false};
        if (continuation) {
            code = code * 64 + byte - 128;
            --rest;
        } else {
            size = byte < 128 ? 1 : byte < 224 ? 2 : byte < 240 ? 3 : 4;
            rest = size - 1;
            code = size == 1 ? byte : size == 2 ? byte - 192 : size == 3 ? byte - 224 : byte - 240;
        }
        const long lowest = code << 6 * rest, highest = ((code + 1) << 6 * rest) - 1;
        const bool surrogate = lowest >= 0xD800 && highest <= 0xDFFF;
        if (highest < kSmallest[size] || lowest > 0x10FFFF || surrogate) return {i + 1, false};
    }
    verdict.complete = rest == 0;
    return verdict;
}

// Byte by byte, each in a buffer of its own.
Verdict byteByByte(std::string_view text) {
    Utf8State state = kBetweenCharacters;
    for (std::size_t i = 0; i < text.size(); ++i) {
        state = checkUtf8(Exact(text.substr(i, 1)).view(), state);
        if (state == kInvalid) return {i + 1, false};
    }
    return {0, state == kBetweenCharacters};
}

// In two pieces, of which the one with the oracle's bad byte must be refused; and what is
// invalid stays so.
bool cutAgrees(std::string_view text, std::size_t cut, const Verdict &expected) {
    const Exact first(text.substr(0, cut)), second(text.substr(cut));
    const Utf8State between = checkUtf8(first.view(), kBetweenCharacters);
    if ((between == kInvalid) != (expected.badAt != 0 && expected.badAt <= cut)) return false;
    const Utf8State end = checkUtf8(second.view(), between);
    return (end == kInvalid) == (expected.badAt != 0) &&
           (end == kBetweenCharacters) == expected.complete;
}

bool allCutsAgree(std::string_view text, const Verdict &expected) {
    for (std::size_t cut = 0; cut <= text.size(); ++cut)
        if (!cutAgrees(text, cut, expected)) return false;
    return isUtf8(Exact(text).view()) == expected.complete;
}

bool agrees(std::string_view text) {
    const Verdict expected = oracle(text);
    return byteByByte(text) == expected && allCutsAgree(text, expected);
}

// A code point in `size` bytes, allowed or not.
std::string inBytes(long code, int size) {
    constexpr int kLead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    std::string bytes(static_cast<std::size_t>(size), '\0');
    for (std::size_t i = bytes.size(); i-- > 1; code >>= 6)
        bytes[i] = static_cast<char>(0x80 | (code & 0x3F));
    bytes[0] = static_cast<char>(kLead[size] | code);
    return bytes;
}

int sizeOf(long code) { return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; }

}  // namespace

TEST_CASE("texts, and the byte at which each is refused") {
    struct Row {
        std::string label;
        const char *hex;
        std::size_t badAt;  // 0: never
        bool complete;
    };
    const Row rows[] = {
        // clang-format off
        {"an empty text", "", 0, true},
        {"RFC 3629 7: A, not identical to, Alpha, full stop", "41 e289a2 ce91 2e", 0, true},
        {"RFC 3629 7: Korean", "ed959c eab5ad ec96b4", 0, true},
        {"RFC 3629 7: Japanese", "e697a5 e69cac e8aa9e", 0, true},
        {"RFC 3629 7: a byte order mark, then U+233B4", "efbbbf f0a38eb4", 0, true},
        {"RFC 6455 5.7's Hello", "48656c6c6f", 0, true},
        {"U+0000 is a character", "00", 0, true},
        {"U+007F, the last of one byte", "7f", 0, true},
        {"U+0080, the first of two", "c280", 0, true},
        {"U+07FF, the last of two", "dfbf", 0, true},
        {"U+0800, the first of three", "e0a080", 0, true},
        {"U+D7FF, the last before the surrogates", "ed9fbf", 0, true},
        {"U+E000, the first behind the surrogates", "ee8080", 0, true},
        {"U+FFFE is not a character, but may be sent", "efbfbe", 0, true},
        {"U+FFFF, the last of three", "efbfbf", 0, true},
        {"U+10000, the first of four", "f0908080", 0, true},
        {"U+10FFFF, the last of all", "f48fbfbf", 0, true},
        {"one byte of two", "c2", 0, false},
        {"two bytes of three", "e282", 0, false},
        {"three bytes of four", "f09f98", 0, false},
        {"a continuation byte alone", "80", 1, false},
        {"a continuation byte too many", "41 c3a4 a4", 4, false},
        {"U+0000 in two bytes, as Java writes it", "c080", 1, false},
        {"U+007F in two bytes", "c1bf", 1, false},
        {"U+07FF in three bytes: the second one shows it", "e09fbf", 2, false},
        {"U+FFFF in four bytes: the second one shows it", "f08fbfbf", 2, false},
        {"U+D800, the first surrogate: the second byte shows it", "eda080", 2, false},
        {"U+DFFF, the last surrogate: the second byte shows it", "edbfbf", 2, false},
        {"a pair of surrogates (CESU-8)", "eda081 edb080", 2, false},
        {"U+110000, one too far: the second byte shows it", "f4908080", 2, false},
        {"U+140000, behind F5", "f5808080", 1, false},
        {"a lead byte of five bytes", "f888808080", 1, false},
        {"a lead byte of six bytes", "fc8480808080", 1, false},
        {"FE, which no character has", "fe", 1, false},
        {"FF, which no character has", "ff", 1, false},
        {"a lead byte where a continuation belongs", "c3c3a4", 2, false},
        {"ASCII where a continuation belongs", "e28241", 3, false},
        {"ASCII for the last of four", "f09f9841", 4, false},
        {"narrow ranges are those of the second byte only",
         "e0a0bf ed9fbf f090bfbf f48f8080 c3bf", 0, true},
        {"Autobahn's case 6.3: a Greek word, then a surrogate",
         "cebae1bdb9cf83cebc ceb5 eda080 656469746564", 13, false},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const std::string text = fromHex(row.hex);
        const Verdict expected{row.badAt, row.complete};
        CHECK(oracle(text) == expected);
        CHECK(byteByByte(text) == expected);
        CHECK(allCutsAgree(text, expected));
        CHECK(agrees(text + "and more behind it"));
        if (expected.complete) CHECK(agrees(text + text));
    }
}

TEST_CASE("every code point is valid, except the surrogates") {
    for (long code = 0; code <= 0x10FFFF; ++code) {
        const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
        if (isUtf8(inBytes(code, sizeOf(code))) == surrogate) FAIL("U+" << std::hex << code);
    }
}

TEST_CASE("no code point is valid in more bytes than it needs, and none above U+10FFFF") {
    for (int size = 2; size <= 4; ++size)
        for (long code = 0; sizeOf(code) < size && code < 0x10000; ++code)
            if (isUtf8(inBytes(code, size))) FAIL("U+" << std::hex << code << " in " << size);
    for (long code = 0x110000; code <= 0x1FFFFF; ++code)
        if (isUtf8(inBytes(code, 4))) FAIL("U+" << std::hex << code);
}

TEST_CASE("all pairs of a first and a second byte") {
    for (int lead = 0; lead < 256; ++lead)
        for (int second = 0; second < 256; ++second) {
            const std::string text{static_cast<char>(lead), static_cast<char>(second)};
            if (!(byteByByte(text) == oracle(text))) FAIL(toHex(text));
            if (!(byteByByte(text + "\x80\x80") == oracle(text + "\x80\x80"))) FAIL(toHex(text));
        }
}

TEST_CASE("all sequences of three and four bytes at the ends of the ranges") {
    const std::string borders =
        fromHex("00 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f3 f4 f5 ff");
    std::string text(4, '\0');
    for (const char a : borders)
        for (const char b : borders)
            for (const char c : borders) {
                text = {a, b, c};
                if (!agrees(text)) FAIL(toHex(text));
                if (static_cast<unsigned char>(a) < 0xE0) continue;
                for (const char d : borders) {
                    text = {a, b, c, d};
                    if (!(byteByByte(text) == oracle(text))) FAIL(toHex(text));
                }
            }
}

TEST_CASE("a character that is not ASCII, at every place in the steps of eight bytes") {
    const char *kinds[] = {"80", "ff", "c3", "c3a4", "e282ac", "eda080", "f09f9880", "f4908080"};
    for (const char *kind : kinds)
        for (std::size_t before = 0; before <= 40; ++before)
            for (const std::size_t behind : {0U, 1U, 7U, 8U, 9U, 17U}) {
                const std::string text =
                    std::string(before, 'a') + fromHex(kind) + std::string(behind, 'z');
                if (!agrees(text)) FAIL(kind << " behind " << before << ", before " << behind);
            }
}

TEST_CASE("random texts, with and without a random byte in them") {
    Chance chance;
    for (int round = 0; round < 3000; ++round) {
        std::string text;
        for (std::size_t i = chance.below(12); i > 0; --i) {
            constexpr long kEnds[] = {0x80, 0x80, 0x800, 0xD800, 0x110000};
            const long code = static_cast<long>(chance.below(std::size_t(kEnds[chance.below(5)])));
            text += inBytes(code, sizeOf(code));
        }
        if (!text.empty() && round % 2 == 0)
            text[chance.below(text.size())] = static_cast<char>(chance.below(256));
        if (!agrees(text)) FAIL(toHex(text));
    }
}

TEST_CASE("a text is cut between two characters, as late as possible") {
    const std::string text = "a\u00E4\u20AC\U0001F600";  // 1, 2, 3 and 4 bytes
    const std::size_t ends[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10};
    for (std::size_t size = 0; size < 12; ++size)
        CHECK(cutUtf8(text, size) == text.substr(0, ends[size]));
    CHECK(cutUtf8("\x80\x80\x80", 2).empty());
}
