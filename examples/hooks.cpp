// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Prints each hook as it is called, and shows what each may change. Start it with
// examples/hooks [PORT], then connect with any client, such as a browser's console:
//
//     let s = new WebSocket('ws://localhost:12345/?name=Ann');
//     s.onmessage = m => console.log(m.data);
//     s.send('hello'); s.send('{"command":"users"}'); s.send('{"command":"stop"}');

#include "../server.h"
#include "program.h"

#include <cstdio>
#include <string>

struct HooksUser : WSBaseUser {
    HooksUser() { maxIdle = 300; }
    std::string name;
    int received = 0;

    // Called for each message, before process(). The base class resets the idle clock.
    void messageReceived() override {
        WSBaseUser::messageReceived();
        ++received;
    }
};

struct HooksConfig : WSBaseConfig {
    HooksConfig() { maxUsers = 10; }
    int vetoes = 1;  // shutdown requests to refuse
};

class HooksServer : public WebSocketServer<HooksUser, HooksConfig> {
    using WebSocketServer::WebSocketServer;

    // The request is known and not yet answered: here a user can be refused.
    void preConnect(HooksUser &user, int socket) override {
        user.name = user.request().parameter("name");
        say("preConnect", user, "socket " + std::to_string(socket));
        if (user.name.empty()) refuse(user, 403, "Who are you? Connect to /?name=YOURS");
    }

    // From here on, the user can receive messages.
    void postConnect(HooksUser &user, int) override {
        say("postConnect", user, "from " + user.address());
        sendToUser(user, "welcome");
        sendToAllBut(user, user.name + " is here");
    }

    // JSON arrives decoded, everything else as text or bytes.
    void process(HooksUser &user, WSMessage &msg) override {
        say("process", user, msg.isBinary() ? "binary" : msg.payload());
        const std::string command = commandIn(msg.json());
        if (command == "users") sendToUser(user, names());
        else if (command == "leave") disconnect(user, 1000, "as you wish");
        else if (command == "stop") shutdown();
        else sendToAllBut(user, msg);
    }

    // A change affects this receiver only.
    void preSend(HooksUser &user, WSMessage &msg) override {
        say("preSend", user, msg.payload());
        if (!msg.isBinary() && !msg.isJson()) msg = "to " + user.name + ": " + msg.payload();
    }

    // The message as preSend() left it.
    void postSend(HooksUser &user, WSMessage &msg) override {
        say("postSend", user, msg.payload());
    }

    // The user's queue was longer than lowMarkBytes, and is empty now.
    void drained(HooksUser &user) override { say("drained", user, "ready for more"); }

    // The close code and reason are known; the user can no longer receive messages.
    void preDisconnect(HooksUser &user, int) override {
        say("preDisconnect", user,
            std::to_string(user.closeCode()) + " " + user.closeReason() + ", " +
                std::to_string(user.received) + " messages");
        sendToAll(user.name + " has left");
    }

    void postDisconnect() override {
        print("postDisconnect", std::to_string(userCount()) + " still connected");
    }

    // Refuses the first request to stop, but not the second.
    void preShutdown(bool &doShutdown) override {
        doShutdown = config().vetoes-- <= 0;
        print("preShutdown", doShutdown ? "accepted" : "refused; ask again");
    }

    // The bytes themselves: the request and its answer, then frames.
    void trace(HooksUser &user, WSDirection direction, std::string_view bytes) override {
        const char *way = direction == WSDirection::received ? " bytes received" : " bytes sent";
        say("trace", user, std::to_string(bytes.size()) + way);
    }

    void postShutdown() override { print("postShutdown", "goodbye"); }

    // Never trust input: asString() throws if the value is an array or an object.
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

    // Input may contain what a terminal would obey, so only ASCII is printed.
    static void print(const char *hook, std::string text) {
        for (char &c : text)
            if (c < ' ' || c > '~') c = '?';
        std::printf("%-15s %s\n", hook, text.c_str());
        std::fflush(stdout);
    }
};

int main(int argc, char **argv) {
    HooksConfig config;
    return runProgram(argc, argv, {portOption("PORT", config)}, [&] {
        HooksServer server(config);
        server.stopOn({SIGINT, SIGTERM});
        server.run();
    });
}
