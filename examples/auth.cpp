// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Access control: preConnect() demands a signed token that expires. Start it and open the URL it
// prints:
//
//     AUTH_KEY=$(openssl rand -hex 32) AUTH_PASSWORD=sesame examples/auth
//
// Why not check the origin alone? Browsers set that header, and it names the page that connects:
// checking it stops other sites' pages from connecting with your users' cookies. But it says
// nothing about the user, and any other program can send any origin. And why not the token
// alone? Because the browser sends the cookie, whichever page connects. (SameSite=Strict
// withholds it from other sites, but not from a neighbour such as other.example.com.) So both
// are checked: the origin by the server, against uniqueOrigin, and the token by us.
//
// A token is two words of base64url, separated by a dot:
//
//     {"user":"ann","expires":1767225600} . HMAC-SHA256(key, the first word)
//
// It does not name the algorithm, so no client can ask for a weaker one. Only we know the key, so
// only we can make a token; checking it takes no database. But a token cannot be revoked, so it
// is valid for minutes only, and each connection also checks whether the user is banned.
//
// It arrives in one of two ways. A page that has logged in has it in a cookie that no script can
// read. Programs, and pages of other sites, offer it as a subprotocol beside the real one, because
// the browser's WebSocket can set no other header:
//
//     new WebSocket(url, ['auth.v1', 'token.' + token])      // the answer is "auth.v1" only
//
// (Not in the URL: URLs end up in logs, histories and referrers.)
//
// Without a valid token, a connection is refused with 401; with the token of a banned user, with
// 403. When the token expires, the connection is closed with 4401.

#include "../server.h"
#include "program.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace {

constexpr std::string_view kProtocol = "auth.v1";
constexpr std::string_view kTokenPrefix = "token.";
constexpr const char *kCookie = "__Host-token";  // with this prefix, no neighbour can set it
constexpr int kTokenExpired = 4401;              // close codes from 4000 on are for applications

struct AuthConfig : WSBaseConfig {
    AuthConfig() {
        debug = false;
        maxMessageBytes = 4096;
        protocols = {std::string(kProtocol)};
        tickSeconds = 0.5;
    }

    std::string key;
    std::string password;
    int tokenSeconds = 300;
};

// Your program would look users up in a database. Here three of them share a password, and one
// is banned: mallory can log in, but not connect.
bool isKnown(std::string_view name) { return name == "ann" || name == "bob" || name == "mallory"; }
bool isBanned(std::string_view name) { return name == "mallory"; }

// ----------------------------------------------------------------------------
// Tokens. We parse what a peer has sent only after we have verified its signature.
// ----------------------------------------------------------------------------

struct Token {
    std::string user;
    std::int64_t expires = 0;  // seconds since 1970
};

std::int64_t secondsSince1970() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

const unsigned char *bytesOf(std::string_view text) {
    // cppcheck-suppress returnDanglingLifetime
    return reinterpret_cast<const unsigned char *>(text.data());
}

std::string base64(std::string_view bytes) {
    std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // OpenSSL adds a NUL
    const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char *>(text.data()),
                                       bytesOf(bytes), static_cast<int>(bytes.size()));
    text.resize(static_cast<std::size_t>(size));
    return text;
}

// Empty if `text` is not base64 (RFC 4648 4).
std::string decodeBase64(std::string_view text) {
    if (text.size() % 4 != 0) return {};
    const std::size_t padding = text.size() - (text.find_last_not_of('=') + 1);
    std::string bytes(text.size() / 4 * 3, '\0');
    const int size = ::EVP_DecodeBlock(reinterpret_cast<unsigned char *>(bytes.data()),
                                       bytesOf(text), static_cast<int>(text.size()));
    if (size < 0 || padding > 2) return {};
    bytes.resize(static_cast<std::size_t>(size) - padding);
    return bytes;
}

// The same in characters that need no escaping in cookies and subprotocols (RFC 4648 5).
std::string base64Url(std::string_view bytes) {
    std::string text = base64(bytes);
    text.erase(text.find_last_not_of('=') + 1);
    std::replace(text.begin(), text.end(), '+', '-');
    std::replace(text.begin(), text.end(), '/', '_');
    return text;
}

std::string decodeBase64Url(std::string text) {
    std::replace(text.begin(), text.end(), '-', '+');
    std::replace(text.begin(), text.end(), '_', '/');
    text.append((4 - text.size() % 4) % 4, '=');
    return decodeBase64(text);
}

std::string hmac(std::string_view key, std::string_view text) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    if (!::HMAC(::EVP_sha256(), key.data(), static_cast<int>(key.size()), bytesOf(text),
                text.size(), digest.data(), &size))
        throw std::runtime_error("HMAC failed");
    return {digest.begin(), digest.begin() + size};
}

// Takes the same time wherever the two differ. Otherwise the response time would reveal how much
// of a guess is right (CWE-208).
bool areEqual(std::string_view a, std::string_view b) {
    return a.size() == b.size() && ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// Compares HMACs, which, unlike passwords, have the same length.
bool isSamePassword(std::string_view key, std::string_view a, std::string_view b) {
    return areEqual(hmac(key, a), hmac(key, b));
}

std::string sign(std::string_view key, const Token &token) {
    Json::Value payload;
    payload["user"] = token.user;
    payload["expires"] = Json::Int64(token.expires);
    const std::string word = base64Url(WSMessage(payload).payload());
    return word + '.' + base64Url(hmac(key, word));
}

// Empty if the token is not ours or has expired. The signatures are compared as text: several
// texts decode to the same bytes.
std::optional<Token> verify(std::string_view key, std::string_view text) {
    const std::size_t dot = std::min(text.find('.'), text.size());
    const std::string_view word = text.substr(0, dot);
    if (dot == text.size() || !areEqual(text.substr(dot + 1), base64Url(hmac(key, word))))
        return std::nullopt;
    const WSMessage payload(decodeBase64Url(std::string(word)));
    const Token token{payload.json()["user"].asString(), payload.json()["expires"].asInt64()};
    if (token.expires <= secondsSince1970()) return std::nullopt;
    return token;
}

// ----------------------------------------------------------------------------
// The server
// ----------------------------------------------------------------------------

struct AuthUser : WSBaseUser {
    AuthUser() { maxIdle = 0; }  // the token expires anyway
    Token token;
};

class AuthServer : public WebSocketServer<AuthUser, AuthConfig> {
  public:
    AuthServer(AuthConfig config, std::string page)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {}

  private:
    // 200 and the token if the user may connect, else the status and text that say why not.
    struct Verdict {
        int status = 200;
        std::string text;
        Token token;
    };

    Verdict judge(const WSRequest &request) {
        const std::optional<Token> token = verify(config().key, tokenIn(request));
        if (!token) return {401, "Log in first.\n", {}};
        if (isBanned(token->user)) return {403, token->user + " is banned.\n", {}};
        return {200, {}, *token};
    }

    static std::string tokenIn(const WSRequest &request) {
        for (const std::string &offered : request.protocols())
            if (offered.compare(0, kTokenPrefix.size(), kTokenPrefix) == 0)
                return offered.substr(kTokenPrefix.size());
        return request.cookie(kCookie);
    }

    void preConnect(AuthUser &user, int) override {
        const Verdict verdict = judge(user.request());
        if (verdict.status == 401) setHeader(user, "WWW-Authenticate", "Bearer");  // RFC 6750 3
        if (verdict.status != 200) return refuse(user, verdict.status, verdict.text);
        user.token = verdict.token;
    }

    void postConnect(AuthUser &user, int) override { sendToUser(user, describe(user.token)); }

    void process(AuthUser &user, WSMessage &msg) override {
        if (msg.isBinary()) return disconnect(user, 1003, "text messages only");
        Json::Value said;
        said["from"] = user.token.user;  // as signed, whatever the message claims
        said["text"] = msg.payload();
        sendToAll(said);
    }

    // At most half a second late. A page that wants to stay logs in again before that.
    void tick() override {
        const std::int64_t now = secondsSince1970();
        for (AuthUser &user : users())
            if (user.token.expires <= now) disconnect(user, kTokenExpired, "the token has expired");
    }

    // --- HTTP requests of the page ---

    void httpRequest(const WSRequest &request, WSResponse &response) override {
        response.headers = {{"Content-Type", "text/plain; charset=utf-8"},
                            {"Cache-Control", "no-store"},
                            {"X-Content-Type-Options", "nosniff"}};
        if (request.path() == "/") return servePage(response);
        if (request.path() == "/login") return login(request, response);
        if (request.path() == "/me") return serveMe(request, response);
        response.status = 404;
        response.body = "Not found. The page is at /\n";
    }

    void servePage(WSResponse &response) const {
        response.status = 200;
        response.headers[0].second = "text/html; charset=utf-8";
        response.headers.emplace_back("Content-Security-Policy",
                                      "default-src 'none'; script-src " + hashOf("script") +
                                          "; style-src " + hashOf("style") +
                                          "; img-src data:; connect-src 'self'; base-uri 'none'; "
                                          "form-action 'none'; frame-ancestors 'none'");
        response.body = page_;
    }

    // The hash of this element's content. The browser runs only the script and the style with these
    // hashes: if a user's text ever got into the page as HTML, it could do nothing.
    std::string hashOf(const std::string &element) const {
        const std::size_t begin = page_.find('<' + element + '>') + element.size() + 2;
        const std::string text = page_.substr(begin, page_.find("</" + element) - begin);
        std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
        unsigned size = 0;
        if (::EVP_Digest(text.data(), text.size(), digest.data(), &size, ::EVP_sha256(), nullptr) !=
            1)
            throw std::runtime_error("SHA-256 failed");
        return "'sha256-" + base64(std::string(digest.begin(), digest.begin() + size)) + '\'';
    }

    // Name and password come as Basic credentials (RFC 7617): in a header, because a GET has no
    // body and URLs end up in logs. Pages of other sites cannot send that header. We omit
    // WWW-Authenticate, which RFC 9110 15.5.2 requires in a 401, because the browser would show its
    // own dialog and then send the password with every request. Let the proxy limit attempts.
    void login(const WSRequest &request, WSResponse &response) {
        constexpr std::string_view kBasic = "Basic ";
        std::string given = request.header("Authorization");
        if (given.compare(0, kBasic.size(), kBasic) != 0) given.clear();
        else given = decodeBase64(std::string_view(given).substr(kBasic.size()));
        const std::size_t colon = std::min(given.find(':'), given.size());
        const std::string name = given.substr(0, colon);
        const std::string_view password =
            std::string_view(given).substr(std::min(colon + 1, given.size()));
        // Always checks both, so that the response time does not reveal which names exist.
        const bool isRight = isSamePassword(config().key, password, config().password);
        if (!isKnown(name) || !isRight) {
            response.status = 401;
            response.body = "Wrong name or password.\n";
            return;
        }
        const Token token{name, secondsSince1970() + config().tokenSeconds};
        // HttpOnly: no script can read it. Secure: it is sent over TLS only. (Browsers make an
        // exception for localhost, but not WebKit: in Safari this example needs TLS.)
        // SameSite=Strict: it is not sent with requests from other sites' pages.
        response.headers.emplace_back("Set-Cookie",
                                      std::string(kCookie) + '=' + sign(config().key, token) +
                                          "; Max-Age=" + std::to_string(config().tokenSeconds) +
                                          "; Path=/; HttpOnly; Secure; SameSite=Strict");
        response.status = 200;
        response.body = "Welcome, " + name + ".\n";
    }

    // A page cannot see why its WebSocket was refused; here it can ask.
    void serveMe(const WSRequest &request, WSResponse &response) {
        const Verdict verdict = judge(request);
        response.status = verdict.status;
        response.body =
            verdict.status == 200 ? WSMessage(describe(verdict.token)).payload() : verdict.text;
    }

    static Json::Value describe(const Token &token) {
        Json::Value json;
        json["you"] = token.user;
        json["seconds"] = Json::Int64(token.expires - secondsSince1970());
        return json;
    }

    const std::string page_;
};

// ----------------------------------------------------------------------------
// The program
// ----------------------------------------------------------------------------

// Secrets come from the environment, which systemd's EnvironmentFile can set: anyone can read the
// source, and every user of the machine can read the arguments.
std::string secretFrom(const char *name, std::size_t least) {
    const char *value = std::getenv(name);
    if (!value || std::string_view(value).size() < least)
        throw std::invalid_argument("set " + std::string(name) +
                                    " in the environment (length: at least " +
                                    std::to_string(least) + ')');
    return value;
}

}  // namespace

int main(int argc, char **argv) {
    AuthConfig config;
    const std::vector<Option> options = {
        {"--port N", "port of localhost to listen on (12345)",
         [&](const std::string &value) { config.port = numberFrom(value, 1, 65535); }},
        originOption(config),
        {"--seconds N", "how long a token is valid (300)",
         [&](const std::string &value) { config.tokenSeconds = numberFrom(value, 1, 86400); }},
        {"AUTH_KEY", "in the environment: the secret that signs tokens, at least 32 bytes", {}},
        {"AUTH_PASSWORD", "in the environment: the password of ann, bob and mallory (banned)", {}}};
    return runProgram(argc, argv, options, [&] {
        config.key = secretFrom("AUTH_KEY", 32);
        config.password = secretFrom("AUTH_PASSWORD", 1);
        if (config.uniqueOrigin.empty())
            config.uniqueOrigin = {"http://localhost:" + std::to_string(config.port)};
        AuthServer server(config, readPage(argv[0], "auth.html"));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::cout << placeOf(config.address, server.port()) << std::endl;
        server.run();
    });
}
