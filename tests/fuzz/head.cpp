// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Fuzzes the head of an HTTP request and all that is derived from it. Whole and in pieces, a
// head must get the same answer; an accepted head must parse as a plain reading of RFC 9112
// says; and nothing that hooks see of it may contain CR, LF or NUL.
//
// Input: the bytes of a request.

#include "fuzz.h"

#include <strings.h>

namespace {

struct Parsed {
    Progress progress;
    RequestHead head;
};

// Parses as if `first` bytes came first, then `step` bytes at a time.
Parsed parseInPieces(std::string_view bytes, std::size_t first, std::size_t step) {
    Parsed parsed;
    std::size_t seen = 0;
    for (std::size_t end = first;; end += step) {
        const std::string_view piece = bytes.substr(0, end);
        parsed.head = {};
        parsed.progress = parseHead(piece, seen, parsed.head);
        if (parsed.progress.answer != Progress::needMore || end >= bytes.size()) return parsed;
        seen = piece.size();
    }
}

// The same text at the same address.
bool same(std::string_view a, std::string_view b) {
    return a == b && (a.empty() || a.data() == b.data());
}

void checkSame(const Parsed &a, const Parsed &b) {
    check(a.progress.answer == b.progress.answer && a.progress.used == b.progress.used &&
              a.progress.code == b.progress.code &&
              std::string_view(a.progress.reason) == b.progress.reason,
          "the answer is the same, however the head is cut");
    if (a.progress.answer != Progress::done) return;
    check(same(a.head.method, b.head.method) && same(a.head.query, b.head.query) &&
              a.head.path == b.head.path && a.head.fields.size() == b.head.fields.size(),
          "the request line is the same, however it is cut");
    for (std::size_t i = 0; i < a.head.fields.size(); ++i)
        check(same(a.head.fields[i].name, b.head.fields[i].name) &&
                  same(a.head.fields[i].value, b.head.fields[i].value),
              "the fields are the same, however they are cut");
}

bool isClean(std::string_view text) {
    return text.find_first_of(std::string_view("\r\n\0", 3)) == text.npos;
}

// Parses an accepted head a second time, line by line.
void checkAccepted(std::string_view text, const RequestHead &head) {
    check(text.find("\r\n\r\n") == text.size() - 4, "a head ends with its first empty line");
    std::size_t fields = 0;
    std::string_view lines = text.substr(0, text.size() - 2);
    for (bool first = true; !lines.empty(); first = false) {
        const std::string_view line = lines.substr(0, lines.find("\r\n"));
        lines.remove_prefix(line.size() + 2);
        check(isClean(line), "an accepted head has no bare CR, LF or NUL");
        if (first) {
            check(line.substr(0, head.method.size() + 1) == std::string(head.method) + ' ' &&
                      line.substr(line.size() - 9, 8) == " HTTP/1.",
                  "the request line has a method and a version");
            check(
                line.find(std::string(head.path) + (head.query.empty() ? "" : "?")) != line.npos ||
                    head.path == "/",
                "the path comes from the target");
            continue;
        }
        const Field &field = head.fields.at(fields++);
        const std::size_t colon = line.find(':');
        const std::string value(line.substr(colon + 1));
        const std::size_t begin = std::min(value.find_first_not_of(" \t"), value.size());
        const std::size_t end = value.find_last_not_of(" \t") + 1;
        check(field.name == line.substr(0, colon) && isToken(field.name), "a field has its name");
        check(field.value == value.substr(begin, std::max(begin, end) - begin),
              "a field has its value, trimmed");
    }
    check(fields == head.fields.size(), "there are as many fields as lines");
}

void checkResponse(const WSResponse &response) {
    if (response.status == 0) return;
    check(response.status >= 400 && isSendable(response), "a refusal can be sent");
    for (const bool withBody : {false, true}) {
        const std::string text = encodeResponse(response, 1'700'000'000, withBody);
        const Answer answer = readAnswer(text);
        check(answer.status == response.status, "a refusal has its status");
        check(text.size() == answer.head + (withBody ? answer.body : 0),
              "a refusal has the length it announces");
    }
}

std::size_t count(const RequestHead &head, std::string_view name) {
    std::size_t times = 0;
    for (const Field &field : head.fields)
        times += field.name.size() == name.size() &&
                 ::strncasecmp(field.name.data(), name.data(), name.size()) == 0;
    return times;
}

// The least that must be true of a request that the server would accept.
void checkHandshake(const RequestHead &head) {
    const WSResponse request = checkRequest(head), upgrade = checkUpgrade(head);
    checkResponse(request);
    checkResponse(upgrade);
    const std::string protocol =
        chooseProtocol({"chat.v2", "chat.v1"}, fieldValue(head, "Sec-WebSocket-Protocol"));
    check(protocol.empty() || protocol == "chat.v2" || protocol == "chat.v1",
          "the subprotocol is one of the server's");
    if (request.status != 0) return;
    check((head.method == "GET" || head.method == "HEAD") && head.path.substr(0, 1) == "/" &&
              (count(head, "Host") == 1 || (head.http10 && count(head, "Host") == 0)) &&
              count(head, "Transfer-Encoding") == 0,
          "a valid request is for a path, with one Host (or none in HTTP/1.0) and no body");
    if (upgrade.status != 0) return;
    check(head.method == "GET" && !head.http10 && asksForWebSocket(head),
          "only a client that asks for it is upgraded");
    const std::string key = fieldValue(head, "Sec-WebSocket-Key");
    check(count(head, "Sec-WebSocket-Key") == 1 && key.size() == 24 && key.substr(22) == "==" &&
              isClean(key) && fieldValue(head, "Sec-WebSocket-Version") == "13" &&
              count(head, "Connection") > 0 && count(head, "Upgrade") > 0,
          "an upgraded client has sent what RFC 6455 4.2.1 lists");
    check(acceptKey(key).size() == 28, "the accept key is the base64 of 20 bytes");
}

// Checks what hooks see of the request.
void checkRequestOf(std::string_view text, const RequestHead &head) {
    const WSRequest request{std::string(text), "::1"};
    check(request.method() == head.method && request.path() == head.path &&
              request.query() == head.query && request.headers().size() == head.fields.size(),
          "a user's request is the one that was parsed");
    for (const auto &[name, value] : request.headers()) {
        check(request.hasHeader(name), "each header can be found");
        check(request.header(name).find(value) != std::string::npos, "a header has its value");
        const std::string cookie = request.cookie(value.substr(0, value.find('=')));
        check(isClean(request.header(name)) && isClean(cookie), "headers are clean");
    }
    for (const std::string &protocol : request.protocols())
        check(isClean(protocol) && !protocol.empty(), "subprotocols are clean");
    const std::string query = request.query();
    check(isClean(request.path()) && isClean(query), "path and query are clean");
    check(request.parameter(query.substr(0, query.find('='))).size() <= query.size(),
          "decoding makes no text longer");
}

// Goes through X-Forwarded-For from the right, for as long as a proxy is trusted: its own peer
// only, or every address.
void checkClient(const RequestHead &head) {
    const std::vector<std::string> elements = splitList(fieldValue(head, "X-Forwarded-For"), ',');
    for (const char *name : {"192.0.2.1", "2001:db8::1", "unix"}) {
        const std::optional<Address> peer = parseAddress(name);  // a Unix socket has none
        check(clientAddress(peer, {}, head) == peer, "without trusted proxies, nothing is read");
        for (const bool all : {false, true}) {
            std::vector<Network> trusted{*parseNetwork(name)};
            if (all)
                trusted.insert(trusted.end(), {*parseNetwork("0.0.0.0/0"), *parseNetwork("::/0")});
            std::optional<Address> client = peer;
            for (std::size_t i = elements.size(); i-- > 0 && (all || client == peer);) {
                const auto address = parseForwarded(elements[i]);
                if (!address) break;
                client = address;
            }
            check(clientAddress(peer, trusted, head) == client,
                  "a client is the first from the right that is not a trusted proxy");
        }
    }
}

// Gives any text to the small parsers.
void checkParts(std::string_view text) {
    std::string_view host, port;
    if (splitHost(text, host, port)) {
        check(isClean(text) && text.find_first_of("/@ ") == text.npos,
              "a host is nothing but a host");
        check(text == std::string(host) + std::string(text.substr(host.size())) &&
                  (port.empty() || std::stoul(std::string(port)) <= 65535),
              "host and port are parts of the text");
    }
    if (const auto origin = normalOrigin(text)) {
        check(isClean(*origin) && (*origin == "null" || origin->find("://") != std::string::npos),
              "an origin is clean");
        const auto again = origin->back() == ':' ? origin : normalOrigin(*origin);
        check(again == origin, "a normal origin stays as it is");
    }
    if (const auto network = parseNetwork(text)) {
        check(network->bits <= 128 && isIn(*network, network->address),
              "a network has its own address");
        if (network->address)
            check(parseAddress(encodeAddress(*network->address)) == network->address,
                  "an encoded address can be parsed");
    }
    for (const std::string &element : splitList(text, ','))
        check(!element.empty() && trim(element) == element, "elements are trimmed and not empty");
    check(decodePercent(text).size() <= text.size(), "decoding makes no text longer");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char *data, std::size_t size) {
    const std::unique_ptr<char[]> exact(new char[size]);
    std::copy_n(reinterpret_cast<const char *>(data), size, exact.get());
    const std::string_view bytes(exact.get(), size);

    const Parsed whole = parseInPieces(bytes, size, 1);
    checkSame(whole, parseInPieces(bytes, 1, 1));
    checkSame(whole, parseInPieces(bytes, size / 2, 7));
    checkParts(bytes);
    if (whole.progress.answer == Progress::bad)
        check(whole.progress.code == 400, "a malformed head is a bad request");
    if (whole.progress.answer != Progress::done) return 0;

    const std::string_view text = bytes.substr(0, whole.progress.used);
    checkSame(whole, parseInPieces(text, text.size(), 1));
    checkAccepted(text, whole.head);
    checkHandshake(whole.head);
    checkRequestOf(text, whole.head);
    checkClient(whole.head);
    for (const Field &field : whole.head.fields) checkParts(field.value);
    return 0;
}
