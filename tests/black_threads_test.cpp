// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Other threads may call post() and stop(). These tests also run under the thread sanitizer
// (make tsan).

#include "black.h"

#include <atomic>
#include <csignal>

using namespace black;

TEST_CASE("Thousands of posts from several threads run once each, in order per thread") {
    constexpr int kThreads = 4, kPosts = 5000;
    Server server;
    std::vector<std::vector<int>> arrived(kThreads);
    {
        Running running(server);
        std::vector<std::thread> threads;
        for (std::size_t t = 0; t < kThreads; ++t) {
            threads.emplace_back([&, t] {
                for (int i = 0; i < kPosts; ++i)
                    server.post([&, t, i] { arrived[t].push_back(i); });
            });
        }
        for (std::thread &thread : threads) thread.join();
        server.post([&] { server.shutdown(); });
        CHECK(running.waitForEnd());
    }
    for (const std::vector<int> &numbers : arrived) {
        REQUIRE(numbers.size() == kPosts);
        for (int i = 0; i < kPosts; ++i) REQUIRE(numbers[static_cast<std::size_t>(i)] == i);
    }
}

TEST_CASE("run() sleeps while nothing happens") {
    Server server;
    {
        const Running running(server);
        std::this_thread::sleep_for(50ms);
    }
    CHECK(server.stats().turns < 10);
}

TEST_CASE("A posted function wakes the loop, runs in its thread and can send to users") {
    Server server;
    std::promise<std::thread::id> where;
    Running running(server);
    Peer peer(server.port());
    const auto start = Clock::now();
    server.post([&] {
        where.set_value(std::this_thread::get_id());
        server.sendToAll("from another thread");
    });
    CHECK(peer.hear() == "text from another thread");
    CHECK(Clock::now() - start < 500ms);
    CHECK(where.get_future().get() != std::this_thread::get_id());
}

TEST_CASE("While other threads post without end, users are served and stop() works") {
    Server server;
    std::atomic<bool> enough{false};
    {
        Running running(server);
        Peer peer(server.port());
        std::vector<std::thread> threads;
        for (int t = 0; t < 2; ++t) {
            threads.emplace_back([&] {
                while (!enough) {
                    server.post([] {});
                    std::this_thread::sleep_for(10us);
                }
            });
        }
        for (int i = 0; i < 50; ++i) {
            peer.send(frame(kText, "hello"));
            CHECK(peer.hear() == "text hello");
        }
        server.stop();
        CHECK(peer.hear() == "close 1001");
        peer.close();
        CHECK(running.waitForEnd());
        enough = true;
        for (std::thread &thread : threads) thread.join();
    }
}

TEST_CASE("Neither a stop() nor a signal is lost behind many waiting posts") {
    Server server, other;
    server.stopOn({SIGUSR1});
    for (int i = 0; i < 200'000; ++i) server.post([] {}), other.post([] {});
    other.stop();
    ::raise(SIGUSR1);
    server.takeLastTurns();
    other.takeLastTurns();
    CHECK(server.hooks.back() == "postShutdown");
    CHECK(other.hooks.back() == "postShutdown");
}

TEST_CASE("A post neither gets lost nor waits when the wake pipe is full") {
    Server server;
    server.onPreShutdown = [](bool &doShutdown) { doShutdown = false; };
    for (int i = 0; i < 200'000; ++i) server.stop();
    int calls = 0;
    server.post([&] { ++calls; });
    server.turn(0ms);
    CHECK(calls == 1);
}

TEST_CASE("A function posted by a hook or by a posted function runs in the next turn") {
    Server server;
    int calls = 0;
    const std::function<void()> again = [&] {
        ++calls;
        server.post(again);
    };
    server.onProcess = [&](User &, WSMessage &) { server.post(again); };
    Peer peer(server);
    peer.step(frame(kText, "go"));
    CHECK(calls == 0);
    for (int i = 1; i <= 3; ++i) {
        server.turn(10s);
        CHECK(calls == i);
    }
}

TEST_CASE("A posted function that throws is logged, and the others run") {
    Server server;
    int calls = 0;
    server.post([] { throw std::runtime_error("on purpose"); });
    server.post([] { throw 1; });
    server.post([&] { ++calls; });
    server.turn(0ms);
    CHECK(calls == 1);
    CHECK(joined(server.lines) ==
          "a function given to post() threw: on purpose, "
          "a function given to post() threw: something that is not a std::exception");
    CHECK_THROWS_AS(server.post({}), std::invalid_argument);
}

TEST_CASE("A function posted between turns runs in the next one, even after a shutdown") {
    Server server;
    std::string calls;
    server.post([&] { calls += "first "; });
    server.turn(0ms);
    server.onPostShutdown = [&] { calls += "postShutdown "; };
    server.shutdown();
    server.post([&] { calls += "second "; });
    server.onPreShutdown = [&](bool &) {  // runs after the posted functions
        server.post([&] {
            calls += "third ";
            server.post([&] { calls += "fourth "; });
        });
    };
    server.takeLastTurns();
    CHECK(calls == "first second third postShutdown ");
    server.listen();
    server.turn(10s);
    CHECK(calls == "first second third postShutdown fourth ");
    CHECK(server.turn(0ms));  // no stop() is left
}

TEST_CASE("A posted function that never ran is destroyed with the server") {
    const auto held = std::make_shared<int>();
    {
        Server server;
        server.post([held] { FAIL("the function must not run"); });
        CHECK(held.use_count() == 2);
    }
    CHECK(held.use_count() == 1);
}

// ----------------------------------------------------------------------------
// What other threads may not do
// ----------------------------------------------------------------------------

namespace {

// What a call throws; "" if nothing.
template <class Call>
std::string complaintOf(Call call) {
    try {
        call();
    } catch (const std::logic_error &e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("A call from another thread throws std::logic_error, and names post()") {
    Server server;
    User &user = [&]() -> User & {
        static std::optional<Peer> peer;
        peer.emplace(server);
        return server.user(1);
    }();
    const std::vector<std::pair<const char *, std::function<void()>>> calls = {
        {"sendToUser", [&] { server.sendToUser(user, "a"); }},
        {"sendToAll", [&] { server.sendToAll("a"); }},
        {"sendToAllBut", [&] { server.sendToAllBut(user, "a"); }},
        {"sendToIf", [&] { server.sendToIf([](User &) { return true; }, "a"); }},
        {"disconnect", [&] { server.disconnect(user); }},
        {"refuse", [&] { server.refuse(user, 403); }},
        {"acceptProtocol", [&] { server.acceptProtocol(user, ""); }},
        {"setHeader", [&] { server.setHeader(user, "A", "b"); }},
        {"users", [&] { server.users().begin(); }},
        {"findUser", [&] { server.findUser(1); }},
        {"userCount", [&] { server.userCount(); }},
        {"stats", [&] { server.stats(); }},
        {"watch", [&] { server.watch(0, POLLIN, [](short) {}); }},
        {"listen", [&] { server.listen(); }},
        {"shutdown", [&] { server.shutdown(); }},
        {"stopOn", [&] { server.stopOn({SIGUSR1}); }},
    };
    for (const auto &row : calls) {
        INFO(row.first);
        std::string complaint;
        std::thread([&] { complaint = complaintOf(row.second); }).join();
        CHECK(has(complaint, "post()"));
    }
    CHECK(server.turn(0ms));
    CHECK(server.userCount() == 1);
    CHECK(server.port() > 0);
}

TEST_CASE("While run() serves, turn() and the other calls throw elsewhere; then they are free") {
    Server server;
    {
        Running running(server);
        const Peer peer(server.port());
        CHECK(has(complaintOf([&] { server.sendToAll("a"); }), "post()"));
        CHECK(has(complaintOf([&] { server.unwatch(0); }), "post()"));
        CHECK(has(complaintOf([&] { server.run(); }), "post()"));
        CHECK(has(complaintOf([&] { server.turn(0ms); }), "two threads"));
        server.stop();
    }
    CHECK(complaintOf([&] { server.sendToAll("a"); }).empty());
    server.listen();
    CHECK(server.turn(0ms));
}

TEST_CASE("A user of another server is refused with std::logic_error") {
    Server server, other;
    Peer peer(server), stranger(other);
    User &user = other.user(1);
    CHECK(has(complaintOf([&] { server.sendToUser(user, "a"); }), "another server"));
    CHECK(has(complaintOf([&] { server.sendToAllBut(user, "a"); }), "another server"));
    CHECK(has(complaintOf([&] { server.disconnect(user); }), "another server"));
    other.onPreConnect = [&](User &newcomer) {
        CHECK(has(complaintOf([&] { server.refuse(newcomer, 403); }), "another server"));
        CHECK(has(complaintOf([&] { server.acceptProtocol(newcomer, ""); }), "another server"));
        CHECK(has(complaintOf([&] { server.setHeader(newcomer, "A", "b"); }), "another server"));
    };
    const Peer third(other);
    User nobody;  // was never connected
    CHECK_FALSE(server.sendToUser(nobody, "a"));
    server.sendToAll("hello");
    CHECK(peer.next().value().payload == "hello");
    CHECK(other.sendToUser(user, "hi"));
    CHECK(stranger.next().value().payload == "hi");
}
