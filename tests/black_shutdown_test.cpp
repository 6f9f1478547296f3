// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The end: shutdown(), stop() and signals, what is still delivered, and that nothing is left.

#include "black.h"

#include <csignal>
#include <thread>

#include <sys/wait.h>

using namespace black;

namespace {

// Valgrind and the thread sanitizer complain about forked processes.
#ifdef __SANITIZE_THREAD__
const auto kForks = doctest::skip();
#else
const auto kForks = doctest::skip(kUnderValgrind);
#endif

using Handler = void (*)(int);

Handler handlerOf(int signal) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    return action.sa_handler;
}

void ours(int) {}  // a handler of the program

}  // namespace

// ----------------------------------------------------------------------------
// Ways to stop the server
// ----------------------------------------------------------------------------

TEST_CASE("shutdown() in a hook makes run() return") {
    Server server;
    server.onProcess = [&](User &, WSMessage &) { server.shutdown(); };
    {
        Running running(server);
        Peer peer(server.port());
        peer.send(frame(kText, "stop"));
        CHECK(peer.hear() == "close 1001");
        peer.send(closeFrame(1001));
        CHECK(peer.hear() == "EOF");
        CHECK(running.waitForEnd());
    }
    CHECK(joined(server.hooks) ==
          "preConnect 1, postConnect 1, process 1: stop, preShutdown, preDisconnect 1 1001, "
          "postDisconnect, postShutdown");
    CHECK(server.port() == 0);
}

TEST_CASE("stop() may be called from other threads, even by several at once") {
    Server server;
    {
        Running running(server);
        Peer peer(server.port());
        std::vector<std::thread> threads;
        for (int i = 0; i < 3; ++i) threads.emplace_back([&] { server.stop(); });
        for (std::thread &thread : threads) thread.join();
        CHECK(peer.hear() == "close 1001");
        peer.close();
        CHECK(running.waitForEnd());
    }
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 1);
}

TEST_CASE("run() may be called again, and listens again") {
    Server server;
    for (int i = 0; i < 3; ++i) {
        server.listen();
        CHECK(server.port() > 0);
        const int port = server.port();
        Running running(server);
        {
            Peer peer(port);
            peer.send(frame(kText, "hello"));
            CHECK(peer.hear() == "text hello");
        }
        server.stop();
        CHECK(running.waitForEnd());
        CHECK_THROWS(Client(port));
    }
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postShutdown") == 3);
}

TEST_CASE("listen() does nothing during a shutdown, and listens again after it") {
    Server server;
    Peer peer(server);
    server.onPreDisconnect = [&](User &) { server.listen(); };
    server.shutdown();
    CHECK(peer.hear() == "close 1001");
    server.listen();
    CHECK(server.port() == 0);
    peer.close();
    server.onPostShutdown = [&] { server.listen(); };
    server.takeLastTurns();
    CHECK(server.port() > 0);
    const Peer next(server);
}

TEST_CASE("A stop() before run() is not lost") {
    Server server;
    server.stop();
    server.run();
    CHECK(joined(server.hooks) == "preShutdown, postShutdown");
}

TEST_CASE("A stop() during a shutdown does not stop the next run()") {
    Server server;
    Peer ada(server);
    server.onPreDisconnect = [&](User &) { server.stop(); };
    ada.reset();
    server.shutdown();
    server.takeLastTurns();
    server.listen();
    CHECK(server.turn(0ms));
    const Peer bob(server);
    CHECK(server.userCount() == 1);
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 1);
}

TEST_CASE("turn() returns false once, at the end") {
    Server server;
    Peer peer(server);
    CHECK(server.turn(0ms));
    server.shutdown();
    CHECK(server.turn(0ms));
    peer.close();
    server.takeLastTurns();
    CHECK(server.hooks.back() == "postShutdown");
    CHECK(server.turn(0ms));
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postShutdown") == 1);
}

TEST_CASE("turn() does not wait while there is work") {
    Server server;
    Peer peer(server);
    const auto start = Clock::now();
    server.sendToAll("between two turns");
    server.turn(4s);
    peer.receive();
    CHECK(has(peer.input, "between two turns"));
    server.turn(4s);  // there is no work, but the clocks are due
    peer.close();
    pump(server, "the end", [&] { return server.userCount() == 0; });
    server.shutdown();
    CHECK_FALSE(server.turn(4s));
    CHECK(Clock::now() - start < 3s);
}

TEST_CASE("turn() and run() throw in a hook") {
    Server server;
    int threw = 0;
    server.onProcess = [&](User &, WSMessage &) {
        CHECK_THROWS_AS(server.turn(0ms), std::logic_error);
        CHECK_THROWS_AS(server.run(), std::logic_error);
        ++threw;
    };
    Peer peer(server);
    peer.send(frame(kText, "x"));
    CHECK(peer.hearUntilPong().empty());
    CHECK(threw == 1);
}

// ----------------------------------------------------------------------------
// Signals
// ----------------------------------------------------------------------------

TEST_CASE("A signal of stopOn() shuts the server down, a second one ends it at once") {
    Server server([](Config &config) { config.closeSeconds = config.shutdownSeconds = 100; });
    server.stopOn({SIGUSR1, SIGUSR2});
    Peer silent(server), other(server);
    ::raise(SIGUSR1);
    CHECK(silent.hear() == "close 1001");
    CHECK(other.hear() == "close 1001");
    CHECK(server.turn(0ms));  // the peers have not closed yet
    ::kill(::getpid(), SIGUSR2);
    server.takeLastTurns();
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 1);
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postDisconnect") == 2);
    CHECK(server.hooks.back() == "postShutdown");
    CHECK(silent.hear() == "EOF");
}

TEST_CASE("A signal makes run() return, whichever thread receives it") {
    Server server;
    server.stopOn({SIGUSR1});
    Running running(server);
    Peer peer(server.port());
    ::kill(::getpid(), SIGUSR1);
    CHECK(peer.hear() == "close 1001");
    peer.close();
    CHECK(running.waitForEnd());
}

TEST_CASE("A third signal ends the process even if a hook hangs" * kForks) {
    int ready[2];
    REQUIRE(::pipe(ready) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        Server server([](Config &config) { config.tickSeconds = 0.001; });
        server.stopOn({SIGUSR1});
        server.onTick = [&] {
            if (::write(ready[1], "", 1) != 1) ::_exit(1);
            for (;;) ::pause();
        };
        server.run();
        ::_exit(2);
    }
    char byte = 0;
    REQUIRE(::read(ready[0], &byte, 1) == 1);
    int status = 0;
    const auto end = Clock::now() + kPatience;
    while (::waitpid(child, &status, WNOHANG) == 0 && Clock::now() < end) {
        ::kill(child, SIGUSR1);  // signals that come too fast count as one
        std::this_thread::sleep_for(1ms);
    }
    if (Clock::now() >= end) ::kill(child, SIGKILL);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1));
    ::close(ready[0]);
    ::close(ready[1]);
}

TEST_CASE("After a veto it takes three more signals to end the process") {
    Server server;
    server.stopOn({SIGUSR1});
    server.onPreShutdown = [](bool &doShutdown) { doShutdown = false; };
    for (int i = 0; i < 5; ++i) {
        ::raise(SIGUSR1);
        CHECK(server.turn(0ms));
    }
    server.onPreShutdown = nullptr;
    for (int i = 0; i < 5; ++i) {
        ::raise(SIGUSR1);
        server.takeLastTurns();
        server.listen();
    }
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 10);
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postShutdown") == 5);
}

TEST_CASE("A signal sent to a forked child ends the child, and only that" * kForks) {
    Server server;
    server.stopOn({SIGUSR1});
    Peer peer(server);
    const pid_t child = ::fork();
    if (child == 0) {
        ::raise(SIGUSR1);
        ::_exit(1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1));
    peer.send(frame(kText, "still here"));
    CHECK(peer.next().value().payload == "still here");
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 0);
}

TEST_CASE("What a forked child sends does not reach the clients of its parent" * kForks) {
    Server server;
    Peer peer(server);
    const pid_t child = ::fork();
    if (child == 0) {
        for (int i = 0; i < 100; ++i) server.sendToAll(std::string(100'000, 'x'));
        server.shutdown();
        server.stop();
        ::_exit(0);
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    server.sendToAll("hello");
    CHECK(peer.hear() == "text hello");
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 0);
}

TEST_CASE("Processes that run copies of one server wake their own loops" * kForks) {
    Server server;
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    char byte = 0;
    const pid_t child = ::fork();
    if (child == 0) {
        server.turn(0ms);
        bool called = false;
        server.post([&] { called = true; });
        if (::write(ends[1], "", 1) != 1 || ::read(ends[1], &byte, 1) != 1) ::_exit(2);
        server.turn(0ms);
        ::_exit(called ? 0 : 1);
    }
    REQUIRE(::read(ends[0], &byte, 1) == 1);       // the child has posted:
    for (int i = 0; i < 3; ++i) server.turn(0ms);  // from a shared pipe this would take its byte
    REQUIRE(::write(ends[0], "", 1) == 1);
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    ::close(ends[0]);
    ::close(ends[1]);
}

TEST_CASE("A process that was forked before it listens has its signals and its socket file" *
          kForks) {
    const std::string path = "/tmp/ws-forked-" + std::to_string(::getpid());
    struct Plain : WebSocketServer<User, Config> {
        void process(User &, WSMessage &) override {}
    };
    auto server = std::make_unique<Plain>();
    server->config().address = "unix:" + path;
    server->stopOn({SIGUSR1});
    const pid_t child = ::fork();
    if (child == 0) {  // as daemon() does it
        server->listen();
        ::raise(SIGUSR1);
        server->run();
        ::_exit(::access(path.c_str(), F_OK) == 0 ? 1 : 0);
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

TEST_CASE("When the server is destroyed, the program has its own signal handlers back") {
    const Handler before = handlerOf(SIGUSR1);
    std::signal(SIGUSR2, ours);
    {
        Server server;
        server.stopOn({SIGUSR1, SIGUSR2});
        server.stopOn({SIGUSR1});
        CHECK((handlerOf(SIGUSR1) != before));
        CHECK((handlerOf(SIGUSR2) != ours));
    }
    CHECK((handlerOf(SIGUSR1) == before));
    CHECK((handlerOf(SIGUSR2) == ours));
    std::signal(SIGUSR2, SIG_DFL);
}

TEST_CASE("A signal belongs to one server until that server is destroyed") {
    std::signal(SIGUSR1, ours);
    auto first = std::make_unique<Server>();
    Server second;
    first->stopOn({SIGUSR1});
    CHECK_THROWS_AS(second.stopOn({SIGUSR1}), std::logic_error);
    ::raise(SIGUSR1);
    first->takeLastTurns();
    CHECK(first->hooks.size() == 2);
    first.reset();
    CHECK((handlerOf(SIGUSR1) == ours));
    second.stopOn({SIGUSR1});
    ::raise(SIGUSR1);
    second.takeLastTurns();
    CHECK(second.hooks.size() == 2);
    std::signal(SIGUSR1, SIG_DFL);
}

TEST_CASE("stopOn() throws for a number that is not a signal or cannot be caught") {
    Server server;
    CHECK_THROWS_AS(server.stopOn({0}), std::invalid_argument);
    CHECK_THROWS_AS(server.stopOn({-1}), std::invalid_argument);
    CHECK_THROWS_AS(server.stopOn({100'000}), std::invalid_argument);
    CHECK_THROWS_AS(server.stopOn({SIGKILL}), std::system_error);
}

// ----------------------------------------------------------------------------
// What is still delivered
// ----------------------------------------------------------------------------

TEST_CASE("Queues drain before the end, and newcomers are refused") {
    Server server;
    Peer slow(server, "/", "", 4096), quick(server);
    slow.appetite = 0;
    const std::string page(10'000'000, 'x');
    CHECK(server.sendToUser(server.user(1), page));
    server.sendToUser(server.user(2), "the last words");
    Client pending(server), halfway(server);
    halfway.step(upgrade().substr(0, 50));
    const int port = server.port();
    server.shutdown();
    CHECK(quick.hear() == "text the last words");
    CHECK(quick.hear() == "close 1001");
    quick.send(closeFrame(1001));
    CHECK(quick.hear() == "EOF");
    CHECK(pending.status() == 503);
    CHECK(halfway.status() == 503);
    CHECK_THROWS(Client(port));

    slow.appetite = std::string::npos;
    CHECK(slow.next().value().payload.size() == page.size());
    CHECK(slow.hear() == "close 1001");
    slow.send(closeFrame(1001));
    server.takeLastTurns();
    CHECK(slow.hear() == "EOF");
    CHECK(server.hooks.back() == "postShutdown");
}

TEST_CASE("A peer that does not close delays the end by shutdownSeconds, and no longer") {
    Server server([](Config &config) {
        config.shutdownSeconds = 0.3;
        config.closeSeconds = 100;
    });
    Peer silent(server), stuck(server, "/", "", 4096);
    stuck.appetite = 0;
    server.sendToUser(server.user(2), std::string(20'000'000, 'x'));
    const auto start = Clock::now();
    server.shutdown();
    server.takeLastTurns();
    CHECK(Clock::now() - start >= 300ms);
    CHECK(Clock::now() - start < 3s);
    CHECK(silent.hear() == "close 1001");
    CHECK(joined(server.hooks).find("preDisconnect 2 1001") != std::string::npos);
}

// ----------------------------------------------------------------------------
// Nothing is left
// ----------------------------------------------------------------------------

TEST_CASE("A server that is destroyed while it serves leaves nothing open and runs no hooks") {
    const int before = openDescriptors();
    {
        Server server;
        Peer open(server), closing(server), unread(server, "/", "", 4096);
        Client pending(server), waiting(server);
        pending.step(upgrade().substr(0, 50));
        server.disconnect(server.user(2), 4000);
        unread.appetite = 0;
        server.sendToUser(server.user(3), std::string(20'000'000, 'x'));
        server.turn(0ms);
        server.onPreDisconnect = [](User &) { FAIL("the destructor runs a hook"); };
        CHECK(openDescriptors() > before + 10);
    }
    CHECK(openDescriptors() == before);
}

TEST_CASE("Five hundred clients that come and go in every way leave nothing open") {
    const std::string request = upgrade();
    Server server;
    const int before = openDescriptors();
    for (std::size_t i = 0; i < 500; ++i) {
        Client client(server);
        if (i % 10 > 0) client.step(request.substr(0, i % 10 == 1 ? 40 : request.npos));
        if (i % 10 > 5) client.send(frame(i % 2 == 0 ? kText : kPing, "hello"));
        if (i % 10 == 4) client.send(closeFrame(1000));
        if (i % 10 == 5) client.send("\xFF\xFF\xFF");
        if (i % 3 == 0) client.finish();
        if (i % 2 == 0) client.reset();
    }
    pump(server, "all clients to be gone", [&] { return openDescriptors() == before; });
    CHECK(server.userCount() == 0);
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postDisconnect") ==
          std::count_if(server.hooks.begin(), server.hooks.end(),
                        [](const std::string &hook) { return has(hook, "postConnect"); }));
}
