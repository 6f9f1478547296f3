// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The Extendible WebSocket Server: one thread, one poll() loop, raw POSIX sockets, the protocol of
// RFC 6455 by hand. server.h is the contract, this file keeps it. Left out: extensions, TLS, a
// client, the drafts before the RFC; README.md says why. A connection moves bytes; a user is what
// hooks see. The life of a connection:
//
//      connect()              accept(): a connection without a user
//   [handshaking]  doHandshake()  --- refused, or a plain GET: answer() ---.
//         |        welcome(): preConnect, 101, postConnect                 |
//       [open]     readFrames() -> received() -> process()                 |
//         |-- disconnect(): our Close goes first --> [closing]             |
//         |                             the peer's Close |                 |
//         |-- the peer's Close, or fail() ---------------|                 |
//         |                                          [flushing]  write what is queued; [dead] if
//         |                                              |       nothing more can come, else:
//         |                                          [lingering] SHUT_WR; discard input until
//         |-- drop(): reset, or silent -----------.      |       the peer closes, too
//       finish(): goodbye when it leaves [open]   [dead]  finish() frees it: close()
//
//  1. What the parts are made of    the structures, and what the parts offer each other
//  2. The loop                      run, turn, poll, serve, checkDeadlines, finish, watch, post
//  3. Reading                       read, readFrames, received
//  4. Sending                       sendToAllBut, send, queueMessage, flush
//  5. Users                         disconnect, fail, drop, end, sayGoodbye, callHook, log
//  6. The opening handshake         connect, doHandshake, welcome, answer
//  7. Listening                     listen, openListener, checkConfig, stopOn
//  8. What hooks are given          WSMessage, WSRequest, WSBaseUser
//     From here on: pure functions and classes, without socket, clock or configuration.
//  9. The queue of unsent bytes     Outbox
// 10. HTTP heads                    parseHead, checkUpgrade, clientAddress, encodeResponse
// 11. Frames                        parseFrameHeader, encodeFrameHeader, unmask
// 12. Messages                      MessageReader: frames become messages
// 13. Closing                       parseClose, encodeClose, isCloseCode
// 14. UTF-8                         checkUtf8
// 15. base64                        base64Encode
// 16. SHA-1                         sha1
//
// Where the rules of RFC 6455 are enforced:
//   opening handshake    4.2.1, 4.2.2   checkUpgrade, welcome, acceptKey
//   origin               10.2           originAllowed, normalOrigin
//   frame header         5.2            parseFrameHeader (reserved bits, opcodes, lengths)
//   masking              5.1, 5.3       parseFrameHeader, unmask
//   fragmentation        5.4            MessageReader::beginFrame
//   control frames       5.5            parseFrameHeader, received, receivedClose
//   closing handshake    5.5.1, 7       receivedClose, disconnect, end, sendClose, flush
//   close codes          7.4            parseClose, isCloseCode
//   UTF-8                5.6, 8.1       checkUtf8, MessageReader::read

#include "server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <iomanip>
#include <limits>
#include <locale>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <tuple>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL  // where it is missing, SO_NOSIGPIPE does the same: see add()
#define MSG_NOSIGNAL 0
#endif

// === 1. What the parts are made of ===============================================================
// All is in an anonymous namespace or declared in our headers: nothing clashes with the program.

namespace {

// The answer of every parser: done, need more bytes, or bad (a close code or an HTTP status, and
// the reason). The first `used` bytes are consumed; pass the others in again.
struct Progress {
    enum Answer { done, needMore, bad } answer = needMore;
    std::size_t used = 0;
    int code = 0;
    const char *reason = "";
};
Progress doneAfter(std::size_t used) { return {Progress::done, used, 0, ""}; }
Progress needMoreAfter(std::size_t used) { return {Progress::needMore, used, 0, ""}; }
Progress bad(int code, const char *reason) { return {Progress::bad, 0, code, reason}; }

// What a message carries. Its copies share it, and so do the queues in which it waits.
using Payload = std::shared_ptr<std::string>;
constexpr std::size_t kSmall = 4 * 1024;        // bytes: less is copied, more is shared or reused
constexpr std::size_t kPieceBytes = 16 * 1024;  // copied bytes are joined up to this size
constexpr std::size_t kMaxPieces = 64;  // for one system call; Linux, BSD and macOS take 1024

class Outbox {  // the queue of unsent bytes (section 9)
  public:
    void append(std::string_view header, std::string_view payload);  // copies them
    void append(Payload payload);                                    // shares it
    std::size_t size() const { return size_; }
    // Points `pieces` at unsent bytes, and returns how many it has filled in.
    std::size_t gather(std::array<iovec, kMaxPieces> &pieces) const;
    // Drops the first `size` bytes (> 0). Returns a large unshared payload among them, for reuse.
    Payload sent(std::size_t size);

  private:
    struct Piece {  // bytes that were copied, or a payload that others share
        std::string copied;
        Payload shared;
        std::string_view bytes() const { return shared ? *shared : copied; }
    };
    std::vector<Piece> pieces_;
    std::size_t first_ = 0;   // the pieces before this one are sent
    std::size_t offset_ = 0;  // and so are this many bytes of it
    std::size_t size_ = 0;    // bytes unsent
};

struct Field {
    std::string_view name, value;
};
struct RequestHead {  // the text that was parsed, and views of its parts
    std::string_view text, method, path, query;
    bool http10 = false;  // not 1.1 or a later 1.x
    std::vector<Field> fields;
};
using Headers = decltype(WSResponse::headers);
Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head);
WSResponse checkRequest(const RequestHead &head);
bool asksForWebSocket(const RequestHead &head);
WSResponse checkUpgrade(const RequestHead &head);
std::string acceptKey(std::string_view key);
std::string chooseProtocol(const std::vector<std::string> &ours, std::string_view offered);
std::optional<std::string> normalOrigin(std::string_view origin);
WSResponse plainResponse(int status, std::string_view text, Headers headers = {});
WSResponse upgradeRequired() {
    return plainResponse(426, "This is a WebSocket server: connect with ws:// or wss://.");
}
bool isSendable(const WSResponse &response);
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody);
std::string_view wordsFor(int number);
bool isDigit(char c) { return c >= '0' && c <= '9'; }  // of ASCII, whatever the locale is
bool isControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }
bool isToken(std::string_view text);
bool sameIgnoringCase(std::string_view a, std::string_view b);
std::size_t countFields(const RequestHead &head, std::string_view name);
std::string fieldValue(const RequestHead &head, std::string_view name, const char *joint = ", ");
std::vector<std::string> splitList(std::string_view list, char separator);
std::string decodePercent(std::string_view text);

// An IP address in 16 bytes; IPv4 is mapped into IPv6 (RFC 4291 2.5.5.2). Unix sockets have none.
using Address = std::array<unsigned char, 16>;
constexpr Address kIpv4{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};

struct Network {  // addresses that begin with the same bits; or all Unix sockets
    std::optional<Address> address;
    std::size_t bits = 0;
};
bool isIpv4(const Address &address) {
    return std::equal(kIpv4.begin(), kIpv4.begin() + 12, address.begin());
}
bool isIn(const Network &network, const std::optional<Address> &address);
std::optional<Address> parseAddress(std::string_view text);
std::string encodeAddress(const std::optional<Address> &address);
std::optional<Network> parseNetwork(std::string_view text);
std::optional<Address> clientAddress(std::optional<Address> peer,
                                     const std::vector<Network> &trusted, const RequestHead &head);

// Close codes that the server uses itself (RFC 6455 7.4.1). Two are only for hooks and are never
// sent: 1005, the peer's Close had no code; and 1006, there was no Close.
constexpr int kGoingAway = 1001, kProtocolError = 1002, kNoCode = 1005, kConnectionLost = 1006;
constexpr int kInvalidData = 1007, kPolicyViolation = 1008, kTooBig = 1009, kInternalError = 1011;

// RFC 6455 5.2: data frames (5.6), then control frames (5.5).
enum class Opcode : std::uint8_t { continuation, text, binary, close = 0x8, ping, pong };

constexpr std::size_t kMaxControlPayload = 125;  // RFC 6455 5.5
constexpr std::size_t kMaxFrameHeader = 10;      // as a server sends it (5.2): no masking key
struct FrameHeader {
    bool fin = false;
    Opcode opcode = Opcode::continuation;
    std::array<unsigned char, 4> maskingKey{};
    std::uint64_t length = 0;
};
Progress parseFrameHeader(std::string_view bytes, FrameHeader &header);
std::size_t encodeFrameHeader(char *out, Opcode opcode, std::uint64_t length);
Progress parseClose(std::string_view payload);
std::string encodeClose(int code, std::string_view reason);
bool isCloseCode(int code);

// Text is checked in pieces: each check begins in the state in which the last one ended.
enum Utf8State : std::uint8_t { kInvalid = 0, kBetweenCharacters = 6 };  // and more: section 14
Utf8State checkUtf8(std::string_view piece, Utf8State state);
bool isUtf8(std::string_view text) {
    return checkUtf8(text, kBetweenCharacters) == kBetweenCharacters;
}
std::string_view cutUtf8(std::string_view text, std::size_t size);

// Turns the bytes of one connection into messages and control frames, however recv() cuts them.
class MessageReader {
  public:
    struct Limits {
        std::size_t maxMessageBytes;
        int maxFragments;
    };
    // A message (opcode text or binary; it is in `message`), a control frame (its payload is in the
    // bytes that read() was given), or a frame that does not end its message (continuation).
    struct Found {
        Opcode opcode = Opcode::continuation;
        std::string_view payload;
    };
    // Reads up to the end of a frame. Bad: a close code; do not call it again.
    Progress read(char *bytes, std::size_t size, const Limits &limits, Found &found);
    bool idle() const { return opcode_ == Opcode::continuation; }  // between two messages
    // The message being collected. Null, or a buffer to reuse that nothing else shares.
    Payload message;

  private:
    Progress beginFrame(const Limits &limits);
    char *makeRoom(std::size_t size);

    FrameHeader frame_;
    std::uint64_t done_ = 0;                // bytes of the frame's payload that have arrived
    std::size_t filled_ = 0;                // bytes of the message that have
    Opcode opcode_ = Opcode::continuation;  // the message's; continuation: there is none
    bool inPayload_ = false;
    Utf8State utf8_ = kBetweenCharacters;
    std::int64_t fragments_ = 0;
};

std::string base64Encode(std::string_view bytes);
std::string sha1(std::string_view message);

using Microseconds = std::int64_t;  // of the monotonic clock
Microseconds microseconds(double seconds) { return std::llround(seconds * 1e6); }
double seconds(Microseconds time) { return static_cast<double>(time) / 1e6; }

// Closes a descriptor with its scope. Never 0, 1 or 2: a client would get what the program prints.
struct Descriptor {
    explicit Descriptor(int opened) : fd(opened) {
        if (opened < 0 || opened > STDERR_FILENO) return;
        fd = ::fcntl(opened, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        ::close(opened);
    }
    Descriptor(Descriptor &&other) noexcept : fd(std::exchange(other.fd, -1)) {}
    ~Descriptor() {
        if (fd >= 0) ::close(fd);
    }
    operator int() const { return fd; }
    int fd;
};

// Reserves room for `size` elements, so that push_back() cannot fail, doubling the capacity.
template <class Element>
void growTo(std::vector<Element> &elements, std::size_t size) {
    if (elements.capacity() < size) elements.reserve(2 * size);
}

constexpr int kMaxJsonDepth = 1000;              // jsoncpp recurses for each level
thread_local const char *jsonTrouble = nullptr;  // to be logged: see JsonTools
}  // namespace

#ifndef __clang__  // in a unity build, g++ warns that the next two have members from above
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif
struct WSConnection {
    enum class State : unsigned char {  // they only move forward, as the map above shows
        handshaking,  // reading the request's head; no user yet, or one in preConnect
        open,         // has a user
        closing,      // our Close goes first, the peer's has not come
        flushing,     // only our Close may still be queued; input is discarded
        lingering,    // all is written, SHUT_WR done; discarding input until the peer closes
        dead          // finish() will close the socket
    };
    explicit WSConnection(Descriptor socket) : fd(std::move(socket)) {}
    std::size_t queued() const { return outbox.size(); }

    Descriptor fd;
    State state = State::handshaking;
    bool listed = false;      // is in busy_ or finishing_
    bool served = false;      // in this turn
    std::uint8_t rank = 1;    // 0: cheap lately; 1: in its handshake; 2: costly: see serve()
    bool hasUnread = false;   // `unread` may hold whole frames: no recv() needed
    bool inputEnded = false;  // nothing more is expected from the peer
    bool peerLeft = false;    // the peer's Close came first
    bool owesClose = false;   // ours is due, and not queued yet
    bool stalled = false;     // the kernel did not take everything: waiting for POLLOUT
    bool aboveMark = false;   // flush() found more than lowMark() queued, and some of it still is
    bool wantsBody = true;    // false: the request is a HEAD (RFC 9110 9.3.2)
    short ready = 0;          // what poll() found, until it is served
    std::uint16_t closeCode = 0;
    int rateCount = 0;  // messages and pings in the second that began at:
    Microseconds rateSecond = 0;
    Microseconds costlyUntil = 0;    // has rank 2 at least until then
    Microseconds lastByte = 0;       // when the peer last sent or took something: it is alive
    Microseconds lastPing = 0;       // when it was last sent one
    Microseconds since = 0;          // when it was accepted, or when its end began
    Microseconds deadline = 0;       // of the handshake, the ping, or the closing
    std::size_t slot = 0;            // its place in connections_
    std::size_t owed = 0;            // bytes unsent that were queued before its end began
    std::string unread;              // received, but incomplete or not read yet
    std::optional<Address> address;  // of the client
    MessageReader reader;
    Outbox outbox;
    std::unique_ptr<std::string> pong;  // waits until everything else is sent
    std::unique_ptr<WSBaseUser> user;   // last, so destroyed first: it may use the above
};

// What the copies of a message share. The queues share the payload only.
struct WSMessage::Body {
    bool binary = false;
    Payload payload = std::make_shared<std::string>();
    int maxJsonDepth = kMaxJsonDepth, maxJsonValues = std::numeric_limits<int>::max();  // our own
    bool parsed = false;  // json is known: null if it is not JSON
    std::unique_ptr<Json::Value> json;
};

// === 2. The loop =================================================================================
// The front. poll() takes 10 µs for 100 descriptors, several ms for 10 000. So connections that
// spoke lately stand at the front of the array, and most turns poll only these. All are polled
// at intervals of 5 µs per connection, but at most 50 ms.
//
// Shares. A turn has a budget of bytes for all ready connections, and of time for each rank: 0,
// those that cost little; 1, in their handshake; 2, those that lately used more than their share.
// Unserved ones come first in the next turn. But a message is parsed and processed in one go.
struct WSLoop {
    using State = WSConnection::State;

    static constexpr Microseconds kMillisecond = 1000, kSecond = 1'000'000;
    static constexpr Microseconds kNever = std::numeric_limits<Microseconds>::max();
    static constexpr Microseconds kRest = 100 * kMillisecond;  // on lack of descriptors or memory

    WSLoop(WSBaseServer &server, WSBaseConfig &config) : server_(server), config_(config) {
        claim();
    }
    ~WSLoop() {
        for (const auto &[signal, before] : oldHandlers_) {
            ::sigaction(signal, &before, nullptr);
            loops_[static_cast<std::size_t>(signal)] = nullptr;
        }
        closeListeners();
    }

    void run() {
        if (inTurn_) verified();  // throws if another thread runs the loop
        listen();
        while (turn(std::chrono::milliseconds(-1))) {}
    }

    bool turn(std::chrono::milliseconds timeout) {
        claim();
        if (inTurn_.exchange(true))
            throw std::logic_error("turn() was called in a hook, or by two threads");
        thread_ = std::this_thread::get_id();
        // 1. Poll: which descriptors are ready? From here on, now_ is the time of the whole turn.
        const bool polledAll = poll(timeout);
        // 2. Serve the connections that are ready, then whatever else is watched.
        serve();
        serveWatched();
        // 3. Deadlines, if all connections were polled; then shutdown and tick, if they are due.
        if (now_ >= nextDeadlines_ && polledAll) checkDeadlines();
        heedStop();
        tick();
        // 4. Finish: write what is queued, call the last hooks of users that leave, close sockets.
        finish();
        ++stats_.turns;
        const Microseconds took = updateClock() - now_;
        stats_.longestTurnSeconds = std::max(stats_.longestTurnSeconds, seconds(took));
        if (took > kSecond / 10) {  // a slow hook is no peer's fault
            for (const auto &c : connections_) c->deadline += took;
            shutdownDeadline_ += took;
        }
        const bool ended = shutdownEnded();
        if (ended) thread_ = std::thread::id();
        inTurn_ = false;
        return !ended;
    }

    // Polls all connections if it is time to look at the silent ones, or if they are few; otherwise
    // only the front, and only until that time. Lists ready ones as busy. True if all were polled.
    bool poll(std::chrono::milliseconds timeout) {
        if (std::exchange(mustRest_, false)) ::poll(nullptr, 0, milliseconds(kRest));
        now_ = updateClock();  // the program may have taken its time since the last turn
        const bool due = now_ >= nextFullPoll_ || now_ >= nextDeadlines_;
        const bool all = due || connections_.size() - front_ <= 64;
        const Microseconds end = std::min(waitUntil(timeout), all ? kNever : nextFullPoll_);
        const auto each = static_cast<Microseconds>(5 * connections_.size());
        if (due) nextFullPoll_ = now_ + std::min(each, 50 * kMillisecond);
        // Listeners come first in the array; while they rest, poll() starts after them.
        const std::size_t begin = now_ < restUntil_ ? listeners_.size() : 0;
        const std::size_t polled = all ? connections_.size() : front_;
        int ready = ::poll(&pollfds_[begin], static_cast<nfds_t>(watched_.size() - begin + polled),
                           end == kNever ? -1 : milliseconds(end - now_));
        mustRest_ = ready < 0 && errno != EINTR;  // EINTR is an ordinary end: none was ready
        if (mustRest_) logTrouble("poll", errno);
        now_ = updateClock();
        for (std::size_t i = begin; i < watched_.size(); ++i) ready -= pollfds_[i].revents != 0;
        const pollfd *const entries = pollfds_.data() + watched_.size();
        for (std::size_t slot = 0; slot < polled && ready > 0; ++slot) {
            if (entries[slot].revents == 0) continue;
            --ready;
            connections_[slot]->ready = entries[slot].revents;
            touch(*connections_[slot]);
            if (slot >= front_) swapSlots(slot, front_++);  // that one has been looked at
        }
        if (due) leaveFront();
        return all && !mustRest_;
    }

    // Until when poll() may wait: not at all while there is something to do.
    Microseconds waitUntil(std::chrono::milliseconds timeout) const {
        if (!busy_.empty() || stopAsked_ || signals_ > 0) return now_;
        const auto wait = std::min<Microseconds>(timeout.count(), 1'000'000'000);  // ms, for an int
        Microseconds until = wait < 0 ? kNever : now_ + wait * kMillisecond;
        if (!connections_.empty()) until = std::min(until, nextDeadlines_);
        if (shuttingDown_) until = std::min(until, shutdownDeadline_);
        if (now_ < restUntil_) until = std::min(until, restUntil_);
        if (tickPeriod() > 0) until = std::min(until, lastTick_ + tickPeriod());
        return until;
    }

    // Rounds up: otherwise the loop would spin through the last millisecond.
    static int milliseconds(Microseconds time) {
        return static_cast<int>(std::max<Microseconds>(time + kMillisecond - 1, 0) / kMillisecond);
    }

    // Connections that have been silent for 100 ms leave the front, unless they wait for POLLOUT.
    void leaveFront() {
        for (std::size_t slot = front_; slot-- > 0;) {
            const WSConnection &c = *connections_[slot];
            const bool silent = c.ready == 0 && now_ - c.lastByte > 100 * kMillisecond;
            if (silent && !c.stalled) swapSlots(slot, --front_);
        }
    }

    Microseconds updateClock() {
        timespec now{};
        ::clock_gettime(CLOCK_MONOTONIC, &now);
        return clock_ = std::max(clock_, Microseconds{now.tv_sec} * kSecond + now.tv_nsec / 1000);
    }

    pollfd &entryOf(const WSConnection &c) { return pollfds_[watched_.size() + c.slot]; }

    void swapSlots(std::size_t a, std::size_t b) {
        std::swap(entryOf(*connections_[a]), entryOf(*connections_[b]));
        std::swap(connections_[a], connections_[b]);
        connections_[a]->slot = a;
        connections_[b]->slot = b;
    }

    // Puts a connection on the busy list: finish() sees to it in this turn or the next.
    void touch(WSConnection &c) {
        if (!c.listed) busy_.push_back(&c);  // add() has reserved its place
        c.listed = true;
    }

    void logTrouble(const char *what, int error) {
        if (now_ - std::exchange(lastTrouble_, now_) > kSecond)
            log(WSLevel::warning, "cannot ", what, ", trying again: ", std::strerror(error));
    }

    // A system call for one connection failed. If memory is short, the next poll() rests first.
    void failedCall(WSConnection &c, const char *what, int error) {
        if (error == ENOBUFS || error == ENOMEM) mustRest_ = true, logTrouble(what, error);
        else if (error != EAGAIN && error != EWOULDBLOCK && error != EINTR)
            drop(c, "connection lost");
    }

    // Bytes to read in a turn, and one connection's share. A frame counts as kFrameBytes at least.
    static constexpr std::size_t kTurnBytes = 1 << 20, kMostBytes = 1 << 18, kLeastBytes = 1 << 16;
    static constexpr std::size_t kFrameBytes = 128;
    static constexpr Microseconds kShareTime = 250;

    // Whether it can be read from or written to, and has not been served yet.
    bool isReady(const WSConnection &c) const {
        return c.state != State::dead && (c.ready != 0 || (c.hasUnread && !isThrottled(c)));
    }

    // Serves at least one connection of each rank, more while its time lasts. The rest stay listed.
    void serve() {
        constexpr std::array<Microseconds, 3> kTimes{4 * kMillisecond, kMillisecond, kMillisecond};
        std::size_t ready = 0;
        for (const WSConnection *c : busy_) ready += isReady(*c);
        share_ = std::clamp(kTurnBytes / (ready + 1), kLeastBytes, kMostBytes);
        for (std::size_t rank = 0; rank < kTimes.size(); ++rank) {
            const Microseconds end = clock_ + kTimes[rank];
            for (std::size_t i = 0; i < busy_.size(); ++i) {
                WSConnection &c = *busy_[i];
                if (c.served || c.rank != rank || !isReady(c)) continue;
                serve(c);
                if (clock_ >= end) break;
            }
        }
    }

    // Rank 2: it has used up its share of bytes, or, for 20 times as long as it took, that of time.
    void serve(WSConnection &c) {
        const Microseconds began = clock_;
        const short ready = std::exchange(c.ready, short{0});
        const bool pastHandshake = c.state != State::handshaking;
        bool usedShare = false;
        serveEnd_ = began + kShareTime;
        guarded(c, [&] {
            if ((ready & POLLOUT) != 0 || isThrottled(c)) flush(c);
            if (c.hasUnread || (ready & ~POLLOUT) != 0) usedShare = read(c);
        });
        const Microseconds took = updateClock() - began;
        if (took > kShareTime) c.costlyUntil = clock_ + 20 * took;
        if (usedShare || clock_ < c.costlyUntil) c.rank = 2;
        else if (pastHandshake) c.rank = 0;
        c.served = true;
    }

    // A connection for which memory runs out is dropped; no other one is affected.
    template <class Work>
    void guarded(WSConnection &c, Work &&work) {
        try {
            work();
        } catch (const std::bad_alloc &) {
            log(WSLevel::error, "out of memory for ", c);
            drop(c, "out of memory");
        }
    }

    // Once a second: pings or drops silent peers, enforces deadlines, frees what idle ones hold.
    void checkDeadlines() {
        nextDeadlines_ = now_ + kSecond;
        body_ = nullptr;
        for (const auto &c : connections_) guarded(*c, [&] { checkDeadline(*c); });
    }

    // A user that is silent for pingSeconds is pinged, and dropped after as long again, unless it
    // waits to be read. (A peer can take too few bytes for POLLOUT to be reported: so we flush.)
    void checkDeadline(WSConnection &c) {
        if (c.queued() == 0) c.outbox = Outbox();
        if (c.reader.idle()) c.reader.message = nullptr;
        if (c.stalled) flush(c), touch(c);
        const Microseconds limit = microseconds(config_.pingSeconds);
        const bool late = now_ >= c.deadline, waits = c.state <= State::open && isReady(c);
        const bool silent = limit > 0 && now_ - c.lastByte >= limit;
        if (waits || (c.state == State::open && !silent)) return;
        if (c.state == State::open && c.lastPing <= c.lastByte) {
            c.lastPing = now_;
            c.deadline = now_ + limit;
            queueFrame(c, Opcode::ping, {});
        } else if (late) {
            if (c.state != State::handshaking) drop(c, "no answer");
            else answer(c, plainResponse(408, "The request took too long."));
        }
    }

    // Starts the shutdown if preShutdown() agrees; ends it at its deadline, or at another signal.
    void heedStop() {
        const bool asked = stopAsked_.exchange(false) || signals_ > 0;
        if (shuttingDown_ && (signals_ > 0 || now_ >= shutdownDeadline_))
            for (const auto &c : connections_) drop(*c, "shutdown");
        if (shuttingDown_ || !asked) return;
        signals_ = 0;
        bool doShutdown = true;
        callHook(nullptr, "preShutdown", [&] { server_.preShutdown(doShutdown); });
        if (!doShutdown) signalsInAll_ = 0;
        if (!doShutdown) return log(WSLevel::debug, "preShutdown() objected: the server goes on");
        log(WSLevel::debug, "shutting down");
        shuttingDown_ = true;
        shutdownDeadline_ = now_ + microseconds(config_.shutdownSeconds);
        closeListeners();
        for (const auto &c : connections_)
            guarded(*c, [&] {
                if (c->user) disconnect(*c->user, kGoingAway, "the server is shutting down");
                else if (c->state == State::handshaking)
                    answer(*c, plainResponse(503, "The server is shutting down."));
            });
    }

    // True once: when the last connection of a shutdown is closed.
    bool shutdownEnded() {
        if (!shuttingDown_ || !connections_.empty()) return false;
        callPosted();
        shuttingDown_ = stopAsked_ = false, signals_ = 0;  // a late stop() has had its effect
        callHook(nullptr, "postShutdown", [&] { server_.postShutdown(); });
        signalsInAll_ = 0;
        log(WSLevel::debug, "the server has stopped");
        return true;
    }

    Microseconds tickPeriod() const { return microseconds(config_.tickSeconds); }

    // Each tick is due a whole number of periods after the first, however late the last one was.
    void tick() {
        const Microseconds period = tickPeriod();
        if (period != std::exchange(lastPeriod_, period)) lastTick_ = now_;
        if (period <= 0 || now_ - lastTick_ < period) return;
        lastTick_ = now_ - (now_ - lastTick_) % period;
        callHook(nullptr, "tick", [&] { server_.tick(); });
    }

    // Writes what is queued, calls the hooks that are due, removes the dead: last, when no hook can
    // be walking over the users. What hooks cause here waits for the next turn, which is at once.
    void finish() {
        finishing_.swap(busy_);
        Microseconds writeEnd = kNever, goodbyeEnd = kNever;  // set by the first that needs them
        for (WSConnection *c : finishing_) {
            if (std::exchange(c->owesClose, false) && c->state != State::dead)
                guarded(*c, [&] { sendClose(*c); });
            if (c->stalled) continue;
            const bool large = c->queued() > kSmall;
            if (large) c->served = clock_ < writeEnd;
            if (!large || c->served) flush(*c);
            if (large) writeEnd = std::min(writeEnd, updateClock() + 2 * kMillisecond);
        }
        for (WSConnection *c : finishing_) {
            if (c->queued() == 0 && std::exchange(c->aboveMark, false) && c->state == State::open)
                callHook(c, "drained", [&] { server_.callDrained(*c->user); });
            if (!leaves(*c) || c->owesClose) continue;
            if (goodbyeEnd == kNever) goodbyeEnd = updateClock() + kMillisecond;
            if (clock_ < goodbyeEnd) sayGoodbye(*c), updateClock();
        }
        std::stable_partition(finishing_.begin(), finishing_.end(),
                              [](const WSConnection *c) { return !c->served; });
        for (WSConnection *c : finishing_) release(*c);
        finishing_.clear();
    }

    static bool leaves(const WSConnection &c) { return c.user && c.state > State::open; }

    // Removes a dead connection. For any other, tells poll() what to look for, or lists it again.
    void release(WSConnection &c) {
        c.listed = c.served = false;
        if (c.state == State::dead && !leaves(c)) return remove(c);
        const bool reads = !c.inputEnded && !c.hasUnread && !isThrottled(c);
        entryOf(c).events = static_cast<short>((reads ? POLLIN : 0) | (c.stalled ? POLLOUT : 0));
        const bool writes = c.queued() > 0 && !c.stalled && c.state != State::dead;
        if (leaves(c) || writes || isReady(c)) touch(c);
    }

    // The one place that removes a connection and closes its socket.
    void remove(WSConnection &c) {
        if (c.slot < front_) swapSlots(c.slot, --front_);
        swapSlots(c.slot, connections_.size() - 1);
        connections_.pop_back();
        pollfds_.pop_back();
        if (connections_.empty()) body_ = nullptr;  // checkDeadlines() would not run
    }

    void watch(int fd, short events, std::function<void(short)> function, bool first = false) {
        if (fd < 0 || !function)
            throw std::invalid_argument("watch() needs a descriptor and a function to call");
        growTo(pollfds_, pollfds_.size() + 1);
        growTo(watched_, watched_.size() + 1);
        auto shared = std::make_shared<std::function<void(short)>>(std::move(function));
        unwatch(fd);
        const auto place = static_cast<std::ptrdiff_t>(first ? 0 : watched_.size());
        pollfds_.insert(pollfds_.begin() + place, {fd, events, 0});
        watched_.insert(watched_.begin() + place, std::move(shared));
    }

    void unwatch(int fd) {
        const auto end = pollfds_.begin() + static_cast<std::ptrdiff_t>(watched_.size());
        const auto entry =
            std::find_if(pollfds_.begin(), end, [&](const pollfd &one) { return one.fd == fd; });
        if (entry == end) return;
        const auto place = watched_.begin() + (entry - pollfds_.begin());
        const auto last = std::move(*place);  // its destructor may watch or unwatch
        pollfds_.erase(entry);
        watched_.erase(place);
    }

    // The functions may watch and unwatch, so the search starts over after each.
    void serveWatched() {
        for (;;) {
            std::size_t i = 0;
            while (i < watched_.size() && pollfds_[i].revents == 0) ++i;
            if (i == watched_.size()) return;
            const short ready = std::exchange(pollfds_[i].revents, short{0});
            const int fd = pollfds_[i].fd;
            const auto function = watched_[i];  // it may unwatch itself
            const bool closed = (ready & POLLNVAL) != 0;
            if (closed) log(WSLevel::error, "descriptor ", fd, " was closed without unwatch()");
            const auto call = [&] { (*function)(ready); };
            if (closed || !callHook(nullptr, "a function given to watch", call)) unwatch(fd);
        }
    }

    // A forked process gets here with its copy of a loop. Only the process that runs the loop may
    // write to sockets or heed signals for it, and it needs a wake pipe of its own.
    bool isMine() const { return process_ == forks_; }
    void claim() {
        if (isMine()) return;
        std::array<int, 2> ends{-1, -1};
        const bool made = ::pipe(ends.data()) == 0;
        std::array<Descriptor, 2> pipe{Descriptor(ends[0]), Descriptor(ends[1])};
        if (!made || std::min<int>(pipe[0], pipe[1]) < 0 || !setNonBlocking(pipe[0]) ||
            !setNonBlocking(pipe[1]))
            throw std::system_error(errno, std::generic_category(), "cannot make a pipe");
        unwatch(wakePipe_[0]);
        for (const std::size_t i : {0U, 1U}) std::swap(wakePipe_[i].fd, pipe[i].fd);
        socketPath_.clear();  // the file belongs to the process that made it
        watch(wakePipe_[0], POLLIN, [this](short) { callPosted(); });
        process_ = forks_.load();
        wake();  // functions may have been posted before
    }

    void wake() noexcept {
        const int error = errno;  // a signal handler must not change it
        while (::write(wakePipe_[1], "", 1) < 0 && errno == EINTR) {}  // full: poll() wakes anyway
        errno = error;
    }

    // Only the first waiting function wakes the loop, so post() never fills the pipe.
    void post(std::function<void()> function) {
        if (!function) throw std::invalid_argument("post() needs a function to call");
        const std::lock_guard<std::mutex> lock(mutex_);
        posted_.push_back(std::move(function));
        if (posted_.size() == 1) wake();
    }

    void callPosted() {
        std::array<char, 64> bytes;
        while (::read(wakePipe_[0], bytes.data(), bytes.size()) > 0) {}
        std::unique_lock<std::mutex> lock(mutex_);
        const auto posted = std::exchange(posted_, {});
        lock.unlock();
        for (const auto &function : posted) callHook(nullptr, "a function given to post", function);
    }

    // === 3. Reading ==============================================================================
    // One recv() per connection and turn, of at most a share, into one inbox that all connections
    // use. Frames are parsed in place there, and payloads are unmasked into their message. What is
    // incomplete at the end is kept with the connection, and copied in front of the next bytes.
    // A share of 256 KiB can hold 43 000 of the smallest frames. So each frame counts as at least
    // 128 bytes, the clock is read on the way, and frames wait while their peer reads nothing.

    // Receives once, unless frames wait here already, and parses. True if the share is used up.
    bool read(WSConnection &c) {
        if (c.state == State::dead || isThrottled(c)) return false;
        std::size_t size = c.unread.size(), used = 0, traced = size;
        if (inbox_.size() < size + kMostBytes) inbox_.resize(size + kMostBytes);
        std::copy(c.unread.begin(), c.unread.end(), inbox_.begin());
        bool usedShare = false, receives = !c.hasUnread;
        if (receives) {
            const ssize_t received = ::recv(c.fd, &inbox_[size], share_, 0);
            if (received < 0) failedCall(c, "receive", errno);
            if (received == 0) endOfInput(c);
            if (received <= 0) return false;
            usedShare = static_cast<std::size_t>(received) == share_;
            size += static_cast<std::size_t>(received);
            stats_.bytesReceived += static_cast<std::uint64_t>(received);
        }
        c.lastByte = now_;
        c.hasUnread = false;
        if (c.state == State::handshaking) traced = used = doHandshake(c, {inbox_.data(), size});
        trace(c, WSDirection::received, {inbox_.data() + traced, size - traced});
        if (c.state == State::open || c.state == State::closing)
            used += readFrames(c, inbox_.data() + used, size - used);
        c.inputEnded = c.inputEnded && receives && used == size && !usedShare;  // or more may come
        if (c.state > State::closing) used = size;  // input is discarded
        if (used < size) c.unread = std::string(inbox_.data() + used, size - used);
        else if (!c.unread.empty()) std::string().swap(c.unread);  // idle ones own no memory
        return usedShare || c.hasUnread;
    }

    // Reads frames, also while we wait for the peer's Close; what follows that Close is discarded
    // (RFC 6455 1.4). Returns how many bytes were used; the caller keeps the others.
    std::size_t readFrames(WSConnection &c, char *bytes, std::size_t size) {
        const MessageReader::Limits limits{config_.maxMessageBytes, config_.maxFragments};
        std::size_t used = 0, cost = 0, nextLook = 1024;  // at this cost, look at the clock
        bool late = false;
        while (used < size && c.state <= State::closing) {
            if (isThrottled(c)) flush(c);
            if (cost >= nextLook) nextLook = cost + 1024, late = updateClock() >= serveEnd_;
            c.hasUnread = late || cost >= share_ || isThrottled(c);
            if (c.hasUnread) break;
            // Reuse the memory of the last message, unless a hook or a queue still shares it.
            if (!c.reader.message && body_.use_count() == 1 && body_->payload.use_count() == 1)
                c.reader.message.swap(body_->payload);
            MessageReader::Found found;
            const Progress progress = c.reader.read(bytes + used, size - used, limits, found);
            used += progress.used;
            cost += std::max(progress.used, kFrameBytes);
            if (progress.answer == Progress::needMore) break;
            if (progress.answer == Progress::bad) fail(c, progress.code, progress.reason);
            else received(c, found);
        }
        if (c.reader.idle() && body_.use_count() == 1 && !body_->payload)
            body_->payload.swap(c.reader.message);
        return used;
    }

    // While we wait for the peer's Close, messages are ignored, but pings are answered (RFC 6455
    // 5.5.2): only the latest one (5.5.3) while much is queued, or the peer takes nothing. A pong is
    // a sign of life, which read() has noted.
    void received(WSConnection &c, const MessageReader::Found &found) {
        if (found.opcode == Opcode::continuation || found.opcode == Opcode::pong) return;
        if (found.opcode == Opcode::close) return receivedClose(c, found.payload);
        if (now_ - c.rateSecond >= kSecond) c.rateSecond = now_, c.rateCount = 0;
        if (config_.maxMessagesPerSecond > 0 && ++c.rateCount > config_.maxMessagesPerSecond)
            return fail(c, kPolicyViolation, "too many messages per second");
        const bool isPing = found.opcode == Opcode::ping;
        if (!isPing && c.state == State::open) receivedMessage(c, found.opcode);
        if (isPing && (c.stalled || c.queued() > kSmall))
            c.pong = std::make_unique<std::string>(found.payload);
        else if (isPing) queueFrame(c, Opcode::pong, found.payload);
    }

    // Hands the reader's message to the hooks. Its body is reused unless a hook keeps it.
    void receivedMessage(WSConnection &c, Opcode opcode) {
        if (!body_ || body_.use_count() > 1) body_ = std::make_shared<WSMessage::Body>();
        body_->payload = std::move(c.reader.message);
        body_->binary = opcode == Opcode::binary;
        body_->parsed = false;
        body_->maxJsonDepth = config_.maxJsonDepth;
        body_->maxJsonValues = config_.maxJsonValues;
        WSMessage msg(std::move(body_));
        callHook(&c, "process", [&] {
            c.user->messageReceived();
            ++stats_.messagesReceived;
            server_.callProcess(*c.user, msg);
        });
        if (jsonTrouble != nullptr) log(WSLevel::error, std::exchange(jsonTrouble, nullptr));
        body_ = std::move(msg.body_);
        if (body_.use_count() == 1) body_->json.reset();  // it can be large
    }

    // The peer's Close: the answer to ours, or one that we answer with the same code; then we close
    // the TCP connection (RFC 6455 5.5.1, 7.1.1). Without a code, hooks see 1005 (7.1.5).
    void receivedClose(WSConnection &c, std::string_view payload) {
        const Progress close = parseClose(payload);
        if (close.answer == Progress::bad) return fail(c, close.code, close.reason);
        c.peerLeft = c.state == State::open;  // otherwise this answers ours
        c.inputEnded = c.lastPing == 0;       // once pinged, a Pong may still come (5.5.2): linger
        end(c, close.code, std::string(payload.substr(close.used)), State::flushing);
    }

    // What trace() itself sends is not traced: that would never end. False if it throws.
    bool trace(WSConnection &c, WSDirection way, std::string_view bytes) {
        if (!server_.tracing_ || !c.user || bytes.empty()) return true;
        inTrace_ = true;
        const bool fine = callHook(&c, "trace", [&] { server_.callTrace(*c.user, way, bytes); });
        inTrace_ = false;
        return fine;
    }

    // The peer will send nothing more. What is queued for it may still arrive.
    void endOfInput(WSConnection &c) {
        c.inputEnded = true;
        if (c.state == State::handshaking || c.state == State::lingering) return drop(c, "");
        end(c, kConnectionLost, "", State::flushing);
    }

    // === 4. Sending ==============================================================================
    // Whatever is queued for a connection during a turn goes out at its end, usually in one system
    // call (earlier if the queue is full). What the kernel does not take waits for POLLOUT. Small
    // frames are copied one after the other; large payloads are shared by all their receivers.

    // To all users if `user` is null. No connection is added or removed while a hook runs.
    int sendToAllBut(const WSBaseUser *user, const WSMessage &msg) {
        WSMessage own = msg;
        int sent = 0;
        for (const auto &c : connections_)
            if (c->user && c->user.get() != user && send(*c->user, msg, own)) ++sent;
        return sent;
    }

    // Queues a message with its hooks. preSend() may change `own`, for this receiver only.
    bool send(WSBaseUser &user, const WSMessage &msg, WSMessage &own) {
        WSConnection *c = user.connection_;
        if (c == nullptr || c->state != State::open) return false;
        const bool nested = std::exchange(inSendHook_, true);
        if (!nested) callHook(c, "preSend", [&] { server_.callPreSend(user, own); });
        const bool queued = queueMessage(*c, own);
        if (queued && !nested) callHook(c, "postSend", [&] { server_.callPostSend(user, own); });
        inSendHook_ = nested;
        if (own.body_ != msg.body_) own = msg;
        return queued;
    }

    // Queues one data frame; we never fragment, because a frame can have any length (RFC 6455 5.2).
    // If it does not fit the queue, even after a flush(), the user is disconnected: no message is
    // lost silently. False if the user is on the way out.
    bool queueMessage(WSConnection &c, const WSMessage &msg) {
        const Payload &payload = msg.body_->payload;
        const std::size_t size = payload->size() + kMaxFrameHeader;
        const auto fits = [&] {
            return c.queued() == 0 || c.queued() + size <= config_.maxQueuedBytes;
        };
        if (!fits()) flush(c);
        if (c.state == State::open && !fits()) {
            log(WSLevel::warning, c, " reads too slowly: its queue would exceed maxQueuedBytes");
            end(c, kPolicyViolation, "too slow", State::dead);
        }
        if (c.state != State::open) return false;
        const Opcode opcode = msg.body_->binary ? Opcode::binary : Opcode::text;
        queueFrame(c, opcode, *payload, payload->size() < kSmall ? nullptr : &payload);
        const bool queued = c.state == State::open;
        stats_.messagesSent += queued;
        return queued;
    }

    // Queues a frame. Copies the payload, unless `shared` is given: the same bytes, to share.
    void queueFrame(WSConnection &c, Opcode opcode, std::string_view payload,
                    const Payload *shared = nullptr) {
        std::array<char, kMaxFrameHeader> header;
        const std::size_t size = encodeFrameHeader(header.data(), opcode, payload.size());
        guarded(c, [&] {
            c.outbox.append({header.data(), size}, shared ? std::string_view() : payload);
            if (shared) c.outbox.append(*shared);
        });
        touch(c);
        const auto bytes = [&] { return std::string(header.data(), size).append(payload); };
        if (server_.tracing_ && !inTrace_)
            guarded(c, [&] { trace(c, WSDirection::sent, bytes()); });
    }

    // The only place that writes to a socket: whatever the kernel takes. POLLOUT goes on.
    void flush(WSConnection &c) {
        if (c.state == State::dead || !isMine()) return;
        c.aboveMark = c.aboveMark || c.queued() > lowMark();
        const bool waited = std::exchange(c.stalled, false);
        while (c.queued() > 0 && !c.stalled) {
            std::array<iovec, kMaxPieces> pieces;
            const std::size_t count = c.outbox.gather(pieces);
            msghdr message{};
            message.msg_iov = pieces.data();
            message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
            const iovec &one = pieces[0];  // send() is a little cheaper for the usual one piece
            const ssize_t sent = count == 1 ? ::send(c.fd, one.iov_base, one.iov_len, MSG_NOSIGNAL)
                                            : ::sendmsg(c.fd, &message, MSG_NOSIGNAL);
            if (sent < 0) failedCall(c, "send", errno);
            if (c.state == State::dead) return;
            if (sent > 0) wrote(c, static_cast<std::size_t>(sent), waited);
            c.stalled = c.queued() > 0 && (sent < 0 || count < kMaxPieces);
        }
        if (c.queued() > 0 || c.state != State::flushing || c.owesClose) return;
        if (c.inputEnded) return drop(c, "");
        // Half-close, so that the peer can read everything: close() with unread input would make
        // the kernel reset the connection (RFC 9112 9.6; RFC 6455 7.1.1 describes the same).
        ::shutdown(c.fd, SHUT_WR);
        c.state = State::lingering;
        c.deadline = now_ + microseconds(config_.closeSeconds);
    }

    // If the kernel had no room before and has some now, the peer is alive. While closing, progress
    // with `owed` extends the deadline; pongs do not: pings could keep the connection open forever.
    void wrote(WSConnection &c, std::size_t size, bool waited) {
        Payload payload = c.outbox.sent(size);
        if (!c.reader.message) c.reader.message = std::move(payload);
        stats_.bytesSent += size;
        if (waited) c.lastByte = now_;
        if (c.owed > 0) c.deadline = now_ + microseconds(config_.closeSeconds);
        c.owed -= std::min(c.owed, size);
        if (c.queued() > 0 || !c.pong) return;
        const auto pong = std::move(c.pong);
        if (c.state <= State::closing) queueFrame(c, Opcode::pong, *pong);
    }

    // At most half of maxQueuedBytes, so that a user is throttled before it is disconnected.
    std::size_t lowMark() const {
        return std::min(config_.lowMarkBytes, config_.maxQueuedBytes / 2);
    }

    // We do not read from a peer that does not take what is queued for it: it throttles itself.
    bool isThrottled(const WSConnection &c) const {
        return c.state <= State::closing && c.queued() > lowMark();
    }

    // === 5. Users ================================================================================
    // Whatever ends a connection calls end(), which notes why and moves the state forward. Nothing
    // is freed and no last hook runs before finish(): hooks and walks over users go on. Besides the
    // closing handshake there are fail() (RFC 6455 7.1.7), and drop(), for peers that are gone.

    // Starts the closing handshake (RFC 6455 7.1.2), after everything that is queued already.
    void disconnect(WSBaseUser &user, int code, std::string_view reason) {
        if (!isCloseCode(code))
            throw std::invalid_argument(
                "disconnect(): RFC 6455 7.4 does not allow the close code " + std::to_string(code));
        if (!isUtf8(reason)) throw std::invalid_argument("disconnect(): the reason is not UTF-8");
        WSConnection *c = user.connection_;
        if (c == nullptr) return;
        if (c->state == State::handshaking && decision_.status == 0)
            decision_.status = 403, decision_.body = reason;
        if (c->state != State::open) return;
        end(*c, code, std::string(cutUtf8(reason, kMaxControlPayload - 2)), State::closing);
    }

    // What preConnect() decides. Only in preConnect() has a user a connection without being open.
    WSResponse &decisionOn(const WSBaseUser &user, const char *call) {
        verified(&user);
        if (user.connection_ == nullptr || user.connection_->state != State::handshaking)
            throw std::logic_error(std::string(call) +
                                   " is for preConnect(), and for the user it was called with");
        return decision_;
    }

    // Every call of the program passes here, but run(), turn() and those that suit all threads.
    WSLoop &verified(const WSBaseUser *user = nullptr) {
        const std::thread::id thread = thread_;
        if (thread != std::thread::id() && thread != std::this_thread::get_id() && isMine())
            throw std::logic_error("another thread runs this server: use post(), or stop()");
        if (user != nullptr && user->clock_ != nullptr && user->clock_ != &now_)
            throw std::logic_error("this user belongs to another server");
        return *this;
    }

    // Fails the connection (RFC 6455 7.1.7): the peer is told why, its answer is not awaited.
    void fail(WSConnection &c, int code, std::string reason) {
        end(c, code, std::move(reason), State::flushing);
    }

    // Drops a connection at once. Keep `reason` within 15 bytes: memory may have run out.
    void drop(WSConnection &c, std::string reason) {
        end(c, kConnectionLost, std::move(reason), State::dead);
    }

    // Moves a connection towards its end. Hooks see the first code and reason only.
    void end(WSConnection &c, int code, std::string reason, State next) {
        if (!inTurn_) now_ = updateClock();
        if (c.state == State::open) {
            c.user->closeReason_ = std::move(reason);
            c.closeCode = static_cast<std::uint16_t>(code);
            c.owesClose = code != kConnectionLost;
            --userCount_;
        }
        if (c.state <= State::open) {
            c.since = now_;
            c.deadline = now_ + microseconds(config_.closeSeconds);
            c.owed = c.queued();
        }
        c.state = std::max(c.state, next);
        touch(c);
    }

    // Queues our Close: with the code of the peer's (or none) if that came first (RFC 6455 5.5.1).
    void sendClose(WSConnection &c) {
        std::string payload = encodeClose(c.closeCode, c.user->closeReason_);
        if (c.peerLeft) payload.resize(c.closeCode == kNoCode ? 0 : 2);
        queueFrame(c, Opcode::close, payload), c.owed = c.queued();
    }

    // Calls a user's last two hooks and frees it. The connection may live on, to close properly.
    void sayGoodbye(WSConnection &c) {
        const int code = c.closeCode;
        const std::string_view words = wordsFor(code), reason = c.user->closeReason_;
        const char *how = c.peerLeft ? " left: " : " was disconnected: ";
        log(WSLevel::debug, c, code == kConnectionLost ? " was lost: " : how, code,
            words.empty() ? "" : " ", words, reason.empty() ? "" : ": ", reason);
        guarded(c, [&] { ++stats_.disconnects[code < 3000 ? code : code / 1000 * 1000]; });
        callHook(&c, "preDisconnect", [&] { server_.callPreDisconnect(*c.user, c.fd); });
        callHook(&c, "postDisconnect", [&] { server_.postDisconnect(); });
        byId_.erase(c.user->id_);
        c.user.reset();
    }

    // The limit that keeps this newcomer out, or null. Users that are idle longest make room for it.
    const char *limitReached(const WSConnection &newcomer) {
        // An IPv6 client has a whole /64 (RFC 4291 2.5.4): all its addresses count as one.
        const bool six = newcomer.address && !isIpv4(*newcomer.address);
        const Network network{newcomer.address, six ? 64U : 128U};
        const auto isNear = [&](const auto &c) {
            return c->state == State::open && isIn(network, c->address);
        };
        const int most = config_.maxUsersPerAddress;
        if (most > 0 && std::count_if(connections_.begin(), connections_.end(), isNear) >= most)
            return "maxUsersPerAddress";
        while (userCount_ >= config_.maxUsers) {
            WSConnection *idlest = nullptr;
            for (const auto &c : connections_)
                if (c->state == State::open &&
                    (!idlest || c->user->lastMessage_ < idlest->user->lastMessage_) && isIdle(*c))
                    idlest = c.get();
            if (idlest == nullptr) break;
            disconnect(*idlest->user, kGoingAway, "idle");
        }
        return userCount_ < config_.maxUsers ? nullptr : "maxUsers";
    }

    // A user is not idle while a message from it has arrived but is not read yet.
    bool isIdle(WSConnection &c) {
        bool idle = false;
        callHook(&c, "isIdle", [&] { idle = c.user->isIdle(); });
        pollfd unread{c.fd, POLLIN, 0};
        return idle && c.state == State::open && !c.hasUnread && ::poll(&unread, 1, 0) <= 0;
    }

    // The one place that calls hooks (but console()). If one throws, its user is closed with 1011.
    template <class Hook>
    bool callHook(WSConnection *c, const char *name, Hook &&hook) {
        try {
            hook();
            return true;
        } catch (const std::exception &e) {
            hookThrew(c, name, e.what());
        } catch (...) {
            hookThrew(c, name, "something that is not a std::exception");
        }
        return false;
    }

    void hookThrew(WSConnection *c, const char *name, const char *what) {
        if (c == nullptr) return log(WSLevel::error, name, "() threw: ", what);
        log(WSLevel::error, name, "() threw, for ", *c, ": ", what);
        if (c->state == State::open) guarded(*c, [&] { fail(*c, kInternalError, ""); });
    }

    // Builds a line from texts, numbers and connections, only if it is wanted: that takes memory and
    // time. Failures in here or in console() are ignored: there is nowhere to log them.
    template <class... Parts>
    void log(WSLevel level, const Parts &...parts) {
        if (inConsole_ || (level == WSLevel::debug && !config_.debug)) return;
        inConsole_ = true;
        try {
            std::string text;
            const auto append = [&](const auto &part) {
                using Part = std::decay_t<decltype(part)>;
                if constexpr (std::is_same_v<Part, WSConnection>) text += nameOf(part);
                else if constexpr (std::is_arithmetic_v<Part>) text += std::to_string(part);
                else text += part;
            };
            (append(parts), ...);
            server_.console(level, printable(std::move(text)));
        } catch (...) {  // NOLINT(bugprone-empty-catch)
        }
        inConsole_ = false;
    }

    static std::string nameOf(const WSConnection &c) {
        const std::string address = encodeAddress(c.address);
        return c.user ? "user " + std::to_string(c.user->id()) + " (" + address + ')' : address;
    }

    // Peers influence what is logged. What a terminal might obey is replaced: control characters of
    // ASCII and Unicode, line separators, what overrides the direction of text, and whatever is not
    // UTF-8. A long line is cut: a pipe takes up to 512 bytes whole or not at all (_POSIX_PIPE_BUF).
    static std::string printable(std::string text) {
        constexpr std::size_t kMaxLine = 480;
        if (text.size() > kMaxLine) text = std::string(cutUtf8(text, kMaxLine)) + "...";
        const bool utf8 = isUtf8(text);
        const auto isRefused = [&](char c) {
            return isControl(c) || (static_cast<unsigned char>(c) >= 0x80 && !utf8);
        };
        std::replace_if(text.begin(), text.end(), isRefused, '?');
        // Ranges of characters, of which only the last bytes differ.
        constexpr std::tuple<std::string_view, unsigned char, unsigned char> kRanges[] = {
            {"\xC2", 0x80, 0x9F}, {"\xE2\x80", 0xA8, 0xAE}, {"\xE2\x81", 0xA6, 0xA9}};
        for (const auto &[lead, first, last] : kRanges) {
            for (std::size_t i = 0; (i = text.find(lead, i)) != text.npos; ++i) {
                const auto byte = static_cast<unsigned char>(text[i + lead.size()]);
                if (byte >= first && byte <= last) text.replace(i, lead.size() + 1, "?");
            }
        }
        return text;
    }

    // === 6. The opening handshake ================================================================
    // From accept() until the user is open, or the request is answered with anything but 101. The
    // socket, the clock, the limits and the hooks are here; the rules are in section 10.

    struct Endpoint {  // of a socket (sockaddr_in6 has its port where sockaddr_in has it)
        sockaddr_storage address{};
        socklen_t size = sizeof address;
        sockaddr *get() { return reinterpret_cast<sockaddr *>(&address); }
        bool hasPort() const { return address.ss_family != AF_UNIX; }
        in_port_t &port() { return reinterpret_cast<sockaddr_in &>(address).sin_port; }
    };

    // Accepts waiting clients. Some may be gone again already, which is normal; after other errors
    // (no descriptor is left; another process has shut the listener down) the listeners rest.
    void connect(int socket) {
        for (int accepted = 0; accepted < 64; ++accepted) {
            Endpoint peer;
#if defined(__linux__) || defined(__FreeBSD__)
            Descriptor fd(::accept4(socket, peer.get(), &peer.size, SOCK_NONBLOCK | SOCK_CLOEXEC));
#else
            Descriptor fd(::accept(socket, peer.get(), &peer.size));
            if (fd >= 0) setNonBlocking(fd);
#endif
            if (fd >= 0) {
                add(std::move(fd), peer);
            } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
                if (errno == EAGAIN || errno == EWOULDBLOCK) return;
                restUntil_ = now_ + kRest;
                return logTrouble("accept", errno);
            }
        }
    }

    static bool setNonBlocking(int fd) {
        return ::fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && ::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
    }

    static std::optional<Address> addressOf(const sockaddr_storage &peer) {
        Address address = kIpv4;
        if (peer.ss_family == AF_INET)
            std::memcpy(&address[12], &reinterpret_cast<const sockaddr_in &>(peer).sin_addr, 4);
        else if (peer.ss_family == AF_INET6)
            std::memcpy(&address[0], &reinterpret_cast<const sockaddr_in6 &>(peer).sin6_addr, 16);
        else return std::nullopt;
        return address;
    }

    // Adds a connection, still without a user, to the front. Out of memory: the socket is closed.
    void add(Descriptor fd, const Endpoint &peer) {
        makePendingRoom();
        const int on = 1;
        if (config_.listenFd >= 0)  // it may have connected before openListener() set the option
            ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef SO_NOSIGPIPE
        ::setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
        try {
            const std::size_t size = connections_.size() + 1;
            growTo(pollfds_, watched_.size() + size);
            growTo(connections_, size);
            growTo(busy_, size);
            growTo(finishing_, size);
            auto c = std::make_unique<WSConnection>(std::move(fd));
            c->slot = connections_.size();
            c->address = addressOf(peer.address);
            c->lastByte = c->since = now_;
            c->deadline = now_ + microseconds(config_.handshakeSeconds);
            pollfds_.push_back({c->fd, POLLIN, 0});
            connections_.push_back(std::move(c));
            swapSlots(size - 1, front_++);
        } catch (const std::bad_alloc &) {  // NOLINT(bugprone-empty-catch)
        }
    }

    // If too many connections have no user, the one with the earliest deadline is dropped. One that
    // is owed bytes is spared, but only for closeSeconds: slow readers must not keep newcomers out.
    void makePendingRoom() {
        if (static_cast<int>(connections_.size() - byId_.size()) < config_.maxPending) return;
        const auto urgency = [&](const WSConnection &c) {
            const bool spared = c.owed > 0 && now_ - c.since < microseconds(config_.closeSeconds);
            return std::make_pair(spared, c.deadline);
        };
        WSConnection *first = nullptr;
        int pending = 0;
        for (const auto &c : connections_) {
            if (c->user || c->state == State::dead) continue;
            ++pending;
            if (first == nullptr || urgency(*c) < urgency(*first)) first = c.get();
        }
        if (pending >= config_.maxPending && first != nullptr) drop(*first, "");
    }

    // Collects the request's head, however it trickles in. Returns its size once it is complete.
    std::size_t doHandshake(WSConnection &c, std::string_view bytes) {
        const std::string_view text = bytes.substr(0, config_.maxRequestBytes);
        c.wantsBody = text.substr(0, 5) != "HEAD ";
        RequestHead head;
        const Progress progress = parseHead(text, c.unread.size(), head);
        if (progress.answer == Progress::bad) {
            answer(c, plainResponse(progress.code, progress.reason));
        } else if (progress.answer == Progress::done) {
            c.address = clientAddress(c.address, proxies_, head);
            answerRequest(c, head);
        } else if (text.size() == config_.maxRequestBytes) {
            answer(c, plainResponse(431, "The request's head is too large."));
        }
        return progress.used;
    }

    void answerRequest(WSConnection &c, const RequestHead &head) {
        WSResponse reply = checkRequest(head);
        if (reply.status == 0 && !asksForWebSocket(head)) {
            const WSRequest request(std::string(head.text), encodeAddress(c.address));
            const bool fine = callHook(&c, "httpRequest", [&] {
                server_.httpRequest(request, reply);
                if (reply.status != 0 && !isSendable(reply))
                    throw std::logic_error("the response cannot be sent");
            });
            if (fine && reply.status != 0) return answer(c, reply, head.path, false);
            reply = fine ? upgradeRequired() : plainResponse(500, "Something went wrong.");
        }
        if (reply.status == 0) reply = checkUpgrade(head);
        if (reply.status == 0 && !originAllowed(head)) {
            const std::string origin = fieldValue(head, "Origin");
            reply = plainResponse(
                403, origin.empty() ? "The request has no Origin."
                                    : "The origin " + quoted(origin) + " is not in uniqueOrigin.");
        }
        if (const char *limit = reply.status == 0 ? limitReached(c) : nullptr; limit != nullptr)
            reply =
                plainResponse(503, std::string("There is no room: ") + limit + " has been reached.",
                              {{"Retry-After", "10"}});  // seconds: a guess
        if (reply.status == 0) welcome(c, head);
        else answer(c, reply, head.path);
    }

    // Origins are compared in one spelling. Only a browser's can be trusted (RFC 6455 10.2).
    bool originAllowed(const RequestHead &head) const {
        const std::string value = fieldValue(head, "Origin");
        if (countFields(head, "Origin") == 0) return !config_.requireOrigin;
        if (origins_.empty()) return !config_.requireOrigin || !value.empty();
        const std::optional<std::string> origin = normalOrigin(value);  // none if there are two
        return origin && std::count(origins_.begin(), origins_.end(), *origin) > 0;
    }

    // Makes the user, and lets it in unless preConnect() refuses it. What can throw comes before
    // preConnect() returns, or is guarded: so the hooks always come in pairs.
    void welcome(WSConnection &c, const RequestHead &head) {
        const std::string key = acceptKey(fieldValue(head, "Sec-WebSocket-Key"));
        const std::string page = fieldValue(head, "Origin");
        const std::string offered = fieldValue(head, "Sec-WebSocket-Protocol");
        const std::string chosen = chooseProtocol(config_.protocols, offered);
        const std::uint64_t id = ++lastId_;
        decision_ = {};
        bool fine = callHook(&c, "preConnect", [&] {
            c.user = server_.makeUser();
            byId_[id] = &c;
            WSBaseUser &user = *c.user;
            user.connection_ = &c;
            user.id_ = id;
            user.clock_ = &now_;
            user.lastMessage_ = now_;
            user.request_ = WSRequest(std::string(head.text), encodeAddress(c.address));
            if (!chosen.empty()) user.protocol_ = std::make_unique<const std::string>(chosen);
            server_.callPreConnect(user, c.fd);
        });
        if (fine && decision_.status == 0) fine = trace(c, WSDirection::received, head.text);
        if (!fine || decision_.status != 0) {
            byId_.erase(id);
            c.user.reset();
            if (!fine) decision_.status = 500, decision_.body = "Something went wrong.";
            return answer(c, plainResponse(decision_.status, decision_.body, decision_.headers),
                          head.path);
        }
        c.state = State::open;
        ++userCount_;
        guarded(c, [&] {
            std::string response = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n";
            response += "Connection: Upgrade\r\nSec-WebSocket-Accept: " + key + "\r\n";
            const std::string &protocol = c.user->protocol();
            if (!protocol.empty()) response += "Sec-WebSocket-Protocol: " + protocol + "\r\n";
            for (const auto &[name, value] : decision_.headers)
                response += name + ": " + value + "\r\n";
            // Shared, not copied, so that an idle connection keeps no buffer.
            c.outbox.append(std::make_shared<std::string>(response += "\r\n"));
            trace(c, WSDirection::sent, response);
        });
        touch(c);
        log(WSLevel::debug, c, " came to ", head.path, page.empty() ? "" : " from a page of ",
            page);
        callHook(&c, "postConnect", [&] { server_.callPostConnect(*c.user, c.fd); });
    }

    // Answers with anything but 101. Later input is read and discarded, so that the answer arrives.
    void answer(WSConnection &c, const WSResponse &response, std::string_view path = {},
                bool isOurs = true) {
        const std::string_view body = isOurs ? std::string_view(response.body) : "";
        const std::string_view why = body.substr(0, body.find('\n'));
        const std::string_view words = wordsFor(response.status);
        log(WSLevel::debug, c, path.empty() ? "" : " asked for ", path.substr(0, 200),
            path.empty() ? "" : " and", " was answered ", response.status, words.empty() ? "" : " ",
            words, why.empty() ? "" : ": ", why);
        guarded(c, [&] {
            c.outbox.append(std::make_shared<std::string>(
                encodeResponse(response, std::time(nullptr), c.wantsBody)));
        });
        end(c, 0, {}, State::flushing);
        if (c.state != State::dead) guarded(c, [&] { ++stats_.answers[response.status]; });
    }

    // === 7. Listening ============================================================================
    // Sockets, limits and signals: what we ask of the operating system.

    // All addresses get the same port. If the system picked one that is taken at another, we retry.
    void listen() {
        claim();
        if (!listeners_.empty() || shuttingDown_) return;
        checkConfig();
        const std::vector<Endpoint> places = resolve();
        int error = EADDRINUSE, tries = config_.port == 0 && unixPath().empty() ? 10 : 1;
        while (error == EADDRINUSE && tries-- > 0) error = openListeners(places);
        if (error != 0)
            throw std::runtime_error(endpointName(config_.port) + ": cannot listen there (" +
                                     std::generic_category().message(error) + "); " +
                                     advice(error, !unixPath().empty()));
        raiseFileLimit();
        lastTick_ = now_ = updateClock();
        lastPeriod_ = tickPeriod();
        log(WSLevel::debug, "listening at ", endpointName(port_));
    }

    static const char *advice(int error, bool isPath) {
        switch (error) {
        case EACCES: return isPath ? "make the folder writable" : "set a port above 1023";
        case EADDRINUSE: return isPath ? "stop or remove what is there" : "stop what uses the port";
        case EADDRNOTAVAIL: return "set an address of this machine, or \"\" for all of them";
        case ENOENT: return "create the folder first";
        case EMFILE: return "raise the limit of open files (ulimit -n)";
        default: return isPath ? "set another path" : "set another address or port";
        }
    }

    // Opens all or none. Returns 0 or an errno. Skips addresses that this machine does not have.
    int openListeners(const std::vector<Endpoint> &places) try {
        growTo(listeners_, places.size());
        int error = EADDRNOTAVAIL;
        for (const Endpoint &place : places) {
            const int problem = openListener(place);
            if (problem != EADDRNOTAVAIL && problem != EAFNOSUPPORT) error = problem;
            if (error != 0 && error != EADDRNOTAVAIL) break;
        }
        if (error != 0) closeListeners();
        return error;
    } catch (...) {
        closeListeners();
        throw;
    }

    int openListener(Endpoint place) {
        const bool given = config_.listenFd >= 0;
        const int family = place.address.ss_family, on = 1;
        Descriptor socket(given ? ::fcntl(config_.listenFd, F_DUPFD_CLOEXEC, 0)
                                : ::socket(family, SOCK_STREAM, 0));
        const auto set = [&](int level, int option) {
            return ::setsockopt(socket, level, option, &on, sizeof on) == 0;
        };
        if (socket < 0 || !setNonBlocking(socket)) return errno;
        if (!given && place.hasPort()) {
            place.port() = htons(static_cast<in_port_t>(port_ != 0 ? port_.load() : config_.port));
            set(SOL_SOCKET, SO_REUSEADDR);
            if (family == AF_INET6) set(IPPROTO_IPV6, IPV6_V6ONLY);
            if (config_.reusePort && !set(SOL_SOCKET, SO_REUSEPORT)) return errno;
        }
        set(IPPROTO_TCP, TCP_NODELAY);  // accepted sockets inherit it; we join small frames anyway
        if (!given && (!bind(socket, place) || ::listen(socket, SOMAXCONN) != 0)) return errno;
        place.size = sizeof place.address;
        if (::getsockname(socket, place.get(), &place.size) != 0) return errno;
        port_ = place.hasPort() ? ntohs(place.port()) : 0;
        const auto accepts = [this, fd = socket.fd](short) { connect(fd); };
        watch(socket, POLLIN, accepts, true);
        listeners_.push_back(std::move(socket));
        return 0;
    }

    // Binds, and replaces the file of a Unix socket that no process listens on: a dead server's.
    // The file's mode is set before listen(), because clients can connect from then on.
    bool bind(int fd, Endpoint &place) {
        const std::string path = unixPath();
        struct stat file {};
        if (!path.empty() && ::lstat(path.c_str(), &file) == 0 && S_ISSOCK(file.st_mode)) {
            const Descriptor other(::socket(AF_UNIX, SOCK_STREAM, 0));
            if (other >= 0 && setNonBlocking(other) &&
                ::connect(other, place.get(), place.size) != 0 && errno == ECONNREFUSED)
                ::unlink(path.c_str());
        }
        if (::bind(fd, place.get(), place.size) != 0) return false;
        socketPath_ = path;
        return path.empty() || ::chmod(path.c_str(), static_cast<mode_t>(config_.unixMode)) == 0;
    }

    // The path in "unix:/path"; empty if the address has another form.
    std::string unixPath() const {
        return config_.address.compare(0, 5, "unix:") == 0 ? config_.address.substr(5) : "";
    }

    // Every address that the configured one resolves to, each once.
    std::vector<Endpoint> resolve() const {
        std::vector<Endpoint> places(1);
        if (config_.listenFd >= 0) return places;
        if (const std::string path = unixPath(); !path.empty()) {
            auto &where = reinterpret_cast<sockaddr_un &>(places[0].address);
            where.sun_family = AF_UNIX;
            path.copy(where.sun_path, sizeof where.sun_path - 1);
            places[0].size = sizeof where;
            return places;
        }
        addrinfo hints{}, *list = nullptr;
        hints.ai_socktype = SOCK_STREAM;
        hints.ai_flags = AI_PASSIVE;
        const bool every = config_.address.empty() || parseAddress(config_.address) == Address{};
        const char *host = every ? nullptr : config_.address.c_str();
        if (const int error = ::getaddrinfo(host, "0", &hints, &list); error != 0)
            throw std::runtime_error("address is " + quoted(config_.address) +
                                     ": it does not resolve (" + ::gai_strerror(error) +
                                     "); write a host name or address alone: no brackets, no "
                                     "scheme, and its port into port");
        const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
        for (places.clear(); list != nullptr; list = list->ai_next) {
            Endpoint place;
            place.size = list->ai_addrlen;
            std::memcpy(&place.address, list->ai_addr, list->ai_addrlen);
            const auto same = [&](const Endpoint &other) {
                return std::memcmp(&other.address, &place.address, sizeof place.address) == 0;
            };
            if (std::none_of(places.begin(), places.end(), same)) places.push_back(place);
        }
        return places;
    }

    std::string endpointName(int port) const {
        if (config_.listenFd >= 0) return "listenFd " + std::to_string(config_.listenFd);
        const std::string address =
            config_.address.empty() ? "every address" : "address " + quoted(config_.address);
        return !unixPath().empty() ? address : address + ", port " + std::to_string(port);
    }

    static std::string quoted(const std::string &text) { return '"' + text + '"'; }

    // Removes the Unix socket's file first: after that, a new server can create its own.
    void closeListeners() {
        if (!socketPath_.empty() && isMine()) ::unlink(socketPath_.c_str());
        socketPath_.clear();
        for (const Descriptor &fd : listeners_) unwatch(fd);
        listeners_.clear();
        port_ = 0;
    }

    // Each connection takes a descriptor, the program a few more. We may raise the soft limit.
    void raiseFileLimit() {
        const auto wanted = static_cast<rlim_t>(64LL + config_.maxUsers + config_.maxPending);
        rlimit limit{};
        if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
        const rlimit raised{std::min(wanted, limit.rlim_max), limit.rlim_max};
        if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
        if (limit.rlim_cur < wanted)
            log(WSLevel::warning, "only ", limit.rlim_cur, " files may be open, but maxUsers and ",
                "maxPending may need ", wanted, "; raise the limit (ulimit -n)");
    }

    [[noreturn]] static void reject(const char *field, const std::string &value,
                                    const std::string &what) {
        throw std::invalid_argument(field + (" is " + value) + ": " + what);
    }

    template <class Number>
    static void check(const char *field, Number value, double least, double most,
                      const char *note = "") {
        const auto number = static_cast<double>(value);
        if (number >= least && number <= most) return;  // NaN is not
        std::array<char, 100> range{}, text{};
        std::snprintf(range.data(), range.size(), "set %.15g to %.15g%s", least, most, note);
        std::snprintf(text.data(), text.size(), "%.15g", number);
        reject(field, text.data(), range.data());
    }

    template <class Value>
    static std::vector<Value> checked(const char *field, const std::vector<std::string> &entries,
                                      std::optional<Value> parse(std::string_view),
                                      const char *what) {
        std::vector<Value> values;
        for (const std::string &entry : entries) {
            std::optional<Value> value = parse(entry);
            if (!value) reject(field, quoted(entry), what);
            values.push_back(std::move(*value));
        }
        return values;
    }

    // Throws for the first field that makes no sense. Keeps, parsed, the lists that are read once.
    void checkConfig() {
        const WSBaseConfig &c = config_;
        constexpr double kMost = 0x7FFFFFFF, kBytes = 1e15, kSeconds = 1e6, kLeastSeconds = 0.001;
        const std::string path = unixPath();
        if (c.address == "unix:" || path.size() >= sizeof(sockaddr_un::sun_path) ||
            path.find('\0') != path.npos)
            reject("address", quoted(printable(c.address)),
                   "set a path behind \"unix:\" that is no longer than a Unix socket's may be");
        check("unixMode", c.unixMode, 0, 0777, " (0777), such as 0660");
        check("port", c.port, 0, 65535, "; 0: the system picks one");
        int listens = c.listenFd < 0;
        socklen_t size = sizeof listens;
        ::getsockopt(c.listenFd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size);
        if (c.listenFd < -1 || listens == 0)
            reject("listenFd", std::to_string(c.listenFd),
                   "not a listening socket; set one that listen() was called for, or -1 for none");
        check("maxUsers", c.maxUsers, 1, kMost);
        check("maxPending", c.maxPending, 1, kMost);
        check("maxUsersPerAddress", c.maxUsersPerAddress, 0, kMost, "; 0: no limit");
        check("maxMessagesPerSecond", c.maxMessagesPerSecond, 0, kMost, "; 0: no limit");
        check("maxRequestBytes", c.maxRequestBytes, 1, kBytes);
        check("maxMessageBytes", c.maxMessageBytes, 1, kBytes);
        check("maxFragments", c.maxFragments, 1, kMost);
        check("maxQueuedBytes", c.maxQueuedBytes, 1, kBytes);
        check("maxJsonDepth", c.maxJsonDepth, 1, kMaxJsonDepth, ": what a stack holds");
        check("maxJsonValues", c.maxJsonValues, 1, kMost);
        check("handshakeSeconds", c.handshakeSeconds, kLeastSeconds, kSeconds);
        if (c.pingSeconds != 0)
            check("pingSeconds", c.pingSeconds, kLeastSeconds, kSeconds, ", or 0 for no pings");
        check("closeSeconds", c.closeSeconds, kLeastSeconds, kSeconds);
        check("shutdownSeconds", c.shutdownSeconds, 0, kSeconds);
        if (c.tickSeconds != 0)
            check("tickSeconds", c.tickSeconds, kLeastSeconds, kSeconds, ", or 0 for no ticks");
        for (const std::string &protocol : c.protocols)
            if (!isToken(protocol))
                reject("protocols", quoted(protocol), "not a token, such as \"chat.v1\"");
        origins_ = checked("uniqueOrigin", c.uniqueOrigin, normalOrigin,
                           "not an origin; write scheme://host or scheme://host:port, no more");
        proxies_ = checked("trustedProxies", c.trustedProxies, parseNetwork,
                           "write an address, a network such as \"10.0.0.0/8\", or \"unix\"");
    }

    // By signal (64 is the last), the loop that it stops, or null: all that the handler may touch.
    static inline std::array<std::atomic<WSLoop *>, 65> loops_;

    // A forked child, and a program in which a hook hangs, end as if there were no server.
    static void onSignal(int signal) {
        WSLoop *const loop = loops_[static_cast<std::size_t>(signal)];
        if (loop == nullptr) return;
        if (loop->isMine() && ++loop->signalsInAll_ < 3) {
            ++loop->signals_;
            return loop->wake();
        }
        ::signal(signal, SIG_DFL);
        ::raise(signal);
        ::_exit(128 + signal);  // process 1 of a container has survived
    }

    void stopOn(std::initializer_list<int> signals) {
        claim();
        oldHandlers_.reserve(oldHandlers_.size() + signals.size());  // no handler must get lost
        for (const int signal : signals) {
            if (signal < 1 || signal > 64)
                throw std::invalid_argument("stopOn(): no signal " + std::to_string(signal));
            std::atomic<WSLoop *> &server = loops_[static_cast<std::size_t>(signal)];
            if (server == this) continue;
            if (server != nullptr)
                throw std::logic_error("stopOn(): another server handles this signal");
            struct sigaction action {};
            action.sa_handler = onSignal;
            action.sa_flags = SA_RESTART | SA_NODEFER;
            oldHandlers_.emplace_back(signal, action);
            server = this;  // first: the signal may come at once
            if (::sigaction(signal, &action, &oldHandlers_.back().second) == 0) continue;
            server = nullptr;
            oldHandlers_.pop_back();
            throw std::system_error(errno, std::generic_category(), "stopOn()");
        }
    }

    WSBaseServer &server_;
    WSBaseConfig &config_;
    std::vector<std::string> origins_;  // config_.uniqueOrigin, in one spelling
    std::vector<Network> proxies_;      // config_.trustedProxies
    std::vector<Descriptor> listeners_;
    std::string socketPath_;  // of the listener, if it is a Unix socket
    std::atomic<int> port_{0};

    Microseconds clock_ = 0, start_ = updateClock();  // the clock, read when time may have passed
    Microseconds now_ = 0;                            // when poll() returned, for the whole turn
    Microseconds nextFullPoll_ = 0, nextDeadlines_ = 0, shutdownDeadline_ = 0;
    Microseconds lastTrouble_ = -kSecond;
    Microseconds lastTick_ = 0, lastPeriod_ = 0;  // when tick() was due last, and its period then
    Microseconds restUntil_ = 0;                  // until then the listeners are not polled
    Microseconds serveEnd_ = 0;                   // when the served connection's time is over
    std::size_t share_ = kMostBytes;              // for each connection, in this turn

    // First the entries of watched_, of which the listeners come first; then those of connections_,
    // in the same order, of which the front comes first.
    std::vector<pollfd> pollfds_;
    std::vector<std::shared_ptr<std::function<void(short)>>> watched_;
    std::vector<std::unique_ptr<WSConnection>> connections_;
    std::size_t front_ = 0;                         // how many have spoken lately
    std::vector<WSConnection *> busy_;              // something happened to them, oldest first
    std::vector<WSConnection *> finishing_;         // the same, while finish() handles them
    std::map<std::uint64_t, WSConnection *> byId_;  // those that have a user, whatever their state
    int userCount_ = 0;                             // users that are open
    std::uint64_t lastId_ = 0;
    WSStats stats_;
    std::vector<char> inbox_;                // shared by all connections: idle ones need none
    std::shared_ptr<WSMessage::Body> body_;  // of the last message, kept for the next one
    bool mustRest_ = false;                  // the kernel has no memory
    bool inSendHook_ = false, inTrace_ = false, inConsole_ = false, shuttingDown_ = false;
    WSResponse decision_;  // of preConnect(): status 0 lets the user in; headers go out

    // What other threads and signal handlers touch.
    std::array<Descriptor, 2> wakePipe_{Descriptor(-1), Descriptor(-1)};
    std::atomic<std::thread::id> thread_{};  // that runs the loop; none before and after that
    std::atomic<bool> inTurn_{false}, stopAsked_{false};
    std::atomic<int> signals_{0};              // since preShutdown() was asked
    std::atomic<int> signalsInAll_{0};         // since the last shutdown, or the last veto
    std::atomic<int> process_{-1};             // the process that runs the loop, as its forks_
    static inline std::atomic<int> forks_{0};  // of this process and its ancestors
    static inline const int counting_ = ::pthread_atfork(nullptr, nullptr, [] { ++forks_; });
    std::mutex mutex_;  // guards posted_
    std::vector<std::function<void()>> posted_;
    std::vector<std::pair<int, struct sigaction>> oldHandlers_;
};

WSBaseServer::WSBaseServer(std::unique_ptr<WSBaseConfig> config)
    : config_(std::move(config)), loop_(std::make_unique<WSLoop>(*this, *config_)) {}
WSBaseServer::~WSBaseServer() = default;
void WSBaseServer::run() { loop_->run(); }
void WSBaseServer::listen() { loop_->verified().listen(); }
int WSBaseServer::port() const { return loop_->port_; }
bool WSBaseServer::turn(std::chrono::milliseconds timeout) { return loop_->turn(timeout); }
void WSBaseServer::shutdown() { loop_->verified().stopAsked_ = true; }
void WSBaseServer::stop() noexcept { loop_->stopAsked_ = true, loop_->wake(); }
void WSBaseServer::stopOn(std::initializer_list<int> signals) { loop_->verified().stopOn(signals); }
void WSBaseServer::post(std::function<void()> function) { loop_->post(std::move(function)); }
void WSBaseServer::watch(int fd, short events, std::function<void(short)> function) {
    loop_->verified().watch(fd, events, std::move(function));
}
void WSBaseServer::unwatch(int fd) {  // between turns, a destructor in any thread may
    (loop_->inTurn_ ? loop_->verified() : *loop_).unwatch(fd);
}
bool WSBaseServer::sendToUser(WSBaseUser &user, const WSMessage &msg) {
    WSMessage own = msg;
    return loop_->verified(&user).send(user, msg, own);
}
int WSBaseServer::sendToAll(const WSMessage &msg) {
    return loop_->verified().sendToAllBut(nullptr, msg);
}
int WSBaseServer::sendToAllBut(const WSBaseUser &user, const WSMessage &msg) {
    return loop_->verified(&user).sendToAllBut(&user, msg);
}
void WSBaseServer::disconnect(WSBaseUser &user, int code, std::string_view reason) {
    loop_->verified(&user).disconnect(user, code, reason);
}
void WSBaseServer::refuse(WSBaseUser &user, int status, std::string_view text) {
    WSResponse &decision = loop_->decisionOn(user, "refuse()");
    if (status < 400 || status > 599)
        throw std::invalid_argument("refuse() takes 400 to 599, not " + std::to_string(status));
    decision.status = status;
    decision.body = text;
}
void WSBaseServer::setHeader(WSBaseUser &user, std::string_view name, std::string_view value) {
    WSResponse &decision = loop_->decisionOn(user, "setHeader()");
    const WSResponse one{200, {{std::string(name), std::string(value)}}, {}};
    if (!isSendable(one) || sameIgnoringCase(name, "Upgrade") ||
        sameIgnoringCase(name.substr(0, 14), "Sec-WebSocket-"))
        throw std::invalid_argument("setHeader(): " + one.headers[0].first +
                                    " is the server's own, or its name or value is malformed");
    decision.headers.push_back(one.headers[0]);
}
void WSBaseServer::acceptProtocol(WSBaseUser &user, std::string_view protocol) {
    loop_->decisionOn(user, "acceptProtocol()");
    const std::string offered = user.request_.header("Sec-WebSocket-Protocol");
    if (chooseProtocol({std::string(protocol)}, offered) != protocol)
        throw std::invalid_argument("acceptProtocol(): the client does not offer it");
    user.protocol_ = protocol.empty() ? nullptr : std::make_unique<const std::string>(protocol);
}
int WSBaseServer::userCount() const { return loop_->verified().userCount_; }
std::size_t WSBaseServer::slotCount() const { return loop_->verified().connections_.size(); }
WSBaseUser *WSBaseServer::userInSlot(std::size_t slot) const {
    const WSConnection &c = *loop_->verified().connections_[slot];
    return c.state == WSConnection::State::open ? c.user.get() : nullptr;
}
WSBaseUser *WSBaseServer::userById(std::uint64_t id) const {
    const auto &byId = loop_->verified().byId_;
    const auto place = byId.find(id);
    return place == byId.end() ? nullptr : userInSlot(place->second->slot);
}
WSStats WSBaseServer::stats() const {
    const WSLoop &loop = loop_->verified();
    WSStats all = loop.stats_;
    all.users = static_cast<std::uint64_t>(loop.userCount_);
    all.pending = loop.connections_.size() - all.users;
    for (const auto &c : loop.connections_) all.queuedBytes += c->queued();
    return all;
}

// A pipe that is not read must not block the server: a line that it does not take is dropped. (A
// line is short enough to be taken whole. A stopped terminal may still block the server.)
void WSBaseServer::console(WSLevel level, std::string_view text) {
    pollfd out{STDOUT_FILENO, POLLOUT, 0};
    if (::poll(&out, 1, 0) != 1 || out.revents != POLLOUT) return;
    constexpr std::array<const char *, 3> kLabels{"", "warning: ", "error: "};  // by WSLevel
    std::printf("%8.3f %s%.*s\n", seconds(loop_->clock_ - loop_->start_),
                kLabels[static_cast<std::size_t>(level)], static_cast<int>(text.size()),
                text.data());
    std::fflush(stdout);
}

// === 8. What hooks are given =====================================================================
namespace {

// jsoncpp's strict reader, and its writer, compact and with UTF-8 unescaped: making them takes ten
// times as long as using them. Before 1.9.7, it reads fractions as the global locale has them.
struct JsonTools {
    std::unique_ptr<Json::CharReader> reader;
    std::unique_ptr<Json::StreamWriter> writer;
    std::locale locale;  // the global one
    bool readsFractions = false;

    JsonTools() {
        Json::CharReaderBuilder readers;
        Json::CharReaderBuilder::strictMode(&readers.settings_);
        readers["skipBom"] = false;
        readers["stackLimit"] = kMaxJsonDepth + 1;
        reader.reset(readers.newCharReader());
        Json::StreamWriterBuilder writers;
        writers["indentation"] = "";
        writers["emitUTF8"] = true;
        writer.reset(writers.newStreamWriter());
        const std::string_view test = "[1.5]";
        Json::Value json;
        reader->parse(test.data(), test.data() + test.size(), &json, nullptr);
        readsFractions = json.isArray() && json[0] == 1.5;
        if (!readsFractions)
            jsonTrouble =
                "JSON with fractions is not read: use jsoncpp 1.9.7, or the decimal point of C, by "
                "std::locale::global(std::locale(std::locale(), \"C\", std::locale::numeric))";
    }
};
thread_local JsonTools jsonTools;

// Without exceptions, a stream that runs out of memory would end in the middle and not say so.
// jsoncpp prints with the C locale's decimal point, and then corrects it only if it is a comma.
std::string writeJson(const Json::Value &json) {
    static const locale_t kPlain = ::newlocale(LC_ALL_MASK, "C", nullptr);
    const std::shared_ptr<void> restored(::uselocale(kPlain), ::uselocale);
    std::ostringstream text;
    text.exceptions(std::ios::badbit);
    jsonTools.writer->write(json, &text);
    return text.str();
}

// Whether this cannot be part of a number (RFC 8259 6): jsoncpp also reads -, +1, 01 and 1.
bool isMisplaced(char c, char next, bool inNumber) {
    if (c == '-' || c == '.') return !isDigit(next);
    return !inNumber && (c == '+' || (c == '0' && isDigit(next)));
}

// Whether a text is nested no deeper than `maxDepth`, has no more than `maxValues` values (counted:
// one, one per array or object, one per comma), and nothing else that jsoncpp accepts against
// RFC 8259: comments, raw control characters, half surrogate pairs, which are not UTF-8 (8.2).
bool isWithinLimits(const std::string &text, int maxDepth, int maxValues) {
    std::int64_t depth = 0, values = 1;
    bool inString = false, inNumber = false;
    std::size_t secondHalf = text.npos;  // where the escape of one must be
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i], next = text[i + 1];  // behind the last one: NUL
        if (inString && c == '\\') {
            const bool isHalf = sameIgnoringCase(std::string_view(text).substr(i, 3), "\\ud");
            const bool isSecond = isHalf && std::strchr("cdefCDEF", text[i + 3]) != nullptr;
            if (isSecond != (i == secondHalf)) return false;
            if (isHalf && std::strchr("89abAB", text[i + 3]) != nullptr) secondHalf = i + 6;
            ++i;
        }
        if (inString && static_cast<unsigned char>(c) < ' ') return false;
        inString = inString != (c == '"');
        if (inString) continue;
        if (isMisplaced(c, next, inNumber)) return false;
        inNumber = isDigit(c) || (inNumber && std::strchr(".eE+-", c) != nullptr);
        depth += (c == '[') + (c == '{') - (c == ']') - (c == '}');
        values += (c == '[') + (c == '{') + (c == ',');
        if (c == '/' || c == '\0' || depth > maxDepth || values > maxValues) return false;
    }
    return true;
}

// Whether numbers are what was sent: from 1.9.6 on, jsoncpp reads 1e999 as infinity.
bool isExact(const Json::Value &json) {
    if (json.type() != Json::realValue) return std::all_of(json.begin(), json.end(), isExact);
    return jsonTools.readsFractions && std::isfinite(json.asDouble());
}

// Strict JSON: one array or object and nothing else. Null for anything else.
std::unique_ptr<Json::Value> parseJson(const std::string &text, int maxDepth, int maxValues) {
    if (jsonTools.locale != std::locale()) jsonTools = JsonTools();
    auto json = std::make_unique<Json::Value>();
    const bool fine =
        isWithinLimits(text, maxDepth, maxValues) &&
        jsonTools.reader->parse(text.data(), text.data() + text.size(), json.get(), nullptr);
    return fine && isExact(*json) ? std::move(json) : nullptr;
}

// The parsed head; an empty one if the text is malformed.
RequestHead parsed(const std::string &text) {
    RequestHead head;
    return parseHead(text, 0, head).answer == Progress::done ? head : RequestHead();
}

}  // namespace

WSMessage::WSMessage(std::shared_ptr<Body> body) : body_(std::move(body)) {}
WSMessage::WSMessage(std::string text) : body_(std::make_shared<Body>()) {
    if (!isUtf8(text)) throw std::invalid_argument("WSMessage: the text is not valid UTF-8");
    *body_->payload = std::move(text);
}
WSMessage::WSMessage(const Json::Value &json) : WSMessage(writeJson(json)) {}

WSMessage WSMessage::binary(std::string bytes) {
    auto body = std::make_shared<Body>();
    body->binary = true;
    *body->payload = std::move(bytes);
    return WSMessage(std::move(body));
}

bool WSMessage::isBinary() const { return body_->binary; }
const std::string &WSMessage::payload() const { return *body_->payload; }

bool WSMessage::isJson() const {
    if (!body_->parsed && !body_->binary)
        body_->json = parseJson(*body_->payload, body_->maxJsonDepth, body_->maxJsonValues);
    body_->parsed = true;
    return body_->json != nullptr;
}

const Json::Value &WSMessage::json() const {
    static const Json::Value none;
    return isJson() ? *body_->json : none;
}

std::string WSRequest::method() const { return std::string(parsed(head_).method); }
std::string WSRequest::path() const { return std::string(parsed(head_).path); }
std::string WSRequest::query() const { return std::string(parsed(head_).query); }

std::string WSRequest::parameter(std::string_view name) const {
    for (const std::string &pair : splitList(query(), '&')) {
        const std::size_t equals = std::min(pair.find('='), pair.size());
        if (decodePercent(pair.substr(0, equals)) == name)
            return decodePercent(pair.substr(std::min(equals + 1, pair.size())));
    }
    return {};
}

std::string WSRequest::header(std::string_view name) const {
    return fieldValue(parsed(head_), name);
}

bool WSRequest::hasHeader(std::string_view name) const {
    return countFields(parsed(head_), name) > 0;
}

std::vector<std::pair<std::string, std::string>> WSRequest::headers() const {
    std::vector<std::pair<std::string, std::string>> all;
    for (const Field &field : parsed(head_).fields) all.emplace_back(field.name, field.value);
    return all;
}

std::string WSRequest::cookie(std::string_view name) const {
    for (const std::string &pair : splitList(fieldValue(parsed(head_), "Cookie", ";"), ';')) {
        const std::size_t equals = pair.find('=');
        if (equals != pair.npos && pair.substr(0, equals) == name) return pair.substr(equals + 1);
    }
    return {};
}

std::vector<std::string> WSRequest::protocols() const {
    return splitList(header("Sec-WebSocket-Protocol"), ',');
}

int WSBaseUser::socket() const { return connection_ == nullptr ? -1 : connection_->fd; }
int WSBaseUser::closeCode() const { return connection_ == nullptr ? 0 : connection_->closeCode; }
std::size_t WSBaseUser::backlog() const { return connection_ ? connection_->queued() : 0; }

namespace {

// === 9. The queue of unsent bytes ================================================================
// A row of pieces. Small frames that follow each other are joined into one, so the usual queue is
// one piece for one send(). Pieces are freed as they are sent. When all are, the first one keeps
// its buffer for the next turn; checkDeadlines() frees it.

void Outbox::append(std::string_view header, std::string_view payload) {
    const std::size_t size = header.size() + payload.size();
    if (pieces_.empty() || pieces_.back().shared ||
        pieces_.back().copied.size() + size > kPieceBytes)
        pieces_.emplace_back();
    std::string &last = pieces_.back().copied;
    if (last.size() + size > kSmall) last.reserve(kPieceBytes);
    last.append(header).append(payload);
    size_ += size;
}

void Outbox::append(Payload payload) {
    if (!pieces_.empty()) pieces_.back().copied.shrink_to_fit();
    pieces_.emplace_back();
    size_ += payload->size();
    pieces_.back().shared = std::move(payload);
}

std::size_t Outbox::gather(std::array<iovec, kMaxPieces> &pieces) const {
    std::size_t count = 0, offset = offset_;
    for (std::size_t i = first_; i < pieces_.size() && count < kMaxPieces; ++i) {
        const std::string_view rest = pieces_[i].bytes().substr(std::exchange(offset, 0));
        if (!rest.empty()) pieces[count++] = {const_cast<char *>(rest.data()), rest.size()};
    }
    return count;
}

Payload Outbox::sent(std::size_t size) {
    Payload large;
    size_ -= size;
    offset_ += size;
    for (; first_ < pieces_.size() && offset_ >= pieces_[first_].bytes().size(); ++first_) {
        Piece &piece = pieces_[first_];
        offset_ -= piece.bytes().size();
        if (piece.shared.use_count() == 1 && piece.shared->capacity() > kSmall)
            large = std::move(piece.shared);
        piece.shared = nullptr, piece.copied.clear();
        if (first_ > 0) piece.copied.shrink_to_fit();
    }
    if (first_ <= pieces_.size() / 2) return large;  // erasing moves all that is left
    const auto rest = pieces_.begin() + static_cast<std::ptrdiff_t>(first_);
    pieces_.erase(pieces_.begin() + (size_ == 0), rest), first_ = 0;
    return large;
}

// === 10. HTTP heads ==============================================================================
// The request's head as RFC 9112 wants it and no laxer: where two programs read the same bytes
// differently (a bare LF, a folded line, two Hosts), one can be tricked through the other.

char toLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool areDigits(std::string_view text) { return std::all_of(text.begin(), text.end(), isDigit); }

bool isMadeOf(std::string_view text, std::string_view marks) {
    return std::all_of(text.begin(), text.end(), [&](char c) {
        return (toLower(c) >= 'a' && toLower(c) <= 'z') || isDigit(c) ||
               marks.find(c) != marks.npos;
    });
}

// token = 1*tchar: what names and subprotocols are made of.
bool isToken(std::string_view text) { return !text.empty() && isMadeOf(text, "!#$%&'*+-.^_`|~"); }

bool sameIgnoringCase(std::string_view a, std::string_view b) {
    const auto same = [](char x, char y) { return toLower(x) == toLower(y); };
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same);
}

// Without the spaces and tabs around it (OWS, RFC 9110 5.6.3).
std::string_view trim(std::string_view text) {
    const std::size_t begin = std::min(text.find_first_not_of(" \t"), text.size());
    return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

// The elements of a list, trimmed, without the empty ones (RFC 9110 5.6.1.2).
std::vector<std::string> splitList(std::string_view list, char separator) {
    std::vector<std::string> elements;
    while (!list.empty()) {
        const std::size_t end = std::min(list.find(separator), list.size());
        const std::string_view element = trim(list.substr(0, end));
        if (!element.empty()) elements.emplace_back(element);
        list.remove_prefix(std::min(end + 1, list.size()));
    }
    return elements;
}

std::size_t countFields(const RequestHead &head, std::string_view name) {
    const auto named = [&](const Field &field) { return sameIgnoringCase(field.name, name); };
    return static_cast<std::size_t>(std::count_if(head.fields.begin(), head.fields.end(), named));
}

// All values of that name, joined as RFC 9110 5.3 allows.
std::string fieldValue(const RequestHead &head, std::string_view name, const char *joint) {
    std::string value;
    bool first = true;
    for (const Field &field : head.fields) {
        if (!sameIgnoringCase(field.name, name)) continue;
        if (!std::exchange(first, false)) value += joint;
        value += field.value;
    }
    return value;
}

bool listHas(const RequestHead &head, std::string_view name, std::string_view wanted) {
    const std::vector<std::string> elements = splitList(fieldValue(head, name), ',');
    const auto same = [&](std::string_view element) { return sameIgnoringCase(element, wanted); };
    return std::any_of(elements.begin(), elements.end(), same);
}

// Finds the end of the head; `seen` bytes were looked at before. Fails at the first byte that no
// head can have: a control character, or a line break other than CR LF (RFC 9112 2.2).
Progress findHeadEnd(std::string_view bytes, std::size_t seen) {
    for (std::size_t i = seen - std::min<std::size_t>(seen, 1); i < bytes.size(); ++i) {
        const char c = bytes[i];
        if (!isControl(c) || c == '\t') continue;
        const bool lineEnds = c == '\n' ? i > 0 && bytes[i - 1] == '\r'
                                        : i + 1 == bytes.size() || bytes[i + 1] == '\n';
        if (c != '\r' && c != '\n')
            return bad(400, "There is a control character in the request's head.");
        if (!lineEnds) return bad(400, "A line does not end with CR LF.");
        if (c == '\n' && i >= 3 && bytes.substr(i - 3, 3) == "\r\n\r") return doneAfter(i + 1);
    }
    return needMoreAfter(0);
}

// The bytes of a numeric address, IPv4 or IPv6. (inet_pton() would stop at a NUL.)
std::optional<Address> parseAddress(std::string_view text) {
    const std::string copy(text);
    Address address = kIpv4;
    if (copy.find('\0') == copy.npos && (::inet_pton(AF_INET, copy.c_str(), &address[12]) == 1 ||
                                         ::inet_pton(AF_INET6, copy.c_str(), &address[0]) == 1))
        return address;
    return std::nullopt;
}

// Host = uri-host [ ":" port ] (RFC 9110 7.2), split; false if it is malformed. We do not allow the
// comma that RFC 3986 3.2.2 does, because it may join two values (RFC 9110 5.3).
bool splitHost(std::string_view text, std::string_view &host, std::string_view &port) {
    const bool bracket = !text.empty() && text[0] == '[';
    const std::size_t end = bracket ? text.find(']') + 1 : std::min(text.find(':'), text.size());
    if (end == 0) return false;
    host = text.substr(0, end);
    port = text.substr(end);
    if (bracket) {
        const std::string_view address = host.substr(1, end - 2);
        if (address.find(':') == address.npos || !parseAddress(address)) return false;
    } else if (!isMadeOf(host, "-._~!$&'()*+;=%")) {
        return false;
    }
    if (!port.empty() && port[0] != ':') return false;
    port.remove_prefix(port.empty() ? 0 : 1);
    if (port.size() > 5 || !areDigits(port)) return false;
    return port.empty() || std::stoi(std::string(port)) <= 65535;
}

// request-target = origin-form / absolute-form / … (RFC 9112 3.2); RFC 6455 4.2.1 has both. A '#'
// is refused (RFC 6455 3). Some marks that RFC 3986 forbids pass, because browsers send them.
bool parseTarget(std::string_view target, RequestHead &head) {
    const auto fine = [](char c) { return c > 0x20 && c < 0x7F && c != '#'; };
    if (target.empty() || !std::all_of(target.begin(), target.end(), fine)) return false;
    for (const std::string_view scheme : {"http://", "https://", "ws://", "wss://"}) {
        if (!sameIgnoringCase(target.substr(0, scheme.size()), scheme)) continue;
        const std::size_t end = std::min(target.find_first_of("/?", scheme.size()), target.size());
        std::string_view host, port;
        if (!splitHost(target.substr(scheme.size(), end - scheme.size()), host, port)) return false;
        target.remove_prefix(end);
        head.path = "/";  // if it has none (RFC 9112 3.2.1)
    }
    const std::size_t mark = std::min(target.find('?'), target.size());
    if (mark > 0 && target[0] == '/') head.path = target.substr(0, mark);
    head.query = target.substr(std::min(mark + 1, target.size()));
    return true;
}

// request-line = method SP request-target SP HTTP-version (RFC 9112 3); a later 1.x is read as 1.1
// (RFC 9110 2.5). We do not skip an empty line before it (2.2): there is no earlier request.
bool parseRequestLine(std::string_view line, RequestHead &head) {
    const std::size_t first = std::min(line.find(' '), line.size());
    const std::size_t last = std::min(line.rfind(' '), line.size());
    if (first >= last) return false;
    head.method = line.substr(0, first);
    const std::string_view version = line.substr(last + 1);
    head.http10 = version == "HTTP/1.0";
    return isToken(head.method) && version.size() == 8 && version.substr(0, 7) == "HTTP/1." &&
           isDigit(version[7]) && parseTarget(line.substr(first + 1, last - first - 1), head);
}

// Parses a request's head. Done: `head` has views into `bytes`. Bad: an HTTP status.
//   field-line = field-name ":" OWS field-value OWS (RFC 9112 5)
// A space before the colon (5.1) and a folded line (5.2) make a name that is not a token.
Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head) {
    const Progress end = findHeadEnd(bytes, seen);
    if (end.answer != Progress::done) return end;
    head.text = bytes.substr(0, end.used);
    std::string_view lines = bytes.substr(0, end.used - 2);
    for (bool first = true; !lines.empty(); first = false) {
        const std::string_view line = lines.substr(0, lines.find("\r\n"));
        lines.remove_prefix(line.size() + 2);
        if (first && parseRequestLine(line, head)) continue;
        if (first) return bad(400, "The request line is malformed.");
        const std::size_t colon = std::min(line.find(':'), line.size());
        if (colon == line.size() || !isToken(line.substr(0, colon)))
            return bad(400, "A header line is malformed.");
        head.fields.push_back({line.substr(0, colon), trim(line.substr(colon + 1))});
    }
    return end;
}

// The rules that every request has to keep. Status 0: it does.
WSResponse checkRequest(const RequestHead &head) {
    if (head.method != "GET" && head.method != "HEAD")
        return plainResponse(405, "Only GET and HEAD are understood.", {{"Allow", "GET, HEAD"}});
    if (head.path.empty()) return plainResponse(400, "The request target is not a path.");
    std::string_view host, port;
    const std::string value = fieldValue(head, "Host");  // malformed if there are two
    if (!(head.http10 && countFields(head, "Host") == 0) && !splitHost(value, host, port))
        return plainResponse(400, "There must be one Host header, and it must be valid.");
    const bool hasLength = countFields(head, "Content-Length") > 0;
    if (countFields(head, "Transfer-Encoding") > 0 ||
        (hasLength && fieldValue(head, "Content-Length") != "0"))
        return plainResponse(400, "A request with a body is not understood here.");
    return {};
}

// A client that sends half of a handshake wants a WebSocket, so it is told what is wrong.
bool asksForWebSocket(const RequestHead &head) {
    return listHas(head, "Upgrade", "websocket") || countFields(head, "Sec-WebSocket-Key") > 0;
}

// What RFC 6455 4.2.1 requires; the answer to other versions is that of 4.4. Status 0: fine.
WSResponse checkUpgrade(const RequestHead &head) {
    if (head.method != "GET") return plainResponse(400, "The opening handshake is a GET.");
    if (head.http10)
        return plainResponse(400, "This needs version 1.1 of HTTP; nginx: proxy_http_version 1.1;");
    if (!listHas(head, "Upgrade", "websocket") || !listHas(head, "Connection", "Upgrade"))
        return upgradeRequired();
    if (fieldValue(head, "Sec-WebSocket-Version") != "13")
        return plainResponse(426, "Only version 13 of the WebSocket protocol is supported.",
                             {{"Sec-WebSocket-Version", "13"}});
    for (const std::string &one : splitList(fieldValue(head, "Sec-WebSocket-Protocol"), ','))
        if (!isToken(one)) return plainResponse(400, "A subprotocol is not a token.");
    // 16 bytes are 22 digits of base64 (RFC 4648 4), the last of which has four bits to spare.
    const std::string key = fieldValue(head, "Sec-WebSocket-Key");
    if (key.size() != 24 || key.substr(22) != "==" || !isMadeOf(key.substr(0, 22), "+/"))
        return plainResponse(400, "There must be one Sec-WebSocket-Key, the base64 of 16 bytes.");
    return {};
}

// Sec-WebSocket-Accept (RFC 6455 4.2.2, step 5.4).
std::string acceptKey(std::string_view key) {
    constexpr std::string_view kGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";  // RFC 6455 1.3
    return base64Encode(sha1(std::string(key).append(kGuid)));
}

// The first of ours that the client offers, or none: never other text from the client (4.2.2).
std::string chooseProtocol(const std::vector<std::string> &ours, std::string_view offered) {
    const std::vector<std::string> theirs = splitList(offered, ',');
    for (const std::string &protocol : ours)
        if (std::count(theirs.begin(), theirs.end(), protocol) > 0) return protocol;
    return {};
}

// An origin (RFC 6454 6.2) in one spelling: lower case, its scheme's default port filled in. Pages
// without a host send "null" or "file://". Nothing for what no browser sends: a path, a wildcard.
std::optional<std::string> normalOrigin(std::string_view text) {
    std::string origin(text);
    std::transform(text.begin(), text.end(), origin.begin(), toLower);
    if (origin == "null" || origin == "file://") return origin;
    const std::size_t colon = std::min(origin.find("://"), origin.size());
    const std::string scheme = origin.substr(0, colon);
    std::string_view host, port;
    if (scheme[0] < 'a' || !isMadeOf(scheme, "+-.") || colon == origin.size() ||
        !splitHost(std::string_view(origin).substr(colon + 3), host, port) ||
        !isMadeOf(host, "-._[]:"))
        return std::nullopt;
    if (origin.back() == ':' || port.substr(0, 1) == "0") return std::nullopt;
    if (host != "." && (host[0] == '.' || host.find("..") != host.npos)) return std::nullopt;
    std::string name(host);
    if (host[0] == '[') name = '[' + encodeAddress(parseAddress(host.substr(1, host.size() - 2)));
    if (host[0] == '[') name += ']';
    if (port.empty() && (scheme == "http" || scheme == "ws")) port = "80";
    if (port.empty() && (scheme == "https" || scheme == "wss")) port = "443";
    return (scheme + "://").append(name).append(":").append(port);
}

// '+' becomes a space and %41 an A, as forms encode them. A '%' without two hex digits is kept.
std::string decodePercent(std::string_view text) {
    std::string decoded;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::string_view hex = text.substr(i + 1, 2);
        unsigned value = 0;
        const auto end = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16).ptr;
        const bool escape = text[i] == '%' && end == hex.data() + 2;
        if (escape) decoded += static_cast<char>(value), i += 2;
        else decoded += text[i] == '+' ? ' ' : text[i];
    }
    return decoded;
}

std::string encodeAddress(const std::optional<Address> &address) {
    if (!address) return "unix";
    std::array<char, INET6_ADDRSTRLEN> text{};
    const bool four = isIpv4(*address);
    ::inet_ntop(four ? AF_INET : AF_INET6, &(*address)[four ? 12 : 0], text.data(), text.size());
    return text.data();
}

// IPv4 addresses are only in IPv4 networks: in their 16-byte form, all of them would be in ::/64.
bool isIn(const Network &network, const std::optional<Address> &address) {
    if (!network.address || !address) return network.address == address;
    if (isIpv4(*network.address) != isIpv4(*address)) return false;
    const std::size_t whole = network.bits / 8, rest = network.bits % 8;  // bytes, and bits
    return std::equal(address->begin(), address->begin() + whole, network.address->begin()) &&
           (rest == 0 || ((*address)[whole] ^ (*network.address)[whole]) >> (8 - rest) == 0);
}

// "10.0.0.1", "10.0.0.0/8" (or "::ffff:10.0.0.0/104"), "fd00::/8", "unix". One family only.
std::optional<Network> parseNetwork(std::string_view text) {
    if (text == "unix") return Network{};
    const std::size_t slash = std::min(text.find('/'), text.size());
    const std::optional<Address> address = parseAddress(text.substr(0, slash));
    if (!address) return std::nullopt;
    if (slash == text.size()) return Network{address, 128};
    const std::string_view digits = text.substr(slash + 1);
    if (digits.empty() || digits.size() > 3 || !areDigits(digits)) return std::nullopt;
    const std::size_t before = text.find(':') == text.npos ? 96 : 0;  // bits that say: IPv4
    const std::size_t bits = before + std::stoul(std::string(digits));
    if (bits > 128 || (isIpv4(*address) && bits < 96)) return std::nullopt;
    return Network{address, bits};
}

// "192.0.2.1", "2001:db8::1"; with a port "192.0.2.1:80", "[2001:db8::1]:80".
std::optional<Address> parseForwarded(std::string_view text) {
    const std::optional<Address> address = parseAddress(text);
    std::string_view host, port;
    if (address || !splitHost(text, host, port)) return address;
    return parseAddress(host[0] == '[' ? host.substr(1, host.size() - 2) : host);
}

// The client that a request comes from: `peer`, or the one that trusted proxies name in
// X-Forwarded-For. Each proxy appends the address that connected to it: we go from the right, and
// stop at the first that is not trusted. Whatever is to the left of that may be forged.
std::optional<Address> clientAddress(std::optional<Address> peer,
                                     const std::vector<Network> &trusted, const RequestHead &head) {
    const auto isTrusted = [&](const Network &network) { return isIn(network, peer); };
    const std::vector<std::string> elements = splitList(fieldValue(head, "X-Forwarded-For"), ',');
    for (std::size_t i = elements.size(); i-- > 0;) {
        if (std::none_of(trusted.begin(), trusted.end(), isTrusted)) break;
        const std::optional<Address> named = parseForwarded(elements[i]);
        if (!named) break;
        peer = named;
    }
    return peer;
}

// The words for an HTTP status or, for the log, a close code (the program's own have none).
std::string_view wordsFor(int number) {
    constexpr std::string_view kWords =
        "200 OK|204 No Content|301 Moved Permanently|302 Found|303 See Other|304 Not Modified|"
        "307 Temporary Redirect|308 Permanent Redirect|400 Bad Request|401 Unauthorized|"
        "403 Forbidden|404 Not Found|405 Method Not Allowed|408 Request Timeout|"
        "426 Upgrade Required|429 Too Many Requests|431 Request Header Fields Too Large|"
        "500 Internal Server Error|503 Service Unavailable|1000 normal|1001 going away|"
        "1002 protocol error|1003 unacceptable data|1005 no code|1006 no Close|"
        "1007 invalid data|1008 policy|1009 too big|1010 extension missing|1011 internal error|"
        "1012 restart|1013 try later|1014 bad gateway|";
    const std::string start = std::to_string(number) + ' ';
    const std::size_t begin = kWords.find(start);
    if (begin == kWords.npos) return {};
    return kWords.substr(begin, kWords.find('|', begin) - begin).substr(start.size());
}

WSResponse plainResponse(int status, std::string_view text, Headers headers) {
    if (status == 426) headers.emplace_back("Upgrade", "websocket");  // RFC 9110 15.5.22
    const auto isType = [](const auto &one) { return sameIgnoringCase(one.first, "Content-Type"); };
    if (std::none_of(headers.begin(), headers.end(), isType))
        headers.emplace_back("Content-Type", "text/plain; charset=utf-8");
    return {status, std::move(headers), std::string(text) + (text.empty() ? "" : "\n")};
}

// Whether it may be sent: a line break in a value would start another header.
bool isSendable(const WSResponse &response) {
    if (response.status < 200 || response.status > 599) return false;
    for (const auto &[name, value] : response.headers) {
        const auto refused = [](char c) { return isControl(c) && c != '\t'; };
        if (!isToken(name) || std::any_of(value.begin(), value.end(), refused)) return false;
        for (const char *ours : {"Content-Length", "Transfer-Encoding", "Connection", "Date"})
            if (sameIgnoringCase(name, ours)) return false;
    }
    return true;
}

// Each response is the last (RFC 9112 9.6). Connection also names Upgrade, if sent (RFC 9110 7.8).
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody) {
    const int status = response.status;
    const bool bodiless = status == 204 || status == 205 || status == 304;
    bool upgrade = false;
    std::tm time{};
    ::gmtime_r(&now, &time);
    std::ostringstream head;
    head.imbue(std::locale::classic());  // whatever language the program speaks
    head << "HTTP/1.1 " << status << ' ' << wordsFor(status) << "\r\n";  // even without words
    for (const auto &[name, value] : response.headers) {
        head << name << ": " << value << "\r\n";
        upgrade = upgrade || sameIgnoringCase(name, "Upgrade");
    }
    if (!bodiless) head << "Content-Length: " << response.body.size() << "\r\n";
    head << std::put_time(&time, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n");  // RFC 9110 5.6.7
    head << (upgrade ? "Connection: close, Upgrade\r\n\r\n" : "Connection: close\r\n\r\n");
    if (!head) throw std::bad_alloc();  // libc++ has swallowed it
    return withBody && !bodiless ? head.str() + response.body : head.str();
}

// === 11. Frames ==================================================================================
//       0                   1                   2                   3
//       0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//      +-+-+-+-+-------+-+-------------+-------------------------------+
//      |F|R|R|R| opcode|M| length (7)  | extended length               |
//      |I|S|S|S|  (4)  |A| 126: 16 bits| (16 or 64 bits, if any)       |
//      |N|V|V|V|       |S| 127: 64 bits| most significant byte first   |
//      | |1|2|3|       |K|             |                               |
//      +-+-+-+-+-------+-+-------------+ - - - - - - - - - - - - - - - +
//      | masking key (32), if MASK is set; then the payload            |
//      +---------------------------------------------------------------+
//
// RFC 6455 5.2. A frame that breaks the rules is refused as soon as its header shows it.

constexpr unsigned kFin = 0x80, kReserved = 0x70, kOpcode = 0x0F;  // of the first byte
constexpr unsigned kMask = 0x80, kLength = 0x7F;                   // of the second
constexpr std::uint64_t kLength16 = 126, kLength64 = 127;          // an extended length follows

// Parses the header of a client's frame. Done: the bytes of the header. Bad: 1002.
Progress parseFrameHeader(std::string_view bytes, FrameHeader &header) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
    if (bytes.empty()) return needMoreAfter(0);
    // "MUST be 0 unless an extension is negotiated", and none is.
    if ((byte(0) & kReserved) != 0) return bad(kProtocolError, "a reserved bit is set");
    const unsigned opcode = byte(0) & kOpcode;
    if ((opcode > 0x2 && opcode < 0x8) || opcode > 0xA)
        return bad(kProtocolError, "the opcode is reserved");
    header.fin = (byte(0) & kFin) != 0;
    header.opcode = static_cast<Opcode>(opcode);
    const bool control = header.opcode >= Opcode::close;
    // "Control frames themselves MUST NOT be fragmented." (5.4)
    if (control && !header.fin) return bad(kProtocolError, "a control frame is fragmented");
    if (bytes.size() < 2) return needMoreAfter(0);
    // "The server MUST close the connection upon receiving a frame that is not masked." (5.1)
    if ((byte(1) & kMask) == 0) return bad(kProtocolError, "a frame is not masked");
    header.length = byte(1) & kLength;
    // "All control frames MUST have a payload length of 125 bytes or less" (5.5)
    if (control && header.length > kMaxControlPayload)
        return bad(kProtocolError, "a control frame is too long");
    const std::size_t extended = header.length < kLength16 ? 0 : header.length == kLength16 ? 2 : 8;
    const std::size_t size = 2 + extended + header.maskingKey.size();
    if (extended > 0 && bytes.size() >= 2 + extended) {
        header.length = 0;
        for (std::size_t i = 2; i < 2 + extended; ++i) header.length = header.length << 8 | byte(i);
        // "the minimal number of bytes MUST be used to encode the length", and "the most
        // significant bit MUST be 0".
        if (header.length < (extended == 2 ? kLength16 : 0x10000) || header.length >> 63 != 0)
            return bad(kProtocolError, "the length is malformed");
    }
    if (bytes.size() < size) return needMoreAfter(0);
    std::memcpy(header.maskingKey.data(), &bytes[2 + extended], header.maskingKey.size());
    return doneAfter(size);
}

// The header of a frame as a server sends it: final and unmasked ("A server MUST NOT mask any
// frames", RFC 6455 5.1). Returns its size, at most kMaxFrameHeader.
std::size_t encodeFrameHeader(char *out, Opcode opcode, std::uint64_t length) {
    const std::size_t extended = length < kLength16 ? 0 : length <= 0xFFFF ? 2 : 8;
    *out++ = static_cast<char>(kFin | static_cast<unsigned>(opcode));
    *out++ = static_cast<char>(extended == 0 ? length : extended == 2 ? kLength16 : kLength64);
    for (std::size_t i = extended; i-- > 0;) *out++ = static_cast<char>(length >> 8 * i);
    return 2 + extended;
}

// Octet i of the payload is XORed with octet i MOD 4 of the masking key (RFC 6455 5.3), for a piece
// that begins at `offset`, also in place. Three keys in a row contain the key as rotated by offset,
// twice: two equal halves, so byte order does not matter. memcpy() reads and writes unaligned.
void unmask(const char *from, char *to, std::size_t size, std::array<unsigned char, 4> key,
            std::uint64_t offset) {
    std::array<unsigned char, 12> keys{};
    for (const std::size_t i : {0U, 4U, 8U}) std::memcpy(&keys[i], key.data(), key.size());
    const unsigned char *const rotated = &keys[offset % 4];
    std::uint64_t doubled = 0;
    std::memcpy(&doubled, rotated, sizeof doubled);
    std::size_t i = 0;
    const auto xorWith = [&](auto words) {
        for (; i + sizeof words <= size; i += sizeof words) {
            std::memcpy(words.data(), from + i, sizeof words);
            for (auto &word : words) word ^= static_cast<std::decay_t<decltype(word)>>(doubled);
            std::memcpy(to + i, words.data(), sizeof words);
        }
    };
    xorWith(std::array<std::uint64_t, 4>{});
    xorWith(std::array<std::uint64_t, 1>{});
    xorWith(std::array<std::uint32_t, 1>{});
    for (; i < size; ++i) to[i] = static_cast<char>(from[i] ^ rotated[i % 4]);
}

// === 12. Messages ================================================================================
//     message  = frame(text | binary, FIN)
//              | frame(text | binary) *frame(continuation) frame(continuation, FIN)
//
// with control frames anywhere between the frames (RFC 6455 5.4). A control frame waits until it is
// whole; payloads of data frames are unmasked into the message as they arrive.

Progress MessageReader::read(char *bytes, std::size_t size, const Limits &limits, Found &found) {
    found = {};
    std::size_t used = 0;
    if (!inPayload_) {
        const Progress header = parseFrameHeader({bytes, size}, frame_);
        if (header.answer != Progress::done) return header;
        used = header.used;
        if (frame_.opcode >= Opcode::close) {
            const auto length = static_cast<std::size_t>(frame_.length);
            if (size - used < length) return needMoreAfter(0);
            unmask(bytes + used, bytes + used, length, frame_.maskingKey, 0);
            found = {frame_.opcode, {bytes + used, length}};
            return doneAfter(used + length);
        }
        const Progress begun = beginFrame(limits);
        if (begun.answer == Progress::bad) return begun;
    }
    const auto piece =
        static_cast<std::size_t>(std::min<std::uint64_t>(frame_.length - done_, size - used));
    char *const place = makeRoom(piece);
    unmask(bytes + used, place, piece, frame_.maskingKey, done_);
    // Text that is not UTF-8 fails the connection (RFC 6455 8.1), as early as it can be known.
    if (opcode_ == Opcode::text) utf8_ = checkUtf8({place, piece}, utf8_);
    if (utf8_ == kInvalid) return bad(kInvalidData, "the text is not UTF-8");
    done_ += piece;
    filled_ += piece;
    if (done_ < frame_.length) return needMoreAfter(used + piece);
    inPayload_ = false;
    if (!frame_.fin) return doneAfter(used + piece);
    if (utf8_ != kBetweenCharacters) return bad(kInvalidData, "the text ends inside a character");
    message->resize(filled_);
    if (message->capacity() > std::max(filled_ + filled_ / 2, kSmall)) message->shrink_to_fit();
    found.opcode = std::exchange(opcode_, Opcode::continuation);
    return doneAfter(used + piece);
}

// Checks a data frame's place in its message and its length, before any of it is stored.
Progress MessageReader::beginFrame(const Limits &limits) {
    const bool inMessage = opcode_ != Opcode::continuation;
    const bool continues = frame_.opcode == Opcode::continuation;
    // A fragmented message is one frame with its opcode, then continuations (RFC 6455 5.4).
    if (continues != inMessage)
        return bad(kProtocolError, inMessage ? "a message begins inside another"
                                             : "a continuation has nothing to continue");
    if (!continues) {
        opcode_ = frame_.opcode;
        filled_ = 0;
        fragments_ = 0;
    }
    if (filled_ > limits.maxMessageBytes || frame_.length > limits.maxMessageBytes - filled_)
        return bad(kTooBig, "the message is too big");  // 1009: RFC 6455 7.4.1; limits: 10.4
    if (++fragments_ > limits.maxFragments) return bad(kPolicyViolation, "too many fragments");
    inPayload_ = true;
    done_ = 0;
    return doneAfter(0);
}

// A declared length alone allocates nothing: we reserve at most 16 times what has arrived.
char *MessageReader::makeRoom(std::size_t size) {
    if (!message) message = std::make_shared<std::string>();
    const std::size_t here = filled_ + size;
    const auto left = static_cast<std::size_t>(frame_.length - done_);
    if (message->capacity() < here) message->reserve(std::min(filled_ + left, 16 * here));
    if (message->size() < here) message->resize(here);
    return message->data() + filled_;
}

// === 13. Closing =================================================================================
// RFC 6455 5.5.1: close payload = [ code (16 bits, network byte order) [ reason (UTF-8) ] ]

// The codes of RFC 6455 7.4.1, without 1004, 1005, 1006 and 1015; 1012 to 1014, which IANA
// registered later; and 3000 to 4999, for libraries and applications (7.4.2).
bool isCloseCode(int code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

// Done: the code (1005 if there is none, 7.1.5); the reason follows the bytes used. Bad: a code.
Progress parseClose(std::string_view payload) {
    if (payload.empty()) return {Progress::done, 0, kNoCode, ""};
    // "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer"
    if (payload.size() == 1) return bad(kProtocolError, "a Close payload has only one byte");
    const int code =
        static_cast<unsigned char>(payload[0]) << 8 | static_cast<unsigned char>(payload[1]);
    if (!isCloseCode(code)) return bad(kProtocolError, "this close code may not be sent");
    if (!isUtf8(payload.substr(2))) return bad(kInvalidData, "the close reason is not UTF-8");
    return {Progress::done, 2, code, ""};
}

// The reason has to be UTF-8. It is cut between two characters if the frame would be too long.
std::string encodeClose(int code, std::string_view reason) {
    std::string payload{static_cast<char>(code >> 8), static_cast<char>(code)};
    return payload.append(cutUtf8(reason, kMaxControlPayload - 2));
}

// === 14. UTF-8 ===================================================================================
// RFC 3629 4, as an automaton. Some bytes after E0 and F0 would be overlong, after ED a surrogate,
// after F4 above U+10FFFF. A state is a shift: a byte's table entry, shifted by the state, has the
// next state in its lowest six bits. So a step is one look-up and one shift, without a branch. (Per
// Vognsen's idea: https://gist.github.com/pervognsen/218ea17743e1442e59bb60d29b1aa725)

constexpr Utf8State kOneMore{12}, kTwoMore{18}, kThreeMore{24};
constexpr Utf8State kBehindE0{30}, kBehindED{36}, kBehindF0{42}, kBehindF4{48};

constexpr std::array<std::uint64_t, 256> utf8Table() {
    struct Rule {  // in state `before`, the bytes from `first` to `last` lead to state `after`
        Utf8State before;
        unsigned char first, last;
        Utf8State after;
    };
    constexpr Rule kRules[] = {
        {kBetweenCharacters, 0x00, 0x7F, kBetweenCharacters},
        {kBetweenCharacters, 0xC2, 0xDF, kOneMore},
        {kBetweenCharacters, 0xE0, 0xE0, kBehindE0},
        {kBetweenCharacters, 0xE1, 0xEC, kTwoMore},
        {kBetweenCharacters, 0xED, 0xED, kBehindED},
        {kBetweenCharacters, 0xEE, 0xEF, kTwoMore},
        {kBetweenCharacters, 0xF0, 0xF0, kBehindF0},
        {kBetweenCharacters, 0xF1, 0xF3, kThreeMore},
        {kBetweenCharacters, 0xF4, 0xF4, kBehindF4},
        {kOneMore, 0x80, 0xBF, kBetweenCharacters},
        {kTwoMore, 0x80, 0xBF, kOneMore},
        {kThreeMore, 0x80, 0xBF, kTwoMore},
        {kBehindE0, 0xA0, 0xBF, kOneMore},
        {kBehindED, 0x80, 0x9F, kOneMore},
        {kBehindF0, 0x90, 0xBF, kTwoMore},
        {kBehindF4, 0x80, 0x8F, kTwoMore},
    };
    std::array<std::uint64_t, 256> table{};
    for (const Rule &rule : kRules)
        for (std::size_t byte = rule.first; byte <= rule.last; ++byte)
            table[byte] |= std::uint64_t{rule.after} << rule.before;
    return table;
}

// How many bytes at the beginning are ASCII (highest bit clear), counted in steps of eight.
std::size_t asciiSize(std::string_view text) {
    std::size_t size = 0;
    for (std::uint64_t eight = 0; size + 8 <= text.size(); size += 8) {
        std::memcpy(&eight, text.data() + size, sizeof eight);
        if ((eight & 0x8080'8080'8080'8080) != 0) break;
    }
    return size;
}

Utf8State checkUtf8(std::string_view piece, Utf8State begin) {
    static constexpr std::array<std::uint64_t, 256> kTable = utf8Table();
    constexpr std::uint64_t kSixBits = 0x3F;  // the bits above belong to other states
    std::uint64_t state = begin;
    while (!piece.empty()) {
        if (state == kBetweenCharacters) piece.remove_prefix(asciiSize(piece));
        // After 32 steps it may be worthwhile to look for ASCII again.
        const std::string_view next = piece.substr(0, 32);
        for (const char byte : next)
            state = kTable[static_cast<unsigned char>(byte)] >> (state & kSixBits);
        state &= kSixBits;
        piece.remove_prefix(next.size());
    }
    return static_cast<Utf8State>(state);
}

// At most the first `size` bytes, cut between two characters.
std::string_view cutUtf8(std::string_view text, std::size_t size) {
    while (size > 0 && size < text.size() &&
           (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80)
        --size;
    return text.substr(0, size);
}

// === 15. base64 ==================================================================================
// RFC 4648 4: three bytes are four digits of six bits; missing ones at the end are written as '='.

std::string base64Encode(std::string_view bytes) {
    constexpr std::string_view kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        const std::string_view group = bytes.substr(i, 3);
        std::uint32_t bits = 0;
        for (std::size_t k = 0; k < 3; ++k)
            bits = bits << 8 | (k < group.size() ? static_cast<unsigned char>(group[k]) : 0);
        for (std::size_t k = 0; k < 4; ++k)
            text += k <= group.size() ? kDigits[bits >> (18 - 6 * k) & 0x3F] : '=';
    }
    return text;
}

// === 16. SHA-1 ===================================================================================
// FIPS 180-4. Broken for signatures; here it only proves that we read the key (RFC 6455 10.8).

std::uint32_t rotateLeft(std::uint32_t x, int n) { return x << n | x >> (32 - n); }

// One step's function and constant (4.1.1, 4.2.1).
std::uint32_t mixed(std::size_t t, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    if (t < 20) return ((b & c) ^ (~b & d)) + 0x5A827999;
    if (t < 40) return (b ^ c ^ d) + 0x6ED9EBA1;
    if (t < 60) return ((b & c) ^ (b & d) ^ (c & d)) + 0x8F1BBCDC;
    return (b ^ c ^ d) + 0xCA62C1D6;
}

std::string sha1(std::string_view message) {
    // 5.1.1: a one bit, zeros up to 8 bytes before the end of a block, the length in bits.
    std::string padded(message);
    padded += '\x80';
    padded.append((55 - message.size()) % 64, '\0');  // unsigned: right even below 0
    const std::uint64_t bits = std::uint64_t{message.size()} * 8;
    for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>(bits >> shift);
    // 5.3.1, 6.1.2: the initial state, and what each block of 64 bytes makes of it.
    std::array<std::uint32_t, 5> state{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    for (std::size_t block = 0; block < padded.size(); block += 64) {
        std::array<std::uint32_t, 80> w{};
        for (std::size_t i = 0; i < 64; ++i)
            w[i / 4] = w[i / 4] << 8 | static_cast<unsigned char>(padded[block + i]);
        for (std::size_t t = 16; t < 80; ++t)
            w[t] = rotateLeft(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        auto next = state;
        for (std::size_t t = 0; t < 80; ++t) {
            const auto [a, b, c, d, e] = next;
            next = {rotateLeft(a, 5) + mixed(t, b, c, d) + e + w[t], a, rotateLeft(b, 30), c, d};
        }
        for (std::size_t i = 0; i < state.size(); ++i) state[i] += next[i];
    }
    std::string digest;
    for (const std::uint32_t word : state)
        for (int shift = 24; shift >= 0; shift -= 8) digest += static_cast<char>(word >> shift);
    return digest;
}

}  // namespace
