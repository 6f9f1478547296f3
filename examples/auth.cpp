// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Who may connect: a signed token that expires, asked for in preConnect(). Start it and open
// what it prints:
//
//     AUTH_KEY=$(openssl rand -hex 32) AUTH_PASSWORD=sesame examples/auth
//
// Why is it not enough to look at the origin? The browser writes that header, so it tells which
// page asks: it keeps the pages of others from connecting with the cookies of your users. It
// tells nothing about who asks, and who is no browser writes into it whatever you like to read.
// And why is the token not enough? Because a cookie comes along whichever page connects. (Of
// other sites SameSite=Strict keeps it back; of a neighbour, other.example.com, it does not.)
// So both are checked: the origin by the server, from uniqueOrigin, and the token by us.
//
// A token is two words of base64url with a dot between:
//
//     {"user":"ann","expires":1767225600} . HMAC-SHA256(key, the first word)
//
// Nothing in it says how it was signed, so nobody can ask for a weaker way. Nobody but us
// knows the key, so nobody but us can make one; to check it takes no database. But it cannot be
// taken back: therefore it is good for minutes, and who is banned is asked about each time.
//
// It comes in one of two ways. A page that has logged in has it as a cookie that no script can
// read. Programs, and pages from elsewhere, offer it as a subprotocol beside the real one, for
// the browser's WebSocket lets them set no other header:
//
//     new WebSocket(url, ['auth.v1', 'token.' + token])      // the answer is "auth.v1" alone
//
// (Not in the URL: those are written into logs, histories and referrers.)
//
// No token, or none that is good: 401. A good one whose owner may not: 403. When it expires,
// its connection does: 4401.

#include "../server.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <stdexcept>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace {

constexpr std::string_view kProtocol = "auth.v1";
constexpr std::string_view kTokenPrefix = "token.";
constexpr const char *kCookie = "__Host-token";  // so named, no neighbour's page can set it
constexpr int kTokenExpired = 4401;  // from 4000 on close codes are the application's own

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

// Who somebody is, your program knows from its database. Here three people have the same
// password, and one of them is banned: he can log in, and may not connect.
bool isKnown(std::string_view name) { return name == "ann" || name == "bob" || name == "mallory"; }
bool isBanned(std::string_view name) { return name == "mallory"; }

// ----------------------------------------------------------------------------
// Tokens. What a peer has sent is read only after its signature was found right.
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
    return reinterpret_cast<const unsigned char *>(text.data());
}

std::string base64(std::string_view bytes) {
    std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // OpenSSL adds a NUL
    const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char *>(text.data()),
                                       bytesOf(bytes), static_cast<int>(bytes.size()));
    text.resize(static_cast<std::size_t>(size));
    return text;
}

// Empty if it is not base64 (RFC 4648 4).
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

// The same in letters that need no escaping in cookies and subprotocols (RFC 4648 5).
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

// It takes as long for a wrong first letter as for a wrong last one. Were it not so, the time
// that an answer takes would tell how much of a guess is right (CWE-208).
bool areEqual(std::string_view a, std::string_view b) {
    return a.size() == b.size() && ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// Passwords differ in length, too; their HMACs do not.
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

// Nothing if it is none of ours, or not good any more. The signature is compared as it is
// written, not as bytes: base64 has more than one spelling for these.
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
    AuthUser() { maxIdle = 0; }  // the token's end is an end, too
    Token token;
};

class AuthServer : public WebSocketServer<AuthUser, AuthConfig> {
  public:
    AuthServer(AuthConfig config, std::string page)
        : WebSocketServer(std::move(config)), page_(std::move(page)) {}

  private:
    // 200 and the token of who may connect, else the status that says why not.
    struct Verdict {
        int status = 200;
        std::string text;
        Token token;
    };

    Verdict judge(const WSRequest &request) {
        const std::optional<Token> token = verify(config().key, tokenIn(request));
        if (!token) return {401, "Log in first.\n", {}};
        if (isBanned(token->user)) return {403, token->user + " may not come in.\n", {}};
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
        if (verdict.status != 200) return refuse(user, verdict.status, verdict.text);
        user.token = verdict.token;
    }

    void postConnect(AuthUser &user, int) override { sendToUser(user, describe(user.token)); }

    void process(AuthUser &user, WSMessage &msg) override {
        if (msg.isBinary()) return disconnect(user, 1003, "text, please");
        Json::Value said;
        said["from"] = user.token.user;  // as signed, whatever the message claims
        said["text"] = msg.payload();
        sendToAll(said);
    }

    // Half a second late at most. A page that wants to stay logs in anew before.
    void tick() override {
        const std::int64_t now = secondsSince1970();
        for (AuthUser &user : users())
            if (user.token.expires <= now) disconnect(user, kTokenExpired, "the token has expired");
    }

    // --- what the page asks for ---

    void httpRequest(const WSRequest &request, WSResponse &response) override {
        response.headers = {{"Content-Type", "text/plain; charset=utf-8"},
                            {"Cache-Control", "no-store"},
                            {"X-Content-Type-Options", "nosniff"}};
        if (request.path() == "/") return servePage(response);
        if (request.path() == "/login") return login(request, response);
        if (request.path() == "/me") return tellWho(request, response);
        response.status = 404;
        response.body = "There is nothing here. The page is at /\n";
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

    // For the policy, the only script and the only style that a browser shall heed: what stands
    // in this element. Should a text ever slip into the page as HTML, it could do nothing.
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

    // Name and password come as Basic (RFC 7617): in a header, for a GET has no body and a URL
    // is written into logs. Pages of others cannot send that header. The 401 has no
    // WWW-Authenticate, though RFC 9110 15.5.2 wants one: the browser would ask for a password by
    // itself, and then send that along everywhere. How often one may try is for the proxy to limit.
    void login(const WSRequest &request, WSResponse &response) {
        constexpr std::string_view kBasic = "Basic ";
        std::string given = request.header("Authorization");
        if (given.compare(0, kBasic.size(), kBasic) != 0) given.clear();
        else given = decodeBase64(std::string_view(given).substr(kBasic.size()));
        const std::size_t colon = std::min(given.find(':'), given.size());
        const std::string name = given.substr(0, colon);
        const std::string_view password =
            std::string_view(given).substr(std::min(colon + 1, given.size()));
        // Both are looked at, always: nobody shall learn from the time which names there are.
        const bool isRight = isSamePassword(config().key, password, config().password);
        if (!isKnown(name) || !isRight) {
            response.status = 401;
            response.body = "That is not the name and the password of anybody.\n";
            return;
        }
        const Token token{name, secondsSince1970() + config().tokenSeconds};
        // HttpOnly: no script can read it. Secure: it goes over TLS only (browsers make an
        // exception of localhost). SameSite=Strict: no link or page of another site sends it.
        response.headers.emplace_back("Set-Cookie",
                                      std::string(kCookie) + '=' + sign(config().key, token) +
                                          "; Max-Age=" + std::to_string(config().tokenSeconds) +
                                          "; Path=/; HttpOnly; Secure; SameSite=Strict");
        response.status = 200;
        response.body = "Welcome, " + name + ".\n";
    }

    // A page does not learn why its WebSocket was refused; here it does.
    void tellWho(const WSRequest &request, WSResponse &response) {
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

constexpr const char *kUsage =
    "usage: auth [--port N] [--origin ORIGIN]... [--seconds N]\n"
    "  --port N         listen on this port of localhost (12345)\n"
    "  --origin ORIGIN  let in only pages from here (http://localhost:PORT)\n"
    "  --seconds N      how long a token is good (300)\n"
    "From the environment:\n"
    "  AUTH_KEY         what tokens are signed with, 32 characters or more, known to nobody\n"
    "  AUTH_PASSWORD    of the users ann, bob and mallory, who is banned\n";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

int numberFrom(const std::string &option, const std::string &text) {
    int number = -1;
    const char *end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || rest != end || number < 1 || number > 65535)
        throw UsageError(option + " wants a number from 1 to 65535, not '" + text + "'");
    return number;
}

// Secrets come from the environment, or what fills that from a file (systemd's
// EnvironmentFile): the source is for everybody to read, and arguments are for all on the machine.
std::string secretFrom(const char *name, std::size_t least) {
    const char *value = std::getenv(name);
    if (!value || std::string_view(value).size() < least)
        throw UsageError(std::string("set ") + name + ", to at least " + std::to_string(least) +
                         " characters");
    return value;
}

AuthConfig configFrom(int argc, char **argv) {
    AuthConfig config;
    for (int i = 1; i < argc; i += 2) {
        const std::string option = argv[i];
        if (i + 1 >= argc) throw UsageError(option + " wants a value");
        const std::string value = argv[i + 1];
        // clang-format off
        if (option == "--port") config.port = numberFrom(option, value);
        else if (option == "--origin") config.uniqueOrigin.push_back(value);
        else if (option == "--seconds") config.tokenSeconds = numberFrom(option, value);
        else throw UsageError("there is no option '" + option + "'");
        // clang-format on
    }
    config.key = secretFrom("AUTH_KEY", 32);
    config.password = secretFrom("AUTH_PASSWORD", 1);
    if (config.uniqueOrigin.empty())
        config.uniqueOrigin = {"http://localhost:" + std::to_string(config.port)};
    return config;
}

// auth.html lies beside the program, so call that by its path.
std::string readPage(const char *program) {
    const auto path = std::filesystem::path(program).replace_filename("auth.html");
    std::ifstream file(path, std::ios::binary);
    std::string page(std::istreambuf_iterator<char>(file), {});
    if (page.empty()) throw std::runtime_error("there is no page to serve at " + path.string());
    return page;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (argc == 2 && argv[1] == std::string_view("--help")) {
            std::cout << kUsage;
            return EXIT_SUCCESS;
        }
        AuthServer server(configFrom(argc, argv), readPage(argv[0]));
        server.stopOn({SIGINT, SIGTERM});
        server.listen();
        std::cout << "open http://localhost:" << server.port() << '/' << std::endl;
        server.run();
    } catch (const UsageError &error) {
        std::cerr << "auth: " << error.what() << "; try --help\n";
        return 2;
    } catch (const std::exception &error) {
        std::cerr << "auth: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
