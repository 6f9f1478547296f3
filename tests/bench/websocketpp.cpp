// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A server on websocketpp and Boost.Asio, as `make bench` measures it: see common.h for what
// it does. Settings: no log, no locks, no timers, TCP_NODELAY; a broadcast is framed once.
#include "common.h"

#include <websocketpp/config/asio_no_tls.hpp>
#include <websocketpp/concurrency/none.hpp>
#include <websocketpp/logger/stub.hpp>
#include <websocketpp/server.hpp>

#include <cstdio>
#include <exception>
#include <unordered_set>

namespace {

namespace wspp = websocketpp;

// One thread, no log: websocketpp wants these types in two places.
struct Config : wspp::config::asio {
    using type = Config;
    using base = wspp::config::asio;
    using concurrency_type = wspp::concurrency::none;
    using alog_type = wspp::log::stub;
    using elog_type = wspp::log::stub;
    static const bool enable_multithreading = false;

    struct transport_config : base::transport_config {
        using concurrency_type = type::concurrency_type;
        using alog_type = type::alog_type;
        using elog_type = type::elog_type;
        static const bool enable_multithreading = false;
        static const long timeout_socket_pre_init = 0;
        static const long timeout_socket_post_init = 0;
        static const long timeout_socket_shutdown = 0;
    };
    using transport_type = wspp::transport::asio::endpoint<transport_config>;

    static const long timeout_open_handshake = 0;
    static const long timeout_close_handshake = 0;
    static const size_t max_message_size = bench::kMaxMessageBytes;
};

using Endpoint = wspp::server<Config>;
using Handle = wspp::connection_hdl;

class Server {
  public:
    explicit Server(const bench::Options &options) : job_(options.job) {
        endpoint_.init_asio();
        endpoint_.set_reuse_addr(true);
        endpoint_.set_listen_backlog(bench::kBacklog);
        endpoint_.set_tcp_post_init_handler([this](Handle handle) {
            endpoint_.get_con_from_hdl(handle)->get_raw_socket().set_option(
                wspp::lib::asio::ip::tcp::no_delay(true));
        });
        endpoint_.set_open_handler(
            [this](Handle handle) { open_.insert(endpoint_.get_con_from_hdl(handle)); });
        endpoint_.set_close_handler(
            [this](Handle handle) { open_.erase(endpoint_.get_con_from_hdl(handle)); });
        endpoint_.set_message_handler(
            [this](Handle handle, Endpoint::message_ptr msg) { process(handle, msg); });

        endpoint_.listen(wspp::lib::asio::ip::tcp::endpoint(
            wspp::lib::asio::ip::address_v4::loopback(), options.port));
        wspp::lib::asio::error_code ignored;
        bench::announce(endpoint_.get_local_endpoint(ignored).port(),
                        "websocketpp " + std::to_string(wspp::major_version) + "." +
                            std::to_string(wspp::minor_version) + "." +
                            std::to_string(wspp::patch_version));
        endpoint_.start_accept();
        endpoint_.run();
    }

  private:
    void process(const Handle &handle, const Endpoint::message_ptr &msg) {
        wspp::lib::error_code ignored;
        switch (job_) {
        case bench::Job::echo: endpoint_.send(handle, msg, ignored); break;
        case bench::Job::broadcast: broadcast(*msg); break;
        case bench::Job::json:
            endpoint_.send(handle, bench::jsonAnswer(msg->get_payload()), wspp::frame::opcode::text,
                           ignored);
        }
    }

    // A prepared message has its frame header, and goes out to all connections as it is.
    void broadcast(const Endpoint::message_ptr::element_type &msg) {
        namespace frame = wspp::frame;
        const std::string &payload = msg.get_payload();
        const auto prepared = wspp::lib::make_shared<Endpoint::message_ptr::element_type>(
            nullptr, msg.get_opcode(), 0);
        prepared->set_payload(payload);
        prepared->set_header(frame::prepare_header(
            frame::basic_header(msg.get_opcode(), payload.size(), true, false),
            frame::extended_header(payload.size())));
        prepared->set_prepared(true);
        for (const auto &connection : open_) connection->send(prepared);
    }

    Endpoint endpoint_;
    bench::Job job_;
    std::unordered_set<Endpoint::connection_ptr> open_;
};

}  // namespace

int main(int argc, char **argv) try {
    Server(bench::start(argc, argv));
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
