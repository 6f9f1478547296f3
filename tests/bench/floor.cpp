// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The floor of `make bench`: what the kernel and the bytes of the frames cost a server that has one
// thread, and nothing else. It does the jobs of common.h with poll(), recv() and send() alone, and
// unmasks payloads where they lie. In a broadcast, it joins the frames of a turn, as ours does.
//
// Left out: all checks, limits, deadlines and queues. Every request gets the answer to the key of
// RFC 6455 1.3, which our client always sends. Every frame counts as a message, and is sent back
// even if it is a Close. A connection that does not read blocks all others. Buffers are never freed.
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr std::string_view kAnswer =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
constexpr std::size_t kKeyBytes = 4, kMostHeader = 14;
constexpr std::size_t kMostAtOnce = 256 << 10;
constexpr std::size_t kBuffer = kMostHeader + bench::kMaxMessageBytes + kMostAtOnce;

struct Input {  // of a descriptor
    std::unique_ptr<char[]> bytes;
    std::size_t size = 0;      // bytes of an incomplete frame
    std::size_t unmasked = 0;  // bytes of its payload
};

std::vector<Input> inputs(bench::kMaxConnections + 100);  // by descriptor
std::string toAll;                                        // this turn's frames, in a broadcast

void send(int fd, std::string_view bytes) { ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

// Octet i is XORed with octet i MOD 4 of the key. `to` may be `from`, or before it.
void unmask(const char *from, char *to, std::size_t count, std::uint32_t key) {
    using Four = std::uint32_t __attribute__((vector_size(16)));
    std::size_t i = 0;
    const auto xorWith = [&](auto mask) {
        for (auto word = mask; i + sizeof mask <= count; i += sizeof mask) {
            std::memcpy(&word, from + i, sizeof word);
            word ^= mask;
            std::memcpy(to + i, &word, sizeof word);
        }
    };
    xorWith(Four{key, key, key, key});
    xorWith(key);
    std::uint32_t last = 0;
    std::memcpy(&last, from + i, count - i);
    last ^= key;
    std::memcpy(to + i, &last, count - i);
}

// The answer is known to have 126 to 65535 bytes.
std::string jsonFrame(char first, std::string_view text) {
    const std::string json = bench::jsonAnswer(text);
    const auto high = static_cast<char>(json.size() >> 8), low = static_cast<char>(json.size());
    return std::string{first, 126, high, low} + json;
}

// Turns the whole frames at the beginning into a server's, which have no masking key, and sends
// them. The first header moves up by the size of the key, so that its payload, however large, stays
// in place and is unmasked as it arrives; later frames move down behind it. False after a Close.
bool answer(bench::Job job, int fd, Input &in) {
    char *const bytes = in.bytes.get();
    std::size_t used = 0, end = kKeyBytes;
    bool closed = false;
    while (in.size >= used + 2) {
        char *const from = bytes + used, *const to = bytes + end;
        std::size_t length = from[1] & 0x7F;
        const std::size_t header = length < 126 ? 2 : length == 126 ? 4 : 10;
        if (in.size < used + header + kKeyBytes) break;
        if (header > 2) length = 0;
        for (std::size_t i = 2; i < header; ++i)
            length = length << 8 | static_cast<unsigned char>(from[i]);
        std::uint32_t key = 0;
        std::memcpy(&key, from + header, kKeyBytes);
        const char *const payload = from + header + kKeyBytes;
        const std::size_t here = in.size - used - header - kKeyBytes;
        if (here < length) {
            const std::size_t part = used == 0 ? here - here % kKeyBytes - in.unmasked : 0;
            unmask(payload + in.unmasked, bytes + kKeyBytes + header + in.unmasked, part, key);
            in.unmasked += part;
            break;
        }
        std::memmove(to, from, header);
        to[1] = static_cast<char>(to[1] & 0x7F);
        unmask(payload + in.unmasked, to + header + in.unmasked, length - in.unmasked, key);
        in.unmasked = 0;
        used += header + kKeyBytes + length;
        closed = (to[0] & 0x0F) == 8;
        if (job == bench::Job::broadcast) toAll.append(to, header + length);
        else if (job == bench::Job::json) send(fd, jsonFrame(to[0], {to + header, length}));
        else end += header + length;
    }
    if (end > kKeyBytes) send(fd, {bytes + kKeyBytes, end - kKeyBytes});
    in.size -= used;
    if (used > 0) std::memmove(bytes, bytes + used, in.size);
    return !closed;
}

bool serve(bench::Job job, int fd) {
    Input &in = inputs[static_cast<std::size_t>(fd)];
    if (!in.bytes) in.bytes.reset(new char[kBuffer]);  // pages that are not used cost nothing
    const ssize_t received = ::recv(fd, in.bytes.get() + in.size, kMostAtOnce, 0);
    if (received <= 0) return false;
    if (in.size == 0 && in.bytes[0] == 'G') return send(fd, kAnswer), true;  // no frame: a GET
    in.size += static_cast<std::size_t>(received);
    return answer(job, fd, in);
}

int listen(unsigned short port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0), on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // accepted sockets inherit it
    sockaddr_in address{};
    socklen_t length = sizeof address;
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto *const where = reinterpret_cast<sockaddr *>(&address);
    if (::bind(fd, where, length) != 0 || ::listen(fd, bench::kBacklog) != 0 ||
        ::getsockname(fd, where, &length) != 0)
        throw std::runtime_error(std::strerror(errno));
    bench::announce(ntohs(address.sin_port), "floor");
    return fd;
}

}  // namespace

int main(int argc, char **argv) try {
    const bench::Options options = bench::start(argc, argv);
    std::vector<pollfd> entries{{listen(options.port), POLLIN, 0}};
    for (;;) {
        ::poll(entries.data(), entries.size(), -1);
        for (std::size_t i = entries.size(); i-- > 0;) {
            if (entries[i].revents == 0) continue;
            if (i == 0) {
                const int fd = ::accept(entries[0].fd, nullptr, nullptr);
                Input &in = inputs.at(static_cast<std::size_t>(fd));
                in.size = in.unmasked = 0;  // the descriptor's last owner may have left in a frame
                entries.push_back({fd, POLLIN, 0});
            } else if (!serve(options.job, entries[i].fd)) {
                ::close(entries[i].fd);
                entries[i] = entries.back();
                entries.pop_back();
            }
        }
        for (std::size_t i = 1; i < entries.size() && !toAll.empty(); ++i)
            send(entries[i].fd, toAll);
        toAll.clear();
    }
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
