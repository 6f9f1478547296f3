// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A shared canvas: everyone who opens the page sees all pointers move, 30 times a second. Start
// it with examples/game [PORT [ADDRESS]] and open the URL it prints.
//
// Messages are binary. The first byte is the type; numbers are in network byte order, f32 is an
// IEEE 754 float, as JavaScript's DataView reads them.
//
//     from the page  1 join     u8 protocol version: 1
//                    2 move     f32 x, f32 y (0 to 1, from the left and the top), u8 draws (0, 1)
//                    3 ping     any 8 bytes, such as a time stamp
//     to the page    4 welcome  u32 your player number, u16 ticks per second
//                    5 frame    u32 tick, u16 count; per player: u32 number, f32 x, f32 y, u8 draws
//                    6 pong     the 8 bytes of the ping
//
// A connection is closed if it sends text (1003), an unknown type, a wrong size or a number out
// of range (1007), if it moves before it joins or joins twice (1008), or if it sends too much
// (1008, 1009).
//
// Each frame holds the whole state. So a newcomer needs nothing else, a player who has left is
// simply missing, and a slow player may skip any number of frames: a frame goes only to players
// whose queue is empty. The others get the latest frame as soon as their queue has drained, never
// a backlog of old ones.

#include "../server.h"
#include "program.h"

#include <cstring>
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
        // The page sends one move per tick. After a stall in the network they arrive at once.
        maxMessagesPerSecond = 10 * kTicksPerSecond;
        maxQueuedBytes = 64 * 1024;
        lowMarkBytes = 0;  // makes drained() come even after a single frame
    }
};

struct Player : WSBaseUser {
    Player() { maxIdle = 10; }  // who has not joined by then makes room for others

    bool isIn = false;
    bool isBehind = false;  // has skipped a frame
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

// Removes a number of `size` bytes from the front. The caller has checked that they are there.
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

// False for NaN, which fails every comparison.
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
        response.body = found ? page_ : "Not found. The game is at /\n";
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

    // Frames in the kernel's buffer can no longer be skipped, and by default it holds seconds of
    // them for a player who does not read. So we limit it to a few.
    void postConnect(Player &, int socket) override {
        const int bytes = 16 * 1024;
        ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    }

    void process(Player &player, WSMessage &msg) override {
        if (!msg.isBinary()) return disconnect(player, 1003, "binary messages only");
        std::string_view bytes = msg.payload();
        const std::uint32_t type = bytes.empty() ? 0 : take(bytes, 1);
        if (type == kJoin && bytes.size() == 1) return join(player, take(bytes, 1));
        if (type == kMove && bytes.size() == 9) return move(player, bytes);
        if (type == kPing && bytes.size() == 8) return pong(player, bytes);
        disconnect(player, 1007, "unknown type or wrong size of a message");
    }

    void preDisconnect(Player &player, int) override { isChanged_ |= player.isIn; }

    // --- messages from a page ---

    void join(Player &player, std::uint32_t version) {
        if (player.isIn) return disconnect(player, 1008, "already joined");
        if (version != kVersion) return disconnect(player, 1007, "the protocol version must be 1");
        player.isIn = isChanged_ = true;
        player.maxIdle = 0;  // a player may watch forever
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
            return disconnect(player, 1007, "x and y must be from 0 to 1, draws 0 or 1");
        isChanged_ |= player.x != x || player.y != y || player.draws != (draws == 1);
        player.x = x;
        player.y = y;
        player.draws = draws == 1;
    }

    void pong(Player &player, std::string_view clock) {
        sendToUser(player, WSMessage::binary(std::string(1, kPong).append(clock)));
    }

    // --- messages to pages ---

    // Every tickSeconds: one frame for all, encoded once. Nothing is sent if nothing has changed.
    void tick() override {
        ++tick_;
        if (!std::exchange(isChanged_, false)) return;
        frame_ = encodedFrame();
        for (Player &player : users())
            if (player.isIn) sendFrame(player);
    }

    // A player whose queue is not empty skips this frame ...
    void sendFrame(Player &player) {
        player.isBehind = player.backlog() > 0;
        if (!player.isBehind) sendToUser(player, frame_);
    }

    // ... and gets the latest one as soon as the queue has drained.
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

    // Ids are never reused. Their low 32 bits repeat after four billion players, long after the
    // first owner has left.
    static std::uint32_t nameOf(const Player &player) {
        return static_cast<std::uint32_t>(player.id());
    }

    const std::string page_;
    std::uint32_t tick_ = 0;
    bool isChanged_ = false;  // since the latest frame
    WSMessage frame_;         // the latest one
};

}  // namespace

int main(int argc, char **argv) {
    GameConfig config;
    const std::vector<Option> options = {portOption("PORT", config),
                                         addressOption("ADDRESS", config)};
    return runProgram(argc, argv, options, [&] {
        GameServer server(config, readPage(argv[0], "game.html"));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::cout << placeOf(config.address, server.port()) << std::endl;
        server.run();
    });
}
