// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Closing (section 13): the payload of a Close frame, and the codes that may stand in it.

#include "white.h"

namespace {

std::string codeBytes(int code) { return {static_cast<char>(code / 256), static_cast<char>(code)}; }

}  // namespace

TEST_CASE("the close codes that may be sent (RFC 6455 7.4, and IANA's registry)") {
    struct Row {
        std::string label;
        int first, last;
        bool allowed;
    };
    const Row rows[] = {
        {"0 to 999 are not used (7.4.2)", 0, 999, false},
        {"normal closure, going away, protocol error, unsupported data", 1000, 1003, true},
        {"reserved: the meaning might be defined in the future", 1004, 1004, false},
        {"no status received: MUST NOT be set in a Close frame", 1005, 1005, false},
        {"abnormal closure: MUST NOT be set in a Close frame", 1006, 1006, false},
        {"invalid data, policy, too big, extension missing, internal error", 1007, 1011, true},
        {"service restart, try again later, bad gateway (IANA)", 1012, 1014, true},
        {"TLS handshake: MUST NOT be set in a Close frame", 1015, 1015, false},
        {"reserved for the protocol's future", 1016, 2999, false},
        {"for libraries and frameworks, and for applications", 3000, 4999, true},
        {"not defined at all", 5000, 65535, false},
    };
    int next = 0;
    for (const Row &row : rows) {
        INFO(row.label);
        CHECK(row.first == next);  // the table has no gap
        next = row.last + 1;
        for (int code = row.first; code <= row.last; ++code) {
            const Exact payload(codeBytes(code));
            const Progress progress = parseClose(payload.view());
            const bool asExpected = row.allowed
                                        ? progress.answer == Progress::done && progress.used == 2 &&
                                              progress.code == code
                                        : progress.answer == Progress::bad && progress.code == 1002;
            if (isCloseCode(code) != row.allowed || !asExpected) FAIL_CHECK(code);
        }
    }
    CHECK(next == 65536);
    CHECK_FALSE(isCloseCode(-1));
    CHECK_FALSE(isCloseCode(65536 + 1000));
}

TEST_CASE("payloads of Close frames") {
    struct Row {
        std::string label;
        const char *hex;
        int bad;  // the close code that refuses it; 0: it is fine
        int code;
        const char *reason;  // of the peer, or why it is refused
    };
    const Row rows[] = {
        {"none: the code is 1005 (RFC 6455 7.1.5)", "", 0, 1005, ""},
        {"a code alone", "03e8", 0, 1000, ""},
        {"the bytes of the code are unsigned, the most significant one first", "0fa1", 0, 4001, ""},
        {"a code and a reason", "03e9 627965", 0, 1001, "bye"},
        {"a reason of more than ASCII", "03e8 e282ac", 0, 1000, "\u20AC"},
        {"one byte is not a code (5.5.1)", "03", 1002, 0, "a Close payload has only one byte"},
        {"nor is one zero byte", "00", 1002, 0, "a Close payload has only one byte"},
        {"a code that may not be sent", "03ed", 1002, 0, "this close code may not be sent"},
        {"a code that may not be sent, and a reason", "03ee 627965", 1002, 0,
         "this close code may not be sent"},
        {"a reason that is not UTF-8 (8.1)", "03e8 62ff65", 1007, 0,
         "the close reason is not UTF-8"},
        {"a reason that ends inside a character", "03e8 e282", 1007, 0,
         "the close reason is not UTF-8"},
        {"a reason with a surrogate", "03e8 eda080", 1007, 0, "the close reason is not UTF-8"},
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const Exact payload(fromHex(row.hex));
        const Progress progress = parseClose(payload.view());
        REQUIRE(progress.answer == (row.bad == 0 ? Progress::done : Progress::bad));
        CHECK(progress.code == (row.bad == 0 ? row.code : row.bad));
        if (row.bad != 0) CHECK(progress.reason == std::string(row.reason));
        if (row.bad != 0) continue;
        CHECK(progress.used == std::min<std::size_t>(payload.size(), 2));
        CHECK(payload.view().substr(progress.used) == row.reason);
    }
}

TEST_CASE("a reason that is cut is fine if a character ends there") {
    const std::string payload = codeBytes(1000) + "Gr\u00FC\u00DFe \u20AC \U0001F600!";
    for (std::size_t size = 2; size <= payload.size(); ++size) {
        CAPTURE(size);
        const Exact cut(payload.substr(0, size));
        const bool between = size == payload.size() || (payload[size] & 0xC0) != 0x80;
        const Progress progress = parseClose(cut.view());
        CHECK(progress.answer == (between ? Progress::done : Progress::bad));
        CHECK(progress.code == (between ? 1000 : 1007));
    }
}

TEST_CASE("what was encoded can be parsed") {
    for (const int code : {1000, 1011, 3000, 4999})
        for (const char *reason : {"", "bye", "\u20AC"}) {
            const Exact payload(encodeClose(code, Exact(reason).view()));
            const Progress progress = parseClose(payload.view());
            CHECK(progress.answer == Progress::done);
            CHECK(progress.code == code);
            CHECK(payload.view().substr(progress.used) == reason);
        }
}

TEST_CASE("a reason that is too long is cut between two characters, as late as possible") {
    struct Row {
        std::string label;
        const char *character;
    };
    const Row rows[] = {
        {"characters of one byte", "a"},
        {"characters of two bytes", "\u00FC"},
        {"characters of three bytes", "\u20AC"},
        {"characters of four bytes", "\U0001F600"},
    };
    for (const Row &row : rows)
        for (std::size_t shift = 0; shift < 5; ++shift)
            for (std::size_t count = 28; count < 130; ++count) {
                const std::size_t width = std::string_view(row.character).size();
                std::string reason(shift, '-');
                for (std::size_t i = 0; i < count; ++i) reason += row.character;
                const std::string payload = encodeClose(1000, Exact(reason).view());
                const std::string_view kept = std::string_view(payload).substr(2);

                INFO(row.label);
                CAPTURE(reason.size());
                const std::size_t fits =
                    std::min(reason.size(), shift + (123 - shift) / width * width);
                CHECK(kept == reason.substr(0, fits));
            }
}
