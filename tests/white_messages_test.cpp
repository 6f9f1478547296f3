// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Messages (section 12). However the bytes of a connection are cut, and wherever they are
// received, a MessageReader tells the same story: here it is a string such as
// "ping(1) text(Hello) idle", and each story is told in all ways.

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

// Tells what a reader finds in what it is given. Each piece is in a buffer of its own.
class Story {
  public:
    explicit Story(const Limits &limits) : limits_(limits) {}

    // `bytes` are the reader's own room, or a buffer of ours.
    void read(char *bytes, std::size_t size) {
        while (!ended_) {
            Found found;
            const Progress progress = reader_.read(bytes, size, limits_, found);
            if (progress.answer == Progress::needMore) return;
            if (progress.answer == Progress::bad) return fail(progress);
            if (progress.used > size) FAIL("more is used than there is");
            const std::string inPlace(found.payload);
            const std::string payload = found.assembled ? *reader_.take() : inPlace;
            if (payload != inPlace) FAIL("what is taken is not what was found");
            const bool goesOn = found.opcode == Opcode::continuation;  // one frame of several
            if (goesOn && (found.assembled || !payload.empty())) FAIL("half a message was found");
            if (!goesOn) told_ += told(found.opcode, payload);
            bytes += progress.used;
            size -= progress.used;
        }
    }

    void readCopy(std::string_view piece) {
        const Exact exact(piece);
        read(exact.data(), exact.size());
    }

    // As the loop does it: into the reader's room as far as that goes, the rest elsewhere.
    void receive(std::string_view piece, std::size_t most) {
        const MessageReader::Room room = reader_.room(most);
        if (room.size > most) FAIL("the room is too large");
        const std::size_t inRoom = std::min(room.size, piece.size());
        std::copy_n(piece.data(), inRoom, room.bytes);
        if (inRoom > 0) read(room.bytes, inRoom);
        if (piece.size() > inRoom) readCopy(piece.substr(inRoom));
    }

    bool ended() const { return ended_; }
    std::string end() const { return ended_ ? told_ : told_ + (reader_.idle() ? "idle" : "..."); }

  private:
    void fail(const Progress &progress) {
        ended_ = true;
        told_ += "bad(" + std::to_string(progress.code) + ")";
        CHECK(*progress.reason != '\0');
    }

    MessageReader reader_;
    Limits limits_;
    std::string told_;
    bool ended_ = false;
};

std::string inPieces(std::string_view wire, const std::vector<std::size_t> &sizes,
                     const Limits &limits) {
    Story story(limits);
    for (const std::size_t size : sizes) {
        story.readCopy(wire.substr(0, size));
        wire.remove_prefix(size);
    }
    return story.end();
}

std::string intoRoom(std::string_view wire, const std::vector<std::size_t> &sizes, std::size_t most,
                     const Limits &limits) {
    Story story(limits);
    for (const std::size_t size : sizes) {
        if (story.ended()) break;
        story.receive(wire.substr(0, size), most);
        wire.remove_prefix(size);
    }
    return story.end();
}

// Whole, byte by byte, cut at every place, and in random pieces, copied and received.
void checkAllWays(const std::string &wire, const std::string &story, const Limits &limits) {
    const std::size_t size = wire.size();
    CHECK(inPieces(wire, {size}, limits) == story);
    const std::vector<std::size_t> ones(size, 1);
    CHECK(inPieces(wire, ones, limits) == story);
    CHECK(intoRoom(wire, ones, 1, limits) == story);
    CHECK(intoRoom(wire, ones, 4096, limits) == story);
    for (std::size_t cut = 0; cut <= size && size < 1000; ++cut) {
        CHECK(inPieces(wire, {cut, size - cut}, limits) == story);
        CHECK(intoRoom(wire, {cut, size - cut}, size, limits) == story);
    }
    Chance chance;
    for (int round = size < 1000 ? 20 : 2; round > 0; --round) {
        const std::size_t most = 1 + chance.below(40);
        CHECK(inPieces(wire, chance.pieces(size, most), limits) == story);
        CHECK(intoRoom(wire, chance.pieces(size, most), 1 + chance.below(60), limits) == story);
    }
}

// How many bytes it takes to say no, one at a time.
std::size_t refusedAt(const std::string &wire, const Limits &limits) {
    Story story(limits);
    std::size_t given = 0;
    while (given < wire.size() && !story.ended()) story.readCopy(wire.substr(given++, 1));
    return story.ended() ? given : 0;
}

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
        {"nothing at all", "", "idle"},
        {"an empty text", text(""), "text() idle"},
        {"an empty binary", binary(""), "binary() idle"},
        {"binary is any bytes", binary("\xFF\xC0\x80"), "binary(\xFF\xC0\x80) idle"},
        {"fragmented binary is any bytes",
         beginBinary("\xC3") + last("\xFF"), "binary(\xC3\xFF) idle"},
        {"a header that is not whole", text("Hello").substr(0, 5), "..."},
        {"a payload that is not whole", text("Hello").substr(0, 9), "..."},
        {"a message that is not whole", beginText("Hel"), "..."},
        {"a message that is not whole, and is empty so far", beginText(""), "..."},
        {"a control frame that is not whole", ping("Hello").substr(0, 9), "..."},
        {"a control frame inside a message that is not whole",
         beginText("a") + ping("b"), "ping(b) ..."},
        {"two messages, each in a frame", text("one") + text("two"), "text(one) text(two) idle"},
        {"a message and the beginning of another",
         text("one") + text("two").substr(0, 7), "text(one) ..."},
        {"three fragments", beginText("a") + more("b") + last("c"), "text(abc) idle"},
        {"a fragmented message, then one in a frame",
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
        {"a Close between fragments is found there",
         beginText("a") + close("\x03\xE8"), "close(\x03\xE8) ..."},
        {"a control payload is any bytes here", ping("\xFF\xC0"), "ping(\xFF\xC0) idle"},
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

TEST_CASE("what a client may not send, and at which byte it is refused") {
    struct Row {
        std::string label;
        std::string before;  // is fine
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
        {"text with a surrogate: its second byte tells it",
         "", text("Hi\xED\xA0\x80"), "bad(1007)", 10},
        {"text above U+10FFFF: the second byte tells it",
         "", text("Hi\xF4\x90\x80\x80"), "bad(1007)", 10},
        {"a bad byte behind a step of eight",
         "", text("0123456789abcdef\xFF and so on"), "bad(1007)", 23},
        {"a bad byte in a later fragment",
         beginText("a") + more("b"), last("c\xFF and so on"), "bad(1007)", 8},
        {"a bad byte in a first fragment: the last is not awaited",
         "", beginText("\xFF"), "bad(1007)", 7},
        {"a fragment that does not go on with the character",
         beginText("\xE2\x82"), last("A"), "bad(1007)", 7},
        {"the same, behind a Ping that would go on",
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
        checkAllWays(row.before + row.wire + text("never read"), row.story, kWide);
        CHECK(refusedAt(row.before + row.wire, kWide) == row.before.size() + row.at);
    }
}

TEST_CASE("limits: what is at one is fine, what is one over is not") {
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
        {"a frame of as many bytes as may be", text("abcde"), "text(abcde) idle", kBytes},
        {"a frame of one more", text("abcdef"), "bad(1009)", kBytes},
        {"one more, declared and not there", frame(0x81, "", 6), "bad(1009)", kBytes},
        {"65536, declared and not there", frame(0x82, "", 65536), "bad(1009)", kBytes},
        {"2^63 - 1, declared and not there", frame(0x82, "", kHuge), "bad(1009)", kBytes},
        {"fragments of as many bytes as may be", opened + last("de"), "text(abcde) idle", kBytes},
        {"then an empty one", opened + more("de") + last(""), "text(abcde) idle", kBytes},
        {"fragments of one more", opened + last("def"), "bad(1009)", kBytes},
        {"a third fragment of one more", opened + more("de") + more("f"), "bad(1009)", kBytes},
        {"a fragment that declares one more", opened + frame(0x80, "", 3), "bad(1009)", kBytes},
        {"a fragment that declares 2^63 - 1", opened + frame(0x00, "", kHuge), "bad(1009)", kBytes},
        {"the bytes of the last message do not count",
         opened + last("de") + text("fghij") + text("k"),
         "text(abcde) text(fghij) text(k) idle", kBytes},
        {"the bytes of control frames do not count", opened + ping("0123456789") + last("de"),
         "ping(0123456789) text(abcde) idle", kBytes},
        {"a control frame may be longer than a message",
         ping("0123456789"), "ping(0123456789) idle", kBytes},
        {"an empty message where none may have a byte", text(""), "text() idle", kNone},
        {"a byte where none may have one", text("a"), "bad(1009)", kNone},
        {"as many fragments as may be", three, "text(ab) idle", kFragments},
        {"one fragment more",
         beginText("a") + more("") + more("") + last("b"), "bad(1008)", kFragments},
        {"one empty fragment more",
         beginText("") + more("") + more("") + more(""), "bad(1008)", kFragments},
        {"the fragments of the last message do not count",
         three + three, "text(ab) text(ab) idle", kFragments},
        {"messages in a frame are no fragments of one",
         text("a") + text("b") + text("c") + text("d") + text("e"),
         "text(a) text(b) text(c) text(d) text(e) idle", kFragments},
        {"control frames are no fragments",
         beginText("a") + ping("1") + ping("2") + more("b") + ping("3") + last("c"),
         "ping(1) ping(2) ping(3) text(abc) idle", kFragments},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        checkAllWays(row.wire, row.story, row.limits);
    }
}

TEST_CASE("a limit may be lowered while a message is under way") {
    MessageReader reader;
    Found found;
    const Exact first(beginBinary(std::string(1000, 'a'))), second(last(std::string(400, 'b')));
    CHECK(reader.read(first.data(), first.size(), {2000, 9}, found).answer == Progress::done);
    const Progress progress = reader.read(second.data(), second.size(), {500, 9}, found);
    CHECK(progress.answer == Progress::bad);
    CHECK(progress.code == 1009);
}

TEST_CASE("random conversations: the reader tells what was written, however it came") {
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
        const std::size_t size = wire.size();
        CHECK(inPieces(wire, {size}, kWide) == story);
        for (const std::size_t most : {3U, 50U, 5000U}) {
            CHECK(inPieces(wire, chance.pieces(size, most), kWide) == story);
            CHECK(intoRoom(wire, chance.pieces(size, most), 1 + chance.below(most), kWide) ==
                  story);
        }
    }
}

TEST_CASE("random bytes: the same answer, however they come") {
    Chance chance;
    for (int round = 0; round < 3000; ++round) {
        std::string wire = beginText("a") + more("") + ping("p") + last("\u20AC") + binary("b");
        for (std::size_t i = 1 + chance.below(3); i > 0; --i)
            wire[chance.below(wire.size())] ^= static_cast<char>(1 << chance.below(8));
        const std::string story = inPieces(wire, {wire.size()}, {30, 4});
        CHECK(inPieces(wire, chance.pieces(wire.size(), 9), {30, 4}) == story);
        CHECK(intoRoom(wire, chance.pieces(wire.size(), 9), 1 + chance.below(9), {30, 4}) == story);
    }
}

TEST_CASE("what lies whole in the bytes given is found there, and nothing is allocated") {
    const std::string wire = text("Hello") + ping("p") + binary(std::string(70000, 'b'));
    const Exact bytes(wire);
    MessageReader reader;
    Heap::reset();
    std::size_t begin = 0;
    for (int i = 0; i < 3; ++i) {
        Found found;
        const Progress progress =
            reader.read(bytes.data() + begin, bytes.size() - begin, kWide, found);
        const bool inPlace =
            found.payload.data() >= bytes.data() + begin &&
            found.payload.data() + found.payload.size() <= bytes.data() + bytes.size();
        if (progress.answer != Progress::done || found.assembled || !inPlace) FAIL(i);
        begin += progress.used;
    }
    const long most = Heap::most();
    CHECK(most == 0);
    CHECK(begin == wire.size());
}

TEST_CASE("a declared length allocates nothing; what has arrived, at most sixteen times that") {
    const std::string wire = frame(0x82, std::string(20000, 'b'), 1 << 20);
    const Exact bytes(wire);
    const std::size_t header = wire.size() - 20000;
    for (const std::size_t arrived : {0U, 1U, 2U, 100U, 1000U, 20000U}) {
        CAPTURE(arrived);
        MessageReader reader;
        const Exact copy(wire.substr(0, header + arrived));
        Heap::reset();
        Found found;
        for (std::size_t i = 0; i < copy.size(); ++i)
            static_cast<void>(reader.read(copy.data() + i, 1, kWide, found));
        const long most = Heap::most();
        constexpr long kString = 64;  // and what counts who shares it
        CHECK(most <= static_cast<long>(3 * 16 * arrived) + kString);  // old, new, its own growth
        if (arrived == 0) CHECK(most == 0);
    }
}

TEST_CASE("a room is no larger than what has arrived warrants, whatever was declared") {
    for (const std::size_t arrived : {0U, 1U, 100U}) {
        CAPTURE(arrived);
        MessageReader reader;
        const Exact bytes(frame(0x82, std::string(arrived, 'b'), 1 << 20));
        Found found;
        static_cast<void>(reader.read(bytes.data(), bytes.size(), kWide, found));
        Heap::reset();
        const MessageReader::Room room = reader.room(256 * 1024);
        const long most = Heap::most();
        CHECK(room.size <= 256 * 1024);
        CHECK(most <= 16 * 1024);
    }
}

TEST_CASE("a room is only offered where it helps") {
    struct Row {
        std::string label;
        std::string wire;
        bool offered;
    };
    const Row rows[] = {
        {"nothing is under way", "", false},
        {"a header is not whole", text("Hello").substr(0, 4), false},
        {"a control frame is not whole", ping("Hello").substr(0, 8), false},
        {"a payload is not whole", text("Hello").substr(0, 8), true},
        {"a fragment is whole, the next has not begun", beginText("Hello"), false},
        {"a control frame inside a message is not whole",
         beginText("a") + ping("Hello").substr(0, 8), false},
        {"a message is whole", text("Hello"), false},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        MessageReader reader;
        const Exact bytes(row.wire);
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            Found found;
            static_cast<void>(reader.read(bytes.data() + i, 1, kWide, found));
        }
        CHECK((reader.room(100).size > 0) == row.offered);
        CHECK(reader.room(0).size == 0);
        if (row.offered) CHECK(reader.room(100).size <= 3);
    }
}

TEST_CASE("what was received into a room is not copied again") {
    const std::string payload(100000, 'b');
    const std::string wire = binary(payload);
    for (const std::size_t first : {15U, 5000U}) {
        CAPTURE(first);
        MessageReader reader;
        const Exact beginning(wire.substr(0, first));
        Found found;
        static_cast<void>(reader.read(beginning.data(), beginning.size(), kWide, found));
        std::string_view rest = std::string_view(wire).substr(first);
        while (!rest.empty()) {
            const MessageReader::Room room = reader.room(200000);
            REQUIRE(room.size > 0);
            REQUIRE(room.size <= rest.size());
            std::copy_n(rest.data(), room.size, room.bytes);
            static_cast<void>(reader.read(room.bytes, room.size, kWide, found));
            rest.remove_prefix(room.size);
        }
        REQUIRE(found.assembled);
        const char *where = found.payload.data();
        const Payload taken = reader.take();
        CHECK(*taken == payload);
        CHECK(taken->data() == where);
    }
}

TEST_CASE("a message is received into a spare payload, if there is one for it") {
    const std::string payload(100000, 'b'), old(120000, 'o');
    for (const std::size_t first : {1U, 20000U, 99999U}) {
        CAPTURE(first);
        SparePayloads spares(kSpareBytes);
        spares.giveBack(std::make_shared<std::string>(old));
        const MessageReader::Limits limits{1 << 20, 16, &spares};
        const Exact wire(binary(payload));
        const std::size_t cut = wire.size() - payload.size() + first;
        MessageReader reader;
        Found found;
        Heap::reset();
        static_cast<void>(reader.read(wire.data(), cut, limits, found));
        static_cast<void>(reader.read(wire.data() + cut, wire.size() - cut, limits, found));
        const long most = Heap::most();
        REQUIRE(found.assembled);
        CHECK(*reader.take() == payload);
        CHECK(reader.take() == nullptr);
        const bool suits = 16 * first >= payload.size();  // of a few bytes nothing is known yet
        CHECK((most == 0) == suits);
        CHECK((spares.take(old.size()) == nullptr) == suits);
    }
}

TEST_CASE("a reader holds memory only while something is unfinished") {
    struct Row {
        std::string label;
        std::size_t first;  // bytes that come before a room is asked for
        bool taken;
    };
    const std::string wire = binary(std::string(5000, 'b'));
    const std::size_t header = wire.size() - 5000;
    const Row rows[] = {
        {"the message is taken", header + 100, true},
        {"the message is not taken, the reader reads on", header + 100, false},
        {"only its last byte came later, and it is taken", wire.size() - 1, true},
        {"all but the header came later, and it is taken", header, true},
        {"all but the header came later, and it is not taken", header, false},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        MessageReader reader;
        const Exact copy(wire), next(ping("p"));
        Heap::reset();
        Found found;
        static_cast<void>(reader.read(copy.data(), row.first, kWide, found));
        for (std::size_t at = row.first; at < copy.size();) {
            const MessageReader::Room room = reader.room(5000);
            const std::size_t size = room.size > 0 ? room.size : copy.size() - at;
            if (room.size > 0) std::copy_n(copy.data() + at, size, room.bytes);
            char *bytes = room.size > 0 ? room.bytes : copy.data() + at;
            static_cast<void>(reader.read(bytes, size, kWide, found));
            at += size;
        }
        const bool right = found.opcode == Opcode::binary && found.payload.size() == 5000 &&
                           found.payload[4999] == 'b' && reader.idle();
        if (row.taken && found.assembled) static_cast<void>(reader.take());
        Found another;
        static_cast<void>(reader.read(next.data(), next.size(), kWide, another));
        const long held = Heap::held();
        CHECK(right);
        CHECK(another.opcode == Opcode::ping);
        CHECK(held == 0);
    }
}

TEST_CASE("what was found before is not found again") {
    MessageReader reader;
    Found found;
    const Exact whole(text("Hello")), fragment(beginText("Hel"));
    CHECK(reader.read(whole.data(), whole.size(), kWide, found).answer == Progress::done);
    CHECK(found.payload == "Hello");
    CHECK(reader.read(fragment.data(), fragment.size(), kWide, found).answer == Progress::done);
    CHECK(found.opcode == Opcode::continuation);
}

TEST_CASE("each call reads one frame, so that whoever calls can count them") {
    MessageReader reader;
    const Exact bytes(beginText("a") + more("") + ping("p") + last("b") + text("c"));
    std::string story;
    std::size_t used = 0;
    int frames = 0;
    for (; used < bytes.size(); ++frames) {
        Found found;
        const Progress progress =
            reader.read(bytes.data() + used, bytes.size() - used, kWide, found);
        REQUIRE(progress.answer == Progress::done);
        used += progress.used;
        if (found.opcode != Opcode::continuation) story += told(found.opcode, found.payload);
    }
    CHECK(frames == 5);
    CHECK(used == bytes.size());
    CHECK(story == "ping(p) text(ab) text(c) ");
}
