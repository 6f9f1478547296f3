// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A canvas that all who open the page share: everybody sees the others' pointers move, 30
// times a second. Start it and open what it prints: examples/game [PORT [ADDRESS]]
//
// Messages are binary. The first byte says what a message is; numbers are in network byte
// order, f32 is an IEEE 754 float. (So JavaScript's DataView has them.)
//
//     from the page  1 join     u8 version of all this: 1
//                    2 move     f32 x, f32 y (0 to 1, from the left and the top), u8 1: draws
//                    3 ping     8 bytes: the page's clock, or whatever it likes
//     to the page    4 welcome  u32 which player you are, u16 ticks per second
//                    5 frame    u32 tick, u16 count, for each player u32 player, f32 x, f32 y, u8
//                    6 pong     the 8 bytes of the ping
//
// Closed is who sends a text (1003), a message of another type or size, or a number out of its
// range (1007), moves before the join or joins twice (1008), or sends too much (1008, 1009).
//
// A frame tells all there is, the first one as well as the thousandth. So who comes late needs
// nothing else, who has left is simply not in it, and who is slow may miss any number of them:
// a frame goes only to those for whom nothing waits. The others get the latest one as
// soon as they have taken what they were sent, and never a queue of old ones.

#include "../server.h"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include <sys/socket.h>

namespace {

constexpr unsigned kTicksPerSecond = 30;

enum Type : std::uint8_t { kJoin = 1, kMove, kPing, kWelcome, kFrame, kPong };
constexpr std::uint32_t kVersion = 1;

struct GameConfig : WSBaseConfig {
    GameConfig() {
        debug = false;
        maxUsers = 200;
        tickSeconds = 1.0 / kTicksPerSecond;
        maxMessageBytes = 64;
        // The page moves once a tick. After a gap in the network it all comes at once.
        maxMessagesPerSecond = 10 * kTicksPerSecond;
        maxQueuedBytes = 64 * 1024;
        lowMarkBytes = 0;  // drained() comes whenever all is taken, be it a single frame
    }
};

struct Player : WSBaseUser {
    Player() { maxIdle = 10; }  // to join

    bool isIn = false;
    bool isBehind = false;  // has missed a frame
    float x = 0.5F, y = 0.5F;
    bool draws = false;
};

// ----------------------------------------------------------------------------
// Numbers in messages
// ----------------------------------------------------------------------------

template <class Number>
void append(std::string &bytes, Number number) {
    for (unsigned i = sizeof number; i-- > 0;) bytes += static_cast<char>(number >> 8 * i & 0xFF);
}

void append(std::string &bytes, float number) {
    std::uint32_t bits = 0;
    static_assert(sizeof bits == sizeof number);
    std::memcpy(&bits, &number, sizeof bits);
    append(bytes, bits);
}

// Takes a number of `size` bytes off the front; they have to be there.
std::uint32_t take(std::string_view &bytes, std::size_t size) {
    std::uint32_t number = 0;
    for (const char byte : bytes.substr(0, size))
        number = number << 8 | static_cast<std::uint8_t>(byte);
    bytes.remove_prefix(size);
    return number;
}

float takeFloat(std::string_view &bytes) {
    const std::uint32_t bits = take(bytes, sizeof bits);
    float number = 0;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// NaN is not: it compares to nothing.
bool isOnCanvas(float x) { return x >= 0 && x <= 1; }

// ----------------------------------------------------------------------------
// The server
// ----------------------------------------------------------------------------

class GameServer : public WebSocketServer<Player, GameConfig> {
  public:
    GameServer(GameConfig config, std::string page)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {}

  private:
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        const bool found = request.path() == "/";
        response.status = found ? 200 : 404;
        response.body = found ? page_ : "There is nothing here. The game is at /\n";
        response.headers = {{"Content-Type", found ? "text/html; charset=utf-8" : "text/plain"},
                            {"Cache-Control", "no-store"},
                            {"X-Content-Type-Options", "nosniff"},
                            {"Content-Security-Policy",
                             "default-src 'none'; script-src 'unsafe-inline'; style-src "
                             "'unsafe-inline'; img-src data:; connect-src 'self'; base-uri "
                             "'none'; form-action 'none'; frame-ancestors 'none'"}};
    }

    void preConnect(Player &player, int) override {
        if (player.request().path() != "/game") refuse(player, 404, "The game is at /game\n");
    }

    // What the kernel has taken can not be skipped any more, and it would take seconds of
    // frames for a player who reads none. So it gets room for a few only.
    void postConnect(Player &, int socket) override {
        const int bytes = 16 * 1024;
        ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    }

    void process(Player &player, WSMessage &msg) override {
        if (!msg.isBinary()) return disconnect(player, 1003, "this game is binary");
        std::string_view bytes = msg.payload();
        const std::uint32_t type = bytes.empty() ? 0 : take(bytes, 1);
        if (type == kJoin && bytes.size() == 1) return join(player, take(bytes, 1));
        if (type == kMove && bytes.size() == 9) return move(player, bytes);
        if (type == kPing && bytes.size() == 8) return pong(player, bytes);
        disconnect(player, 1007, "no such type and size of a message");
    }

    void preDisconnect(Player &player, int) override { isChanged_ |= player.isIn; }

    // --- what a page may say ---

    void join(Player &player, std::uint32_t version) {
        if (player.isIn) return disconnect(player, 1008, "you are in already");
        if (version != kVersion) return disconnect(player, 1007, "this is version 1");
        player.isIn = isChanged_ = true;
        player.maxIdle = 0;  // from now on one may watch for ever
        std::string welcome(1, kWelcome);
        append(welcome, nameOf(player));
        append(welcome, static_cast<std::uint16_t>(kTicksPerSecond));
        sendToUser(player, WSMessage::binary(welcome));
    }

    void move(Player &player, std::string_view bytes) {
        const float x = takeFloat(bytes), y = takeFloat(bytes);
        const std::uint32_t draws = take(bytes, 1);
        if (!player.isIn) return disconnect(player, 1008, "join first");
        if (!isOnCanvas(x) || !isOnCanvas(y) || draws > 1)
            return disconnect(player, 1007, "a move is to 0 to 1, and draws by 0 or 1");
        isChanged_ |= player.x != x || player.y != y || player.draws != (draws == 1);
        player.x = x;
        player.y = y;
        player.draws = draws == 1;
    }

    void pong(Player &player, std::string_view clock) {
        sendToUser(player, WSMessage::binary(std::string(1, kPong).append(clock)));
    }

    // --- what pages are told ---

    // Every tickSeconds: one frame for all, encoded once. If nobody has moved, nothing is sent.
    void tick() override {
        ++tick_;
        if (!std::exchange(isChanged_, false)) return;
        frame_ = encodedFrame();
        for (Player &player : users())
            if (player.isIn) sendFrame(player);
    }

    // Who still has something to take is not sent more of it ...
    void sendFrame(Player &player) {
        player.isBehind = player.backlog() > 0;
        if (!player.isBehind) sendToUser(player, frame_);
    }

    // ... but, as soon as all is taken, the latest frame.
    void drained(Player &player) override {
        if (player.isBehind) sendFrame(player);
    }

    WSMessage encodedFrame() const {
        std::string players;
        std::uint16_t count = 0;
        for (const Player &player : users()) {
            if (!player.isIn) continue;
            ++count;
            append(players, nameOf(player));
            append(players, player.x);
            append(players, player.y);
            append(players, static_cast<std::uint8_t>(player.draws));
        }
        std::string frame(1, kFrame);
        append(frame, tick_);
        append(frame, count);
        return WSMessage::binary(frame + players);
    }

    // Ids are never used again. Four billion players later these are, by who is gone for long.
    static std::uint32_t nameOf(const Player &player) {
        return static_cast<std::uint32_t>(player.id());
    }

    const std::string page_;
    std::uint32_t tick_ = 0;
    bool isChanged_ = false;  // since the latest frame
    WSMessage frame_;         // the latest one
};

// game.html lies beside the program. Linux tells where that is; elsewhere it is looked for
// where the program was called, so call it by its path.
std::string readPage(const char *program) {
    std::error_code error;
    std::filesystem::path path = std::filesystem::canonical("/proc/self/exe", error);
    path = (error ? std::filesystem::path(program) : path).replace_filename("game.html");
    std::ifstream file(path, std::ios::binary);
    std::string page(std::istreambuf_iterator<char>(file), {});
    if (page.empty()) throw std::runtime_error("there is no page to serve at " + path.string());
    return page;
}

}  // namespace

int main(int argc, char **argv) try {
    GameConfig config;
    if (argc > 1) config.port = std::stoi(argv[1]);
    if (argc > 2) config.address = argv[2];
    GameServer server(config, readPage(argv[0]));
    server.stopOn({SIGINT, SIGTERM});
    server.listen();
    std::printf("open http://localhost:%d/\n", server.port());
    std::fflush(stdout);
    server.run();
} catch (const std::exception &e) {
    std::fprintf(stderr, "game: %s\n", e.what());
    return 1;
}
