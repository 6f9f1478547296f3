// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// HTTP (section 10): valid heads and malformed ones, what an opening handshake needs, origins that
// imitate another, the clients of proxies, and responses.

#include "white.h"

namespace {

// The smallest request, and the handshake of RFC 6455 1.2.
const std::string kPlain = "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
const std::string kHandshake =
    "GET /chat HTTP/1.1\r\n"
    "Host: server.example.com\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Origin: http://example.com\r\n"
    "Sec-WebSocket-Protocol: chat, superchat\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "\r\n";

std::string requestLine(const std::string &line) { return line + "\r\nHost: example.com\r\n\r\n"; }

std::string withField(const std::string &line) {
    return "GET / HTTP/1.1\r\nHost: example.com\r\n" + line + "\r\n\r\n";
}

// The fields of a head, and the text that they point into.
struct Head {
    explicit Head(const std::string &text) : exact(text) {
        INFO(text);
        REQUIRE(parseHead(exact.view(), 0, parsed).answer == Progress::done);
    }
    Exact exact;
    RequestHead parsed;
};

// Parses a head that grows by `step` bytes each time. `at` becomes the size at which the answer
// is known.
Progress parseGrowing(const std::string &text, std::size_t step, std::size_t &at) {
    std::size_t seen = 0;
    for (;;) {
        at = std::min(seen + step, text.size());
        RequestHead head;
        const Exact exact(text.substr(0, at));
        const Progress progress = parseHead(exact.view(), seen, head);
        if (progress.answer != Progress::needMore || at == text.size()) return progress;
        seen = at;
    }
}

// Whole, byte by byte, cut at every place, and with more behind it.
void checkHead(const std::string &text, Progress::Answer answer) {
    const std::string more = "GET /more HTTP/1.1\r\n\r\n";
    std::size_t at = 0;
    CHECK(parseGrowing(text, text.size(), at).answer == answer);
    if (parseGrowing(text, text.size(), at).answer != answer) return;  // one complaint is enough
    for (std::size_t step = 1; step <= text.size(); ++step) {
        const Progress progress = parseGrowing(text, step, at);
        CHECK(progress.answer == answer);
        CHECK(progress.code == (answer == Progress::bad ? 400 : 0));
        CHECK(progress.used == (answer == Progress::done ? text.size() : 0));
    }
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
        RequestHead head;
        const Exact first(text.substr(0, cut)), whole(text);
        Progress progress = parseHead(first.view(), 0, head);
        if (cut < text.size() && answer == Progress::done)
            CHECK(progress.answer == Progress::needMore);
        if (progress.answer == Progress::needMore) progress = parseHead(whole.view(), cut, head);
        CHECK(progress.answer == answer);
    }
    if (answer == Progress::needMore) return;
    RequestHead head;
    const Exact behind(text + more);
    const Progress progress = parseHead(behind.view(), 0, head);
    CHECK(progress.answer == answer);
    CHECK(progress.used == (answer == Progress::done ? text.size() : 0));
}

std::string replaced(std::string text, const std::string &from, const std::string &to) {
    const std::size_t place = text.find(from);
    REQUIRE(place != text.npos);
    return text.replace(place, from.size(), to);
}

int checkedRequest(const std::string &text) { return checkRequest(Head(text).parsed).status; }
int checkedUpgrade(const std::string &text) { return checkUpgrade(Head(text).parsed).status; }

std::string valueOf(const WSResponse &response, const std::string &name) {
    std::string values;
    for (const auto &[key, value] : response.headers)
        if (key == name) values += value + ';';
    return values;
}

// Splits as the server does, and joins with '|'.
std::string list(std::string_view text, char separator) {
    std::string joined;
    const Exact exact(text);
    for (const std::string &element : splitList(exact.view(), separator))
        joined.append(element).append("|");
    return joined;
}

}  // namespace

// --- heads ---

TEST_CASE("the handshake of RFC 6455 1.2") {
    const Head head(kHandshake);
    CHECK(head.parsed.method == "GET");
    CHECK(head.parsed.path == "/chat");
    CHECK(head.parsed.query.empty());
    REQUIRE(head.parsed.fields.size() == 7);
    CHECK(head.parsed.fields[0].name == "Host");
    CHECK(head.parsed.fields[6].value == "13");
    CHECK(checkRequest(head.parsed).status == 0);
    CHECK(asksForWebSocket(head.parsed));
    CHECK(checkUpgrade(head.parsed).status == 0);
    const std::string offered = fieldValue(head.parsed, "Sec-WebSocket-Protocol");
    CHECK(chooseProtocol({"superchat", "chat"}, offered) == "superchat");
}

TEST_CASE("valid heads") {
    const std::pair<std::string, std::string> rows[] = {
        // clang-format off
        {"the smallest plain GET", kPlain},
        {"the handshake of RFC 6455 1.2", kHandshake},
        {"no header at all: Host is checked later", "GET / HTTP/1.1\r\n\r\n"},
        {"another method", requestLine("DELETE /x HTTP/1.1")},
        {"a method is any token", requestLine("M-SEARCH / HTTP/1.1")},
        {"HTTP/1.2 is read as 1.1 (RFC 9110 2.5)", requestLine("GET / HTTP/1.2")},
        {"HTTP/1.9 as well", requestLine("GET / HTTP/1.9")},
        {"a path of all characters that it may have",
         requestLine("GET /a-._~!$&'()*+,;=:@%20/b?c=/?d HTTP/1.1")},
        {"an absolute target (RFC 9112 3.2.2)",
         requestLine("GET http://example.com/chat HTTP/1.1")},
        {"no space behind the colon", withField("X:y")},
        {"tabs and spaces around a value", withField("X: \t y \t ")},
        {"an empty value", withField("X:")},
        {"a value of nothing but spaces", withField("X:    ")},
        {"a value with a tab inside", withField("X: a\tb")},
        {"a value with colons", withField("X: a:b::c")},
        {"obs-text in a value (RFC 9110 5.5)", withField("X: Gr\xFC\xDF\x80\xFF")},
        {"all marks that a name may have", withField("!#$%&'*+-.^_`|~aZ09: y")},
        // clang-format on
    };
    for (const auto &[label, text] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        checkHead(text, Progress::done);
        checkHead(text.substr(0, text.size() - 1), Progress::needMore);
        checkHead(text.substr(0, text.size() - 2), Progress::needMore);
    }
}

TEST_CASE("malformed heads") {
    using namespace std::string_literals;
    const std::pair<std::string, std::string> rows[] = {
        // clang-format off
        {"lines that end with LF (RFC 9112 2.2)", "GET / HTTP/1.1\nHost: x\n\n"},
        {"a line that ends with LF", "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"},
        {"an empty line that ends with LF", "GET / HTTP/1.1\r\nHost: x\r\n\n"},
        {"a lone CR in a value", withField("X: a\rb")},
        {"a lone CR at the end of a line", "GET / HTTP/1.1\rHost: x\r\n\r\n"},
        {"two CR before a LF", withField("X: a\r")},
        {"a CR in front of everything", "\r" + kPlain},
        {"a LF in front of everything", "\n" + kPlain},
        {"an empty line first", "\r\n" + kPlain},
        {"only an empty line", "\r\n\r\n"},
        {"NUL in a value", withField("X: a\0b"s)},
        {"NUL in a name", withField("X\0: b"s)},
        {"NUL in the target", requestLine("GET /\0 HTTP/1.1"s)},
        {"a control character in a value: escape", withField("X: \x1B[2J")},
        {"a control character in a value: delete", withField("X: a\x7F")},
        {"a control character in a value: backspace", withField("X: a\b")},
        {"a control character in a value: form feed", withField("X: a\f")},
        {"a folded header (RFC 9112 5.2), by a space", withField("X: a\r\n b")},
        {"a folded header, by a tab", withField("X: a\r\n\tb")},
        {"a folded header right behind the request line", "GET / HTTP/1.1\r\n Host: x\r\n\r\n"},
        {"a space before the colon (RFC 9112 5.1)", withField("X : y")},
        {"a tab before the colon", withField("X\t: y")},
        {"a space inside a name", withField("X Y: z")},
        {"an empty name", withField(": y")},
        {"no colon", withField("X")},
        {"a name that is not a token: brackets", withField("X(y): z")},
        {"a name that is not a token: a quote", withField("\"X\": z")},
        {"a name that is not a token: a slash", withField("X/Y: z")},
        {"a name that is not a token: an at sign", withField("X@Y: z")},
        {"a name that is not a token: not ASCII", withField("\xC3\xA4: z")},
        {"HTTP/0.9, without version", requestLine("GET /")},
        {"HTTP/2.0", requestLine("GET / HTTP/2.0")},
        {"HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\n"},
        {"HTTP/1.", requestLine("GET / HTTP/1.")},
        {"HTTP/1.10", requestLine("GET / HTTP/1.10")},
        {"HTTP/11", requestLine("GET / HTTP/11")},
        {"HTTP/1,1", requestLine("GET / HTTP/1,1")},
        {"HTTP/1.: (the character behind 9)", requestLine("GET / HTTP/1.:")},
        {"HTTP/01.1", requestLine("GET / HTTP/01.1")},
        {"the version is case-sensitive (RFC 9112 2.3)", requestLine("GET / http/1.1")},
        {"another protocol", requestLine("GET / ICAP/1.1")},
        {"something behind the version", requestLine("GET / HTTP/1.1 x")},
        {"a space behind the version", requestLine("GET / HTTP/1.1 ")},
        {"two spaces behind the method", requestLine("GET  / HTTP/1.1")},
        {"two spaces before the version", requestLine("GET /  HTTP/1.1")},
        {"a space in the target", requestLine("GET /a b HTTP/1.1")},
        {"a space in front of the method", requestLine(" GET / HTTP/1.1")},
        {"a tab instead of the first space", requestLine("GET\t/ HTTP/1.1")},
        {"a tab instead of the second space", requestLine("GET /\tHTTP/1.1")},
        {"a tab instead of each space", requestLine("GET\t/\tHTTP/1.1")},
        {"a tab in the target", requestLine("GET /\t HTTP/1.1")},
        {"no target", requestLine("GET HTTP/1.1")},
        {"an empty target", requestLine("GET  HTTP/1.1")},
        {"no method", requestLine("/ HTTP/1.1")},
        {"a method alone", requestLine("GET")},
        {"a method that is not a token", requestLine("G@T / HTTP/1.1")},
        {"only a space", requestLine(" ")},
        {"a header line instead of the request line", "Host: x\r\n\r\n"},
        {"a second request line", withField("GET / HTTP/1.1")},
        {"'#' in the target (RFC 6455 3)", requestLine("GET /a#b HTTP/1.1")},
        {"'#' in the query", requestLine("GET /a?b#c HTTP/1.1")},
        {"the target is not ASCII", requestLine("GET /\xC3\xA4 HTTP/1.1")},
        {"an absolute target without host (RFC 9110 4.2.1)",
         requestLine("GET http:///chat HTTP/1.1")},
        {"a TLS handshake", "\x16\x03\x01\x02\x01\x01\r\n\r\n"},
        // clang-format on
    };
    for (const auto &[label, text] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        checkHead(text, Progress::bad);
    }
}

TEST_CASE("bytes that no head can have are refused before the head is whole") {
    struct Row {
        std::string label;
        std::string text;
    };
    const Row rows[] = {
        {"a line feed without carriage return", "GET / HTTP/1.1\n"},
        {"a carriage return without line feed", "GET / HTTP/1.1\rH"},
        {"two carriage returns", "GET / HTTP/1.1\r\r"},
        {"a line feed first", "\n"},
        {"NUL", std::string("GET /\0", 6)},
        {"delete", "GET /\x7F"},
        {"unit separator, the last before the space", "GET /\x1F"},
        {"a TLS handshake", "\x16"},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        std::size_t at = 0;
        CHECK(parseGrowing(row.text + "tp: example.com\r\n\r\n", 1, at).answer == Progress::bad);
        CHECK(at == row.text.size());
    }
}

TEST_CASE("a value may have all bytes but control characters") {
    for (int byte = 0; byte < 256; ++byte) {
        CAPTURE(byte);
        const Exact head(withField(std::string("X: a") + static_cast<char>(byte) + "b"));
        RequestHead parsed;
        const bool control = (byte < 0x20 && byte != '\t') || byte == 0x7F;
        CHECK(parseHead(head.view(), 0, parsed).answer ==
              (control ? Progress::bad : Progress::done));
        if (control) continue;
        REQUIRE(parsed.fields.size() == 2);
        CHECK(parsed.fields[1].value == std::string{'a', static_cast<char>(byte), 'b'});
    }
}

TEST_CASE("targets, their paths and their queries") {
    struct Row {
        const char *target, *path, *query;
    };
    const Row rows[] = {
        {"/", "/", ""},
        {"/chat", "/chat", ""},
        {"/chat?", "/chat", ""},
        {"/chat?a=b", "/chat", "a=b"},
        {"/?a?b", "/", "a?b"},
        {"//evil.example", "//evil.example", ""},
        {"/%2F%00", "/%2F%00", ""},
        {"http://example.com", "/", ""},
        {"http://example.com/", "/", ""},
        {"http://example.com/chat?a=b", "/chat", "a=b"},
        {"http://example.com?a=b", "/", "a=b"},
        {"https://example.com:8443/chat", "/chat", ""},
        {"HTTP://EXAMPLE.COM/Chat", "/Chat", ""},
        {"http://example.com?/", "/", "/"},
    };
    for (const Row &row : rows) {
        CAPTURE(std::string(row.target));
        const Head head("GET " + std::string(row.target) + " HTTP/1.1\r\n\r\n");
        CHECK(head.parsed.path == row.path);
        CHECK(head.parsed.query == row.query);
    }
}

TEST_CASE("ASCII letters have two cases, and nothing else has") {
    constexpr std::string_view kUpper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    constexpr std::string_view kLower = "abcdefghijklmnopqrstuvwxyz";
    for (int byte = 0; byte < 128; ++byte) {
        CAPTURE(byte);
        const auto c = static_cast<char>(byte);
        const std::size_t letter = kUpper.find(c);
        CHECK(toLower(c) == (letter == kUpper.npos ? c : kLower[letter]));
    }
    CHECK(sameIgnoringCase(kUpper, kLower));
    CHECK_FALSE(sameIgnoringCase("@[", "`{"));
    CHECK_FALSE(sameIgnoringCase("\xC4", "\xE4"));
}

TEST_CASE("fields keep their order; names ignore case; values of one name are joined") {
    const Head head(
        "GET / HTTP/1.1\r\nB:  2 \r\na: 1\r\nA:\t\r\nc: x , y\r\na: 3\r\nHost: h\r\n\r\n");
    REQUIRE(head.parsed.fields.size() == 6);
    CHECK(head.parsed.fields[0].name == "B");
    CHECK(head.parsed.fields[0].value == "2");
    CHECK(head.parsed.fields[3].value == "x , y");
    CHECK(countFields(head.parsed, "A") == 3);
    CHECK(countFields(head.parsed, "hOST") == 1);
    CHECK(countFields(head.parsed, "none") == 0);
    CHECK(countFields(head.parsed, "Hos") == 0);
    CHECK(countFields(head.parsed, "") == 0);
    CHECK(fieldValue(head.parsed, "A") == "1, , 3");
    CHECK(fieldValue(head.parsed, "none").empty());
}

// --- rules for every request ---

namespace {

std::vector<Network> networks(const std::vector<std::string> &texts) {
    std::vector<Network> all;
    for (const std::string &text : texts) {
        const std::optional<Network> network = parseNetwork(text);
        REQUIRE(network);
        all.push_back(*network);
    }
    return all;
}

// The client of a request, in words: an address or "unix".
std::string clientOf(const std::string &peer, const std::vector<Network> &trusted,
                     const RequestHead &head) {
    return encodeAddress(clientAddress(parseAddress(peer), trusted, head));
}

// The client that these header lines name, if "10.0.0.0/8", "::1" and Unix sockets are trusted.
std::string clientOf(const std::string &peer, const std::string &lines) {
    const std::vector<Network> trusted = networks({"10.0.0.0/8", "::1", "unix"});
    return clientOf(peer, trusted, Head(withField(lines)).parsed);
}

}  // namespace

TEST_CASE("the client that a trusted proxy names in X-Forwarded-For") {
    struct Row {
        std::string label;
        std::string peer;
        std::string value;
        std::string client;
    };
    const Row rows[] = {
        // clang-format off
        {"a peer that is not trusted", "192.0.2.1", "192.0.2.9", "192.0.2.1"},
        {"a peer whose address looks like a trusted one", "11.0.0.1", "192.0.2.9", "11.0.0.1"},
        {"a proxy", "10.0.0.1", "192.0.2.9", "192.0.2.9"},
        {"a proxy with IPv6", "::1", "192.0.2.9", "192.0.2.9"},
        {"a proxy at a Unix socket", "unix", "192.0.2.9", "192.0.2.9"},
        {"a client with IPv6", "10.0.0.1", "2001:db8::9", "2001:db8::9"},
        {"a client with IPv6 in another spelling", "10.0.0.1", "2001:DB8:0:0::9", "2001:db8::9"},
        {"IPv4 mapped into IPv6", "10.0.0.1", "::ffff:192.0.2.9", "192.0.2.9"},
        {"what the client itself claims stands to the left",
         "10.0.0.1", "1.1.1.1, 192.0.2.9", "192.0.2.9"},
        {"a client that claims to come through a proxy",
         "10.0.0.1", "10.0.0.3, 192.0.2.9", "192.0.2.9"},
        {"two proxies", "10.0.0.1", "1.1.1.1, 192.0.2.9, 10.9.9.9", "192.0.2.9"},
        {"three proxies", "::1", "192.0.2.9,10.9.9.9 ,\t::1", "192.0.2.9"},
        {"a client whose own address is trusted", "10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"},
        {"an empty value", "10.0.0.1", "", "10.0.0.1"},
        {"only commas", "10.0.0.1", " , ,,", "10.0.0.1"},
        {"an empty element", "10.0.0.1", "192.0.2.9,", "192.0.2.9"},
        {"not an address", "10.0.0.1", "unknown", "10.0.0.1"},
        {"something else than an address behind a proxy",
         "10.0.0.1", "192.0.2.9, evil, 10.0.0.2", "10.0.0.2"},
        {"half an address", "10.0.0.1", "192.0.2", "10.0.0.1"},
        {"a number that is too large", "10.0.0.1", "192.0.2.256", "10.0.0.1"},
        {"a number", "10.0.0.1", "3232235521", "10.0.0.1"},
        {"a name", "10.0.0.1", "localhost", "10.0.0.1"},
        {"a script", "10.0.0.1", "<script>", "10.0.0.1"},
        {"the name that Unix sockets have", "10.0.0.1", "unix", "10.0.0.1"},
        {"the unspecified address, which is not a Unix socket", "10.0.0.1", "192.0.2.9, ::", "::"},
        {"a zone", "10.0.0.1", "fe80::1%eth0", "10.0.0.1"},
        {"two addresses in one element", "10.0.0.1", "192.0.2.9 192.0.2.8", "10.0.0.1"},
        {"an address and a port", "10.0.0.1", "192.0.2.9:4711", "192.0.2.9"},
        {"an IPv6 address and a port", "10.0.0.1", "[2001:db8::9]:4711", "2001:db8::9"},
        {"an IPv6 address in brackets", "10.0.0.1", "[2001:db8::9]", "2001:db8::9"},
        {"a bracket that is not closed", "10.0.0.1", "[2001:db8::9", "10.0.0.1"},
        {"something behind the bracket", "10.0.0.1", "[2001:db8::9]evil", "10.0.0.1"},
        {"something behind the bracket, and a port",
         "10.0.0.1", "[2001:db8::9]evil:80", "10.0.0.1"},
        {"a port that is not a number", "10.0.0.1", "192.0.2.9:evil", "10.0.0.1"},
        {"a port that is not a number, behind brackets",
         "10.0.0.1", "[2001:db8::9]:evil", "10.0.0.1"},
        {"a port that is too large", "10.0.0.1", "192.0.2.9:65536", "10.0.0.1"},
        {"an IPv4 address in brackets", "10.0.0.1", "[192.0.2.9]:80", "10.0.0.1"},
        {"two ports", "10.0.0.1", "192.0.2.9:80:80", "10.0.0.1"},
        {"only a bracket", "10.0.0.1", "[", "10.0.0.1"},
        {"only a port", "10.0.0.1", ":80", "10.0.0.1"},
        {"an element of Forwarded (RFC 7239)", "10.0.0.1", "for=192.0.2.9", "10.0.0.1"},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(clientOf(row.peer, "X-Forwarded-For: " + row.value) == row.client);
        CHECK(clientOf(row.peer, "x-forwarded-for: " + row.value) == row.client);
        const Head head(withField("X-Forwarded-For: " + row.value));
        CHECK(clientOf(row.peer, {}, head.parsed) == row.peer);  // no proxy is trusted
    }
    CHECK(clientOf("10.0.0.1", "X: y") == "10.0.0.1");
    CHECK(clientOf("10.0.0.1", "Forwarded: for=192.0.2.9") == "10.0.0.1");
    CHECK(clientOf("10.0.0.1", "X-Real-IP: 192.0.2.9") == "10.0.0.1");
    CHECK(clientOf("10.0.0.1", "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-For: 192.0.2.8") ==
          "192.0.2.8");
    CHECK(clientOf("10.0.0.1", "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-For: 10.0.0.8") ==
          "192.0.2.9");
}

TEST_CASE("networks, and the addresses in them") {
    struct Row {
        std::string network;
        std::string in;
        std::vector<std::string> out;  // peers whose header is not believed
    };
    const Row rows[] = {
        {"192.0.2.1", "192.0.2.1", {"192.0.2.0"}},
        {"192.0.2.0/24", "192.0.2.255", {"192.0.3.0"}},
        {"192.0.2.128/25", "192.0.2.128", {"192.0.2.127"}},
        {"192.0.2.129/31", "192.0.2.128", {"192.0.2.130"}},
        {"0.0.0.0/0", "255.255.255.255", {"::1", "::2.0.0.1", "unix"}},
        {"0.0.0.0", "0.0.0.0", {"0.0.0.1", "::", "unix"}},
        {"fd00::/8", "fdff::1", {"fc00::1"}},
        {"fd00::/7", "fcff::1", {"10.0.0.1"}},
        {"2001:db8::1/128", "2001:db8::1", {"2001:db8::2"}},
        {"::/0", "2001:db8::1", {"192.0.2.1", "::ffff:192.0.2.1", "unix"}},
        {"::1/64", "::2", {"0:0:0:1::1", "192.0.2.1", "unix"}},
        {"::/80", "::1:0:0", {"192.0.2.1", "unix"}},
        {"::1", "::1", {"::", "0.0.0.1", "unix"}},
        {"::", "::", {"::1", "0.0.0.0", "unix"}},
        {"::ffff:10.0.0.0/104", "10.1.1.1", {"11.1.1.1", "::10.1.1.1"}},
        {"::ffff:10.0.0.1", "10.0.0.1", {"10.0.0.2"}},
        {"::ffff:0:0/96", "192.0.2.1", {"::1", "unix"}},
        {"::ff00:0:0/88", "::ff01:192.0.2.1", {"192.0.2.1", "unix"}},
        {"unix", "unix", {"::", "::1", "0.0.0.0"}},
    };
    for (const Row &row : rows) {
        INFO(row.network);
        const Head head(withField("X-Forwarded-For: 198.51.100.7"));
        const auto isBelieved = [&](const std::string &peer) {
            const std::vector<Network> trusted = networks({row.network});
            const std::string client = clientOf(peer, trusted, head.parsed);
            CHECK((client == encodeAddress(parseAddress(peer)) || client == "198.51.100.7"));
            return client == "198.51.100.7";
        };
        CHECK(isBelieved(row.in));
        for (const std::string &peer : row.out) {
            CAPTURE(peer);
            CHECK_FALSE(isBelieved(peer));
        }
    }
    for (const char *text : {"", "/", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/1e1", "::/129", "a",
                             "Unix", "::ffff:10.0.0.0/95"})
        CHECK_FALSE(parseNetwork(text));
}

TEST_CASE("requests, and the status that refuses them") {
    struct Row {
        std::string label;
        std::string text;
        int status;
    };
    const Row rows[] = {
        // clang-format off
        {"a plain GET", kPlain, 0},
        {"HEAD", requestLine("HEAD / HTTP/1.1"), 0},
        {"HEAD in lower case is another method", requestLine("head / HTTP/1.1"), 405},
        {"POST", requestLine("POST / HTTP/1.1"), 405},
        {"OPTIONS, as CORS asks first", requestLine("OPTIONS / HTTP/1.1"), 405},
        {"methods are case-sensitive (RFC 9110 9.1)", requestLine("get / HTTP/1.1"), 405},
        {"POST with a body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", 405},
        {"OPTIONS of the server itself", requestLine("OPTIONS * HTTP/1.1"), 405},
        {"CONNECT to another server", requestLine("CONNECT example.com:443 HTTP/1.1"), 405},
        {"'*' is for OPTIONS (RFC 9112 3.2.4)", requestLine("GET * HTTP/1.1"), 400},
        {"an authority is for CONNECT (3.2.3)", requestLine("GET example.com:80 HTTP/1.1"), 400},
        {"a target that does not begin with '/'", requestLine("GET chat HTTP/1.1"), 400},
        {"a query without a path", requestLine("GET ?a HTTP/1.1"), 400},
        {"an absolute target", requestLine("GET http://example.com/chat HTTP/1.1"), 0},
        {"an absolute target of another scheme", requestLine("GET ftp://x.com/ HTTP/1.1"), 400},
        {"an absolute ws target, as clients of plain proxies send it",
         requestLine("GET ws://x.com/ HTTP/1.1"), 0},
        {"an absolute wss target", requestLine("GET WSS://x.com:443/chat?a HTTP/1.1"), 0},
        {"an absolute target of a longer scheme", requestLine("GET wsss://x.com/ HTTP/1.1"), 400},
        {"no Host (RFC 9112 3.2)", "GET / HTTP/1.1\r\nX: y\r\n\r\n", 400},
        {"two Hosts", withField("Host: example.com"), 400},
        {"no Host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 0},
        {"no Host in HTTP/1.0, HEAD", "HEAD / HTTP/1.0\r\n\r\n", 0},
        {"a Host in HTTP/1.0", "GET / HTTP/1.0\r\nHost: x\r\n\r\n", 0},
        {"two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400},
        {"a bad Host in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400},
        {"another method in HTTP/1.0", "PUT / HTTP/1.0\r\n\r\n", 405},
        {"no Host in a later 1.x", "GET / HTTP/1.9\r\n\r\n", 400},
        {"two Hosts, one in capitals", withField("HOST: other.example"), 400},
        {"a body", withField("Content-Length: 3"), 400},
        {"a body of length 0", withField("Content-Length: 0"), 0},
        {"an empty length", withField("Content-Length:"), 400},
        {"a length of +0", withField("Content-Length: +0"), 400},
        {"two lengths", withField("Content-Length: 0\r\nContent-Length: 5"), 400},
        {"two lengths in one header", withField("Content-Length: 0, 5"), 400},
        {"a chunked body", withField("Transfer-Encoding: chunked"), 400},
        {"any transfer coding", withField("transfer-encoding: identity"), 400},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const WSResponse response = checkRequest(Head(row.text).parsed);
        CHECK(response.status == row.status);
        CHECK(valueOf(response, "Allow") == (row.status == 405 ? "GET, HEAD;" : ""));
        CHECK(response.body.empty() == (row.status == 0));
        if (row.status != 0) CHECK(isSendable(response));
    }
}

TEST_CASE("values of Host") {
    const std::pair<std::string, bool> rows[] = {
        {"example.com", true},
        {"EXAMPLE.COM.", true},
        {"localhost:12345", true},
        {"127.0.0.1", true},
        {"127.0.0.1:80", true},
        {"[::1]", true},
        {"[::1]:12345", true},
        {"[::ffff:127.0.0.1]", true},
        {"[2001:DB8::A]", true},
        {"xn--bcher-kva.example", true},
        {"a_b.example", true},
        {"%41.example", true},
        {"[1:2:3:4:5:6:7:8]", true},
        {"example.com:65535", true},
        {"example.com:", true},  // port = *DIGIT (RFC 3986 3.2.3)
        {"", false},
        {":80", false},
        {"example.com:port", false},
        {"example.com:80:80", false},
        {"example.com:-1", false},
        {"example.com:123456", false},
        {"example.com/", false},
        {"http://example.com", false},
        {"user@example.com", false},
        {"example.com, other.example", false},
        {"example.com,other.example", false},
        {"example.com other.example", false},
        {"exam\tple", false},
        {"ex\xC3\xA4mple", false},
        {"example.com?", false},
        {"example.com#", false},
        {"exam\\ple", false},
        {"<b>", false},
        {"[", false},
        {"]", false},
        {"[]", false},
        {"[::1", false},
        {"::1", false},
        {"[::1]x", false},
        {"[::1]80", false},
        {"[::g]", false},
        {"[1:2:3]", false},
        {"[127.0.0.1]", false},
        {"[:::]", false},
        {"example.com:65536", false},
        {"example.com:000080", false},
        {"example.com:99999", false},
        {"[::1%25lo]", false},
        {"[[::1]]", false},
        {"x[::1]", false},
    };
    for (const auto &[value, fine] : rows) {
        const auto &shown = value;  // clang captures no structured binding
        CAPTURE(shown);
        CHECK(checkedRequest("GET / HTTP/1.1\r\nHost: " + value + "\r\n\r\n") == (fine ? 0 : 400));
    }
}

// --- what a handshake needs ---

TEST_CASE("requests that ask for a WebSocket, and others") {
    struct Row {
        std::string label;
        std::string line;
        bool asks;
    };
    const Row rows[] = {
        {"neither Upgrade nor a key", "X: y", false},
        {"Upgrade alone", "Upgrade: websocket", true},
        {"Upgrade in capitals, in a list", "upgrade: h2c, WebSocket", true},
        {"an upgrade to something else", "Upgrade: h2c", false},
        {"a key alone", "Sec-WebSocket-Key: x", true},
        {"Connection alone", "Connection: Upgrade", false},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(asksForWebSocket(Head(withField(row.line)).parsed) == row.asks);
    }
}

TEST_CASE("handshakes, and the status that refuses them") {
    const std::string upgrade = "Upgrade: websocket\r\n", connection = "Connection: Upgrade\r\n";
    const std::string key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const std::string version = "Sec-WebSocket-Version: 13\r\n";
    struct Row {
        std::string label;
        std::string from, to;  // what is changed in the handshake of RFC 6455 1.2
        int status;
    };
    const Row rows[] = {
        // clang-format off
        {"the handshake as it is", upgrade, upgrade, 0},
        {"no Upgrade", upgrade, "", 426},
        {"Upgrade in capitals", upgrade, "UPGRADE: WEBSOCKET\r\n", 0},
        {"Upgrade in a list", upgrade, "Upgrade: h2c,, websocket ,foo\r\n", 0},
        {"Upgrade in two headers", upgrade, "Upgrade: h2c\r\nUpgrade: websocket\r\n", 0},
        {"an upgrade to a longer name", upgrade, "Upgrade: websockets\r\n", 426},
        {"an upgrade to a name that ends in the same way",
         upgrade, "Upgrade: x-websocket\r\n", 426},
        {"an upgrade to two words", upgrade, "Upgrade: web socket\r\n", 426},
        {"an upgrade with a version", upgrade, "Upgrade: websocket/13\r\n", 426},
        {"an empty Upgrade", upgrade, "Upgrade:\r\n", 426},
        {"no Connection", connection, "", 426},
        {"Connection in lower case", connection, "connection: upgrade\r\n", 0},
        {"Connection as Firefox sends it", connection, "Connection: keep-alive, Upgrade\r\n", 0},
        {"Connection in two headers",
         connection, "Connection: keep-alive\r\nConnection: Upgrade\r\n", 0},
        {"Connection without spaces, with a tab",
         connection, "Connection: keep-alive,\tUPGRADE\r\n", 0},
        {"Connection without Upgrade", connection, "Connection: keep-alive\r\n", 426},
        {"Connection with a longer name", connection, "Connection: Upgrades\r\n", 426},
        {"no key", key, "", 400},
        {"an empty key", key, "Sec-WebSocket-Key:\r\n", 400},
        {"two keys", key, key + key, 400},
        {"two keys, one of them empty", key, key + "Sec-WebSocket-Key:\r\n", 400},
        {"two keys in one header",
         key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==\r\n", 400},
        {"a key of 15 bytes", key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n", 400},
        {"a key of 17 bytes", key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE=\r\n", 400},
        {"a key of 18 bytes in as many digits",
         key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSEh\r\n", 400},
        {"a key without padding", key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n", 400},
        {"a key that is not base64", key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!Q==\r\n", 400},
        {"a key whose last digit is not base64",
         key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!==\r\n", 400},
        {"a key with both marks of base64", key, "Sec-WebSocket-Key: ++++////dGVzdCtrZXkvMQ==\r\n", 0},
        {"a key in the alphabet for URLs",
         key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j_Q==\r\n", 400},
        {"a key with a space inside", key, "Sec-WebSocket-Key: dGhlIHNhbXBs ZSBub25jZQ==\r\n", 400},
        {"a key in quotes", key, "Sec-WebSocket-Key: \"dGhlIHNhbXBsZSBub25jZQ==\"\r\n", 400},
        {"a key with spaces around it",
         key, "Sec-WebSocket-Key: \t dGhlIHNhbXBsZSBub25jZQ== \t\r\n", 0},
        {"a key of random digits, with bits left over",
         key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZz==\r\n", 0},
        {"a subprotocol that is not a token", version,
         "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, a b\r\n", 400},
        {"subprotocols, and empty elements of their list (RFC 9110 5.6.1.2)", version,
         "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ,chat,, soap\r\n", 0},
        {"no version", version, "", 426},
        {"an empty version", version, "Sec-WebSocket-Version:\r\n", 426},
        {"version 8, of a draft", version, "Sec-WebSocket-Version: 8\r\n", 426},
        {"version 14", version, "Sec-WebSocket-Version: 14\r\n", 426},
        {"version 130", version, "Sec-WebSocket-Version: 130\r\n", 426},
        {"version 013", version, "Sec-WebSocket-Version: 013\r\n", 426},
        {"version 13.0", version, "Sec-WebSocket-Version: 13.0\r\n", 426},
        {"a list of versions, which only servers send",
         version, "Sec-WebSocket-Version: 13, 8\r\n", 426},
        {"two versions", version, version + "Sec-WebSocket-Version: 8\r\n", 426},
        {"the same version twice", version, version + version, 426},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const Head head(replaced(kHandshake, row.from, row.to));
        const WSResponse response = checkUpgrade(head.parsed);
        CHECK(response.status == row.status);
        CHECK(valueOf(response, "Upgrade") == (row.status == 426 ? "websocket;" : ""));
        const bool aboutVersion = row.status == 426 && row.from == version;
        CHECK(valueOf(response, "Sec-WebSocket-Version") == (aboutVersion ? "13;" : ""));
        if (row.status != 0) CHECK(isSendable(response));
        checkHead(replaced(kPlain, "\r\n\r\n", "\r\n" + row.to + "\r\n"), Progress::done);
    }
    CHECK(checkedUpgrade(kPlain) == 426);
}

TEST_CASE("the accept key of RFC 6455 1.3") {
    CHECK(acceptKey(Exact("dGhlIHNhbXBsZSBub25jZQ==").view()) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

TEST_CASE("the subprotocol is the first of the server's that the client offers") {
    struct Row {
        std::string label;
        std::vector<std::string> ours;
        std::string offered;
        std::string chosen;
    };
    const Row rows[] = {
        // clang-format off
        {"the server has none", {}, "chat", ""},
        {"the client offers none", {"chat"}, "", ""},
        {"the client offers an empty list", {"chat"}, ",", ""},
        {"nothing in common", {"chat"}, "echo", ""},
        {"one in common", {"chat"}, "echo, chat", "chat"},
        {"two in common: the server's order decides", {"b", "a"}, "a, b", "b"},
        {"names are case-sensitive", {"chat"}, "Chat", ""},
        {"a name that begins in the same way is another one", {"chat"}, "chats, cha", ""},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(chooseProtocol(row.ours, Exact(row.offered).view()) == row.chosen);
    }
}

TEST_CASE("lists and tokens") {
    const std::pair<std::string, std::string> rows[] = {
        {"", ""},           {",", ""},           {" , ,\t,", ""},
        {"a", "a|"},        {"a,b", "a|b|"},     {" a ,\tb\t", "a|b|"},
        {",a,,b,", "a|b|"}, {"a b,c", "a b|c|"}, {"a;b", "a;b|"},
    };
    for (const auto &[text, elements] : rows) {
        const auto &shown = text;  // clang captures no structured binding
        CAPTURE(shown);
        CHECK(list(text, ',') == elements);
    }
    CHECK(list("a=1; b=2;", ';') == "a=1|b=2|");
    CHECK(list("a=\"1;2\"", ';') == "a=\"1|2\"|");
    constexpr std::string_view kTchars =
        "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for (int byte = 0; byte < 256; ++byte) {
        CAPTURE(byte);
        const std::string name{'a', static_cast<char>(byte)};
        CHECK(isToken(Exact(name).view()) == (kTchars.find(name[1]) != kTchars.npos));
    }
    CHECK_FALSE(isToken(""));
    CHECK(sameIgnoringCase("Upgrade", "uPGRADE"));
    CHECK_FALSE(sameIgnoringCase("Upgrade", "Upgrad"));
    CHECK_FALSE(sameIgnoringCase("[", "{"));  // they differ as 'A' and 'a' do
    CHECK_FALSE(sameIgnoringCase("\xC4", "\xE4"));
}

// --- origins ---

TEST_CASE("origins, in one spelling") {
    const std::pair<std::string, std::string> rows[] = {
        {"http://example.com", "http://example.com:80"},
        {"https://example.com", "https://example.com:443"},
        {"ws://example.com", "ws://example.com:80"},
        {"wss://example.com", "wss://example.com:443"},
        {"http://example.com:80", "http://example.com:80"},
        {"https://example.com:443", "https://example.com:443"},
        {"http://example.com:443", "http://example.com:443"},
        {"HTTPS://Example.COM", "https://example.com:443"},
        {"http://localhost:8080", "http://localhost:8080"},
        {"http://127.0.0.1:1", "http://127.0.0.1:1"},
        {"http://example.com:65535", "http://example.com:65535"},
        {"http://[::1]", "http://[::1]:80"},
        {"http://[2001:DB8::A]:8080", "http://[2001:db8::a]:8080"},
        {"http://xn--bcher-kva.example", "http://xn--bcher-kva.example:80"},
        {"moz-extension://ab-cd", "moz-extension://ab-cd:"},
        {"app://localhost", "app://localhost:"},
    };
    for (const auto &[origin, normal] : rows) {
        const auto &shown = origin;  // clang captures no structured binding
        CAPTURE(shown);
        CHECK(normalOrigin(Exact(origin).view()) == normal);
    }
}

TEST_CASE("texts that are not an origin") {
    const std::pair<std::string, std::string> rows[] = {
        {"a wildcard", "https://*.example.com"},
        {"a mark that no host has", "https://a!b"},
        {"a local file", "file:///home/index.html"},
        {"the beginning of a domain missing", "https://.example.com"},
        {"an empty label", "https://example..com"},
        {"an empty text", ""},
        {"a host alone", "example.com"},
        {"a scheme alone", "https://"},
        {"a scheme alone, without slashes", "https:"},
        {"no scheme", "://example.com"},
        {"a scheme that begins with a digit", "1http://example.com"},
        {"a scheme that begins with a brace", "{http://example.com"},
        {"a scheme with a space", "ht tp://example.com"},
        {"one slash", "https:/example.com"},
        {"three slashes", "https:///example.com"},
        {"backslashes", "https:\\\\example.com"},
        {"a slash at the end", "https://example.com/"},
        {"a path", "https://example.com/chat"},
        {"a query", "https://example.com?x"},
        {"a fragment", "https://example.com#x"},
        {"user-info", "https://example.com@evil.example"},
        {"user-info with a password", "https://user:80@evil.example"},
        {"two origins", "https://example.com https://evil.example"},
        {"two origins, joined as those of two headers",
         "https://example.com, https://evil.example"},
        {"a list", "https://example.com,https://evil.example"},
        {"a space in front", " https://example.com"},
        {"a space at the end", "https://example.com "},
        {"a tab at the end", "https://example.com\t"},
        {"a port that is empty", "https://example.com:"},
        {"a port that is not a number", "https://example.com:https"},
        {"a port with a sign", "https://example.com:+443"},
        {"port 0", "https://example.com:0"},
        {"a port that begins with 0", "https://example.com:0443"},
        {"port 65536", "https://example.com:65536"},
        {"a port of ten digits", "https://example.com:4294967739"},
        {"two ports", "https://example.com:443:443"},
        {"an IPv6 address without brackets", "http://::1"},
        {"an IPv6 address that is not closed", "http://[::1"},
        {"an IPv6 address of three groups", "http://[1:2:3]"},
        {"an IPv6 address with a zone", "http://[fe80::1%25eth0]"},
        {"a host that is not ASCII", "https://ex\xC3\xA4mple.com"},
        {"a NUL", std::string("https://example.com\0.evil.example", 33)},
    };
    for (const auto &[label, origin] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        CHECK_FALSE(normalOrigin(Exact(origin).view()).has_value());
    }
}

TEST_CASE("origins that imitate https://example.com") {
    const std::pair<std::string, bool> rows[] = {
        {"https://example.com", true},
        {"https://example.com:443", true},
        {"HTTPS://EXAMPLE.COM", true},
        {"http://example.com", false},
        {"wss://example.com", false},
        {"http://example.com:443", false},
        {"https://example.com:80", false},
        {"https://example.com:4433", false},
        {"https://example.com.evil.com", false},
        {"https://evilexample.com", false},
        {"https://www.example.com", false},
        {"https://example.com.", false},
        {"https://example.co", false},
        {"https://example.comm", false},
        {"https://exarnple.com", false},
        {"https://xn--exmple-cua.com", false},
        {"https://example%2Ecom", false},
        {"https://[::1]", false},
    };
    const auto ours = normalOrigin("https://example.com");
    REQUIRE(ours.has_value());
    for (const auto &[origin, same] : rows) {
        const auto &shown = origin;  // clang captures no structured binding
        CAPTURE(shown);
        CHECK((normalOrigin(Exact(origin).view()) == ours) == same);
    }
}

TEST_CASE("percent-encoding, as forms use it") {
    const std::pair<std::string, std::string> rows[] = {
        {"", ""},
        {"a+b", "a b"},
        {"%41%61", "Aa"},
        {"%2B", "+"},
        {"%e2%82%AC", "\u20AC"},
        {"%", "%"},
        {"%4", "%4"},
        {"a%", "a%"},
        {"%%41", "%A"},
        {"%4g", "%4g"},
        {"%g4", "%g4"},
        {"%25%34%31", "%41"},
        {"%-1", "%-1"},
        {"% 1", "% 1"},
        {"%ff%80", "\xFF\x80"},
        {"%0x", "%0x"},
        {"%00", std::string(1, '\0')},
    };
    for (const auto &[text, decoded] : rows) {
        const auto &shown = text;  // clang captures no structured binding
        CAPTURE(shown);
        CHECK(decodePercent(Exact(text).view()) == decoded);
    }
}

// --- responses ---

TEST_CASE("responses that may be sent, and others") {
    struct Row {
        std::string label;
        int status;
        std::string name, value;
        bool fine;
    };
    const Row rows[] = {
        {"a page", 200, "Content-Type", "text/html", true},
        {"the last status", 599, "X", "y", true},
        {"a status that has no name", 299, "X", "y", true},
        {"status 0", 0, "X", "y", false},
        {"a status that announces another one", 199, "X", "y", false},
        {"a status above the last", 600, "X", "y", false},
        {"a negative status", -200, "X", "y", false},
        {"an empty value", 200, "X", "", true},
        {"a tab and obs-text in a value", 200, "X", "a\tb\xFC", true},
        {"a line break in a value", 200, "X", "a\r\nSet-Cookie: b", false},
        {"a lone CR in a value", 200, "X", "a\r", false},
        {"a lone LF in a value", 200, "X", "\na", false},
        {"a NUL in a value", 200, "X", std::string("a\0b", 3), false},
        {"the last control character", 200, "X", "\x1F", false},
        {"delete", 200, "X", "\x7F", false},
        {"an empty name", 200, "", "y", false},
        {"a name with a colon", 200, "X:", "y", false},
        {"a name with a space", 200, "X Y", "z", false},
        {"a name with a line break", 200, "X\r\nY", "z", false},
        {"a name that is not ASCII", 200, "\xC3\xA4", "y", false},
        {"Content-Length, which the server writes", 200, "content-length", "1", false},
        {"Date, which the server writes", 200, "Date", "now", false},
        {"Connection, which the server writes", 200, "CONNECTION", "keep-alive", false},
        {"Transfer-Encoding, which the server never uses", 200, "Transfer-Encoding", "chunked",
         false},
        {"a name that begins like one of the server's", 200, "Connection-X", "y", true},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        WSResponse response;
        response.status = row.status;
        response.headers = {{"Fine", "fine"}, {row.name, row.value}};
        CHECK(isSendable(response) == row.fine);
    }
}

TEST_CASE("responses on the wire") {
    const std::time_t now = 784111777;  // RFC 9110 5.6.7
    const std::string date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    struct Row {
        std::string label;
        WSResponse response;
        bool withBody;
        std::string wire;
    };
    const Row rows[] = {
        {"a page",
         {200, {{"Content-Type", "text/html"}, {"X", ""}}, "<p>"},
         true,
         "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX: \r\nContent-Length: 3\r\n" + date +
             "Connection: close\r\n\r\n<p>"},
        {"the head alone, with the length of the body (RFC 9110 9.3.2)",
         {405, {}, "<p>"},
         false,
         "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 3\r\n" + date +
             "Connection: close\r\n\r\n"},
        {"an empty body",
         {404, {}, ""},
         true,
         "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n" + date + "Connection: close\r\n\r\n"},
        {"204 has neither body nor length (RFC 9110 8.6)",
         {204, {}, "body"},
         true,
         "HTTP/1.1 204 No Content\r\n" + date + "Connection: close\r\n\r\n"},
        {"304 has no body",
         {304, {{"ETag", "\"1\""}}, "body"},
         true,
         "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n" + date + "Connection: close\r\n\r\n"},
        {"an Upgrade header is named in Connection (RFC 9110 7.8)",
         {426, {{"upgrade", "websocket"}}, ""},
         true,
         "HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\nContent-Length: 0\r\n" + date +
             "Connection: close, Upgrade\r\n\r\n"},
        {"a status without a name: an empty phrase behind the space (RFC 9112 4)",
         {299, {}, ""},
         true,
         "HTTP/1.1 299 \r\nContent-Length: 0\r\n" + date + "Connection: close\r\n\r\n"},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(encodeResponse(row.response, now, row.withBody) == row.wire);
    }
}

TEST_CASE("the server's own answers") {
    const WSResponse plain = plainResponse(503, "No room.");
    CHECK(plain.status == 503);
    CHECK(plain.body == "No room.\n");
    CHECK(valueOf(plain, "Content-Type") == "text/plain; charset=utf-8;");
    CHECK(plainResponse(403, "").body.empty());
    CHECK(upgradeRequired().status == 426);
    CHECK(valueOf(upgradeRequired(), "Upgrade") == "websocket;");
    for (const int status : {400, 403, 405, 408, 426, 431, 500, 503}) {
        CAPTURE(status);
        CHECK(wordsFor(status).size() > 1);
    }
}

namespace {

std::string dateOf(std::time_t time) {
    const std::string response = encodeResponse({200, {}, ""}, time, true);
    return response.substr(response.find("Date: ") + 6, 29);
}

}  // namespace

TEST_CASE("dates (RFC 9110 5.6.7), as `date -u` writes them") {
    const std::pair<std::int64_t, std::string> rows[] = {
        {0, "Thu, 01 Jan 1970 00:00:00 GMT"},
        {784111777, "Sun, 06 Nov 1994 08:49:37 GMT"},
        {951868799, "Tue, 29 Feb 2000 23:59:59 GMT"},
        {1709543287, "Mon, 04 Mar 2024 09:08:07 GMT"},
        {1743465600, "Tue, 01 Apr 2025 00:00:00 GMT"},
        {1746144000, "Fri, 02 May 2025 00:00:00 GMT"},
        {1749254400, "Sat, 07 Jun 2025 00:00:00 GMT"},
        {1752019200, "Wed, 09 Jul 2025 00:00:00 GMT"},
        {1754784000, "Sun, 10 Aug 2025 00:00:00 GMT"},
        {1757548800, "Thu, 11 Sep 2025 00:00:00 GMT"},
        {1760659200, "Fri, 17 Oct 2025 00:00:00 GMT"},
        {1767182401, "Wed, 31 Dec 2025 12:00:01 GMT"},
        {2147483648, "Tue, 19 Jan 2038 03:14:08 GMT"},
    };
    for (const auto &[seconds, date] : rows) {
        const auto time = static_cast<std::time_t>(seconds);
        if (time == seconds) CHECK(dateOf(time) == date);  // 32 bits end in January 2038
    }
}

TEST_CASE("dates are English, whatever the program's global locale is") {
    struct Other : std::time_put<char> {
        iter_type do_put(iter_type out, std::ios_base &, char, const std::tm *, char,
                         char) const override {
            return *out = '?', out;
        }
    };
    const std::locale before = std::locale::global(std::locale(std::locale(), new Other));
    const std::string date = dateOf(0);
    std::locale::global(before);
    CHECK(date == "Thu, 01 Jan 1970 00:00:00 GMT");
}

TEST_CASE("an address does not end at a NUL (found by fuzzing: ipv6-with-nul)") {
    using namespace std::string_literals;
    CHECK(parseAddress("10.0.0.1"));
    CHECK_FALSE(parseAddress("10.0.0.1\0"s));
    CHECK_FALSE(parseAddress("2001:db8::1\0x"s));
    CHECK(normalOrigin("https://[2001:db8::1]:443"));
    CHECK_FALSE(normalOrigin("https://[2001:db8::1\0x]:443"s));
}
