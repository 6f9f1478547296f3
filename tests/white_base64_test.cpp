// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// base64 (section 15): the vectors of RFC 4648 10, both ways, and texts that are not base64.

#include "white.h"

namespace {

std::string encoded(std::string_view bytes) { return base64Encode(Exact(bytes).view()); }

std::optional<std::string> decoded(std::string_view text) {
    return base64Decode(Exact(text).view());
}

}  // namespace

TEST_CASE("the vectors of RFC 4648 10, both ways") {
    const std::pair<const char *, const char *> rows[] = {
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
    };
    for (const auto &[bytes, text] : rows) {
        CHECK(encoded(bytes) == text);
        CHECK(decoded(text) == bytes);
    }
}

TEST_CASE("all digits, in the order of RFC 4648 4") {
    const std::string bytes = fromHex(
        "00108310518720928b30d38f41149351559761969b71d79f8218a39259a7a29aabb2dbafc31cb3"
        "d35db7e39ebbf3dfbf");
    const char *text = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    CHECK(encoded(bytes) == text);
    CHECK(decoded(text) == bytes);
}

TEST_CASE("what was encoded can be decoded, whatever its length and its bytes") {
    Chance chance;
    for (std::size_t size = 0; size <= 70; ++size) {
        std::string bytes;
        while (bytes.size() < size) bytes += static_cast<char>(chance.below(256));
        CAPTURE(toHex(bytes));
        const std::string text = encoded(bytes);
        CHECK(text.size() == (size + 2) / 3 * 4);
        CHECK(decoded(text) == bytes);
        for (std::size_t cut = 0; cut < text.size(); ++cut)  // whole groups only
            CHECK(decoded(text.substr(0, cut)).has_value() == (cut % 4 == 0));
    }
}

TEST_CASE("texts that are not base64 are refused") {
    const std::pair<std::string, const char *> rows[] = {
        {"one digit alone", "Z"},
        {"two digits without their padding", "Zg"},
        {"three digits without their padding", "Zm8"},
        {"one mark of padding too few", "Zg="},
        {"one mark of padding too many", "Zm8=="},
        {"three marks of padding", "Z==="},
        {"nothing but padding", "===="},
        {"padding in front", "=Zm8"},
        {"padding in the middle of a group", "Z=8="},
        {"padding between two groups", "Zg==Zg=="},
        {"a group of nothing but padding behind a whole one", "Zm9v===="},
        {"a space in front", " Zg="},
        {"a space at the end", "Zg= "},
        {"a line break in the middle", "Zm\r\n"},
        {"the alphabet for URLs (RFC 4648 5): minus", "Zm9-"},
        {"the alphabet for URLs (RFC 4648 5): underscore", "Zm9_"},
    };
    for (const auto &[label, text] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        CHECK_FALSE(decoded(text).has_value());
    }
}

TEST_CASE("64 of the 256 bytes are digits, wherever they stand") {
    constexpr std::string_view kAlphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int byte = 0; byte < 256; ++byte) {
        CAPTURE(byte);
        const char c = static_cast<char>(byte);
        const bool digit = kAlphabet.find(c) != kAlphabet.npos;
        for (std::size_t place = 0; place < 4; ++place) {
            std::string text = "AAAABBBB";
            text[4 + place] = c;
            const bool padding = c == '=' && place == 3;
            CHECK(decoded(text).has_value() == (digit || padding));
        }
    }
}

TEST_CASE("bits that are left over at the end may be anything (RFC 4648 3.5)") {
    CHECK(decoded("Zh==") == "f");
    CHECK(decoded("Z/==") == "g");
    CHECK(decoded("Zm9=") == "fo");
}
