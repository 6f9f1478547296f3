// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Measures an attack: Victim is the server's process as /proc shows it, Canary a well-behaved
// client in a thread of its own.

#ifndef WS_TESTS_ATTACK_WATCH_H
#define WS_TESTS_ATTACK_WATCH_H

#include "peers.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace attack {

// ----------------------------------------------------------------------------
// The process that listens on a port. A figure is empty where it is not available, because
// the system has no /proc or the process belongs to another user.
// ----------------------------------------------------------------------------

class Victim {
  public:
    // With `pid` 0, looks for the process.
    Victim(int pid, int port) : pid_(pid != 0 ? pid : find(port)) {}

    int pid() const { return pid_; }

    std::optional<long> residentKiB() const {
        const std::vector<double> pages = numbers(path("statm"));
        if (pages.size() < 2) return std::nullopt;
        return static_cast<long>(pages[1]) * (::sysconf(_SC_PAGESIZE) / 1024);
    }

    // Processor time of all its threads.
    std::optional<double> cpuSeconds() const {
        std::optional<double> all;
        for (const auto &task : entries(path("task"))) {
            const std::vector<double> times = numbers(task / "schedstat");
            if (!times.empty()) all = all.value_or(0) + times[0] / 1e9;
        }
        return all;
    }

    std::optional<int> descriptors() const {
        const auto all = entries(path("fd"));
        if (all.empty()) return std::nullopt;
        return static_cast<int>(all.size());
    }

    // Seconds in which its first thread was ready to run but no processor was free.
    double waitedSeconds() const { return waited(path("schedstat")); }
    static double waitedMyself() { return waited("/proc/thread-self/schedstat"); }

  private:
    using Path = std::filesystem::path;

    Path path(const char *name) const { return Path("/proc") / std::to_string(pid_) / name; }

    static std::vector<double> numbers(const Path &file) {
        std::ifstream in(file);
        std::vector<double> all;
        for (double number = 0; in >> number;) all.push_back(number);
        return all;
    }

    static double waited(const Path &schedstat) {
        const std::vector<double> times = numbers(schedstat);
        return times.size() < 2 ? 0 : times[1] / 1e9;
    }

    static std::vector<Path> entries(const Path &folder) {
        std::error_code error;
        std::vector<Path> all;
        for (std::filesystem::directory_iterator i(folder, error), last; !error && i != last;
             i.increment(error))
            all.push_back(i->path());
        return all;
    }

    // The sockets that listen on that port, named as the links in /proc/*/fd name them.
    static std::vector<std::string> listeners(int port) {
        std::vector<std::string> names;
        for (const char *file : {"/proc/net/tcp", "/proc/net/tcp6"}) {
            std::ifstream in(file);
            for (std::string line; std::getline(in, line);) {
                std::istringstream words(line);
                std::vector<std::string> word(10);
                for (std::string &one : word) words >> one;
                const std::size_t colon = word[1].rfind(':');
                if (colon == word[1].npos || word[3] != "0A") continue;  // TCP_LISTEN
                if (std::stoi(word[1].substr(colon + 1), nullptr, 16) == port)
                    names.push_back("socket:[" + word[9] + "]");
            }
        }
        return names;
    }

    static int find(int port) {
        const std::vector<std::string> wanted = listeners(port);
        for (const Path &process : entries("/proc")) {
            const std::string name = process.filename().string();
            if (name.find_first_not_of("0123456789") != name.npos) continue;
            for (const Path &fd : entries(process / "fd")) {
                std::error_code error;
                const std::string link = std::filesystem::read_symlink(fd, error).string();
                if (std::find(wanted.begin(), wanted.end(), link) != wanted.end())
                    return std::stoi(name);
            }
        }
        return 0;
    }

    int pid_;
};

// ----------------------------------------------------------------------------
// The canary sends a small message every few milliseconds and measures how long the echo
// takes, and now and then how large the server's process is.
//
// The machine may be busy: time in which this thread or the server's was ready to run but
// waited for a processor is not the server's fault and is subtracted.
// ----------------------------------------------------------------------------

class Canary {
  public:
    struct Report {
        double worstMs = 0;
        double worstByClockMs = 0;  // nothing subtracted
        long peakKiB = 0;
        std::string lost;  // why the canary died, if it did
    };

    Canary(const Target &target, const Victim &victim)
        : target_(target), victim_(victim), thread_([this] { run(); }) {}
    ~Canary() {
        stopped_ = true;
        thread_.join();
    }

    void sing() {
        report_ = {};
        singing_ = true;
        while (resting_) sleepFor(0.001);
    }

    // Stops once the last message is answered, and returns the report.
    Report rest() {
        singing_ = false;
        while (!resting_) sleepFor(0.001);
        return report_;
    }

  private:
    static constexpr double kPause = 0.003;
    static constexpr double kPatience = 10;

    // report_ belongs to the other thread while the canary rests, and to this one otherwise.
    void run() {
        while (!stopped_) {
            if (!singing_ && !resting_) resting_ = true;
            if (resting_ && singing_) resting_ = false;
            if (resting_) keepAlive();
            else singOnce();
            sleepFor(kPause);
        }
    }

    // While the canary rests, it must still answer pings.
    void keepAlive() {
        if (peer_) peer_->move();
    }

    void singOnce() try {
        if (!peer_ || peer_->told()) connect();
        measure();
        if (++trips_ % 4 == 0)
            report_.peakKiB = std::max(report_.peakKiB, victim_.residentKiB().value_or(0));
    } catch (const std::exception &e) {
        if (report_.lost.empty()) report_.lost = e.what();
        peer_.reset();
        sleepFor(0.1);
    }

    void connect() {
        if (peer_) {
            const std::string story = peer_->story();
            peer_.reset();
            throw std::runtime_error(story);
        }
        peer_ = std::make_unique<Peer>(target_);
        peer_->answersPings = peer_->welcomed = true;
        peer_->send(upgrade());
        await([this] { return peer_->upgraded; });
    }

    void measure() {
        const std::string said = "canary " + std::to_string(trips_);
        const double waits = Victim::waitedMyself() + victim_.waitedSeconds();
        const auto start = Clock::now();
        const std::uint64_t before = peer_->messages;
        peer_->send(frame(kText, said));
        await([&] { return peer_->messages > before; });
        if (peer_->lastMessage != said) throw std::runtime_error("a wrong echo");
        const double took = Seconds(Clock::now() - start).count();
        const double waited = Victim::waitedMyself() + victim_.waitedSeconds() - waits;
        report_.worstByClockMs = std::max(report_.worstByClockMs, took * 1000);
        report_.worstMs = std::max(report_.worstMs, (took - waited) * 1000);
    }

    template <class Done>
    void await(Done done) {
        for (const auto end = after(kPatience); !done(); peer_->move()) {
            if (peer_->told()) throw std::runtime_error(peer_->story());
            if (Clock::now() > end) throw std::runtime_error("no echo");
            peer_->poll(POLLIN, 100);
        }
    }

    const Target &target_;
    const Victim &victim_;
    std::unique_ptr<Peer> peer_;
    std::uint64_t trips_ = 0;
    Report report_;
    std::atomic<bool> singing_{false}, resting_{true}, stopped_{false};
    std::thread thread_;
};

}  // namespace attack

#endif
