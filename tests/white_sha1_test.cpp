// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// SHA-1 (section 16): NIST's examples, and messages that end before, at and behind the end of a
// block.

#include "white.h"

namespace {

std::string hexDigest(std::string_view message) {
    const Exact exact(message);
    return toHex(sha1(exact.view()));
}

}  // namespace

TEST_CASE("the digests that NIST publishes for FIPS 180-4") {
    struct Row {
        std::string label;
        std::string message;
        const char *digest;
    };
    const Row rows[] = {
        {"no bits at all", "", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"one block: 24 bits", "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"two blocks: 448 bits, so that the length does not fit the first",
         "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
        {"two blocks: 896 bits",
         "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
         "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         "a49b2446a02c645bf419f995b67091253a04a259"},
        {"one million times the letter a", std::string(1000000, 'a'),
         "34aa973cd4c4daa4f61eeb2bdbad27316534016f"},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(hexDigest(row.message) == row.digest);
    }
}

TEST_CASE("messages that end near the end of a block") {
    struct Row {
        std::size_t size;
        const char *digest;  // by coreutils' sha1sum
    };
    const Row rows[] = {
        {1, "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"},
        {55, "c1c8bbdc22796e28c0e15163d20899b65621d65a"},
        {56, "c2db330f6083854c99d4b5bfb6e8f29f201be699"},
        {57, "f08f24908d682555111be7ff6f004e78283d989a"},
        {63, "03f09f5b158a7a8cdad920bddc29b81c18a551f5"},
        {64, "0098ba824b5c16427bd7a1122a5a442a25ec644d"},
        {65, "11655326c708d70319be2610e8a57d9a5b959d3b"},
        {119, "ee971065aaa017e0632a8ca6c77bb3bf8b1dfc56"},
        {120, "f34c1488385346a55709ba056ddd08280dd4c6d6"},
        {127, "89d95fa32ed44a7c610b7ee38517ddf57e0bb975"},
        {128, "ad5b3fdbcb526778c2839d2f151ea753995e26a0"},
    };
    for (const Row &row : rows) {
        CAPTURE(row.size);
        CHECK(hexDigest(std::string(row.size, 'a')) == row.digest);
    }
}

TEST_CASE("bytes are unsigned: all 256 of them, by coreutils' sha1sum") {
    std::string all;
    for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
    CHECK(hexDigest(all) == "4916d6bdb7f78e6803698cab32d1586ea457dfc8");
}

TEST_CASE("the digest of RFC 6455 1.3") {
    CHECK(hexDigest("dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11") ==
          "b37a4f2cc0624f1690f64606cf385945b2bec4ea");
}
