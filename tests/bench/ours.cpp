// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// This project's server, as `make bench` measures it: see common.h for what it does.
#include "../../server.h"
#include "common.h"

#include <cstdio>
#include <exception>
#include <string_view>

namespace {

struct User : WSBaseUser {
    User() { maxIdle = 0; }
};

// Set up like the others: no timeouts, no pings, no log.
struct Config : WSBaseConfig {
    Config() {
        address = "127.0.0.1";
        maxUsers = bench::kMaxConnections;
        maxMessageBytes = bench::kMaxMessageBytes;
        maxQueuedBytes = 4 * bench::kMaxMessageBytes;
        pingSeconds = 0;
        debug = false;
    }
};

class Server : public WebSocketServer<User, Config> {
  public:
    Server(const Config &config, bench::Job job) : WebSocketServer(config), job_(job) {}

  private:
    void process(User &user, WSMessage &msg) override {
        switch (job_) {
        case bench::Job::echo: sendToUser(user, msg); break;
        case bench::Job::broadcast: sendToAll(msg); break;
        case bench::Job::json:
            Json::Value json = msg.json();
            json["to"] = "all";
            sendToUser(user, json);
        }
    }

    // Silences the warning that maxUsers exceeds the limit of open files.
    void console(WSLevel, std::string_view) override {}

    bench::Job job_;
};

}  // namespace

int main(int argc, char **argv) try {
    const bench::Options options = bench::start(argc, argv);
    Config config;
    config.port = options.port;
    Server server(config, options.job);
    server.listen();
    bench::announce(server.port(), "ours");
    server.run();
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
