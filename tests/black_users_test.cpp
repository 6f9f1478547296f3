// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Users: how many there may be, how long they may be silent, how slowly they may read, and what is
// known about their request. The server checks its clocks once a second, so tests wait for several
// deadlines at once.

#include "black.h"

#include <map>

#include <sys/resource.h>

using namespace black;

namespace {

double secondsSince(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Whether a deadline of `seconds` was kept: not early, and less than 2.5 seconds late.
bool isAround(double when, double seconds) { return when >= seconds && when < seconds + 2.5; }

}  // namespace

// ----------------------------------------------------------------------------
// Deadlines
// ----------------------------------------------------------------------------

namespace {

// A user whose messages need not reset its idle clock.
struct Sleeper : User {
    bool countsMessages = true;
    void messageReceived() override {
        if (countsMessages) User::messageReceived();
    }
};

class IdleServer : public WebSocketServer<Sleeper, Config> {
  public:
    explicit IdleServer(const Config &config) : WebSocketServer(config) { listen(); }
    Strings left;  // the paths of users that have left

  protected:
    void process(Sleeper &, WSMessage &) override {}
    void preConnect(Sleeper &user, int) override {
        const std::string path = user.request().path();
        user.maxIdle = path == "/patient" ? 60 : 0.02;
        if (path == "/not-counting") user.countsMessages = false;
        if (path == "/saying-so") user.maxIdle = 0, user.saysIdle = true;
    }
    void preDisconnect(Sleeper &user, int) override {
        CHECK(user.closeCode() == 1001);
        CHECK(user.closeReason() == "idle");
        left.push_back(user.request().path());
    }
};

}  // namespace

TEST_CASE("Idle users make room, longest idle first, and otherwise stay") {
    Config config;
    config.maxUsers = 6;
    IdleServer server(config);
    const auto pause = [&] {  // users become idle, at different times
        for (const auto end = Clock::now() + 30ms; Clock::now() < end;) server.turn(5ms);
    };
    Peer talking(server, "/talking");
    const Peer patient(server, "/patient");
    pause();
    Peer notCounting(server, "/not-counting");
    pause();
    const Peer silent(server, "/silent"), sayingSo(server, "/saying-so"), late(server, "/late");
    pause();
    talking.send(frame(kText, "hello"));
    notCounting.send(frame(kText, "hello"));
    talking.hearUntilPong(), notCounting.hearUntilPong();
    for (const auto end = Clock::now() + 1200ms; Clock::now() < end;) {  // the clocks are checked
        talking.send(frame(kText, "hello"));
        server.turn(10ms);
    }
    CHECK(server.left.empty());

    std::vector<std::unique_ptr<Peer>> newcomers;
    for (const char *path : {"/not-counting", "/silent", "/saying-so", "/late"}) {
        talking.send(frame(kText, "hello"));
        newcomers.push_back(std::make_unique<Peer>(server, "/patient"));
        CHECK(server.left.back() == path);
        CHECK(server.userCount() == 6);
    }
    talking.send(frame(kText, "hello"));
    Client last(server);
    last.send(upgrade());
    CHECK(last.status() == 503);
    CHECK(server.left.size() == 4);
}

TEST_CASE("A user whose message has arrived but is not yet read is not idle") {
    Config config;
    config.maxUsers = 2;
    IdleServer server(config);
    Peer first(server, "/first"), second(server, "/second");
    Client newcomer(server);
    for (int i = 0; i < 5; ++i) server.turn(1ms);
    std::this_thread::sleep_for(50ms);  // no turns meanwhile, as in a long hook
    newcomer.send(upgrade());
    first.send(frame(kText, "hello"));
    CHECK(has(newcomer.head(), " 101 "));
    CHECK(joined(server.left) == "/second");
}

TEST_CASE("A user whose message arrives while its room is wanted is not idle") {
    Server server([](Config &config) { config.maxUsers = 1; });
    Peer ada(server);
    server.user(1).saysIdle = true;
    server.user(1).whenAsked = [&] { ada.send(frame(kText, "I am here")); };
    Client newcomer(server);
    newcomer.send(upgrade());
    CHECK(has(newcomer.head(), " 503 "));
    CHECK(server.userCount() == 1);
}

TEST_CASE("maxMessagesPerSecond starts over every second") {
    Server server([](Config &config) {
        config.maxMessagesPerSecond = 60;
        config.closeSeconds = 0.5;
    });
    server.onProcess = [](User &, WSMessage &) {};
    Peer busy(server), late(server);
    for (int rounds = 0; rounds < 2; ++rounds) {
        for (int i = 0; i < 50; ++i) busy.send(frame(kText, "x"));
        for (const auto end = Clock::now() + 1100ms; Clock::now() < end;) server.turn(20ms);
    }
    CHECK(server.userCount() == 2);

    // Deadlines begin when something happens, not when the server last took a turn.
    std::this_thread::sleep_for(600ms);
    server.disconnect(server.user(2), 4000);
    CHECK(late.hear() == "close 4000");
    late.send(closeFrame(4000));
    CHECK(late.hear() == "EOF");
}

TEST_CASE("Clients that are silent, trickle their request or do not close have deadlines") {
    const int before = openDescriptors();
    {
        Server server([](Config &config) {
            config.handshakeSeconds = 0.4;
            config.pingSeconds = 0.7;
            config.closeSeconds = 0.4;
        });
        Client trickling(server), silent(server), answered(server);
        Peer dead(server), answering(server), unfinished(server), closing(server), closed(server);
        Peer garbling(server), reading(server, "/", "", 4096);
        for (Client *client :
             {&answered, static_cast<Client *>(&closed), static_cast<Client *>(&garbling)})
            client->keepsOpen = true;
        const auto start = Clock::now();
        double gone = 0, timedOut = 0;
        server.onPreDisconnect = [&](User &user) {
            if (user.closeCode() == 1006) gone = secondsSince(start);
        };
        answered.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        server.disconnect(server.user(4), 4000);
        closed.send(closeFrame(1000));
        garbling.send("\xFF\xFF");
        CHECK(server.sendToUser(server.user(7), std::string(40'000'000, 'x')));  // takes a while
        const std::string request = upgrade();
        for (std::size_t round = 1; gone == 0 || secondsSince(start) < 2.5; ++round) {
            REQUIRE(secondsSince(start) < 5);
            const auto next = start + round * 50ms;
            while (Clock::now() < next) server.turn(5ms);
            if (round < request.size()) trickling.send(request.substr(round - 1, 1));
            if (round % 5 == 0)
                unfinished.send(round == 5 ? frame(kText, "", 0) : frame(kContinuation, "x", 0));
            if (!answering.input.empty()) answering.taken(2), answering.send(frame(kPong, ""));
            trickling.receive(), answering.receive();
            reading.appetite = 400'000;
            reading.receive();
            if (timedOut == 0 && !trickling.end.empty()) timedOut = secondsSince(start);
        }
        CHECK(trickling.status() == 408);
        CHECK(silent.status() == 408);
        CHECK(isAround(timedOut, 0.4));
        CHECK(answered.status() == 426);
        CHECK(dead.hear() == "ping");
        CHECK(dead.hear() == "EOF");
        CHECK(isAround(gone, 1.4));
        CHECK(closing.hear() == "close 4000");
        CHECK(closing.hear() == "EOF");
        CHECK(joined(closed.hearAll()) == "close 1000, EOF");
        CHECK(joined(garbling.hearAll()) == "close 1002, EOF");
        CHECK(server.userCount() == 3);
        CHECK(joined(unfinished.hearUntilPong()).empty());
        // What is left: three descriptors of the server, and both ends of three connections.
        for (Client *client :
             {&answered, static_cast<Client *>(&closed), static_cast<Client *>(&garbling)})
            client->close();
        CHECK(openDescriptors() == before + 3 + 3 * 2);
    }
    CHECK(openDescriptors() == before);
}

TEST_CASE("A peer that never answers is dropped, even while messages are sent to it") {
    Server server([](Config &config) { config.pingSeconds = 0.5; });
    const Peer dead(server);
    const auto start = Clock::now();
    while (server.userCount() == 1) {
        REQUIRE(secondsSince(start) < 4);
        const auto next = Clock::now() + 100ms;
        while (Clock::now() < next) server.turn(20ms);
        server.sendToAll("news");
    }
    CHECK(server.connectHooks().at(2) == "preDisconnect 1 1006");
}

// ----------------------------------------------------------------------------
// How many users
// ----------------------------------------------------------------------------

TEST_CASE("At maxUsers an idle user makes room; if there is none, the newcomer is refused") {
    Server server([](Config &config) { config.maxUsers = 2; });
    Peer ada(server), bob(server);
    Client third(server);
    third.send(upgrade());
    const Answer answer = third.answer();
    CHECK(answer.status == 503);
    CHECK(std::stoi(answer.header("Retry-After")) > 0);
    CHECK(server.userCount() == 2);

    server.user(2).saysIdle = true;
    const Peer fourth(server);
    CHECK(bob.hear() == "close 1001");
    CHECK(server.userCount() == 2);

    for (User &user : server.users()) user.saysIdle = true;  // only as many go as are needed
    const Peer fifth(server);
    CHECK(server.userCount() == 2);
    CHECK(server.user(server.hooks.empty() ? 0 : 4).id() == 4);

    Client page(server);  // a page needs no room
    page.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK(page.status() == 426);
}

TEST_CASE("maxUsersPerAddress counts the users of each address") {
    Server server([](Config &config) { config.maxUsersPerAddress = 2; });
    Peer ada(server), bob(server);
    Client third(server);
    third.send(upgrade());
    CHECK(third.status() == 503);
    server.disconnect(server.user(1));  // a disconnected user no longer counts
    CHECK(ada.hear() == "close 1000");
    const Client pending(server);  // a pending connection does not count
    const Peer fourth(server);
    CHECK(server.userCount() == 2);
    try {
        Client other(server, 0, "127.0.0.1", "127.0.0.2");
        other.send(upgrade());
        CHECK(has(other.head(), " 101 "));
        CHECK(server.userCount() == 3);
        CHECK(server.user(4).address() == "127.0.0.2");
    } catch (const std::runtime_error &) {
        MESSAGE("skipped: this machine has no address 127.0.0.2");
    }
}

TEST_CASE("Only a header from a trusted proxy changes the address of a user") {
    const std::string claim = "X-Forwarded-For: 192.0.2.9\r\nForwarded: for=192.0.2.8\r\n";
    struct Row {
        Strings trusted;
        std::string address;
    };
    const std::vector<Row> rows = {{{}, "127.0.0.1"},
                                   {{"10.0.0.0/8"}, "127.0.0.1"},
                                   {{"127.0.0.0/8"}, "192.0.2.9"},
                                   {{"::1", "127.0.0.1"}, "192.0.2.9"}};
    for (const Row &row : rows) {
        Server server([&](Config &config) {
            config.trustedProxies = row.trusted;
            config.debug = true;
        });
        std::string asked;
        server.onHttp = [&](const WSRequest &request, WSResponse &) { asked = request.address(); };
        const Peer peer(server, "/", claim);
        CHECK(server.user(1).address() == row.address);
        CHECK(server.user(1).request().address() == row.address);
        CHECK(server.printed("user 1 (" + row.address + ") came"));
        Client page(server);
        page.send("GET / HTTP/1.1\r\nHost: a\r\n" + claim + "\r\n");
        CHECK(page.status() == 426);
        CHECK(asked == row.address);
    }
}

TEST_CASE("maxUsersPerAddress tells users behind a trusted proxy apart") {
    Server server([](Config &config) {
        config.trustedProxies = {"127.0.0.1"};
        config.maxUsersPerAddress = 1;
    });
    const Peer ada(server, "/", "X-Forwarded-For: 192.0.2.1\r\n");
    const Peer bob(server, "/", "X-Forwarded-For: 192.0.2.2\r\n");
    for (const char *way : {"192.0.2.1", "192.0.2.9, 192.0.2.1"}) {
        Client third(server);
        third.send(upgrade("/", "X-Forwarded-For: "s + way + "\r\n"));
        CHECK(third.status() == 503);
    }
    CHECK(server.userCount() == 2);
}

TEST_CASE("maxUsersPerAddress counts an IPv6 /64 as one address") {
    struct Row {
        const char *first, *second;
        bool same;
    };
    const Row rows[] = {
        {"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
        {"2001:db8::1", "2001:db8:0:1::1", false},
        {"2001:db8::1", "192.0.2.1", false},
        {"192.0.2.1", "192.0.2.2", false},
        {"::1", "192.0.2.1", false},  // mapped into IPv6, 192.0.2.1 is in ::/64
        {"::ffff:192.0.2.1", "192.0.2.1", true},
    };
    for (const Row &row : rows) {
        INFO(row.first << " and " << row.second);
        Server server([](Config &config) {
            config.trustedProxies = {"127.0.0.1"};
            config.maxUsersPerAddress = 1;
        });
        const Peer peer(server, "/", "X-Forwarded-For: "s + row.first + "\r\n");
        Client other(server);
        other.send(upgrade("/", "X-Forwarded-For: "s + row.second + "\r\n"));
        CHECK(has(other.head(), row.same ? " 503 " : " 101 "));
    }
}

TEST_CASE("A user that exceeds maxMessagesPerSecond is disconnected with 1008") {
    for (const unsigned opcode : {kText, kBinary, kPing, kPong}) {
        CAPTURE(opcode);
        Server server([](Config &config) { config.maxMessagesPerSecond = 5; });
        server.onProcess = [](User &, WSMessage &) {};
        Peer peer(server);
        std::string messages;
        for (int i = 0; i < 6; ++i) messages += frame(opcode, "");
        peer.send(messages + closeFrame(1000));
        Strings heard = peer.hearAll();
        CHECK(std::count(heard.begin(), heard.end(), "pong") == (opcode == kPing ? 5 : 0));
        heard.erase(std::remove(heard.begin(), heard.end(), "pong"), heard.end());
        CHECK(joined(heard) == (opcode == kPong ? "close 1000, EOF" : "close 1008, EOF"));
        const std::string all = joined(server.hooks);
        CHECK(has(all, "process") == (opcode == kText || opcode == kBinary));
    }
}

TEST_CASE("At maxPending the connection that has been pending longest makes room") {
    Server server([](Config &config) { config.maxPending = 3; });
    for (int i = 0; i < 5; ++i) {
        Peer gone(server);
        gone.reset();
        pump(server, "its end", [&] { return server.userCount() == 0; });
    }
    std::vector<std::unique_ptr<Peer>> users;  // users are not pending
    for (int i = 0; i < 5; ++i) users.push_back(std::make_unique<Peer>(server));
    std::vector<std::unique_ptr<Client>> pending;
    const auto come = [&] {
        pending.push_back(std::make_unique<Client>(server));
        const auto soon = Clock::now() + 3ms;  // the clock counts milliseconds
        while (Clock::now() < soon) server.turn(1ms);
    };
    for (int i = 0; i < 5; ++i) come();
    for (const std::size_t i : {0U, 1U}) {
        pending[i]->wait("its eviction", [&] { return !pending[i]->end.empty(); });
        CHECK(pending[i]->input.empty());
    }
    for (const std::size_t i : {2U, 3U, 4U}) {
        pending[i]->send(upgrade());
        CHECK(has(pending[i]->head(), " 101 "));
    }
    CHECK(server.userCount() == 8);

    // Of several that come in one turn, the last three remain.
    std::vector<std::unique_ptr<Client>> crowd;
    for (int i = 0; i < 9; ++i) crowd.push_back(std::make_unique<Client>(server));
    for (std::size_t i = 0; i < crowd.size(); ++i) {
        CAPTURE(i);
        crowd[i]->send(upgrade());
        crowd[i]->wait("the answer",
                       [&] { return !crowd[i]->input.empty() || !crowd[i]->end.empty(); });
        CHECK(crowd[i]->input.empty() == (i < 6));
    }
    CHECK(server.userCount() == 11);
}

TEST_CASE("At maxPending, a Close that the peer has not taken yet is spared") {
    Server server([](Config &config) { config.maxPending = 2; });
    Peer peer(server, "/", "", 4096);
    peer.appetite = 0;
    const int socket = server.user(1).socket();
    std::size_t filled = 0;  // bytes that fill the kernel's buffer, while the queue is empty
    for (std::size_t size : {65536U, 1U}) {
        const std::string bytes(size, 'x');
        for (ssize_t sent = 0; sent >= 0;) {
            sent = ::send(socket, bytes.data(), size, MSG_NOSIGNAL);
            filled += static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
        }
    }
    server.disconnect(server.user(1), 4000);
    server.turn(0ms);
    REQUIRE(server.stats().queuedBytes == 4);
    const Client first(server), second(server), third(server);
    for (int turn = 0; turn < 5; ++turn) server.turn(kTurn);
    peer.appetite = std::string::npos;
    peer.wait("the Close", [&] { return peer.input.size() > filled || !peer.end.empty(); });
    CHECK(peer.input.substr(filled) == "\x88\x02\x0F\xA0");  // 4000
}

TEST_CASE("At maxPending, a connection that has just gone makes room, and nobody else has to") {
    Server server([](Config &config) { config.maxPending = 2; });
    Client quiet(server), gone(server);
    for (int i = 0; i < 5; ++i) server.turn(1ms);
    gone.reset();
    Client newcomer(server);  // served after the reset, in the same turn
    for (int i = 0; i < 5; ++i) server.turn(1ms);
    for (Client *client : {&quiet, &newcomer}) {
        client->send(upgrade());
        CHECK(has(client->head(), " 101 "));
    }
}

TEST_CASE("A connection with queued data is not evicted while another one can be") {
    Server server([](Config &config) { config.maxPending = 4; });
    Peer leaving(server, "/", "", 4096);
    leaving.appetite = 0;
    CHECK(server.sendToUser(server.user(1), std::string(20'000'000, 'x')));
    server.disconnect(server.user(1));
    server.turn(0ms);
    std::vector<std::unique_ptr<Client>> silent;
    for (int i = 0; i < 8; ++i) {
        silent.push_back(std::make_unique<Client>(server));
        server.turn(20ms);
    }
    leaving.appetite = std::string::npos;
    CHECK(leaving.next().value().payload.size() == 20'000'000);
    CHECK(leaving.hear() == "close 1000");
}

// valgrind's own accept() would take the connection and drop it.
TEST_CASE("Without free descriptors the listeners rest and do not spin" *
          doctest::skip(kUnderValgrind)) {
    Server server;
    Client waiting(server);
    waiting.send(upgrade());
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const rlim_t before = limit.rlim_cur;
    const int lowest = ::dup(0);
    ::close(lowest);
    limit.rlim_cur = static_cast<rlim_t>(lowest);
    ::setrlimit(RLIMIT_NOFILE, &limit);
    int turns = 0;
    for (const auto end = Clock::now() + 200ms; Clock::now() < end; ++turns) server.turn(200ms);
    limit.rlim_cur = before;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    CHECK(server.printed("cannot accept"));
    CHECK(turns < 20);
    CHECK(has(waiting.head(), " 101 "));
}

// ----------------------------------------------------------------------------
// Slow readers
// ----------------------------------------------------------------------------

TEST_CASE("A client that sends without reading is not read from, and loses nothing") {
    Server server;
    Peer peer(server, "/", "", 4096);
    Peer other(server);
    peer.appetite = 0;
    const std::string message = frame(kText, std::string(10'000, 'x'));
    constexpr std::size_t kMany = 8000;  // 80 MB, far more than all kernels take
    std::size_t sent = 0, partial = 0;
    for (int stuck = 0; stuck < 50 && sent < kMany;) {
        const std::optional<std::size_t> size =
            peer.trySend(std::string_view(message).substr(partial));
        REQUIRE(size);
        partial = (partial + *size) % message.size();
        if (*size > 0 && partial == 0) ++sent;
        stuck = *size > 0 ? 0 : stuck + 1;
        server.turn(0ms);
    }
    CHECK(sent < kMany);
    CHECK(server.userCount() == 2);
    other.send(frame(kText, "others are served"));
    CHECK(other.hear() == "text others are served");

    peer.appetite = std::string::npos;
    if (partial > 0) peer.send(std::string_view(message).substr(partial)), ++sent;
    peer.send(frame(kText, "the last"));
    std::size_t echoed = 0;
    for (; peer.next().value().payload.size() == 10'000; ++echoed) {}
    CHECK(echoed == sent);
}

TEST_CASE("Of the pongs that wait, only the last is kept, and it is sent") {
    Server server;
    Peer peer(server, "/", "", 4096);
    peer.appetite = 0;
    const std::string page(20'000'000, 'x');
    CHECK(server.sendToUser(server.user(1), page));
    server.config().lowMarkBytes = page.size() + 1000;  // so that the server still reads
    server.config().maxQueuedBytes = 2 * server.config().lowMarkBytes;
    server.turn(0ms);
    for (const char *payload : {"a", "b", "c"}) peer.step(frame(kPing, payload));
    peer.appetite = std::string::npos;
    CHECK(peer.next().value().payload.size() == page.size());
    CHECK(peer.hear() == "pong c");
    peer.send(frame(kPing, "d"));
    CHECK(peer.hear() == "pong d");
}

TEST_CASE("A user that does not read is disconnected when its queue passes maxQueuedBytes") {
    Server server([](Config &config) { config.maxQueuedBytes = 1'000'000; });
    Peer slow(server, "/", "", 4096), other(server);
    slow.appetite = 0;
    const WSMessage msg(std::string(10'000, 'x'));
    for (int count = 0; server.sendToUser(server.user(1), msg); ++count) {
        REQUIRE(count < 5000);
        if (count % 50 == 0) server.turn(0ms);
    }
    CHECK(server.userCount() == 1);
    CHECK(server.printed("reads too slowly"));
    CHECK(server.sendToAll("others are served") == 1);
    CHECK(other.hear() == "text others are served");
    CHECK(has(joined(server.hooks), "preDisconnect 1 1008"));
    // What the kernel has taken still arrives.
    slow.appetite = std::string::npos;
    slow.wait("the end", [&] { return !slow.end.empty(); });
    CHECK(slow.input.size() > 1000);
}

TEST_CASE("A user that reads can get more than maxQueuedBytes in one turn") {
    Server server([](Config &config) { config.maxQueuedBytes = 10'000; });
    Peer peer(server);
    for (int i = 0; i < 30; ++i) CHECK(server.sendToUser(server.user(1), std::string(999, 'x')));
    for (int i = 0; i < 30; ++i) CHECK(peer.next().value().payload.size() == 999);
}

TEST_CASE("No connection keeps the loop from waiting, whatever its state") {
    Server server;
    Client pending(server), lingering(server);
    Peer idle(server), closing(server), slow(server, "/", "", 4096);
    Peer halfClosed(server, "/", "", 4096), flooding(server, "/", "", 4096);
    lingering.keepsOpen = true;
    lingering.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    server.disconnect(server.user(2), 4000);
    const WSMessage page(std::string(20'000'000, 'x'));
    for (Peer *peer : {&slow, &halfClosed, &flooding}) peer->appetite = 0;
    CHECK(server.sendToIf([](const User &user) { return user.id() > 2; }, page) == 3);
    halfClosed.finish();
    server.config().lowMarkBytes = page.payload().size() + 1000;  // so that its EOF is read
    server.config().maxQueuedBytes = 2 * server.config().lowMarkBytes;
    for (int i = 0; i < 30; ++i) server.turn(0ms);
    server.config().lowMarkBytes = Config().lowMarkBytes;
    server.config().maxQueuedBytes = Config().maxQueuedBytes;
    flooding.trySend(frame(kText, "is not read"));
    int turns = 0;
    for (const auto end = Clock::now() + 200ms; Clock::now() < end; ++turns) server.turn(50ms);
    CHECK(turns < 15);
    CHECK_FALSE(has(joined(server.hooks), "is not read"));
    CHECK(server.userCount() == 3);
    halfClosed.appetite = std::string::npos;
    CHECK(halfClosed.next().value().payload.size() == page.payload().size());
    CHECK(halfClosed.hear() == "EOF");
}

TEST_CASE("A client that requests more than it reads waits for its answers and gets all of them") {
    Server server([](Config &config) { config.maxQueuedBytes = 500'000; });
    server.onProcess = [&](User &user, WSMessage &) {
        CHECK(server.sendToUser(user, std::string(300'000, 'x')));
    };
    Peer peer(server, "/", "", 4096), other(server);
    peer.appetite = 0;
    std::string requests;
    for (int i = 0; i < 200; ++i) requests += frame(kText, "page");
    peer.step(requests);  // one packet asks for 60 MB
    for (int i = 0; i < 20; ++i) server.turn(0ms);
    const auto asked = std::count_if(server.hooks.begin(), server.hooks.end(),
                                     [](auto &hook) { return has(hook, "process"); });
    CHECK(asked < 200);
    CHECK(server.user(1).closeCode() == 0);
    other.send(frame(kText, "others are served"));
    CHECK(other.next().value().payload.size() == 300'000);
    peer.appetite = std::string::npos;
    for (int i = 0; i < 200; ++i) REQUIRE(peer.next().value().payload.size() == 300'000);
    CHECK(joined(peer.hearUntilPong()).empty());
}

TEST_CASE("A user whose queue passes the mark in a turn is not read in it any more") {
    Server server([](Config &config) { config.maxQueuedBytes = 64 << 20; });
    Peer ann(server, "/", "", 4096), bob(server, "/", "", 4096);
    ann.appetite = bob.appetite = 0;
    bool isFirst = true;  // whichever of the two is served first
    server.onProcess = [&](User &user, WSMessage &) {
        if (std::exchange(isFirst, false))
            server.sendToAllBut(user, WSMessage::binary(std::string(32 << 20, 'x')));
    };
    const std::uint64_t before = server.stats().bytesReceived;
    const std::string hello = frame(kText, "hello");
    ann.trySend(hello);
    bob.trySend(hello);
    server.turn(20ms);
    CHECK(server.stats().bytesReceived - before == hello.size());
}

TEST_CASE("drained() runs when a queue that was above the mark is empty, and never otherwise") {
    Server server([](Config &config) { config.lowMarkBytes = 1000; });
    Peer slow(server, "/", "", 4096), other(server);
    slow.appetite = 0;
    User &user = server.user(1);
    const auto drained = [&] {
        return std::count(server.hooks.begin(), server.hooks.end(), "drained 1");
    };
    CHECK(user.backlog() == 0);
    server.sendToUser(user, std::string(996, 'x'));  // with its header at the mark, not above it
    CHECK(user.backlog() == 1000);
    server.turn(0ms);
    CHECK(user.backlog() == 0);
    CHECK(drained() == 0);

    server.sendToUser(user, std::string(997, 'x'));
    CHECK(user.backlog() == 1001);
    server.turn(0ms);  // counts even if the kernel takes it all at once
    CHECK(drained() == 1);

    const std::string page(20'000'000, 'x');
    server.sendToUser(user, page);
    for (int i = 0; i < 30; ++i) server.turn(0ms);
    CHECK(user.backlog() > 1000);
    CHECK(user.backlog() < page.size());
    CHECK(drained() == 1);
    std::size_t behind = 0;
    server.onDrained = [&](User &one) { behind = one.backlog() + 1; };
    slow.appetite = std::string::npos;
    for (const std::size_t size : {std::size_t{996}, std::size_t{997}, page.size()})
        CHECK(slow.next().value().payload.size() == size);
    CHECK(joined(slow.hearUntilPong()).empty());
    CHECK(drained() == 2);
    CHECK(behind == 1);  // its backlog was 0
    CHECK_FALSE(has(joined(server.hooks), "drained 2"));

    // A disconnected user gets no drained().
    server.sendToUser(user, page);
    server.disconnect(user);
    while (slow.hear().substr(0, 5) != "close") {}
    server.turn(0ms);
    CHECK(drained() == 2);
}

TEST_CASE("drained() can send a stream of any length, piece by piece") {
    Server server([](Config &config) {
        config.lowMarkBytes = 1000;
        config.maxQueuedBytes = 100'000;
    });
    int pieces = 0;
    const auto sendPiece = [&](User &user) {
        if (pieces < 300) CHECK(server.sendToUser(user, std::string(90'000, 'x')));
        ++pieces;
    };
    server.onPostConnect = server.onDrained = sendPiece;
    Peer peer(server, "/", "", 4096);
    for (int i = 0; i < 300; ++i) REQUIRE(peer.next().value().payload.size() == 90'000);
    CHECK(joined(peer.hearUntilPong()).empty());
    CHECK(pieces == 301);
}

TEST_CASE("With hundreds of silent users the loop still sleeps, and hears each of them") {
    Server server;
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 200; ++i) peers.push_back(std::make_unique<Peer>(server));
    for (const auto end = Clock::now() + 200ms; Clock::now() < end;) server.turn(5ms);
    int turns = 0;
    for (const auto end = Clock::now() + 200ms; Clock::now() < end; ++turns) server.turn(50ms);
    CHECK(turns < 15);
    for (const auto &peer : peers) {
        peer->send(frame(kText, "hello"));
        CHECK(peer->hear() == "text hello");
    }
}

TEST_CASE("A client that does not read has closeSeconds to take its queue") {
    Server server([](Config &config) { config.closeSeconds = 0.2; });
    Peer stuck(server, "/", "", 4096);
    stuck.appetite = 0;
    CHECK(server.sendToUser(server.user(1), std::string(20'000'000, 'x')));
    server.disconnect(server.user(1));
    pump(server, "postDisconnect", [&] { return server.hooks.back() == "postDisconnect"; });
    const int open = openDescriptors();
    pump(server, "the end of the connection", [&] { return openDescriptors() < open; });
}

// ----------------------------------------------------------------------------
// Fairness: a flood is read over many turns
// ----------------------------------------------------------------------------

namespace {

// The number of turns in which the server reads `flood` and the Close after it. Checks that another
// user is heard in about half of them or more; it misses some before the server knows that it costs
// little, and when other programs delay the test.
int turnsFor(Server &server, const std::string &flood) {
    Peer flooding(server), canary(server);
    canary.hearUntilPong();
    flooding.trySend(flood + closeFrame(1000));
    int turns = 0, missed = 0;
    for (; server.userCount() == 2; ++turns) {
        REQUIRE(turns < 5000);
        canary.send(frame(kText, "canary"));
        server.turn(0ms);
        canary.receive();
        missed += canary.taken(canary.input.size()).empty();
        flooding.receive();
        if (turns == 0) CHECK(server.userCount() == 2);
    }
    CHECK(missed <= 3 + turns / 2);
    CHECK(flooding.hearAll().back() == "EOF");
    return turns;
}

std::string repeated(int count, const std::string &bytes) {
    std::string all;
    while (count-- > 0) all += bytes;
    return all;
}

}  // namespace

TEST_CASE("What the server reads in one turn is bounded, whatever the frames are") {
    struct Row {
        std::string label, flood;
    };
    constexpr int kMany = 30'000;
    const std::vector<Row> rows = {
        {"The smallest messages.", repeated(kMany, frame(kText, ""))},
        {"Pings.", repeated(kMany, frame(kPing, "x"))},
        {"Pongs.", repeated(kMany, frame(kPong, ""))},
        {"Empty fragments.", frame(kText, "", 0) + repeated(kMany, frame(kContinuation, "", 0)) +
                                 frame(kContinuation, "")},
        {"Fragments of one byte.", frame(kText, "x", 0) +
                                       repeated(kMany, frame(kContinuation, "x", 0)) +
                                       frame(kContinuation, "x")},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        CHECK(turnsFor(server, row.flood) >= kMany / 4096);  // half of 1 MiB, 128 bytes a frame
        CHECK(has(joined(server.hooks), "preDisconnect 1 1000"));
    }
}

TEST_CASE("A slow hook ends the turn within eight frames, whatever came before") {
    Server server;
    int calls = 0;
    server.onProcess = [&](User &, WSMessage &) {
        ++calls;
        for (const auto end = Clock::now() + 8ms; Clock::now() < end;) {}
    };
    Peer peer(server);
    peer.step(repeated(100, frame(kPong, "")) + repeated(20, frame(kText, "hello")));
    CHECK(calls <= 8);
    pump(server, "the others", [&] { return calls == 20; });
}

TEST_CASE("Connections that cost much are served after the others, and in rotation") {
    Server server;
    std::vector<std::unique_ptr<Peer>> slow;
    for (int i = 0; i < 20; ++i) slow.push_back(std::make_unique<Peer>(server));
    Peer canary(server);
    std::map<std::uint64_t, int> calls, sent;
    server.onProcess = [&](User &user, WSMessage &) {
        ++calls[user.id()];
        if (user.id() <= 20)
            for (const auto end = Clock::now() + 3ms; Clock::now() < end;) {}
    };
    const auto say = [&](std::uint64_t id, Peer &peer) {
        if (sent[id] == calls[id]) peer.send(frame(kText, "x")), ++sent[id];
    };
    for (int turn = 0; turn < 100; ++turn) {
        for (std::size_t i = 0; i < slow.size(); ++i) say(i + 1, *slow[i]);
        say(21, canary);
        server.turn(0ms);
    }
    CHECK(calls[21] > 30);  // an equal share would be 5
    int most = 0, least = 100;
    for (std::uint64_t id = 1; id <= 20; ++id)
        most = std::max(most, calls[id]), least = std::min(least, calls[id]);
    CHECK(least >= 3);
    CHECK(most <= 4 * least);
}

TEST_CASE("Clients that send many frames at once take turns, a few frames at a time") {
    Server server;
    std::vector<std::uint64_t> calls;
    server.onProcess = [&](User &user, WSMessage &) {
        calls.push_back(user.id());
        for (const auto end = Clock::now() + 400us; Clock::now() < end;) {}
    };
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 3; ++i) peers.push_back(std::make_unique<Peer>(server));
    for (const auto &peer : peers) peer->send(repeated(100, frame(kText, "x")));
    pump(server, "all frames", [&] { return calls.size() == 300; });
    std::size_t longest = 0, run = 0;
    for (std::size_t i = 1; i < calls.size(); ++i) {
        run = calls[i] == calls[i - 1] ? run + 1 : 0;
        longest = std::max(longest, run);
    }
    CHECK(longest <= 24);  // eight frames are read between two looks at the clock
}

TEST_CASE("A user whose messages wait in the server is not idle when its room is wanted") {
    Server server([](Config &config) { config.maxUsers = 1; });
    Peer ada(server);
    Client newcomer(server);
    for (int i = 0; i < 5; ++i) server.turn(1ms);
    server.user(1).saysIdle = true;
    server.onProcess = [](User &, WSMessage &) {
        for (const auto end = Clock::now() + 400us; Clock::now() < end;) {}
    };
    ada.send(repeated(50, frame(kText, "x")));  // more than one turn reads
    newcomer.send(upgrade());                   // served after ada, in the same turn
    CHECK(has(newcomer.head(), " 503 "));
    CHECK(server.userCount() == 1);
}

TEST_CASE("A client that does not read its echoes is slowed down, however small its queue may be") {
    Server server([](Config &config) { config.maxQueuedBytes = 32 * 1024; });
    Peer peer(server, "/", "", 4096);
    peer.appetite = 0;
    const std::string message = frame(kText, std::string(1000, 'x'));
    std::size_t sent = 0;
    for (int stuck = 0; stuck < 50;) {
        const std::size_t size = peer.trySend(message.substr(sent % message.size())).value();
        sent += size;
        stuck = size > 0 ? 0 : stuck + 1;
        server.turn(0ms);
    }
    CHECK(server.userCount() == 1);
    CHECK(server.user(1).backlog() > 0);
}

TEST_CASE("Frames that wait in the server are read without further input, or dropped") {
    Server server;
    server.onProcess = [&](User &user, WSMessage &msg) {
        for (const auto end = Clock::now() + 5ms; Clock::now() < end;) {}  // ends the turn
        server.sendToUser(user, msg);
    };
    {
        Peer silent(server), gone(server), failing(server), kicked(server);
        silent.step(repeated(9, frame(kText, "hello")) + frame(kText, "", 0));
        for (int i = 0; i < 9; ++i) CHECK(silent.hear() == "text hello");
        gone.step(repeated(9, frame(kText, "hello")));
        gone.reset();
        failing.step(frame(kText, "hello") + "garbage" + repeated(9, frame(kText, "hello")));
        CHECK(joined(failing.hearAll()) == "text hello, close 1002, EOF");
        kicked.step(repeated(9, frame(kText, "hello")));
        server.disconnect(server.user(4), 4000);
        while (kicked.hear() != "close 4000") {}
        kicked.send(closeFrame(4000));
        CHECK(kicked.hear() == "EOF");
        pump(server, "the reset", [&] { return server.userCount() == 1; });
        silent.send(frame(kContinuation, "end"));
        CHECK(silent.hear() == "text end");
    }
    pump(server, "all to be gone", [&] { return server.userCount() == 0; });
}

TEST_CASE("A user that fails while its frames wait in the server leaves as soon as its peer does") {
    Server server([](Config &config) { config.closeSeconds = 1000; });
    server.onProcess = [](User &, WSMessage &) {
        for (const auto end = Clock::now() + 5ms; Clock::now() < end;) {}  // ends the turn
    };
    Peer peer(server);
    peer.step(repeated(20, frame(kText, "hello")));
    server.onPreSend = [](User &, WSMessage &) { throw std::runtime_error("on purpose"); };
    CHECK_FALSE(server.sendToUser(server.user(1), "x"));
    CHECK(joined(peer.hearAll()) == "close 1011, EOF");
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "process 1: hello") < 20);
    pump(server, "the connection to be gone", [&] { return server.stats().pending == 0; });
}

TEST_CASE("A peer that answers a Close with pings still has only closeSeconds") {
    Server server([](Config &config) { config.closeSeconds = 0.3; });
    Peer pinging(server);
    server.disconnect(server.user(1), 4000);
    const auto start = Clock::now();
    while (pinging.end.empty()) {
        REQUIRE(secondsSince(start) < 3);
        server.turn(5ms);
        pinging.trySend(frame(kPing, "I am still here"));
        pinging.receive();
    }
    CHECK(has(pinging.input, "I am still here"));
}

// ----------------------------------------------------------------------------
// Requests
// ----------------------------------------------------------------------------

TEST_CASE("user.request() has the path, parameters, headers and cookies of the request") {
    Server server;
    const Peer peer(server, "/room/4%32?name=Ada+L%C3%B6w&x=1&x=2&empty=&flag&%6Eame2=y&bad=%4",
                    "Cookie: session=\"abc=\"; a=1\r\nX-One: first\r\nx-one: second\r\nX-Empty:\r\n"
                    "Origin: http://localhost\r\nSec-WebSocket-Protocol: v1, v2\r\n");
    const User &user = server.user(1);
    const WSRequest &request = user.request();
    CHECK(request.method() == "GET");
    CHECK(request.path() == "/room/4%32");
    CHECK(has(request.query(), "name=Ada+L%C3%B6w&x=1"));
    CHECK(request.parameter("name") == "Ada L\xC3\xB6w");
    CHECK(request.parameter("x") == "1");
    CHECK(request.parameter("empty").empty());
    CHECK(request.parameter("flag").empty());
    CHECK(request.parameter("name2") == "y");
    CHECK(request.parameter("bad") == "%4");
    CHECK(request.parameter("nothing").empty());
    CHECK(request.header("host") == "localhost");
    CHECK(request.header("X-ONE") == "first, second");
    CHECK(request.hasHeader("x-empty"));
    CHECK_FALSE(request.hasHeader("x-nothing"));
    CHECK(request.headers().size() == 11);
    CHECK(request.cookie("session") == "\"abc=\"");
    CHECK(request.cookie("a") == "1");
    CHECK(request.cookie("b").empty());
    CHECK(request.origin() == "http://localhost");
    CHECK(request.protocols() == Strings{"v1", "v2"});
    CHECK(user.address() == "127.0.0.1");
    CHECK(request.address() == "127.0.0.1");
    CHECK(user.protocol().empty());
    CHECK(user.id() == 1);
}

TEST_CASE("The subprotocol is the first of the server's that the client offers") {
    struct Row {
        std::string label, offered, agreed;
    };
    const std::vector<Row> rows = {
        {"The server's order counts.", "Sec-WebSocket-Protocol: v1, v2\r\n", "v2"},
        {"The only offer.", "Sec-WebSocket-Protocol: v1\r\n", "v1"},
        {"Among unknown ones, with odd spaces.", "sec-websocket-protocol: x ,\tv1\t, y\r\n", "v1"},
        {"In two headers.", "Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Protocol: v2\r\n", "v2"},
        {"Case counts.", "Sec-WebSocket-Protocol: V2, v1x\r\n", ""},
        {"Only unknown offers.", "Sec-WebSocket-Protocol: x, y\r\n", ""},
        {"No offer.", "", ""},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server([](Config &config) { config.protocols = {"v2", "v1"}; });
        const Peer peer(server, "/", row.offered);
        CHECK(server.user(1).protocol() == row.agreed);
        CHECK(has(peer.response, "Sec-WebSocket-Protocol: ") == !row.agreed.empty());
        if (!row.agreed.empty())
            CHECK(has(peer.response, "Sec-WebSocket-Protocol: " + row.agreed + "\r\n"));
    }
}

TEST_CASE("preConnect() may accept any subprotocol that the client offers, or none") {
    struct Row {
        std::string accepted, offered, agreed;
        bool throws;
    };
    const std::vector<Row> rows = {
        {"v1", "v1, v2", "v1", false},  {"x", "v2, x", "x", false},
        {"", "v2", "", false},          {"", "", "", false},
        {"v1", "v2", "v2", true},       {"V1", "v1", "v1", true},
        {"v1", "", "", true},           {"a b", "v2", "v2", true},
        {"v2, x", "v2, x", "v2", true}, {"v1\r\nX: y", "v1", "v1", true},
    };
    for (const Row &row : rows) {
        CAPTURE(row.accepted);
        CAPTURE(row.offered);
        Server server([](Config &config) { config.protocols = {"v2", "v1"}; });
        server.onPreConnect = [&](User &user) {
            if (row.throws)
                CHECK_THROWS_AS(server.acceptProtocol(user, row.accepted), std::invalid_argument);
            else server.acceptProtocol(user, row.accepted);
            CHECK(user.protocol() == row.agreed);
        };
        const std::string offer = "Sec-WebSocket-Protocol: " + row.offered + "\r\n";
        const Peer peer(server, "/", row.offered.empty() ? "" : offer);
        CHECK(server.user(1).protocol() == row.agreed);
        CHECK(has(peer.response, "Sec-WebSocket-Protocol") == !row.agreed.empty());
        CHECK(has(peer.response, "Sec-WebSocket-Protocol: " + row.agreed + "\r\n\r\n") ==
              !row.agreed.empty());
    }
}

TEST_CASE("acceptProtocol() throws outside preConnect()") {
    Server server;
    int throws = 0;
    const auto check = [&](User &user) {
        CHECK_THROWS_AS(server.acceptProtocol(user, "v1"), std::logic_error);
        ++throws;
    };
    server.onPostConnect = check;
    server.onProcess = [&](User &user, WSMessage &) { check(user); };
    server.onPreConnect = [&](User &user) {
        if (user.id() == 2) check(server.user(1));
    };
    Peer ada(server, "/", "Sec-WebSocket-Protocol: v1\r\n");
    ada.send(frame(kText, "x"));
    CHECK(ada.hearUntilPong().size() == 0);
    const Peer bob(server);
    CHECK(throws == 4);
    CHECK(server.user(1).protocol().empty());
}
