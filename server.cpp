// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The Extendible WebSocket Server, from the bottom up: so far there are only parts of it,
// without sockets, clock or configuration.

#include "server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <system_error>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL  // where it is missing, SO_NOSIGPIPE does it: see prepareSocket()
#define MSG_NOSIGNAL 0
#define WS_SET_NOSIGPIPE
#endif
