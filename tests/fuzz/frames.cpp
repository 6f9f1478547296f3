// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Fuzzes the decoder of frames and messages. Whatever a client's bytes are and however they
// are cut, MessageReader finds the same, and it is what a second decoder finds (reference.h).
//
// Input: a byte that chooses the limits, a byte that chooses the cuts, a client's frames.

#include "reference.h"

#include <random>

namespace {

// --- the decoder under test, as the loop uses it ------------------------------------------

class Feeder {
  public:
    Feeder(const MessageReader::Limits &limits, unsigned seed) : limits_(limits), chance_(seed) {}
    void whole(std::string_view bytes) { feed(std::string(bytes)); }
    void pieces(std::string_view bytes, std::size_t most);
    void roomy(std::string_view bytes, std::size_t most);
    Outcome outcome;

  private:
    std::size_t below(std::size_t end) { return chance_() % end; }
    void feed(std::string_view piece);
    void read(char *bytes, std::size_t size);
    void note(const MessageReader::Found &found);

    MessageReader::Limits limits_;
    std::minstd_rand chance_;
    MessageReader reader_;
};

void Feeder::pieces(std::string_view bytes, std::size_t most) {
    while (!bytes.empty() && outcome.code == 0) {
        const std::string_view piece = bytes.substr(0, 1 + below(most));
        feed(piece);
        bytes.remove_prefix(piece.size());
    }
}

// As WSLoop::readFrom() does it: first into the room that the reader offers, what does not
// fit there into a buffer of our own.
void Feeder::roomy(std::string_view bytes, std::size_t most) {
    while (!bytes.empty() && outcome.code == 0) {
        const std::size_t asked = 1 + below(most);
        const MessageReader::Room room = reader_.room(asked);
        check(room.size <= asked, "no more room than was asked for");
        const std::size_t got = std::min(bytes.size(), 1 + below(asked));
        const std::size_t inRoom = std::min(got, room.size);
        std::copy_n(bytes.data(), inRoom, room.bytes);
        if (inRoom > 0) read(room.bytes, inRoom);
        if (got > inRoom && outcome.code == 0) feed(bytes.substr(inRoom, got - inRoom));
        bytes.remove_prefix(got);
        if (reader_.idle() && below(2) == 0) reader_ = MessageReader();
    }
}

// In a buffer of exactly that size, which the reader may change.
void Feeder::feed(std::string_view piece) {
    const std::unique_ptr<char[]> bytes(new char[piece.size()]);
    std::copy(piece.begin(), piece.end(), bytes.get());
    read(bytes.get(), piece.size());
}

void Feeder::read(char *bytes, std::size_t size) {
    for (;;) {
        MessageReader::Found found;
        const Progress progress = reader_.read(bytes, size, limits_, found);
        check(progress.used <= size, "no more is used than there is");
        if (progress.answer == Progress::bad) {
            outcome.code = progress.code;
            check(std::strlen(progress.reason) > 0, "a failure has a reason");
        }
        if (progress.answer != Progress::done) return;
        check(progress.used > 0, "what is found has used something");
        if (found.opcode != Opcode::continuation) note(found);
        bytes += progress.used;
        size -= progress.used;
    }
}

void Feeder::note(const MessageReader::Found &found) {
    const bool control = found.opcode >= Opcode::close;
    check(found.payload.size() <= (control ? kMaxControlPayload : limits_.maxMessageBytes),
          "what is found keeps to the limits");
    check(found.opcode != Opcode::text || isText(found.payload), "text is UTF-8");
    outcome.add(found.opcode, found.payload);
    if (found.assembled && below(2) == 0)
        check(*reader_.take() == outcome.found.back().second, "what is taken is what was found");
}

// --- what is made of it -------------------------------------------------------------------

// A Close is understood as RFC 6455 5.5.1 and 7.4 have it, and written as it was read.
void checkClose(std::string_view payload) {
    ClosePayload close;
    const Progress progress = parseClose(payload, close);
    if (payload.empty()) return check(close.code == 1005, "no code is 1005");
    const int code = payload.size() < 2 ? 0
                                        : static_cast<unsigned char>(payload[0]) * 256 +
                                              static_cast<unsigned char>(payload[1]);
    const bool reserved = code == 1004 || code == 1005 || code == 1006;
    const bool allowed =
        (code >= 1000 && code < 1015 && !reserved) || (code >= 3000 && code < 5000);
    const int wanted = !allowed ? 1002 : !isText(payload.substr(2)) ? 1007 : 0;
    check(progress.code == wanted, "a Close is refused for what is wrong with it");
    if (wanted != 0) return;
    check(close.code == code && close.reason == payload.substr(2), "a Close is understood");
    check(encodeClose(code, close.reason) == payload, "a Close is written as it was read");
}

// The header that we would send it with: masked, it is a client's, and can be read.
void checkHeader(Opcode opcode, std::size_t length) {
    std::string bytes(frameHeaderSize(length), '\0');
    encodeFrameHeader(bytes.data(), opcode, length);
    check((bytes[1] & 0x80) == 0, "what we send is not masked");
    bytes[1] = static_cast<char>(bytes[1] | '\x80');
    FrameHeader header;
    const Progress progress = parseFrameHeader(bytes.append(4, 'k'), header);
    check(progress.answer == Progress::done && progress.used == bytes.size() && header.fin &&
              header.opcode == opcode && header.length == length,
          "a header that is written can be read");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char *data, std::size_t size) {
    Input input(data, size);
    const unsigned limit = input.byte(), seed = input.byte();
    const MessageReader::Limits limits{std::size_t{1} << (limit & 0xF) << (limit >> 7),
                                       1 << (limit >> 4 & 0x7)};
    const std::string_view bytes = input.bytes(size);

    const Outcome expected = Reference(bytes, limits).outcome;
    Feeder whole(limits, seed), bytewise(limits, seed), pieces(limits, seed), roomy(limits, seed);
    whole.whole(bytes);
    check(whole.outcome == expected, "the same is found as by the other decoder");
    bytewise.pieces(bytes, 1);
    check(bytewise.outcome == expected, "the same is found byte by byte");
    pieces.pieces(bytes, 1 + seed);
    check(pieces.outcome == expected, "the same is found in pieces");
    roomy.roomy(bytes, 2 + 4 * seed);
    check(roomy.outcome == expected, "the same is found when it is received into the room");

    for (const auto &[opcode, payload] : expected.found) {
        checkHeader(opcode, payload.size());
        if (opcode == Opcode::close) checkClose(payload);
    }
    return 0;
}
