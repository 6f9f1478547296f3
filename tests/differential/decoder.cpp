// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server's frame decoder alone, for differential.py. It reads streams of bytes from
// standard input and prints what they contain. A case is a line of numbers
//
//     maxMessageBytes maxFragments direct pieces size...
//
// followed by the bytes of all its pieces. They are read as the server reads what recv()
// returns; if `direct` is 1, into the room that the reader offers while it offers any. The
// answer is a line with its size, then one line for each message and control frame
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

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif

#include "../../server.cpp"

namespace {

struct Case {
    MessageReader::Limits limits{};
    bool direct = false;
    std::vector<std::size_t> sizes;
};

bool readCase(std::istream &in, Case &c) {
    std::size_t pieces = 0;
    in >> c.limits.maxMessageBytes >> c.limits.maxFragments >> c.direct >> pieces;
    c.sizes.resize(in ? pieces : 0);
    for (std::size_t &size : c.sizes) in >> size;
    in.get();  // the end of the line
    return static_cast<bool>(in);
}

// The decoder of one connection.
class Decoder {
  public:
    explicit Decoder(const Case &c) : limits_(c.limits), direct_(c.direct) {}

    // What the server does after one recv(). The bytes lie in buffers of exactly their size,
    // so that the address sanitizer sees an over-read.
    void receive(std::string_view bytes) {
        const MessageReader::Room room =
            direct_ ? reader_.room(bytes.size()) : MessageReader::Room{};
        if (room.size > 0) {
            std::copy_n(bytes.data(), room.size, room.bytes);
            readFrames(room.bytes, room.size);
        }
        bytes.remove_prefix(room.size);
        const std::unique_ptr<char[]> rest(new char[bytes.size()]);
        std::copy(bytes.begin(), bytes.end(), rest.get());
        readFrames(rest.get(), bytes.size());
    }

    std::string answer() const { return events_ + (end_.empty() ? "more" : end_) + '\n'; }

  private:
    void readFrames(char *bytes, std::size_t size) {
        while (end_.empty()) {
            MessageReader::Found found;
            const Progress progress = reader_.read(bytes, size, limits_, found);
            if (progress.answer == Progress::needMore) return;
            if (progress.answer == Progress::bad) fail(progress.code);
            else received(found);
            bytes += progress.used;
            size -= progress.used;
        }
    }

    void received(const MessageReader::Found &found) {
        switch (found.opcode) {
        case Opcode::continuation: break;  // a frame, but no complete message
        case Opcode::text: note("text", found); break;
        case Opcode::binary: note("binary", found); break;
        case Opcode::ping: note("ping", found); break;
        case Opcode::pong: note("pong", found); break;
        case Opcode::close: receivedClose(found.payload); break;
        }
    }

    void note(const char *what, const MessageReader::Found &found) {
        const std::string payload = found.assembled ? *reader_.take() : std::string(found.payload);
        events_ += what + (' ' + std::to_string(payload.size())) + ' ' + payload + '\n';
    }

    void receivedClose(std::string_view payload) {
        ClosePayload close;
        const Progress progress = parseClose(payload, close);
        if (progress.answer == Progress::bad) return fail(progress.code);
        end_ = "close " + std::to_string(close.code) + ' ' + std::string(close.reason);
    }

    void fail(int code) { end_ = "fail " + std::to_string(code); }

    MessageReader reader_;
    MessageReader::Limits limits_;
    bool direct_;
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
