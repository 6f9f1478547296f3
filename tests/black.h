// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Shared by the black-box tests: a server that records its hooks and lets a test replace each of
// them, and raw clients that talk to it over real sockets.
//
// Server and clients share one thread: while a client waits, the server takes turns. So every
// run is the same, and a wait that never ends fails instead of hanging.

#ifndef WS_TESTS_BLACK_H
#define WS_TESTS_BLACK_H

#include "../server.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace black {

using namespace std::chrono_literals;
using namespace std::string_literals;
using Clock = std::chrono::steady_clock;
using Strings = std::vector<std::string>;

#ifdef UNDER_VALGRIND
constexpr bool kUnderValgrind = true;
#else
constexpr bool kUnderValgrind = false;
#endif

// The longest wait before a test fails. valgrind and qemu make everything several times slower.
#if defined(UNDER_VALGRIND) || defined(UNDER_QEMU)
constexpr auto kPatience = 60s;
#else
constexpr auto kPatience = 5s;
#endif
constexpr auto kTurn = 2ms;  // the longest that one turn may wait

// Lets the server take turns until done(). Throws after kPatience.
template <class Done>
void pump(WSBaseServer &server, const char *what, Done done) {
    const auto end = Clock::now() + kPatience;
    while (!done()) {
        if (Clock::now() > end) throw std::runtime_error("timed out waiting for "s + what);
        server.turn(kTurn);
    }
}

inline bool has(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// The number of descriptors that this process has open.
inline int openDescriptors() {
    int count = 0;
    for (int fd = 0; fd < 1024; ++fd) count += ::fcntl(fd, F_GETFD) >= 0;
    return count;
}

inline std::string joined(const Strings &strings) {
    std::string all;
    for (const std::string &text : strings) all += (all.empty() ? "" : ", ") + text;
    return all;
}

// ----------------------------------------------------------------------------
// The server
// ----------------------------------------------------------------------------

struct User : WSBaseUser {
    User() { maxIdle = 0; }
    bool isIdle() const override {
        if (whenAsked) whenAsked();
        return saysIdle || WSBaseUser::isIdle();
    }

    bool saysIdle = false;
    std::function<void()> whenAsked;
};

struct Config : WSBaseConfig {
    Config() {
        address = "127.0.0.1";
        port = 0;
        debug = false;
    }
};

// Records the hooks that run and the lines that it logs. Echoes messages unless onProcess is set.
class Server : public WebSocketServer<User, Config> {
  public:
    using Change = std::function<void(Config &)>;
    explicit Server(const Change &change = {}) : WebSocketServer(changed(change)) { listen(); }

    Strings hooks;    // such as "preDisconnect 1 1000", "postDisconnect", "process 1: hello"
    Strings lines;    // from console()
    Strings reasons;  // from preDisconnect(), in order

    std::function<void(User &, WSMessage &)> onProcess, onPreSend, onPostSend;
    std::function<void(User &)> onPreConnect, onPostConnect, onPreDisconnect, onDrained;
    std::function<void()> onPostDisconnect, onPostShutdown, onTick;
    std::function<void(bool &)> onPreShutdown;
    std::function<void(const WSRequest &, WSResponse &)> onHttp;
    std::function<void(User &, WSDirection, std::string_view)>
        onTrace;  // set it before anybody comes

    // The connect and disconnect hooks in `hooks`.
    Strings connectHooks() const {
        Strings some;
        for (const std::string &hook : hooks)
            if (has(hook, "onnect")) some.push_back(hook);
        return some;
    }

    bool printed(std::string_view part) const {
        return std::any_of(lines.begin(), lines.end(), [&](auto &line) { return has(line, part); });
    }

    // The user with this id. Throws if there is none.
    User &user(std::uint64_t id) {
        for (User &one : users())
            if (one.id() == id) return one;
        throw std::runtime_error("there is no user " + std::to_string(id));
    }

    // Takes turns until the shutdown is complete.
    void takeLastTurns() {
        const auto end = Clock::now() + kPatience;
        while (turn(kTurn))
            if (Clock::now() > end) throw std::runtime_error("the shutdown never ends");
    }

  protected:
    void process(User &user, WSMessage &msg) override {
        note("process", user, ": " + shortened(msg.payload()));
        if (onProcess) onProcess(user, msg);
        else sendToUser(user, msg);
    }
    void preSend(User &user, WSMessage &msg) override {
        note("preSend", user, ": " + shortened(msg.payload()));
        if (onPreSend) onPreSend(user, msg);
    }
    void postSend(User &user, WSMessage &msg) override {
        note("postSend", user, ": " + shortened(msg.payload()));
        if (onPostSend) onPostSend(user, msg);
    }
    void drained(User &user) override {
        note("drained", user);
        if (onDrained) onDrained(user);
    }
    void preConnect(User &user, int) override {
        note("preConnect", user);
        if (onPreConnect) onPreConnect(user);
    }
    void postConnect(User &user, int) override {
        note("postConnect", user);
        if (onPostConnect) onPostConnect(user);
    }
    void preDisconnect(User &user, int) override {
        note("preDisconnect", user, ' ' + std::to_string(user.closeCode()));
        reasons.push_back(user.closeReason());
        if (onPreDisconnect) onPreDisconnect(user);
    }
    void postDisconnect() override {
        hooks.emplace_back("postDisconnect");
        if (onPostDisconnect) onPostDisconnect();
    }
    void preShutdown(bool &doShutdown) override {
        hooks.emplace_back("preShutdown");
        if (onPreShutdown) onPreShutdown(doShutdown);
    }
    void postShutdown() override {
        hooks.emplace_back("postShutdown");
        if (onPostShutdown) onPostShutdown();
    }
    void tick() override {
        hooks.emplace_back("tick");
        if (onTick) onTick();
    }
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        hooks.push_back("httpRequest " + request.path());
        if (onHttp) onHttp(request, response);
    }
    void console(WSLevel, std::string_view text) override { lines.emplace_back(text); }
    void trace(User &user, WSDirection direction, std::string_view bytes) override {
        if (onTrace) onTrace(user, direction, bytes);
        else WebSocketServer::trace(user, direction, bytes);
    }

  private:
    static Config changed(const Change &change) {
        Config config;
        if (change) change(config);
        return config;
    }
    static std::string shortened(const std::string &text) {
        return text.size() < 40 ? text : std::to_string(text.size()) + " bytes";
    }
    void note(const char *hook, const User &user, const std::string &more = {}) {
        hooks.push_back(hook + (' ' + std::to_string(user.id())) + more);
    }
};

// Runs a server in a thread of its own; the destructor stops it.
class Running {
  public:
    explicit Running(Server &server) : server_(server), end_(ended_.get_future()) {
        thread_ = std::thread([this] {
            server_.run();
            ended_.set_value();
        });
    }
    ~Running() {
        if (!waitForEnd(0s)) server_.stop();
        thread_.join();
    }
    Running(const Running &) = delete;
    Running &operator=(const Running &) = delete;

    // False if run() does not return in time.
    bool waitForEnd(std::chrono::seconds patience = kPatience) {
        return end_.wait_for(patience) == std::future_status::ready;
    }

  private:
    Server &server_;
    std::promise<void> ended_;
    std::future<void> end_;
    std::thread thread_;
};

// ----------------------------------------------------------------------------
// Frames, as a client sends them (RFC 6455 5.2)
// ----------------------------------------------------------------------------

enum Opcode : unsigned { kContinuation, kText, kBinary, kClose = 8, kPing, kPong };

constexpr unsigned kFin = 0x80, kMask = 0x80;
constexpr std::string_view kMaskingKey = "\x37\xfa\x21\x3d";  // RFC 6455 5.7

// The number in `size` bytes, most significant first.
inline std::string networkOrder(std::uint64_t number, unsigned size) {
    std::string bytes;
    for (unsigned i = size; i-- > 0;) bytes += static_cast<char>(number >> 8 * i);
    return bytes;
}

// A frame header with its masking key; `first` is the whole first byte.
inline std::string header(unsigned first, std::uint64_t length) {
    const unsigned size = length < 126 ? 0 : length < 65536 ? 2 : 8;
    const std::uint64_t second = size == 0 ? length : size == 2 ? 126 : 127;
    return networkOrder(first, 1) + networkOrder(kMask | second, 1) + networkOrder(length, size) +
           std::string(kMaskingKey);
}

inline std::string masked(std::string_view payload) {
    std::string bytes(payload);
    for (std::size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<char>(bytes[i] ^ kMaskingKey[i % 4]);
    return bytes;
}

// A frame; with `fin` 0 it is not the last of its message.
inline std::string frame(unsigned opcode, std::string_view payload, unsigned fin = kFin) {
    return header(fin | opcode, payload.size()) + masked(payload);
}

inline std::string closeFrame(int code, std::string_view reason = {}) {
    return frame(kClose, networkOrder(static_cast<std::uint64_t>(code), 2).append(reason));
}

// An opening handshake, with the sample key of RFC 6455 1.3.
inline std::string upgrade(const std::string &target = "/", const std::string &headers = {}) {
    return "GET " + target +
           " HTTP/1.1\r\n"
           "Host: localhost\r\n"
           "Upgrade: websocket\r\n"
           "Connection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
           "Sec-WebSocket-Version: 13\r\n" +
           headers + "\r\n";
}

// ----------------------------------------------------------------------------
// The clients
// ----------------------------------------------------------------------------

// An HTTP answer, read until the connection ends.
struct Answer {
    int status = 0;
    std::string head, body;
    std::string end;  // how the connection ended: "EOF" or "RST"

    // A header's value; empty if the header is missing or repeated.
    std::string header(std::string name) const {
        const auto lower = [](std::string mixed) {
            for (char &c : mixed) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
            return mixed;
        };
        name = "\r\n" + lower(std::move(name)) + ": ";
        const std::string all = lower(head);
        const std::size_t begin = all.find(name);
        if (begin == all.npos || all.find(name, begin + 1) != all.npos) return {};
        const std::size_t value = begin + name.size();
        return head.substr(value, head.find("\r\n", value) - value);
    }
};

// A TCP connection to a server. One in this thread takes turns while the client waits; one in
// another thread or process is known by its port alone.
class Client {
  public:
    explicit Client(WSBaseServer &server, int receiveBuffer = 0, const char *address = "127.0.0.1",
                    const char *from = nullptr)
        : Client(server.port(), receiveBuffer, address, from) {
        server_ = &server;
    }

    // Connects to a numeric IPv4 or IPv6 address, optionally from another IPv4 address of this
    // machine.
    explicit Client(int port, int receiveBuffer = 0, const char *address = "127.0.0.1",
                    const char *from = nullptr) {
        sockaddr_in in{};
        sockaddr_in6 in6{};
        const bool four = ::inet_pton(AF_INET, address, &in.sin_addr) == 1;
        if (!four) ::inet_pton(AF_INET6, address, &in6.sin6_addr);
        in.sin_family = AF_INET;
        in6.sin6_family = AF_INET6;
        in.sin_port = in6.sin6_port = htons(static_cast<in_port_t>(port));
        fd_ = ::socket(four ? AF_INET : AF_INET6, SOCK_STREAM, 0);
        if (receiveBuffer > 0) setOption(SOL_SOCKET, SO_RCVBUF, receiveBuffer);
        setOption(IPPROTO_TCP, TCP_NODELAY, 1);
        sockaddr_in source{};
        source.sin_family = AF_INET;
        if (from != nullptr) ::inet_pton(AF_INET, from, &source.sin_addr);
        if ((from != nullptr && ::bind(fd_, asAddress(source), sizeof source) != 0) ||
            (four ? ::connect(fd_, asAddress(in), sizeof in)
                  : ::connect(fd_, asAddress(in6), sizeof in6)) != 0) {
            const std::string why = std::strerror(errno);
            close();
            throw std::runtime_error("cannot connect: " + why);
        }
        ::fcntl(fd_, F_SETFL, O_NONBLOCK);
        ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
    }

    // Takes over a connected socket.
    struct Connected {
        int fd;
    };
    Client(WSBaseServer &server, Connected socket) : server_(&server), fd_(socket.fd) {
        ::fcntl(fd_, F_SETFL, O_NONBLOCK);
    }

    ~Client() { close(); }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;

    // Sends everything. Also receives while it waits: a client and a server that only send would
    // wait for each other.
    void send(std::string_view bytes) {
        wait("the server to read", [&] {
            const std::optional<std::size_t> sent = trySend(bytes);
            bytes.remove_prefix(sent.value_or(0));
            return bytes.empty() || !sent;
        });
    }

    // Sends what the kernel takes at once and returns its size, or nullopt if the connection is
    // gone; receive() then finds out how.
    std::optional<std::size_t> trySend(std::string_view bytes) {
        const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return std::nullopt;
        return static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    }

    // Sends the bytes and lets the server read them in a turn of their own.
    void step(std::string_view bytes) {
        send(bytes);
        server_->turn(end.empty() ? 20ms : 0ms);
    }

    void finish() { ::shutdown(fd_, SHUT_WR); }

    void close() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }

    void reset() {
        const linger atOnce{1, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &atOnce, sizeof atOnce);
        close();
    }

    // The bytes received but not yet taken; "EOF" or "RST" once the server has ended the
    // connection.
    std::string input, end;

    // Whether this side then stays open; ordinary clients close it.
    bool keepsOpen = false;

    // How many more bytes the client is willing to read.
    std::size_t appetite = std::string::npos;

    // Receives until done(). Throws after kPatience.
    template <class Done>
    void wait(const char *what, Done done) {
        const auto until = Clock::now() + kPatience;
        for (;;) {
            receive();
            if (done()) return;
            if (Clock::now() > until) throw std::runtime_error("timed out waiting for "s + what);
            takeTurn();
        }
    }

    // Takes a whole head, with its final empty line; "" if the connection ends first.
    std::string head() {
        wait("a head", [&] { return has(input, "\r\n\r\n") || !end.empty(); });
        const std::size_t size = input.find("\r\n\r\n");
        return size == input.npos ? std::string() : taken(size + 4);
    }

    // Takes a whole answer, and checks what holds for every one that is not a 101. An answer to
    // HEAD has a length but no body.
    Answer answer(bool toHead = false) {
        Answer all;
        all.head = head();
        if (all.head.size() > 12) all.status = std::stoi(all.head.substr(9, 3));
        wait("the end of the answer", [&] { return !end.empty(); });
        all.body = taken(input.size());
        all.end = end;
        CHECK(all.head.substr(0, 9) == "HTTP/1.1 ");
        CHECK(has(all.header("Connection"), "close"));
        CHECK(all.header("Date").size() == 29);
        CHECK(all.end == "EOF");
        const bool bodiless = toHead || all.status == 204 || all.status == 304;
        CHECK((!bodiless || all.body.empty()));
        if (!bodiless) CHECK(all.header("Content-Length") == std::to_string(all.body.size()));
        return all;
    }

    // The same, but returns only the status.
    int status() { return answer().status; }

    void receive() {
        static char buffer[256 * 1024];
        while (end.empty() && fd_ >= 0 && appetite > 0) {
            const ssize_t size = ::recv(fd_, buffer, std::min(sizeof buffer, appetite), 0);
            if (size > 0) input.append(buffer, static_cast<std::size_t>(size));
            else if (size == 0) end = "EOF";
            else if (errno == EAGAIN) return;
            else if (errno != EINTR) end = "RST";
            if (size > 0) appetite -= static_cast<std::size_t>(size);
        }
        if (!end.empty() && !keepsOpen) close();
    }

    std::string taken(std::size_t size) {
        std::string some = input.substr(0, size);
        input.erase(0, size);
        return some;
    }

  private:
    template <class Address>
    static const sockaddr *asAddress(const Address &address) {
        return reinterpret_cast<const sockaddr *>(&address);
    }

    void setOption(int level, int name, int value) {
        ::setsockopt(fd_, level, name, &value, sizeof value);
    }

    void takeTurn() {
        if (server_ != nullptr) {
            server_->turn(kTurn);
        } else {
            pollfd one{fd_, POLLIN, 0};
            ::poll(&one, 1, 10);
        }
    }

    WSBaseServer *server_ = nullptr;
    int fd_ = -1;
};

// A client that has completed its opening handshake and reads frames.
class Peer : public Client {
  public:
    template <class Where>  // a server or a port
    explicit Peer(Where &&where, const std::string &target = "/", const std::string &headers = {},
                  int receiveBuffer = 0)
        : Client(std::forward<Where>(where), receiveBuffer) {
        send(upgrade(target, headers));
        response = head();
        if (response.substr(0, 13) != "HTTP/1.1 101 ")
            throw std::runtime_error("the handshake failed: " + response);
    }

    std::string response;  // the head of the 101 answer

    struct Frame {
        unsigned opcode = 0;
        std::string payload;
    };

    // The next frame; nullopt if the connection ends first.
    std::optional<Frame> next() {
        std::size_t size = 0;
        wait("a frame", [&] { return (size = frameSize()) > 0 || !end.empty(); });
        if (size == 0) return std::nullopt;
        const std::string bytes = taken(size);
        // Our server never fragments a message and never sets a reserved bit.
        const auto first = static_cast<unsigned char>(bytes[0]);
        if ((first & 0xF0) != kFin) throw std::runtime_error("unexpected first byte of a frame");
        return Frame{first & 0xFU, bytes.substr(headerSize(bytes))};
    }

    // The next frame in words: "text hello", "pong", "close 1000" (without its reason); "EOF" or
    // "RST" at the end.
    std::string hear() {
        const std::optional<Frame> heard = next();
        if (!heard) return end;
        const std::string &payload = heard->payload;
        if (heard->opcode != kClose) return named(heard->opcode, payload);
        if (payload.empty()) return "close";
        return "close " + std::to_string(number(payload.substr(0, 2)));
    }

    // Everything up to the end, in words.
    Strings hearAll() {
        Strings all;
        do all.push_back(hear());
        while (all.back() != "EOF" && all.back() != "RST");
        return all;
    }

    // All frames, in words, until the server has answered everything sent so far.
    Strings hearUntilPong() {
        send(frame(kPing, "done?"));
        Strings all;
        for (;;) {
            all.push_back(hear());
            if (all.back() == "pong done?") break;
            if (all.back() == "EOF" || all.back() == "RST") return all;
        }
        all.pop_back();
        return all;
    }

  private:
    static std::string named(unsigned opcode, const std::string &payload) {
        const char *name = opcode == kText     ? "text"
                           : opcode == kBinary ? "binary"
                           : opcode == kPing   ? "ping"
                           : opcode == kPong   ? "pong"
                                               : "an unknown frame";
        return payload.empty() ? name : name + (' ' + payload);
    }

    static std::uint64_t number(std::string_view bytes) {
        std::uint64_t value = 0;
        for (const char byte : bytes) value = value << 8 | static_cast<unsigned char>(byte);
        return value;
    }

    static std::size_t headerSize(std::string_view bytes) {
        const auto second = static_cast<unsigned char>(bytes[1]);
        if ((second & kMask) != 0) throw std::runtime_error("the server masks a frame");
        return second < 126 ? 2 : second == 126 ? 4 : 10;
    }

    // The size of the first frame in the input; 0 while it is incomplete.
    std::size_t frameSize() const {
        if (input.size() < 2) return 0;
        const std::size_t start = headerSize(input);
        if (input.size() < start) return 0;
        const std::uint64_t length =
            start == 2 ? number(input.substr(1, 1)) : number(input.substr(2, start - 2));
        if ((start == 4 && length < 126) || (start == 10 && length < 65536))
            throw std::runtime_error("a frame's length is not minimal");
        return input.size() < start + length ? 0 : start + static_cast<std::size_t>(length);
    }
};

}  // namespace black

#endif
