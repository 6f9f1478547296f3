// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A chat for the browser. Start it and open what it prints: the server hands out the page
// chat.html itself, on the same port, and the page connects back to /chat.
//
// Both ways, messages are JSON objects that say in "type" what they are. First comes a hello;
// before it somebody is connected, but not here. Whatever is said, everybody here is told.
//
//     from the page     with                 to the page     with
//     hello             nick, session        welcome         you, nick, epoch, people, history
//     say               text, key            message         id, from, nick, text, time, key
//     nick              nick                 joined, left    nick
//     typing            -                    renamed         nick, was
//                                            typing          nick
//                                            error           about (a type), text, key
//
// Beside the page, GET /healthz says "ok" as long as somebody is at home, and GET /metrics
// tells Prometheus what goes on.
//
// "you" and "from" are ids of users, "people" is a list of nicks, "history" one of messages,
// "time" is in milliseconds since 1970. No two people have the same nick: a taken one gets a
// number. Three things make it smooth to come back after the connection broke:
//
// - Messages have the ids 1, 2, 3, …, and a server has an "epoch", random at its start. So a
//   page knows which messages of the history it has already.
// - A page puts a random "key" on what it says. If it cannot know whether that has arrived, it
//   says it again: a known key is not heard twice.
// - A page has a "session", a secret of its own. While the server still waits for a dead
//   connection, the page may be back by another; the same session takes the old one's place.

#include "../server.h"
#include "chat.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
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

    bool wantsHelp = false;
};

struct ChatUser : WSBaseUser {
    ChatUser() { maxIdle = 30; }  // to say hello; from then on one may read in silence for ever

    bool isHere() const { return !nick.empty(); }

    std::string nick;  // empty before hello
    std::string session;
};

// A message to the page about somebody.
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
    return gauge("chat_users", "Who is connected.", stats.users) +
           gauge("chat_pending", "Connections that are no users, yet or any more.", stats.pending) +
           gauge("chat_queued_bytes", "What waits to be taken by them.", stats.queuedBytes) +
           bothWays("chat_messages_total", "Messages.", stats.messagesReceived,
                    stats.messagesSent) +
           bothWays("chat_bytes_total", "Bytes on the wire.", stats.bytesReceived,
                    stats.bytesSent) +
           byNumber("chat_disconnects_total", "Who left, by close code (RFC 6455 7.4).", "code",
                    stats.disconnects) +
           byNumber("chat_answers_total", "HTTP answers but 101.", "status", stats.answers) +
           metric("chat_turns_total", "counter", "Turns of the loop.",
                  {{"", std::to_string(stats.turns)}}) +
           metric("chat_longest_turn_seconds", "gauge", "How long everybody had to wait, at worst.",
                  {{"", std::to_string(stats.longestTurnSeconds)}});
}

// ----------------------------------------------------------------------------
// The server: its hooks, what a page may say, what pages are told.
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
        if (user.request().path() != "/chat") refuse(user, 404, "The chat connects to /chat\n");
    }

    void process(ChatUser &user, WSMessage &msg) override {
        const Json::Value &message = msg.json();
        if (!message.isObject()) return disconnect(user, 1007, "this chat speaks JSON objects");
        const std::string type = stringIn(message, "type");
        if (type == "hello") return hello(user, message);
        if (!user.isHere()) return complain(user, message, "Say hello first.");
        if (type == "say") return say(user, message);
        if (type == "nick") return rename(user, message);
        if (type == "typing") return tellOthers(user, about(user, "typing"));
        complain(user, message, "This chat does not know that type of message.");
    }

    void preDisconnect(ChatUser &user, int) override {
        if (!user.isHere()) return;
        taken_.erase(folded(user.nick));
        tellOthers(user, about(user, "left"));
    }

    // --- what a page may say ---

    void hello(ChatUser &user, const Json::Value &message) {
        const std::string nick = tidyNick(stringIn(message, "nick"));
        if (user.isHere()) return complain(user, message, "You are here already.");
        if (nick.empty()) return complain(user, message, kUnfitNick);
        user.session = stringIn(message, "session");
        user.maxIdle = 0;
        const bool isBack = takePlace(user);
        if (!isBack) user.nick = claim(nick);
        sendToUser(user, welcome(user));
        if (isBack) return rename(user, message);  // it may have a new wish
        tellOthers(user, about(user, "joined"));
    }

    void say(ChatUser &user, const Json::Value &message) {
        const std::string text = trimmed(stringIn(message, "text", kTextCharacters));
        const std::string key = stringIn(message, "key");
        if (text.empty()) return complain(user, message, "There is no text in that.");
        if (isKnown(key)) return;
        Json::Value said = about(user, "message");
        said["id"] = Json::UInt64(++lastId_);
        said["from"] = Json::UInt64(user.id());
        said["text"] = text;
        said["time"] = Json::Int64(millisecondsSince1970());
        if (!key.empty()) said["key"] = key;
        remember(said);
        tellAll(said);
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

    // --- what pages are told ---

    void tellAll(const Json::Value &message) {
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

    Json::Value welcome(const ChatUser &user) const {
        Json::Value message = about(user, "welcome");
        message["you"] = Json::UInt64(user.id());
        message["epoch"] = epoch_;
        message["history"] = history_;
        message["people"] = Json::arrayValue;
        for (const ChatUser &other : users())
            if (other.isHere()) message["people"].append(other.nick);
        return message;
    }

    // What programs ask for. (The version is that of the metrics' format.)
    static void tell(WSResponse &response, std::string text) {
        response.status = 200;
        response.headers = {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"},
                            {"Cache-Control", "no-store"}};
        response.body = std::move(text);
    }

    // --- who has which nick, and what was said ---

    // The nick itself if nobody has it, else with the first number that makes it new.
    std::string claim(const std::string &wish) {
        int n = 1;
        while (!taken_.insert(folded(numbered(wish, n))).second) ++n;
        return numbered(wish, n);
    }

    // True if the same page is here already, by a connection that must be dead. Then `user`
    // gets the nick of that one, and nobody hears of anyone leaving or joining.
    bool takePlace(ChatUser &user) {
        for (ChatUser &old : users()) {
            if (!old.isHere() || old.session.empty() || old.session != user.session) continue;
            user.nick.swap(old.nick);
            disconnect(old, 1000, "its page has connected anew");
            return true;
        }
        return false;
    }

    void remember(const Json::Value &said) {
        history_.append(said);
        Json::Value forgotten;
        if (history_.size() > kHistory) history_.removeIndex(0, &forgotten);
    }

    bool isKnown(const std::string &key) const {
        return !key.empty() && std::any_of(history_.begin(), history_.end(),
                                           [&](const auto &said) { return said["key"] == key; });
    }

    const std::string page_;
    const std::string epoch_ = randomHex();
    std::uint64_t lastId_ = 0;
    Json::Value history_ = Json::arrayValue;  // messages as they were sent, the oldest first
    std::set<std::string> taken_;             // nicks, folded
};

// ----------------------------------------------------------------------------
// The program
// ----------------------------------------------------------------------------

constexpr const char *kUsage =
    "usage: chat [--port N] [--address HOST] [--origin ORIGIN]... [--proxy ADDRESS]...\n"
    "            [--verbose]\n"
    "  --port N         listen on this port (12345); 0 picks a free one\n"
    "  --address HOST   listen on this address (localhost); \"\" is all there are,\n"
    "                   unix:/path is a Unix socket, for a proxy\n"
    "  --origin ORIGIN  let in only pages from here, such as https://example.com\n"
    "  --proxy ADDRESS  believe this proxy about who asks: an address, a network, or \"unix\"\n"
    "  --verbose        print who comes and goes\n"
    "If systemd hands over a listening socket, that is taken: see examples/deploy/.\n";

ChatConfig configFrom(int argc, char **argv) {
    ChatConfig config;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        const auto value = [&]() -> std::string {
            if (++i >= argc) throw UsageError(option + " wants a value");
            return argv[i];
        };
        // clang-format off
        if (option == "--port") config.port = portFrom(value());
        else if (option == "--address") config.address = value();
        else if (option == "--origin") config.uniqueOrigin.push_back(value());
        else if (option == "--proxy") config.trustedProxies.push_back(value());
        else if (option == "--verbose") config.debug = true;
        else if (option == "--help") config.wantsHelp = true;
        else throw UsageError("there is no option '" + option + "'");
        // clang-format on
    }
    return config;
}

// systemd's socket units open the socket themselves and hand it over as descriptor 3; the
// environment tells how many there are, and for which process (sd_listen_fds(3)).
int socketOfSystemd() {
    const char *pid = std::getenv("LISTEN_PID");
    const char *count = std::getenv("LISTEN_FDS");
    if (!pid || !count || pid != std::to_string(::getpid())) return -1;
    if (std::string_view(count) != "1")
        throw std::runtime_error("the .socket unit must have one ListenStream, not " +
                                 std::string(count));
    return 3;
}

// What to type into a browser, if that can be done: a Unix socket has no port.
std::string placeOf(const ChatConfig &config, int port) {
    if (port == 0)
        return "listening at " + (config.listenFd < 0 ? config.address : "systemd's Unix socket");
    return "open " + urlOf(config.listenFd < 0 ? config.address : "localhost", port);
}

}  // namespace

int main(int argc, char **argv) {
    try {
        ChatConfig config = configFrom(argc, argv);
        if (config.wantsHelp) {
            std::cout << kUsage;
            return EXIT_SUCCESS;
        }
        config.listenFd = socketOfSystemd();
        ChatServer server(config, readPage(argv[0]));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::cout << placeOf(config, server.port()) << std::endl;
        server.run();
    } catch (const UsageError &error) {
        std::cerr << "chat: " << error.what() << "; try --help\n";
        return 2;
    } catch (const std::exception &error) {
        std::cerr << "chat: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
