// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Other places to listen than a TCP port of its own: Unix sockets, sockets that another program has
// opened, ports that several servers share.

#include "black.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

using namespace black;

namespace {

// A temporary folder. The destructor removes it and its files.
class Folder {
  public:
    Folder() {
        if (::mkdtemp(name_) == nullptr) throw std::runtime_error("no folder");
    }
    ~Folder() {
        for (const std::string &file : files_) ::unlink(file.c_str());
        ::rmdir(name_);
    }
    Folder(const Folder &) = delete;
    Folder &operator=(const Folder &) = delete;

    std::string path(const std::string &file) {
        files_.push_back(name_ + ("/" + file));
        return files_.back();
    }

  private:
    char name_[20] = "/tmp/wsXXXXXX";
    Strings files_;
};

sockaddr_un addressOf(const std::string &path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
}

const sockaddr *asAddress(const sockaddr_un &address) {
    return reinterpret_cast<const sockaddr *>(&address);
}

// A socket connected to that path, or -1.
int connectTo(const std::string &path) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = addressOf(path);
    if (::connect(fd, asAddress(address), sizeof address) == 0) return fd;
    ::close(fd);
    return -1;
}

// Leaves the socket file of a server that died.
void leaveStale(const std::string &path) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = addressOf(path);
    REQUIRE(::bind(fd, asAddress(address), sizeof address) == 0);
    REQUIRE(::listen(fd, 1) == 0);
    ::close(fd);
}

bool exists(const std::string &path) { return ::access(path.c_str(), F_OK) == 0; }

std::unique_ptr<Server> serverAt(const std::string &path, int mode = 0660) {
    return std::make_unique<Server>([&](Config &config) {
        config.address = "unix:" + path;
        config.unixMode = mode;
        config.debug = true;
    });
}

// The error message of a server that cannot listen at that path; "" if it can.
std::string complaintAt(const std::string &path) {
    try {
        serverAt(path);
    } catch (const std::runtime_error &e) {
        return e.what();
    }
    return {};
}

// A client connects to that path and gets an echo.
void checkEcho(Server &server, const std::string &path) {
    const int fd = connectTo(path);
    REQUIRE(fd >= 0);
    Client client(server, Client::Connected{fd});
    client.send(upgrade() + frame(kText, "hello"));
    CHECK(has(client.head(), " 101 "));
    client.wait("an echo", [&] { return client.input == "\x81\x05hello"; });
}

}  // namespace

// ----------------------------------------------------------------------------
// Unix sockets
// ----------------------------------------------------------------------------

TEST_CASE("A server at unix:/path works like one at a port") {
    Folder folder;
    const std::string path = folder.path("socket");
    const auto server = serverAt(path);
    CHECK(server->port() == 0);
    CHECK(server->printed("listening at address \"unix:" + path + '"'));
    CHECK_FALSE(server->printed("port"));
    const int fd = connectTo(path);
    REQUIRE(fd >= 0);
    Client client(*server, Client::Connected{fd});
    client.send(upgrade("/here"));
    CHECK(has(client.head(), " 101 "));
    CHECK(server->user(1).address() == "unix");
    CHECK(server->printed("user 1 (unix) came to /here"));
    checkEcho(*server, path);
    const int page = connectTo(path);
    Client browser(*server, Client::Connected{page});
    browser.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK(browser.status() == 426);
    client.send(closeFrame(1000));
    client.wait("the end", [&] { return !client.end.empty(); });
    CHECK(client.end == "EOF");
}

TEST_CASE("A proxy on a Unix socket is believed only if it is trusted") {
    for (const bool trusted : {false, true}) {
        Folder folder;
        const std::string path = folder.path("socket");
        const auto server = serverAt(path);
        server->shutdown();
        server->takeLastTurns();
        if (trusted) server->config().trustedProxies = {"unix"};
        server->listen();
        const int fd = connectTo(path);
        REQUIRE(fd >= 0);
        Client client(*server, Client::Connected{fd});
        client.send(upgrade("/", "X-Forwarded-For: 192.0.2.9\r\n"));
        CHECK(has(client.head(), " 101 "));
        CHECK(server->user(1).address() == (trusted ? "192.0.2.9" : "unix"));
    }
}

TEST_CASE("A socket file has the configured mode, whatever the umask, and goes with its listener") {
    for (const int mode : {0600, 0660, 0666}) {
        for (const mode_t mask : {mode_t{0}, mode_t{077}}) {
            Folder folder;
            const std::string path = folder.path("socket");
            const mode_t before = ::umask(mask);
            auto server = serverAt(path, mode);
            ::umask(before);
            struct stat file {};
            CHECK(::stat(path.c_str(), &file) == 0);
            CHECK((file.st_mode & 07777) == static_cast<mode_t>(mode));
            server->shutdown();
            server->turn(0ms);
            CHECK_FALSE(exists(path));
            server->listen();
            CHECK(exists(path));
            server.reset();
            CHECK_FALSE(exists(path));
        }
    }
}

TEST_CASE("The socket file of a dead server is replaced, that of a live one is not") {
    Folder folder;
    const std::string path = folder.path("socket");
    leaveStale(path);
    const auto server = serverAt(path);
    checkEcho(*server, path);
    const std::string taken = complaintAt(path);
    CHECK(has(taken, "\"unix:" + path + '"'));
    CHECK(has(taken, "in use"));
    CHECK(has(taken, "stop or remove what is there"));
    CHECK_FALSE(has(taken, "port 0"));
    checkEcho(*server, path);
}

TEST_CASE("A forked child that exits leaves its parent's socket file and users alone") {
    Folder folder;
    const std::string path = folder.path("socket");
    auto server = serverAt(path);
    const int fd = connectTo(path);
    REQUIRE(fd >= 0);
    Client client(*server, Client::Connected{fd});
    client.send(upgrade());
    CHECK(has(client.head(), " 101 "));
    const pid_t child = ::fork();
    if (child == 0) {
        server.reset();  // as exit() does to a global one
        ::_exit(0);
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(exists(path));
    checkEcho(*server, path);
    CHECK(server->userCount() >= 1);
    CHECK(server->user(1).closeCode() == 0);
    server.reset();
    CHECK_FALSE(exists(path));
}

TEST_CASE("A live server with a full backlog is not taken for a dead one") {
    Folder folder;
    const std::string path = folder.path("socket");
    const int busy = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = addressOf(path);
    REQUIRE(::bind(busy, asAddress(address), sizeof address) == 0);
    REQUIRE(::listen(busy, 0) == 0);
    const int waiting = connectTo(path);
    CHECK(has(complaintAt(path), "in use"));
    CHECK(exists(path));
    ::close(waiting);
    ::close(busy);
}

TEST_CASE("A file that is not a socket is left alone") {
    Folder folder;
    const std::string file = folder.path("file"), link = folder.path("link"),
                      socket = folder.path("socket");
    std::ofstream(file) << "precious";
    CHECK(has(complaintAt(file), "in use"));
    leaveStale(socket);
    REQUIRE(::symlink(socket.c_str(), link.c_str()) == 0);
    CHECK(has(complaintAt(link), "in use"));
    std::string text;
    std::ifstream(file) >> text;
    CHECK(text == "precious");
    CHECK(exists(socket));
    CHECK(has(complaintAt(folder.path("nowhere") + "/socket"), "No such file"));
}

TEST_CASE("A server that cannot listen at a path leaves neither a descriptor nor a file") {
    const int before = openDescriptors();
    Folder folder;
    const std::string path = folder.path("socket");
    {
        const auto server = serverAt(path);
        CHECK_THROWS(serverAt(path));
        CHECK_THROWS(serverAt("/nowhere/at/all"));
    }
    CHECK(openDescriptors() == before);
    CHECK_FALSE(exists(path));
}

// ----------------------------------------------------------------------------
// Sockets that another program has opened
// ----------------------------------------------------------------------------

namespace {

// A socket bound to a free port of 127.0.0.1.
int openTcp(bool listens) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    if (listens) REQUIRE(::listen(fd, 10) == 0);
    return fd;
}

}  // namespace

TEST_CASE("The server accepts at a socket that listens already, and leaves it open") {
    const int before = openDescriptors();
    const int fd = openTcp(true);
    for (int i = 0; i < 2; ++i) {
        Server server([&](Config &config) {
            config.listenFd = fd;
            config.address = "no host";  // not used
            config.debug = true;
        });
        CHECK(server.printed("listening at listenFd " + std::to_string(fd)));
        CHECK(server.port() > 0);
        {
            Peer peer(server);
            peer.send(frame(kText, "hello"));
            CHECK(peer.hear() == "text hello");
        }
        server.stop();
        server.takeLastTurns();
        server.listen();  // once more
        const Peer peer(server);
        CHECK(server.userCount() == 1);
    }
    CHECK(::fcntl(fd, F_GETFD) >= 0);
    ::close(fd);
    CHECK(openDescriptors() == before);
}

TEST_CASE("A client that connects while no server accepts is served by the next server") {
    const int fd = openTcp(true);
    const auto change = [&](Config &config) { config.listenFd = fd; };
    auto server = std::make_unique<Server>(change);
    const int port = server->port();
    server.reset();
    Client client(port);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    Server next(change);
    pump(next, "a request", [&] { return !next.hooks.empty(); });
    CHECK(client.status() == 426);
    ::close(fd);
}

TEST_CASE("Small frames leave at once, also to a client that connected before the server started") {
    const auto delays = [](const WSBaseUser &user) {
        int noDelay = 0;
        socklen_t size = sizeof noDelay;
        ::getsockopt(user.socket(), IPPROTO_TCP, TCP_NODELAY, &noDelay, &size);
        return noDelay == 0;
    };
    Server usual;
    const Peer peer(usual);
    CHECK_FALSE(delays(usual.user(1)));

    const int fd = openTcp(true), off = 0;
    const auto change = [&](Config &config) { config.listenFd = fd; };
    const int port = Server(change).port();
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &off, sizeof off);
    Client early(port);
    early.send(upgrade());
    Server server(change);
    pump(server, "the user", [&] { return server.userCount() == 1; });
    CHECK_FALSE(delays(server.user(1)));
    ::close(fd);
}

TEST_CASE("The server does not spin when another program shuts its socket down") {
    const int before = openDescriptors();
    const int fd = openTcp(true);
    {
        Server server([&](Config &config) { config.listenFd = fd; });
        Peer peer(server);
        ::shutdown(fd, SHUT_RDWR);
        int turns = 0;
        for (const auto end = Clock::now() + 100ms; Clock::now() < end; ++turns) server.turn(100ms);
        CHECK(turns < 20);
        CHECK(server.printed("cannot accept, trying again"));
        peer.send(frame(kText, "hello"));
        CHECK(peer.hear() == "text hello");
    }
    ::close(fd);
    CHECK(openDescriptors() == before);
}

TEST_CASE("An IPv4 client of a socket for both IP versions has an IPv4 address") {
    const int fd = ::socket(AF_INET6, SOCK_STREAM, 0), off = 0;
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_any;
    ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0) {
        MESSAGE("skipped: this machine has no IPv6");
        ::close(fd);
        return;
    }
    REQUIRE(::listen(fd, 10) == 0);
    Server server([&](Config &config) { config.listenFd = fd; });
    const Peer peer(server);
    CHECK(server.user(1).address() == "127.0.0.1");
    ::close(fd);
}

TEST_CASE("listenFd may be a Unix socket") {
    Folder folder;
    const std::string path = folder.path("socket");
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = addressOf(path);
    REQUIRE(::bind(fd, asAddress(address), sizeof address) == 0);
    REQUIRE(::listen(fd, 10) == 0);
    {
        Server server([&](Config &config) { config.listenFd = fd; });
        CHECK(server.port() == 0);
        checkEcho(server, path);
    }
    CHECK(exists(path));  // the file does not belong to the server
    ::close(fd);
}

TEST_CASE("listenFd may be standard input, as inetd passes it") {
    const int before = ::dup(STDIN_FILENO), fd = openTcp(true);
    if (before < 0) ::close(fd);
    if (before < 0) return;  // there is no standard input
    REQUIRE(::dup2(fd, STDIN_FILENO) == STDIN_FILENO);
    ::close(fd);
    {
        Server server([](Config &config) {
            config.listenFd = STDIN_FILENO;
            config.address = "no host";  // not used
        });
        CHECK(server.port() > 0);
        Peer peer(server);
        peer.send(frame(kText, "hello"));
        CHECK(peer.hear() == "text hello");
    }
    ::dup2(before, STDIN_FILENO);
    ::close(before);
}

TEST_CASE("A listenFd that is not a listening socket is refused") {
    const int quiet = openTcp(false), file = ::open("/dev/null", O_RDONLY);
    const int before = openDescriptors();
    for (const int fd : {quiet, file}) {
        CHECK_THROWS_AS(Server([&](Config &config) { config.listenFd = fd; }),
                        std::invalid_argument);
    }
    CHECK(openDescriptors() == before);
    ::close(quiet);
    ::close(file);
}

// ----------------------------------------------------------------------------
// Shared ports
// ----------------------------------------------------------------------------

TEST_CASE("With reusePort several servers share a port, and each gets some of the clients") {
    const auto shared = [](int port) {
        return [=](Config &config) {
            config.port = port;
            config.reusePort = true;
        };
    };
    Server first(shared(0)), second(shared(first.port()));
    CHECK(second.port() == first.port());
    CHECK_THROWS(Server([&](Config &config) { config.port = first.port(); }));
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 60; ++i) {
        clients.push_back(std::make_unique<Client>(first.port()));
        clients.back()->send(upgrade());
    }
    pump(first, "all clients", [&] {
        second.turn(0ms);
        return first.userCount() + second.userCount() == 60;
    });
    CHECK(first.userCount() > 0);
    CHECK(second.userCount() > 0);
}
