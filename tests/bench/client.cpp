// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The load generator of `make bench`: one measurement of one server.
//
//     client --port=N --pid=N [--job=echo|json|broadcast|churn] [--payload=text|utf8|binary|json]
//            [--bytes=N] [--active=N] [--window=N] [--idle=N] [--speak-ms=N] [--seconds=N]
//
// It opens `idle` connections, each of which sends one message, waits for the answer and then
// stays silent, and `active` connections, each of which keeps `window` messages in flight
// during a warm-up and then for `seconds`: each answer makes it send the next message.
// Messages are `bytes` long, at least 6. With --speak-ms, an idle connection sends a message
// every that many milliseconds. In a broadcast, `active` senders are heard by all, themselves
// and `idle` other connections. In churn, `active` connections at a time connect, send one
// message, wait for the answer, close, and start over.
//
// It runs one epoll loop in one thread and does as little as possible for each message,
// because it is to measure the server: frames are masked in advance, and what comes back is
// compared with the expected bytes as one endless stream. A wrong byte, a lost or superfluous
// message, or ten seconds without an answer end it with status 1.
//
// The result is one line of JSON: see report().
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using std::size_t;
using Nanoseconds = std::int64_t;
constexpr Nanoseconds kMillisecond = 1000 * 1000;
constexpr Nanoseconds kSecond = 1000 * kMillisecond;
constexpr Nanoseconds kPatience = 10 * kSecond;
constexpr size_t kConnectingAtOnce = 128;

[[noreturn]] void fail(const std::string &why) { throw std::runtime_error(why); }

// ----------------------------------------------------------------------------
// Options
// ----------------------------------------------------------------------------
struct Options {
    std::string job = "echo";
    std::string payload = "text";
    int port = 0;
    pid_t pid = 0;
    size_t bytes = 20;
    size_t active = 0;
    size_t window = 1;
    size_t idle = 0;
    Nanoseconds speakEvery = 0;
    Nanoseconds duration = kSecond;
};

// Parses "--name=value". The names of times say their units.
Options parse(int argc, char **argv) {
    std::map<std::string, std::string> given;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        const size_t equals = arg.find('=');
        if (arg.rfind("--", 0) != 0 || equals == std::string::npos) fail("unknown argument " + arg);
        given[arg.substr(2, equals - 2)] = arg.substr(equals + 1);
    }
    Options options;
    const auto text = [&](const char *name, std::string &value) {
        if (given.count(name)) value = given[name];
    };
    const auto number = [&](const char *name, auto &value, double unit = 1) {
        if (given.count(name))
            value = static_cast<std::decay_t<decltype(value)>>(std::stod(given[name]) * unit);
    };
    text("job", options.job);
    text("payload", options.payload);
    number("port", options.port);
    number("pid", options.pid);
    number("bytes", options.bytes);
    number("active", options.active);
    number("window", options.window);
    number("idle", options.idle);
    number("speak-ms", options.speakEvery, kMillisecond);
    number("seconds", options.duration, kSecond);
    return options;
}

// ----------------------------------------------------------------------------
// Clocks, and what the system tells about the server
// ----------------------------------------------------------------------------
Nanoseconds read(clockid_t clock) {
    timespec time{};
    if (clock_gettime(clock, &time) != 0) fail("the server is gone");
    return time.tv_sec * kSecond + time.tv_nsec;
}

Nanoseconds wallClock() { return read(CLOCK_MONOTONIC); }

// Processor time of all threads of a process, to the nanosecond.
Nanoseconds processorTime(pid_t pid) {
    clockid_t clock{};
    if (clock_getcpuclockid(pid, &clock) != 0) fail("the server is gone");
    return read(clock);
}

// In bytes.
std::int64_t residentMemory(pid_t pid) {
    long long resident = 0;
    std::FILE *file = std::fopen(("/proc/" + std::to_string(pid) + "/statm").c_str(), "r");
    if (!file || std::fscanf(file, "%*d %lld", &resident) != 1) fail("the server is gone");
    std::fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

struct Moment {
    Nanoseconds wall, client, server;
};

Moment moment(pid_t server) {
    return {wallClock(), read(CLOCK_PROCESS_CPUTIME_ID), processorTime(server)};
}

// ----------------------------------------------------------------------------
// What is sent, and what must come back
// ----------------------------------------------------------------------------

// RFC 6455 1.3: a key and its answer.
constexpr std::string_view kRequest =
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
constexpr std::string_view kAccepted = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
constexpr std::string_view kMaskingKey = "\x37\xfa\x21\x3d";  // of RFC 6455 5.7

constexpr size_t kNumberDigits = 6;  // each payload begins with the number of its connection

// A final frame (RFC 6455 5.2); clients must mask.
std::string frame(int opcode, std::string payload, bool masked) {
    const size_t size = payload.size();
    const int mask = masked ? 0x80 : 0;
    const int lengthBytes = size < 126 ? 0 : size < 65536 ? 2 : 8;
    std::string head;
    head += static_cast<char>(0x80 | opcode);
    head += static_cast<char>(mask | (lengthBytes == 0   ? static_cast<int>(size)
                                      : lengthBytes == 2 ? 126
                                                         : 127));
    for (int i = lengthBytes - 1; i >= 0; --i) head += static_cast<char>(size >> (8 * i));
    if (masked) {
        head += kMaskingKey;
        for (size_t i = 0; i < size; ++i)
            payload[i] = static_cast<char>(payload[i] ^ kMaskingKey[i % 4]);
    }
    return head + payload;
}

std::string digits(size_t number) {
    std::string text = std::to_string(number);
    return std::string(kNumberDigits - std::min(kNumberDigits, text.size()), '0') + text;
}

// A payload of `bytes` bytes; JSON is always the same small object.
std::string payload(const std::string &kind, size_t bytes, size_t number) {
    std::string out = digits(number);
    if (kind == "json")
        return R"({"from":")" + out +
               R"(","items":[{"count":3,"id":4711,"name":"pencil"},)"
               R"({"count":1,"id":4712,"name":"eraser"},{"count":12,"id":4713,"name":"paper"}],)"
               R"("open":true,"room":"office","text":"We are out of these, who goes?"})";
    if (kind == "binary") {
        std::uint32_t state = static_cast<std::uint32_t>(number) + 1;
        while (out.size() < bytes) {
            state = state * 1664525 + 1013904223;
            out += static_cast<char>(state >> 24);
        }
        return out;
    }
    const std::string_view words =
        kind == "utf8" ? "\u00c4pfel, \u03ba\u03cc\u03c3\u03bc\u03b5, \u4e16\u754c, \U0001f600; "
                       : "the quick brown fox; ";
    while (out.size() + words.size() <= bytes) out += words;
    return out.append(bytes - out.size(), '.');
}

std::string answerTo(const std::string &job, const std::string &message) {
    if (job != "json") return message;
    return message.substr(0, message.size() - 1) + R"(,"to":"all"})";
}

// Both directions of a connection, as streams that repeat. `out` has enough frames to send a
// whole window at once, whichever frame is next.
struct Traffic {
    std::string out, in;
    size_t outFrame = 0, inFrame = 0;
};

// The traffic of the connection with that number. The number makes its messages unique.
Traffic traffic(const Options &options, size_t number, size_t window) {
    const int opcode = options.payload == "binary" ? 2 : 1;
    const std::string message = payload(options.payload, options.bytes, number);
    const std::string out = frame(opcode, message, true);
    const std::string in = frame(opcode, answerTo(options.job, message), false);
    Traffic traffic;
    traffic.outFrame = out.size();
    traffic.inFrame = in.size();
    for (size_t i = 0; i < 2 * window - 1; ++i) traffic.out += out;
    for (size_t i = 0; i < window; ++i) traffic.in += in;
    return traffic;
}

// ----------------------------------------------------------------------------
// A connection. It is idle while it has nothing in flight.
// ----------------------------------------------------------------------------
struct Connection {
    enum class State { closed, connecting, upgrading, open, closing };

    size_t number = 0;
    size_t window = 1;
    bool active = false;  // sends the next message when an answer comes
    Traffic traffic;

    int fd = -1;
    State state = State::closed;
    bool watchesOut = false;
    size_t toSend = 0;             // bytes that are due
    size_t outAt = 0, inAt = 0;    // positions in the streams
    size_t received = 0;           // messages, in a broadcast
    std::string rest;              // received, but incomplete
    std::deque<Nanoseconds> sent;  // when each message in flight was sent
    Nanoseconds began = 0;         // when it connected
};

// Times from message to answer.
class Latencies {
  public:
    Latencies() { all_.reserve(1 << 20); }
    void add(Nanoseconds latency) { all_.push_back(latency); }
    void clear() { all_.clear(); }
    size_t count() const { return all_.size(); }

    // In microseconds; 0 if there is none.
    double percentile(double share) {
        if (all_.empty()) return 0;
        const auto nth = static_cast<std::ptrdiff_t>(share * static_cast<double>(all_.size() - 1));
        std::nth_element(all_.begin(), all_.begin() + nth, all_.end());
        return static_cast<double>(all_[static_cast<size_t>(nth)]) / 1000;
    }

  private:
    std::vector<Nanoseconds> all_;
};

// ----------------------------------------------------------------------------
// The client
// ----------------------------------------------------------------------------
class Client {
  public:
    explicit Client(const Options &options);
    ~Client();

    // Connects, warms up, measures, and waits for what is still in flight.
    void run();

    void report();

  private:
    using State = Connection::State;
    enum class Phase { connecting, loading, draining };

    bool isBroadcast() const { return options_.job == "broadcast"; }
    bool isChurn() const { return options_.job == "churn"; }

    void connectAll();
    void start();
    void drain();

    void runUntil(Nanoseconds end);
    void turn(Nanoseconds until);
    void speak();

    void open(Connection &c);
    void serve(Connection &c, std::uint32_t events);
    void upgrade(Connection &c);
    void receive(Connection &c);
    void receiveStream(Connection &c, const char *bytes, size_t size);
    void receiveBroadcast(Connection &c, const char *bytes, size_t size);
    void answered(Connection &c, size_t count);
    void closed(Connection &c, std::string_view bytes);
    void ready();
    void done(size_t messages);
    void note(Latencies &latencies, Nanoseconds since);
    void send(Connection &c, size_t count);
    void flush(Connection &c);
    void watch(Connection &c, bool out);

    const Options options_;
    const int epoll_ = epoll_create1(0);
    std::vector<Connection> connections_;  // the active ones first
    std::vector<char> inbox_ = std::vector<char>(256 << 10);

    Phase phase_ = Phase::connecting;
    size_t connecting_ = 0;  // connections that are not ready yet
    size_t inFlight_ = 0;    // messages; in churn, connections
    size_t broadcasts_ = 0;  // sent
    size_t messages_ = 0;    // answered; in a broadcast, delivered; in churn, connections
    size_t speaker_ = 0;     // the idle connection that speaks next
    Nanoseconds nextSpeech_ = 0;
    Nanoseconds now_ = wallClock();  // read once per event
    Nanoseconds lastProgress_ = now_;
    Latencies latencies_, speeches_;
    Moment begin_{}, end_{};
    std::int64_t residentBefore_ = 0, residentAfter_ = 0;
};

// Prepares everything that will be sent, so that the server never waits for that.
Client::Client(const Options &options) : options_(options) {
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    connections_.resize(options_.active + options_.idle);
    for (size_t i = 0; i < connections_.size(); ++i) {
        Connection &c = connections_[i];
        c.number = i;
        c.active = i < options_.active;
        if (c.active) c.window = options_.window;
        c.traffic = traffic(options_, i, c.window);
    }
}

// Resets open connections, so that none lingers in the kernel during the next measurement.
Client::~Client() {
    const linger reset{1, 0};
    for (const Connection &c : connections_) {
        if (c.fd < 0) continue;
        setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(c.fd);
    }
    close(epoll_);
}

// The warm-up, half as long as the measurement, lets Node compile its busy functions.
void Client::run() {
    residentBefore_ = residentMemory(options_.pid);
    if (!isChurn()) connectAll();
    start();
    runUntil(wallClock() + options_.duration / 2);

    messages_ = 0;
    latencies_.clear();
    speeches_.clear();
    begin_ = moment(options_.pid);
    runUntil(begin_.wall + options_.duration);
    end_ = moment(options_.pid);
    residentAfter_ = residentMemory(options_.pid);
    drain();
}

// Rates are per second, times in microseconds, memory in bytes, shares of one core. `rate` and
// `cpu_us` count all messages (in a broadcast: those delivered; in churn: connections); p50 and
// p99 are latencies of active connections, speech_p50 and speech_p99 of idle ones.
void Client::report() {
    const auto wall = static_cast<double>(end_.wall - begin_.wall);
    const auto server = static_cast<double>(end_.server - begin_.server);
    const auto messages = static_cast<double>(messages_);
    std::printf("{\"messages\": %zu, \"rate\": %.1f, \"cpu_us\": %.3f, ", messages_,
                messages / wall * kSecond, messages_ ? server / messages / 1000 : 0);
    for (const auto &[name, list] :
         {std::pair{"p", &latencies_}, std::pair{"speech_p", &speeches_}})
        std::printf("\"%s50\": %.1f, \"%s99\": %.1f, ", name, list->percentile(0.5), name,
                    list->percentile(0.99));
    std::printf("\"server_share\": %.5f, \"client_share\": %.3f, ", server / wall,
                static_cast<double>(end_.client - begin_.client) / wall);
    std::printf("\"resident_before\": %lld, \"resident\": %lld, \"speeches\": %zu}\n",
                static_cast<long long>(residentBefore_), static_cast<long long>(residentAfter_),
                speeches_.count());
}

// --- the course of a measurement ---------------------------------------------------

// A limited number at a time, so that no server's backlog overflows.
void Client::connectAll() {
    for (Connection &c : connections_) {
        while (connecting_ >= kConnectingAtOnce) turn(now_ + kPatience);
        ++connecting_;
        open(c);
    }
    while (connecting_ > 0) turn(now_ + kPatience);
}

void Client::start() {
    phase_ = Phase::loading;
    nextSpeech_ = now_ = wallClock();
    for (size_t i = 0; i < options_.active; ++i) {
        Connection &c = connections_[i];
        if (isChurn()) ++inFlight_, open(c);
        else send(c, c.window);
    }
}

// Waits until everything that was sent has come back.
void Client::drain() {
    phase_ = Phase::draining;
    const auto missing = [&] {
        if (!isBroadcast()) return inFlight_ > 0;
        return std::any_of(connections_.begin(), connections_.end(), [&](const Connection &c) {
            return c.received != broadcasts_ || !c.rest.empty();
        });
    };
    lastProgress_ = wallClock();
    while (missing()) turn(now_ + kPatience);
}

void Client::runUntil(Nanoseconds end) {
    lastProgress_ = wallClock();
    while (now_ < end) turn(end);
}

// Waits for events until that time at most, and serves them.
void Client::turn(Nanoseconds until) {
    if (phase_ == Phase::loading && options_.speakEvery > 0) {
        speak();
        until = std::min(until, nextSpeech_);
    }
    epoll_event events[512];
    const Nanoseconds wait = std::max<Nanoseconds>(0, until - now_);
    const int timeout = static_cast<int>((wait + kMillisecond - 1) / kMillisecond);
    const int count = epoll_wait(epoll_, events, 512, timeout);
    now_ = wallClock();
    if (count < 0 && errno != EINTR) fail("epoll_wait: " + std::string(std::strerror(errno)));
    for (int i = 0; i < count; ++i) serve(connections_[events[i].data.u64], events[i].events);
    const bool waiting = inFlight_ > 0 || phase_ != Phase::loading;
    if (waiting && now_ - lastProgress_ > kPatience) fail("no answer for 10 seconds");
}

// Lets the next idle connection speak when it is time. The stride keeps connections that the
// server accepted one after another from speaking in that order.
void Client::speak() {
    if (now_ < nextSpeech_) return;
    constexpr size_t kStride = 7919;  // a prime
    speaker_ = (speaker_ + kStride) % options_.idle;
    Connection &c = connections_[options_.active + speaker_];
    if (c.sent.empty()) send(c, 1);
    nextSpeech_ += options_.speakEvery;
}

// --- a connection's life ---------------------------------------------------------------

// Starts to connect. serve() sends the request when the socket is writable.
void Client::open(Connection &c) {
    c.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c.fd < 0) fail("socket: " + std::string(std::strerror(errno)));
    const int yes = 1;
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);

    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(options_.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c.fd, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0 &&
        errno != EINPROGRESS)
        fail("connect: " + std::string(std::strerror(errno)));
    c.state = State::connecting;
    c.began = wallClock();
    c.rest.clear();
    epoll_event event{};
    event.events = EPOLLOUT;
    event.data.u64 = c.number;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, c.fd, &event);
    c.watchesOut = true;
}

// Handles a connection's events: it is connected, writable or readable.
void Client::serve(Connection &c, std::uint32_t events) {
    if (c.state == State::connecting) {
        if (::send(c.fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) !=
            static_cast<ssize_t>(kRequest.size()))
            fail("cannot connect: " + std::string(std::strerror(errno)));
        c.state = State::upgrading;
        watch(c, false);
        return;
    }
    if (events & EPOLLOUT) flush(c);
    if (events & ~std::uint32_t{EPOLLOUT}) receive(c);
}

// Reads once; if more is left, epoll reports the connection again.
void Client::receive(Connection &c) {
    const ssize_t size = recv(c.fd, inbox_.data(), inbox_.size(), 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size < 0) fail("recv: " + std::string(std::strerror(errno)));
    now_ = wallClock();
    const std::string_view bytes(inbox_.data(), static_cast<size_t>(size));
    if (c.state == State::closing) return closed(c, bytes);
    if (bytes.empty()) fail("the server closed a connection");
    if (c.state == State::upgrading) {
        c.rest += bytes;
        upgrade(c);
    } else if (isBroadcast()) {
        receiveBroadcast(c, bytes.data(), bytes.size());
    } else {
        receiveStream(c, bytes.data(), bytes.size());
    }
}

// Once the answer to the handshake is complete, sends the first message; not in a broadcast,
// where all others would receive it.
void Client::upgrade(Connection &c) {
    const size_t end = c.rest.find("\r\n\r\n");
    if (end == std::string::npos) return;
    if (c.rest.rfind("HTTP/1.1 101 ", 0) != 0 || c.rest.find(kAccepted) == std::string::npos ||
        end + 4 != c.rest.size())
        fail("the server answered the handshake with " + c.rest);
    c.rest = {};
    c.state = State::open;
    if (isBroadcast()) ready();
    else send(c, 1);
}

// Compares what came with the expected stream, and counts the frames it completes.
void Client::receiveStream(Connection &c, const char *bytes, size_t size) {
    const std::string &expected = c.traffic.in;
    const size_t before = c.inAt % c.traffic.inFrame;
    const size_t count = (before + size) / c.traffic.inFrame;
    if (count > c.sent.size() || (count == c.sent.size() && (before + size) % c.traffic.inFrame))
        fail("the server sent a superfluous message");
    while (size > 0) {
        const size_t part = std::min(size, expected.size() - c.inAt);
        if (std::memcmp(bytes, expected.data() + c.inAt, part) != 0)
            fail("the server sent a wrong byte");
        c.inAt = (c.inAt + part) % expected.size();
        bytes += part;
        size -= part;
    }
    if (count > 0) answered(c, count);
}

// `count` messages came back in one piece: the next `count` go out in one piece.
void Client::answered(Connection &c, size_t count) {
    lastProgress_ = now_;
    Latencies &latencies = c.active ? latencies_ : speeches_;
    for (size_t i = 0; i < count; ++i) {
        note(latencies, c.sent.front());
        c.sent.pop_front();
    }
    inFlight_ -= count;
    if (isChurn()) {
        static const std::string closeFrame = frame(8, "\x03\xe8", true);  // 1000
        if (::send(c.fd, closeFrame.data(), closeFrame.size(), MSG_NOSIGNAL) < 0)
            fail("the server closed a connection");
        c.state = State::closing;
        return;
    }
    done(count);
    if (phase_ == Phase::connecting) ready();
    else if (phase_ == Phase::loading && c.active) send(c, count);
}

// All frames of a broadcast have the same length and begin with the sender's number.
void Client::receiveBroadcast(Connection &c, const char *bytes, size_t size) {
    std::string joined;
    if (!c.rest.empty()) {
        joined = c.rest.append(bytes, size);
        bytes = joined.data();
        size = joined.size();
        c.rest.clear();
    }
    const size_t length = c.traffic.inFrame;
    const size_t payloadAt = length - options_.bytes;
    for (; size >= length; bytes += length, size -= length) {
        const std::string number(bytes + payloadAt, kNumberDigits);
        const auto sender = static_cast<size_t>(std::atoi(number.c_str()));
        if (sender >= options_.active ||
            std::memcmp(bytes, connections_[sender].traffic.in.data(), length) != 0)
            fail("the server sent a wrong byte");
        ++c.received;
        done(1);
        if (sender == c.number) {
            if (c.sent.empty()) fail("the server sent a superfluous message");
            note(latencies_, c.sent.front());
            c.sent.pop_front();
            if (phase_ == Phase::loading) send(c, 1);
        }
    }
    c.rest.assign(bytes, size);
    lastProgress_ = now_;
}

// The server's part of the closing handshake: its close frame, then the end.
void Client::closed(Connection &c, std::string_view bytes) {
    c.rest += bytes;
    if (!bytes.empty()) return;
    if (c.rest != frame(8, "\x03\xe8", false)) fail("the server answered the close wrongly");
    close(c.fd);
    c.fd = -1;
    c.state = State::closed;
    note(latencies_, c.began);
    lastProgress_ = now_;
    done(1);
    if (phase_ == Phase::loading) open(c);
    else --inFlight_;
}

void Client::ready() {
    --connecting_;
    lastProgress_ = now_;
}

// done() and note() count only what happens under load, not what is in flight at its end.
void Client::done(size_t messages) {
    if (phase_ == Phase::loading) messages_ += messages;
}

void Client::note(Latencies &latencies, Nanoseconds since) {
    if (phase_ == Phase::loading) latencies.add(now_ - since);
}

// --- sending ------------------------------------------------------------------------

void Client::send(Connection &c, size_t count) {
    for (size_t i = 0; i < count; ++i) c.sent.push_back(now_);
    if (isBroadcast()) broadcasts_ += count;
    else inFlight_ += count;
    c.toSend += count * c.traffic.outFrame;
    flush(c);
}

// Writes what is due, as far as the kernel takes it; watches for room for the rest.
void Client::flush(Connection &c) {
    const size_t period = c.window * c.traffic.outFrame;
    while (c.toSend > 0) {
        const size_t part = std::min(c.toSend, c.traffic.out.size() - c.outAt);
        const ssize_t sent = ::send(c.fd, c.traffic.out.data() + c.outAt, part, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return watch(c, true);
        if (sent < 0) fail("send: " + std::string(std::strerror(errno)));
        c.toSend -= static_cast<size_t>(sent);
        c.outAt = (c.outAt + static_cast<size_t>(sent)) % period;
    }
    if (c.watchesOut) watch(c, false);
}

void Client::watch(Connection &c, bool out) {
    if (c.watchesOut == out) return;
    c.watchesOut = out;
    epoll_event event{};
    event.events = out ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.u64 = c.number;
    epoll_ctl(epoll_, EPOLL_CTL_MOD, c.fd, &event);
}

}  // namespace

int main(int argc, char **argv) try {
    Client client(parse(argc, argv));
    client.run();
    client.report();
} catch (const std::exception &e) {
    std::fprintf(stderr, "client: %s\n", e.what());
    return 1;
}
