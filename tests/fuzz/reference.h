// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A second decoder of a client's frames and messages. It has all bytes at once, copies them
// freely and follows RFC 6455 rule by rule, so it need be neither fast nor clever.

#ifndef WS_TESTS_FUZZ_REFERENCE_H
#define WS_TESTS_FUZZ_REFERENCE_H

#include "fuzz.h"

// What a stream of bytes holds: messages and control frames, then perhaps an error, by its
// close code.
struct Outcome {
    std::vector<std::pair<Opcode, std::string>> found;
    int code = 0;

    void add(Opcode opcode, std::string_view payload) { found.emplace_back(opcode, payload); }
    bool operator==(const Outcome &other) const {
        return found == other.found && code == other.code;
    }
};

// The constructor decodes everything.
class Reference {
  public:
    Reference(std::string_view bytes, const MessageReader::Limits &limits)
        : rest_(bytes), limits_(limits) {
        while (!rest_.empty() && outcome.code == 0) frame();
    }
    Outcome outcome;

  private:
    void frame();
    bool header();
    bool extendedLength(std::size_t size);
    void begin();
    void end();
    void fail(int code) { outcome.code = outcome.code == 0 ? code : outcome.code; }
    unsigned at(std::size_t i) const { return static_cast<unsigned char>(rest_[i]); }
    bool control() const { return opcode_ >= 8; }

    std::string_view rest_;
    MessageReader::Limits limits_;
    bool fin_ = false;
    unsigned opcode_ = 0;
    std::uint64_t length_ = 0;
    std::string payload_;  // the frame's, as far as it has come
    unsigned messageOpcode_ = 0;
    std::string message_;
    int fragments_ = 0;
};

inline void Reference::frame() {
    if (!header()) return;
    begin();
    if (outcome.code != 0) return;
    const std::string key(rest_.substr(0, 4));
    const std::string_view masked = rest_.substr(4, length_);
    payload_.clear();
    for (const char c : masked) payload_ += static_cast<char>(c ^ key[payload_.size() % 4]);
    rest_.remove_prefix(4 + masked.size());
    if (!control()) message_ += payload_;
    if (!control() && messageOpcode_ == 1 && !canBecomeText(message_)) return fail(1007);
    if (masked.size() == length_) end();
}

// Consumes a header up to the masking key. False if it is incomplete, or invalid already.
inline bool Reference::header() {
    const unsigned first = at(0);
    fin_ = first >= 0x80;
    opcode_ = first & 0xF;
    const bool known = opcode_ <= 2 || (opcode_ >= 8 && opcode_ <= 10);
    if ((first & 0x70) != 0 || !known || (control() && !fin_)) fail(1002);
    if (outcome.code != 0 || rest_.size() == 1) return rest_ = {}, false;
    length_ = at(1) & 0x7F;
    if (at(1) < 0x80 || (control() && length_ > 125)) return fail(1002), false;
    const std::size_t size = length_ == 126 ? 2 : length_ == 127 ? 8 : 0;
    rest_.remove_prefix(2);
    const bool complete = extendedLength(size) && rest_.size() >= size + 4;
    rest_.remove_prefix(complete ? size : rest_.size());
    return complete;
}

// False if the length is incomplete, or invalid.
inline bool Reference::extendedLength(std::size_t size) {
    if (size == 0) return true;
    if (rest_.size() < size) return false;
    length_ = 0;
    for (std::size_t i = 0; i < size; ++i) length_ = length_ << 8 | at(i);
    const std::uint64_t shortest = size == 2 ? 126 : 65536;
    if (length_ < shortest || length_ >> 63 != 0) fail(1002);
    return outcome.code == 0;
}

inline void Reference::begin() {
    if (control()) return;
    if ((opcode_ == 0) != (messageOpcode_ != 0)) return fail(1002);
    if (message_.size() + length_ > limits_.maxMessageBytes) return fail(1009);
    if (++fragments_ > limits_.maxFragments) return fail(1008);
    if (opcode_ != 0) messageOpcode_ = opcode_;
}

inline void Reference::end() {
    if (control()) return outcome.add(static_cast<Opcode>(opcode_), payload_);
    if (!fin_) return;
    if (messageOpcode_ == 1 && !isText(message_)) return fail(1007);
    outcome.add(static_cast<Opcode>(messageOpcode_), message_);
    message_.clear();
    messageOpcode_ = 0;
    fragments_ = 0;
}

#endif
