// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server's frame decoder alone, for differential.py. It reads streams of bytes from
// standard input and prints what they contain. A case is a line of numbers
//
//     maxMessageBytes maxFragments pieces size...
//
// followed by the bytes of all its pieces. They are read as the server reads what recv()
// returns. The answer is a line with its size, then one line for each message and control frame
//
//     text|binary|ping|pong SIZE PAYLOAD
//
// and a last line with the end of the stream: "close CODE REASON" (the peer's Close),
// "fail CODE" (the peer broke the protocol), or "more" (valid so far).

#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "../../server.cpp"

namespace {

struct Case {
    MessageReader::Limits limits{};
    std::vector<std::size_t> sizes;
};

bool readCase(std::istream &in, Case &c) {
    std::size_t pieces = 0;
    in >> c.limits.maxMessageBytes >> c.limits.maxFragments >> pieces;
    c.sizes.resize(in ? pieces : 0);
    for (std::size_t &size : c.sizes) in >> size;
    in.get();  // the end of the line
    return static_cast<bool>(in);
}

// The decoder of one connection.
class Decoder {
  public:
    explicit Decoder(const Case &c) : limits_(c.limits) {}

    // What the server does after one recv(): what was not used before comes first. The bytes lie
    // in a buffer of exactly their size, so that the address sanitizer sees an over-read.
    void receive(std::string_view bytes) {
        const std::string all = std::exchange(kept_, {}).append(bytes);
        const std::unique_ptr<char[]> exact(new char[all.size()]);
        std::copy(all.begin(), all.end(), exact.get());
        const std::size_t used = readFrames(exact.get(), all.size());
        kept_.assign(exact.get() + used, all.size() - used);
    }

    std::string answer() const { return events_ + (end_.empty() ? "more" : end_) + '\n'; }

  private:
    std::size_t readFrames(char *bytes, std::size_t size) {
        std::size_t used = 0;
        while (end_.empty()) {
            MessageReader::Found found;
            const Progress progress = reader_.read(bytes + used, size - used, limits_, found);
            used += progress.used;
            if (progress.answer == Progress::needMore) break;
            if (progress.answer == Progress::bad) fail(progress.code);
            else received(found);
        }
        return used;
    }

    void received(const MessageReader::Found &found) {
        switch (found.opcode) {
        case Opcode::continuation: break;  // a frame, but no complete message
        case Opcode::text: note("text", *reader_.message); break;
        case Opcode::binary: note("binary", *reader_.message); break;
        case Opcode::ping: note("ping", found.payload); break;
        case Opcode::pong: note("pong", found.payload); break;
        case Opcode::close: receivedClose(found.payload); break;
        }
    }

    void note(const char *what, std::string_view payload) {
        events_ += what + (' ' + std::to_string(payload.size())) + ' ';
        events_.append(payload) += '\n';
    }

    void receivedClose(std::string_view payload) {
        const Progress close = parseClose(payload);
        if (close.answer == Progress::bad) return fail(close.code);
        end_ = "close " + std::to_string(close.code) + ' ';
        end_.append(payload.substr(close.used));
    }

    void fail(int code) { end_ = "fail " + std::to_string(code); }

    MessageReader reader_;
    MessageReader::Limits limits_;
    std::string kept_;  // bytes that the reader has not used yet
    std::string events_, end_;
};

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    Case c;
    while (readCase(std::cin, c)) {
        Decoder decoder(c);
        for (const std::size_t size : c.sizes) {
            std::string piece(size, '\0');
            std::cin.read(piece.data(), static_cast<std::streamsize>(size));
            decoder.receive(piece);
        }
        const std::string answer = decoder.answer();
        std::cout << answer.size() << '\n' << answer << std::flush;
    }
}
