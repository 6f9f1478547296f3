// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The habits of the clients of `make soak`: what each client does, and what it may expect. A
// healthy client loses no message and gets none twice; the server gets rid of the others.

#ifndef WS_TESTS_SOAK_HABITS_H
#define WS_TESTS_SOAK_HABITS_H

#include <array>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client.h"

namespace soak {

// A random element of an array or container.
template <class Table>
const auto &anyOf(World &world, const Table &table) {
    return table[world.below(std::size(table))];
}

// Takes the next word and the space after it from `text`.
inline std::string_view nextWord(std::string_view &text) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    return word;
}

inline std::uint64_t nextNumber(std::string_view &text) {
    return std::strtoull(std::string(nextWord(text)).c_str(), nullptr, 10);
}

// FNV-1a, to check that a text arrives as it was sent.
inline std::string checksum(std::string_view text) {
    std::uint64_t hash = 14695981039346656037ULL;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
    return std::to_string(hash);
}

inline std::string saying(std::uint64_t number, std::string_view body) {
    return "say " + std::to_string(number) + ' ' + checksum(body) + ' ' + std::string(body);
}

// --- healthy clients -----------------------------------------------------------------------

// Says numbered messages to all talkers, and hears every message of every talker once and in
// order, from the welcome to the farewell.
class Talker : public Client {
  public:
    explicit Talker(World &world) : Client(world), turns_(world.between(3, 20)) {}

  protected:
    void connected() override { send(upgrade("/talk")); }
    void opened() override { expect("the welcome"); }
    void alarmed() override { turns_ > 0 && !world_.closing ? say() : sayBye(); }

    void heard(std::string_view text, bool) override {
        const std::string_view what = nextWord(text);
        if (what == "welcome") beWelcomed(text);
        else if (what == "heard") hear(text);
        else if (what == "farewell") hearFarewell(text);
        else Client::heard(what, false);
    }

    void pause() {
        expect("its own alarm");
        wakeIn(world_.moment(100, 2000));
    }

    // Sends a few messages, then waits for their echoes.
    void say() {
        --turns_;
        for (std::size_t left = world_.between(1, 3); left > 0; --left) {
            const std::string_view body =
                world_.text(world_.below(10) == 0 ? world_.below(8000) : world_.below(500));
            sendText(saying(++said_, body));
        }
        expect("the echo of its message " + std::to_string(said_));
    }

  private:
    void beWelcomed(std::string_view text) {
        if (id_ != 0) return complain("was welcomed twice");
        id_ = nextNumber(text);
        sequence_ = nextNumber(text);
        pause();
    }

    void hear(std::string_view text) {
        const std::uint64_t sequence = nextNumber(text), from = nextNumber(text);
        nextWord(text);  // "say"
        const std::uint64_t number = nextNumber(text);
        if (id_ == 0 || sequence != sequence_ + 1)
            return complain("heard broadcast " + std::to_string(sequence) + " after " +
                            std::to_string(sequence_));
        sequence_ = sequence;
        const std::string_view sum = nextWord(text);
        if (sum != checksum(text)) return complain("heard a damaged broadcast");
        if (from != id_) return;
        if (number != ++echoed_)
            return complain("heard its message " + std::to_string(number) + " instead of " +
                            std::to_string(echoed_));
        if (echoed_ == said_) pause();
    }

    void sayBye() {
        sendText("bye");
        expect("the farewell");
    }

    void hearFarewell(std::string_view text) {
        if (nextNumber(text) != sequence_) return complain("missed messages before the farewell");
        expectClose(1000);
    }

    std::size_t turns_;
    std::uint64_t id_ = 0, sequence_ = 0, said_ = 0, echoed_ = 0;
};

// A talker with a small receive buffer that first asks for more than fits, and repeatedly
// stops reading for a while. It loses nothing either.
class SlowReader : public Talker {
  public:
    using Talker::Talker;

  protected:
    void heard(std::string_view text, bool binary) override {
        if (text.substr(0, 6) != "flood ") {
            Talker::heard(text, binary);
            if (!asked_) ask();
            return;
        }
        text.remove_prefix(6);
        if (nextNumber(text) != flooded_++) return complain("heard a flood out of order");
        if (flooded_ < kFlood) {
            if (world_.below(8) == 0) stall();
        } else {
            reads_ = true;
            pause();
        }
    }

    void alarmed() override {
        if (!std::exchange(reads_, true)) return;
        Talker::alarmed();
        stall();
    }

  private:
    static constexpr std::uint64_t kFlood = 150;

    void ask() {
        asked_ = true;
        sendText("flood " + std::to_string(kFlood) + " 4096");
        expect("the end of its flood");
        stall();
    }
    void stall() {
        reads_ = false;
        wakeIn(world_.moment(20, 400));
    }

    bool asked_ = false;
    std::uint64_t flooded_ = 0;
};

// Sends messages in fragments of any size with pings between them, and waits for the echo of
// each message.
class Sender : public Client {
  public:
    Sender(World &world, std::size_t most, std::size_t fragment, std::size_t turns)
        : Client(world), most_(most), fragment_(fragment), turns_(world.between(1, turns)) {}

  protected:
    void opened() override { sendNext(); }
    void ponged(std::string_view payload) override {
        if (payload != "between") complain("heard an unexpected pong");
    }
    void heard(std::string_view payload, bool binary) override {
        if (binary != binary_ || payload != sent_) return complain("heard a wrong echo");
        --turns_;
        sent_.clear();
        turns_ > 0 && !world_.closing ? wakeIn(world_.moment(0, 300)) : leave(1000);
    }
    void alarmed() override { sendNext(); }

  private:
    void sendNext() {
        sent_ = world_.text(world_.between(0, most_));
        binary_ = world_.perhaps();
        unsigned opcode = binary_ ? kBinary : kText;
        std::string_view rest = sent_;
        do {
            const std::size_t size = std::min(rest.size(), world_.between(0, fragment_));
            sendFrame(opcode | (size == rest.size() ? kFin : 0), rest.substr(0, size));
            if (world_.below(8) == 0) sendFrame(kFin | kPing, "between");
            opcode = kContinuation;
            rest.remove_prefix(size);
        } while (!rest.empty());
        ++messagesSent;
        expect("the echo of " + std::to_string(sent_.size()) + " bytes");
    }

    std::size_t most_, fragment_, turns_;
    std::string sent_;
    bool binary_ = false;
};

// Sends messages up to the largest size allowed.
class BigSender : public Sender {
  public:
    explicit BigSender(World &world) : Sender(world, kMaxMessage, 200000, 5) {}
};

// Sends fragments of one byte and empty ones, a few bytes at a time.
class Dribbler : public Sender {
  public:
    explicit Dribbler(World &world) : Sender(world, 60, 1, 3) { stride_ = 5; }
};

// Sends several pings at a time. The server may drop all unsent pongs but the last, so the
// client waits for that one; those before it may come, in order.
class Pinger : public Client {
  public:
    explicit Pinger(World &world) : Client(world), turns_(world.between(2, 10)) {}

  protected:
    void opened() override { alarmed(); }
    void alarmed() override {
        for (std::size_t left = world_.between(1, 20); left > 0; --left)
            sendFrame(kFin | kPing, std::to_string(++pinged_));
        expect("the pong " + std::to_string(pinged_));
    }
    void ponged(std::string_view payload) override {
        const std::uint64_t number = nextNumber(payload);
        if (number <= ponged_ || number > pinged_) return complain("heard a pong out of order");
        ponged_ = number;
        if (ponged_ < pinged_) return;
        --turns_ > 0 && !world_.closing ? wakeIn(world_.moment(0, 500)) : leave(1000);
    }

  private:
    std::size_t turns_;
    std::uint64_t pinged_ = 0, ponged_ = 0;
};

// Counts as idle most of the time, but there is room: so it is still there when it speaks.
class Sleeper : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override { send(upgrade("/sleep")); }
    void opened() override {
        expect("its own alarm");
        wakeIn(world_.moment(1500, 5000));
    }
    void alarmed() override {
        sendText("awake");
        expect("the echo of its message");
    }
    void heard(std::string_view text, bool) override {
        if (text != "awake") return complain("heard a wrong echo");
        leave(1000);
    }
};

// --- clients that close --------------------------------------------------------------------

// Closes with a code, makes the server close with one, or makes a hook throw.
class Closer : public Client {
  public:
    using Client::Client;

  protected:
    void opened() override {
        if (world_.below(4) == 0) return leave(anyOf(world_, kCodes));
        if (world_.below(4) == 0) return closeStrangely();
        const int code = anyOf(world_, kCodes);
        const bool throws = world_.below(4) == 0;
        sendText(throws ? "throw" : "kick " + std::to_string(code));
        expectClose(throws ? 1011 : code);
    }

  private:
    static constexpr std::array<int, 14> kCodes{1000, 1001, 1002, 1003, 1007, 1008, 1009,
                                                1010, 1011, 1012, 1013, 1014, 3000, 4999};
    static constexpr std::array<int, 8> kForbidden{0, 999, 1004, 1005, 1006, 1015, 2999, 5000};

    // With no code at all, or with one that may not be sent (RFC 6455 7.4).
    void closeStrangely() {
        const auto code = static_cast<std::uint64_t>(anyOf(world_, kForbidden));
        const bool none = world_.perhaps();
        sendFrame(kFin | kClose, none ? "" : networkOrder(code, 2));
        closeSent_ = true;
        expectClose(none ? 0 : 1002);
    }
};

// Breaks a rule of the protocol, and may go on sending.
class Breaker : public Client {
  public:
    using Client::Client;

  protected:
    void opened() override {
        const Breach &breach = anyOf(world_, kBreaches);
        send(std::string(breach.bytes, breach.size));
        if (world_.perhaps()) send(world_.text(world_.below(100000)));
        closeSent_ = true;
        expectClose(breach.code);
    }

  private:
    struct Breach {
        const char *bytes;
        std::size_t size;
        int code;
    };
    static constexpr std::array<Breach, 14> kBreaches{{
        {"\x81\x02hi", 4, 1002},                                     // not masked
        {"\xC1\x80....", 6, 1002},                                   // a reserved bit
        {"\x83\x80....", 6, 1002},                                   // a reserved opcode
        {"\x8B\x80....", 6, 1002},                                   // a reserved control opcode
        {"\x09\x80....", 6, 1002},                                   // a fragmented ping
        {"\x89\xFE\x00\x7E....", 8, 1002},                           // a ping of 126 bytes
        {"\x82\xFE\x00\x7D....", 8, 1002},                           // a length not minimal
        {"\x82\xFF\x80\x00\x00\x00\x00\x00\x00\x01....", 14, 1002},  // 2^63 + 1
        {"\x80\x80....", 6, 1002},                                   // nothing to continue
        {"\x01\x80....\x81\x80....", 12, 1002},                      // inside a message
        {"\x88\x81.....", 7, 1002},                                  // a Close of one byte
        {"\x81\x81\x00\x00\x00\x00\xFF", 7, 1007},                   // not UTF-8
        {"\x88\x83\x00\x00\x00\x00\x03\xE8\xFF", 9, 1007},           // a reason not UTF-8
        {"\x82\xFF\x00\x00\x00\x00\x00\x10\x00\x01....", 14, 1009},  // one byte too long
    }};
};

// --- clients that vanish -------------------------------------------------------------------

// Vanishes after sending nothing, part of a head, all of it, half a message, messages that
// many clients hear, or a request for a flood.
class Vanisher : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        const std::string head = upgrade("/talk");
        const std::size_t stage = world_.below(6);
        send(stage == 0 ? "" : stage == 1 ? head.substr(0, world_.below(head.size())) : head);
        if (stage == 3) send("\x81\xFE\x01");
        for (int i = 0; stage >= 4 && i < 3; ++i) sendText(saying(0, "vanishing"));
        if (stage == 5) sendText("flood 20 4096");
        reads_ = world_.perhaps();
        expectAnyEnd();
        wakeIn(world_.moment(0, stage < 2 ? 50 : 1000));
    }
    void heard(std::string_view, bool) override {}
    void alarmed() override { shut(); }
};

class Resetter : public Vanisher {
  public:
    using Vanisher::Vanisher;

  protected:
    void alarmed() override { reset(); }
};

// Comes and goes: leaves at once, or sends its Close right after the request.
class Passer : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        if (world_.below(3) == 0) return world_.perhaps() ? shut() : reset();
        Client::connected();
        leave(1000);
    }
};

// Shuts down its side of the TCP connection at some stage. If it has sent a Close before,
// that is answered.
class HalfCloser : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        const std::string head = upgrade("/talk");
        const std::size_t stage = world_.below(4);
        send(stage == 0 ? head.substr(0, world_.between(1, head.size() - 1)) : head);
        if (stage == 1) sendText(saying(0, "half"));
        if (stage == 2) send("\x82\xFE");
        if (stage == 3) leave(3000);
        else expectAnyEnd();
        finishes_ = true;
    }
    void heard(std::string_view, bool) override {}
};

// --- clients that make the server wait -----------------------------------------------------

// Asks for floods and never reads. It keeps asking, because otherwise the kernel would not
// tell it that it was disconnected.
class NeverReader : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        reads_ = false;
        send(upgrade("/talk"));
        expectAnyEnd();
        alarmed();
    }
    void alarmed() override {
        sendText("flood 200 8192");
        wakeIn(300ms);
    }
};

// Never finishes its request: sends nothing, a part, or a byte now and then.
class Silent : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        expectStatus(408);
        head_ = upgrade("/");
        const std::size_t kind = world_.below(3);
        if (kind == 1) send(head_.substr(0, world_.below(head_.size())));
        if (kind == 2) alarmed();
    }
    void alarmed() override {
        if (next_ + 1 < head_.size()) send(head_.substr(next_++, 1));
        wakeIn(world_.moment(20, 200));
    }

  private:
    std::string head_;
    std::size_t next_ = 0;
};

// Asks for a page, or sends a request that is refused.
class Getter : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override {
        const std::string size = std::to_string(world_.below(300000));
        const std::string get = "GET /page?size=" + size + " HTTP/1.1\r\nHost: a\r\n\r\n";
        const std::array<std::pair<std::string, int>, 6> requests{{
            {get, 200},
            {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426},
            {"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405},
            {"GET / HTTP/1.1\r\nNo host: a\r\n\r\n", 400},
            {upgrade("/", "8"), 426},
            {upgrade("/refuse"), 403},
        }};
        const auto &[request, status] = anyOf(world_, requests);
        send(request);
        expectStatus(status);
    }
};

// --- clients that level the server's memory ------------------------------------------------

// The server keeps freed memory for later, up to the most that was ever in use at once. Singers
// make this amount the same after each round: many come, all are in the middle of a message
// when all are sent one, and all are sent two more when they have finished. (Each of these is
// a little shorter than the one before, so it fits into the memory left by that one.)
class Singer : public Client {
  public:
    using Client::Client;

  protected:
    void connected() override { send(upgrade("/talk")); }
    void heard(std::string_view text, bool) override {
        const std::string_view what = nextWord(text);
        if (what == "heard") hear();
        else if (what == kSong) waitFor(world_.stillSinging);
        else startSinging();
    }
    void ponged(std::string_view) override { waitFor(world_.stillComing); }

  private:
    static constexpr std::string_view kSong = "tralalalalala";

    void startSinging() {
        sendFrame(kText, kSong.substr(0, 10));
        sendFrame(kFin | kPing, "");
        expect("a pong");
    }

    // Waits for the other singers. The last one to get here calls out to all.
    void waitFor(std::size_t &others) {
        expect("the other singers");
        if (--others > 0) return;
        calls_ = heard_ == 1;  // the last to finish calls once more
        call();
    }
    void call() {
        finish();
        sendText(saying(0, std::string(4030 - 10 * heard_, 'o')));
    }
    void finish() {
        if (!std::exchange(finished_, true)) sendFrame(kFin, kSong.substr(10));
    }

    void hear() {
        if (++heard_ == 1) finish();
        else if (heard_ == 3) leave(1000);
        else if (calls_) call();
    }

    std::size_t heard_ = 0;
    bool calls_ = false, finished_ = false;
};

// --- all habits ----------------------------------------------------------------------------

template <class Habit>
std::unique_ptr<Client> make(World &world) {
    return std::make_unique<Habit>(world);
}

struct Habit {
    const char *name;
    std::size_t share;  // in percent of all clients
    int receiveBuffer;  // 0: the system's default
    std::unique_ptr<Client> (*make)(World &);
};

constexpr std::array<Habit, 16> kHabits{{
    {"talker", 40, 0, make<Talker>},
    {"slow reader", 5, 65536, make<SlowReader>},
    {"big sender", 5, 0, make<BigSender>},
    {"dribbler", 5, 0, make<Dribbler>},
    {"pinger", 5, 0, make<Pinger>},
    {"sleeper", 3, 0, make<Sleeper>},
    {"closer", 5, 0, make<Closer>},
    {"breaker", 5, 0, make<Breaker>},
    {"vanisher", 5, 0, make<Vanisher>},
    {"resetter", 5, 0, make<Resetter>},
    {"passer", 5, 0, make<Passer>},
    {"half-closer", 4, 0, make<HalfCloser>},
    {"never-reader", 3, 4096, make<NeverReader>},
    {"silent client", 2, 0, make<Silent>},
    {"getter", 3, 0, make<Getter>},
    {"singer", 0, 0, make<Singer>},
}};
constexpr std::size_t kSinger = 15;

}  // namespace soak

#endif
