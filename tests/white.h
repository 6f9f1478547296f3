// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the white-box tests share: server.cpp itself, included here so that the tests reach its
// parts; buffers that the address sanitizer guards; bytes written as hexadecimal digits; random
// numbers that are the same in each run; and counts of the memory that is allocated.

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

#include <netdb.h>

// The addresses that the server's next name lookup finds, if a test sets them.
inline addrinfo *addressesFound = nullptr;

inline int lookUp(const char *host, const char *port, const addrinfo *hints, addrinfo **list) {
    if (addressesFound == nullptr) return ::getaddrinfo(host, port, hints, list);
    *list = addressesFound;
    return 0;
}

inline void freeFound(addrinfo *list) {
    if (list != addressesFound) ::freeaddrinfo(list);
}

#define getaddrinfo lookUp
#define freeaddrinfo freeFound
#include "../server.cpp"
#undef getaddrinfo
#undef freeaddrinfo

// Bytes on the heap, in a buffer of exactly their size: the address sanitizer reports a read or
// write one byte behind it.
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
    const Exact header(std::string(kMaxFrameHeader, '\x55'));
    const std::size_t size = encodeFrameHeader(header.data(), opcode, length);
    REQUIRE(size <= header.size());
    const std::string_view behind = header.view().substr(size);
    CHECK(behind.find_first_not_of('\x55') == behind.npos);  // nothing more is written
    return std::string(header.view().substr(0, size));
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

// Random numbers, the same in each run.
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

// How many bytes are allocated now, and the most that have been since the last reset().
class Heap {
  public:
    static void reset();
    static long held() { return held_; }  // negative if more was freed than allocated
    static long most() { return most_; }

    static void grow(std::size_t size) {
        held_ += static_cast<long>(size);
        most_ = std::max(most_, held_);
    }
    static void shrink(std::size_t size) { held_ -= static_cast<long>(size); }

  private:
    static inline long held_ = 0, most_ = 0;
};

#if defined(__SANITIZE_ADDRESS__)  // g++
#define WS_ADDRESS_SANITIZER
#elif defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define WS_ADDRESS_SANITIZER
#endif
#endif

#ifdef WS_ADDRESS_SANITIZER

// Declared by hand, because not every system has the sanitizer's header.
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

// Without the sanitizer (under valgrind, for the coverage), our own `new` and `delete` count.
// Only one file of a program may include this.
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

void *operator new(std::size_t size, const std::nothrow_t &) noexcept {
    void *block = std::malloc(std::max<std::size_t>(size, 1));
    if (block != nullptr) Heap::grow(sizeOfBlock(block));
    return block;
}

// Not inline, or g++ would warn that free() does not match `new`.
[[gnu::noinline]] void operator delete(void *block) noexcept {
    if (block != nullptr) Heap::shrink(sizeOfBlock(block));
    std::free(block);
}

void operator delete(void *block, std::size_t) noexcept { operator delete(block); }

#endif

#endif
