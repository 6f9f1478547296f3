// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Sends every message back to its sender: examples/echo [PORT]
#include "../server.h"
#include "program.h"

class EchoServer : public WebSocketServer<> {
    using WebSocketServer::WebSocketServer;
    void process(WSBaseUser &user, WSMessage &msg) override { sendToUser(user, msg); }
};

int main(int argc, char **argv) {
    WSBaseConfig config;
    config.debug = false;
    return runProgram(argc, argv, {portOption("PORT", config)}, [&] {
        EchoServer server(config);
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::cout << "listening on port " << server.port() << " of localhost" << std::endl;
        server.run();
    });
}
