// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the small client of wire.cpp sends: frames, opening handshakes, and the shelf of mistakes.

#ifndef EXAMPLES_WIRE_H
#define EXAMPLES_WIRE_H

#include "../server.h"

#include <random>
#include <string>
#include <string_view>
#include <vector>

// ----------------------------------------------------------------------------
// Frames and requests
// ----------------------------------------------------------------------------

inline std::string randomBytes(std::size_t size) {
    static std::random_device random("/dev/urandom");  // an instruction can be slow (RDSEED)
    std::string bytes;
    for (std::uint32_t word = 0; bytes.size() < size; word >>= 8) {
        if (bytes.size() % 4 == 0) word = random();
        bytes += static_cast<char>(word & 0xFF);
    }
    return bytes;
}

// A frame's header, without masking key, and then payload: masked with a fresh key (RFC 6455 5.3).
inline std::string masked(std::string header, std::string_view payload) {
    const std::string key = randomBytes(4);
    header += key;
    for (std::size_t i = 0; i < payload.size(); ++i)
        header += static_cast<char>(payload[i] ^ key[i % 4]);
    return header;
}

// A frame with this first byte: FIN, RSV1 to RSV3 and the opcode (RFC 6455 5.2).
inline std::string frame(unsigned first, std::string_view payload) {
    const std::uint64_t size = payload.size();
    const unsigned extended = size < 126 ? 0 : size < 65536 ? 2 : 8;
    std::string header(1, static_cast<char>(first));
    header += static_cast<char>(0x80U | (extended == 0 ? size : extended == 2 ? 126 : 127));
    for (unsigned i = extended; i-- > 0;) header += static_cast<char>(size >> 8 * i);
    return masked(header, payload);
}

// A message in so many frames.
inline std::string fragments(unsigned opcode, std::size_t count, std::string_view payload) {
    std::string frames;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t begin = payload.size() * i / count;
        const std::size_t end = payload.size() * (i + 1) / count;
        const unsigned first = (i + 1 == count ? 0x80U : 0) | (i == 0 ? opcode : 0);
        frames += frame(first, payload.substr(begin, end - begin));
    }
    return frames;
}

// An opening handshake that is in order (RFC 6455 4.1), but for `part`, which becomes `other`.
inline std::string handshake(const std::string &part = {}, const std::string &other = {}) {
    const auto replaced = [](std::string text, const std::string &from, const std::string &to) {
        return text.replace(text.find(from), from.size(), to);
    };
    const std::string request = replaced(
        "GET /wire HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: {key}==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        part, other);
    // 16 random bytes are 22 digits of base64, of which the last has only two bits to choose.
    constexpr std::string_view kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string key = randomBytes(22);
    for (char &c : key)
        c = kDigits[static_cast<unsigned char>(c) & (&c == &key.back() ? 0x30 : 0x3F)];
    return request.find("{key}") == request.npos ? request : replaced(request, "{key}", key);
}

// ----------------------------------------------------------------------------
// The shelf of mistakes: what a client can do wrong, and what it earns
// ----------------------------------------------------------------------------

struct Mistake {
    const char *label;
    const char *section;   // of the RFC that has the rule
    const char *rule;      // what it demands, in our words
    int earns;             // a close code, or an HTTP status
    const char *function;  // of server.cpp, which enforces it
    std::string frames;    // what goes out behind the handshake
    std::string request = handshake();
};

// The masking keys are fresh each time.
// NOLINTNEXTLINE(readability-function-size): a table
inline std::vector<Mistake> mistakes() {
    using namespace std::string_literals;
    const std::uint64_t limit = WSBaseConfig().maxMessageBytes;
    std::string tooBig = "\x81\xFF"s;
    for (unsigned i = 8; i-- > 0;) tooBig += static_cast<char>((limit + 1) >> 8 * i);
    return {
        {"Unmasked", "RFC 6455 5.1",
         "A client masks every frame that it sends. A server must close the connection when a "
         "frame arrives that is not masked, and may say 1002.",
         1002, "parseFrameHeader", "\x81\x05Hello"},
        {"A reserved bit", "RFC 6455 5.2",
         "RSV1, RSV2 and RSV3 must be 0 unless an extension that both sides have agreed on gives "
         "them a meaning. Otherwise the receiver must fail the connection.",
         1002, "parseFrameHeader", frame(0xC1, "Hello")},
        {"A reserved opcode", "RFC 6455 5.2",
         "3 to 7 and B to F are reserved for frames to come. A receiver that does not know an "
         "opcode must fail the connection.",
         1002, "parseFrameHeader", frame(0x83, "Hello")},
        {"A fragmented ping", "RFC 6455 5.5",
         "Control frames must not be fragmented: the FIN bit of a Ping is 1.", 1002,
         "parseFrameHeader", frame(0x09, "Hello")},
        {"A ping of 126 bytes", "RFC 6455 5.5",
         "The payload of a control frame has at most 125 bytes, so its length never needs the "
         "extended form.",
         1002, "parseFrameHeader", frame(0x89, std::string(126, '.'))},
        {"A length that is not minimal", "RFC 6455 5.2",
         "A length must be encoded in as few bytes as it takes: 5 fits into the 7 bits, so the 16 "
         "bits behind them must not be used.",
         1002, "parseFrameHeader", masked("\x81\xFE\x00\x05"s, "Hello")},
        {"A length with the top bit", "RFC 6455 5.2",
         "The most significant bit of a 64-bit length must be 0.", 1002, "parseFrameHeader",
         masked("\x81\xFF\x80\x00\x00\x00\x00\x00\x00\x05"s, "Hello")},
        {"A continuation of nothing", "RFC 6455 5.4",
         "A message begins with a frame whose opcode is not 0. A frame with opcode 0 continues a "
         "message whose FIN has not come yet, and here there is none.",
         1002, "MessageReader::beginFrame", frame(0x80, "Hello")},
        {"A message inside a message", "RFC 6455 5.4",
         "The fragments of one message must not be interleaved with those of another: until FIN "
         "has come, only continuations and control frames may follow.",
         1002, "MessageReader::beginFrame", frame(0x01, "Hel") + frame(0x81, "Hello")},
        {"Text that is not UTF-8", "RFC 6455 8.1",
         "Text is UTF-8, in which no byte is ever FF. An endpoint that finds something else in it "
         "must fail the connection; 1007 is the code for this (7.4.1).",
         1007, "checkUtf8", frame(0x81, "Hello \xFF")},
        {"Text that ends inside a character", "RFC 6455 5.6",
         "One frame of a text may end inside a character, but the whole message must be valid "
         "UTF-8. The last byte of the euro sign, E2 82 AC, is missing here.",
         1007, "MessageReader::read", frame(0x81, "5 \xE2\x82")},
        {"A close code that may not be sent", "RFC 6455 7.4.1",
         "1005 means that a Close came without a code. An endpoint must not send it in a Close.",
         1002, "isCloseCode", frame(0x88, "\x03\xED")},
        {"A Close of one byte", "RFC 6455 5.5.1",
         "If a Close has a payload, its first two bytes must be the code.", 1002, "parseClose",
         frame(0x88, "\x03")},
        {"A message that is too big", "RFC 6455 10.4",
         "An implementation with limits must protect itself against frames that exceed them; 1009 "
         "is the code for this (7.4.1). This server takes 1 MiB, and does not wait for the "
         "payload.",
         1009, "MessageReader::beginFrame", masked(tooBig, "")},
        {"A wrong version", "RFC 6455 4.2.2",
         "A server that does not understand the version of the client must answer with an error, "
         "such as 426, and name the versions that it does understand.",
         426, "checkUpgrade", "", handshake("Version: 13", "Version: 8")},
        {"A short key", "RFC 6455 4.2.1",
         "Sec-WebSocket-Key is the base64 of 16 bytes; this is that of 5. A server must answer a "
         "handshake that is not as described with an error, such as 400.",
         400, "checkUpgrade", "", handshake("{key}==", "c2hvcnQ=")},
        {"A foreign origin", "RFC 6455 10.2",
         "A server that is not for pages of all sites should check where a page comes from, and "
         "should answer an origin that it does not accept with 403.",
         403, "originAllowed", "",
         handshake("Upgrade:", "Origin: https://evil.example\r\nUpgrade:")},
        {"A POST", "RFC 6455 4.2.1",
         "The opening handshake is a GET request. For a method that is not allowed here, HTTP has "
         "the status 405, whose answer must say which ones are (RFC 9110 15.5.6).",
         405, "checkRequest", "", handshake("GET", "POST")},
        {"A folded header", "RFC 9112 5.2",
         "A line that begins with a space once continued the header before it. A server must "
         "refuse such a request with 400, or replace the line break by spaces; this one refuses.",
         400, "parseHead", "", handshake("Upgrade\r\n", "keep-alive,\r\n Upgrade\r\n")},
    };
}

#endif
