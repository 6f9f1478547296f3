// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The README's code and its short answers run here. tests/readme.awk makes .build/readme.h of the
// README, in which each block stands in a copy of the README's program, in a namespace that is
// called like the block's heading.

#include "black.h"
#include "readme.h"
#include ".build/readme.h"

#include <csignal>
#include <ctime>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>

#include <sys/resource.h>
#include <sys/un.h>
#include <sys/wait.h>

using namespace black;

namespace {

template <class Config>
Config quiet(Config config = Config()) {
    config.address = "127.0.0.1";
    config.port = 0;
    config.debug = false;
    return config;
}

// A ChatServer of the README that listens, on a free port.
template <class ChatServer, class ChatConfig>
struct Listening : ChatServer {
    explicit Listening(ChatConfig config = quiet<ChatConfig>()) : ChatServer(std::move(config)) {
        this->listen();
    }
};

// The status of the answer to a handshake with these headers.
int statusFor(WSBaseServer &server, const std::string &target, const std::string &headers = {}) {
    Client client(server);
    client.send(upgrade(target, headers));
    return std::stoi(client.head().substr(9, 3));
}

}  // namespace

TEST_CASE("The README's program sends each message to all other users") {
    Listening<program::ChatServer, program::ChatConfig> server;
    Peer ann(server), bob(server);
    ann.send(frame(kText, "hello"));
    CHECK(bob.hear() == "text hello");
    CHECK(ann.hearUntilPong().empty());
}

TEST_CASE("A hook sends to one user, to all users or to some of them") {
    using namespace send_to_one_to_all_to_some;
    struct Server : Listening<ChatServer, ChatConfig> {
        void preConnect(ChatUser &user, int) override { user.room = user.request().path(); }
    } server;
    Peer ann(server, "/blue"), bob(server, "/blue"), cleo(server, "/red");
    ann.send(frame(kText, "go"));
    CHECK(joined({ann.hear(), ann.hear(), ann.hear()}) ==
          "text for you, text for everybody, text for your room");
    CHECK(joined({bob.hear(), bob.hear(), bob.hear()}) ==
          "text for everybody, text for all but you, text for your room");
    CHECK(joined(cleo.hearUntilPong()) == "text for everybody, text for all but you");
}

TEST_CASE("A session cookie tells who a user is, and strangers are refused with 401") {
    using namespace who_is_this;
    Listening<ChatServer, ChatConfig> server;
    CHECK(statusFor(server, "/") == 401);
    CHECK(statusFor(server, "/", "Cookie: session=guessed\r\n") == 401);
    Peer ann(server, "/", "Cookie: session=1f2e3d\r\n");
    CHECK((*server.users().begin()).nick == "Ann");
}

TEST_CASE("A page learns the reason from a close, not from a refusal") {
    Server server;
    server.onPostConnect = [&](User &user) { server.disconnect(user, 4401, "log in first"); };
    Peer ann(server);
    CHECK(ann.next().value().payload == "\x11\x31log in first");
}

TEST_CASE("preConnect() knows the path, the query and the headers") {
    using namespace path_and_headers;
    Listening<ChatServer, ChatConfig> server;
    CHECK(statusFor(server, "/", "User-Agent: some browser\r\n") == 404);
    CHECK(statusFor(server, "/chat") == 403);
    Peer ann(server, "/chat?room=blue+sky", "User-Agent: some browser\r\n");
    CHECK((*server.users().begin()).room == "blue sky");
}

TEST_CASE("A close carries a code and a reason, and preDisconnect() knows both") {
    using namespace close_with_a_reason;
    Listening<ChatServer, ChatConfig> server;
    Peer dora(server), ann(server), bob(server), cleo(server);
    ann.send(frame(kText, "/quit"));
    CHECK(ann.hear() == "close 4000");
    CHECK(dora.hear() == "text 4000 see you");
    bob.send(frame(kBinary, "/quit"));
    CHECK(bob.hear() == "text 4000 see you");
    CHECK(bob.hear() == "close 1003");
    CHECK(dora.hear() == "text 1003 text only, please");
    cleo.send(closeFrame(1001, "gone for lunch"));
    CHECK(dora.hear() == "text 1001 gone for lunch");
}

TEST_CASE("A user that comes back with its token has its old nick") {
    using namespace reconnect;
    Listening<ChatServer, ChatConfig> server;
    std::string first;
    {
        Peer ann(server, "/?token=f3a1");
        first = server.findUser(1)->nick;
        ann.reset();
    }
    pump(server, "the end of ann", [&] { return server.userCount() == 0; });
    Peer bob(server, "/?token=77c0"), annAgain(server, "/?token=f3a1");
    CHECK(first == "guest 1");
    CHECK(server.findUser(2)->nick == "guest 2");
    CHECK(server.findUser(3)->nick == "guest 1");
}

TEST_CASE("Another thread posts its answer to the user that asked") {
    using namespace from_another_thread;
    Listening<ChatServer, ChatConfig> server;
    Peer ann(server), bob(server);
    bob.send(frame(kText, "I am gone before I know:"));
    bob.reset();
    ann.send(frame(kText, "the answer is"));
    CHECK(ann.hear() == "text the answer is 42");
}

TEST_CASE("Timers fire in the order of their delays, unless they are cancelled") {
    using namespace timers;
    struct Server : Listening<ChatServer, ChatConfig> {
        using Listening::Listening;
        void postConnect(ChatUser &, int) override {
            after(100ms, [this] { sendToAll("later"); });
            const Timer never = after(20ms, [this] { sendToAll("never"); });
            after(10ms, [this] { sendToAll("soon"); });
            timers.erase(never);
        }
    };
    ChatConfig config = quiet<ChatConfig>();
    config.tickSeconds = 0.01;
    Server server(config);
    Peer ann(server);
    CHECK(joined({ann.hear(), ann.hear()}) == "text soon, text later");
}

TEST_CASE("A health check gets the number of users, other requests get 426") {
    using namespace health_check;
    Listening<ChatServer, ChatConfig> server;
    Peer ann(server);
    Client checker(server), other(server);
    checker.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const Answer answer = checker.answer();
    CHECK(answer.status == 200);
    CHECK(answer.body == "1 users\n");
    other.send("GET /wealth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(other.status() == 426);
}

TEST_CASE("Behind a TLS proxy, pages of the https origin connect, with their own addresses") {
    using namespace tls_or_any_other_proxy_in_front;
    ChatConfig config;
    configure(config);
    CHECK(config.address == "unix:/run/chat/socket");
    config.address = "unix:/tmp/ws-answers-" + std::to_string(::getpid());
    Listening<ChatServer, ChatConfig> server([&] {
        config.debug = false;
        return config;
    }());
    const std::string path = config.address.substr(5);
    const auto answerTo = [&](const std::string &headers) {
        const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof address.sun_path - 1);
        REQUIRE(::connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
        const std::string request = upgrade("/", headers);
        REQUIRE(::send(fd, request.data(), request.size(), 0) ==
                static_cast<ssize_t>(request.size()));
        std::string answer(4096, '\0');
        ssize_t size = -1;
        pump(server, "an answer", [&] {
            size = ::recv(fd, answer.data(), answer.size(), MSG_DONTWAIT);
            return size > 0;
        });
        const std::string seen =
            server.userCount() == 0 ? std::string() : ' ' + (*server.users().begin()).address();
        ::close(fd);
        pump(server, "the end", [&] { return server.userCount() == 0; });
        return answer.substr(9, 3) + seen;
    };
    CHECK(answerTo("Origin: https://chat.example.com\r\nX-Forwarded-For: 192.0.2.7\r\n") ==
          "101 192.0.2.7");
    CHECK(answerTo("Origin: http://chat.example.com\r\n") == "403");
}

TEST_CASE("trace() prints the bytes of the first user's connection, and of no other") {
    using namespace see_the_bytes;
    std::FILE *file = std::tmpfile();
    REQUIRE(file != nullptr);
    std::fflush(stdout);
    const int before = ::dup(STDOUT_FILENO);
    ::dup2(::fileno(file), STDOUT_FILENO);
    {
        Listening<ChatServer, ChatConfig> server;
        server.config().debug = false;
        Peer ann(server), bob(server);
        bob.send(frame(kText, "hi"));
        CHECK(ann.hear() == "text hi");
    }
    std::fflush(stdout);
    ::dup2(before, STDOUT_FILENO);
    ::close(before);
    std::string printed(5000, '\0');
    std::rewind(file);
    printed.resize(std::fread(printed.data(), 1, printed.size(), file));
    std::fclose(file);
    const std::size_t begin = printed.find("received 47 45 54 20 2f 20 ");  // "GET / "
    REQUIRE(begin != printed.npos);
    const std::size_t end = printed.find("\nsent 48 54 54 50 2f", begin);  // "HTTP/"
    REQUIRE(end != printed.npos);
    CHECK(printed.find("received", begin + 2) == printed.npos);
    CHECK(printed.substr(printed.rfind("\nsent")) == "\nsent 81 02 68 69\n");  // "hi", unmasked
}

TEST_CASE("The README's main() listens, and ends on SIGTERM") {
    int ends[2] = {-1, -1};
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(60);
        ::dup2(ends[1], STDOUT_FILENO);
        another_port_the_whole_network_a_clean_end::program();
        ::_exit(0);
    }
    ::close(ends[1]);
    char first = 0;
    CHECK(::read(ends[0], &first, 1) == 1);  // of "listening at every address, port ..."
    ::kill(child, SIGTERM);
    int status = -1;
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status));
    ::close(ends[0]);
}

TEST_CASE("drained() goes on with what is too large to be sent at once") {
    struct Server : Listening<sending::ChatServer, sending::ChatConfig> {
        void postConnect(sending::ChatUser &user, int) override { drained(user); }
    } server;
    Peer ann(server);
    for (int i = 99; i >= 0; --i)
        REQUIRE(ann.next().value().payload ==
                std::string(100'000, static_cast<char>('a' + i % 26)));
}

TEST_CASE("JSON goes to everybody with the sender's nick, anything else closes with 1007") {
    Listening<messages::ChatServer, messages::ChatConfig> server;
    Peer ann(server), bob(server);
    ann.send(frame(kText, R"({"say":"hello"})"));
    CHECK(bob.hear() == R"(text {"from":"guest","say":"hello"})");
    bob.send(frame(kText, "hello"));
    CHECK(bob.hear() == "close 1007");
}

TEST_CASE("What a broker says goes to all users until it ends") {
    using namespace other_descriptors_other_threads;
    int ends[2] = {-1, -1};
    REQUIRE(::pipe(ends) == 0);
    redis.descriptor = ends[0];
    redis.receive = [&] {
        char byte = 0;
        return ::read(ends[0], &byte, 1) == 1 ? std::string(1, byte) : std::string();
    };
    Listening<ChatServer, ChatConfig> server;
    start(server);
    Peer ann(server), bob(server);
    REQUIRE(::write(ends[1], "x", 1) == 1);
    CHECK(ann.hear() == "text x");
    CHECK(bob.hear() == "text x");
    ::close(ends[1]);
    pump(server, "the end", [&] { return redis.hasEnded(); });
    ::close(ends[0]);  // nobody watches it any more, or this would be logged
    CHECK(ann.hearUntilPong().empty());
}

TEST_CASE("The README's table has the real signatures of all hooks") {
    Listening<hooks::Server, WSBaseConfig> server;
    Peer ann(server);
    ann.send(frame(kText, "hello"));
    CHECK(ann.hearUntilPong().empty());
}

// --- In short ---------------------------------------------------------------------------------
// black_readme_test.cpp checks that each item of that list is in the title of a test.

TEST_CASE("In short: Users who only listen stay, with maxIdle = 0 even when the server is full") {
    Server server([](Config &config) { config.maxUsers = 1; });
    Peer ann(server);  // black::User has maxIdle = 0
    CHECK(statusFor(server, "/") == 503);
    CHECK(ann.hearUntilPong().empty());
}

TEST_CASE("In short: `backlog() == 0` is false after another send in the same turn") {
    Server server;
    Strings seen;
    const auto look = [&](User &user) { seen.emplace_back(user.backlog() == 0 ? "none" : "some"); };
    server.onProcess = [&](User &user, WSMessage &msg) {
        look(user);
        server.sendToUser(user, msg);
        look(user);
    };
    Peer ann(server);
    ann.send(frame(kText, "one"));
    CHECK(ann.hear() == "text one");
    ann.send(frame(kText, "two"));
    CHECK(ann.hear() == "text two");
    CHECK(joined(seen) == "none, some, none, some");
}

TEST_CASE("In short: JSON of the wrong type makes asString() throw, and closes with 1011") {
    Server server;
    server.onProcess = [&](User &user, WSMessage &msg) {
        const Json::Value &name = msg.json()["name"];
        const bool asks = msg.json().isMember("ask");
        if (!asks || name.isString()) server.sendToUser(user, name.asString());
        else server.sendToUser(user, "not a string");
    };
    Peer ann(server);
    ann.send(frame(kText, R"({"name":"Ann"})"));
    CHECK(ann.hear() == "text Ann");
    ann.send(frame(kText, R"({"name":["Ann"],"ask":1})"));
    CHECK(ann.hear() == "text not a string");
    ann.send(frame(kText, R"({"name":["Ann"]})"));
    CHECK(ann.hear() == "close 1011");
}

TEST_CASE("In short: 1005 and 1006 stand for a Close without a code, and for none") {
    Server server;
    Peer ann(server), bob(server);
    ann.send(frame(kClose, ""));
    CHECK(ann.hear() == "close");
    bob.reset();
    pump(server, "both ends", [&] { return server.userCount() == 0; });
    server.turn(kTurn);
    CHECK(joined(server.connectHooks()) ==
          "preConnect 1, postConnect 1, preConnect 2, postConnect 2, preDisconnect 1 1005, "
          "postDisconnect, preDisconnect 2 1006, postDisconnect");
}

TEST_CASE("In short: `shutdown()` and `stop()` do the same") {
    for (const bool inHook : {true, false}) {
        Server server;
        server.onProcess = [&](User &, WSMessage &) { server.shutdown(); };
        Peer ann(server);
        if (inHook) ann.send(frame(kText, "stop"));
        else std::thread([&] { server.stop(); }).join();
        CHECK(ann.hear() == "close 1001");
        ann.close();
        server.takeLastTurns();
        CHECK(joined(server.connectHooks()) ==
              "preConnect 1, postConnect 1, preDisconnect 1 1001, postDisconnect");
    }
}

// (The override is that of examples/new/main.cpp.)
TEST_CASE("In short: A log of your own, with times") {
    struct Own : Server {
        void console(WSLevel level, std::string_view text) override {
            const std::time_t now = std::time(nullptr);
            const char *what = level == WSLevel::error ? "error: " : "";
            std::clog << std::put_time(std::localtime(&now), "%F %T ") << what << text << '\n';
        }
    };
    const std::ostringstream log;
    std::streambuf *const before = std::clog.rdbuf(log.rdbuf());
    {
        Own server;
        server.config().debug = true;
        server.onProcess = [](User &, WSMessage &) { throw std::runtime_error("oh"); };
        Peer ann(server);
        ann.send(frame(kText, "hello"));
        CHECK(ann.hear() == "close 1011");
    }
    std::clog.rdbuf(before);
    const std::string line = log.str().substr(0, log.str().find('\n'));
    CAPTURE(line);
    CHECK(line.size() > 20);
    CHECK(line.substr(0, 2) == "20");  // "2026-11-26 17:45:00 user 1 ..."
    CHECK(line[10] == ' ');
    CHECK(line[13] == ':');
    CHECK(has(log.str(), " error: process() threw, for user 1 (127.0.0.1): oh"));
}

TEST_CASE("In short: `users()` has each user once, and ids tell the order of arrival") {
    Server server;
    Peer ann(server), bob(server), cleo(server);
    std::vector<std::uint64_t> ids;
    for (const User &user : server.users()) ids.push_back(user.id());
    std::sort(ids.begin(), ids.end());
    CHECK(ids == std::vector<std::uint64_t>{1, 2, 3});
}

TEST_CASE("In short: Open files: listen() raises the soft limit, and a child inherits it") {
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit low{256, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &low) == 0);
    Server server;
    const pid_t child = ::fork();
    if (child == 0) {
        rlimit own{};
        ::getrlimit(RLIMIT_NOFILE, &own);
        ::_exit(own.rlim_cur > low.rlim_cur ? 42 : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ::setrlimit(RLIMIT_NOFILE, &before);
    CHECK(WEXITSTATUS(status) == 42);
}

TEST_CASE("In short: Several processes share one port with `reusePort`") {
    const Server first([](Config &own) { own.reusePort = true; });
    const Server second([&](Config &own) { own.reusePort = true, own.port = first.port(); });
    CHECK(second.port() == first.port());
}
