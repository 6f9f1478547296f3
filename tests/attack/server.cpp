// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What `make attack-check` attacks: an echo server whose deadlines are short, so that what
// waits for them does not take long. It says which port the system gave it.
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
