// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Fairness and lifetime: what a crowd may cost one well-behaved client, counted in turns of the
// loop (times are for tests/attack/fairness.cpp), and what a user may still ask for at its end.

#include "black.h"

#include <map>

using namespace black;

// ----------------------------------------------------------------------------
// A crowd
// ----------------------------------------------------------------------------

namespace {

using Crowd = std::vector<std::unique_ptr<Client>>;

// Takes turns until `done`, and counts how many of them the canary waits for its echo at most.
int longestWait(Server &server, Peer &canary, const std::function<bool()> &done) {
    const auto end = Clock::now() + kPatience;
    int longest = 0, waited = 0;
    canary.send(frame(kText, "canary"));
    while (!done()) {
        REQUIRE(Clock::now() < end);
        server.turn(5ms);
        canary.receive();
        ++waited;
        if (canary.taken(canary.input.size()).empty()) continue;
        longest = std::max(longest, std::exchange(waited, 0));
        canary.send(frame(kText, "canary"));
    }
    return std::max(longest, waited);
}

}  // namespace

TEST_CASE("A crowd that finishes its handshakes at one moment is let in over many turns") {
    Server server;
    Peer canary(server);
    canary.hearUntilPong();
    Crowd crowd;
    const std::string request = upgrade("/", "X: " + std::string(7000, 'x') + "\r\n");
    for (int i = 0; i < 200; ++i) {
        crowd.push_back(std::make_unique<Client>(server));
        crowd.back()->send(std::string_view(request).substr(0, request.size() - 1));
        if (i % 20 == 0) server.turn(0ms);
    }
    for (int i = 0; i < 20; ++i) server.turn(0ms);
    server.onPreConnect = [](User &) {
        for (const auto end = Clock::now() + 300us; Clock::now() < end;) {}
    };
    for (const auto &client : crowd) client->send("\n");
    std::size_t turns = 0;
    const int longest = longestWait(server, canary, [&] {
        ++turns;
        return server.userCount() == 201;
    });
    CHECK(turns >= 40);  // a millisecond each is for at most four of these
    CHECK(longest <= 20);
}

TEST_CASE("A crowd that ends at one moment says goodbye over many turns, each user in order") {
    Server server;
    Peer canary(server);
    canary.hearUntilPong();
    std::vector<std::unique_ptr<Peer>> crowd;
    for (int i = 0; i < 100; ++i) crowd.push_back(std::make_unique<Peer>(server));
    server.hooks.clear();
    server.onPreDisconnect = [](User &) {
        for (const auto end = Clock::now() + 500us; Clock::now() < end;) {}
    };
    for (const auto &peer : crowd) peer->reset();
    std::size_t turns = 0;
    const int longest = longestWait(server, canary, [&] {
        ++turns;
        return server.stats().pending == 0 && server.userCount() == 1;
    });
    CHECK(turns >= 30);  // a millisecond each is for at most three of these
    CHECK(longest <= 15);
    const Strings goodbyes = server.connectHooks();
    REQUIRE(goodbyes.size() == 200);
    for (std::size_t i = 0; i < goodbyes.size(); i += 2) {
        CHECK(has(goodbyes[i], "preDisconnect"));
        CHECK(goodbyes[i + 1] == "postDisconnect");
    }
}

TEST_CASE("A crowd of large answers is written over several turns, until all have theirs") {
    Server server;
    Peer canary(server);
    canary.hearUntilPong();
    std::vector<std::unique_ptr<Peer>> crowd;
    for (int i = 0; i < 50; ++i) crowd.push_back(std::make_unique<Peer>(server));
    const WSMessage page(std::string(1'000'000, 'x'));
    const std::uint64_t before = server.stats().bytesSent;
    CHECK(server.sendToIf([](const User &user) { return user.id() > 1; }, page) == 50);
    server.turn(0ms);
    CHECK(server.stats().bytesSent - before < 50 * 1'000'000);
    for (const auto &peer : crowd) CHECK(peer->next().value().payload.size() == 1'000'000);
}

TEST_CASE("Slow readers of large answers keep newcomers out for closeSeconds at most") {
    Server server([](Config &config) {
        config.maxPending = 5;
        config.closeSeconds = 0.4;
    });
    server.onHttp = [](const WSRequest &, WSResponse &response) {
        response.status = 200;
        response.body.assign(20'000'000, 'x');
    };
    Crowd slow;
    for (int i = 0; i < 5; ++i) {
        slow.push_back(std::make_unique<Client>(server, 4096));
        slow.back()->appetite = 0;
        slow.back()->send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        server.turn(20ms);
    }
    const auto trickle = [&] {  // each takes a little now and then, for ever
        for (const auto &client : slow) client->appetite = 20'000, client->receive();
        server.turn(5ms);
    };
    for (const auto end = Clock::now() + 600ms; Clock::now() < end;) trickle();
    for (int i = 0; i < 5; ++i) {
        Client newcomer(server);
        for (int k = 0; k < 4; ++k) trickle();  // others come meanwhile
        const Client another(server);
        trickle();
        newcomer.send(upgrade());
        CHECK(has(newcomer.head(), " 101 "));
        newcomer.reset();
    }
}

TEST_CASE("The time that a slow hook takes is taken from no deadline") {
    Server server([](Config &config) { config.closeSeconds = 0.3; });
    Peer reader(server);
    server.onProcess = [&](User &user, WSMessage &) {
        server.sendToUser(user, WSMessage(std::string(30'000'000, 'x')));
        server.disconnect(user);
        std::this_thread::sleep_for(1200ms);
    };
    reader.send(frame(kText, "all of it"));
    for (int i = 0; i < 5; ++i) server.turn(0ms);
    CHECK(reader.next().value().payload.size() == 30'000'000);
}

// ----------------------------------------------------------------------------
// Lifetime
// ----------------------------------------------------------------------------

namespace {

std::vector<std::string> epitaphs;  // what users saw of themselves in their destructors

struct Mortal : WSBaseUser {
    ~Mortal() override {
        epitaphs.push_back(std::to_string(id()) + ' ' + std::to_string(closeCode()) + ' ' +
                           (backlog() > 0 ? "owed " : "") + (socket() >= 0 ? "open " : "") +
                           request().path() + ' ' + address() + ' ' + protocol());
        messageReceived();
        CHECK(idleSeconds() == 0);
    }
};

struct MortalServer : WebSocketServer<Mortal, Config> {
    MortalServer() { listen(); }
    void process(Mortal &, WSMessage &) override {}
    void console(WSLevel, std::string_view) override {}
};

}  // namespace

TEST_CASE("The destructor of a user may call the user's own methods, however it ends") {
    epitaphs.clear();
    const std::string page(20'000'000, 'x');
    {
        MortalServer server;
        Peer closing(server, "/closing"), slow(server, "/slow", "", 4096);
        slow.appetite = 0;
        closing.send(closeFrame(1000));
        CHECK(closing.hear() == "close 1000");
        pump(server, "the end", [&] { return !epitaphs.empty(); });
        CHECK(epitaphs.back() == "1 1000 open /closing 127.0.0.1 ");
        Mortal &user = *server.users().begin();
        CHECK(server.sendToUser(user, page));
        server.disconnect(user, 4000);
        pump(server, "the end", [&] { return epitaphs.size() == 2; });
        CHECK(epitaphs.back() == "2 4000 owed open /slow 127.0.0.1 ");
        Peer left(server, "/left");
        left.appetite = 0;
        CHECK(server.sendToAll(page) == 1);
    }
    REQUIRE(epitaphs.size() == 3);  // the server is gone
    CHECK(epitaphs.back() == "3 0 owed open /left 127.0.0.1 ");
}

TEST_CASE("A second shutdown() or stop() during a shutdown does not make the loop spin") {
    Server server;
    Peer slow(server, "/", "", 4096);
    slow.appetite = 0;
    CHECK(server.sendToAll(std::string(20'000'000, 'x')) == 1);
    server.shutdown();
    server.turn(0ms);
    server.shutdown();
    server.stop();
    int turns = 0;
    for (const auto end = Clock::now() + 200ms; Clock::now() < end; ++turns)
        REQUIRE(server.turn(50ms));
    CHECK(turns < 25);
}
