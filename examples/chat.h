// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What chat.cpp and cluster.cpp share: the rules for text and nicks, the history, and serving the
// page chat.html.

#ifndef EXAMPLES_CHAT_H
#define EXAMPLES_CHAT_H

#include "../server.h"
#include "program.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <iterator>
#include <string>
#include <utility>

constexpr std::size_t kHistory = 100;              // messages that a newcomer gets at most,
constexpr std::size_t kHistoryBytes = 128 * 1024;  // and the bytes that they may take as JSON
constexpr std::size_t kTextCharacters = 4000;      // chat.html repeats this limit and the next
constexpr std::size_t kNickCharacters = 20;
constexpr const char *kUnfitNick = "A name must be 1 to 20 visible characters.";

// ----------------------------------------------------------------------------
// Text. In UTF-8, every byte of a character but the first is 10xxxxxx.
// ----------------------------------------------------------------------------

// The first `count` characters; never cuts one in two.
inline std::string firstCharacters(const std::string &text, std::size_t count) {
    std::size_t end = 0;
    while (end < text.size() && ((text[end] & 0xC0) == 0x80 || count-- > 0)) ++end;
    return text.substr(0, end);
}

inline std::string trimmed(const std::string &text) {
    const std::size_t begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string::npos) return {};
    return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// True for control characters and those that make two nicks look the same or reverse the line:
// unusual spaces, zero-width marks, changes of direction. Look-alike letters are not detected.
inline bool isUnfitForNick(std::string_view character) {
    constexpr std::string_view kRanges[][2] = {
        {"\x7F", "\u00A0"},   {"\u00AD", "\u00AD"}, {"\u1680", "\u1680"},
        {"\u2000", "\u200B"}, {"\u200E", "\u200F"}, {"\u2028", "\u202F"},
        {"\u205F", "\u206F"}, {"\u3000", "\u3000"}, {"\uFEFF", "\uFEFF"}};
    return character < " " ||
           std::any_of(std::begin(kRanges), std::end(kRanges), [&](const auto &range) {
               return character >= range[0] && character <= range[1];
           });
}

// `wish` as a nick to display; empty if it is not valid.
inline std::string tidyNick(const std::string &wish) {
    std::string nick;
    for (std::string rest = trimmed(wish); !rest.empty();) {
        const std::string character = firstCharacters(rest, 1);
        if (isUnfitForNick(character)) return {};
        if (character != " " || nick.back() != ' ') nick += character;
        rest.erase(0, character.size());
    }
    return trimmed(firstCharacters(nick, kNickCharacters));
}

// In ASCII lower case, so that Ann and ANN count as the same nick.
inline std::string folded(std::string nick) {
    for (char &c : nick)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return nick;
}

// "Ann", "Ann 2", "Ann 3", … for `n` = 1, 2, 3, …
inline std::string numbered(const std::string &nick, int n) {
    if (n < 2) return nick;
    const std::string number = ' ' + std::to_string(n);
    return trimmed(firstCharacters(nick, kNickCharacters - number.size())) + number;
}

inline std::int64_t millisecondsSince1970() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

// The first characters of a string in a message; empty if it is missing or not a string.
inline std::string stringIn(const Json::Value &message, const char *name,
                            std::size_t characters = 64) {
    const Json::Value &value = message[name];
    return value.isString() ? firstCharacters(value.asString(), characters) : std::string();
}

// ----------------------------------------------------------------------------
// The history and the welcome. Clients can connect and say hello again and again, so a welcome must
// cost little: the messages in it are not encoded again, and there is a limit to their bytes.
// ----------------------------------------------------------------------------

// The last messages, as they were sent, oldest first.
class History {
  public:
    struct Said {
        std::string key;
        WSMessage message;
    };

    void remember(std::string key, const WSMessage &message) {
        bytes_ += message.payload().size();
        said_.push_back({std::move(key), message});
        for (; said_.size() > kHistory || bytes_ > kHistoryBytes; said_.pop_front())
            bytes_ -= said_.front().message.payload().size();
    }

    bool has(const std::string &key) const {
        return std::any_of(said_.begin(), said_.end(),
                           [&](const Said &said) { return said.key == key; });
    }

    const std::deque<Said> &said() const { return said_; }
    std::size_t bytes() const { return bytes_; }

  private:
    std::deque<Said> said_;
    std::size_t bytes_ = 0;  // of all their payloads
};

// Appends a nick, in which no characters but these two must be escaped, to a list in JSON.
inline void appendNick(std::string &list, const std::string &nick) {
    list += list.empty() ? "\"" : ",\"";
    for (const char c : nick) {
        if (c == '"' || c == '\\') list += '\\';
        list += c;
    }
    list += '"';
}

// `message` with the nicks and the history in it.
inline WSMessage welcomeOf(const Json::Value &message, const std::string &people,
                           const History &history) {
    std::string text = WSMessage(message).payload();
    text.reserve(text.size() + people.size() + history.bytes() + kHistory + 32);
    text.back() = ',';  // it was the closing brace
    text.append("\"people\":[").append(people).append("],\"history\":[");
    for (const History::Said &said : history.said()) text.append(said.message.payload()) += ',';
    if (text.back() == ',') text.pop_back();
    return WSMessage(std::move(text += "]}"));
}

// ----------------------------------------------------------------------------
// The page
// ----------------------------------------------------------------------------

// Serves the page at its path, 404 elsewhere.
inline void answerWithPage(const WSRequest &request, WSResponse &response,
                           const std::string &page) {
    const bool found = request.path() == "/" || request.path() == "/index.html";
    response.status = found ? 200 : 404;
    response.body = "Not found. The chat is at /\n";
    response.headers = {{"Content-Type", found ? "text/html; charset=utf-8" : "text/plain"},
                        {"Cache-Control", "no-store"},
                        {"X-Content-Type-Options", "nosniff"},
                        {"Referrer-Policy", "no-referrer"}};
    if (found) fillIn(response, page);
}

#endif
