// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What tests/attack/fairness.cpp measures: an echo server that parses what looks like JSON, and
// answers "big" with 1 MiB. It lets everybody in, and says which port the system gave it.
#include "../../server.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace {

class FairnessServer : public WebSocketServer<> {
    using WebSocketServer::WebSocketServer;

    void process(WSBaseUser &user, WSMessage &msg) override {
        const std::string &text = msg.payload();
        const bool bracket = !msg.isBinary() && (text[0] == '[' || text[0] == '{');
        if (!bracket) return (void)sendToUser(user, text == "big" ? big_ : msg);
        if (msg.isJson()) return (void)sendToUser(user, "ok");
        // Refusing is cheap: going on would measure nothing.
        std::fputs("this is not JSON, or has more than maxJsonValues: see --json-values\n", stderr);
        std::_Exit(1);
    }

    // Standard output is a pipe that is read no further than the port.
    void console(WSLevel, std::string_view text) override {
        std::fprintf(stderr, "%.*s\n", static_cast<int>(text.size()), text.data());
    }

    const WSMessage big_ = WSMessage::binary(std::string(1 << 20, 'b'));
};

}  // namespace

int main() {
    WSBaseConfig config;
    config.address = "127.0.0.1";
    config.port = 0;
    config.maxUsers = config.maxPending = 25000;
    config.handshakeSeconds = 60;
    config.shutdownSeconds = 1;
    config.debug = false;
    FairnessServer server(config);
    server.stopOn({SIGINT, SIGTERM});
    server.listen();
    std::printf("%d\n", server.port());
    std::fflush(stdout);
    server.run();
}
