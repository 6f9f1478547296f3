// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Corners that no peer leads to easily: small functions of the loop and of the handshake,
// called directly.

#include "white.h"

namespace {

struct Quiet : WebSocketServer<> {
    void process(WSBaseUser &, WSMessage &) override {}
    void console(WSLevel, std::string_view) override {}
};

// The frame of a masked binary message, of zeros.
std::string binaryFrame(std::size_t size) {
    std::string frame = encodedHeader(Opcode::binary, size);
    frame[1] = static_cast<char>(frame[1] | 0x80);
    return frame + std::string(4 + size, '\0');
}

constexpr std::string_view kUpgrade =
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

// Writes it all, and has the loop read it.
void say(WSLoop &loop, int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t size = ::write(fd, bytes.data(), bytes.size());
        REQUIRE((size > 0 || wouldBlock(errno)));
        bytes.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
        loop.turn(std::chrono::milliseconds(0));
    }
}

}  // namespace

TEST_CASE("spare buffers are kept up to a number, the others freed") {
    std::vector<std::unique_ptr<Outbox>> spare;
    spare.reserve(1);
    for (int i = 0; i < 2; ++i) {
        auto buffer = std::make_unique<Outbox>();
        giveBack(spare, buffer);
        CHECK(buffer == nullptr);
        CHECK(spare.size() == 1);
    }
}

TEST_CASE("a message that comes after our Close leaves nothing in a spare reader") {
    Quiet server;
    WSBaseConfig config;
    config.debug = false;
    WSLoop loop(server, config);
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) == 0);
    loop.add(ends[0], {});
    say(loop, ends[1], kUpgrade);
    REQUIRE(loop.userCount_ == 1);
    loop.disconnect(*loop.connections_[0]->user, 1000, "");

    const std::string frame = binaryFrame(10'000);
    say(loop, ends[1], std::string_view(frame).substr(0, 5000));
    say(loop, ends[1], std::string_view(frame).substr(5000));
    REQUIRE(loop.spareReaders_.size() == 1);
    CHECK(loop.spareReaders_[0]->take() == nullptr);
    ::close(ends[1]);
}

TEST_CASE("large payloads are kept for a second, and not after the last connection") {
    for (const bool leaves : {true, false}) {
        CAPTURE(leaves);
        Quiet server;
        WSBaseConfig config;
        config.debug = false;
        WSLoop loop(server, config);
        std::array<int, 2> ends{};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) == 0);
        loop.add(ends[0], {});
        say(loop, ends[1], kUpgrade);
        loop.nextClocks_ = loop.now_ + 1000;
        const std::string two = binaryFrame(900'000) + binaryFrame(400'000);
        while (!loop.body_ || loop.body_->payload->size() != 400'000) say(loop, ends[1], two);
        Payload spare = loop.sparePayloads_.take(900'000);
        REQUIRE(spare != nullptr);
        loop.sparePayloads_.giveBack(std::move(spare));

        if (leaves) ::close(ends[1]);
        else loop.nextClocks_ = 0;
        for (int i = 0; i < 3; ++i) loop.turn(std::chrono::milliseconds(0));
        CHECK(loop.connections_.empty() == leaves);
        CHECK(loop.sparePayloads_.take(900'000) == nullptr);
        CHECK(loop.body_ == nullptr);
        if (!leaves) ::close(ends[1]);
    }
}

TEST_CASE("what a terminal might obey is replaced, in UTF-8 and in what is none") {
    CHECK(printable("a\x1B[2J\x7F") == "a?[2J?");
    CHECK(printable("\u00A3 \u0085 \u009B \u20AC") == "\u00A3 ?\? ?\? \u20AC");
    CHECK(printable("\xE4\xF6\x9B!") == "?\?\?!");
}

TEST_CASE("a connection without a user is known by its address") {
    WSConnection c;
    c.arrival->address = "127.0.0.1";
    CHECK(nameOf(c) == "127.0.0.1");
    c.arrival.reset();
    CHECK(nameOf(c) == "somebody who has left");
}

TEST_CASE("who has no IP address comes by a Unix socket, some systems say no more of it") {
    CHECK(numericAddress(sockaddr_storage{}) == "unix");
}

TEST_CASE("a signal that no server wants any more is ignored") { onSignal(SIGUSR2); }

TEST_CASE("an address that a name resolves to twice is listened on once") {
    std::array<sockaddr_in, 3> places{};
    std::array<addrinfo, 3> list{};
    for (std::size_t i = 0; i < list.size(); ++i) {
        places[i].sin_family = AF_INET;
        places[i].sin_addr.s_addr = htonl(i == 1 ? 0x7F000002 : INADDR_LOOPBACK);
        list[i].ai_family = AF_INET;
        list[i].ai_socktype = SOCK_STREAM;
        list[i].ai_addr = reinterpret_cast<sockaddr *>(&places[i]);
        list[i].ai_addrlen = sizeof places[i];
    }
    list[0].ai_next = &list[1];
    list[1].ai_next = &list[2];
    CHECK_FALSE(isRepeated(&list[0], &list[1]));
    CHECK(isRepeated(&list[0], &list[2]));

    // Only 127.0.0.1, twice; and between them a kind of address that the system does not know.
    list[1].ai_family = AF_MAX - 1;
    Quiet server;
    WSBaseConfig config;
    config.port = 0;
    WSLoop loop(server, config);
    CHECK(loop.openListenersOf(list.data()) == 0);
    CHECK(loop.firstConnection_ == 2);
}

TEST_CASE("corners of texts: escapes, targets, schemes") {
    CHECK_FALSE(WSMessage(R"(["\udg00"])").isJson());
    RequestHead head;
    CHECK_FALSE(parseTarget("/\x7F", head));
    CHECK(normalOrigin("web+app://example.com") == normalOrigin("WEB+APP://EXAMPLE.COM"));
    CHECK(normalOrigin("web+app://example.com").has_value());
}

TEST_CASE("redirections have a reason phrase; 205 has no body") {
    const std::pair<int, std::string> rows[] = {{301, "Moved Permanently"},
                                                {302, "Found"},
                                                {303, "See Other"},
                                                {307, "Temporary Redirect"},
                                                {308, "Permanent Redirect"}};
    for (const auto &[status, phrase] : rows) {
        const std::string line = "HTTP/1.1 " + std::to_string(status) + ' ' + phrase + "\r\n";
        CHECK(encodeResponse({status, {}, ""}, 0, true).substr(0, line.size()) == line);
    }
    const std::string reset = encodeResponse({205, {}, "body"}, 0, true);
    CHECK(reset.find("body") == reset.npos);
    CHECK(reset.find("Content-Length") == reset.npos);
}
