// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The loop at the program's service: ticks, and descriptors of others.

#include "black.h"

#include <thread>

using namespace black;

// ----------------------------------------------------------------------------
// tick()
// ----------------------------------------------------------------------------

namespace {

// Counts its ticks.
struct Ticking : Server {
    explicit Ticking(double seconds)
        : Server([=](Config &config) { config.tickSeconds = seconds; }) {
        onTick = [this] { ++ticks; };
    }
    int ticks = 0;
};

template <class Time>
void takeTurnsFor(WSBaseServer &server, Time time) {
    for (const auto end = Clock::now() + time; Clock::now() < end;)
        server.turn(std::chrono::milliseconds(time));
}

}  // namespace

TEST_CASE("tick() comes every tickSeconds, the first time so long after listen()") {
    Ticking server(0.2);
    const auto start = Clock::now();
    server.turn(0ms);
    CHECK(server.ticks == 0);
    for (int i = 1; i <= 3; ++i) {
        while (server.ticks < i) server.turn(10s);
        const auto late = Clock::now() - start - i * 200ms;
        CHECK(late > -3ms);  // the clock has milliseconds, two of them are rounded
        CHECK(late < 150ms);
    }
}

TEST_CASE("Ticks cost no turns in between, and there are none if tickSeconds is 0") {
    Ticking server(0.05), silent(0);
    int turns = 0;
    while (server.ticks < 5) server.turn(10s), ++turns;
    CHECK(turns < 12);
    takeTurnsFor(silent, 60ms);
    CHECK(silent.ticks == 0);
}

TEST_CASE("What ticks were missed is not made up for, and the beat stays") {
    Ticking server(0.2);
    const auto start = Clock::now();
    std::this_thread::sleep_for(500ms);
    server.turn(0ms);
    server.turn(0ms);
    CHECK(server.ticks == 1);
    while (server.ticks < 2) server.turn(10s);
    const auto beat = (Clock::now() - start) % 200ms;
    CHECK((beat < 80ms || beat > 195ms));
}

TEST_CASE("tickSeconds may be changed at any time") {
    Ticking server(1000);
    server.onProcess = [&](User &, WSMessage &) { server.config().tickSeconds = 0.01; };
    Peer peer(server);
    CHECK(server.ticks == 0);
    peer.send(frame(kText, "faster"));
    pump(server, "a tick", [&] { return server.ticks > 2; });
    server.config().tickSeconds = 0;
    const int before = server.ticks;
    takeTurnsFor(server, 50ms);
    CHECK(server.ticks == before);
}

TEST_CASE("What tick() sends goes out in the same turn") {
    Ticking server(0.01);
    Peer peer(server);
    server.onTick = [&] { server.sendToAll("tick"), server.onTick = {}; };
    while (server.onTick) server.turn(10s);
    peer.receive();
    CHECK(has(peer.input, "tick"));
}

TEST_CASE("A tick() that throws is logged, and comes again") {
    Ticking server(0.01);
    server.onTick = [&] {
        ++server.ticks;
        throw std::runtime_error("on purpose");
    };
    Peer peer(server);
    pump(server, "three ticks", [&] { return server.ticks >= 3; });
    CHECK(server.printed("tick() threw: on purpose"));
    peer.send(frame(kText, "hello"));
    CHECK(peer.hear() == "text hello");
}

TEST_CASE("tick() comes during a shutdown, too, and in the next run()") {
    Ticking server(0.02);
    Peer peer(server);
    server.shutdown();
    CHECK(peer.hear() == "close 1001");
    const int before = server.ticks;
    pump(server, "a tick", [&] { return server.ticks > before; });
    peer.close();
    server.takeLastTurns();
    CHECK(server.hooks.back() == "postShutdown");
    std::this_thread::sleep_for(50ms);
    server.ticks = 0;
    server.listen();
    server.turn(0ms);
    CHECK(server.ticks == 0);
    pump(server, "a tick", [&] { return server.ticks > 0; });
}

// ----------------------------------------------------------------------------
// watch()
// ----------------------------------------------------------------------------

namespace {

// Two sockets that are connected: `mine` is the test's, `its` is watched.
struct Pair {
    Pair() {
        int ends[2] = {-1, -1};
        if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) throw std::runtime_error("no pair");
        mine = ends[0];
        its = ends[1];
    }
    ~Pair() {
        if (mine >= 0) ::close(mine);
        if (its >= 0) ::close(its);
    }
    Pair(const Pair &) = delete;
    Pair &operator=(const Pair &) = delete;

    void say() const { REQUIRE(::write(mine, "x", 1) == 1); }
    void hear() const {
        char byte = 0;
        REQUIRE(::read(its, &byte, 1) == 1);
    }

    int mine = -1, its = -1;
};

}  // namespace

TEST_CASE("What is watched has its function called in each turn in which it is ready") {
    const Pair pair;
    Server server;
    int calls = 0;
    short seen = 0;
    server.watch(pair.its, POLLIN, [&](short revents) { ++calls, seen = revents; });
    server.turn(0ms);
    CHECK(calls == 0);
    pair.say();
    server.turn(10s);
    CHECK(calls == 1);
    CHECK(seen == POLLIN);
    server.turn(10s);
    CHECK(calls == 2);
    pair.hear();
    server.turn(0ms);
    CHECK(calls == 2);
    pair.say();
    server.unwatch(pair.its);
    server.turn(0ms);
    CHECK(calls == 2);
    server.unwatch(pair.its);  // does nothing
}

TEST_CASE("Watching a descriptor anew changes the events and the function") {
    const Pair pair;
    Server server;
    std::string calls;
    server.watch(pair.its, POLLIN, [&](short) { calls += "in "; });
    server.watch(pair.its, POLLOUT, [&](short) { calls += "out "; });
    pair.say();
    server.turn(10s);
    CHECK(calls == "out ");
    server.watch(pair.its, POLLIN | POLLOUT, [&](short revents) {
        calls += revents == (POLLIN | POLLOUT) ? "both " : "? ";
        server.watch(pair.its, 0, [&](short) { calls += "gone "; });
        calls += "on ";
    });
    server.turn(10s);
    server.turn(0ms);
    CHECK(calls == "out both on ");
    ::shutdown(pair.mine, SHUT_RDWR);  // POLLHUP comes unasked
    server.turn(0ms);
    CHECK(calls == "out both on gone ");
}

TEST_CASE("Whatever a watched function does to what is watched, only what is watched is called") {
    const Pair first, second, third;
    Server server;
    std::string calls;
    const std::string large(1000, 'x');
    server.watch(first.its, POLLIN, [&, large](short) {
        calls += "first ";
        server.unwatch(first.its);
        server.unwatch(second.its);
        for (int i = 0; i < 100; ++i) {
            server.watch(first.its, POLLIN, [&](short) { calls += "again "; });
            server.watch(third.its, POLLIN, [&](short) { calls += "third "; });
        }
        CHECK(large == std::string(1000, 'x'));  // it is still there
    });
    server.watch(second.its, POLLIN, [&](short) { calls += "second "; });
    for (const Pair *pair : {&first, &second, &third}) pair->say();
    server.turn(10s);
    CHECK(calls == "first ");
    server.turn(10s);
    CHECK(calls == "first again third ");
    server.watch(second.its, POLLIN, [&](short) { calls += "second "; });
    server.turn(10s);
    CHECK(calls == "first again third again third second ");
}

TEST_CASE("A watched function that throws is logged and called no more, and harms nobody else") {
    const Pair bad, good;
    Server server;
    int calls = 0, served = 0;
    server.watch(bad.its, POLLIN, [&](short) {
        ++calls;
        throw std::runtime_error("on purpose");
    });
    server.watch(good.its, POLLIN, [&](short) { ++served; });
    bad.say(), good.say();
    for (int i = 0; i < 3; ++i) server.turn(0ms);
    CHECK(calls == 1);
    CHECK(served == 3);
    CHECK(joined(server.lines) == "watch() threw: on purpose");
}

TEST_CASE("What its owner has closed is told of once, and unwatched") {
    Pair pair;
    Server server;
    server.watch(pair.its, POLLIN, [&](short) { FAIL("it is closed"); });
    const int fd = std::exchange(pair.its, -1);
    ::close(fd);
    int turns = 0;
    for (const auto end = Clock::now() + 50ms; Clock::now() < end; ++turns) server.turn(50ms);
    CHECK(turns < 5);
    CHECK(joined(server.lines) == "descriptor " + std::to_string(fd) + " is watched, but closed");
}

TEST_CASE("watch() throws over what can not be watched") {
    Server server;
    CHECK_THROWS_AS(server.watch(-1, POLLIN, [](short) {}), std::invalid_argument);
    CHECK_THROWS_AS(server.watch(0, POLLIN, {}), std::invalid_argument);
    server.unwatch(-1);
    server.turn(0ms);
}

TEST_CASE("What a watched function sends goes out in the same turn") {
    const Pair pair;
    Server server;
    Peer peer(server);
    server.watch(pair.its, POLLIN, [&](short) { pair.hear(), server.sendToAll("news"); });
    pair.say();
    server.turn(10s);
    peer.receive();
    CHECK(has(peer.input, "news"));
}

TEST_CASE("Users, newcomers and what is watched do not get in each other's way") {
    Server server;
    std::vector<std::unique_ptr<Pair>> pairs;
    std::vector<std::unique_ptr<Peer>> peers;
    std::vector<int> calls(20);
    for (std::size_t i = 0; i < 20; ++i) {
        for (int k = 0; k < 10; ++k) peers.push_back(std::make_unique<Peer>(server));
        pairs.push_back(std::make_unique<Pair>());
        server.watch(pairs[i]->its, POLLIN, [&, i](short) { pairs[i]->hear(), ++calls[i]; });
    }
    for (int round = 0; round < 10; ++round) {
        for (std::size_t i = 0; i < 20; ++i) {
            if (i % 3 == 0) server.unwatch(pairs[i]->its);
            if (i % 3 == 0)
                server.watch(pairs[i]->its, POLLIN,
                             [&, i](short) { pairs[i]->hear(), ++calls[i]; });
            pairs[i]->say();
        }
        for (const auto &peer : peers) peer->send(frame(kText, "hello"));
        for (const auto &peer : peers) CHECK(peer->hear() == "text hello");
        peers.erase(peers.begin());
        peers.push_back(std::make_unique<Peer>(server));
    }
    pump(server, "all calls", [&] { return calls == std::vector<int>(20, 10); });
    CHECK(server.userCount() == 200);
}

TEST_CASE("What is watched before listen() is watched, and so it is over a shutdown") {
    const Pair pair;
    int calls = 0;
    Server server;
    Peer peer(server);
    server.watch(pair.its, POLLIN, [&](short) { pair.hear(), ++calls; });
    server.shutdown();
    CHECK(peer.hear() == "close 1001");
    pair.say();
    pump(server, "a call", [&] { return calls == 1; });
    peer.close();
    server.takeLastTurns();
    pair.say();
    server.turn(10s);
    CHECK(calls == 2);
    server.listen();
    pair.say();
    Peer other(server);
    pump(server, "a call", [&] { return calls == 3; });
}

TEST_CASE("What a function holds goes at the end of the turn that unwatches it, or the server") {
    const Pair pair;
    const auto held = std::make_shared<int>();
    {
        Server server;
        server.watch(pair.its, POLLIN, [held](short) {});
        server.unwatch(pair.its);
        server.turn(0ms);
        CHECK(held.use_count() == 1);
        server.watch(pair.its, POLLIN, [held](short) {});
        CHECK(held.use_count() == 2);
    }
    CHECK(held.use_count() == 1);
}

TEST_CASE("What a function holds may watch and unwatch when it goes") {
    const Pair first, second;
    Server server;
    int calls = 0;
    std::shared_ptr<void> held(nullptr, [&](void *) {
        server.unwatch(second.its);
        server.watch(first.its, POLLIN, [&](short) { ++calls; });
    });
    server.watch(second.its, POLLIN, [](short) { FAIL("it is unwatched"); });
    server.watch(first.its, POLLIN, [held = std::move(held)](short) { FAIL("it is unwatched"); });
    server.unwatch(first.its);
    server.turn(0ms);
    first.say(), second.say();
    server.turn(10s);
    CHECK(calls == 1);
}
