// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// `make soak`: hundreds of clients with different habits connect, talk, stall and vanish.
// The program starts the server they talk to:
//
//     soak --server PROGRAM [--seconds 300] [--clients 300] [--seed 6455]
//
// There are two rounds, of a quarter and three quarters of that time. During a round, each
// client that leaves is replaced by another with the same habit; at its end all leave. The
// first round shows what the server holds once it has seen everything; after the second it
// must not hold more.
//
// habits.h says what each habit may expect. At the end come a table of what was done and
// "N passed, N failed": one check for each habit, and some for the server.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <csignal>
#include <sys/resource.h>
#include <sys/wait.h>

#include "client.h"
#include "habits.h"

namespace soak {
namespace {

// After a round, the server's deadlines of a few seconds may still be running.
constexpr auto kSettling = 30s;

// How much more the heap may hold after the second round than after the first: enough for
// some arrays to have grown, because more clients came at once than before.
constexpr std::uint64_t kHeapTolerance = 64 * 1024;

struct Options {
    std::string server;
    std::size_t seconds = 300, clients = 300;
    std::uint64_t seed = 6455;
};

// ----------------------------------------------------------------------------
// The server, a process of its own
// ----------------------------------------------------------------------------

using State = std::map<std::string, std::uint64_t>;

class Server {
  public:
    explicit Server(const std::string &program);
    ~Server() {
        if (pid_ > 0) wait(SIGKILL);
        if (output_ != nullptr) std::fclose(output_);
        if (errors_ != nullptr) std::fclose(errors_);
    }
    Server(const Server &) = delete;
    Server &operator=(const Server &) = delete;

    int port() const { return port_; }
    State state() const;

    // Asks the server to stop. Returns what is wrong with how it exits; empty if nothing is.
    std::string end() {
        ::kill(pid_, SIGTERM);
        const Time patience = Clock::now() + kPatience;
        while (running() && Clock::now() < patience) std::this_thread::sleep_for(10ms);
        if (pid_ > 0) wait(SIGKILL);
        if (WIFSIGNALED(status_))
            return "was killed by signal " + std::to_string(WTERMSIG(status_));
        return status_ == 0 ? "" : "exits with status " + std::to_string(WEXITSTATUS(status_));
    }

    bool running() {
        if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
        return pid_ > 0;
    }

    // What the server has written to stderr.
    std::string errors() const {
        std::string text(4000, '\0');
        std::rewind(errors_);
        text.resize(std::fread(text.data(), 1, text.size(), errors_));
        return text;
    }

  private:
    std::string ask(const std::string &request) const;
    void wait(int signal) {
        ::kill(pid_, signal);
        ::waitpid(std::exchange(pid_, -1), &status_, 0);
    }

    pid_t pid_ = -1;
    int status_ = 0, port_ = 0;
    std::FILE *output_ = nullptr, *errors_ = nullptr;
};

// The server prints its port into a pipe; its stderr goes to a file. glibc's caches of freed
// blocks are off, so that the size of the heap that it reports is exact.
Server::Server(const std::string &program) {
    std::array<int, 2> pipe{};
    errors_ = std::tmpfile();
    if (errors_ == nullptr || ::pipe(pipe.data()) != 0) throw std::runtime_error("no descriptors");
    ::setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0", 1);
    pid_ = ::fork();
    if (pid_ == 0) {
        ::dup2(pipe[1], STDOUT_FILENO);
        ::dup2(::fileno(errors_), STDERR_FILENO);
        for (const int fd : {pipe[0], pipe[1], ::fileno(errors_)}) ::close(fd);
        ::execl(program.c_str(), program.c_str(), static_cast<char *>(nullptr));
        std::perror(program.c_str());
        ::_exit(127);
    }
    ::close(pipe[1]);
    output_ = ::fdopen(pipe[0], "r");
    if (pid_ < 0 || std::fscanf(output_, "listening on port %d", &port_) != 1)
        throw std::runtime_error("the server does not start: " + errors());
}

// Sends the request and returns all that comes back until the connection ends.
std::string Server::ask(const std::string &request) const {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval patience{10, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    std::string answer(4096, '\0');
    ssize_t size = 0;
    if (::connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0 &&
        ::send(fd, request.data(), request.size(), 0) > 0)
        size = ::recv(fd, answer.data(), answer.size(), MSG_WAITALL);
    ::close(fd);
    answer.resize(static_cast<std::size_t>(std::max<ssize_t>(0, size)));
    return answer;
}

// What GET /state reports. The server may keep the memory of one message for the next; a
// fragmented message sent before makes this memory the same size each time.
State Server::state() const {
    const std::string half(100, '.');
    ask(upgrade("/") + frame(kText, half, 1) + frame(kFin, half, 2) + frame(kFin | kClose, "", 3));
    const std::string answer = ask("GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    State state;
    for (const char *name : {"users", "descriptors", "heap", "said", "preConnect", "postConnect",
                             "preDisconnect", "postDisconnect"}) {
        const std::size_t found = answer.find('"' + std::string(name) + '"');
        if (found == answer.npos) throw std::runtime_error("the server does not report its state");
        state[name] = std::strtoull(&answer[answer.find(':', found) + 1], nullptr, 10);
    }
    return state;
}

// ----------------------------------------------------------------------------
// The clients
// ----------------------------------------------------------------------------

struct Tally {
    std::uint64_t came = 0, sent = 0, heard = 0, complaints = 0;
};

// A place for one client with a habit, and, once it has gone, for the next.
struct Place {
    std::size_t habit = 0;
    std::unique_ptr<Client> client;
    Time next;  // when the next client comes
};

class Crowd {
  public:
    Crowd(World &world, std::size_t clients) : world_(world) {
        for (std::size_t habit = 0; habit < kHabits.size(); ++habit) {
            const std::size_t share = clients * kHabits[habit].share / 100;
            for (std::size_t i = 0; habit != kSinger && i < std::max<std::size_t>(share, 1); ++i)
                places_.push_back({habit, nullptr, Time()});
        }
    }

    // Lets clients come and go for that time, then makes all leave.
    void round(std::chrono::milliseconds time, Server &server);
    void chorus(Server &server);  // of all singers, see habits.h

    void printTable() const;
    const std::array<Tally, kHabits.size()> &tallies() const { return tallies_; }
    Clock::duration longestTurn() const { return longestTurn_; }

  private:
    bool empty() const {
        return std::none_of(places_.begin(), places_.end(),
                            [](const Place &place) { return place.client != nullptr; });
    }
    void turn(Server &server);
    void spawn(Place &place);
    void noteEnd(Place &place);

    World &world_;
    std::vector<Place> places_;
    std::vector<pollfd> polled_;  // entry i is that of place i
    std::array<Tally, kHabits.size()> tallies_{};
    Clock::duration longestTurn_{};
};

void Crowd::round(std::chrono::milliseconds time, Server &server) {
    const Time end = Clock::now() + time;
    world_.closing = false;
    for (Place &place : places_) place.next = Clock::now() + world_.moment(0, 1000);
    while (Clock::now() < end) turn(server);
    world_.closing = true;
    while (!empty()) turn(server);
}

void Crowd::chorus(Server &server) {
    const std::size_t before = places_.size();
    const std::size_t singers = std::min<std::size_t>(2 * before, 900);
    world_.stillComing = world_.stillSinging = singers;
    places_.resize(before + singers);
    for (std::size_t i = before; i < places_.size(); ++i) {
        places_[i].habit = kSinger;
        spawn(places_[i]);
    }
    while (!empty()) turn(server);
    places_.resize(before);
}

// No client waits for longer than kPatience, so loops of turns end.
void Crowd::turn(Server &server) {
    if (!server.running()) throw std::runtime_error("the server has ended: " + server.errors());
    polled_.clear();
    Time until = world_.now + 100ms;
    for (Place &place : places_) {
        if (!place.client && !world_.closing && world_.now >= place.next) spawn(place);
        polled_.push_back(place.client ? place.client->wanted() : pollfd{-1, 0, 0});
        if (place.client) until = std::min(until, place.client->wakesAt());
    }
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
    ::poll(polled_.data(), polled_.size(), std::max(0, static_cast<int>(wait.count())));
    world_.now = Clock::now();
    for (std::size_t i = 0; i < places_.size(); ++i) {
        Client *client = places_[i].client.get();
        if (client == nullptr) continue;
        if (!client->over()) client->serve(polled_[i].revents);
        if (!client->over()) client->wake();
        if (client->over()) noteEnd(places_[i]);
    }
    longestTurn_ = std::max(longestTurn_, Clock::now() - world_.now);
}

void Crowd::spawn(Place &place) {
    place.client = kHabits[place.habit].make(world_);
    place.client->begin(kHabits[place.habit].receiveBuffer);
    ++tallies_[place.habit].came;
}

void Crowd::noteEnd(Place &place) {
    Tally &tally = tallies_[place.habit];
    tally.sent += place.client->messagesSent;
    tally.heard += place.client->messagesHeard;
    if (!place.client->complaint().empty()) {
        if (++tally.complaints <= 3)
            std::printf("a %s: %s\n", kHabits[place.habit].name, place.client->complaint().c_str());
    }
    place.client.reset();
    place.next = world_.now + world_.moment(0, 1000);
}

void Crowd::printTable() const {
    std::printf("\n%-14s %8s %10s %12s %10s\n", "habit", "came", "sent", "heard", "complaints");
    for (std::size_t i = 0; i < kHabits.size(); ++i)
        std::printf("%-14s %8llu %10llu %12llu %10llu\n", kHabits[i].name,
                    static_cast<unsigned long long>(tallies_[i].came),
                    static_cast<unsigned long long>(tallies_[i].sent),
                    static_cast<unsigned long long>(tallies_[i].heard),
                    static_cast<unsigned long long>(tallies_[i].complaints));
}

// ----------------------------------------------------------------------------
// Checks
// ----------------------------------------------------------------------------

class Checks {
  public:
    void check(bool good, const std::string &what) {
        ++(good ? passed_ : failed_);
        std::printf("%-7s %s\n", good ? "passed" : "FAILED", what.c_str());
    }
    bool report() const {
        std::printf("%d passed, %d failed\n", passed_, failed_);
        return failed_ == 0;
    }

  private:
    int passed_ = 0, failed_ = 0;
};

// The server's state once no client is connected, or when that has taken too long.
State settled(const Server &server, std::uint64_t descriptors) {
    const Time patience = Clock::now() + kSettling;
    State state = server.state();
    while ((state["users"] > 0 || state["descriptors"] > descriptors) && Clock::now() < patience) {
        std::this_thread::sleep_for(100ms);
        state = server.state();
    }
    return state;
}

std::string fromTo(const char *what, State &from, State &to, const char *name) {
    return std::string(what) + ": " + std::to_string(from[name]) + ", then " +
           std::to_string(to[name]);
}

void checkState(Checks &checks, State start, State warm, State end) {
    checks.check(end["users"] == 0, "users left: " + std::to_string(end["users"]));
    checks.check(end["descriptors"] == start["descriptors"],
                 fromTo("descriptors at the start", start, end, "descriptors"));
    if (warm["heap"] == 0) std::printf("(this system does not tell the size of the heap)\n");
    else
        checks.check(end["heap"] <= warm["heap"] + kHeapTolerance,
                     fromTo("bytes on the heap after the first round", warm, end, "heap"));
    const std::uint64_t came = end["postConnect"];
    bool paired = came > 0;
    for (const char *name : {"preConnect", "preDisconnect", "postDisconnect"})
        paired = paired && end[name] == came;
    checks.check(paired, "hooks: preConnect " + std::to_string(end["preConnect"]) +
                             ", postConnect " + std::to_string(came) + ", preDisconnect " +
                             std::to_string(end["preDisconnect"]) + ", postDisconnect " +
                             std::to_string(end["postDisconnect"]));
}

bool soak(const Options &options) {
    Server server(options.server);
    ::signal(SIGPIPE, SIG_IGN);  // only now, because the server would inherit it
    World world(server.port(), options.seed);
    Crowd crowd(world, options.clients);
    Checks checks;

    const State start = server.state();
    const auto time = std::chrono::milliseconds(options.seconds * 1000);
    crowd.round(time / 4, server);
    crowd.chorus(server);
    const State warm = settled(server, start.at("descriptors"));
    crowd.round(time * 3 / 4, server);
    crowd.chorus(server);
    const State end = settled(server, start.at("descriptors"));
    const std::string wrong = server.end(), errors = server.errors();

    crowd.printTable();
    std::printf("the server broadcast %llu messages; the longest turn here took %lld ms\n\n",
                static_cast<unsigned long long>(end.at("said")),
                static_cast<long long>(crowd.longestTurn() / 1ms));
    for (std::size_t i = 0; i < kHabits.size(); ++i) {
        const Tally &tally = crowd.tallies()[i];
        checks.check(tally.came > 0 && tally.complaints == 0,
                     kHabits[i].name + ": "s + std::to_string(tally.complaints) +
                         " complaints from " + std::to_string(tally.came) + " clients");
    }
    checkState(checks, start, warm, end);
    checks.check(wrong.empty(), "the server stops" + (wrong.empty() ? "" : ", but " + wrong));
    checks.check(errors.empty(), "its stderr is empty" + (errors.empty() ? "" : ": " + errors));
    return checks.report();
}

Options optionsFrom(int argc, char **argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        const char *value = argv[i + 1];
        if (option == "--server") options.server = value;
        else if (option == "--seconds") options.seconds = std::stoul(value);
        else if (option == "--clients") options.clients = std::stoul(value);
        else if (option == "--seed") options.seed = std::stoull(value);
        else throw std::invalid_argument("unknown option " + option);
    }
    if (options.server.empty()) throw std::invalid_argument("--server is missing");
    return options;
}

// Allows this process as many descriptors as it may have, up to 8192.
void raiseLimit() {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 8192);
    ::setrlimit(RLIMIT_NOFILE, &files);
}

}  // namespace
}  // namespace soak

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    try {
        const soak::Options options = soak::optionsFrom(argc, argv);
        std::printf("soak: %zu seconds, about %zu clients, seed %llu\n", options.seconds,
                    options.clients, static_cast<unsigned long long>(options.seed));
        soak::raiseLimit();
        return soak::soak(options) ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception &problem) {
        std::printf("soak: %s\n0 passed, 1 failed\n", problem.what());
        return EXIT_FAILURE;
    }
}
