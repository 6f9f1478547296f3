// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Corners of the loop: events between two turns, and calls that few programs make.

#include "black.h"

#include <locale>
#include <thread>

using namespace black;

TEST_CASE("A user that belongs to no server receives nothing and has no backlog") {
    Server server;
    User mine;
    CHECK_FALSE(server.sendToUser(mine, "hello"));
    server.disconnect(mine);
    CHECK(mine.backlog() == 0);
}

TEST_CASE("A user dropped between two turns is disconnected once, with 1008") {
    Server server([](Config &config) {
        config.maxQueuedBytes = 1;
        config.lowMarkBytes = 1;
    });
    Peer peer(server);
    peer.send(frame(kText, "is never read"));
    std::this_thread::sleep_for(1100ms);  // so that the clocks are due as well
    const std::string large(16 * 1024 * 1024, 'x');
    while (server.sendToAll(large) == 1) {}
    server.turn(0ms);
    CHECK(joined(server.connectHooks()) ==
          "preConnect 1, postConnect 1, preDisconnect 1 1008, postDisconnect");
    CHECK(joined(server.reasons) == "too slow");
}

TEST_CASE("A user dropped by another user's hook is not read from in that turn") {
    Server server([](Config &config) { config.maxQueuedBytes = 1; });
    Peer first(server), second(server);
    std::uint64_t lost = 0;
    server.onProcess = [&](User &user, WSMessage &) {
        lost = 3 - user.id();
        const std::string large(16 * 1024 * 1024, 'x');
        while (server.sendToUser(server.user(lost), large)) {}
    };
    for (Peer *peer : {&first, &second}) peer->send(frame(kText, "drops the other user"));
    server.onPreDisconnect = [&](User &user) { CHECK(user.id() == lost); };
    server.turn(1s);
    CHECK(joined(server.reasons) == "too slow");
    CHECK_FALSE(has(joined(server.hooks), "process " + std::to_string(lost)));
}

TEST_CASE("The log says that the server listens at every address") {
    Server server([](Config &config) { config.debug = true, config.address = ""; });
    CHECK(server.printed("listening at every address"));
}

TEST_CASE("Once a user is dropped, its remaining frames are discarded") {
    Server server([](Config &config) { config.maxQueuedBytes = 1; });
    Peer peer(server);
    server.onProcess = [&](User &user, WSMessage &msg) {
        if (msg.payload() != "2") return;
        const std::string large(16 * 1024 * 1024, 'x');
        while (server.sendToUser(user, large)) {}
    };
    peer.send(frame(kText, "1") + frame(kText, "2") + frame(kText, "3"));
    pump(server, "the end", [&] { return !server.reasons.empty(); });
    CHECK_FALSE(has(joined(server.hooks), "process 1: 3"));
    CHECK(joined(server.reasons) == "too slow");
}

namespace {

// A user that disconnects itself in isIdle().
struct Leaver : WSBaseUser {
    std::function<void(Leaver &)> onAsked;
    bool isIdle() const override {
        if (onAsked) onAsked(const_cast<Leaver &>(*this));
        return static_cast<bool>(onAsked);
    }
};

struct LeaverServer : WebSocketServer<Leaver, Config> {
    LeaverServer() { listen(); }
    std::vector<int> codes;
    void process(Leaver &, WSMessage &) override {}
    void postConnect(Leaver &user, int) override {
        user.onAsked = [this](Leaver &one) { disconnect(one, 4000); };
    }
    void preDisconnect(Leaver &user, int) override { codes.push_back(user.closeCode()); }
    void console(WSLevel, std::string_view) override {}
};

}  // namespace

TEST_CASE("A disconnect() in isIdle() keeps its own close code") {
    LeaverServer server;
    server.config().maxUsers = 1;
    const Peer peer(server), newcomer(server);
    CHECK(server.codes == std::vector<int>{4000});
}

TEST_CASE("Unless httpRequest() is overridden, a page request gets 426") {
    LeaverServer server;
    Client client(server);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(client.status() == 426);
}

TEST_CASE("A turn accepts at most 64 connections, the next turns accept the others") {
    Server server;
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 100; ++i) clients.push_back(std::make_unique<Client>(server));
    server.turn(0ms);
    CHECK(server.stats().pending == 64);
    server.turn(0ms);
    CHECK(server.stats().pending == 100);
}

TEST_CASE("With debug, the log reports a veto, the shutdown and the end of the server") {
    Server server([](Config &config) { config.debug = true; });
    bool objects = true;
    server.onPreShutdown = [&](bool &doShutdown) { doShutdown = !objects; };
    server.shutdown();
    CHECK(server.turn(0ms));
    CHECK(server.printed("preShutdown() objected: the server goes on"));
    objects = false;
    server.shutdown();
    server.takeLastTurns();
    CHECK(server.printed("shutting down"));
    CHECK(server.printed("the server has stopped"));
}

TEST_CASE("A global locale that jsoncpp misreads numbers in is logged once, and text is served") {
    struct Comma : std::numpunct<char> {
        char do_decimal_point() const override { return ','; }
    };
    Server server;
    std::vector<bool> isJson;
    server.onProcess = [&](User &user, WSMessage &msg) {
        isJson.push_back(msg.isJson());
        server.sendToUser(user, msg.isJson() ? WSMessage(msg.json()) : msg);
    };
    const bool reads = JSONCPP_VERSION_HEXA >= 0x01090700;
    Peer ada(server);
    const auto say = [&] {
        isJson.clear();
        for (const char *text : {"[1.5]", "[ 1 ]", "[2.5]", "hello"}) ada.send(frame(kText, text));
        return joined(ada.hearUntilPong());
    };
    CHECK(say() == "text [1.5], text [1], text [2.5], text hello");
    CHECK(isJson == std::vector<bool>{true, true, true, false});

    const std::locale before = std::locale::global(std::locale(std::locale(), new Comma));
    CHECK(say() == "text [1.5], text [1], text [2.5], text hello");
    CHECK(isJson == std::vector<bool>{reads, true, reads, false});
    const auto complaints = [&] {
        return std::count_if(server.lines.begin(), server.lines.end(),
                             [](auto &line) { return has(line, "JSON with fractions"); });
    };
    CHECK(complaints() == (reads ? 0 : 1));

    std::locale::global(before);
    CHECK(say() == "text [1.5], text [1], text [2.5], text hello");
    CHECK(isJson == std::vector<bool>{true, true, true, false});
    CHECK(complaints() == (reads ? 0 : 1));
    CHECK(server.userCount() == 1);
}
