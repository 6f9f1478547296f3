// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The main() of every test program. It prints the version of jsoncpp, because several behaviours
// depend on it. doctest installs no signal handlers: the address sanitizer reports crashes, and
// the tests of stopOn() raise signals themselves.

#define DOCTEST_CONFIG_IMPLEMENT
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>

#include <cstdio>

#include "../server.h"

int main(int argc, char **argv) {
    std::printf("jsoncpp %s\n", JSONCPP_VERSION_STRING);
    std::fflush(stdout);
    return doctest::Context(argc, argv).run();
}
