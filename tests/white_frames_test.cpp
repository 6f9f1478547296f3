// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Frames (section 11): headers byte by byte, the examples of RFC 6455 5.7, every opcode and
// reserved bit, lengths at their limits, and unmasking compared with the formula of 5.3.

#include "white.h"

namespace {

struct Parsed {
    Progress progress;
    std::size_t at = 0;  // how many bytes it took to get the answer
    FrameHeader header;
};

Progress parseExact(std::string_view bytes, FrameHeader &header) {
    return parseFrameHeader(Exact(bytes).view(), header);
}

// Parses ever longer beginnings, until there is an answer. All bytes at once, with whatever
// follows, must give the same one.
Parsed parseGrowing(const std::string &bytes) {
    Parsed parsed;
    for (parsed.at = 0; parsed.at <= bytes.size(); ++parsed.at) {
        parsed.progress = parseExact(bytes.substr(0, parsed.at), parsed.header);
        if (parsed.progress.answer != Progress::needMore) break;
        CHECK(parsed.progress.used == 0);  // all of them are to be given again
    }
    if (parsed.progress.answer == Progress::needMore) return parsed;
    for (const char *behind :
         {"", "\x81", "left over", "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"}) {
        FrameHeader again;
        const Progress whole = parseExact(bytes + behind, again);
        CHECK(whole.answer == parsed.progress.answer);
        CHECK(whole.used == parsed.progress.used);
        CHECK(whole.code == parsed.progress.code);
        CHECK(again.length == parsed.header.length);
        CHECK(again.maskingKey == parsed.header.maskingKey);
    }
    return parsed;
}

// A header as RFC 6455 5.2 draws it, masked; `bytes` is the size of the extended length.
std::string headerOf(unsigned first, std::uint64_t length, int bytes) {
    const std::uint64_t inSecond = bytes == 2 ? 126 : bytes == 8 ? 127 : length;
    std::string header{static_cast<char>(first), static_cast<char>(0x80 | inSecond)};
    for (int i = bytes; i-- > 0;) header += static_cast<char>(length >> 8 * i);
    return header + fromHex("37fa213d");
}

}  // namespace

TEST_CASE("the examples of RFC 6455 5.7 that a client sends") {
    struct Row {
        std::string label;
        const char *hex;
        Opcode opcode;
        const char *payload;
    };
    const Row rows[] = {
        {"a single-frame masked text message", "8185 37fa213d 7f9f4d5158", Opcode::text, "Hello"},
        {"a masked Pong", "8a85 37fa213d 7f9f4d5158", Opcode::pong, "Hello"},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const std::string bytes = fromHex(row.hex);
        const Parsed parsed = parseGrowing(bytes);
        CHECK(parsed.progress.answer == Progress::done);
        CHECK(parsed.progress.used == 6);
        CHECK(parsed.header.fin);
        CHECK(parsed.header.opcode == row.opcode);
        REQUIRE(parsed.header.length == bytes.size() - 6);
        const Exact payload(bytes.substr(6));
        unmask(payload.data(), payload.data(), payload.size(), parsed.header.maskingKey, 0);
        CHECK(payload.view() == row.payload);
    }
}

TEST_CASE("the examples of RFC 6455 5.7 that a server sends are encoded, and refused as input") {
    struct Row {
        std::string label;
        const char *hex;  // of the header
        Opcode opcode;
        std::uint64_t length;
        bool encoded;  // the server never fragments
    };
    const Row rows[] = {
        {"a single-frame unmasked text message", "8105", Opcode::text, 5, true},
        {"a fragment of an unmasked text message", "0103", Opcode::text, 3, false},
        {"the last fragment of it", "8002", Opcode::continuation, 2, true},
        {"an unmasked Ping", "8905", Opcode::ping, 5, true},
        {"256 bytes of binary", "827e0100", Opcode::binary, 256, true},
        {"64 KiB of binary", "827f0000000000010000", Opcode::binary, 65536, true},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const std::string header = fromHex(row.hex);
        if (row.encoded) CHECK(encodedHeader(row.opcode, row.length) == header);
        const Parsed parsed = parseGrowing(header + "Hello");
        CHECK(parsed.progress.answer == Progress::bad);
        CHECK(parsed.progress.code == 1002);
        CHECK(parsed.at == 2);
    }
}

TEST_CASE("all 256 first bytes: reserved bits, opcodes, fragmented control frames") {
    for (unsigned first = 0; first < 256; ++first) {
        CAPTURE(first);
        const unsigned opcode = first & 0x0F;
        const bool known = opcode <= 2 || opcode == 8 || opcode == 9 || opcode == 10;
        const bool fine = (first & 0x70) == 0 && known && (opcode < 8 || (first & 0x80) != 0);
        const Parsed parsed = parseGrowing(headerOf(first, 5, 0));
        CHECK(parsed.progress.answer == (fine ? Progress::done : Progress::bad));
        CHECK(parsed.progress.code == (fine ? 0 : 1002));
        CHECK(parsed.at == (fine ? 6 : 1));
        if (!fine) continue;
        CHECK(parsed.header.fin == (first >= 0x80));
        CHECK(static_cast<unsigned>(parsed.header.opcode) == opcode);
        CHECK(parsed.header.length == 5);
        CHECK(parsed.header.maskingKey == std::array<unsigned char, 4>{0x37, 0xfa, 0x21, 0x3d});
    }
}

TEST_CASE("all 256 second bytes, of a data frame and of each control frame") {
    for (const unsigned first : {0x82u, 0x88u, 0x89u, 0x8Au})
        for (unsigned second = 0; second < 256; ++second) {
            CAPTURE(first);
            CAPTURE(second);
            const bool fine = second >= 0x80 && (first == 0x82 || second <= 0x80 + 125);
            const std::string start{static_cast<char>(first), static_cast<char>(second)};
            FrameHeader header;
            const Progress progress = parseExact(start, header);
            CHECK(progress.answer == (fine ? Progress::needMore : Progress::bad));
            CHECK(progress.code == (fine ? 0 : 1002));
        }
}

TEST_CASE("a frame is refused at the first byte that breaks a rule of 5.1, 5.2, 5.4 or 5.5") {
    struct Row {
        std::string label;
        const char *hex;
        std::size_t at;
        std::string reason;
    };
    const Row rows[] = {
        // clang-format off
        {"RSV1 alone, as permessage-deflate would set it",
         "c185 37fa213d", 1, "a reserved bit is set"},
        {"RSV2 alone", "a185 37fa213d", 1, "a reserved bit is set"},
        {"RSV3 alone", "9185 37fa213d", 1, "a reserved bit is set"},
        {"all three reserved bits", "f185 37fa213d", 1, "a reserved bit is set"},
        {"a reserved bit in a control frame", "c980 37fa213d", 1, "a reserved bit is set"},
        {"the first reserved opcode of data frames", "8385 37fa213d", 1, "the opcode is reserved"},
        {"the last reserved opcode of data frames", "8785 37fa213d", 1, "the opcode is reserved"},
        {"the first reserved opcode of control frames",
         "8b80 37fa213d", 1, "the opcode is reserved"},
        {"the last reserved opcode of control frames",
         "8f80 37fa213d", 1, "the opcode is reserved"},
        {"a fragmented Ping", "0980 37fa213d", 1, "a control frame is fragmented"},
        {"a fragmented Close", "0880 37fa213d", 1, "a control frame is fragmented"},
        {"a text that is not masked", "8105 48656c6c6f", 2, "a frame is not masked"},
        {"an empty frame that is not masked", "8100", 2, "a frame is not masked"},
        {"a Close that is not masked", "8800", 2, "a frame is not masked"},
        {"a Ping of 126 bytes", "89fe 007e 37fa213d", 2, "a control frame is too long"},
        {"a Ping with a length of 64 bits",
         "89ff 0000000000010000 37fa213d", 2, "a control frame is too long"},
        {"a Pong of 5 bytes with a length of 16 bits",
         "8afe 0005 37fa213d", 2, "a control frame is too long"},
        {"0 in 16 bits", "82fe 0000 37fa213d", 4, "the length is malformed"},
        {"125 in 16 bits", "82fe 007d 37fa213d", 4, "the length is malformed"},
        {"0 in 64 bits",
         "82ff 0000000000000000 37fa213d", 10, "the length is malformed"},
        {"125 in 64 bits",
         "82ff 000000000000007d 37fa213d", 10, "the length is malformed"},
        {"126 in 64 bits",
         "82ff 000000000000007e 37fa213d", 10, "the length is malformed"},
        {"65535 in 64 bits",
         "82ff 000000000000ffff 37fa213d", 10, "the length is malformed"},
        {"2^63",
         "82ff 8000000000000000 37fa213d", 10, "the length is malformed"},
        {"2^64 - 1",
         "82ff ffffffffffffffff 37fa213d", 10, "the length is malformed"},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const Parsed parsed = parseGrowing(fromHex(row.hex));
        CHECK(parsed.progress.answer == Progress::bad);
        CHECK(parsed.progress.code == 1002);
        CHECK(parsed.at == row.at);
        CHECK(parsed.progress.reason == row.reason);
    }
}

TEST_CASE("lengths at their limits, as clients write them and as the server does") {
    struct Row {
        std::uint64_t length;
        int bytes;  // of the extended length
    };
    const Row rows[] = {
        {0, 0},
        {1, 0},
        {125, 0},
        {126, 2},
        {127, 2},
        {255, 2},
        {256, 2},
        {65535, 2},
        {65536, 8},
        {std::uint64_t{1} << 31, 8},
        {(std::uint64_t{1} << 32) - 1, 8},
        {std::uint64_t{1} << 32, 8},
        {0x0102030405060708, 8},
        {(std::uint64_t{1} << 63) - 1, 8},
    };
    for (const Row &row : rows) {
        CAPTURE(row.length);
        const std::string header = headerOf(0x02, row.length, row.bytes);
        const Parsed parsed = parseGrowing(header);
        CHECK(parsed.progress.answer == Progress::done);
        CHECK(parsed.at == header.size());
        CHECK(parsed.progress.used == header.size());
        CHECK(parsed.header.length == row.length);
        CHECK_FALSE(parsed.header.fin);

        const std::string ours = encodedHeader(Opcode::binary, row.length);
        std::string expected = headerOf(0x82, row.length, row.bytes);
        expected.resize(expected.size() - 4);  // a server's frames have no masking key
        expected[1] = static_cast<char>(expected[1] & 0x7F);
        CHECK(toHex(ours) == toHex(expected));
    }
}

TEST_CASE("a length that was encoded is parsed as the same one") {
    for (std::uint64_t length = 0; length <= 66000; length += length < 300 ? 1 : 97) {
        std::string bytes = encodedHeader(Opcode::text, length);
        bytes[1] = static_cast<char>(bytes[1] | 0x80);
        FrameHeader header;
        const Progress progress = parseExact(bytes + "mask", header);
        if (progress.used != bytes.size() + 4 || header.length != length) FAIL(length);
    }
}

TEST_CASE("a payload is unmasked as 5.3 defines it, in place or elsewhere, at any address") {
    Chance chance;
    const std::array<unsigned char, 4> key{0x37, 0xfa, 0x21, 0x80};
    const std::uint64_t bases[] = {0, std::uint64_t{1} << 32, (std::uint64_t{1} << 63) - 8};
    for (const std::uint64_t base : bases)
        for (std::uint64_t offset = base; offset < base + 8; ++offset)
            for (std::size_t size = 0; size <= 80; ++size) {
                std::string before, after;
                for (std::size_t i = 0; i < size; ++i) {
                    before += static_cast<char>(chance.below(256));
                    after +=
                        static_cast<char>(before[i] ^ static_cast<char>(key[(offset + i) % 4]));
                }
                // Each buffer ends with the payload. What stands before it stays as it is.
                const std::string front(chance.below(8), '<'), elsewhere(chance.below(8), '>');
                const Exact from(front + before), to(elsewhere + std::string(size, '?'));
                char *const place = from.data() + front.size();
                unmask(place, to.data() + elsewhere.size(), size, key, offset);
                const bool fine = to.view() == elsewhere + after && from.view() == front + before;
                unmask(place, place, size, key, offset);
                if (!fine || from.view() != front + after) FAIL(size << " bytes from " << offset);
            }
}
