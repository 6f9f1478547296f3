// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server for those tests of `make interop` for which the echo example is not enough. The
// path says what it does:
//
//     /                               sends every message back
//     /close?code=4001&reason=bye     disconnects each user at once
//     /refuse?status=401&text=no      refuses each user
//     /many?count=1000                sends the numbers 0 to 999 at once
//     /request                        sends the request as JSON, as it was parsed
//     /witness                        sends "ready", then JSON whenever a user leaves
//     GET /page                       answers with an empty page, to give a browser an origin
//     GET /page?no-store              the same, but no cache may keep it
//
// It prints "listening on port N" and stops on SIGINT or SIGTERM.

#include "../../server.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

struct InteropUser : WSBaseUser {
    InteropUser() { maxIdle = 0; }
    std::string path() const { return request().path(); }
};

struct InteropConfig : WSBaseConfig {
    InteropConfig() {
        port = 0;
        protocols = {"v2.interop", "v1.interop"};
        maxMessageBytes = 32 * 1024 * 1024;
        maxQueuedBytes = 64 * 1024 * 1024;
        debug = false;
    }
};

class InteropServer : public WebSocketServer<InteropUser, InteropConfig> {
  public:
    using WebSocketServer::WebSocketServer;

  protected:
    void process(InteropUser &user, WSMessage &msg) override { sendToUser(user, msg); }

    void preConnect(InteropUser &user, int) override {
        if (user.path() == "/refuse")
            refuse(user, number(user, "status"), user.request().parameter("text"));
    }

    void postConnect(InteropUser &user, int) override {
        const std::string path = user.path();
        if (path == "/close")
            disconnect(user, number(user, "code"), user.request().parameter("reason"));
        if (path == "/many") sendMany(user, number(user, "count"));
        if (path == "/request") sendToUser(user, describe(user));
        if (path == "/witness") sendToUser(user, "ready");
    }

    void preDisconnect(InteropUser &user, int) override {
        Json::Value left;
        left["query"] = user.request().query();
        left["code"] = user.closeCode();
        left["reason"] = user.closeReason();
        sendToIf([](const InteropUser &other) { return other.path() == "/witness"; }, left);
    }

    void httpRequest(const WSRequest &request, WSResponse &response) override {
        if (request.path() != "/page") return;
        response.status = 200;
        response.headers = {{"Content-Type", "text/html; charset=utf-8"}};
        if (request.query() == "no-store")
            response.headers.emplace_back("Cache-Control", "no-store");
        response.body = "<!doctype html><html lang=\"en\"><title>interop</title>";
    }

  private:
    static int number(const InteropUser &user, const char *name) {
        return std::stoi(user.request().parameter(name));
    }

    void sendMany(InteropUser &user, int count) {
        for (int i = 0; i < count; ++i) sendToUser(user, std::to_string(i));
    }

    static Json::Value describe(const InteropUser &user) {
        const WSRequest &request = user.request();
        Json::Value json;
        json["path"] = request.path();
        json["name"] = request.parameter("name");
        json["origin"] = request.origin();
        json["colour"] = request.cookie("colour");
        json["custom"] = request.header("X-Custom");
        json["forwarded"] = request.header("X-Forwarded-For");
        json["address"] = user.address();
        json["protocol"] = user.protocol();
        return json;
    }
};

// --port N, --address ADDRESS, --ping SECONDS, and any number of --origin ORIGIN and
// --proxy ADDRESS.
InteropConfig configFrom(int argc, char **argv) {
    InteropConfig config;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        const char *value = argv[i + 1];
        if (option == "--port") config.port = std::stoi(value);
        else if (option == "--address") config.address = value;
        else if (option == "--ping") config.pingSeconds = std::stod(value);
        else if (option == "--origin") config.uniqueOrigin.push_back(value);
        else if (option == "--proxy") config.trustedProxies.push_back(value);
        else throw std::invalid_argument("unknown option " + option);
    }
    return config;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        InteropServer server(configFrom(argc, argv));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::printf("listening on port %d\n", server.port());
        std::fflush(stdout);
        server.run();
    } catch (const std::exception &problem) {
        std::fprintf(stderr, "interop-server: %s\n", problem.what());
        return EXIT_FAILURE;
    }
}
