// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// How long a well-behaved client waits while others are at their worst:
//
//     fairness SERVER [OPTION=VALUE]...    starts tests/attack/fairness_server.cpp and measures it
//     fairness --port=12345 ...            measures one that already runs
//
// The client is a canary: it sends 20 bytes, waits for their echo, and goes on 2 ms after it
// began. Beside it, 1, 100 and 1000 hostile peers create one of these situations:
//
//     heads      all send the last byte of an 8 KiB upgrade request; until all are answered
//     large      all send 1 MiB messages and read the echoes
//     json       all send JSON texts that are as costly to parse as the default limits allow
//     goodbyes   all leave at one moment, half by RST and half by a Close frame
//     small      all send one-byte messages and read the echoes
//     slow       all have asked for 3 MiB and read 1 KiB every 10 ms
//
// Each row is about the round trips that overlap the situation, weighted by their length: during
// half of the situation, the canary is on a trip that takes no longer than the median. (Unweighted,
// ten short trips would hide that the server then stands still for a second.) A situation is
// repeated until the canary has made 100 trips, or for five times --seconds.
//
// Server, canary and hostile peers are three processes. The server has a processor of its own if
// there are two, and the canary takes precedence if the system permits. Time in which one of these
// two was ready, but had to wait for a processor, is not the server's fault and is subtracted. The
// last column shows its share: the larger that is, the less the row is worth.
//
// The aim is a median under 5 ms beside up to 100 peers (json: 15 ms, the cost of one message),
// and under 30 ms beside up to 1000. With --check, the status is 1 if a median is more than four
// times that.
//
// This needs Linux: epoll, processor affinity, and MSG_TRUNC, which discards what a peer receives.

#include "peers.h"
#include "watch.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

namespace attack {
namespace {

constexpr auto kPause = std::chrono::milliseconds(2);  // between the canary's messages
constexpr double kPatience = 120;                      // seconds until the server counts as dead
constexpr std::size_t kEnough = 100;                   // trips for one row
constexpr double kTolerance = 4;  // of --check: machines have other things to do
constexpr double kJsonAim = 15;   // ms, what one of the most expensive messages takes
constexpr int kCrowd = 18000;     // that many say goodbye as well, if there are descriptors
constexpr std::size_t kHeadBytes = 8 * 1024, kMessageBytes = 1 << 20;  // the default limits

using Options = std::map<std::string, std::string>;

double number(const Options &options, const char *name) {
    return std::strtod(options.at(name).c_str(), nullptr);
}

// Moves this peer's bytes until it is `done`.
template <class Done>
void await(Peer &peer, Done done) {
    for (const auto end = after(kPatience); !done(); peer.move()) {
        if (peer.ended() || Clock::now() > end)
            throw std::runtime_error("the server does not answer: " + peer.story());
        peer.poll(peer.events(), 1000);
    }
}

// ----------------------------------------------------------------------------
// Processes
// ----------------------------------------------------------------------------

// The first processor that we may use is number 0; numbers too large mean the last one.
void runOn(std::size_t number) {
    cpu_set_t allowed, one;
    if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    std::vector<std::size_t> all;
    for (std::size_t i = 0; i < CPU_SETSIZE; ++i)
        if (CPU_ISSET(i, &allowed)) all.push_back(i);
    CPU_ZERO(&one);
    CPU_SET(all[std::min(number, all.size() - 1)], &one);
    ::sched_setaffinity(0, sizeof one, &one);
}

// A child process whose standard output we read. It never outlives us.
class Child {
  public:
    explicit Child(const std::function<void()> &work) {
        std::array<int, 2> pipe{};
        if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
        pid_ = ::fork();
        if (pid_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::dup2(pipe[1], STDOUT_FILENO);
            work();
            ::_exit(1);
        }
        ::close(pipe[1]);
        output = pipe[0];
        if (pid_ < 0) throw std::runtime_error("cannot fork");
    }
    ~Child() {
        ::kill(pid_, SIGTERM);
        ::waitpid(pid_, nullptr, 0);
        ::close(output);
    }
    Child(const Child &) = delete;
    Child &operator=(const Child &) = delete;

    int pid() const { return pid_; }
    int output = -1;

  private:
    pid_t pid_ = -1;
};

class Server : public Child {
  public:
    explicit Server(const std::string &program)
        : Child([&] {
              runOn(0);
              ::execl(program.c_str(), program.c_str(), nullptr);
              std::perror(program.c_str());
          }) {
        std::array<char, 20> line{};
        if (::read(output, line.data(), line.size() - 1) > 0) port = std::atoi(line.data());
        if (port == 0) throw std::runtime_error("the server does not print its port");
    }
    int port = 0;
};

// ----------------------------------------------------------------------------
// The canary
// ----------------------------------------------------------------------------

struct Trip {
    Clock::time_point start, end;
    double starved;  // seconds without a processor
    double seconds() const { return Seconds(end - start).count(); }
    double wait() const { return (seconds() - starved) * 1000; }
};

// Writes each trip to standard output; the pipe holds those of a minute and more.
void sing(const Target &target, const Victim &server) try {
    const sched_param first{1};
    ::sched_setscheduler(0, SCHED_FIFO, &first);
    ::fcntl(STDOUT_FILENO, F_SETPIPE_SZ, 1 << 20);
    Peer peer(target);
    peer.send(upgrade());
    await(peer, [&] { return peer.upgraded; });
    const auto starved = [&] { return server.waitedSeconds() + Victim::waitedMyself(); };
    const std::string song = frame(kText, "twenty bytes of song");
    for (std::uint64_t sung = 1;; ++sung) {
        const double before = starved();
        Trip trip{Clock::now(), {}, 0};
        peer.send(song);
        await(peer, [&] { return peer.messages == sung; });
        trip.end = Clock::now();
        trip.starved = std::min(starved() - before, trip.seconds());
        if (::write(STDOUT_FILENO, &trip, sizeof trip) != sizeof trip) return;
        std::this_thread::sleep_until(trip.start + kPause);
    }
} catch (const std::exception &e) {
    std::fprintf(stderr, "the canary: %s\n", e.what());
}

class Canary : public Child {
  public:
    Canary(const Target &target, const Victim &server)
        : Child([&] {
              runOn(2);
              sing(target, server);
          }) {}

    // The trips between these moments, and those that began earlier or ended later.
    std::vector<Trip> between(Clock::time_point start, Clock::time_point end) const {
        std::vector<Trip> all;
        for (Trip trip = next(); trip.start < end; trip = next())
            if (trip.end > start) all.push_back(trip);
        return all;
    }

    // Waits until nothing keeps the canary waiting, for ten seconds at most.
    void awaitCalm() const {
        const auto now = Clock::now(), end = after(10);
        int calm = 0;
        for (Trip trip = next(); calm < 20 && trip.start < end; trip = next())
            calm = trip.start > now && trip.wait() < 1 ? calm + 1 : 0;
    }

  private:
    Trip next() const {
        Trip trip;
        if (::read(output, &trip, sizeof trip) != sizeof trip)
            throw std::runtime_error("the canary is dead");
        return trip;
    }
};

// ----------------------------------------------------------------------------
// The hostile peers. They do as little as possible, for all three processes may share two
// processors.
// ----------------------------------------------------------------------------

class Swarm {
  public:
    // Each sends `head`, and waits for its answer if that is a whole one. They come a hundred at
    // a time, since a server's backlog may be short.
    Swarm(const Target &target, int count, std::string_view head, int receiveBuffer) {
        const bool isWhole = head.substr(head.size() - 4) == "\r\n\r\n";
        while (peers_.size() < static_cast<std::size_t>(count)) {
            peers_.push_back(std::make_unique<Peer>(target, receiveBuffer));
            peers_.back()->send(head);
            if (peers_.size() % 100 == 0 && isWhole) awaitUpgrades(peers_.size() - 100);
        }
        if (isWhole) awaitUpgrades(peers_.size() / 100 * 100);
    }
    ~Swarm() {
        for (const auto &peer : peers_) peer->reset();
    }
    Swarm(const Swarm &) = delete;
    Swarm &operator=(const Swarm &) = delete;

    void awaitUpgrades(std::size_t first = 0) {
        for (std::size_t i = first; i < peers_.size(); ++i)
            await(*peers_[i], [&] { return peers_[i]->upgraded; });
    }

    void sendAll(std::string_view bytes) {
        for (const auto &peer : peers_) peer->send(bytes);
    }

    // All send this again and again, as fast as the kernel takes it, and read what comes.
    void flood(std::string_view bytes, double seconds) {
        const int ready = ::epoll_create1(EPOLL_CLOEXEC);
        for (const auto &peer : peers_) {
            epoll_event event{EPOLLIN | EPOLLOUT, {peer.get()}};
            ::epoll_ctl(ready, EPOLL_CTL_ADD, peer->fd(), &event);
            peer->sentBytes = 0;
        }
        std::array<epoll_event, 256> events{};
        for (const auto end = after(seconds); Clock::now() < end;) {
            const int count = ::epoll_wait(ready, events.data(), int{events.size()}, 10);
            for (int i = 0; i < count; ++i) {
                const epoll_event &event = events[static_cast<std::size_t>(i)];
                Peer &peer = *static_cast<Peer *>(event.data.ptr);
                if ((event.events & ~EPOLLOUT) != 0) discard(peer, kMessageBytes);
                if ((event.events & EPOLLOUT) != 0)
                    peer.sendSome(bytes.substr(peer.sentBytes % bytes.size(), 256 * 1024));
            }
        }
        ::close(ready);
    }

    // All read 1 KiB every 10 ms.
    void sip(double seconds) {
        for (auto now = Clock::now(), end = after(seconds); now < end;) {
            for (const auto &peer : peers_) discard(*peer, 1024);
            std::this_thread::sleep_until(now += std::chrono::milliseconds(10));
        }
    }

    // All leave: one by a Close frame, the next by RST, and so on. Ends with the last connection.
    void leave() {
        for (std::size_t i = 0; i < peers_.size(); ++i)
            if (i % 2 == 0) peers_[i]->send(closeFrame(1000));
            else peers_[i]->reset();
        for (std::size_t i = 0; i < peers_.size(); i += 2) {
            await(*peers_[i], [&] { return peers_[i]->ended(); });
            peers_[i]->leave();
        }
    }

    int lost = 0;  // connections that the server has ended

  private:
    // Nothing is copied from the kernel, see tcp(7).
    void discard(Peer &peer, std::size_t most) {
        if (peer.fd() < 0) return;
        const ssize_t size = ::recv(peer.fd(), nullptr, most, MSG_TRUNC);
        if (size > 0 || (size < 0 && errno == EAGAIN)) return;
        peer.leave();
        ++lost;
    }

    std::vector<std::unique_ptr<Peer>> peers_;
};

// ----------------------------------------------------------------------------
// The situations
// ----------------------------------------------------------------------------

struct Situation {
    std::string name, head;                 // each peer comes with this,
    std::function<void(Swarm &swarm)> act;  // and the situation lasts until this returns
    double aimFew = 5, aimMany = 30;        // ms, for the median beside up to 100 or 1000 peers
    int receiveBuffer = 0;                  // as the system has it
};

// As many of these lines as fit, and a last one that fills the rest.
Situation heads(const char *name, const std::string &line) {
    const std::size_t room = kHeadBytes - upgrade().size();
    std::string lines = repeated(line, room / line.size() - 1);
    lines += "p:" + std::string(room - lines.size() - 4, 'p') + "\r\n";
    std::string head = upgrade(lines);
    head.pop_back();
    return {name, head, [](Swarm &swarm) {
                swarm.sendAll("\n");
                swarm.awaitUpgrades();
            }};
}

Situation flood(const char *name, const std::string &bytes, double seconds, double aimFew = 5) {
    return {name, upgrade(), [=](Swarm &swarm) { swarm.flood(bytes, seconds); }, aimFew};
}

std::string arrayOf(std::size_t values, const std::string &value) {
    return "[" + repeated(value + ",", values - 1) + value + "]";
}

std::vector<Situation> allSituations(const Options &options) {
    const double seconds = number(options, "seconds");
    // Inside the array, which counts too. An empty one counts as two.
    const auto values = static_cast<std::size_t>(number(options, "json-values")) - 2;
    const std::string numbers = arrayOf(values, std::string(kMessageBytes / values - 2, '7'));
    const std::string arrays = arrayOf(values / 2, "[]");
    const auto readSlowly = [=](Swarm &swarm) {
        swarm.sendAll(repeated(frame(kText, "big"), 3));
        swarm.sip(seconds);
    };
    return {
        {"nobody", upgrade(), [=](Swarm &) { sleepFor(seconds); }},
        heads("heads, long", "X: " + std::string(1900, 'x') + "\r\n"),
        heads("heads, tiny", "a:\r\n"),
        flood("large", frame(kBinary, std::string(kMessageBytes, 'l')), seconds),
        flood("json, numbers", frame(kText, numbers), seconds, kJsonAim),
        flood("json, arrays", frame(kText, arrays), seconds, kJsonAim),
        {"goodbyes", upgrade(), [](Swarm &swarm) { swarm.leave(); }},
        flood("small", repeated(frame(kText, "s"), 10000), seconds),
        {"slow", upgrade(), readSlowly, 5, 30, 4096},
    };
}

// ----------------------------------------------------------------------------
// Measuring
// ----------------------------------------------------------------------------

class Trial {
  public:
    Trial(double seconds, int port, int pid)
        : seconds_(seconds), target_("127.0.0.1", port), canary_(target_, Victim(pid, port)) {
        std::puts(
            "                               median      p99      max     lasts\n"
            "situation        peers  trips      ms       ms       ms        ms  starved");
    }

    // Whether the median is tolerable, and no peer was disconnected.
    bool run(const Situation &situation, int count) {
        std::vector<Trip> trips;
        double lasted = 0, starved = 0, traveled = 0;
        int rounds = 0, lost = 0;
        for (const auto tooLate = after(5 * seconds_);
             rounds == 0 || (trips.size() < kEnough && Clock::now() < tooLate); ++rounds) {
            auto swarm =
                std::make_unique<Swarm>(target_, count, situation.head, situation.receiveBuffer);
            canary_.awaitCalm();
            const auto start = Clock::now();
            situation.act(*swarm);
            const auto end = Clock::now();
            lasted += Seconds(end - start).count() * 1000;
            lost += swarm->lost;
            swarm.reset();
            // However short a moment, the canary has its say in it.
            const auto more = canary_.between(start, std::max(end, start + 2 * kPause));
            for (const Trip &trip : more) {
                trips.push_back(trip);
                starved += trip.starved;
                traveled += trip.seconds();
            }
        }
        const double median = wait(trips, 0.5);
        const double aim = count <= 100 ? situation.aimFew : situation.aimMany;
        const bool fine = lost == 0 && (count > 1000 || median <= kTolerance * aim);
        std::printf("%-15s %6d %6zu %8.2f %8.2f %8.2f %9.1f %7.0f%%", situation.name.c_str(), count,
                    trips.size(), median, wait(trips, 0.99), wait(trips, 1), lasted / rounds,
                    starved / traveled * 100);
        if (lost > 0) std::printf("  %d PEERS WERE DISCONNECTED", lost);
        std::puts(fine || lost > 0 ? "" : "  TOO LONG");
        std::fflush(stdout);
        return fine;
    }

  private:
    // During that share of the time, trips took no longer than this.
    static double wait(std::vector<Trip> &trips, double share) {
        std::sort(trips.begin(), trips.end(),
                  [](const Trip &a, const Trip &b) { return a.wait() < b.wait(); });
        const auto weight = [](const Trip &trip) {
            return std::max(trip.wait(), Seconds(kPause).count() * 1000);
        };
        double left = 0;
        for (const Trip &trip : trips) left += share * weight(trip);
        for (const Trip &trip : trips)
            if ((left -= weight(trip)) <= 0) return trip.wait();
        return trips.back().wait();
    }

    const double seconds_;
    const Target target_;
    const Canary canary_;
};

int measureAll(const Options &options) {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    int port = static_cast<int>(number(options, "port"));
    std::unique_ptr<Server> server;
    if (port == 0) server = std::make_unique<Server>(options.at("server"));
    if (server) port = server->port;
    Trial trial(number(options, "seconds"), port, server ? server->pid() : 0);
    runOn(1);
    bool fine = true;
    for (const Situation &situation : allSituations(options)) {
        if (situation.name.find(options.at("only")) == std::string::npos) continue;
        std::istringstream counts(situation.name == "nobody" ? "0" : options.at("peers"));
        for (std::string count; std::getline(counts, count, ',');)
            fine = trial.run(situation, std::atoi(count.c_str())) && fine;
        if (situation.name == "goodbyes" && files.rlim_cur > kCrowd + 100)
            fine = trial.run(situation, kCrowd) && fine;
    }
    return options.at("check").empty() || fine ? 0 : 1;
}

}  // namespace
}  // namespace attack

int main(int argc, char **argv) try {
    attack::Options options{{"server", ""}, {"port", "0"},           {"peers", "1,100,1000"},
                            {"only", ""},   {"json-values", "4096"}, {"seconds", "2"},
                            {"check", ""}};
    bool fine = argc > 1;
    for (int i = 1; i < argc; ++i) {
        std::string name = argv[i], value = "yes";
        if (name.substr(0, 2) != "--") name = "--server=" + name;
        const std::size_t equals = name.find('=');
        if (equals != name.npos) value = name.substr(equals + 1);
        const auto option = options.find(name.substr(2, equals - 2));
        fine = fine && option != options.end();
        if (fine) option->second = value;
    }
    if (fine) return attack::measureAll(options);
    std::puts(
        "fairness SERVER | --port=NUMBER  [--peers=1,100,1000] [--only=TEXT] [--seconds=2]\n"
        "    [--json-values=4096] [--check]");
    return 2;
} catch (const std::exception &e) {
    std::fprintf(stderr, "fairness: %s\n", e.what());
    return 2;
}
