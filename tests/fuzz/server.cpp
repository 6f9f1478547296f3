// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Fuzzes the whole server, over a kernel in memory (kernel.h). Peers send, stall, reset and
// vanish; calls fail and come short; hooks send, disconnect, refuse and throw. Whatever
// happens, hooks must come in pairs, ids and descriptors must be used once, accepted messages
// must be sent in order, posted functions must be called, output must be HTTP and frames, and
// the server must stop.
//
// Input: a byte that chooses the configuration, then events.

#include "kernel.h"
#include "reference.h"

#include <deque>
#include <map>

namespace {

struct FuzzConfig : WSBaseConfig {
    explicit FuzzConfig(unsigned choice) {
        const auto chosen = [&](unsigned bit) { return (choice >> bit & 1) != 0; };
        port = 0;
        readingTheClockTakesTime = chosen(0);  // as on a slow processor
        maxQueuedBytes = chosen(1) ? 512 : 64 * 1024;
        maxMessagesPerSecond = chosen(2) ? 4 : 0;
        maxUsersPerAddress = chosen(3) ? 2 : 0;
        tickSeconds = chosen(3) ? 0.7 : 0;
        if (chosen(4)) uniqueOrigin = {"https://b.example"};
        requireOrigin = chosen(4);
        maxPending = chosen(5) ? 2 : 8;
        maxFragments = 4;
        maxMessageBytes = 5000;
        maxRequestBytes = 400;
        lowMarkBytes = 256;
        maxUsers = 3;
        handshakeSeconds = closeSeconds = 4;
        pingSeconds = chosen(6) ? 0 : 5;
        shutdownSeconds = 3;
        protocols = {"v2"};
    }
    bool readingTheClockTakesTime;
};

struct FuzzUser : WSBaseUser {
    FuzzUser() { maxIdle = 30; }
};

// What hooks and the results of sends tell about a user.
struct Story {
    enum Stage { arriving, refused, connected, leaving, gone } stage = arriving;
    std::uint64_t id = 0;
    std::vector<std::pair<bool, std::string>> received, accepted;  // binary or not, payload
};

class FuzzServer : public WebSocketServer<FuzzUser, FuzzConfig> {
  public:
    using WebSocketServer::WebSocketServer;

    std::deque<unsigned> actions;
    const std::map<int, Story> &stories() const { return stories_; }  // by descriptor
    void checkEnded() const {
        std::uint64_t users = 0;
        for (const auto &[fd, story] : stories_) {
            check(story.stage == Story::refused || story.stage == Story::gone,
                  "each user gets all its hooks");
            users += story.stage == Story::gone;
        }
        for (const auto &[code, times] : stats().disconnects) users -= times;
        check(users == 0 && stats().users == 0 && stats().pending == 0, "all ends are counted");
    }

  private:
    // --- hooks, which check that they come in order ---------------------------------------

    void preConnect(FuzzUser &user, int socket) override {
        check(open(socket) && user.socket() == socket, "a newcomer has a socket");
        check(user.id() > lastId_, "ids are never reused");
        check(user.request().method() == "GET" && !user.request().path().empty(),
              "a user has a request");
        check(arriving_ == nullptr && leaving_ == nullptr, "no other hook comes between a pair");
        lastId_ = user.id();
        check(stories_.count(socket) == 0, "a connection has one user");
        Story &story = stories_[socket];
        story.id = user.id();
        story.stage = Story::refused;  // unless act() returns and does not refuse
        arriving_ = &story;
        refused_ = false;
        inPreConnect_ = true;
        const ScopeEnd end{[&] {
            inPreConnect_ = false;
            if (story.stage == Story::refused) arriving_ = nullptr;
        }};
        check(!sendToUser(user, "early"), "preConnect cannot send to the user");
        act(user);
        if (!refused_) story.stage = Story::arriving;
    }

    void postConnect(FuzzUser &user, int socket) override {
        Story &story = storyOf(user, Story::arriving);
        check(&story == arriving_ && open(socket), "postConnect follows preConnect");
        arriving_ = nullptr;
        story.stage = Story::connected;
        act(user);
    }

    void process(FuzzUser &user, WSMessage &msg) override {
        storyOf(user, Story::connected).received.emplace_back(msg.isBinary(), msg.payload());
        check(user.closeCode() == 0, "a closing user's messages are ignored");
        check(msg.isBinary() || isText(msg.payload()), "text is UTF-8");
        check(msg.payload().size() <= config().maxMessageBytes, "messages are within the limit");
        if (actions.empty()) sendToUser(user, msg);
        else if ((actions.front() & 0xF) == kEchoJson) sendJson(user, msg);
        else act(user);
    }

    void preSend(FuzzUser &user, WSMessage &msg) override {
        check(std::exchange(inSend_, true) == false, "no send hook is called inside a send hook");
        const ScopeEnd end{[&] { inSend_ = false; }};
        storyOf(user, Story::connected);
        if (!actions.empty() && (actions.front() & 0xF) == kChange) msg = "changed";
        act(user);
    }

    void postSend(FuzzUser &user, WSMessage &msg) override {
        check(std::exchange(inSend_, true) == false, "no send hook is called inside a send hook");
        const ScopeEnd end{[&] { inSend_ = false; }};
        note(user, msg);
        act(user);
    }

    void drained(FuzzUser &user) override {
        storyOf(user, Story::connected);
        check(user.closeCode() == 0 && user.backlog() == 0, "a drained user has an empty queue");
        act(user);
    }

    void preDisconnect(FuzzUser &user, int socket) override {
        Story &story = storyOf(user, Story::connected);
        check(arriving_ == nullptr && leaving_ == nullptr, "no other hook comes between a pair");
        const int code = user.closeCode();
        check(isCloseCode(code) || code == 1005 || code == 1006, "a user leaves with a close code");
        check(isText(user.closeReason()), "a close reason is UTF-8");
        check(!sendToUser(user, "late"), "preDisconnect cannot send to the user");
        check(open(socket), "the socket is still open in preDisconnect");
        story.stage = Story::leaving;
        leaving_ = &story;
        act(user);
    }

    void postDisconnect() override {
        check(leaving_ != nullptr, "postDisconnect follows preDisconnect");
        std::exchange(leaving_, nullptr)->stage = Story::gone;
        actOnAny();
    }

    void preShutdown(bool &doShutdown) override {
        doShutdown = actions.empty() || (actions.front() & 0xF) != kVeto;
        actOnAny();
    }

    void postShutdown() override {
        check(userCount() == 0, "no user is left after a shutdown");
        check(posted_ == 0, "what was posted is called before postShutdown");
        actOnAny();
    }

    void tick() override {
        check(config().tickSeconds > 0, "there are no ticks unless asked for");
        actOnAny();
    }

    void httpRequest(const WSRequest &request, WSResponse &response) override {
        check((request.method() == "GET" || request.method() == "HEAD") &&
                  request.path().substr(0, 1) == "/",
              "httpRequest gets a GET or HEAD");
        if (!actions.empty() && (actions.front() & 0xF) == kAnswer) fill(response);
        actOnAny();
    }

    void console(WSLevel, std::string_view text) override {
        check(isText(text), "log lines are UTF-8");
        for (const char c : text)
            check(c < 0 || (c >= ' ' && c != 0x7F), "log lines have no control characters");
        if (!actions.empty() && (actions.front() & 0xF) == kConsole) actOnAny();
    }

    // --- actions of hooks -----------------------------------------------------------------

    // The low half of an action; the high half chooses a user or a variant.
    enum Action : unsigned {
        kPost,
        kSend,
        kSendToAll,
        kSendToAllBut,
        kDisconnect,
        kThrow,
        kThrowInt,
        kShutdown,
        kRefuse,
        kAnswer,
        kVeto,
        kSendLarge,
        kDisconnectAll,
        kChange,
        kEchoJson,
        kConsole
    };

    void actOnAny() {
        for (FuzzUser &user : users()) return act(user);
        if (!actions.empty()) actAlone(take());
    }

    unsigned take() {
        const unsigned action = actions.front();
        actions.pop_front();
        return action;
    }

    void act(FuzzUser &user) {
        checkCounts();
        if (actions.empty()) return;
        const unsigned action = take(), how = action >> 4;
        switch (action & 0xF) {
        case kSend: send(other(user, how), WSMessage("sent")); break;
        case kSendToAllBut: sendToMany(&user, "to others"); break;
        case kSendLarge:
            send(other(user, how), WSMessage::binary(std::string(320 * how, 'L')));
            break;
        case kDisconnect: leave(other(user, how), how); break;
        case kRefuse:
            refuse(user, 400 + 10 * static_cast<int>(how), how % 2 ? "" : "Not today.");
            refused_ = true;
            break;
        default: actAlone(action);
        }
        checkCounts();
    }

    void actAlone(unsigned action) {
        switch (action & 0xF) {
        case kPost:  // nothing, if the high half is 0
            if (action == 0 || inPosted_) break;
            ++posted_;
            post([this] {
                inPosted_ = true;
                const ScopeEnd end{[&] { inPosted_ = false; }};
                --posted_;
                actOnAny();
            });
            break;
        case kSendToAll: sendToMany(nullptr, "to all"); break;
        case kThrow: throw std::runtime_error("thrown \x1b[31m by a hook");
        case kThrowInt: throw 6455;
        case kShutdown: shutdown(); break;
        case kConsole: throw std::runtime_error("thrown by console()");
        case kDisconnectAll:
            for (FuzzUser &user : users()) disconnect(user, 3000, "all of you");
            break;
        default: break;
        }
    }

    void leave(FuzzUser &user, unsigned how) {
        constexpr std::array<int, 4> kCodes{1000, 1001, 4999, 1005};  // 1005 must not be sent
        const bool newcomer = inPreConnect_ && arriving_ != nullptr && user.id() == arriving_->id;
        disconnect(user, kCodes[how % 4], how % 8 < 4 ? "bye" : std::string(200, 'b'));
        refused_ = refused_ || newcomer;
    }

    // A send inside a send hook calls no send hooks, so it is noted here.
    void send(FuzzUser &user, const WSMessage &msg) {
        if (sendToUser(user, msg) && inSend_) note(user, msg);
    }

    // A user whose queue did not accept the message is no longer among users().
    void sendToMany(const FuzzUser *but, const WSMessage &msg) {
        const int sent = but == nullptr ? sendToAll(msg) : sendToAllBut(*but, msg);
        if (!inSend_) return;
        int count = 0;
        for (const FuzzUser &user : users()) {
            if (&user == but) continue;
            note(user, msg);
            ++count;
        }
        check(sent == count, "a broadcast returns how many users accepted it");
    }

    void sendJson(FuzzUser &user, const WSMessage &msg) {
        take();
        Json::Value json;
        json["echo"] = msg.json();
        sendToUser(user, json);
        sendToUser(user, std::string("\xFF"));  // throws: it is not text
    }

    void fill(WSResponse &response) {
        const unsigned how = actions.front() >> 4;
        constexpr std::array<int, 8> kStatus{200, 204, 302, 404, 500, 599, 99, 304};
        response.status = kStatus[how % kStatus.size()];
        response.headers.emplace_back("X-How", how < 12 ? "fine" : "not\r\nfine");
        response.body = std::string(40 * how, '.');
    }

    FuzzUser &other(FuzzUser &user, unsigned how) {
        for (FuzzUser &candidate : users())
            if (how-- == 1) return candidate;
        return user;
    }

    // --- checks ---------------------------------------------------------------------------

    struct ScopeEnd {
        std::function<void()> work;
        ~ScopeEnd() { work(); }
    };

    static bool open(int socket) { return Kernel::current->at(socket).isOpen; }

    Story &storyOf(const FuzzUser &user, Story::Stage stage) {
        Story &story = stories_.at(user.socket());
        check(story.id == user.id() && story.stage == stage, "a hook comes at the right stage");
        return story;
    }

    void note(const FuzzUser &user, const WSMessage &msg) {
        storyOf(user, Story::connected).accepted.emplace_back(msg.isBinary(), msg.payload());
        const std::size_t one = msg.payload().size() + kMaxFrameHeader;
        check(user.backlog() <= std::max(config().maxQueuedBytes, one),
              "a queue stays within its limit");
    }

    void checkCounts() {
        int count = 0;
        for (const FuzzUser &user : users()) {
            check(user.closeCode() == 0 && findUser(user.id()) == &user, "a user can be found");
            ++count;
        }
        check(count == userCount() && count <= config().maxUsers, "userCount() is right");
    }

    std::map<int, Story> stories_;
    std::uint64_t lastId_ = 0;
    int posted_ = 0;  // functions that were not called yet
    Story *arriving_ = nullptr, *leaving_ = nullptr;
    bool inSend_ = false, inPreConnect_ = false, inPosted_ = false, refused_ = false;
};

// --- input --------------------------------------------------------------------------------

// Messages reach the hooks as the peer sent them, in order. If `isAll`, none is missing.
void checkInput(const Socket &socket, const Story &story, const WSBaseConfig &config, bool isAll) {
    const std::string_view sent = socket.sent;
    const MessageReader::Limits limits{config.maxMessageBytes, config.maxFragments};
    const Reference reference(sent.substr(sent.find("\r\n\r\n") + 4), limits);
    std::size_t messages = 0;
    for (const auto &[opcode, payload] : reference.outcome.found) {
        if (opcode == Opcode::close) break;
        if (opcode >= Opcode::close) continue;
        if (messages == story.received.size()) return check(!isAll, "no message is missing");
        const auto &[binary, received] = story.received[messages++];
        check(binary == (opcode == Opcode::binary) && received == payload,
              "messages are received as they were sent, in order");
    }
    check(messages == story.received.size(), "only sent messages are received");
}

// --- output -------------------------------------------------------------------------------

// Checks the frames as a client does: unmasked, whole messages, in the order of `story`, and
// only pongs after a Close. If `isAll`, nothing is missing.
void checkFrames(std::string_view bytes, const Story &story, bool isAll) {
    std::size_t messages = 0;
    bool closed = false;
    while (!bytes.empty()) {
        const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
        const unsigned opcode = at(0) & 0xF;
        check(at(0) >> 4 == 8 && (opcode == 1 || opcode == 2 || (opcode >= 8 && opcode <= 10)),
              "a frame is final and its opcode known");
        // Until the peer's Close comes, its pings are answered (RFC 6455 5.5.2).
        check(!closed || opcode == 10, "after a Close only pongs are sent");
        if (bytes.size() < 2 || (at(1) == 126 && bytes.size() < 4)) break;
        check(at(1) <= 126 && (opcode < 8 || at(1) < 126), "a length has its shortest form");
        const bool extended = at(1) == 126;
        const std::size_t head = extended ? 4 : 2;
        const std::size_t size = extended ? std::size_t{at(2)} << 8 | at(3) : at(1);
        check(!extended || size >= 126, "a length has its shortest form");
        const std::string_view payload = bytes.substr(head, size);
        if (opcode < 8) {
            check(messages < story.accepted.size(), "only accepted messages are sent");
            const auto &[binary, expected] = story.accepted[messages++];
            check(binary == (opcode == 2) && expected.substr(0, payload.size()) == payload &&
                      expected.size() == size,
                  "messages are sent as they were accepted, in order");
        }
        if (payload.size() < size) break;
        closed = opcode == 8;
        if (closed && !payload.empty())
            check(size >= 2 && isText(payload.substr(2)) &&
                      isCloseCode(static_cast<unsigned char>(payload[0]) << 8 |
                                  static_cast<unsigned char>(payload[1])),
                  "a Close is valid");
        bytes.remove_prefix(head + size);
    }
    check(!isAll || (bytes.empty() && messages == story.accepted.size()),
          "accepted messages are sent before the end");
}

void checkOutput(const Socket &socket, const Story *story) {
    const Answer answer = readAnswer(socket.output);
    const bool isAll = socket.outputEnded;
    if (answer.status == 0) return check(!isAll, "an answer is whole");
    const std::string_view rest = std::string_view(socket.output).substr(answer.head);
    if (answer.status == 101) {
        check(story != nullptr && story->stage != Story::refused, "only users get a 101");
        return checkFrames(rest, *story, isAll);
    }
    check(story == nullptr || story->stage == Story::refused, "users get a 101");
    const bool bodiless = rest.empty() && socket.sent.compare(0, 5, "HEAD ") == 0;
    check(isAll ? bodiless || rest.size() == answer.body : rest.size() <= answer.body,
          "an answer has the body it announces");
}

// --- a server's life ----------------------------------------------------------------------

// Runs the server again and again until the input is over. It may throw only if it cannot
// listen.
void runAll(FuzzServer &server, const Kernel &kernel, bool byTurns) {
    constexpr std::chrono::milliseconds kWait{100};
    for (int faults = 0; !kernel.over();) {
        try {
            server.listen();
            if (byTurns) server.turn(kWait);
            else server.run();
        } catch (const std::runtime_error &e) {
            const std::string_view what = e.what();
            check(what.find("cannot listen") != what.npos || what.find("resolve") != what.npos,
                  "it throws only if it cannot listen");
            check(++faults < 100, "a temporary fault does not persist");
        }
    }
}

// For users whose peers read, everything must have been read and written.
void checkCalm(FuzzServer &server, const Kernel &kernel) {
    for (const FuzzUser &user : server.users()) {
        const Socket &socket = kernel.at(user.socket());
        if (socket.window != Socket::kUnlimited || socket.reset) continue;
        check(socket.input.empty() && user.backlog() == 0, "an idle server has nothing left to do");
        checkInput(socket, server.stories().at(user.socket()), server.config(), true);
    }
}

void live(Input &input, Kernel &kernel) {
    const unsigned choice = input.byte();
    const bool byTurns = (choice & 0x80) != 0;  // and destroyed without a shutdown
    std::vector<unsigned> actions;
    kernel.action = [&](unsigned action) { actions.push_back(action); };
    kernel.stop = [] {};
    kernel.setUp();
    FuzzServer server((FuzzConfig(choice)));
    server.actions.assign(actions.begin(), actions.end());
    kernel.action = [&](unsigned action) { server.actions.push_back(action); };
    kernel.stop = [&] { server.stop(); };
    kernel.inputOver = [&] { server.actions.clear(); };
    kernel.calm = [&] { checkCalm(server, kernel); };
    kernel.shutdownSeconds = server.config().shutdownSeconds;
    kernel.lookCosts = server.config().readingTheClockTakesTime ? 300 : 0;

    runAll(server, kernel, byTurns);
    if (!byTurns) server.checkEnded();
    for (const int fd : kernel.peers()) {
        const auto story = server.stories().find(fd);
        const bool known = story != server.stories().end();
        checkOutput(kernel.at(fd), known ? &story->second : nullptr);
        if (known) checkInput(kernel.at(fd), story->second, server.config(), false);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char *data, std::size_t size) {
    Input input(data, size);
    Kernel kernel(input);
    try {
        live(input, kernel);
    } catch (const std::system_error &) {  // the server got no pipe
    }
    kernel.checkClosed();
    return 0;
}
