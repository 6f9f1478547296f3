// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server that `make attack-check` attacks: an echo server with short deadlines, so that
// rows that wait for them are quick. It prints the port that the system gave it.
#include "../../server.h"

#include <csignal>
#include <cstdio>

namespace {

class EchoServer : public WebSocketServer<> {
    using WebSocketServer::WebSocketServer;
    void process(WSBaseUser &user, WSMessage &msg) override { sendToUser(user, msg); }
};

}  // namespace

int main() {
    WSBaseConfig config;
    config.port = 0;
    config.handshakeSeconds = 2;
    config.closeSeconds = 1;
    config.pingSeconds = 2;
    config.debug = false;
    EchoServer server(config);
    server.stopOn({SIGINT, SIGTERM});
    server.listen();
    std::printf("%d\n", server.port());
    std::fflush(stdout);
    server.run();
}
