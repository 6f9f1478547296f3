// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The opening handshake (RFC 6455 4.2, RFC 9112) and plain HTTP on the same port: which requests
// are accepted, how the others are answered, and how requests may be cut into packets.

#include "black.h"

using namespace black;

namespace {

// A plain GET.
std::string get(const std::string &target = "/", const std::string &headers = {}) {
    return "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n";
}

// The opening handshake with one of its lines replaced; `line` begins with "Name:".
std::string with(const std::string &line) {
    std::string request = upgrade();
    const std::size_t begin = request.find(line.substr(0, line.find(':') + 1));
    const std::size_t end = request.find("\r\n", begin) + 2;
    return request.replace(begin, end - begin,
                           line.empty() || line.back() == ':' ? "" : line + "\r\n");
}

// The same without that line.
std::string without(const std::string &name) { return with(name + ':'); }

}  // namespace

// ----------------------------------------------------------------------------
// Accepted handshakes
// ----------------------------------------------------------------------------

TEST_CASE("The sample handshake gets the answer of RFC 6455 1.3") {
    Server server;
    Peer peer(server, "/chat",
              "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
              "Sec-WebSocket-Protocol: superchat, chat\r\n");
    CHECK(peer.response ==
          "HTTP/1.1 101 Switching Protocols\r\n"
          "Upgrade: websocket\r\n"
          "Connection: Upgrade\r\n"
          "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
          "\r\n");
}

TEST_CASE("Unusual handshakes are accepted") {
    struct Row {
        std::string label, request;
    };
    const std::vector<Row> rows = {
        {"The target is absolute, with ws.", upgrade("ws://localhost:80/chat?a=b")},
        {"Connection is a list.", with("Connection: keep-alive, Upgrade")},
        {"Connection has mixed case and odd spaces.",
         with("Connection:\t ,keep-alive\t,  uPGRADE ,")},
        {"Connection appears twice.", with("Connection: keep-alive\r\nConnection: upgrade")},
        {"Upgrade is a list, in capitals.", with("Upgrade: h2c, WEBSOCKET")},
        {"Header names are in lower case.",
         with("Sec-WebSocket-Version: 13\r\nx-y: z")
             .replace(upgrade().find("Sec-WebSocket-K"), 17, "sec-websocket-key")},
        {"No space follows a colon.", with("Host:localhost")},
        {"The host is an IPv6 address with a port.", with("Host: [::1]:12345")},
        {"The target is in absolute form.", upgrade("http://localhost:80/chat?a=b")},
        {"The target is in absolute form without a path.", upgrade("HTTP://localhost")},
        {"Content-Length says that there is no body.", upgrade("/", "Content-Length: 0\r\n")},
        {"The version is a later 1.x.", with("Host: a").replace(upgrade().find("1.1"), 3, "1.2")},
        {"A value has bytes above ASCII.", upgrade("/", "X-Name: \xC3\xA4\xFF\r\n")},
        {"A header is empty.", upgrade("/", "X-Empty:\r\n")},
        {"The key has unused bits set.", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==")},
        {"There is no Origin: the client is not a browser.", upgrade()},
        {"The Origin is null, and every origin is allowed.", upgrade("/", "Origin: null\r\n")},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        Client client(server);
        client.send(row.request);
        CHECK(client.head().substr(0, 13) == "HTTP/1.1 101 ");
        CHECK(server.userCount() == 1);
    }
}

// ----------------------------------------------------------------------------
// Other requests
// ----------------------------------------------------------------------------

TEST_CASE("A request that is not a valid handshake gets the right status and no user") {
    struct Row {
        std::string label, request;
        int status;
        std::string name = {}, value = {};  // of a header that the answer must have
    };
    const std::vector<Row> rows = {
        {"A TLS ClientHello.", "\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03"s, 400},
        {"POST", "POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "Allow", "GET, HEAD"},
        {"A POST with a body.", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405,
         "Allow", "GET, HEAD"},
        {"A handshake with PUT.", "PUT" + upgrade().substr(3), 405, "Allow", "GET, HEAD"},
        {"A method in lower case.", "get" + upgrade().substr(3), 405, "Allow", "GET, HEAD"},

        {"A plain GET.", get(), 426, "Upgrade", "websocket"},
        {"Connection does not name Upgrade.", with("Connection: keep-alive"), 426, "Upgrade",
         "websocket"},
        {"There is no Connection.", without("Connection"), 426, "Upgrade", "websocket"},
        {"There is a key but no Upgrade.", without("Upgrade"), 426, "Upgrade", "websocket"},
        {"The upgrade is to another protocol.", with("Upgrade: h2c"), 426, "Upgrade", "websocket"},
        {"Version 8.", with("Sec-WebSocket-Version: 8"), 426, "Sec-WebSocket-Version", "13"},
        {"Version 14.", with("Sec-WebSocket-Version: 14"), 426, "Sec-WebSocket-Version", "13"},
        {"Two versions in a list.", with("Sec-WebSocket-Version: 13, 8"), 426,
         "Sec-WebSocket-Version", "13"},
        {"No version.", without("Sec-WebSocket-Version"), 426, "Sec-WebSocket-Version", "13"},

        {"The version appears twice.", upgrade("/", "Sec-WebSocket-Version: 13\r\n"), 426},
        {"The key is missing.", without("Sec-WebSocket-Key"), 400},
        {"The key appears twice.", upgrade("/", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
         400},
        {"The key is empty.", with("Sec-WebSocket-Key: "), 400},
        {"The key has 15 bytes.", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"), 400},
        {"The key has 17 bytes.", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZXg="), 400},
        {"The key is not base64.", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub2!jZQ=="), 400},
        {"The key is not padded.", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"), 400},

        {"No Host.", without("Host"), 400},
        {"Two Hosts.", upgrade("/", "Host: localhost\r\n"), 400},
        {"An empty Host.", with("Host: "), 400},
        {"A Host with user-info.", with("Host: me@localhost"), 400},
        {"A Host with a path.", with("Host: localhost/"), 400},
        {"A Host whose port is not a number.", with("Host: localhost:http"), 400},
        {"A GET with a body.", upgrade("/", "Content-Length: 3\r\n") + "abc", 400},
        {"A GET with a chunked body.", upgrade("/", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
         400},
        {"An upgrade in HTTP/1.0.", "GET / HTTP/1.0" + upgrade().substr(14), 400},
        {"An upgrade in HTTP/1.0, as nginx sends it by default.",
         "GET / HTTP/1.0\r\nHost: a\r\nConnection: close\r\n"
         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
         400},
        {"HTTP/2.0", "GET / HTTP/2.0" + upgrade().substr(14), 400},
        {"HTTP in lower case.", "GET / http/1.1" + upgrade().substr(14), 400},
        {"HTTP/0.9", "GET /\r\n\r\n", 400},
        {"The request line begins with a space.", ' ' + upgrade(), 400},
        {"The request line has two spaces.", "GET  / HTTP/1.1" + upgrade().substr(14), 400},
        {"A space follows the version.", "GET / HTTP/1.1 " + upgrade().substr(14), 400},
        {"An empty line comes first.", "\r\n" + upgrade(), 400},
        {"The target has no slash.", upgrade("chat"), 400},
        {"The target is an asterisk.", upgrade("*"), 400},
        {"The target has a fragment.", upgrade("/chat#here"), 400},
        {"The target has bytes above ASCII.", upgrade("/\xC3\xA4"), 400},
        {"The target has a tab.", upgrade("/a\tb"), 400},
        {"A line ends with LF alone.", with("Host: a\nX: b"), 400},
        {"A line has a CR inside.", with("Host: a\rX: b"), 400},
        {"A value has a NUL.", upgrade("/", "X: a\0b\r\n"s), 400},
        {"A value has a backspace.", upgrade("/", "X: a\bb\r\n"), 400},
        {"A line is folded.", upgrade("/", "X: a\r\n b\r\n"), 400},
        {"A space precedes the colon.", upgrade("/", "X : a\r\n"), 400},
        {"A line has no colon.", upgrade("/", "X\r\n"), 400},
        {"A header has no name.", upgrade("/", ": a\r\n"), 400},
        {"A name is not a token.", upgrade("/", "X(Y): a\r\n"), 400},
        {"The HTTP/2 preface.", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
        {"A frame without a handshake.", "\x81\x05hello", 400},
    };
    for (const Row &row : rows) {
        for (const bool bytewise : {false, true}) {
            CAPTURE(row.label);
            CAPTURE(bytewise);
            Server server;
            Client client(server);
            if (!bytewise) client.send(row.request);
            else
                for (const char byte : row.request) client.step({&byte, 1});
            const Answer answer = client.answer();
            CHECK(answer.status == row.status);
            CHECK_FALSE(answer.body.empty());
            if (!row.name.empty()) CHECK(answer.header(row.name) == row.value);
            if (row.name == "Upgrade") CHECK(has(answer.header("Connection"), "Upgrade"));
            CHECK(server.connectHooks().empty());
        }
    }
}

TEST_CASE("GET and HEAD in HTTP/1.0 are answered, an upgrade is told what to set in nginx") {
    Server server;
    server.onHttp = [&](const WSRequest &request, WSResponse &response) {
        if (request.path() == "/health") response = {200, {}, "fine"};
    };
    const std::vector<std::pair<std::string, int>> rows = {
        {"GET /health HTTP/1.0\r\n\r\n", 200},
        {"GET /health HTTP/1.0\r\nHost: a\r\nUser-Agent: ApacheBench/2.3\r\n\r\n", 200},
        {"HEAD /health HTTP/1.0\r\n\r\n", 200},
        {"GET /other HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 426},
        {"GET /health HTTP/1.1\r\n\r\n", 400}};
    for (const auto &row : rows) {
        const auto &request = row.first;
        const int status = row.second;
        CAPTURE(request);
        Client client(server);
        client.send(request);
        const Answer answer = client.answer(request[0] == 'H');
        CHECK(answer.status == status);
        CHECK(answer.header("Connection") == (status == 426 ? "close, Upgrade" : "close"));
        CHECK(answer.end == "EOF");
    }
    Client client(server);
    client.send("GET / HTTP/1.0" + upgrade().substr(14));
    CHECK(has(client.answer().body, "proxy_http_version 1.1;"));
}

TEST_CASE("HEAD is answered like GET, with the length of the body but no body") {
    Server server;
    std::string page(3'000'000, 'x');
    server.onHttp = [&](const WSRequest &request, WSResponse &response) {
        if (request.path() == "/throws") throw std::runtime_error("on purpose");
        if (request.path() != "/page") return;
        response.status = 200;
        response.headers = {{"X-Method", request.method()}};
        response.body = page;
    };
    const std::vector<std::pair<std::string, int>> rows = {
        {"/page", 200}, {"/nothing", 426}, {"/throws", 500}};
    for (const auto &row : rows) {
        const auto &path = row.first;
        const int status = row.second;
        CAPTURE(path);
        Client head(server), get(server);
        head.send("HEAD " + path + " HTTP/1.1\r\nHost: a\r\n\r\n");
        const Answer answer = head.answer(true);
        CHECK(answer.status == status);
        CHECK(answer.header("X-Method") == (status == 200 ? "HEAD" : ""));
        get.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n");
        CHECK(answer.header("Content-Length") == get.answer().header("Content-Length"));
    }
}

TEST_CASE("HEAD is not an opening handshake (RFC 6455 4.2.1), and its refusal has no body") {
    Server server([](Config &config) { config.uniqueOrigin = {"https://example.com"}; });
    const std::string plain = "HEAD / HTTP/1.1\r\nHost: a\r\n";
    for (const std::string &request :
         {"HEAD" + upgrade().substr(3), plain + "Upgrade: websocket\r\n\r\n",
          plain + "Content-Length: 1\r\n\r\n"}) {
        CAPTURE(request);
        Client client(server);
        client.send(request);
        const Answer answer = client.answer(true);
        CHECK(answer.status == 400);
        CHECK(std::stoi(answer.header("Content-Length")) > 0);
    }
    CHECK(server.hooks.empty());
}

TEST_CASE("HEAD gets no body (RFC 9110 9.3.2), whatever is wrong with the request") {
    Server server([](Config &config) {
        config.maxRequestBytes = 300;
        config.handshakeSeconds = 0.1;
    });
    const std::vector<std::pair<std::string, int>> rows = {
        {" / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400},
        {" /  HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {" /\n", 400},
        {" /" + std::string(300, 'x'), 431},
        {" / HTTP/1.1\r\nHost: a\r\n", 408}};
    const auto answerTo = [&](const std::string &request) {
        Client client(server);
        client.step(request.substr(0, 2));
        client.send(request.substr(2));
        return client.answer(request[0] == 'H');
    };
    for (const auto &row : rows) {
        CAPTURE(row.first);
        const Answer head = answerTo("HEAD" + row.first), get = answerTo("GET" + row.first);
        CHECK(head.status == row.second);
        CHECK(get.status == row.second);
        CHECK(head.header("Content-Length") == get.header("Content-Length"));
    }
    Server ending;
    Client late(ending);
    late.step("HEAD / HTTP/1.1\r\n");
    ending.shutdown();
    CHECK(late.answer(true).status == 503);
}

TEST_CASE("A head of maxRequestBytes is accepted, one byte more gets 431") {
    const std::size_t bare = upgrade("/", "X: \r\n").size();
    const auto headOf = [&](std::size_t size) {
        return upgrade("/", "X: " + std::string(size - bare, 'x') + "\r\n");
    };
    for (const std::size_t cut : {0U, 1U, 299U, 300U}) {
        CAPTURE(cut);
        Server server([](Config &config) { config.maxRequestBytes = 300; });
        const std::string fits = headOf(300) + frame(kText, "behind");
        Client good(server);
        good.step(fits.substr(0, cut));
        good.send(fits.substr(cut));
        CHECK(good.head().substr(0, 13) == "HTTP/1.1 101 ");
        good.wait("the echo", [&] {
            return good.input ==
                   "\x81\x06"
                   "behind";
        });

        Client bad(server);
        bad.step(headOf(301).substr(0, cut));
        bad.send(headOf(301).substr(cut));
        CHECK(bad.status() == 431);

        Client endless(server);
        endless.send("GET /" + std::string(295, 'x'));  // already too long for any head
        CHECK(endless.status() == 431);
    }
}

// ----------------------------------------------------------------------------
// Packets
// ----------------------------------------------------------------------------

TEST_CASE("A handshake followed by frames may be cut anywhere") {
    Server server;
    const std::string whole =
        upgrade() + frame(kText, "one") + frame(kText, "two") + frame(kText, "three");
    const auto check = [](Client &client) {
        CHECK(client.head().substr(0, 13) == "HTTP/1.1 101 ");
        const std::string echoes = "\x81\x03one\x81\x03two\x81\x05three";
        client.wait("the echoes", [&] { return client.input.size() >= echoes.size(); });
        CHECK(client.input == echoes);
    };
    for (std::size_t cut = 1; cut < whole.size(); ++cut) {
        CAPTURE(cut);
        Client client(server);
        client.step(whole.substr(0, cut));
        client.send(whole.substr(cut));
        check(client);
    }
    Client client(server);
    for (const char byte : whole) client.step({&byte, 1});
    check(client);
}

TEST_CASE("Bytes after a refused request are never parsed") {
    for (const std::string &first :
         {get("/a"), "POST / HTTP/1.1\r\nHost: a\r\n\r\n"s, get("/a", "Bad Header: x\r\n")}) {
        CAPTURE(first);
        Server server;
        Client client(server);
        client.send(first + upgrade() + get("/b") + frame(kText, "hello"));
        CHECK(client.answer().body.find("HTTP/1.1") == std::string::npos);
        server.hooks.erase(std::remove(server.hooks.begin(), server.hooks.end(), "httpRequest /a"),
                           server.hooks.end());
        CHECK(server.hooks.empty());
    }
}

TEST_CASE("An answer arrives whole while the client is still sending") {
    Server server;
    Client client(server);
    client.keepsOpen = true;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n");
    client.send(std::string(5'000'000, 'x'));
    CHECK(client.status() == 405);
}

TEST_CASE("A client that half-closes after its request still gets the answer") {
    Server server;
    server.onHttp = [](const WSRequest &, WSResponse &response) {
        response.status = 200;
        response.body = std::string(1'000'000, 'x');
    };
    Client client(server);
    client.send(get());
    client.finish();
    CHECK(client.answer().body.size() == 1'000'000);

    Client silent(server);  // no request at all
    silent.finish();
    silent.wait("the end", [&] { return !silent.end.empty(); });
    CHECK(silent.input.empty());
}

// ----------------------------------------------------------------------------
// Origins
// ----------------------------------------------------------------------------

TEST_CASE("Only pages of the listed origins may connect") {
    struct Row {
        std::string label, origin;
        bool allowed;
    };
    const std::vector<Row> rows = {
        {"A listed origin.", "https://example.com", true},
        {"Another listed origin.", "http://localhost:8080", true},
        {"Capitals in scheme and host.", "HTTPS://Example.COM", true},
        {"An origin listed in capitals and with its default port.", "http://other.example", true},
        {"An explicit default port.", "https://example.com:443", true},
        {"Spaces and tabs around the value.", "\t https://example.com \t", true},
        {"Another scheme.", "http://example.com", false},
        {"A malformed scheme.", "https//example.com", false},
        {"Another port.", "https://example.com:8443", false},
        {"The default port of the other scheme.", "https://example.com:80", false},
        {"The default port where another one is listed.", "http://localhost", false},
        {"A port with leading zeros.", "https://example.com:0443", false},
        {"A port that is too large.", "https://example.com:65979", false},
        {"An empty port.", "https://example.com:", false},
        {"A foreign domain that begins like a listed one.", "https://example.com.evil.com", false},
        {"A foreign domain that ends like a listed one.", "https://evilexample.com", false},
        {"A subdomain.", "https://www.example.com", false},
        {"The parent domain.", "https://com", false},
        {"A listed origin as user-info.", "https://example.com@evil.com", false},
        {"User-info.", "https://me@example.com", false},
        {"A trailing dot.", "https://example.com.", false},
        {"A path.", "https://example.com/", false},
        {"A query.", "https://example.com?", false},
        {"A backslash.", "https://example.com\\evil.com", false},
        {"null", "null", false},
        {"An empty value.", "", false},
        {"Two in one header, with a space.", "https://example.com https://example.com", false},
        {"Two in one header, with a comma.", "https://example.com, https://example.com", false},
        {"Two headers.", "https://example.com\r\nOrigin: https://example.com", false},
        {"Two headers, of which the first is listed.",
         "https://example.com\r\nOrigin: https://evil.com", false},
        {"A tab inside.", "https://exam\tple.com", false},
        {"No scheme.", "example.com", false},
        {"A letter that only looks like the right one.", "https://ex\xD0\xB0mple.com", false},
        {"A file URL.", "file://", false},
    };
    Server server([](Config &config) {
        config.uniqueOrigin = {"https://example.com", "http://localhost:8080",
                               "HTTP://Other.Example:80"};
    });
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Client client(server);
        client.send(upgrade("/", "Origin: " + row.origin + "\r\n"));
        if (row.allowed) CHECK(client.head().substr(0, 13) == "HTTP/1.1 101 ");
        else CHECK(client.status() == 403);
    }
    Client old(server);  // what else is wrong comes first
    old.send(with("Sec-WebSocket-Version: 8\r\nOrigin: https://evil.com"));
    CHECK(old.status() == 426);
}

TEST_CASE("Pages without a host may connect if their origins are listed") {
    for (const std::string origin : {"null", "file://", "app://.", "capacitor://localhost"}) {
        CAPTURE(origin);
        Server server([&](Config &config) { config.uniqueOrigin = {origin}; });
        for (const std::string other : {"null", "file://", "app://.", "capacitor://localhost"}) {
            Client client(server);
            client.send(upgrade("/", "Origin: " + other + "\r\n"));
            CHECK(has(client.head(), other == origin ? " 101 " : " 403 "));
        }
    }
}

TEST_CASE("A client without an Origin is accepted unless requireOrigin is set") {
    for (const bool required : {false, true}) {
        for (const bool listed : {false, true}) {
            CAPTURE(required);
            CAPTURE(listed);
            Server server([&](Config &config) {
                config.requireOrigin = required;
                if (listed) config.uniqueOrigin = {"https://example.com"};
            });
            Client program(server);
            program.send(upgrade());
            if (required) CHECK(program.status() == 403);
            else CHECK(program.head().substr(0, 13) == "HTTP/1.1 101 ");
            Client nameless(server);
            nameless.send(upgrade("/", "Origin:\r\n"));
            if (required || listed) CHECK(nameless.status() == 403);
            else CHECK(nameless.head().substr(0, 13) == "HTTP/1.1 101 ");
            const Peer browser(server, "/", "Origin: https://example.com\r\n");
            CHECK(server.userCount() == (required ? 1 : listed ? 2 : 3));
        }
    }
}

// ----------------------------------------------------------------------------
// Plain HTTP
// ----------------------------------------------------------------------------

TEST_CASE("httpRequest() sees the request and answers it") {
    Server server;
    server.onHttp = [](const WSRequest &request, WSResponse &response) {
        response.status = 200;
        response.headers = {{"Content-Type", "text/html; charset=utf-8"},
                            {"X-Where", request.query()}};
        response.body = "<p>" + request.method() + ' ' + request.path() + ' ' + request.address();
    };
    Client client(server);
    client.send(get("/page?a=b&c", "X-Where: there\r\n"));
    const Answer answer = client.answer();
    CHECK(answer.head.substr(0, 17) == "HTTP/1.1 200 OK\r\n");
    CHECK(answer.header("Content-Type") == "text/html; charset=utf-8");
    CHECK(answer.header("X-Where") == "a=b&c");
    CHECK(answer.body == "<p>GET /page 127.0.0.1");
    CHECK(server.connectHooks().empty());
}

TEST_CASE("Whatever httpRequest() returns, the client gets a valid answer") {
    using Headers = std::vector<std::pair<std::string, std::string>>;
    struct Row {
        std::string label;
        int status;
        Headers headers;
        int answered;
    };
    const std::vector<Row> rows = {
        {"No answer.", 0, {}, 426},
        {"An error status.", 404, {}, 404},
        {"A status without a name.", 299, {{"X-Y", ""}}, 299},
        {"No content.", 204, {}, 204},
        {"Not modified.", 304, {}, 304},
        {"Two headers of one name.", 200, {{"Set-Cookie", "a=b"}, {"Set-Cookie", "c=d"}}, 200},
        {"A 101 without an upgrade.", 101, {}, 500},
        {"A status that is too small.", 199, {}, 500},
        {"A status that is too large.", 600, {}, 500},
        {"A negative status.", -200, {}, 500},
        {"A value that smuggles in a header.", 200, {{"X-Y", "a\r\nSet-Cookie: b"}}, 500},
        {"A value with a line break.", 200, {{"X-Y", "a\nb"}}, 500},
        {"A value with a CR.", 200, {{"X-Y", "a\rb"}}, 500},
        {"A value with a NUL.", 200, {{"X-Y", "a\0b"s}}, 500},
        {"A name that smuggles in a header.", 200, {{"X: y\r\nZ", "a"}}, 500},
        {"A name with a colon.", 200, {{"X:", "a"}}, 500},
        {"An empty name.", 200, {{"", "a"}}, 500},
        {"A second Content-Length.", 200, {{"content-length", "7"}}, 500},
        {"A Transfer-Encoding.", 200, {{"Transfer-Encoding", "chunked"}}, 500},
        {"A second Connection.", 200, {{"Connection", "keep-alive"}}, 500},
    };
    for (const Row &row : rows) {
        CAPTURE(row.label);
        Server server;
        server.onHttp = [&](const WSRequest &, WSResponse &response) {
            response.status = row.status;
            response.headers = row.headers;
            response.body = "something";
        };
        Client client(server);
        client.send(get());
        const Answer answer = client.answer();
        CHECK(answer.status == row.answered);
        if (row.answered == row.status && row.status != 204 && row.status != 304)
            CHECK(answer.body == "something");
        if (row.answered == 500) CHECK(server.printed("cannot be sent"));
        CHECK_FALSE(has(answer.head, "Set-Cookie: b"));
    }
}

TEST_CASE("A large page reaches a slow reader whole, even if that takes longer than closeSeconds") {
    Server server([](Config &config) { config.closeSeconds = 1.4; });
    std::string page;
    while (page.size() < 24'000'000) page += std::to_string(page.size()) + ' ';
    server.onHttp = [&](const WSRequest &, WSResponse &response) {
        response.status = 200;
        response.body = page;
    };
    Client quick(server);
    quick.send(get());
    CHECK((quick.answer().body == page));

    Client slow(server, 4096);
    slow.appetite = 0;
    slow.send(get());
    const auto start = Clock::now();
    for (auto next = start; slow.input.size() < page.size(); next += 35ms) {
        while (Clock::now() < next) server.turn(5ms);
        slow.appetite = 270'000;
        slow.wait("its next piece", [&] { return slow.appetite == 0 || !slow.end.empty(); });
        if (!slow.end.empty()) break;
    }
    slow.appetite = std::string::npos;
    CHECK(Clock::now() - start > 2800ms);
    CHECK((slow.answer().body == page));
}
