// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A WebSocket server (RFC 6455) to derive from:
//
//     class ChatServer : public WebSocketServer<ChatUser, ChatConfig> {
//         void process(ChatUser &user, WSMessage &msg) override { sendToAllBut(user, msg); }
//     };
//
// and compile together with server.cpp and jsoncpp. This page is its contract, in
// three parts: WSMessage, what is sent and received; WSBaseServer, the loop and all
// that needs no type of yours; WebSocketServer, which gives the hooks your types.
//
// One thread runs it all. Only stop() and post() may be called from another one.

#ifndef WS_SERVER_H
#define WS_SERVER_H

#if __has_include(<json/json.h>)
#include <json/json.h>
#elif __has_include(<jsoncpp/json/json.h>)  // where Debian and its kin put it
#include <jsoncpp/json/json.h>
#else
#error "jsoncpp's headers are not installed: try 'make deps', or see its README"
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

// ----------------------------------------------------------------------------
// A message: text, binary, or text that is JSON.
//
// It is a value, cheap to copy, and is changed by assigning another one. Copies share
// what they hold: the JSON that is parsed when first asked for, and memory that is used
// again for the next message. So all copies belong to one thread; give another one
// payload(), not the message.
//
//     Json::Value json = msg.json();
//     json["from"] = user.nick;
//     msg = json;
// ----------------------------------------------------------------------------
class WSMessage {
  public:
    // Text. Throws std::invalid_argument if it is not valid UTF-8: RFC 6455 5.6
    // wants it so, and browsers drop the connection over it.
    WSMessage(std::string text = {});
    WSMessage(std::string_view text);
    WSMessage(const char *text);
    WSMessage(std::nullptr_t) = delete;

    // Text, the compact JSON of `json`. Throws std::invalid_argument if a string
    // in it is not valid UTF-8. A value that is no array or object is sent as its
    // JSON text too ("5", "\"five\""), but does not count as JSON when received.
    WSMessage(const Json::Value &json);

    // Binary: any bytes.
    static WSMessage binary(std::string bytes);

    WSMessage(const WSMessage &) = default;
    WSMessage &operator=(const WSMessage &) = default;
    ~WSMessage() = default;

    bool isBinary() const;

    // The text or the bytes, whole.
    const std::string &payload() const;

    // Whether this is a text that is one JSON array or object and nothing else: no
    // comments, no duplicate keys, not nested deeper than WSBaseConfig::maxJsonDepth and, if
    // it was received, of no more values than maxJsonValues.
    // It is parsed when this or json() is first called, and only then.
    bool isJson() const;

    // The parsed JSON; null (Json::Value::isNull) if isJson() is false. Its strings are
    // valid UTF-8, so they can be sent on.
    const Json::Value &json() const;

  private:
    friend struct WSLoop;
    struct Body;
    explicit WSMessage(std::shared_ptr<Body> body) : body_(std::move(body)) {}

    std::shared_ptr<Body> body_;
};

// What httpRequest() answers. Everything is checked before it is sent: a status
// out of range, a name that is no token or a value with a line break in it is
// logged and answered with 500.
struct WSResponse {
    int status = 0;  // 200 to 599; 0 means: not answered here
    std::vector<std::pair<std::string, std::string>> headers;  // such as Content-Type
    std::string body;  // Content-Length, Date and Connection are the server's
};

// What a server has done since it was made, and what it holds now: see stats().
struct WSStats {
    std::uint64_t users = 0;        // connected now
    std::uint64_t pending = 0;      // connections of no users: in their handshake, or being closed
    std::uint64_t queuedBytes = 0;  // that wait now for all of these to take them

    std::uint64_t messagesReceived = 0;  // that process() got
    std::uint64_t messagesSent = 0;      // queued; one that was sent to ten users counts ten times
    std::uint64_t bytesReceived = 0;     // as they came from the sockets, requests and all
    std::uint64_t bytesSent = 0;         // that the kernel has taken

    // Users that ended, by closeCode() (1000 to 1015; 3000 stands for all up to 3999, and 4000
    // for all up to 4999), and requests that were answered with something else than 101, by
    // HTTP status: those from 400 on were refused. What did not happen is not in them.
    std::map<int, std::uint64_t> disconnects;
    std::map<int, std::uint64_t> answers;

    std::uint64_t turns = 0;        // of the loop
    double longestTurnSeconds = 0;  // the waiting not counted; in whole milliseconds
};

enum class WSLevel { debug, warning, error };

// ----------------------------------------------------------------------------
// The loop, and all that needs no type of yours. Not to be derived from directly.
// ----------------------------------------------------------------------------
class WSBaseServer {
  public:
    WSBaseServer(const WSBaseServer &) = delete;
    WSBaseServer &operator=(const WSBaseServer &) = delete;

    // Listens, unless that is done already, and serves until a shutdown has ended.
    // Throws what listen() throws. It may be called again after it has returned.
    void run();

    // Checks the configuration, opens the listening sockets. Throws
    // std::invalid_argument for a field that makes no sense, std::runtime_error
    // that names the place and the reason when it cannot listen there. Does nothing if
    // it listens already, or while it shuts down (from postShutdown() on it may).
    void listen();

    // The TCP port that is listened on, also where the configuration says 0.
    // 0 before listen(), and for a Unix socket.
    int port() const;

    // One turn of the loop, for programs that have a loop of their own: waits at
    // most `timeout` for something to do (negative: for as long as it takes) and does
    // it. False when a shutdown has ended. Call listen() first; not from a hook.
    bool turn(std::chrono::milliseconds timeout);

    // Asks for the end, like stop(), but from a hook or between turns. preShutdown()
    // may still object. Otherwise nobody new is let in, everyone gets close code
    // 1001, queues drain for at most shutdownSeconds, all hooks run, run() returns.
    void shutdown();

    // The same from any thread, and from signal handlers: no other call is legal there.
    void stop() noexcept;

    // Lets these signals call stop(); a second one during the shutdown ends it at
    // once, hooks included. The previous handlers are restored by the destructor. A
    // signal can be had by one server of a process: std::logic_error for a second.
    void stopOn(std::initializer_list<int> signals);

    // --- other threads --------------------------------------------------------

    // Has `function` called by the loop, in its thread: the way to the users from another one.
    // Any thread may post; what one posts is called once, in its order. What a hook or a posted
    // function posts is called in the next turn. One that throws is logged. While nobody runs
    // the loop they wait; those that wait at a shutdown's end are called before postShutdown(),
    // and those that wait for ever are destroyed with the server: what they hold must not use
    // it then. Throws std::invalid_argument if there is no function.
    void post(std::function<void()> function);

    // --- other descriptors in this loop --------------------------------------

    // Has `function` called, as hooks are, in each turn in which poll() finds `events` (POLLIN,
    // POLLOUT, or both) at this descriptor, with what it found; POLLERR and POLLHUP come
    // unasked. It comes again in each turn while that is so: read, or unwatch. To watch a
    // descriptor anew changes events and function. One that throws is logged, and its
    // descriptor unwatched; so is one that is closed. Unwatch before you close: the number may
    // be somebody else's soon. Throws std::invalid_argument for a negative descriptor, or no
    // function. Watching goes on during a shutdown, and in the next run(). What is watched to
    // the end is destroyed with the server: what the function holds must not use it then.
    void watch(int fd, short events, std::function<void(short revents)> function);

    // From now on the function is not called. Legal in the function itself, too: it is
    // destroyed at the end of the turn. Does nothing if the descriptor is not watched.
    void unwatch(int fd);

    // --- sending -------------------------------------------------------------
    //
    // All are legal in every hook, and none blocks: what is queued for a user during a turn
    // of the loop goes out at its end, in order (earlier, if the queue is full). Each receiver
    // gets preSend() and postSend(), except in a send that one of these two makes.

    // False if the user is not connected (yet, or any more), or is disconnected now
    // because the message did not fit its queue (WSBaseConfig::maxQueuedBytes).
    bool sendToUser(WSBaseUser &user, const WSMessage &msg);

    // To everyone, and to everyone but one. Give the number of users that
    // sendToUser() was true for.
    int sendToAll(const WSMessage &msg);
    int sendToAllBut(const WSBaseUser &user, const WSMessage &msg);

    // --- ending --------------------------------------------------------------

    // Starts the closing handshake (RFC 6455 7.1.2) with that user. What was sent
    // before still arrives; nothing sent later does, nothing more is received. The
    // user stays valid; preDisconnect() and postDisconnect() follow at the end of the
    // turn. Who is on the way out already stays so, with the first code. In
    // preConnect() it is refuse(user, 403, reason). `code` is one that may be sent (7.4: 1000
    // to 1003, 1007 to 1014, 3000 to 4999), `reason` UTF-8, cut after 123 bytes:
    // std::invalid_argument otherwise.
    void disconnect(WSBaseUser &user, int code = 1000, std::string_view reason = {});

    // In preConnect() only, std::logic_error elsewhere: the user is not let in, the
    // request is answered with this HTTP status (400 to 599, else
    // std::invalid_argument) and text, and no other hook runs.
    void refuse(WSBaseUser &user, int status, std::string_view text = {});

    // In preConnect() only, std::logic_error elsewhere: agrees on this subprotocol instead of
    // the first of WSBaseConfig::protocols that the client offers, or on none if it is empty. It
    // may be any that the client offers (user.request().protocols()), std::invalid_argument
    // otherwise: a client fails the connection over another one (RFC 6455 4.1).
    void acceptProtocol(WSBaseUser &user, std::string_view protocol);

    // Users that are connected: past preConnect(), not on the way out.
    int userCount() const;

    // What happened so far. It walks over all connections: ask once in a while.
    WSStats stats() const;

  protected:
    // --- hooks that need no user ------------------------------------------------
    //
    // A hook that throws is logged; nobody else notices.

    // Everybody is about to be disconnected, after shutdown(), stop() or a signal.
    // Set `doShutdown` to false to go on serving.
    virtual void preShutdown(bool &doShutdown) { (void)doShutdown; }

    // Nobody is connected any more; run() returns next.
    virtual void postShutdown() {}

    // A user is gone, whose preDisconnect() ran just before.
    virtual void postDisconnect() {}

    // Comes every tickSeconds, the first time so long after listen(), or after that was set
    // anew; during a shutdown, too. If it comes late, because a hook took long, the next one
    // does not; what was missed altogether is not made up for.
    virtual void tick() {}

    // A GET that does not ask for a WebSocket. Fill in `response` and it is sent, then
    // the connection is closed; leave its status 0 and the answer is 426. A hook
    // that throws is answered with 500. It comes for HEAD, too (request.method()): of the
    // same response the body is not sent, only its length. A body may be large, and its
    // reader slow: it waits its time without holding up anybody.
    virtual void httpRequest(const WSRequest &request, WSResponse &response) {
        (void)request, (void)response;
    }

    // A line for the terminal, without line break; bytes that a terminal might obey have been
    // replaced, and what is longer than 480 bytes was cut. Lines of level `debug` come only if
    // the configuration's `debug` is true. The default prints to standard output.
    virtual void console(WSLevel level, std::string_view text);

    explicit WSBaseServer(std::unique_ptr<WSBaseConfig> config);
    virtual ~WSBaseServer();  // closes what is open; hooks run only in a shutdown

    WSBaseConfig &baseConfig() { return *config_; }

    // For walking over the users, in slots 0 to slotCount() - 1: null where a slot
    // has nobody who is connected.
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
    virtual void callPreConnect(WSBaseUser &user, int socket) = 0;
    virtual void callPostConnect(WSBaseUser &user, int socket) = 0;
    virtual void callPreDisconnect(WSBaseUser &user, int socket) = 0;

    friend struct WSLoop;
    std::unique_ptr<WSBaseConfig> config_;
    std::unique_ptr<WSLoop> loop_;  // private to server.cpp
};

// ----------------------------------------------------------------------------
// The users of a server, for `for (User &user : server.users())` and nothing else:
// those who are connected. Walk it in a hook as you like; whoever you disconnect on
// the way stays valid, and is not met again.
// ----------------------------------------------------------------------------
template <class User, class Server>
class WSUsers {
  public:
    class iterator {
      public:
        iterator(const Server &server, std::size_t slot) : server_(&server), slot_(slot) {
            settle();
        }
        User &operator*() const { return static_cast<User &>(*server_->userInSlot(slot_)); }
        User *operator->() const { return &**this; }
        iterator &operator++() {
            ++slot_;
            settle();
            return *this;
        }
        bool operator!=(const iterator &) const { return slot_ < server_->slotCount(); }

      private:
        void settle() {
            while (slot_ < server_->slotCount() && !server_->userInSlot(slot_)) ++slot_;
        }
        const Server *server_;
        std::size_t slot_;
    };

    explicit WSUsers(const Server &server) : server_(&server) {}
    iterator begin() const { return iterator(*server_, 0); }
    iterator end() const { return iterator(*server_, server_->slotCount()); }

  private:
    const Server *server_;
};

// ----------------------------------------------------------------------------
// The server to derive from. `User` and `Config` are your classes (or the base
// classes); each hook gets the user as a `User`.
//
// Contracts of all hooks:
// - Every send, disconnect() and shutdown() is legal in every hook, for every user.
// - The user stays valid until the hook returns, whatever the hook does.
// - preConnect and postConnect, preDisconnect and postDisconnect come in pairs, each
//   exactly once per user, whatever the path: the peer closes or vanishes, breaks the
//   protocol, is disconnected, falls idle, or the server shuts down. Only who was
//   refused in preConnect never gets the other three.
// - A hook that throws is logged with what it threw; its user is closed with 1011
//   (in preConnect: refused with 500), and nobody else notices.
// ----------------------------------------------------------------------------
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
    explicit WebSocketServer(Config config = Config())
        : WSBaseServer(std::make_unique<Config>(std::move(config))) {}

    Config &config() { return static_cast<Config &>(baseConfig()); }

    // Who is connected. In preConnect() the newcomer is not yet among them, in
    // preDisconnect() the one who goes is not any more.
    using Users = WSUsers<User, WebSocketServer>;
    Users users() const { return Users(*this); }

    // Who has this id, or null: it is for those who remember somebody for longer than a hook,
    // and finds whom users() would walk over, so from postConnect() on, until the moment in
    // which the user is on the way out. It is a binary search.
    User *findUser(std::uint64_t id) const { return static_cast<User *>(userById(id)); }

    // Sends to everyone for whom `wanted(user)` is true. Gives the number of users
    // that sendToUser() was true for.
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

    // `msg` is about to be queued for `user`. What it is changed to is for this
    // receiver only. A disconnect() of this user, here, keeps the message back.
    virtual void preSend(User &user, WSMessage &msg) { (void)user, (void)msg; }

    // `msg` was queued for `user`, as preSend() left it. Changing it changes nothing.
    virtual void postSend(User &user, WSMessage &msg) { (void)user, (void)msg; }

    // All that was sent to `user` is in the kernel's hands, after more than lowMarkBytes had
    // waited (user.backlog()): the moment to go on with what is too large to be sent in one
    // go, or was skipped. Comes at the end of the turn, once each time; not for who is on
    // the way out.
    virtual void drained(User &user) { (void)user; }

    // Somebody's opening handshake is in order; user.request() tells how they came.
    // Let it be, and the user is connected; refuse() it, and it is not. It can not be
    // sent to yet: sends to it are false.
    virtual void preConnect(User &user, int socket) { (void)user, (void)socket; }

    // The user is connected: the first moment at which it can be sent to.
    virtual void postConnect(User &user, int socket) { (void)user, (void)socket; }

    // The user is on the way out; user.closeCode() and closeReason() tell why. It is
    // among users() no more, sends to it are false. The socket may be lost already.
    virtual void preDisconnect(User &user, int socket) { (void)user, (void)socket; }

  private:
    friend class WSUsers<User, WebSocketServer>;
    static User &typed(WSBaseUser &user) { return static_cast<User &>(user); }

    std::unique_ptr<WSBaseUser> makeUser() final { return std::make_unique<User>(); }
    void callProcess(WSBaseUser &user, WSMessage &msg) final { process(typed(user), msg); }
    void callPreSend(WSBaseUser &user, WSMessage &msg) final { preSend(typed(user), msg); }
    void callPostSend(WSBaseUser &user, WSMessage &msg) final { postSend(typed(user), msg); }
    void callDrained(WSBaseUser &user) final { drained(typed(user)); }
    void callPreConnect(WSBaseUser &user, int socket) final { preConnect(typed(user), socket); }
    void callPostConnect(WSBaseUser &user, int socket) final { postConnect(typed(user), socket); }
    void callPreDisconnect(WSBaseUser &user, int socket) final {
        preDisconnect(typed(user), socket);
    }
};

#endif
