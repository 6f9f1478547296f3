// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The main() of every test program. doctest installs no signal handlers: the address sanitizer
// reports crashes, and the tests of stopOn() raise signals themselves.

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>
