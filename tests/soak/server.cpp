// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server that `make soak` wears out. Its deadlines are short. It obeys these messages
// and echoes all others:
//
//     say …            sends "heard SEQUENCE ID say …" to all users of /talk
//     bye              answers "farewell SEQUENCE", and disconnects
//     flood N SIZE     answers with N messages "flood I …" of SIZE bytes
//     kick CODE        disconnects with that code
//     throw            throws
//
// and these paths:
//
//     /talk            greets with "welcome ID SEQUENCE"
//     /sleep           users that are silent for a second count as idle
//     /refuse          refuses the user
//     GET /page?size=N answers with that many bytes
//     GET /state       answers with its users, descriptors, heap and counts, as JSON
//
// It prints "listening on port N" and stops on SIGINT or SIGTERM.

#include "../../server.h"

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
#define HAS_MALLINFO2
#include <malloc.h>
#elif defined(__APPLE__)
#include <malloc/malloc.h>
#endif

namespace {

struct SoakUser : WSBaseUser {
    SoakUser() { maxIdle = 0; }
    bool talks = false;
};

struct SoakConfig : WSBaseConfig {
    SoakConfig() {
        address = "127.0.0.1";
        port = 0;
        handshakeSeconds = 2;
        closeSeconds = 1;
        pingSeconds = 2;
        shutdownSeconds = 5;
        maxQueuedBytes = 2 * 1024 * 1024;
        debug = false;
    }
};

// Bytes on the heap; 0 where the system does not tell.
Json::UInt64 heapBytes() {
#ifdef HAS_MALLINFO2
    malloc_trim(0);
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
#elif defined(__APPLE__)
    return mstats().bytes_used;
#else
    return 0;
#endif
}

int openDescriptors() {
    int count = 0;
    for (int fd = 0; fd < 8192; ++fd) count += ::fcntl(fd, F_GETFD) >= 0;
    return count;
}

class SoakServer : public WebSocketServer<SoakUser, SoakConfig> {
  protected:
    void process(SoakUser &user, WSMessage &msg) override {
        const std::string &text = msg.payload();
        if (begins(text, "say ")) say(user, text);
        else if (text == "bye") sayFarewell(user);
        else if (begins(text, "flood ")) flood(user, text);
        else if (begins(text, "kick ")) disconnect(user, std::atoi(text.c_str() + 5), "kicked");
        else if (text == "throw") throw std::runtime_error("a hook that throws");
        else sendToUser(user, msg);
    }

    void preConnect(SoakUser &user, int) override {
        if (user.request().path() == "/refuse") {
            refuse(user, 403);
        } else {
            ++preConnects_;
        }
    }

    // With a small kernel buffer, the server's own queues are used.
    void postConnect(SoakUser &user, int socket) override {
        const int size = 16 * 1024;
        ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        ++postConnects_;
        if (user.request().path() == "/sleep") user.maxIdle = 1;
        user.talks = user.request().path() == "/talk";
        if (user.talks) sendToUser(user, "welcome " + numbers(user.id(), sequence_));
    }

    void preDisconnect(SoakUser &, int) override { ++preDisconnects_; }
    void postDisconnect() override { ++postDisconnects_; }

    void httpRequest(const WSRequest &request, WSResponse &response) override {
        if (request.path() == "/page") {
            response.status = 200;
            response.body.assign(std::stoul(request.parameter("size")), '.');
        } else if (request.path() == "/state") {
            response.status = 200;
            response.headers = {{"Content-Type", "application/json"}};
            response.body = state().toStyledString();
        }
    }

    // Hooks that throw and queues that overflow are part of the test: log nothing.
    void console(WSLevel, std::string_view) override {}

  private:
    static bool begins(std::string_view text, std::string_view with) {
        return text.substr(0, with.size()) == with;
    }

    static std::string numbers(std::uint64_t one, std::uint64_t two) {
        return std::to_string(one) + ' ' + std::to_string(two);
    }

    void say(SoakUser &user, const std::string &text) {
        const std::string heard = "heard " + numbers(++sequence_, user.id()) + ' ' + text;
        sendToIf([](const SoakUser &other) { return other.talks; }, heard);
    }

    void sayFarewell(SoakUser &user) {
        sendToUser(user, "farewell " + std::to_string(sequence_));
        disconnect(user, 1000, "bye");
    }

    void flood(SoakUser &user, const std::string &text) {
        char *rest = nullptr;
        const long count = std::strtol(text.c_str() + 6, &rest, 10);
        const std::string padding(std::strtoul(rest, nullptr, 10), '.');
        for (long i = 0; i < count; ++i)
            if (!sendToUser(user, "flood " + std::to_string(i) + ' ' + padding)) break;
    }

    Json::Value state() const {
        Json::Value json;
        json["users"] = userCount();
        json["descriptors"] = openDescriptors();
        json["heap"] = heapBytes();
        json["said"] = Json::UInt64{sequence_};
        json["preConnect"] = Json::UInt64{preConnects_};
        json["postConnect"] = Json::UInt64{postConnects_};
        json["preDisconnect"] = Json::UInt64{preDisconnects_};
        json["postDisconnect"] = Json::UInt64{postDisconnects_};
        return json;
    }

    std::uint64_t sequence_ = 0;
    std::uint64_t preConnects_ = 0, postConnects_ = 0, preDisconnects_ = 0, postDisconnects_ = 0;
};

}  // namespace

int main() {
    try {
        SoakServer server;
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::printf("listening on port %d\n", server.port());
        std::fflush(stdout);
        server.run();
    } catch (const std::exception &problem) {
        std::fprintf(stderr, "soak-server: %s\n", problem.what());
        return EXIT_FAILURE;
    }
}
