// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A server on Boost.Beast, as `make bench` measures it: see common.h for what it does.
// Settings: one thread without locks, the executor's type known at compile time, no
// compression, no fragmenting, no timeouts, TCP_NODELAY; a broadcast is stored once.
#include "common.h"

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/websocket.hpp>
#include <boost/version.hpp>

#include <cstddef>
#include <cstdio>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = boost::beast::websocket;
using asio::ip::tcp;
using Executor = asio::io_context::executor_type;
using Socket = asio::basic_stream_socket<tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<tcp, Executor>;
using boost::system::error_code;

class Session;

struct Server {
    bench::Job job;
    std::unordered_set<Session *> open;
};

class Session : public std::enable_shared_from_this<Session> {
  public:
    Session(Server &server, Socket socket) : server_(server), stream_(std::move(socket)) {
        stream_.next_layer().set_option(tcp::no_delay(true));
        stream_.set_option(websocket::stream_base::timeout{websocket::stream_base::none(),
                                                           websocket::stream_base::none(), false});
        stream_.auto_fragment(false);
        stream_.read_message_max(bench::kMaxMessageBytes);
    }

    ~Session() { server_.open.erase(this); }

    void start() {
        stream_.async_accept([self = shared_from_this()](error_code error) {
            if (error) return;
            self->server_.open.insert(self.get());
            self->read();
        });
    }

  private:
    void read() {
        stream_.async_read(input_, [self = shared_from_this()](error_code error, std::size_t) {
            if (!error) self->process();
        });
    }

    // The next message is read once this one is answered. A broadcast only goes to the queues,
    // so the next message is read at once.
    void process() {
        stream_.text(stream_.got_text());
        const auto data = input_.data();
        switch (server_.job) {
        case bench::Job::echo: return answer(data);
        case bench::Job::json:
            answer_ = bench::jsonAnswer({static_cast<const char *>(data.data()), data.size()});
            return answer(asio::buffer(answer_));
        case bench::Job::broadcast: {
            const auto message = std::make_shared<const std::string>(
                static_cast<const char *>(data.data()), data.size());
            input_.clear();
            for (Session *session : server_.open) session->queue(message);
            return read();
        }
        }
    }

    void answer(asio::const_buffer message) {
        stream_.async_write(message, [self = shared_from_this()](error_code error, std::size_t) {
            if (error) return;
            self->input_.clear();
            self->read();
        });
    }

    // Beast writes one message at a time.
    void queue(const std::shared_ptr<const std::string> &message) {
        queue_.push_back(message);
        if (queue_.size() == 1) writeNext();
    }

    void writeNext() {
        stream_.async_write(asio::buffer(*queue_.front()),
                            [self = shared_from_this()](error_code error, std::size_t) {
                                if (error) return;
                                self->queue_.pop_front();
                                if (!self->queue_.empty()) self->writeNext();
                            });
    }

    Server &server_;
    websocket::stream<Socket, false> stream_;
    beast::flat_buffer input_;
    std::string answer_;
    std::deque<std::shared_ptr<const std::string>> queue_;
};

void acceptNext(Acceptor &acceptor, Server &server) {
    acceptor.async_accept([&](error_code error, Socket socket) {
        if (!error) std::make_shared<Session>(server, std::move(socket))->start();
        acceptNext(acceptor, server);
    });
}

}  // namespace

int main(int argc, char **argv) try {
    const bench::Options options = bench::start(argc, argv);
    Server server{options.job, {}};
    asio::io_context context(BOOST_ASIO_CONCURRENCY_HINT_UNSAFE);
    Acceptor acceptor(context);
    acceptor.open(tcp::v4());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind({asio::ip::address_v4::loopback(), options.port});
    acceptor.listen(bench::kBacklog);
    bench::announce(acceptor.local_endpoint().port(), "Boost.Beast " BOOST_LIB_VERSION);
    acceptNext(acceptor, server);
    context.run();
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
