// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The configuration of a server. Derive from WSBaseConfig, set fields in the constructor and add
// your own; or fill one at run time and pass it to the server's constructor. listen() checks them
// and throws std::invalid_argument with a sentence that names the field, its value and what to do.
//
// Where to listen, uniqueOrigin and trustedProxies are read once, by listen(). All others are read
// whenever they matter: hooks may change them while the server runs, but nothing checks them then.

#ifndef WS_CONFIG_H
#define WS_CONFIG_H

#include <cstddef>
#include <string>
#include <vector>

struct WSBaseConfig {
    virtual ~WSBaseConfig() = default;

    // --- where to listen, and which clients may connect ------------------------------------------

    // A host name or numeric address: the server listens on every address it resolves to, IPv4 and
    // IPv6. The default reaches this machine only. Empty or "::": every interface; any client that
    // reaches the port can connect. "unix:/run/chat/socket": a Unix socket, for a proxy on this
    // machine. A file that a dead server left there is replaced; one of a living server, or that is
    // not a socket, is not. (A server that has bound but not yet listens looks dead.)
    std::string address = "localhost";

    // The mode of the Unix socket, 0 to 0777, as chmod() takes it; clients need write permission.
    // By default its owner and group have it: put the proxy's user into that group.
    int unixMode = 0660;

    // TCP port, 0 to 65535. With 0 the system picks a free one; port() tells which.
    int port = 12345;

    // True lets several processes that all set it listen on one port; Linux spreads connections
    // over them (SO_REUSEPORT). They are separate servers: none can send to the users of another.
    bool reusePort = false;

    // A listening socket, TCP or Unix, that systemd (its first is descriptor 3) or a parent process
    // has opened, so that no client is refused while the program is replaced. -1: none; otherwise
    // address, unixMode, port and reusePort are ignored. The server makes the socket non-blocking
    // and listens with a copy of the descriptor, which stays yours to close.
    int listenFd = -1;

    // Origins whose pages may connect, such as "https://example.com" or "http://localhost:8080":
    // scheme, host, and the port unless it is the scheme's default. Empty: any. Set it when cookies
    // identify users: otherwise any page in the world can connect in their name (RFC 6455 10.2).
    // "file://" (Electron, Cordova) lets in whatever HTML file a user opens, "null" also any page in
    // the world, from a sandboxed frame: list them only if users prove themselves in another way.
    std::vector<std::string> uniqueOrigin;

    // True also refuses clients that send no Origin header: programs other than browsers. This is
    // not a password, because such a program can send any Origin.
    bool requireOrigin = false;

    // Proxies whose X-Forwarded-For is believed, none by default: addresses ("127.0.0.1"), networks
    // ("10.0.0.0/8", "fd00::/8"; IPv4 is not in "::/0"), or "unix" for all that connect over a Unix
    // socket. The client that they name counts for user.address(), the log and maxUsersPerAddress.
    // List your own proxies and nothing else: whatever is in here can claim to be any client.
    std::vector<std::string> trustedProxies;

    // Subprotocols of this server, best first (RFC 6455 1.9), each a token (RFC 9110 5.6.2). The
    // first that the client offers too is agreed on, unless preConnect() calls acceptProtocol().
    std::vector<std::string> protocols;

    // --- limits ----------------------------------------------------------------------------------

    // Users at the same time, at least 1. When a newcomer finds that many, the users that have been
    // idle for longest (see WSBaseUser::maxIdle) are disconnected, as many as needed; otherwise the
    // newcomer gets 503. listen() raises the soft limit of open files to fit, as far as it may.
    int maxUsers = 1000;

    // Connections without a user, at least 1: in their opening handshake, or being closed. When it
    // is reached, the one whose time is up first makes room; one that still has something to get is
    // spared, but only for closeSeconds. Raise it if many clients connect at once.
    int maxPending = 1000;

    // Users from one IP address (of an IPv6 /64); more get 503. 0: no limit. A whole office, or a
    // proxy that is not in trustedProxies, may share an address.
    int maxUsersPerAddress = 0;

    // Messages and pings per second from one user; more are answered with 1008. 0: no limit.
    int maxMessagesPerSecond = 0;

    // Bytes of a request's head, at least 1; more get 431. Raise it if your site's cookies are
    // large. Each connection may hold that much during its handshake.
    std::size_t maxRequestBytes = 8 * 1024;

    // Bytes of a message's payload, all fragments together, at least 1; more are answered with 1009
    // as soon as a frame declares them. Each user may make the server hold that much.
    std::size_t maxMessageBytes = 1024 * 1024;

    // Frames of a message, at least 1; more are answered with 1008. This only stops endless empty
    // fragments: maxMessageBytes bounds all other messages.
    int maxFragments = 262144;

    // Bytes that wait for a user that does not read them, at least 1. A user whose queue would
    // exceed it is disconnected (1008), because losing messages silently is worse. An empty queue
    // takes one message of any size. Set it to hold several of your largest messages.
    std::size_t maxQueuedBytes = 4 * 1024 * 1024;

    // While more bytes than this wait for a user, nothing is read from it, so a client that sends
    // without reading slows down only itself; when all are gone, drained() is called. Read as at
    // most half of maxQueuedBytes. Raise it to let users ask further ahead.
    std::size_t lowMarkBytes = 64 * 1024;

    // Levels of arrays and objects in a received message, 1 to 1000; a deeper one is "not JSON".
    // jsoncpp recurses, with up to 1 KiB of stack for each: 1000 overflow a thread's 256 KiB.
    int maxJsonDepth = 64;

    // Values in a received message, arrays and objects included, at least 1; one with more is "not
    // JSON". 4096 take about 15 ms to parse at worst, and everybody waits for that long.
    int maxJsonValues = 4096;

    // --- time, in seconds up to 1e6; the first three are checked once a second ------------------

    // From accept to the end of the request's head, at least 0.001, however it trickles; then 408.
    double handshakeSeconds = 10;

    // After this long without a byte a user is sent a ping, and after twice as long it is dropped
    // (1006). 0: off. Keep it below the idle timeout of proxies on the way (often 60 s).
    double pingSeconds = 20;

    // How long a peer may take for its part of closing, at least 0.001; progress restarts the time.
    double closeSeconds = 5;

    // How long a shutdown waits for queues to drain and peers to close, before it drops the rest.
    double shutdownSeconds = 10;

    // Between calls of tick(), at least 0.001; 0: off. For a game's next step, a database query.
    double tickSeconds = 0;

    // --- log -------------------------------------------------------------------------------------

    // Whether console() gets all (arrivals, departures, refusals) or only warnings and errors.
    bool debug = true;
};

#endif
