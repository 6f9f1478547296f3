// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Messages (section 12). However the bytes of a connection are cut, a MessageReader tells the
// same story: here it is a string such as "ping(1) text(Hello) idle", and each story is told in
// all ways.

#include "white.h"

namespace {

using Limits = MessageReader::Limits;
using Found = MessageReader::Found;
constexpr Limits kWide{1 << 20, 100};

// --- writing ---

std::string frame(unsigned first, std::string_view payload, std::uint64_t declared) {
    std::string wire = encodedHeader(Opcode::text, declared);
    wire[0] = static_cast<char>(first);
    wire[1] = static_cast<char>(wire[1] | 0x80);
    const std::string key = fromHex("37fa213d");
    wire += key;
    for (std::size_t i = 0; i < payload.size(); ++i)
        wire += static_cast<char>(payload[i] ^ key[i % 4]);
    return wire;
}

// The frames of RFC 6455 5.2, by the first byte of their headers.
std::string frame(unsigned first, std::string_view payload) {
    return frame(first, payload, payload.size());
}
std::string text(std::string_view payload) { return frame(0x81, payload); }
std::string binary(std::string_view payload) { return frame(0x82, payload); }
std::string close(std::string_view payload) { return frame(0x88, payload); }
std::string ping(std::string_view payload) { return frame(0x89, payload); }
std::string pong(std::string_view payload) { return frame(0x8A, payload); }
std::string beginText(std::string_view payload) { return frame(0x01, payload); }
std::string beginBinary(std::string_view payload) { return frame(0x02, payload); }
std::string more(std::string_view payload) { return frame(0x00, payload); }
std::string last(std::string_view payload) { return frame(0x80, payload); }

// --- reading ---

std::string told(Opcode opcode, std::string_view payload) {
    const char *name = opcode == Opcode::text     ? "text("
                       : opcode == Opcode::binary ? "binary("
                       : opcode == Opcode::close  ? "close("
                       : opcode == Opcode::ping   ? "ping("
                                                  : "pong(";
    return name + std::string(payload) + ") ";
}

// What a caller does with the message that a reader has collected.
enum class Memory { takenAway, leftThere, replaced };

// Tells what a reader finds in the pieces that it is given. As in WSLoop::read(), the bytes that
// a call has not used are given again in front of the next piece.
class Story {
  public:
    explicit Story(const Limits &limits, Memory memory = Memory::takenAway)
        : limits_(limits), memory_(memory) {
        prepareMessage();
    }

    void read(std::string_view piece) {
        kept_.append(piece);
        while (!ended_ && readOnce()) {}
    }

    bool ended() const { return ended_; }
    std::string end() const {
        if (ended_) return told_;
        return told_ + (reader_.idle() && kept_.empty() ? "idle" : "...");
    }

  private:
    bool readOnce() {
        const Exact bytes(kept_);
        Found found;
        const Progress progress = reader_.read(bytes.data(), bytes.size(), limits_, found);
        if (progress.used > bytes.size()) FAIL("more is used than there is");
        const std::string_view rest = bytes.view().substr(progress.used);
        if (rest != std::string_view(kept_).substr(progress.used)) FAIL("the rest is changed");
        if (progress.answer == Progress::bad) return fail(progress), false;
        if (progress.answer == Progress::done) tell(found);
        kept_ = rest;
        // Less than the longest control frame: a masked header, and 125 bytes.
        if (progress.answer == Progress::needMore && kept_.size() >= 6 + 125) FAIL("too much kept");
        return progress.answer == Progress::done;
    }

    void tell(const Found &found) {
        if (found.opcode == Opcode::continuation) {  // one frame of several
            if (!found.payload.empty()) FAIL("half a message was found");
        } else if (found.opcode >= Opcode::close) {
            told_ += told(found.opcode, found.payload);
        } else {
            told_ += told(found.opcode, *reader_.message);
            prepareMessage();
        }
    }

    void fail(const Progress &progress) {
        ended_ = true;
        told_ += "bad(" + std::to_string(progress.code) + ")";
        CHECK(*progress.reason != '\0');
    }

    void prepareMessage() {
        if (memory_ == Memory::takenAway) reader_.message = nullptr;
        if (memory_ == Memory::replaced)
            reader_.message = std::make_shared<std::string>("an older message \xFF");
    }

    MessageReader reader_;
    Limits limits_;
    Memory memory_;
    std::string kept_, told_;
    bool ended_ = false;
};

std::string inPieces(std::string_view wire, const std::vector<std::size_t> &sizes,
                     const Limits &limits, Memory memory = Memory::takenAway) {
    Story story(limits, memory);
    for (const std::size_t size : sizes) {
        story.read(wire.substr(0, size));
        wire.remove_prefix(size);
    }
    return story.end();
}

// Whole, byte by byte, cut at every place, and in random pieces.
void checkAllWays(const std::string &wire, const std::string &story, const Limits &limits) {
    const std::size_t size = wire.size();
    for (const Memory memory : {Memory::takenAway, Memory::leftThere, Memory::replaced}) {
        CHECK(inPieces(wire, {size}, limits, memory) == story);
        CHECK(inPieces(wire, std::vector<std::size_t>(size, 1), limits, memory) == story);
    }
    for (std::size_t cut = 0; cut <= size && size < 1000; ++cut)
        CHECK(inPieces(wire, {cut, size - cut}, limits) == story);
    Chance chance;
    for (int round = size < 1000 ? 20 : 2; round > 0; --round)
        CHECK(inPieces(wire, chance.pieces(size, 1 + chance.below(60)), limits) == story);
}

// How many bytes it takes until they are refused, given one at a time.
std::size_t refusedAt(const std::string &wire, const Limits &limits) {
    Story story(limits);
    std::size_t given = 0;
    while (given < wire.size() && !story.ended()) story.read(wire.substr(given++, 1));
    return story.ended() ? given : 0;
}

Progress readAll(MessageReader &reader, std::string_view bytes, Found &found) {
    const Exact exact(bytes);
    return reader.read(exact.data(), exact.size(), kWide, found);
}

Payload memoryOf(std::size_t size) {
    Payload memory = std::make_shared<std::string>();
    memory->reserve(size);
    return memory;
}

// An empty string and the count of its owners. Heap may count whole pages where the address
// sanitizer does not tell it what was asked for.
#ifdef WS_ADDRESS_SANITIZER
constexpr long kString = 64;
#else
constexpr long kString = 64 + 4096;
#endif

}  // namespace

TEST_CASE("what a client may send") {
    struct Row {
        std::string label;
        std::string wire;
        std::string story;
    };
    const Row rows[] = {
        // clang-format off
        {"RFC 6455 5.7: a single-frame masked text message",
         fromHex("8185 37fa213d 7f9f4d5158"), "text(Hello) idle"},
        {"RFC 6455 5.7: a masked Pong",
         fromHex("8a85 37fa213d 7f9f4d5158"), "pong(Hello) idle"},
        {"RFC 6455 5.7's fragmented text, masked",
         beginText("Hel") + last("lo"), "text(Hello) idle"},
        {"no bytes at all", "", "idle"},
        {"an empty text", text(""), "text() idle"},
        {"an empty binary", binary(""), "binary() idle"},
        {"binary may be any bytes", binary("\xFF\xC0\x80"), "binary(\xFF\xC0\x80) idle"},
        {"fragmented binary may be any bytes",
         beginBinary("\xC3") + last("\xFF"), "binary(\xC3\xFF) idle"},
        {"a header that is not whole", text("Hello").substr(0, 5), "..."},
        {"a payload that is not whole", text("Hello").substr(0, 9), "..."},
        {"a message that is not whole", beginText("Hel"), "..."},
        {"a message that is not whole, and empty so far", beginText(""), "..."},
        {"a control frame that is not whole", ping("Hello").substr(0, 9), "..."},
        {"a control frame inside a message that is not whole",
         beginText("a") + ping("b"), "ping(b) ..."},
        {"two messages of one frame each", text("one") + text("two"), "text(one) text(two) idle"},
        {"a message and the beginning of another",
         text("one") + text("two").substr(0, 7), "text(one) ..."},
        {"three fragments", beginText("a") + more("b") + last("c"), "text(abc) idle"},
        {"a fragmented message, then one in a single frame",
         beginText("a") + last("b") + text("c"), "text(ab) text(c) idle"},
        {"two fragmented messages of two kinds",
         beginBinary("\xFF") + last("") + beginText("a") + last("b"),
         "binary(\xFF) text(ab) idle"},
        {"an empty first fragment", beginText("") + last("ab"), "text(ab) idle"},
        {"an empty fragment in the middle", beginText("a") + more("") + last("b"), "text(ab) idle"},
        {"an empty last fragment", beginText("ab") + last(""), "text(ab) idle"},
        {"nothing but empty fragments",
         beginText("") + more("") + last("") + text("x"), "text() text(x) idle"},
        {"a Ping between two fragments (5.4)",
         beginText("a") + ping("!") + last("b"), "ping(!) text(ab) idle"},
        {"all control frames between fragments",
         beginText("a") + pong("1") + more("b") + ping("") + ping("3") + last("c"),
         "pong(1) ping() ping(3) text(abc) idle"},
        {"a Close between fragments",
         beginText("a") + close("\x03\xE8"), "close(\x03\xE8) ..."},
        {"the payload of a Ping may be any bytes", ping("\xFF\xC0"), "ping(\xFF\xC0) idle"},
        {"a character across two frames",
         beginText("\xE2") + last("\x82\xAC"), "text(\u20AC) idle"},
        {"a character across two frames and a Ping",
         beginText("\xE2\x82") + ping("\xFF") + last("\xAC"),
         "ping(\xFF) text(\u20AC) idle"},
        {"a character in four frames, with empty ones",
         beginText("\xF0") + more("\x9F") + more("") + more("\x98") + last("\x80"),
         "text(\U0001F600) idle"},
        {"characters of all sizes in one frame",
         text("a\u00E4\u20AC\U0001F600"), "text(a\u00E4\u20AC\U0001F600) idle"},
        {"a control frame of 125 bytes",
         ping(std::string(125, 'p')), "ping(" + std::string(125, 'p') + ") idle"},
        {"a text of 125 bytes",
         text(std::string(125, 't')), "text(" + std::string(125, 't') + ") idle"},
        {"a text of 126 bytes, the length in 16 bits",
         text(std::string(126, 't')), "text(" + std::string(126, 't') + ") idle"},
        {"a text of 65536 bytes, the length in 64 bits", text(std::string(65536, 't')),
         "text(" + std::string(65536, 't') + ") idle"},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        checkAllWays(row.wire, row.story, kWide);
        checkAllWays(ping("x") + row.wire, "ping(x) " + row.story, kWide);
    }
}

TEST_CASE("what a client must not send, and the byte at which it is refused") {
    struct Row {
        std::string label;
        std::string before;  // is in order
        std::string wire;
        std::string story;
        std::size_t at;  // of `wire`
    };
    const Row rows[] = {
        // clang-format off
        {"a continuation with nothing to continue", "", more("a"), "bad(1002)", 6},
        {"a last fragment with nothing to continue", "", last("a"), "bad(1002)", 6},
        {"a continuation behind a whole message", text("a"), last("b"), "text(a) bad(1002)", 6},
        {"a continuation behind a fragmented message",
         beginText("a") + last("b"), last("c"), "text(ab) bad(1002)", 6},
        {"a continuation behind a control frame", ping("a"), more("b"), "ping(a) bad(1002)", 6},
        {"a text inside a text", beginText("a"), text("b"), "bad(1002)", 6},
        {"a text inside an empty text", beginText(""), text("b"), "bad(1002)", 6},
        {"a binary inside a text", beginText("a"), binary("b"), "bad(1002)", 6},
        {"a fragment of a text inside a binary", beginBinary("a"), beginText("b"), "bad(1002)", 6},
        {"a text inside a text, behind a Ping",
         beginText("a") + ping("p"), text("b"), "ping(p) bad(1002)", 6},
        {"a fragmented Ping inside a message", beginText("a"), frame(0x09, "b"), "bad(1002)", 1},
        {"a reserved opcode behind a whole message",
         text("a"), frame(0x83, "b"), "text(a) bad(1002)", 1},
        {"a control frame of 126 bytes", "", ping(std::string(126, 'p')), "bad(1002)", 2},
        {"a frame that is not masked",
         text("a"), fromHex("810548656c6c6f"), "text(a) bad(1002)", 2},
        {"text that begins with a continuation byte", "", text("\x80 and so on"), "bad(1007)", 7},
        {"text with a bad byte in the middle of a frame",
         "", text("Hello\xC0 and so on"), "bad(1007)", 12},
        {"text with a surrogate: its second byte shows it",
         "", text("Hi\xED\xA0\x80"), "bad(1007)", 10},
        {"text above U+10FFFF: the second byte shows it",
         "", text("Hi\xF4\x90\x80\x80"), "bad(1007)", 10},
        {"a bad byte behind a step of eight",
         "", text("0123456789abcdef\xFF and so on"), "bad(1007)", 23},
        {"a bad byte in a later fragment",
         beginText("a") + more("b"), last("c\xFF and so on"), "bad(1007)", 8},
        {"a bad byte in a first fragment: the reader does not wait for the last",
         "", beginText("\xFF"), "bad(1007)", 7},
        {"a fragment that does not continue the character",
         beginText("\xE2\x82"), last("A"), "bad(1007)", 7},
        {"the same, behind a Ping whose payload would continue it",
         beginText("\xE2\x82") + ping("\xAC"), last("A"),
         "ping(\xAC) bad(1007)", 7},
        {"text that ends inside a character", "", text("a\xE2\x82"), "bad(1007)", 9},
        {"fragmented text that ends inside a character",
         beginText("a\xE2"), last("\x82"), "bad(1007)", 7},
        {"an empty last fragment inside a character", beginText("a\xE2"), last(""), "bad(1007)", 6},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        checkAllWays(row.before + row.wire, row.story, kWide);
        checkAllWays(row.before + row.wire + text("not read any more"), row.story, kWide);
        CHECK(refusedAt(row.before + row.wire, kWide) == row.before.size() + row.at);
    }
}

TEST_CASE("the reader says what is wrong with a frame's place") {
    const std::pair<std::string, std::string> rows[] = {
        {more("a"), "a continuation has nothing to continue"},
        {beginText("a") + text("b"), "a message begins inside another"},
    };
    for (const auto &[wire, reason] : rows) {
        MessageReader reader;
        const Exact bytes(wire);
        Found found;
        std::size_t used = 0;
        Progress progress;
        do {
            progress = reader.read(bytes.data() + used, bytes.size() - used, kWide, found);
            used += progress.used;
        } while (progress.answer == Progress::done);
        CHECK(progress.reason == reason);
    }
}

TEST_CASE("a message at a limit is read, and one above it is refused") {
    constexpr Limits kBytes{5, 100}, kFragments{100, 3}, kNone{0, 1};
    constexpr std::uint64_t kHuge = (std::uint64_t{1} << 63) - 1;
    const std::string opened = beginText("abc");
    const std::string three = beginText("a") + more("") + last("b");
    struct Row {
        std::string label;
        std::string wire;
        std::string story;
        Limits limits;
    };
    const Row rows[] = {
        // clang-format off
        {"a frame as large as the limit", text("abcde"), "text(abcde) idle", kBytes},
        {"a frame of one byte more", text("abcdef"), "bad(1009)", kBytes},
        {"one byte more that is only declared", frame(0x81, "", 6), "bad(1009)", kBytes},
        {"65536 bytes that are only declared", frame(0x82, "", 65536), "bad(1009)", kBytes},
        {"2^63 - 1 bytes that are only declared", frame(0x82, "", kHuge), "bad(1009)", kBytes},
        {"fragments that reach the limit", opened + last("de"), "text(abcde) idle", kBytes},
        {"fragments that reach the limit, and an empty one",
         opened + more("de") + last(""), "text(abcde) idle", kBytes},
        {"fragments of one byte more", opened + last("def"), "bad(1009)", kBytes},
        {"a third fragment that goes one byte beyond the limit",
         opened + more("de") + more("f"), "bad(1009)", kBytes},
        {"a fragment that only declares one byte more",
         opened + frame(0x80, "", 3), "bad(1009)", kBytes},
        {"a fragment that only declares 2^63 - 1 bytes",
         opened + frame(0x00, "", kHuge), "bad(1009)", kBytes},
        {"the bytes of the last message do not count",
         opened + last("de") + text("fghij") + text("k"),
         "text(abcde) text(fghij) text(k) idle", kBytes},
        {"the bytes of control frames do not count", opened + ping("0123456789") + last("de"),
         "ping(0123456789) text(abcde) idle", kBytes},
        {"a control frame may be longer than a message",
         ping("0123456789"), "ping(0123456789) idle", kBytes},
        {"an empty message, if the limit is 0", text(""), "text() idle", kNone},
        {"a byte, if the limit is 0", text("a"), "bad(1009)", kNone},
        {"as many fragments as the limit", three, "text(ab) idle", kFragments},
        {"one fragment more",
         beginText("a") + more("") + more("") + last("b"), "bad(1008)", kFragments},
        {"one empty fragment more",
         beginText("") + more("") + more("") + more(""), "bad(1008)", kFragments},
        {"the fragments of the last message do not count",
         three + three, "text(ab) text(ab) idle", kFragments},
        {"messages of one frame each are not fragments",
         text("a") + text("b") + text("c") + text("d") + text("e"),
         "text(a) text(b) text(c) text(d) text(e) idle", kFragments},
        {"control frames are not fragments",
         beginText("a") + ping("1") + ping("2") + more("b") + ping("3") + last("c"),
         "ping(1) ping(2) ping(3) text(abc) idle", kFragments},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        checkAllWays(row.wire, row.story, row.limits);
    }
}

TEST_CASE("a limit may be lowered in the middle of a message") {
    MessageReader reader;
    Found found;
    const Exact first(beginBinary(std::string(1000, 'a'))), second(last(std::string(400, 'b')));
    CHECK(reader.read(first.data(), first.size(), {2000, 9}, found).answer == Progress::done);
    const Progress progress = reader.read(second.data(), second.size(), {500, 9}, found);
    CHECK(progress.answer == Progress::bad);
    CHECK(progress.code == 1009);
}

TEST_CASE("random conversations: the reader finds what was written, however it is cut") {
    Chance chance;
    for (int round = 0; round < 150; ++round) {
        std::string wire, story;
        const auto controls = [&] {
            for (; chance.below(4) == 0; story += told(Opcode::ping, "p\xFF"))
                wire += ping("p\xFF");
        };
        for (std::size_t messages = chance.below(5); messages > 0; --messages) {
            const bool isText = chance.below(2) == 0;
            std::string payload;
            for (std::size_t i = chance.below(chance.below(10) == 0 ? 9000 : 90); i > 0; --i)
                payload += isText ? std::string(chance.below(2) == 0 ? "\u20AC" : "x")
                                  : std::string(1, static_cast<char>(chance.below(256)));
            controls();
            unsigned opcode = isText ? 0x01 : 0x02;
            std::string_view rest = payload;
            for (; chance.below(2) == 0; opcode = 0) {
                const std::size_t size = chance.below(rest.size() + 1);
                wire += frame(opcode, rest.substr(0, size));
                rest.remove_prefix(size);
                controls();
            }
            wire += frame(0x80 | opcode, rest);
            story += told(isText ? Opcode::text : Opcode::binary, payload);
        }
        story += "idle";
        for (const std::size_t most : {3U, 50U, 5000U, 1U << 20}) {
            CHECK(inPieces(wire, chance.pieces(wire.size(), most), kWide) == story);
            CHECK(inPieces(wire, chance.pieces(wire.size(), most), kWide, Memory::leftThere) ==
                  story);
        }
    }
}

TEST_CASE("random bytes: the same answer, however they are cut") {
    Chance chance;
    for (int round = 0; round < 3000; ++round) {
        std::string wire = beginText("a") + more("") + ping("p") + last("\u20AC") + binary("b");
        for (std::size_t i = 1 + chance.below(3); i > 0; --i)
            wire[chance.below(wire.size())] ^= static_cast<char>(1 << chance.below(8));
        const std::string story = inPieces(wire, {wire.size()}, {30, 4});
        CHECK(inPieces(wire, chance.pieces(wire.size(), 9), {30, 4}) == story);
        CHECK(inPieces(wire, std::vector<std::size_t>(wire.size(), 1), {30, 4}) == story);
    }
}

TEST_CASE("each call reads one frame, so that its caller can count them") {
    const std::string wire = beginText("a") + more("") + ping("p") + last("b") + text("c");
    MessageReader reader;
    const Exact bytes(wire);
    std::vector<Opcode> opcodes;
    std::size_t used = 0;
    while (used < bytes.size()) {
        Found found;
        const Progress progress =
            reader.read(bytes.data() + used, bytes.size() - used, kWide, found);
        REQUIRE(progress.answer == Progress::done);
        used += progress.used;
        opcodes.push_back(found.opcode);
    }
    CHECK(used == bytes.size());
    CHECK(opcodes == std::vector<Opcode>{Opcode::continuation, Opcode::continuation, Opcode::ping,
                                         Opcode::text, Opcode::text});
}

TEST_CASE("which bytes are used when more are needed") {
    struct Row {
        std::string label;
        std::string wire;
        std::size_t used;
        bool idle;
    };
    const std::string five = text("Hello"), long16 = text(std::string(126, 't'));
    const Row rows[] = {
        {"nothing", "", 0, true},
        {"a header that is not whole", five.substr(0, 5), 0, true},
        {"a longer header that is not whole", long16.substr(0, 7), 0, true},
        {"a header alone", five.substr(0, 6), 6, false},
        {"a payload that is not whole", five.substr(0, 10), 10, false},
        {"a control frame that is not whole", ping("Hello").substr(0, 10), 0, true},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        MessageReader reader;
        Found found;
        const Progress progress = readAll(reader, row.wire, found);
        CHECK(progress.answer == Progress::needMore);
        CHECK(progress.used == row.used);
        CHECK(reader.idle() == row.idle);
    }
}

TEST_CASE("a reader is idle between messages, not between the frames of one") {
    MessageReader reader;
    Found found;
    CHECK(reader.idle());
    CHECK(readAll(reader, beginText("a"), found).answer == Progress::done);
    CHECK_FALSE(reader.idle());
    CHECK(readAll(reader, ping("p"), found).answer == Progress::done);
    CHECK_FALSE(reader.idle());
    CHECK(readAll(reader, last("b"), found).answer == Progress::done);
    CHECK(reader.idle());
}

// --- memory ---

TEST_CASE("a control payload is found in the bytes given, and allocates nothing") {
    MessageReader reader;
    for (const std::string &wire :
         {ping("Hello"), close("\x03\xE8"), pong(std::string(125, 'p'))}) {
        const Exact bytes(wire);
        Found found;
        Heap::reset();
        const Progress progress = reader.read(bytes.data(), bytes.size(), kWide, found);
        const long most = Heap::most();
        CHECK(progress.used == bytes.size());
        CHECK(found.payload.data() == bytes.data() + 6);
        CHECK(most == 0);
    }
}

TEST_CASE("a declared length allocates nothing; what has arrived, at most sixteen times that") {
    const std::string wire = frame(0x82, std::string(20000, 'b'), 1 << 20);
    const std::size_t header = wire.size() - 20000;
    for (const std::size_t arrived : {0U, 1U, 2U, 100U, 1000U, 20000U}) {
        CAPTURE(arrived);
        const auto bytes = static_cast<long>(arrived);
        for (const bool whole : {true, false}) {
            CAPTURE(whole);
            MessageReader reader;
            const Exact copy(wire.substr(0, header + arrived));
            const std::size_t step = whole ? std::max<std::size_t>(arrived, 1) : 1;
            Found found;
            Heap::reset();
            static_cast<void>(reader.read(copy.data(), header, kWide, found));
            for (std::size_t i = header; i < copy.size(); i += step)
                static_cast<void>(reader.read(copy.data() + i, step, kWide, found));
            const long held = Heap::held(), most = Heap::most();
            CHECK(held <= 16 * bytes + kString);
            CHECK(most <= 17 * bytes + kString);  // the old memory and the new, when it grows
        }
    }
}

TEST_CASE("a message that comes in one piece takes its own size, in one allocation") {
    for (const std::size_t size : {100U, 70'000U}) {
        CAPTURE(size);
        const std::string wire = binary(std::string(size, 'b'));
        MessageReader reader;
        const Exact bytes(wire);
        Found found;
        Heap::reset();
        static_cast<void>(reader.read(bytes.data(), bytes.size(), kWide, found));
        const long most = Heap::most();
        CHECK(found.opcode == Opcode::binary);
        CHECK(most <= static_cast<long>(size) + kString);
    }
}

TEST_CASE("a frame that comes in two pieces takes its own size") {
    const std::string wire = binary(std::string(5000, 'b'));
    const std::size_t first = wire.size() - 5000 + 100;
    MessageReader reader;
    const Exact bytes(wire);
    Found found;
    static_cast<void>(reader.read(bytes.data(), first, kWide, found));
    static_cast<void>(reader.read(bytes.data() + first, bytes.size() - first, kWide, found));
    CHECK(found.opcode == Opcode::binary);
    CHECK(reader.message->capacity() < 5100);
}

TEST_CASE("when a sixteenth of a frame has arrived, there is room for all of it") {
    const std::string payload(160'000, 'b'), wire = binary(payload);
    const std::size_t first = wire.size() - payload.size() + 10'000;
    MessageReader reader;
    const Exact bytes(wire);
    Found found;
    static_cast<void>(reader.read(bytes.data(), first, kWide, found));
    const char *const memory = reader.message->data();
    Heap::reset();
    for (std::size_t i = first; i < bytes.size(); i += 10'000)
        static_cast<void>(reader.read(bytes.data() + i, 10'000, kWide, found));
    const long most = Heap::most();
    CHECK(*reader.message == payload);
    CHECK(reader.message->data() == memory);
    CHECK(most == 0);
}

TEST_CASE("the memory of the last message serves for the next one") {
    for (const std::size_t cut : {0U, 1U, 20'000U, 99'999U}) {
        CAPTURE(cut);
        const std::string payload(100'000, 'b'), wire = binary(payload);
        const std::size_t first = wire.size() - payload.size() + cut;
        MessageReader reader;
        reader.message = memoryOf(120'000);
        const char *const memory = reader.message->data();
        const Exact bytes(wire);
        Found found;
        Heap::reset();
        const Progress begun = reader.read(bytes.data(), first, kWide, found);
        const Progress ended =
            reader.read(bytes.data() + first, bytes.size() - first, kWide, found);
        const long most = Heap::most();
        CHECK(begun.answer == Progress::needMore);
        CHECK(ended.answer == Progress::done);
        CHECK(*reader.message == payload);
        CHECK(reader.message->data() == memory);
        CHECK(most == 0);
    }
}

TEST_CASE("an unfinished message takes no more than twice the limit, however it is fragmented") {
    for (const std::size_t size : {1'000U, 70'000U, 180'000U}) {
        CAPTURE(size);
        MessageReader reader;
        Found found;
        long held = 0;
        Heap::reset();
        std::string wire = beginBinary(std::string(size, 'b'));
        for (std::size_t all = size; all + size <= 1'000'000; all += size) {
            static_cast<void>(readAll(reader, wire, found));
            std::string().swap(wire);
            held = std::max(held, Heap::held());
            wire = more(std::string(size, 'b'));
        }
        CHECK(held <= 2 * 1'000'000 + kString);
        CHECK_FALSE(reader.idle());
    }
}

TEST_CASE("a small message does not keep the memory of a large one") {
    struct Row {
        std::string label;
        std::size_t memory, size;
        bool kept;
    };
    const Row rows[] = {
        {"an empty message in little memory", 4096, 0, true},
        {"an empty message in more", 5000, 0, false},
        {"a message of a few bytes", 1'000'000, 10, false},
        {"a message of less than two thirds", 1'000'000, 660'000, false},
        {"a message of two thirds", 1'000'000, 666'667, true},
        {"a message of more", 1'000'000, 700'000, true},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        MessageReader reader;
        reader.message = memoryOf(row.memory);
        const std::size_t most = std::max<std::size_t>(row.size * 3 / 2, 4096);
        if (row.kept && reader.message->capacity() > most) continue;  // reserve() may round up
        const char *const memory = reader.message->data();
        Found found;
        CHECK(readAll(reader, binary(std::string(row.size, 'b')), found).answer == Progress::done);
        CHECK(*reader.message == std::string(row.size, 'b'));
        CHECK((reader.message->data() == memory) == row.kept);
        CHECK(reader.message->capacity() <= most);
    }
}

TEST_CASE("whatever the message holds before is overwritten") {
    for (const std::string &old : {std::string("old"), std::string(1000, '\xFF')}) {
        const std::pair<std::string, std::string> rows[] = {
            {text(""), ""},
            {text("Hello"), "Hello"},
            {beginText("Hel") + ping("p") + last("lo"), "Hello"},
            {beginText("") + last(std::string(200, 't')), std::string(200, 't')},
        };
        for (const auto &[wire, payload] : rows) {
            MessageReader reader;
            reader.message = std::make_shared<std::string>(old);
            const Exact bytes(wire);
            Found found;
            for (std::size_t used = 0; used < bytes.size();) {
                found = {};
                const std::size_t rest = bytes.size() - used;
                used += reader.read(bytes.data() + used, rest, kWide, found).used;
            }
            CHECK(found.opcode == Opcode::text);
            CHECK(*reader.message == payload);
        }
    }
}

TEST_CASE("a reader has no memory but its message") {
    MessageReader reader;
    Found found;
    const Exact one(beginBinary(std::string(5000, 'b'))), two(last(std::string(5000, 'c')));
    Heap::reset();
    static_cast<void>(reader.read(one.data(), one.size(), kWide, found));
    static_cast<void>(reader.read(two.data(), two.size(), kWide, found));
    const std::size_t size = reader.message->size();
    reader.message = nullptr;
    const long held = Heap::held();
    CHECK(size == 10'000);
    CHECK(held == 0);
}
