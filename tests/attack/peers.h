// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Building blocks for attackers: the bytes of frames and requests, well or badly formed, and
// Peer, a connection that sends them and records what the server does. Peer::story() tells
// that in one line: "close 1002, EOF".

#ifndef WS_TESTS_ATTACK_PEERS_H
#define WS_TESTS_ATTACK_PEERS_H

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL  // macOS; main() ignores SIGPIPE
#define MSG_NOSIGNAL 0
#endif

namespace attack {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using namespace std::string_literals;
using namespace std::string_view_literals;

inline Clock::time_point after(double seconds) {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

inline void sleepFor(double seconds) { std::this_thread::sleep_for(Seconds(seconds)); }

// ----------------------------------------------------------------------------
// Frames (RFC 6455 5.2)
// ----------------------------------------------------------------------------

enum Opcode : unsigned { kContinuation, kText, kBinary, kClose = 8, kPing, kPong };

constexpr unsigned kFin = 0x80, kMask = 0x80;
constexpr std::string_view kMaskingKey = "\x37\xfa\x21\x3d";  // of RFC 6455 5.7

// `size` bytes, most significant first.
inline std::string networkOrder(std::uint64_t number, unsigned size) {
    std::string bytes;
    for (unsigned i = size; i-- > 0;) bytes += static_cast<char>(number >> 8 * i);
    return bytes;
}

// A header with its masking key. The length takes `size` more bytes (0, 2 or 8), whether or
// not that is the minimal encoding.
inline std::string headerOf(unsigned first, std::uint64_t length, unsigned size) {
    const std::uint64_t second = size == 0 ? length : size == 2 ? 126 : 127;
    return networkOrder(first, 1) + networkOrder(kMask | second, 1) + networkOrder(length, size) +
           std::string(kMaskingKey);
}

inline std::string header(unsigned first, std::uint64_t length) {
    return headerOf(first, length, length < 126 ? 0 : length < 65536 ? 2 : 8);
}

inline std::string masked(std::string_view payload) {
    std::string bytes(payload);
    for (std::size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<char>(bytes[i] ^ kMaskingKey[i % 4]);
    return bytes;
}

// `first` is the whole first byte.
inline std::string frameOf(unsigned first, std::string_view payload) {
    return header(first, payload.size()) + masked(payload);
}

inline std::string frame(unsigned opcode, std::string_view payload) {
    return frameOf(kFin | opcode, payload);
}

inline std::string unmasked(unsigned opcode, std::string_view payload) {
    return networkOrder(kFin | opcode, 1) + networkOrder(payload.size(), 1) + std::string(payload);
}

inline std::string closeFrame(unsigned code, std::string_view reason = {}) {
    return frame(kClose, networkOrder(code, 2).append(reason));
}

inline std::string repeated(std::string_view piece, std::size_t times) {
    std::string all;
    all.reserve(piece.size() * times);
    while (times-- > 0) all += piece;
    return all;
}

// ----------------------------------------------------------------------------
// Requests (RFC 6455 4.1)
// ----------------------------------------------------------------------------

// An opening handshake: the required lines except those that begin with `without`, then the
// `extra` lines, each with its line break.
inline std::string upgrade(std::string_view extra = {}, std::string_view without = "-",
                           std::string_view start = "GET / HTTP/1.1") {
    std::string head = std::string(start) + "\r\n";
    for (const std::string_view line :
         {"Host: localhost"sv, "Upgrade: websocket"sv, "Connection: Upgrade"sv,
          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="sv, "Sec-WebSocket-Version: 13"sv})
        if (line.substr(0, without.size()) != without) head.append(line).append("\r\n");
    return head.append(extra) + "\r\n";
}

// An opening handshake of `size` bytes, or as few as it can have.
inline std::string upgradeOfSize(std::size_t size) {
    const std::size_t least = upgrade("X: \r\n").size();
    return upgrade("X: " + std::string(size - std::min(size, least), 'x') + "\r\n");
}

// ----------------------------------------------------------------------------
// A connection
// ----------------------------------------------------------------------------

struct Target {
    sockaddr_storage address{};
    socklen_t size = 0;

    Target(const std::string &host, int port) {
        addrinfo hints{};
        hints.ai_socktype = SOCK_STREAM;
        addrinfo *list = nullptr;
        if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list) != 0)
            throw std::runtime_error("the address " + host + " does not resolve");
        std::memcpy(&address, list->ai_addr, list->ai_addrlen);
        size = list->ai_addrlen;
        ::freeaddrinfo(list);
    }
};

// A TCP connection that never blocks: move() sends and receives what it can.
class Peer {
  public:
    enum class End { open, eof, reset, left };

    // `receiveBuffer` is the size of the kernel's buffer in bytes; 0 keeps the default.
    explicit Peer(const Target &target, int receiveBuffer = 0) {
        fd_ = ::socket(target.address.ss_family, SOCK_STREAM, 0);
        if (fd_ < 0) throw std::runtime_error("no socket: "s + std::strerror(errno));
        if (receiveBuffer > 0) setOption(SOL_SOCKET, SO_RCVBUF, receiveBuffer);
        setOption(IPPROTO_TCP, TCP_NODELAY, 1);
        ::fcntl(fd_, F_SETFL, O_NONBLOCK);
        ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
        ::connect(fd_, reinterpret_cast<const sockaddr *>(&target.address), target.size);
        poll(POLLOUT, 5000);
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error == 0 && poll(POLLOUT, 0) == 0) error = ETIMEDOUT;
        if (error == 0) return;
        ::close(fd_);
        throw std::runtime_error("cannot connect: "s + std::strerror(error));
    }
    ~Peer() { leave(); }
    Peer(const Peer &) = delete;
    Peer &operator=(const Peer &) = delete;

    bool reads = true;
    bool answersPings = false;
    bool welcomed = false;  // the opening handshake is not part of the attack, nor of the story

    // What the server has done so far.
    std::string text;  // its HTTP answers, up to and including a 101
    bool upgraded = false;
    std::uint64_t messages = 0, messageBytes = 0, pings = 0, pongs = 0;
    std::optional<unsigned> closeCode;  // 0: a close without one
    bool malformed = false;             // it sent a frame that no server may send
    std::string lastMessage;            // its first few KiB
    End end = End::open;

    std::uint64_t sentBytes = 0;

    int fd() const { return fd_; }
    bool hasToSend() const { return !out_.empty() && end == End::open; }
    bool ended() const { return end != End::open; }
    bool told() const { return ended() || closeCode.has_value(); }  // the server is done with it

    // Sends what the kernel takes now; move() sends the rest.
    void send(std::string_view bytes) {
        if (out_.empty()) bytes.remove_prefix(sendSome(bytes));
        out_ += bytes;
    }

    // Sends what the kernel takes and returns how much that was.
    std::size_t sendSome(std::string_view bytes) {
        if (fd_ < 0 || bytes.empty()) return 0;
        const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent > 0) sentBytes += static_cast<std::uint64_t>(sent);
        return static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    }

    // What move() waits for.
    short events() const {
        return static_cast<short>((reads ? POLLIN : 0) | (hasToSend() ? POLLOUT : 0));
    }

    void move() {
        if (hasToSend()) out_.erase(0, sendSome(out_));
        if (reads) receive();
    }

    // Receives what has come, up to `most` bytes at a time and 1 MiB in all. With `most` 1,
    // receives one byte.
    void receive(std::size_t most = 64 * 1024) {
        static thread_local std::array<char, 64 * 1024> buffer;
        for (int i = 0; i < 16 && !ended(); ++i) {
            const ssize_t size = ::recv(fd_, buffer.data(), std::min(most, buffer.size()), 0);
            if (size == 0) end = End::eof;
            if (size < 0 && errno != EAGAIN && errno != EINTR) end = End::reset;
            if (size <= 0) return;
            heard({buffer.data(), static_cast<std::size_t>(size)});
            if (most == 1) return;
        }
    }

    // Waits for this socket alone; returns the events that are ready.
    int poll(short events, int milliseconds) const {
        pollfd entry{fd_, events, 0};
        return ::poll(&entry, 1, milliseconds) > 0 ? entry.revents : 0;
    }

    void finish() { ::shutdown(fd_, SHUT_WR); }

    void leave() {
        if (fd_ < 0) return;
        ::close(std::exchange(fd_, -1));
        if (end == End::open) end = End::left;
    }

    void reset() {
        const linger atOnce{1, 0};
        ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &atOnce, sizeof atOnce);
        leave();
    }

    // Whether the server has closed its socket, not just its sending side.
    bool isGone() const { return (poll(0, 0) & (POLLHUP | POLLERR)) != 0; }

    // What happened, in protocol order: "426, EOF", "echoes, close 1002, EOF".
    std::string story() const {
        std::string all = statuses();
        const auto add = [&](const std::string &what) { all += what + ", "; };
        if (messages > 0) add(messages == 1 ? "echo" : "echoes");
        if (pongs > 0) add(pongs == 1 ? "pong" : "pongs");
        if (malformed) add("a malformed frame");
        if (closeCode) add(*closeCode == 0 ? "close" : "close " + std::to_string(*closeCode));
        constexpr const char *kEnds[] = {"open", "EOF", "RST", "we left"};
        return all + kEnds[static_cast<int>(end)];
    }

  private:
    void setOption(int level, int name, int value) const {
        ::setsockopt(fd_, level, name, &value, sizeof value);
    }

    // The statuses of all answers: "426, ", or "426 50 times, ".
    std::string statuses() const {
        if (welcomed) return {};
        std::string all;
        int times = 0;
        for (std::size_t at = 0, next = 0; (at = text.find("HTTP/1.", at)) != text.npos;
             at = next) {
            const std::string status = text.substr(std::min(at + 9, text.size()), 3);
            next = std::min(text.find("HTTP/1.", at + 1), text.size());
            ++times;
            if (text.compare(std::min(next + 9, text.size()), 3, status) == 0) continue;
            all += status + (times > 1 ? ' ' + std::to_string(times) + " times" : "") + ", ";
            times = 0;
        }
        return all;
    }

    void heard(std::string_view bytes) {
        if (upgraded) return scanFrames(bytes);
        text += bytes;
        if (text.size() > 1024 * 1024) text.resize(1024 * 1024);
        const std::size_t size = text.find("\r\n\r\n");
        if (size == text.npos || text.substr(0, 12) != "HTTP/1.1 101") return;
        upgraded = true;
        const std::string frames = text.substr(size + 4);
        text.resize(size + 4);
        scanFrames(frames);
    }

    // A server's frames have a header of 2, 4 or 10 bytes and no masking key.
    void scanFrames(std::string_view bytes) {
        while (!bytes.empty()) {
            if (header_.size() < 2 || header_.size() < headerSize()) {
                header_ += bytes[0];
                bytes.remove_prefix(1);
                if (header_.size() >= 2 && header_.size() == headerSize()) beginFrame();
            } else {
                const auto size =
                    static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size()));
                std::string &kept = opcode() < kClose ? lastMessage : control_;
                if (kept.size() < 4096) kept += bytes.substr(0, size);
                bytes.remove_prefix(size);
                left_ -= size;
            }
            if (header_.size() >= 2 && header_.size() == headerSize() && left_ == 0) endFrame();
        }
    }

    unsigned headerByte(std::size_t i) const { return static_cast<unsigned char>(header_[i]); }
    unsigned opcode() const { return headerByte(0) & 0x0F; }
    std::size_t headerSize() const {
        const unsigned second = headerByte(1) & 0x7F;
        return second == 127 ? 10 : second == 126 ? 4 : 2;
    }

    void beginFrame() {
        left_ = headerByte(1) & 0x7F;
        if (header_.size() > 2) left_ = 0;
        for (std::size_t i = 2; i < header_.size(); ++i) left_ = left_ << 8 | headerByte(i);
        length_ = left_;
        if (opcode() >= kClose) control_.clear();
        else if (opcode() != kContinuation) lastMessage.clear();
        const bool known = opcode() <= kBinary || (opcode() >= kClose && opcode() <= kPong);
        if ((headerByte(0) & 0x70) != 0 || (headerByte(1) & kMask) != 0 || !known || closeCode)
            malformed = true;
    }

    void endFrame() {
        const bool fin = (headerByte(0) & kFin) != 0;
        if (opcode() < kClose) {
            messages += fin ? 1 : 0;
            messageBytes += length_;
        }
        if (opcode() == kPing) ++pings;
        if (opcode() == kPing && answersPings) send(frame(kPong, control_));
        if (opcode() == kPong) ++pongs;
        if (opcode() == kClose) {
            closeCode = 0;
            for (std::size_t i = 0; i < std::min<std::size_t>(control_.size(), 2); ++i)
                closeCode = *closeCode << 8 | static_cast<unsigned char>(control_[i]);
        }
        header_.clear();
    }

    int fd_ = -1;
    std::string out_;
    std::string header_, control_;  // of the incoming frame: header, payload if a control frame
    std::uint64_t left_ = 0, length_ = 0;
};

}  // namespace attack

#endif
