// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Fuzzes the decoder of frames and messages. Whatever bytes a client sends, and however they
// are cut, MessageReader must find what a second decoder finds (reference.h).
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

// As WSLoop::readFrom() does it: first into the room that the reader offers, then, for what
// does not fit, into a buffer of our own.
void Feeder::roomy(std::string_view bytes, std::size_t most) {
    while (!bytes.empty() && outcome.code == 0) {
        const std::size_t asked = 1 + below(most);
        const MessageReader::Room room = reader_.room(asked);
        check(room.size <= asked, "the reader offers no more room than was asked for");
        const std::size_t got = std::min(bytes.size(), 1 + below(asked));
        const std::size_t inRoom = std::min(got, room.size);
        std::copy_n(bytes.data(), inRoom, room.bytes);
        if (inRoom > 0) read(room.bytes, inRoom);
        if (got > inRoom && outcome.code == 0) feed(bytes.substr(inRoom, got - inRoom));
        bytes.remove_prefix(got);
        if (reader_.idle() && below(2) == 0) reader_ = MessageReader();
    }
}

// Reads from a heap buffer of exactly that size, which the reader may change.
void Feeder::feed(std::string_view piece) {
    const std::unique_ptr<char[]> bytes(new char[piece.size()]);
    std::copy(piece.begin(), piece.end(), bytes.get());
    read(bytes.get(), piece.size());
}

void Feeder::read(char *bytes, std::size_t size) {
    for (;;) {
        MessageReader::Found found;
        const Progress progress = reader_.read(bytes, size, limits_, found);
        check(progress.used <= size, "no more bytes are used than there are");
        if (progress.answer == Progress::bad) {
            outcome.code = progress.code;
            check(std::strlen(progress.reason) > 0, "a failure has a reason");
        }
        if (progress.answer != Progress::done) return;
        check(progress.used > 0, "what is found has used bytes");
        if (found.opcode != Opcode::continuation) note(found);
        bytes += progress.used;
        size -= progress.used;
    }
}

void Feeder::note(const MessageReader::Found &found) {
    const bool control = found.opcode >= Opcode::close;
    check(found.payload.size() <= (control ? kMaxControlPayload : limits_.maxMessageBytes),
          "what is found is within the limits");
    check(found.opcode != Opcode::text || isText(found.payload), "text is UTF-8");
    outcome.add(found.opcode, found.payload);
    if (found.assembled && below(2) == 0)
        check(*reader_.take() == outcome.found.back().second, "what is taken is what was found");
}

// --- what was found -----------------------------------------------------------------------

// A Close is parsed as RFC 6455 5.5.1 and 7.4 demand, and encodes to what was parsed.
void checkClose(std::string_view payload) {
    ClosePayload close;
    const Progress progress = parseClose(payload, close);
    if (payload.empty()) return check(close.code == 1005, "a Close without a code is 1005");
    const int code = payload.size() < 2 ? 0
                                        : static_cast<unsigned char>(payload[0]) * 256 +
                                              static_cast<unsigned char>(payload[1]);
    const bool reserved = code == 1004 || code == 1005 || code == 1006;
    const bool allowed =
        (code >= 1000 && code < 1015 && !reserved) || (code >= 3000 && code < 5000);
    const int wanted = !allowed ? 1002 : !isText(payload.substr(2)) ? 1007 : 0;
    check(progress.code == wanted, "a bad Close is refused with the right code");
    if (wanted != 0) return;
    check(close.code == code && close.reason == payload.substr(2), "a Close is parsed");
    check(encodeClose(code, close.reason) == payload, "a Close encodes to what was parsed");
}

// The header that the server would send; with a mask it is a client's, and must be readable.
void checkHeader(Opcode opcode, std::size_t length) {
    std::string bytes(frameHeaderSize(length), '\0');
    encodeFrameHeader(bytes.data(), opcode, length);
    check((bytes[1] & 0x80) == 0, "the server's frames are not masked");
    bytes[1] = static_cast<char>(bytes[1] | '\x80');
    FrameHeader header;
    const Progress progress = parseFrameHeader(bytes.append(4, 'k'), header);
    check(progress.answer == Progress::done && progress.used == bytes.size() && header.fin &&
              header.opcode == opcode && header.length == length,
          "an encoded header can be parsed");
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
    check(whole.outcome == expected, "both decoders find the same");
    bytewise.pieces(bytes, 1);
    check(bytewise.outcome == expected, "the same is found byte by byte");
    pieces.pieces(bytes, 1 + seed);
    check(pieces.outcome == expected, "the same is found in pieces");
    roomy.roomy(bytes, 2 + 4 * seed);
    check(roomy.outcome == expected, "the same is found in the room that the reader offers");

    for (const auto &[opcode, payload] : expected.found) {
        checkHeader(opcode, payload.size());
        if (opcode == Opcode::close) checkClose(payload);
    }
    return 0;
}
