// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The parts of a behaviour: Options, how the server is configured; Attack, the peers of one
// behaviour; Row, a line of the table in behaviours.h.

#ifndef WS_TESTS_ATTACK_ATTACK_H
#define WS_TESTS_ATTACK_ATTACK_H

#include "peers.h"

#include <functional>

namespace attack {

// How the server is configured, in the names of config.h, and what is demanded of it.
struct Options {
    std::string address = "127.0.0.1", only;
    double port = 12345, pid = 0;
    double maxRequest = 8192, maxMessage = 1 << 20, maxQueued = 4 << 20;
    double maxFragments = 262144, maxUsers = 1000, maxPending = 1000;
    double handshakeSeconds = 10, closeSeconds = 5, pingSeconds = 20;
    double graceSeconds = 1.5;  // how late a deadline may be: clocks are read once a second
    double canaryMs = 50;
    double connectionKiB = 8, slackKiB = 4096;
    bool quick = false;

    std::size_t messageBytes() const { return static_cast<std::size_t>(maxMessage); }
    std::size_t requestBytes() const { return static_cast<std::size_t>(maxRequest); }
    double floodSeconds() const { return quick ? 0.3 : 1; }
    double closedSeconds() const { return closeSeconds + graceSeconds; }
    // Leaves room for the canary and other clients.
    int usersAtOnce() const { return static_cast<int>(std::min(1000.0, maxUsers - 10)); }
    int strangersAtOnce() const { return static_cast<int>(std::min(500.0, maxPending)); }
};

// What a behaviour makes the server hold at once, besides its connections. allowedKiB() in
// attack.cpp turns this into memory.
struct Cost {
    int messages = 0;  // unfinished, or being echoed
    int requests = 0;  // unfinished heads
    int queues = 0;    // of unread echoes
};

// A running behaviour: its peers, and its first complaint.
class Attack {
  public:
    Attack(const Options &theOptions, const Target &target)
        : options(theOptions), target_(target) {}

    const Options &options;
    std::vector<std::unique_ptr<Peer>> peers;
    std::string complaint;

    // A peer that is connected, no more.
    Peer &stranger(int receiveBuffer = 0) {
        peers.push_back(std::make_unique<Peer>(target_, receiveBuffer));
        return *peers.back();
    }

    // A peer that has done the opening handshake.
    Peer &user(int receiveBuffer = 0) {
        Peer &peer = stranger(receiveBuffer);
        welcome(peers.size() - 1);
        return peer;
    }

    // A hundred at a time, because the backlog of some listeners is short.
    void users(int count) {
        for (int done = 0; done < count; done += 100) {
            const std::size_t first = peers.size();
            for (int i = done; i < std::min(done + 100, count); ++i) stranger();
            welcome(first);
        }
    }

    void each(const std::function<void(Peer &)> &what) {
        for (const auto &peer : peers) what(*peer);
    }
    void sendAll(std::string_view bytes) {
        each([&](Peer &peer) { peer.send(bytes); });
    }

    // Moves bytes until done(), for at most `seconds`. Returns whether it got done.
    bool pump(double seconds, const std::function<bool()> &done) {
        for (const auto end = after(seconds); !done(); moveAll())
            if (Clock::now() > end) return false;
        return true;
    }
    void pumpFor(double seconds) {
        pump(seconds, [] { return false; });
    }
    bool allEnded() const {
        return std::all_of(peers.begin(), peers.end(), [](auto &peer) { return peer->ended(); });
    }

    void require(bool fine, const std::string &what) {
        if (!fine && complaint.empty()) complaint = what;
    }

    // The server must have closed its sockets although we keep ours open: its kernel then
    // answers any byte with a reset.
    void requireAllGone() {
        for (int tries = 0; tries < 5; ++tries) {
            each([](Peer &peer) { peer.sendSome("x"); });
            sleepFor(0.05);
        }
        const auto there =
            std::count_if(peers.begin(), peers.end(), [](auto &peer) { return !peer->isGone(); });
        require(there == 0, "the server never closed " + std::to_string(there) + " connections");
    }

  private:
    void welcome(std::size_t first) {
        const auto isUpgraded = [](auto &peer) { return peer->upgraded || peer->ended(); };
        for (std::size_t i = first; i < peers.size(); ++i) peers[i]->send(upgrade());
        const auto begin = peers.begin() + static_cast<std::ptrdiff_t>(first);
        pump(10, [&] { return std::all_of(begin, peers.end(), isUpgraded); });
        for (auto peer = begin; peer != peers.end(); ++peer) {
            (*peer)->welcomed = (*peer)->upgraded;
            require((*peer)->upgraded, "an opening handshake failed: " + (*peer)->story());
        }
    }

    void moveAll() {
        std::vector<pollfd> entries;
        for (const auto &peer : peers)
            if (!peer->ended() && peer->events() != 0)
                entries.push_back({peer->fd(), peer->events(), 0});
        ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 10);
        for (const auto &peer : peers)
            if (!peer->ended()) peer->move();
    }

    const Target &target_;
};

struct Row {
    std::string name;
    // Each peer's story must be one of these, separated by " or "; empty: any story.
    std::string expected;
    std::function<void(Attack &)> act;
    Cost cost{};
    bool slow = false;  // waits for a deadline: --quick skips it
};

using Rows = std::vector<Row>;
using Strings = std::vector<std::string>;

}  // namespace attack

#endif
