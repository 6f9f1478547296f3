// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Corners that no peer reaches easily: functions of the loop and of the handshake, called
// directly, and the memory that the loop uses again.

#include "white.h"

namespace {

struct Quiet : WebSocketServer<> {
    void process(WSBaseUser &, WSMessage &msg) override {
        where = msg.payload().data();
        if (!msg.isBinary()) said += msg.payload();
        if (keeps) kept.push_back(msg);
    }
    void console(WSLevel, std::string_view) override {}

    bool keeps = false;
    const char *where = nullptr;  // the last payload was there
    std::string said;             // all texts
    std::vector<WSMessage> kept;
};

// A loop with one user, at the other end of a pair of sockets.
struct Pair {
    Pair() {
        config.debug = false;
        std::array<int, 2> both{};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both.data()) == 0);
        peer.emplace(both[1]);
        loop.add(Descriptor(both[0]), {});
        send(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
        REQUIRE(loop.userCount_ == 1);
    }

    void turn() { loop.turn(std::chrono::milliseconds(0)); }

    // Writes it all, and lets the loop read it.
    void send(std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t size = ::write(*peer, bytes.data(), bytes.size());
            REQUIRE((size > 0 || errno == EAGAIN));
            bytes.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
            turn();
        }
        for (int i = 0; i < 3; ++i) turn();  // what has not been read yet
    }

    // Sends the frame of a masked binary message, of zeros.
    void sendBinary(std::size_t size) {
        std::string frame = encodedHeader(Opcode::binary, size);
        frame[1] = static_cast<char>(frame[1] | 0x80);
        send(frame + std::string(4 + size, '\0'));
    }

    // Lets the clocks be read now: they are not due for a second.
    void checkDeadlines() {
        loop.nextDeadlines_ = 0;
        turn();
    }

    WSConnection &connection() { return *loop.connections_.at(0); }

    Quiet server;
    WSBaseConfig config;
    WSLoop loop{server, config};
    std::optional<Descriptor> peer;
};

}  // namespace

TEST_CASE("a frame that comes in two packets is one message") {
    const std::string hello = fromHex("81 85 37fa213d 7f9f4d5158");  // RFC 6455 5.7
    for (std::size_t cut = 1; cut < hello.size(); ++cut) {
        CAPTURE(cut);
        Pair pair;
        pair.send(hello.substr(0, cut));
        CHECK(pair.server.said == "");
        const std::string waits = toHex(pair.connection().unread);
        pair.send(hello.substr(cut));
        CHECK(pair.server.said == "Hello");
        // A header waits with its connection until it is whole; the payload is in the message.
        CHECK(waits == (cut < 6 ? toHex(hello.substr(0, cut)) : ""));
    }
}

TEST_CASE("the memory of the last message serves for the next one, unless a hook kept it") {
    for (const bool keeps : {false, true}) {
        CAPTURE(keeps);
        Pair pair;
        pair.server.keeps = keeps;
        pair.sendBinary(400'000);
        const char *const first = pair.server.where;
        pair.sendBinary(300'000);
        CHECK((pair.server.where == first) == !keeps);
        REQUIRE(pair.server.kept.size() == (keeps ? 2 : 0));
        if (keeps) CHECK(pair.server.kept[0].payload() == std::string(400'000, '\0'));
    }
}

TEST_CASE("the memory of messages is freed after a second, or with the last connection") {
    for (const bool leaves : {true, false}) {
        CAPTURE(leaves);
        Pair pair;
        pair.loop.nextDeadlines_ = WSLoop::kNever;
        pair.sendBinary(400'000);
        REQUIRE(pair.loop.body_ != nullptr);
        CHECK(pair.loop.body_->payload->capacity() >= 400'000);

        if (leaves) {
            pair.peer.reset();
            for (int i = 0; i < 3; ++i) pair.turn();
        } else {
            pair.checkDeadlines();
        }
        CHECK(pair.loop.connections_.empty() == leaves);
        CHECK(pair.loop.body_ == nullptr);
    }
}

TEST_CASE("a message that comes after the server's Close is ignored, and its memory freed") {
    Pair pair;
    pair.loop.disconnect(*pair.connection().user, 1000, "");
    pair.sendBinary(10'000);
    CHECK(pair.server.where == nullptr);
    CHECK(pair.connection().state == WSConnection::State::closing);
    pair.checkDeadlines();
    CHECK(pair.connection().reader.message == nullptr);
}

TEST_CASE("what a peer sends after the end is discarded, not kept") {
    Pair pair;
    pair.loop.fail(pair.connection(), kProtocolError, "");
    pair.send(std::string(400'000, 'x'));
    CHECK(pair.connection().state == WSConnection::State::lingering);
    CHECK(pair.connection().unread.empty());
}

TEST_CASE("behind a Close that ends a full share, more may wait in the kernel") {
    for (const std::size_t spare : {0U, 1U}) {
        CAPTURE(spare);
        Pair pair;
        WSConnection &c = pair.connection();
        const std::string close = "\x88\x80" + std::string(4, '\0');  // without a code
        REQUIRE(::write(*pair.peer, close.data(), close.size()) == 6);
        pair.loop.share_ = close.size() + spare;
        CHECK(pair.loop.read(c) == (spare == 0));
        CHECK(c.state == WSConnection::State::flushing);
        CHECK(c.inputEnded == (spare == 1));
    }
}

TEST_CASE("between two turns, the time for a peer's Close begins now, not with the last turn") {
    Pair pair;
    WSConnection &c = pair.connection();
    pair.loop.now_ = c.deadline = 0;
    pair.loop.disconnect(*c.user, 1000, "");
    CHECK(c.since == pair.loop.clock_);
    CHECK(c.deadline == c.since + microseconds(pair.config.closeSeconds));
}

TEST_CASE("a connection that is idle has no memory for what it sends and receives") {
    Pair pair;
    pair.loop.sendToAllBut(nullptr, WSMessage(std::string(3000, 'x')));
    pair.sendBinary(3000);
    WSConnection &c = pair.connection();
    REQUIRE(c.queued() == 0);
    pair.checkDeadlines();
    Heap::reset();
    c.outbox = Outbox();
    c.reader.message = nullptr;
    std::string().swap(c.unread);
    const long held = Heap::held();
    CHECK(held == 0);
}

TEST_CASE("an idle user whose request has 500 bytes takes at most 1.1 KiB") {
    Pair pair;
    std::string request =
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nUser-Agent: ";
    request.append(500 - 4 - request.size(), 'x').append("\r\n\r\n");
    std::vector<Descriptor> peers;
    peers.reserve(300);
    const auto join = [&](int count) {
        for (int i = 0; i < count; ++i) {
            std::array<int, 2> both{};
            REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both.data()) == 0);
            pair.loop.add(Descriptor(both[0]), {});
            peers.emplace_back(both[1]);
            REQUIRE(::write(both[1], request.data(), request.size()) == 500);
            pair.turn();
        }
        pair.checkDeadlines();
    };
    join(100);
    Heap::reset();
    join(200);
    const long each = Heap::held() / 200;
    CHECK(pair.loop.userCount_ == 301);
    CHECK(each > 500);
    CHECK(each + 4 * 16 <= 1126);  // an allocator adds up to 16 bytes to each of the four blocks
}

TEST_CASE("a signal handler that wakes the loop leaves errno alone, even if the pipe is full") {
    Pair pair;
    for (int i = 0; i < 100'000; ++i) pair.loop.wake();
    errno = 0;
    pair.loop.wake();
    CHECK(errno == 0);
    pair.turn();
}

TEST_CASE("log lines have no byte that a terminal could obey, be they UTF-8 or not") {
    CHECK(WSLoop::printable("a\x1B[2J\x7F") == "a?[2J?");
    CHECK(WSLoop::printable("\u00A3 \u0085 \u009B \u20AC") == "\u00A3 ? ? \u20AC");
    CHECK(WSLoop::printable("\xE4\xF6\x9B!") == "?\?\?!");
    CHECK(WSLoop::printable("\u00A0\u2027\u202F\u2065\u206A") == "\u00A0\u2027\u202F\u2065\u206A");
    for (const char *obeyed : {"\u2028", "\u2029", "\u202A", "\u202B", "\u202C", "\u202D", "\u202E",
                               "\u2066", "\u2067", "\u2068", "\u2069"})
        CHECK(WSLoop::printable(std::string("a") + obeyed + "b") == "a?b");
}

TEST_CASE("what a log line keeps, and what it replaces, at the ends of the ranges") {
    const std::pair<std::string, std::string> rows[] = {
        {"\x1F \x7F ~", "? ? ~"},
        {"\u0080", "?"},
        {"\u009F", "?"},
        {"\u00A0", "\u00A0"},
        {"\u2027", "\u2027"},
        {"\u2028", "?"},
        {"\u202E", "?"},
        {"\u202F", "\u202F"},
        {"\u2065", "\u2065"},
        {"\u2066", "?"},
        {"\u2069", "?"},
        {"\u206A", "\u206A"},
        {"\x80 \xFF", "? ?"},
        {std::string(480, 'x'), std::string(480, 'x')},
        {std::string(481, 'x'), std::string(480, 'x') + "..."},
        {std::string(479, 'x') + "\u00E4", std::string(479, 'x') + "..."},
    };
    for (const auto &[text, line] : rows) CHECK(WSLoop::printable(text) == line);
}

TEST_CASE("a connection without a user is named by its address") {
    WSConnection c(Descriptor(-1));
    c.address = parseAddress("127.0.0.1");
    CHECK(WSLoop::nameOf(c) == "127.0.0.1");
}

TEST_CASE("addresses of peers") {
    const std::pair<const char *, const char *> rows[] = {{"192.0.2.1", "192.0.2.1"},
                                                          {"::1", "::1"},
                                                          {"2001:DB8:0::1", "2001:db8::1"},
                                                          {"::ffff:192.0.2.1", "192.0.2.1"}};
    for (const auto &[text, address] : rows) {
        sockaddr_storage peer{};
        auto &four = reinterpret_cast<sockaddr_in &>(peer);
        auto &six = reinterpret_cast<sockaddr_in6 &>(peer);
        const bool isFour = ::inet_pton(AF_INET, text, &four.sin_addr) == 1;
        if (!isFour) REQUIRE(::inet_pton(AF_INET6, text, &six.sin6_addr) == 1);
        peer.ss_family = isFour ? AF_INET : AF_INET6;
        CHECK(encodeAddress(WSLoop::addressOf(peer)) == address);
    }
    // Some systems leave the address of a peer at a Unix socket empty.
    CHECK(encodeAddress(WSLoop::addressOf(sockaddr_storage{})) == "unix");
}

TEST_CASE("a signal that no server wants any more is ignored") { WSLoop::onSignal(SIGUSR2); }

TEST_CASE("an address that a name resolves to twice is listened on once") {
    std::array<sockaddr_in, 4> places{};
    std::array<addrinfo, 4> list{};
    for (std::size_t i = 0; i < list.size(); ++i) {
        places[i].sin_family = AF_INET;
        places[i].sin_addr.s_addr = htonl(i == 1 ? 0x7F000002 : INADDR_LOOPBACK);
        list[i].ai_addr = reinterpret_cast<sockaddr *>(&places[i]);
        list[i].ai_addrlen = sizeof places[i];
        if (i > 0) list[i - 1].ai_next = &list[i];
    }
    places[2].sin_family = AF_MAX - 1;  // a kind of address that the system does not know
    Quiet server;
    WSBaseConfig config;
    config.port = 0;
    config.debug = false;
    config.address = "twice.example";
    WSLoop loop(server, config);
    addressesFound = list.data();
    CHECK(loop.resolve().size() == 3);

    // 127.0.0.2 is not an address of every system, so only the other one is listened on.
    list[0].ai_next = &list[2];
    loop.listen();
    CHECK(loop.listeners_.size() == 1);
    CHECK(loop.port_ != 0);
    addressesFound = nullptr;
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

TEST_CASE("each reason not to listen has its own advice") {
    const std::tuple<int, bool, const char *> rows[] = {
        {EACCES, true, "writable"},          {EACCES, false, "1023"},
        {EADDRINUSE, true, "remove"},        {EADDRNOTAVAIL, false, "this machine"},
        {ENOENT, true, "create the folder"}, {EMFILE, false, "ulimit -n"},
        {EROFS, true, "another path"}};
    for (const auto &[error, isPath, part] : rows)
        CHECK(std::string(WSLoop::advice(error, isPath)).find(part) != std::string::npos);
}
