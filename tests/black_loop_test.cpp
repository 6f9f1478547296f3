// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The loop at the program's service: ticks, descriptors of others, and what it counts.

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
        CHECK(late < 1s);
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
    Ticking server(0.4);
    const auto start = Clock::now();
    std::this_thread::sleep_for(1s);
    server.turn(0ms);
    server.turn(0ms);
    CHECK(server.ticks == 1);
    while (server.ticks < 2) server.turn(10s);
    const auto beat = (Clock::now() - start) % 400ms;
    CHECK((beat < 160ms || beat > 395ms));
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

TEST_CASE("When tickSeconds is set, the next tick comes that long after") {
    for (const double before : {0.0, 1000.0}) {
        Ticking server(before);
        takeTurnsFor(server, 400ms);
        auto set = Clock::now();
        server.config().tickSeconds = 0.3;  // between two turns
        while (server.ticks < 1) server.turn(10s);
        CHECK(Clock::now() - set > 295ms);
        server.config().tickSeconds = before;
        server.turn(400ms);
        server.post([&] { set = Clock::now(), server.config().tickSeconds = 0.2; });
        server.ticks = 0;
        while (server.ticks < 1) server.turn(10s);
        CHECK(Clock::now() - set > 195ms);
        CHECK(Clock::now() - set < 2s);
    }
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

// ----------------------------------------------------------------------------
// stats()
// ----------------------------------------------------------------------------

TEST_CASE("stats() counts users, messages and bytes, each way") {
    Server server;
    const WSStats before = server.stats();
    CHECK(before.users + before.pending + before.turns + before.bytesSent == 0);
    CHECK(before.disconnects.empty());
    CHECK(before.answers.empty());

    Peer ada(server), bob(server);
    Client pending(server);
    pending.send("GET / HT");
    std::size_t received = 2 * upgrade().size() + 8;
    pump(server, "all bytes", [&] { return server.stats().bytesReceived >= received; });
    std::size_t sent = ada.response.size() + bob.response.size();
    WSStats stats = server.stats();
    CHECK(stats.users == 2);
    CHECK(stats.pending == 1);
    CHECK(stats.bytesReceived == received);
    CHECK(stats.bytesSent == sent);
    CHECK(stats.messagesReceived == 0);
    CHECK(stats.turns > 2);

    const std::string fragments =
        frame(kText, "a", 0) + frame(kContinuation, "b") + frame(kBinary, "") + frame(kPing, "p");
    ada.send(fragments);
    CHECK(ada.hear() == "text ab");
    CHECK(ada.hear() == "binary");
    CHECK(ada.hear() == "pong p");
    CHECK(server.sendToAll("to both") == 2);
    CHECK(ada.hear() == "text to both");
    CHECK(bob.hear() == "text to both");
    received += fragments.size();
    sent += 4 + 2 + 3 + 2 * 9;
    stats = server.stats();
    CHECK(stats.messagesReceived == 2);
    CHECK(stats.messagesSent == 4);
    CHECK(stats.bytesReceived == received);
    CHECK(stats.bytesSent == sent);
    CHECK(stats.queuedBytes == 0);
}

TEST_CASE("stats() counts the messages that process() got, and no others") {
    struct Picky : User {
        void messageReceived() override { throw std::runtime_error("not that one"); }
    };
    class Host : public WebSocketServer<Picky, Config> {
        void process(Picky &, WSMessage &) override { FAIL("it did not get so far"); }
        void console(WSLevel, std::string_view) override {}
    };
    Host server;
    server.listen();
    Peer peer(server);
    peer.send(frame(kText, "hello"));
    CHECK(peer.hear() == "close 1011");
    CHECK(server.stats().messagesReceived == 0);
}

TEST_CASE("stats() tells how much waits for all, and what was not queued is not counted") {
    Server server([](Config &config) { config.maxQueuedBytes = 20'000'000; });
    Peer slow(server, "/", "", 4096);
    slow.appetite = 0;
    const std::string large(15'000'000, 'x');
    CHECK(server.sendToAll(large) == 1);
    server.turn(0ms);
    WSStats stats = server.stats();
    CHECK(stats.queuedBytes > 5'000'000);
    CHECK(stats.queuedBytes == server.user(1).backlog());
    CHECK(stats.queuedBytes + stats.bytesSent == large.size() + 10 + slow.response.size());
    CHECK(server.sendToAll(large) == 0);
    server.turn(0ms);
    stats = server.stats();
    CHECK(stats.messagesSent == 1);
    CHECK(stats.disconnects == std::map<int, std::uint64_t>{{1008, 1}});
    CHECK(stats.queuedBytes == 0);
}

TEST_CASE("stats() counts who went by close code, and what was answered by status") {
    Server server;
    server.onHttp = [](const WSRequest &request, WSResponse &response) {
        if (request.path() == "/page") response.status = 200;
    };
    server.onPreConnect = [&](User &user) {
        if (user.request().path() == "/refused") server.refuse(user, 403);
    };
    server.onProcess = [&](User &user, WSMessage &msg) {
        server.disconnect(user, std::stoi(msg.payload()));
    };
    for (const char *code : {"1000", "1000", "3000", "3999", "4000", "4001", "4999", "1014"}) {
        Peer peer(server);
        peer.send(frame(kText, code));
        CHECK(peer.hear() == "close "s + code);
    }
    Peer lost(server), quiet(server), garbled(server);
    lost.reset();
    quiet.send(frame(kClose, ""));
    garbled.send(frame(kText, "\xFF"));
    CHECK(garbled.hear() == "close 1007");
    for (const char *path : {"/page", "/page", "/elsewhere"}) {
        Client page(server);
        page.send("GET "s + path + " HTTP/1.1\r\nHost: a\r\n\r\n");
        CHECK(page.status() >= 200);
    }
    Client refused(server), garbage(server);
    refused.send(upgrade("/refused"));
    CHECK(refused.status() == 403);
    garbage.send("garbage\r\n\r\n");
    CHECK(garbage.status() == 400);
    pump(server, "all ends", [&] { return server.userCount() == 0; });
    const WSStats stats = server.stats();
    CHECK(stats.disconnects ==
          std::map<int, std::uint64_t>{
              {1000, 2}, {1005, 1}, {1006, 1}, {1007, 1}, {1014, 1}, {3000, 2}, {4000, 3}});
    CHECK(stats.answers == std::map<int, std::uint64_t>{{200, 2}, {400, 1}, {403, 1}, {426, 1}});
}

TEST_CASE("stats() tells of the longest turn, in which no waiting is counted") {
    Server server;
    server.turn(400ms);
    CHECK(server.stats().turns == 1);
    CHECK(server.stats().longestTurnSeconds < 0.35);
    Peer peer(server);
    server.onProcess = [](User &, WSMessage &) { std::this_thread::sleep_for(150ms); };
    peer.send(frame(kText, "takes long"));
    pump(server, "the message", [&] { return server.stats().messagesReceived == 1; });
    server.turn(0ms);
    CHECK(server.stats().longestTurnSeconds >= 0.149);
    CHECK(server.stats().longestTurnSeconds < 5);
}

TEST_CASE("What waits for the clock does not wait for as long as a turn took") {
    Ticking server(0.6);
    const auto start = Clock::now();
    server.post([] { std::this_thread::sleep_for(500ms); });
    while (server.ticks == 0) server.turn(10s);
    CHECK(Clock::now() - start < 950ms);
}
