// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// `make bench-micro` measures the parts of server.cpp that touch every byte, each by itself
// and without sockets. It includes server.cpp, as the white-box tests do, and needs Google
// Benchmark.
#include <benchmark/benchmark.h>

#include "../../server.cpp"

namespace {

using benchmark::State;

// Sizes in bytes: 20 is a short message, 262144 one recv().
void sizes(benchmark::internal::Benchmark *row) { row->Arg(20)->Arg(200)->Arg(4096)->Arg(262144); }

void countBytes(State &state, std::size_t size) {
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(size));
}

std::string repeated(std::string_view text, std::size_t size) {
    std::string all;
    while (all.size() + text.size() <= size) all += text;
    return all.append(size - all.size(), '.');
}

void unmasking(State &state) {
    std::string payload = repeated("payload ", static_cast<std::size_t>(state.range(0)));
    const std::array<unsigned char, 4> key{0x37, 0xFA, 0x21, 0x3D};
    for (auto _ : state) {
        unmask(payload.data(), payload.data(), payload.size(), key, 0);
        benchmark::DoNotOptimize(payload.data());
        benchmark::ClobberMemory();
    }
    countBytes(state, payload.size());
}
BENCHMARK(unmasking)->Apply(sizes);

void utf8(State &state, std::string_view text) {
    const std::string all = repeated(text, static_cast<std::size_t>(state.range(0)));
    for (auto _ : state) benchmark::DoNotOptimize(isUtf8(all));
    countBytes(state, all.size());
}
BENCHMARK_CAPTURE(utf8, ASCII, "ASCII ")->Apply(sizes);
BENCHMARK_CAPTURE(utf8, German, "Größe: ")->Apply(sizes);
BENCHMARK_CAPTURE(utf8, Greek, "γειά σου ")->Apply(sizes);
BENCHMARK_CAPTURE(utf8, Japanese, "いろは")->Apply(sizes);
BENCHMARK_CAPTURE(utf8, emoji, "🌍")->Apply(sizes);

// A client's masked text frames, as many as fit in one recv().
void frames(State &state) {
    constexpr std::size_t kInbox = 262144;
    const auto size = static_cast<std::size_t>(state.range(0));
    std::string frame(kMaxFrameHeader, '\0');
    frame.resize(encodeFrameHeader(frame.data(), Opcode::text, size));
    frame[1] = static_cast<char>(frame[1] | 0x80);
    frame.append(4, '\0').append(size, 'x');  // a masking key of zeros changes nothing
    std::string inbox;
    do inbox += frame;
    while (inbox.size() + frame.size() <= kInbox);

    MessageReader reader;
    const MessageReader::Limits limits{1 << 20, 16};
    for (auto _ : state) {
        for (std::size_t used = 0; used < inbox.size();) {
            MessageReader::Found found;
            const Progress progress =
                reader.read(inbox.data() + used, inbox.size() - used, limits, found);
            used += progress.used;
            benchmark::DoNotOptimize(found);
        }
    }
    countBytes(state, inbox.size());
    state.SetItemsProcessed(state.iterations() *
                            static_cast<std::int64_t>(inbox.size() / frame.size()));
}
BENCHMARK(frames)->Apply(sizes);

void hashing(State &state) {
    const std::string text = repeated("message ", static_cast<std::size_t>(state.range(0)));
    for (auto _ : state) benchmark::DoNotOptimize(sha1(text));
    countBytes(state, text.size());
}
BENCHMARK(hashing)->Name("SHA-1")->Apply(sizes);

// A browser's handshake, without socket, hooks and user.
void handshake(State &state) {
    const std::string request =
        "GET /chat?room=blue HTTP/1.1\r\nHost: example.com:12345\r\nConnection: Upgrade\r\n"
        "Pragma: no-cache\r\nCache-Control: no-cache\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/130.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://example.com\r\n"
        "Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        "Accept-Language: en-GB,en;q=0.9\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    for (auto _ : state) {
        RequestHead head;
        if (parseHead(request, 0, head).answer != Progress::done ||
            checkRequest(head).status != 0 || !asksForWebSocket(head) ||
            checkUpgrade(head).status != 0)
            return state.SkipWithError("the request is refused");
        benchmark::DoNotOptimize(acceptKey(fieldValue(head, "Sec-WebSocket-Key")));
    }
    countBytes(state, request.size());
    state.SetItemsProcessed(state.iterations());
}
BENCHMARK(handshake);

}  // namespace

BENCHMARK_MAIN();
