// A WebSocket server of your own. `make run` builds and starts it; ws/server.h has the contracts of
// all that is used here. Take the hooks that you need out of their comments, and always write
// `override`: the compiler then checks name and parameters.

#include "ws/server.h"

#include <csignal>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <string>

struct User : WSBaseUser {  // what you remember about each user
    std::string name;

    // void messageReceived() override { WSBaseUser::messageReceived(); }  // resets the idle clock
    // bool isIdle() const override { return WSBaseUser::isIdle(); }       // may make room
};

struct Config : WSBaseConfig {  // ws/config.h has all fields
    Config() {
        address = "localhost";  // "" is every interface: other machines can connect, too
        port = 12345;
        // uniqueOrigin = {"http://localhost:12345"};  // pages that may connect; set it for cookies
        // tickSeconds = 1;                            // switches tick() on
    }
};

class Server : public WebSocketServer<User, Config> {
  public:
    using WebSocketServer::WebSocketServer;

  private:
    // A message has arrived. This one goes on to everybody.
    void process(User &user, WSMessage &msg) override {
        if (msg.isBinary()) return disconnect(user, 1003, "text only, please");
        sendToAll(user.name + ": " + msg.payload());
    }

    // The user is connected: from now on it can be sent to.
    void postConnect(User &user, int) override { user.name = "user " + std::to_string(user.id()); }

    // A plain GET or HEAD on the same port: your page.
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        if (request.path() != "/") return;
        std::ifstream file("page.html", std::ios::binary);
        response.body.assign(std::istreambuf_iterator<char>(file), {});
        response.status = response.body.empty() ? 500 : 200;
        response.headers = {{"Content-Type", "text/html; charset=utf-8"}};
        if (response.body.empty()) response.body = "Start the program in the folder of page.html.";
    }

    // The opening handshake is valid, but not answered yet: here a user can be refused.
    // void preConnect(User &user, int socket) override {}

    // A message is about to be queued for this user; a change is for this receiver only.
    // void preSend(User &user, WSMessage &msg) override {}

    // The message has been queued.
    // void postSend(User &user, WSMessage &msg) override {}

    // More than lowMarkBytes waited for this user, and now nothing does.
    // void drained(User &user) override {}

    // The user is leaving: user.closeCode() and closeReason() say why.
    // void preDisconnect(User &user, int socket) override {}

    // That user is gone.
    // void postDisconnect() override {}

    // The server was asked to stop; doShutdown = false keeps it running.
    // void preShutdown(bool &doShutdown) override {}

    // All users are gone; run() returns next.
    // void postShutdown() override {}

    // tickSeconds have passed.
    // void tick() override {}

    // Bytes were received from the user, or queued for it.
    // void trace(User &user, WSDirection direction, std::string_view bytes) override {}

    // There is a line to log; it is safe to print.
    // void console(WSLevel level, std::string_view text) override {
    //     const std::time_t now = std::time(nullptr);
    //     const char *what = level == WSLevel::error ? "error: " : "";
    //     std::clog << std::put_time(std::localtime(&now), "%F %T ") << what << text << '\n';
    // }
};

int main() try {
    Server server;
    server.stopOn({SIGINT, SIGTERM});
    server.listen();
    std::printf("open http://localhost:%d/\n", server.port());
    std::fflush(stdout);
    server.run();
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
