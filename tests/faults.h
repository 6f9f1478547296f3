// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Makes system calls fail, for black_faults_test.cpp. The linker option --wrap=recv turns every
// call of recv() into one of __wrap_recv(), defined here, and names the original __real_recv().
// Memory comes from the operator new at the end of this file.
//
// Only calls by the server are counted and may fail: the test is Inside while it lets the server
// work, and its hooks are Outside again. All other calls pass through.

#ifndef WS_TESTS_FAULTS_H
#define WS_TESTS_FAULTS_H

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <initializer_list>
#include <new>
#include <set>
#include <utility>

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace faults {

// clang-format off
enum Call : std::size_t {
    kPoll, kRecv, kSend, kSendmsg, kAccept, kClose, kShutdown, kSocket, kBind, kListen,
    kSetsockopt, kGetsockname, kGetaddrinfo, kFcntl, kChmod, kPipe, kRead, kWrite, kSigaction,
    kGetrlimit, kSetrlimit, kClock, kMemory, kCalls
};
// clang-format on

constexpr std::array<const char *, kCalls> kNames = {
    "poll",        "recv",      "send",      "sendmsg",       "accept4",     "close",
    "shutdown",    "socket",    "bind",      "listen",        "setsockopt",  "getsockname",
    "getaddrinfo", "fcntl",     "chmod",     "pipe",          "read",        "write",
    "sigaction",   "getrlimit", "setrlimit", "clock_gettime", "operator new"};

// The outcome of a call: an error (an errno, or a negative EAI_… code), or one of these.
constexpr int kWorks = 0;
constexpr int kShort = 10'001;   // moves one byte
constexpr int kBlind = 10'002;   // poll() reports nothing
constexpr int kEager = 10'003;   // poll() reports every requested event, ready or not
constexpr int kStormy = 10'004;  // poll() is interrupted when it has to wait

using Counts = std::array<std::size_t, kCalls>;
using Rule = std::function<int(Call call, std::size_t n)>;  // for the n-th call of its kind, from 1

// Not in State, because operator new also reads it before State exists and after it is gone.
inline bool inside = false;

template <bool Inside>
class Scope {
  public:
    Scope() : before_(std::exchange(inside, Inside)) {}
    ~Scope() { inside = before_; }
    Scope(const Scope &) = delete;
    Scope &operator=(const Scope &) = delete;

  private:
    bool before_;
};
using Inside = Scope<true>;
using Outside = Scope<false>;

struct State {
    Rule rule;
    std::function<void()> afterPoll;  // runs when poll() has returned
    double skipped = 0;               // seconds by which the clock is ahead
    bool stopped = false;             // the clock advances only with `skipped`
    timespec time{};                  // the real time when it stopped
    Counts counts{};                  // calls so far
    std::size_t moved = 0;            // bytes that the server has sent and received
    std::size_t polled = 0;           // descriptors in all calls of poll() by the server
    std::set<int> descriptors;        // open in the server
    int strayCloses = 0;              // closes of other descriptors
    int addressLists = 0;             // from getaddrinfo(), not freed
};
inline State state;

// Starts over.
inline void reset(Rule rule = {}) {
    state = State{};
    state.rule = std::move(rule);
}

// Rules that fail the n-th call of a kind, or all of them.
inline Rule nth(Call call, std::size_t n, int fault) {
    return [=](Call which, std::size_t i) { return which == call && i == n ? fault : kWorks; };
}
inline Rule always(Call call, int fault) {
    return [=](Call which, std::size_t) { return which == call ? fault : kWorks; };
}

// Counts a call and returns its outcome.
inline int next(Call call) {
    if (!inside) return kWorks;
    const Outside pause;
    const std::size_t n = ++state.counts[call];
    return state.rule ? state.rule(call, n) : kWorks;
}

inline int failWith(int error) {
    errno = error;
    return -1;
}

// A call that either works or fails.
template <class Real>
auto call(Call which, Real real) -> decltype(real()) {
    const int fault = next(which);
    return fault == kWorks ? real() : failWith(fault);
}

inline void opened(std::initializer_list<int> descriptors) {
    if (!inside) return;
    const Outside pause;
    state.descriptors.insert(descriptors);
}

inline void closed(int descriptor) {
    if (state.descriptors.erase(descriptor) == 0 && inside) ++state.strayCloses;
}

// A poll() that reports every requested event, or nothing.
inline int pretend(pollfd *entries, nfds_t size, bool all) {
    int ready = 0;
    for (nfds_t i = 0; i < size; ++i) {
        entries[i].revents = all && entries[i].fd >= 0 ? entries[i].events : short{0};
        ready += entries[i].revents != 0;
    }
    return ready;
}

// The first byte of a message to send.
inline iovec firstByte(const msghdr &message) {
    for (std::size_t i = 0; i < message.msg_iovlen; ++i)
        if (message.msg_iov[i].iov_len > 0) return {message.msg_iov[i].iov_base, 1};
    return {};
}

// Counts the bytes that a call has moved.
inline ssize_t moved(ssize_t size) {
    if (inside && size > 0) state.moved += static_cast<std::size_t>(size);
    return size;
}

// A call that moves all its bytes, one of them, or none.
template <class Real>
ssize_t moveBytes(Call which, std::size_t size, Real real) {
    const int fault = next(which);
    if (fault != kWorks && fault != kShort) return failWith(fault);
    return moved(real(fault == kShort ? std::min<std::size_t>(size, 1) : size));
}

// The same for a message.
template <class Message, class Real>
ssize_t moveMessage(Call which, Message *message, Real real) {
    const int fault = next(which);
    if (fault == kWorks) return moved(real(message));
    if (fault != kShort) return failWith(fault);
    iovec one = firstByte(*message);
    msghdr small = *message;
    small.msg_iov = &one;
    small.msg_iovlen = 1;
    return moved(real(&small));
}

}  // namespace faults

// ----------------------------------------------------------------------------
// The calls
// ----------------------------------------------------------------------------

extern "C" {

int __real_poll(pollfd *entries, nfds_t size, int timeout);
int __wrap_poll(pollfd *entries, nfds_t size, int timeout) {
    if (size == 0) return faults::state.skipped += timeout / 1000.0, 0;  // only a sleep
    if (faults::inside) faults::state.polled += size;
    const int fault = faults::next(faults::kPoll);
    int ready = 0;
    if (fault == faults::kWorks) ready = __real_poll(entries, size, timeout);
    else if (fault == faults::kStormy) ready = __real_poll(entries, size, 0);
    else if (fault == faults::kBlind || fault == faults::kEager)
        ready = faults::pretend(entries, size, fault == faults::kEager);
    else return faults::failWith(fault);
    if (faults::inside && faults::state.afterPoll) {
        const faults::Outside pause;
        faults::state.afterPoll();
    }
    return fault == faults::kStormy && ready == 0 ? faults::failWith(EINTR) : ready;
}

ssize_t __real_recv(int fd, void *bytes, std::size_t size, int flags);
ssize_t __wrap_recv(int fd, void *bytes, std::size_t size, int flags) {
    return faults::moveBytes(faults::kRecv, size,
                             [&](std::size_t some) { return __real_recv(fd, bytes, some, flags); });
}

ssize_t __real_send(int fd, const void *bytes, std::size_t size, int flags);
ssize_t __wrap_send(int fd, const void *bytes, std::size_t size, int flags) {
    return faults::moveBytes(faults::kSend, size,
                             [&](std::size_t some) { return __real_send(fd, bytes, some, flags); });
}

ssize_t __real_sendmsg(int fd, const msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const msghdr *message, int flags) {
    return faults::moveMessage(faults::kSendmsg, message,
                               [&](const msghdr *some) { return __real_sendmsg(fd, some, flags); });
}

int __real_accept4(int fd, sockaddr *address, socklen_t *size, int flags);
int __wrap_accept4(int fd, sockaddr *address, socklen_t *size, int flags) {
    const int accepted =
        faults::call(faults::kAccept, [&] { return __real_accept4(fd, address, size, flags); });
    if (accepted >= 0) faults::opened({accepted});
    return accepted;
}

// As on Linux, a close() that fails has closed the descriptor.
int __real_close(int fd);
int __wrap_close(int fd) {
    faults::closed(fd);
    const int result = __real_close(fd);
    return faults::call(faults::kClose, [&] { return result; });
}

int __real_shutdown(int fd, int how);
int __wrap_shutdown(int fd, int how) {
    return faults::call(faults::kShutdown, [&] { return __real_shutdown(fd, how); });
}

int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol) {
    const int fd =
        faults::call(faults::kSocket, [&] { return __real_socket(family, type, protocol); });
    if (fd >= 0) faults::opened({fd});
    return fd;
}

int __real_bind(int fd, const sockaddr *address, socklen_t size);
int __wrap_bind(int fd, const sockaddr *address, socklen_t size) {
    return faults::call(faults::kBind, [&] { return __real_bind(fd, address, size); });
}

int __real_listen(int fd, int backlog);
int __wrap_listen(int fd, int backlog) {
    return faults::call(faults::kListen, [&] { return __real_listen(fd, backlog); });
}

int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t size);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
    return faults::call(faults::kSetsockopt,
                        [&] { return __real_setsockopt(fd, level, name, value, size); });
}

int __real_getsockname(int fd, sockaddr *address, socklen_t *size);
int __wrap_getsockname(int fd, sockaddr *address, socklen_t *size) {
    return faults::call(faults::kGetsockname,
                        [&] { return __real_getsockname(fd, address, size); });
}

// Returns its error.
int __real_getaddrinfo(const char *host, const char *port, const addrinfo *hints, addrinfo **list);
int __wrap_getaddrinfo(const char *host, const char *port, const addrinfo *hints, addrinfo **list) {
    int error = faults::next(faults::kGetaddrinfo);
    if (error == 0) error = __real_getaddrinfo(host, port, hints, list);
    if (error == 0) ++faults::state.addressLists;
    return error;
}

void __real_freeaddrinfo(addrinfo *list);
void __wrap_freeaddrinfo(addrinfo *list) {
    --faults::state.addressLists;
    __real_freeaddrinfo(list);
}

// The server passes an int or nothing.
int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...) {
    va_list more;
    va_start(more, command);
    const int value = va_arg(more, int);
    va_end(more);
    const int result =
        faults::call(faults::kFcntl, [&] { return __real_fcntl(fd, command, value); });
    if (command == F_DUPFD_CLOEXEC && result >= 0) faults::opened({result});
    return result;
}

int __real_chmod(const char *path, mode_t mode);
int __wrap_chmod(const char *path, mode_t mode) {
    return faults::call(faults::kChmod, [&] { return __real_chmod(path, mode); });
}

int __real_pipe(int *ends);
int __wrap_pipe(int *ends) {
    const int result = faults::call(faults::kPipe, [&] { return __real_pipe(ends); });
    if (result == 0) faults::opened({ends[0], ends[1]});
    return result;
}

ssize_t __real_read(int fd, void *bytes, std::size_t size);
ssize_t __wrap_read(int fd, void *bytes, std::size_t size) {
    return faults::moveBytes(faults::kRead, size,
                             [&](std::size_t some) { return __real_read(fd, bytes, some); });
}

ssize_t __real_write(int fd, const void *bytes, std::size_t size);
ssize_t __wrap_write(int fd, const void *bytes, std::size_t size) {
    return faults::moveBytes(faults::kWrite, size,
                             [&](std::size_t some) { return __real_write(fd, bytes, some); });
}

int __real_sigaction(int signal, const struct sigaction *action, struct sigaction *before);
int __wrap_sigaction(int signal, const struct sigaction *action, struct sigaction *before) {
    return faults::call(faults::kSigaction,
                        [&] { return __real_sigaction(signal, action, before); });
}

int __real_getrlimit(int what, rlimit *limit);
int __wrap_getrlimit(int what, rlimit *limit) {
    return faults::call(faults::kGetrlimit, [&] { return __real_getrlimit(what, limit); });
}

int __real_setrlimit(int what, const rlimit *limit);
int __wrap_setrlimit(int what, const rlimit *limit) {
    return faults::call(faults::kSetrlimit, [&] { return __real_setrlimit(what, limit); });
}

int __real_clock_gettime(clockid_t clock, timespec *now);
int __wrap_clock_gettime(clockid_t clock, timespec *now) {
    const int result = __real_clock_gettime(clock, now);
    faults::State &state = faults::state;
    if (!faults::inside && !state.stopped) return result;
    faults::next(faults::kClock);
    if (!state.stopped) state.time = *now;
    const auto skipped = std::llround(state.skipped * 1e6) * 1000 + state.time.tv_nsec;
    now->tv_sec = state.time.tv_sec + static_cast<std::time_t>(skipped / 1'000'000'000);
    now->tv_nsec = static_cast<long>(skipped % 1'000'000'000);
    return result;
}

}  // extern "C"

// ----------------------------------------------------------------------------
// Memory. With malloc() the address sanitizer still reports every mistake but one: new[] paired
// with delete.
// ----------------------------------------------------------------------------

void *operator new(std::size_t size) {
    if (faults::next(faults::kMemory) != faults::kWorks) throw std::bad_alloc();
    void *memory = std::malloc(std::max<std::size_t>(size, 1));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void *operator new[](std::size_t size) { return operator new(size); }
void *operator new(std::size_t size, const std::nothrow_t &) noexcept { return std::malloc(size); }
void *operator new[](std::size_t size, const std::nothrow_t &) noexcept {
    return std::malloc(size);
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete[](void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void *memory, std::size_t) noexcept { std::free(memory); }

#endif
