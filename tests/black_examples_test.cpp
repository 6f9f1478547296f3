// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The example programs, started from the command line: what they print, how they exit, and that
// they do what they show.

#include "../examples/chat.h"
#include "black.h"

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include <sys/wait.h>

using namespace black;

namespace {

// A running program. The destructor kills it if it has not exited.
class Program {
  public:
    // The new process calls `prepare` before it becomes the program.
    Program(
        const std::string &name, const Strings &arguments,
        const std::function<void()> &prepare = [] {}) {
        int outPipe[2] = {-1, -1}, errPipe[2] = {-1, -1};
        if (::pipe(outPipe) != 0 || ::pipe(errPipe) != 0) throw std::runtime_error("no pipe");
        const std::string path = EXAMPLES_DIR "/" + name;
        std::vector<char *> words{const_cast<char *>(path.c_str())};
        for (const std::string &argument : arguments)
            words.push_back(const_cast<char *>(argument.c_str()));
        words.push_back(nullptr);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::dup2(outPipe[1], STDOUT_FILENO);
            ::dup2(errPipe[1], STDERR_FILENO);
            for (const int fd : {outPipe[0], outPipe[1], errPipe[0], errPipe[1]}) ::close(fd);
            prepare();
            ::execv(path.c_str(), words.data());
            ::_exit(127);
        }
        ::close(outPipe[1]);
        ::close(errPipe[1]);
        out_ = outPipe[0];
        err_ = errPipe[0];
        for (const int fd : {out_, err_}) {
            ::fcntl(fd, F_SETFL, O_NONBLOCK);
            ::fcntl(fd, F_SETFD, FD_CLOEXEC);  // later programs do not inherit it
        }
    }

    ~Program() {
        if (pid_ > 0) signal(SIGKILL), ::waitpid(pid_, nullptr, 0);
        ::close(out_);
        ::close(err_);
    }
    Program(const Program &) = delete;
    Program &operator=(const Program &) = delete;

    void signal(int number) const { ::kill(pid_, number); }
    pid_t pid() const { return pid_; }

    std::string out, err;  // what it has printed so far

    // Waits for a line with `part` and returns what follows `part`. Throws if the program exits.
    std::string after(const std::string &part) {
        const auto isThere = [&] {
            const std::size_t begin = out.find(part);
            return begin != out.npos && out.find('\n', begin) != out.npos;
        };
        read("a line with '" + part + "'", isThere);
        if (!isThere()) throw std::runtime_error("the program has exited: " + out + err);
        const std::size_t begin = out.find(part) + part.size();
        return out.substr(begin, out.find('\n', begin) - begin);
    }

    // Waits for the program to exit. Its exit code, or 1000 plus the number of a fatal signal.
    int exitCode() {
        read("the exit", [] { return false; });
        int status = 0;
        ::waitpid(std::exchange(pid_, -1), &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }

  private:
    // Reads both outputs until done() or until they end.
    template <class Done>
    void read(const std::string &what, Done done) {
        const auto end = Clock::now() + 2 * kPatience;
        for (bool ended = false; !ended && !done();) {
            if (Clock::now() > end)
                throw std::runtime_error("timed out waiting for " + what + ": " + out + err);
            pollfd both[] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
            ::poll(both, 2, 50);
            const bool outEnded = readSome(out_, out), errEnded = readSome(err_, err);
            ended = outEnded && errEnded;
        }
    }

    static bool readSome(int fd, std::string &text) {
        char buffer[4096];
        ssize_t size = 0;
        while ((size = ::read(fd, buffer, sizeof buffer)) > 0)
            text.append(buffer, static_cast<std::size_t>(size));
        return size == 0;
    }

    pid_t pid_ = -1;
    int out_ = -1, err_ = -1;
};

// The port in "http://localhost:12345/", or a bare port.
int portIn(const std::string &text) {
    const std::size_t colon = text.rfind(':');
    return std::stoi(text.substr(colon == text.npos ? 0 : colon + 1));
}

// What systemd does for a service with a .socket unit.
std::function<void()> passingOn(int listener, const char *count) {
    return [listener, count] {
        ::dup2(listener, 3);
        ::setenv("LISTEN_FDS", count, 1);
        ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    };
}

// auth and cluster need libraries that `make test` does not.
bool isBuilt(const std::string &program) {
    if (::access((EXAMPLES_DIR "/" + program).c_str(), X_OK) == 0) return true;
    MESSAGE("skipped: examples/" << program << " is not built");
    return false;
}

// Checks that the text is one line from the program, with `part` in it.
void checkSentence(const std::string &text, const std::string &program, const std::string &part) {
    CAPTURE(text);
    CHECK(text.substr(0, program.size() + 2) == program + ": ");
    CHECK(has(text, part));
    CHECK(std::count(text.begin(), text.end(), '\n') == 1);
    CHECK(text.back() == '\n');
}

// What the pages of the examples send and receive.
void say(Peer &peer, const std::string &json) { peer.send(frame(kText, json)); }

Json::Value heard(Peer &peer, const std::string &type) {
    for (;;) {
        const std::optional<Peer::Frame> frame = peer.next();
        if (!frame) throw std::runtime_error("the server has ended");
        if (frame->opcode != kText) continue;
        Json::Value json;
        std::string errors;
        const std::unique_ptr<Json::CharReader> reader(Json::CharReaderBuilder().newCharReader());
        const std::string &text = frame->payload;
        if (!reader->parse(text.data(), text.data() + text.size(), &json, &errors))
            throw std::runtime_error(errors);
        if (json["type"] == type) return json;
    }
}

}  // namespace

TEST_CASE("examples/echo prints its port, echoes, and exits on a signal") {
    for (const int signal : {SIGTERM, SIGINT}) {
        Program echo("echo", {"0"});
        Peer peer(portIn(echo.after("listening on port ")));
        peer.send(frame(kText, "hello") + frame(kBinary, std::string(100'000, '\xFF')));
        CHECK(peer.hear() == "text hello");
        CHECK(peer.next().value().payload == std::string(100'000, '\xFF'));
        echo.signal(signal);
        CHECK(peer.hear() == "close 1001");
        peer.close();
        CHECK(echo.exitCode() == 0);
        CHECK(echo.err.empty());
    }
}

TEST_CASE("An example that cannot listen says so in one line and exits with 1") {
    const Server other;
    const std::string port = std::to_string(other.port());
    Program echo("echo", {port}), chat("chat", {"--port", port}),
        remote("chat", {"--address", "203.0.113.1"});
    CHECK(echo.exitCode() == 1);
    checkSentence(echo.err, "echo", port);
    CHECK(chat.exitCode() == 1);
    checkSentence(chat.err, "chat", port);
    CHECK(remote.exitCode() == 1);
    checkSentence(remote.err, "chat", "203.0.113.1");
    CHECK(chat.out.empty());
}

namespace {

struct Row {
    std::string program;
    Strings arguments;
    std::string text;
};

}  // namespace

TEST_CASE("--help prints the options of every example") {
    const std::pair<std::string, Strings> rows[] = {
        {"echo", {"PORT"}},
        {"hooks", {"PORT"}},
        {"game", {"PORT", "ADDRESS"}},
        {"chat", {"--port N", "--address HOST", "--origin ORIGIN", "--proxy ADDRESS", "--verbose"}},
        {"wire", {"--port N", "--address HOST", "--origin ORIGIN", "--verbose"}},
        {"auth", {"--port N", "--origin ORIGIN", "--seconds N", "AUTH_KEY", "AUTH_PASSWORD"}},
        {"cluster", {"--reuse-port", "--redis HOST:PORT", "--keep BYTES"}}};
    for (const auto &row : rows) {
        CAPTURE(row.first);
        if (!isBuilt(row.first)) continue;
        Program help(row.first, {"--help"});
        CHECK(help.exitCode() == 0);
        CHECK(help.err.empty());
        CHECK(help.out.find("usage: " + row.first + " [") == 0);
        for (const std::string &form : row.second) CHECK(has(help.out, "\n  " + form + "  "));
    }
}

TEST_CASE("A wrong argument gets a sentence that says what to write, and exit status 2") {
    const std::string port = " must be a number from 0 to 65535, not ";
    const std::string redis = "--redis must be HOST:PORT, with a port from 1 to 65535, not ";
    const Row rows[] = {
        {"echo", {"many"}, "PORT" + port + "'many'"},
        {"echo", {"70000"}, "PORT" + port + "'70000'"},
        {"echo", {"-1"}, "PORT" + port + "'-1'"},
        {"echo", {""}, "PORT" + port + "''"},
        {"echo", {"0", "0"}, "unexpected argument '0'; write: echo [PORT]"},
        {"echo", {"--port", "0"}, "unexpected argument '--port'; write: echo [PORT]"},
        {"hooks", {"0x10"}, "PORT" + port + "'0x10'"},
        {"hooks", {"--loud"}, "unexpected argument '--loud'; write: hooks [PORT]"},
        {"game", {"1e3"}, "PORT" + port + "'1e3'"},
        {"game", {"0", "::1", "x"}, "unexpected argument 'x'; write: game [PORT] [ADDRESS]"},
        {"chat", {"--port"}, "--port needs a value; write --port N"},
        {"chat", {"--port", "99999"}, "--port" + port + "'99999'"},
        {"chat", {"--port", "12x"}, "--port" + port + "'12x'"},
        {"chat", {"8000"}, "unexpected argument '8000'; write: chat [--port N] [--address HOST]"},
        {"chat", {"--verbose", "--loud"}, "unexpected argument '--loud'; write: chat [--port N]"},
        {"chat", {"--origin", "here"}, "\"here\""},  // from listen()
        {"wire", {"--port", "x"}, "--port" + port + "'x'"},
        {"wire", {"8000"}, "unexpected argument '8000'; write: wire [--port N] [--address HOST]"},
        {"wire", {"--origin", "here"}, "\"here\""},
        {"auth", {"--port", "0"}, "--port must be a number from 1 to 65535, not '0'"},
        {"auth", {"--seconds", "soon"}, "--seconds must be a number from 1 to 86400, not 'soon'"},
        {"auth", {}, "set AUTH_KEY in the environment (length: at least 32)"},
        {"cluster", {"--redis", "host:99999"}, redis + "'host:99999'"},
        {"cluster", {"--redis", "host"}, redis + "'host'"},
        {"cluster", {"--redis", "::1:6379"}, redis + "'::1:6379'"},
        {"cluster", {"--redis", "[::1]"}, redis + "'[::1]'"},
        {"cluster", {"--redis"}, "--redis needs a value; write --redis HOST:PORT"},
        {"cluster", {"--keep", "-1"}, "--keep must be a number from 0 to 1073741824, not '-1'"},
    };
    for (const Row &row : rows) {
        CAPTURE(row.program);
        CAPTURE(joined(row.arguments));
        if (!isBuilt(row.program)) continue;
        Program program(row.program, row.arguments, [] { ::unsetenv("AUTH_KEY"); });
        CHECK(program.exitCode() == 2);
        CHECK(program.out.empty());
        checkSentence(program.err, row.program, row.text);
    }
}

TEST_CASE("An example prints the address that it has") {
    const Row rows[] = {
        {"game", {"0"}, "open http://localhost:"},
        {"game", {"0", "127.0.0.1"}, "open http://127.0.0.1:"},
        {"game", {"0", ""}, "open http://localhost:"},
        {"chat", {"--port", "0", "--address", "127.0.0.1"}, "open http://127.0.0.1:"},
        {"wire", {"--port", "0", "--address", "127.0.0.1"}, "open http://127.0.0.1:"},
        {"wire", {"--port", "0", "--address", ""}, "open http://localhost:"},
        {"cluster", {"--port", "0", "--address", ""}, "open http://localhost:"}};
    for (const Row &row : rows) {
        CAPTURE(row.program);
        CAPTURE(joined(row.arguments));
        if (!isBuilt(row.program)) continue;
        Program program(row.program, row.arguments);
        Client browser(portIn(program.after(row.text)));
        browser.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        CHECK(browser.status() == 200);
    }
}

#ifdef __linux__
TEST_CASE("What an example opens never becomes standard input") {
    const Row rows[] = {{"echo", {"0"}, {}},
                        {"game", {"0"}, {}},
                        {"chat", {"--port", "0"}, {}},
                        {"wire", {"--port", "0"}, {}},
                        {"cluster", {"--port", "0"}, {}}};
    for (const Row &row : rows) {
        CAPTURE(row.program);
        if (!isBuilt(row.program)) continue;
        Program program(row.program, row.arguments, [] { ::close(STDIN_FILENO); });
        program.after("localhost");
        char target[64] = "";
        const std::string input = "/proc/" + std::to_string(program.pid()) + "/fd/0";
        CHECK(::readlink(input.c_str(), target, sizeof target - 1) > 0);
        CHECK(target == "/dev/null"s);
    }
}
#endif

TEST_CASE("examples/chat serves its page and lets two users chat") {
    Program chat("chat", {"--port", "0"});
    const int port = portIn(chat.after("open http://localhost:"));

    Client browser(port), lost(port), stranger(port);
    browser.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const Answer page = browser.answer();
    CHECK(page.status == 200);
    CHECK(page.header("Content-Type") == "text/html; charset=utf-8");
    CHECK(has(page.body, "<!DOCTYPE html>"));
    CHECK(has(page.body, "</html>"));
    CHECK_FALSE(has(page.body, "{{nonce}}"));
    CHECK(has(page.header("Content-Security-Policy"), "default-src 'none'"));
    std::ifstream file(EXAMPLES_DIR "/chat.html", std::ios::binary);
    const std::string source(std::istreambuf_iterator<char>(file), {});
    CHECK(page.body.size() > source.size());  // the nonces are longer than their placeholders
    lost.send("GET /favicon.ico HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(lost.status() == 404);
    stranger.send(upgrade("/elsewhere"));
    CHECK(stranger.status() == 404);

    Peer ada(port, "/chat"), bob(port, "/chat");
    say(ada, R"({"type":"hello","nick":"Ada","session":"1"})");
    CHECK(heard(ada, "welcome")["nick"] == "Ada");
    say(bob, R"({"type":"hello","nick":"Bob","session":"2"})");
    CHECK(heard(bob, "welcome")["people"].size() == 2);
    CHECK(heard(ada, "joined")["nick"] == "Bob");
    say(ada, R"({"type":"say","text":"Hello, Bob!"})");
    const Json::Value message = heard(bob, "message");
    CHECK(message["nick"] == "Ada");
    CHECK(message["text"] == "Hello, Bob!");
    CHECK(heard(ada, "message") == message);
    bob.reset();
    CHECK(heard(ada, "left")["nick"] == "Bob");

    chat.signal(SIGTERM);
    std::string last = ada.hear();
    CHECK(last == "close 1001");
    ada.close();
    CHECK(chat.exitCode() == 0);
}

TEST_CASE("A welcome has the history as it was sent, and does not encode it again") {
    History history;
    Json::Value hello;
    hello["type"] = "welcome";
    CHECK(welcomeOf(hello, "", history).payload() ==
          R"({"type":"welcome","people":[],"history":[]})");
    // Encoding it again would change this text.
    history.remember("1", R"({ "text" : "\u0041" })");
    history.remember("2", R"({"b":1,"a":2})");
    std::string people;
    for (const char *nick : {"Ann", R"(a "b" \c)", "Zoë"}) appendNick(people, nick);
    const WSMessage welcome = welcomeOf(hello, people, history);
    CHECK(welcome.payload() == R"({"type":"welcome","people":["Ann","a \"b\" \\c","Zoë"],)"
                               R"("history":[{ "text" : "\u0041" },{"b":1,"a":2}]})");
    CHECK(welcome.json()["people"][1] == R"(a "b" \c)");
    CHECK(welcome.json()["history"][0]["text"] == "A");
    CHECK(history.has("1"));
    CHECK_FALSE(history.has("3"));
}

TEST_CASE("The history is limited by number and by bytes, and forgets the oldest") {
    History history;
    for (int i = 0; i < 150; ++i) history.remember(std::to_string(i), "short");
    CHECK(history.said().size() == kHistory);
    CHECK(history.said().front().key == "50");
    CHECK(history.bytes() == kHistory * 5);
    const WSMessage large(std::string(kHistoryBytes / 3 + 1, 'x'));
    for (int i = 200; i < 205; ++i) history.remember(std::to_string(i), large);
    CHECK(history.said().size() == 2);
    CHECK(history.said().front().key == "203");
    CHECK(history.bytes() == 2 * large.payload().size());
    CHECK(&history.said().front().message.payload() == &large.payload());  // shared
}

// Control characters take the most bytes as JSON, six each.
TEST_CASE("However long the messages in examples/chat are, its welcome is not") {
    Program chat("chat", {"--port", "0"});
    const int port = portIn(chat.after("open http://localhost:"));
    std::string text;
    while (text.size() < 6 * kTextCharacters) text += "\\u0001";
    std::string last;
    for (int i = 0; i < 2; ++i) {  // one user may say 20 in a second
        Peer ada(port, "/chat");
        say(ada, R"({"type":"hello","nick":"Ada"})");
        heard(ada, "welcome");
        for (int j = 0; j < 10; ++j) {
            say(ada, R"({"type":"say","text":")" + text + "\"}");
            last = WSMessage(heard(ada, "message")).payload();
        }
    }
    Peer bob(port, "/chat");
    say(bob, R"({"type":"hello","nick":"Bob"})");
    const std::string welcome = bob.next().value().payload;
    CHECK(welcome.size() > kHistoryBytes - last.size());
    CHECK(welcome.size() < kHistoryBytes + 1000);
    CHECK(has(welcome, last + "]}"));
}

namespace {

std::string answerTo(int port, const std::string &request, const std::string &type) {
    Client client(port);
    client.send(request + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const Answer answer = client.answer(has(request, "HEAD"));
    CHECK(answer.status == 200);
    CHECK(has(answer.header("Content-Type"), type));
    return answer.body;
}

bool isNumber(const std::string &text) {
    return !text.empty() && text.find_first_not_of("0123456789.") == text.npos;
}

// Parses and checks metrics in the text format of Prometheus. Each metric has its HELP, its TYPE
// and then samples of exactly that name, none of them twice. Every line ends with a line feed.
// The names of counters end in "_total", no others do.
std::map<std::string, double> parseMetrics(const std::string &text) {
    std::map<std::string, double> samples;
    std::string name, line;
    std::istringstream lines(text);
    CHECK(text.back() == '\n');
    while (std::getline(lines, line)) {
        CAPTURE(line);
        if (line.substr(0, 7) == "# HELP ") {
            name = line.substr(7, line.find(' ', 7) - 7);
            CHECK(line.size() > 8 + name.size());
            CHECK(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") == name.npos);
            REQUIRE(std::getline(lines, line));
            const bool counts = name.size() > 6 && name.substr(name.size() - 6) == "_total";
            CHECK(line == "# TYPE " + name + (counts ? " counter" : " gauge"));
            continue;
        }
        const std::size_t space = line.rfind(' ');
        const std::string key = line.substr(0, space), labels = key.substr(name.size());
        CHECK(key.substr(0, name.size()) == name);
        const bool quoted = has(labels, "=\"") && labels.front() == '{' &&
                            labels.substr(labels.size() - 2) == "\"}" &&
                            std::count(labels.begin(), labels.end(), '"') == 2;
        CHECK((labels.empty() || quoted));
        CHECK(isNumber(line.substr(space + 1)));
        CHECK(samples.emplace(key, std::stod(line.substr(space + 1))).second);
    }
    return samples;
}

}  // namespace

TEST_CASE("examples/chat answers health checks and serves metrics for Prometheus") {
    Program chat("chat", {"--port", "0"});
    const int port = portIn(chat.after("open http://localhost:"));
    CHECK(answerTo(port, "GET /healthz", "text/plain") == "ok\n");
    CHECK(answerTo(port, "HEAD /healthz", "text/plain").empty());

    Peer ada(port, "/chat"), bob(port, "/chat"), eve(port, "/chat");
    say(ada, R"({"type":"hello","nick":"Ada","session":"1"})");
    heard(ada, "welcome");
    eve.send("\xFF\xFF");
    CHECK(eve.hear() == "close 1002");
    Client lost(port);
    lost.send("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(lost.status() == 404);

    const std::string text = answerTo(port, "GET /metrics", "text/plain; version=0.0.4");
    std::map<std::string, double> metrics = parseMetrics(text);
    CHECK(metrics["chat_users"] == 2);
    CHECK(metrics["chat_messages_total{direction=\"received\"}"] == 1);
    CHECK(metrics["chat_messages_total{direction=\"sent\"}"] == 1);
    CHECK(metrics["chat_bytes_total{direction=\"received\"}"] > 500);
    CHECK(metrics["chat_bytes_total{direction=\"sent\"}"] > 500);
    CHECK(metrics["chat_disconnects_total{code=\"1002\"}"] == 1);
    CHECK(metrics["chat_answers_total{status=\"200\"}"] == 2);
    CHECK(metrics["chat_answers_total{status=\"404\"}"] == 1);
    CHECK(metrics["chat_turns_total"] > 5);
    for (const char *name : {"chat_pending", "chat_queued_bytes", "chat_longest_turn_seconds"})
        CHECK(metrics.count(name) == 1);
    CHECK(metrics.size() == 12);
}

TEST_CASE("examples/game serves its page and shows two players to each other") {
    Program game("game", {"0"});
    const int port = portIn(game.after("open http://localhost:"));

    Client browser(port), stranger(port);
    browser.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const Answer page = browser.answer();
    CHECK(page.status == 200);
    CHECK(page.header("Content-Type") == "text/html; charset=utf-8");
    CHECK(has(page.body, "</html>"));
    stranger.send(upgrade("/elsewhere"));
    CHECK(stranger.status() == 404);

    // The next frame of the game, without its tick.
    const auto frameAt = [](Peer &peer) {
        for (;;) {
            const Peer::Frame frame = peer.next().value();
            if (frame.payload.at(0) == 5) return frame.payload.substr(5);
        }
    };
    const std::string half = networkOrder(0x3F000000, 4), one = networkOrder(0x3F800000, 4);
    const auto player = [&](unsigned id, const std::string &y, unsigned draws) {
        return networkOrder(id, 4) + half + y + networkOrder(draws, 1);
    };
    Peer ada(port, "/game"), bob(port, "/game");  // users 2 and 3: the stranger was 1
    ada.send(frame(kBinary, "\x01\x01"));
    CHECK(ada.hear() == "binary \x04\x00\x00\x00\x02\x00\x1E"s);
    CHECK(frameAt(ada) == networkOrder(1, 2) + player(2, half, 0));
    bob.send(frame(kBinary, "\x01\x01"));
    CHECK(frameAt(bob) == networkOrder(2, 2) + player(2, half, 0) + player(3, half, 0));
    bob.send(frame(kBinary, "\x02" + half + one + "\x01"));
    CHECK(frameAt(bob) == networkOrder(2, 2) + player(2, half, 0) + player(3, one, 1));
    bob.send(frame(kBinary, "\x03NowNow!!"));
    CHECK(bob.hear() == "binary \x06NowNow!!");
    bob.send(frame(kBinary, "\x02" + networkOrder(0x7FC00000, 4) + one + "\x01"));  // NaN
    CHECK(bob.hear() == "close 1007");
    CHECK(frameAt(ada).size() == 2 + 2 * 13);  // Bob has joined
    CHECK(frameAt(ada).size() == 2 + 2 * 13);  // Bob has moved
    CHECK(frameAt(ada) == networkOrder(1, 2) + player(2, half, 0));
    ada.send(frame(kText, "hello"));
    CHECK(ada.hear() == "close 1003");
    ada.close();
    game.signal(SIGTERM);
    CHECK(game.exitCode() == 0);
    CHECK(game.err.empty());
}

namespace {

// An observer of examples/wire, as its page is one.
struct Observer : Peer {
    explicit Observer(int port) : Peer(port, "/trace") { welcome = heard(*this, "welcome"); }

    // A connection to study, with the ticket that was given to this observer.
    std::string place() const { return "/wire?ticket=" + welcome["ticket"].asString(); }

    // The bytes of the next message with these flags: 1, sent by the server; 2, by its client.
    std::string traced(char flags) {
        for (;;) {
            const std::optional<Frame> frame = next();
            if (!frame) throw std::runtime_error("the observer was disconnected");
            if (frame->opcode == kBinary && frame->payload.at(0) == flags)
                return frame->payload.substr(5);
        }
    }

    Json::Value welcome;
};

std::string bytesOf(const std::string &digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    return bytes;
}

// The HTTP status in these bytes or, behind a 101, the code of the Close that ends them.
int earnedBy(const std::string &received) {
    const int status = std::stoi(received.substr(9, 3));
    if (status != 101) return status;
    const std::string close = received.substr(received.find("\r\n\r\n") + 4);
    if (close.substr(0, 1) != "\x88" || close.size() != 2U + static_cast<unsigned char>(close[1]))
        return 0;
    return static_cast<unsigned char>(close[2]) << 8 | static_cast<unsigned char>(close[3]);
}

}  // namespace

TEST_CASE("In examples/wire each mistake earns what its table says, from a function that exists") {
    for (const std::string address : {"localhost", "127.0.0.1", ""}) {
        Program wire("wire", {"--port", "0", "--address", address});
        const int port = portIn(wire.after("open http://"));
        const std::string source = answerTo(port, "GET /server.cpp", "text/html");
        CHECK(has(source, "<span id=\"L2000\">"));
        CHECK_FALSE(has(source, "{{nonce}}"));
        Observer page(port);
        const Json::Value &mistakes = page.welcome["mistakes"];
        CHECK(mistakes.size() == 19);
        for (Json::ArrayIndex i = 0; i < mistakes.size(); ++i) {
            const std::string name = mistakes[i]["function"].asString();
            CAPTURE(mistakes[i]["label"].asString());
            page.send(frame(kText, std::to_string(i)));
            const Json::Value result = heard(page, "result");
            CHECK(result["mistake"].asUInt() == i);
            CHECK(result["end"] == "closed");
            CHECK(bytesOf(result["sent"].asString()).find("\r\n\r\n") != std::string::npos);
            CHECK(earnedBy(bytesOf(result["received"].asString())) == mistakes[i]["earns"].asInt());

            const std::size_t mark = source.find("<span id=\"" + name + "\" tabindex=\"-1\">");
            REQUIRE(mark != std::string::npos);
            const std::string line = "id=\"L" + mistakes[i]["line"].asString() + "\"";
            CHECK(source.find(line, mark) < mark + 100);
            CHECK(has(source.substr(mark, 2000), ' ' + name + '('));
        }
        wire.signal(SIGTERM);
        page.close();
        CHECK(wire.exitCode() == 0);
        CHECK(wire.err.empty());
    }
}

TEST_CASE("examples/wire shows an observer the bytes of its own connection, and no others") {
    Program wire("wire", {"--port", "0"});
    const int port = portIn(wire.after("open http://localhost:"));
    Observer ada(port), bob(port);
    const std::string place = ada.place(), request = upgrade(place);
    Peer studied(port, place);
    CHECK(ada.traced(0) == request);
    CHECK(ada.traced(1) == studied.response);
    CHECK(heard(ada, "ticket")["ticket"] != ada.welcome["ticket"]);
    // What recv() cuts in two is traced in two.
    const std::string hello = frame(kText, "hello");
    studied.send(hello.substr(0, 3));
    CHECK(ada.traced(0) == hello.substr(0, 3));
    studied.send(hello.substr(3));
    CHECK(ada.traced(0) == hello.substr(3));
    CHECK(ada.traced(1) == "\x81\x05hello");
    CHECK(studied.hear() == "text hello");
    studied.send(closeFrame(1000, "done"));
    CHECK(ada.traced(0) == closeFrame(1000, "done"));
    const Json::Value ended = heard(ada, "ended");
    CHECK(ended["code"] == 1000);
    CHECK(ended["reason"] == "done");
    CHECK(bob.hearUntilPong().empty());

    // A ticket is good for one connection, and a foreign page gets none.
    for (const std::string &target : {place, "/wire?ticket=x"s}) {
        Client thief(port);
        thief.send(upgrade(target));
        CHECK(thief.status() == 403);
    }
    for (const char *target : {"/trace", "/wire"}) {
        Client stranger(port);
        stranger.send(upgrade(target, "Origin: http://localhost:1\r\n"));
        CHECK(stranger.status() == 403);
    }
    Client lost(port);
    lost.send(upgrade("/elsewhere"));
    CHECK(lost.status() == 404);
    Peer unseen(port, "/wire");
    unseen.send(frame(kText, "nobody looks"));
    CHECK(unseen.hear() == "text nobody looks");
    CHECK(ada.hearUntilPong().empty());
}

TEST_CASE("The small client of examples/wire sends fragments, pings and any close code") {
    Program wire("wire", {"--port", "0"});
    Observer page(portIn(wire.after("open http://localhost:")));
    const auto order = [&](unsigned opcode, unsigned count, const std::string &payload) {
        page.send(frame(kBinary, networkOrder(opcode, 1) + networkOrder(count, 1) + payload));
        CHECK(page.traced(2).substr(0, 17) == "GET /wire?ticket=");
        CHECK(page.traced(3).substr(0, 13) == "HTTP/1.1 101 ");
        return page.traced(2);
    };
    const auto finish = [&] {
        CHECK(heard(page, "ended")["code"] == 1000);
        const Json::Value result = heard(page, "result");
        CHECK(result["end"] == "closed");
        CHECK(result["mistake"] == -1);
    };
    const std::string frames = order(kText, 3, "abcdef");
    REQUIRE(frames.size() == 3 * (6 + 2) + 6 + 2);
    CHECK(frames[0] == '\x01');
    CHECK(frames[8] == '\x00');
    CHECK(frames[16] == '\x80');
    CHECK(frames[24] == '\x88');
    CHECK(page.traced(3) == std::string("\x81\x06") + "abcdef");
    CHECK(page.traced(3) == "\x88\x02\x03\xE8");
    finish();
    CHECK(order(kPing, 1, "now").substr(0, 2) == "\x89\x83");
    CHECK(page.traced(3) == "\x8A\x03now");
    CHECK(page.traced(3) == "\x88\x02\x03\xE8");
    finish();
    order(kClose, 1,
          "\x03\xE9"
          "bye");
    CHECK(page.traced(3) == "\x88\x02\x03\xE9");
    CHECK(heard(page, "ended")["reason"] == "bye");
    CHECK(heard(page, "result")["end"] == "closed");

    // One errand at a time; what is no order is refused.
    page.send(frame(kText, "0") + frame(kText, "1"));
    CHECK(heard(page, "result")["end"] == "busy");
    CHECK(heard(page, "result")["end"] == "closed");
    page.send(frame(kText, "19"));
    CHECK(page.hear() == "close 1008");
}

TEST_CASE("examples/chat uses the socket from systemd, and leaves it open") {
    const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in place{};
    socklen_t size = sizeof place;
    place.sin_family = AF_INET;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(::bind(listener, reinterpret_cast<sockaddr *>(&place), size) == 0);
    CHECK(::listen(listener, 8) == 0);
    ::getsockname(listener, reinterpret_cast<sockaddr *>(&place), &size);
    const int port = ntohs(place.sin_port);
    for (int i = 0; i < 2; ++i) {
        Client early(port);  // waits in the backlog until the chat starts
        early.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Program chat("chat", {"--address", "203.0.113.1"}, passingOn(listener, "1"));
        CHECK(portIn(chat.after("open http://localhost:")) == port);
        CHECK(early.status() == 200);
        chat.signal(SIGTERM);
        CHECK(chat.exitCode() == 0);
    }
    Program two("chat", {}, passingOn(listener, "2"));
    CHECK(two.exitCode() == 1);
    checkSentence(two.err, "chat", "one ListenStream, not 2");
    ::close(listener);
    ::setenv("LISTEN_FDS", "1", 1);
    ::setenv("LISTEN_PID", "1", 1);  // meant for another process
    Program other("chat", {"--port", "0"});
    CHECK(portIn(other.after("open http://localhost:")) != port);
    ::unsetenv("LISTEN_FDS");
    ::unsetenv("LISTEN_PID");
}

TEST_CASE("examples/chat prints the Unix socket that it listens at") {
    char folder[] = "/tmp/wsXXXXXX";
    if (::mkdtemp(folder) == nullptr) throw std::runtime_error("no folder");
    Program chat("chat", {"--address", std::string("unix:") + folder + "/socket"});
    CHECK(chat.after("listening at ") == std::string("unix:") + folder + "/socket");
    chat.signal(SIGTERM);
    CHECK(chat.exitCode() == 0);
    CHECK(::rmdir(folder) == 0);  // the chat has removed its socket
}

TEST_CASE("examples/chat trusts the proxy given with --proxy") {
    Program chat("chat", {"--port", "0", "--proxy", "127.0.0.1", "--verbose"});
    Peer peer(portIn(chat.after("open http://localhost:")), "/chat",
              "X-Forwarded-For: 192.0.2.7\r\n");
    CHECK(has(chat.after("user 1 "), "192.0.2.7"));
}

TEST_CASE("examples/readme sends each message to all other users") {
    constexpr int kPort = 12345;  // the port in the README
    bool free = true;
    try {
        const Client other(kPort);
        free = false;
    } catch (const std::runtime_error &) {}
    if (!free) {
        MESSAGE("skipped: port 12345 is taken");
        return;
    }
    Program readme("readme", {});
    readme.after("port 12345");
    Peer ada(kPort), bob(kPort), eve(kPort);
    ada.send(frame(kText, "hello, all"));
    CHECK(bob.hear() == "text hello, all");
    CHECK(eve.hear() == "text hello, all");
    CHECK(ada.hearUntilPong().empty());
    readme.signal(SIGTERM);
    CHECK(readme.exitCode() == 1000 + SIGTERM);
}
