// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The wire, visible: a page that shows a WebSocket connection bit by bit, and what becomes of
// clients that break the rules of RFC 6455. Start it and open the URL it prints.
//
// The page, wire.html, opens two connections. The one to /wire is an echo, and is studied: trace()
// gets each byte of it, and passes it on over the other one, to /trace. That one is an observer. It
// is given a ticket, which connects it with the next studied connection, /wire?ticket=…, and is
// void then. So whatever others learn of a page's addresses, they see none of its bytes.
//
//     from the page on /trace            to the page on /trace
//     text: the number of a mistake      JSON, "type" is one of
//     binary: an opcode, a number of       welcome   ticket, limit, mistakes
//       frames, a payload                  ticket    ticket: for the next connection
//                                          ended     of (a connection), code, reason
//                                          result    mistake (-1: none), end, sent, received
//                                        binary: flags, a connection (4 bytes), bytes of it
//
// A browser does not break the rules, and a page cannot make it ping. The small client does both, in
// section 1: it connects to this server as any other client does, through a socket. Its mistakes are
// a table in wire.h, and nothing that a page says can make it connect to another place.

#include "../server.h"
#include "program.h"
#include "wire.h"

#include <array>
#include <cerrno>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

namespace {

struct WireConfig : WSBaseConfig {
    WireConfig() {
        debug = false;
        maxUsers = 150;    // a class of 70: each page has two connections
        maxPending = 150;  // each may have asked for the source of the server, 300 KiB
        tickSeconds = 1;   // for the deadlines of the small client
    }
};

struct WireUser : WSBaseUser {
    bool observes = false;

    // An observer's: it studies a connection to /wire that comes with one of these.
    std::string ticket;        // for the page
    std::string clientTicket;  // for the small client; empty if it is not needed

    // A studied connection's.
    std::uint64_t observer = 0;  // its id; 0: there is none
    bool byClient = false;       // it is the small client's
};

// ----------------------------------------------------------------------------
// 1. The small client. The server's own loop watches its sockets.
// ----------------------------------------------------------------------------

// One connection of it, for one purpose: it sends and reads until the server closes.
struct Errand {
    std::uint64_t observer = 0;  // the user that asked for it
    int mistake = -1;            // its number; -1: none
    std::string out;             // the request, and behind the 101 also:
    std::string frames;
    std::size_t sent = 0;  // how many bytes of `out` the kernel has taken
    std::string received;  // the first of what came back
    int ticks = 0;         // how old it is
};
constexpr std::size_t kMostErrands = 32;      // at a time; one for each observer
constexpr int kMostTicks = 5;                 // seconds that an errand may take
constexpr std::size_t kKeptBytes = 8 * 1024;  // of what came back; the answer to a mistake is short

std::string hex(std::string_view bytes) {
    std::string digits;
    for (const char c : bytes) {
        digits += "0123456789abcdef"[static_cast<unsigned char>(c) >> 4];
        digits += "0123456789abcdef"[c & 15];
    }
    return digits;
}

// ----------------------------------------------------------------------------
// 2. The source of the server, as a page.
// ----------------------------------------------------------------------------

struct Lines {  // of a text; the last one is `last`
    std::size_t first = 0, last = 0;
};

std::vector<std::string> splitLines(const std::string &text) {
    std::istringstream stream(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

// Where a function is defined, with the comment above it, in code that is formatted as server.cpp
// is: its first line has its name, and its last one is a brace below the first letter of that.
std::optional<Lines> findFunction(const std::vector<std::string> &lines, const std::string &name) {
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const std::size_t at = lines[i].find(' ' + name + '(');
        const std::size_t indent = lines[i].find_first_not_of(' ');
        if (at == std::string::npos || indent > 4 || lines[i].find_first_of("(=/") < at) continue;
        std::size_t open = i;  // the line that tells a definition from a declaration
        while (lines[open].find_first_of("{;") == std::string::npos && open + 1 < lines.size())
            ++open;
        if (lines[open].empty() || lines[open].back() != '{') continue;
        const auto end = std::find(lines.begin() + static_cast<std::ptrdiff_t>(open), lines.end(),
                                   std::string(indent, ' ') + '}');
        if (end == lines.end()) continue;
        Lines found{i, static_cast<std::size_t>(end - lines.begin())};
        while (found.first > 0 && lines[found.first - 1].find("//") == indent) --found.first;
        return found;
    }
    return {};
}

std::string escaped(const std::string &text) {
    std::string html;
    for (const char c : text) html += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    return html;
}

constexpr const char *kSourceHead = R"(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>server.cpp</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style nonce="{{nonce}}">
:root { --page: #ffffff; --text: #20242b; --quiet: #5d6470; --mark: #fff2d6; --edge: #b07400; }
@media (prefers-color-scheme: dark) {
    :root { --page: #14161b; --text: #e8eaef; --quiet: #9ca4b3; --mark: #3a2d10; --edge: #ffd58a; }
}
body { margin: 0; color: var(--text); background: var(--page); }
pre { margin: 0; padding: 1rem 0; font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre > span { display: block; min-width: max-content; padding-right: 1rem; scroll-margin-top: 30vh; }
a { display: inline-block; width: 4rem; padding-right: 1rem; text-align: right; }
a, i { color: var(--quiet); font-style: normal; text-decoration: none; }
:target { background: var(--mark); box-shadow: inset 4px 0 var(--edge); outline: none; }
</style>
</head>
<body>
<pre>)";

// Each line has an anchor, "L12", and so has each of these functions, its name.
std::string sourcePage(const std::vector<std::string> &lines,
                       const std::map<std::string, Lines> &functions) {
    std::string page = kSourceHead;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        for (const auto &[name, place] : functions)
            if (place.first == i) page += "<span id=\"" + name + "\" tabindex=\"-1\">";
        const std::string number = std::to_string(i + 1), text = escaped(lines[i]);
        const bool comments = text.find("//") == text.find_first_not_of(' ') && !text.empty();
        page += "<span id=\"L" + number + "\"><a href=\"#L" + number + "\">" + number + "</a>";
        page += comments ? "<i>" + text + "</i>" : text;
        page += "\n</span>";
        for (const auto &[name, place] : functions)
            if (place.last == i) page += "</span>";
    }
    return page + "</pre>\n</body>\n</html>\n";
}

// server.cpp, from the nearest folder above the program's that has it; "" if none of three has.
std::string readSource(const char *program) {
    std::filesystem::path folder = folderOf(program);
    for (int level = 0; level < 3; ++level) {
        folder = folder.parent_path();
        std::ifstream file(folder / "server.cpp", std::ios::binary);
        if (file) return {std::istreambuf_iterator<char>(file), {}};
    }
    return {};
}

// ----------------------------------------------------------------------------
// 3. The server
// ----------------------------------------------------------------------------

class WireServer : public WebSocketServer<WireUser, WireConfig> {
  public:
    WireServer(WireConfig config, std::string page, const std::string &source)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {
        const std::vector<std::string> lines = splitLines(source);
        for (const Mistake &mistake : mistakes())
            if (const auto place = findFunction(lines, mistake.function))
                functions_[mistake.function] = *place;
        if (!functions_.empty()) source_ = sourcePage(lines, functions_);
    }

    ~WireServer() override {
        for (const auto &[fd, errand] : errands_) ::close(fd);
    }
    WireServer(const WireServer &) = delete;
    WireServer &operator=(const WireServer &) = delete;

  private:
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        const bool isPage = request.path() == "/", isSource = request.path() == "/server.cpp";
        const std::string body = isPage ? page_ : isSource ? source_ : std::string();
        response.status = body.empty() ? 404 : 200;
        response.body = "Not found. The page is at /\n";
        response.headers = {
            {"Content-Type", body.empty() ? "text/plain" : "text/html; charset=utf-8"},
            {"Cache-Control", "no-store"},
            {"X-Content-Type-Options", "nosniff"},
            {"Referrer-Policy", "no-referrer"}};
        if (!body.empty()) fillIn(response, body);
    }

    void preConnect(WireUser &user, int) override {
        const std::string path = user.request().path();
        const std::string ticket = user.request().parameter("ticket");
        if (path != "/trace" && path != "/wire")
            return refuse(user, 404, "WebSockets are at /wire and /trace\n");
        user.observes = path == "/trace";
        if (user.observes) user.ticket = randomHex();
        if (user.observes || ticket.empty()) return;  // a connection that is not studied
        for (WireUser &other : users())
            for (std::string *valid : {&other.ticket, &other.clientTicket}) {
                if (*valid != ticket) continue;
                user.observer = other.id();
                user.byClient = valid == &other.clientTicket;
                *valid = user.byClient ? std::string() : randomHex();
            }
        if (user.observer == 0) refuse(user, 403, "This ticket is not valid, or was used\n");
    }

    void postConnect(WireUser &user, int) override {
        if (user.observes) return welcome(user);
        WireUser *observer = findUser(user.observer);
        if (observer == nullptr || user.byClient) return;
        Json::Value message;
        message["type"] = "ticket";
        message["ticket"] = observer->ticket;
        sendToUser(*observer, message);
    }

    // What the whole example is about. If an observer takes the bytes too slowly, its queue fills
    // up (maxQueuedBytes), the server disconnects it, and it starts over.
    void trace(WireUser &user, WSDirection direction, std::string_view bytes) override {
        WireUser *observer = findUser(user.observer);
        if (observer == nullptr) return;
        const bool isSent = direction == WSDirection::sent;
        std::string message(1, static_cast<char>((isSent ? 1 : 0) | (user.byClient ? 2 : 0)));
        for (unsigned i = 4; i-- > 0;) message += static_cast<char>(user.id() >> 8 * i);
        sendToUser(*observer, WSMessage::binary(message.append(bytes)));
    }

    void process(WireUser &user, WSMessage &msg) override {
        if (!user.observes) {
            sendToUser(user, msg);
        } else if (isBusy(user)) {
            Errand none;
            none.observer = user.id();
            report(none, "busy");
        } else if (msg.isBinary() && msg.payload().size() >= 2) {
            sendByClient(user, msg.payload());
        } else {
            const std::vector<Mistake> shelf = mistakes();
            const auto number = numberIn(msg.payload(), 0, static_cast<int>(shelf.size()) - 1);
            if (!number) return disconnect(user, 1008, "there is no such mistake");
            const Mistake &mistake = shelf[static_cast<std::size_t>(*number)];
            startErrand(user, *number, mistake.request, mistake.frames);
        }
    }

    void preDisconnect(WireUser &user, int) override {
        WireUser *observer = findUser(user.observer);
        if (observer == nullptr) return;
        Json::Value message;
        message["type"] = "ended";
        message["of"] = static_cast<Json::UInt>(user.id());  // 4 bytes of it, as in trace()
        message["code"] = user.closeCode();
        message["reason"] = user.closeReason();
        sendToUser(*observer, message);
    }

    void welcome(WireUser &observer) {
        Json::Value message;
        message["type"] = "welcome";
        message["ticket"] = observer.ticket;
        message["limit"] = static_cast<Json::UInt64>(config().maxMessageBytes);
        for (const Mistake &mistake : mistakes()) {
            Json::Value one;
            one["label"] = mistake.label;
            one["section"] = mistake.section;
            one["rule"] = mistake.rule;
            one["earns"] = mistake.earns;
            one["function"] = mistake.function;
            const auto place = functions_.find(mistake.function);
            if (place != functions_.end()) one["line"] = static_cast<int>(place->second.first) + 1;
            message["mistakes"].append(one);
        }
        sendToUser(observer, message);
    }

    // --- the small client ---

    bool isBusy(const WireUser &observer) const {
        const auto isOurs = [&](const auto &one) { return one.second.observer == observer.id(); };
        return errands_.size() >= kMostErrands ||
               std::any_of(errands_.begin(), errands_.end(), isOurs);
    }

    // What a browser cannot send: a message in fragments, a ping, any close code. The connection is
    // studied, like the page's own.
    void sendByClient(WireUser &user, std::string_view order) {
        const unsigned opcode = static_cast<unsigned char>(order[0]);
        const std::size_t count = static_cast<unsigned char>(order[1]);
        std::string frames = fragments(opcode, count, order.substr(2));
        if (opcode != 0x8) frames += frame(0x88, "\x03\xE8");  // Close, 1000: that was all
        user.clientTicket = randomHex();
        const std::string request = handshake("/wire", "/wire?ticket=" + user.clientTicket);
        startErrand(user, -1, request, std::move(frames));
    }

    // Connects to the address at which the observer itself has reached this server, and no other.
    void startErrand(WireUser &observer, int mistake, std::string request, std::string frames) {
        Errand errand;
        errand.observer = observer.id();
        errand.mistake = mistake;
        errand.out = std::move(request);
        errand.frames = std::move(frames);
        sockaddr_storage here{};
        socklen_t size = sizeof here;
        ::getsockname(observer.socket(), reinterpret_cast<sockaddr *>(&here), &size);
        const int fd = ::socket(here.ss_family, SOCK_STREAM, 0);
        if (fd < 0) return report(errand, "failed");
        ::fcntl(fd, F_SETFD, FD_CLOEXEC);
        ::fcntl(fd, F_SETFL, O_NONBLOCK);
        // Whether this succeeds, the first recv() tells.
        (void)::connect(fd, reinterpret_cast<sockaddr *>(&here), size);
        errands_[fd] = std::move(errand);
        watch(fd, POLLIN | POLLOUT, [this, fd](short) { serve(fd); });
    }

    // Sends and receives what can be without waiting. A client has to wait for the 101 before it
    // sends frames (RFC 6455 4.1).
    void serve(int fd) {
        Errand &errand = errands_.at(fd);
        std::array<char, 16 * 1024> buffer{};
        const std::string_view unsent = std::string_view(errand.out).substr(errand.sent);
        const ssize_t sent = unsent.empty() ? 0 : ::send(fd, unsent.data(), unsent.size(), 0);
        if (sent > 0) errand.sent += static_cast<std::size_t>(sent);
        const ssize_t size = ::recv(fd, buffer.data(), buffer.size(), 0);
        if (size == 0) return endErrand(fd, "closed");
        if (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            return endErrand(fd, errno == ECONNRESET || errno == EPIPE ? "reset" : "failed");
        if (size > 0 && errand.received.size() < kKeptBytes)
            errand.received.append(buffer.data(), static_cast<std::size_t>(size));
        const bool accepted = errand.received.compare(0, 12, "HTTP/1.1 101") == 0 &&
                              errand.received.find("\r\n\r\n") != std::string::npos;
        if (accepted) errand.out += std::exchange(errand.frames, {});
        const bool writes = errand.sent < errand.out.size();
        watch(fd, static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN),
              [this, fd](short) { serve(fd); });
    }

    void endErrand(int fd, const char *end) {
        unwatch(fd);
        ::close(fd);
        const auto errand = errands_.extract(fd);
        WireUser *observer = findUser(errand.mapped().observer);
        if (observer != nullptr) observer->clientTicket.clear();  // if it was not used
        report(errand.mapped(), end);
    }

    // `end`: closed or reset (by the server), deadline, busy (another errand is not done), failed.
    void report(const Errand &errand, const char *end) {
        WireUser *observer = findUser(errand.observer);
        if (observer == nullptr) return;
        Json::Value message;
        message["type"] = "result";
        message["mistake"] = errand.mistake;
        message["end"] = end;
        message["sent"] = errand.mistake < 0 ? "" : hex(errand.out.substr(0, errand.sent));
        message["received"] = errand.mistake < 0 ? "" : hex(errand.received);
        sendToUser(*observer, message);
    }

    void tick() override {
        std::vector<int> late;
        for (auto &[fd, errand] : errands_)
            if (++errand.ticks > kMostTicks) late.push_back(fd);
        for (const int fd : late) endErrand(fd, "deadline");
    }

    const std::string page_;
    std::string source_;                      // a page, too; empty if there is no server.cpp
    std::map<std::string, Lines> functions_;  // that the shelf names, where they are in it
    std::map<int, Errand> errands_;           // by descriptor
};

// ----------------------------------------------------------------------------
// 4. The program
// ----------------------------------------------------------------------------

// The numeric addresses of this machine; link-local ones, which no URL can have, are left out.
std::set<std::string> ownAddresses() {
    std::set<std::string> addresses;
    ifaddrs *first = nullptr;
    if (::getifaddrs(&first) != 0) return addresses;
    for (const ifaddrs *one = first; one != nullptr; one = one->ifa_next) {
        const int family = one->ifa_addr != nullptr ? one->ifa_addr->sa_family : AF_UNSPEC;
        const std::size_t size = family == AF_INET    ? sizeof(sockaddr_in)
                                 : family == AF_INET6 ? sizeof(sockaddr_in6)
                                                      : 0;
        std::array<char, NI_MAXHOST> text{};
        if (size > 0)
            ::getnameinfo(one->ifa_addr, static_cast<socklen_t>(size), text.data(), text.size(),
                          nullptr, 0, NI_NUMERICHOST);
        if (text[0] != 0 && std::string(text.data()).find('%') == std::string::npos)
            addresses.insert(text.data());
    }
    ::freeifaddrs(first);
    return addresses;
}

// Where the page can come from if the server listens at this address: for uniqueOrigin.
std::vector<std::string> ownOrigins(const std::string &address, int port) {
    const bool isUnix = address.compare(0, 5, "unix:") == 0;
    const bool isEvery = address.empty() || address == "::" || address == "0.0.0.0";
    std::set<std::string> hosts = isEvery ? ownAddresses() : std::set<std::string>();
    hosts.insert({"localhost", "127.0.0.1", "::1"});
    if (!isUnix && !isEvery) hosts.insert(address);
    std::vector<std::string> origins;
    for (const std::string &host : hosts) {
        const bool isIpv6 = host.find(':') != std::string::npos;
        origins.push_back("http://" + (isIpv6 ? '[' + host + ']' : host) +
                          (isUnix ? "" : ':' + std::to_string(port)));
    }
    return origins;
}

// A server that listens. Its origins have the port in them: if the system is to pick one, a first
// server finds out which. Another program may take that port meanwhile; then we try again.
std::unique_ptr<WireServer> listening(const WireConfig &wanted, const std::string &page,
                                      const std::string &source) {
    for (int tries = wanted.port == 0 ? 10 : 1;;) {
        WireConfig config = wanted;
        if (wanted.port == 0) {
            WireServer first(config, {}, {});
            first.listen();
            config.port = first.port();
        }
        for (const std::string &origin : ownOrigins(config.address, config.port))
            config.uniqueOrigin.push_back(origin);
        auto server = std::make_unique<WireServer>(config, page, source);
        try {
            server->listen();
            return server;
        } catch (const std::runtime_error &) {
            if (--tries == 0) throw;
        }
    }
}

}  // namespace

int main(int argc, char **argv) {
    WireConfig config;
    Option origin = originOption(config);
    origin.help = "also let in pages from this origin (may be repeated)";
    const std::vector<Option> options = {portOption("--port N", config),
                                         addressOption("--address HOST", config), origin,
                                         verboseOption(config)};
    return runProgram(argc, argv, options, [&] {
        std::signal(SIGPIPE, SIG_IGN);  // the small client writes to sockets that may be closed
        const std::string page = readPage(argv[0], "wire.html");
        const auto server = listening(config, page, readSource(argv[0]));
        server->stopOn({SIGINT, SIGTERM});
        std::cout << placeOf(config.address, server->port()) << std::endl;
        server->run();
    });
}
