// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A WebSocket server (RFC 6455) to derive from; compile it with server.cpp and jsoncpp. Here is the
// contract: WSMessage, what is sent and received; WSBaseServer, the loop and all that needs no type
// of yours; WebSocketServer, the hooks with your types. One thread runs it all, the one that calls
// run() or turn(). In other threads, only stop(), post() and port() are legal; other methods throw
// std::logic_error there, and for a user of another server.

#ifndef WS_SERVER_H
#define WS_SERVER_H

// A file that does not exist stops the compiler at once, with a sentence; after #error it goes on.
#if __cplusplus < 201703L
#include "This server needs C++17: compile with -std=c++17 or later"
#elif __has_include(<json/json.h>)
#include <json/json.h>
#elif __has_include(<jsoncpp/json/json.h>)  // where Debian and its kin put it
#include <jsoncpp/json/json.h>
#else
#include "This server needs jsoncpp: install libjsoncpp-dev (Debian) or jsoncpp-devel (Fedora)"
#endif

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "config.h"
#include "user.h"

// === Messages ====================================================================================
// A message: text, binary, or text that is JSON. It is a value, cheap to copy; to change it, assign
// another one. It shares memory with its copies and the server: give another thread payload().
//
//     Json::Value json = msg.json();
//     json["from"] = user.nick;
//     msg = json;
class WSMessage {
  public:
    // Text. Throws std::invalid_argument if it is not UTF-8: browsers would drop the connection.
    WSMessage(std::string text = {});
    WSMessage(std::string_view text) : WSMessage(std::string(text)) {}
    WSMessage(const char *text) : WSMessage(std::string(text == nullptr ? "" : text)) {}
    WSMessage(std::nullptr_t) = delete;

    // Text, the compact JSON of `json`. Throws std::invalid_argument if a string in it is not valid
    // UTF-8. Any value can be sent ("5"), but only arrays and objects count as JSON for isJson().
    WSMessage(const Json::Value &json);

    static WSMessage binary(std::string bytes);  // any bytes

    WSMessage(const WSMessage &) = default;
    WSMessage &operator=(const WSMessage &) = default;

    bool isBinary() const;
    const std::string &payload() const;  // the text or the bytes, whole

    // Whether this is text that is one JSON array or object and nothing else: no comments, no
    // duplicate keys. maxJsonDepth and maxJsonValues limit received ones; your own may be 1000
    // levels deep and have any number of values. Parsed when this or json() is first called.
    bool isJson() const;

    // The parsed JSON, its strings valid UTF-8; null (isNull()) if isJson() is false.
    const Json::Value &json() const;

  private:
    friend struct WSLoop;
    struct Body;
    explicit WSMessage(std::shared_ptr<Body> body);

    std::shared_ptr<Body> body_;
};

// What httpRequest() answers. If the status is out of range, a name is not a token, a value
// contains a line break, or a header is the server's own, this is logged and the answer is 500.
struct WSResponse {
    int status = 0;  // 200 to 599; 0 means: not answered here
    std::vector<std::pair<std::string, std::string>> headers;  // such as Content-Type
    std::string body;  // the server adds Content-Length, Date and Connection
};

// What a server has done since it was made, and what it holds now: see stats().
struct WSStats {
    std::uint64_t users = 0;        // connected now
    std::uint64_t pending = 0;      // other connections now: in their handshake, or being closed
    std::uint64_t queuedBytes = 0;  // now waiting for all of these to take them

    std::uint64_t messagesReceived = 0;  // given to process()
    std::uint64_t messagesSent = 0;      // queued; one sent to ten users counts ten times
    std::uint64_t bytesReceived = 0;     // from the sockets, requests included
    std::uint64_t bytesSent = 0;         // taken by the kernel

    // Users that ended, by closeCode() (3000 stands for 3000 to 3999, 4000 for 4000 to 4999), and
    // requests answered with anything but 101, by HTTP status (from 400 on: refused). Numbers that
    // have not occurred are absent; one may go uncounted when memory runs out.
    std::map<int, std::uint64_t> disconnects;
    std::map<int, std::uint64_t> answers;

    std::uint64_t turns = 0;        // of the loop
    double longestTurnSeconds = 0;  // without the waiting
};

enum class WSLevel { debug, warning, error };
enum class WSDirection { received, sent };

// g++ warns of hooks in your class that hide one of these, because their parameters differ.
#pragma GCC diagnostic push
#pragma GCC diagnostic warning "-Woverloaded-virtual"

// === The loop, and all that needs no type of yours (derive from WebSocketServer, below) ==========
class WSBaseServer {
  public:
    WSBaseServer(const WSBaseServer &) = delete;
    WSBaseServer &operator=(const WSBaseServer &) = delete;

    // Calls listen() and serves until a shutdown has ended. May be called again after that.
    void run();

    // Checks the configuration and opens the listening sockets. Throws std::invalid_argument for a
    // field that makes no sense, std::runtime_error with place and reason if it cannot listen. Does
    // nothing if it listens already, or during a shutdown (postShutdown() may call it again).
    void listen();

    int port() const;  // the TCP port, also where the configuration says 0; 0 if there is none

    // One turn of the loop, for programs with a loop of their own: waits for something to do, at
    // most `atMost` (negative: no limit), and does it. Call listen() first; never call it in a
    // hook (std::logic_error). The thread that calls it is the server's until another one calls it.
    // False when a shutdown has ended.
    bool turn(std::chrono::milliseconds atMost);

    // Asks the server to stop, from a hook or between turns. Unless preShutdown() objects,
    // newcomers are refused, users get close code 1001, queues drain for at most shutdownSeconds,
    // all hooks run, and run() returns.
    void shutdown();
    void stop() noexcept;  // the same from any thread or signal handler (its only legal call)

    // Makes these signals call stop(). Another one during the shutdown ends it at once; the hooks
    // still run. A third one ends the process, even if a hook hangs. In forked children the signals
    // have their default action. The destructor restores the previous handlers. Throws
    // std::logic_error if another server has the signal.
    void stopOn(std::initializer_list<int> signalNumbers);

    // --- other threads, other descriptors -----------------------------------------------------
    // Both throw std::invalid_argument for an empty function or a negative descriptor. What the
    // function throws is logged. If it is destroyed with the server, it must not use the server.

    // Calls `function` once, in the loop's thread: the way from any other thread to the users. A
    // thread's functions are called in their order; what a hook or such a function posts, in the
    // next turn; those that still wait when a shutdown ends, before postShutdown().
    void post(std::function<void()> function);

    // Calls `function`, like a hook, in each turn in which poll() finds `events` (POLLIN, POLLOUT
    // or both), POLLERR or POLLHUP at this descriptor, with what it found, until you read or
    // unwatch. Watching it again replaces events and function. If the function throws, or the
    // descriptor is closed, this is logged, and ends the watching. Unwatch before you close: the
    // number may be reused. Watching goes on during a shutdown, and in the next run().
    void watch(int fd, short events, std::function<void(short revents)> function);

    // From now on the function is not called; it is destroyed once it is not running, so this is
    // legal in it, too. Does nothing if the descriptor is not watched.
    void unwatch(int fd);

    // --- sending, and ending ------------------------------------------------------------------
    // Legal in every hook; never blocks. What is queued for a user during a turn goes out at its
    // end, in order (earlier if the queue is full). preSend() and postSend() are called for each
    // receiver, except in a send that one of these two makes.

    // False if the user is not connected (yet, or any more), or is disconnected now (1008) because
    // the message does not fit its queue (WSBaseConfig::maxQueuedBytes).
    bool sendToUser(WSBaseUser &user, const WSMessage &msg);

    // To all users, or all but one. Return the number of users that sendToUser() was true for.
    int sendToAll(const WSMessage &msg);
    int sendToAllBut(const WSBaseUser &user, const WSMessage &msg);

    // Starts the closing handshake (RFC 6455 7.1.2). What was sent before still arrives; later
    // messages, in both directions, do not. The user stays valid; its last two hooks follow soon.
    // The first code stays. In preConnect() this is refuse(user, 403, reason). Throws
    // std::invalid_argument unless `code` may be sent (7.4: 1000 to 1003, 1007 to 1014, 3000 to
    // 4999) and `reason`, cut after 123 bytes, is UTF-8.
    void disconnect(WSBaseUser &user, int code = 1000, std::string_view reason = {});

    // --- decisions: in preConnect() and for its user only (else std::logic_error) ----------------
    // The user is not let in, and no other hook sees it. The answer is this HTTP status, 400 to 599
    // (else std::invalid_argument), and text.
    void refuse(WSBaseUser &user, int status, std::string_view text = {});

    // Adds a header to the answer, whatever it becomes: 101, a refusal, or 500 if the hook throws.
    // Throws std::invalid_argument unless WSResponse could have it. Upgrade and Sec-WebSocket-… are
    // the server's own, too.
    void setHeader(WSBaseUser &user, std::string_view name, std::string_view value);

    // Agrees on this subprotocol, or on none if it is empty, instead of the first of
    // WSBaseConfig::protocols that the client offers. The client must offer it (else
    // std::invalid_argument), or it would fail the connection (RFC 6455 4.1).
    void acceptProtocol(WSBaseUser &user, std::string_view protocol);

    int userCount() const;  // past preConnect(), and not on the way out
    WSStats stats() const;  // walks over all connections: call it once in a while

  protected:
    // --- hooks that need no user: if one throws, that is logged, and no user is affected -------

    // After shutdown(), stop() or a signal. Set `doShutdown` to false to go on serving.
    virtual void preShutdown(bool &doShutdown) { (void)doShutdown; }

    virtual void postShutdown() {}    // the last connection is closed; run() returns next
    virtual void postDisconnect() {}  // a user is gone; its preDisconnect() ran just before

    // Called every tickSeconds after listen() or a change of tickSeconds, during a shutdown, too. A
    // late tick does not delay the next one; missed ones are not made up for.
    virtual void tick() {}

    // A GET or HEAD that does not ask for a WebSocket. Fill in `response`: it is sent (to a HEAD
    // without its body), and the connection closed. If its status stays 0, the answer is 426; if
    // the hook throws, 500. A client that reads a large body slowly delays no other one.
    virtual void httpRequest(const WSRequest &request, WSResponse &response) {
        (void)request, (void)response;
    }

    // A line for the log, without line break, cut after 480 bytes; bytes that a terminal might obey
    // have been replaced. Level `debug` comes only if WSBaseConfig::debug is true. The default
    // prints it behind the seconds since the server was made, if standard output takes it at once.
    virtual void console(WSLevel level, std::string_view text);

    explicit WSBaseServer(std::unique_ptr<WSBaseConfig> config);
    virtual ~WSBaseServer();  // closes all connections; only a shutdown calls the hooks

    WSBaseConfig &baseConfig() { return *config_; }
    bool tracing_ = true;  // until trace() turns out to be the default one

    // For walks over the users: slots 0 to slotCount() - 1, null where no user is connected.
    std::size_t slotCount() const;
    WSBaseUser *userInSlot(std::size_t slot) const;
    WSBaseUser *userById(std::uint64_t id) const;

  private:
    // The typed hooks, as WebSocketServer<User, Config> implements them.
    virtual std::unique_ptr<WSBaseUser> makeUser() = 0;
    virtual void callProcess(WSBaseUser &user, WSMessage &msg) = 0;
    virtual void callPreSend(WSBaseUser &user, WSMessage &msg) = 0;
    virtual void callPostSend(WSBaseUser &user, WSMessage &msg) = 0;
    virtual void callDrained(WSBaseUser &user) = 0;
    virtual void callTrace(WSBaseUser &user, WSDirection direction, std::string_view bytes) = 0;
    virtual void callPreConnect(WSBaseUser &user, int socket) = 0;
    virtual void callPostConnect(WSBaseUser &user, int socket) = 0;
    virtual void callPreDisconnect(WSBaseUser &user, int socket) = 0;

    friend struct WSLoop;
    std::unique_ptr<WSBaseConfig> config_;
    std::unique_ptr<WSLoop> loop_;  // private to server.cpp
};

// The connected users, for `for (User &user : server.users())` and nothing else. Walk them in a
// hook as you like: a user that you disconnect on the way stays valid and is not met again.
template <class User, class Server>
class WSUsers {
  public:
    explicit WSUsers(const Server &server) : server_(&server) {}
    WSUsers begin() const { return WSUsers(*server_).settle(); }
    WSUsers end() const { return *this; }

    User &operator*() const { return static_cast<User &>(*server_->userInSlot(slot_)); }
    User *operator->() const { return &**this; }
    WSUsers &operator++() {
        ++slot_;
        return settle();
    }
    bool operator!=(const WSUsers &) const { return slot_ < server_->slotCount(); }

  private:
    WSUsers &settle() {
        while (slot_ < server_->slotCount() && !server_->userInSlot(slot_)) ++slot_;
        return *this;
    }
    const Server *server_;
    std::size_t slot_ = 0;
};

// === The server to derive from ===================================================================
// `User` and `Config` are your classes, or the base classes. What holds for all hooks:
// - Every send, disconnect() and shutdown() is legal, for every user. The user that the hook was
//   given stays valid until it returns.
// - preConnect and postConnect, preDisconnect and postDisconnect come in pairs, each exactly once
//   per user, however it ends. A user refused in preConnect gets none of the other three.
// - preDisconnect, and postDisconnect right behind it, follow soon after the end: in the same turn,
//   or, when thousands of users end at once, in one of the next.
// - A hook that throws (messageReceived() and isIdle() count, too) is logged with the user's name;
//   that user is closed with 1011 (in preConnect: refused with 500), and no other one is affected.
template <class User = WSBaseUser, class Config = WSBaseConfig>
class WebSocketServer : public WSBaseServer {
    static_assert(std::is_base_of_v<WSBaseUser, User>,
                  "WebSocketServer<User, Config>: User must be derived from WSBaseUser");
    static_assert(std::is_default_constructible_v<User>,
                  "WebSocketServer<User, Config>: User needs a constructor without arguments, "
                  "the server makes the users");
    static_assert(std::is_base_of_v<WSBaseConfig, Config>,
                  "WebSocketServer<User, Config>: Config must be derived from WSBaseConfig");

  public:
    explicit WebSocketServer(Config config = Config())  // (ncurses has a macro `move`)
        : WSBaseServer(std::make_unique<Config>(std::forward<Config>(config))) {}

    Config &config() { return static_cast<Config &>(baseConfig()); }

    // The connected users: from postConnect() on, and until they are on the way out.
    using Users = WSUsers<User, WebSocketServer>;
    Users users() const { return Users(*this); }

    // The one with this id, or null; a binary search. For users that you remember across hooks.
    User *findUser(std::uint64_t id) const { return static_cast<User *>(userById(id)); }

    // To all users for which `wanted(user)` is true. Returns what sendToAll() does.
    template <class Predicate>
    int sendToIf(Predicate wanted, const WSMessage &msg) {
        int sent = 0;
        for (User &user : users())
            if (wanted(user) && sendToUser(user, msg)) ++sent;
        return sent;
    }

  protected:
    // A message came from `user`. `msg` is yours to change or to pass on.
    virtual void process(User &user, WSMessage &msg) = 0;

    // `msg` is about to be queued for `user`. A change is for this receiver only; a disconnect() of
    // this user keeps the message back.
    virtual void preSend(User &user, WSMessage &msg) { (void)user, (void)msg; }

    // `msg` was queued for `user`, as preSend() left it. Changes have no effect.
    virtual void postSend(User &user, WSMessage &msg) { (void)user, (void)msg; }

    // The kernel has taken all that was queued for `user`, after more than lowMarkBytes had waited:
    // go on with what is too large to be sent in one go, or send what you skipped. Called at the
    // end of the turn, once each time, and not for a user on the way out.
    virtual void drained(User &user) { (void)user; }

    // An opening handshake is in order; user.request() tells what the client asks for. Unless you
    // refuse() it, the user is connected next. Sends to it return false until then.
    virtual void preConnect(User &user, int socket) { (void)user, (void)socket; }

    // The user is connected: from now on it can be sent to.
    virtual void postConnect(User &user, int socket) { (void)user, (void)socket; }

    // The user is on the way out; user.closeCode() and closeReason() tell why. It is not among
    // users() any more, and sends to it return false. The connection may be lost already.
    virtual void preDisconnect(User &user, int socket) { (void)user, (void)socket; }

    // The bytes of the user's connection until preDisconnect(): received ones as recv() brings
    // them, sent ones frame by frame as they are queued. First comes the request; to throw or to
    // disconnect() then is as in preConnect(). `bytes` is valid until this returns. What you send
    // in here is not traced. The default ends all tracing, so it costs nothing: do not call it.
    virtual void trace(User &user, WSDirection direction, std::string_view bytes) {
        (void)user, (void)direction, (void)bytes;
        tracing_ = false;
    }

  private:
    friend class WSUsers<User, WebSocketServer>;
    static User &typed(WSBaseUser &user) { return static_cast<User &>(user); }

    std::unique_ptr<WSBaseUser> makeUser() final { return std::make_unique<User>(); }
    void callProcess(WSBaseUser &user, WSMessage &msg) final { process(typed(user), msg); }
    void callPreSend(WSBaseUser &user, WSMessage &msg) final { preSend(typed(user), msg); }
    void callPostSend(WSBaseUser &user, WSMessage &msg) final { postSend(typed(user), msg); }
    void callDrained(WSBaseUser &user) final { drained(typed(user)); }
    void callTrace(WSBaseUser &user, WSDirection direction, std::string_view bytes) final {
        trace(typed(user), direction, bytes);
    }
    void callPreConnect(WSBaseUser &user, int socket) final { preConnect(typed(user), socket); }
    void callPostConnect(WSBaseUser &user, int socket) final { postConnect(typed(user), socket); }
    void callPreDisconnect(WSBaseUser &user, int fd) final { preDisconnect(typed(user), fd); }
};

#pragma GCC diagnostic pop
#endif
