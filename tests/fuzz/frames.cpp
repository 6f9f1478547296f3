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
    void whole(std::string_view bytes) { feed(bytes); }
    void pieces(std::string_view bytes, std::size_t most);
    bool swapsMemory = false;  // whether the reader gets other memory whenever it may
    Outcome outcome;

  private:
    std::size_t below(std::size_t end) { return chance_() % end; }
    void feed(std::string_view piece);
    void note(const MessageReader::Found &found);
    void checkMemory() const;

    MessageReader::Limits limits_;
    std::minstd_rand chance_;
    MessageReader reader_;
    std::string kept_;           // bytes that the reader has not used yet
    std::size_t fed_ = 0;        // bytes that it was given so far
    std::size_t lent_ = kSmall;  // the largest memory that it was given
};

void Feeder::pieces(std::string_view bytes, std::size_t most) {
    while (!bytes.empty() && outcome.code == 0) {
        const std::string_view piece = bytes.substr(0, 1 + below(most));
        feed(piece);
        bytes.remove_prefix(piece.size());
    }
}

// As WSLoop::read() does it: what was not used before comes first. The bytes lie in a heap
// buffer of exactly their size, which the reader may change.
void Feeder::feed(std::string_view piece) {
    const std::string all = std::exchange(kept_, {}).append(piece);
    const std::unique_ptr<char[]> bytes(new char[all.size()]);
    std::copy(all.begin(), all.end(), bytes.get());
    fed_ += piece.size();
    for (std::size_t used = 0; outcome.code == 0;) {
        MessageReader::Found found;
        const Progress progress =
            reader_.read(bytes.get() + used, all.size() - used, limits_, found);
        used += progress.used;
        check(used <= all.size(), "no more bytes are used than there are");
        checkMemory();
        if (progress.answer == Progress::bad) {
            outcome.code = progress.code;
            check(std::strlen(progress.reason) > 0, "a failure has a reason");
        } else if (progress.answer == Progress::done) {
            check(progress.used > 0, "what is found has used bytes");
            if (found.opcode != Opcode::continuation) note(found);
        } else {
            kept_.assign(bytes.get() + used, all.size() - used);
            check(kept_.size() < kMaxFrameHeader + 4 + kMaxControlPayload,
                  "only a header or a control frame is given twice");
            return;
        }
    }
}

void Feeder::note(const MessageReader::Found &found) {
    const bool control = found.opcode >= Opcode::close;
    const std::string_view payload = control ? found.payload : *reader_.message;
    check(control || reader_.idle(), "no message is begun where one ends");
    check(payload.size() <= (control ? kMaxControlPayload : limits_.maxMessageBytes),
          "what is found is within the limits");
    check(found.opcode != Opcode::text || isText(payload), "text is UTF-8");
    check(control || reader_.message->capacity() <= 2 * payload.size() + kSmall,
          "a message holds little more memory than its size");
    outcome.add(found.opcode, payload);
    if (!swapsMemory || !reader_.idle()) return;
    if (below(2) == 0) return reader_.message.reset();
    const std::size_t size = below(4 * kSmall);
    reader_.message = std::make_shared<std::string>(size, '?');
    lent_ = std::max(lent_, size);
}

// A declared length allocates nothing: memory is in proportion to what has arrived. (Strings grow
// to twice what they had, at least.)
void Feeder::checkMemory() const {
    constexpr std::size_t kMostGrowth = 16;
    if (!reader_.message) return;
    check(reader_.message->capacity() <= 2 * std::max(lent_, kMostGrowth * fed_),
          "memory is allocated for what has arrived");
}

// --- what was found -----------------------------------------------------------------------

// A Close is parsed as RFC 6455 5.5.1 and 7.4 demand, and encodes to what was parsed.
void checkClose(std::string_view payload) {
    const Progress close = parseClose(payload);
    if (payload.empty()) return check(close.code == 1005, "a Close without a code is 1005");
    const int code = payload.size() < 2 ? 0
                                        : static_cast<unsigned char>(payload[0]) * 256 +
                                              static_cast<unsigned char>(payload[1]);
    const bool reserved = code == 1004 || code == 1005 || code == 1006;
    const bool allowed =
        (code >= 1000 && code < 1015 && !reserved) || (code >= 3000 && code < 5000);
    const int wanted = !allowed ? 1002 : !isText(payload.substr(2)) ? 1007 : 0;
    const bool refused = close.answer == Progress::bad;
    check(refused == (wanted != 0), "a Close is refused if it is bad");
    if (refused) return check(close.code == wanted, "a bad Close is refused with the right code");
    check(close.code == code && close.used == 2, "a Close is parsed");
    check(encodeClose(code, payload.substr(2)) == payload, "a Close encodes to what was parsed");
}

// The header that the server would send; with a mask it is a client's, and must be readable.
void checkHeader(Opcode opcode, std::size_t length) {
    std::string bytes(kMaxFrameHeader, '\0');
    bytes.resize(encodeFrameHeader(bytes.data(), opcode, length));
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
    Feeder whole(limits, seed), bytewise(limits, seed), pieces(limits, seed), swaps(limits, seed);
    whole.whole(bytes);
    check(whole.outcome == expected, "both decoders find the same");
    bytewise.pieces(bytes, 1);
    check(bytewise.outcome == expected, "the same is found byte by byte");
    pieces.pieces(bytes, 1 + seed);
    check(pieces.outcome == expected, "the same is found in pieces");
    swaps.swapsMemory = true;
    swaps.pieces(bytes, 2 + 4 * seed);
    check(swaps.outcome == expected, "the same is found in whatever memory the reader is given");

    for (const auto &[opcode, payload] : expected.found) {
        checkHeader(opcode, payload.size());
        if (opcode == Opcode::close) checkClose(payload);
    }
    return 0;
}
