// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// One story with all that can happen to a server is told again and again, and each time
// another of the server's system calls fails or comes short, or memory can not be had: see
// faults.h. Then what makes trouble for longer: storms of signals, no memory for poll(),
// accept() that fails, clocks that jump.

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
    config.pingSeconds = 0;  // or the story would not be the same each time
}

constexpr std::size_t kPageSize = 3000;  // of HTTP; a large message has three times as much

// Echoes what it is sent, but for "kick"; JSON is written anew. Knows users by the path they
// came with.
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
    std::map<std::string, Strings> accepted;  // what was queued for whom, by postSend()

    // Those whose hooks did not come in pairs; "" if there is nobody.
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
        const int small = 4096;  // who does not read is noticed the sooner
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

// A client that never waits, and notes what it hears: the first line of the answer to its
// request, then frames or the body, and how it ended. It answers a Close with the same.
class Visitor : public Client {
  public:
    using Client::Client;

    Strings heard;  // such as "HTTP/1.1 101 Switching Protocols", "1 hello", "8 …", "EOF"
    Strings data;   // the payloads of text and binary alone
    bool answersPings = true;
    std::size_t due = 0;  // how many of `heard` the story waits for

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

    // Sends and receives what can be; whether there was any.
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
        const std::size_t header = byte(1) < 126 ? 2 : 4;  // nothing is longer in this story
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

// The server, those who are there, and the time: it skips a second when nobody has anything
// to say, for a deadline may be what is waited for.
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

    // Somebody comes, or is there already.
    Visitor &visitor(const std::string &path, int receiveBuffer = 0) {
        std::unique_ptr<Visitor> &one = visitors[path];
        if (!one) one = std::make_unique<Visitor>(subject_->port(), receiveBuffer);
        return *one;
    }

    // Somebody says something, and will be answered with so much.
    Visitor &say(const std::string &path, std::string_view bytes, std::size_t answers) {
        Visitor &one = visitor(path);
        one.say(bytes);
        one.due += answers;
        return one;
    }

    // The server sends something to everybody.
    void sendToAll(const WSMessage &msg) {
        for (const auto &[path, one] : visitors)
            if (one->isUser()) ++one->due;
        const Inside server;
        subject_->sendToAll(msg);
    }

    // All say what they have to say and hear what they wait for, and `done` is so.
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
                throw std::runtime_error("waited in vain for "s + what + waiting());
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
    static constexpr int kIdleTurns = 10;  // of a millisecond: the kernel may need some

    bool moveAll() {
        bool moved = false;
        for (const auto &entry : visitors) moved = entry.second->move() || moved;
        return moved;
    }

    // Who has not heard all.
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

// Two who stay, in one piece and in three.
void theyCome(Stage &stage) {
    stage.say("/ada", upgrade("/ada", "Sec-WebSocket-Protocol: chat\r\n"), 1);
    const std::string request = upgrade("/bob");
    stage.say("/bob", request.substr(0, 20), 0);
    stage.settle("ada");
    stage.say("/bob", request.substr(20, 100), 0);
    stage.settle("the second piece");
    stage.say("/bob", request.substr(120) + frame(kText, "right behind"), 2);
    stage.settle("bob");
}

void theyTalk(Stage &stage) {
    stage.say("/ada", frame(kText, "small") + frame(kText, "") + frame(kBinary, "\xFF\xFE"), 3);
    stage.say("/bob", kLargeFrame, 1);
    stage.settle("echoes");
    stage.say("/bob", frame(kText, "in ", 0) + frame(kPing, "amid") + frame(kPong, ""), 1);
    stage.say("/ada", frame(kText, R"({ "json": [1, "two"] })"), 1);
    stage.settle("a pong, and JSON");
    stage.say("/bob", kLargeRest, 1);
    stage.sendToAll("small, to all");
    stage.sendToAll(WSMessage::binary(kLarge));
    stage.settle("what is sent to all");
}

// Those who come to go: each in a way of its own.
void theyGo(Stage &stage) {
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
    stage.settle("those who go");
    stage.visitor("/resets").vanish();
    stage.visitor("/ends").finish();
    ++stage.visitor("/ends").due;
    stage.settle("the end of one who shut down");
}

// One does not read for a while: it gets all that was sent, and then the last of its pongs.
void oneIsSlow(Stage &stage) {
    Visitor &slow = stage.visitor("/slow", 4096);
    stage.say("/slow", upgrade("/slow"), 1);
    stage.settle("the slow one");
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
    stage.settle("what waited for the slow one");
}

// A newcomer is served, and all is brought to its end.
void itEnds(Stage &stage) {
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

// How it went.
struct Told {
    std::map<std::string, Strings> heard;  // by visitors
    std::map<std::string, Strings> data;   // the messages alone
    std::string trouble;                   // with the server: "" is none
    std::string thrown;                    // by its constructor
    Strings lines;
};

bool beginsLike(const Strings &some, const Strings &all) {
    return some.size() <= all.size() && std::equal(some.begin(), some.end(), all.begin());
}

// Who did not hear what was accepted for them: all of it, or as much as came before they
// were lost.
std::string unheard(Stage &stage) {
    std::string paths;
    for (const auto &[path, one] : stage.visitors) {
        const Strings &accepted = stage.server().accepted[path];
        const bool lacks = one->heardClose() && one->data.size() < accepted.size();
        if (lacks || !beginsLike(one->data, accepted)) paths += ' ' + path;
    }
    return paths;
}

// Tells the whole story on a stage.
void tellOn(Stage &stage, Told &told) {
    try {
        for (const auto chapter : {theyCome, theyTalk, theyGo, oneIsSlow, itEnds}) chapter(stage);
    } catch (const std::exception &e) {
        told.trouble += e.what() + "; "s;
    }
    for (const auto &[path, one] : stage.visitors) {
        told.heard[path] = one->heard;
        told.data[path] = one->data;
    }
    const std::string broken = stage.server().brokenPairs();
    if (!broken.empty()) told.trouble += "hooks are no pairs: " + broken + "; ";
    if (!unheard(stage).empty()) told.trouble += "accepted, not heard:" + unheard(stage) + "; ";
    if (!stage.server().hasEnded()) told.trouble += "no postShutdown; ";
    if (stage.server().userCount() != 0) told.trouble += "users are left; ";
    if (faults::state.descriptors.size() != 2) told.trouble += "more open than the wake pipe; ";
    told.lines = stage.server().lines;
}

// And looks at what is left of it.
Told tell(faults::Rule rule) {
    Told told;
    faults::reset(std::move(rule));
    try {
        Stage stage;
        tellOn(stage, told);
    } catch (const std::exception &e) {
        told.thrown = e.what();
    }
    if (!faults::state.descriptors.empty()) told.trouble += "a descriptor is left open; ";
    if (faults::state.strayCloses != 0) told.trouble += "closes what it has not; ";
    if (faults::state.addressLists != 0) told.trouble += "a list of addresses is left; ";
    return told;
}

// The story as it should be.
const Told &truth() {
    static const Told told = tell({});
    return told;
}

std::string shortened(const Strings &strings) {
    Strings some;
    for (const std::string &text : strings)
        some.push_back(text.size() < 50 ? text : std::to_string(text.size()) + " bytes");
    return joined(some);
}

// What is wrong with a story in which so many visitors may be lost; "" if it is nothing. Who
// is lost has heard the truth up to there.
std::string judge(const Told &told, std::size_t mayBeLost) {
    std::string wrong = told.trouble;
    if (!told.thrown.empty()) return wrong + "threw " + told.thrown;
    std::size_t lost = 0;
    std::string losses;
    for (const auto &[path, truly] : truth().heard) {
        const auto found = told.heard.find(path);
        const Strings heard = found == told.heard.end() ? Strings() : found->second;
        if (heard == truly) continue;
        ++lost;
        losses += path + " heard: " + shortened(heard) + "; ";
        if (!heard.empty() && !beginsLike(told.data.at(path), truth().data.at(path)))
            wrong += "untrue: " + losses;
    }
    return lost > mayBeLost ? wrong + losses : wrong;
}

// ----------------------------------------------------------------------------
// Each call fails once
// ----------------------------------------------------------------------------

struct Row {
    Call call;
    std::vector<int> faults;
    std::size_t mayBeLost;  // visitors; all others hear what they do in the true story
};

// What passes, or concerns nobody.
const std::vector<int> kPassing = {EAGAIN, EINTR, ENOBUFS, ENOMEM, faults::kShort};

const std::vector<Row> kRows = {
    {faults::kPoll, {EINTR, EAGAIN, ENOMEM, faults::kBlind, faults::kEager}, 0},
    {faults::kRecv, kPassing, 0},
    {faults::kSend, kPassing, 0},
    {faults::kSendmsg, kPassing, 0},
    {faults::kRecv, {ECONNRESET, ETIMEDOUT}, 1},
    {faults::kSend, {ECONNRESET, EPIPE}, 1},
    {faults::kSendmsg, {ECONNRESET, EPIPE}, 1},
    // All that Linux and POSIX have for accept(), but for what a program does wrong.
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

std::string inWords(Call call, std::size_t n, int fault) {
    const std::string what = fault == faults::kShort   ? "comes short"
                             : fault == faults::kBlind ? "sees nobody"
                             : fault == faults::kEager ? "sees everybody"
                                                       : std::strerror(fault);
    return faults::kNames[call] + " "s + std::to_string(n) + ": " + what;
}

// How often the true story makes each call.
const faults::Counts &counts() {
    static const faults::Counts all = [] {
        tell({});
        return faults::state.counts;
    }();
    return all;
}

}  // namespace

TEST_CASE("The story makes all calls, and is the same each time") {
    CHECK(judge(truth(), 0).empty());
    CHECK(judge(tell({}), 0).empty());
    for (std::size_t i = 0; i < faults::kCalls; ++i) {
        INFO(std::string(faults::kNames[i]));
        const bool elsewhere =
            i == faults::kSigaction || i == faults::kSetrlimit || i == faults::kChmod;  // see below
        CHECK((counts()[i] > 0) != elsewhere);
    }
}

TEST_CASE("Whichever call fails or comes short: nothing is lost but the connection it was for") {
    for (const Row &row : kRows) {
        for (const int fault : row.faults) {
            for (std::size_t n = 1; n <= counts()[row.call]; ++n) {
                INFO(inWords(row.call, n, fault));
                CHECK(judge(tell(faults::nth(row.call, n, fault)), row.mayBeLost) == "");
            }
        }
    }
}

TEST_CASE(
    "Whichever piece of memory can not be had: one connection is lost, or nobody comes to be") {
    for (std::size_t n = 1; n <= counts()[faults::kMemory]; ++n) {
        INFO("allocation ", n);
        const Told told = tell(faults::nth(faults::kMemory, n, ENOMEM));
        if (told.thrown == std::bad_alloc().what()) CHECK(told.trouble == "");
        else CHECK(judge(told, 1) == "");
    }
}

TEST_CASE("While no memory can be had everybody may be lost, but the server goes on") {
    for (const std::size_t many : {3U, 30U}) {
        for (std::size_t from = 20; from + 2 * many < counts()[faults::kMemory]; from += many) {
            INFO("allocations ", from, " to ", from + many);
            const Told told = tell([=](Call call, std::size_t n) {
                return call == faults::kMemory && n >= from && n < from + many ? ENOMEM : 0;
            });
            CHECK(judge(told, truth().heard.size()) == "");
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

TEST_CASE("Nothing is lost if every call comes short") {
    CHECK(judge(tell([](Call call, std::size_t) {
                    return movesBytes(call) ? faults::kShort : faults::kWorks;
                }),
                0) == "");
}

TEST_CASE("Nothing is lost if every second call fails") {
    for (const int fault : {EINTR, EAGAIN, ENOBUFS, ENOMEM}) {
        for (const std::size_t which : {0U, 1U}) {
            INFO(std::string(std::strerror(fault)), ", the calls ", which, " of 2");
            CHECK(judge(tell([=](Call call, std::size_t n) {
                            return canWait(call) && n % 2 == which ? fault : faults::kWorks;
                        }),
                        0) == "");
        }
    }
}

TEST_CASE("Nothing is lost if calls fail in any way, at random") {
    for (std::uint32_t seed = 1; seed <= 40; ++seed) {
        INFO("seed ", seed);
        // (A generator of Numerical Recipes, of which the upper bits are good enough.)
        auto random = [state = seed]() mutable {
            return (state = state * 1664525 + 1013904223) >> 24;
        };
        CHECK(judge(tell([random](Call call, std::size_t) mutable {
                        const std::uint32_t choice = random() % 20;
                        if (choice >= kPassing.size() || !canWait(call)) return faults::kWorks;
                        if (kPassing[choice] != faults::kShort) return kPassing[choice];
                        return movesBytes(call) ? faults::kShort : faults::kBlind;
                    }),
                    0) == "");
    }
}

TEST_CASE("Nothing is lost in a storm of signals, nor if nobody or everybody seems to be ready") {
    CHECK(judge(tell(faults::always(faults::kPoll, faults::kStormy)), 0) == "");
    CHECK(judge(tell(faults::always(faults::kPoll, faults::kEager)), 0) == "");
    for (const std::size_t each : {2U, 3U})
        CHECK(judge(tell([=](Call call, std::size_t n) {
                        return call == faults::kPoll && n % each != 0 ? faults::kBlind : 0;
                    }),
                    0) == "");
}

// ----------------------------------------------------------------------------
// What lasts
// ----------------------------------------------------------------------------

namespace {

// How many turns the server takes in a while, when it need not hurry.
int turnsIn(Stage &stage, std::chrono::milliseconds time) {
    int turns = 0;
    const double skipped = faults::state.skipped;  // by the server, when it rests
    for (const auto end = Clock::now() + time;
         Clock::now() < end && faults::state.skipped - skipped < 0.05; ++turns)
        stage.turn(time);
    return turns;
}

}  // namespace

TEST_CASE("What fails for a while makes nobody spin, and nobody is lost") {
    const std::vector<std::pair<Call, std::vector<int>>> rows = {
        {faults::kPoll, {ENOMEM, EINVAL, EAGAIN}},
        {faults::kRecv, {ENOBUFS, ENOMEM}},
        {faults::kSend, {ENOBUFS, ENOMEM}},
        {faults::kAccept, {EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, ENETDOWN, EOPNOTSUPP}}};
    for (const auto &[call, errors] : rows) {
        for (const int error : errors) {
            const std::string words = inWords(call, 0, error);
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
            stage.settle("all to be as it was");
            CHECK(stage.visitor("/ada").heard.back() == "1 hello");
            CHECK(stage.server().userCount() == 2);
        }
    }
}

namespace {

// Sends what is logged to its first user.
class Telltale : public Server {
    using Server::Server;
    void console(WSLevel, std::string_view text) override {
        if (userCount() > 0) sendToUser(user(1), std::string(text));
    }
};

// One turn of a server, with faults.
void turnInside(WSBaseServer &server) {
    const faults::Inside inside;
    server.turn(1ms);
}

}  // namespace

TEST_CASE("What the log says of a write that failed may be sent to somebody") {
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

TEST_CASE("While the listeners rest, what is watched goes on") {
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

TEST_CASE("Who has no memory again and again does not keep the others at rest") {
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

TEST_CASE("A clock that jumps by an hour costs nobody who answers pings") {
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

TEST_CASE("Who waits for us to read on is not given up, nor who takes a little now and then") {
    faults::reset();
    Server server;
    server.onProcess = [&](User &user, WSMessage &msg) {
        faults::state.skipped += 0.005;  // a turn's time
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

TEST_CASE("Who turns out to be gone when its queue is full is not taken for a slow reader") {
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

TEST_CASE("Who does not read is given up, although its requests wait here") {
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
    // Its window is closed; but now and then the kernels probe it, and move a little.
    faults::state.rule = [](faults::Call call, std::size_t) {
        return call == faults::kSend || call == faults::kSendmsg ? EAGAIN : faults::kWorks;
    };
    CHECK(server.user(1).backlog() > 0);
    // pingSeconds is 20: it is pinged, then lost; a little later if the kernel finds some more
    // place for what is queued, which looks like a sign of life.
    for (int i = 0; i < 6 && server.userCount() == 1; ++i) {
        faults::state.skipped += 21;
        turnInside(server);
    }
    CHECK(server.userCount() == 0);
    CHECK(has(joined(server.hooks), "preDisconnect 1 1006"));
}

namespace {

// A server with one busy user and 300 silent ones, and a clock that stands still but for what
// a turn takes.
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

TEST_CASE("Silent connections are looked at after 5 us for each, however busy another one is") {
    faults::reset();
    Hall hall;
    REQUIRE((*hall.server().users().begin()).id() == 1);  // the front is the busy one
    for (const auto &peer : hall.silent) peer->send(frame(kText, "I am here"));
    for (int i = 0; i < 13; ++i) {  // 301 * 5 us are 1.5 ms
        hall.turn(0.0001);
        CHECK(hall.heard[1] == hall.turns());  // the busy one is served in each turn
        CHECK(hall.heard.size() == 1);
        CHECK(faults::state.polled < 10);
    }
    for (int i = 0; i < 40 && hall.heard.size() < 301; ++i) hall.turn(0.0001);
    CHECK(hall.heard.size() == 301);

    // A connection that spoke lately is in front, and heard at once; until it is silent again.
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

TEST_CASE("While the front is quiet, one poll() sleeps over all, and hears whoever speaks") {
    faults::reset();
    Hall hall;
    hall.turn(0.2, false);  // the busy one is silent, too
    hall.turn(0.2, false);
    for (std::size_t i = 0; i < 300; i += 10) {
        hall.silent[i]->send(frame(kText, "I am here"));
        hall.turn(0.06, false);  // longer than the longest time between two looks
        CHECK(hall.heard[i + 2] == hall.turns());
        CHECK(faults::state.polled < 310);  // it was one call
    }
}

TEST_CASE("Whoever comes and goes, and however poll() is interrupted, nobody is passed over") {
    for (unsigned seed = 1; seed <= 5; ++seed) {
        CAPTURE(seed);
        faults::reset();
        Hall hall;
        std::mt19937 chance(seed);
        faults::state.rule = [&](Call call, std::size_t) {
            return call == faults::kPoll && chance() % 4 == 0 ? EINTR : faults::kWorks;
        };
        std::map<std::size_t, int> spoke;  // who waits to be heard, and since which turn
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

TEST_CASE("After a hook that took minutes nobody is dropped who has answered meanwhile") {
    faults::reset();
    Hall hall;
    Server &server = hall.server();
    server.config().pingSeconds = 20;
    int pings = 0;
    for (const double pause : {25.0, 300.0, 4000.0}) {
        hall.turn(25, false);
        hall.turn(1, false);  // all that are silent are pinged
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
    for (int i = 0; i < 60; ++i) hall.turn(1);  // and those that have not are
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
    CHECK(ticks.size() == 1);  // the program took ten seconds: the tick comes at once
    for (int i = 0; i < 3; ++i) faults::state.skipped += 0.25, turnInside(server);
    CHECK(ticks == std::vector<double>{10, 10.25, 10.5, 10.75});
}

TEST_CASE("A clock that stands still, or goes back by a minute, changes nothing") {
    for (const bool back : {false, true}) {
        for (std::size_t when = 2; when < counts()[faults::kClock]; when += 4) {
            INFO("goes back: ", back, ", at reading ", when);
            CHECK(judge(tell([=](Call call, std::size_t n) {
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

TEST_CASE("Who resets the connection between poll() and what it leads to harms nobody") {
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
                    CHECK(stage.server().brokenPairs() == "/ada ");  // who is still there
                }
                CHECK(faults::state.descriptors.empty());
            }
        }
    }
}

// ----------------------------------------------------------------------------
// At the start
// ----------------------------------------------------------------------------

TEST_CASE("What fails at the start is named, and nothing is left open") {
    const std::vector<std::pair<Call, int>> rows = {
        {faults::kPipe, EMFILE},         {faults::kSocket, EMFILE},
        {faults::kSocket, ENOBUFS},      {faults::kBind, EACCES},
        {faults::kListen, EACCES},       {faults::kFcntl, EINVAL},
        {faults::kGetsockname, ENOBUFS}, {faults::kGetaddrinfo, EAI_AGAIN}};
    for (const auto &[call, error] : rows) {
        for (std::size_t n = 1; n <= 4; ++n) {
            const std::string words = inWords(call, n, error);
            INFO(words);
            faults::reset(faults::nth(call, n, error));
            std::string thrown;
            try {
                const Stage stage([](Config &config) { config.address = "localhost"; });
            } catch (const std::exception &e) {
                thrown = e.what();
            }
            const bool failed = faults::state.counts[call] >= n;  // else it was not called so often
            const bool byName = call == faults::kGetaddrinfo;
            CHECK(has(thrown, byName ? ::gai_strerror(error) : std::strerror(error)) == failed);
            CHECK(has(thrown, call == faults::kPipe ? "pipe" : "\"localhost\"") == failed);
            CHECK(faults::state.descriptors.empty());
            CHECK(faults::state.strayCloses == 0);
            CHECK(faults::state.addressLists == 0);
        }
    }
}

namespace {

// What the start complains of when a call fails; "" if it does not. Nothing is left open.
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

TEST_CASE("What fails at the start of a Unix socket is named, and no file is left") {
    const std::string path = "/tmp/ws" + std::to_string(::getpid());
    const auto change = [&](Config &config) { config.address = "unix:" + path; };
    const std::vector<std::pair<Call, int>> rows = {
        {faults::kSocket, EMFILE}, {faults::kFcntl, EINVAL}, {faults::kBind, EACCES},
        {faults::kChmod, EPERM},   {faults::kListen, EPERM}, {faults::kGetsockname, ENOBUFS}};
    for (const auto &[call, error] : rows) {
        const std::string words = inWords(call, 1, error);
        INFO(words);
        const std::string thrown = complaintIf(call, 1, error, change);
        CHECK(has(thrown, std::strerror(error)));
        CHECK(has(thrown, path));
        CHECK(::access(path.c_str(), F_OK) != 0);
    }
    // A file that is gone when it is to be removed is not what was wrong.
    faults::reset([&](Call call, std::size_t) {
        return call == faults::kChmod && ::unlink(path.c_str()) == 0 ? EPERM : faults::kWorks;
    });
    CHECK_THROWS_WITH(Stage{change}, doctest::Contains(std::strerror(EPERM)));
    // Who can not be asked whether it lives is taken to.
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    ::close(fd);
    CHECK(has(complaintIf(faults::kSocket, 2, EMFILE, change), std::strerror(EADDRINUSE)));
    CHECK(has(complaintIf(faults::kFcntl, 3, EINVAL, change), std::strerror(EADDRINUSE)));
    CHECK(complaintIf(faults::kChmod, 2, EPERM, change).empty());
    CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("What fails at the start with listenFd or reusePort is named") {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(::listen(fd, 1) == 0);
    const auto change = [&](Config &config) { config.listenFd = fd; };
    for (const std::size_t n : {1U, 2U}) {
        const std::string thrown = complaintIf(faults::kFcntl, n, EMFILE, change);
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

TEST_CASE("A port that is taken in the meantime makes it try another one, but not for ever") {
    faults::reset(faults::nth(faults::kBind, 1, EADDRINUSE));
    CHECK(Stage().server().port() > 0);
    faults::reset(faults::always(faults::kBind, EADDRINUSE));
    CHECK_THROWS_AS(Stage(), std::runtime_error);
    CHECK(faults::state.descriptors.empty());
}

TEST_CASE("A limit of open files that can not be raised is warned of") {
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

TEST_CASE("stopOn() leaves no handler behind if there is no memory") {
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

TEST_CASE("What could not be answered for lack of memory is not counted") {
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

TEST_CASE("stopOn() throws if the system does not let it, and may be called again") {
    faults::reset(faults::nth(faults::kSigaction, 1, EINVAL));
    Stage stage;
    const Inside server;
    CHECK_THROWS_AS(stage.server().stopOn({SIGUSR1}), std::system_error);
    stage.server().stopOn({SIGUSR1});
    ::raise(SIGUSR1);
    CHECK_FALSE(stage.turn(0ms));
}
