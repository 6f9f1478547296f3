// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Sends every message back to its sender: examples/echo [PORT]
#include "../server.h"

#include <csignal>
#include <cstdio>
#include <string>

class EchoServer : public WebSocketServer<> {
    using WebSocketServer::WebSocketServer;
    void process(WSBaseUser &user, WSMessage &msg) override { sendToUser(user, msg); }
};

int main(int argc, char **argv) try {
    WSBaseConfig config;
    if (argc > 1) config.port = std::stoi(argv[1]);
    config.debug = false;
    EchoServer server(config);
    server.stopOn({SIGINT, SIGTERM});
    server.listen();
    std::printf("listening on port %d\n", server.port());
    std::fflush(stdout);
    server.run();
} catch (const std::exception &e) {
    std::fprintf(stderr, "echo: %s\n", e.what());
    return 1;
}
