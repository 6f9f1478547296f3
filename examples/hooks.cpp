// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Prints each hook as it happens, and shows what each may change. Start it, then talk to
// it with any client, such as a browser's console:
//
//     let s = new WebSocket('ws://localhost:12345/?name=Ann');
//     s.onmessage = m => console.log(m.data);
//     s.send('hello'); s.send('{"command":"users"}'); s.send('{"command":"stop"}');

#include "../server.h"

#include <csignal>
#include <cstdio>
#include <string>

struct HooksUser : WSBaseUser {
    HooksUser() { maxIdle = 300; }
    std::string name;
    int received = 0;

    // Called before process(), for each message. It keeps resetting the idle clock.
    void messageReceived() override {
        WSBaseUser::messageReceived();
        ++received;
    }
};

struct HooksConfig : WSBaseConfig {
    HooksConfig() { maxUsers = 10; }
    int vetoes = 1;  // how often a shutdown is objected to
};

class HooksServer : public WebSocketServer<HooksUser, HooksConfig> {
    // The request is known, nothing is answered yet: here a user can be refused.
    void preConnect(HooksUser &user, int socket) override {
        user.name = user.request().parameter("name");
        say("preConnect", user, "socket " + std::to_string(socket));
        if (user.name.empty()) refuse(user, 403, "Who are you? Connect to /?name=YOURS");
    }

    // From here on the user can be sent to.
    void postConnect(HooksUser &user, int) override {
        say("postConnect", user, "from " + user.address());
        sendToUser(user, "welcome");
        sendToAllBut(user, user.name + " is here");
    }

    // Received JSON comes decoded, all else as text or bytes.
    void process(HooksUser &user, WSMessage &msg) override {
        say("process", user, msg.isBinary() ? "binary" : msg.payload());
        const std::string command = commandIn(msg.json());
        if (command == "users") sendToUser(user, names());
        else if (command == "leave") disconnect(user, 1000, "as you wish");
        else if (command == "stop") shutdown();
        else sendToAllBut(user, msg);
    }

    // A change reaches this one receiver only.
    void preSend(HooksUser &user, WSMessage &msg) override {
        say("preSend", user, msg.payload());
        if (!msg.isBinary() && !msg.isJson()) msg = "to " + user.name + ": " + msg.payload();
    }

    // The message as preSend() left it.
    void postSend(HooksUser &user, WSMessage &msg) override {
        say("postSend", user, msg.payload());
    }

    // More than lowMarkBytes had waited for this user, and is gone now.
    void drained(HooksUser &user) override { say("drained", user, "can be sent more"); }

    // Why it ends is known; the user can not be sent to any more.
    void preDisconnect(HooksUser &user, int) override {
        say("preDisconnect", user,
            std::to_string(user.closeCode()) + " " + user.closeReason() + ", " +
                std::to_string(user.received) + " messages");
        sendToAll(user.name + " has left");
    }

    void postDisconnect() override {
        print("postDisconnect", std::to_string(userCount()) + " left");
    }

    // The first request to stop is objected to, the second is not.
    void preShutdown(bool &doShutdown) override {
        doShutdown = config().vetoes-- <= 0;
        print("preShutdown", doShutdown ? "so be it" : "not yet; ask again");
    }

    void postShutdown() override { print("postShutdown", "goodbye"); }

    // Never trust what came: asString() throws on what is no string.
    static std::string commandIn(const Json::Value &json) {
        const bool fine = json.isObject() && json["command"].isString();
        return fine ? json["command"].asString() : "";
    }

    Json::Value names() {
        Json::Value list(Json::arrayValue);
        for (HooksUser &user : users()) list.append(user.name);
        return list;
    }

    static void say(const char *hook, const HooksUser &user, const std::string &text) {
        print(hook, "user " + std::to_string(user.id()) + " " + user.name + ": " + text);
    }

    // What comes from others may hold what a terminal obeys.
    static void print(const char *hook, std::string text) {
        for (char &c : text)
            if ((c >= 0 && c < ' ') || c == 0x7F) c = '?';
        std::printf("%-15s %s\n", hook, text.c_str());
        std::fflush(stdout);
    }
};

int main() try {
    HooksServer server;
    server.stopOn({SIGINT, SIGTERM});
    server.run();
} catch (const std::exception &e) {
    std::fprintf(stderr, "hooks: %s\n", e.what());
    return 1;
}
