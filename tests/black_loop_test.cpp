// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The loop at the program's service: ticks.

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
