// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Attacks a running WebSocket echo server with every behaviour of behaviours.h, while a
// well-behaved client, the canary, keeps talking to it:
//
//     attack [--port=12345] [--only=TEXT] [--quick] ...
//
// It works with any server that sends each message back. Options tell it how the server is
// configured; their defaults are those of config.h. Each behaviour prints one row: its name;
// what was sent; how the connections ended; the canary's worst round trip (in parentheses:
// including waits for a processor); how much the server's memory grew, and how much it may;
// the server's processor use while it has nothing to do; and the descriptors it still holds
// after all peers have gone. If any of these is wrong, the row fails and says why.

#include "attack.h"
#include "behaviours.h"
#include "watch.h"

#include <cmath>
#include <csignal>
#include <cstdio>
#include <map>

#include <sys/resource.h>

namespace attack {
namespace {

// ----------------------------------------------------------------------------
// Options
// ----------------------------------------------------------------------------

struct Number {
    const char *name;
    double Options::*value;
    const char *help;
};

constexpr Number kNumbers[] = {
    {"port", &Options::port, "the server's port"},
    {"pid", &Options::pid, "its process; 0: the one that listens on that port"},
    {"canary-ms", &Options::canaryMs, "longest wait for the canary's echo"},
    {"max-request", &Options::maxRequest, "maxRequestBytes"},
    {"max-message", &Options::maxMessage, "maxMessageBytes"},
    {"max-queued", &Options::maxQueued, "maxQueuedBytes"},
    {"max-fragments", &Options::maxFragments, "maxFragments"},
    {"max-users", &Options::maxUsers, "maxUsers"},
    {"max-pending", &Options::maxPending, "maxPending"},
    {"handshake-seconds", &Options::handshakeSeconds, "handshakeSeconds"},
    {"close-seconds", &Options::closeSeconds, "closeSeconds"},
    {"ping-seconds", &Options::pingSeconds, "pingSeconds; 0: the server does not ping"},
    {"grace-seconds", &Options::graceSeconds, "how late a deadline may be"},
    {"connection-kib", &Options::connectionKiB, "memory allowed per connection"},
    {"slack-kib", &Options::slackKiB, "memory allowed on top, per behaviour"},
};

void printHelp() {
    const Options defaults;
    std::printf("attack [OPTION=VALUE]...: attacks a WebSocket echo server\n\n");
    std::printf("  %-20s the host (%s)\n", "--address", defaults.address.c_str());
    for (const Number &number : kNumbers)
        std::printf("  --%-18s %s (%g)\n", number.name, number.help, defaults.*number.value);
    std::printf("  %-20s only rows whose name contains this text\n", "--only");
    std::printf("  %-20s short floods; skips rows that wait for a deadline\n", "--quick");
}

bool setOption(Options &options, const std::string &name, const std::string &value) {
    if (name == "--quick" && value.empty()) return options.quick = true;
    if (value.empty()) return false;
    if (name == "--address") options.address = value;
    else if (name == "--only") options.only = value;
    else {
        for (const Number &number : kNumbers) {
            if (name != "--"s + number.name) continue;
            char *end = nullptr;
            options.*number.value = std::strtod(value.c_str(), &end);
            return *end == '\0';
        }
        return false;
    }
    return true;
}

// ----------------------------------------------------------------------------
// One behaviour
// ----------------------------------------------------------------------------

struct Result {
    std::string did, happened;
    Canary::Report canary;
    std::optional<long> grownKiB;
    long mayGrowKiB = 0;
    std::optional<double> busyPercent;  // of one processor, while there is nothing to do
    std::optional<int> leftOpen;        // descriptors
    Strings faults;
    bool retried = false;

    bool onlyTheCanary = false;  // the canary's wait is the only fault
};

// How far a behaviour may make the server's memory grow. A message may exist twice, while
// its buffer grows or it is echoed; a queue may exceed its limit by one message.
long allowedKiB(const Options &options, const Cost &cost, std::size_t connections) {
    const double bytes = cost.messages * 2 * options.maxMessage +
                         cost.requests * options.maxRequest +
                         cost.queues * (options.maxQueued + options.maxMessage);
    const auto count = static_cast<double>(connections);
    return std::lround(options.slackKiB + count * options.connectionKiB + bytes / 1024);
}

constexpr double kBusyPercent = 25;
constexpr double kCalm = 15;  // seconds within which the server must come to rest

// The server's processor use while no client wants anything. It may first work through what
// the kernel holds for it, so the calmest moment within `seconds` counts. Time spent waiting
// for a processor does not count as idle.
std::optional<double> busyPercent(const Victim &victim, double seconds) {
    constexpr double kMoment = 0.05;
    std::optional<double> calmest;
    for (const auto end = after(seconds); Clock::now() < end;) {
        const auto before = victim.cpuSeconds();
        const double waited = victim.waitedSeconds();
        const auto start = Clock::now();
        sleepFor(kMoment);
        const auto now = victim.cpuSeconds();
        if (!before || !now) return std::nullopt;
        const double could =
            Seconds(Clock::now() - start).count() - (victim.waitedSeconds() - waited);
        const double percent = 100 * (*now - *before) / std::max(could, kMoment / 10);
        calmest = std::min(calmest.value_or(percent), percent);
        if (*calmest < kBusyPercent) break;
    }
    return calmest;
}

// Waits until no more descriptors are open than before. Returns how many still are.
std::optional<int> leftOpen(const Victim &victim, std::optional<int> before, double seconds) {
    std::optional<int> now = victim.descriptors();
    for (const auto end = after(seconds); before && now > before && Clock::now() < end;) {
        sleepFor(0.01);
        now = victim.descriptors();
    }
    if (!before || !now) return std::nullopt;
    return std::max(0, *now - *before);
}

// "14 x close 1009, EOF".
std::string happenedTo(const Attack &attack) {
    std::map<std::string, int> stories;
    for (const auto &peer : attack.peers) ++stories[peer->story()];
    std::string all;
    for (const auto &[story, count] : stories)
        all += (all.empty() ? "" : "; ") + (count > 1 ? std::to_string(count) + " x " : "") + story;
    return all;
}

bool isExpected(const std::string &story, const std::string &expected) {
    return expected.empty() ||
           (" or " + expected + " or ").find(" or " + story + " or ") != story.npos;
}

// Keeps the peers going until the expected outcome has come. If nothing is expected to
// happen, waits a moment longer in case something does.
void awaitOutcome(Attack &attack, const Row &row) {
    const bool nothing = row.expected.find("open") != std::string::npos || row.expected.empty();
    const auto isReady = [&] {
        return std::all_of(attack.peers.begin(), attack.peers.end(), [&](const auto &peer) {
            return !(peer->reads && peer->hasToSend()) && isExpected(peer->story(), row.expected);
        });
    };
    attack.pump(5, isReady);
    if (nothing) attack.pumpFor(0.1);
    for (const auto &peer : attack.peers)
        attack.require(isExpected(peer->story(), row.expected), "expected: " + row.expected);
}

void act(Attack &attack, const Row &row) try {
    row.act(attack);
    awaitOutcome(attack, row);
} catch (const std::exception &e) {
    attack.require(false, e.what());
}

std::string whatWasDone(const Attack &attack, double seconds) {
    std::uint64_t bytes = 0;
    for (const auto &peer : attack.peers) bytes += peer->sentBytes;
    std::array<char, 100> text{};
    std::snprintf(text.data(), text.size(), "%zu connection%s, %.6g %s in %.1f s",
                  attack.peers.size(), attack.peers.size() == 1 ? "" : "s",
                  bytes < 10000 ? static_cast<double>(bytes) : static_cast<double>(bytes / 1000),
                  bytes < 10000 ? "bytes" : "kB", seconds);
    return text.data();
}

std::string rounded(double number) {
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "%.1f", number);
    return text.data();
}

// Judges what all behaviours have in common.
void judge(Result &result, const Options &options) {
    const auto fault = [&](const std::string &what) { result.faults.push_back(what); };
    if (!result.canary.lost.empty()) fault("the canary died: " + result.canary.lost);
    if (result.grownKiB.value_or(0) > result.mayGrowKiB) fault("the server took too much memory");
    if (result.busyPercent.value_or(0) >= kBusyPercent)
        fault("the server is busy with nothing to do");
    if (result.leftOpen.value_or(0) > 0) fault("the server left descriptors open");
    if (result.canary.worstMs <= options.canaryMs) return;
    result.onlyTheCanary = result.faults.empty();
    fault("the canary waited too long");
}

class Trial {
  public:
    explicit Trial(const Options &options)
        : options_(options),
          target_(options.address, static_cast<int>(options.port)),
          victim_(static_cast<int>(options.pid), static_cast<int>(options.port)),
          canary_(target_, victim_) {
        canary_.sing();
        sleepFor(0.2);
        const Canary::Report report = canary_.rest();
        if (!report.lost.empty())
            throw std::runtime_error("this is not an echo server: " + report.lost);
        descriptors_ = victim_.descriptors();
    }

    // A row whose only fault is the canary's wait gets a second try: the machine may be busy.
    Result run(const Row &row) {
        Result result = runOnce(row);
        if (!result.onlyTheCanary) return result;
        result = runOnce(row);
        result.retried = true;
        return result;
    }

    const Victim &victim() const { return victim_; }

  private:
    Result runOnce(const Row &row) {
        Result result;
        Attack attack(options_, target_);
        const std::optional<long> before = victim_.residentKiB();
        const auto start = Clock::now();
        canary_.sing();
        act(attack, row);
        result.canary = canary_.rest();
        result.did = whatWasDone(attack, Seconds(Clock::now() - start).count());
        result.happened = happenedTo(attack);
        // A busy loop over closing connections would end once they are closed: look before.
        const bool closing = std::any_of(attack.peers.begin(), attack.peers.end(),
                                         [](const auto &peer) { return peer->told(); });
        result.busyPercent =
            busyPercent(victim_, closing ? std::min(kCalm, 0.8 * options_.closeSeconds) : kCalm);
        if (before) result.grownKiB = std::max(0L, result.canary.peakKiB - *before);
        result.mayGrowKiB = allowedKiB(options_, row.cost, attack.peers.size());
        if (!attack.complaint.empty()) result.faults.push_back(attack.complaint);
        attack.peers.clear();
        settle(result);
        judge(result, options_);
        return result;
    }

    // All peers have gone: the server must hold no descriptor of theirs, and be idle.
    void settle(Result &result) {
        const double patience = options_.closeSeconds + options_.graceSeconds;
        result.leftOpen = leftOpen(victim_, descriptors_, patience);
        if (result.leftOpen.value_or(0) > 0) descriptors_ = victim_.descriptors();
        if (result.busyPercent.value_or(kBusyPercent) >= kBusyPercent) return;
        result.busyPercent = std::max(result.busyPercent, busyPercent(victim_, kCalm));
    }

    const Options &options_;
    const Target target_;
    const Victim victim_;
    Canary canary_;
    std::optional<int> descriptors_;
};

// ----------------------------------------------------------------------------
// All of them
// ----------------------------------------------------------------------------

template <class Value>
std::string shown(const std::optional<Value> &value) {
    return value ? std::to_string(std::lround(static_cast<double>(*value))) : "n/a";
}

void print(const Row &row, const Result &result) {
    std::string why;
    for (const std::string &fault : result.faults) why += (why.empty() ? "" : "; ") + fault;
    std::printf(
        "%s  %s | %s | %s | canary %s ms (%s) | memory +%s of %ld KiB | cpu %s %% | fds +%s%s%s\n",
        why.empty() ? "pass" : "FAIL", row.name.c_str(), result.did.c_str(),
        result.happened.c_str(), rounded(result.canary.worstMs).c_str(),
        rounded(result.canary.worstByClockMs).c_str(), shown(result.grownKiB).c_str(),
        result.mayGrowKiB, shown(result.busyPercent).c_str(), shown(result.leftOpen).c_str(),
        result.retried ? " | second try" : "", why.empty() ? "" : (" | WHY: " + why).c_str());
    std::fflush(stdout);
}

bool isWanted(const Row &row, const Options &options) {
    if (options.quick && row.slow) return false;
    return row.name.find(options.only) != std::string::npos;
}

int attackAll(const Options &options) {
    Trial trial(options);
    if (trial.victim().pid() == 0) std::printf("cannot find the server's process: see --pid\n");
    int passed = 0, failed = 0;
    for (const Row &row : allRows(options)) {
        if (!isWanted(row, options)) continue;
        const Result result = trial.run(row);
        print(row, result);
        ++(result.faults.empty() ? passed : failed);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}

// A thousand peers need a thousand descriptors.
void raiseFileLimit() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 10000);
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace
}  // namespace attack

int main(int argc, char **argv) try {
    attack::Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        const std::size_t equals = std::min(argument.find('='), argument.size());
        const std::string value = argument.substr(std::min(equals + 1, argument.size()));
        if (attack::setOption(options, argument.substr(0, equals), value)) continue;
        attack::printHelp();
        return argument == "--help" ? 0 : 2;
    }
    std::signal(SIGPIPE, SIG_IGN);
    attack::raiseFileLimit();
    return attack::attackAll(options);
} catch (const std::exception &e) {
    std::fprintf(stderr, "attack: %s\n", e.what());
    return 2;
}
