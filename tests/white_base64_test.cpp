// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// base64 (section 15): the vectors of RFC 4648 10, and random bytes.

#include "white.h"

namespace {

std::string encoded(std::string_view bytes) { return base64Encode(Exact(bytes).view()); }

// The bytes of a text in base64, digit by digit.
std::string decoded(std::string_view text) {
    constexpr std::string_view kAlphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string bits, bytes;
    for (const char digit : text.substr(0, text.find('=')))
        for (int bit = 5; bit >= 0; --bit)
            bits += (kAlphabet.find(digit) >> bit & 1) != 0 ? '1' : '0';
    for (std::size_t i = 0; i + 8 <= bits.size(); i += 8)
        bytes += static_cast<char>(std::stoi(bits.substr(i, 8), nullptr, 2));
    return bytes;
}

}  // namespace

TEST_CASE("the vectors of RFC 4648 10") {
    const std::pair<const char *, const char *> rows[] = {
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
    };
    for (const auto &[bytes, text] : rows) CHECK(encoded(bytes) == text);
}

TEST_CASE("all digits, in the order of RFC 4648 4") {
    const std::string bytes = fromHex(
        "00108310518720928b30d38f41149351559761969b71d79f8218a39259a7a29aabb2dbafc31cb3"
        "d35db7e39ebbf3dfbf");
    const char *text = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    CHECK(encoded(bytes) == text);
}

TEST_CASE("what was encoded has all bits, whatever its length and its bytes") {
    Chance chance;
    for (std::size_t size = 0; size <= 70; ++size) {
        std::string bytes;
        while (bytes.size() < size) bytes += static_cast<char>(chance.below(256));
        CAPTURE(toHex(bytes));
        const std::string text = encoded(bytes);
        CHECK(text.size() == (size + 2) / 3 * 4);
        CHECK(decoded(text) == bytes);
    }
}
