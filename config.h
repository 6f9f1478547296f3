// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What a server can be told. Derive from WSBaseConfig, set fields in the constructor, add
// fields of your own; or fill one at run time and hand it to the server's constructor. Each
// field says its default, its unit and when to change it. listen() checks them all and throws
// std::invalid_argument with a sentence that names the field, its value and what to do.
//
// Where to listen, uniqueOrigin and trustedProxies are read once, by listen(). All others are
// read each time they matter, so the program may change them while the server runs (in a hook:
// there is only one thread). They are not checked again then.

#ifndef WS_CONFIG_H
#define WS_CONFIG_H

#include <cstddef>
#include <string>
#include <vector>

struct WSBaseConfig {
    virtual ~WSBaseConfig() = default;

    // --- where to listen, and who may come ---------------------------------

    // A host name or a numeric address; the server listens on every address it resolves to,
    // IPv4 and IPv6. The default reaches this machine only. Empty means every interface: then
    // anybody who reaches the port can connect. "unix:/run/chat/socket" is a Unix socket with
    // that path, for a proxy on the same machine. What a server that died has left there is
    // replaced; what a living one has, or is no socket, is not. (Another program that has
    // bound its socket, but does not listen yet, looks like a dead one.)
    std::string address = "localhost";

    // Who may connect to a Unix socket, as chmod() takes it: who may write to it. 0 to 0777.
    // The default is its owner and its group; the proxy's user is to be in that group.
    int unixMode = 0660;

    // TCP port, 0 to 65535. With 0 the system picks a free one; port() tells it.
    int port = 12345;

    // True lets several processes that all say so listen at the same port; the system hands
    // each of them its share of the connections (SO_REUSEPORT; on Linux and FreeBSD).
    // They are separate servers: nobody can be sent to who is another one's user.
    bool reusePort = false;

    // The descriptor of a listening socket, TCP or Unix, that somebody else has opened: systemd
    // (there it is 3, the first that LISTEN_FDS counts) or a parent process, so that
    // nobody is turned away while the program is replaced. -1: none; else address, port and
    // what belongs to them are not used. The server listens with a copy, and makes it
    // non-blocking; the descriptor stays yours to close.
    int listenFd = -1;

    // The origins whose pages may connect, such as "https://example.com" or
    // "http://localhost:8080": scheme, host and, unless it is the scheme's
    // default, port. Empty means any. Fill it when users are known by cookies:
    // else any page in the world can connect in their name (RFC 6455 10.2).
    std::vector<std::string> uniqueOrigin;

    // Programs that are no browsers send no Origin header and are let in. True
    // refuses them too. Origin proves nothing about them: it is not a password.
    bool requireOrigin = false;

    // The proxies in front of this server: addresses ("127.0.0.1"), networks ("10.0.0.0/8",
    // "fd00::/8"), or "unix", who comes by a Unix socket. A network has addresses of its own kind
    // only: nobody is in "::/0" by IPv4. Only from these proxyHeader is believed,
    // and then user.address(), the log and maxUsersPerAddress are about the client that it
    // tells of. Empty: nobody is believed. List your own proxies and nothing else: who is in
    // here can be anybody.
    std::vector<std::string> trustedProxies;

    // The subprotocols this server speaks, best first (RFC 6455 1.9). The first that the
    // client offers too is agreed on, unless preConnect() chooses otherwise
    // (acceptProtocol()); user.protocol() tells it. Each is a token as RFC 9110 5.6.2 has it.
    std::vector<std::string> protocols;

    // --- how much ----------------------------------------------------------

    // Users at the same time, at least 1. When it is reached, idle users (see
    // WSBaseUser::isIdle) go first; if there are none, the newcomer gets 503.
    // The soft limit of open files is raised to fit, as far as the system lets.
    int maxUsers = 1000;

    // Connections that are no users: still in their opening handshake, or
    // being closed. At least 1. When it is reached, the one whose time is up first
    // makes room for the newcomer. Raise it if many come at once.
    int maxPending = 1000;

    // Users from the same IP address; 0 means no limit. Careful: behind one
    // address there may be a whole office, or your own proxy.
    int maxUsersPerAddress = 0;

    // Messages per second from one user, 0 means no limit; who sends more is
    // disconnected with 1008. Pings count: they cost as much as messages.
    int maxMessagesPerSecond = 0;

    // Bytes of a request's head, all of it. More gets 431. Raise it if your
    // site's cookies are large; it is buffered for each connection that is
    // still in its handshake.
    std::size_t maxRequestBytes = 8 * 1024;

    // Bytes of one message's payload, all fragments together. More is answered
    // with close code 1009, as soon as a frame declares it.
    std::size_t maxMessageBytes = 1024 * 1024;

    // Frames of one message. More is answered with 1008. It only ends messages
    // of empty fragments that never end: maxMessageBytes bounds all others.
    int maxFragments = 262144;

    // Bytes that wait for a user who does not read them. A user whose queue would pass it is
    // disconnected, because losing messages silently is worse. A single message always fits an
    // empty queue, whatever its size. It should hold some of your largest messages.
    std::size_t maxQueuedBytes = 4 * 1024 * 1024;

    // While more than this waits for a user, nothing is read from that user, so who
    // sends without reading is slowed down and not served at others' cost; and once all of
    // it is gone, WebSocketServer::drained() runs. More lets users ask further ahead. At
    // most half of maxQueuedBytes counts.
    std::size_t lowMarkBytes = 64 * 1024;

    // Depth of arrays and objects in a JSON message; deeper is "not JSON".
    int maxJsonDepth = 64;

    // Values in a JSON message, all arrays, objects and what is in them; more is "not JSON".
    // Each takes some 100 bytes and up to 1 us to parse, however short it was: "[[],[],[], …"
    // of 1 MiB would hold up everybody for 0.1 s and more.
    int maxJsonValues = 4096;

    // --- how long, in seconds (but for tick(), clocks are read once a second) -

    // From accept to the end of the request's head, however it trickles in.
    double handshakeSeconds = 10;

    // After that silence a user is sent a ping; after twice that without a byte
    // the connection is given up (1006). 0 turns it off. Keep it below the idle
    // timeout of proxies on the way (often 60 s).
    double pingSeconds = 20;

    // How long a peer may take for its part of closing.
    double closeSeconds = 5;

    // How long a shutdown waits for queues to drain and peers to close.
    double shutdownSeconds = 10;

    // Between two calls of tick(), from 0.001 on, in whole milliseconds. 0 turns it off. For
    // what the server does by itself: a game's next step, a look at a database.
    double tickSeconds = 0;

    // --- tuning: measure before you change these ------------------------------

    // --- talk ----------------------------------------------------------------

    // Whether console() prints what happens (who comes, who goes, what was
    // refused), or warnings and errors only.
    bool debug = true;
};

#endif
