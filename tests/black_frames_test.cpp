// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Frames and messages over a real socket (RFC 6455 5, 7 and 8.1): however they are cut into
// packets, and whichever rule they break.

#include "black.h"

using namespace black;

namespace {

// A text in which a lost, doubled or displaced byte shows.
std::string longText(std::size_t size) {
    std::string text;
    while (text.size() < size) text += std::to_string(text.size()) + ' ';
    text.resize(size);
    return text;
}

// Whether the next frame is this echo. doctest itself would print the payload.
bool isEcho(Peer &peer, unsigned opcode, const std::string &payload) {
    const std::optional<Peer::Frame> frame = peer.next();
    return frame && frame->opcode == opcode && frame->payload == payload;
}

// A frame header whose length takes `size` bytes, minimal or not.
std::string longHeader(unsigned first, std::uint64_t length, unsigned size) {
    return networkOrder(first, 1) + networkOrder(kMask | (size == 2 ? 126U : 127U), 1) +
           networkOrder(length, size) + std::string(kMaskingKey);
}

// Sends in one piece, or byte by byte.
void sendCut(Peer &peer, const std::string &bytes, bool bytewise) {
    if (!bytewise) return peer.send(bytes);
    for (const char byte : bytes) peer.step({&byte, 1});
}

}  // namespace

// ----------------------------------------------------------------------------
// Valid frames
// ----------------------------------------------------------------------------

TEST_CASE("Text and binary messages of every size are echoed, in one frame or many") {
    Server server;
    Peer peer(server);
    for (const std::size_t size :
         {0U, 1U, 2U, 125U, 126U, 127U, 128U, 4095U, 4096U, 65535U, 65536U, 200'000U}) {
        CAPTURE(size);
        const std::string text = longText(size);
        const std::string bytes = masked(text) + '\xFF';
        peer.send(frame(kText, text));
        CHECK(isEcho(peer, kText, text));
        peer.send(frame(kBinary, bytes));
        CHECK(isEcho(peer, kBinary, bytes));
        for (const unsigned opcode : {kText, kBinary}) {
            const std::string third = text.substr(0, size / 3), rest = text.substr(size / 3);
            peer.send(frame(opcode, third, 0) + frame(kContinuation, "", 0) +
                      frame(kPing, "between") + frame(kContinuation, rest));
            CHECK(peer.hear() == "pong between");
            CHECK(isEcho(peer, opcode, text));
        }
    }
}

TEST_CASE("A message of 16 MiB is echoed exactly, if the limit allows it") {
    constexpr std::size_t kSize = 16 * 1024 * 1024;
    Server server([](Config &config) {
        config.maxMessageBytes = kSize;
        config.maxQueuedBytes = 2 * kSize;
    });
    Peer peer(server);
    const std::string message = longText(kSize);
    peer.send(frame(kText, message) + frame(kText, "behind it"));
    CHECK(isEcho(peer, kText, message));
    CHECK(peer.hear() == "text behind it");
    for (std::size_t i = 0; i < kSize; i += kSize / 4)
        peer.send(frame(i == 0 ? kBinary : kContinuation, message.substr(i, kSize / 4),
                        i + kSize / 4 == kSize ? kFin : 0));
    CHECK(isEcho(peer, kBinary, message));
}

TEST_CASE("A stream of frames means the same wherever it is cut") {
    const std::string bytes(130, '\xFE');
    const std::string stream = frame(kText, "h\xC3\xA9") + frame(kPing, "p") +
                               frame(kText, "a\xE2", 0) + frame(kPing, "q") +
                               frame(kContinuation, "", 0) + frame(kPong, "unasked") +
                               frame(kContinuation, "\x82\xAC") + frame(kBinary, bytes) +
                               frame(kText, "") + closeFrame(3000, "bye");
    const std::string expected = "text h\xC3\xA9, pong p, pong q, text a\xE2\x82\xAC, binary " +
                                 bytes + ", text, close 3000, EOF";
    Server server;
    for (std::size_t cut = 0; cut < stream.size(); ++cut) {
        CAPTURE(cut);
        Peer peer(server);
        peer.step(stream.substr(0, cut));
        peer.send(stream.substr(cut));
        CHECK((joined(peer.hearAll()) == expected));
    }
    Peer peer(server);
    sendCut(peer, stream, true);
    CHECK((joined(peer.hearAll()) == expected));
}

TEST_CASE("Messages larger than one read arrive whole, wherever reads cut them") {
    const std::string text = longText(3000);
    const std::string stream =
        frame(kText, text) + frame(kPing, "p") + frame(kText, text.substr(0, 1000), 0) +
        frame(kContinuation, text.substr(1000)) + frame(kText, "short") + closeFrame(1000);
    for (const std::size_t size : {1U, 2U, 3U, 7U, 100U, 1001U, 2999U, 3008U, 3009U, 3010U}) {
        CAPTURE(size);
        Server server;
        Peer peer(server);
        for (std::size_t at = 0; at < stream.size(); at += size) peer.step(stream.substr(at, size));
        CHECK((joined(peer.hearAll()) ==
               "text " + text + ", pong p, text " + text + ", text short, close 1000, EOF"));
    }
}

TEST_CASE("Ten pings in one packet get ten pongs, in order") {
    Server server;
    Peer peer(server);
    std::string pings;
    for (int i = 0; i < 10; ++i)
        pings += frame(kPing, std::string(static_cast<std::size_t>(i), 'x'));
    peer.send(pings + frame(kPing, std::string(125, 'y')));
    for (std::size_t i = 0; i < 10; ++i)
        CHECK(peer.hear() == (i == 0 ? "pong" : "pong " + std::string(i, 'x')));
    CHECK(peer.hear() == "pong " + std::string(125, 'y'));
}

// ----------------------------------------------------------------------------
// Closing
// ----------------------------------------------------------------------------

TEST_CASE("A Close is answered with the same code, and data after it is ignored") {
    struct Row {
        std::string label, payload, heard;
    };
    const auto code = [](std::uint64_t number) { return networkOrder(number, 2); };
    const std::vector<Row> rows = {
        {"No code.", "", "close, EOF"},
        {"1000", code(1000), "close 1000, EOF"},
        {"1001, with a reason.", code(1001) + "going", "close 1001, EOF"},
        {"1003", code(1003), "close 1003, EOF"},
        {"1007", code(1007), "close 1007, EOF"},
        {"1011", code(1011), "close 1011, EOF"},
        {"1014", code(1014), "close 1014, EOF"},
        {"3000", code(3000), "close 3000, EOF"},
        {"4999", code(4999), "close 4999, EOF"},
        {"The longest reason.", code(4000) + std::string(123, 'x'), "close 4000, EOF"},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        Peer peer(server);
        peer.keepsOpen = true;
        peer.send(frame(kText, "before") + frame(kClose, row.payload) + frame(kText, "behind") +
                  frame(kPing, "") + "not a frame");
        CHECK(joined(peer.hearAll()) == "text before, " + row.heard);
        peer.step(frame(kText, "much later"));
        CHECK(std::count(server.hooks.begin(), server.hooks.end(), "process 1: before") == 1);
        CHECK_FALSE(has(joined(server.hooks), "behind"));
        CHECK_FALSE(has(joined(server.hooks), "later"));
    }
}

TEST_CASE("The answer to a Close has its code and no more") {
    Server server;
    Peer peer(server);
    peer.send(closeFrame(1001, "going"));
    const std::optional<Peer::Frame> answer = peer.next();
    REQUIRE(answer);
    CHECK(answer->opcode == kClose);
    CHECK(answer->payload == networkOrder(1001, 2));
    CHECK(peer.hear() == "EOF");
    CHECK(server.reasons == Strings{"going"});
}

TEST_CASE("After its Close, the server waits for that of the peer") {
    Server server;
    Peer peer(server);
    server.disconnect(server.user(1), 4000, "time to go");
    CHECK(peer.hear() == "close 4000");
    peer.send(frame(kText, "too late") + frame(kPing, "a"));
    CHECK(peer.hear() == "pong a");
    peer.send(frame(kText, std::string(300'000, 'x')) + frame(kPing, "b"));
    CHECK(peer.hear() == "pong b");
    peer.step(frame(kPing, "cut").substr(0, 1));
    peer.send(frame(kPing, "cut").substr(1));
    CHECK(peer.hear() == "pong cut");
    peer.send(closeFrame(4000) + frame(kPing, "c"));
    CHECK(peer.hear() == "EOF");
    CHECK_FALSE(has(joined(server.hooks), "process"));
}

TEST_CASE("After both Closes the server closes at once, unless bytes lay behind the peer's") {
    struct Row {
        std::string label, bytes;
        bool oursFirst;
        std::uint64_t lingering;
    };
    const std::vector<Row> rows = {
        {"The peer's Close comes first.", closeFrame(1000), false, 0},
        {"The peer's Close is the answer to ours.", closeFrame(1000), true, 0},
        {"A ping lies behind it.", closeFrame(1000) + frame(kPing, ""), false, 1},
        {"A byte lies behind the answer.", closeFrame(1000) + "x", true, 1},
        {"The Close is malformed.", frame(kClose, "x"), false, 1},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        Peer peer(server);
        peer.keepsOpen = true;
        if (row.oursFirst) server.disconnect(server.user(1));
        if (row.oursFirst) CHECK(peer.hear() == "close 1000");
        peer.step(row.bytes);
        CHECK(server.stats().pending == row.lingering);
        CHECK(has(joined(peer.hearAll()), "EOF"));
    }
}

TEST_CASE("Bytes behind a Close that slow hooks held up cause no reset") {
    Server server;
    server.onProcess = [](User &, WSMessage &) { std::this_thread::sleep_for(1ms); };
    Peer peer(server);
    peer.keepsOpen = true;
    std::string frames;
    for (int i = 0; i < 20; ++i) frames += frame(kText, "slow");
    peer.step(frames + closeFrame(1000));
    CHECK(server.stats().messagesReceived < 20);
    peer.send("behind");
    pump(server, "the Close", [&] { return server.stats().users == 0; });
    CHECK(server.stats().pending == 1);
    CHECK(joined(peer.hearAll()) == "close 1000, EOF");
}

TEST_CASE("After disconnect(), messages of that user are ignored, even in the same packet") {
    Server server;
    server.onProcess = [&](User &user, WSMessage &) { server.disconnect(user, 4000); };
    Peer peer(server);
    peer.send(frame(kText, "the last") + frame(kText, "too late") + frame(kPing, "a"));
    CHECK(peer.hear() == "pong a");
    CHECK(peer.hear() == "close 4000");
    CHECK_FALSE(has(joined(server.hooks), "too late"));
}

TEST_CASE("A peer that breaks the protocol instead of closing gets no second Close") {
    Server server;
    Peer peer(server);
    server.disconnect(server.user(1), 4000);
    CHECK(peer.hear() == "close 4000");
    peer.send("\xFF\xFF\xFF\xFF");
    CHECK(peer.hear() == "EOF");
}

TEST_CASE("A peer that half-closes after its messages gets all echoes, with or without a Close") {
    Server server;
    const std::string message = longText(900'000);
    Peer peer(server);
    peer.appetite = 0;
    peer.send(frame(kText, message) + frame(kText, "one more") + closeFrame(1000));
    peer.finish();
    peer.appetite = std::string::npos;
    CHECK(isEcho(peer, kText, message));
    CHECK(joined(peer.hearAll()) == "text one more, close 1000, EOF");

    Peer rude(server);  // without a Close
    rude.send(frame(kText, message) + frame(kText, "one more"));
    rude.finish();
    CHECK(isEcho(rude, kText, message));
    CHECK(joined(rude.hearAll()) == "text one more, EOF");
}

// ----------------------------------------------------------------------------
// Broken rules
// ----------------------------------------------------------------------------

TEST_CASE("A peer that breaks a rule gets the right close code, then the end of the connection") {
    struct Row {
        std::string label, bytes;
        int code;
    };
    std::vector<Row> rows = {
        {"A frame is not masked.", "\x81\x05hello", 1002},
        {"An empty frame is not masked.", "\x81\x00"s, 1002},
        {"A Close is not masked.", "\x88\x02\x03\xE8", 1002},
        {"A ping is fragmented.", frame(kPing, "", 0), 1002},
        {"A pong is fragmented.", frame(kPong, "", 0), 1002},
        {"A Close is fragmented.", frame(kClose, "", 0), 1002},
        {"A ping has 126 bytes.", frame(kPing, std::string(126, 'x')), 1002},
        {"A pong has 65536 bytes.", frame(kPong, std::string(65536, 'x')), 1002},
        {"A Close has 126 bytes.", closeFrame(1000, std::string(124, 'x')), 1002},
        {"A length below 126 takes 2 bytes.", longHeader(kFin | kText, 125, 2), 1002},
        {"A length of 0 takes 2 bytes.", longHeader(kFin | kText, 0, 2), 1002},
        {"A length below 65536 takes 8 bytes.", longHeader(kFin | kText, 65535, 8), 1002},
        {"A length has its top bit set.", longHeader(kFin | kText, 1ULL << 63, 8), 1002},
        {"A continuation has nothing to continue.", frame(kContinuation, "x"), 1002},
        {"A continuation follows a whole message.",
         frame(kText, "done") + frame(kContinuation, "x"), 1002},
        {"A continuation follows the last one.",
         frame(kText, "a", 0) + frame(kContinuation, "b") + frame(kContinuation, "c"), 1002},
        {"A text begins inside a text.", frame(kText, "a", 0) + frame(kText, "b"), 1002},
        {"A binary begins inside a text.", frame(kText, "a", 0) + frame(kBinary, "b", 0), 1002},

        {"A text has a byte that never occurs in UTF-8.", frame(kText, "a\xFFz"), 1007},
        {"A text has a surrogate.", frame(kText, "\xED\xA0\x80"), 1007},
        {"A text has a character above U+10FFFF.", frame(kText, "\xF4\x90\x80\x80"), 1007},
        {"A text has an overlong slash.", frame(kText, "\xC0\xAF"), 1007},
        {"A text ends inside a character.", frame(kText, "a\xE2\x82"), 1007},
        {"A message ends inside a character.",
         frame(kText, "a\xE2", 0) + frame(kContinuation, "\x82"), 1007},
        {"A message ends inside a character, with an empty frame.",
         frame(kText, "\xC3", 0) + frame(kContinuation, ""), 1007},
        {"A continuation is not UTF-8.", frame(kText, "a", 0) + frame(kContinuation, "\xBF"), 1007},
        {"A ping splits a character that then goes wrong.",
         frame(kText, "\xE2", 0) + frame(kPing, "") + frame(kContinuation, "\x41"), 1007},

        {"A Close has half a code.", frame(kClose, "\x03"), 1002},
        {"A Close has a reason that is not UTF-8.", closeFrame(1000, "\xC3"), 1007},

        {"A text declares too long a payload.", header(kFin | kText, 1001), 1009},
        {"A binary declares a huge payload.", longHeader(kFin | kBinary, ~0ULL >> 1, 8), 1009},
        {"Fragments add up to too long a message.",
         frame(kText, std::string(600, 'x'), 0) + header(kContinuation, 401), 1009},
        {"A message has too many fragments.",
         frame(kBinary, "", 0) + frame(kContinuation, "", 0) + frame(kContinuation, "", 0) +
             frame(kContinuation, ""),
         1008},
    };
    for (const unsigned bit : {0x40U, 0x20U, 0x10U})
        rows.push_back({"A reserved bit is set.", frame(kText | bit, "x"), 1002});
    for (const unsigned bit : {0x40U, 0x20U, 0x10U})
        rows.push_back({"A reserved bit is set in a ping.", frame(kPing | bit, ""), 1002});
    for (const unsigned opcode : {3U, 4U, 5U, 6U, 7U, 11U, 12U, 13U, 14U, 15U})
        rows.push_back({"Reserved opcode " + std::to_string(opcode), frame(opcode, ""), 1002});
    for (const int code : {0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2999, 5000, 65535})
        rows.push_back({"A Close has the code " + std::to_string(code), closeFrame(code), 1002});

    for (const Row &row : rows) {
        for (const bool bytewise : {false, true}) {
            CAPTURE(row.label);
            CAPTURE(bytewise);
            Server server([](Config &config) {
                config.maxMessageBytes = 1000;
                config.maxFragments = 3;
            });
            server.onProcess = [](User &, WSMessage &) {};
            Peer peer(server);
            const std::string behind = frame(kPing, "never") + frame(kText, "never");
            sendCut(peer, row.bytes + (bytewise ? "" : behind), bytewise);
            if (!bytewise) peer.send(behind);
            Strings heard = peer.hearAll();
            heard.erase(std::remove(heard.begin(), heard.end(), "pong"), heard.end());
            CHECK(joined(heard) == "close " + std::to_string(row.code) + ", EOF");
            CHECK_FALSE(has(joined(server.hooks), "never"));
            CHECK(has(joined(server.hooks), "preDisconnect 1 " + std::to_string(row.code)));
        }
    }
}

TEST_CASE("Messages exactly at the limits are accepted") {
    Server server([](Config &config) {
        config.maxMessageBytes = 1000;
        config.maxFragments = 3;
    });
    Peer peer(server);
    const std::string full(1000, 'x');
    peer.send(frame(kText, full) + frame(kText, full.substr(600), 0) +
              frame(kContinuation, full.substr(400)));
    CHECK(peer.hear() == "text " + full);
    CHECK(peer.hear() == "text " + full);
    for (int i = 0; i < 2; ++i) {  // the counts start over with each message
        peer.send(frame(kText, "a", 0) + frame(kPing, "") + frame(kContinuation, "b", 0) +
                  frame(kContinuation, "c"));
        CHECK(peer.hear() == "pong");
        CHECK(peer.hear() == "text abc");
    }
}

TEST_CASE("Text that is not UTF-8 fails at the first byte that shows it") {
    struct Row {
        std::string label, good, bad;  // `good` may still become valid
    };
    const std::vector<Row> rows = {
        {"A byte that never occurs in UTF-8.", "ab", "\xFF"},
        {"A continuation byte without a lead byte.", "ab", "\x80"},
        {"An overlong lead byte.", "", "\xC1"},
        {"An ASCII byte inside a character.", "a\xE2\x82", "b"},
        {"A lead byte inside a character.", "\xC3", "\xC3"},
        {"A surrogate, at its second byte.", "\xED", "\xA0"},
        {"An overlong character, at its second byte.", "\xE0", "\x9F"},
        {"An overlong character of four bytes.", "\xF0", "\x8F"},
        {"A character above U+10FFFF.", "\xF4", "\x90"},
        {"A bad byte after 50 000 good ones.", std::string(50'000, 'x'), "\xC0"},
    };
    for (const Row &row : rows) {
        for (const bool fragmented : {false, true}) {
            CAPTURE(row.label);
            CAPTURE(fragmented);
            Server server;
            Peer peer(server);
            // The header declares far more than is ever sent.
            std::string bytes = fragmented ? frame(kText, row.good, 0) : "";
            bytes += header(fragmented ? kContinuation : kText, 100'000);
            const std::string payload = masked(fragmented ? row.bad : row.good + row.bad);
            bytes += payload.substr(0, payload.size() - 1);
            peer.send(bytes);
            for (int i = 0; i < 3; ++i) server.turn(0ms);
            peer.receive();
            CHECK(peer.input.empty());
            CHECK(peer.end.empty());
            peer.send(payload.substr(payload.size() - 1));
            CHECK(joined(peer.hearAll()) == "close 1007, EOF");
        }
    }
}

TEST_CASE("Frames of two peers that arrive in pieces by turns do not mix") {
    Server server;
    Peer one(server), two(server);
    const std::string first = frame(kPing, "first") + frame(kText, std::string(300, 'x'));
    const std::string second = frame(kText, "the second") + frame(kPing, "and last");
    for (const std::size_t cut : {1U, 3U, 8U, 12U, 14U, 20U}) {
        CAPTURE(cut);
        one.step(first.substr(0, cut));
        two.step(second.substr(0, cut));
        one.send(first.substr(cut));
        two.send(second.substr(cut));
        CHECK(one.hear() == "pong first");
        CHECK(isEcho(one, kText, std::string(300, 'x')));
        CHECK(two.hear() == "text the second");
        CHECK(two.hear() == "pong and last");
    }
}

TEST_CASE("The unfinished message of one peer does not affect the next peer") {
    Server server;
    for (int i = 0; i < 3; ++i) {
        Peer broken(server);
        broken.step(frame(kText, "half a mess\xC3", 0));
        if (i == 0) broken.reset();
        if (i == 1) broken.send(frame(kText, "a new one"));
        if (i == 2) broken.send(header(kFin | kBinary, 100'000) + "x");
        Peer next(server);
        next.send(frame(kText, "whole"));
        CHECK(next.hear() == "text whole");
        next.step(frame(kBinary, "in ", 0));
        next.send(frame(kContinuation, "two"));
        CHECK(next.hear() == "binary in two");
    }
}
