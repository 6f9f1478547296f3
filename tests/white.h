// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the white-box tests share: server.cpp itself, whose parts they reach because it is
// included here; buffers that the address sanitizer guards, bytes written as hexadecimal
// digits, chance that is the same each time, and a look at the heap.

#ifndef WS_TESTS_WHITE_H
#define WS_TESTS_WHITE_H

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <vector>

// server.cpp keeps its parts in an anonymous namespace. Here it is included, and its
// structures have members from there, which only matters if two files include it.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif

#include "../server.cpp"

const std::size_t kSpareBytes = WSBaseConfig().spareBytes;

// Bytes on the heap, in a buffer of exactly their size: one byte further is a report of
// the address sanitizer.
class Exact {
  public:
    explicit Exact(std::string_view bytes) : size_(bytes.size()), bytes_(new char[size_]) {
        std::copy(bytes.begin(), bytes.end(), bytes_.get());
    }
    char *data() const { return bytes_.get(); }
    std::size_t size() const { return size_; }
    std::string_view view() const { return {bytes_.get(), size_}; }

  private:
    std::size_t size_;
    std::unique_ptr<char[]> bytes_;
};

// The header of a frame as a server sends it.
inline std::string encodedHeader(Opcode opcode, std::uint64_t length) {
    const Exact header(std::string(frameHeaderSize(length), '\0'));
    CHECK(encodeFrameHeader(header.data(), opcode, length) == header.data() + header.size());
    return std::string(header.view());
}

// "81 85 37fa213d" as bytes.
inline std::string fromHex(std::string_view digits) {
    constexpr std::string_view kHex = "0123456789abcdef";
    std::string bytes;
    int nibbles = 0;
    unsigned value = 0;
    for (const char digit : digits) {
        if (digit == ' ') continue;
        REQUIRE(kHex.find(digit) != kHex.npos);
        value = value << 4 | static_cast<unsigned>(kHex.find(digit));
        if (++nibbles % 2 == 0) bytes += static_cast<char>(value & 0xFF);
    }
    REQUIRE(nibbles % 2 == 0);
    return bytes;
}

inline std::string toHex(std::string_view bytes) {
    std::string digits;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        digits += "0123456789abcdef"[byte >> 4];
        digits += "0123456789abcdef"[byte & 0xF];
    }
    return digits;
}

// Chance, the same in each run.
class Chance {
  public:
    // One of 0 … `end` - 1.
    std::size_t below(std::size_t end) { return std::size_t{generator_()} % end; }

    // Sizes of 1 to `most` that add up to `total`.
    std::vector<std::size_t> pieces(std::size_t total, std::size_t most) {
        std::vector<std::size_t> sizes;
        for (std::size_t rest = total; rest > 0; rest -= sizes.back())
            sizes.push_back(1 + below(std::min(rest, most)));
        return sizes;
    }

  private:
    std::mt19937 generator_{6455};
};

// The bytes that are allocated now, and the most that were since the last reset().
class Heap {
  public:
    static void reset();
    static long held() { return held_; }  // since reset(); less than 0 if more was freed
    static long most() { return most_; }

    static void grow(std::size_t size) {
        held_ += static_cast<long>(size);
        most_ = std::max(most_, held_);
    }
    static void shrink(std::size_t size) { held_ -= static_cast<long>(size); }

  private:
    static inline long held_ = 0, most_ = 0;
};

#if defined(__SANITIZE_ADDRESS__)  // g++'s way to say it
#define WS_ADDRESS_SANITIZER
#elif defined(__has_feature)  // clang's
#if __has_feature(address_sanitizer)
#define WS_ADDRESS_SANITIZER
#endif
#endif

#ifdef WS_ADDRESS_SANITIZER

// The address sanitizer's, by hand: not every system has its header.
extern "C" {
int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void *, std::size_t),
                                              void (*freed)(const volatile void *));
std::size_t __sanitizer_get_allocated_size(const volatile void *block);
}

inline void Heap::reset() {
    static const int installed = __sanitizer_install_malloc_and_free_hooks(
        [](const volatile void *, std::size_t size) { grow(size); },
        [](const volatile void *block) {
            if (block != nullptr) shrink(__sanitizer_get_allocated_size(block));
        });
    REQUIRE(installed != 0);
    held_ = most_ = 0;
}

#else

// Without it (for valgrind, for the coverage) `new` and `delete` are ours, and count. Only one
// file of a program may include this.
#ifdef __APPLE__
#include <malloc/malloc.h>
inline std::size_t sizeOfBlock(void *block) { return malloc_size(block); }
#else
#include <malloc.h>
inline std::size_t sizeOfBlock(void *block) { return malloc_usable_size(block); }
#endif

inline void Heap::reset() { held_ = most_ = 0; }

void *operator new(std::size_t size) {
    void *block = std::malloc(std::max<std::size_t>(size, 1));
    if (block == nullptr) throw std::bad_alloc();
    Heap::grow(sizeOfBlock(block));
    return block;
}

void operator delete(void *block) noexcept {
    if (block != nullptr) Heap::shrink(sizeOfBlock(block));
    std::free(block);
}

void operator delete(void *block, std::size_t) noexcept { operator delete(block); }

#endif

#endif
