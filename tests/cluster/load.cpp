// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The load generator for chat.cpp and cluster.cpp: many clients, spread evenly over the ports, all
// of which hear everything. Each says something as soon as its last message has come back, but
// not more often than the chat allows.
//
//     load CLIENTS SECONDS PORT...
//
// Prints "begin" when all have been talking for a second; then, after SECONDS, the numbers of
// messages said and delivered since, and the median and the 99th percentile of the milliseconds
// until a message came back.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr std::chrono::milliseconds kPause{55};  // the chat allows 20 messages per second
constexpr std::size_t kText = 100;               // bytes of text in a message

struct Client {
    int fd = -1;
    std::string mark;   // part of all its own messages
    std::string inbox;  // an incomplete frame
    bool isHere = false;
    bool isWaiting = false;
    Clock::time_point saidAt;
};

struct Totals {
    long delivered = 0;
    std::vector<double> delays;  // milliseconds, one for each message said
};

void check(bool isFine, const char *what) {
    if (!isFine) throw std::runtime_error(what);
}

void sendAll(int fd, std::string_view bytes) {
    check(
        ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()),
        "a server does not take a message");
}

// A masked text frame of less than 64 KiB (RFC 6455 5.2); the masking key is zero.
std::string frame(const std::string &text) {
    std::string bytes = "\x81";
    if (text.size() < 126) {
        bytes += static_cast<char>(0x80 | text.size());
    } else {
        bytes += static_cast<char>(0x80 | 126);
        bytes += static_cast<char>(text.size() >> 8);
        bytes += static_cast<char>(text.size() & 0xFF);
    }
    return bytes.append(4, '\0') + text;
}

int connectedTo(int port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(::connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0,
          "no server at that port");
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

// Connects and says hello. The answer to the handshake ends with an empty line.
Client newcomer(int number, int port) {
    Client client;
    client.fd = connectedTo(port);
    client.mark = "\"key\":\"load " + std::to_string(number) + '"';
    sendAll(client.fd,
            "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    std::string head;
    for (char c = 0; head.find("\r\n\r\n") == std::string::npos; head += c)
        check(::recv(client.fd, &c, 1, 0) == 1, "a server does not answer");
    check(head.compare(0, 12, "HTTP/1.1 101") == 0, "a server refuses");
    sendAll(client.fd, frame(R"({"type":"hello","nick":")" + std::to_string(number) + "\"}"));
    return client;
}

void hear(Client &client, std::string_view payload, Totals &totals) {
    if (payload.find("\"type\":\"welcome\"") != std::string_view::npos) client.isHere = true;
    if (payload.find("\"type\":\"message\"") == std::string_view::npos) return;
    ++totals.delivered;
    if (!client.isWaiting ||
        payload.find(client.mark.substr(0, client.mark.size() - 1) + '.') == std::string_view::npos)
        return;
    client.isWaiting = false;
    totals.delays.push_back(Milliseconds(Clock::now() - client.saidAt).count());
}

// Returns the size of the frame that begins `bytes`, or 0 if it is incomplete; sets `begin` to
// where its payload begins.
std::size_t frameAt(std::string_view bytes, std::size_t &begin) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
    if (bytes.size() < 2) return 0;
    const std::size_t field = byte(1) == 126 ? 2 : byte(1) == 127 ? 8 : 0;
    begin = 2 + field;
    if (bytes.size() < begin) return 0;
    std::size_t length = field == 0 ? byte(1) : 0;
    for (std::size_t i = 0; i < field; ++i) length = length << 8 | byte(2 + i);
    return bytes.size() < begin + length ? 0 : begin + length;
}

void read(Client &client, Totals &totals) {
    static std::vector<char> buffer(256 * 1024);
    const ssize_t got = ::recv(client.fd, buffer.data(), buffer.size(), 0);
    check(got > 0, "a server has closed a connection");
    client.inbox.append(buffer.data(), static_cast<std::size_t>(got));
    std::string_view rest = client.inbox;
    for (std::size_t begin = 0, size; (size = frameAt(rest, begin)) > 0; rest.remove_prefix(size))
        hear(client, rest.substr(begin, size - begin), totals);
    client.inbox.erase(0, client.inbox.size() - rest.size());
}

void speak(Client &client, Clock::time_point now) {
    static long keys = 0;
    if (!client.isHere || client.isWaiting || now - client.saidAt < kPause) return;
    client.isWaiting = true;
    client.saidAt = now;
    const std::string key = client.mark.substr(0, client.mark.size() - 1) + '.' +
                            std::to_string(++keys) + '.' + std::to_string(::getpid()) + '"';
    sendAll(client.fd,
            frame(R"({"type":"say",)" + key + R"(,"text":")" + std::string(kText, 'x') + "\"}"));
}

// Lets all clients listen, and speak if `speaking`, until `end`.
void goOn(std::vector<Client> &clients, bool speaking, Clock::time_point end, Totals &totals) {
    std::vector<pollfd> entries;
    for (const Client &client : clients) entries.push_back({client.fd, POLLIN, 0});
    for (auto now = Clock::now(); now < end; now = Clock::now()) {
        if (speaking)
            for (Client &client : clients) speak(client, now);
        ::poll(entries.data(), entries.size(), 5);
        for (std::size_t i = 0; i < clients.size(); ++i)
            if (entries[i].revents != 0) read(clients[i], totals);
    }
}

double percentile(std::vector<double> &values, double part) {
    if (values.empty()) return 0;
    const auto place = static_cast<std::size_t>(part * static_cast<double>(values.size() - 1));
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(place);
    std::nth_element(values.begin(), at, values.end());
    return *at;
}

}  // namespace

int main(int argc, char **argv) try {
    check(argc > 3, "usage: load CLIENTS SECONDS PORT...");
    const int count = std::atoi(argv[1]);
    const std::chrono::seconds time(std::atoi(argv[2]));
    std::vector<Client> clients;
    Totals warmUp, totals;
    for (int i = 0; i < count; ++i) {
        clients.push_back(newcomer(i, std::atoi(argv[3 + i % (argc - 3)])));
        goOn(clients, false, Clock::now() + std::chrono::milliseconds(1), warmUp);
    }
    goOn(clients, true, Clock::now() + std::chrono::seconds(1), warmUp);
    std::puts("begin");
    std::fflush(stdout);
    goOn(clients, true, Clock::now() + time, totals);
    std::printf("%zu %ld %.1f %.1f\n", totals.delays.size(), totals.delivered,
                percentile(totals.delays, 0.5), percentile(totals.delays, 0.99));
} catch (const std::exception &error) {
    std::fprintf(stderr, "load: %s\n", error.what());
    return 1;
}
