// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the README's code takes from the reader's own program: a look into a database, slow work, a
// file to send, a message broker. It includes nothing, because the check of each block alone must
// not find headers here that the README does not name; so include it behind server.h.

#ifndef WS_TESTS_README_H
#define WS_TESTS_README_H

inline std::string nickOf(const std::string &session) { return session == "1f2e3d" ? "Ann" : ""; }
inline std::string slowAnswer(const std::string &question) { return question + " 42"; }

// The pieces of a file of 10 MB, for a single user.
inline int piecesLeft = 100;
inline bool hasMore(const WSBaseUser &) { return piecesLeft > 0; }
inline std::string nextPiece(const WSBaseUser &) {
    return std::string(100'000, static_cast<char>('a' + --piecesLeft % 26));
}

// A broker that says each byte that comes through a descriptor.
struct Redis {
    std::function<std::string()> receive;
    int descriptor = -1;
    bool ended = false;

    int fd() const { return descriptor; }
    bool hasEnded() const { return ended; }
    std::vector<std::string> read() {
        const std::string text = receive();
        ended = text.empty();
        return ended ? std::vector<std::string>() : std::vector<std::string>{text};
    }
};
inline Redis redis;

#endif
