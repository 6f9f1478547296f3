// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A chat for the browser. Start it and open the URL it prints: the server hands out the page
// chat.html on the same port, and the page connects back to /chat.
//
// Messages are JSON objects; "type" says what each one is. A page first sends a hello: until
// then its user is connected, but not in the chat. Everyone in the chat gets every message.
//
//     from the page     with                 to the page     with
//     hello             nick, session        welcome         you, nick, epoch, people, history
//     say               text, key            message         id, from, nick, text, time, key
//     nick              nick                 joined, left    nick
//     typing            -                    renamed         nick, was
//                                            typing          nick
//                                            error           about (a type), text, key
//
// "you" and "from" are user ids, "people" is a list of nicks, "history" a list of messages: the
// last 100, or as many of them as take 128 KiB. "time" is in milliseconds since 1970. Nicks are
// unique: one that is taken gets a number.
// Three things let a page reconnect without a gap or a duplicate:
//
// - Messages have the ids 1, 2, 3, …, and each run of the server has a random "epoch". So a
//   page knows which messages of the history it already has.
// - A page puts a random "key" on each message. If it cannot know whether a message arrived,
//   it sends that again; the server drops a message whose key it knows.
// - A page has a secret "session". It may be back before the server notices that its old
//   connection is dead; a new user with the same session then replaces the old one.
//
// For monitoring, GET /healthz answers "ok", and GET /metrics gives metrics for Prometheus.

#include "../server.h"
#include "chat.h"
#include "program.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

namespace {

struct ChatConfig : WSBaseConfig {
    ChatConfig() {
        debug = false;
        maxMessagesPerSecond = 20;
        maxMessageBytes = 64 * 1024;
    }
};

struct ChatUser : WSBaseUser {
    ChatUser() { maxIdle = 30; }  // who has not said hello by then makes room for others

    bool isHere() const { return !nick.empty(); }

    std::string nick;  // empty before hello
    std::string session;
};

// A message to pages about a user.
Json::Value about(const ChatUser &user, const char *type) {
    Json::Value message;
    message["type"] = type;
    message["nick"] = user.nick;
    return message;
}

// ----------------------------------------------------------------------------
// Metrics, in the text format of Prometheus.
// ----------------------------------------------------------------------------

using Samples = std::vector<std::pair<std::string, std::string>>;  // labels, value

std::string metric(const std::string &name, const char *type, const char *help,
                   const Samples &samples) {
    std::string text = "# HELP " + name + ' ' + help + "\n# TYPE " + name + ' ' + type + '\n';
    for (const auto &[labels, value] : samples) text += name + labels + ' ' + value + '\n';
    return text;
}

std::string gauge(const std::string &name, const char *help, std::uint64_t value) {
    return metric(name, "gauge", help, {{"", std::to_string(value)}});
}

std::string bothWays(const std::string &name, const char *help, std::uint64_t received,
                     std::uint64_t sent) {
    return metric(name, "counter", help,
                  {{"{direction=\"received\"}", std::to_string(received)},
                   {"{direction=\"sent\"}", std::to_string(sent)}});
}

std::string byNumber(const std::string &name, const char *help, const std::string &label,
                     const std::map<int, std::uint64_t> &counts) {
    Samples samples;
    for (const auto &[number, count] : counts)
        samples.emplace_back('{' + label + "=\"" + std::to_string(number) + "\"}",
                             std::to_string(count));
    return metric(name, "counter", help, samples);
}

std::string metricsOf(const WSStats &stats) {
    return gauge("chat_users", "Users connected.", stats.users) +
           gauge("chat_pending", "Connections in their handshake or closing.", stats.pending) +
           gauge("chat_queued_bytes", "Bytes queued for all connections.", stats.queuedBytes) +
           bothWays("chat_messages_total", "Messages.", stats.messagesReceived,
                    stats.messagesSent) +
           bothWays("chat_bytes_total", "Bytes on the wire.", stats.bytesReceived,
                    stats.bytesSent) +
           byNumber("chat_disconnects_total", "Users disconnected, by close code (RFC 6455 7.4).",
                    "code", stats.disconnects) +
           byNumber("chat_answers_total", "HTTP responses other than 101.", "status",
                    stats.answers) +
           metric("chat_turns_total", "counter", "Turns of the loop.",
                  {{"", std::to_string(stats.turns)}}) +
           metric("chat_longest_turn_seconds", "gauge", "Longest turn of the loop.",
                  {{"", std::to_string(stats.longestTurnSeconds)}});
}

// ----------------------------------------------------------------------------
// The server: its hooks, messages from a page, messages to pages.
// ----------------------------------------------------------------------------

class ChatServer : public WebSocketServer<ChatUser, ChatConfig> {
  public:
    ChatServer(ChatConfig config, std::string page)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {}

  private:
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        if (request.path() == "/healthz") return tell(response, "ok\n");
        if (request.path() == "/metrics") return tell(response, metricsOf(stats()));
        answerWithPage(request, response, page_);
    }

    void preConnect(ChatUser &user, int) override {
        if (user.request().path() != "/chat") refuse(user, 404, "The chat is at /chat\n");
    }

    void process(ChatUser &user, WSMessage &msg) override {
        const Json::Value &message = msg.json();
        if (!message.isObject()) return disconnect(user, 1007, "messages must be JSON objects");
        const std::string type = stringIn(message, "type");
        if (type == "hello") return hello(user, message);
        if (!user.isHere()) return complain(user, message, "Say hello first.");
        if (type == "say") return say(user, message);
        if (type == "nick") return rename(user, message);
        if (type == "typing") return tellOthers(user, about(user, "typing"));
        complain(user, message, "Unknown type of message.");
    }

    void preDisconnect(ChatUser &user, int) override {
        if (!user.isHere()) return;
        taken_.erase(folded(user.nick));
        tellOthers(user, about(user, "left"));
    }

    // --- messages from a page ---

    void hello(ChatUser &user, const Json::Value &message) {
        const std::string nick = tidyNick(stringIn(message, "nick"));
        if (user.isHere()) return complain(user, message, "You are already here.");
        if (nick.empty()) return complain(user, message, kUnfitNick);
        user.session = stringIn(message, "session");
        user.maxIdle = 0;
        const bool isBack = takeOver(user);
        if (!isBack) user.nick = claim(nick);
        sendToUser(user, welcome(user));
        if (isBack) return rename(user, message);  // the page may ask for a new nick
        tellOthers(user, about(user, "joined"));
    }

    void say(ChatUser &user, const Json::Value &message) {
        const std::string text = trimmed(stringIn(message, "text", kTextCharacters));
        const std::string key = stringIn(message, "key");
        if (text.empty()) return complain(user, message, "The message has no text.");
        if (!key.empty() && history_.has(key)) return;
        Json::Value said = about(user, "message");
        said["id"] = Json::UInt64(++lastId_);
        said["from"] = Json::UInt64(user.id());
        said["text"] = text;
        said["time"] = Json::Int64(millisecondsSince1970());
        if (!key.empty()) said["key"] = key;
        const WSMessage encoded(said);
        history_.remember(key, encoded);
        tellAll(encoded);
    }

    void rename(ChatUser &user, const Json::Value &message) {
        const std::string was = user.nick;
        const std::string nick = tidyNick(stringIn(message, "nick"));
        if (nick.empty()) return complain(user, message, kUnfitNick);
        taken_.erase(folded(was));
        user.nick = claim(nick);
        if (user.nick == was) return;
        Json::Value renamed = about(user, "renamed");
        renamed["was"] = was;
        tellAll(renamed);
    }

    // --- messages to pages ---

    void tellAll(const WSMessage &message) {
        sendToIf([](const ChatUser &other) { return other.isHere(); }, message);
    }

    void tellOthers(const ChatUser &user, const Json::Value &message) {
        sendToIf([&](const ChatUser &other) { return other.isHere() && &other != &user; }, message);
    }

    void complain(ChatUser &user, const Json::Value &message, const char *text) {
        Json::Value error;
        error["type"] = "error";
        error["about"] = stringIn(message, "type");
        error["text"] = text;
        error["key"] = stringIn(message, "key");
        sendToUser(user, error);
    }

    WSMessage welcome(const ChatUser &user) const {
        Json::Value message = about(user, "welcome");
        message["you"] = Json::UInt64(user.id());
        message["epoch"] = epoch_;
        std::string people;
        for (const ChatUser &other : users())
            if (other.isHere()) appendNick(people, other.nick);
        return welcomeOf(message, people, history_);
    }

    // Answers a program. (The version is that of Prometheus' text format.)
    static void tell(WSResponse &response, std::string text) {
        response.status = 200;
        response.headers = {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"},
                            {"Cache-Control", "no-store"}};
        response.body = std::move(text);
    }

    // --- nicks ---

    // Reserves `wish`, with the lowest number that makes it unique if it is taken.
    std::string claim(const std::string &wish) {
        int n = 1;
        while (!taken_.insert(folded(numbered(wish, n))).second) ++n;
        return numbered(wish, n);
    }

    // If the chat still has an old user of the same page, its connection must be dead: gives its
    // nick to `user` and returns true. Other pages see nobody leave or join.
    bool takeOver(ChatUser &user) {
        for (ChatUser &old : users()) {
            if (!old.isHere() || old.session.empty() || old.session != user.session) continue;
            user.nick.swap(old.nick);
            disconnect(old, 1000, "the page has reconnected");
            return true;
        }
        return false;
    }

    const std::string page_;
    const std::string epoch_ = randomHex();
    std::uint64_t lastId_ = 0;
    History history_;
    std::set<std::string> taken_;  // folded nicks
};

// ----------------------------------------------------------------------------
// The program
// ----------------------------------------------------------------------------

// The socket that a systemd .socket unit has opened for this process, or -1. It is descriptor 3;
// the environment says how many there are and for which process (sd_listen_fds(3)).
int socketOfSystemd() {
    const char *pid = std::getenv("LISTEN_PID");
    const char *count = std::getenv("LISTEN_FDS");
    if (!pid || !count || pid != std::to_string(::getpid())) return -1;
    if (std::string_view(count) != "1")
        throw std::runtime_error("the .socket unit must have one ListenStream, not " +
                                 std::string(count));
    return 3;
}

}  // namespace

int main(int argc, char **argv) {
    ChatConfig config;
    const std::vector<Option> options = {
        portOption("--port N", config),
        addressOption("--address HOST", config),
        originOption(config),
        {"--proxy ADDRESS", "believe this proxy about its clients: an address, a network or unix",
         [&](const std::string &value) { config.trustedProxies.push_back(value); }},
        verboseOption(config)};
    return runProgram(argc, argv, options, [&] {
        config.listenFd = socketOfSystemd();
        ChatServer server(config, readPage(argv[0], "chat.html"));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        const std::string systemd = server.port() != 0 ? "localhost" : "systemd's Unix socket";
        const std::string address = config.listenFd < 0 ? config.address : systemd;
        std::cout << placeOf(address, server.port()) << std::endl;
        server.run();
    });
}
