// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Crowds, half-closed peers and signals. (For system calls that fail see black_faults_test.cpp, for
// hooks that throw black_hooks_test.cpp.)

#include "black.h"

#include <atomic>
#include <csignal>
#include <deque>

#include <sys/resource.h>
#include <sys/time.h>

using namespace black;

namespace {

std::size_t count(const Server &server, std::string_view hook) {
    return static_cast<std::size_t>(
        std::count_if(server.hooks.begin(), server.hooks.end(),
                      [&](const std::string &one) { return one.substr(0, hook.size()) == hook; }));
}

// Checks that all users but `here` of them have gone.
void checkGone(const Server &server, std::size_t here) {
    CHECK(count(server, "postConnect ") == count(server, "preConnect "));
    CHECK(count(server, "preDisconnect ") == count(server, "postConnect ") - here);
    CHECK(count(server, "postDisconnect") == count(server, "postConnect ") - here);
    CHECK(server.userCount() == static_cast<int>(here));
}

// Counts further than openDescriptors(), because a crowd has more.
int allDescriptors() {
    int all = 0;
    for (int fd = 0; fd < 4096; ++fd) all += ::fcntl(fd, F_GETFD) >= 0;
    return all;
}

void waitUntilClosed(Server &server, int descriptors) {
    pump(server, "all descriptors to be closed", [&] { return allDescriptors() == descriptors; });
}

}  // namespace

// ----------------------------------------------------------------------------
// Crowds
// ----------------------------------------------------------------------------

TEST_CASE("While five thousand clients connect and reset, another user is served") {
    Server server;
    Peer canary(server);
    const int before = allDescriptors();
    const std::string whole = upgrade() + frame(kText, "hello");
    for (std::size_t i = 0; i < 5000; ++i) {
        Client client(server.port());
        if (i % 3 == 1) client.trySend(whole.substr(0, i % whole.size()));
        if (i % 3 == 2) client.trySend(whole);
        if (i % 2 == 0) server.turn(0ms);
        client.reset();
        if (i % 50 != 0) continue;
        canary.send(frame(kText, "still there?"));
        CHECK(canary.hear() == "text still there?");
    }
    waitUntilClosed(server, before);
    checkGone(server, 1);
}

TEST_CASE("When a thousand users vanish at once, the one that stays is served") {
    Server server([](Config &config) { config.maxUsers = 1001; });
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);  // as raised by the server, if it could
    const std::size_t many = std::min<std::size_t>(1000, (limit.rlim_cur - 64) / 2);
    Peer canary(server);
    const int before = allDescriptors();
    {
        std::deque<Client> crowd;
        for (std::size_t i = 0; i < many; ++i) {
            crowd.emplace_back(server.port());
            crowd.back().trySend(upgrade());
            if (i % 50 == 0) server.turn(0ms);
        }
        pump(server, "the crowd", [&] { return server.userCount() == static_cast<int>(many) + 1; });
        server.sendToAll("to all");  // stays unread in the kernels
        for (std::size_t i = 0; i < many; ++i) {
            if (i % 4 == 0) crowd[i].trySend(frame(kText, "the last words"));
            if (i % 2 == 0) crowd[i].reset();
            else crowd[i].close();
        }
    }
    server.sendToAll("to the last one");
    canary.send(frame(kText, "still there?"));
    CHECK(joined({canary.hear(), canary.hear(), canary.hear()}) ==
          "text to all, text to the last one, text still there?");
    waitUntilClosed(server, before);
    checkGone(server, 1);
    Peer next(server);
    CHECK(server.userCount() == 2);
}

// ----------------------------------------------------------------------------
// Half-closed peers
// ----------------------------------------------------------------------------

namespace {

// What a client sends before it half-closes, what postConnect() does, the status and the bytes
// after the head that the client then hears, and the code in preDisconnect(): "" if the client is
// not a user.
struct HalfClosed {
    const char *label;
    std::string sent;
    std::function<void(Server &)> before;
    const char *status;
    std::string heard;
    const char *code;
};

void nothing(Server &) {}
void disconnectUser(Server &server) { server.disconnect(server.user(1), 4000); }

const std::string kMuch(3'000'000, 'x');  // more than the kernels take
void sendMuch(Server &server) { server.sendToUser(server.user(1), kMuch); }

// A frame as a server sends it.
std::string bare(unsigned opcode, const std::string &payload) {
    const std::string head = header(kFin | opcode, payload.size());
    std::string bytes = head.substr(0, head.size() - kMaskingKey.size()) + payload;
    bytes[1] = static_cast<char>(bytes[1] & 0x7F);
    return bytes;
}

std::string bareClose(int code, const std::string &reason = {}) {
    return bare(kClose, networkOrder(static_cast<std::uint64_t>(code), 2) + reason);
}

const std::string kHalf = frame(kText, "hello").substr(0, 8);
const std::vector<HalfClosed> kHalfClosed = {
    {"before it sends anything", "", nothing, "", "", ""},
    {"inside its head", upgrade().substr(0, 50), nothing, "", "", ""},
    {"after its head", upgrade(), nothing, "101", "", "1006"},
    {"after a message", upgrade() + frame(kText, "hi"), nothing, "101", bare(kText, "hi"), "1006"},
    {"between two fragments", upgrade() + frame(kText, "hi", 0), nothing, "101", "", "1006"},
    {"inside a frame", upgrade() + kHalf, nothing, "101", "", "1006"},
    {"after its Close", upgrade() + closeFrame(1000), nothing, "101", bareClose(1000), "1000"},
    {"instead of answering a Close", upgrade(), disconnectUser, "101", bareClose(4000), "4000"},
    {"inside a frame, instead of answering a Close", upgrade() + kHalf, disconnectUser, "101",
     bareClose(4000), "4000"},
    {"while a large message is on its way", upgrade(), sendMuch, "101", bare(kText, kMuch), "1006"},
    {"after its Close, while a large message is on its way", upgrade() + closeFrame(1001), sendMuch,
     "101", bare(kText, kMuch) + bareClose(1001), "1001"}};

}  // namespace

TEST_CASE("A client that half-closes at any point gets all that is due to it, then EOF") {
    for (const HalfClosed &row : kHalfClosed) {
        INFO("The client half-closes ", std::string(row.label));
        Server server;
        const int before = allDescriptors();
        server.onPostConnect = [&](User &) { row.before(server); };
        {
            Client client(server, 4096);
            client.appetite = 0;
            client.send(row.sent);
            for (int i = 0; i < 3; ++i) server.turn(0ms);
            client.finish();
            for (int i = 0; i < 3; ++i) server.turn(0ms);
            client.appetite = std::string::npos;
            client.wait("the end", [&] { return !client.end.empty(); });
            CHECK(client.end == "EOF");
            const std::string head = client.head();
            CHECK((head.empty() ? head : head.substr(9, 3)) == row.status);
            CHECK((client.input == row.heard));
        }
        waitUntilClosed(server, before);
        checkGone(server, 0);
        CHECK(has(joined(server.hooks), "preDisconnect 1 "s + row.code) == (*row.code != '\0'));
    }
}

// ----------------------------------------------------------------------------
// Signals
// ----------------------------------------------------------------------------

namespace {

std::atomic<int> alarms;

// While it exists, an alarm every millisecond interrupts system calls.
class Alarms {
  public:
    Alarms() {
        alarms = 0;
        struct sigaction action {};
        action.sa_handler = [](int) { ++alarms; };
        ::sigaction(SIGALRM, &action, &before_);
        set(1000);
    }
    ~Alarms() {
        set(0);
        ::sigaction(SIGALRM, &before_, nullptr);
    }
    Alarms(const Alarms &) = delete;
    Alarms &operator=(const Alarms &) = delete;

  private:
    static void set(suseconds_t microseconds) {
        const itimerval timer{{0, microseconds}, {0, microseconds}};
        ::setitimer(ITIMER_REAL, &timer, nullptr);
    }
    struct sigaction before_ {};
};

}  // namespace

TEST_CASE("In a storm of signals all messages arrive, large and small, and deadlines hold") {
    Server server([](Config &config) { config.handshakeSeconds = 0.1; });
    Peer ada(server), bob(server, "/", "", 4096);
    Client silent(server);
    const Alarms ringing;
    const std::string large(500'000, 'x');
    for (int i = 0; i < 200 || alarms < 50; ++i) {
        const std::string text = "message " + std::to_string(i);
        ada.send(frame(kText, text));
        CHECK(ada.hear() == "text " + text);
        server.turn(2ms);  // a wait that the alarm can interrupt
        if (i % 40 != 0) continue;
        bob.send(frame(kBinary, large));
        CHECK((bob.next().value().payload == large));
    }
    CHECK(silent.status() == 408);
    checkGone(server, 2);
}

TEST_CASE("Even when stop() fills the wake pipe, the next run() is not stopped") {
    Server server;
    Peer ada(server);
    for (int i = 0; i < 100'000; ++i) server.stop();
    CHECK(ada.hear() == "close 1001");
    ada.close();
    server.takeLastTurns();
    CHECK(server.hooks.back() == "postShutdown");
    server.listen();
    Peer bob(server);
    bob.send(frame(kText, "hello"));
    CHECK(bob.hear() == "text hello");
}

// ----------------------------------------------------------------------------
// Standard input, output and error
// ----------------------------------------------------------------------------

namespace {

// Closes descriptors 0, 1 and 2 for as long as it lives.
class WithoutStandardStreams {
  public:
    WithoutStandardStreams() {
        for (int fd = 0; fd < 3; ++fd) {
            copies_[fd] = ::fcntl(fd, F_DUPFD_CLOEXEC, 100);
            ::close(fd);
        }
    }
    ~WithoutStandardStreams() {
        for (int fd = 0; fd < 3; ++fd) {
            if (copies_[fd] >= 0) ::dup2(copies_[fd], fd);
            else ::close(fd);
            ::close(copies_[fd]);
        }
    }
    WithoutStandardStreams(const WithoutStandardStreams &) = delete;
    WithoutStandardStreams &operator=(const WithoutStandardStreams &) = delete;

    // The descriptors among them that are open again.
    static int open() {
        int count = 0;
        for (int fd = 0; fd < 3; ++fd) count += ::fcntl(fd, F_GETFD) >= 0;
        return count;
    }

  private:
    int copies_[3]{};
};

}  // namespace

TEST_CASE("No descriptor of the server is 0, 1 or 2, even if these are closed") {
    struct Default : WebSocketServer<User, Config> {  // with the default console()
        void process(User &user, WSMessage &msg) override { sendToUser(user, msg); }
    };
    std::unique_ptr<Default> server;
    const int before = openDescriptors();
    int openAtFirst = 0, openThen = 0;
    {
        const WithoutStandardStreams none;
        server = std::make_unique<Default>();
        server->config().debug = true;
        server->listen();
        server->turn(0ms);
        openAtFirst = WithoutStandardStreams::open();
    }
    CHECK(openAtFirst == 0);
    Client client(*server);
    {
        const WithoutStandardStreams none;
        client.send(upgrade() + frame(kText, "hello"));
        client.head();
        server->turn(0ms);
        openThen = WithoutStandardStreams::open();
    }
    CHECK(openThen == 0);
    CHECK(server->userCount() == 1);
    server.reset();
    client.close();
    CHECK(openDescriptors() == before);
}
