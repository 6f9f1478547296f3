// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Spare payloads and the queue of unsent bytes (section 9), the latter against a string that
// does the same.

#include "white.h"

namespace {

using Pieces = std::array<iovec, kMaxPieces>;

SparePayloads spares(kSpareBytes);
Payload shared(std::string bytes) { return std::make_shared<std::string>(std::move(bytes)); }

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
    outbox.clear(spares);
    CHECK(outbox.size() == 0);
    outbox.append(std::string_view());
    outbox.append(shared(""));
    CHECK(outbox.size() == 0);
    CHECK(pieceCount(outbox) == 0);
    CHECK_FALSE(outbox.pong.has_value());
}

TEST_CASE("what is appended comes out in order, cut at every place") {
    const std::string all = "onetwothreefour";
    for (std::size_t cut = 0; cut <= all.size(); ++cut) {
        CAPTURE(cut);
        Outbox outbox;
        outbox.append("one");
        outbox.append(shared("two"));
        outbox.append("");
        outbox.append(shared(""));
        outbox.append("thr");
        outbox.append("ee");
        outbox.append(shared("four"));
        CHECK(outbox.size() == all.size());
        CHECK(gathered(outbox) == all);
        outbox.sent(cut, spares);
        CHECK(outbox.size() == all.size() - cut);
        CHECK(gathered(outbox) == all.substr(cut));
        outbox.append("more");
        CHECK(gathered(outbox) == all.substr(cut) + "more");
        outbox.sent(outbox.size(), spares);
        CHECK(outbox.size() == 0);
        CHECK(pieceCount(outbox) == 0);
        outbox.append("again");
        CHECK(gathered(outbox) == "again");
    }
}

TEST_CASE("how bytes are joined to pieces") {
    struct Row {
        std::string label;
        std::vector<std::pair<std::size_t, bool>> appended;  // how many bytes, and if shared
        std::size_t pieces;
    };
    const Row rows[] = {
        {"small ones are joined", {{10, false}, {10, false}, {10, false}}, 1},
        {"up to 16 KiB", {{16 * 1024 - 1, false}, {1, false}}, 1},
        {"beyond that, a new piece begins", {{16 * 1024, false}, {1, false}}, 2},
        {"a large one is one piece", {{100000, false}}, 1},
        {"nothing is joined to a large one", {{100000, false}, {1, false}}, 2},
        {"nothing is joined to a shared one", {{10, true}, {10, false}}, 2},
        {"each shared one is a piece", {{10, true}, {10, true}}, 2},
        {"joined, shared, joined",
         {{10, false}, {10, false}, {10, true}, {10, false}, {9, false}},
         3},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        Outbox outbox;
        for (const auto &[size, isShared] : row.appended) {
            const std::string bytes(size, 'x');
            if (isShared) outbox.append(shared(bytes));
            else outbox.append(Exact(bytes).view());
        }
        CHECK(pieceCount(outbox) == row.pieces);
    }
}

TEST_CASE("no more pieces than one system call takes; the others follow") {
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
        outbox.sent(now.size(), spares);
    }
    CHECK(kMaxPieces >= 16);  // POSIX: _XOPEN_IOV_MAX
    CHECK(calls == std::vector<std::size_t>{kMaxPieces, kMaxPieces, 8});
    CHECK(sent == all);
}

TEST_CASE("a payload is shared, not copied, and let go as soon as it is sent") {
    const Payload first = shared("first"), second = shared("second");
    Outbox outbox;
    outbox.append(first);
    outbox.append(second);
    outbox.append("third");
    Pieces pieces{};
    REQUIRE(outbox.gather(pieces) == 3);
    CHECK(pieces[0].iov_base == first->data());
    CHECK(pieces[1].iov_base == second->data());
    outbox.sent(4, spares);
    CHECK(first.use_count() == 2);
    outbox.sent(1, spares);
    CHECK(first.use_count() == 1);
    CHECK(second.use_count() == 2);
    outbox.sent(7, spares);
    CHECK(second.use_count() == 1);
    CHECK(gathered(outbox) == "hird");

    outbox.append(second);
    outbox.clear(spares);
    CHECK(second.use_count() == 1);
    CHECK(outbox.size() == 0);
    CHECK(gathered(outbox).empty());
}

TEST_CASE("the last payload is let go, too, when all is sent") {
    const Payload payload = shared("payload");
    Outbox outbox;
    outbox.append(payload);
    outbox.sent(7, spares);
    CHECK(payload.use_count() == 1);
}

TEST_CASE("what is sent and belongs to nobody else is spared for the next message") {
    SparePayloads none(kSpareBytes);
    Outbox outbox;
    const std::string large(100'000, 'x');
    const Payload kept = shared(large);
    outbox.append("header");
    outbox.append(shared(large));
    outbox.append(kept);
    outbox.append(shared(large));
    outbox.sent(6 + large.size() + 1, none);
    CHECK(none.take(large.size()) != nullptr);
    CHECK(none.take(large.size()) == nullptr);
    outbox.sent(outbox.size(), none);
    CHECK(kept.use_count() == 1);
    CHECK(*kept == large);
    const Payload last = none.take(large.size());
    REQUIRE(last != nullptr);
    CHECK(last != kept);
    CHECK(none.take(large.size()) == nullptr);
}

TEST_CASE("which payloads are spared, and for what") {
    struct Row {
        std::string label;
        std::size_t spared, wanted;
        bool found;
    };
    const Row rows[] = {
        {"one of the same size", 100'000, 100'000, true},
        {"a larger one", 100'000, 60'000, true},
        {"not one that is too small", 100'000, 100'001, false},
        {"not one that is much too large", 100'000, 40'000, false},
        {"none that is small is kept", 4096, 4096, false},
        {"one that is a little larger is", 4097, 4096, true},
        {"as much as sixteen MiB", 16 << 20, 16 << 20, true},
        {"none that is larger", (16 << 20) + 1, 16 << 20, false},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        SparePayloads some(kSpareBytes);
        Payload payload = std::make_shared<std::string>();
        payload->reserve(row.spared);
        some.giveBack(std::move(payload));
        CHECK((some.take(row.wanted) != nullptr) == row.found);
        some.clear();
        CHECK(some.take(row.wanted) == nullptr);
    }
}

TEST_CASE("how many bytes are spared may change") {
    std::size_t most = 0;
    SparePayloads some(most);
    some.giveBack(shared(std::string(5000, 'x')));
    CHECK(some.take(5000) == nullptr);
    most = 5000;
    some.giveBack(shared(std::string(5000, 'x')));
    some.giveBack(shared(std::string(5000, 'x')));
    CHECK(some.take(5000) != nullptr);
    CHECK(some.take(5000) == nullptr);
}

TEST_CASE("spare payloads are few, of few bytes, and nobody else's") {
    const auto large = [](std::size_t size) {
        Payload payload = std::make_shared<std::string>();
        payload->reserve(size);
        return payload;
    };
    const auto countAll = [](SparePayloads &some, std::size_t size) {
        int count = 0;
        while (some.take(size) != nullptr) ++count;
        return count;
    };
    SparePayloads some(kSpareBytes);
    some.giveBack(nullptr);
    for (int i = 0; i < 100; ++i) some.giveBack(large(5000));
    CHECK(countAll(some, 5000) == 64);
    for (int round = 0; round < 2; ++round) {  // what was taken counts no more
        for (int i = 0; i < 20; ++i) some.giveBack(large(1 << 20));
        CHECK(countAll(some, 1 << 20) == 16);
    }
    const Payload theirs = large(5000);
    some.giveBack(theirs);
    CHECK(countAll(some, 5000) == 0);

    some.giveBack(large(5000));
    some.giveBack(large(100'000));
    CHECK(some.take(5000)->capacity() < 10'000);
    CHECK(some.take(100'000)->capacity() >= 100'000);

    Heap::reset();
    for (int i = 0; i < 5; ++i) some.giveBack(large(5000));
    some.clear();
    CHECK(Heap::held() == 0);
    for (int i = 0; i < 20; ++i) some.giveBack(large(1 << 20));
    CHECK(countAll(some, 1 << 20) == 16);
}

TEST_CASE("the pong waits beside the queue") {
    Outbox outbox;
    outbox.append("one");
    outbox.pong = "first";
    outbox.pong = "second";
    CHECK(outbox.size() == 3);
    CHECK(gathered(outbox) == "one");
    outbox.sent(3, spares);
    CHECK(outbox.pong == "second");
}

TEST_CASE("a queue that is never empty does not grow") {
    Outbox outbox;
    const std::string bytes(20000, 'x');
    outbox.append(Exact(bytes).view());
    Heap::reset();
    for (int i = 0; i < 2000; ++i) {
        outbox.append(Exact(bytes).view());
        outbox.sent(bytes.size(), spares);
    }
    const long most = Heap::most();
    CHECK(outbox.size() == bytes.size());
    CHECK(most < 200000);
}

TEST_CASE("a queue takes hardly more memory than the bytes in it") {
    for (const std::size_t size : {1U, 20U, 127U, 1000U, 4000U}) {
        CAPTURE(size);
        const std::string bytes(size, 'x');
        Outbox outbox;
        Heap::reset();
        while (outbox.size() < 1'000'000) outbox.append(bytes);
        const auto held = static_cast<double>(Heap::held());
        CHECK(held < 1.05 * 1'000'000 + kSegmentBytes);
    }
}

TEST_CASE("a queue that was long keeps next to nothing when it is empty") {
    Heap::reset();
    Outbox outbox;
    for (int i = 0; i < 1000; ++i) outbox.append(i % 2 == 0 ? std::string(4096, 'x') : "header");
    for (int i = 0; i < 1000; ++i) outbox.append(shared("payload"));
    outbox.sent(outbox.size(), spares);
    const long held = Heap::held();
    CHECK(held <= 4096 + 512);
}

TEST_CASE("random use, against a string") {
    Chance chance;
    Outbox outbox;
    std::string model;
    char next = 'a';
    for (int round = 0; round < 4000; ++round) {
        std::string bytes(chance.below(chance.below(8) == 0 ? 20000 : 60), next);
        next = next == 'z' ? 'a' : static_cast<char>(next + 1);
        model += bytes;
        if (chance.below(3) == 0) outbox.append(shared(bytes));
        else outbox.append(Exact(bytes).view());

        const std::string now = gathered(outbox);
        const bool all = pieceCount(outbox) < kMaxPieces;
        CHECK(outbox.size() == model.size());
        CHECK((all ? now == model : model.compare(0, now.size(), now) == 0));
        if (chance.below(3) > 0) continue;
        const std::size_t size = chance.below(4) == 0 ? now.size() : chance.below(now.size() + 1);
        outbox.sent(size, spares);
        model.erase(0, size);
    }
}

TEST_CASE(
    "a received message's string serves for the next one only if a queue would not pay for it") {
    const auto payload = std::make_shared<std::string>();
    CHECK(isReusable(payload, 10));
    payload->reserve(1'000'000);
    CHECK(isReusable(payload, 600'000));
    CHECK_FALSE(isReusable(payload, 5000));
    const auto other = std::make_shared<std::string>();
    const auto queued = other;
    CHECK_FALSE(isReusable(other, 10));
}
