// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The hooks: which run, in what order, what they see, and what they may do. Their contracts are at
// WebSocketServer in server.h.

#include "black.h"

#include <map>
#include <set>

using namespace black;

namespace {

// Checks that each user's hooks come in pairs, exactly once and in order, and that each
// postDisconnect(), which has no user, directly follows its preDisconnect().
void checkPairs(const Server &server, std::size_t refused = 0) {
    std::map<std::string, Strings> perUser;
    Strings ends;
    for (const std::string &hook : server.connectHooks()) {
        if (has(hook, "Disconnect")) ends.push_back(hook.substr(0, hook.find(' ')));
        if (hook == "postDisconnect") continue;
        const std::size_t id = hook.find(' ') + 1;
        perUser[hook.substr(id, hook.find(' ', id) - id)].push_back(hook.substr(0, id - 1));
    }
    for (std::size_t i = 0; i < ends.size(); ++i)
        CHECK(ends[i] == (i % 2 == 0 ? "preDisconnect" : "postDisconnect"));
    CHECK(ends.size() % 2 == 0);
    std::size_t missing = 0;
    for (const auto &entry : perUser) {
        const Strings &hooks = entry.second;
        INFO("user ", entry.first, ": ", joined(hooks));
        if (hooks == Strings{"preConnect"}) ++missing;
        else CHECK(hooks == Strings{"preConnect", "postConnect", "preDisconnect"});
    }
    CHECK(missing == refused);
}

// Sends to a user that does not read until its queue is full.
void fillQueue(Server &server, User &user) {
    const WSMessage msg(std::string(100'000, 'x'));
    int count = 0;
    while (server.sendToUser(user, msg)) REQUIRE(++count < 1000);
}

}  // namespace

TEST_CASE("All hooks of a user's life run in order") {
    Server server;
    Peer ada(server);
    ada.send(frame(kText, "hi"));
    CHECK(ada.hear() == "text hi");
    ada.send(closeFrame(1000));
    CHECK(ada.hearAll() == Strings{"close 1000", "EOF"});
    server.shutdown();
    ada.close();
    server.takeLastTurns();
    CHECK(joined(server.hooks) ==
          "preConnect 1, postConnect 1, process 1: hi, preSend 1: hi, postSend 1: hi, "
          "preDisconnect 1 1000, postDisconnect, preShutdown, postShutdown");
}

// ----------------------------------------------------------------------------
// How a connection can end
// ----------------------------------------------------------------------------

TEST_CASE("However a connection ends, its last two hooks run once, with code and reason") {
    const std::string big(1000, 'x');
    struct Row {
        std::string label;
        std::function<void(Server &, Peer &)> happens;
        int code;
        const char *reason;  // part of it
        const char *heard;   // by the peer
    };
    const std::vector<Row> rows = {
        {"The peer closes with a code and a reason.",
         [](Server &, Peer &peer) { peer.send(closeFrame(3001, "b\xC3\xBD")); }, 3001, "b\xC3\xBD",
         "close 3001, EOF"},
        {"The peer closes without a code.",
         [](Server &, Peer &peer) { peer.send(frame(kClose, "")); }, 1005, "", "close, EOF"},
        {"The peer half-closes without a Close.", [](Server &, Peer &peer) { peer.finish(); }, 1006,
         "", "EOF"},
        {"The peer resets the connection.", [](Server &, Peer &peer) { peer.reset(); }, 1006, "",
         ""},
        {"The peer sends a frame that is not masked.",
         [](Server &, Peer &peer) { peer.send("\x81\x01x"); }, 1002, "masked", "close 1002, EOF"},
        {"The peer sends text that is not UTF-8.",
         [](Server &, Peer &peer) { peer.send(frame(kText, "\xFF")); }, 1007, "UTF-8",
         "close 1007, EOF"},
        {"The peer sends a message over the limit.",
         [&](Server &, Peer &peer) { peer.send(frame(kText, big)); }, 1009, "big",
         "close 1009, EOF"},
        {"The peer sends too many fragments.",
         [](Server &, Peer &peer) {
             peer.send(frame(kText, "", 0));
             for (int i = 0; i < 4; ++i) peer.send(frame(kContinuation, "", 0));
         },
         1008, "fragments", "close 1008, EOF"},
        {"The peer sends too many messages per second.",
         [](Server &, Peer &peer) {
             for (int i = 0; i < 51; ++i) peer.send(frame(kPing, ""));
         },
         1008, "per second", nullptr},
        {"The server disconnects the user, and the peer answers.",
         [](Server &server, Peer &peer) {
             server.disconnect(server.user(1), 4000, "kicked");
             peer.send(closeFrame(4000));
         },
         4000, "kicked", "close 4000, EOF"},
        {"The server disconnects the user, and the peer answers with another code.",
         [](Server &server, Peer &peer) {
             server.disconnect(server.user(1), 4000, "kicked");
             peer.send(closeFrame(3000));
         },
         4000, "kicked", "close 4000, EOF"},
        {"The server disconnects the user twice.",
         [](Server &server, Peer &peer) {
             User &user = server.user(1);
             server.disconnect(user, 4001, "first");
             server.disconnect(user, 4002, "second");
             peer.send(closeFrame(4001));
         },
         4001, "first", "close 4001, EOF"},
        {"The peer does not read, and its queue is full.",
         [&](Server &server, Peer &) {
             User &user = server.user(1);
             fillQueue(server, user);
         },
         1008, "slow", nullptr},
        {"The user is idle when a newcomer finds no room.",
         [](Server &server, Peer &peer) {
             server.user(1).saysIdle = true;
             const Peer newcomer(server);
             peer.send(closeFrame(1001));
         },
         1001, "idle", "close 1001, EOF"},
        {"The server is shutting down.",
         [](Server &server, Peer &peer) {
             server.shutdown();
             server.turn(0ms);
             peer.send(closeFrame(1001));
         },
         1001, "shutting down", "close 1001, EOF"},
        {"A hook throws.",
         [](Server &server, Peer &peer) {
             server.onProcess = [](User &, WSMessage &) { throw std::runtime_error("oh"); };
             peer.send(frame(kText, "x"));
         },
         1011, "", "close 1011, EOF"},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server([](Config &config) {
            config.maxUsers = 1;
            config.maxMessageBytes = 100;
            config.maxFragments = 4;
            config.maxMessagesPerSecond = 50;
            config.maxQueuedBytes = 1100;
        });
        Peer peer(server);
        CHECK(server.user(1).closeCode() == 0);
        row.happens(server, peer);
        pump(server, "postDisconnect", [&] {
            return std::count(server.hooks.begin(), server.hooks.end(), "postDisconnect") > 0;
        });
        const Strings hooks = server.connectHooks();
        const Strings expected{"preConnect 1", "postConnect 1",
                               "preDisconnect 1 " + std::to_string(row.code), "postDisconnect"};
        for (const std::string &hook : expected)
            CHECK(std::count(hooks.begin(), hooks.end(), hook) == 1);
        CHECK(has(server.reasons.at(0), row.reason));
        if (row.heard != nullptr && *row.heard != '\0') CHECK(joined(peer.hearAll()) == row.heard);
    }
}

TEST_CASE("A hook that throws costs only its own user") {
    struct Row {
        std::string hook;
        const char *connectHooks;  // of the user whose hook throws
    };
    const char *const kFailed = "preConnect 2, postConnect 2, preDisconnect 2 1011, postDisconnect";
    const char *const kClosed = "preConnect 2, postConnect 2, preDisconnect 2 1000, postDisconnect";
    const std::vector<Row> rows = {
        {"preConnect", "preConnect 2"}, {"postConnect", kFailed}, {"process", kFailed},
        {"preSend", kFailed},           {"postSend", kFailed},    {"preDisconnect", kClosed},
        {"postDisconnect", kClosed},    {"preShutdown", kClosed}, {"postShutdown", kClosed},
        {"httpRequest", kClosed},
    };
    for (const Row &row : rows) {
        for (const bool standard : {true, false}) {
            CAPTURE(row.hook);
            CAPTURE(standard);
            Server server;
            Peer witness(server);
            server.hooks.clear();
            const auto fail = [&](const std::string &hook, const User *user = nullptr) {
                if (hook != row.hook || (user != nullptr && user->id() != 2)) return;
                if (standard) throw std::runtime_error("on purpose");
                throw 7;
            };
            server.onPreConnect = [&](User &user) { fail("preConnect", &user); };
            server.onPostConnect = [&](User &user) { fail("postConnect", &user); };
            server.onPreDisconnect = [&](User &user) { fail("preDisconnect", &user); };
            server.onPostDisconnect = [&] { fail("postDisconnect"); };
            server.onPreSend = [&](User &user, WSMessage &) { fail("preSend", &user); };
            server.onPostSend = [&](User &user, WSMessage &) { fail("postSend", &user); };
            server.onPreShutdown = [&](bool &) { fail("preShutdown"); };
            server.onPostShutdown = [&] { fail("postShutdown"); };
            server.onHttp = [&](const WSRequest &, WSResponse &) { fail("httpRequest"); };
            server.onProcess = [&](User &user, WSMessage &msg) {
                fail("process", &user);
                server.sendToAll(msg);
            };

            Client actor(server);
            actor.send(upgrade() + frame(kText, "hi") + closeFrame(1000));
            const bool refused = has(actor.head(), " 500 ");
            CHECK(refused == (row.hook == "preConnect"));
            actor.wait("the end", [&] { return !actor.end.empty(); });
            CHECK(actor.end == "EOF");
            Client reader(server);
            reader.send("GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
            CHECK(reader.status() == (row.hook == "httpRequest" ? 500 : 426));
            CHECK(joined(server.connectHooks()) == row.connectHooks);

            witness.send(frame(kText, "still here"));
            const Strings heard = witness.hearUntilPong();
            CHECK(heard.back() == "text still here");
            server.shutdown();
            witness.close();
            server.takeLastTurns();
            CHECK(server.hooks.back() == "postShutdown");
            CHECK(server.printed(row.hook + "() threw"));
            CHECK(server.printed(standard ? ": on purpose" : ": something"));
        }
    }
}

// ----------------------------------------------------------------------------
// What each hook sees, and what it may change
// ----------------------------------------------------------------------------

TEST_CASE("A change by preSend() is for that receiver only, and postSend() sees it") {
    Server server;
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 4; ++i) peers.push_back(std::make_unique<Peer>(server));
    server.hooks.clear();
    server.onPreSend = [](User &user, WSMessage &msg) {
        if (user.id() == 2) msg = "for you alone";
        if (user.id() == 3) msg = WSMessage::binary("\xFF");
    };
    server.onPostSend = [](User &, WSMessage &msg) { msg = "too late"; };
    CHECK(server.sendToAll("for all") == 4);
    CHECK(peers[0]->hear() == "text for all");
    CHECK(peers[1]->hear() == "text for you alone");
    CHECK(peers[2]->hear() == "binary \xFF");
    CHECK(peers[3]->hear() == "text for all");
    CHECK(joined(server.hooks) ==
          "preSend 1: for all, postSend 1: for all, preSend 2: for all, postSend 2: for you alone, "
          "preSend 3: for all, postSend 3: \xFF, preSend 4: for all, postSend 4: for all");
}

TEST_CASE("Sends from preSend() or postSend() run no send hooks") {
    Server server;
    Peer ada(server), bob(server);
    server.onPreSend = [&](User &, WSMessage &) { server.sendToAll("before"); };
    server.onPostSend = [&](User &, WSMessage &) { server.sendToAll("after"); };
    server.hooks.clear();
    CHECK(server.sendToUser(server.user(2), "it"));
    CHECK(joined(server.hooks) == "preSend 2: it, postSend 2: it");
    CHECK(joined(ada.hearUntilPong()) == "text before, text after");
    CHECK(joined(bob.hearUntilPong()) == "text before, text it, text after");
}

TEST_CASE("process() gets text, binary and JSON, and may keep or change the message") {
    Server server;
    std::vector<WSMessage> kept;
    server.onProcess = [&](User &user, WSMessage &msg) {
        kept.push_back(msg);
        if (!msg.json().isObject()) return;
        Json::Value json = msg.json();
        json["id"] = Json::UInt64(user.id());
        msg = json;
        server.sendToUser(user, msg);
    };
    Peer ada(server);
    for (const char *json : {"{\"a\":[1,\"\xC3\xA4\"]}", "[]", "{\"a\":1} x", "5", "{\"a\":1e3}"})
        ada.send(frame(kText, json));
    ada.send(frame(kBinary, "{}") + frame(kBinary, "\xFF\0"s) + frame(kText, ""));
    CHECK(joined(ada.hearUntilPong()) ==
          "text {\"a\":[1,\"\xC3\xA4\"],\"id\":1}, text {\"a\":1000.0,\"id\":1}");
    REQUIRE(kept.size() == 8);
    const std::vector<bool> isJson{true, true, false, false, true, false, false, false};
    for (std::size_t i = 0; i < kept.size(); ++i) {
        CAPTURE(i);
        CHECK(kept[i].isJson() == isJson[i]);
        CHECK(kept[i].isBinary() == (i == 5 || i == 6));
    }
    CHECK(kept[0].json()["a"][1].asString() == "\xC3\xA4");
    CHECK(kept[3].json().isNull());
    CHECK(kept[6].payload() == "\xFF\0"s);
    CHECK(kept[7].payload().empty());
}

TEST_CASE("JSON is read within maxJsonDepth and maxJsonValues") {
    Server server([](Config &config) {
        config.maxJsonDepth = 2;
        config.maxJsonValues = 4;
    });
    std::string read;
    server.onProcess = [&](User &, WSMessage &msg) { read += msg.isJson() ? '+' : '-'; };
    Peer peer(server);
    for (const char *json : {"[[1]]", "[[[1]]]", "[1,2,3]", "[1,2,3,4]"})
        peer.send(frame(kText, json));
    CHECK(peer.hearUntilPong().empty());
    CHECK(read == "+-+-");
}

TEST_CASE("A user counts as connected from postConnect() until preDisconnect()") {
    Server server;
    Strings seen;
    const auto look = [&](const char *hook, User &user) {
        std::string line = hook;
        std::set<std::uint64_t> ids;  // users() has no order
        for (const User &one : server.users()) ids.insert(one.id());
        for (const std::uint64_t id : ids) line += ' ' + std::to_string(id);
        line += " count " + std::to_string(server.userCount());
        line += server.sendToUser(user, "x") ? " sent" : " not sent";
        seen.push_back(line);
    };
    Peer witness(server);
    server.onPreConnect = [&](User &user) { look("preConnect", user); };
    server.onPostConnect = [&](User &user) { look("postConnect", user); };
    server.onPreDisconnect = [&](User &user) { look("preDisconnect", user); };
    Peer ada(server);
    CHECK(::fcntl(server.user(2).socket(), F_GETFD) == FD_CLOEXEC);
    ada.send(closeFrame(1000));
    CHECK(ada.hearAll() == Strings{"text x", "close 1000", "EOF"});
    CHECK(joined(seen) ==
          "preConnect 1 count 1 not sent, postConnect 1 2 count 2 sent, "
          "preDisconnect 1 count 1 not sent");
}

TEST_CASE("Ids are never reused") {
    Server server;
    server.onPreConnect = [&](User &user) {
        if (user.request().path() == "/refused") server.refuse(user, 403);
    };
    for (int i = 1; i <= 5; ++i) {
        Peer peer(server);
        CHECK(server.user(2 * static_cast<std::uint64_t>(i) - 1).id() > 0);
        Client other(server);
        other.send(upgrade("/refused"));
        CHECK(other.status() == 403);
        peer.reset();
        pump(server, "the end", [&] { return server.userCount() == 0; });
    }
    checkPairs(server, 5);
}

TEST_CASE("findUser() finds a user from postConnect() until its disconnect") {
    Server server;
    const auto isFound = [&](User &user) { return server.findUser(user.id()) == &user; };
    server.onPreConnect = [&](User &user) {
        CHECK(server.findUser(user.id()) == nullptr);
        if (user.request().path() == "/refused") server.refuse(user, 403);
        if (user.request().path() == "/throws") throw std::runtime_error("on purpose");
    };
    server.onPostConnect = [&](User &user) { CHECK(isFound(user)); };
    server.onProcess = [&](User &user, WSMessage &) {
        CHECK(isFound(user));
        server.disconnect(user);
        CHECK(server.findUser(user.id()) == nullptr);
    };
    server.onPreDisconnect = [&](User &user) { CHECK(server.findUser(user.id()) == nullptr); };
    Peer ada(server), bob(server);
    for (const char *path : {"/refused", "/throws"}) {
        Client other(server);
        other.send(upgrade(path));
        CHECK(other.status() >= 400);
    }
    Peer eve(server);
    User *found = server.findUser(2);
    REQUIRE(found != nullptr);
    CHECK(found->id() == 2);
    for (const auto id : std::vector<std::uint64_t>{0, 3, 4, 6})
        CHECK(server.findUser(id) == nullptr);
    bob.send(frame(kText, "kick me"));
    CHECK(bob.hear() == "close 1000");
    ada.reset();
    pump(server, "ada's end", [&] { return server.userCount() == 1; });
    for (const auto id : std::vector<std::uint64_t>{1, 2, 3, 4})
        CHECK(server.findUser(id) == nullptr);
    CHECK(server.findUser(5) == &server.user(5));
    server.turn(0ms);
}

TEST_CASE("preShutdown() can veto a shutdown, and is asked again the next time") {
    Server server;
    Peer ada(server);
    bool allowed = false;
    server.onPreShutdown = [&](bool &doShutdown) { doShutdown = allowed; };
    server.shutdown();
    server.turn(0ms);
    server.stop();
    pump(server, "the second preShutdown()", [&] { return server.hooks.size() == 4; });
    CHECK(joined(server.hooks) == "preConnect 1, postConnect 1, preShutdown, preShutdown");
    ada.send(frame(kText, "still served"));
    CHECK(ada.hear() == "text still served");
    CHECK(server.turn(0ms));
    Peer bob(server);  // newcomers are still accepted
    allowed = true;
    server.shutdown();
    CHECK(ada.hear() == "close 1001");
    ada.close();
    bob.close();
    server.takeLastTurns();
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "preShutdown") == 3);
    CHECK(std::count(server.hooks.begin(), server.hooks.end(), "postShutdown") == 1);
    checkPairs(server);
}

// ----------------------------------------------------------------------------
// Sending and disconnecting
// ----------------------------------------------------------------------------

TEST_CASE("sendToUser() returns whether the message is on its way") {
    Server server([](Config &config) { config.maxQueuedBytes = 1000; });
    Peer ada(server), bob(server), eve(server);
    User &first = server.user(1), &second = server.user(2), &third = server.user(3);

    CHECK(server.sendToUser(first, std::string(50'000'000, 'x')));  // a single message always fits
    CHECK_FALSE(server.sendToUser(first, "y"));  // full: the user is disconnected
    CHECK_FALSE(server.sendToUser(first, "z"));
    CHECK(first.closeCode() == 1008);

    server.disconnect(second, 1000);
    CHECK_FALSE(server.sendToUser(second, "too late"));
    CHECK(joined(server.hooks).find("too late") == std::string::npos);

    server.onPreSend = [&](User &user, WSMessage &) { server.disconnect(user, 4000); };
    CHECK_FALSE(server.sendToUser(third, "kept back"));
    CHECK(joined(server.hooks).find("postSend 3") == std::string::npos);
    CHECK(eve.hear() == "close 4000");
    eve.send(closeFrame(4000));
    CHECK(eve.hear() == "EOF");  // nothing followed our Close
    CHECK(bob.hear() == "close 1000");
}

TEST_CASE("Sends to several users return the number of users reached") {
    Server server;
    Peer ada(server), bob(server), eve(server), dan(server);
    User &first = server.user(1);
    CHECK(server.sendToAll("a") == 4);
    CHECK(server.sendToAllBut(first, "b") == 3);
    CHECK(server.sendToIf([](const User &user) { return user.id() % 2 == 0; }, "c") == 2);
    CHECK(server.sendToIf([](const User &) { return false; }, "d") == 0);
    server.disconnect(server.user(2));
    CHECK(server.sendToAll("e") == 3);
    CHECK(server.sendToAllBut(first, "f") == 2);
    CHECK(server.userCount() == 3);
    server.onPreSend = [&](User &user, WSMessage &) {
        if (user.id() == 3) throw std::runtime_error("not this one");
    };
    CHECK(server.sendToAll("g") == 2);
    CHECK(joined(ada.hearUntilPong()) == "text a, text e, text g");
    CHECK(joined(bob.hearUntilPong()) == "text a, text b, text c, close 1000");
    CHECK(joined(eve.hearUntilPong()) == "text a, text b, text e, text f, close 1011, EOF");
    CHECK(joined(dan.hearUntilPong()) == "text a, text b, text c, text e, text f, text g");
}

TEST_CASE("disconnect() delivers what was sent before, and truncates a long reason") {
    Server server;
    Peer ada(server);
    User &user = server.user(1);
    for (const int code : {0, 999, 1004, 1005, 1006, 1015, 2999, 5000, -1})
        CHECK_THROWS_AS(server.disconnect(user, code), std::invalid_argument);
    CHECK_THROWS_AS(server.disconnect(user, 1000, "\xFF"), std::invalid_argument);
    CHECK_THROWS_AS(server.disconnect(user, 1000, std::string(122, 'x') + "\xC3"),
                    std::invalid_argument);
    CHECK(server.userCount() == 1);

    CHECK(server.sendToUser(user, "before"));
    server.disconnect(user, 4999, std::string(122, 'x') + "\xC3\xA4 and more");
    CHECK(ada.hear() == "text before");
    const std::optional<Peer::Frame> last = ada.next();
    REQUIRE(last);
    CHECK(last->opcode == kClose);
    CHECK(last->payload == networkOrder(4999, 2) + std::string(122, 'x'));
    CHECK(server.reasons == Strings{std::string(122, 'x')});
}

TEST_CASE("refuse() answers with its status and text, disconnect() with 403") {
    struct Row {
        std::string label;
        std::function<void(Server &, User &)> refuses;
        int status;
        const char *body;
    };
    const std::vector<Row> rows = {
        {"A status and a text.", [](Server &s, User &u) { s.refuse(u, 401, "Who are you?"); }, 401,
         "Who are you?\n"},
        {"No text.", [](Server &s, User &u) { s.refuse(u, 429); }, 429, ""},
        {"The smallest status.", [](Server &s, User &u) { s.refuse(u, 400); }, 400, ""},
        {"The largest status.", [](Server &s, User &u) { s.refuse(u, 599, "\xC3\xA4"); }, 599,
         "\xC3\xA4\n"},
        {"disconnect() instead.", [](Server &s, User &u) { s.disconnect(u, 4000, "no"); }, 403,
         "no\n"},
        {"A status that is too small.", [](Server &s, User &u) { s.refuse(u, 399); }, 500, nullptr},
        {"A status that is too large.", [](Server &s, User &u) { s.refuse(u, 600); }, 500, nullptr},
        {"It refuses another user.", [](Server &s, User &) { s.refuse(s.user(1), 403); }, 500,
         nullptr},
        {"It refuses, then disconnects: the first call counts.",
         [](Server &s, User &u) {
             s.refuse(u, 401, "Who are you?");
             s.disconnect(u);
         },
         401, "Who are you?\n"},
        {"It refuses, then throws.",
         [](Server &s, User &u) {
             s.refuse(u, 403);
             throw 1;
         },
         500, nullptr},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        const Peer witness(server);
        server.onPreConnect = [&](User &user) { row.refuses(server, user); };
        Client client(server);
        client.send(upgrade() + frame(kText, "never seen"));
        const Answer answer = client.answer();
        CHECK(answer.status == row.status);
        if (row.body != nullptr) CHECK(answer.body == row.body);
        CHECK(joined(server.hooks) == "preConnect 1, postConnect 1, preConnect 2");
        CHECK(server.userCount() == 1);
    }
}

TEST_CASE("setHeader() adds to the answer, whatever it becomes") {
    Server server;
    server.onPreConnect = [&](User &user) {
        const std::string path = user.request().path();
        server.setHeader(user, "WWW-Authenticate", "Bearer");  // RFC 9110 15.5.2
        if (path == "/refused") server.refuse(user, 401, "{}");
        if (path == "/closed") server.disconnect(user);
        server.setHeader(user, "Set-Cookie", "a=1");
        server.setHeader(user, "Set-Cookie", "b=2");
        if (path == "/json") server.setHeader(user, "content-type", "application/json");
        if (path == "/json") server.refuse(user, 403, "{}");
        if (path == "/throws") throw std::runtime_error("on purpose");
    };
    const std::vector<std::pair<const char *, int>> rows = {
        {"/", 101}, {"/refused", 401}, {"/closed", 403}, {"/json", 403}, {"/throws", 500}};
    for (const auto &row : rows) {
        const char *path = row.first;
        const int status = row.second;
        CAPTURE(path);
        Client client(server);
        client.send(upgrade(path) + (status == 101 ? closeFrame(1000) : ""));
        const std::string head = client.head();
        CHECK(has(head, "HTTP/1.1 " + std::to_string(status) + ' '));
        CHECK(has(head, "\r\nWWW-Authenticate: Bearer\r\n"));
        CHECK(has(head, "\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"));
        CHECK(has(head, "text/plain") == (status >= 400 && path != "/json"s));
        CHECK(has(head, "application/json") == (path == "/json"s));
    }
    server.onPreConnect = [&](User &user) { server.refuse(user, 426); };
    Client old(server);
    old.send(upgrade());
    CHECK(old.answer().header("Upgrade") == "websocket");  // RFC 9110 15.5.22
    server.onPreConnect = nullptr;
    Client client(server);
    client.send(upgrade());
    CHECK_FALSE(has(client.head(), "Cookie"));  // it was for the others
}

TEST_CASE("setHeader() throws for what WSResponse may not have, and outside preConnect()") {
    Server server;
    int threw = 0;
    const std::vector<std::pair<std::string, std::string>> rows = {{"", "a"},
                                                                   {"A B", "a"},
                                                                   {"A:", "a"},
                                                                   {"A", "a\r\nB: c"},
                                                                   {"A", "\n"},
                                                                   {"A", "a\0"s},
                                                                   {"Content-Length", "0"},
                                                                   {"date", "a"},
                                                                   {"Connection", "a"},
                                                                   {"Transfer-Encoding", "a"},
                                                                   {"UPGRADE", "a"},
                                                                   {"Sec-WebSocket-Accept", "a"},
                                                                   {"sec-websocket-protocol", "a"}};
    server.onPreConnect = [&](User &user) {
        for (const auto &row : rows) {
            CAPTURE(row.first);
            CHECK_THROWS_AS(server.setHeader(user, row.first, row.second), std::invalid_argument);
            ++threw;
        }
    };
    const Peer peer(server);
    CHECK(threw == 13);
    CHECK_THROWS_AS(server.setHeader(server.user(1), "A", "b"), std::logic_error);
}

namespace {

// What trace() was given: all bytes in either direction, and the directions in their order.
struct Wire {
    std::string received, sent, order;

    explicit Wire(Server &server) {
        server.onTrace = [this](User &, WSDirection direction, std::string_view bytes) {
            CHECK_FALSE(bytes.empty());
            (direction == WSDirection::received ? received : sent) += bytes;
            order += direction == WSDirection::received ? 'r' : 's';
        };
    }
};

}  // namespace

TEST_CASE("trace() gets all bytes of a user, as they came and went") {
    const std::string frames = frame(kText, "hi") + frame(kPing, "p") + closeFrame(1000, "bye");
    const std::string all = upgrade("/", "Cookie: a=b\r\n") + frames;
    SUBCASE("that come in one packet") {
        Server server;
        Wire wire(server);
        Client client(server);
        client.send(all);
        client.wait("the end", [&] { return !client.end.empty(); });
        CHECK(wire.received == all);
        CHECK(wire.sent == client.input);
        CHECK(wire.order == "rsrsss");  // request and answer, the frames, an answer to each
    }
    SUBCASE("that come one by one") {
        Server server;
        Wire wire(server);
        Client client(server);
        for (const char &byte : all) client.step({&byte, 1});
        client.wait("the end", [&] { return !client.end.empty(); });
        CHECK(wire.received == all);
        CHECK(wire.sent == client.input);
        CHECK(wire.order.substr(0, 3) == "rsr");  // the whole request at once, its answer, a byte
        CHECK(std::count(wire.order.begin(), wire.order.end(), 'r') ==
              static_cast<std::ptrdiff_t>(1 + frames.size()));
    }
    SUBCASE("of which the kernel takes a part at a time") {
        Server server;
        Wire wire(server);
        Peer peer(server, "/", "", 4096);
        const std::string large(3'000'000, 'x'), small(30, 'y');
        server.sendToUser(server.user(1), WSMessage(large));
        for (int i = 0; i < 200; ++i) server.sendToUser(server.user(1), WSMessage(small));
        peer.wait("all of it", [&] { return peer.input.size() == 3'000'010 + 200 * 32; });
        CHECK(wire.sent == peer.response + peer.input);
        CHECK(wire.order == "rs" + std::string(201, 's'));  // a call for each frame
    }
}

TEST_CASE("trace() begins behind preConnect() and ends before preDisconnect()") {
    Server server;
    server.onTrace = [&](User &user, WSDirection direction, std::string_view) {
        server.hooks.push_back(direction == WSDirection::received ? "received" : "sent");
        CHECK(user.id() == 1);
    };
    Peer peer(server);
    peer.send(closeFrame(1000));
    CHECK(peer.hearAll() == Strings{"close 1000", "EOF"});
    CHECK(joined(server.hooks) ==
          "preConnect 1, received, sent, postConnect 1, received, sent, preDisconnect 1 1000, "
          "postDisconnect");
    Client refused(server);
    server.onPreConnect = [&](User &user) { server.refuse(user, 403); };
    refused.send(upgrade());
    CHECK(refused.status() == 403);  // a CHECK in onTrace would have failed
}

TEST_CASE("What trace() sends, to whomever, is not traced") {
    Server server;
    std::size_t calls = 0;
    server.onTrace = [&](User &, WSDirection, std::string_view bytes) {
        const std::string before(bytes);
        ++calls;
        for (int i = 0; i < 50; ++i) server.sendToAll(std::string(2000, 'x'));
        CHECK(bytes == before);  // sending has not moved what it was given
    };
    Peer first(server);  // its request is traced before it can be sent to, its 101 afterwards
    for (int i = 0; i < 50; ++i) CHECK(first.hear().size() == 2005);
    Peer second(server);
    for (int i = 0; i < 100; ++i) CHECK(first.hear().size() == 2005);
    for (int i = 0; i < 50; ++i) CHECK(second.hear().size() == 2005);
    CHECK(calls == 4);
    CHECK(first.hearUntilPong().size() == 50);  // for the ping; those for the pong follow it
}

TEST_CASE("A trace() that sends more than a queue holds costs its user the connection") {
    Server server;
    server.onTrace = [&](User &user, WSDirection, std::string_view) {
        while (server.sendToUser(user, std::string(300'000, 'x'))) {}
    };
    Client client(server);
    client.send(upgrade());
    client.wait("the end", [&] { return !client.end.empty(); });
    pump(server, "the last hook", [&] { return server.hooks.back() == "postDisconnect"; });
    CHECK(has(joined(server.hooks), "preDisconnect 1 1008"));
}

TEST_CASE("trace() may throw or disconnect its user at each of its calls") {
    for (int call = 1; call <= 6; ++call)
        for (const bool throws : {true, false}) {
            CAPTURE(call);
            CAPTURE(throws);
            Server server;
            int calls = 0;
            server.onTrace = [&](User &user, WSDirection, std::string_view) {
                if (++calls != call) return;
                if (throws) throw std::runtime_error("on purpose");
                server.disconnect(user, 4000);
            };
            Client client(server);
            for (const std::string &bytes :  // each causes two calls
                 {upgrade(), frame(kText, "hi"), closeFrame(1000)}) {
                client.send(bytes);
                for (int turn = 0; turn < 5; ++turn) server.turn(kTurn);
            }
            client.wait("the end", [&] { return !client.end.empty(); });
            CHECK(calls >= call);
            if (call == 1) {  // as in preConnect()
                CHECK(has(client.input, throws ? "HTTP/1.1 500 " : "HTTP/1.1 403 "));
                continue;
            }
            pump(server, "the last hook", [&] { return server.hooks.back() == "postDisconnect"; });
            CHECK(has(client.input, "HTTP/1.1 101 "));
            const int code = call == 6 ? 1000 : throws ? 1011 : 4000;  // the first end counts
            const std::string close = networkOrder(0x88, 1);
            CHECK(has(client.input, close));
            CHECK(client.input.find(close) == client.input.rfind(close));
            CHECK(has(joined(server.hooks), "preDisconnect 1 " + std::to_string(code)));
            checkPairs(server);
        }
}

TEST_CASE("The default trace() is called once, and never again") {
    struct Counting : Server {
        using Server::tracing_;
    };
    Counting server;
    CHECK(server.tracing_);
    Peer peer(server);
    CHECK_FALSE(server.tracing_);
    peer.send(frame(kText, "hi"));
    CHECK(peer.hear() == "text hi");
}

TEST_CASE("refuse() throws outside preConnect()") {
    Server server;
    bool threw = false;
    server.onPostConnect = [&](User &user) {
        CHECK_THROWS_AS(server.refuse(user, 403), std::logic_error);
        threw = true;
    };
    const Peer ada(server);
    CHECK(threw);
    CHECK_THROWS_AS(server.refuse(server.user(1), 403), std::logic_error);
    CHECK(server.userCount() == 1);
}

namespace {

struct Unwilling : WSBaseUser {
    Unwilling() { throw std::runtime_error("no more of us"); }
};

class UnwillingServer : public WebSocketServer<Unwilling, Config> {
    void process(Unwilling &, WSMessage &) override {}
    void preConnect(Unwilling &, int) override { FAIL("there is no user to connect"); }
    void console(WSLevel, std::string_view) override {}
};

}  // namespace

TEST_CASE("When the constructor of a user throws, the client gets 500") {
    UnwillingServer server;
    server.listen();
    for (int i = 0; i < 2; ++i) {
        Client client(server);
        client.send(upgrade());
        CHECK(client.status() == 500);
    }
    CHECK(server.userCount() == 0);
}

TEST_CASE("A loop over users() may disconnect its current user and later ones") {
    Server server;
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < 6; ++i) peers.push_back(std::make_unique<Peer>(server));
    std::vector<std::uint64_t> met;
    for (User &user : server.users()) {
        met.push_back(user.id());
        server.disconnect(user);
        if (user.id() == 2) server.disconnect(server.user(4));
    }
    CHECK(met == std::vector<std::uint64_t>{1, 2, 3, 5, 6});
    CHECK(server.userCount() == 0);
    CHECK_FALSE(server.users().begin() != server.users().end());
    for (const auto &peer : peers) {
        CHECK(peer->hear() == "close 1000");
        peer->send(closeFrame(1000));
        CHECK(peer->hear() == "EOF");
    }
    checkPairs(server);
}

// ----------------------------------------------------------------------------
// The abuse table: every hook does everything it may do, and some things it may not
// ----------------------------------------------------------------------------

namespace {

struct Abuse {
    std::string label;
    std::function<void(Server &, User *self)> act;  // self: null in hooks without a user
    bool witnessStays;
};

const std::vector<Abuse> kAbuses = {
    {"disconnects its own user",
     [](Server &server, User *self) {
         if (self != nullptr) server.disconnect(*self, 4000);
     },
     true},
    {"disconnects another user",
     [](Server &server, User *) {
         for (User &user : server.users())
             if (user.id() == 2) server.disconnect(user, 4000);
     },
     true},
    {"disconnects all users in a loop",
     [](Server &server, User *) {
         for (User &user : server.users()) server.disconnect(user, 4000);
     },
     false},
    {"sends to all", [](Server &server, User *) { server.sendToAll("from a hook"); }, true},
    {"sends to a user that it has disconnected",
     [](Server &server, User *) {
         for (User &user : server.users()) {
             if (user.id() != 2) continue;
             server.disconnect(user, 4000);
             CHECK_FALSE(server.sendToUser(user, "too late"));
         }
     },
     true},
    {"sends until a queue is full",
     [](Server &server, User *) {
         for (User &user : server.users())
             if (user.id() == 2)
                 while (server.sendToUser(user, std::string(300'000, 'x'))) {}
     },
     true},
    {"shuts the server down", [](Server &server, User *) { server.shutdown(); }, false},
    {"stops the server", [](Server &server, User *) { server.stop(); }, false},
    {"throws an exception", [](Server &, User *) { throw std::runtime_error("on purpose"); }, true},
    {"throws an int", [](Server &, User *) { throw 7; }, true},
    {"refuses a user",
     [](Server &server, User *self) {
         for (User &user : server.users()) server.refuse(self != nullptr ? *self : user, 403);
     },
     true},
    {"calls turn()", [](Server &server, User *) { server.turn(0ms); }, true},
};

const Strings kHooks = {"preConnect",   "postConnect",   "process",        "preSend",
                        "postSend",     "preDisconnect", "postDisconnect", "preShutdown",
                        "postShutdown", "httpRequest",   "drained",        "trace"};

// Makes `hook` of the third user run the abuse once.
void arm(Server &server, const std::string &hook, const Abuse &abuse) {
    const auto once = [&server, hook, abuse, done = std::make_shared<bool>()](const char *name,
                                                                              User *self) {
        if (hook != name || *done || (self != nullptr && self->id() != 3)) return;
        *done = true;
        abuse.act(server, self);
    };
    server.onPreConnect = [=](User &user) { once("preConnect", &user); };
    server.onPostConnect = [=](User &user) { once("postConnect", &user); };
    server.onPreSend = [=](User &user, WSMessage &) { once("preSend", &user); };
    server.onPostSend = [=](User &user, WSMessage &) { once("postSend", &user); };
    server.onDrained = [=](User &user) { once("drained", &user); };
    server.onPreDisconnect = [=](User &user) { once("preDisconnect", &user); };
    server.onPostDisconnect = [=] { once("postDisconnect", nullptr); };
    server.onTrace = [=](User &user, WSDirection, std::string_view) { once("trace", &user); };
    server.onPreShutdown = [=](bool &) { once("preShutdown", nullptr); };
    server.onPostShutdown = [=] { once("postShutdown", nullptr); };
    server.onHttp = [=](const WSRequest &, WSResponse &) { once("httpRequest", nullptr); };
    server.onProcess = [=, &server](User &user, WSMessage &msg) {
        once("process", &user);
        server.sendToAll(msg);
    };
}

}  // namespace

TEST_CASE("Whatever a hook does, hooks stay paired and the server serves the other users") {
    for (const std::string &hook : kHooks) {
        for (const Abuse &abuse : kAbuses) {
            INFO(hook, "() ", abuse.label);
            Server server([](Config &config) {
                config.closeSeconds = 100;  // no test waits for it
                config.lowMarkBytes = 0;    // drained() follows each send
            });
            arm(server, hook, abuse);  // before all: trace() counts as overridden or not
            Peer witness(server), other(server);

            // The third user lives its whole life in one packet, but stays until drained() if that
            // is the hook. Then a client requests a page.
            Client actor(server), reader(server);
            const bool stays = hook == "drained";
            actor.send(upgrade() + frame(kText, "hi") + (stays ? "" : closeFrame(1000)));
            if (stays)
                pump(server, "drained()", [&] { return has(joined(server.hooks), "drained 3"); });
            if (stays) actor.send(closeFrame(1000));
            actor.wait("the end", [&] { return !actor.end.empty(); });
            CHECK(actor.end == "EOF");
            reader.send("GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
            CHECK(reader.status() >= 400);

            const bool atEnd = has(hook, "Shutdown");  // other hooks have run by now
            if (abuse.witnessStays || atEnd) {
                witness.send(frame(kText, "still here"));
                CHECK(witness.hearUntilPong().back() == "text still here");
            } else {
                std::string heard = witness.hear();
                while (has(heard, "text ")) heard = witness.hear();
                CHECK((heard == "close 1001" || heard == "close 4000"));
            }
            server.shutdown();
            other.close();
            witness.close();
            server.takeLastTurns();
            CHECK(server.userCount() == 0);
            const bool refused = (hook == "preConnect" || hook == "trace") &&
                                 has(actor.input, "HTTP/1.1 ") &&
                                 !has(actor.input, "HTTP/1.1 101 ");
            checkPairs(server, refused ? 1 : 0);
        }
    }
}
