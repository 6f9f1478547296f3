// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The main() of every test program. doctest leaves signals alone: a crash is for
// the address sanitizer to report, and stopOn() has tests of its own.

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>
