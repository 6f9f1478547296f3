// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the loop does for the program: ticks, watched descriptors, and statistics.

#include "black.h"

#include <thread>

using namespace black;

// ----------------------------------------------------------------------------
// tick()
// ----------------------------------------------------------------------------

namespace {

// A server that counts its ticks.
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

TEST_CASE("tick() runs every tickSeconds, the first time that long after listen()") {
    const auto start = Clock::now();
    Ticking server(0.2);
    server.turn(0ms);
    CHECK(server.ticks == 0);
    for (int i = 1; i <= 3; ++i) {
        while (server.ticks < i) server.turn(10s);
        const auto late = Clock::now() - start - i * 200ms;
        CHECK(late > -3ms);  // the clock counts milliseconds, and two of its readings are rounded
        CHECK(late < 1s);
    }
}

TEST_CASE("With nothing to do there is a turn a second, even with 100 users") {
    Server server;
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 100; ++i) peers.push_back(std::make_unique<Peer>(server));
    const std::uint64_t before = server.stats().turns;
    const auto end = Clock::now() + 1500ms;
    while (Clock::now() < end)
        server.turn(std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()));
    CHECK(server.stats().turns - before <= 3);
}

TEST_CASE("Ticks need no turns in between, and there are none if tickSeconds is 0") {
    Ticking server(0.05), silent(0);
    int turns = 0;
    while (server.ticks < 5) server.turn(10s), ++turns;
    CHECK(turns < 12);
    takeTurnsFor(silent, 60ms);
    CHECK(silent.ticks == 0);
}

TEST_CASE("Missed ticks are not made up for, and the rhythm stays") {
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

TEST_CASE("When tickSeconds is set, the next tick comes that much later") {
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

TEST_CASE("Messages from tick() go out in the same turn") {
    Ticking server(0.01);
    Peer peer(server);
    server.onTick = [&] { server.sendToAll("tick"), server.onTick = {}; };
    while (server.onTick) server.turn(10s);
    peer.receive();
    CHECK(has(peer.input, "tick"));
}

TEST_CASE("A tick() that throws is logged and runs again") {
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

TEST_CASE("tick() runs during a shutdown as well, and in the next run()") {
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

// Two connected sockets: the test uses `mine`, the server watches `its`.
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

TEST_CASE("The function of a watched descriptor runs in each turn in which it is ready") {
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

TEST_CASE("Watching a descriptor again replaces its events and its function") {
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
    ::shutdown(pair.mine, SHUT_RDWR);  // POLLHUP needs no request
    server.turn(0ms);
    CHECK(calls == "out both on gone ");
}

TEST_CASE("A watch function may watch and unwatch any descriptor; only current functions run") {
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
        CHECK(large == std::string(1000, 'x'));  // the function still exists
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

TEST_CASE("A watch function that throws is logged and unwatched; the others go on") {
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
    CHECK(joined(server.lines) == "a function given to watch() threw: on purpose");
}

TEST_CASE("A watched descriptor that its owner has closed is logged once and unwatched") {
    Pair pair;
    Server server;
    server.watch(pair.its, POLLIN, [&](short) { FAIL("the descriptor is closed"); });
    const int fd = std::exchange(pair.its, -1);
    ::close(fd);
    int turns = 0;
    for (const auto end = Clock::now() + 50ms; Clock::now() < end; ++turns) server.turn(50ms);
    CHECK(turns < 5);
    CHECK(joined(server.lines) ==
          "descriptor " + std::to_string(fd) + " was closed without unwatch()");
}

TEST_CASE("watch() throws for a bad descriptor or an empty function") {
    Server server;
    CHECK_THROWS_AS(server.watch(-1, POLLIN, [](short) {}), std::invalid_argument);
    CHECK_THROWS_AS(server.watch(0, POLLIN, {}), std::invalid_argument);
    server.unwatch(-1);
    server.turn(0ms);
}

TEST_CASE("Messages from a watch function go out in the same turn") {
    const Pair pair;
    Server server;
    Peer peer(server);
    server.watch(pair.its, POLLIN, [&](short) { pair.hear(), server.sendToAll("news"); });
    pair.say();
    server.turn(10s);
    peer.receive();
    CHECK(has(peer.input, "news"));
}

TEST_CASE("Users, newcomers and watched descriptors do not get in each other's way") {
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

TEST_CASE("A descriptor stays watched during and after a shutdown, and in the next listen()") {
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

TEST_CASE("A watch function is destroyed in the turn that unwatches it, or with the server") {
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

TEST_CASE("The captures of a watch function may watch and unwatch in their destructors") {
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

TEST_CASE("stats() counts users, and messages and bytes in each direction") {
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

TEST_CASE("stats() counts only messages that reach process()") {
    struct Picky : User {
        void messageReceived() override { throw std::runtime_error("not that one"); }
    };
    class Host : public WebSocketServer<Picky, Config> {
        void process(Picky &, WSMessage &) override { FAIL("the message must not get here"); }
        void console(WSLevel, std::string_view) override {}
    };
    Host server;
    server.listen();
    Peer peer(server);
    peer.send(frame(kText, "hello"));
    CHECK(peer.hear() == "close 1011");
    CHECK(server.stats().messagesReceived == 0);
}

TEST_CASE("stats() adds up all backlogs, and does not count messages that were not queued") {
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

TEST_CASE("stats() counts disconnects by close code and answers by status") {
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

TEST_CASE("stats() has the longest turn, without the time it waited") {
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

TEST_CASE("A long turn does not delay the next tick") {
    Ticking server(0.6);
    const auto start = Clock::now();
    server.post([] { std::this_thread::sleep_for(500ms); });
    while (server.ticks == 0) server.turn(10s);
    CHECK(Clock::now() - start < 950ms);
}
