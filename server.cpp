// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The Extendible WebSocket Server: one thread, one poll() loop, raw POSIX sockets,
// the protocol of RFC 6455 by hand. server.h is the contract, this file keeps it.
//
// A connection moves bytes; a user is what hooks see. One connection's life:
//
//      connect()              accept(), a connection without a user
//         |
//   [handshaking]  doHandshake()  --- refused, or a plain GET: answer() ---.
//         |        welcome(): preConnect, 101, postConnect                 |
//       [open]     readFrames() -> received() -> process()                 |
//         |                                                                |
//         |-- disconnect(): our Close goes first --> [closing]             |
//         |                             the peer's Close |                 |
//         |-- the peer's Close, or fail() ---------------|                 |
//         |                                              v                 v
//         |                                          [flushing]  write what is queued
//         |                                              | shutdown(SHUT_WR)
//         |                                          [lingering] read away, till the
//         |-- lose(): reset, silence, too slow ---.      |       peer closes, too
//         |                                       v      v
//       bury(): preDisconnect, postDisconnect     [dead]  close()
//
//  1. What the parts are made of    the structures, and what the parts promise each other
//  2. The loop                      run, turn, serve, readClocks, tick, write, bury, post, watch
//  3. Reading                       readFrom, readFrames, received
//  4. Sending                       sendToUser, sendToAllBut, queueMessage, flush
//  5. Users                         disconnect, fail, lose, sayGoodbye, callHook
//  6. The handshake's glue          connect, doHandshake, welcome, answer
//  7. Listening                     listen, stop, stopOn
//  8. What hooks hold               WSMessage, WSRequest, WSBaseUser
//     From here on: pure functions and classes, without socket, clock or configuration.
//  9. Payloads and queues           SparePayloads, Outbox
// 10. HTTP heads                    parseHead, checkUpgrade, clientAddress, encodeResponse
// 11. Frames                        parseFrameHeader, encodeFrameHeader, unmask
// 12. Messages                      MessageReader: frames become messages
// 13. Closing                       parseClose, encodeClose, isCloseCode
// 14. UTF-8                         Utf8Check
// 15. base64                        base64Encode, base64Decode
// 16. SHA-1                         sha1
//
// Where the rules of RFC 6455 are enforced:
//   opening handshake    4.2.1, 4.2.2   checkUpgrade, welcome, acceptKey
//   origin               10.2           originAllowed, normalOrigin
//   frame header         5.2            parseFrameHeader (reserved bits, opcodes, lengths)
//   masking              5.1, 5.3       parseFrameHeader, unmask
//   fragmentation        5.4            MessageReader::beginFrame
//   control frames       5.5            parseFrameHeader, receivedPing, receivedClose
//   closing handshake    5.5.1, 7       receivedClose, disconnect, fail, flushed
//   close codes          7.4            parseClose, isCloseCode
//   UTF-8                5.6, 8.1       Utf8Check, MessageReader::readPayload
//
// Left out: extensions (none is offered, so none is answered: permessage-deflate costs
// more memory per user than all the rest), TLS (a proxy in front does it better), the
// client's side, and the drafts before RFC 6455 (answered with 426).

#include "server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL  // where it is missing, SO_NOSIGPIPE does it: see prepareSocket()
#define MSG_NOSIGNAL 0
#define WS_SET_NOSIGPIPE
#endif

// ============================================================================
// 1. What the parts are made of
//
// Everything is in an anonymous namespace or declared in our headers, so nothing
// here can clash with the program that this file is dropped into. The pure parts
// (sections 9 to 16) are declared here and defined below, for the loop comes first.
// ============================================================================

namespace {

using Milliseconds = std::int64_t;  // of the monotonic clock

Milliseconds milliseconds(double seconds) { return static_cast<Milliseconds>(seconds * 1000); }

// The answer of every parser: done (and how many bytes it used), need more, or bad
// (a close code or an HTTP status, and the reason).
struct Progress {
    enum Answer { done, needMore, bad } answer = needMore;
    std::size_t used = 0;
    int code = 0;
    const char *reason = "";
};

Progress doneAfter(std::size_t used) { return {Progress::done, used, 0, ""}; }
Progress needMore() { return {Progress::needMore, 0, 0, ""}; }
Progress bad(int code, const char *reason) { return {Progress::bad, 0, code, reason}; }

// Of ASCII only, whatever the program's locale is.
bool isDigit(char c) { return c >= '0' && c <= '9'; }
char toLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool isAlphanumeric(char c) { return isDigit(c) || (toLower(c) >= 'a' && toLower(c) <= 'z'); }
bool isHexDigit(char c) { return isDigit(c) || (toLower(c) >= 'a' && toLower(c) <= 'f'); }

// --- HTTP (section 10) ---

struct Field {
    std::string_view name, value;
};

// The head of a request; its views point into the text that was parsed.
struct RequestHead {
    std::string_view method, path, query;
    std::vector<Field> fields;
};

Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head);
WSResponse checkRequest(const RequestHead &head);
bool asksForWebSocket(const RequestHead &head);
WSResponse checkUpgrade(const RequestHead &head);
std::string acceptKey(std::string_view key);
std::string chooseProtocol(const std::vector<std::string> &ours, std::string_view offered);
std::optional<std::string> normalOrigin(std::string_view origin);
WSResponse plainResponse(int status, std::string_view text);
WSResponse upgradeRequired();
bool isSendable(const WSResponse &response);
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody);
bool isToken(std::string_view text);
bool sameIgnoringCase(std::string_view a, std::string_view b);
std::size_t countFields(const RequestHead &head, std::string_view name);
std::string fieldValue(const RequestHead &head, std::string_view name);
std::vector<std::string_view> splitList(std::string_view list, char separator);
std::string decodePercent(std::string_view text);

// An IP address: 16 bytes, of which an IPv4 address is the last four, behind the twelve that
// say so (RFC 4291 2.5.5.2). The other end of a Unix socket has none.
using AddressBytes = std::array<unsigned char, 16>;
constexpr AddressBytes kNoIpv6{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0};

struct Address {
    int family = AF_UNIX;  // or AF_INET, AF_INET6
    AddressBytes bytes{};
};

struct Network {  // all of its family that begin with the same bits
    Address address;
    std::size_t bits = 0;
};

Address ipAddress(const AddressBytes &bytes);
std::string encodeAddress(const Address &address);
std::optional<Network> parseNetwork(std::string_view text);
std::string clientAddress(const std::string &peer, const std::vector<Network> &trusted,
                          const std::string &header, const RequestHead &head);

// --- JSON (section 8) ---

constexpr int kMaxJsonDepth = 1000;  // what a stack holds: jsoncpp calls itself for each level

// Of messages that were not received. (A whole configuration is much to make for each.)
int defaultMaxJsonDepth() {
    static const int depth = WSBaseConfig().maxJsonDepth;
    return depth;
}

// --- frames and messages (sections 11 to 13) ---

// Close codes of our own (RFC 6455 7.4.1).
constexpr int kGoingAway = 1001;
constexpr int kProtocolError = 1002;
constexpr int kNoCode = 1005;          // for hooks only: the Close had none
constexpr int kConnectionLost = 1006;  // for hooks only: there was no Close
constexpr int kInvalidData = 1007;
constexpr int kPolicyViolation = 1008;
constexpr int kTooBig = 1009;
constexpr int kInternalError = 1011;

// RFC 6455 5.2: data frames (5.6), then control frames (5.5).
enum class Opcode : std::uint8_t {
    continuation = 0x0,
    text = 0x1,
    binary = 0x2,
    close = 0x8,
    ping = 0x9,
    pong = 0xA
};

// RFC 6455 5.2. A header takes 2 to 14 bytes; without masking key, as a server sends
// it, at most 10.
constexpr std::size_t kMaxFrameHeader = 14;
constexpr std::size_t kMaxControlPayload = 125;  // RFC 6455 5.5

struct FrameHeader {
    bool fin = false;
    Opcode opcode = Opcode::continuation;
    std::uint64_t length = 0;
    std::array<unsigned char, 4> maskingKey{};
};

Progress parseFrameHeader(std::string_view bytes, FrameHeader &header);
std::size_t frameHeaderSize(std::uint64_t length);
char *encodeFrameHeader(char *out, Opcode opcode, std::uint64_t length);
void unmask(char *payload, std::size_t size, std::array<unsigned char, 4> key,
            std::uint64_t offset);

struct ClosePayload {
    int code = 0;
    std::string_view reason;
};

Progress parseClose(std::string_view payload, ClosePayload &close);
std::string encodeClose(int code, std::string_view reason);
bool isCloseCode(int code);

// --- UTF-8, base64, SHA-1 (sections 14 to 16) ---

// Checks UTF-8 that arrives in pieces. It says no at the first byte after which the
// text cannot become valid any more.
class Utf8Check {
  public:
    bool feed(std::string_view piece);                    // false: it is invalid, do not go on
    bool complete() const { return state_ == kBetween; }  // not in the middle of a character

    static constexpr std::uint8_t kBetween = 6;  // the state between characters: see section 14

  private:
    std::uint8_t state_ = kBetween;
};

bool isUtf8(std::string_view text);
std::string_view cutUtf8(std::string_view text, std::size_t size);
std::string base64Encode(std::string_view bytes);
std::optional<std::string> base64Decode(std::string_view text);
std::array<unsigned char, 20> sha1(std::string_view message);

// What a message carries. It is shared by its copies and by the queues that it waits in.
using Payload = std::shared_ptr<std::string>;

bool isReusable(const Payload &payload, std::size_t size);

// Large payloads that nobody has any more: memory that the next messages need not ask the
// system for, which would have to clear it. It never throws.
class SparePayloads {
  public:
    explicit SparePayloads(const std::size_t &mostBytes) : mostBytes_(mostBytes) {}

    // One with room for `size` bytes, if there is any, with whatever is in it; else null.
    Payload take(std::size_t size);
    void giveBack(Payload payload);  // frees it if it is of no use here
    void clear();

  private:
    const std::size_t &mostBytes_;  // which may change
    std::array<Payload, 64> spares_;
    std::size_t count_ = 0;
    std::size_t bytes_ = 0;
};

// Turns the bytes of one connection into messages and control frames, however they
// are cut. It holds memory only while something is unfinished.
class MessageReader {
  public:
    struct Limits {
        std::size_t maxMessageBytes;
        int maxFragments;
        SparePayloads *spares = nullptr;  // where memory for a message may come from
    };

    // What read() found: a whole message (opcode text or binary), a control frame, or only a
    // frame of a message that goes on (opcode continuation). The payload is unmasked; it
    // lies in the bytes given to read() or in this reader, and is good until the next call.
    struct Found {
        Opcode opcode = Opcode::continuation;
        std::string_view payload;
        bool assembled = false;  // the payload lies in this reader, take() it
    };

    // Reads up to the end of a frame; what it reads is unmasked in place. Done: `found` is set,
    // and the bytes behind those used are still to be read. Need more: all bytes are used.
    // Bad: a close code; do not call it again.
    Progress read(char *bytes, std::size_t size, const Limits &limits, Found &found);

    // Where the rest of an unfinished message may be received directly, at most `most`
    // bytes of it; an empty room if none is under way. Give read() what was received.
    struct Room {
        char *bytes;
        std::size_t size;
    };
    Room room(std::size_t most);

    // The payload that was found assembled, and null the next time. Before the next read().
    Payload take();

    // Nothing is unfinished: as good as new.
    bool idle() const { return headerSize_ == 0 && !inPayload_ && !inMessage(); }

  private:
    Progress readHeader(std::string_view bytes, const Limits &limits);
    Progress beginFrame(const Limits &limits);
    Progress readPayload(char *bytes, std::size_t size, Found &found);
    Progress endFrame(std::string_view payload, bool assembled, Found &found);
    void store(const char *bytes, std::size_t size);
    void makeRoom(std::size_t size, std::size_t here);
    std::size_t left() const { return static_cast<std::size_t>(frame_.length - done_); }
    bool inMessage() const { return opcode_ != Opcode::continuation; }
    bool isControl() const { return frame_.opcode >= Opcode::close; }

    // The frame: the bytes of an unfinished header, then how much of the payload is here.
    std::array<char, kMaxFrameHeader> header_{};
    std::size_t headerSize_ = 0;
    bool inPayload_ = false;
    FrameHeader frame_;
    std::uint64_t done_ = 0;
    std::array<char, kMaxControlPayload> control_{};

    // The message: its opcode (continuation: there is none), and what has arrived of it.
    Opcode opcode_ = Opcode::continuation;
    int fragments_ = 0;
    Utf8Check utf8_;
    Payload message_;  // its first filled_ bytes have arrived, the rest is room
    std::size_t filled_ = 0;
    SparePayloads *spares_ = nullptr;
};

// --- the queue of unsent bytes (section 9) ---

constexpr std::size_t kMaxPieces = 64;  // for one system call; Linux, BSD and macOS take 1024

class Outbox {
  public:
    void append(std::string_view bytes);  // copies them
    char *extend(std::size_t size);       // these are the caller's to fill
    void append(Payload payload);         // shares it
    std::size_t size() const { return size_; }

    // Points `pieces` at the first of the unsent bytes; gives how many it set.
    std::size_t gather(std::array<iovec, kMaxPieces> &pieces) const;
    // Forget the first `size` bytes, or all. Payloads among them go to `spares`.
    void sent(std::size_t size, SparePayloads &spares);
    void clear(SparePayloads &spares);

    // A pong that waits until all else is sent. Only the last is kept (RFC 6455 5.5.3).
    std::optional<std::string> pong;

  private:
    struct Segment {
        std::unique_ptr<char[]> copied;
        std::size_t size = 0, capacity = 0;
        Payload shared;  // or this, if it is set
        std::string_view bytes() const {
            return shared ? *shared : std::string_view(copied.get(), size);
        }
        void reserve(std::size_t wanted);
    };
    std::vector<Segment> segments_;
    std::size_t first_ = 0;   // segments before it are sent
    std::size_t offset_ = 0;  // and so much of this one
    std::size_t size_ = 0;    // bytes unsent
};

}  // namespace

// A connection. It owns buffers only while something is unfinished, so an idle one
// is this structure, its user and its two places in the loop's arrays.
struct WSConnection {
    enum class State : unsigned char {  // they only go forward, as the map of this file draws
        handshaking,  // reading the request's head; no user yet, or one in preConnect
        open,         // has a user
        closing,      // our Close is queued, the peer's has not come
        flushing,     // nothing more will be queued; what comes in is thrown away
        lingering,    // all is written, SHUT_WR done; reading away until the peer closes
        dead          // bury() will close the socket
    };

    // What is there only until the handshake is done.
    struct Arrival {
        std::string head;  // the request's, as far as it has come
        std::string address;
        bool wantsBody = true;  // false for a HEAD (RFC 9110 9.3.2)
    };

    // Frames that were received and wait for a later turn, from `at` on.
    struct Unread {
        std::string bytes;
        std::size_t at = 0;
    };

    int fd = -1;
    int rateCount = 0;            // maxMessagesPerSecond: how many in this second
    std::uint16_t closeCode = 0;  // of the user; its reason may be long, and is there
    State state = State::handshaking;
    bool touched = false;       // is in touched_: write() will look at it
    bool marked = false;        // is in marked_: bury() will look at it
    bool readsOn = false;       // is in unread_: its unread bytes can be read in the next turn
    bool drainedDue = false;    // is in drained_: the hook of that name is to be called
    bool aboveMark = false;     // more than lowMarkBytes waited, and not all is gone
    bool inputEnded = false;    // the peer has shut down its side
    bool stalled = false;       // the kernel did not take all: waiting for POLLOUT
    bool pinged = false;        // since the last byte
    bool resting = false;       // the system has no memory for it now
    std::size_t slot = 0;       // its place in connections_
    Milliseconds deadline = 0;  // of the handshake, the ping, or the closing
    std::size_t owed = 0;       // on the way out: bytes that were queued before
    Milliseconds lastByte = 0;
    Milliseconds rateSecond = 0;  // when the counting began
    std::unique_ptr<Arrival> arrival = std::make_unique<Arrival>();
    std::unique_ptr<WSBaseUser> user;
    std::unique_ptr<MessageReader> reader;
    std::unique_ptr<Outbox> outbox;
    std::unique_ptr<Unread> unread;

    // Until the user is gone.
    const std::string &address() const { return user ? user->address() : arrival->address; }
    std::size_t queued() const { return outbox ? outbox->size() : 0; }
};

// What a message holds; shared by its copies. The queues it waits in share the payload only:
// what was parsed of it can be much larger.
struct WSMessage::Body {
    bool binary = false;
    Payload payload = std::make_shared<std::string>();
    int maxJsonDepth = defaultMaxJsonDepth();
    int maxJsonValues = std::numeric_limits<int>::max();  // of our own: as many as there are
    bool parsed = false;                                  // json is known: null if it is none
    std::unique_ptr<Json::Value> json;
};

namespace {

// What stats() tells of. Its maps are made when it is asked, for to count may take no memory.
struct Counters {
    WSStats sums;
    std::array<std::uint64_t, 18> disconnects{};
    std::array<std::uint64_t, 600> answers{};  // by status

    // Of disconnects: 1000 to 1015, then all from 3000 and from 4000 on, which applications use.
    static std::size_t placeOf(int code) {
        return static_cast<std::size_t>(code < 3000 ? code - 1000 : 13 + code / 1000);
    }
    static int codeAt(std::size_t place) {
        const int number = static_cast<int>(place);
        return number < 16 ? 1000 + number : 1000 * (number - 13);
    }
};

}  // namespace

// The loop: what WSBaseServer does, without its face.
struct WSLoop {
    using State = WSConnection::State;

    WSLoop(WSBaseServer &server, WSBaseConfig &config);
    ~WSLoop();
    WSLoop(const WSLoop &) = delete;
    WSLoop &operator=(const WSLoop &) = delete;

    // The loop (section 2)
    void run();
    bool turn(std::chrono::milliseconds timeout);
    void pollFailed(int error);
    void rest(const char *what, int error);
    void wakeUp();
    void failedCall(WSConnection &c, const char *what, int error);
    int waitAtMost(std::chrono::milliseconds timeout) const;
    Milliseconds tickPeriod() const { return milliseconds(config_.tickSeconds); }
    int pollSome(int wait);
    void beginRotation();
    Milliseconds rotationTime() const;
    std::size_t sliceSize() const;
    void swapSlots(std::size_t a, std::size_t b);
    void moveToFront(const WSConnection &c);
    void sendBackSilent();
    void serve(int ready);
    void serveWatched(int &ready);
    void serveSlot(std::size_t slot, int &ready);
    void serveConnection(WSConnection &c, short revents);
    template <class Work>
    void guarded(WSConnection &c, Work &&work);
    void readWakePipe();
    void runPosted();
    void readClocks();
    void readClock(WSConnection &c);
    void checkAlive(WSConnection &c);
    void heedStop();
    void tick();
    void beginShutdown();
    void sendAway(WSConnection &c);
    bool shutdownEnded();
    void write();
    void endTurn();
    void tellDrained();
    void bury();
    void forgetUnwatched();

    // Descriptors and functions of the program's own (section 2)
    void watch(int fd, short events, std::function<void(short)> function);
    void unwatch(int fd);
    void post(std::function<void()> function);
    std::size_t firstWatched() const { return 1 + listeners_; }

    // Reading (section 3)
    void readFrom(WSConnection &c);
    void heardOf(WSConnection &c) const;
    ssize_t receive(WSConnection &c, const MessageReader::Room &room);
    void readInbox(WSConnection &c, char *bytes, std::size_t size);
    void readOn(WSConnection &c);
    std::size_t readFrames(WSConnection &c, char *bytes, std::size_t size);
    bool mayReadFrame(WSConnection &c, int frames);
    void received(WSConnection &c, const MessageReader::Found &found);
    bool tooMany(WSConnection &c) const;
    void receivedMessage(WSConnection &c, const MessageReader::Found &found);
    void receivedPing(WSConnection &c, std::string_view payload);
    void receivedClose(WSConnection &c, std::string_view payload);
    void endOfInput(WSConnection &c);

    // Sending (section 4)
    bool sendToUser(WSBaseUser &user, const WSMessage &msg);
    int sendToAllBut(const WSBaseUser *user, const WSMessage &msg);
    bool send(WSBaseUser &user, const WSMessage &msg, WSMessage &own);
    bool queueMessage(WSConnection &c, const WSMessage &msg);
    bool makeRoomInQueue(WSConnection &c, std::size_t size);
    void queueFrame(WSConnection &c, Opcode opcode, std::string_view payload);
    void queueShared(WSConnection &c, Opcode opcode, Payload payload);
    template <class Append>
    void queue(WSConnection &c, Append &&append);
    void touch(WSConnection &c);
    void flush(WSConnection &c);
    void wrote(WSConnection &c, std::size_t size, bool waited);
    void flushed(WSConnection &c);
    std::size_t lowMark() const;
    bool isThrottled(const WSConnection &c) const;
    void updateEvents(WSConnection &c);

    // Users (section 5)
    void disconnect(WSBaseUser &user, int code, std::string_view reason);
    void refuse(WSBaseUser &user, int status, std::string_view text);
    void acceptProtocol(WSBaseUser &user, std::string_view protocol);
    void requireNewcomer(const WSBaseUser &user, const char *call) const;
    void fail(WSConnection &c, int code, std::string reason);
    void lose(WSConnection &c, std::string reason);
    void end(WSConnection &c, int code, std::string reason, State next);
    void sayGoodbye(WSConnection &c);
    std::vector<WSConnection *>::iterator searchId(std::uint64_t id);
    void remove(WSConnection &c);
    void forgetSpares();
    bool hasRoomFor(const WSConnection &newcomer);
    void disconnectIfIdle(WSConnection &c);
    template <class Hook>
    bool callHook(WSConnection *c, const char *name, Hook &&hook);
    void hookThrew(WSConnection *c, const char *name, const char *what);
    template <class MakeText>
    void log(WSLevel level, MakeText &&makeText);

    // The handshake's glue (section 6)
    void connect(int listener);
    void add(int fd, const sockaddr_storage &peer);
    void makePendingRoom();
    void doHandshake(WSConnection &c, char *bytes, std::size_t size);
    void answerRequest(WSConnection &c, const RequestHead &head);
    bool originAllowed(const RequestHead &head) const;
    void welcome(WSConnection &c, const std::string &response, const std::string &protocol);
    void introduce(WSConnection &c, const std::string &protocol);
    void answerPlain(WSConnection &c);
    void answer(WSConnection &c, const WSResponse &response);

    // Listening (section 7)
    void listen();
    void openListeners();
    int openConfigured();
    int openListenersOf(const addrinfo *list);
    int openUnixListener();
    template <class Open>
    int addListener(Open &&open);
    void closeListeners();
    void raiseFileLimit();
    void stop() noexcept;
    void stopOn(std::initializer_list<int> signals);

    WSBaseServer &server_;
    WSBaseConfig &config_;
    std::vector<std::string> origins_;  // config_.uniqueOrigin, in one spelling
    std::vector<Network> proxies_;      // config_.trustedProxies
    int port_ = 0;
    std::string socketPath_;  // of the listener, if it is a Unix socket, and
    ino_t socketFile_ = 0;    // which file that is

    // Entry 0 of the array is the wake pipe, then come the listeners; entry firstWatched() + i
    // belongs to watched_[i], entry firstConnection_ + i to connections_[i].
    std::vector<pollfd> pollfds_;
    std::size_t listeners_ = 0;
    std::size_t firstConnection_ = 1;
    std::vector<std::unique_ptr<std::function<void(short)>>> watched_;
    std::vector<std::unique_ptr<WSConnection>> connections_;

    // connections_[0, front_) are the front, then come the silent ones: those before looked_
    // were looked at in this rotation. In this turn: those from slice_ to looked_.
    std::size_t front_ = 0;
    std::size_t slice_ = 0;
    std::size_t looked_ = 0;
    std::size_t lookedAt_ = 0;      // so many in this rotation, which began with
    std::size_t rotationSize_ = 0;  // so many silent ones
    Milliseconds turned_ = 0;       // how far it is
    Milliseconds lastTurned_ = 0;
    Milliseconds nextSendBack_ = 0;        // when the front is searched for silent ones
    std::vector<WSConnection *> touched_;  // have something to write, or to finish
    std::vector<WSConnection *> unread_;   // can go on reading what is here already
    std::vector<WSConnection *> drained_;  // have nothing queued any more
    std::vector<WSConnection *> marked_;   // have ended, or lost their user
    int userCount_ = 0;                    // users that are open
    std::uint64_t lastId_ = 0;
    Counters counters_;
    std::vector<WSConnection *> byId_;  // who has a user, whatever its state, oldest first

    int framesEach_ = 0;    // what each may read in this turn
    Milliseconds now_ = 0;  // read when poll() has returned, at the turn's end, and if all is quiet
    Milliseconds nextClocks_ = 0;
    Milliseconds lastTick_ = 0;  // when tick() was due last
    Milliseconds beat_ = 0;      // tickPeriod(), as it was then
    bool resting_ = false;       // the listeners, or some connections, until:
    Milliseconds restUntil_ = 0;

    // Shared by all connections, so that idle ones need none.
    std::unique_ptr<char[]> inbox_;
    std::size_t inboxSize_ = 0;
    std::shared_ptr<WSMessage::Body> body_;  // of the last message, used again if nobody keeps it
    std::vector<std::unique_ptr<MessageReader>> spareReaders_;
    std::vector<std::unique_ptr<Outbox>> spareOutboxes_;
    SparePayloads sparePayloads_{config_.spareBytes};

    bool frontWasQuiet_ = false;  // nobody was ready when poll() last looked
    bool inTurn_ = false;
    bool inSendHook_ = false;
    bool inConsole_ = false;
    WSConnection *newcomer_ = nullptr;   // is in preConnect()
    std::optional<WSResponse> refusal_;  // what preConnect() refused it with

    std::array<int, 2> wakePipe_{-1, -1};
    std::mutex mutex_;  // of posted_: nothing else is shared with other threads
    std::vector<std::function<void()>> posted_;
    std::vector<std::pair<int, struct sigaction>> oldHandlers_;
    bool stopAsked_ = false;
    bool shuttingDown_ = false;
    bool endAtOnce_ = false;
    Milliseconds shutdownDeadline_ = 0;
};

namespace {

// Gives a variable another value for as long as a scope lasts, whatever ends it.
template <class Value>
class Scoped {
  public:
    Scoped(Value &variable, Value value)
        : variable_(variable), before_(std::exchange(variable, value)) {}
    ~Scoped() { variable_ = before_; }
    Scoped(const Scoped &) = delete;
    Scoped &operator=(const Scoped &) = delete;

  private:
    Value &variable_;
    Value before_;
};

// Buffers go from connection to connection: taken when something is unfinished, given
// back when it is done. So many are kept: enough for what goes on in one turn.
constexpr std::size_t kSpareBuffers = 1024;
constexpr std::size_t kKeptBytes = 4 * 1024;  // of a buffer; more is not kept for the next use

template <class Buffer>
std::unique_ptr<Buffer> take(std::vector<std::unique_ptr<Buffer>> &spare) {
    if (spare.empty()) return std::make_unique<Buffer>();
    std::unique_ptr<Buffer> buffer = std::move(spare.back());
    spare.pop_back();
    return buffer;
}

template <class Buffer>
void giveBack(std::vector<std::unique_ptr<Buffer>> &spare, std::unique_ptr<Buffer> &buffer) {
    if (spare.size() < spare.capacity()) spare.push_back(std::move(buffer));
    buffer.reset();
}

constexpr std::chrono::milliseconds kForever{-1};
constexpr Milliseconds kNever = std::numeric_limits<Milliseconds>::max();
constexpr Milliseconds kLongest = 1'000'000'000;  // as poll() can wait: it takes an int
constexpr Milliseconds kClockPeriod = 1000;       // "once a second"
constexpr char kByStop = 't', kBySignal = 's', kByPost = 'p';  // written into the wake pipe

void wake(int pipe, char why) noexcept {
    const int error = errno;                                 // a signal handler must not change it
    while (::write(pipe, &why, 1) < 0 && errno == EINTR) {}  // full: it is awake already
    errno = error;
}

Milliseconds monotonicNow() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return Milliseconds{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

std::string errorText(int error) { return std::generic_category().message(error); }

bool wouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

// poll() passes over a negative descriptor. What asks for no events is not enough: POLLHUP and
// POLLERR come unasked.
int passedOver(int fd) { return std::min(fd, ~fd); }
int heeded(int fd) { return std::max(fd, ~fd); }

bool isShortage(int error) { return error == ENOBUFS || error == ENOMEM; }

std::string quoted(const std::string &text) { return '"' + text + '"'; }

// Who a connection is, for the log.
std::string nameOf(const WSConnection &c) {
    if (c.user) return "user " + std::to_string(c.user->id()) + " (" + c.user->address() + ')';
    return c.arrival ? c.arrival->address : "somebody who has left";
}

// Peers have a say in what is logged. Bytes that a terminal might obey are replaced: the
// control characters of ASCII and of Unicode (U+0080 to U+009F), and what is no UTF-8. A
// line that is longer than any of ours is cut: a pipe takes 512 bytes whole or not at all
// (_POSIX_PIPE_BUF).
std::string printable(std::string text) {
    constexpr std::size_t kMaxLine = 480;
    if (text.size() > kMaxLine) text = std::string(cutUtf8(text, kMaxLine)) + "...";
    const bool utf8 = isUtf8(text);
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !utf8)) text[i] = '?';
        if (utf8 && byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0)
            text[i] = text[i + 1] = '?';
    }
    return text;
}

// Makes place for `size` elements, so that push_back() can not fail; twice as much as
// needed, so that it is seldom.
template <class Element>
void growTo(std::vector<Element> &elements, std::size_t size) {
    if (elements.capacity() < size) elements.reserve(2 * size);
}

// The lists of connections for which something is to be done. A flag tells who is in it: so
// each is once at most, or twice while a walk has not let go of what it has done. add() has
// reserved these places.
void enlist(std::vector<WSConnection *> &list, bool &listed, WSConnection &c) {
    if (!listed) list.push_back(&c);
    listed = true;
}

void strike(std::vector<WSConnection *> &list, const WSConnection &c) {
    list.erase(std::find(list.begin(), list.end(), &c));
}

}  // namespace

// ============================================================================
// 2. The loop
//
// The original's run() was: select() over all sockets; for each that is ready, either
// accept it, or recv() once and treat what came as one message. This one differs where
// that was its weakness: poll() instead of select(), which ends at descriptor 1024; the
// array is kept from turn to turn, and entry i belongs to connection i, so nothing is
// rebuilt or searched; bytes are a stream, so one recv() may hold half a message or
// fifty; nothing is written where it is sent, but once per connection at the turn's end;
// and nobody is removed in the middle: closing marks, the end of the turn buries.
//
// The front and the rotating slice. poll() looks at each descriptor that it is given, in every
// call: 100 take some 10 us, 10 000 several ms, and a turn that serves a hundred messages
// would spend nine tenths of its time on who is silent. So those who spoke lately stand in
// front of the array, and each turn polls them; and if any of them is ready, beside them,
// without waiting, a slice of the silent ones, the next slice each turn. The size of the slice
// is reckoned by time: as many as are due, so that a rotation over all of them takes
// lookSeconds for each, which is some ten times as long as a look takes, and half of
// rotationSeconds at most. So nobody waits for longer than rotationSeconds (or two turns),
// whatever their number and the load, and looking costs a tenth of the time, or less. While
// the front is quiet there is nobody to be held up: then, when the time of a rotation is over,
// one poll() sleeps over all of them. If it was a short sleep (tick() was due, or a program's
// own loop calls turn()), the next turns poll the front alone, until that time is over again;
// after a long one it is. Who is found to speak moves to the front, who has been silent for
// rotationSeconds moves back: a swap each.
// ============================================================================

void WSLoop::run() {
    if (listeners_ == 0) listen();
    while (turn(kForever)) {}
}

// One turn: collect, poll, serve, write, bury.
bool WSLoop::turn(std::chrono::milliseconds timeout) {
    if (inTurn_) throw std::logic_error("turn() was called from a hook");
    const Scoped working(inTurn_, true);

    // 1. Collect: the array stands; what is to do without waiting makes the wait short.
    const int wait = waitAtMost(timeout);

    // 2. Poll. EINTR is an ordinary end of waiting. After another failure nobody is known
    //    to be ready, nor to be silent: the clocks are not read either.
    const int ready = pollSome(wait);
    const int error = ready < 0 ? errno : 0;
    now_ = std::max(now_, monotonicNow());

    // 3. Serve who is ready, and who has bytes left from before.
    serve(std::max(ready, 0));
    if (error == 0 || error == EINTR) readClocks();
    else pollFailed(error);
    heedStop();
    tick();
    sendBackSilent();

    // 4. Write: one send for each connection that has something queued.
    write();
    tellDrained();

    // 5. Bury those who ended.
    bury();

    endTurn();
    return !shutdownEnded();
}

namespace {

constexpr std::size_t kFewSilent = 64;  // are looked at in one go: that is cheaper than two calls

}  // namespace

// poll() for the front and, if that is busy, for a slice of the silent ones; or for all, if
// the silent ones are few or lookSeconds is 0, or the front is quiet and it is time to look.
// Gives what poll() gives.
int WSLoop::pollSome(int wait) {
    if (looked_ == connections_.size() && !frontWasQuiet_) beginRotation();
    if (frontWasQuiet_) now_ = std::max(now_, monotonicNow());  // a program's own loop takes time
    turned_ += now_ - std::exchange(lastTurned_, now_);
    const auto left = static_cast<int>(std::max<Milliseconds>(rotationTime() - turned_, 0));
    const bool always = connections_.size() - front_ <= kFewSilent || config_.lookSeconds <= 0;
    if (always || (frontWasQuiet_ && left == 0)) {
        slice_ = front_;
        looked_ = connections_.size();
        const int ready = ::poll(pollfds_.data(), static_cast<nfds_t>(pollfds_.size()), wait);
        frontWasQuiet_ = ready == 0;
        if (frontWasQuiet_) beginRotation();  // before it slept: that is part of its time
        return ready;
    }
    // (Where there are connections there are clocks to be read, so `wait` is not "for ever".)
    slice_ = looked_;
    const int ready = ::poll(pollfds_.data(), static_cast<nfds_t>(firstConnection_ + front_),
                             std::min(wait, left));
    frontWasQuiet_ = ready == 0;
    const std::size_t size = sliceSize();
    if (ready <= 0 || size == 0) return ready;
    const int found =
        ::poll(pollfds_.data() + firstConnection_ + slice_, static_cast<nfds_t>(size), 0);
    if (found < 0) return found;
    looked_ += size;
    lookedAt_ += size;
    return ready + found;
}

void WSLoop::beginRotation() {
    looked_ = front_;
    lookedAt_ = 0;
    rotationSize_ = connections_.size() - front_;
    turned_ = 0;
    lastTurned_ = now_;
}

// How long this rotation shall take. Half of rotationSeconds at most, for a swap can carry
// somebody from the beginning of one to the end of the next.
Milliseconds WSLoop::rotationTime() const {
    const double wanted = config_.lookSeconds * static_cast<double>(rotationSize_);
    const double most = config_.rotationSeconds / 2;
    return std::max<Milliseconds>(milliseconds(std::min(wanted, most)), 1);
}

// How many of the silent ones are due to be looked at, by the time that this rotation has
// taken.
std::size_t WSLoop::sliceSize() const {
    const std::size_t left = connections_.size() - looked_;
    if (turned_ >= rotationTime()) return left;
    const std::size_t due = rotationSize_ * static_cast<std::size_t>(turned_) /
                            static_cast<std::size_t>(rotationTime());
    return std::min(left, due - std::min(due, lookedAt_));
}

void WSLoop::swapSlots(std::size_t a, std::size_t b) {
    std::swap(connections_[a], connections_[b]);
    std::swap(pollfds_[firstConnection_ + a], pollfds_[firstConnection_ + b]);
    connections_[a]->slot = a;
    connections_[b]->slot = b;
}

void WSLoop::moveToFront(const WSConnection &c) {
    if (c.slot < front_) return;
    swapSlots(c.slot, front_++);
    looked_ = std::max(looked_, front_);
}

// Once in a rotation: who has been silent for so long leaves the front. Not who waits to be
// sent more: POLLOUT shall be seen at once.
void WSLoop::sendBackSilent() {
    if (now_ < nextSendBack_) return;
    const Milliseconds rotation = milliseconds(config_.rotationSeconds);
    nextSendBack_ = now_ + rotation;
    for (std::size_t i = front_; i-- > 0;) {
        const WSConnection &c = *connections_[i];
        if (now_ - c.lastByte > rotation && !c.stalled) swapSlots(i, --front_);
    }
}

// poll() itself fails: no memory, or the limit of open files is below what is open.
void WSLoop::pollFailed(int error) {
    rest("poll", error);
    ::poll(nullptr, 0, static_cast<int>(milliseconds(config_.restSeconds)));
}

// What the system can not give now (descriptors, memory) it will not give at once either: who
// asked rests for restSeconds, or the loop would spin. Logged when it begins, not each
// time that it goes on.
void WSLoop::rest(const char *what, int error) {
    if (now_ - restUntil_ > kClockPeriod)
        log(WSLevel::warning,
            [&] { return std::string("cannot ") + what + ", trying again: " + errorText(error); });
    if (!resting_) restUntil_ = now_ + milliseconds(config_.restSeconds);
    resting_ = true;
}

void WSLoop::wakeUp() {
    resting_ = false;
    for (std::size_t i = 1; i <= listeners_; ++i) pollfds_[i].fd = heeded(pollfds_[i].fd);
    for (const auto &c : connections_)
        if (std::exchange(c->resting, false)) touch(*c);
}

// A call for one connection failed. That it would block, or was interrupted, is ordinary.
void WSLoop::failedCall(WSConnection &c, const char *what, int error) {
    if (wouldBlock(error) || error == EINTR) return;
    if (!isShortage(error)) return lose(c, "connection lost");
    rest(what, error);
    c.resting = true;
    updateEvents(c);
}

// How long poll() may wait, as poll() wants it: 0 while something is to do; else until
// the clocks are to be read, the listeners have rested or the caller wants the turn to
// end; -1, for ever, if there is none of these.
int WSLoop::waitAtMost(std::chrono::milliseconds timeout) const {
    if (!touched_.empty() || !unread_.empty() || stopAsked_) return 0;  // marked: touched, too
    Milliseconds until = kNever;
    if (timeout.count() >= 0) until = now_ + std::min<Milliseconds>(timeout.count(), kLongest);
    if (!connections_.empty()) until = std::min(until, nextClocks_);
    if (shuttingDown_) until = std::min(until, shutdownDeadline_);
    if (resting_) until = std::min(until, restUntil_);
    if (tickPeriod() > 0) until = std::min(until, lastTick_ + tickPeriod());
    if (until == kNever) return -1;
    return static_cast<int>(std::max<Milliseconds>(until - now_, 0));
}

// The wake pipe, the listeners, what is watched, those who have something left to be read, then
// each ready connection. Those that are accepted here are appended, and not ready before the
// next turn.
void WSLoop::serve(int ready) {
    const std::size_t left = unread_.size(), front = front_, before = connections_.size();
    framesEach_ = std::max(config_.framesPerTurn / std::max(ready + static_cast<int>(left), 1), 1);
    if (ready > 0 && pollfds_[0].revents != 0) readWakePipe(), runPosted(), --ready;
    for (std::size_t i = 1; i <= listeners_ && ready > 0; ++i)
        if (pollfds_[i].revents != 0) connect(pollfds_[i].fd), --ready;
    serveWatched(ready);
    for (std::size_t i = 0; i < left; ++i) {
        WSConnection &c = *unread_[i];
        c.readsOn = false;
        guarded(c, [&] { readOn(c); });
    }
    unread_.erase(unread_.begin(), unread_.begin() + static_cast<std::ptrdiff_t>(left));
    for (std::size_t i = 0; i < front && ready > 0; ++i) serveSlot(i, ready);
    for (std::size_t i = slice_; i < looked_ && ready > 0; ++i) serveSlot(i, ready);
    for (std::size_t i = before; i < connections_.size(); ++i) moveToFront(*connections_[i]);
}

// Whoever is ready moves to the front. Who is swapped into its slot stood right behind the
// front, and so was looked at before: in this turn, or in an earlier one of this rotation.
void WSLoop::serveSlot(std::size_t slot, int &ready) {
    const short revents = pollfds_[firstConnection_ + slot].revents;
    if (revents == 0) return;
    --ready;
    WSConnection &c = *connections_[slot];
    serveConnection(c, revents);
    moveToFront(c);
}

void WSLoop::serveConnection(WSConnection &c, short revents) {
    guarded(c, [&] {
        if ((revents & ~POLLOUT) != 0) readFrom(c);
        if ((revents & POLLOUT) != 0) touch(c);
    });
}

// Who can not have the memory that it needs is lost, and nobody else is.
template <class Work>
void WSLoop::guarded(WSConnection &c, Work &&work) {
    try {
        work();
    } catch (const std::bad_alloc &) {
        log(WSLevel::error, [&] { return "out of memory for " + nameOf(c); });
        lose(c, "out of memory");
    }
}

// A byte in the pipe wakes poll(): from stop(), from a signal that stopOn() was given, or from
// post(). Who reads them calls runPosted() next.
void WSLoop::readWakePipe() {
    std::array<char, 64> bytes;
    ssize_t size = 0;
    do {
        size = ::read(wakePipe_[0], bytes.data(), bytes.size());
        const auto end = bytes.begin() + std::max<ssize_t>(size, 0);
        const auto has = [&](char why) { return std::find(bytes.begin(), end, why) != end; };
        if (shuttingDown_ && has(kBySignal)) endAtOnce_ = true;
        stopAsked_ = stopAsked_ || has(kBySignal) || has(kByStop);
    } while (size == static_cast<ssize_t>(bytes.size()));
}

// Calls what was posted until now; what these functions post is for the next turn.
void WSLoop::runPosted() {
    std::vector<std::function<void()>> posted;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        posted.swap(posted_);
    }
    for (const auto &function : posted) callHook(nullptr, "post", function);
}

// From any thread. Only the first that waits writes its byte: so the pipe is never full of
// these, and stop() finds place.
void WSLoop::post(std::function<void()> function) {
    if (!function) throw std::invalid_argument("post() wants a function to call");
    const std::lock_guard<std::mutex> lock(mutex_);
    posted_.push_back(std::move(function));
    if (posted_.size() == 1) wake(wakePipe_[1], kByPost);
}

// Once a second: who has been silent, idle or unfinished for too long?
void WSLoop::readClocks() {
    if (resting_ && now_ >= restUntil_) wakeUp();
    if (now_ < nextClocks_) return;
    nextClocks_ = now_ + kClockPeriod;
    forgetSpares();
    for (const auto &c : connections_) guarded(*c, [&] { readClock(*c); });
}

// (The kernel tells only of much room in its buffer, POLLOUT; who takes a little now and then
// is alive, too.)
void WSLoop::readClock(WSConnection &c) {
    if (c.stalled) flush(c);
    updateEvents(c);
    switch (c.state) {
    case State::handshaking:
        if (now_ >= c.deadline) answer(c, plainResponse(408, "The request took too long."));
        break;
    case State::open:
        disconnectIfIdle(c);
        if (c.state == State::open) checkAlive(c);
        break;
    case State::closing:
    case State::flushing:
    case State::lingering:
        if (now_ >= c.deadline) lose(c, "no answer");
        break;
    case State::dead: break;
    }
}

// Sends a ping after pingSeconds of silence; gives the peer up after as long again. Who has
// bytes here that we are reading is not silent: what it answers is behind them.
void WSLoop::checkAlive(WSConnection &c) {
    const Milliseconds limit = milliseconds(config_.pingSeconds);
    if (c.unread && !isThrottled(c)) return heardOf(c);
    if (limit == 0 || now_ - c.lastByte < limit) return;
    if (!c.pinged) {
        c.pinged = true;
        c.deadline = now_ + limit;
        queueFrame(c, Opcode::ping, {});
    } else if (now_ >= c.deadline) {
        lose(c, "no answer");
    }
}

// Starts the shutdown if it was asked for and preShutdown() lets it. Once it is under way,
// ends it when its time is over.
void WSLoop::heedStop() {
    if (shuttingDown_) {
        if (endAtOnce_ || now_ >= shutdownDeadline_)
            for (const auto &c : connections_) lose(*c, "shutdown");
    } else if (stopAsked_) {
        bool doShutdown = true;
        callHook(nullptr, "preShutdown", [&] { server_.preShutdown(doShutdown); });
        if (doShutdown) beginShutdown();
        else log(WSLevel::debug, [] { return "preShutdown() objected: the server goes on"; });
    }
    stopAsked_ = false;
}

// On the beat: the next one is due a whole number of periods after the first, however late
// this one is. When tickSeconds was set, the beat begins anew.
void WSLoop::tick() {
    const Milliseconds period = tickPeriod();
    if (period != std::exchange(beat_, period)) lastTick_ = now_;
    if (period <= 0 || now_ - lastTick_ < period) return;
    lastTick_ = now_ - (now_ - lastTick_) % period;
    callHook(nullptr, "tick", [&] { server_.tick(); });
}

void WSLoop::beginShutdown() {
    log(WSLevel::debug, [] { return "shutting down"; });
    shuttingDown_ = true;
    shutdownDeadline_ = now_ + milliseconds(config_.shutdownSeconds);
    closeListeners();
    for (const auto &c : connections_) guarded(*c, [&] { sendAway(*c); });
}

void WSLoop::sendAway(WSConnection &c) {
    if (c.state == State::open) disconnect(*c.user, kGoingAway, "the server shuts down");
    if (c.state == State::handshaking) answer(c, plainResponse(503, "The server shuts down."));
}

// True once: when the last connection of a shutdown is buried.
bool WSLoop::shutdownEnded() {
    if (!shuttingDown_ || !connections_.empty()) return false;
    readWakePipe();  // who asks late asks for what has happened
    runPosted();
    shuttingDown_ = endAtOnce_ = stopAsked_ = false;
    callHook(nullptr, "postShutdown", [&] { server_.postShutdown(); });
    log(WSLevel::debug, [] { return "the server has stopped"; });
    return true;
}

// The clock is read once more: what waits is not to wait for as long as the turn took.
void WSLoop::endTurn() {
    const Milliseconds begun = std::exchange(now_, std::max(now_, monotonicNow()));
    double &longest = counters_.sums.longestTurnSeconds;
    longest = std::max(longest, static_cast<double>(now_ - begun) / 1000);
    ++counters_.sums.turns;
}

// What fails is logged, and console() may send to somebody: that is for the next turn.
void WSLoop::write() {
    const std::size_t count = touched_.size();
    for (std::size_t i = 0; i < count; ++i) {
        WSConnection &c = *touched_[i];
        c.touched = false;
        flush(c);
        if (c.stalled) moveToFront(c);  // POLLOUT shall be seen at once
    }
    touched_.erase(touched_.begin(), touched_.begin() + static_cast<std::ptrdiff_t>(count));
}

// Calls drained() where it is due, and the queue is still empty. What the hooks send may
// drain at once, which is for the next turn.
void WSLoop::tellDrained() {
    const std::size_t count = drained_.size();
    for (std::size_t i = 0; i < count; ++i) {
        WSConnection &c = *drained_[i];
        c.drainedDue = false;
        if (c.queued() > 0) c.aboveMark = true;
        else if (c.state == State::open)
            guarded(c, [&] { callHook(&c, "drained", [&] { server_.callDrained(*c.user); }); });
    }
    drained_.erase(drained_.begin(), drained_.begin() + static_cast<std::ptrdiff_t>(count));
}

// Says goodbye for every user that ended, and closes the sockets that are dead. The hooks
// may end more users: the list grows behind the index. Sockets go last, when no hook is
// left that could be walking over the users.
void WSLoop::bury() {
    for (std::size_t i = 0; i < marked_.size(); ++i) sayGoodbye(*marked_[i]);
    for (WSConnection *c : marked_) {
        c->marked = false;
        if (c->state == State::dead) remove(*c);
    }
    marked_.clear();
    forgetUnwatched();
}

// The functions of what is watched. They may watch and unwatch as they like: what is new comes
// behind, and what is unwatched keeps its place, and its function, until the end of the turn.
void WSLoop::serveWatched(int &ready) {
    for (std::size_t i = 0, count = watched_.size(); i < count && ready > 0; ++i) {
        const pollfd entry = pollfds_[firstWatched() + i];
        if (entry.revents == 0) continue;
        --ready;
        const bool closed = (entry.revents & POLLNVAL) != 0;
        if (closed)
            log(WSLevel::error, [&] {
                return "descriptor " + std::to_string(entry.fd) + " is watched, but closed";
            });
        if (closed || !callHook(nullptr, "watch", [&] { (*watched_[i])(entry.revents); }))
            unwatch(entry.fd);
    }
}

// A descriptor that is watched anew gets a new place, too: its old function may be running.
void WSLoop::watch(int fd, short events, std::function<void(short)> function) {
    if (fd < 0 || !function)
        throw std::invalid_argument("watch() wants a descriptor, and a function to call");
    growTo(pollfds_, pollfds_.size() + 1);
    watched_.push_back(std::make_unique<std::function<void(short)>>(std::move(function)));
    unwatch(fd);
    const auto end = pollfds_.begin() + static_cast<std::ptrdiff_t>(firstConnection_++);
    pollfds_.insert(end, {fd, events, 0});
}

void WSLoop::unwatch(int fd) {
    for (std::size_t i = firstWatched(); i < firstConnection_; ++i)
        if (pollfds_[i].fd == fd) pollfds_[i] = {-1, 0, 0};  // poll() passes over it
}

// What a function holds goes with it, and may watch or unwatch in its destructor: so it goes
// last.
void WSLoop::forgetUnwatched() {
    for (std::size_t i = watched_.size(); i-- > 0;) {
        const std::size_t place = firstWatched() + i;
        if (pollfds_[place].fd >= 0) continue;
        const auto function = std::move(watched_[i]);
        watched_.erase(watched_.begin() + static_cast<std::ptrdiff_t>(i));
        pollfds_.erase(pollfds_.begin() + static_cast<std::ptrdiff_t>(place));
        --firstConnection_;
    }
}

// ============================================================================
// 3. Reading
//
// One bounded recv() per connection and turn, so nobody starves. It goes into one inbox
// that all connections share, and messages are unmasked and handed out where they lie
// there. Only what is unfinished at the inbox's end is copied to the connection, into its
// MessageReader; the rest of a large message is received right there.
//
// A few bytes can be much work: 256 KiB are 43 000 of the smallest frames. So the frames of a
// turn are counted, too, and shared by all who have something to say; and while a peer does
// not read what it is sent, its next frame has to wait. What was received but may not be
// read yet is kept by the connection, and nothing more is received until it is read.
// ============================================================================

// What came belongs to the handshake, to the frames or, on the way out, to nobody. (Who
// may not be read from can be ready all the same: if it is lost, as flush() will find.)
void WSLoop::readFrom(WSConnection &c) {
    if (c.state == State::dead) return;
    if (isThrottled(c)) flush(c);
    if (c.unread || isThrottled(c)) return touch(c);
    const MessageReader::Room room =
        c.reader ? c.reader->room(config_.readBytes) : MessageReader::Room{};
    const ssize_t result = receive(c, room);
    if (result == 0) return endOfInput(c);
    if (result < 0) return failedCall(c, "receive", errno);
    heardOf(c);
    const auto size = static_cast<std::size_t>(result);
    counters_.sums.bytesReceived += size;
    if (c.state == State::handshaking) return doHandshake(c, inbox_.get(), size);
    const std::size_t inRoom = std::min(size, room.size);
    if (inRoom > 0) readFrames(c, room.bytes, inRoom);  // of one frame: all of it is used
    if (size > inRoom) readInbox(c, inbox_.get(), size - inRoom);
}

// A sign of life: the peer sent or took something.
void WSLoop::heardOf(WSConnection &c) const {
    c.lastByte = now_;
    c.pinged = false;
}

// recv() into the inbox. While a large message is under way: into the room it offers
// first, and what follows it into the inbox.
ssize_t WSLoop::receive(WSConnection &c, const MessageReader::Room &room) {
    const std::size_t most = config_.readBytes;
    if (inboxSize_ != most) {
        inbox_ = std::make_unique<char[]>(most);
        inboxSize_ = most;
    }
    if (room.size == 0) return ::recv(c.fd, inbox_.get(), most, 0);

    std::array<iovec, 2> pieces{iovec{room.bytes, room.size},
                                iovec{inbox_.get(), most - room.size}};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = room.size < most ? 2 : 1;
    return ::recvmsg(c.fd, &message, 0);
}

// Reads the frames that lie in the inbox; keeps those that have to wait.
void WSLoop::readInbox(WSConnection &c, char *bytes, std::size_t size) {
    const std::size_t used = readFrames(c, bytes, size);
    if (used == size) return;
    c.unread = std::make_unique<WSConnection::Unread>();
    c.unread->bytes.assign(bytes + used, size - used);
    updateEvents(c);
}

// Reads the frames that had to wait, if they still do.
void WSLoop::readOn(WSConnection &c) {
    if (!c.unread) return;
    WSConnection::Unread &unread = *c.unread;
    unread.at += readFrames(c, unread.bytes.data() + unread.at, unread.bytes.size() - unread.at);
    if (unread.at == unread.bytes.size()) c.unread.reset();
    updateEvents(c);
}

// Reads frames while the connection may still receive: after we have sent a Close, too,
// for the peer's answer. What is behind the peer's Close is discarded (RFC 6455 1.4). Gives
// how many bytes are done with: fewer than all if the others in them have to wait.
std::size_t WSLoop::readFrames(WSConnection &c, char *bytes, std::size_t size) {
    if (!c.reader) c.reader = take(spareReaders_);
    const MessageReader::Limits limits{config_.maxMessageBytes, config_.maxFragments,
                                       &sparePayloads_};
    std::size_t used = 0;
    for (int frames = 0; used < size && mayReadFrame(c, frames); ++frames) {
        MessageReader::Found found;
        const Progress progress = c.reader->read(bytes + used, size - used, limits, found);
        used += progress.answer == Progress::done ? progress.used : size - used;
        if (progress.answer == Progress::bad) fail(c, progress.code, progress.reason);
        if (progress.answer == Progress::done) received(c, found);
    }
    if (c.reader->idle()) {
        sparePayloads_.giveBack(c.reader->take());  // of a message that came too late
        giveBack(spareReaders_, c.reader);
    } else if (c.state > State::closing) {
        c.reader.reset();
    }
    return c.state > State::closing ? size : used;
}

// Whether another frame of this connection may be read in this turn, after so many. One may
// always; others while the turn is younger than busySeconds. The clock is looked at after 1,
// 2, 4, 8, 16, 24… frames: a message that comes alone costs no look.
bool WSLoop::mayReadFrame(WSConnection &c, int frames) {
    if (isThrottled(c)) flush(c);
    if (c.state > State::closing || isThrottled(c) || frames >= framesEach_) return false;
    const bool looks = frames < 8 ? (frames & (frames - 1)) == 0 : frames % 8 == 0;
    return frames == 0 || !looks || monotonicNow() - now_ < milliseconds(config_.busySeconds);
}

// One message or control frame, or a frame of a message that goes on. While we wait for the
// peer's Close, data is ignored, but pings are not: only a Close that was received ends that
// duty (RFC 6455 5.5.2).
void WSLoop::received(WSConnection &c, const MessageReader::Found &found) {
    if (found.opcode == Opcode::continuation) return;
    if (found.opcode == Opcode::close) return receivedClose(c, found.payload);
    if (found.opcode == Opcode::pong) return;  // its arrival was the sign of life
    if (tooMany(c)) return fail(c, kPolicyViolation, "too many messages per second");
    if (found.opcode == Opcode::ping) return receivedPing(c, found.payload);
    if (c.state == State::open) receivedMessage(c, found);
}

// Counts towards maxMessagesPerSecond, second by second.
bool WSLoop::tooMany(WSConnection &c) const {
    if (config_.maxMessagesPerSecond <= 0) return false;
    if (now_ - c.rateSecond >= 1000) {
        c.rateSecond = now_;
        c.rateCount = 0;
    }
    return ++c.rateCount > config_.maxMessagesPerSecond;
}

// Hands a message to the user's hooks. The message's body and payload are used again for the
// next one, unless somebody kept a copy, or it waits to be sent.
void WSLoop::receivedMessage(WSConnection &c, const MessageReader::Found &found) {
    if (!body_ || body_.use_count() > 1) body_ = std::make_shared<WSMessage::Body>();
    if (found.assembled || !isReusable(body_->payload, found.payload.size())) {
        sparePayloads_.giveBack(std::move(body_->payload));
        body_->payload =
            found.assembled ? c.reader->take() : sparePayloads_.take(found.payload.size());
    }
    if (!body_->payload) body_->payload = std::make_shared<std::string>();
    if (!found.assembled) body_->payload->assign(found.payload);
    body_->binary = found.opcode == Opcode::binary;
    body_->parsed = false;
    body_->json.reset();
    body_->maxJsonDepth = config_.maxJsonDepth;
    body_->maxJsonValues = config_.maxJsonValues;
    WSMessage msg(std::move(body_));
    callHook(&c, "process", [&] {
        c.user->messageReceived();
        ++counters_.sums.messagesReceived;
        server_.callProcess(*c.user, msg);
    });
    body_ = std::move(msg.body_);
    if (body_.use_count() == 1) body_->json.reset();  // it can be large
}

// A ping is answered with its own payload (RFC 6455 5.5.3). While the peer does not take
// what is queued for it, only the last answer is kept.
void WSLoop::receivedPing(WSConnection &c, std::string_view payload) {
    if (c.stalled) c.outbox->pong = payload;
    else queueFrame(c, Opcode::pong, payload);
}

// The peer's Close: the answer to ours, or one to answer with the same code, after
// which we close the TCP connection (RFC 6455 5.5.1, 7.1.1). No code is 1005 for the
// hooks (7.1.5), and answered with none.
void WSLoop::receivedClose(WSConnection &c, std::string_view payload) {
    ClosePayload close;
    const Progress progress = parseClose(payload, close);
    if (progress.answer == Progress::bad) return fail(c, progress.code, progress.reason);
    std::string reason(close.reason);
    if (c.state == State::open) queueFrame(c, Opcode::close, payload.substr(0, 2));
    end(c, close.code, std::move(reason), State::flushing);
}

// The peer will send no more. What is still queued for it may yet arrive.
void WSLoop::endOfInput(WSConnection &c) {
    c.inputEnded = true;
    if (c.state == State::handshaking || c.state == State::lingering) return lose(c, "");
    end(c, kConnectionLost, "", State::flushing);
}

// ============================================================================
// 4. Sending
//
// What is sent is queued, and all that was queued for a connection in a turn goes out in
// one system call at the turn's end (or before, if the queue is full). What the kernel does
// not take stays queued; POLLOUT is asked for only as long. Small frames are copied one
// behind the other; the payload of a large message is shared by all its receivers. Text was
// checked when its WSMessage was made, and JSON was written then: a broadcast only adds
// headers.
// ============================================================================

bool WSLoop::sendToUser(WSBaseUser &user, const WSMessage &msg) {
    WSMessage own = msg;
    return send(user, msg, own);
}

// To all, if `user` is null. Nobody comes or goes in connections_ on the way: users are
// added and removed between hooks only.
int WSLoop::sendToAllBut(const WSBaseUser *user, const WSMessage &msg) {
    WSMessage own = msg;
    int sent = 0;
    for (const auto &connection : connections_) {
        WSBaseUser *receiver = connection->user.get();
        if (receiver != nullptr && receiver != user && send(*receiver, msg, own)) ++sent;
    }
    return sent;
}

// Queues a message with the hooks around it. `own` is the copy that preSend() may change for
// this receiver; afterwards it is as `msg` again, for the next one.
bool WSLoop::send(WSBaseUser &user, const WSMessage &msg, WSMessage &own) {
    WSConnection *c = user.connection_;
    if (c == nullptr || c->state != State::open) return false;
    if (inSendHook_) return queueMessage(*c, msg);

    const Scoped sending(inSendHook_, true);
    callHook(c, "preSend", [&] { server_.callPreSend(user, own); });
    const bool queued = queueMessage(*c, own);
    if (queued) callHook(c, "postSend", [&] { server_.callPostSend(user, own); });
    if (own.body_ != msg.body_) own = msg;
    return queued;
}

// Queues one data frame; we never fragment, for a frame can have any length (RFC 6455
// 5.2). False if the user is gone, or is now.
bool WSLoop::queueMessage(WSConnection &c, const WSMessage &msg) {
    const Payload &payload = msg.body_->payload;
    if (!makeRoomInQueue(c, payload->size())) return false;
    const Opcode opcode = msg.body_->binary ? Opcode::binary : Opcode::text;
    if (payload->size() < config_.shareBytes) queueFrame(c, opcode, *payload);
    else queueShared(c, opcode, payload);
    const bool queued = c.state == State::open;
    counters_.sums.messagesSent += queued;
    return queued;
}

// If a message does not fit the queue, it may once the kernel has taken what waits. If even
// then it does not, the user is lost: no message is dropped silently.
bool WSLoop::makeRoomInQueue(WSConnection &c, std::size_t size) {
    const auto fits = [&] {
        return c.queued() == 0 || c.queued() + size + kMaxFrameHeader <= config_.maxQueuedBytes;
    };
    if (c.state != State::open) return false;
    if (fits()) return true;
    flush(c);
    if (c.state != State::open) return false;
    if (fits()) return true;
    log(WSLevel::warning, [&] { return nameOf(c) + " reads too slowly: maxQueuedBytes"; });
    end(c, kPolicyViolation, "too slow", State::dead);
    return false;
}

// Queues a frame whose payload is copied.
void WSLoop::queueFrame(WSConnection &c, Opcode opcode, std::string_view payload) {
    queue(c, [&](Outbox &outbox) {
        char *const frame = outbox.extend(frameHeaderSize(payload.size()) + payload.size());
        std::copy_n(payload.data(), payload.size(),
                    encodeFrameHeader(frame, opcode, payload.size()));
    });
}

// Queues a frame whose payload is shared.
void WSLoop::queueShared(WSConnection &c, Opcode opcode, Payload payload) {
    queue(c, [&](Outbox &outbox) {
        encodeFrameHeader(outbox.extend(frameHeaderSize(payload->size())), opcode, payload->size());
        outbox.append(std::move(payload));
    });
}

// Queues what `append` puts into the queue. Who can not have the memory for it is lost.
template <class Append>
void WSLoop::queue(WSConnection &c, Append &&append) {
    guarded(c, [&] {
        if (!c.outbox) c.outbox = take(spareOutboxes_);
        append(*c.outbox);
        c.aboveMark = c.aboveMark || c.queued() > lowMark();
        touch(c);
    });
}

// Has write() look at this connection at the end of the turn.
void WSLoop::touch(WSConnection &c) { enlist(touched_, c.touched, c); }

namespace {

// send() is a little cheaper than sendmsg() for the usual one piece.
ssize_t sendPieces(int fd, iovec *pieces, std::size_t count) {
    if (count == 1) return ::send(fd, pieces->iov_base, pieces->iov_len, MSG_NOSIGNAL);
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count;
    return ::sendmsg(fd, &message, MSG_NOSIGNAL);
}

}  // namespace

// Writes what is queued, in one system call; what is left waits for POLLOUT. The only place
// that writes.
void WSLoop::flush(WSConnection &c) {
    if (c.state == State::dead) return;
    const bool waited = std::exchange(c.stalled, false);
    if (c.queued() > 0) {
        std::array<iovec, kMaxPieces> pieces;
        const ssize_t sent = sendPieces(c.fd, pieces.data(), c.outbox->gather(pieces));
        if (sent < 0) failedCall(c, "send", errno);
        if (c.state == State::dead) return;
        if (sent > 0) wrote(c, static_cast<std::size_t>(sent), waited);
        c.stalled = c.queued() > 0;
    }
    if (!c.stalled) flushed(c);
    updateEvents(c);
}

// If the kernel had no place before, and has some now, the peer is alive: it took something.
// Who is on the way out gets more time for each step with what was queued by then, but
// not for pongs: or it could stay for as long as it sends pings.
void WSLoop::wrote(WSConnection &c, std::size_t size, bool waited) {
    c.outbox->sent(size, sparePayloads_);
    counters_.sums.bytesSent += size;
    if (waited) heardOf(c);
    if (c.owed > 0) c.deadline = now_ + milliseconds(config_.closeSeconds);
    c.owed -= std::min(c.owed, size);
    if (c.queued() > 0 || !c.outbox->pong) return;
    const std::string payload = *std::exchange(c.outbox->pong, std::nullopt);
    if (c.state <= State::closing) queueFrame(c, Opcode::pong, payload);
}

// All is written. If it was the last, our side is shut down, so that the peer reads it to
// its end: close() with unread input would make the kernel reset the connection, and the
// peer lose what is under way (RFC 9112 9.6; RFC 6455 7.1.1 describes the same).
void WSLoop::flushed(WSConnection &c) {
    if (c.outbox) giveBack(spareOutboxes_, c.outbox);
    if (std::exchange(c.aboveMark, false)) enlist(drained_, c.drainedDue, c);
    if (c.state != State::flushing) return;
    ::shutdown(c.fd, SHUT_WR);
    c.state = State::lingering;
    c.deadline = now_ + milliseconds(config_.closeSeconds);
    if (c.inputEnded) lose(c, "");
}

// Half of what may wait, at most: who throttles itself shall not be disconnected for it.
std::size_t WSLoop::lowMark() const {
    return std::min(config_.lowMarkBytes, config_.maxQueuedBytes / 2);
}

// Who does not take what is queued is not read from: it throttles itself.
bool WSLoop::isThrottled(const WSConnection &c) const {
    return c.state == State::open && c.queued() > lowMark();
}

// What poll() shall look for. Who has bytes to be read already needs no poll() for that.
void WSLoop::updateEvents(WSConnection &c) {
    const bool reads = !c.inputEnded && !isThrottled(c) && c.state != State::dead;
    const bool readsOn = reads && c.unread;
    if (readsOn) enlist(unread_, c.readsOn, c);
    const int events = (reads && !readsOn ? POLLIN : 0) | (c.stalled ? POLLOUT : 0);
    pollfd &entry = pollfds_[firstConnection_ + c.slot];
    entry.events = static_cast<short>(events);
    entry.fd = c.resting ? passedOver(c.fd) : c.fd;
}

// ============================================================================
// 5. Users
//
// Whatever ends a connection comes through end(): it only notes why and moves the state
// forward. Nothing is freed and no hook runs before bury(), so hooks, broadcasts and walks
// over the users can go on whoever ends on the way. The two ways that need no closing
// handshake are fail(), for peers that break the protocol (RFC 6455 7.1.7), and lose(), for
// those that are gone.
// ============================================================================

// Starts the closing handshake (RFC 6455 7.1.2): our Close is queued behind what was sent
// before, then the peer has closeSeconds to answer.
void WSLoop::disconnect(WSBaseUser &user, int code, std::string_view reason) {
    if (!isCloseCode(code))
        throw std::invalid_argument("disconnect(): " + std::to_string(code) +
                                    " is no close code that may be sent; see RFC 6455 7.4");
    if (!isUtf8(reason)) throw std::invalid_argument("disconnect(): the reason is not UTF-8");
    WSConnection *c = user.connection_;
    if (c == nullptr) return;
    if (c == newcomer_ && !refusal_) refuse(user, 403, reason);
    if (c->state != State::open) return;
    const std::string payload = encodeClose(code, reason);
    std::string said = payload.substr(2);
    queueFrame(*c, Opcode::close, payload);
    end(*c, code, std::move(said), State::closing);
}

void WSLoop::refuse(WSBaseUser &user, int status, std::string_view text) {
    requireNewcomer(user, "refuse()");
    if (status < 400 || status > 599)
        throw std::invalid_argument("refuse(): status " + std::to_string(status) +
                                    " is not between 400 and 599");
    refusal_ = plainResponse(status, text);
}

void WSLoop::acceptProtocol(WSBaseUser &user, std::string_view protocol) {
    requireNewcomer(user, "acceptProtocol()");
    const std::string offered = user.request_.header("Sec-WebSocket-Protocol");
    if (chooseProtocol({std::string(protocol)}, offered) != protocol)
        throw std::invalid_argument("acceptProtocol(): the client does not offer this one");
    user.protocol_ = protocol.empty() ? nullptr : std::make_unique<const std::string>(protocol);
}

void WSLoop::requireNewcomer(const WSBaseUser &user, const char *call) const {
    if (newcomer_ == nullptr || user.connection_ != newcomer_)
        throw std::logic_error(std::string(call) +
                               " is for preConnect(), and for the user it was called with");
}

// The peer broke the protocol: it is told so, then the connection is closed, without
// waiting for its answer (RFC 6455 7.1.7).
void WSLoop::fail(WSConnection &c, int code, std::string reason) {
    const std::string payload = encodeClose(code, reason);
    if (c.state == State::open) queueFrame(c, Opcode::close, payload);
    end(c, code, std::move(reason), State::flushing);
}

// The peer is gone, or shall be: nothing more is read or written. A `reason` of up to 15
// bytes takes no memory from the heap, which may be what is missing.
void WSLoop::lose(WSConnection &c, std::string reason) {
    end(c, kConnectionLost, std::move(reason), State::dead);
}

// Moves a connection on towards its end. Code and reason are for the hooks, and the first
// ones count.
void WSLoop::end(WSConnection &c, int code, std::string reason, State next) {
    if (!inTurn_) now_ = monotonicNow();
    if (c.state == State::open) {
        c.user->closeReason_ = std::move(reason);
        c.closeCode = static_cast<std::uint16_t>(code);
        --userCount_;
        ++counters_.disconnects[Counters::placeOf(code)];
    }
    if (c.state <= State::open) {
        c.deadline = now_ + milliseconds(config_.closeSeconds);
        c.owed = c.queued();
    }
    c.state = std::max(c.state, next);
    touch(c);
    enlist(marked_, c.marked, c);
}

// The last two hooks of a user, and its end. The connection may live on for a while, to
// write what is queued and to close properly.
void WSLoop::sayGoodbye(WSConnection &c) {
    if (!c.user || c.state <= State::open) return;
    log(WSLevel::debug, [&] {
        return nameOf(c) + " left: " + std::to_string(c.closeCode) + ' ' + c.user->closeReason_;
    });
    callHook(&c, "preDisconnect", [&] { server_.callPreDisconnect(*c.user, c.fd); });
    callHook(&c, "postDisconnect", [&] { server_.postDisconnect(); });
    byId_.erase(searchId(c.user->id_));
    c.user.reset();
}

// Where in byId_ that user is, or would be.
std::vector<WSConnection *>::iterator WSLoop::searchId(std::uint64_t id) {
    const auto isBefore = [](const WSConnection *c, std::uint64_t wanted) {
        return c->user->id_ < wanted;
    };
    return std::lower_bound(byId_.begin(), byId_.end(), id, isBefore);
}

// The one place that closes a connection's socket. Its place is handed on to the end of the
// front, from there to the end of those that were looked at, then to the last one, so that
// each of the others stays on its side.
void WSLoop::remove(WSConnection &c) {
    if (c.touched) strike(touched_, c);
    if (c.readsOn) strike(unread_, c);
    if (c.drainedDue) strike(drained_, c);
    ::close(c.fd);
    if (c.slot < front_) swapSlots(c.slot, --front_);
    if (c.slot < looked_) swapSlots(c.slot, --looked_);
    swapSlots(c.slot, connections_.size() - 1);
    connections_.pop_back();
    pollfds_.pop_back();
    if (connections_.empty()) forgetSpares();  // for then no clocks are read
}

// Frees what was a large message, or may have been.
void WSLoop::forgetSpares() {
    sparePayloads_.clear();
    body_.reset();
}

// Whether there is room for this newcomer. If there is none, the idle users go first.
bool WSLoop::hasRoomFor(const WSConnection &newcomer) {
    const auto full = [this] { return userCount_ >= config_.maxUsers; };
    for (std::size_t i = 0; full() && i < connections_.size(); ++i)
        disconnectIfIdle(*connections_[i]);
    if (full()) return false;
    if (config_.maxUsersPerAddress <= 0) return true;
    const auto sameAddress = [&](const auto &c) {
        return c->state == State::open && c->address() == newcomer.address();
    };
    return std::count_if(connections_.begin(), connections_.end(), sameAddress) <
           config_.maxUsersPerAddress;
}

void WSLoop::disconnectIfIdle(WSConnection &c) {
    bool idle = false;
    if (c.state == State::open) callHook(&c, "isIdle", [&] { idle = c.user->isIdle(); });
    if (idle && c.state == State::open) disconnect(*c.user, kGoingAway, "idle");
}

// The one place that calls hooks. True if the hook returned. If it threw, that is logged,
// and the user it was about is closed with 1011.
template <class Hook>
bool WSLoop::callHook(WSConnection *c, const char *name, Hook &&hook) {
    try {
        hook();
        return true;
    } catch (const std::exception &e) {
        hookThrew(c, name, e.what());
    } catch (...) {
        hookThrew(c, name, "something that is no std::exception");
    }
    return false;
}

void WSLoop::hookThrew(WSConnection *c, const char *name, const char *what) {
    log(WSLevel::error, [&] { return std::string(name) + "() threw: " + what; });
    if (c != nullptr && c->state == State::open) fail(*c, kInternalError, "");
}

// Peers have a say in what is logged: see printable(). A console() that makes the server
// log again is not called for that; what goes wrong here has no place left to complain.
template <class MakeText>
void WSLoop::log(WSLevel level, MakeText &&makeText) {
    if (inConsole_ || (level == WSLevel::debug && !config_.debug)) return;
    const Scoped talking(inConsole_, true);
    try {
        server_.console(level, printable(makeText()));
    } catch (...) {  // NOLINT(bugprone-empty-catch)
    }
}

// ============================================================================
// 6. The handshake's glue
//
// From accept() to the moment when the user is open, or the request is answered with
// something else than 101. What a request must look like is decided by pure functions in
// section 10; here are the socket, the clock, the room and the hooks.
// ============================================================================

namespace {

bool setNonBlocking(int fd) {
    return ::fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && ::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

// We join what belongs together ourselves.
void prepareSocket(int fd) {
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef WS_SET_NOSIGPIPE
    ::setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
}

// accept() of a socket that does not block and is not inherited; -1 and errno if none came.
int acceptNonBlocking(int listener, sockaddr_storage &peer) {
    socklen_t size = sizeof peer;
    auto *address = reinterpret_cast<sockaddr *>(&peer);
#if defined(__linux__) || defined(__FreeBSD__)
    const int fd = ::accept4(listener, address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    const int fd = ::accept(listener, address, &size);
    if (fd >= 0) setNonBlocking(fd);
#endif
    if (fd >= 0) prepareSocket(fd);
    return fd;
}

// "127.0.0.1", "::1", "unix".
std::string numericAddress(const sockaddr_storage &peer) {
    AddressBytes bytes = kNoIpv6;
    if (peer.ss_family == AF_INET)
        std::memcpy(&bytes[12], &reinterpret_cast<const sockaddr_in &>(peer).sin_addr, 4);
    else if (peer.ss_family == AF_INET6)
        std::memcpy(&bytes[0], &reinterpret_cast<const sockaddr_in6 &>(peer).sin6_addr, 16);
    else return "unix";
    return encodeAddress(ipAddress(bytes));
}

// Seconds after which somebody may have left: a guess that keeps clients from hurrying.
constexpr const char *kRetryAfter = "10";

}  // namespace

// Accepts who waits at a listener, some at a time. One that is gone again is ordinary; after
// any other trouble (no descriptor is left, or no memory; or somebody who shares the listener
// has shut it down) the listeners rest.
void WSLoop::connect(int listener) {
    for (int i = 0; i < config_.acceptsPerTurn; ++i) {
        sockaddr_storage peer{};
        const int fd = acceptNonBlocking(listener, peer);
        if (fd >= 0) {
            add(fd, peer);
        } else if (wouldBlock(errno)) {
            return;
        } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
            rest("accept", errno);
            for (std::size_t k = 1; k <= listeners_; ++k)
                pollfds_[k] = {passedOver(pollfds_[k].fd), POLLIN, 0};
            return;
        }
    }
}

// A connection is born, without a user. There is always place to note its end.
void WSLoop::add(int fd, const sockaddr_storage &peer) {
    makePendingRoom();
    try {
        const std::size_t size = connections_.size() + 1;
        growTo(pollfds_, firstConnection_ + size);
        growTo(connections_, size);
        growTo(touched_, 2 * size);
        growTo(unread_, 2 * size);
        growTo(drained_, 2 * size);
        growTo(marked_, 2 * size);
        growTo(byId_, size);
        auto c = std::make_unique<WSConnection>();
        c->fd = fd;
        c->slot = connections_.size();
        c->arrival->address = numericAddress(peer);
        c->lastByte = now_;
        c->deadline = now_ + milliseconds(config_.handshakeSeconds);
        pollfds_.push_back({fd, POLLIN, 0});
        connections_.push_back(std::move(c));
    } catch (const std::bad_alloc &) {
        ::close(fd);
    }
}

// Who is no user holds a descriptor all the same. If there are too many of these, the one
// whose time is up first goes now; if need be, also one that still has something to get.
void WSLoop::makePendingRoom() {
    if (connections_.size() - byId_.size() < static_cast<std::size_t>(config_.maxPending)) return;
    WSConnection *oldest = nullptr;
    const auto goesFirst = [](const WSConnection &a, const WSConnection &b) {
        return std::make_pair(a.owed > 0, a.deadline) < std::make_pair(b.owed > 0, b.deadline);
    };
    for (const auto &c : connections_)
        if (!c->user && c->state != State::dead && (!oldest || goesFirst(*c, *oldest)))
            oldest = c.get();
    if (oldest != nullptr) lose(*oldest, "");
}

// Collects the request's head, however it trickles in, and has it answered. What follows
// it in the same packet are frames, or bytes that nobody will ever look at.
void WSLoop::doHandshake(WSConnection &c, char *bytes, std::size_t size) {
    std::string &text = c.arrival->head;
    const std::size_t seen = text.size();
    const std::size_t room = config_.maxRequestBytes - std::min(seen, config_.maxRequestBytes);
    text.append(bytes, std::min(size, room));
    c.arrival->wantsBody = text.compare(0, 5, "HEAD ") != 0;  // also if no more comes
    RequestHead head;
    const Progress progress = parseHead(text, seen, head);
    if (progress.answer == Progress::needMore) {
        if (size >= room) answer(c, plainResponse(431, "The request's head is too large."));
        return;
    }
    if (progress.answer == Progress::bad)
        return answer(c, plainResponse(progress.code, progress.reason));
    text.resize(progress.used);
    c.arrival->address = clientAddress(c.arrival->address, proxies_, config_.proxyHeader, head);
    answerRequest(c, head);
    const std::size_t used = progress.used - seen;
    readInbox(c, bytes + used, size - used);
}

// Decides what the answer is: a refusal, an HTTP response, or 101 and a new user.
void WSLoop::answerRequest(WSConnection &c, const RequestHead &head) {
    WSResponse refusal = checkRequest(head);
    if (refusal.status == 0 && !asksForWebSocket(head)) return answerPlain(c);
    if (refusal.status == 0) refusal = checkUpgrade(head);
    if (refusal.status == 0 && !originAllowed(head))
        refusal = plainResponse(403, "This origin is not allowed to connect.");
    if (refusal.status == 0 && !hasRoomFor(c)) {
        refusal = plainResponse(503, "There is no room for another user.");
        refusal.headers.emplace_back("Retry-After", kRetryAfter);
    }
    if (refusal.status != 0) return answer(c, refusal);

    std::string response =
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        "Sec-WebSocket-Accept: " +
        acceptKey(fieldValue(head, "Sec-WebSocket-Key")) + "\r\n";
    const std::string offered = fieldValue(head, "Sec-WebSocket-Protocol");
    welcome(c, response, chooseProtocol(config_.protocols, offered));
}

// An origin is compared as a whole, in one spelling. It can only be trusted in browsers,
// and only there it matters (RFC 6455 10.2).
bool WSLoop::originAllowed(const RequestHead &head) const {
    const std::size_t count = countFields(head, "Origin");
    const std::string value = fieldValue(head, "Origin");
    if (count == 0 || (origins_.empty() && value.empty())) return !config_.requireOrigin;
    if (origins_.empty()) return true;
    if (count > 1) return false;
    const std::optional<std::string> origin = normalOrigin(value);
    return origin && std::find(origins_.begin(), origins_.end(), *origin) != origins_.end();
}

// Makes the user, and lets it in unless preConnect() refuses it. From here on the text of
// the request's head belongs to the user. `response` lacks the subprotocol, if there is one,
// and the empty line.
void WSLoop::welcome(WSConnection &c, const std::string &response, const std::string &protocol) {
    refusal_.reset();
    const bool returned = callHook(&c, "preConnect", [&] {
        c.user = server_.makeUser();
        introduce(c, protocol);
        const Scoped coming(newcomer_, &c);
        server_.callPreConnect(*c.user, c.fd);
    });
    if (!returned || refusal_) {
        c.user.reset();
        return answer(c, returned ? *refusal_ : plainResponse(500, "Something went wrong."));
    }
    c.arrival.reset();
    c.state = State::open;
    ++userCount_;
    byId_.push_back(&c);
    queue(c, [&](Outbox &outbox) {
        const std::string &agreed = c.user->protocol();
        outbox.append(response);
        if (!agreed.empty()) outbox.append("Sec-WebSocket-Protocol: " + agreed + "\r\n");
        outbox.append("\r\n");
    });
    log(WSLevel::debug, [&] { return nameOf(c) + " came: " + c.user->request().path(); });
    callHook(&c, "postConnect", [&] { server_.callPostConnect(*c.user, c.fd); });
}

// What a user knows about itself.
void WSLoop::introduce(WSConnection &c, const std::string &protocol) {
    WSBaseUser &user = *c.user;
    user.connection_ = &c;
    user.id_ = ++lastId_;
    user.clock_ = &now_;
    user.lastMessage_ = now_;
    c.arrival->head.shrink_to_fit();  // it stays as long as the user
    user.request_ = WSRequest(std::move(c.arrival->head), c.arrival->address);
    if (!protocol.empty()) user.protocol_ = std::make_unique<const std::string>(protocol);
}

// A GET or HEAD that asks for no WebSocket.
void WSLoop::answerPlain(WSConnection &c) {
    WSResponse response;
    const WSRequest request(std::move(c.arrival->head), c.arrival->address);
    if (!callHook(nullptr, "httpRequest", [&] { server_.httpRequest(request, response); }))
        response = plainResponse(500, "Something went wrong.");
    if (response.status == 0) response = upgradeRequired();
    if (!isSendable(response)) {
        log(WSLevel::error, [] { return "httpRequest() gave a response that can not be sent"; });
        response = plainResponse(500, "Something went wrong.");
    }
    answer(c, response);
}

// Answers with anything but 101, and that is all: what comes later is read, so that the
// answer arrives, but never parsed.
void WSLoop::answer(WSConnection &c, const WSResponse &response) {
    log(WSLevel::debug,
        [&] { return c.address() + " was answered " + std::to_string(response.status); });
    queue(c, [&](Outbox &outbox) {
        outbox.append(std::make_shared<std::string>(
            encodeResponse(response, std::time(nullptr), c.arrival->wantsBody)));
    });
    counters_.answers[static_cast<std::size_t>(response.status)] += c.state != State::dead;
    end(c, 0, {}, State::flushing);
}

// ============================================================================
// 7. Listening
//
// Sockets, signals and limits: what is between us and the system. What only some systems
// have stands beside its portable twin.
// ============================================================================

namespace {

[[noreturn]] void reject(const std::string &field, const std::string &value, const char *what) {
    throw std::invalid_argument(field + " is " + value + ": " + what);
}

template <class Number>
void require(bool fine, const char *field, Number value, const char *what) {
    if (!fine) reject(field, std::to_string(value), what);
}

void checkSeconds(const char *field, double seconds, bool zeroIsFine) {
    constexpr double kMost = 1e6;  // 11 days; keeps milliseconds far from overflow
    require((zeroIsFine ? seconds >= 0 : seconds > 0) && seconds <= kMost, field, seconds,
            zeroIsFine ? "set a number of seconds from 0 to 1000000"
                       : "set a number of seconds above 0, at most 1000000");
}

constexpr std::string_view kUnix = "unix:";

// The path in "unix:/path"; nothing if the address is another one.
std::optional<std::string> unixPath(const std::string &address) {
    if (address.compare(0, kUnix.size(), kUnix) != 0) return std::nullopt;
    return address.substr(kUnix.size());
}

void checkPlace(const WSBaseConfig &config) {
    const std::optional<std::string> path = unixPath(config.address);
    if (path && (path->empty() || path->size() >= sizeof(sockaddr_un::sun_path) ||
                 path->find('\0') != path->npos))
        reject("address", quoted(printable(config.address)),
               "set a path behind \"unix:\" that is no longer than a Unix socket's may be");
    require(config.unixMode >= 0 && config.unixMode <= 0777, "unixMode", config.unixMode,
            "set 0 to 0777, such as 0660");
    require(config.port >= 0 && config.port <= 65535, "port", config.port,
            "set 0 (the system picks one) to 65535");
    require(config.listenFd >= -1, "listenFd", config.listenFd,
            "set the descriptor of a listening socket, or -1 for none");
}

// Throws std::invalid_argument, with a sentence that names the field, for the first
// field that makes no sense.
void checkConfig(const WSBaseConfig &config) {
    checkPlace(config);
    require(config.maxUsers >= 1, "maxUsers", config.maxUsers, "set at least 1");
    require(config.maxPending >= 1, "maxPending", config.maxPending, "set at least 1");
    require(config.maxUsersPerAddress >= 0, "maxUsersPerAddress", config.maxUsersPerAddress,
            "set at least 1, or 0 for no limit");
    require(config.maxMessagesPerSecond >= 0, "maxMessagesPerSecond", config.maxMessagesPerSecond,
            "set at least 1, or 0 for no limit");
    require(config.maxRequestBytes >= 1, "maxRequestBytes", config.maxRequestBytes,
            "set at least 1");
    require(config.maxMessageBytes >= 1, "maxMessageBytes", config.maxMessageBytes,
            "set at least 1");
    require(config.maxFragments >= 1, "maxFragments", config.maxFragments, "set at least 1");
    require(config.maxQueuedBytes >= 1, "maxQueuedBytes", config.maxQueuedBytes, "set at least 1");
    require(config.maxJsonDepth >= 1 && config.maxJsonDepth <= kMaxJsonDepth, "maxJsonDepth",
            config.maxJsonDepth, "set 1 to 1000, what a stack holds");
    require(config.maxJsonValues >= 1, "maxJsonValues", config.maxJsonValues, "set at least 1");
    require(config.readBytes >= 1, "readBytes", config.readBytes, "set at least 1");
    require(config.shareBytes >= 256, "shareBytes", config.shareBytes,
            "set at least 256: to share costs memory, too");
    require(config.framesPerTurn >= 1, "framesPerTurn", config.framesPerTurn, "set at least 1");
    require(config.acceptsPerTurn >= 1, "acceptsPerTurn", config.acceptsPerTurn, "set at least 1");
    checkSeconds("handshakeSeconds", config.handshakeSeconds, false);
    checkSeconds("pingSeconds", config.pingSeconds, true);
    checkSeconds("closeSeconds", config.closeSeconds, false);
    checkSeconds("shutdownSeconds", config.shutdownSeconds, true);
    checkSeconds("tickSeconds", config.tickSeconds, true);
    require(config.tickSeconds == 0 || config.tickSeconds >= 0.001, "tickSeconds",
            config.tickSeconds, "set at least 0.001, or 0 for no ticks");
    checkSeconds("restSeconds", config.restSeconds, false);
    require(config.restSeconds >= 0.001, "restSeconds", config.restSeconds, "set at least 0.001");
    checkSeconds("busySeconds", config.busySeconds, true);
    checkSeconds("rotationSeconds", config.rotationSeconds, false);
    checkSeconds("lookSeconds", config.lookSeconds, true);
    for (const std::string &protocol : config.protocols)
        if (!isToken(protocol))
            reject("protocols", quoted(protocol), "a subprotocol is a token, such as \"chat.v1\"");
    if (!sameIgnoringCase(config.proxyHeader, "X-Forwarded-For") &&
        !sameIgnoringCase(config.proxyHeader, "Forwarded"))
        reject("proxyHeader", quoted(config.proxyHeader),
               "set \"X-Forwarded-For\" or \"Forwarded\"");
}

std::vector<std::string> checkOrigins(const std::vector<std::string> &entries) {
    std::vector<std::string> origins;
    for (const std::string &entry : entries) {
        const std::optional<std::string> origin = normalOrigin(entry);
        if (!origin)
            reject("uniqueOrigin", quoted(entry),
                   "no origin; write scheme://host or "
                   "scheme://host:port, without a path, as browsers send it");
        origins.push_back(*origin);
    }
    return origins;
}

std::vector<Network> checkProxies(const std::vector<std::string> &entries) {
    std::vector<Network> proxies;
    for (const std::string &entry : entries) {
        const std::optional<Network> network = parseNetwork(entry);
        if (!network)
            reject("trustedProxies", quoted(entry),
                   "no address or network; write one such as \"10.0.0.1\", \"10.0.0.0/8\", "
                   "\"fd00::/8\", or \"unix\"");
        proxies.push_back(*network);
    }
    return proxies;
}

std::array<int, 2> makeWakePipe() {
    std::array<int, 2> ends{};
#ifdef __linux__
    if (::pipe2(ends.data(), O_NONBLOCK | O_CLOEXEC) == 0) return ends;
#else
    if (::pipe(ends.data()) == 0 && setNonBlocking(ends[0]) && setNonBlocking(ends[1])) return ends;
#endif
    throw std::system_error(errno, std::generic_category(), "cannot make a pipe");
}

// The pipe of the server that wants a signal; 0 for none. All that a handler may touch.
constexpr int kSignals = 65;  // they are numbered from 1 to 64 at most
std::array<std::atomic<int>, kSignals> signalPipes;

void onSignal(int signal) {
    const int pipe = signalPipes[static_cast<std::size_t>(signal)];
    if (pipe != 0) wake(pipe, kBySignal);
}

void setPort(sockaddr_storage &address, int port) {
    const in_port_t value = htons(static_cast<in_port_t>(port));
    if (address.ss_family == AF_INET) reinterpret_cast<sockaddr_in &>(address).sin_port = value;
    if (address.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6 &>(address).sin6_port = value;
}

// The port of a listener, 0 if it is a Unix socket. False and errno if it can not be had.
bool readPort(int listener, int &port) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (::getsockname(listener, reinterpret_cast<sockaddr *>(&address), &size) != 0) return false;
    port = 0;
    if (address.ss_family == AF_INET)
        port = ntohs(reinterpret_cast<sockaddr_in &>(address).sin_port);
    if (address.ss_family == AF_INET6)
        port = ntohs(reinterpret_cast<sockaddr_in6 &>(address).sin6_port);
    return true;
}

// A name may resolve to the same address twice.
bool isRepeated(const addrinfo *list, const addrinfo *where) {
    for (; list != where; list = list->ai_next)
        if (list->ai_addrlen == where->ai_addrlen &&
            std::memcmp(list->ai_addr, where->ai_addr, where->ai_addrlen) == 0)
            return true;
    return false;
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

// Every address that the configured one resolves to.
AddressList resolve(const WSBaseConfig &config) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    const std::string port = std::to_string(config.port);
    const char *host = config.address.empty() ? nullptr : config.address.c_str();
    addrinfo *list = nullptr;
    const int error = ::getaddrinfo(host, port.c_str(), &hints, &list);
    if (error != 0)
        throw std::runtime_error("address is " + quoted(config.address) +
                                 ": it does not resolve (" + ::gai_strerror(error) +
                                 "); set a host name or address of this machine");
    return {list, &::freeaddrinfo};
}

// Gives up a socket over an error, which it keeps.
int closeKeepingErrno(int fd) {
    const int error = errno;
    ::close(fd);
    errno = error;
    return -1;
}

// A listening socket, or -1 and errno.
int openListeningSocket(const addrinfo &where, int port, bool reusePort) {
    const int fd = ::socket(where.ai_family, where.ai_socktype, where.ai_protocol);
    if (fd < 0) return -1;
    sockaddr_storage address{};
    std::memcpy(&address, where.ai_addr, where.ai_addrlen);
    setPort(address, port);
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (where.ai_family == AF_INET6) ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if ((!reusePort || ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0) &&
        setNonBlocking(fd) &&
        ::bind(fd, reinterpret_cast<sockaddr *>(&address), where.ai_addrlen) == 0 &&
        ::listen(fd, SOMAXCONN) == 0)
        return fd;
    return closeKeepingErrno(fd);
}

// While it lives, no other server of our kind takes a path in the same folder: two that find
// the same stale socket would both replace it, and one that has bound its socket, but does not
// listen yet, looks stale. Somebody else may have reasons of their own to lock a folder, or the
// system may not let us: then it goes on without, after a while.
class FolderLock {
  public:
    explicit FolderLock(const std::string &path)
        : fd_(::open((path.substr(0, path.rfind('/') + 1) + '.').c_str(), O_RDONLY | O_CLOEXEC)) {
        for (int tries = 50; fd_ >= 0 && tries > 0; --tries) {
            if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
            ::poll(nullptr, 0, 10);
        }
    }
    ~FolderLock() {
        if (fd_ >= 0) closeKeepingErrno(fd_);
    }
    FolderLock(const FolderLock &) = delete;
    FolderLock &operator=(const FolderLock &) = delete;

  private:
    int fd_;
};

// Whether a file is a socket at which nobody listens: it was left by a server that died.
bool isStale(const sockaddr_un &where) {
    struct stat file {};
    ::lstat(where.sun_path, &file);
    const int fd = S_ISSOCK(file.st_mode) ? ::socket(AF_UNIX, SOCK_STREAM, 0) : -1;
    if (fd < 0) return false;
    const auto *address = reinterpret_cast<const sockaddr *>(&where);
    const bool refused =
        setNonBlocking(fd) && ::connect(fd, address, sizeof where) != 0 && errno == ECONNREFUSED;
    ::close(fd);
    return refused;
}

// bind(), also over what is stale. If nothing was, the second try fails like the first.
bool bindUnix(int fd, const sockaddr_un &where) {
    const auto *address = reinterpret_cast<const sockaddr *>(&where);
    const auto binds = [&] { return ::bind(fd, address, sizeof where) == 0; };
    if (binds()) return true;
    if (errno != EADDRINUSE) return false;
    if (isStale(where)) ::unlink(where.sun_path);
    return binds();
}

// A listening Unix socket, or -1 and errno. Nobody can connect before listen(), when its mode
// is what it shall be.
int openUnixSocket(const std::string &path, int mode) {
    sockaddr_un where{};
    where.sun_family = AF_UNIX;
    path.copy(where.sun_path, sizeof where.sun_path - 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    const bool bound = setNonBlocking(fd) && bindUnix(fd, where);
    if (bound && ::chmod(where.sun_path, static_cast<mode_t>(mode)) == 0 &&
        ::listen(fd, SOMAXCONN) == 0)
        return fd;
    const int error = errno;
    if (bound) ::unlink(where.sun_path);
    errno = error;
    return closeKeepingErrno(fd);
}

// By which a file is known again; 0 if there is none.
ino_t fileNumber(const std::string &path) {
    struct stat file {};
    ::lstat(path.c_str(), &file);
    return file.st_ino;
}

// A copy of a socket that listens already, or -1 and errno.
int copyListener(int fd) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0)
        reject("listenFd", std::to_string(fd),
               "no listening socket; set one that listen() was called for, or -1 for none");
    const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 || setNonBlocking(copy) ? copy : closeKeepingErrno(copy);
}

// Where the server listens, for people.
std::string placeOf(const WSBaseConfig &config, int port) {
    if (config.listenFd >= 0) return "listenFd " + std::to_string(config.listenFd);
    const std::string address =
        config.address.empty() ? "every address" : "address " + quoted(config.address);
    return unixPath(config.address) ? address : address + ", port " + std::to_string(port);
}

}  // namespace

WSLoop::WSLoop(WSBaseServer &server, WSBaseConfig &config)
    : server_(server), config_(config), pollfds_(1), now_(monotonicNow()) {
    spareReaders_.reserve(kSpareBuffers);
    spareOutboxes_.reserve(kSpareBuffers);
    wakePipe_ = makeWakePipe();  // last: nobody would close it if something else threw
    pollfds_[0] = {wakePipe_[0], POLLIN, 0};
}

WSLoop::~WSLoop() {
    for (const auto &[signal, before] : oldHandlers_) {
        ::sigaction(signal, &before, nullptr);
        signalPipes[static_cast<std::size_t>(signal)] = 0;
    }
    for (const auto &connection : connections_) ::close(connection->fd);
    closeListeners();
    ::close(wakePipe_[0]);
    ::close(wakePipe_[1]);
}

void WSLoop::listen() {
    if (listeners_ > 0 || shuttingDown_) return;
    checkConfig(config_);
    origins_ = checkOrigins(config_.uniqueOrigin);
    proxies_ = checkProxies(config_.trustedProxies);
    openListeners();
    raiseFileLimit();
    lastTick_ = now_ = std::max(now_, monotonicNow());
    beat_ = tickPeriod();
    log(WSLevel::debug, [&] { return "listening at " + placeOf(config_, port_); });
}

void WSLoop::openListeners() {
    const int error = openConfigured();
    if (error == 0) return;
    closeListeners();
    throw std::runtime_error(placeOf(config_, config_.port) + ": cannot listen there (" +
                             errorText(error) +
                             "); stop what has it, or set another address or port");
}

// 0, or what was wrong. All addresses get the same port. Where the system picks it for the
// first of them, another one may find it taken: then they begin anew, a few times.
int WSLoop::openConfigured() {
    if (config_.listenFd >= 0) return addListener([&] { return copyListener(config_.listenFd); });
    if (unixPath(config_.address)) return openUnixListener();
    const AddressList list = resolve(config_);
    int error = EADDRINUSE;
    for (int tries = config_.port == 0 ? 10 : 1; tries > 0 && error == EADDRINUSE; --tries) {
        closeListeners();
        error = openListenersOf(list.get());
    }
    return error;
}

// Opens one with `open`, which gives a socket, or -1 and errno. 0, or what was wrong.
template <class Open>
int WSLoop::addListener(Open &&open) {
    growTo(pollfds_, pollfds_.size() + 1);  // first: a socket must not get lost
    const int fd = open();
    if (fd < 0) return errno;
    pollfds_.insert(pollfds_.begin() + 1, {fd, POLLIN, 0});
    ++listeners_;
    ++firstConnection_;
    return readPort(fd, port_) ? 0 : errno;
}

// The file is remembered, to be removed with the listener.
int WSLoop::openUnixListener() {
    std::string path = *unixPath(config_.address);
    return addListener([&] {
        const FolderLock lock(path);
        const int fd = openUnixSocket(path, config_.unixMode);
        if (fd < 0) return fd;
        socketFile_ = fileNumber(path);
        socketPath_ = std::move(path);
        return fd;
    });
}

// 0, or what was wrong with an address. Those that this machine hasn't got (IPv6 may be
// switched off) are passed over, if there is another.
int WSLoop::openListenersOf(const addrinfo *list) {
    port_ = config_.port;
    for (const addrinfo *where = list; where != nullptr; where = where->ai_next) {
        if (isRepeated(list, where)) continue;
        const int error =
            addListener([&] { return openListeningSocket(*where, port_, config_.reusePort); });
        if (error != 0 && error != EADDRNOTAVAIL && error != EAFNOSUPPORT) return error;
    }
    return listeners_ > 0 ? 0 : EADDRNOTAVAIL;
}

// The file of a Unix socket goes first, and only if it is still ours: while we listen nobody
// takes it for stale, but somebody may have removed it by hand, and another server be there.
void WSLoop::closeListeners() {
    if (!socketPath_.empty() && fileNumber(socketPath_) == socketFile_)
        ::unlink(socketPath_.c_str());
    socketPath_.clear();
    for (; listeners_ > 0; --listeners_, --firstConnection_) {
        ::close(heeded(pollfds_[1].fd));
        pollfds_.erase(pollfds_.begin() + 1);
    }
    port_ = 0;
}

// Each connection takes a descriptor. The soft limit is ours to raise, up to the hard one.
void WSLoop::raiseFileLimit() {
    constexpr rlim_t kOthers = 64;  // listeners, the program's own files
    const auto wanted =
        static_cast<rlim_t>(config_.maxUsers) + static_cast<rlim_t>(config_.maxPending) + kOthers;
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
    const rlimit raised{std::min(wanted, limit.rlim_max), limit.rlim_max};
    const rlim_t now = ::setrlimit(RLIMIT_NOFILE, &raised) == 0 ? raised.rlim_cur : limit.rlim_cur;
    if (now >= wanted) return;
    log(WSLevel::warning, [&] {
        return "only " + std::to_string(now) +
               " files may be open, but maxUsers and "
               "maxPending may need " +
               std::to_string(wanted) + "; raise the limit (ulimit -n)";
    });
}

// Legal in a signal handler: nothing but write().
void WSLoop::stop() noexcept { wake(wakePipe_[1], kByStop); }

void WSLoop::stopOn(std::initializer_list<int> signals) {
    oldHandlers_.reserve(oldHandlers_.size() + signals.size());  // no handler must get lost
    for (const int signal : signals) {
        if (signal < 1 || signal >= kSignals)
            throw std::invalid_argument("stopOn(): there is no signal " + std::to_string(signal));
        std::atomic<int> &pipe = signalPipes[static_cast<std::size_t>(signal)];
        if (pipe == wakePipe_[1]) continue;
        if (pipe != 0) throw std::logic_error("stopOn(): another server has that signal");
        struct sigaction action {};
        struct sigaction before {};
        action.sa_handler = onSignal;
        action.sa_flags = SA_RESTART;
        ::sigemptyset(&action.sa_mask);
        pipe = wakePipe_[1];  // first: the signal may come at once
        if (::sigaction(signal, &action, &before) != 0) {
            pipe = 0;
            throw std::system_error(errno, std::generic_category(), "stopOn()");
        }
        oldHandlers_.emplace_back(signal, before);
    }
}

// The face of it all: server.h says what these do.

WSBaseServer::WSBaseServer(std::unique_ptr<WSBaseConfig> config)
    : config_(std::move(config)), loop_(std::make_unique<WSLoop>(*this, *config_)) {}

WSBaseServer::~WSBaseServer() = default;

void WSBaseServer::run() { loop_->run(); }
void WSBaseServer::listen() { loop_->listen(); }
int WSBaseServer::port() const { return loop_->port_; }
bool WSBaseServer::turn(std::chrono::milliseconds timeout) { return loop_->turn(timeout); }
void WSBaseServer::shutdown() { loop_->stopAsked_ = true; }
void WSBaseServer::stop() noexcept { loop_->stop(); }
void WSBaseServer::post(std::function<void()> function) { loop_->post(std::move(function)); }
void WSBaseServer::watch(int fd, short events, std::function<void(short)> function) {
    loop_->watch(fd, events, std::move(function));
}
void WSBaseServer::unwatch(int fd) { loop_->unwatch(fd); }
void WSBaseServer::stopOn(std::initializer_list<int> signals) { loop_->stopOn(signals); }

bool WSBaseServer::sendToUser(WSBaseUser &user, const WSMessage &msg) {
    return loop_->sendToUser(user, msg);
}
int WSBaseServer::sendToAll(const WSMessage &msg) { return loop_->sendToAllBut(nullptr, msg); }
int WSBaseServer::sendToAllBut(const WSBaseUser &user, const WSMessage &msg) {
    return loop_->sendToAllBut(&user, msg);
}

void WSBaseServer::disconnect(WSBaseUser &user, int code, std::string_view reason) {
    loop_->disconnect(user, code, reason);
}
void WSBaseServer::refuse(WSBaseUser &user, int status, std::string_view text) {
    loop_->refuse(user, status, text);
}
void WSBaseServer::acceptProtocol(WSBaseUser &user, std::string_view protocol) {
    loop_->acceptProtocol(user, protocol);
}

int WSBaseServer::userCount() const { return loop_->userCount_; }

namespace {

WSBaseUser *openUserOf(const WSConnection &c) {
    return c.state == WSConnection::State::open ? c.user.get() : nullptr;
}

}  // namespace

std::size_t WSBaseServer::slotCount() const { return loop_->connections_.size(); }
WSBaseUser *WSBaseServer::userInSlot(std::size_t slot) const {
    return openUserOf(*loop_->connections_[slot]);
}

WSBaseUser *WSBaseServer::userById(std::uint64_t id) const {
    const auto place = loop_->searchId(id);
    const bool found = place != loop_->byId_.end() && (*place)->user->id() == id;
    return found ? openUserOf(**place) : nullptr;
}

WSStats WSBaseServer::stats() const {
    const Counters &counters = loop_->counters_;
    WSStats all = counters.sums;
    all.users = static_cast<std::uint64_t>(loop_->userCount_);
    all.pending = loop_->connections_.size() - all.users;
    for (const auto &c : loop_->connections_) all.queuedBytes += c->queued();
    for (std::size_t i = 0; i < counters.disconnects.size(); ++i)
        if (counters.disconnects[i] > 0)
            all.disconnects[Counters::codeAt(i)] = counters.disconnects[i];
    for (std::size_t i = 0; i < counters.answers.size(); ++i)
        if (counters.answers[i] > 0) all.answers[static_cast<int>(i)] = counters.answers[i];
    return all;
}

void WSBaseServer::httpRequest(const WSRequest &, WSResponse &) {}

// A pipe that nobody reads shall not hold up everybody: what it does not take is not printed.
// (A line is short enough to be taken whole. A terminal may yet hold it up, if it is held.)
void WSBaseServer::console(WSLevel level, std::string_view text) {
    pollfd out{STDOUT_FILENO, POLLOUT, 0};
    if (::poll(&out, 1, 0) != 1 || out.revents != POLLOUT) return;
    const char *label = level == WSLevel::error     ? "error: "
                        : level == WSLevel::warning ? "warning: "
                                                    : "";
    std::printf("%s%.*s\n", label, static_cast<int>(text.size()), text.data());
    std::fflush(stdout);
}

// ============================================================================
// 8. What hooks hold
//
// Messages, requests and users, as server.h and user.h promise them.
// ============================================================================

namespace {

// jsoncpp's reader and writer. To make them takes ten times as long as to use them once for a
// short message, so each thread keeps a pair.
struct JsonTools {
    std::unique_ptr<Json::CharReader> reader;
    std::unique_ptr<Json::StreamWriter> writer;

    // The reader is strict. The writer is compact, and leaves UTF-8 as it is: without that
    // setting each umlaut would take six bytes.
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
    }
};

JsonTools &jsonTools() {
    thread_local JsonTools tools;
    return tools;
}

// A stream that has no memory left would end in the middle and not say so, if it may.
std::string writeJson(const Json::Value &json) {
    std::ostringstream text;
    text.exceptions(std::ios::badbit);
    jsonTools().writer->write(json, &text);
    return text.str();
}

// number = [ "-" ] int [ frac ] [ exp ] (RFC 8259 6)
bool isJsonNumber(std::string_view text) {
    std::size_t i = 0;
    const auto at = [&](char c) { return i < text.size() && toLower(text[i]) == c; };
    const auto digits = [&] {
        const std::size_t begin = i;
        while (i < text.size() && isDigit(text[i])) ++i;
        return i > begin;
    };
    if (at('-')) ++i;
    if (at('0')) ++i;
    else if (!digits()) return false;
    if (at('.') && (++i, !digits())) return false;
    if (at('e')) {
        ++i;
        if (at('+') || at('-')) ++i;
        if (!digits()) return false;
    }
    return i == text.size();
}

// Whether this is "\uD800" to "\uDFFF" with a third digit between `from` and `to`.
bool isSurrogate(std::string_view escape, char from, char to) {
    return escape.size() == 6 && escape[1] == 'u' && toLower(escape[2]) == 'd' &&
           toLower(escape[3]) >= from && toLower(escape[3]) <= to;
}

// How long an escape in a string is; 0 for half of a surrogate pair, which is no character.
std::size_t escapeSize(std::string_view text) {
    if (isSurrogate(text.substr(0, 6), 'c', 'f')) return 0;
    if (!isSurrogate(text.substr(0, 6), '8', 'b')) return 2;
    const std::string_view second = text.substr(std::min<std::size_t>(text.size(), 6), 6);
    return second.substr(0, 1) == "\\" && isSurrogate(second, 'c', 'f') ? 12 : 0;
}

// A string's size, with its quotation marks; 0 if there is something in it that may not be.
std::size_t stringSize(std::string_view text) {
    std::size_t i = 1;
    while (i < text.size() && text[i] != '"') {
        const bool control = text[i] >= 0 && text[i] < ' ';
        const std::size_t step = text[i] == '\\' ? escapeSize(text.substr(i)) : 1;
        if (control || step == 0) return 0;
        i += step;
    }
    return i + 1;
}

// The size of what stands first in the text: a string, a number, or a single character; 0
// if that is nothing that JSON has.
std::size_t tokenSize(std::string_view text) {
    constexpr std::string_view kNumber = "0123456789+-.eE";
    const char c = text[0];
    if (c == '"') return stringSize(text);
    if (isDigit(c) || c == '-' || c == '+' || c == '.') {
        const std::size_t size = std::min(text.find_first_not_of(kNumber), text.size());
        return isJsonNumber(text.substr(0, size)) ? size : 0;
    }
    const bool control = c >= 0 && c < ' ' && c != '\t' && c != '\n' && c != '\r';
    return control || c == '/' ? 0 : 1;
}

// What jsoncpp lets pass although RFC 8259 has no such thing: comments, control characters,
// odd numbers, halves of surrogate pairs, anything behind a NUL. And whether arrays and
// objects are nested no deeper than `maxDepth`, and there are no more than `maxValues`
// values: one at first, one in each array or object, one behind each comma. (An empty array
// counts for two.)
bool isStrictJson(std::string_view text, int maxDepth, int maxValues) {
    int depth = 0;
    int values = 1;
    while (!text.empty()) {
        const char c = text[0];
        const std::size_t size = tokenSize(text);
        const bool opens = c == '[' || c == '{';
        depth += opens - (c == ']' || c == '}');
        values += opens || c == ',';
        if (size == 0 || depth > maxDepth || values > maxValues) return false;
        text.remove_prefix(std::min(size, text.size()));
    }
    return true;
}

// Strict JSON: one array or object and nothing else. Null for all that is not.
std::unique_ptr<Json::Value> parseJson(const std::string &text, int maxDepth, int maxValues) {
    if (!isStrictJson(text, maxDepth, maxValues)) return nullptr;
    try {
        auto json = std::make_unique<Json::Value>();
        const bool fine =
            jsonTools().reader->parse(text.data(), text.data() + text.size(), json.get(), nullptr);
        return fine && (json->isObject() || json->isArray()) ? std::move(json) : nullptr;
    } catch (const Json::Exception &) {
        return nullptr;
    }
}

}  // namespace

WSMessage::WSMessage(std::string text) : body_(std::make_shared<Body>()) {
    if (!isUtf8(text)) throw std::invalid_argument("WSMessage: the text is not valid UTF-8");
    *body_->payload = std::move(text);
}

WSMessage::WSMessage(std::string_view text) : WSMessage(std::string(text)) {}

WSMessage::WSMessage(const char *text) : WSMessage(std::string(text == nullptr ? "" : text)) {}

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

namespace {

// The head's fields, from text that is known to be a head, or is none.
RequestHead parsed(const std::string &text) {
    RequestHead head;
    if (parseHead(text, 0, head).answer != Progress::done) return {};
    return head;
}

}  // namespace

WSRequest::WSRequest(std::string head, std::string address)
    : head_(std::move(head)), address_(std::move(address)) {}

std::string WSRequest::method() const { return std::string(parsed(head_).method); }
std::string WSRequest::path() const { return std::string(parsed(head_).path); }
std::string WSRequest::query() const { return std::string(parsed(head_).query); }

std::string WSRequest::parameter(std::string_view name) const {
    const RequestHead head = parsed(head_);
    for (const std::string_view pair : splitList(head.query, '&')) {
        const std::size_t equals = std::min(pair.find('='), pair.size());
        if (decodePercent(pair.substr(0, equals)) != name) continue;
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
    const RequestHead head = parsed(head_);
    for (const Field &field : head.fields) {
        if (!sameIgnoringCase(field.name, "Cookie")) continue;
        for (const std::string_view pair : splitList(field.value, ';')) {
            const std::size_t equals = pair.find('=');
            if (equals != std::string_view::npos && pair.substr(0, equals) == name)
                return std::string(pair.substr(equals + 1));
        }
    }
    return {};
}

std::vector<std::string> WSRequest::protocols() const {
    const std::string offered = header("Sec-WebSocket-Protocol");
    std::vector<std::string> all;
    for (const std::string_view protocol : splitList(offered, ',')) all.emplace_back(protocol);
    return all;
}

void WSBaseUser::messageReceived() {
    if (clock_ != nullptr) lastMessage_ = *clock_;
}

const std::string &WSBaseUser::protocol() const {
    static const std::string none;
    return protocol_ ? *protocol_ : none;
}

bool WSBaseUser::isIdle() const { return maxIdle > 0 && idleSeconds() > maxIdle; }

int WSBaseUser::socket() const { return connection_ == nullptr ? -1 : connection_->fd; }

int WSBaseUser::closeCode() const { return connection_ == nullptr ? 0 : connection_->closeCode; }

std::size_t WSBaseUser::backlog() const {
    return connection_ == nullptr ? 0 : connection_->queued();
}

double WSBaseUser::idleSeconds() const {
    return clock_ == nullptr ? 0 : static_cast<double>(*clock_ - lastMessage_) / 1000;
}

// ============================================================================
// 9. Payloads and queues
//
// A row of segments: each is either bytes that were copied, or a payload that others
// share. Small frames that follow each other are joined in one segment, so that the usual
// queue is one piece for one send(). Segments that are sent are freed on the way; when all
// are, the first keeps a little memory, for the queue is used again.
//
// Large payloads that are done with go to SparePayloads, and come back for the next large
// messages: while some arrive one after the other, none has to ask the system for memory. They
// are kept for a second at most, for who knows whether there will be another one.
// ============================================================================

namespace {

// Whether a payload's string can be that of the next one: nobody else has it, and it is not
// much too large. A queue counts the bytes in a string, not its room.
bool isReusable(const Payload &payload, std::size_t size) {
    return payload.use_count() == 1 && payload->capacity() <= 2 * size + kKeptBytes;
}

Payload SparePayloads::take(std::size_t size) {
    for (std::size_t i = count_; i-- > 0;) {
        if (spares_[i]->capacity() < size || !isReusable(spares_[i], size)) continue;
        std::swap(spares_[i], spares_[--count_]);
        bytes_ -= spares_[count_]->capacity();
        return std::move(spares_[count_]);
    }
    return nullptr;
}

void SparePayloads::giveBack(Payload payload) {
    if (payload.use_count() != 1 || payload->capacity() <= kKeptBytes) return;
    if (count_ == spares_.size() || bytes_ + payload->capacity() > mostBytes_) return;
    bytes_ += payload->capacity();
    spares_[count_++] = std::move(payload);
}

void SparePayloads::clear() {
    while (count_ > 0) spares_[--count_].reset();
    bytes_ = 0;
}

// Copied bytes are joined up to this size, then a new segment begins: what is sent can
// only be freed segment by segment.
constexpr std::size_t kSegmentBytes = 16 * 1024;

// The capacity of a segment is doubled, so that it comes to its full size exactly, and takes
// no more memory than it holds.
void Outbox::Segment::reserve(std::size_t wanted) {
    if (wanted <= capacity) return;
    std::size_t larger = kSegmentBytes / 64;
    while (larger < std::min(wanted, kSegmentBytes)) larger *= 2;
    larger = std::max(larger, wanted);
    std::unique_ptr<char[]> bytes(new char[larger]);  // not make_unique(): that would clear it
    std::copy_n(copied.get(), size, bytes.get());
    copied = std::move(bytes);
    capacity = larger;
}

char *Outbox::extend(std::size_t size) {
    const bool joins = !segments_.empty() && !segments_.back().shared &&
                       segments_.back().size + size <= kSegmentBytes;
    if (!joins) segments_.emplace_back();
    Segment &last = segments_.back();
    last.reserve(last.size + size);
    char *const begin = last.copied.get() + last.size;
    last.size += size;
    size_ += size;
    return begin;
}

void Outbox::append(std::string_view bytes) {
    std::copy_n(bytes.data(), bytes.size(), extend(bytes.size()));
}

void Outbox::append(Payload payload) {
    segments_.emplace_back();
    size_ += payload->size();
    segments_.back().shared = std::move(payload);
}

std::size_t Outbox::gather(std::array<iovec, kMaxPieces> &pieces) const {
    std::size_t count = 0;
    std::size_t offset = offset_;
    for (std::size_t i = first_; i < segments_.size() && count < kMaxPieces; ++i) {
        const std::string_view rest = segments_[i].bytes().substr(offset);
        offset = 0;
        if (!rest.empty()) pieces[count++] = {const_cast<char *>(rest.data()), rest.size()};
    }
    return count;
}

void Outbox::sent(std::size_t size, SparePayloads &spares) {
    size_ -= size;
    if (size_ == 0) return clear(spares);
    while (size >= segments_[first_].bytes().size() - offset_) {
        size -= segments_[first_].bytes().size() - std::exchange(offset_, 0);
        spares.giveBack(std::move(segments_[first_].shared));
        segments_[first_++] = Segment();
    }
    offset_ += size;
    if (first_ > segments_.size() / 2) {
        segments_.erase(segments_.begin(), segments_.begin() + static_cast<std::ptrdiff_t>(first_));
        first_ = 0;
    }
}

void Outbox::clear(SparePayloads &spares) {
    for (Segment &segment : segments_)
        if (segment.shared) spares.giveBack(std::move(segment.shared));
    segments_.resize(1);
    if (segments_.capacity() > 4) segments_.shrink_to_fit();
    segments_[0].size = 0;
    if (segments_[0].capacity > kKeptBytes) segments_[0] = Segment();
    first_ = offset_ = size_ = 0;
}

}  // namespace

// ============================================================================
// 10. HTTP heads
//
// The request's head as RFC 9112 wants it and no laxer: where two programs read the same
// bytes differently (a bare LF, a folded line, a space before the colon, two Hosts), one
// can be tricked through the other. What RFC 6455 4.2.1 asks of a handshake follows.
// ============================================================================

namespace {

// RFC 9110 5.6.2, what names and subprotocols are made of:
//   token = 1*tchar
//   tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" /
//           "|" / "~" / DIGIT / ALPHA
bool isToken(std::string_view text) {
    constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
    const auto isTchar = [&](char c) { return isAlphanumeric(c) || kMarks.find(c) != kMarks.npos; };
    return !text.empty() && std::all_of(text.begin(), text.end(), isTchar);
}

bool sameIgnoringCase(std::string_view a, std::string_view b) {
    const auto same = [](char x, char y) { return toLower(x) == toLower(y); };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

// Without the spaces and tabs around it (OWS, RFC 9110 5.6.3).
std::string_view trim(std::string_view text) {
    constexpr std::string_view kSpace = " \t";
    const std::size_t begin = std::min(text.find_first_not_of(kSpace), text.size());
    return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// The elements of a list, trimmed, without the empty ones (RFC 9110 5.6.1.2).
std::vector<std::string_view> splitList(std::string_view list, char separator) {
    std::vector<std::string_view> elements;
    while (!list.empty()) {
        const std::size_t end = std::min(list.find(separator), list.size());
        const std::string_view element = trim(list.substr(0, end));
        if (!element.empty()) elements.push_back(element);
        list.remove_prefix(std::min(end + 1, list.size()));
    }
    return elements;
}

std::size_t countFields(const RequestHead &head, std::string_view name) {
    const auto named = [&](const Field &field) { return sameIgnoringCase(field.name, name); };
    return static_cast<std::size_t>(std::count_if(head.fields.begin(), head.fields.end(), named));
}

// All values of that name, joined as RFC 9110 5.3 allows.
std::string fieldValue(const RequestHead &head, std::string_view name) {
    std::string value;
    bool first = true;
    for (const Field &field : head.fields) {
        if (!sameIgnoringCase(field.name, name)) continue;
        if (!first) value += ", ";
        value += field.value;
        first = false;
    }
    return value;
}

bool listHas(const RequestHead &head, std::string_view name, std::string_view wanted) {
    const std::string list = fieldValue(head, name);
    const std::vector<std::string_view> elements = splitList(list, ',');
    const auto same = [&](std::string_view element) { return sameIgnoringCase(element, wanted); };
    return std::any_of(elements.begin(), elements.end(), same);
}

// Finds the empty line that ends the head, in bytes of which `seen` were looked at before.
// Complains at the first byte that no head can have: control characters, and line breaks
// that are not CR LF (RFC 9112 2.2; 9110 5.5).
Progress findHeadEnd(std::string_view bytes, std::size_t seen) {
    for (std::size_t i = seen; i < bytes.size(); ++i) {
        const auto byte = static_cast<unsigned char>(bytes[i]);
        const bool afterCr = i > 0 && bytes[i - 1] == '\r';
        if (afterCr != (byte == '\n')) return bad(400, "A line does not end with CR LF.");
        if (byte == '\n' && i >= 3 && bytes.substr(i - 3, 3) == "\r\n\r") return doneAfter(i + 1);
        const bool control = byte < 0x20 || byte == 0x7F;
        if (control && byte != '\r' && byte != '\n' && byte != '\t')
            return bad(400, "There is a control character in the request's head.");
    }
    return needMore();
}

// HTTP-version = "HTTP/" DIGIT "." DIGIT; 1.1, or a later 1.x, which is read as 1.1
// (RFC 9110 2.5).
bool isVersion(std::string_view version) {
    return version.size() == 8 && version.substr(0, 7) == "HTTP/1." && version[7] >= '1' &&
           version[7] <= '9';
}

bool isIpv6(std::string_view text) {
    in6_addr address{};
    return text.find('\0') == text.npos &&  // inet_pton() would see the text end there
           ::inet_pton(AF_INET6, std::string(text).c_str(), &address) == 1;
}

// Host = uri-host [ ":" port ] (RFC 9110 7.2), split; false if it is none. No user-info, no
// path; an IPv6 address stands in brackets. The port may be empty: "example.com:". We do not allow
// the comma that RFC 3986 3.2.2 does, because it may join two values (RFC 9110 5.3).
bool splitHost(std::string_view text, std::string_view &host, std::string_view &port) {
    constexpr std::string_view kMarks = "-._~!$&'()*+;=%";
    const auto inName = [&](char c) { return isAlphanumeric(c) || kMarks.find(c) != kMarks.npos; };
    const bool bracket = !text.empty() && text[0] == '[';
    const std::size_t end = bracket ? text.find(']') + 1 : std::min(text.find(':'), text.size());
    if (end == 0) return false;
    host = text.substr(0, end);
    port = text.substr(end);
    if (bracket ? !isIpv6(host.substr(1, end - 2)) : !std::all_of(host.begin(), host.end(), inName))
        return false;
    if (!port.empty() && port[0] != ':') return false;
    port.remove_prefix(port.empty() ? 0 : 1);
    if (port.size() > 5 || !std::all_of(port.begin(), port.end(), isDigit)) return false;
    return port.empty() || std::stoi(std::string(port)) <= 65535;
}

// request-target = origin-form / absolute-form / authority-form / asterisk-form (RFC 9112
// 3.2). The first two have a path, and RFC 6455 4.2.1 wants both understood; the others are
// for other methods than GET. The host of the second would come before that of Host (RFC 9112
// 3.2.2), but the server uses neither. What follows '#' is never sent (RFC 6455 3). Some marks that
// RFC 3986 does not allow are let pass, because browsers send them.
bool parseTarget(std::string_view target, RequestHead &head) {
    const auto fine = [](char c) { return c > 0x20 && c < 0x7F && c != '#'; };
    if (target.empty() || !std::all_of(target.begin(), target.end(), fine)) return false;
    for (const std::string_view scheme : {"http://", "https://"}) {
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

// request-line = method SP request-target SP HTTP-version (RFC 9112 3). We do not skip an
// empty line before it (2.2 says one SHOULD), because those come behind the body of a POST,
// and here nothing comes before the first request.
bool parseRequestLine(std::string_view line, RequestHead &head) {
    const std::size_t first = std::min(line.find(' '), line.size());
    const std::size_t last = std::min(line.rfind(' '), line.size());
    if (first >= last) return false;
    head.method = line.substr(0, first);
    return isToken(head.method) && isVersion(line.substr(last + 1)) &&
           parseTarget(line.substr(first + 1, last - first - 1), head);
}

// field-line = field-name ":" OWS field-value OWS (RFC 9112 5). A name that is no token is
// refused, so are a space before the colon (5.1) and a folded line, which begins with one (5.2).
bool parseFieldLine(std::string_view line, RequestHead &head) {
    const std::size_t colon = line.find(':');
    if (colon == line.npos || !isToken(line.substr(0, colon))) return false;
    head.fields.push_back({line.substr(0, colon), trim(line.substr(colon + 1))});
    return true;
}

// Parses a request's head. Done: `head` has views into `bytes`. Bad: an HTTP status. `seen`
// bytes were given before, and were not enough.
Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head) {
    const Progress end = findHeadEnd(bytes, seen);
    if (end.answer != Progress::done) return end;
    std::string_view lines = bytes.substr(0, end.used - 2);
    const auto nextLine = [&] {
        const std::string_view line = lines.substr(0, lines.find("\r\n"));
        lines.remove_prefix(line.size() + 2);
        return line;
    };
    if (!parseRequestLine(nextLine(), head)) return bad(400, "The request line is malformed.");
    while (!lines.empty())
        if (!parseFieldLine(nextLine(), head)) return bad(400, "A header line is malformed.");
    return end;
}

// The rules that every request has to keep. Status 0: it does.
WSResponse checkRequest(const RequestHead &head) {
    if (head.method != "GET" && head.method != "HEAD") {
        WSResponse refusal = plainResponse(405, "Only GET and HEAD are understood here.");
        refusal.headers.emplace_back("Allow", "GET, HEAD");
        return refusal;
    }
    if (head.path.empty()) return plainResponse(400, "The request target is not a path.");
    std::string_view host, port;
    const std::string value = fieldValue(head, "Host");
    if (countFields(head, "Host") != 1 || !splitHost(value, host, port))
        return plainResponse(400, "There must be one Host header, and it must be valid.");
    const auto hasBody = [](const Field &field) {
        return sameIgnoringCase(field.name, "Transfer-Encoding") ||
               (sameIgnoringCase(field.name, "Content-Length") && field.value != "0");
    };
    if (std::any_of(head.fields.begin(), head.fields.end(), hasBody))
        return plainResponse(400, "A request with a body is not understood here.");
    return {};
}

// Who says one half of it meant it, and is told what is wrong.
bool asksForWebSocket(const RequestHead &head) {
    return listHas(head, "Upgrade", "websocket") || countFields(head, "Sec-WebSocket-Key") > 0;
}

// What RFC 6455 4.2.1 requires of the client's opening handshake; the answer to other versions
// is that of 4.4. Status 0: all is there.
WSResponse checkUpgrade(const RequestHead &head) {
    if (head.method != "GET") return plainResponse(400, "The opening handshake is a GET.");
    if (!listHas(head, "Upgrade", "websocket") || !listHas(head, "Connection", "Upgrade"))
        return upgradeRequired();
    if (countFields(head, "Sec-WebSocket-Version") > 1)
        return plainResponse(400, "There is more than one Sec-WebSocket-Version.");
    if (fieldValue(head, "Sec-WebSocket-Version") != "13") {
        WSResponse refusal =
            plainResponse(426, "Only version 13 of the WebSocket protocol is spoken.");
        refusal.headers.emplace_back("Sec-WebSocket-Version", "13");
        refusal.headers.emplace_back("Upgrade", "websocket");
        return refusal;
    }
    const std::optional<std::string> key = base64Decode(fieldValue(head, "Sec-WebSocket-Key"));
    if (countFields(head, "Sec-WebSocket-Key") != 1 || !key || key->size() != 16)
        return plainResponse(400, "There must be one Sec-WebSocket-Key, the base64 of 16 bytes.");
    return {};
}

// Sec-WebSocket-Accept (RFC 6455 4.2.2, step 5.4).
std::string acceptKey(std::string_view key) {
    constexpr std::string_view kGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";  // RFC 6455 1.3
    const auto digest = sha1(std::string(key).append(kGuid));
    return base64Encode({reinterpret_cast<const char *>(digest.data()), digest.size()});
}

// The first of ours that the client offers too, if it is a token (RFC 6455 4.3), or none: never
// other bytes of the client's (4.2.2).
std::string chooseProtocol(const std::vector<std::string> &ours, std::string_view offered) {
    const std::vector<std::string_view> theirs = splitList(offered, ',');
    const auto isOffered = [&](const std::string &protocol) {
        return isToken(protocol) &&
               std::find(theirs.begin(), theirs.end(), protocol) != theirs.end();
    };
    const auto chosen = std::find_if(ours.begin(), ours.end(), isOffered);
    return chosen == ours.end() ? std::string() : *chosen;
}

// scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ) (RFC 3986 3.1)
bool isScheme(std::string_view text) {
    const auto fine = [](char c) { return isAlphanumeric(c) || c == '+' || c == '-' || c == '.'; };
    return !text.empty() && isAlphanumeric(text[0]) && !isDigit(text[0]) &&
           std::all_of(text.begin(), text.end(), fine);
}

std::string lowered(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(), toLower);
    return lower;
}

// An origin (RFC 6454 6.2) in one spelling: lower case, with the port that its scheme
// stands for. Nothing if it is none: "null", "", a path, user-info, two of them.
std::optional<std::string> normalOrigin(std::string_view origin) {
    const std::size_t colon = std::min(origin.find("://"), origin.size());
    const std::string scheme = lowered(origin.substr(0, colon));
    std::string_view host, port;
    if (!isScheme(scheme) || colon == origin.size() ||
        !splitHost(origin.substr(colon + 3), host, port))
        return std::nullopt;
    const bool hasPort = origin.back() == ':' || !port.empty();
    if (hasPort && (port.empty() || port[0] == '0')) return std::nullopt;
    if (port.empty() && (scheme == "http" || scheme == "ws")) port = "80";
    if (port.empty() && (scheme == "https" || scheme == "wss")) port = "443";
    return scheme + "://" + lowered(host) + ':' + std::string(port);
}

// '+' is a space and %41 an A, as forms encode them. A '%' without two digits stays one.
std::string decodePercent(std::string_view text) {
    std::string decoded;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool escape = text[i] == '%' && i + 2 < text.size() && isHexDigit(text[i + 1]) &&
                            isHexDigit(text[i + 2]);
        if (escape) {
            decoded +=
                static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
            i += 2;
        } else {
            decoded += text[i] == '+' ? ' ' : text[i];
        }
    }
    return decoded;
}

// --- who is behind a proxy ---

// IPv4 where the bytes say so, whichever socket or text they are from.
Address ipAddress(const AddressBytes &bytes) {
    const bool four = std::equal(bytes.begin(), bytes.begin() + 12, kNoIpv6.begin());
    return {four ? AF_INET : AF_INET6, bytes};
}

// A numeric address, IPv4 or IPv6.
std::optional<Address> parseAddress(std::string_view text) {
    const std::string copy(text);
    AddressBytes bytes = kNoIpv6;
    if (::inet_pton(AF_INET, copy.c_str(), &bytes[12]) == 1 ||
        ::inet_pton(AF_INET6, copy.c_str(), &bytes[0]) == 1)
        return ipAddress(bytes);
    return std::nullopt;
}

// In one spelling, whatever was read.
std::string encodeAddress(const Address &address) {
    const std::size_t begin = address.family == AF_INET ? 12 : 0;
    std::array<char, INET6_ADDRSTRLEN> text{};
    ::inet_ntop(address.family, &address.bytes[begin], text.data(), text.size());
    return text.data();
}

// Families are compared first: by its bytes alone all of IPv4 would be in ::/64.
bool isIn(const Network &network, const Address &address) {
    if (network.address.family != address.family) return false;
    for (std::size_t bit = 0; bit < network.bits; ++bit) {
        const int differing = network.address.bytes[bit / 8] ^ address.bytes[bit / 8];
        if ((differing & (0x80 >> bit % 8)) != 0) return false;
    }
    return true;
}

// "10.0.0.1", "10.0.0.0/8", "fd00::/8", "unix". "::ffff:10.0.0.0/104" is another spelling of the
// second; it has to be all of one family.
std::optional<Network> parseNetwork(std::string_view text) {
    if (text == "unix") return Network{};
    const std::size_t slash = std::min(text.find('/'), text.size());
    const std::optional<Address> address = parseAddress(text.substr(0, slash));
    if (!address) return std::nullopt;
    if (slash == text.size()) return Network{*address, 128};
    const std::string_view digits = text.substr(slash + 1);
    if (digits.empty() || digits.size() > 3 || !std::all_of(digits.begin(), digits.end(), isDigit))
        return std::nullopt;
    const std::size_t most = text.find(':') == text.npos ? 32 : 128;
    const std::size_t bits = 128 - most + std::stoul(std::string(digits));
    if (bits > 128 || (address->family == AF_INET && bits < 96)) return std::nullopt;
    return Network{*address, bits};
}

// Without its port, and the brackets that IPv6 then needs: "192.0.2.1:80", "[2001:db8::1]:80".
std::string_view withoutPort(std::string_view text) {
    const std::size_t bracket = text.find(']');
    if (text.substr(0, 1) == "[" && bracket != text.npos) return text.substr(1, bracket - 1);
    const std::size_t colon = text.find(':');
    return colon == text.rfind(':') ? text.substr(0, colon) : text;
}

// The elements of a list as splitList() gives them, but the last one first, and what is in
// quotation marks separates nothing (RFC 9110 5.6.4). From the right, a mark that somebody left
// open hides nothing that was added behind it. A backslash before a mark undoes it, and one
// before such a backslash does it again.
std::vector<std::string_view> splitFromRight(std::string_view list, char separator) {
    std::vector<std::string_view> elements;
    while (!list.empty()) {
        bool quoted = false, turns = false;
        std::size_t begin = list.size();
        for (; begin > 0 && (quoted || list[begin - 1] != separator); --begin) {
            turns = list[begin - 1] == '"' || (turns && list[begin - 1] == '\\');
            quoted = quoted != turns;
        }
        const std::string_view element = trim(list.substr(begin));
        if (!element.empty()) elements.push_back(element);
        list = list.substr(0, std::max<std::size_t>(begin, 1) - 1);
    }
    return elements;
}

// The address in one element of Forwarded: for=192.0.2.60;proto=http, for="[2001:db8::1]:80".
// Empty if there is none, or more than one, which a proxy MUST NOT write (RFC 7239 4).
std::string_view forwardedFor(std::string_view element) {
    std::string_view value;
    for (const std::string_view pair : splitFromRight(element, ';')) {
        if (!sameIgnoringCase(pair.substr(0, 4), "for=")) continue;
        if (!value.empty()) return {};
        value = pair.substr(4);
    }
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
        value = value.substr(1, value.size() - 2);
    return value;
}

// Who a request comes from: `peer`, or whom a trusted proxy names. Each proxy adds at the right
// whom it was asked by. So we go from the right, and stop at the first who is not trusted: what
// stands left of that anybody may have made up, and so may be what a proxy quotes of the request,
// such as its Host. We stop before what is no address ("unknown", "_hidden"), too.
std::string clientAddress(const std::string &peer, const std::vector<Network> &trusted,
                          const std::string &header, const RequestHead &head) {
    if (trusted.empty()) return peer;
    const auto isTrusted = [&](const Address &address) {
        const auto has = [&](const Network &network) { return isIn(network, address); };
        return std::any_of(trusted.begin(), trusted.end(), has);
    };
    const bool plain = sameIgnoringCase(header, "X-Forwarded-For");
    const std::string list = fieldValue(head, header);
    std::string client = peer;
    std::optional<Address> address = parseAddress(peer).value_or(Address{});  // or a Unix socket
    for (const std::string_view element : splitFromRight(list, ',')) {
        if (!isTrusted(*address)) break;
        address = parseAddress(withoutPort(plain ? element : forwardedFor(element)));
        if (!address) break;
        client = encodeAddress(*address);
    }
    return client;
}

// --- responses ---

const char *reasonPhrase(int status) {
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 303: return "See Other";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "";  // RFC 9112 4: it may be empty
    }
}

WSResponse plainResponse(int status, std::string_view text) {
    WSResponse response;
    response.status = status;
    response.headers.emplace_back("Content-Type", "text/plain; charset=utf-8");
    response.body = text;
    if (!text.empty()) response.body += '\n';
    return response;
}

WSResponse upgradeRequired() {
    WSResponse response =
        plainResponse(426, "This is a WebSocket server: connect with ws:// or wss://.");
    response.headers.emplace_back("Upgrade", "websocket");
    return response;
}

// What may go on the wire. A line break in a value would begin a header of its own. What
// the server writes itself is not the hook's to write.
bool isSendable(const WSResponse &response) {
    if (response.status < 200 || response.status > 599) return false;
    for (const auto &[name, value] : response.headers) {
        const auto control = [](char c) { return (c >= 0 && c < 0x20 && c != '\t') || c == 0x7F; };
        if (!isToken(name) || std::any_of(value.begin(), value.end(), control)) return false;
        for (const char *ours : {"Content-Length", "Transfer-Encoding", "Connection", "Date"})
            if (sameIgnoringCase(name, ours)) return false;
    }
    return true;
}

// IMF-fixdate (RFC 9110 5.6.7), whatever language the program speaks.
std::string httpDate(std::time_t now) {
    constexpr std::array<const char *, 7> kDays{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    constexpr std::array<const char *, 12> kMonths{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                   "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    std::tm time{};
    ::gmtime_r(&now, &time);
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%s, %02d %s %d %02d:%02d:%02d GMT",
                  kDays[static_cast<std::size_t>(time.tm_wday)], time.tm_mday,
                  kMonths[static_cast<std::size_t>(time.tm_mon)], time.tm_year + 1900, time.tm_hour,
                  time.tm_min, time.tm_sec);
    return text.data();
}

// A whole response. Each is the last on its connection (RFC 9112 9.6); who sends an
// Upgrade header names it in Connection, too (RFC 9110 7.8). 204, 205 and 304 have no body.
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody) {
    std::string text = "HTTP/1.1 " + std::to_string(response.status) + ' ' +
                       reasonPhrase(response.status) + "\r\n";
    bool upgrade = false;
    for (const auto &[name, value] : response.headers) {
        text += name + ": " + value + "\r\n";
        upgrade = upgrade || sameIgnoringCase(name, "Upgrade");
    }
    const bool bodiless =
        response.status == 204 || response.status == 205 || response.status == 304;
    if (!bodiless) text += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
    text += "Date: " + httpDate(now) + "\r\n";
    text += upgrade ? "Connection: close, Upgrade\r\n\r\n" : "Connection: close\r\n\r\n";
    if (withBody && !bodiless) text += response.body;
    return text;
}

}  // namespace

// ============================================================================
// 11. Frames
//
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
// RFC 6455 5.2. Whatever breaks its rules is refused at the first byte that does.
// ============================================================================

namespace {

constexpr unsigned kFin = 0x80, kReserved = 0x70, kOpcode = 0x0F;  // of the first byte
constexpr unsigned kMask = 0x80, kLength = 0x7F;                   // of the second
constexpr std::uint64_t kLength16 = 126, kLength64 = 127;          // an extended length follows

bool isOpcode(unsigned opcode) { return opcode <= 0x2 || (opcode >= 0x8 && opcode <= 0xA); }

// The extended payload length: `size` bytes, in network byte order.
std::uint64_t readLength(std::string_view bytes) {
    std::uint64_t length = 0;
    for (const char byte : bytes) length = length << 8 | static_cast<unsigned char>(byte);
    return length;
}

// "the minimal number of bytes MUST be used to encode the length", and "the most
// significant bit MUST be 0" (RFC 6455 5.2): whether that holds, as far as the 2 or 8 bytes
// of an extended length are here.
bool isLengthFine(std::string_view bytes, std::size_t wanted) {
    if (wanted == 2) return bytes.size() < 2 || readLength(bytes) >= kLength16;
    const bool highest = !bytes.empty() && (bytes[0] & 0x80) != 0;
    const bool wouldFit16 = bytes.size() >= 6 && readLength(bytes.substr(0, 6)) == 0;
    return !highest && !wouldFit16;
}

// What follows the first two bytes: the extended length, if there is one, and the key.
Progress parseLengthAndKey(std::string_view bytes, FrameHeader &header) {
    const std::size_t extended = header.length < kLength16 ? 0 : header.length == kLength16 ? 2 : 8;
    const std::string_view length = bytes.substr(2, extended);
    if (extended > 0 && !isLengthFine(length, extended))
        return bad(kProtocolError, "the length is not minimal");
    const std::size_t size = 2 + extended + header.maskingKey.size();
    if (bytes.size() < size) return needMore();
    if (extended > 0) header.length = readLength(length);
    std::memcpy(header.maskingKey.data(), bytes.data() + 2 + extended, header.maskingKey.size());
    return doneAfter(size);
}

// Parses the header of a client's frame. Done: the bytes of the header. Bad: 1002.
Progress parseFrameHeader(std::string_view bytes, FrameHeader &header) {
    if (bytes.empty()) return needMore();
    const auto first = static_cast<unsigned char>(bytes[0]);
    // "MUST be 0 unless an extension is negotiated", and none is.
    if ((first & kReserved) != 0) return bad(kProtocolError, "a reserved bit is set");
    // An unknown opcode fails the connection.
    if (!isOpcode(first & kOpcode)) return bad(kProtocolError, "the opcode is reserved");
    header.fin = (first & kFin) != 0;
    header.opcode = static_cast<Opcode>(first & kOpcode);
    const bool control = header.opcode >= Opcode::close;
    // "Control frames themselves MUST NOT be fragmented." (5.4)
    if (control && !header.fin) return bad(kProtocolError, "a control frame is fragmented");

    if (bytes.size() < 2) return needMore();
    const auto second = static_cast<unsigned char>(bytes[1]);
    // "The server MUST close the connection upon receiving a frame that is not masked." (5.1)
    if ((second & kMask) == 0) return bad(kProtocolError, "a frame is not masked");
    header.length = second & kLength;
    // "All control frames MUST have a payload length of 125 bytes or less" (5.5)
    if (control && header.length > kMaxControlPayload)
        return bad(kProtocolError, "a control frame is too long");

    return parseLengthAndKey(bytes, header);
}

// Of a frame as a server sends it: without masking key.
std::size_t frameHeaderSize(std::uint64_t length) {
    return length < kLength16 ? 2 : length <= 0xFFFF ? 4 : 10;
}

// The header of a frame as a server sends it: final and unmasked ("A server MUST NOT mask any
// frames", RFC 6455 5.1). Gives where the payload begins.
char *encodeFrameHeader(char *out, Opcode opcode, std::uint64_t length) {
    const std::size_t extended = frameHeaderSize(length) - 2;
    *out++ = static_cast<char>(kFin | static_cast<unsigned>(opcode));
    *out++ = static_cast<char>(extended == 0 ? length : extended == 2 ? kLength16 : kLength64);
    for (std::size_t i = extended; i-- > 0;) *out++ = static_cast<char>(length >> 8 * i);
    return out;
}

// XORs what lies at `at` with a key as wide as `Word`, and gives what is behind it. (memcpy()
// is how C++ reads and writes at places that are not aligned; it costs nothing.)
template <class Word>
char *unmaskWord(char *at, Word keys) {
    Word word;
    std::memcpy(&word, at, sizeof word);
    word ^= keys;
    std::memcpy(at, &word, sizeof word);
    return at + sizeof word;
}

// Octet i of the payload is XORed with octet i MOD 4 of the masking key (RFC 6455 5.3), in
// place, for a piece that begins at `offset` of the payload. The key is turned to where the
// piece begins; then 32 bytes at a time are XORed as four numbers, each twice the key, whatever
// its byte order. (Four, because a compiler makes wider ones of them where there are any.)
void unmask(char *payload, std::size_t size, std::array<unsigned char, 4> key,
            std::uint64_t offset) {
    std::rotate(key.begin(), key.begin() + offset % 4, key.end());
    std::uint32_t keys = 0;
    std::memcpy(&keys, key.data(), sizeof keys);
    const std::uint64_t twice = keys * std::uint64_t{0x1'0000'0001};
    char *at = payload;
    char *const end = payload + size;
    while (end - at >= 32)
        for (int i = 0; i < 4; ++i) at = unmaskWord(at, twice);
    while (end - at >= 8) at = unmaskWord(at, twice);
    if (end - at >= 4) at = unmaskWord(at, keys);
    for (std::size_t i = 0; at < end; ++i, ++at) *at = static_cast<char>(*at ^ key[i]);
}

}  // namespace

// ============================================================================
// 12. Messages
//
//     message  = frame(text | binary, FIN)
//              | frame(text | binary) *frame(continuation) frame(continuation, FIN)
//
// with control frames anywhere between the frames (RFC 6455 5.4). The usual message is one
// frame that lies whole in the bytes given: it is found there and nothing is stored. Else
// the payload is collected piece by piece, and text is checked piece by piece.
// ============================================================================

namespace {

// What is allocated for a message, as a multiple of what has come of it.
constexpr std::size_t kGrowth = 16;

Progress MessageReader::read(char *bytes, std::size_t size, const Limits &limits, Found &found) {
    found = {};
    spares_ = limits.spares;
    if (filled_ > 0 && !inMessage()) take();  // the last message, which nobody took
    std::size_t used = 0;
    if (!inPayload_) {
        const Progress header = readHeader({bytes, size}, limits);
        if (header.answer != Progress::done) return header;
        used = header.used;
    }
    const auto piece =
        static_cast<std::size_t>(std::min<std::uint64_t>(frame_.length - done_, size - used));
    const Progress payload = readPayload(bytes + used, piece, found);
    return payload.answer == Progress::done ? doneAfter(used + piece) : payload;
}

// Reads a frame's header, also one that comes in pieces: then it is collected.
Progress MessageReader::readHeader(std::string_view bytes, const Limits &limits) {
    const std::size_t before = headerSize_;
    std::string_view all = bytes;
    if (before > 0) {
        const std::size_t more = std::min(bytes.size(), header_.size() - before);
        std::copy_n(bytes.data(), more, header_.data() + before);
        all = {header_.data(), before + more};
    }
    const Progress progress = parseFrameHeader(all, frame_);
    if (progress.answer == Progress::bad) return progress;
    if (progress.answer == Progress::needMore) {
        if (before == 0) std::copy(all.begin(), all.end(), header_.begin());
        headerSize_ = all.size();
        return progress;
    }
    headerSize_ = 0;
    const Progress begun = beginFrame(limits);
    return begun.answer == Progress::bad ? begun : doneAfter(progress.used - before);
}

// Where this frame stands in its message, and whether it may be that long: that is known
// before a byte of it is stored.
Progress MessageReader::beginFrame(const Limits &limits) {
    inPayload_ = true;
    done_ = 0;
    if (isControl()) return doneAfter(0);
    // A fragmented message is one frame with its opcode, then continuations (RFC 6455 5.4).
    const bool continues = frame_.opcode == Opcode::continuation;
    if (continues && !inMessage())
        return bad(kProtocolError, "a continuation has nothing to continue");
    if (!continues && inMessage()) return bad(kProtocolError, "a message begins inside another");
    if (filled_ > limits.maxMessageBytes || frame_.length > limits.maxMessageBytes - filled_)
        return bad(kTooBig, "the message is too big");  // 1009: 7.4.1; that there is a limit: 10.4
    if (++fragments_ > limits.maxFragments) return bad(kPolicyViolation, "too many fragments");
    if (!continues) opcode_ = frame_.opcode;
    return doneAfter(0);
}

// Reads a piece of a payload, perhaps the last. What is not a whole message or control
// frame where it lies is stored.
Progress MessageReader::readPayload(char *bytes, std::size_t size, Found &found) {
    unmask(bytes, size, frame_.maskingKey, done_);
    // Text that is no UTF-8 fails the connection (RFC 6455 8.1), as early as it can be known.
    if (!isControl() && opcode_ == Opcode::text && !utf8_.feed({bytes, size}))
        return bad(kInvalidData, "the text is not UTF-8");
    const bool alone = isControl() || (frame_.fin && fragments_ == 1);
    const bool stored = !alone || size < frame_.length;
    if (stored) store(bytes, size);
    done_ += size;
    if (done_ < frame_.length) return needMore();
    inPayload_ = false;
    if (!stored) return endFrame({bytes, size}, false, found);
    if (isControl()) return endFrame({control_.data(), frame_.length}, false, found);
    if (!message_) return endFrame({}, false, found);  // of empty frames
    return endFrame({message_->data(), filled_}, true, found);
}

// A frame is complete; `payload` is that of the control frame or of the message so far.
Progress MessageReader::endFrame(std::string_view payload, bool assembled, Found &found) {
    if (isControl()) {
        found = {frame_.opcode, payload, false};
    } else if (frame_.fin) {
        if (!utf8_.complete()) return bad(kInvalidData, "the text ends inside a character");
        found = {opcode_, payload, assembled};
        opcode_ = Opcode::continuation;
        fragments_ = 0;
    }
    return doneAfter(0);
}

// Keeps a piece of a payload; what was received into room() is in its place already.
void MessageReader::store(const char *bytes, std::size_t size) {
    if (isControl()) {
        std::copy_n(bytes, size, control_.data() + done_);
        return;
    }
    if (size == 0) return;
    makeRoom(size, filled_ + size);
    char *const end = message_->data() + filled_;
    if (bytes != end) std::copy_n(bytes, size, end);
    filled_ += size;
}

// Room for `size` more bytes of the message. A declared length allocates nothing: at most
// kGrowth times what is really `here` is reserved, and only what is wanted now is touched.
void MessageReader::makeRoom(std::size_t size, std::size_t here) {
    const std::size_t wanted = filled_ + size;
    const std::size_t capacity = std::min(filled_ + left(), std::max(wanted, kGrowth * here));
    if (!message_ && spares_ != nullptr) message_ = spares_->take(capacity);
    if (!message_) message_ = std::make_shared<std::string>();
    if (message_->capacity() < wanted) message_->reserve(capacity);
    if (message_->size() < wanted) message_->resize(wanted);
}

MessageReader::Room MessageReader::room(std::size_t most) {
    if (!inPayload_ || isControl() || filled_ == 0) return {nullptr, 0};
    const std::size_t size = std::min({left(), most, kGrowth * filled_});
    makeRoom(size, filled_);
    return {message_->data() + filled_, size};
}

Payload MessageReader::take() {
    if (message_) message_->resize(std::exchange(filled_, 0));
    return std::exchange(message_, nullptr);
}

}  // namespace

// ============================================================================
// 13. Closing
//
//     close payload = [ code (16 bits, network byte order) [ reason (UTF-8) ] ]
//
// RFC 6455 5.5.1 and 7.4.
// ============================================================================

namespace {

// The codes that may stand in a Close frame: those that RFC 6455 7.4.1 defines, but not 1004,
// which is reserved, and the three that "MUST NOT be set" there (1005, 1006, 1015); 1012 to
// 1014, which were registered with IANA later; and 3000 to 4999, for libraries and
// applications (7.4.2).
bool isCloseCode(int code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

// Done: the code (1005 if there is none, 7.1.5) and the reason. Bad: a close code.
Progress parseClose(std::string_view payload, ClosePayload &close) {
    close = {kNoCode, {}};
    if (payload.empty()) return doneAfter(0);
    // "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer"
    if (payload.size() == 1) return bad(kProtocolError, "a close code has one byte");
    close.code =
        static_cast<unsigned char>(payload[0]) << 8 | static_cast<unsigned char>(payload[1]);
    close.reason = payload.substr(2);
    if (!isCloseCode(close.code)) return bad(kProtocolError, "this close code may not be sent");
    if (!isUtf8(close.reason)) return bad(kInvalidData, "the close reason is not UTF-8");
    return doneAfter(payload.size());
}

// The reason has to be UTF-8; what would make the frame too long is cut off, between two
// characters.
std::string encodeClose(int code, std::string_view reason) {
    std::string payload{static_cast<char>(code >> 8), static_cast<char>(code)};
    return payload.append(cutUtf8(reason, kMaxControlPayload - 2));
}

}  // namespace

// ============================================================================
// 14. UTF-8
//
// RFC 3629 4, as an automaton: the bytes that may follow, and the state behind each.
//
//     between characters   00..7F  the same               C2..DF          one more
//                          E0      A0..BF, one more       E1..EC, EE..EF  two more
//                          ED      80..9F, one more       F0              90..BF, two more
//                          F1..F3  three more             F4              80..8F, two more
//     one more             80..BF  between characters
//     two more             80..BF  one more
//     three more           80..BF  two more
//
// E0 and F0 would begin what fits fewer bytes, ED a surrogate, F4 what is above U+10FFFF.
//
// A state is a number of bits, and the table's entry for a byte has the next state there, in
// six bits, for each of the states. So a step is one look-up and one shift, without a branch
// that a processor could guess wrong, be the text Greek or Japanese (an idea of Per Vognsen,
// https://gist.github.com/pervognsen/218ea17743e1442e59bb60d29b1aa725).
// ============================================================================

namespace {

enum Utf8State : std::uint8_t {
    kInvalid = 0,  // and stays so
    kBetweenCharacters = Utf8Check::kBetween,
    kOneMore = 12,
    kTwoMore = 18,
    kThreeMore = 24,
    kBehindE0 = 30,
    kBehindED = 36,
    kBehindF0 = 42,
    kBehindF4 = 48
};

struct Utf8Rule {
    Utf8State before;
    unsigned char first, last;
    Utf8State after;
};

constexpr Utf8Rule kUtf8Rules[] = {
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

constexpr std::array<std::uint64_t, 256> utf8Table() {
    std::array<std::uint64_t, 256> table{};
    for (const Utf8Rule &rule : kUtf8Rules)
        for (std::size_t byte = rule.first; byte <= rule.last; ++byte)
            table[byte] |= std::uint64_t{rule.after} << rule.before;
    return table;
}

constexpr std::array<std::uint64_t, 256> kUtf8Table = utf8Table();

// How much of the text is ASCII, from its beginning on and in steps of eight bytes: none of
// them has its highest bit set.
std::size_t asciiSize(std::string_view text) {
    constexpr std::uint64_t kHighBits = 0x8080'8080'8080'8080;
    std::size_t size = 0;
    for (std::uint64_t eight = 0; size + 8 <= text.size(); size += 8) {
        std::memcpy(&eight, text.data() + size, sizeof eight);
        if ((eight & kHighBits) != 0) break;
    }
    return size;
}

bool Utf8Check::feed(std::string_view piece) {
    constexpr std::uint64_t kSixBits = 0x3F;  // what is above belongs to other states
    constexpr std::size_t kSteps = 32;        // then it may be worth while to look for ASCII again
    std::uint64_t state = state_;
    while (!piece.empty()) {
        if (state == kBetweenCharacters) piece.remove_prefix(asciiSize(piece));
        const std::string_view next = piece.substr(0, kSteps);
        for (const char byte : next)
            state = kUtf8Table[static_cast<unsigned char>(byte)] >> (state & kSixBits);
        state &= kSixBits;
        piece.remove_prefix(next.size());
    }
    state_ = static_cast<std::uint8_t>(state);
    return state_ != kInvalid;
}

bool isUtf8(std::string_view text) {
    Utf8Check check;
    return check.feed(text) && check.complete();
}

// Its first `size` bytes, or a few less, so that the cut is between two characters.
std::string_view cutUtf8(std::string_view text, std::size_t size) {
    size = std::min(size, text.size());
    while (size > 0 && size < text.size() &&
           (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80)
        --size;
    return text.substr(0, size);
}

}  // namespace

// ============================================================================
// 15. base64
//
// RFC 4648 4: three bytes are four digits of six bits; what is missing at the end is
// written as '='.
// ============================================================================

namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string base64Encode(std::string_view bytes) {
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

// Nothing if it is no base64. Bits that are left over at the end may be anything: RFC 4648
// 3.5 leaves that to the decoder, and there are clients that send random digits as a key.
std::optional<std::string> base64Decode(std::string_view text) {
    if (text.size() % 4 != 0) return std::nullopt;
    std::size_t padding = 0;
    while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=')
        ++padding;
    std::string bytes;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::size_t digit = i < text.size() - padding ? kDigits.find(text[i]) : 0;
        if (digit == kDigits.npos) return std::nullopt;
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        if (i % 4 != 3) continue;
        for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift);
    }
    bytes.resize(bytes.size() - padding);
    return bytes;
}

}  // namespace

// ============================================================================
// 16. SHA-1
//
// FIPS 180-4, sections 5.1.1, 5.3.1 and 6.1.2. It is broken for signatures; in the opening
// handshake it only proves that the server read the key (RFC 6455 10.8).
// ============================================================================

namespace {

using Sha1State = std::array<std::uint32_t, 5>;

std::uint32_t rotateLeft(std::uint32_t x, int n) { return x << n | x >> (32 - n); }

// One step's function and constant (4.1.1, 4.2.1).
std::uint32_t mixed(int t, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    if (t < 20) return ((b & c) ^ (~b & d)) + 0x5A827999;
    if (t < 40) return (b ^ c ^ d) + 0x6ED9EBA1;
    if (t < 60) return ((b & c) ^ (b & d) ^ (c & d)) + 0x8F1BBCDC;
    return (b ^ c ^ d) + 0xCA62C1D6;
}

// 6.1.2: one block of 64 bytes.
void sha1Block(const char *block, Sha1State &state) {
    std::array<std::uint32_t, 80> w{};
    for (std::size_t t = 0; t < 16; ++t)
        for (std::size_t k = 0; k < 4; ++k)
            w[t] = w[t] << 8 | static_cast<unsigned char>(block[4 * t + k]);
    for (std::size_t t = 16; t < 80; ++t)
        w[t] = rotateLeft(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    auto [a, b, c, d, e] = state;
    for (std::size_t t = 0; t < 80; ++t) {
        const std::uint32_t next =
            rotateLeft(a, 5) + mixed(static_cast<int>(t), b, c, d) + e + w[t];
        e = d;
        d = c;
        c = rotateLeft(b, 30);
        b = a;
        a = next;
    }
    state = {state[0] + a, state[1] + b, state[2] + c, state[3] + d, state[4] + e};
}

std::array<unsigned char, 20> sha1(std::string_view message) {
    // 5.1.1: a one bit, zeros up to 8 bytes before the end of a block, the length in bits.
    std::string padded(message);
    padded += '\x80';
    while (padded.size() % 64 != 56) padded += '\0';
    const std::uint64_t bits = std::uint64_t{message.size()} * 8;
    for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>(bits >> shift);

    Sha1State state{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};  // 5.3.1
    for (std::size_t i = 0; i < padded.size(); i += 64) sha1Block(padded.data() + i, state);

    std::array<unsigned char, 20> digest{};
    for (std::size_t i = 0; i < digest.size(); ++i)
        digest[i] = static_cast<unsigned char>(state[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

}  // namespace
