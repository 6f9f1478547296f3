// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A user (WSBaseUser), and the request that it connected with (WSRequest). Derive from WSBaseUser
// to give your users names, rooms, scores; every hook gets its user as your type.

#ifndef WS_USER_H
#define WS_USER_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct WSConnection;  // these two are private to server.cpp
struct WSLoop;

// The head of an HTTP request: an opening handshake (RFC 6455 4.1) or a plain GET. It is checked:
// no value contains CR, LF or NUL. Each method searches the text, so keep what you need often.
class WSRequest {
  public:
    WSRequest() = default;
    // `head`: the request line, the header lines and the empty line, each with its CRLF. If it is
    // malformed, the request has no method, path or headers.
    WSRequest(std::string head, std::string address) { head_.swap(head), address_.swap(address); }

    std::string method() const;  // "GET" or "HEAD"

    // Not percent-decoded. The path begins with '/'; the query comes without '?' and may be empty.
    std::string path() const;
    std::string query() const;

    // A parameter of the query, or ""; "?room=blue+sky" is decoded, so it may contain any bytes.
    std::string parameter(std::string_view name) const;

    // A header field, or "" (hasHeader() tells an empty one from none). The case of `name` does not
    // matter. Fields with the same name are joined by ", " (RFC 9110 5.3).
    std::string header(std::string_view name) const;
    bool hasHeader(std::string_view name) const;
    std::vector<std::pair<std::string, std::string>> headers() const;

    std::string cookie(std::string_view name) const;         // as sent (RFC 6265 5.4), or ""
    std::string origin() const { return header("Origin"); }  // "" if the client is not a browser
    std::vector<std::string> protocols() const;              // that the client offers, best first

    // The client's IP address, "127.0.0.1" or "::1", or "unix" for a Unix socket. Proxies are
    // believed about it only if they are in WSBaseConfig::trustedProxies.
    const std::string &address() const { return address_; }

  private:
    std::string head_;
    std::string address_;
};

// A user exists from preConnect(), the first hook to see it, until postDisconnect() has run for it;
// then the server destroys it. References are valid for that long: to remember a user for longer,
// keep its id. Its destructor may run after your server's, so it must not use the server.
class WSBaseUser {
  public:
    WSBaseUser() = default;
    virtual ~WSBaseUser() = default;
    WSBaseUser(const WSBaseUser &) = delete;
    WSBaseUser &operator=(const WSBaseUser &) = delete;

    // Seconds without a message until this user is idle; 0: never. Pings do not count. Idle users
    // are disconnected (1001) only to make room: when a newcomer finds maxUsers reached, those idle
    // for longest go, as many as needed. A user that only listens stays as long as there is room.
    double maxIdle = 60;

    // Called for each message, before process(). Resets the idle clock: an override calls this one,
    // unless the message is not to count.
    virtual void messageReceived() {
        if (clock_ != nullptr) lastMessage_ = *clock_;
    }

    // Asked only when a newcomer finds maxUsers reached. A user whose message has arrived, but is
    // not read yet, is not idle whatever this returns.
    virtual bool isIdle() const { return maxIdle > 0 && idleSeconds() > maxIdle; }

    // Seconds since the last message, or since the handshake.
    double idleSeconds() const {
        return clock_ == nullptr ? 0 : static_cast<double>(*clock_ - lastMessage_) / 1e6;
    }

    std::uint64_t id() const { return id_; }  // 1, 2, 3, … in order of arrival; never reused
    int socket() const;  // for setsockopt(); reading, writing or closing it breaks the connection

    // Bytes queued for this user, frame headers included, that the kernel has not taken yet; 0 when
    // not connected. Check it before you send what a slow user can do without. Above lowMarkBytes
    // nothing is read from the user; drained() tells when all are gone.
    std::size_t backlog() const;

    const WSRequest &request() const { return request_; }
    const std::string &address() const { return request_.address(); }

    // The agreed subprotocol, or "": the first of WSBaseConfig::protocols that the client offers,
    // or what preConnect() chose.
    const std::string &protocol() const {
        static const std::string none;
        return protocol_ ? *protocol_ : none;
    }

    // Why the user ended, for preDisconnect(): the close code (RFC 6455 7.4) and reason, from
    // either side. 1005: the peer's Close had no code; 1006: there was no Close; 0: not ended yet.
    int closeCode() const;
    const std::string &closeReason() const { return closeReason_; }

  private:
    friend struct WSLoop;
    friend class WSBaseServer;

    std::uint64_t id_ = 0;
    WSConnection *connection_ = nullptr;   // the socket's side of it
    const std::int64_t *clock_ = nullptr;  // the server's clock, in microseconds
    std::int64_t lastMessage_ = 0;         // by that clock
    WSRequest request_;
    std::unique_ptr<const std::string> protocol_;  // few users have one
    std::string closeReason_;
};

#endif
