// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A kernel in memory: sockets, the wake pipe, poll() and the clock, for one server at a
// time. The linker sends the server's system calls here (--wrap). The fuzzer's input says,
// event by event, what peers do, which calls fail or come short, and how time passes: see
// Kernel::event().
//
// It is stricter than a real kernel: it never reuses descriptors, so it catches any use of a
// closed one, and the server may neither wait forever nor loop without waiting. Descriptors
// are only left out of poll() while the listeners rest.

#ifndef WS_TESTS_FUZZ_KERNEL_H
#define WS_TESTS_FUZZ_KERNEL_H

#include "fuzz.h"

#include <functional>

struct Socket {
    enum Kind { listener, stream, pipeEnd } kind = stream;
    int family = AF_INET;
    bool isOpen = false, wasAccepted = false;
    std::string sent;    // all that the peer has sent
    std::string input;   // what the server has not read of it yet
    std::string output;  // all that the server has written
    bool inputEnded = false, outputEnded = false;
    bool reset = false, resetSeen = false;
    std::size_t window = kUnlimited;  // how much more output the peer takes

    static constexpr std::size_t kUnlimited = std::size_t(-1);
};

class Kernel {
  public:
    // The calls that can be made to fail, as event() numbers them.
    enum Call {
        pollCall,
        recvCall,
        sendCall,
        acceptCall,
        socketCall,
        bindCall,
        listenCall,
        fcntlCall,
        pipeCall,
        shutdownCall,
        readCall,
        writeCall,
        resolveCall,
        kCalls
    };

    explicit Kernel(Input &input) : input_(input) { current = this; }
    ~Kernel() { current = nullptr; }
    Kernel(const Kernel &) = delete;
    Kernel &operator=(const Kernel &) = delete;

    static inline Kernel *current = nullptr;  // null: calls go to the real kernel
    static bool owns(int fd) { return current != nullptr && (fd < 0 || fd >= kFirst); }

    std::function<void()> stop;            // asks the server to stop, as a thread would
    std::function<void(unsigned)> action;  // tells the next hook what to do
    std::function<void()> inputOver;       // called when no more events will come,
    std::function<void()> calm;            // and when the server has nothing left to do
    double shutdownSeconds = 0;            // how long the shutdown may take after that
    Microseconds lookCosts = 0;            // how long reading the clock takes
    void setUp();                          // reads the faults that the server's start meets
    bool over() const { return over_; }

    const std::vector<int> &peers() const { return peers_; }
    const Socket &at(int fd) const;
    void checkClosed() const;  // that nothing is left open

    // The system calls. One that returns -1 has set errno.
    int poll(pollfd *fds, std::size_t count, int timeout);
    ssize_t receive(int fd, char *bytes, std::size_t size);
    ssize_t send(int fd, const iovec *pieces, std::size_t count, int flags);
    int accept(int listener, sockaddr *address, socklen_t *size);
    int open(Call call, Socket::Kind kind, int family);
    int close(int fd);
    int shutdown(int fd);
    int pipe(int *ends);
    ssize_t read(int fd, char *bytes, std::size_t size);
    ssize_t write(int fd, const char *bytes, std::size_t size);
    int call(Call call, int fd);  // a call that does nothing
    bool fails(Call call);
    void tell(timespec *time);

  private:
    static constexpr int kFirst = 1'000'000;  // above all real descriptors
    static constexpr std::size_t kMostPeers = 12, kMostInput = 64 * 1024;
    static constexpr Microseconds kMillisecond = 1000, kRest = 100 * kMillisecond;

    Socket &use(int fd);
    int make(Socket::Kind kind, int family, bool isOpen);
    void happen();
    bool event();
    void fault();
    void happenTo(Socket &peer, unsigned letter);
    void frame(Socket &peer, unsigned first, std::string_view payload);
    void arrive(Socket &peer, std::string_view bytes);
    void end(int found, int timeout);
    void checkPolled(const pollfd *fds, std::size_t count) const;
    int look(pollfd *fds, std::size_t count) const;
    int ready(const Socket &socket) const;

    Input &input_;
    std::vector<Socket> sockets_;
    std::vector<int> peers_, backlog_;
    std::array<int, kCalls> errors_{};      // errno of the next call of each kind; 0: it succeeds
    std::size_t cut_ = Socket::kUnlimited;  // recv() returns at most this much
    Microseconds now_ = 1'000'000'000;
    Microseconds restsUntil_ = 0;  // when the listeners must be polled again
    bool over_ = false, stopped_ = false;
    Microseconds overSince_ = 0, stoppedSince_ = 0;
    int turnsSince_ = 0;
};

// --- events -------------------------------------------------------------------------------

// The handshake of RFC 6455 1.2, with more of what hooks can read.
constexpr std::string_view kHandshake =
    "GET /chat?room=1 HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n"
    "Connection: keep-alive, Upgrade\r\nOrigin: http://a.example\r\nCookie: id=1\r\n"
    "Sec-WebSocket-Protocol: v1, v2\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n";
constexpr std::string_view kPlainGet = "GET /page HTTP/1.1\r\nHost: a.example\r\n\r\n";

// Events are letters, so that seeds are readable; only the low four bits count, so that every
// byte is an event. A space is a 'p'.
constexpr unsigned letter(char c) { return static_cast<unsigned>(c) & 0xF; }

inline void Kernel::setUp() {
    for (Input ahead = input_; (ahead.byte() & 0xF) == letter('i'); ahead = input_) event();
}

inline void Kernel::happen() {
    while (!input_.empty())
        if (!event()) return;
}

// False if poll() is to return, so that the server has its turn.
inline bool Kernel::event() {
    const unsigned what = input_.byte() & 0xF;
    switch (what) {
    case letter('p'): return false;
    case letter('q'): stop(); break;
    case letter('c'):  // a peer connects
        if (peers_.size() == kMostPeers) break;
        peers_.push_back(make(Socket::stream, peers_.size() % 2 ? AF_INET6 : AF_INET, false));
        backlog_.push_back(peers_.back());
        break;
    case letter('t'):  // t TIME: time passes
        now_ += 40 * kMillisecond * input_.byte();
        break;
    case letter('i'): fault(); break;                // i FAULT: a call fails
    case letter('k'): action(input_.byte()); break;  // k ACTION: for the next hook
    case letter('z'):                                // z SIZE: recv() returns at most that
        cut_ = input_.byte();
        if (cut_ == 0) cut_ = Socket::kUnlimited;
        break;
    default:
        if (peers_.empty()) break;
        happenTo(use(peers_[(input_.byte() & 0xF) % peers_.size()]), what);
    }
    return true;
}

// i FAULT: the low four bits choose a call, which fails once with the error that the high four
// bits choose.
inline void Kernel::fault() {
    constexpr std::array<int, 16> kErrors{
        EINTR,        EAGAIN,        ECONNRESET, EMFILE,    ENOBUFS, ENOMEM, EADDRINUSE, EPIPE,
        ECONNABORTED, EADDRNOTAVAIL, ENFILE,     ETIMEDOUT, EPROTO,  EINVAL, EACCES,     ENOTCONN};
    const unsigned what = input_.byte();
    errors_[(what & 0xF) % kCalls] = kErrors[what >> 4];
}

// Events of one peer: a letter, a byte that chooses the peer (both read already), arguments.
inline void Kernel::happenTo(Socket &peer, unsigned what) {
    switch (what) {
    case letter('h'): arrive(peer, kHandshake); break;
    case letter('l'): arrive(peer, kPlainGet); break;
    case letter('e'): peer.inputEnded = true; break;
    case letter('r'): peer.reset = true; break;
    case letter('w'):  // w PEER SIZE: the peer takes that much output; 255: all
        peer.window = input_.byte();
        if (peer.window == 255) peer.window = Socket::kUnlimited;
        break;
    case letter('f'): {  // f PEER FIRST LENGTH PAYLOAD: a frame, by its first byte
        const unsigned first = input_.byte(), length = input_.byte();
        frame(peer, first, input_.bytes(length));
        break;
    }
    case letter('m'):  // m PEER SIZE: a binary message of 20 times that size
        frame(peer, 0x82, std::string(std::size_t{20} * input_.byte(), 'm'));
        break;
    case letter('n'):  // n PEER: a clean close
        frame(peer, 0x88, "\x03\xE8");
        peer.inputEnded = true;
        break;
    default: arrive(peer, input_.bytes(input_.byte()));  // o PEER LENGTH BYTES: any bytes
    }
}

// A client's frame. It is masked here, so that seeds are readable.
inline void Kernel::frame(Socket &peer, unsigned first, std::string_view payload) {
    constexpr std::string_view kKey = "\x37\xFA\x21\x3D";
    std::string bytes{static_cast<char>(first)};
    const std::size_t size = payload.size();
    bytes += static_cast<char>(0x80 | (size < 126 ? size : 126));
    if (size >= 126) bytes.append({static_cast<char>(size >> 8), static_cast<char>(size)});
    bytes += kKey;
    for (std::size_t i = 0; i < size; ++i)
        bytes += static_cast<char>(payload[i] ^ kKey[i % kKey.size()]);
    arrive(peer, bytes);
}

inline void Kernel::arrive(Socket &peer, std::string_view bytes) {
    if (peer.inputEnded || peer.reset || peer.sent.size() > kMostInput) return;
    peer.sent += bytes;
    peer.input += bytes;
}

// The input is used up. The server gets some time to do what is left, and when it waits, it is
// asked to stop; nothing else happens.
inline void Kernel::end(int found, int timeout) {
    constexpr Microseconds kSomeTime = 1500 * kMillisecond;
    constexpr int kManyTurns = 20'000;  // kMostInput of the smallest frames, read bit by bit
    if (!over_) {
        over_ = true;
        errors_ = {};
        cut_ = Socket::kUnlimited;
        overSince_ = now_;
        inputOver();
    } else if (!stopped_ && found == 0 &&
               (timeout < 0 || (timeout > 0 && now_ - overSince_ > kSomeTime))) {
        stopped_ = true;
        stoppedSince_ = now_;
        calm();
        stop();
    }
    check(++turnsSince_ < kManyTurns, "the loop waits when it has nothing to do");
    const Microseconds longest =
        microseconds(shutdownSeconds) + (lookCosts > 0 ? kMillisecond + 100 * lookCosts : 0);
    check(!stopped_ || now_ - stoppedSince_ <= longest, "a shutdown ends in time");
}

// --- system calls -------------------------------------------------------------------------

inline int Kernel::make(Socket::Kind kind, int family, bool isOpen) {
    Socket socket;
    socket.kind = kind;
    socket.family = family;
    socket.isOpen = isOpen;
    sockets_.push_back(socket);
    return kFirst + static_cast<int>(sockets_.size()) - 1;
}

inline const Socket &Kernel::at(int fd) const {
    const auto index = static_cast<std::size_t>(fd - kFirst);
    check(fd >= kFirst && index < sockets_.size(), "a descriptor is one of this kernel's");
    return sockets_[index];
}

inline Socket &Kernel::use(int fd) { return const_cast<Socket &>(at(fd)); }

inline bool Kernel::fails(Call call) {
    const int error = std::exchange(errors_[call], 0);
    if (error != 0) errno = error;
    return error != 0;
}

inline int Kernel::call(Call call, int fd) {
    check(at(fd).isOpen, "a call uses an open descriptor");
    return fails(call) ? -1 : 0;
}

// The server must poll everything it has open, except the pipe's end for writing, and listeners
// that rest. (There are too few connections to leave out silent ones.) Whether these rest for
// exactly their time is only known if no time passes within a turn.
inline void Kernel::checkPolled(const pollfd *fds, std::size_t count) const {
    std::size_t open = 0, listeners = 0;
    for (const Socket &socket : sockets_) {
        open += socket.isOpen;
        listeners += socket.isOpen && socket.kind == Socket::listener;
    }
    const std::size_t resting = now_ < restsUntil_ ? listeners : 0;
    check(count + 1 == open - resting || (lookCosts > 0 && count + 1 == open),
          "each open descriptor is polled");
    for (std::size_t i = 0; i < count; ++i)
        check(at(fds[i].fd).isOpen, "a polled descriptor is open");
}

// What poll(2) would report, wanted or not.
inline int Kernel::ready(const Socket &socket) const {
    const auto waits = [&](int fd) { return at(fd).family == socket.family; };
    if (socket.kind == Socket::listener)
        return std::any_of(backlog_.begin(), backlog_.end(), waits) ? POLLIN : 0;
    int events = 0;
    if (!socket.input.empty() || socket.inputEnded || socket.reset) events |= POLLIN;
    if (socket.window > 0 || socket.reset) events |= POLLOUT;
    if (socket.reset) events |= POLLERR;
    if (socket.reset || (socket.inputEnded && socket.outputEnded)) events |= POLLHUP;
    return events;
}

inline int Kernel::look(pollfd *fds, std::size_t count) const {
    int found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const int wanted = fds[i].events | POLLHUP | POLLERR;
        fds[i].revents = static_cast<short>(ready(at(fds[i].fd)) & wanted);
        found += fds[i].revents != 0;
    }
    return found;
}

// Events happen while the loop polls, and time passes then. poll() of one connection alone asks
// whether its peer has sent something; poll() of nothing sleeps.
inline int Kernel::poll(pollfd *fds, std::size_t count, int timeout) {
    int found = 0;
    if (count > 0 && at(fds[0].fd).kind == Socket::stream) {
        check(count == 1 && timeout == 0 && at(fds[0].fd).isOpen, "a connection is asked about");
        return look(fds, count);
    }
    if (count > 0) {
        checkPolled(fds, count);
        do {
            happen();
            if (fails(pollCall)) return -1;
            found = look(fds, count);
            if (input_.empty()) end(found, timeout);
        } while (found == 0 && timeout < 0 && !stopped_);
        if (stopped_) found = look(fds, count);
    }
    check(found > 0 || timeout >= 0, "the server never waits forever");
    if (found == 0) now_ += kMillisecond * timeout;
    return found;
}

inline ssize_t Kernel::receive(int fd, char *bytes, std::size_t size) {
    Socket &from = use(fd);
    check(size > 0, "recv() is given room");
    if (call(recvCall, fd) < 0) return -1;
    if (from.reset) {
        errno = ECONNRESET;
        return std::exchange(from.resetSeen, true) ? 0 : -1;
    }
    const std::size_t most = std::min({size, from.input.size(), cut_});
    std::copy_n(from.input.data(), most, bytes);
    from.input.erase(0, most);
    if (most == 0) errno = EAGAIN;
    return most == 0 && !from.inputEnded ? -1 : static_cast<ssize_t>(most);
}

inline ssize_t Kernel::send(int fd, const iovec *pieces, std::size_t count, int flags) {
    Socket &to = use(fd);
    check((flags & MSG_NOSIGNAL) != 0, "a send raises no SIGPIPE");
    check(!to.outputEnded, "nothing is sent after shutdown()");
    if (call(sendCall, fd) < 0) return -1;
    if (to.reset || to.window == 0) {
        errno = to.reset ? EPIPE : EAGAIN;
        return -1;
    }
    const std::size_t before = to.output.size();
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t most = std::min(pieces[i].iov_len, to.window);
        to.output.append(static_cast<const char *>(pieces[i].iov_base), most);
        if (to.window != Socket::kUnlimited) to.window -= most;
    }
    return static_cast<ssize_t>(to.output.size() - before);
}

inline int Kernel::accept(int listener, sockaddr *address, socklen_t *size) {
    if (call(acceptCall, listener) < 0) {
        const bool ordinary =
            errno == EAGAIN || errno == EINTR || errno == ECONNABORTED || errno == EPROTO;
        if (!ordinary) restsUntil_ = now_ + kRest;
        return -1;
    }
    const int family = at(listener).family;
    const auto waits = [&](int fd) { return at(fd).family == family; };
    const auto first = std::find_if(backlog_.begin(), backlog_.end(), waits);
    if (first == backlog_.end()) {
        errno = EAGAIN;
        return -1;
    }
    const int fd = *first;
    backlog_.erase(first);
    use(fd).isOpen = use(fd).wasAccepted = true;
    std::memset(address, 0, *size);
    address->sa_family = static_cast<sa_family_t>(family);
    *size = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    return fd;
}

inline int Kernel::open(Call call, Socket::Kind kind, int family) {
    return fails(call) ? -1 : make(kind, family, true);
}

inline int Kernel::close(int fd) {
    check(at(fd).isOpen, "a descriptor is closed only once");
    use(fd).isOpen = false;
    return 0;
}

inline int Kernel::shutdown(int fd) {
    if (call(shutdownCall, fd) < 0) return -1;
    use(fd).outputEnded = true;
    return 0;
}

// The end for writing has the next descriptor after the end for reading; see write().
inline int Kernel::pipe(int *ends) {
    if (fails(pipeCall)) return -1;
    ends[0] = make(Socket::pipeEnd, 0, true);
    ends[1] = make(Socket::pipeEnd, 0, true);
    return 0;
}

inline ssize_t Kernel::read(int fd, char *bytes, std::size_t size) {
    return call(readCall, fd) < 0 ? -1 : receive(fd, bytes, size);
}

// Writing to a pipe that is open and not full can only be interrupted.
inline ssize_t Kernel::write(int fd, const char *bytes, std::size_t size) {
    if (call(writeCall, fd) < 0) return errno = EINTR, -1;
    use(fd - 1).input.append(bytes, size);
    return static_cast<ssize_t>(size);
}

inline void Kernel::tell(timespec *time) {
    now_ += lookCosts;
    time->tv_sec = now_ / 1'000'000;
    time->tv_nsec = now_ % 1'000'000 * 1000;
}

inline void Kernel::checkClosed() const {
    for (const Socket &socket : sockets_) check(!socket.isOpen, "nothing is left open");
}

// --- the linker's wrappers (--wrap=NAME turns NAME into __wrap_NAME, __real_NAME into NAME)

extern "C" {

int __real_poll(pollfd *fds, nfds_t count, int timeout);
int __wrap_poll(pollfd *fds, nfds_t count, int timeout) {
    return Kernel::current ? Kernel::current->poll(fds, count, timeout)
                           : __real_poll(fds, count, timeout);
}

int __real_clock_gettime(clockid_t clock, timespec *time);
int __wrap_clock_gettime(clockid_t clock, timespec *time) {
    if (!Kernel::current || clock != CLOCK_MONOTONIC) return __real_clock_gettime(clock, time);
    Kernel::current->tell(time);
    return 0;
}

ssize_t __real_read(int fd, void *bytes, std::size_t size);
ssize_t __wrap_read(int fd, void *bytes, std::size_t size) {
    return Kernel::owns(fd) ? Kernel::current->read(fd, static_cast<char *>(bytes), size)
                            : __real_read(fd, bytes, size);
}

ssize_t __real_write(int fd, const void *bytes, std::size_t size);
ssize_t __wrap_write(int fd, const void *bytes, std::size_t size) {
    return Kernel::owns(fd) ? Kernel::current->write(fd, static_cast<const char *>(bytes), size)
                            : __real_write(fd, bytes, size);
}

int __real_close(int fd);
int __wrap_close(int fd) {
    return Kernel::owns(fd) ? Kernel::current->close(fd) : __real_close(fd);
}

int __real_fcntl(int fd, int command, long argument);
int __wrap_fcntl(int fd, int command, long argument) {
    return Kernel::owns(fd) ? Kernel::current->call(Kernel::fcntlCall, fd)
                            : __real_fcntl(fd, command, argument);
}

int __real_getaddrinfo(const char *, const char *, const addrinfo *, addrinfo **);
int __wrap_getaddrinfo(const char *host, const char *port, const addrinfo *hints, addrinfo **list) {
    if (!Kernel::current) return __real_getaddrinfo(host, port, hints, list);
    if (Kernel::current->fails(Kernel::resolveCall)) return EAI_AGAIN;
    static sockaddr_in four{};
    static sockaddr_in6 six{};
    static std::array<addrinfo, 3> found{};  // the last repeats the first
    four.sin_family = AF_INET;
    six.sin6_family = AF_INET6;
    for (std::size_t i = 0; i < found.size(); ++i) {
        found[i].ai_family = i == 1 ? AF_INET6 : AF_INET;
        found[i].ai_addr =
            i == 1 ? reinterpret_cast<sockaddr *>(&six) : reinterpret_cast<sockaddr *>(&four);
        found[i].ai_addrlen = i == 1 ? sizeof six : sizeof four;
        found[i].ai_next = i + 1 < found.size() ? &found[i + 1] : nullptr;
    }
    *list = found.data();
    return 0;
}

void __real_freeaddrinfo(addrinfo *list);
void __wrap_freeaddrinfo(addrinfo *list) {
    if (!Kernel::current) __real_freeaddrinfo(list);
}

// Only the server makes these calls, and only while there is a Kernel.
int __wrap_socket(int family, int, int) {
    return Kernel::current->open(Kernel::socketCall, Socket::listener, family);
}
int __wrap_bind(int fd, const sockaddr *, socklen_t) {
    return Kernel::current->call(Kernel::bindCall, fd);
}
int __wrap_listen(int fd, int) { return Kernel::current->call(Kernel::listenCall, fd); }
int __wrap_setsockopt(int fd, int, int, const void *, socklen_t) {
    check(Kernel::current->at(fd).isOpen, "setsockopt() uses an open descriptor");
    return 0;
}
int __wrap_getsockname(int fd, sockaddr *address, socklen_t *) {
    address->sa_family = static_cast<sa_family_t>(Kernel::current->at(fd).family);
    reinterpret_cast<sockaddr_in *>(address)->sin_port =
        htons(4711);  // at the same place in both families
    return 0;
}
int __wrap_accept4(int fd, sockaddr *address, socklen_t *size, int) {
    return Kernel::current->accept(fd, address, size);
}
int __wrap_pipe(int *ends) { return Kernel::current->pipe(ends); }
int __wrap_shutdown(int fd, int) { return Kernel::current->shutdown(fd); }
ssize_t __wrap_recv(int fd, void *bytes, std::size_t size, int) {
    return Kernel::current->receive(fd, static_cast<char *>(bytes), size);
}
ssize_t __wrap_send(int fd, const void *bytes, std::size_t size, int flags) {
    const iovec piece{const_cast<void *>(bytes), size};
    return Kernel::current->send(fd, &piece, 1, flags);
}
ssize_t __wrap_sendmsg(int fd, const msghdr *message, int flags) {
    return Kernel::current->send(fd, message->msg_iov, message->msg_iovlen, flags);
}
}

#endif
