// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The Extendible WebSocket Server, from the bottom up: so far there are only parts of it,
// without sockets, clock or configuration.

#include "server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <system_error>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL  // where it is missing, SO_NOSIGPIPE does it: see prepareSocket()
#define MSG_NOSIGNAL 0
#define WS_SET_NOSIGPIPE
#endif

namespace {

using Milliseconds = std::int64_t;  // of the monotonic clock

// The answer of every parser: done (and how many bytes it used), need more, or bad
// (a close code or an HTTP status, and the reason).
struct Progress {
    enum Answer { done, needMore, bad } answer = needMore;
    std::size_t used = 0;
    int code = 0;
    const char *reason = "";
};

Progress doneAfter(std::size_t used) { return {Progress::done, used, 0, ""}; }
Progress needMore() { return {Progress::needMore, 0, 0, ""}; }
Progress bad(int code, const char *reason) { return {Progress::bad, 0, code, reason}; }

// Of ASCII only, whatever the program's locale is.
bool isDigit(char c) { return c >= '0' && c <= '9'; }
char toLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool isAlphanumeric(char c) { return isDigit(c) || (toLower(c) >= 'a' && toLower(c) <= 'z'); }
bool isHexDigit(char c) { return isDigit(c) || (toLower(c) >= 'a' && toLower(c) <= 'f'); }

// --- HTTP ---

struct Field {
    std::string_view name, value;
};

// The head of a request; its views point into the text that was parsed.
struct RequestHead {
    std::string_view method, path, query;
    std::vector<Field> fields;
};

Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head);
WSResponse checkRequest(const RequestHead &head);
bool asksForWebSocket(const RequestHead &head);
WSResponse checkUpgrade(const RequestHead &head);
std::string acceptKey(std::string_view key);
std::string chooseProtocol(const std::vector<std::string> &ours, const RequestHead &head);
std::optional<std::string> normalOrigin(std::string_view origin);
WSResponse plainResponse(int status, std::string_view text);
WSResponse upgradeRequired();
bool isSendable(const WSResponse &response);
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody);
bool isToken(std::string_view text);
bool sameIgnoringCase(std::string_view a, std::string_view b);
std::size_t countFields(const RequestHead &head, std::string_view name);
std::string fieldValue(const RequestHead &head, std::string_view name);
std::vector<std::string_view> splitList(std::string_view list, char separator);
std::string decodePercent(std::string_view text);

// --- frames and messages ---

// Close codes of our own (RFC 6455 7.4.1).
constexpr int kGoingAway = 1001;
constexpr int kProtocolError = 1002;
constexpr int kNoCode = 1005;          // for hooks only: the Close had none
constexpr int kConnectionLost = 1006;  // for hooks only: there was no Close
constexpr int kInvalidData = 1007;
constexpr int kPolicyViolation = 1008;
constexpr int kTooBig = 1009;
constexpr int kInternalError = 1011;

// RFC 6455 5.2: data frames (5.6), then control frames (5.5).
enum class Opcode : std::uint8_t {
    continuation = 0x0,
    text = 0x1,
    binary = 0x2,
    close = 0x8,
    ping = 0x9,
    pong = 0xA
};

// RFC 6455 5.2. A header takes 2 to 14 bytes; without masking key, as a server sends
// it, at most 10.
constexpr std::size_t kMaxFrameHeader = 14;
constexpr std::size_t kMaxControlPayload = 125;  // RFC 6455 5.5

struct FrameHeader {
    bool fin = false;
    Opcode opcode = Opcode::continuation;
    std::uint64_t length = 0;
    std::array<unsigned char, 4> maskingKey{};
};

Progress parseFrameHeader(std::string_view bytes, FrameHeader &header);
std::string_view encodeFrameHeader(std::array<char, kMaxFrameHeader> &out, Opcode opcode,
                                   std::uint64_t length);
void unmask(char *payload, std::size_t size, const std::array<unsigned char, 4> &key,
            std::uint64_t offset);

struct ClosePayload {
    int code = 0;
    std::string_view reason;
};

Progress parseClose(std::string_view payload, ClosePayload &close);
std::string encodeClose(int code, std::string_view reason);
bool isCloseCode(int code);

// Checks UTF-8 that arrives in pieces. It says no at the first byte after which the
// text cannot become valid any more.
class Utf8Check {
  public:
    bool feed(std::string_view piece);               // false: invalid, for good
    bool complete() const { return missing_ == 0; }  // not in the middle of a character

  private:
    bool begin(unsigned char lead);

    std::uint8_t missing_ = 0;               // continuation bytes to come
    std::uint8_t low_ = 0x80, high_ = 0xBF;  // the range of the next one
};

bool isUtf8(std::string_view text);
std::string base64Encode(std::string_view bytes);
std::optional<std::string> base64Decode(std::string_view text);
std::array<unsigned char, 20> sha1(std::string_view message);

// Turns the bytes of one connection into messages and control frames, however they
// are cut. It holds memory only while something is unfinished.
class MessageReader {
  public:
    struct Limits {
        std::size_t maxMessageBytes;
        int maxFragments;
    };

    // What read() found: a whole message (opcode text or binary) or a control frame. The
    // payload is unmasked; it lies in the bytes given to read() or in this reader, and is
    // good until the next call.
    struct Found {
        Opcode opcode = Opcode::continuation;
        std::string_view payload;
        bool assembled = false;  // the payload lies in this reader, take() it
    };

    // Reads up to the end of the next message or control frame; what it reads is unmasked
    // in place. Done: `found` is set, and the bytes behind those used are still to be read.
    // Need more: all bytes are used. Bad: a close code; do not call it again.
    Progress read(char *bytes, std::size_t size, const Limits &limits, Found &found);

    // Where the rest of an unfinished message may be received directly, at most `most`
    // bytes of it; an empty room if none is under way. Give read() what was received.
    struct Room {
        char *bytes;
        std::size_t size;
    };
    Room room(std::size_t most);

    // The payload that was found assembled. Once, and before the next call of read().
    std::string take();

    // Nothing is unfinished: as good as new.
    bool idle() const { return headerSize_ == 0 && !inPayload_ && !inMessage(); }

  private:
    Progress readHeader(std::string_view bytes, const Limits &limits);
    Progress beginFrame(const Limits &limits);
    Progress readPayload(char *bytes, std::size_t size, Found &found);
    Progress endFrame(std::string_view payload, bool assembled, Found &found);
    void store(const char *bytes, std::size_t size);
    void makeRoom(std::size_t size);
    std::size_t left() const { return static_cast<std::size_t>(frame_.length - done_); }
    bool inMessage() const { return opcode_ != Opcode::continuation; }
    bool isControl() const { return frame_.opcode >= Opcode::close; }

    // The frame: the bytes of an unfinished header, then how much of the payload is here.
    std::array<char, kMaxFrameHeader> header_{};
    std::size_t headerSize_ = 0;
    bool inPayload_ = false;
    FrameHeader frame_;
    std::uint64_t done_ = 0;
    std::array<char, kMaxControlPayload> control_{};

    // The message: its opcode (continuation: there is none), and what has arrived of it.
    Opcode opcode_ = Opcode::continuation;
    int fragments_ = 0;
    Utf8Check utf8_;
    std::string message_;  // message_[0, filled_) has arrived, the rest is room
    std::size_t filled_ = 0;
};

// --- the queue of unsent bytes ---

constexpr std::size_t kMaxPieces = 64;  // for one system call; Linux, BSD and macOS take 1024

class Outbox {
  public:
    void append(std::string_view bytes);                      // copies them
    void append(std::shared_ptr<const std::string> payload);  // shares it
    std::size_t size() const { return size_; }

    // Points `pieces` at the first of the unsent bytes; gives how many it set.
    std::size_t gather(std::array<iovec, kMaxPieces> &pieces) const;
    void sent(std::size_t size);  // forgets the first `size` bytes
    void clear();

    // A pong that waits until all else is sent. Only the last is kept (RFC 6455 5.5.3).
    std::optional<std::string> pong;

  private:
    struct Segment {
        std::string copied;
        std::shared_ptr<const std::string> shared;  // or this, if it is set
        std::string_view bytes() const { return shared ? *shared : copied; }
    };
    std::vector<Segment> segments_;
    std::size_t first_ = 0;   // segments before it are sent
    std::size_t offset_ = 0;  // and so much of this one
    std::size_t size_ = 0;    // bytes unsent
};

}  // namespace

// What a message holds; shared by its copies and by the queues it waits in.
struct WSMessage::Body {
    bool binary = false;
    std::string payload;
    int maxJsonDepth = WSBaseConfig().maxJsonDepth;
    bool parsed = false;  // json is known: null if it is none
    std::unique_ptr<Json::Value> json;
};

// ============================================================================
// What hooks hold
//
// Messages, requests and users, as server.h and user.h promise them.
// ============================================================================

namespace {

// Compact, and UTF-8 as it is: without that setting each umlaut would take six bytes.
std::string writeJson(const Json::Value &json) {
    Json::StreamWriterBuilder builder;
    builder["indentation"] = "";
    builder["emitUTF8"] = true;
    return Json::writeString(builder, json);
}

// number = [ "-" ] int [ frac ] [ exp ] (RFC 8259 6)
bool isJsonNumber(std::string_view text) {
    std::size_t i = 0;
    const auto at = [&](char c) { return i < text.size() && toLower(text[i]) == c; };
    const auto digits = [&] {
        const std::size_t begin = i;
        while (i < text.size() && isDigit(text[i])) ++i;
        return i > begin;
    };
    if (at('-')) ++i;
    if (at('0')) ++i;
    else if (!digits()) return false;
    if (at('.') && (++i, !digits())) return false;
    if (at('e')) {
        ++i;
        if (at('+') || at('-')) ++i;
        if (!digits()) return false;
    }
    return i == text.size();
}

// Whether this is "\uD800" to "\uDFFF" with a third digit between `from` and `to`.
bool isSurrogate(std::string_view escape, char from, char to) {
    return escape.size() == 6 && escape[1] == 'u' && toLower(escape[2]) == 'd' &&
           toLower(escape[3]) >= from && toLower(escape[3]) <= to;
}

// How long an escape in a string is; 0 for half of a surrogate pair, which is no character.
std::size_t escapeSize(std::string_view text) {
    if (isSurrogate(text.substr(0, 6), 'c', 'f')) return 0;
    if (!isSurrogate(text.substr(0, 6), '8', 'b')) return 2;
    const std::string_view second = text.substr(std::min<std::size_t>(text.size(), 6), 6);
    return second.substr(0, 1) == "\\" && isSurrogate(second, 'c', 'f') ? 12 : 0;
}

// A string's size, with its quotation marks; 0 if there is something in it that may not be.
std::size_t stringSize(std::string_view text) {
    std::size_t i = 1;
    while (i < text.size() && text[i] != '"') {
        const bool control = text[i] >= 0 && text[i] < ' ';
        const std::size_t step = text[i] == '\\' ? escapeSize(text.substr(i)) : 1;
        if (control || step == 0) return 0;
        i += step;
    }
    return i + 1;
}

// The size of what stands first in the text: a string, a number, or a single character; 0
// if that is nothing that JSON has.
std::size_t tokenSize(std::string_view text) {
    constexpr std::string_view kNumber = "0123456789+-.eE";
    const char c = text[0];
    if (c == '"') return stringSize(text);
    if (isDigit(c) || c == '-' || c == '+' || c == '.') {
        const std::size_t size = std::min(text.find_first_not_of(kNumber), text.size());
        return isJsonNumber(text.substr(0, size)) ? size : 0;
    }
    const bool control = c >= 0 && c < ' ' && c != '\t' && c != '\n' && c != '\r';
    return control || c == '/' ? 0 : 1;
}

// What jsoncpp lets pass although RFC 8259 has no such thing: comments, control characters,
// odd numbers, halves of surrogate pairs, anything behind a NUL. And whether arrays and
// objects are nested no deeper than `maxDepth`.
bool isStrictJson(std::string_view text, int maxDepth) {
    int depth = 0;
    while (!text.empty()) {
        const char c = text[0];
        const std::size_t size = tokenSize(text);
        depth += (c == '[' || c == '{') - (c == ']' || c == '}');
        if (size == 0 || depth > maxDepth) return false;
        text.remove_prefix(std::min(size, text.size()));
    }
    return true;
}

// Strict JSON: one array or object and nothing else. Null for all that is not, and for
// whatever else the library has to say.
std::unique_ptr<Json::Value> parseJson(const std::string &text, int maxDepth) {
    if (!isStrictJson(text, maxDepth)) return nullptr;
    Json::CharReaderBuilder builder;
    Json::CharReaderBuilder::strictMode(&builder.settings_);
    builder["skipBom"] = false;
    builder["stackLimit"] = maxDepth + 1;
    try {
        auto json = std::make_unique<Json::Value>();
        const std::unique_ptr<Json::CharReader> reader(builder.newCharReader());
        const bool fine =
            reader->parse(text.data(), text.data() + text.size(), json.get(), nullptr);
        return fine && (json->isObject() || json->isArray()) ? std::move(json) : nullptr;
    } catch (const std::exception &) {
        return nullptr;
    }
}

}  // namespace

WSMessage::WSMessage(std::string text) : body_(std::make_shared<Body>()) {
    if (!isUtf8(text)) throw std::invalid_argument("WSMessage: the text is not valid UTF-8");
    body_->payload = std::move(text);
}

WSMessage::WSMessage(std::string_view text) : WSMessage(std::string(text)) {}

WSMessage::WSMessage(const char *text) : WSMessage(std::string(text == nullptr ? "" : text)) {}

WSMessage::WSMessage(const Json::Value &json) : WSMessage(writeJson(json)) {}

WSMessage WSMessage::binary(std::string bytes) {
    auto body = std::make_shared<Body>();
    body->binary = true;
    body->payload = std::move(bytes);
    return WSMessage(std::move(body));
}

bool WSMessage::isBinary() const { return body_->binary; }

const std::string &WSMessage::payload() const { return body_->payload; }

bool WSMessage::isJson() const {
    if (!body_->parsed) {
        body_->parsed = true;
        if (!body_->binary) body_->json = parseJson(body_->payload, body_->maxJsonDepth);
    }
    return body_->json != nullptr;
}

const Json::Value &WSMessage::json() const {
    static const Json::Value none;
    return isJson() ? *body_->json : none;
}

namespace {

// The head's fields, from text that is known to be a head, or is none.
RequestHead parsed(const std::string &text) {
    RequestHead head;
    if (parseHead(text, 0, head).answer != Progress::done) return {};
    return head;
}

}  // namespace

WSRequest::WSRequest(std::string head, std::string address)
    : head_(std::move(head)), address_(std::move(address)) {}

std::string WSRequest::method() const { return std::string(parsed(head_).method); }
std::string WSRequest::path() const { return std::string(parsed(head_).path); }
std::string WSRequest::query() const { return std::string(parsed(head_).query); }

std::string WSRequest::parameter(std::string_view name) const {
    const RequestHead head = parsed(head_);
    for (const std::string_view pair : splitList(head.query, '&')) {
        const std::size_t equals = std::min(pair.find('='), pair.size());
        if (decodePercent(pair.substr(0, equals)) != name) continue;
        return decodePercent(pair.substr(std::min(equals + 1, pair.size())));
    }
    return {};
}

std::string WSRequest::header(std::string_view name) const {
    return fieldValue(parsed(head_), name);
}

bool WSRequest::hasHeader(std::string_view name) const {
    return countFields(parsed(head_), name) > 0;
}

std::vector<std::pair<std::string, std::string>> WSRequest::headers() const {
    std::vector<std::pair<std::string, std::string>> all;
    for (const Field &field : parsed(head_).fields) all.emplace_back(field.name, field.value);
    return all;
}

std::string WSRequest::cookie(std::string_view name) const {
    const RequestHead head = parsed(head_);
    for (const Field &field : head.fields) {
        if (!sameIgnoringCase(field.name, "Cookie")) continue;
        for (const std::string_view pair : splitList(field.value, ';')) {
            const std::size_t equals = pair.find('=');
            if (equals != std::string_view::npos && pair.substr(0, equals) == name)
                return std::string(pair.substr(equals + 1));
        }
    }
    return {};
}

std::vector<std::string> WSRequest::protocols() const {
    const std::string offered = header("Sec-WebSocket-Protocol");
    std::vector<std::string> all;
    for (const std::string_view protocol : splitList(offered, ',')) all.emplace_back(protocol);
    return all;
}

void WSBaseUser::messageReceived() {
    if (clock_ != nullptr) lastMessage_ = *clock_;
}

bool WSBaseUser::isIdle() const { return maxIdle > 0 && idleSeconds() > maxIdle; }

double WSBaseUser::idleSeconds() const {
    return clock_ == nullptr ? 0 : static_cast<double>(*clock_ - lastMessage_) / 1000;
}

// ============================================================================
// The queue of unsent bytes
//
// A row of segments: each is either bytes that were copied, or a payload that others
// share. Small frames that follow each other are joined in one segment, so that the usual
// queue is one piece for one send(). Segments that are sent are freed on the way; when all
// are, the first keeps a little memory, for the queue is used again.
// ============================================================================

namespace {

// Copied bytes are joined up to this size, then a new segment begins: what is sent can
// only be freed segment by segment.
constexpr std::size_t kSegmentBytes = 16 * 1024;
constexpr std::size_t kKeptBytes = 4 * 1024;  // more is not kept for the next use

void Outbox::append(std::string_view bytes) {
    const bool joins = !segments_.empty() && !segments_.back().shared &&
                       segments_.back().copied.size() + bytes.size() <= kSegmentBytes;
    if (!joins) segments_.emplace_back();
    segments_.back().copied.append(bytes);
    size_ += bytes.size();
}

void Outbox::append(std::shared_ptr<const std::string> payload) {
    segments_.emplace_back();
    size_ += payload->size();
    segments_.back().shared = std::move(payload);
}

std::size_t Outbox::gather(std::array<iovec, kMaxPieces> &pieces) const {
    std::size_t count = 0;
    std::size_t offset = offset_;
    for (std::size_t i = first_; i < segments_.size() && count < kMaxPieces; ++i) {
        const std::string_view rest = segments_[i].bytes().substr(offset);
        offset = 0;
        if (!rest.empty()) pieces[count++] = {const_cast<char *>(rest.data()), rest.size()};
    }
    return count;
}

void Outbox::sent(std::size_t size) {
    size_ -= size;
    if (size_ == 0) return clear();
    while (size >= segments_[first_].bytes().size() - offset_) {
        size -= segments_[first_].bytes().size() - offset_;
        offset_ = 0;
        segments_[first_++] = Segment();
    }
    offset_ += size;
    if (first_ > segments_.size() / 2) {
        segments_.erase(segments_.begin(), segments_.begin() + static_cast<std::ptrdiff_t>(first_));
        first_ = 0;
    }
}

void Outbox::clear() {
    segments_.resize(1);
    segments_[0].copied.clear();
    if (segments_[0].copied.capacity() > kKeptBytes) segments_[0].copied.shrink_to_fit();
    segments_[0].shared.reset();
    first_ = offset_ = size_ = 0;
}

}  // namespace

// ============================================================================
// HTTP heads
//
// The request's head as RFC 9112 wants it and no laxer: where two programs read the same
// bytes differently (a bare LF, a folded line, a space before the colon, two Hosts), one
// can be tricked through the other. What RFC 6455 4.2.1 asks of a handshake follows.
// ============================================================================

namespace {

// RFC 9110 5.6.2, what names and subprotocols are made of:
//   token = 1*tchar
//   tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" /
//           "|" / "~" / DIGIT / ALPHA
bool isToken(std::string_view text) {
    constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
    const auto isTchar = [&](char c) { return isAlphanumeric(c) || kMarks.find(c) != kMarks.npos; };
    return !text.empty() && std::all_of(text.begin(), text.end(), isTchar);
}

bool sameIgnoringCase(std::string_view a, std::string_view b) {
    const auto same = [](char x, char y) { return toLower(x) == toLower(y); };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

// Without the spaces and tabs around it (OWS, RFC 9110 5.6.3).
std::string_view trim(std::string_view text) {
    constexpr std::string_view kSpace = " \t";
    const std::size_t begin = std::min(text.find_first_not_of(kSpace), text.size());
    return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// The elements of a list, trimmed, without the empty ones (RFC 9110 5.6.1.2).
std::vector<std::string_view> splitList(std::string_view list, char separator) {
    std::vector<std::string_view> elements;
    while (!list.empty()) {
        const std::size_t end = std::min(list.find(separator), list.size());
        const std::string_view element = trim(list.substr(0, end));
        if (!element.empty()) elements.push_back(element);
        list.remove_prefix(std::min(end + 1, list.size()));
    }
    return elements;
}

std::size_t countFields(const RequestHead &head, std::string_view name) {
    const auto named = [&](const Field &field) { return sameIgnoringCase(field.name, name); };
    return static_cast<std::size_t>(std::count_if(head.fields.begin(), head.fields.end(), named));
}

// All values of that name, joined as RFC 9110 5.3 allows.
std::string fieldValue(const RequestHead &head, std::string_view name) {
    std::string value;
    bool first = true;
    for (const Field &field : head.fields) {
        if (!sameIgnoringCase(field.name, name)) continue;
        if (!first) value += ", ";
        value += field.value;
        first = false;
    }
    return value;
}

bool listHas(const RequestHead &head, std::string_view name, std::string_view wanted) {
    const std::string list = fieldValue(head, name);
    const std::vector<std::string_view> elements = splitList(list, ',');
    const auto same = [&](std::string_view element) { return sameIgnoringCase(element, wanted); };
    return std::any_of(elements.begin(), elements.end(), same);
}

// Finds the empty line that ends the head, in bytes of which `seen` were looked at before.
// Complains at the first byte that no head can have: control characters, and line breaks
// that are not CR LF (RFC 9112 2.2; 9110 5.5).
Progress findHeadEnd(std::string_view bytes, std::size_t seen) {
    for (std::size_t i = seen; i < bytes.size(); ++i) {
        const auto byte = static_cast<unsigned char>(bytes[i]);
        const bool afterCr = i > 0 && bytes[i - 1] == '\r';
        if (afterCr != (byte == '\n')) return bad(400, "A line does not end with CR LF.");
        if (byte == '\n' && i >= 3 && bytes.substr(i - 3, 3) == "\r\n\r") return doneAfter(i + 1);
        const bool control = byte < 0x20 || byte == 0x7F;
        if (control && byte != '\r' && byte != '\n' && byte != '\t')
            return bad(400, "There is a control character in the request's head.");
    }
    return needMore();
}

// HTTP-version = "HTTP/" DIGIT "." DIGIT; 1.1, or a later 1.x, which is read as 1.1
// (RFC 9110 2.5).
bool isVersion(std::string_view version) {
    return version.size() == 8 && version.substr(0, 7) == "HTTP/1." && version[7] >= '1' &&
           version[7] <= '9';
}

bool isIpv6(std::string_view text) {
    in6_addr address{};
    return ::inet_pton(AF_INET6, std::string(text).c_str(), &address) == 1;
}

// Host = uri-host [ ":" port ] (RFC 9110 7.2), split; false if it is none. No user-info, no
// path; an IPv6 address stands in brackets. The port may be empty: "example.com:".
bool splitHost(std::string_view text, std::string_view &host, std::string_view &port) {
    constexpr std::string_view kMarks = "-._~!$&'()*+;=%";
    const auto inName = [&](char c) { return isAlphanumeric(c) || kMarks.find(c) != kMarks.npos; };
    const bool bracket = !text.empty() && text[0] == '[';
    const std::size_t end = bracket ? text.find(']') + 1 : std::min(text.find(':'), text.size());
    if (end == 0) return false;
    host = text.substr(0, end);
    port = text.substr(end);
    if (bracket ? !isIpv6(host.substr(1, end - 2)) : !std::all_of(host.begin(), host.end(), inName))
        return false;
    if (!port.empty() && port[0] != ':') return false;
    port.remove_prefix(port.empty() ? 0 : 1);
    if (port.size() > 5 || !std::all_of(port.begin(), port.end(), isDigit)) return false;
    return port.empty() || std::stoi(std::string(port)) <= 65535;
}

// request-target = origin-form / absolute-form / authority-form / asterisk-form (RFC 9112
// 3.2). The first two have a path, and RFC 6455 4.2.1 wants both understood; the others are
// for other methods than GET. What follows '#' is never sent (RFC 6455 3). Some marks that
// RFC 3986 does not allow are let pass, because browsers send them.
bool parseTarget(std::string_view target, RequestHead &head) {
    const auto fine = [](char c) { return c > 0x20 && c < 0x7F && c != '#'; };
    if (target.empty() || !std::all_of(target.begin(), target.end(), fine)) return false;
    for (const std::string_view scheme : {"http://", "https://"}) {
        if (!sameIgnoringCase(target.substr(0, scheme.size()), scheme)) continue;
        const std::size_t end = std::min(target.find_first_of("/?", scheme.size()), target.size());
        std::string_view host, port;
        if (!splitHost(target.substr(scheme.size(), end - scheme.size()), host, port)) return false;
        target.remove_prefix(end);
        head.path = "/";  // if it has none (RFC 9112 3.2.1)
    }
    const std::size_t mark = std::min(target.find('?'), target.size());
    if (mark > 0 && target[0] == '/') head.path = target.substr(0, mark);
    head.query = target.substr(std::min(mark + 1, target.size()));
    return true;
}

// request-line = method SP request-target SP HTTP-version (RFC 9112 3). We do not skip an
// empty line before it (2.2 says one SHOULD), because those come behind the body of a POST,
// and here nothing comes before the first request.
bool parseRequestLine(std::string_view line, RequestHead &head) {
    const std::size_t first = std::min(line.find(' '), line.size());
    const std::size_t last = std::min(line.rfind(' '), line.size());
    if (first >= last) return false;
    head.method = line.substr(0, first);
    return isToken(head.method) && isVersion(line.substr(last + 1)) &&
           parseTarget(line.substr(first + 1, last - first - 1), head);
}

// field-line = field-name ":" OWS field-value OWS (RFC 9112 5). A name that is no token is
// refused, so are a space before the colon (5.1) and a folded line, which begins with one (5.2).
bool parseFieldLine(std::string_view line, RequestHead &head) {
    const std::size_t colon = line.find(':');
    if (colon == line.npos || !isToken(line.substr(0, colon))) return false;
    head.fields.push_back({line.substr(0, colon), trim(line.substr(colon + 1))});
    return true;
}

// Parses a request's head. Done: `head` has views into `bytes`. Bad: an HTTP status. `seen`
// bytes were given before, and were not enough.
Progress parseHead(std::string_view bytes, std::size_t seen, RequestHead &head) {
    const Progress end = findHeadEnd(bytes, seen);
    if (end.answer != Progress::done) return end;
    std::string_view lines = bytes.substr(0, end.used - 2);
    const auto nextLine = [&] {
        const std::string_view line = lines.substr(0, lines.find("\r\n"));
        lines.remove_prefix(line.size() + 2);
        return line;
    };
    if (!parseRequestLine(nextLine(), head)) return bad(400, "The request line is malformed.");
    while (!lines.empty())
        if (!parseFieldLine(nextLine(), head)) return bad(400, "A header line is malformed.");
    return end;
}

// The rules that every request has to keep. Status 0: it does.
WSResponse checkRequest(const RequestHead &head) {
    if (head.method != "GET") {
        WSResponse refusal = plainResponse(405, "Only GET is understood here.");
        refusal.headers.emplace_back("Allow", "GET");
        return refusal;
    }
    if (head.path.empty()) return plainResponse(400, "The request target is not a path.");
    std::string_view host, port;
    const std::string value = fieldValue(head, "Host");
    if (countFields(head, "Host") != 1 || !splitHost(value, host, port))
        return plainResponse(400, "There must be one Host header, and it must be valid.");
    const auto hasBody = [](const Field &field) {
        return sameIgnoringCase(field.name, "Transfer-Encoding") ||
               (sameIgnoringCase(field.name, "Content-Length") && field.value != "0");
    };
    if (std::any_of(head.fields.begin(), head.fields.end(), hasBody))
        return plainResponse(400, "A request with a body is not understood here.");
    return {};
}

// Who says one half of it meant it, and is told what is wrong.
bool asksForWebSocket(const RequestHead &head) {
    return listHas(head, "Upgrade", "websocket") || countFields(head, "Sec-WebSocket-Key") > 0;
}

// What RFC 6455 4.2.1 requires of the client's opening handshake; the answer to other versions
// is that of 4.4. Status 0: all is there.
WSResponse checkUpgrade(const RequestHead &head) {
    if (!listHas(head, "Upgrade", "websocket") || !listHas(head, "Connection", "Upgrade"))
        return upgradeRequired();
    if (countFields(head, "Sec-WebSocket-Version") > 1)
        return plainResponse(400, "There is more than one Sec-WebSocket-Version.");
    if (fieldValue(head, "Sec-WebSocket-Version") != "13") {
        WSResponse refusal =
            plainResponse(426, "Only version 13 of the WebSocket protocol is spoken.");
        refusal.headers.emplace_back("Sec-WebSocket-Version", "13");
        refusal.headers.emplace_back("Upgrade", "websocket");
        return refusal;
    }
    const std::optional<std::string> key = base64Decode(fieldValue(head, "Sec-WebSocket-Key"));
    if (countFields(head, "Sec-WebSocket-Key") != 1 || !key || key->size() != 16)
        return plainResponse(400, "There must be one Sec-WebSocket-Key, the base64 of 16 bytes.");
    return {};
}

// Sec-WebSocket-Accept (RFC 6455 4.2.2, step 5.4).
std::string acceptKey(std::string_view key) {
    constexpr std::string_view kGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";  // RFC 6455 1.3
    const auto digest = sha1(std::string(key).append(kGuid));
    return base64Encode({reinterpret_cast<const char *>(digest.data()), digest.size()});
}

// The first of ours that the client offers, or none: never the client's bytes (RFC 6455 4.2.2).
std::string chooseProtocol(const std::vector<std::string> &ours, const RequestHead &head) {
    const std::string offered = fieldValue(head, "Sec-WebSocket-Protocol");
    const std::vector<std::string_view> theirs = splitList(offered, ',');
    const auto isOffered = [&](const std::string &protocol) {
        return std::find(theirs.begin(), theirs.end(), protocol) != theirs.end();
    };
    const auto chosen = std::find_if(ours.begin(), ours.end(), isOffered);
    return chosen == ours.end() ? std::string() : *chosen;
}

// scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ) (RFC 3986 3.1)
bool isScheme(std::string_view text) {
    const auto fine = [](char c) { return isAlphanumeric(c) || c == '+' || c == '-' || c == '.'; };
    return !text.empty() && isAlphanumeric(text[0]) && !isDigit(text[0]) &&
           std::all_of(text.begin(), text.end(), fine);
}

std::string lowered(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(), toLower);
    return lower;
}

// An origin (RFC 6454 6.2) in one spelling: lower case, with the port that its scheme
// stands for. Nothing if it is none: "null", "", a path, user-info, two of them.
std::optional<std::string> normalOrigin(std::string_view origin) {
    const std::size_t colon = std::min(origin.find("://"), origin.size());
    const std::string scheme = lowered(origin.substr(0, colon));
    std::string_view host, port;
    if (!isScheme(scheme) || colon == origin.size() ||
        !splitHost(origin.substr(colon + 3), host, port))
        return std::nullopt;
    const bool hasPort = origin.back() == ':' || !port.empty();
    if (hasPort && (port.empty() || port[0] == '0')) return std::nullopt;
    if (port.empty() && (scheme == "http" || scheme == "ws")) port = "80";
    if (port.empty() && (scheme == "https" || scheme == "wss")) port = "443";
    return scheme + "://" + lowered(host) + ':' + std::string(port);
}

// '+' is a space and %41 an A, as forms encode them. A '%' without two digits stays one.
std::string decodePercent(std::string_view text) {
    std::string decoded;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool escape = text[i] == '%' && i + 2 < text.size() && isHexDigit(text[i + 1]) &&
                            isHexDigit(text[i + 2]);
        if (escape) {
            decoded +=
                static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
            i += 2;
        } else {
            decoded += text[i] == '+' ? ' ' : text[i];
        }
    }
    return decoded;
}

// --- responses ---

const char *reasonPhrase(int status) {
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 303: return "See Other";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "";  // RFC 9112 4: it may be empty
    }
}

WSResponse plainResponse(int status, std::string_view text) {
    WSResponse response;
    response.status = status;
    response.headers.emplace_back("Content-Type", "text/plain; charset=utf-8");
    response.body = text;
    if (!text.empty()) response.body += '\n';
    return response;
}

WSResponse upgradeRequired() {
    WSResponse response =
        plainResponse(426, "This is a WebSocket server: connect with ws:// or wss://.");
    response.headers.emplace_back("Upgrade", "websocket");
    return response;
}

// What may go on the wire. A line break in a value would begin a header of its own. What
// the server writes itself is not the hook's to write.
bool isSendable(const WSResponse &response) {
    if (response.status < 200 || response.status > 599) return false;
    for (const auto &[name, value] : response.headers) {
        const auto control = [](char c) { return (c >= 0 && c < 0x20 && c != '\t') || c == 0x7F; };
        if (!isToken(name) || std::any_of(value.begin(), value.end(), control)) return false;
        for (const char *ours : {"Content-Length", "Transfer-Encoding", "Connection", "Date"})
            if (sameIgnoringCase(name, ours)) return false;
    }
    return true;
}

// IMF-fixdate (RFC 9110 5.6.7), whatever language the program speaks.
std::string httpDate(std::time_t now) {
    constexpr std::array<const char *, 7> kDays{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    constexpr std::array<const char *, 12> kMonths{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                   "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    std::tm time{};
    ::gmtime_r(&now, &time);
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%s, %02d %s %d %02d:%02d:%02d GMT",
                  kDays[static_cast<std::size_t>(time.tm_wday)], time.tm_mday,
                  kMonths[static_cast<std::size_t>(time.tm_mon)], time.tm_year + 1900, time.tm_hour,
                  time.tm_min, time.tm_sec);
    return text.data();
}

// A whole response. Each is the last on its connection (RFC 9112 9.6); who sends an
// Upgrade header names it in Connection, too (RFC 9110 7.8). 204 and 304 have no body.
std::string encodeResponse(const WSResponse &response, std::time_t now, bool withBody) {
    std::string text = "HTTP/1.1 " + std::to_string(response.status) + ' ' +
                       reasonPhrase(response.status) + "\r\n";
    bool upgrade = false;
    for (const auto &[name, value] : response.headers) {
        text += name + ": " + value + "\r\n";
        upgrade = upgrade || sameIgnoringCase(name, "Upgrade");
    }
    const bool bodiless = response.status == 204 || response.status == 304;
    if (!bodiless) text += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
    text += "Date: " + httpDate(now) + "\r\n";
    text += upgrade ? "Connection: close, Upgrade\r\n\r\n" : "Connection: close\r\n\r\n";
    if (withBody && !bodiless) text += response.body;
    return text;
}

}  // namespace

// ============================================================================
// Frames
//
//       0                   1                   2                   3
//       0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//      +-+-+-+-+-------+-+-------------+-------------------------------+
//      |F|R|R|R| opcode|M| length (7)  | extended length               |
//      |I|S|S|S|  (4)  |A| 126: 16 bits| (16 or 64 bits, if any)       |
//      |N|V|V|V|       |S| 127: 64 bits| most significant byte first   |
//      | |1|2|3|       |K|             |                               |
//      +-+-+-+-+-------+-+-------------+ - - - - - - - - - - - - - - - +
//      | masking key (32), if MASK is set; then the payload            |
//      +---------------------------------------------------------------+
//
// RFC 6455 5.2. Whatever breaks its rules is refused at the first byte that does.
// ============================================================================

namespace {

constexpr unsigned kFin = 0x80, kReserved = 0x70, kOpcode = 0x0F;  // of the first byte
constexpr unsigned kMask = 0x80, kLength = 0x7F;                   // of the second
constexpr std::uint64_t kLength16 = 126, kLength64 = 127;          // an extended length follows

bool isOpcode(unsigned opcode) { return opcode <= 0x2 || (opcode >= 0x8 && opcode <= 0xA); }

// The extended payload length: `size` bytes, in network byte order.
std::uint64_t readLength(std::string_view bytes) {
    std::uint64_t length = 0;
    for (const char byte : bytes) length = length << 8 | static_cast<unsigned char>(byte);
    return length;
}

// "the minimal number of bytes MUST be used to encode the length", and "the most
// significant bit MUST be 0" (RFC 6455 5.2): whether that holds, as far as the 2 or 8 bytes
// of an extended length are here.
bool isLengthFine(std::string_view bytes, std::size_t wanted) {
    if (wanted == 2) return bytes.size() < 2 || readLength(bytes) >= kLength16;
    const bool highest = !bytes.empty() && (bytes[0] & 0x80) != 0;
    const bool wouldFit16 = bytes.size() >= 6 && readLength(bytes.substr(0, 6)) == 0;
    return !highest && !wouldFit16;
}

// What follows the first two bytes: the extended length, if there is one, and the key.
Progress parseLengthAndKey(std::string_view bytes, FrameHeader &header) {
    const std::size_t extended = header.length < kLength16 ? 0 : header.length == kLength16 ? 2 : 8;
    const std::string_view length = bytes.substr(2, extended);
    if (extended > 0 && !isLengthFine(length, extended))
        return bad(kProtocolError, "the length is not minimal");
    const std::size_t size = 2 + extended + header.maskingKey.size();
    if (bytes.size() < size) return needMore();
    if (extended > 0) header.length = readLength(length);
    std::memcpy(header.maskingKey.data(), bytes.data() + 2 + extended, header.maskingKey.size());
    return doneAfter(size);
}

// Parses the header of a client's frame. Done: the bytes of the header. Bad: 1002.
Progress parseFrameHeader(std::string_view bytes, FrameHeader &header) {
    if (bytes.empty()) return needMore();
    const auto first = static_cast<unsigned char>(bytes[0]);
    // "MUST be 0 unless an extension is negotiated", and none is.
    if ((first & kReserved) != 0) return bad(kProtocolError, "a reserved bit is set");
    // An unknown opcode fails the connection.
    if (!isOpcode(first & kOpcode)) return bad(kProtocolError, "the opcode is reserved");
    header.fin = (first & kFin) != 0;
    header.opcode = static_cast<Opcode>(first & kOpcode);
    const bool control = header.opcode >= Opcode::close;
    // "Control frames themselves MUST NOT be fragmented." (5.4)
    if (control && !header.fin) return bad(kProtocolError, "a control frame is fragmented");

    if (bytes.size() < 2) return needMore();
    const auto second = static_cast<unsigned char>(bytes[1]);
    // "The server MUST close the connection upon receiving a frame that is not masked." (5.1)
    if ((second & kMask) == 0) return bad(kProtocolError, "a frame is not masked");
    header.length = second & kLength;
    // "All control frames MUST have a payload length of 125 bytes or less" (5.5)
    if (control && header.length > kMaxControlPayload)
        return bad(kProtocolError, "a control frame is too long");

    return parseLengthAndKey(bytes, header);
}

// The header of a frame as a server sends it: final and unmasked ("A server MUST NOT mask any
// frames", RFC 6455 5.1).
std::string_view encodeFrameHeader(std::array<char, kMaxFrameHeader> &out, Opcode opcode,
                                   std::uint64_t length) {
    const std::size_t extended = length < kLength16 ? 0 : length <= 0xFFFF ? 2 : 8;
    out[0] = static_cast<char>(kFin | static_cast<unsigned>(opcode));
    out[1] = static_cast<char>(extended == 0 ? length : extended == 2 ? kLength16 : kLength64);
    for (std::size_t i = 0; i < extended; ++i)
        out[2 + i] = static_cast<char>(length >> 8 * (extended - 1 - i));
    return {out.data(), 2 + extended};
}

// Octet i of the payload is XORed with octet i MOD 4 of the masking key (RFC 6455 5.3), in
// place, for a piece that begins at `offset` of the payload. Eight bytes at a time: twice the
// key, turned to where the piece begins, is XORed as one number, whatever its byte order.
void unmask(char *payload, std::size_t size, const std::array<unsigned char, 4> &key,
            std::uint64_t offset) {
    std::array<unsigned char, 8> keys{};
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = key[(offset + i) % 4];
    std::uint64_t eightKeys = 0;
    std::memcpy(&eightKeys, keys.data(), sizeof eightKeys);
    std::size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        std::uint64_t eight = 0;
        std::memcpy(&eight, payload + i, sizeof eight);
        eight ^= eightKeys;
        std::memcpy(payload + i, &eight, sizeof eight);
    }
    for (; i < size; ++i) payload[i] = static_cast<char>(payload[i] ^ keys[i % 8]);
}

}  // namespace

// ============================================================================
// Messages
//
//     message  = frame(text | binary, FIN)
//              | frame(text | binary) *frame(continuation) frame(continuation, FIN)
//
// with control frames anywhere between the frames (RFC 6455 5.4). The usual message is one
// frame that lies whole in the bytes given: it is found there and nothing is stored. Else
// the payload is collected piece by piece, and text is checked piece by piece.
// ============================================================================

namespace {

// What is allocated for a message, as a multiple of what has come of it.
constexpr std::size_t kGrowth = 16;

Progress MessageReader::read(char *bytes, std::size_t size, const Limits &limits, Found &found) {
    if (filled_ > 0 && !inMessage()) take();  // the last message, which nobody took
    std::size_t used = 0;
    for (;;) {
        if (!inPayload_) {
            const Progress header = readHeader({bytes + used, size - used}, limits);
            if (header.answer != Progress::done) return header;
            used += header.used;
        }
        const auto piece =
            static_cast<std::size_t>(std::min<std::uint64_t>(frame_.length - done_, size - used));
        const Progress payload = readPayload(bytes + used, piece, found);
        used += piece;
        if (payload.answer != Progress::done) return payload;
        if (found.opcode != Opcode::continuation) return doneAfter(used);
    }
}

// Reads a frame's header, also one that comes in pieces: then it is collected.
Progress MessageReader::readHeader(std::string_view bytes, const Limits &limits) {
    const std::size_t before = headerSize_;
    std::string_view all = bytes;
    if (before > 0) {
        const std::size_t more = std::min(bytes.size(), header_.size() - before);
        std::copy_n(bytes.data(), more, header_.data() + before);
        all = {header_.data(), before + more};
    }
    const Progress progress = parseFrameHeader(all, frame_);
    if (progress.answer == Progress::bad) return progress;
    if (progress.answer == Progress::needMore) {
        if (before == 0) std::copy(all.begin(), all.end(), header_.begin());
        headerSize_ = all.size();
        return progress;
    }
    headerSize_ = 0;
    const Progress begun = beginFrame(limits);
    return begun.answer == Progress::bad ? begun : doneAfter(progress.used - before);
}

// Where this frame stands in its message, and whether it may be that long: that is known
// before a byte of it is stored.
Progress MessageReader::beginFrame(const Limits &limits) {
    inPayload_ = true;
    done_ = 0;
    if (isControl()) return doneAfter(0);
    // A fragmented message is one frame with its opcode, then continuations (RFC 6455 5.4).
    const bool continues = frame_.opcode == Opcode::continuation;
    if (continues && !inMessage())
        return bad(kProtocolError, "a continuation has nothing to continue");
    if (!continues && inMessage()) return bad(kProtocolError, "a message begins inside another");
    if (filled_ > limits.maxMessageBytes || frame_.length > limits.maxMessageBytes - filled_)
        return bad(kTooBig, "the message is too big");  // 1009: 7.4.1; that there is a limit: 10.4
    if (++fragments_ > limits.maxFragments) return bad(kPolicyViolation, "too many fragments");
    if (!continues) opcode_ = frame_.opcode;
    return doneAfter(0);
}

// Reads a piece of a payload, perhaps the last. What is not a whole message or control
// frame where it lies is stored.
Progress MessageReader::readPayload(char *bytes, std::size_t size, Found &found) {
    unmask(bytes, size, frame_.maskingKey, done_);
    // Text that is no UTF-8 fails the connection (RFC 6455 8.1), as early as it can be known.
    if (!isControl() && opcode_ == Opcode::text && !utf8_.feed({bytes, size}))
        return bad(kInvalidData, "the text is not UTF-8");
    const bool alone = isControl() || (frame_.fin && fragments_ == 1);
    const bool stored = !alone || size < frame_.length;
    if (stored) store(bytes, size);
    done_ += size;
    if (done_ < frame_.length) return needMore();
    inPayload_ = false;
    if (!stored) return endFrame({bytes, size}, false, found);
    if (isControl()) return endFrame({control_.data(), frame_.length}, false, found);
    return endFrame({message_.data(), filled_}, true, found);
}

// A frame is complete; `payload` is that of the control frame or of the message so far.
Progress MessageReader::endFrame(std::string_view payload, bool assembled, Found &found) {
    if (isControl()) {
        found = {frame_.opcode, payload, false};
    } else if (frame_.fin) {
        if (!utf8_.complete()) return bad(kInvalidData, "the text ends inside a character");
        found = {opcode_, payload, assembled};
        opcode_ = Opcode::continuation;
        fragments_ = 0;
    }
    return doneAfter(0);
}

// Keeps a piece of a payload; what was received into room() is in its place already.
void MessageReader::store(const char *bytes, std::size_t size) {
    if (isControl()) {
        std::copy_n(bytes, size, control_.data() + done_);
        return;
    }
    makeRoom(size);
    if (bytes != message_.data() + filled_) std::copy_n(bytes, size, message_.data() + filled_);
    filled_ += size;
}

// Room for `size` more bytes of the message. A declared length allocates nothing: at most
// kGrowth times what is really here is reserved, and only what is wanted now is touched.
void MessageReader::makeRoom(std::size_t size) {
    const std::size_t wanted = filled_ + size;
    if (message_.capacity() < wanted)
        message_.reserve(std::min(filled_ + left(), std::max(wanted, kGrowth * filled_)));
    if (message_.size() < wanted) message_.resize(wanted);
}

MessageReader::Room MessageReader::room(std::size_t most) {
    if (!inPayload_ || isControl()) return {nullptr, 0};
    const std::size_t size = std::min({left(), most, kGrowth * filled_});
    makeRoom(size);
    return {message_.data() + filled_, size};
}

std::string MessageReader::take() {
    message_.resize(filled_);
    filled_ = 0;
    return std::exchange(message_, std::string());
}

}  // namespace

// ============================================================================
// Closing
//
//     close payload = [ code (16 bits, network byte order) [ reason (UTF-8) ] ]
//
// RFC 6455 5.5.1 and 7.4.
// ============================================================================

namespace {

// The codes that may stand in a Close frame: those that RFC 6455 7.4.1 defines, but not 1004,
// which is reserved, and the three that "MUST NOT be set" there (1005, 1006, 1015); 1012 to
// 1014, which were registered with IANA later; and 3000 to 4999, for libraries and
// applications (7.4.2).
bool isCloseCode(int code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

// Done: the code (1005 if there is none, 7.1.5) and the reason. Bad: a close code.
Progress parseClose(std::string_view payload, ClosePayload &close) {
    close = {kNoCode, {}};
    if (payload.empty()) return doneAfter(0);
    // "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer"
    if (payload.size() == 1) return bad(kProtocolError, "a close code has one byte");
    close.code =
        static_cast<unsigned char>(payload[0]) << 8 | static_cast<unsigned char>(payload[1]);
    close.reason = payload.substr(2);
    if (!isCloseCode(close.code)) return bad(kProtocolError, "this close code may not be sent");
    if (!isUtf8(close.reason)) return bad(kInvalidData, "the close reason is not UTF-8");
    return doneAfter(payload.size());
}

// The reason has to be UTF-8; what would make the frame too long is cut off, between two
// characters.
std::string encodeClose(int code, std::string_view reason) {
    std::size_t size = std::min(reason.size(), kMaxControlPayload - 2);
    while (size < reason.size() && (static_cast<unsigned char>(reason[size]) & 0xC0) == 0x80)
        --size;
    std::string payload{static_cast<char>(code >> 8), static_cast<char>(code)};
    return payload.append(reason.substr(0, size));
}

}  // namespace

// ============================================================================
// UTF-8
//
// RFC 3629 4, as ranges of the bytes that may follow a lead byte:
//
//     00..7F                          C2..DF  80..BF
//     E0      A0..BF  80..BF          E1..EC, EE..EF  80..BF  80..BF
//     ED      80..9F  80..BF          (no surrogates)
//     F0      90..BF  80..BF  80..BF  F1..F3          80..BF  80..BF  80..BF
//     F4      80..8F  80..BF  80..BF  (nothing above U+10FFFF)
//
// Only the second byte has ranges of its own. So the state between two bytes is: how many
// are missing, and the range of the next.
// ============================================================================

namespace {

// Begins a character; false if none begins so.
bool Utf8Check::begin(unsigned char lead) {
    if (lead < 0x80) return true;
    if (lead < 0xC2 || lead > 0xF4) return false;
    missing_ = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (lead == 0xE0) low_ = 0xA0;
    if (lead == 0xED) high_ = 0x9F;
    if (lead == 0xF0) low_ = 0x90;
    if (lead == 0xF4) high_ = 0x8F;
    return true;
}

// Where, from `i` on, the first byte is that is not ASCII: eight bytes at a time, as long as
// none of them has its highest bit set.
std::size_t skipAscii(std::string_view text, std::size_t i) {
    constexpr std::uint64_t kHighBits = 0x8080808080808080;
    for (; i + 8 <= text.size(); i += 8) {
        std::uint64_t eight = 0;
        std::memcpy(&eight, text.data() + i, sizeof eight);
        if ((eight & kHighBits) != 0) break;
    }
    while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
    return i;
}

bool Utf8Check::feed(std::string_view piece) {
    std::size_t i = 0;
    while (i < piece.size()) {
        if (missing_ == 0) i = skipAscii(piece, i);
        if (i == piece.size()) break;
        const auto byte = static_cast<unsigned char>(piece[i++]);
        if (missing_ == 0) {
            if (!begin(byte)) return false;
        } else {
            if (byte < low_ || byte > high_) return false;
            low_ = 0x80;
            high_ = 0xBF;
            --missing_;
        }
    }
    return true;
}

bool isUtf8(std::string_view text) {
    Utf8Check check;
    return check.feed(text) && check.complete();
}

}  // namespace

// ============================================================================
// base64
//
// RFC 4648 4: three bytes are four digits of six bits; what is missing at the end is
// written as '='.
// ============================================================================

namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string base64Encode(std::string_view bytes) {
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        const std::string_view group = bytes.substr(i, 3);
        std::uint32_t bits = 0;
        for (std::size_t k = 0; k < 3; ++k)
            bits = bits << 8 | (k < group.size() ? static_cast<unsigned char>(group[k]) : 0);
        for (std::size_t k = 0; k < 4; ++k)
            text += k <= group.size() ? kDigits[bits >> (18 - 6 * k) & 0x3F] : '=';
    }
    return text;
}

// Nothing if it is no base64. Bits that are left over at the end may be anything: RFC 4648
// 3.5 leaves that to the decoder, and there are clients that send random digits as a key.
std::optional<std::string> base64Decode(std::string_view text) {
    if (text.size() % 4 != 0) return std::nullopt;
    std::size_t padding = 0;
    while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=')
        ++padding;
    std::string bytes;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const std::size_t digit = i < text.size() - padding ? kDigits.find(text[i]) : 0;
        if (digit == kDigits.npos) return std::nullopt;
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        if (i % 4 != 3) continue;
        for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift);
    }
    bytes.resize(bytes.size() - padding);
    return bytes;
}

}  // namespace

// ============================================================================
// SHA-1
//
// FIPS 180-4, sections 5.1.1, 5.3.1 and 6.1.2. It is broken for signatures; in the opening
// handshake it only proves that the server read the key (RFC 6455 10.8).
// ============================================================================

namespace {

using Sha1State = std::array<std::uint32_t, 5>;

std::uint32_t rotateLeft(std::uint32_t x, int n) { return x << n | x >> (32 - n); }

// One step's function and constant (4.1.1, 4.2.1).
std::uint32_t mixed(int t, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    if (t < 20) return ((b & c) ^ (~b & d)) + 0x5A827999;
    if (t < 40) return (b ^ c ^ d) + 0x6ED9EBA1;
    if (t < 60) return ((b & c) ^ (b & d) ^ (c & d)) + 0x8F1BBCDC;
    return (b ^ c ^ d) + 0xCA62C1D6;
}

// 6.1.2: one block of 64 bytes.
void sha1Block(const char *block, Sha1State &state) {
    std::array<std::uint32_t, 80> w{};
    for (std::size_t t = 0; t < 16; ++t)
        for (std::size_t k = 0; k < 4; ++k)
            w[t] = w[t] << 8 | static_cast<unsigned char>(block[4 * t + k]);
    for (std::size_t t = 16; t < 80; ++t)
        w[t] = rotateLeft(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    auto [a, b, c, d, e] = state;
    for (std::size_t t = 0; t < 80; ++t) {
        const std::uint32_t next =
            rotateLeft(a, 5) + mixed(static_cast<int>(t), b, c, d) + e + w[t];
        e = d;
        d = c;
        c = rotateLeft(b, 30);
        b = a;
        a = next;
    }
    state = {state[0] + a, state[1] + b, state[2] + c, state[3] + d, state[4] + e};
}

std::array<unsigned char, 20> sha1(std::string_view message) {
    // 5.1.1: a one bit, zeros up to 8 bytes before the end of a block, the length in bits.
    std::string padded(message);
    padded += '\x80';
    while (padded.size() % 64 != 56) padded += '\0';
    const std::uint64_t bits = std::uint64_t{message.size()} * 8;
    for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>(bits >> shift);

    Sha1State state{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};  // 5.3.1
    for (std::size_t i = 0; i < padded.size(); i += 64) sha1Block(padded.data() + i, state);

    std::array<unsigned char, 20> digest{};
    for (std::size_t i = 0; i < digest.size(); ++i)
        digest[i] = static_cast<unsigned char>(state[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

}  // namespace
