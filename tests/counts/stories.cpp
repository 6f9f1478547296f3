// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What `make counts` counts: stories of a server and its clients, in one process and one thread,
// so that all runs are alike. The loop takes a turn once all the input for it has arrived.
// tests/counts/run runs this under callgrind, which counts the instructions inside the loop's
// turns and writes a dump for each story.
#include "../../server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {}  // namespace

// A clock in place of the C library's: each turn takes a millisecond. Under callgrind everything
// takes long, and what is counted must not depend on the time.
static long turns = 0;
extern "C" int clock_gettime(clockid_t, timespec *now) noexcept {
    *now = {turns / 1000, turns % 1000 * 1'000'000};
    return 0;
}

namespace {

enum class Answer { echo, json, broadcast };

struct CountedConfig : WSBaseConfig {
    CountedConfig() {
        address = "127.0.0.1";
        port = 0;
        debug = false;
        maxUsers = 2000;
        pingSeconds = 0;
    }
};

class Server : public WebSocketServer<WSBaseUser, CountedConfig> {
  public:
    explicit Server(Answer answer) : answer_(answer) { listen(); }
    void once() {
        ++turns;
        turn(std::chrono::milliseconds(0));
    }

  private:
    void process(WSBaseUser &user, WSMessage &msg) override {
        if (answer_ == Answer::broadcast) sendToAll(msg);
        else if (answer_ == Answer::json) sendToUser(user, msg.json());
        else sendToUser(user, msg);
    }
    Answer answer_;
};

void demand(bool holds, const char *what) {
    if (!holds) throw std::runtime_error(what);
}

// A client whose socket never blocks.
class Client {
  public:
    explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in where{};
        where.sin_family = AF_INET;
        where.sin_port = htons(static_cast<in_port_t>(port));
        where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int on = 1;
        demand(fd_ >= 0, "socket");
        ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        demand(::connect(fd_, reinterpret_cast<sockaddr *>(&where), sizeof where) == 0, "connect");
        demand(::fcntl(fd_, F_SETFL, O_NONBLOCK) == 0, "fcntl");
    }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;
    ~Client() { ::close(fd_); }

    void queue(const std::string &bytes) { unsent_ += bytes; }
    void expect(std::size_t bytes) { missing_ += bytes; }
    bool done() const { return unsent_.empty() && missing_ == 0; }

    // Sends and receives as much as the kernel allows.
    void pump() {
        const ssize_t sent = ::send(fd_, unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
        if (sent > 0) unsent_.erase(0, static_cast<std::size_t>(sent));
        static std::vector<char> bytes(1 << 20);
        while (missing_ > 0) {
            const ssize_t came = ::recv(fd_, bytes.data(), bytes.size(), 0);
            demand(came != 0, "the server closed a connection");
            if (came < 0) break;
            demand(static_cast<std::size_t>(came) <= missing_, "the server sent too much");
            missing_ -= static_cast<std::size_t>(came);
        }
    }

  private:
    int fd_;
    std::string unsent_;
    std::size_t missing_ = 0;  // bytes that the server has yet to send
};

using Clients = std::vector<std::unique_ptr<Client>>;

// Turns the loop until all clients have sent and received everything.
void settle(Server &server, Clients &clients) {
    for (bool done = false; !done;) {
        done = true;
        for (const auto &client : clients) {
            client->pump();
            done = done && client->done();
        }
        if (!done) server.once();
    }
}

constexpr std::string_view kRequest =
    "GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
constexpr std::size_t kResponseBytes = 129;  // a 101 with three header lines

std::string frame(int opcode, std::string_view payload) {
    const std::string key{'\x37', '\xfa', '\x21', '\x3d'};  // of the example in RFC 6455 5.7
    const std::size_t extended = payload.size() < 126 ? 0 : payload.size() < 65536 ? 2 : 8;
    std::string bytes{static_cast<char>(0x80 | opcode)};
    bytes += static_cast<char>(0x80 | (extended == 0   ? payload.size()
                                       : extended == 2 ? 126U
                                                       : 127U));
    for (std::size_t i = extended; i-- > 0;) bytes += static_cast<char>(payload.size() >> 8 * i);
    bytes += key;
    for (std::size_t i = 0; i < payload.size(); ++i)
        bytes += static_cast<char>(payload[i] ^ key[i % 4]);
    return bytes;
}

// The size of the server's frame, which has no masking key.
std::size_t answerBytes(std::size_t payload) {
    return payload + (payload < 126 ? 2 : payload < 65536 ? 4 : 10);
}

void join(Server &server, Clients &clients, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        clients.push_back(std::make_unique<Client>(server.port()));
        clients.back()->queue(std::string(kRequest));
        clients.back()->expect(kResponseBytes);
        server.once();
    }
    settle(server, clients);
}

// Counts the cost of `rounds` rounds, after three to warm up.
template <class Round>
void count(const char *name, int rounds, std::size_t unitsPerRound, Round &&round) {
    for (int i = 0; i < 3; ++i) round();
    CALLGRIND_ZERO_STATS;
    for (int i = 0; i < rounds; ++i) round();
    const std::string text =
        name + (" / " + std::to_string(static_cast<std::size_t>(rounds) * unitsPerRound));
    CALLGRIND_DUMP_STATS_AT(text.c_str());
    std::printf("%s\n", text.c_str());
}

struct Row {
    const char *name;
    Answer answer;
    std::size_t clients, inFlight, idle;
    int opcode;
    std::string payload;
    int rounds;
};

// Counts messages: in each round every client sends `inFlight` of them and gets the answers.
void countMessages(const Row &row) {
    Server server(row.answer);
    Clients idle, clients;
    join(server, idle, row.idle);
    join(server, clients, row.clients);
    std::string burst;
    for (std::size_t i = 0; i < row.inFlight; ++i) burst += frame(row.opcode, row.payload);
    const bool toAll = row.answer == Answer::broadcast;
    const std::size_t copies = toAll ? row.clients : 1;
    const auto round = [&] {
        for (const auto &client : clients) {
            client->queue(burst);
            client->expect(copies * row.inFlight * answerBytes(row.payload.size()));
        }
        settle(server, clients);
    };
    count(row.name, row.rounds, row.clients * copies * row.inFlight, round);
}

// Counts connections: opening handshake, one message, closing handshake.
void countLives() {
    Server server(Answer::echo);
    const std::string hello = frame(1, "Hello"), close = frame(8, "\x03\xe8");
    const auto round = [&] {
        Clients clients;
        join(server, clients, 10);
        for (const auto &client : clients) {
            client->queue(hello + close);
            client->expect(answerBytes(5) + answerBytes(2));
        }
        settle(server, clients);
        clients.clear();
        for (int i = 0; i < 3; ++i) server.once();
        demand(server.userCount() == 0, "a connection is left");
    };
    count("connect, 5 bytes, close", 20, 10, round);
}

std::string repeated(std::string_view text, std::size_t size) {
    std::string all;
    while (all.size() + text.size() <= size) all += text;
    return all;
}

}  // namespace

int main() try {
    const std::string greek =
        repeated("\xce\xb1\xce\xb2\xce\xb3 \xe2\x82\xac \xf0\x9f\x8c\x8d ", 4096);
    const std::string json = R"({"type":"say","to":["a","b"],"text":"Hello, world","n":12345})";
    const Row rows[] = {
        {"echo, 20 bytes", Answer::echo, 100, 1, 0, 1, std::string(20, 'x'), 50},
        {"echo, 20 bytes, 16 in flight", Answer::echo, 100, 16, 0, 1, std::string(20, 'x'), 10},
        {"echo, 20 bytes, among 1000 silent", Answer::echo, 100, 1, 1000, 1, std::string(20, 'x'),
         50},
        {"echo, 200 bytes", Answer::echo, 100, 1, 0, 1, std::string(200, 'x'), 50},
        {"echo, 4 KiB, not ASCII", Answer::echo, 10, 1, 0, 1, greek, 20},
        {"echo, 64 KiB binary", Answer::echo, 10, 1, 0, 2, std::string(65536, 'x'), 10},
        {"echo, 1 MiB binary", Answer::echo, 2, 1, 0, 2, std::string(1 << 20, 'x'), 5},
        {"JSON, parsed and written", Answer::json, 100, 1, 0, 1, json, 10},
        {"broadcast to 100, 64 bytes", Answer::broadcast, 100, 1, 0, 1, std::string(64, 'x'), 3},
    };
    for (const Row &row : rows) countMessages(row);
    countLives();
} catch (const std::exception &e) {
    std::fprintf(stderr, "counts: %s\n", e.what());
    return 1;
}
