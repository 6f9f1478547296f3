// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The queue of unsent bytes (section 9), compared with a string of all bytes that are not sent
// yet.

#include "white.h"

namespace {

using Pieces = std::array<iovec, kMaxPieces>;

constexpr std::size_t kPiece = 16 * 1024;  // copied bytes are joined up to this size

Payload shared(std::string bytes) { return std::make_shared<std::string>(std::move(bytes)); }

void appendCopy(Outbox &outbox, std::string_view header, std::string_view payload = {}) {
    outbox.append(Exact(header).view(), Exact(payload).view());
}

std::size_t pieceCount(const Outbox &outbox) {
    Pieces pieces{};
    return outbox.gather(pieces);
}

// What one system call would send.
std::string gathered(const Outbox &outbox) {
    Pieces pieces{};
    const std::size_t count = outbox.gather(pieces);
    std::string bytes;
    for (std::size_t i = 0; i < count; ++i) {
        CHECK(pieces[i].iov_len > 0);
        bytes.append(static_cast<const char *>(pieces[i].iov_base), pieces[i].iov_len);
    }
    return bytes;
}

}  // namespace

TEST_CASE("an empty queue") {
    Outbox outbox;
    CHECK(outbox.size() == 0);
    CHECK(pieceCount(outbox) == 0);
    outbox.append("", "");
    outbox.append(shared(""));
    CHECK(outbox.size() == 0);
    CHECK(pieceCount(outbox) == 0);
    CHECK(outbox.sent(0) == nullptr);
    outbox.append("a", "");
    CHECK(gathered(outbox) == "a");
}

TEST_CASE("bytes come out in the order in which they were appended, cut at every place") {
    const std::string all = "onetwothreefour";
    for (std::size_t cut = 0; cut <= all.size(); ++cut) {
        CAPTURE(cut);
        Outbox outbox;
        appendCopy(outbox, "o", "ne");
        outbox.append(shared("two"));
        appendCopy(outbox, "", "");
        outbox.append(shared(""));
        appendCopy(outbox, "thr", "");
        appendCopy(outbox, "", "ee");
        outbox.append(shared("four"));
        CHECK(outbox.size() == all.size());
        CHECK(gathered(outbox) == all);
        outbox.sent(cut);
        CHECK(outbox.size() == all.size() - cut);
        CHECK(gathered(outbox) == all.substr(cut));
        appendCopy(outbox, "mo", "re");
        CHECK(gathered(outbox) == all.substr(cut) + "more");
        outbox.sent(outbox.size());
        CHECK(outbox.size() == 0);
        CHECK(pieceCount(outbox) == 0);
        appendCopy(outbox, "again");
        CHECK(gathered(outbox) == "again");
    }
}

TEST_CASE("two partial sends, cut at every two places") {
    const std::string parts[] = {"ab", "cde", "f", "ghij"};
    for (unsigned sharing = 0; sharing < 16; ++sharing)  // one bit for each part
        for (std::size_t first = 0; first <= 10; ++first)
            for (std::size_t second = 0; first + second <= 10; ++second) {
                Outbox outbox;
                for (unsigned i = 0; i < 4; ++i) {
                    if ((sharing >> i & 1) != 0) outbox.append(shared(parts[i]));
                    else appendCopy(outbox, parts[i]);
                }
                outbox.sent(first);
                const std::string between = gathered(outbox);
                outbox.sent(second);
                const std::string all = "abcdefghij";
                if (between != all.substr(first) || gathered(outbox) != all.substr(first + second))
                    FAIL(sharing << ": " << first << ", then " << second);
            }
}

TEST_CASE("how bytes are joined in pieces") {
    struct Append {
        std::size_t header, payload;
        bool isShared;
    };
    struct Row {
        std::string label;
        std::vector<Append> appends;
        std::size_t pieces;
    };
    const Row rows[] = {
        // clang-format off
        {"a header and its payload", {{2, 10, false}}, 1},
        {"small frames are joined", {{2, 10, false}, {2, 10, false}, {4, 200, false}}, 1},
        {"up to 16 KiB", {{4, kPiece - 5, false}, {0, 1, false}}, 1},
        {"then a new piece begins", {{4, kPiece - 4, false}, {1, 0, false}}, 2},
        {"a header is not separated from its payload", {{2, kPiece - 12, false}, {2, 9, false}}, 2},
        {"a large payload is one piece", {{10, 100'000, false}}, 1},
        {"nothing is joined to a large payload", {{10, 100'000, false}, {2, 1, false}}, 2},
        {"nothing is joined to a shared payload", {{0, 10, true}, {2, 10, false}}, 2},
        {"each shared payload is a piece", {{0, 10, true}, {0, 10, true}}, 2},
        {"joined, shared, joined",
         {{2, 10, false}, {2, 10, false}, {0, 10, true}, {2, 10, false}, {2, 9, false}}, 3},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        Outbox outbox;
        std::string all;
        for (const Append &one : row.appends) {
            const std::string header(one.header, 'h'), payload(one.payload, 'p');
            if (one.isShared) outbox.append(shared(payload));
            else appendCopy(outbox, header, payload);
            all += header + payload;
        }
        CHECK(pieceCount(outbox) == row.pieces);
        CHECK(gathered(outbox) == all);
        CHECK(outbox.size() == all.size());
    }
}

TEST_CASE("one system call gets 64 pieces; the others follow") {
    Outbox outbox;
    std::string all;
    for (std::size_t i = 0; i < 2 * kMaxPieces + 8; ++i) {
        const std::string bytes = std::to_string(i) + ' ';
        outbox.append(shared(bytes));
        all += bytes;
    }
    std::string sent;
    std::vector<std::size_t> calls;
    while (outbox.size() > 0) {
        calls.push_back(pieceCount(outbox));
        const std::string now = gathered(outbox);
        sent += now;
        outbox.sent(now.size());
    }
    CHECK(kMaxPieces >= 16);  // POSIX: _XOPEN_IOV_MAX
    CHECK(calls == std::vector<std::size_t>{kMaxPieces, kMaxPieces, 8});
    CHECK(sent == all);
}

TEST_CASE("copied bytes before a shared payload reserve no room for more") {
    const Payload payload = shared(std::string(4096, 'x'));
    Heap::reset();
    Outbox outbox;
    for (int i = 0; i < 100; ++i) {
        appendCopy(outbox, "", std::string(2050, 'y'));
        appendCopy(outbox, "", std::string(2050, 'y'));
        outbox.append(payload);
    }
    CHECK(Heap::held() < 100 * 2 * 2050 * 3 / 2);
}

TEST_CASE("a payload is shared, not copied, and released as soon as it is sent") {
    const Payload first = shared("first"), second = shared("second"), last = shared("last");
    Outbox outbox;
    outbox.append(first);
    outbox.append(second);
    appendCopy(outbox, "third");
    outbox.append(last);
    Pieces pieces{};
    REQUIRE(outbox.gather(pieces) == 4);
    CHECK(pieces[0].iov_base == first->data());
    CHECK(pieces[1].iov_base == second->data());
    outbox.sent(4);
    CHECK(first.use_count() == 2);
    outbox.sent(1);
    CHECK(first.use_count() == 1);
    CHECK(second.use_count() == 2);
    outbox.sent(7);
    CHECK(second.use_count() == 1);
    CHECK(gathered(outbox) == "hirdlast");
    CHECK(last.use_count() == 2);
    outbox.sent(8);
    CHECK(last.use_count() == 1);

    outbox.append(second);
    outbox = Outbox();
    CHECK(second.use_count() == 1);
    CHECK(outbox.size() == 0);
    CHECK(gathered(outbox).empty());
}

TEST_CASE("which payloads can be used again when they are sent") {
    struct Row {
        std::string label;
        std::size_t capacity, size, sent;
        bool isHeld, isReturned;
    };
    const Row rows[] = {
        {"a large one that nobody else holds", 100'000, 100'000, 100'000, false, true},
        {"what counts is its memory", 100'000, 10, 10, false, true},
        {"not a small one", 4096, 4096, 4096, false, false},
        {"but one that is a little larger", 4097, 4097, 4097, false, true},
        {"not one that somebody else holds", 100'000, 100'000, 100'000, true, false},
        {"not one of which a byte is unsent", 100'000, 100'000, 99'999, false, false},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        Payload payload = std::make_shared<std::string>();
        payload->reserve(row.capacity);
        if (row.capacity <= 4096 && payload->capacity() > 4096) continue;  // libc++ rounds up
        payload->resize(row.size, 'x');
        const std::string *const address = payload.get();
        const Payload held = row.isHeld ? payload : nullptr;
        Outbox outbox;
        outbox.append("header", "");
        outbox.append(std::move(payload));
        const Payload returned = outbox.sent(6 + row.sent);
        CHECK((returned != nullptr) == row.isReturned);
        if (returned) CHECK(returned.get() == address);
        if (returned) CHECK(returned.use_count() == 1);
        if (row.sent < row.size) CHECK(outbox.sent(row.size - row.sent).get() == address);
        if (row.isHeld) CHECK(held.use_count() == 1);
        if (row.isHeld) CHECK(*held == std::string(row.size, 'x'));
    }
}

TEST_CASE("of several payloads that are sent at once, one is returned, and the others freed") {
    Outbox outbox;
    Heap::reset();
    for (int i = 0; i < 5; ++i) outbox.append(shared(std::string(100'000, 'x')));
    appendCopy(outbox, "the end");
    Payload returned = outbox.sent(outbox.size() - 1);
    const bool large = returned && returned->size() == 100'000;
    returned = nullptr;
    const long held = Heap::held();
    CHECK(large);
    CHECK(held < 1000);
}

TEST_CASE("memory is freed on the way") {
    Outbox outbox;
    Heap::reset();
    while (outbox.size() < 2'000'000) {
        appendCopy(outbox, "header", std::string(4000, 'x'));
        outbox.append(shared(std::string(5000, 'x')));
    }
    const long full = Heap::held();
    while (outbox.size() > 10'000) {
        outbox.sent(7001);
        const long held = Heap::held();
        if (held > static_cast<long>(outbox.size()) + full / 8) FAIL(held << " bytes are held");
    }
}

TEST_CASE("the buffers of sent pieces do not stay with those that move to their places") {
    Outbox outbox;
    Heap::reset();
    while (outbox.size() < 2'000'000) appendCopy(outbox, "header", std::string(1000, 'x'));
    for (int i = 0; i < 512; ++i) {
        appendCopy(outbox, "h", "");
        outbox.append(shared(std::string(4000, 'x')));
    }
    const std::size_t half = outbox.size() / 2;
    while (outbox.size() > half) {
        outbox.sent(1400);
        const long held = Heap::held(), needed = static_cast<long>(outbox.size());
        if (held > needed + needed / 4) FAIL(held << " bytes are held for " << needed);
    }
}

TEST_CASE("each copied piece but the first is freed as soon as it is sent") {
    Outbox outbox;
    for (int i = 0; i < 8; ++i) appendCopy(outbox, "", std::string(kPiece, 'x'));
    REQUIRE(pieceCount(outbox) == 8);
    Heap::reset();
    outbox.sent(2 * kPiece);
    const long held = Heap::held();
    CHECK(held <= -static_cast<long>(kPiece));
}

TEST_CASE("a queue that is emptied again and again does not grow") {
    Outbox outbox;
    Heap::reset();
    for (int i = 0; i < 1000; ++i) {
        outbox.append(shared("payload"));
        outbox.sent(outbox.size());
    }
    const long held = Heap::held();
    CHECK(held < 10'000);
}

TEST_CASE("an empty queue keeps the memory of its first piece, and no other") {
    Outbox outbox;
    for (int round = 0; round < 3; ++round) {
        CAPTURE(round);
        appendCopy(outbox, "header", std::string(3000, 'x'));
        outbox.sent(outbox.size());
    }
    const std::string bytes(3000, 'x');
    Heap::reset();
    for (int round = 0; round < 3; ++round) {
        outbox.append("header", bytes);
        outbox.sent(outbox.size());
    }
    const long again = Heap::most();
    CHECK(again == 0);

    outbox = Outbox();
    Heap::reset();
    for (int i = 0; i < 100; ++i) {
        outbox.append("header", bytes);
        outbox.append(shared("payload"));
    }
    outbox.sent(outbox.size());
    const long held = Heap::held();
    CHECK(held < static_cast<long>(kPiece) + 30'000);  // a row of empty pieces
    outbox = Outbox();
    const long nothing = Heap::held();
    CHECK(nothing == 0);
}

TEST_CASE("a queue that is never empty does not grow") {
    for (const bool isShared : {false, true}) {
        CAPTURE(isShared);
        Outbox outbox;
        const std::string bytes(20'000, 'x');
        Heap::reset();
        const auto append = [&] {
            if (isShared) outbox.append(shared(bytes));
            else outbox.append(bytes, "");
        };
        append();
        for (int i = 0; i < 10'000; ++i) {
            append();
            outbox.sent(bytes.size() - 1);
            outbox.sent(1);
        }
        const long most = Heap::most();
        CHECK(outbox.size() == bytes.size());
        CHECK(most < 200'000);
    }
}

TEST_CASE("a queue takes hardly more memory than its bytes") {
    for (const std::size_t size : {1U, 20U, 127U, 1000U, 4000U}) {
        CAPTURE(size);
        const std::string bytes(size, 'x');
        Outbox outbox;
        Heap::reset();
        while (outbox.size() < 1'000'000) outbox.append(bytes, "");
        const auto held = static_cast<double>(Heap::held());
        CHECK(held < 1.05 * 1'000'000 + kPiece);
    }
}

TEST_CASE("a queue takes less than twice its bytes, received payloads with their slack included") {
    for (const std::size_t size : {std::size_t{4096}, std::size_t{5000}, std::size_t{70'000}}) {
        for (const std::size_t small : {std::size_t{0}, std::size_t{20}, std::size_t{3000}}) {
            CAPTURE(size);
            CAPTURE(small);
            const std::string bytes(small, 'x');
            Outbox outbox;
            Heap::reset();
            while (outbox.size() < 1'000'000) {
                const Payload payload = shared({});
                payload->reserve(size + size / 2);  // as much as MessageReader leaves
                payload->resize(size);
                outbox.append("header", "");
                outbox.append(payload);
                if (small > 0) outbox.append("header", bytes);
            }
            const auto held = static_cast<std::size_t>(Heap::held());
            CHECK(held < 2 * outbox.size() + kPiece);
        }
    }
}

TEST_CASE("random use, compared with a string") {
    Chance chance;
    Outbox outbox;
    std::string model;
    char next = 'a';
    for (int round = 0; round < 6000; ++round) {
        const std::string header(chance.below(11), 'H');
        std::string bytes(chance.below(chance.below(8) == 0 ? 20'000 : 60), next);
        next = next == 'z' ? 'a' : static_cast<char>(next + 1);
        if (chance.below(3) == 0) {
            outbox.append(shared(bytes));
            model += bytes;
        } else {
            appendCopy(outbox, header, bytes);
            model += header + bytes;
        }
        const std::string now = gathered(outbox);
        const bool all = pieceCount(outbox) < kMaxPieces;
        CHECK(outbox.size() == model.size());
        CHECK((all ? now == model : model.compare(0, now.size(), now) == 0));
        if (chance.below(3) > 0) continue;
        const std::size_t size = chance.below(4) == 0 ? now.size() : chance.below(now.size() + 1);
        const Payload large = outbox.sent(size);
        CHECK((large == nullptr || (large.use_count() == 1 && large->capacity() > 4096)));
        model.erase(0, size);
    }
}
