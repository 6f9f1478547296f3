// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Corners of the loop: what happens between two turns, and what few programs do.

#include "black.h"

#include <thread>

using namespace black;

TEST_CASE("A user that belongs to no server can be sent nothing, and has no backlog") {
    Server server;
    User mine;
    CHECK_FALSE(server.sendToUser(mine, "hello"));
    server.disconnect(mine);
    CHECK(mine.backlog() == 0);
}

TEST_CASE("Who is lost between two turns is neither read from nor asked whether it is alive") {
    Server server([](Config &config) {
        config.maxQueuedBytes = 1;
        config.lowMarkBytes = 1;
    });
    Peer peer(server);
    peer.send(frame(kText, "is never read"));
    std::this_thread::sleep_for(1100ms);  // so that the clocks are due, too
    const std::string large(16 * 1024 * 1024, 'x');
    while (server.sendToAll(large) == 1) {}
    server.turn(0ms);
    CHECK(joined(server.connectHooks()) ==
          "preConnect 1, postConnect 1, preDisconnect 1 1008, postDisconnect");
    CHECK(joined(server.reasons) == "too slow");
}

TEST_CASE("Who is lost in a turn in which it is also ready is not read from") {
    Server server([](Config &config) { config.maxQueuedBytes = 1; });
    Peer first(server), second(server);
    std::uint64_t lost = 0;
    server.onProcess = [&](User &user, WSMessage &) {
        lost = 3 - user.id();
        const std::string large(16 * 1024 * 1024, 'x');
        while (server.sendToUser(server.user(lost), large)) {}
    };
    for (Peer *peer : {&first, &second}) peer->send(frame(kText, "costs the other its place"));
    server.onPreDisconnect = [&](User &user) { CHECK(user.id() == lost); };
    server.turn(1s);
    CHECK(joined(server.reasons) == "too slow");
    CHECK_FALSE(has(joined(server.hooks), "process " + std::to_string(lost)));
}

TEST_CASE("The log says so if it listens at every address") {
    Server server([](Config &config) { config.debug = true, config.address = ""; });
    CHECK(server.printed("listening at every address"));
}

TEST_CASE("Who is lost while its waiting frames are read is not read from any more") {
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

// Disconnects itself when it is asked whether it is idle.
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

TEST_CASE("Who leaves when asked whether it is idle leaves with its own code") {
    LeaverServer server;
    server.config().maxUsers = 1;
    const Peer peer(server), newcomer(server);
    CHECK(server.codes == std::vector<int>{4000});
}

TEST_CASE("httpRequest() answers nothing unless it is overridden") {
    LeaverServer server;
    Client client(server);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(client.status() == 426);
}

TEST_CASE("64 are accepted in one turn, the others in the next ones") {
    Server server;
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 100; ++i) clients.push_back(std::make_unique<Client>(server));
    server.turn(0ms);
    CHECK(server.stats().pending == 64);
    server.turn(0ms);
    CHECK(server.stats().pending == 100);
}

TEST_CASE("With debug, the log tells of objections, shutdowns and the end") {
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
