// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// A server on libwebsockets and its own poll() loop, as `make bench` measures it: see
// common.h for what it does. Settings: no log, no extensions, large buffers, UTF-8 checked as
// the others do; it sets TCP_NODELAY by itself.
#include "common.h"

#include <libwebsockets.h>

#include <cstddef>
#include <cstdio>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace {

// A message, with room in front of it in which libwebsockets writes the frame's header.
struct Message {
    std::vector<unsigned char> bytes = std::vector<unsigned char>(LWS_PRE);
    bool binary = false;

    unsigned char *data() { return bytes.data() + LWS_PRE; }
    std::size_t size() const { return bytes.size() - LWS_PRE; }
    void append(const void *more, std::size_t size) {
        const auto *first = static_cast<const unsigned char *>(more);
        bytes.insert(bytes.end(), first, first + size);
    }
};

struct Session {
    lws *socket;
    Message input;
    std::deque<std::shared_ptr<Message>> queue;  // the header is the same for all receivers
};

bench::Job job;
std::unordered_set<Session *> open;

// False if the connection is lost.
bool write(lws *socket, Message &message) {
    const lws_write_protocol kind = message.binary ? LWS_WRITE_BINARY : LWS_WRITE_TEXT;
    return lws_write(socket, message.data(), message.size(), kind) >= 0;
}

bool writeQueue(Session &session) {
    while (!session.queue.empty()) {
        if (lws_partial_buffered(session.socket)) {
            lws_callback_on_writable(session.socket);
            return true;
        }
        if (!write(session.socket, *session.queue.front())) return false;
        session.queue.pop_front();
    }
    return true;
}

// Sends an answer at once if possible, which saves a turn of the loop.
bool answer(Session &session, Message &message) {
    if (session.queue.empty() && !lws_partial_buffered(session.socket))
        return write(session.socket, message);
    session.queue.push_back(std::make_shared<Message>(std::move(message)));
    message = Message();
    lws_callback_on_writable(session.socket);
    return true;
}

bool process(Session &session) {
    Message &input = session.input;
    const std::string_view text(reinterpret_cast<const char *>(input.data()), input.size());
    switch (job) {
    case bench::Job::echo: return answer(session, input);
    case bench::Job::json: {
        const std::string json = bench::jsonAnswer(text);
        Message message;
        message.append(json.data(), json.size());
        return answer(session, message);
    }
    case bench::Job::broadcast: {
        const auto shared = std::make_shared<Message>(input);
        for (Session *each : open) {
            each->queue.push_back(shared);
            lws_callback_on_writable(each->socket);
        }
    }
    }
    return true;
}

// Collects the pieces of a message.
bool receive(Session &session, const void *bytes, std::size_t size) {
    session.input.append(bytes, size);
    if (session.input.size() > bench::kMaxMessageBytes) return false;
    if (!lws_is_final_fragment(session.socket)) return true;
    session.input.binary = lws_frame_is_binary(session.socket) != 0;
    const bool alive = process(session);
    session.input.bytes.resize(LWS_PRE);
    return alive;
}

// `user` is where libwebsockets keeps our pointer.
int callback(lws *socket, lws_callback_reasons reason, void *user, void *bytes, std::size_t size) {
    auto *session = static_cast<Session **>(user);
    switch (reason) {
    case LWS_CALLBACK_ESTABLISHED:
        *session = new Session{socket, {}, {}};
        open.insert(*session);
        return 0;
    case LWS_CALLBACK_CLOSED:
        open.erase(*session);
        delete *session;
        return 0;
    case LWS_CALLBACK_RECEIVE: return receive(**session, bytes, size) ? 0 : -1;
    case LWS_CALLBACK_SERVER_WRITEABLE: return writeQueue(**session) ? 0 : -1;
    default: return lws_callback_http_dummy(socket, reason, user, bytes, size);
    }
}

}  // namespace

int main(int argc, char **argv) try {
    const bench::Options options = bench::start(argc, argv);
    job = options.job;
    lws_set_log_level(0, nullptr);

    constexpr std::size_t kReadBytes = 80 << 10;  // fits 64 KiB and a header
    const lws_protocols protocols[] = {
        {"bench", callback, sizeof(Session *), kReadBytes, 0, nullptr, 0},
        {nullptr, nullptr, 0, 0, 0, nullptr, 0}};
    lws_context_creation_info info{};
    info.iface = "127.0.0.1";
    info.port = options.port;
    info.protocols = protocols;
    info.pt_serv_buf_size = kReadBytes;
    info.fd_limit_per_thread = bench::kMaxConnections;
    info.options = LWS_SERVER_OPTION_DISABLE_IPV6 | LWS_SERVER_OPTION_VALIDATE_UTF8;
    info.gid = info.uid = -1;
    lws_context *context = lws_create_context(&info);
    if (!context) throw std::runtime_error("libwebsockets cannot listen");
    bench::announce(lws_get_vhost_listen_port(lws_get_vhost_by_name(context, "default")),
                    std::string("libwebsockets ") + lws_get_library_version());
    while (lws_service(context, 0) >= 0) continue;
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
