// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the measured C++ servers have in common. Each is started as
//
//     SERVER echo|json|broadcast [PORT]
//
// prints its port on 127.0.0.1 (PORT 0, the default: the system picks one) and its name and
// version, and serves until it is killed. It treats a message by its job:
//
//     echo       sends it back, text as text, binary as binary
//     json       parses it, adds "to":"all" to the object, sends that back
//     broadcast  sends it to all connections, the sender included
//
// All use jsoncpp for JSON: the benchmark compares servers, not JSON libraries.

#ifndef WS_TESTS_BENCH_COMMON_H
#define WS_TESTS_BENCH_COMMON_H

// The libraries included after this must not spend time on assertions. (Ours has none.)
#ifndef NDEBUG
#define NDEBUG
#endif

#if __has_include(<json/json.h>)
#include <json/json.h>
#else
#include <jsoncpp/json/json.h>
#endif

#include <sys/resource.h>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace bench {

constexpr int kMaxConnections = 20000;
constexpr std::size_t kMaxMessageBytes = 4 << 20;
constexpr int kBacklog = 4096;

enum class Job { echo, json, broadcast };

struct Options {
    Job job = Job::echo;
    unsigned short port = 0;
};

// Parses the command line, and raises the limit of open files as far as allowed.
inline Options start(int argc, char **argv) {
    const std::string_view job = argc > 1 ? argv[1] : "";
    Options options;
    if (job == "json") options.job = Job::json;
    else if (job == "broadcast") options.job = Job::broadcast;
    else if (job != "echo") throw std::invalid_argument("usage: echo|json|broadcast [PORT]");
    if (argc > 2) options.port = static_cast<unsigned short>(std::atoi(argv[2]));

    rlimit files{};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    return options;
}

inline void announce(int port, const std::string &name) {
    std::printf("%d %s\n", port, name.c_str());
    std::fflush(stdout);
}

// The answer to a JSON text, for servers that have no JSON of their own. The reader and the
// writer are expensive to create, so they are created once.
inline std::string jsonAnswer(std::string_view text) {
    static const std::unique_ptr<Json::CharReader> reader(
        Json::CharReaderBuilder().newCharReader());
    static const std::unique_ptr<Json::StreamWriter> writer = [] {
        Json::StreamWriterBuilder builder;
        builder["indentation"] = "";
        builder["emitUTF8"] = true;
        return std::unique_ptr<Json::StreamWriter>(builder.newStreamWriter());
    }();

    Json::Value json;
    if (!reader->parse(text.data(), text.data() + text.size(), &json, nullptr) || !json.isObject())
        return "{}";
    json["to"] = "all";
    std::ostringstream out;
    writer->write(json, &out);
    return out.str();
}

}  // namespace bench

#endif
