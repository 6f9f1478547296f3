// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The headers behind those of other libraries, whose macros have ordinary names.

// All that the headers include comes first: it may use such names.
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if __has_include(<json/json.h>)
#include <json/json.h>
#else
#include <jsoncpp/json/json.h>
#endif

#include "macros.h"

#include "../server.h"

namespace {

class Echo : public WebSocketServer<> {
  public:
    using WebSocketServer::WebSocketServer;

  private:
    void process(WSBaseUser &user, WSMessage &msg) override { sendToUser(user, msg); }
};

}  // namespace

TEST_CASE("The headers compile behind the macros of Qt, X11, ncurses, the BSDs and Windows") {
    WSBaseConfig config;
    config.port = 0;
    config.debug = false;
    Echo server(config);
    server.listen();
    CHECK(server.turn(std::chrono::milliseconds(0)));
    for (WSBaseUser &user : server.users()) server.disconnect(user);
    CHECK(server.sendToIf([](WSBaseUser &) { return true; }, "a") == 0);
}
