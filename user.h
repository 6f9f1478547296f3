// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Who is connected (WSBaseUser), and the request that brought them (WSRequest).
// Derive from WSBaseUser to give your users names, rooms, scores; every hook
// gets its user as your type.

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

// The head of an HTTP request: its request line and header fields, as the
// opening handshake of RFC 6455 4.1 or a plain GET brought them. It has been
// checked: whatever these methods give is free of CR, LF and NUL. Each answer is
// looked up in the text of the head when asked for, so keep what you need often.
class WSRequest {
  public:
    WSRequest() = default;
    // `head`: the request line, the header lines and the empty line, each with its
    // CRLF. A text that is no valid head gives a request without method and path.
    WSRequest(std::string head, std::string address);

    // "GET".
    std::string method() const;

    // The path and the query of the request target, as they were sent: percent
    // signs are not decoded. The path begins with '/', the query comes without
    // its '?' and may be empty.
    std::string path() const;
    std::string query() const;

    // One parameter of the query ("?room=blue+sky"), decoded: '+' is a space,
    // %41 is A. Empty if there is none. Bytes that it decodes to may be anything.
    std::string parameter(std::string_view name) const;

    // A header field by its name, upper or lower case. Several of one name are
    // joined by ", " (RFC 9110 5.3). Empty if there is none; hasHeader() tells
    // an empty one from none.
    std::string header(std::string_view name) const;
    bool hasHeader(std::string_view name) const;
    std::vector<std::pair<std::string, std::string>> headers() const;

    // A cookie by its name, as it was sent (RFC 6265 5.4). Empty if there is none.
    std::string cookie(std::string_view name) const;

    // The page's origin, "https://example.com"; empty if the client is no browser.
    std::string origin() const { return header("Origin"); }

    // The subprotocols that the client offers, in its order of preference.
    std::vector<std::string> protocols() const;

    // The client's numeric IP address: "127.0.0.1", "::1"; "unix" if it came by a Unix socket.
    // What a proxy says is believed from WSBaseConfig::trustedProxies only.
    const std::string &address() const { return address_; }

  private:
    std::string head_;
    std::string address_;
};

// A user exists from its opening handshake on (preConnect is the first hook to
// see it) until postDisconnect has run for it, and is destroyed by the server.
// References to it are good for as long; who must remember somebody for longer
// keeps the id. Its destructor may run after your server's: it must not use that.
class WSBaseUser {
  public:
    WSBaseUser() = default;
    virtual ~WSBaseUser() = default;
    WSBaseUser(const WSBaseUser &) = delete;
    WSBaseUser &operator=(const WSBaseUser &) = delete;

    // Seconds without a message after which this user counts as idle and is
    // disconnected (close code 1001); 0 means never. Pings are no messages.
    double maxIdle = 60;

    // Called for each message, before process(). Resets the idle clock; who
    // overrides it calls it, unless this message shall not count.
    virtual void messageReceived() {
        if (clock_ != nullptr) lastMessage_ = *clock_;
    }

    // Asked about once a second, and when a newcomer finds no room.
    virtual bool isIdle() const { return maxIdle > 0 && idleSeconds() > maxIdle; }

    // Seconds since the last message, or since the handshake.
    double idleSeconds() const {
        return clock_ == nullptr ? 0 : static_cast<double>(*clock_ - lastMessage_) / 1e6;
    }

    // 1, 2, 3, … in the order of arrival; never used again.
    std::uint64_t id() const { return id_; }

    // The socket's descriptor. It is there for setsockopt() and the like: who
    // reads, writes or closes it breaks the connection.
    int socket() const;

    // Bytes that were sent to this user, with the headers of their frames, and that the
    // kernel has not taken yet. Look at it before you send what a slow user can do without;
    // above WSBaseConfig::lowMarkBytes nothing is read from the user, and
    // WebSocketServer::drained() tells when all is gone. 0 when not connected.
    std::size_t backlog() const;

    // How this user came.
    const WSRequest &request() const { return request_; }
    const std::string &address() const { return request_.address(); }

    // The agreed subprotocol: the first of WSBaseConfig::protocols that was offered, or what
    // preConnect() chose; empty if there is none.
    const std::string &protocol() const {
        static const std::string none;
        return protocol_ ? *protocol_ : none;
    }

    // Why it ends, for preDisconnect: the close code (RFC 6455 7.4) and its
    // reason, whoever gave them. 1005: the peer closed without a code; 1006: the
    // connection was lost without a closing handshake. 0 while it has not ended.
    int closeCode() const;
    const std::string &closeReason() const { return closeReason_; }

  private:
    friend struct WSLoop;

    std::uint64_t id_ = 0;
    WSConnection *connection_ = nullptr;   // the socket's side of it
    const std::int64_t *clock_ = nullptr;  // the server's clock, in milliseconds
    std::int64_t lastMessage_ = 0;         // by that clock
    WSRequest request_;
    std::unique_ptr<const std::string> protocol_;  // few users have one
    std::string closeReason_;
};

#endif
