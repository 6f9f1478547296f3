// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The README's ready answers. The README quotes the lines between "// [title]" and "// [end]"
// word for word; here they run.

#include "black.h"

#include <csignal>
#include <map>

using namespace black;

namespace {

struct ChatUser : WSBaseUser {
    std::string nick, room, browser;
};

using Chat = WebSocketServer<ChatUser, Config>;

// A chat that listens and sends nothing by itself.
class QuietChat : public Chat {
  public:
    explicit QuietChat(Config config = Config()) : Chat(std::move(config)) { listen(); }
    void process(ChatUser &, WSMessage &) override {}
};

// Stand-ins for a look into a database and for slow work.
std::string nickOf(const std::string &session) { return session == "1f2e3d" ? "Ann" : ""; }
std::string slowAnswer(const std::string &question) { return question + " 42"; }

// The status of the answer to a handshake with these headers.
int statusFor(WSBaseServer &server, const std::string &target, const std::string &headers = {}) {
    Client client(server);
    client.send(upgrade(target, headers));
    return std::stoi(client.head().substr(9, 3));
}

}  // namespace

TEST_CASE("A hook sends to one user, to all users or to some of them") {
    class Server : public QuietChat {
        void preConnect(ChatUser &user, int) override { user.room = user.request().path(); }
        void process(ChatUser &user, WSMessage &) override {
            // [Send to one, to all, to some]
            sendToUser(user, "for you");
            sendToAll("for everybody");
            sendToAllBut(user, "for all but you");
            sendToIf([&](ChatUser &other) { return other.room == user.room; }, "for your room");
            // [end]
        }
    } server;
    Peer ann(server, "/blue"), bob(server, "/blue"), cleo(server, "/red");
    ann.send(frame(kText, "go"));
    CHECK(joined({ann.hear(), ann.hear(), ann.hear()}) ==
          "text for you, text for everybody, text for your room");
    CHECK(joined({bob.hear(), bob.hear(), bob.hear()}) ==
          "text for everybody, text for all but you, text for your room");
    CHECK(joined(cleo.hearUntilPong()) == "text for everybody, text for all but you");
}

TEST_CASE("A session cookie tells who a user is, and strangers are refused with 401") {
    class Server : public QuietChat {
        // [Who is this?]
        void preConnect(ChatUser &user, int) override {
            user.nick = nickOf(user.request().cookie("session"));  // your database knows
            if (user.nick.empty()) refuse(user, 401, "log in first");
        }
        void process(ChatUser &user, WSMessage &msg) override {
            sendToAll(user.nick + " (" + std::to_string(user.id()) + "): " + msg.payload());
        }
        // [end]
    } server;
    CHECK(statusFor(server, "/") == 401);
    CHECK(statusFor(server, "/", "Cookie: session=guessed\r\n") == 401);
    Peer ann(server, "/", "Cookie: session=1f2e3d\r\n");
    ann.send(frame(kText, "hello"));
    CHECK(ann.hear() == "text Ann (3): hello");
}

TEST_CASE("preConnect() knows the path, the query and the headers") {
    class Server : public QuietChat {
        // [Path and headers]
        void preConnect(ChatUser &user, int) override {
            const WSRequest &request = user.request();
            if (request.path() != "/chat") return refuse(user, 404, "the chat is at /chat");
            user.room = request.parameter("room");  // "blue sky" in "/chat?room=blue+sky"
            user.browser = request.header("User-Agent");
        }
        // [end]
    } server;
    CHECK(statusFor(server, "/") == 404);
    Peer ann(server, "/chat?room=blue+sky", "User-Agent: some browser\r\n");
    CHECK((*server.users().begin()).room == "blue sky");
    CHECK((*server.users().begin()).browser == "some browser");
}

TEST_CASE("A close carries a code and a reason, and preDisconnect() knows both") {
    class Server : public QuietChat {
      public:
        Strings ends;

      private:
        // [Close with a reason]
        void process(ChatUser &user, WSMessage &msg) override {
            if (msg.isBinary()) return disconnect(user, 1003, "text only, please");
            if (msg.payload() == "/quit") disconnect(user, 4000, "see you");
        }
        void preDisconnect(ChatUser &user, int) override {  // whichever side closed
            ends.push_back(std::to_string(user.closeCode()) + ' ' + user.closeReason());
        }
        // [end]
    } server;
    Peer ann(server), bob(server), cleo(server);
    ann.send(frame(kText, "/quit"));
    CHECK(ann.hear() == "close 4000");
    bob.send(frame(kBinary, "/quit"));
    CHECK(bob.hear() == "close 1003");
    cleo.send(closeFrame(1001, "gone for lunch"));
    CHECK(cleo.hear() == "close 1001");
    pump(server, "three disconnects", [&] { return server.ends.size() == 3; });
    CHECK(joined(server.ends) == "4000 see you, 1003 text only, please, 1001 gone for lunch");
}

TEST_CASE("Another thread posts its answer to the user that asked") {
    class Server : public QuietChat {
      public:
        ~Server() override {
            for (std::thread &worker : workers) worker.join();
        }

      private:
        std::vector<std::thread> workers;
        void process(ChatUser &user, WSMessage &msg) override {
            // [From another thread]
            workers.emplace_back([this, id = user.id(), question = msg.payload()] {
                const std::string answer = slowAnswer(question);  // in the worker's thread
                post([this, id, answer] {                         // in the server's thread
                    if (ChatUser *asker = findUser(id)) sendToUser(*asker, answer);
                });
            });
            // [end]
        }
    } server;
    Peer ann(server), bob(server);
    bob.send(frame(kText, "I am gone before I know:"));
    bob.reset();
    ann.send(frame(kText, "the answer is"));
    CHECK(ann.hear() == "text the answer is 42");
}

TEST_CASE("Timers fire in the order of their delays") {
    class Server : public QuietChat {
        using QuietChat::QuietChat;
        std::multimap<std::chrono::steady_clock::time_point, std::function<void()>> timers;

        // [Timers]
        void tick() override {
            const auto now = std::chrono::steady_clock::now();
            while (!timers.empty() && timers.begin()->first <= now)
                timers.extract(timers.begin()).mapped()();
        }
        void after(std::chrono::milliseconds delay, std::function<void()> what) {
            timers.emplace(std::chrono::steady_clock::now() + delay, std::move(what));
        }
        // [end]
        void postConnect(ChatUser &, int) override {
            after(100ms, [this] { sendToAll("later"); });
            after(10ms, [this] { sendToAll("soon"); });
        }
    };
    Config config;
    config.tickSeconds = 0.01;
    Server server(config);
    Peer ann(server);
    CHECK(joined({ann.hear(), ann.hear()}) == "text soon, text later");
}

TEST_CASE("A health check gets the number of users, other requests get 426") {
    class Server : public QuietChat {
        // [Health check]
        void httpRequest(const WSRequest &request, WSResponse &response) override {
            if (request.path() != "/health") return;
            response.status = 200;
            response.headers = {{"Content-Type", "text/plain"}};
            response.body = std::to_string(userCount()) + " users\n";
        }
        // [end]
    } server;
    Peer ann(server);
    Client checker(server), other(server);
    checker.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const Answer answer = checker.answer();
    CHECK(answer.status == 200);
    CHECK(answer.body == "1 users\n");
    other.send("GET /wealth HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(other.status() == 426);
}

TEST_CASE("Behind a TLS proxy, only pages of the https origin connect") {
    Config config;
    // [TLS]
    config.address = "unix:/run/chat/socket";  // only the proxy reaches it,
    config.unixMode = 0660;                    // as a member of the file's group
    config.uniqueOrigin = {"https://chat.example.com"};
    // [end]
    config.address = "127.0.0.1";  // tests/black_listen_test.cpp covers Unix sockets
    QuietChat server(config);
    CHECK(statusFor(server, "/", "Origin: https://chat.example.com\r\n") == 101);
    CHECK(statusFor(server, "/", "Origin: http://chat.example.com\r\n") == 403);
}

TEST_CASE("Behind a proxy, a user has the address of the real client") {
    Config config;
    // [Behind a proxy]
    config.trustedProxies = {"127.0.0.1", "10.0.0.0/8"};  // your own proxies, no others
    config.maxUsersPerAddress = 20;                       // counts clients, not proxies
    config.pingSeconds = 20;                              // less than the proxies' idle timeout
    // [end]
    QuietChat server(config);
    Peer ann(server, "/", "X-Forwarded-For: 192.0.2.99, 192.0.2.7, 10.0.0.1\r\n");
    CHECK(server.findUser(1)->address() == "192.0.2.7");
    Peer bob(server);
    CHECK(server.findUser(2)->address() == "127.0.0.1");
}

TEST_CASE("Several processes share one port") {
    Config config;
    // [Several processes]
    config.port = 12345;
    config.reusePort = true;   // then start the program once per core
    config.maxUsers = 10'000;  // in each of them
    // [end]
    config.port = 0;
    QuietChat first(config);
    config.port = first.port();
    const QuietChat second(config);
    CHECK(second.port() == first.port());
}

TEST_CASE("SIGTERM makes run() return") {
    class ChatServer : public QuietChat {
        using QuietChat::QuietChat;
        void tick() override { std::raise(SIGTERM); }
    };
    Config config;
    config.tickSeconds = 0.01;
    // [How to stop]
    ChatServer server(config);
    server.stopOn({SIGINT, SIGTERM});
    server.run();  // returns when all users have received what was queued, and 1001
    // [end]
    CHECK(server.userCount() == 0);
}

TEST_CASE("A new user is told how many users are connected") {
    class Server : public QuietChat {
        // [How many users]
        void postConnect(ChatUser &user, int) override {
            sendToUser(user, std::to_string(userCount()) + " of at most " +
                                 std::to_string(config().maxUsers) + " are here");
        }
        // [end]
    } server;
    Peer ann(server), bob(server);
    CHECK(ann.hear() == "text 1 of at most 1000 are here");
    CHECK(bob.hear() == "text 2 of at most 1000 are here");
}
