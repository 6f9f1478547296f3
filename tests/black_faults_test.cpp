// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// One story, with everything that can happen to a server, runs again and again. Each time another
// system call fails or falls short, or another allocation fails: see faults.h. Then faults that
// last: storms of signals, a poll() without memory, an accept() that fails, clocks that jump.

#include "black.h"
#include "faults.h"

#include <map>
#include <memory>
#include <random>

#include <sys/un.h>
#include <sys/wait.h>

using namespace black;
using faults::Call;
using faults::Inside;
using faults::Outside;

namespace {

// ----------------------------------------------------------------------------
// The server and its visitors
// ----------------------------------------------------------------------------

void makeSmall(Config &config) {
    config.lowMarkBytes = 16 * 1024;
    config.maxMessageBytes = 20'000;
    config.protocols = {"chat"};
    config.closeSeconds = 1.5;
    config.pingSeconds = 0;  // pings would make each run of the story different
}

constexpr std::size_t kPageSize = 3000;  // of a page; a large message is three times as long

// Echoes messages, JSON parsed and serialized again, but disconnects a user that sends "kick".
// Names users by the path of their request.
class Subject : public Server {
  public:
    explicit Subject(const Change &change) : Server(change) {
        const Outside test;
        onProcess = [this](User &user, WSMessage &msg) {
            const Inside server;
            if (msg.payload() == "kick") disconnect(user, 4001, "kicked");
            else sendToUser(user, msg.isJson() ? WSMessage(msg.json()) : msg);
        };
    }

    std::map<std::uint64_t, std::string> names;
    std::map<std::string, Strings> accepted;  // messages queued for each path

    // The users whose hooks did not come in pairs; "" if there are none.
    std::string brokenPairs() const {
        std::map<std::string, int> count;
        for (const std::string &hook : connectHooks()) ++count[hook.substr(0, hook.find(' ', 15))];
        std::string broken;
        int ends = 0;
        for (const auto &[id, name] : names) {
            const std::string number = std::to_string(id);
            const int begun = count["postConnect " + number];
            const int ended = count["preDisconnect " + number];
            if (count["preConnect " + number] != 1 || begun > 1 || begun != ended)
                broken += name + ' ';
            ends += ended;
        }
        return count["postDisconnect"] == ends ? broken : broken + "postDisconnect";
    }

    bool hasEnded() const { return !hooks.empty() && hooks.back() == "postShutdown"; }
    bool isHere(const std::string &path) const {
        for (const User &user : users())
            if (user.request().path() == path) return true;
        return false;
    }

  protected:
    void process(User &user, WSMessage &msg) override {
        const Outside hook;
        Server::process(user, msg);
    }
    void preSend(User &user, WSMessage &msg) override {
        const Outside hook;
        Server::preSend(user, msg);
    }
    void postSend(User &user, WSMessage &msg) override {
        const Outside hook;
        accepted[names[user.id()]].push_back(msg.payload());
        Server::postSend(user, msg);
    }
    void preConnect(User &user, int socket) override {
        const Outside hook;
        names[user.id()] = user.request().path();
        Server::preConnect(user, socket);
        const int small = 4096;  // fills up sooner when the client does not read
        if (names[user.id()] == "/slow")
            ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        const Inside server;
        if (user.request().path() == "/refused") refuse(user, 403, "not you");
    }
    void postConnect(User &user, int socket) override {
        const Outside hook;
        Server::postConnect(user, socket);
    }
    void preDisconnect(User &user, int socket) override {
        const Outside hook;
        Server::preDisconnect(user, socket);
    }
    void postDisconnect() override {
        const Outside hook;
        Server::postDisconnect();
    }
    void preShutdown(bool &doShutdown) override {
        const Outside hook;
        Server::preShutdown(doShutdown);
    }
    void postShutdown() override {
        const Outside hook;
        Server::postShutdown();
    }
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        const Outside hook;
        Server::httpRequest(request, response);
        response.status = 200;
        response.body.assign(kPageSize, 'p');
    }
    void console(WSLevel level, std::string_view text) override {
        const Outside hook;
        Server::console(level, text);
    }
};

// A client that never waits and records what it hears: the first line of the answer, then frames
// or the body, and how the connection ended. It answers a Close with the same Close.
class Visitor : public Client {
  public:
    using Client::Client;

    Strings heard;  // such as "HTTP/1.1 101 Switching Protocols", "1 hello", "8 …", "EOF"
    Strings data;   // the payloads of text and binary only
    bool answersPings = true;
    std::size_t due = 0;  // the size of `heard` that the story waits for

    void say(std::string_view bytes) { unsent_ += bytes; }
    bool over() const { return gone_ || !end.empty(); }
    bool heardClose() const {
        return std::any_of(heard.begin(), heard.end(),
                           [](const std::string &text) { return text.substr(0, 2) == "8 "; });
    }
    bool isUser() const { return upgraded_ && !over(); }
    bool heardAll() const { return over() || heard.size() >= due; }
    void vanish() {
        gone_ = true;
        reset();
    }

    // Sends and receives what it can. False if nothing moved.
    bool move() {
        if (over()) return false;
        const std::size_t sent = unsent_.empty() ? 0 : trySend(unsent_).value_or(0);
        unsent_.erase(0, sent);
        const std::size_t before = input.size();
        receive();
        const bool moved = sent > 0 || input.size() > before || !end.empty();
        while (understand()) {}
        if (!end.empty() && !upgraded_ && !input.empty()) heard.push_back(taken(input.size()));
        if (!end.empty()) heard.push_back(end);
        return moved;
    }

  private:
    bool understand() { return upgraded_ ? understandFrame() : understandHead(); }

    bool understandHead() {
        if (!heard.empty() || !has(input, "\r\n\r\n")) return false;
        const std::string head = taken(input.find("\r\n\r\n") + 4);
        heard.push_back(head.substr(0, head.find("\r\n")));
        return upgraded_ = has(heard[0], " 101 ");
    }

    // RFC 6455 5.2; a server's frames are not masked.
    bool understandFrame() {
        const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(input[i]); };
        if (input.size() < 2) return false;
        const std::size_t header = byte(1) < 126 ? 2 : 4;  // no frame of the story is longer
        if (input.size() < header) return false;
        const std::size_t size =
            header == 2 ? byte(1) : static_cast<std::size_t>(byte(2) << 8 | byte(3));
        if (input.size() < header + size) return false;
        const unsigned opcode = byte(0) & 0xFU;
        const std::string payload = taken(header + size).substr(header);
        heard.push_back(std::to_string(opcode) + ' ' + payload);
        if (opcode == kText || opcode == kBinary) data.push_back(payload);
        if (opcode == kPing && answersPings) say(frame(kPong, payload));
        if (opcode == kClose) say(frame(kClose, payload));
        return true;
    }

    std::string unsent_;
    bool upgraded_ = false, gone_ = false;
};

// The server, its visitors, and the clock, which skips a second when nothing moves: the story may
// be waiting for a deadline.
class Stage {
  public:
    explicit Stage(const Server::Change &change = makeSmall) {
        const Inside server;
        subject_ = std::make_unique<Subject>(change);
    }
    ~Stage() {
        const Inside server;
        subject_.reset();
    }
    Stage(const Stage &) = delete;
    Stage &operator=(const Stage &) = delete;

    Subject &server() { return *subject_; }
    std::map<std::string, std::unique_ptr<Visitor>> visitors;

    // The visitor of this path; it connects if it is new.
    Visitor &visitor(const std::string &path, int receiveBuffer = 0) {
        std::unique_ptr<Visitor> &one = visitors[path];
        if (!one) one = std::make_unique<Visitor>(subject_->port(), receiveBuffer);
        return *one;
    }

    // A visitor sends something, and expects this number of answers.
    Visitor &say(const std::string &path, std::string_view bytes, std::size_t answers) {
        Visitor &one = visitor(path);
        one.say(bytes);
        one.due += answers;
        return one;
    }

    // The server sends a message to all users.
    void sendToAll(const WSMessage &msg) {
        for (const auto &[path, one] : visitors)
            if (one->isUser()) ++one->due;
        const Inside server;
        subject_->sendToAll(msg);
    }

    // Runs until all visitors have sent everything and heard what is due, and until done().
    void settle(const char *what, const std::function<bool()> &done = {}) {
        const auto end = Clock::now() + kPatience;
        int idle = 0, skips = 0;
        do {
            bool moved = moveAll();
            const std::size_t before = faults::state.moved;
            turn(idle == 0 ? 0ms : 1ms);
            moved = moveAll() || moved || faults::state.moved > before;
            idle = moved ? 0 : idle + 1;
            if (skips > 40 || Clock::now() > end)
                throw std::runtime_error("timed out waiting for "s + what + waiting());
            if (idle < kIdleTurns) continue;
            ++skips;
            ++faults::state.skipped;
            idle = 0;
        } while ((done && !done()) || !waiting().empty());
    }

    bool turn(std::chrono::milliseconds timeout) {
        const Inside server;
        return running_ = subject_->turn(timeout);
    }
    bool running() const { return running_; }

  private:
    static constexpr int kIdleTurns = 10;  // of a millisecond each: the kernel may need a few

    bool moveAll() {
        bool moved = false;
        for (const auto &entry : visitors) moved = entry.second->move() || moved;
        return moved;
    }

    // The visitors that have not heard everything.
    std::string waiting() const {
        std::string paths;
        for (const auto &[path, one] : visitors)
            if (!one->heardAll()) paths += ' ' + path;
        return paths;
    }

    std::unique_ptr<Subject> subject_;
    bool running_ = true;
};

// ----------------------------------------------------------------------------
// The story
// ----------------------------------------------------------------------------

const std::string kLarge(3 * kPageSize, 'x');
const std::string kLargeFrame = frame(kText, kLarge);
const std::string kLargeRest = frame(kContinuation, kLarge, 0) + frame(kContinuation, "and more");

// Two users come to stay; their handshakes arrive in one piece and in three.
void arrival(Stage &stage) {
    stage.say(
        "/ada",
        upgrade("/ada", "Origin: https://a.long.name.example\r\nSec-WebSocket-Protocol: chat\r\n"),
        1);
    const std::string request = upgrade("/bob");
    stage.say("/bob", request.substr(0, 20), 0);
    stage.settle("ada");
    stage.say("/bob", request.substr(20, 100), 0);
    stage.settle("the second piece");
    stage.say("/bob", request.substr(120) + frame(kText, "right behind"), 2);
    stage.settle("bob");
}

void talk(Stage &stage) {
    stage.say("/ada", frame(kText, "small") + frame(kText, "") + frame(kBinary, "\xFF\xFE"), 3);
    stage.say("/bob", kLargeFrame, 1);
    stage.settle("echoes");
    stage.say("/bob", frame(kText, "in ", 0) + frame(kPing, "amid") + frame(kPong, ""), 1);
    stage.say("/ada", frame(kText, R"({ "json": [1, "two"] })"), 1);
    stage.settle("a pong, and JSON");
    stage.say("/bob", kLargeRest, 1);
    stage.sendToAll("small, to all");
    stage.sendToAll(WSMessage::binary(kLarge));
    stage.settle("the messages to all");
}

// Visitors whose connections all end in different ways.
void departures(Stage &stage) {
    stage.say("/closes", upgrade("/closes") + frame(kText, "hello") + closeFrame(1000), 4);
    stage.say("/kicked", upgrade("/kicked") + frame(kText, "kick"), 3);
    stage.say("/unmasked", upgrade("/unmasked") + "\x81\x01x", 3);
    stage.say("/garbled", upgrade("/garbled") + frame(kText, "\xFF"), 3);
    stage.say("/greedy", upgrade("/greedy") + header(kFin | kText, 20'001), 3);
    stage.say("/page", "GET /page HTTP/1.1\r\nHost: a\r\n\r\n", 3);
    stage.say("/refused", upgrade("/refused"), 3);
    stage.say("/malformed", "GET / HTTP/1.1\nHost: a\n\n", 3);
    stage.say("/resets", upgrade("/resets"), 1);
    stage.say("/ends", upgrade("/ends"), 1);
    stage.settle("the visitors that leave");
    stage.visitor("/resets").vanish();
    stage.visitor("/ends").finish();
    ++stage.visitor("/ends").due;
    stage.settle("the end of the half-closed connection");
}

// A user does not read for a while. Then it gets everything sent to it, and the last of its pongs.
void slowReader(Stage &stage) {
    Visitor &slow = stage.visitor("/slow", 4096);
    stage.say("/slow", upgrade("/slow"), 1);
    stage.settle("the slow user");
    slow.appetite = 0;
    const std::size_t before = slow.due;
    for (char c = '0'; c < '5'; ++c) stage.sendToAll(WSMessage::binary(std::string(3000, c)));
    const std::size_t after = std::exchange(slow.due, before);
    stage.settle("the others");
    slow.say(frame(kPing, "a") + frame(kPing, "b") + frame(kText, "read"));
    stage.settle("the server to read", [&] {
        const Strings &hooks = stage.server().hooks;
        return has(joined(hooks), ": read") || !stage.server().isHere("/slow");
    });
    for (char c = '5'; c < '9'; ++c) stage.sendToAll(WSMessage::binary(std::string(3000, c)));
    slow.due += after - before + 2;
    slow.appetite = std::string::npos;
    stage.settle("the queue of the slow user");
}

// A newcomer is served; then the server stops.
void theEnd(Stage &stage) {
    stage.say("/canary", upgrade("/canary") + frame(kText, "still there?"), 2);
    stage.settle("the canary");
    for (const auto &[path, one] : stage.visitors)
        if (!one->over()) one->due += 2;
    {
        const Inside server;
        stage.server().stop();
    }
    stage.settle("the end", [&] { return !stage.running(); });
}

// How a run of the story went.
struct Outcome {
    std::map<std::string, Strings> heard;  // by each visitor
    std::map<std::string, Strings> data;   // the messages only
    std::string trouble;                   // what the server did wrong; "" if nothing
    std::string thrown;                    // by its constructor
    Strings lines;
};

bool beginsLike(const Strings &some, const Strings &all) {
    return some.size() <= all.size() && std::equal(some.begin(), some.end(), all.begin());
}

// The visitors that missed messages queued for them. If a connection is lost, the last messages
// may be missing.
std::string unheard(Stage &stage) {
    std::string paths;
    for (const auto &[path, one] : stage.visitors) {
        const Strings &accepted = stage.server().accepted[path];
        const bool lacks = one->heardClose() && one->data.size() < accepted.size();
        if (lacks || !beginsLike(one->data, accepted)) paths += ' ' + path;
    }
    return paths;
}

// Runs the whole story on a stage.
void runOn(Stage &stage, Outcome &outcome) {
    try {
        for (const auto chapter : {arrival, talk, departures, slowReader, theEnd}) chapter(stage);
    } catch (const std::exception &e) {
        outcome.trouble += e.what() + "; "s;
    }
    for (const auto &[path, one] : stage.visitors) {
        outcome.heard[path] = one->heard;
        outcome.data[path] = one->data;
    }
    const std::string broken = stage.server().brokenPairs();
    if (!broken.empty()) outcome.trouble += "hooks not in pairs: " + broken + "; ";
    if (!unheard(stage).empty()) outcome.trouble += "queued but not heard:" + unheard(stage) + "; ";
    if (!stage.server().hasEnded()) outcome.trouble += "no postShutdown; ";
    if (stage.server().userCount() != 0) outcome.trouble += "users remain; ";
    if (faults::state.descriptors.size() != 2)
        outcome.trouble += "not only the wake pipe is open; ";
    outcome.lines = stage.server().lines;
}

// Runs the story and checks what the server leaves behind.
Outcome runStory(faults::Rule rule) {
    Outcome outcome;
    faults::reset(std::move(rule));
    try {
        Stage stage;
        runOn(stage, outcome);
    } catch (const std::exception &e) {
        outcome.thrown = e.what();
    }
    if (!faults::state.descriptors.empty()) outcome.trouble += "a descriptor is left open; ";
    if (faults::state.strayCloses != 0) outcome.trouble += "closes what it has not opened; ";
    if (faults::state.addressLists != 0) outcome.trouble += "an address list is not freed; ";
    return outcome;
}

// The story without faults.
const Outcome &faultless() {
    static const Outcome outcome = runStory({});
    return outcome;
}

std::string shortened(const Strings &strings) {
    Strings some;
    for (const std::string &text : strings)
        some.push_back(text.size() < 50 ? text : std::to_string(text.size()) + " bytes");
    return joined(some);
}

// What is wrong with an outcome that may lose some visitors; "" if nothing is. Until a visitor is
// lost, it hears what it hears without faults.
std::string judge(const Outcome &outcome, std::size_t mayBeLost) {
    std::string wrong = outcome.trouble;
    if (!outcome.thrown.empty()) return wrong + "threw " + outcome.thrown;
    std::size_t lost = 0;
    std::string losses;
    for (const auto &[path, expected] : faultless().heard) {
        const auto found = outcome.heard.find(path);
        const Strings heard = found == outcome.heard.end() ? Strings() : found->second;
        if (heard == expected) continue;
        ++lost;
        losses += path + " heard: " + shortened(heard) + "; ";
        if (!heard.empty() && !beginsLike(outcome.data.at(path), faultless().data.at(path)))
            wrong += "wrong data: " + losses;
    }
    return lost > mayBeLost ? wrong + losses : wrong;
}

// ----------------------------------------------------------------------------
// Each call fails once
// ----------------------------------------------------------------------------

struct Row {
    Call call;
    std::vector<int> faults;
    std::size_t mayBeLost;  // visitors; all others hear what they hear without faults
};

// Faults that pass without harm.
const std::vector<int> kPassing = {EAGAIN, EINTR, ENOBUFS, ENOMEM, faults::kShort};

const std::vector<Row> kRows = {
    {faults::kPoll, {EINTR, EAGAIN, ENOMEM, faults::kBlind, faults::kEager}, 0},
    {faults::kRecv, kPassing, 0},
    {faults::kSend, kPassing, 0},
    {faults::kSendmsg, kPassing, 0},
    {faults::kRecv, {ECONNRESET, ETIMEDOUT}, 1},
    {faults::kSend, {ECONNRESET, EPIPE}, 1},
    {faults::kSendmsg, {ECONNRESET, EPIPE}, 1},
    // All errors of accept() in Linux and POSIX, except those of a faulty program.
    {faults::kAccept,
     {EAGAIN, EINTR, ECONNABORTED, EPROTO, EPERM, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENETDOWN,
      ENOPROTOOPT, EHOSTDOWN, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, ETIMEDOUT},
     0},
    {faults::kClose, {EINTR, EIO}, 0},
    {faults::kShutdown, {ENOTCONN, ENOBUFS}, 0},
    {faults::kSetsockopt, {EINVAL, ENOBUFS}, 0},
    {faults::kRead, {EAGAIN, EINTR}, 0},
    {faults::kWrite, {EINTR}, 0},
    {faults::kGetrlimit, {EINVAL}, 0},
};

std::string describe(Call call, std::size_t n, int fault) {
    const std::string what = fault == faults::kShort   ? "falls short"
                             : fault == faults::kBlind ? "reports nothing"
                             : fault == faults::kEager ? "reports everything"
                                                       : std::strerror(fault);
    return faults::kNames[call] + " "s + std::to_string(n) + ": " + what;
}

// How often the story without faults makes each call.
const faults::Counts &counts() {
    static const faults::Counts all = [] {
        runStory({});
        return faults::state.counts;
    }();
    return all;
}

}  // namespace

TEST_CASE("The story makes all calls, and runs the same each time") {
    CHECK(judge(faultless(), 0).empty());
    CHECK(judge(runStory({}), 0).empty());
    for (std::size_t i = 0; i < faults::kCalls; ++i) {
        INFO(std::string(faults::kNames[i]));
        const bool elsewhere =
            i == faults::kSigaction || i == faults::kSetrlimit || i == faults::kChmod;  // see below
        CHECK((counts()[i] > 0) != elsewhere);
    }
}

TEST_CASE("A call that fails or falls short costs at most its own connection") {
    for (const Row &row : kRows) {
        for (const int fault : row.faults) {
            for (std::size_t n = 1; n <= counts()[row.call]; ++n) {
                INFO(describe(row.call, n, fault));
                CHECK(judge(runStory(faults::nth(row.call, n, fault)), row.mayBeLost) == "");
            }
        }
    }
}

TEST_CASE("A failed allocation costs at most one connection, or the constructor throws") {
    for (std::size_t n = 1; n <= counts()[faults::kMemory]; ++n) {
        INFO("allocation ", n);
        const Outcome outcome = runStory(faults::nth(faults::kMemory, n, ENOMEM));
        if (outcome.thrown == std::bad_alloc().what()) CHECK(outcome.trouble == "");
        else CHECK(judge(outcome, 1) == "");
    }
}

TEST_CASE("While allocations fail, connections may be lost, but the server goes on") {
    for (const std::size_t many : {3U, 30U}) {
        for (std::size_t from = 20; from + 2 * many < counts()[faults::kMemory]; from += many) {
            INFO("allocations ", from, " to ", from + many);
            const Outcome outcome = runStory([=](Call call, std::size_t n) {
                return call == faults::kMemory && n >= from && n < from + many ? ENOMEM : 0;
            });
            CHECK(judge(outcome, faultless().heard.size()) == "");
        }
    }
}

// ----------------------------------------------------------------------------
// Many calls fail
// ----------------------------------------------------------------------------

namespace {

bool movesBytes(Call call) {
    return call == faults::kRecv || call == faults::kSend || call == faults::kSendmsg ||
           call == faults::kRead;
}

bool canWait(Call call) {
    return movesBytes(call) || call == faults::kPoll || call == faults::kAccept;
}

}  // namespace

TEST_CASE("Nothing is lost when every call falls short") {
    CHECK(judge(runStory([](Call call, std::size_t) {
                    return movesBytes(call) ? faults::kShort : faults::kWorks;
                }),
                0) == "");
}

TEST_CASE("Nothing is lost when every second call fails") {
    for (const int fault : {EINTR, EAGAIN, ENOBUFS, ENOMEM}) {
        for (const std::size_t which : {0U, 1U}) {
            INFO(std::string(std::strerror(fault)), ", calls with n % 2 == ", which);
            CHECK(judge(runStory([=](Call call, std::size_t n) {
                            return canWait(call) && n % 2 == which ? fault : faults::kWorks;
                        }),
                        0) == "");
        }
    }
}

TEST_CASE("Nothing is lost when calls fail at random") {
    for (std::uint32_t seed = 1; seed <= 40; ++seed) {
        INFO("seed ", seed);
        // A generator from Numerical Recipes, whose upper bits are good enough.
        auto random = [state = seed]() mutable {
            return (state = state * 1664525 + 1013904223) >> 24;
        };
        CHECK(judge(runStory([random](Call call, std::size_t) mutable {
                        const std::uint32_t choice = random() % 20;
                        if (choice >= kPassing.size() || !canWait(call)) return faults::kWorks;
                        if (kPassing[choice] != faults::kShort) return kPassing[choice];
                        return movesBytes(call) ? faults::kShort : faults::kBlind;
                    }),
                    0) == "");
    }
}

TEST_CASE("Nothing is lost in a storm of signals, nor when poll() reports everything or nothing") {
    CHECK(judge(runStory(faults::always(faults::kPoll, faults::kStormy)), 0) == "");
    CHECK(judge(runStory(faults::always(faults::kPoll, faults::kEager)), 0) == "");
    for (const std::size_t each : {2U, 3U})
        CHECK(judge(runStory([=](Call call, std::size_t n) {
                        return call == faults::kPoll && n % each != 0 ? faults::kBlind : 0;
                    }),
                    0) == "");
}

// ----------------------------------------------------------------------------
// Faults that last
// ----------------------------------------------------------------------------

namespace {

// The number of turns in this time when each turn may wait as long.
int turnsIn(Stage &stage, std::chrono::milliseconds time) {
    int turns = 0;
    const double skipped = faults::state.skipped;  // grows when the server sleeps
    for (const auto end = Clock::now() + time;
         Clock::now() < end && faults::state.skipped - skipped < 0.05; ++turns)
        stage.turn(time);
    return turns;
}

}  // namespace

TEST_CASE("A call that fails for a while neither makes the server spin nor costs a connection") {
    const std::vector<std::pair<Call, std::vector<int>>> rows = {
        {faults::kPoll, {ENOMEM, EINVAL, EAGAIN}},
        {faults::kRecv, {ENOBUFS, ENOMEM}},
        {faults::kSend, {ENOBUFS, ENOMEM}},
        {faults::kAccept, {EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, ENETDOWN, EOPNOTSUPP}}};
    for (const auto &[call, errors] : rows) {
        for (const int error : errors) {
            const std::string words = describe(call, 0, error);
            INFO(words);
            faults::reset();
            Stage stage([](Config &) {});
            stage.say("/ada", upgrade("/ada"), 1);
            stage.settle("ada");
            faults::state.rule = faults::always(call, error);
            stage.say("/ada", frame(kText, "hello"), 1).move();
            stage.say("/bob", upgrade("/bob"), 1).move();
            CHECK(turnsIn(stage, 50ms) < 25);
            faults::state.rule = {};
            stage.settle("the recovery");
            CHECK(stage.visitor("/ada").heard.back() == "1 hello");
            CHECK(stage.server().userCount() == 2);
        }
    }
}

namespace {

// Sends its log to its first user.
class Telltale : public Server {
    using Server::Server;
    void console(WSLevel, std::string_view text) override {
        if (userCount() > 0) sendToUser(user(1), std::string(text));
    }
};

// A turn with faults.
void turnInside(WSBaseServer &server) {
    const faults::Inside inside;
    server.turn(1ms);
}

}  // namespace

TEST_CASE("console() may send the log line about a failed write to a user") {
    faults::reset();
    Telltale server;
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 6; ++i) peers.push_back(std::make_unique<Peer>(server));
    CHECK(server.sendToAll("hello") == 6);
    faults::state.rule = faults::always(faults::kSend, ENOBUFS);
    turnInside(server);
    faults::state.rule = {};
    for (const auto &peer : peers) CHECK(peer->hear() == "text hello");
    CHECK(has(peers[0]->hear(), "text cannot send"));
    peers[0]->send(frame(kText, "and on"));
    CHECK(peers[0]->hear() == "text and on");
}

TEST_CASE("While the listeners rest, watched descriptors are served") {
    faults::reset(faults::always(faults::kAccept, EMFILE));
    Server server;
    int ends[2] = {-1, -1}, calls = 0;
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    REQUIRE(::write(ends[0], "x", 1) == 1);
    server.watch(ends[1], POLLIN, [&](short) { ++calls; });
    const Client newcomer(server);
    for (int i = 0; i < 3; ++i) turnInside(server);
    CHECK(faults::state.counts[faults::kAccept] == 1);
    CHECK(calls == 3);
    ::close(ends[0]), ::close(ends[1]);
}

TEST_CASE("A connection whose sends keep failing does not keep the listeners at rest") {
    faults::reset([](Call call, std::size_t n) {
        if (call == faults::kAccept && n == 1) return EMFILE;
        return call == faults::kSend ? ENOBUFS : faults::kWorks;
    });
    Server server;
    const Peer poor(server);
    const Client newcomer(server);
    pump(server, "the listeners to wake", [&] {
        CHECK(server.sendToUser(server.user(1), "x"));
        turnInside(server);
        return faults::state.counts[faults::kAccept] > 1;
    });
}

TEST_CASE("A storm of signals does not stop the clocks") {
    faults::reset(faults::always(faults::kPoll, faults::kStormy));
    Stage stage([](Config &config) {
        config.pingSeconds = 3;
        config.handshakeSeconds = 3;
    });
    stage.say("/ada", upgrade("/ada"), 1);
    stage.say("/trickles", "GET", 3);
    stage.say("/mute", upgrade("/mute"), 1).answersPings = false;
    stage.settle("the answers");
    stage.visitor("/mute").due = 3;
    stage.settle("all deadlines");
    CHECK(stage.visitor("/trickles").heard[0] == "HTTP/1.1 408 Request Timeout");
    CHECK(stage.visitor("/mute").over());
    CHECK(stage.server().userCount() == 1);
}

// ----------------------------------------------------------------------------
// Clocks
// ----------------------------------------------------------------------------

TEST_CASE("A clock that jumps by an hour costs no user that answers pings") {
    for (const bool pinged : {false, true}) {
        INFO("pinged: ", pinged);
        faults::reset();
        Stage stage([](Config &) {});
        for (const char *path : {"/ada", "/bob", "/eve"}) stage.say(path, upgrade(path), 1);
        stage.settle("all three");
        for (int jumps = 0; jumps < 5; ++jumps) {
            if (pinged) {
                faults::state.skipped += 21;  // pingSeconds is 20
                stage.turn(0ms);
                for (const auto &entry : stage.visitors) entry.second->move();
            }
            faults::state.skipped += 3600;
            for (const auto &entry : stage.visitors) ++entry.second->due;
            stage.settle("the pings");
        }
        CHECK(stage.server().userCount() == 3);
        stage.say("/ada", frame(kText, "hello"), 1);
        stage.settle("an echo");
    }
}

TEST_CASE("A peer that answers a Ping after its Close loses nothing that was sent to it") {
    faults::reset();
    Server server;
    Peer peer(server, "/", "", 64 * 1024);
    peer.appetite = 0;
    faults::state.skipped += 21;  // pingSeconds is 20
    turnInside(server);
    server.sendToUser(server.user(1), std::string(256 * 1024, 'x'));
    peer.step(closeFrame(1000));
    CHECK(server.userCount() == 0);
    peer.appetite = frame(kPing, "").size() - 4;  // no masking key
    CHECK(peer.hear() == "ping");
    peer.step(frame(kPong, ""));
    peer.appetite = std::string::npos;
    CHECK(peer.next().value().payload.size() == 256 * 1024);
    CHECK(joined(peer.hearAll()) == "close 1000, EOF");
}

TEST_CASE("A user whose frames wait in the server is kept, and so is a very slow reader") {
    faults::reset();
    Server server;
    server.onProcess = [&](User &user, WSMessage &msg) {
        faults::state.skipped += 0.005;  // ends the turn
        server.sendToUser(user, msg);
    };
    Peer eager(server), slow(server, "/", "", 4096);
    turnInside(server);
    faults::state.stopped = true;
    std::string messages;
    for (int i = 0; i < 400; ++i) messages += frame(kText, "hello");
    eager.step(messages);
    slow.appetite = 0;
    while (server.user(2).backlog() < 3'000'000)
        server.sendToUser(server.user(2), std::string(500'000, 'x')), server.turn(0ms);
    server.disconnect(server.user(2));
    for (int i = 0; i < 20; ++i) {
        faults::state.skipped += 4;  // pingSeconds is 20, closeSeconds 5
        slow.appetite = 150'000;     // too little for POLLOUT
        for (int k = 0; k < 50 && slow.appetite > 0; ++k) slow.receive(), ::usleep(200);
        slow.appetite = 0;
        turnInside(server);
    }
    CHECK(server.userCount() == 1);
    CHECK(slow.end.empty());
    CHECK(slow.input.size() > 2'000'000);
    for (int i = 0; i < 400; ++i) REQUIRE(eager.hear() == "text hello");
}

TEST_CASE("A peer found gone when its queue is full is not taken for a slow reader") {
    faults::reset();
    Server server([](Config &config) { config.maxQueuedBytes = 1'000'000; });
    Peer peer(server, "/", "", 4096);
    peer.appetite = 0;
    const std::string much(400'000, 'x');
    while (server.user(1).backlog() < 600'000) {
        CHECK(server.sendToUser(server.user(1), much));
        turnInside(server);
    }
    faults::state.rule = [](faults::Call call, std::size_t) {
        return call == faults::kSend || call == faults::kSendmsg ? ECONNRESET : faults::kWorks;
    };
    {
        const faults::Inside inside;
        CHECK_FALSE(server.sendToUser(server.user(1), much));
    }
    turnInside(server);
    CHECK(has(joined(server.hooks), "preDisconnect 1 1006"));
}

TEST_CASE("A client that does not read is dropped even while its requests wait in the server") {
    faults::reset();
    Server server;
    server.onProcess = [&](User &user, WSMessage &) {
        server.sendToUser(user, std::string(300'000, 'x'));
    };
    Peer peer(server, "/", "", 4096);
    peer.appetite = 0;
    std::string requests;
    for (int i = 0; i < 200; ++i) requests += frame(kText, "page");
    peer.step(requests);
    for (int i = 0; i < 20; ++i) turnInside(server);
    // Its window is closed, but the kernels probe it now and then and would move a few bytes.
    faults::state.rule = [](faults::Call call, std::size_t) {
        return call == faults::kSend || call == faults::kSendmsg ? EAGAIN : faults::kWorks;
    };
    CHECK(server.user(1).backlog() > 0);
    // pingSeconds is 20: the user is pinged, then dropped; a little later if the kernel finds room
    // for more of the queue, which looks like a sign of life.
    for (int i = 0; i < 6 && server.userCount() == 1; ++i) {
        faults::state.skipped += 21;
        turnInside(server);
    }
    CHECK(server.userCount() == 0);
    CHECK(has(joined(server.hooks), "preDisconnect 1 1006"));
}

namespace {

// A server with one busy user and 300 silent ones, and a clock that advances only with turn().
class Hall {
  public:
    Hall() : busy_(server_) {
        for (int i = 0; i < 300; ++i) silent.push_back(std::make_unique<Peer>(server_));
        server_.onProcess = [this](User &user, WSMessage &) { heard[user.id()] = turn_; };
        turn(0);
        faults::state.stopped = true;
        for (int i = 0; i < 20; ++i) turn(0.01);  // until they have been silent for 100 ms
        turn(0.01), turn(0.0001);
    }

    void turn(double seconds, bool isBusy = true) {
        ++turn_;
        faults::state.skipped += seconds;
        if (isBusy) busy_.send(frame(kText, "busy"));
        faults::state.polled = 0;
        turnInside(server_);
    }
    int turns() const { return turn_; }
    Server &server() { return server_; }

    std::vector<std::unique_ptr<Peer>> silent;  // user i + 2
    std::map<std::uint64_t, int> heard;         // the turn in which a user was last heard

  private:
    static void noPings(Config &config) { config.pingSeconds = 0; }

    Server server_{noPings};
    Peer busy_;
    int turn_ = 0;
};

}  // namespace

TEST_CASE("Silent connections are polled after 5 µs for each, however busy another one is") {
    faults::reset();
    Hall hall;
    REQUIRE((*hall.server().users().begin()).id() == 1);  // only the busy user is in front
    for (const auto &peer : hall.silent) peer->send(frame(kText, "I am here"));
    for (int i = 0; i < 13; ++i) {  // 301 * 5 µs is 1.5 ms
        hall.turn(0.0001);
        CHECK(hall.heard[1] == hall.turns());  // the busy user is served in each turn
        CHECK(hall.heard.size() == 1);
        CHECK(faults::state.polled < 10);
    }
    for (int i = 0; i < 40 && hall.heard.size() < 301; ++i) hall.turn(0.0001);
    CHECK(hall.heard.size() == 301);

    // A connection that spoke lately is in front and heard at once, until it is silent again.
    hall.silent[7]->send(frame(kText, "once more"));
    hall.turn(0.0001);
    CHECK(hall.heard[9] == hall.turns());
    for (int i = 0; i < 30; ++i) hall.turn(0.01);
    hall.turn(0.0001);
    CHECK((*hall.server().users().begin()).id() == 1);
    hall.silent[7]->send(frame(kText, "and again"));
    hall.turn(0.0001);
    CHECK(hall.heard[9] < hall.turns());
    hall.turn(0.002);
    CHECK(hall.heard[9] == hall.turns());
}

TEST_CASE("While the front is quiet, one poll() waits for all connections") {
    faults::reset();
    Hall hall;
    hall.turn(0.2, false);  // the busy user is silent as well
    hall.turn(0.2, false);
    for (std::size_t i = 0; i < 300; i += 10) {
        hall.silent[i]->send(frame(kText, "I am here"));
        hall.turn(0.06, false);  // longer than the longest time between two full polls
        CHECK(hall.heard[i + 2] == hall.turns());
        CHECK(faults::state.polled < 310);  // it was one call
    }
}

TEST_CASE("No user is passed over while others come and go and poll() is interrupted") {
    for (unsigned seed = 1; seed <= 5; ++seed) {
        CAPTURE(seed);
        faults::reset();
        Hall hall;
        std::mt19937 chance(seed);
        faults::state.rule = [&](Call call, std::size_t) {
            return call == faults::kPoll && chance() % 4 == 0 ? EINTR : faults::kWorks;
        };
        std::map<std::size_t, int> spoke;  // users not yet heard, and the turn in which they spoke
        std::vector<std::unique_ptr<Peer>> newcomers;
        for (int i = 0; i < 300; ++i) {
            if (i % 20 == 0) newcomers.push_back(std::make_unique<Peer>(hall.server()));
            const std::size_t one = chance() % 300, other = chance() % 300;
            if (hall.silent[one] && spoke.count(one) == 0) hall.silent[one].reset();
            if (hall.silent[other] && spoke.count(other) == 0) {
                hall.silent[other]->send(frame(kText, "I am here"));
                spoke[other] = hall.turns();
            }
            hall.turn(0.0004);
            for (auto entry = spoke.begin(); entry != spoke.end();) {
                const auto heard = hall.heard.find(entry->first + 2);
                const bool done = heard != hall.heard.end() && heard->second > entry->second;
                CHECK((done || hall.turns() - entry->second <= 20));
                entry = done ? spoke.erase(entry) : std::next(entry);
            }
        }
    }
}

TEST_CASE("After a hook that takes minutes, users that have answered meanwhile are kept") {
    faults::reset();
    Hall hall;
    Server &server = hall.server();
    server.config().pingSeconds = 20;
    int pings = 0;
    for (const double pause : {25.0, 300.0, 4000.0}) {
        hall.turn(25, false);
        hall.turn(1, false);  // all silent users are pinged
        server.post([&] { faults::state.skipped += pause; });
        for (const auto &peer : hall.silent) {
            peer->receive();
            pings += has(peer->input, "\x89");
            peer->taken(peer->input.size());
            peer->send(frame(kPong, ""));
        }
        hall.turn(0.001);
        for (int i = 0; i < 40; ++i) hall.turn(0.1);
        CHECK(server.userCount() == 301);
    }
    CHECK(pings >= 300);
    for (int i = 0; i < 60; ++i) hall.turn(1);  // users that do not answer are dropped
    CHECK(server.userCount() == 1);
}

TEST_CASE("Ticks are on time in a program's own loop") {
    faults::reset();
    Server server([](Config &config) { config.tickSeconds = 0.25; });
    const Peer peer(server);
    std::vector<double> ticks;
    server.onTick = [&] { ticks.push_back(faults::state.skipped); };
    turnInside(server);
    faults::state.stopped = true;
    ticks.clear();
    faults::state.skipped = 10;
    turnInside(server);
    CHECK(ticks.size() == 1);  // the program took ten seconds, so the tick is due at once
    for (int i = 0; i < 3; ++i) faults::state.skipped += 0.25, turnInside(server);
    CHECK(ticks == std::vector<double>{10, 10.25, 10.5, 10.75});
}

TEST_CASE("A clock that stands still or jumps back by a minute changes nothing") {
    for (const bool back : {false, true}) {
        for (std::size_t when = 2; when < counts()[faults::kClock]; when += 4) {
            INFO("goes back: ", back, ", at reading ", when);
            CHECK(judge(runStory([=](Call call, std::size_t n) {
                            if (call != faults::kClock || n != when) return faults::kWorks;
                            if (back) faults::state.skipped -= 60;
                            else faults::state.stopped = true;
                            return faults::kWorks;
                        }),
                        0) == "");
        }
    }
}

// ----------------------------------------------------------------------------
// Between two calls
// ----------------------------------------------------------------------------

TEST_CASE("A client that closes or resets right after poll() harms no other client") {
    const std::string whole = upgrade("/gone") + frame(kText, "hello") + frame(kPing, "");
    for (const std::size_t sent : {std::size_t{0}, std::size_t{40}, whole.size()}) {
        for (const bool reset : {true, false}) {
            for (int turns = 0; turns < 3; ++turns) {
                INFO(sent, " bytes, after ", turns, " turns, reset: ", reset);
                faults::reset();
                {
                    Stage stage;
                    stage.say("/ada", upgrade("/ada"), 1);
                    stage.settle("ada");
                    Visitor &gone = stage.say("/gone", whole.substr(0, sent), 0);
                    gone.move();
                    for (int i = 0; i < turns; ++i) stage.turn(1ms);
                    gone.say(frame(kText, "once more"));
                    gone.move();
                    faults::state.afterPoll = [&] { reset ? gone.vanish() : gone.close(); };
                    stage.turn(1ms);
                    faults::state.afterPoll = {};
                    stage.sendToAll("hello");
                    stage.settle("the hello",
                                 [&] { return faults::state.descriptors.size() == 4; });
                    CHECK(stage.server().userCount() == 1);
                    CHECK(stage.server().brokenPairs() == "/ada ");  // still connected
                }
                CHECK(faults::state.descriptors.empty());
            }
        }
    }
}

// ----------------------------------------------------------------------------
// At the start
// ----------------------------------------------------------------------------

constexpr std::size_t kPipeFcntls = 4;  // makes both ends of the wake pipe what they should be

TEST_CASE("An error at the start is reported with its cause, and nothing is left open") {
    const std::vector<std::pair<Call, int>> rows = {
        {faults::kPipe, EMFILE},         {faults::kSocket, EMFILE},
        {faults::kSocket, ENOBUFS},      {faults::kBind, EACCES},
        {faults::kListen, EACCES},       {faults::kFcntl, EINVAL},
        {faults::kGetsockname, ENOBUFS}, {faults::kGetaddrinfo, EAI_AGAIN}};
    for (const auto &[call, error] : rows) {
        for (std::size_t n = 1; n <= 4 + kPipeFcntls; ++n) {
            const bool isPipe =
                call == faults::kPipe || (call == faults::kFcntl && n <= kPipeFcntls);
            const std::string words = describe(call, n, error);
            INFO(words);
            faults::reset(faults::nth(call, n, error));
            std::string thrown;
            try {
                const Stage stage([](Config &config) { config.address = "localhost"; });
            } catch (const std::exception &e) {
                thrown = e.what();
            }
            const bool failed = faults::state.counts[call] >= n;  // else there were fewer calls
            const bool byName = call == faults::kGetaddrinfo;
            CHECK(has(thrown, byName ? ::gai_strerror(error) : std::strerror(error)) == failed);
            CHECK(has(thrown, isPipe ? "pipe" : "\"localhost\"") == failed);
            CHECK(faults::state.descriptors.empty());
            CHECK(faults::state.strayCloses == 0);
            CHECK(faults::state.addressLists == 0);
        }
    }
}

namespace {

// The error message when a call fails at the start; "" if the server starts. Checks that nothing
// is left open.
std::string complaintIf(Call call, std::size_t n, int error, const Server::Change &change) {
    faults::reset(faults::nth(call, n, error));
    std::string thrown;
    try {
        const Stage stage(change);
    } catch (const std::exception &e) {
        thrown = e.what();
    }
    CHECK(faults::state.descriptors.empty());
    CHECK(faults::state.strayCloses == 0);
    return thrown;
}

}  // namespace

TEST_CASE("An error at the start of a Unix socket is reported, and no file is left") {
    const std::string path = "/tmp/ws" + std::to_string(::getpid());
    const auto change = [&](Config &config) { config.address = "unix:" + path; };
    const std::vector<std::pair<Call, int>> rows = {
        {faults::kSocket, EMFILE}, {faults::kFcntl, EINVAL}, {faults::kBind, EACCES},
        {faults::kChmod, EPERM},   {faults::kListen, EPERM}, {faults::kGetsockname, ENOBUFS}};
    for (const auto &[call, error] : rows) {
        const std::size_t n = call == faults::kFcntl ? kPipeFcntls + 1 : 1;
        const std::string words = describe(call, n, error);
        INFO(words);
        const std::string thrown = complaintIf(call, n, error, change);
        CHECK(has(thrown, std::strerror(error)));
        CHECK(has(thrown, path));
        CHECK(::access(path.c_str(), F_OK) != 0);
    }
    // The first error is reported, even if the file is gone when it is to be removed.
    faults::reset([&](Call call, std::size_t) {
        return call == faults::kChmod && ::unlink(path.c_str()) == 0 ? EPERM : faults::kWorks;
    });
    CHECK_THROWS_WITH(Stage{change}, doctest::Contains(std::strerror(EPERM)));
    // A server that cannot be probed is taken to be alive.
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    ::close(fd);
    CHECK(has(complaintIf(faults::kSocket, 2, EMFILE, change), std::strerror(EADDRINUSE)));
    CHECK(has(complaintIf(faults::kFcntl, kPipeFcntls + 3, EINVAL, change),
              std::strerror(EADDRINUSE)));
    CHECK(complaintIf(faults::kChmod, 2, EPERM, change).empty());
    CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("An error at the start with listenFd or reusePort is reported") {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(::listen(fd, 1) == 0);
    const auto change = [&](Config &config) { config.listenFd = fd; };
    for (const std::size_t n : {1U, 2U}) {
        const std::string thrown = complaintIf(faults::kFcntl, kPipeFcntls + n, EMFILE, change);
        CHECK(has(thrown, "listenFd " + std::to_string(fd)));
        CHECK(has(thrown, std::strerror(EMFILE)));
    }
    CHECK(complaintIf(faults::kFcntl, 99, EMFILE, change).empty());
    ::close(fd);
    const auto shared = [](Config &config) { config.reusePort = true; };
    CHECK(
        has(complaintIf(faults::kSetsockopt, 2, ENOPROTOOPT, shared), std::strerror(ENOPROTOOPT)));
    CHECK(complaintIf(faults::kSetsockopt, 99, ENOPROTOOPT, shared).empty());
}

TEST_CASE("If its port is taken meanwhile, the server tries another one, but not forever") {
    faults::reset(faults::nth(faults::kBind, 1, EADDRINUSE));
    CHECK(Stage().server().port() > 0);
    faults::reset(faults::always(faults::kBind, EADDRINUSE));
    CHECK_THROWS_AS(Stage(), std::runtime_error);
    CHECK(faults::state.descriptors.empty());
}

TEST_CASE("A limit on open files that cannot be raised is logged") {
    rlimit before{};
    ::getrlimit(RLIMIT_NOFILE, &before);
    const rlimit low{512, before.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &low);
    faults::reset(faults::always(faults::kSetrlimit, EPERM));
    {
        Stage stage;
        CHECK(stage.server().printed("only 512 files may be open"));
        stage.say("/ada", upgrade("/ada"), 1);
        stage.settle("ada");
    }
    ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST_CASE("stopOn() leaves no handler behind when it runs out of memory") {
    for (std::size_t n = 1; n <= 2; ++n) {
        Server server;
        faults::reset(faults::nth(faults::kMemory, n, ENOMEM));
        bool threw = false;
        {
            const Inside inside;
            try {
                server.stopOn({SIGUSR1, SIGUSR2});
            } catch (const std::bad_alloc &) {
                threw = true;
            }
        }
        CHECK((threw || n > 1));
        struct sigaction now {};
        ::sigaction(SIGUSR1, nullptr, &now);
        CHECK((now.sa_handler == SIG_DFL) == threw);
    }
}

TEST_CASE("An answer that fails for lack of memory is not counted") {
    int answered = 0;
    for (std::size_t n = 1; n <= 30; ++n) {
        CAPTURE(n);
        Server server;
        Client client(server);
        pump(server, "the connection", [&] { return server.stats().pending == 1; });
        client.send("garbage\r\n\r\n");
        faults::reset(faults::nth(faults::kMemory, n, ENOMEM));
        for (int i = 0; i < 3; ++i) turnInside(server);
        faults::reset();
        client.finish();
        client.wait("the end", [&] { return !client.end.empty(); });
        CHECK(server.stats().answers[400] <= has(client.input, " 400 "));
        answered += has(client.input, " 400 ");
    }
    CHECK(answered > 0);
    CHECK(answered < 30);
}

TEST_CASE("stopOn() throws if sigaction() fails, and may be called again") {
    faults::reset(faults::nth(faults::kSigaction, 1, EINVAL));
    Stage stage;
    const Inside server;
    CHECK_THROWS_AS(stage.server().stopOn({SIGUSR1}), std::system_error);
    stage.server().stopOn({SIGUSR1});
    ::raise(SIGUSR1);
    CHECK_FALSE(stage.turn(0ms));
}
