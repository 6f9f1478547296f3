// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The table of hostile behaviours. A row says what its peers do and how their connections may
// end (Peer::story()). attack.cpp measures what concerns all rows: the canary, memory,
// processor use and descriptors.
//
// The behaviours are what RFC 6455 and RFC 9112 forbid or leave to the server's care, and
// published attacks: lengths that overflow (CVE-2020-27813), runs of spaces (CVE-2021-32640),
// very many headers (CVE-2024-37890), thousands of tiny fragments (CVE-2026-48779), requests
// smuggled after a refused upgrade, slow requests, declared sizes that a server trusts, peers
// that do not read.

#ifndef WS_TESTS_ATTACK_BEHAVIOURS_H
#define WS_TESTS_ATTACK_BEHAVIOURS_H

#include "attack.h"

namespace attack {

// ----------------------------------------------------------------------------
// Kinds of rows
// ----------------------------------------------------------------------------

// Each head is sent on a connection of its own, and nothing else is.
inline Row requests(std::string name, std::string expected, const Strings &heads) {
    const auto act = [heads](Attack &a) {
        for (const std::string &head : heads) a.stranger().send(head);
    };
    return {std::move(name), std::move(expected), act};
}

// The same, after an opening handshake.
inline Row frames(std::string name, std::string expected, const Strings &streams, Cost cost = {}) {
    const auto act = [streams](Attack &a) {
        a.users(static_cast<int>(streams.size()));
        for (std::size_t i = 0; i < streams.size(); ++i) a.peers[i]->send(streams[i]);
    };
    return {std::move(name), std::move(expected), act, cost};
}

// Sends a piece over and over at full speed, until the time is up or the server closes.
// Returns how many it began; the last is queued in full.
inline std::uint64_t flood(Peer &peer, std::string_view piece, double seconds) {
    const std::string chunk = repeated(piece, std::max<std::size_t>(1, 65536 / piece.size()));
    std::uint64_t sent = 0;
    for (const auto end = after(seconds); Clock::now() < end && !peer.told();) {
        const std::string_view rest = std::string_view(chunk).substr(sent % chunk.size());
        const std::size_t size = peer.sendSome(rest);
        sent += size;
        peer.move();
        if (size == 0) peer.poll(static_cast<short>(POLLOUT | peer.events()), 10);
    }
    const std::size_t begun = sent % piece.size();
    if (begun > 0) peer.send(piece.substr(begun));
    return sent / piece.size() + (begun > 0 ? 1 : 0);
}

// A user floods the server with pieces and reads all it is sent. Each piece must be echoed.
inline Row echoedFlood(std::string name, const std::string &piece, Cost cost = {}) {
    const auto act = [piece](Attack &a) {
        Peer &peer = a.user();
        const std::uint64_t wanted = flood(peer, piece, a.options.floodSeconds());
        a.pump(10, [&] { return peer.told() || peer.messages >= wanted; });
        a.require(peer.told() || peer.messages == wanted,
                  std::to_string(peer.messages) + " echoes of " + std::to_string(wanted));
    };
    return {std::move(name), "echoes, open", act, cost};
}

// The same, but the user does not read.
inline Row unreadFlood(std::string name, const std::string &piece) {
    const auto act = [piece](Attack &a) {
        Peer &peer = a.user();
        peer.reads = false;
        flood(peer, piece, a.options.floodSeconds());
        a.require(!peer.isGone(), "the user was dropped, not throttled");
    };
    return {std::move(name), "open", act, {1, 0, 1}};
}

// ----------------------------------------------------------------------------
// Lengths and sizes
// ----------------------------------------------------------------------------

// One connection for each place where the header can be cut; the rest of it comes later.
inline Row cutHeader(const std::string &name, const std::string &expected,
                     const std::string &header) {
    const auto act = [header](Attack &a) {
        a.users(static_cast<int>(header.size()));
        for (std::size_t i = 0; i < a.peers.size(); ++i) a.peers[i]->send(header.substr(0, i + 1));
        a.pumpFor(0.05);
        for (std::size_t i = 0; i < a.peers.size(); ++i) a.peers[i]->send(header.substr(i + 1));
    };
    return {"a length of " + name + ", cut at each byte of its header", expected, act};
}

inline void addLengths(Rows &rows) {
    const struct {
        const char *name, *expected;
        std::uint64_t length;
    } lengths[] = {{"2^31", "close 1009, EOF", std::uint64_t{1} << 31},
                   {"2^32", "close 1009, EOF", std::uint64_t{1} << 32},
                   {"2^63-1", "close 1009, EOF", (std::uint64_t{1} << 63) - 1},
                   {"2^63", "close 1002, EOF", std::uint64_t{1} << 63},
                   {"2^64-1", "close 1002, EOF", ~std::uint64_t{0}}};
    Strings cuts;
    for (const auto &[name, expected, length] : lengths) {
        rows.push_back(cutHeader(name, expected, headerOf(kFin | kBinary, length, 8)));
        for (std::size_t size = 1; size < 10; ++size)
            cuts.push_back(headerOf(kFin | kText, length, 8).substr(0, size));
    }
    rows.push_back(frames("headers of huge frames, never completed",
                          "open or close 1002, EOF or close 1009, EOF", cuts));
    Strings longer;
    for (const std::uint64_t length : {0U, 1U, 125U}) longer.push_back(headerOf(0x81, length, 2));
    for (const std::uint64_t length : {0U, 125U, 126U, 65535U})
        longer.push_back(headerOf(0x82, length, 8));
    rows.push_back(frames("lengths encoded in more bytes than needed", "close 1002, EOF", longer));
}

inline void declareLargest(Attack &a, int count) {
    a.users(count);
    a.sendAll(header(kFin | kBinary, a.options.messageBytes()) + "a few bytes");
}

// An unfinished message must cost memory by its size, not by its number of fragments.
inline void sendManyFragments(Attack &a) {
    const auto count = static_cast<std::size_t>(std::min(20000.0, a.options.maxFragments - 2));
    a.users(50);
    a.sendAll(frameOf(kText, "x") + repeated(frameOf(kContinuation, "x"), count));
    a.pump(10, [&] {
        return std::none_of(a.peers.begin(), a.peers.end(), [](auto &p) { return p->hasToSend(); });
    });
}

inline void addSizes(Rows &rows, const Options &options) {
    const std::size_t most = options.messageBytes();
    const std::string half(most / 2, 'x');
    const std::string fragment = frameOf(kContinuation, std::string(65536, 'x'));
    rows.push_back({"a message of the largest size, declared but never sent", "open",
                    [](Attack &a) { declareLargest(a, 1); }});
    rows.push_back({"a thousand messages, declared but never sent", "open",
                    [](Attack &a) { declareLargest(a, a.options.usersAtOnce()); }});
    rows.push_back(
        {"fifty unfinished messages of 20,000 tiny fragments", "open", sendManyFragments});
    rows.push_back(frames("the largest message, in one frame and in three", "echo, open",
                          {frame(kBinary, std::string(most, 'x')),
                           frameOf(kBinary, half) + frameOf(kContinuation, half) +
                               frame(kContinuation, std::string(most % 2, 'x'))},
                          {2}));
    rows.push_back(frames("a message one byte too big, declared only", "close 1009, EOF",
                          {header(kFin | kBinary, most + 1)}));
    rows.push_back(frames("a message one byte too big, sent whole", "close 1009, EOF",
                          {frame(kBinary, std::string(most + 1, 'x'))}));
    rows.push_back(frames("a message too big in total, in fragments", "close 1009, EOF",
                          {frameOf(kBinary, "x") + repeated(fragment, most / 65536 + 1)}, {1}));
}

// ----------------------------------------------------------------------------
// Floods
// ----------------------------------------------------------------------------

// The start of a message, then continuations until the server closes.
inline Row endless(const std::string &name, const std::string &expected, const char *payload) {
    const std::string continuation = frameOf(kContinuation, payload);
    const auto act = [continuation](Attack &a) {
        Peer &peer = a.user();
        peer.send(frameOf(kText, ""));
        flood(peer, continuation, 15);
    };
    return {name, expected, act, {1}};
}

// A server may drop all unsent pongs but the last (RFC 6455 5.5.3).
inline void floodWithPings(Attack &a) {
    flood(a.user(), frame(kPing, std::string(125, 'p')), a.options.floodSeconds());
    a.pumpFor(0.3);
}

inline void floodWithPongs(Attack &a) {
    flood(a.user(), frame(kPong, ""), a.options.floodSeconds());
}

inline void twentyDoNotRead(Attack &a) {
    const std::string largest = frame(kBinary, std::string(a.options.messageBytes(), 'x'));
    a.users(20);
    a.each([&](Peer &peer) {
        peer.reads = false;
        flood(peer, largest, 0.1);
        a.require(!peer.isGone(), "a user was dropped, not throttled");
    });
}

inline void addFloods(Rows &rows, const Options &options) {
    const std::string smallest = frame(kText, "");
    const std::string largest = frame(kBinary, std::string(options.messageBytes(), 'x'));
    const std::string ping = frame(kPing, std::string(125, 'p'));
    const std::string thousand = frameOf(kText, "x") + repeated(frameOf(kContinuation, "x"), 998) +
                                 frame(kContinuation, "x");
    rows.push_back(
        endless("endless fragments of one byte", "close 1008, EOF or close 1009, EOF", "x"));
    rows.push_back(endless("endless empty fragments", "close 1008, EOF", ""));
    rows.push_back({"a flood of pings", "pongs, open", floodWithPings});
    rows.push_back(unreadFlood("a flood of pings whose pongs are not read", ping));
    rows.push_back({"a flood of pongs", "open", floodWithPongs});
    rows.push_back(echoedFlood("empty messages at full speed", smallest));
    rows.push_back(unreadFlood("empty messages, not read", smallest));
    rows.push_back(echoedFlood("fragments of one byte at full speed", thousand));
    rows.push_back(echoedFlood("the largest messages at full speed", largest, {1, 0, 1}));
    rows.push_back(unreadFlood("the largest messages, not read", largest));
    rows.push_back({"twenty users that send the largest messages and do not read",
                    "open",
                    twentyDoNotRead,
                    {20, 0, 20}});
}

// ----------------------------------------------------------------------------
// Frames and text that a client must not send
// ----------------------------------------------------------------------------

inline void addUnmasked(Rows &rows) {
    const std::string hello = frame(kText, "hello");
    const char *refused = "close 1002, EOF";
    rows.push_back(frames("an unmasked text", refused, {unmasked(kText, "never delivered")}));
    rows.push_back(frames("an unmasked ping", refused, {unmasked(kPing, "never answered")}));
    rows.push_back(frames("an unmasked close", refused, {unmasked(kClose, "\x03\xe8")}));
    rows.push_back(frames("an unmasked text after a good one", "echo, close 1002, EOF",
                          {hello + unmasked(kText, "never delivered") + hello}));
}

inline void addMalformed(Rows &rows) {
    const char *refused = "close 1002, EOF";
    Strings bits, opcodes, fragmented;
    for (const unsigned bit : {0x40U, 0x20U, 0x10U, 0x70U})
        for (const unsigned opcode : {kText, kPing, kClose, kContinuation})
            bits.push_back(frameOf(kFin | bit | opcode, ""));
    for (const unsigned opcode : {3U, 4U, 5U, 6U, 7U, 11U, 12U, 13U, 14U, 15U})
        opcodes.push_back(frame(opcode, "x"));
    for (const unsigned opcode : {kClose, kPing, kPong}) fragmented.push_back(frameOf(opcode, ""));
    rows.push_back(frames("each reserved bit", refused, bits));
    rows.push_back(frames("each reserved opcode", refused, opcodes));
    rows.push_back(frames("control frames in fragments", refused, fragmented));
    rows.push_back(frames(
        "control frames of 126 bytes and of 64 KiB", refused,
        {header(kFin | kPing, 126), header(kFin | kPong, 65536), header(kFin | kClose, 126)}));
    rows.push_back(frames("a continuation with nothing to continue", refused,
                          {frame(kContinuation, "x"), frameOf(kContinuation, "x")}));
    rows.push_back(
        frames("a message inside another", refused, {frameOf(kText, "a") + frame(kText, "b")}));
    rows.push_back(frames("garbage after a message", "echo, close 1002, EOF",
                          {frame(kText, "hello") + std::string(4096, '\xff')}));
    rows.push_back(frames("a second request where frames should be", refused, {upgrade()}));
}

inline void addText(Rows &rows) {
    const char *refused = "close 1007, EOF";
    const std::string start = header(kFin | kText, 60000);
    const std::string much(60000, 'x');
    rows.push_back(frames("text that is not UTF-8 from its first byte on, the rest never sent",
                          refused, {start + masked("\xff"), start + masked("\xc0\xaf")}));
    rows.push_back(frames("text that is not UTF-8 at its end", refused,
                          {frame(kText, much + "\xff"), frame(kText, much + "\xe2\x82")}));
    rows.push_back(frames("fragmented text that is not UTF-8", refused,
                          {frameOf(kText, "\xe2\x82") + frame(kContinuation, "x"),
                           frameOf(kText, "\xe2") + frame(kContinuation, "\x82"),
                           frameOf(kText, "") + frameOf(kContinuation, "\xff")}));
    rows.push_back(
        frames("overlong forms, surrogates, code points above U+10FFFF", refused,
               {frame(kText, "\xe0\x80\xaf"), frame(kText, "\xed\xa0\x80"),
                frame(kText, "\xf4\x90\x80\x80"), frame(kText, "\xf8\x88\x80\x80\x80")}));
    rows.push_back(frames("JSON that is 100,000 arrays deep", "echo, open",
                          {frame(kText, std::string(100000, '['))}));
    rows.push_back(frames("JSON that is 100,000 elements wide", "echo, open",
                          {frame(kText, '[' + repeated("0,", 99999) + "0]")}));
    rows.push_back(
        frames("64 KiB of zeros, masked with zeros", "echo, open",
               {headerOf(kFin | kBinary, 65536, 8).substr(0, 10) + std::string(4 + 65536, '\0')}));
}

// ----------------------------------------------------------------------------
// Closing
// ----------------------------------------------------------------------------

inline void answerWithTheSame(Attack &a) {
    const std::vector<unsigned> codes = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010,
                                         1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999};
    a.users(static_cast<int>(codes.size()));
    for (std::size_t i = 0; i < codes.size(); ++i) a.peers[i]->send(closeFrame(codes[i]));
    a.pump(5, [&] { return a.allEnded(); });
    for (std::size_t i = 0; i < codes.size(); ++i)
        a.require(a.peers[i]->closeCode == codes[i] && a.peers[i]->end == Peer::End::eof,
                  std::to_string(codes[i]) + " was answered by " + a.peers[i]->story());
}

inline void addCloses(Rows &rows) {
    Strings bad;
    for (const unsigned code : {0U, 999U, 1004U, 1005U, 1006U, 1015U, 1016U, 2999U, 5000U, 65535U})
        bad.push_back(closeFrame(code));
    const std::string good = closeFrame(1000);
    rows.push_back(
        {"each close code that may be sent, answered with the same", "", answerWithTheSame});
    rows.push_back(
        frames("a close whose payload is one byte", "close 1002, EOF", {frame(kClose, "\x03")}));
    rows.push_back(frames("close codes that may not be sent", "close 1002, EOF", bad));
    rows.push_back(frames("a close whose reason is not UTF-8", "close 1007, EOF or close 1002, EOF",
                          {closeFrame(1000, "\xff"), closeFrame(1000, "\xe2\x82")}));
    rows.push_back(
        frames("a close without a code", "close, EOF or close 1000, EOF", {frame(kClose, "")}));
    rows.push_back(
        frames("text, ping, a close or garbage after a close", "close 1000, EOF",
               {good + frame(kText, "never delivered"), good + frame(kPing, "never answered"),
                good + closeFrame(1001), good + std::string(300000, '\xff')}));
    rows.push_back(frames("a close inside a fragmented message", "close 1000, EOF",
                          {frameOf(kText, "begun") + good}));
}

// We keep our sockets open; the server must close its own in time.
inline void awaitAllGone(Attack &a) {
    a.pump(5, [&] { return a.allEnded(); });
    a.pumpFor(a.options.closedSeconds());
    a.requireAllGone();
}

inline void neverClose(Attack &a) {
    a.user().send(closeFrame(1000));
    a.user().send(unmasked(kText, "x"));
    awaitAllGone(a);
}

inline void trickleBehindClose(Attack &a) {
    a.user().send(closeFrame(1000));
    for (const auto end = after(a.options.closedSeconds()); Clock::now() < end; a.pumpFor(0.05))
        a.peers[0]->send("x");
    a.requireAllGone();
}

inline void thousandDoNotAnswer(Attack &a) {
    a.users(a.options.usersAtOnce());
    a.sendAll(unmasked(kText, "x"));
    awaitAllGone(a);
}

inline void thousandDoNotRead(Attack &a) {
    a.users(a.options.usersAtOnce());
    a.each([](Peer &peer) { peer.reads = false; });
    a.sendAll(unmasked(kText, "x"));
    a.pumpFor(a.options.closedSeconds());
    a.requireAllGone();
}

inline void addHeldOpen(Rows &rows) {
    rows.push_back({"no TCP close after the closing handshake, nor after an error",
                    "close 1000, EOF or close 1002, EOF",
                    neverClose,
                    {},
                    true});
    rows.push_back({"bytes that keep trickling after a close",
                    "close 1000, EOF or close 1000, RST",
                    trickleBehindClose,
                    {},
                    true});
    rows.push_back({"a thousand users that do not answer the server's close",
                    "close 1002, EOF",
                    thousandDoNotAnswer,
                    {},
                    true});
    rows.push_back({"a thousand users that do not even read the server's close",
                    "open",
                    thousandDoNotRead,
                    {},
                    true});
}

// The peer shuts down its sending side, before or after the handshake.
inline Row halfClosed(const std::string &when, std::string expected, bool welcomed,
                      const std::string &bytes, Cost cost = {}) {
    const auto act = [=](Attack &a) {
        Peer &peer = welcomed ? a.user() : a.stranger();
        peer.send(bytes);
        a.pump(5, [&] { return !peer.hasToSend(); });
        peer.finish();
    };
    return {"half-closed " + when, std::move(expected), act, cost};
}

inline void addHalfCloses(Rows &rows) {
    const std::string get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const std::string large = frame(kBinary, std::string(1000000, 'x'));
    rows.push_back(halfClosed("at once", "EOF or 400, EOF", false, ""));
    rows.push_back(halfClosed("inside a request", "EOF or 400, EOF", false, "GET / HT"));
    rows.push_back(halfClosed("after a request", "101, EOF", false, upgrade()));
    rows.push_back(halfClosed("after a GET", "426, EOF or 200, EOF", false, get));
    rows.push_back(halfClosed("between messages", "EOF", true, ""));
    rows.push_back(halfClosed("inside a frame's header", "EOF", true, "\x81"));
    rows.push_back(halfClosed("inside a message", "EOF", true, frameOf(kText, "begun")));
    rows.push_back(halfClosed("after a message", "echo, EOF", true, frame(kText, "x")));
    rows.push_back(halfClosed("after a large message", "echo, EOF", true, large, {2}));
    rows.push_back(halfClosed("after a close", "close 1000, EOF", true, closeFrame(1000)));
}

// ----------------------------------------------------------------------------
// Requests
// ----------------------------------------------------------------------------

// An opening handshake whose `header` lines have these values.
inline std::string withLines(const char *header, const Strings &values) {
    std::string lines;
    for (const std::string &value : values) lines.append(header).append(": " + value + "\r\n");
    return upgrade(lines, header);
}

// One handshake for each value.
inline Strings withEach(const char *header, const Strings &values) {
    Strings all;
    for (const std::string &value : values) all.push_back(withLines(header, {value}));
    return all;
}

inline Strings withEachLine(const Strings &lines) {
    Strings all;
    for (const std::string &line : lines) all.push_back(upgrade(line + "\r\n"));
    return all;
}

inline Strings withEachStart(const Strings &starts) {
    Strings all;
    for (const std::string &start : starts) all.push_back(upgrade("", "-", start));
    return all;
}

inline void addHandshakes(Rows &rows) {
    const char *key = "Sec-WebSocket-Key", *version = "Sec-WebSocket-Version";
    const std::string good = "dGhlIHNhbXBsZSBub25jZQ==", other = "AAAAAAAAAAAAAAAAAAAAAA==";
    rows.push_back(requests("no key", "400, EOF", {withLines(key, {})}));
    rows.push_back(requests(
        "two keys, in two headers and in one", "400, EOF",
        {withLines(key, {good, good}), withLines(key, {good, other}),
         upgrade("sec-websocket-key: " + good + "\r\n"), withLines(key, {good + ", " + good})}));
    rows.push_back(requests("keys of 0, 8, 15, 17 and 3000 bytes", "400, EOF",
                            withEach(key, {"", "AAAAAAAAAAA=", "AAAAAAAAAAAAAAAAAAAA",
                                           "AAAAAAAAAAAAAAAAAAAAAAA=", std::string(4000, 'A')})));
    rows.push_back(requests("keys that are not base64", "400, EOF",
                            withEach(key, {"dGhlIHNhbXBsZSBub25jZ!==", "dGhlIHNhbXBsZSBub25jZQ",
                                           "dGhlIHNhbXBs====ub25jZQ==", std::string(24, '=')})));
    rows.push_back(requests("no version", "426, EOF", {withLines(version, {})}));
    rows.push_back(requests("versions that are not 13", "426, EOF",
                            withEach(version, {"12", "0", "1313", "\xb9\x33", "thirteen", ""})));
    rows.push_back(requests("two versions", "400, EOF or 426, EOF",
                            {withLines(version, {"13", "8"}), withLines(version, {"8, 13"})}));
}

inline void addLists(Rows &rows) {
    const char *protocol = "Sec-WebSocket-Protocol";
    const std::string spaces = "a" + std::string(7000, ' ') + "b";
    rows.push_back(requests("subprotocols with CR, LF or NUL", "400, EOF",
                            withEach(protocol, {"a\rX: 1", "a\nX: 1", "a\0b"s})));
    rows.push_back(requests(
        "thousands of subprotocols, bad characters, wide gaps", "101, open or 400, EOF",
        withEach(protocol, {repeated("a,", 1000), ",,;\"\\%0d%0aX: 1", "\xff\xfe", spaces})));
    rows.push_back(
        requests("thousands of extensions, wide gaps", "101, open or 400, EOF",
                 withEach("Sec-WebSocket-Extensions", {repeated("a;b=1,", 1000) + "c", spaces})));
    rows.push_back(requests(
        "origins that are null, empty or malformed", "101, open or 403, EOF or 400, EOF",
        withEach("Origin",
                 {"null", "", "://", "http://a:99999999999", "http://[::", "\xff", spaces})));
    rows.push_back(requests("two origins", "101, open or 403, EOF or 400, EOF",
                            {withLines("Origin", {"http://a", "http://b"})}));
}

inline void addRequests(Rows &rows) {
    const char *bad = "400, EOF";
    rows.push_back(requests(
        "line breaks that are a bare LF", bad,
        {"GET / HTTP/1.1\nHost: localhost\n\n", upgrade("\n"), upgrade("X: a\nY: b\r\n")}));
    rows.push_back(requests(
        "bare CR, NUL and other control characters", bad,
        withEachLine({"X: a\rY: b", "X: a\0b"s, "X\0: a"s, "X: \x01", "X: \x7f", "X\x1b: a"})));
    rows.push_back(requests(
        "folded headers", bad,
        {upgrade("X: a\r\n b\r\n"), upgrade("X: a\r\n\tb\r\n"), upgrade(" X: a\r\n", "Host")}));
    rows.push_back(requests("a space before the colon, no colon, no name", bad,
                            withEachLine({"X : a", "X\t: a", "X", ": a", "X(y): a"})));
    rows.push_back(requests(
        "no Host, two, bad ones", bad,
        {withLines("Host", {}), withLines("Host", {"a", "a"}), withLines("Host", {"a b"}),
         withLines("Host", {"a/b"}), withLines("Host", {"a, b"}), withLines("Host", {"a:b"})}));
    rows.push_back(
        requests("HTTP/1.0, 0.9, 2.0 and others", "400, EOF or 505, EOF",
                 withEachStart({"GET / HTTP/1.0", "GET /", "GET / HTTP/2.0", "GET / HTTP/1.1x",
                                "GET / http/1.1", "GET / HTTP/11.1"})));
    rows.push_back(requests("an absolute URI", "101, open",
                            withEachStart({"GET http://localhost/ HTTP/1.1"})));
    rows.push_back(requests("targets that are not a path", bad,
                            withEachStart({"GET http:///etc HTTP/1.1", "GET * HTTP/1.1",
                                           "GET file:///etc/passwd HTTP/1.1", "GET /#a HTTP/1.1",
                                           "GET /\xff HTTP/1.1", "GET /\0 HTTP/1.1"s})));
    rows.push_back(requests("request lines with too few and too many spaces", bad,
                            withEachStart({"GET  / HTTP/1.1", "GET / a HTTP/1.1", "GET/HTTP/1.1",
                                           " GET / HTTP/1.1", "", "GET / HTTP/1.1 "})));
    rows.push_back(requests("POST, PUT, CONNECT, TRACE, OPTIONS and others", "405, EOF",
                            withEachStart({"POST / HTTP/1.1", "PUT / HTTP/1.1", "get / HTTP/1.1",
                                           "CONNECT a:1 HTTP/1.1", "TRACE / HTTP/1.1",
                                           "OPTIONS * HTTP/1.1", "head / HTTP/1.1"})));
}

// The first bytes of other protocols.
inline void addProtocols(Rows &rows) {
    const char *bad = "400, EOF";
    const std::string hello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"s;
    rows.push_back(requests("a TLS ClientHello", bad, {hello + std::string(508, 'r')}));
    rows.push_back(requests("the preface of HTTP/2", "400, EOF or 405, EOF or 505, EOF",
                            {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}));
    rows.push_back(requests("the header of the PROXY protocol, versions 1 and 2", bad,
                            {"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n" + upgrade(),
                             "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"s + std::string(12, '\x7f')}));
    rows.push_back(requests("frames without a handshake", "400, EOF or open",
                            {frame(kText, "hello"), closeFrame(1000)}));
}

inline void leaveAnswerUnread(Attack &a) {
    a.stranger().reads = false;
    a.sendAll("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    a.pumpFor(a.options.closedSeconds());
    a.requireAllGone();
}

// Two requests in one packet: the first is refused, and the second must never be parsed.
inline void addSmuggling(Rows &rows) {
    const std::string refused = withLines("Sec-WebSocket-Version", {"12"});
    const std::string get = "GET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const std::string text = frame(kText, "never delivered");
    rows.push_back(requests("a GET after a refused upgrade", "426, EOF",
                            {refused + get, refused + repeated(get, 100)}));
    rows.push_back(
        requests("a good upgrade after a refused one", "426, EOF", {refused + upgrade() + text}));
    rows.push_back(requests("frames after a refused upgrade", "426, EOF",
                            {refused + text + closeFrame(1000)}));
    rows.push_back(requests("1 MB after a refused upgrade", "426, EOF",
                            {refused + std::string(1000000, 'x')}));
    rows.push_back(
        requests("a body with its length, in chunks, or both", "400, EOF",
                 {upgrade("Content-Length: 5\r\n") + "hello", upgrade("Content-Length: -1\r\n"),
                  upgrade("Content-Length: 99999999999999999999\r\n"),
                  upgrade("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
                  upgrade("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"}));
    rows.push_back(
        requests("a body that is a request", "400, EOF",
                 {upgrade("Content-Length: " + std::to_string(get.size()) + "\r\n") + get}));
    rows.push_back(requests("pipelined GETs", "426, EOF or 200, EOF", {repeated(get, 50)}));
    rows.push_back(
        requests("a GET after a good upgrade", "101, close 1002, EOF", {upgrade() + get}));
    rows.push_back({"a GET whose peer neither reads the answer nor closes",
                    "open",
                    leaveAnswerUnread,
                    {},
                    true});
}

// ----------------------------------------------------------------------------
// Large heads
// ----------------------------------------------------------------------------

// Sends bytes without end, until the server answers.
inline Row endlessHead(std::string name, const std::string &start, const std::string &piece) {
    const auto act = [=](Attack &a) {
        Peer &peer = a.stranger();
        peer.send(start);
        for (const auto end = after(5); peer.text.empty() && !peer.ended() && Clock::now() < end;) {
            peer.sendSome(piece);
            peer.move();
        }
    };
    return {std::move(name), "431, EOF", act, {0, 1}};
}

inline void almostFinish(Attack &a) {
    const std::string head = upgradeOfSize(a.options.requestBytes());
    for (int i = 0; i < a.options.strangersAtOnce(); ++i)
        a.stranger().send(std::string_view(head).substr(0, head.size() - 1));
}

inline void addHeads(Rows &rows, const Options &options) {
    const std::size_t most = options.requestBytes();
    const std::size_t room = most - upgradeOfSize(0).size();
    const char *tooMuch = "431, EOF";
    const std::string start = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    rows.push_back(
        requests("thousands of tiny headers", tooMuch, {upgrade(repeated("a:\r\n", most))}));
    rows.push_back(requests("as many tiny headers as fit", "101, open",
                            {upgrade(repeated("a:\r\n", room / 4))}));
    rows.push_back(requests("one header of 1 MB", tooMuch, {upgradeOfSize(1000000)}));
    rows.push_back(requests("a run of spaces that is too long", tooMuch,
                            {upgrade("X:" + std::string(most, ' ') + "\r\n"),
                             "GET" + std::string(most, ' '), std::string(most, ' ')}));
    rows.push_back(requests("a run of spaces that just fits", "101, open",
                            {upgrade("X:" + std::string(room, ' ') + "\r\n")}));
    Strings fitting, large;
    for (std::size_t i = 0; i < 40; ++i) {
        fitting.push_back(upgradeOfSize(most - 39 + i));
        large.push_back(upgradeOfSize(most + 1 + i));
    }
    rows.push_back(requests("heads that grow by a byte, up to the limit", "101, open", fitting));
    rows.push_back(requests("heads that grow by a byte, from the limit on", tooMuch, large));
    rows.push_back(endlessHead("a request line without end", "GET /", std::string(1000, 'a')));
    rows.push_back(endlessHead("a header without end", start + "X: ", std::string(1000, 'a')));
    rows.push_back(endlessHead("headers without end", start, "X: a\r\n"));
    rows.push_back({"hundreds of heads that stop one byte before the limit",
                    "open",
                    almostFinish,
                    {0, options.strangersAtOnce()}});
}

// ----------------------------------------------------------------------------
// Crowds, and slow peers
// ----------------------------------------------------------------------------

inline void connectAndReset(Attack &a, int count, std::string_view bytes) {
    for (int i = 0; i < count; ++i) {
        Peer &peer = a.stranger();
        peer.send(bytes);
        peer.reset();
    }
}

inline void vanishAtOnce(Attack &a) {
    a.users(300);
    a.each([](Peer &peer) { peer.reset(); });
}

inline void sendMuchAndReset(Attack &a) {
    const std::string much = frame(kBinary, std::string(200000, 'x'));
    a.users(50);
    a.each([&](Peer &peer) {
        peer.reads = false;
        flood(peer, much, 0.01);
        peer.reset();
    });
}

inline void addCrowds(Rows &rows) {
    rows.push_back({"2000 peers that connect and reset", "we left",
                    [](Attack &a) { connectAndReset(a, 2000, ""); }});
    rows.push_back({"500 peers that reset inside their request", "we left",
                    [](Attack &a) { connectAndReset(a, 500, upgrade().substr(0, 50)); }});
    rows.push_back({"500 peers that reset after their request", "we left",
                    [](Attack &a) { connectAndReset(a, 500, upgrade()); }});
    rows.push_back({"300 users that vanish at once", "we left", vanishAtOnce});
    rows.push_back({"50 users that send a lot and reset", "we left", sendMuchAndReset, {0, 0, 50}});
    rows.push_back({"a thousand users that say nothing", "open",
                    [](Attack &a) { a.users(a.options.usersAtOnce()); }});
}

// Hundreds of peers send nothing, one stops inside its request, one sends a byte per second,
// one ten bytes. None completes its request, and all must get the same time for it.
inline void trickle(Attack &a) {
    for (int i = 3; i < a.options.strangersAtOnce(); ++i) a.stranger();
    Peer *slow[3];
    for (Peer *&peer : slow) (peer = &a.stranger())->send("GET / HTTP/1.1\r\nX: ");
    const auto start = Clock::now();
    const auto passed = [&] { return Seconds(Clock::now() - start).count(); };
    const double due = a.options.handshakeSeconds;
    for (int step = 0; !a.allEnded() && passed() < due + a.options.graceSeconds; ++step) {
        slow[0]->send("x");
        if (step % 10 == 0) slow[1]->send("x");
        a.pumpFor(0.1);
    }
    a.require(passed() > due - 0.5, "the server closed them too early");
    a.require(a.allEnded(), "the server closed them too late");
}

inline void byteByByte(Attack &a) {
    Peer &peer = a.stranger(1024);
    peer.reads = false;
    peer.welcomed = true;
    for (const char byte : upgrade() + frame(kText, "slow") + closeFrame(1000)) {
        peer.send({&byte, 1});
        sleepFor(0.002);
        peer.receive(1);
    }
    for (int i = 0; i < 1000 && !peer.ended(); ++i) {
        peer.poll(POLLIN, 10);
        peer.receive(1);
    }
}

inline void readSlowly(Attack &a) {
    Peer &peer = a.user(2048);
    peer.reads = false;
    peer.send(frame(kBinary, std::string(1000000, 'x')));
    a.pump(5, [&] { return !peer.hasToSend(); });
    for (const auto end = after(a.options.floodSeconds()); Clock::now() < end; sleepFor(0.001))
        peer.receive(1);
    peer.reads = true;
    a.pump(10, [&] { return peer.messages > 0; });
}

inline void answerNoPing(Attack &a) {
    Peer &peer = a.user();
    a.pump(2 * (a.options.pingSeconds + a.options.graceSeconds), [&] { return peer.ended(); });
    a.require(peer.pings == 1, std::to_string(peer.pings) + " pings instead of one");
}

inline void addSlow(Rows &rows, const Options &options) {
    rows.push_back(
        {"500 peers that send nothing, or a byte per second", "408, EOF", trickle, {0, 3}, true});
    rows.push_back({"everything a byte at a time, both ways", "echo, close 1000, EOF", byteByByte});
    rows.push_back({"a large echo, read a byte at a time", "echo, open", readSlowly, {2, 0, 1}});
    if (options.pingSeconds > 0)
        rows.push_back({"a user that answers no ping",
                        "RST or EOF or close 1001, EOF",
                        answerNoPing,
                        {},
                        true});
}

inline Rows allRows(const Options &options) {
    Rows rows;
    addLengths(rows);
    addSizes(rows, options);
    addFloods(rows, options);
    addUnmasked(rows);
    addMalformed(rows);
    addText(rows);
    addCloses(rows);
    addHalfCloses(rows);
    addHandshakes(rows);
    addLists(rows);
    addRequests(rows);
    addProtocols(rows);
    addSmuggling(rows);
    addHeads(rows, options);
    addCrowds(rows);
    addHeldOpen(rows);
    addSlow(rows, options);
    return rows;
}

}  // namespace attack

#endif
