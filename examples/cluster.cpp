// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The chat of chat.cpp for more than one process: any number of them, on one machine or on many,
// form one chat. They serve the same page, chat.html, with the same protocol. A Redis server
// joins them; each process talks to it in its poll() loop, without a thread.
//
//     pages ── HAProxy or a shared ──┬── cluster ──┐
//              port (SO_REUSEPORT)   ├── cluster ──┼── Redis
//                                    └── cluster ──┘
//
// The idea: Redis holds the chat, and each process holds a copy. Every change is a command, a
// script that Redis runs as one step: it makes the change, gives the event the next number, and
// publishes it. Processes update their copies and their pages from these events alone, in the
// order of their numbers. The sender of a message waits for its event, too, and takes it as the
// acknowledgement. So all pages see the same chat in the same order.
//
// What it guarantees:
//
// - Every page in the chat gets every message once, all in the same order, which preserves the
//   order of each sender.
// - A newcomer neither misses a message between history and events nor gets one twice: both come
//   from the same copy, which always holds exactly the events up to one number.
// - A message that came back to its sender is in Redis' history. With "appendonly yes" and
//   "appendfsync always" it is on disk by then; with "everysec" the last two seconds can be lost.
// - A message that has not come back is kept, in order, until Redis takes it. Once more than
//   maxWaitingBytes are waiting, further messages are refused and their senders told. A page that
//   gives up waiting sends its message again, perhaps through another process: Redis knows the
//   key for kKeySeconds.
// - While Redis is away, all pages are told, newcomers are refused (503), and each process tries
//   to reconnect after 0.1 s, 0.2 s, … 2 s. Once Redis is back, the process fetches what it has
//   missed, tells its pages, and sends what it has kept. If Redis has lost messages, all pages
//   are told how many.
// - When a process is killed, its pages reconnect to another one and keep their nicks; other
//   pages see nothing of it. A user whose page does not return leaves when the lease expires.
//
// Its limits: nothing is delivered while Redis is away. A page that was away gets only the last
// kHistory messages. Redis does some work per message and per process; the README says how far
// that scales, and what to do beyond. Keep Redis out of reach: we use no password.

#include "../server.h"
#include "chat.h"
#include "program.h"

#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kNever = Clock::time_point::max();
constexpr milliseconds kLease{5000};     // a process that is silent for longer counts as dead
constexpr milliseconds kBeat{1000};      // between two heartbeats
constexpr milliseconds kPatience{3000};  // for an answer; after that Redis counts as gone
constexpr milliseconds kFirstRest{100};  // before the first attempt to reconnect; then doubled
constexpr milliseconds kLongestRest{2000};
constexpr int kKeptHistory = 1000;  // messages in Redis, for processes that missed some
constexpr int kKeySeconds = 600;    // how long Redis knows the key of a message

// ----------------------------------------------------------------------------
// 1. Redis in the loop
//
// hiredis speaks the protocol and needs five functions from its host: start and stop waiting
// until the socket is readable, the same for writable, and clean up. They call watch() and
// unwatch().
// ----------------------------------------------------------------------------

std::string textOf(const redisReply &reply) {
    return reply.str ? std::string(reply.str, reply.len) : std::string();
}

// A connection, which can be opened and closed repeatedly. `lost` is called, at most once for each
// open(), when the connection cannot be made or breaks, or when an `Answer` throws.
class Redis {
  public:
    using Answer = std::function<void(const redisReply &)>;
    using Lost = std::function<void(const std::string &why)>;

    Redis(WSBaseServer &server, Lost lost) : server_(server), lost_(std::move(lost)) {}
    Redis(const Redis &) = delete;
    Redis &operator=(const Redis &) = delete;
    ~Redis() { close(); }

    // Resolving a host name blocks; an address, or a name in /etc/hosts, does not.
    void open(const std::string &host, int port) {
        close();
        redisAsyncContext *context = redisAsyncConnect(host.c_str(), port);
        if (!context || context->err) {
            const std::string why = context ? context->errstr : "out of memory";
            if (context) redisAsyncFree(context);
            return lost_(why);
        }
        context_ = context;
        context->data = this;
        putIntoLoop();
        redisAsyncSetConnectCallback(context, [](const redisAsyncContext *c, int status) {
            if (status != REDIS_OK) fail(c, c->errstr);
        });
        redisAsyncSetDisconnectCallback(context, [](const redisAsyncContext *c, int) {
            fail(c, c->err ? c->errstr : "connection closed");
        });
    }

    // After this, no `Answer` is called, nor `lost`.
    void close() {
        redisAsyncContext *context = std::exchange(context_, nullptr);
        answers_.clear();
        if (context) redisAsyncFree(context);  // if we are in a callback, at its end
    }

    // Answers arrive in the order of the commands. An error is an answer, too. Does nothing
    // without a connection.
    void send(const std::vector<std::string> &command, Answer answer) {
        if (!context_) return;
        answers_.push_back(std::move(answer));
        queue(command, [](redisAsyncContext *c, void *reply, void *) {
            hand(c, reply, [](Redis &self) {
                Answer next = std::move(self.answers_.front());
                self.answers_.pop_front();
                return next;
            });
        });
    }

    // The connection can be used for nothing else from here on. The first answer confirms the
    // subscription, each further one is an event.
    void subscribe(const std::string &channel, Answer answer) {
        if (!context_) return;
        subscriber_ = std::move(answer);
        queue({"SUBSCRIBE", channel}, [](redisAsyncContext *c, void *reply, void *) {
            hand(c, reply, [](Redis &self) { return self.subscriber_; });
        });
    }

    // Writes what is queued at once, as far as the kernel takes it, instead of in the next turn.
    void flush() {
        if (context_) redisAsyncHandleWrite(context_);
    }

  private:
    void putIntoLoop() {
        fd_ = context_->c.fd;
        events_ = 0;
        auto &hooks = context_->ev;
        hooks.data = this;
        hooks.addRead = [](void *self) { wait(self, POLLIN, true); };
        hooks.delRead = [](void *self) { wait(self, POLLIN, false); };
        hooks.addWrite = [](void *self) { wait(self, POLLOUT, true); };
        hooks.delWrite = [](void *self) { wait(self, POLLOUT, false); };
        hooks.cleanup = [](void *self) { static_cast<Redis *>(self)->leaveLoop(); };
    }

    void leaveLoop() { server_.unwatch(fd_); }

    static void wait(void *redis, short event, bool wanted) {
        Redis &self = *static_cast<Redis *>(redis);
        const int events = wanted ? self.events_ | event : self.events_ & ~event;
        if (events == self.events_) return;
        self.events_ = static_cast<short>(events);
        self.server_.watch(self.fd_, self.events_, [&self](short found) { self.serve(found); });
    }

    // POLLERR and POLLHUP lead to a read, which finds the error. It may end the connection.
    void serve(short found) {
        redisAsyncContext *const context = context_;
        if ((found & ~POLLOUT) != 0) redisAsyncHandleRead(context);
        if ((found & POLLOUT) != 0 && context_ == context) redisAsyncHandleWrite(context);
    }

    // The object that a callback belongs to; null if that has closed the connection already.
    static Redis *ownerOf(const redisAsyncContext *context) {
        auto *self = static_cast<Redis *>(context->data);
        return self->context_ == context ? self : nullptr;
    }

    static void fail(const redisAsyncContext *context, const std::string &why) {
        Redis *self = ownerOf(context);
        if (!self) return;
        self->context_ = nullptr;  // hiredis frees it
        self->answers_.clear();
        self->lost_(why);
    }

    void queue(const std::vector<std::string> &command, redisCallbackFn *callback) {
        std::vector<const char *> words;
        std::vector<std::size_t> lengths;
        for (const std::string &word : command) {
            words.push_back(word.data());
            lengths.push_back(word.size());
        }
        redisAsyncCommandArgv(context_, callback, nullptr, static_cast<int>(words.size()),
                              words.data(), lengths.data());
    }

    // No reply means that the connection is ending: fail() follows. Exceptions must not pass
    // through hiredis, which is C.
    template <class Choose>
    static void hand(redisAsyncContext *context, void *reply, Choose choose) {
        Redis *self = ownerOf(context);
        if (!self || !reply) return;
        try {
            const Answer answer = choose(*self);
            answer(*static_cast<redisReply *>(reply));
        } catch (const std::exception &error) {
            self->close();
            self->lost_(error.what());
        }
    }

    WSBaseServer &server_;
    Lost lost_;
    redisAsyncContext *context_ = nullptr;
    int fd_ = -1;
    short events_ = 0;
    std::deque<Answer> answers_;
    Answer subscriber_;
};

// ----------------------------------------------------------------------------
// 2. The chat in Redis
//
//     n         the number of the last event            people     user: session, LF, nick
//     epoch     random; changes if Redis loses data     nicks      nick in lower case: user
//     last      the id of the last message              sessions   session: user
//     history   the last messages, oldest first         leases     process: when its lease ends
//     key:KEY   the id of the message with that key     events     (the channel)
//
// All names begin with KEYS[1]. Its braces make a Redis Cluster keep them on one node, as scripts
// require. The id of a user is that of its process, '-', and its number there.
// ----------------------------------------------------------------------------

constexpr const char *kPrefix = "{chat}:";

constexpr const char *kScript = R"lua(
local command, process = ARGV[1], ARGV[2]
local call = redis.call
local function key(name) return KEYS[1] .. name end
local people, nicks, sessions = key('people'), key('nicks'), key('sessions')

local function publish(json)
  call('PUBLISH', key('events'), '{"n":' .. call('INCR', key('n')) .. ',' .. json:sub(2))
end

local function tell(type, user, event)
  event.type, event.user = type, user
  publish(cjson.encode(event))
end

local function put(user, session, nick)
  call('HSET', people, user, session .. '\n' .. nick)
  call('HSET', nicks, nick:lower(), user)
  if session ~= '' then call('HSET', sessions, session, user) end
end

-- The session and nick of a user; nil if the user is not in the chat.
local function get(user)
  local value = call('HGET', people, user)
  if value then return value:match('^(.*)\n(.*)$') end
end

local function leave(user)
  local session, nick = get(user)
  if not nick then return end
  call('HDEL', people, user)
  call('HDEL', nicks, nick:lower())
  if session ~= '' then call('HDEL', sessions, session) end
  tell('left', user, { nick = nick })
end

local function retire(dead)
  call('ZREM', key('leases'), dead)
  for _, user in ipairs(call('HKEYS', people)) do
    if user:sub(1, #dead + 1) == dead .. '-' then leave(user) end
  end
end

local function now()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Renews the lease. Returns 1 if the process had none.
local function live(lease) return call('ZADD', key('leases'), now() + lease, process) end

local commands = {}

-- Returns 1 if the user is in the chat, 0 if the nick is taken, -1 if the user rejoins but its page
-- has a newer connection. A user with a known session replaces the one that had it.
function commands.join(user, session, nick, rejoins)
  if get(user) then return 1 end
  local before = session ~= '' and call('HGET', sessions, session)
  if before then
    if rejoins == '1' then return -1 end
    local _, had = get(before)
    call('HDEL', people, before)
    put(user, session, had)
    tell('moved', user, { before = before, nick = had })
    return 1
  end
  if call('HEXISTS', nicks, nick:lower()) == 1 then return 0 end
  put(user, session, nick)
  tell('joined', user, { nick = nick })
  return 1
end

function commands.rename(user, nick)
  local session, was = get(user)
  if not was or was == nick then return 1 end
  local holder = call('HGET', nicks, nick:lower())
  if holder and holder ~= user then return 0 end
  call('HDEL', nicks, was:lower())
  put(user, session, nick)
  tell('renamed', user, { nick = nick, was = was })
  return 1
end

function commands.leave(user) leave(user) end

-- Returns 0, or the id of an earlier message with this key. `json` lacks only the id.
function commands.say(known, json, seconds, kept)
  local id = call('GET', key('key:' .. known))
  if id then return tonumber(id) end
  id = call('INCR', key('last'))
  call('SET', key('key:' .. known), id, 'EX', seconds)
  local message = '{"id":' .. id .. ',' .. json:sub(2)
  call('RPUSH', key('history'), message)
  call('LTRIM', key('history'), -kept, -1)
  publish(message)
  return 0
end

function commands.beat(lease, maySweep)
  local isNew = live(lease)
  if maySweep == '1' then
    for _, dead in ipairs(call('ZRANGEBYSCORE', key('leases'), '-inf', now())) do retire(dead) end
  end
  return { isNew, tonumber(call('GET', key('n')) or 0) }
end

function commands.retire() retire(process) end

-- Returns a copy to a process that has these users and the events of `epoch` up to `n`. Its history
-- has the messages after `id`, or the last `limit` ones if the epoch has changed. If Redis has
-- fewer events, it has lost some and would reuse their numbers: it begins the epoch `offered`.
function commands.sync(lease, users, offered, epoch, n, id, limit)
  local current = call('GET', key('epoch'))
  if not current or current == epoch and tonumber(n) > tonumber(call('GET', key('n')) or 0) then
    current = offered
    call('SET', key('epoch'), current)
    publish('{"type":"epoch"}')
  end
  local mine = {}
  for user in users:gmatch('%S+') do mine[user] = true end
  for _, user in ipairs(call('HKEYS', people)) do
    if user:sub(1, #process + 1) == process .. '-' and not mine[user] then leave(user) end
  end
  live(lease)
  local last = tonumber(call('GET', key('last')) or 0)
  local wanted = current == epoch and last - id or tonumber(limit)
  local history = wanted > 0 and call('LRANGE', key('history'), -wanted, -1) or {}
  return { current, tonumber(call('GET', key('n'))), last, call('HGETALL', people), history }
end

return commands[command](unpack(ARGV, 3))
)lua";

// A process's copy of the chat. A page's welcome is made from it.
struct Copy {
    std::string epoch;
    std::int64_t n = 0;                         // the number of the last event in it
    std::int64_t lastId = 0;                    // the id of the last message
    std::map<std::string, std::string> people;  // user: nick
    History history;
};

// From the answer to "sync", but for the history.
Copy copyFrom(const redisReply &reply) {
    if (reply.type != REDIS_REPLY_ARRAY || reply.elements != 5)
        throw std::runtime_error("unexpected answer: " + textOf(reply));
    Copy copy;
    copy.epoch = textOf(*reply.element[0]);
    copy.n = reply.element[1]->integer;
    copy.lastId = reply.element[2]->integer;
    const redisReply &people = *reply.element[3];
    for (std::size_t i = 0; i + 1 < people.elements; i += 2) {
        const std::string value = textOf(*people.element[i + 1]);
        copy.people[textOf(*people.element[i])] = value.substr(value.rfind('\n') + 1);
    }
    return copy;
}

// The messages in the answer to "sync", which this process lacks.
std::vector<WSMessage> missedIn(const redisReply &reply) {
    const redisReply &history = *reply.element[4];
    std::vector<WSMessage> missed;
    for (std::size_t i = 0; i < history.elements; ++i)
        missed.emplace_back(textOf(*history.element[i]));
    return missed;
}

// ----------------------------------------------------------------------------
// 3. The server
//
//     away ── connect(), when due ──▶ joining ── synced() ──▶ joined
//      ▲                               │   ▲                   │  │
//      └───────────── lost() ──────────┴───│───────────────────┘  │
//                                          └─── sync(): see there ┘
//
// While joining, events wait in early_ until the copy arrives. Pages stay connected, whatever the
// state of this link.
// ----------------------------------------------------------------------------

struct ClusterConfig : WSBaseConfig {
    ClusterConfig() {
        debug = false;
        maxUsers = 10000;
        maxMessagesPerSecond = 20;
        maxMessageBytes = 64 * 1024;
        tickSeconds = 0.05;
    }

    std::string redisHost = "127.0.0.1";
    int redisPort = 6379;
    int maxWaitingBytes = 16 * 1024 * 1024;  // of unconfirmed messages
};

struct ClusterUser : WSBaseUser {
    ClusterUser() { maxIdle = 30; }  // who has not said hello by then makes room for others

    enum class State { silent, joining, here };
    bool isHere() const { return state == State::here; }

    State state = State::silent;
    std::string nick;  // while joining, the one that the page asked for
    std::string session;
};

// A message that Redis has not confirmed, although its event may have arrived.
struct Saying {
    std::uint64_t user;
    std::string key;
    std::string json;
    bool isHeard = false;
};

Json::Value about(const std::string &nick, const char *type) {
    Json::Value message;
    message["type"] = type;
    message["nick"] = nick;
    return message;
}

// A line that a page shows between its messages.
Json::Value notice(const std::string &text) {
    Json::Value message;
    message["type"] = "error";
    message["about"] = "";
    message["text"] = text;
    return message;
}

class ClusterServer : public WebSocketServer<ClusterUser, ClusterConfig> {
  public:
    ClusterServer(ClusterConfig config, std::string page)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {}

  private:
    enum class Link { away, joining, joined };
    using State = ClusterUser::State;

    // /healthz makes a proxy send newcomers elsewhere while this process has no Redis.
    void httpRequest(const WSRequest &request, WSResponse &response) override {
        if (request.path() != "/healthz") return answerWithPage(request, response, page_);
        const bool isHealthy = link_ == Link::joined;
        response.status = isHealthy ? 200 : 503;
        response.body = isHealthy ? "joined\n" : "no Redis\n";
    }

    void preConnect(ClusterUser &user, int) override {
        if (user.request().path() != "/chat") refuse(user, 404, "The chat is at /chat\n");
        else if (link_ != Link::joined) refuse(user, 503, "Redis is down, try again later\n");
    }

    void process(ClusterUser &user, WSMessage &msg) override {
        const Json::Value &message = msg.json();
        if (!message.isObject()) return disconnect(user, 1007, "messages must be JSON objects");
        const std::string type = stringIn(message, "type");
        if (type == "hello") return hello(user, message);
        if (user.state == State::silent) return complain(user, message, "Say hello first.");
        if (type == "say") return say(user, message);
        if (type == "nick") return changeNick(user, message);
        if (type == "typing") return typing(user);
        complain(user, message, "Unknown type of message.");
    }

    // If Redis is away, it learns from the next sync() that the user has left.
    void preDisconnect(ClusterUser &user, int) override {
        if (user.state != State::silent && !isLeaving_) command({"leave", idOf(user)});
    }

    void preShutdown(bool &) override {
        isLeaving_ = true;
        command({"retire"});
        commands_.flush();
    }

    void tick() override {
        const auto now = Clock::now();
        if (isLeaving_) return;
        if (link_ == Link::away) {
            if (now >= nextTry_) connect();
        } else if (now > answerBy_) {
            lost("no answer");
        } else if (link_ == Link::joined && now >= nextBeat_) {
            beat();
        }
    }

    // --- messages from a page ---

    void hello(ClusterUser &user, const Json::Value &message) {
        const std::string nick = tidyNick(stringIn(message, "nick"));
        if (user.state != State::silent) return complain(user, message, "You are already here.");
        if (nick.empty()) return complain(user, message, kUnfitNick);
        if (link_ == Link::away) return disconnect(user, 1013, "Redis is down, try again later");
        user.session = stringIn(message, "session");
        user.nick = nick;
        user.maxIdle = 0;
        user.state = State::joining;
        if (link_ == Link::joined) join(user, false);
    }

    void say(ClusterUser &user, const Json::Value &message) {
        const std::string text = trimmed(stringIn(message, "text", kTextCharacters));
        std::string key = stringIn(message, "key");
        if (text.empty()) return complain(user, message, "The message has no text.");
        if (waitingBytes_ > static_cast<std::size_t>(config().maxWaitingBytes))
            return complain(user, message, "Too much is waiting for Redis: message not sent.");
        if (key.empty()) key = process_ + '.' + std::to_string(++keys_);
        Json::Value said = about(user.nick, "message");
        said["from"] = idOf(user);
        said["text"] = text;
        said["time"] = Json::Int64(millisecondsSince1970());
        said["key"] = key;
        waiting_.push_back({user.id(), key, WSMessage(said).payload(), false});
        waitingBytes_ += waiting_.back().json.size();
        sendWaiting();
    }

    void changeNick(ClusterUser &user, const Json::Value &message) {
        const std::string nick = tidyNick(stringIn(message, "nick"));
        if (nick.empty()) return complain(user, message, kUnfitNick);
        if (link_ != Link::joined || !user.isHere())
            return complain(user, message, "Names cannot be changed while Redis is down.");
        rename(user, nick, 1);
    }

    void typing(const ClusterUser &user) {
        if (link_ != Link::joined) return;
        Json::Value message = about(user.nick, "typing");
        message["user"] = idOf(user);
        commands_.send({"PUBLISH", channel(), WSMessage(message).payload()},
                       [](const redisReply &) {});
    }

    // --- commands ---

    // If another user has taken the nick before this process knows, the next number is tried.
    // `rejoins`: the user was in the chat, but Redis has lost it.
    void join(ClusterUser &user, bool rejoins, int number = 1) {
        user.state = State::joining;
        const std::string nick = freeNick(user.nick, number, {});
        command({"join", idOf(user), user.session, nick, rejoins ? "1" : "0"},
                [this, id = user.id(), rejoins, number](const redisReply &reply) {
                    ClusterUser *found = findUser(id);
                    if (!found || found->state != State::joining) return;
                    if (reply.integer == 0) join(*found, rejoins, number);
                    if (reply.integer < 0) giveUpPlace(*found);
                });
    }

    void rename(ClusterUser &user, const std::string &wish, int number) {
        const std::string nick = freeNick(wish, number, folded(user.nick));
        command({"rename", idOf(user), nick},
                [this, id = user.id(), wish, number](const redisReply &reply) {
                    ClusterUser *found = findUser(id);
                    if (found && reply.integer == 0) rename(*found, wish, number);
                });
    }

    void sendWaiting() {
        for (; link_ == Link::joined && underWay_ < waiting_.size(); ++underWay_) {
            const Saying &saying = waiting_[underWay_];
            command({"say", saying.key, saying.json, std::to_string(kKeySeconds),
                     std::to_string(kKeptHistory)},
                    [this](const redisReply &reply) { taken(reply.integer); });
        }
    }

    // Redis has the first waiting message: as a new one if `id` is 0, else it had it before under
    // this id. A page that sends a message again finds it in the history; if it is too old for
    // that, we confirm it here.
    void taken(std::int64_t id) {
        const Saying saying = std::move(waiting_.front());
        waiting_.pop_front();
        waitingBytes_ -= saying.json.size();
        --underWay_;
        ClusterUser *user = findUser(saying.user);
        const auto remembered = static_cast<std::int64_t>(copy_.history.said().size());
        if (id == 0 || saying.isHeard || !user || id > copy_.lastId - remembered) return;
        Json::Value message = WSMessage(saying.json).json();
        message["id"] = Json::Int64(id);
        sendToUser(*user, message);
    }

    // The message is near the front: those before it are heard and about to be confirmed.
    void markHeard(const std::string &key) {
        const auto heard = std::find_if(waiting_.begin(), waiting_.end(),
                                        [&](const Saying &saying) { return saying.key == key; });
        if (heard != waiting_.end()) heard->isHeard = true;
    }

    // Messages that were heard need not be sent again if the connection broke before Redis
    // confirmed them.
    void forgetHeard() {
        const auto first = waiting_.begin() + static_cast<std::ptrdiff_t>(underWay_);
        waiting_.erase(std::remove_if(first, waiting_.end(),
                                      [](const Saying &saying) { return saying.isHeard; }),
                       waiting_.end());
        waitingBytes_ = 0;
        for (const Saying &saying : waiting_) waitingBytes_ += saying.json.size();
    }

    void command(std::vector<std::string> words, Redis::Answer answer = {}) {
        if (script_.empty()) return;
        const auto name = words.begin();
        std::vector<std::string> all = {"EVALSHA", script_, "1", kPrefix, *name, process_};
        all.insert(all.end(), std::next(name), words.end());
        commands_.send(all, [answer = std::move(answer)](const redisReply &reply) {
            if (reply.type == REDIS_REPLY_ERROR) throw std::runtime_error(textOf(reply));
            if (answer) answer(reply);
        });
    }

    // --- events: they update the copy and go to the pages ---

    void hear(const WSMessage &event) {
        const Json::Value &json = event.json();
        const std::int64_t n = json["n"].asInt64();
        if (json["type"] == "typing") return tellOthers(json["user"].asString(), event);
        if (n <= copy_.n) return;  // the copy has it already
        if (n > copy_.n + 1) throw std::runtime_error("an event is missing");
        copy_.n = n;
        apply(json["type"].asString(), json, event);
    }

    void apply(const std::string &type, const Json::Value &json, const WSMessage &event) {
        if (type == "epoch") return sync();
        if (type == "message") {
            remember(event);
            return tellAll(event);
        }
        const std::string id = json["user"].asString();
        const std::string nick = json["nick"].asString();
        ClusterUser *user = userOf(id);
        if (type == "left") copy_.people.erase(id);
        else copy_.people[id] = nick;
        if (type == "left") nicks_.erase(folded(nick));
        if (type == "renamed") nicks_.erase(folded(json["was"].asString()));
        if (type == "joined" || type == "renamed") nicks_.insert(folded(nick));
        if (type != "left" && isOurs(id) && !user) command({"leave", id});  // it has left meanwhile
        if (type == "moved") return moved(json["before"].asString(), user, nick);
        if (user && type == "joined") seat(*user, nick);
        if (user && type == "renamed") user->nick = nick;
        if (type == "joined") return tellOthers(id, event);
        tellAll(event);
    }

    // A page has reconnected before anyone noticed that its old connection is dead. It may ask for
    // a new nick.
    void moved(const std::string &before, ClusterUser *user, const std::string &nick) {
        copy_.people.erase(before);
        if (ClusterUser *old = userOf(before)) giveUpPlace(*old);
        if (!user) return;
        const std::string wish = user->nick;
        seat(*user, nick);
        if (wish != nick) rename(*user, wish, 1);
    }

    void seat(ClusterUser &user, const std::string &nick) {
        user.state = State::here;
        user.nick = nick;
        sendToUser(user, welcome(user));
    }

    void giveUpPlace(ClusterUser &user) {
        user.state = State::silent;
        disconnect(user, 1000, "the page has reconnected");
    }

    void remember(const WSMessage &message) {
        const std::string key = message.json()["key"].asString();
        if (isOurs(message.json()["from"].asString())) markHeard(key);
        copy_.lastId = message.json()["id"].asInt64();
        copy_.history.remember(key, message);
    }

    // --- the link to Redis ---

    // First the subscription, then the script, then the copy: so every event is in the copy or
    // follows it.
    void connect() {
        link_ = Link::joining;
        answerBy_ = Clock::now() + kPatience;
        events_.open(config().redisHost, config().redisPort);
        events_.subscribe(channel(), [this](const redisReply &reply) {
            if (reply.type != REDIS_REPLY_ARRAY || reply.elements != 3)
                throw std::runtime_error(textOf(reply));
            if (textOf(*reply.element[0]) == "subscribe") return loadScript();
            const WSMessage event(textOf(*reply.element[2]));
            if (link_ == Link::joined) hear(event);
            else early_.push_back(event);
        });
    }

    void loadScript() {
        commands_.open(config().redisHost, config().redisPort);
        commands_.send({"SCRIPT", "LOAD", kScript}, [this](const redisReply &reply) {
            if (reply.type != REDIS_REPLY_STRING) throw std::runtime_error(textOf(reply));
            script_ = textOf(reply);
            sync();
        });
    }

    // Requests what this copy lacks, and reports the users of this process. (Also called while
    // joined, if the epoch ends or Redis has dropped this process.)
    void sync() {
        link_ = Link::joining;
        answerBy_ = Clock::now() + kPatience;
        std::string here;
        for (const ClusterUser &user : users())
            if (user.state != State::silent) here += idOf(user) + ' ';
        command({"sync", std::to_string(kLease.count()), here, randomHex(), copy_.epoch,
                 std::to_string(copy_.n), std::to_string(copy_.lastId), std::to_string(kHistory)},
                [this](const redisReply &reply) { synced(copyFrom(reply), missedIn(reply)); });
    }

    void synced(Copy now, const std::vector<WSMessage> &missed) {
        const Copy before = std::exchange(copy_, std::move(now));
        const bool isSameChat = before.epoch == copy_.epoch;
        link_ = Link::joined;
        failures_ = 0;
        joinedSince_ = nextBeat_ = Clock::now();
        answerBy_ = kNever;
        published_ = heard_ = copy_.n;
        nicks_.clear();
        for (const auto &[user, nick] : copy_.people) nicks_.insert(folded(nick));
        if (isTold_) tellAll(notice("The chat is connected to Redis again."));
        if (isTold_) console(WSLevel::warning, "Redis is back");
        isTold_ = false;
        if (isSameChat) {
            catchUp(before, missed);
        } else {
            for (const WSMessage &message : missed) remember(message);
            if (!before.epoch.empty()) tellAll(notice(whatIsForgotten(before)));
        }
        placeUsers(isSameChat);
        for (const WSMessage &event : std::exchange(early_, {})) hear(event);
        forgetHeard();
        sendWaiting();
    }

    // Tells the pages what they have missed.
    void catchUp(const Copy &before, const std::vector<WSMessage> &missed) {
        copy_.history = before.history;
        const std::int64_t number = copy_.lastId - before.lastId;
        if (number > static_cast<std::int64_t>(missed.size()))
            tellAll(notice("You have missed messages that are no longer in the history."));
        for (const WSMessage &message : missed) {
            remember(message);
            tellAll(message);
        }
        const std::set<std::string> then = nicksIn(before), today = nicksIn(copy_);
        for (const std::string &nick : then)
            if (today.count(nick) == 0) tellAll(about(nick, "left"));
        for (const std::string &nick : today)
            if (then.count(nick) == 0) tellAll(about(nick, "joined"));
    }

    // Counts the lost ones among the last messages; the pages still show them.
    std::string whatIsForgotten(const Copy &before) const {
        const auto &then = before.history.said();
        const auto lost = std::count_if(then.begin(), then.end(), [&](const History::Said &said) {
            return !copy_.history.has(said.key);
        });
        return "Redis has lost " + std::to_string(lost) + " of the last " +
               std::to_string(then.size()) + " messages: newcomers cannot see them.";
    }

    // Users missing from the copy join again. In a new epoch, all users get a new welcome.
    void placeUsers(bool isSameChat) {
        for (ClusterUser &user : users()) {
            if (user.state == State::silent) continue;
            const auto found = copy_.people.find(idOf(user));
            if (found == copy_.people.end()) join(user, user.isHere());
            else if (!isSameChat || !user.isHere()) seat(user, found->second);
            else if (found->second != user.nick) confirmRename(user, found->second);
        }
    }

    // Tells a user of a rename whose event was lost with the connection. (Other pages see the old
    // nick leave and the new one join.)
    void confirmRename(ClusterUser &user, const std::string &nick) {
        Json::Value renamed = about(nick, "renamed");
        renamed["was"] = std::exchange(user.nick, nick);
        sendToUser(user, renamed);
    }

    // Closes both connections, whichever failed, and schedules the next attempt: at a random time,
    // or all processes would reconnect at once.
    void lost(const std::string &why) {
        link_ = Link::away;
        events_.close();
        commands_.close();
        script_.clear();
        early_.clear();
        underWay_ = 0;
        const double wanted = static_cast<double>(kFirstRest.count()) * std::pow(2, failures_++);
        const double rest = std::min(wanted, static_cast<double>(kLongestRest.count()));
        std::uniform_real_distribution<double> spread(0.5, 1);
        nextTry_ = Clock::now() + milliseconds(static_cast<int>(rest * spread(random_)));
        if (std::exchange(isTold_, true)) return;
        console(WSLevel::warning, "Redis at " + config().redisHost + ':' +
                                      std::to_string(config().redisPort) + " failed: " + why);
        tellAll(notice(
            "The chat has lost its connection to Redis. Messages that you send now are kept, "
            "and delivered when Redis is back."));
    }

    // Renews the lease of this process and retires processes whose lease has expired; but not soon
    // after an outage, which may have hit the others, too: they need time to reconnect.
    void beat() {
        nextBeat_ = kNever;  // until this one is answered
        answerBy_ = Clock::now() + kPatience;
        const bool maySweep = Clock::now() - joinedSince_ > kLease;
        command({"beat", std::to_string(kLease.count()), maySweep ? "1" : "0"},
                [this](const redisReply &reply) {
                    if (reply.type != REDIS_REPLY_ARRAY || reply.elements != 2)
                        throw std::runtime_error("unexpected answer: " + textOf(reply));
                    beatAnswered(reply.element[0]->integer == 1, reply.element[1]->integer);
                });
    }

    // `published` is the number of the last event in Redis. If we lacked events at the last beat
    // and none has arrived since, the subscription is dead, although no error says so.
    void beatAnswered(bool wasDropped, std::int64_t published) {
        if (link_ != Link::joined) return;  // a sync() is under way
        nextBeat_ = Clock::now() + kBeat;
        answerBy_ = kNever;
        if (wasDropped) return sync();
        if (published_ > copy_.n && heard_ == copy_.n)
            throw std::runtime_error("events have stopped");
        published_ = published;
        heard_ = copy_.n;
    }

    // --- messages to pages ---

    void tellAll(const WSMessage &message) {
        sendToIf([](const ClusterUser &user) { return user.isHere(); }, message);
    }

    void tellOthers(const std::string &id, const WSMessage &message) {
        const ClusterUser *but = userOf(id);
        sendToIf([&](const ClusterUser &user) { return user.isHere() && &user != but; }, message);
    }

    void complain(ClusterUser &user, const Json::Value &message, const char *text) {
        Json::Value error = notice(text);
        error["about"] = stringIn(message, "type");
        error["key"] = stringIn(message, "key");
        sendToUser(user, error);
    }

    WSMessage welcome(const ClusterUser &user) const {
        Json::Value message = about(user.nick, "welcome");
        message["you"] = idOf(user);
        message["epoch"] = copy_.epoch;
        std::string people;
        for (const auto &[id, nick] : copy_.people) appendNick(people, nick);
        return welcomeOf(message, people, copy_.history);
    }

    // --- ids and nicks ---

    std::string channel() const { return std::string(kPrefix) + "events"; }
    std::string idOf(const ClusterUser &user) const {
        return process_ + '-' + std::to_string(user.id());
    }

    bool isOurs(const std::string &id) const {
        return id.compare(0, process_.size() + 1, process_ + '-') == 0;
    }

    // Null unless `id` belongs to a present user of this process.
    ClusterUser *userOf(const std::string &id) const {
        if (!isOurs(id)) return nullptr;
        return findUser(std::strtoull(id.c_str() + process_.size() + 1, nullptr, 10));
    }

    // `wish`, with a number from `number` on, that is free as far as this process knows. If it is
    // taken after all, the caller goes on at `number`.
    std::string freeNick(const std::string &wish, int &number, const std::string &own) const {
        std::string nick;
        do nick = numbered(wish, number++);
        while (folded(nick) != own && nicks_.count(folded(nick)) != 0);
        return nick;
    }

    static std::set<std::string> nicksIn(const Copy &copy) {
        std::set<std::string> nicks;
        for (const auto &[user, nick] : copy.people) nicks.insert(nick);
        return nicks;
    }

    const std::string page_;
    const std::string process_ = randomHex().substr(0, 12);
    std::uint64_t keys_ = 0;

    Link link_ = Link::away;
    int failures_ = 0;
    bool isTold_ = false;  // pages know that Redis is away
    bool isLeaving_ = false;
    Clock::time_point nextTry_, nextBeat_, answerBy_, joinedSince_;
    std::minstd_rand random_{std::random_device{}()};
    std::int64_t published_ = 0, heard_ = 0;  // numbers of events at the last beat

    Copy copy_;
    std::set<std::string> nicks_;   // of all people, folded
    std::vector<WSMessage> early_;  // events that arrived before the copy
    std::deque<Saying> waiting_;    // messages that Redis has not confirmed
    std::size_t underWay_ = 0;      // how many of them have been sent
    std::size_t waitingBytes_ = 0;

    std::string script_;  // its SHA-1; empty while commands cannot be sent
    Redis events_{*this, [this](const std::string &why) { lost(why); }};
    Redis commands_{*this, [this](const std::string &why) { lost(why); }};
};

// ----------------------------------------------------------------------------
// 4. The program
// ----------------------------------------------------------------------------

// HOST:PORT; an IPv6 address, which has colons itself, stands in brackets.
void setRedis(ClusterConfig &config, const std::string &place) {
    const std::string_view mark = place.compare(0, 1, "[") == 0 ? "]:" : ":";
    const std::size_t begin = mark.size() - 1, end = place.find(mark);
    const bool isWhole = end != std::string::npos && end > begin;
    const auto port = numberIn(isWhole ? place.substr(end + mark.size()) : "", 1, 65535);
    if (!port) throw std::invalid_argument("must be HOST:PORT, with a port from 1 to 65535");
    config.redisHost = place.substr(begin, end - begin);
    config.redisPort = *port;
}

}  // namespace

int main(int argc, char **argv) {
    ClusterConfig config;
    const std::vector<Option> options = {
        portOption("--port N", config),
        addressOption("--address HOST", config),
        {"--reuse-port", "share the port with other processes that have this option",
         [&](const std::string &) { config.reusePort = true; }},
        originOption(config),
        {"--redis HOST:PORT", "where Redis listens (127.0.0.1:6379)",
         [&](const std::string &value) { setRedis(config, value); }},
        {"--keep BYTES", "keep that much of what users say while Redis is away (16777216)",
         [&](const std::string &value) { config.maxWaitingBytes = numberFrom(value, 0, 1 << 30); }},
        verboseOption(config)};
    return runProgram(argc, argv, options, [&] {
        ClusterServer server(config, readPage(argv[0], "chat.html"));
        server.stopOn({SIGINT, SIGTERM});
        std::signal(SIGPIPE, SIG_IGN);  // hiredis may write to a closed socket
        server.listen();
        std::cout << placeOf(config.address, server.port()) << std::endl;
        server.run();
    });
}
