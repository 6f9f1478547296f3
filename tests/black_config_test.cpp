// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The configuration: how bad values are refused, where the server listens, and what it prints.

#include "black.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include <netdb.h>
#include <sys/resource.h>

using namespace black;

namespace {

// A server with the default console().
class PlainServer : public WebSocketServer<User, Config> {
  public:
    using WebSocketServer::WebSocketServer;
    void process(User &, WSMessage &) override {}
};

// The message of the exception from listen(); "" if there is none.
template <class Exception>
std::string complaint(const std::function<void(Config &)> &change) {
    PlainServer server;
    change(server.config());
    try {
        server.listen();
    } catch (const Exception &e) {
        return e.what();
    }
    return {};
}

bool canListen(const char *address) {
    return complaint<std::runtime_error>([&](Config &config) { config.address = address; }).empty();
}

}  // namespace

// ----------------------------------------------------------------------------
// Bad values
// ----------------------------------------------------------------------------

TEST_CASE("A bad field is refused with its name, its value and advice") {
    struct Row {
        std::string field, value;
        std::function<void(Config &)> change;
    };
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    std::vector<Row> rows = {
        {"port", "-1", [](Config &c) { c.port = -1; }},
        {"port", "65536", [](Config &c) { c.port = 65536; }},
        {"unixMode", "-1", [](Config &c) { c.unixMode = -1; }},
        {"unixMode", "512", [](Config &c) { c.unixMode = 01000; }},
        {"listenFd", "-2", [](Config &c) { c.listenFd = -2; }},
        {"listenFd", "0", [](Config &c) { c.listenFd = 0; }},
        {"listenFd", "1000000", [](Config &c) { c.listenFd = 1'000'000; }},
        {"address", "\"unix:\"", [](Config &c) { c.address = "unix:"; }},
        {"address", "xxx", [](Config &c) { c.address = "unix:/" + std::string(110, 'x'); }},
        {"address", "unix:/a?b", [](Config &c) { c.address = "unix:/a\0b"s; }},
        {"maxUsers", "0", [](Config &c) { c.maxUsers = 0; }},
        {"maxUsers", "-5", [](Config &c) { c.maxUsers = -5; }},
        {"maxPending", "0", [](Config &c) { c.maxPending = 0; }},
        {"maxUsersPerAddress", "-1", [](Config &c) { c.maxUsersPerAddress = -1; }},
        {"maxMessagesPerSecond", "-1", [](Config &c) { c.maxMessagesPerSecond = -1; }},
        {"maxRequestBytes", "0", [](Config &c) { c.maxRequestBytes = 0; }},
        {"maxMessageBytes", "0", [](Config &c) { c.maxMessageBytes = 0; }},
        {"maxFragments", "0", [](Config &c) { c.maxFragments = 0; }},
        {"maxQueuedBytes", "0", [](Config &c) { c.maxQueuedBytes = 0; }},
        {"maxJsonDepth", "0", [](Config &c) { c.maxJsonDepth = 0; }},
        {"maxJsonValues", "0", [](Config &c) { c.maxJsonValues = 0; }},
        {"maxJsonDepth", "1001", [](Config &c) { c.maxJsonDepth = 1001; }},
        {"maxJsonDepth", "100000", [](Config &c) { c.maxJsonDepth = 100'000; }},
        {"handshakeSeconds", "0", [](Config &c) { c.handshakeSeconds = 0; }},
        {"handshakeSeconds", "nan", [](Config &c) { c.handshakeSeconds = kNaN; }},
        {"handshakeSeconds", "inf", [](Config &c) { c.handshakeSeconds = kInfinity; }},
        {"pingSeconds", "-1", [](Config &c) { c.pingSeconds = -1; }},
        {"pingSeconds", "0.0005", [](Config &c) { c.pingSeconds = 0.0005; }},
        {"pingSeconds", "nan", [](Config &c) { c.pingSeconds = kNaN; }},
        {"closeSeconds", "0", [](Config &c) { c.closeSeconds = 0; }},
        {"closeSeconds", "nan", [](Config &c) { c.closeSeconds = kNaN; }},
        {"shutdownSeconds", "-0.5", [](Config &c) { c.shutdownSeconds = -0.5; }},
        {"shutdownSeconds", "1000000000", [](Config &c) { c.shutdownSeconds = 1e9; }},
        {"tickSeconds", "-1", [](Config &c) { c.tickSeconds = -1; }},
        {"tickSeconds", "nan", [](Config &c) { c.tickSeconds = kNaN; }},
        {"tickSeconds", "0.0005", [](Config &c) { c.tickSeconds = 0.0005; }},
    };
    for (const char *protocol : {"", "a b", "a,b", "chat/2", "\xC3\xA4", "a\r\nb"})
        rows.push_back({"protocols", '"' + std::string(protocol) + '"', [=](Config &c) {
                            c.protocols = {"fine", protocol};
                        }});
    for (const char *proxy : {"", "localhost", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1",
                              "10.0.0.0/0x8", "10.0.0.0/0008", "::1/129", "[::1]", "10.0.0.1:80",
                              "unix:", "*", " 10.0.0.1", "/8", "fe80::1%lo"})
        rows.push_back({"trustedProxies", '"' + std::string(proxy) + '"', [=](Config &c) {
                            c.trustedProxies = {"127.0.0.1", proxy};
                        }});
    for (const char *origin :
         {"", "*", "https://*.example.com", "https://a!b", "file:///", "example.com",
          "https://example.com/", "https://", "https:/example.com", "https://me@example.com",
          "https://a b", "https://a, https://b", "https://example.com:0",
          "https://example.com:65536", "https://example.com:", "://example.com",
          "1http://example.com", "https://[::1", "https://example.com?"})
        rows.push_back({"uniqueOrigin", '"' + std::string(origin) + '"', [=](Config &c) {
                            c.uniqueOrigin = {"https://example.com", origin};
                        }});
    for (const Row &row : rows) {
        CAPTURE(row.field);
        CAPTURE(row.value);
        const std::string sentence = complaint<std::invalid_argument>(row.change);
        CAPTURE(sentence);
        CHECK(sentence.substr(0, row.field.size() + 4) == row.field + " is ");
        CHECK(has(sentence, row.value));
        CHECK((has(sentence, "set ") || has(sentence, "such as") || has(sentence, "write ")));
    }
}

TEST_CASE("A failed listen() names the place and the reason, and says what helps") {
    const Server other;
    const std::string taken =
        complaint<std::runtime_error>([&](Config &config) { config.port = other.port(); });
    CHECK(has(taken, "\"127.0.0.1\""));
    CHECK(has(taken, std::to_string(other.port())));
    CHECK(has(taken, "in use"));
    CHECK(has(taken, "stop what uses the port"));

    const std::pair<const char *, const char *> names[] = {
        {"no host", "write a host name"},
        {"[::1]", "no brackets"},
        {"localhost:8080", "its port into port"},
        {"http://localhost", "no scheme"},
    };
    for (const auto &row : names) {
        const std::string unknown =
            complaint<std::runtime_error>([&](Config &config) { config.address = row.first; });
        CAPTURE(unknown);
        CHECK(has(unknown, '"' + std::string(row.first) + "\": it does not resolve"));
        CHECK(has(unknown, row.second));
    }

    // TEST-NET-3 of RFC 5737: it resolves, but no machine has it.
    const std::string foreign =
        complaint<std::runtime_error>([](Config &config) { config.address = "203.0.113.1"; });
    CHECK(has(foreign, "\"203.0.113.1\""));
    CHECK(has(foreign, "cannot listen"));
    CHECK(has(foreign, "set an address of this machine"));

    const std::string folder = complaint<std::runtime_error>(
        [](Config &config) { config.address = "unix:/tmp/there/is/no/such/folder"; });
    CHECK(has(folder, "create the folder first"));
}

TEST_CASE("The log says why a client was refused") {
    Server server([](Config &config) {
        config.debug = config.requireOrigin = true;
        config.uniqueOrigin = {"https://example.com"};
        config.maxUsers = 1;
    });
    server.onPreConnect = [&](User &user) {
        if (user.request().path() == "/closed") server.refuse(user, 404, "no such room\nhere");
        if (user.request().path() == "/throws") throw std::runtime_error("on purpose");
    };
    server.onHttp = [&](const WSRequest &request, WSResponse &response) {
        if (request.path() == "/page") response = {200, {}, "<html>"};
        if (request.path() == "/secret") response = {403, {}, "only for the client"};
        if (request.path() == "/http-throws") throw std::runtime_error("on purpose");
    };
    const std::string origin = "Origin: https://example.com\r\n";
    const auto tell = [&](const std::string &request) {
        Client client(server);
        client.send(request);
        client.answer();
    };
    tell(upgrade("/chat", "Origin: http://evil.example\r\n"));
    CHECK(server.lines.back() ==
          "127.0.0.1 asked for /chat and was answered 403 Forbidden: "
          "The origin \"http://evil.example\" is not in uniqueOrigin.");
    tell(upgrade("/chat"));
    CHECK(server.printed("/chat and was answered 403 Forbidden: The request has no Origin."));
    tell("GET /\r\n\r\n");
    CHECK(server.printed("127.0.0.1 was answered 400 Bad Request: The request line is malformed."));
    tell("GET /" + std::string(600, 'a') + " HTTP/1.1\r\n\r\n");  // does not hide the reason
    CHECK(server.printed("aaa and was answered 400 Bad Request: There must be one Host header"));
    tell(upgrade("/closed", origin));
    CHECK(
        server.printed("127.0.0.1 asked for /closed and was answered 404 Not Found: no such room"));
    tell(upgrade("/throws", origin));
    CHECK(server.printed("preConnect() threw, for user 2 (127.0.0.1): on purpose"));
    tell("GET /http-throws HTTP/1.0\r\n\r\n");
    CHECK(server.printed("httpRequest() threw, for 127.0.0.1: on purpose"));
    tell("GET /page HTTP/1.0\r\n\r\n");
    CHECK(server.lines.back() == "127.0.0.1 asked for /page and was answered 200 OK");
    tell("GET /secret HTTP/1.0\r\n\r\n");
    CHECK(server.lines.back() == "127.0.0.1 asked for /secret and was answered 403 Forbidden");
    Peer ada(server, "/", origin);
    tell(upgrade("/chat", origin));
    CHECK(server.printed("503 Service Unavailable: There is no room: maxUsers has been reached."));
    server.config().maxUsersPerAddress = 1;
    tell(upgrade("/chat", origin));
    CHECK(server.printed(
        "503 Service Unavailable: There is no room: maxUsersPerAddress has been reached."));
    ada.send(closeFrame(4001, "see you"));
    pump(server, "the end", [&] { return server.userCount() == 0; });
    CHECK(server.printed("user 3 (127.0.0.1) left: 4001: see you"));
    Peer bob(server, "/", origin);
    bob.send(closeFrame(1000));
    pump(server, "the end", [&] { return server.userCount() == 0; });
    CHECK(server.lines.back() == "user 4 (127.0.0.1) left: 1000 normal");
    const auto awaitLine = [&](const std::string &line) {
        CAPTURE(line);
        pump(server, "a line", [&] { return server.lines.back() == line; });
    };
    Peer eve(server, "/", origin);
    awaitLine("user 5 (127.0.0.1) came to / from a page of https://example.com");
    server.disconnect(server.user(5), 4002, "enough");
    eve.send(closeFrame(4002));
    awaitLine("user 5 (127.0.0.1) was disconnected: 4002: enough");
    Peer joe(server, "/", origin);
    joe.send(frame(kText, "\xff"));
    awaitLine("user 6 (127.0.0.1) was disconnected: 1007 invalid data: the text is not UTF-8");
    Peer sue(server, "/", origin);
    sue.reset();
    awaitLine("user 7 (127.0.0.1) was lost: 1006 no Close: connection lost");
}

TEST_CASE("A failed listen() leaves nothing open, and succeeds once the port is changed") {
    const int before = openDescriptors();
    {
        const Server other;
        PlainServer server;
        server.config().port = other.port();
        CHECK_THROWS(server.listen());
        CHECK_THROWS(server.run());
        CHECK(server.port() == 0);
        server.config().port = 0;
        server.listen();
        CHECK(server.port() > 0);
        const Peer peer(server);
    }
    CHECK(openDescriptors() == before);
}

TEST_CASE("Zero is accepted where it means no limit") {
    CHECK(complaint<std::exception>([](Config &config) {
              config.maxUsersPerAddress = config.maxMessagesPerSecond = 0;
              config.pingSeconds = config.shutdownSeconds = 0;
              config.lowMarkBytes = 0;
              config.uniqueOrigin = {"HTTP://[::1]:8080", "custom-scheme://host"};
          }).empty());
    Server server([](Config &config) { config.lowMarkBytes = 0; });
    Peer peer(server);
    for (const char *text : {"", "a", "abc"}) {
        peer.send(frame(kText, text));
        CHECK(peer.next().value().payload == text);
    }
}

TEST_CASE("The largest values that listen() accepts do no harm") {
    Server server([](Config &config) {
        config.maxUsers = config.maxPending = std::numeric_limits<int>::max();
        config.maxUsersPerAddress = config.maxMessagesPerSecond = config.maxUsers;
        config.maxFragments = config.maxJsonValues = config.maxUsers;
        config.maxJsonDepth = 1000;
        const auto most = static_cast<std::size_t>(
            std::min(1e15, static_cast<double>(std::numeric_limits<std::size_t>::max() / 2)));
        config.maxRequestBytes = config.maxMessageBytes = config.maxQueuedBytes = most;
        config.lowMarkBytes = std::numeric_limits<std::size_t>::max();
        config.handshakeSeconds = config.pingSeconds = config.closeSeconds = 1e6;
        config.shutdownSeconds = config.tickSeconds = 1e6;
    });
    server.onProcess = [&](User &user, WSMessage &msg) {
        CHECK(msg.isJson());
        server.sendToUser(user, msg);
    };
    Peer peer(server);
    peer.send(frame(kText, "[1,", 0) + frame(kPing, "a") + frame(kContinuation, "{}]"));
    CHECK(peer.hear() == "pong a");
    CHECK(peer.next().value().payload == "[1,{}]");
    peer.send(header(kFin | kBinary, server.config().maxMessageBytes / 2) + "x");
    Client page(server);
    page.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK(page.status() == 426);
    CHECK(server.turn(std::chrono::milliseconds::zero()));
    server.post([] {});
    CHECK(server.turn(std::chrono::milliseconds::max()));
    server.post([] {});
    CHECK(server.turn(std::chrono::milliseconds::min()));
    server.shutdown();
    server.turn(0ms);
    peer.send(closeFrame(1001));
    peer.close();
    server.takeLastTurns();
    CHECK(server.hooks.back() == "postShutdown");
}

// ----------------------------------------------------------------------------
// Where the server listens
// ----------------------------------------------------------------------------

TEST_CASE("With port 0 the kernel picks a port, and port() returns it") {
    PlainServer server;
    CHECK(server.port() == 0);
    server.listen();
    const int port = server.port();
    CHECK(port > 1023);
    server.listen();  // already listening
    CHECK(server.port() == port);
    const Peer peer(server);
    CHECK(server.userCount() == 1);
}

TEST_CASE("The server listens on every address that its name resolves to, at one port") {
    Strings ofLocalhost;
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo *list = nullptr;
    REQUIRE(::getaddrinfo("localhost", nullptr, &hints, &list) == 0);
    for (const addrinfo *one = list; one != nullptr; one = one->ai_next) {
        char numeric[INET6_ADDRSTRLEN] = "";
        ::getnameinfo(one->ai_addr, one->ai_addrlen, numeric, sizeof numeric, nullptr, 0,
                      NI_NUMERICHOST);
        ofLocalhost.emplace_back(numeric);
    }
    ::freeaddrinfo(list);
    const std::vector<std::pair<const char *, Strings>> rows = {{"localhost", ofLocalhost},
                                                                {"", {"127.0.0.1", "::1"}},
                                                                {"::", {"127.0.0.1", "::1"}},
                                                                {"0::0", {"127.0.0.1", "::1"}},
                                                                {"127.0.0.1", {"127.0.0.1"}}};
    for (const auto &row : rows) {
        Server server([&](Config &config) { config.address = row.first; });
        for (const std::string &address : row.second) {
            if (!canListen(address.c_str())) continue;
            CAPTURE(address);
            Client client(server, 0, address.c_str());
            client.send(upgrade());
            CHECK(has(client.head(), " 101 "));
            REQUIRE(server.userCount() == 1);
            CHECK((*server.users().begin()).address() == address);
            client.reset();
            pump(server, "the end", [&] { return server.userCount() == 0; });
        }
        CHECK_FALSE(server.hooks.empty());
    }
}

TEST_CASE("The server listens on an IPv6 address") {
    if (!canListen("::1")) {
        MESSAGE("skipped: this machine has no IPv6");
        return;
    }
    Server server([](Config &config) { config.address = "::1"; });
    Client client(server, 0, "::1");
    client.send(upgrade());
    CHECK(has(client.head(), " 101 "));
    CHECK(server.user(1).address() == "::1");
    try {
        const Client other(server.port());  // of another process, if anything listens there
        for (int i = 0; i < 5; ++i) server.turn(1ms);
    } catch (const std::exception &) {  // NOLINT(bugprone-empty-catch)
    }
    CHECK(server.stats().pending == 0);
}

TEST_CASE("The soft limit on open files is raised as needed, and never lowered") {
    rlimit before{}, low{}, after{};
    ::getrlimit(RLIMIT_NOFILE, &before);
    low = before;
    low.rlim_cur = 128;
    ::setrlimit(RLIMIT_NOFILE, &low);
    {
        Server server([](Config &config) { config.maxUsers = config.maxPending = 100; });
        ::getrlimit(RLIMIT_NOFILE, &after);
        CHECK(after.rlim_cur >= 200);
        CHECK(after.rlim_cur < 1000);
        CHECK_FALSE(server.printed("ulimit"));
    }
    {
        Server server([](Config &config) { config.maxUsers = config.maxPending = 10; });
        ::getrlimit(RLIMIT_NOFILE, &low);
        CHECK(low.rlim_cur == after.rlim_cur);
    }
    if (before.rlim_max < 1'000'000'000) {
        Server server([](Config &config) { config.maxUsers = 1'000'000'000; });
        ::getrlimit(RLIMIT_NOFILE, &after);
        CHECK(after.rlim_cur == before.rlim_max);
        CHECK(server.printed("ulimit -n"));
    }
    ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST_CASE("Limits may be changed while the server runs") {
    Server server;
    Peer peer(server);
    peer.send(frame(kText, "12345"));
    CHECK(peer.hear() == "text 12345");
    server.config().maxMessageBytes = 4;
    peer.send(frame(kText, "1234"));
    CHECK(peer.hear() == "text 1234");
    peer.send(frame(kText, "12345"));
    CHECK(peer.hear() == "close 1009");
    server.config().maxUsers = 1;
    const Peer other(server);
    Client third(server);
    third.send(upgrade());
    CHECK(third.status() == 503);
}

// ----------------------------------------------------------------------------
// What the server prints
// ----------------------------------------------------------------------------

TEST_CASE("Connects, disconnects and HTTP answers are logged only if debug is true") {
    for (const bool debug : {false, true}) {
        CAPTURE(debug);
        Server server;
        server.config().debug = debug;
        server.onProcess = [](User &, WSMessage &) { throw std::runtime_error("on purpose"); };
        Peer peer(server, "/somewhere");
        peer.send(frame(kText, "x"));
        CHECK(peer.hear() == "close 1011");
        Client page(server);
        page.send("GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
        CHECK(page.status() == 426);
        CHECK(server.printed("user 1 (127.0.0.1) came to /somewhere") == debug);
        CHECK(server.printed("user 1 (127.0.0.1) was disconnected: 1011 internal error") == debug);
        CHECK(server.printed("was answered 426 Upgrade Required: This is a WebSocket") == debug);
        CHECK(server.printed("process() threw, for user 1 (127.0.0.1): on purpose"));
        CHECK(server.lines.size() == (debug ? 4 : 1));
    }
}

TEST_CASE("Control characters from a peer never reach the terminal") {
    Server server;
    server.config().debug = true;
    Peer peer(server);
    peer.send(closeFrame(1000,
                         "a\x1B[31m\r\n\x7F\xC2\x9B"
                         "2Jb\xC3\xA4"));
    CHECK(peer.hear() == "close 1000");
    REQUIRE(server.lines.size() == 2);
    CHECK(has(server.lines[1],
              "left: 1000 normal: a?[31m??\?\?"
              "2Jb\xC3\xA4"));
}

namespace {

class TalkativeServer : public PlainServer {
  public:
    using PlainServer::PlainServer;
    int lines = 0;

  protected:
    void console(WSLevel, std::string_view) override {
        ++lines;
        sendToAll("x");  // makes preSend() throw, which would be logged
        throw std::runtime_error("no terminal");
    }
    void preSend(User &, WSMessage &) override { throw std::runtime_error("on purpose"); }
};

}  // namespace

TEST_CASE("A console() that throws or sends does no harm") {
    TalkativeServer server;
    server.config().debug = true;
    server.listen();
    Peer peer(server);
    CHECK(joined(peer.hearAll()) == "close 1011, EOF");
    CHECK(server.lines == 3);
    CHECK(server.userCount() == 0);
}

namespace {

class Announcer : public PlainServer {
  public:
    void announce() {
        console(WSLevel::debug, "plain");
        console(WSLevel::warning, "careful");
        console(WSLevel::error, "oh");
    }
};

const std::string kAnnounced = "   0.000 plain\n   0.000 warning: careful\n   0.000 error: oh\n";

}  // namespace

TEST_CASE("The default console() prints one line to standard output") {
    std::FILE *file = std::tmpfile();
    REQUIRE(file != nullptr);
    std::fflush(stdout);
    const int before = ::dup(STDOUT_FILENO);
    ::dup2(::fileno(file), STDOUT_FILENO);
    Announcer().announce();
    ::dup2(before, STDOUT_FILENO);
    ::close(before);
    std::string printed(100, '\0');
    std::rewind(file);
    printed.resize(std::fread(printed.data(), 1, printed.size(), file));
    std::fclose(file);
    CHECK(printed == kAnnounced);
}

TEST_CASE("Logging to a full or a closed pipe does not stop the server") {
    std::fflush(stdout);
    const int before = ::dup(STDOUT_FILENO);
    int ends[2] = {-1, -1};
    REQUIRE(::pipe(ends) == 0);
    ::dup2(ends[1], STDOUT_FILENO);
    ::close(ends[1]);
    Announcer announcer;
    for (int i = 0; i < 20'000; ++i) announcer.announce();  // several times the capacity of a pipe
    std::string printed(1'000'000, '\0');
    const ssize_t size = ::read(ends[0], printed.data(), printed.size());
    printed.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
    announcer.announce();  // there is room again
    std::string more(100, '\0');
    const ssize_t rest = ::read(ends[0], more.data(), more.size());
    ::close(ends[0]);
    announcer.announce();  // no SIGPIPE
    ::dup2(before, STDOUT_FILENO);
    ::close(before);
    CHECK(printed.substr(0, kAnnounced.size()) == kAnnounced);
    CHECK(printed.back() == '\n');
    CHECK(rest == static_cast<ssize_t>(kAnnounced.size()));
}

TEST_CASE("A log line has a bounded length, however long the path of a request is") {
    Server server([](Config &config) { config.debug = true; });
    const Peer peer(server, "/" + std::string(5000, 'x'));
    REQUIRE(server.lines.size() == 2);
    CHECK(has(server.lines[1], "came to /xxx"));
    CHECK(server.lines[1].size() < 500);
}
