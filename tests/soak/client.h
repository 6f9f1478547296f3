// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A client of `make soak`, without a habit: a socket that never blocks, the opening
// handshake, frames. It always waits for something, and can say for what. The classes of
// habits.h derive from it.
//
// The loop in soak.cpp asks each client which events it wants, and when to wake it.

#ifndef WS_TESTS_SOAK_CLIENT_H
#define WS_TESTS_SOAK_CLIENT_H

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace soak {

using namespace std::chrono_literals;
using namespace std::string_literals;
using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

// A client that waits for longer than this waits in vain, however slow the machine is.
constexpr auto kPatience = 30s;

constexpr std::size_t kMaxMessage = 1024 * 1024;

// What all clients share: the server's port, the time, and random numbers.
class World {
  public:
    World(int thePort, std::uint64_t seed) : port(thePort), generator_(seed) {
        noise_.resize(2 * kMaxMessage);
        for (char &c : noise_) c = static_cast<char>('a' + below(26));
    }

    const int port;
    Time now = Clock::now();
    bool closing = false;                           // long-lived clients must leave
    std::size_t stillComing = 0, stillSinging = 0;  // singers

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(generator_() % end); }
    std::size_t between(std::size_t low, std::size_t high) { return low + below(high - low + 1); }
    bool perhaps() { return below(2) == 0; }
    std::chrono::milliseconds moment(std::size_t low, std::size_t high) {
        return std::chrono::milliseconds(between(low, high));
    }

    // A random text of this size.
    std::string_view text(std::size_t size) {
        return std::string_view(noise_).substr(below(noise_.size() - size), size);
    }

  private:
    std::mt19937_64 generator_;
    std::string noise_;
};

enum Opcode : unsigned { kContinuation, kText, kBinary, kClose = 8, kPing, kPong };
constexpr unsigned kFin = 0x80, kMask = 0x80;

// A number as `size` bytes, most significant first; and back.
inline std::string networkOrder(std::uint64_t number, unsigned size) {
    std::string bytes;
    for (unsigned i = size; i-- > 0;) bytes += static_cast<char>(number >> 8 * i);
    return bytes;
}

inline std::uint64_t fromNetworkOrder(std::string_view bytes) {
    std::uint64_t number = 0;
    for (const char byte : bytes) number = number << 8 | static_cast<unsigned char>(byte);
    return number;
}

// A frame as a client sends it (RFC 6455 5.2); `first` is its whole first byte.
inline std::string frame(unsigned first, std::string_view payload, std::uint32_t key) {
    const std::uint64_t length = payload.size();
    const unsigned size = length < 126 ? 0 : length < 65536 ? 2 : 8;
    const std::uint64_t second = size == 0 ? length : size == 2 ? 126 : 127;
    const std::string mask = networkOrder(key, 4);
    std::string bytes = networkOrder(first, 1) + networkOrder(kMask | second, 1) +
                        networkOrder(length, size) + mask;
    const std::size_t start = bytes.size();
    bytes += payload;
    for (std::size_t i = 0; i < length; ++i)
        bytes[start + i] = static_cast<char>(bytes[start + i] ^ mask[i % 4]);
    return bytes;
}

inline std::string upgrade(const std::string &path, const char *version = "13") {
    return "GET " + path +
           " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: " +
           version + "\r\n\r\n";
}

class Client {
  public:
    explicit Client(World &world) : world_(world) { expect("the connection"); }
    virtual ~Client() { shut(); }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;

    // Starts to connect.
    void begin(int receiveBuffer);

    // --- for the loop --------------------------------------------------------------

    bool over() const { return fd_ < 0; }
    const std::string &complaint() const { return complaint_; }
    const std::string &waitsFor() const { return waitsFor_; }
    pollfd wanted() const {
        const bool writes = !connected_ || sent_ < out_.size();
        return {fd_, static_cast<short>((reads_ ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0};
    }
    Time wakesAt() const { return std::min(alarm_, deadline_); }
    void serve(short events);
    void wake();

    std::uint64_t messagesSent = 0, messagesHeard = 0;

  protected:
    // --- events, for a habit to override -----------------------------------------------

    virtual void connected() { send(upgrade("/")); }  // TCP is connected
    virtual void opened() {}                          // the 101 has come
    virtual void heard(std::string_view payload, bool binary) {
        (void)binary;
        complain("heard an unexpected message: " + std::string(payload.substr(0, 40)));
    }
    virtual void ponged(std::string_view payload) {
        complain("heard an unexpected pong: " + std::string(payload));
    }
    virtual void alarmed() {}

    // --- actions -----------------------------------------------------------------------

    void send(std::string_view bytes) { out_ += bytes; }
    void sendFrame(unsigned first, std::string_view payload) {
        send(frame(first, payload, static_cast<std::uint32_t>(world_.below(1ULL << 32))));
    }
    void sendText(std::string_view text) {
        sendFrame(kFin | kText, text);
        ++messagesSent;
    }
    void wakeIn(std::chrono::milliseconds time) { alarm_ = world_.now + time; }

    // Sets what the client waits for now; if that does not come in time, it complains.
    void expect(std::string what) {
        waitsFor_ = std::move(what);
        deadline_ = world_.now + kPatience;
    }

    // Set the only correct end of the connection: a Close with this code (0: without a code),
    // then EOF; an HTTP answer with this status, then EOF; or any end at all.
    void expectClose(int code) {
        closeCode_ = code;
        expect("a Close with code " + std::to_string(code));
    }
    void expectStatus(int status) {
        status_ = status;
        expect("status " + std::to_string(status));
    }
    void expectAnyEnd() {
        anyEnd_ = true;
        expect("the end of the connection");
    }
    void leave(int code) {
        sendFrame(kFin | kClose, networkOrder(static_cast<std::uint64_t>(code), 2));
        closeSent_ = true;
        expectClose(code);
    }

    void complain(const std::string &what) {
        if (complaint_.empty()) complaint_ = what + ", while waiting for " + waitsFor_;
        shut();
    }
    void shut() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }
    void reset() {
        const linger atOnce{1, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &atOnce, sizeof atOnce);
        shut();
    }

    World &world_;
    bool reads_ = true;
    bool closeSent_ = false;        // a habit has sent a Close: do not answer the server's
    bool finishes_ = false;         // shuts down its side when all is sent
    std::size_t stride_ = 1 << 18;  // sends at most this much at a time

  private:
    void flush();
    void receive();
    void read();
    std::size_t frameSize(std::string_view bytes) const;
    void take(std::string_view bytes);
    void closed(std::string_view payload);
    void ended(bool byReset);
    std::string wrongAnswer() const;

    int fd_ = -1;
    bool connected_ = false, upgraded_ = false, closeHeard_ = false, anyEnd_ = false;
    int status_ = 0, closeCode_ = -1;
    std::string in_, out_;
    std::size_t sent_ = 0;  // of out_
    Time alarm_ = Time::max(), deadline_ = Time::max();
    std::string waitsFor_, complaint_;
};

inline void Client::begin(int receiveBuffer) {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (fd_ < 0) throw std::runtime_error("no socket: "s + std::strerror(errno));
    ::fcntl(fd_, F_SETFL, O_NONBLOCK);
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (receiveBuffer > 0)
        ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receiveBuffer, sizeof receiveBuffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(world_.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0 &&
        errno != EINPROGRESS)
        complain("cannot connect: "s + std::strerror(errno));
}

inline void Client::serve(short events) {
    if (!connected_ && events != 0) {
        connected_ = true;
        expect("the answer to its request");
        connected();
    }
    if (!over() && (events & POLLOUT) != 0) flush();
    if (!over() && (events & (POLLIN | POLLHUP | POLLERR)) != 0) receive();
}

inline void Client::wake() {
    if (world_.now >= deadline_) {
        complain("waited in vain");
    } else if (world_.now >= alarm_) {
        alarm_ = Time::max();
        alarmed();
    }
}

// If sending fails, drops the rest: receive() then learns how the connection ended.
inline void Client::flush() {
    const std::size_t size = std::min(out_.size() - sent_, stride_);
    const ssize_t sent = size == 0 ? 0 : ::send(fd_, out_.data() + sent_, size, 0);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
    sent_ = sent < 0 ? out_.size() : sent_ + static_cast<std::size_t>(sent);
    if (sent_ < out_.size()) return;
    out_.clear();
    sent_ = 0;
    if (finishes_) ::shutdown(fd_, SHUT_WR);
}

inline void Client::receive() {
    if (!reads_) return ended(true);  // without POLLIN, poll() reports nothing but the end
    static char buffer[256 * 1024];
    const ssize_t size = ::recv(fd_, buffer, sizeof buffer, 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return ended(size < 0);
    in_.append(buffer, static_cast<std::size_t>(size));
    read();
}

inline void Client::read() {
    if (!upgraded_) {
        const std::size_t head = in_.find("\r\n\r\n");
        if (head == in_.npos || in_.compare(0, 12, "HTTP/1.1 101") != 0) return;
        in_.erase(0, head + 4);
        upgraded_ = true;
        opened();
    }
    std::size_t start = 0;
    while (!over()) {
        const std::string_view rest = std::string_view(in_).substr(start);
        const std::size_t size = frameSize(rest);
        if (size == 0) break;
        start += size;
        take(rest.substr(0, size));
    }
    in_.erase(0, start);
}

// The size of the first frame; 0 while it is incomplete. Servers do not mask frames.
inline std::size_t Client::frameSize(std::string_view bytes) const {
    if (bytes.size() < 2) return 0;
    const auto second = static_cast<unsigned char>(bytes[1]);
    const std::size_t size = second < 126 ? 0 : second == 126 ? 2 : 8;
    if (bytes.size() < 2 + size) return 0;
    const std::uint64_t length = size == 0 ? second : fromNetworkOrder(bytes.substr(2, size));
    return bytes.size() < 2 + size + length ? 0 : 2 + size + static_cast<std::size_t>(length);
}

// Handles a whole frame.
inline void Client::take(std::string_view bytes) {
    const auto second = static_cast<unsigned char>(bytes[1]);
    const std::string_view payload = bytes.substr(second < 126 ? 2 : second == 126 ? 4 : 10);
    const auto first = static_cast<unsigned char>(bytes[0]);
    if (closeHeard_) return complain("heard a frame after the Close");
    switch (first) {
    case kFin | kText:
    case kFin | kBinary: ++messagesHeard; return heard(payload, first == (kFin | kBinary));
    case kFin | kClose: return closed(payload);
    case kFin | kPing: return sendFrame(kFin | kPong, payload);
    case kFin | kPong: return ponged(payload);
    default: return complain("heard a frame that begins with " + std::to_string(first));
    }
}

inline void Client::closed(std::string_view payload) {
    const int code = static_cast<int>(fromNetworkOrder(payload.substr(0, 2)));
    if (!anyEnd_ && code != closeCode_)
        return complain("heard a Close with code " + std::to_string(code) + " (" +
                        std::string(payload.substr(std::min<std::size_t>(2, payload.size()))) +
                        ")");
    closeHeard_ = true;
    if (!closeSent_) sendFrame(kFin | kClose, payload);
    expect("the end of the connection");
}

inline void Client::ended(bool byReset) {
    const char *how = byReset ? "the connection was reset" : "the connection ended";
    const std::string wrong = status_ != 0 ? wrongAnswer() : "";
    if (anyEnd_) shut();
    else if (byReset || (status_ == 0 && !closeHeard_)) complain(how);
    else if (!wrong.empty()) complain(wrong);
    else shut();
}

// What is wrong with the HTTP answer; empty if nothing is.
inline std::string Client::wrongAnswer() const {
    if (in_.compare(0, 13, "HTTP/1.1 " + std::to_string(status_) + ' ') != 0)
        return "got the answer \"" + in_.substr(0, in_.find('\r')) + '"';
    const std::size_t head = in_.find("\r\n\r\n"), length = in_.find("Content-Length: ");
    if (head == in_.npos || length > head) return "got an answer without a length";
    const std::size_t size = std::stoul(in_.substr(length + 16));
    return in_.size() == head + 4 + size ? "" : "got an answer of the wrong length";
}

}  // namespace soak

#endif
