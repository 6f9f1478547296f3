// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the example programs share: their command line, the pages in the program's folder, the URL
// to open, and how they end. A program is a list of options and a body:
//
//     int main(int argc, char **argv) {
//         WSBaseConfig config;
//         return runProgram(argc, argv, {portOption("PORT", config)}, [&] {
//             // make a server with `config` and run it
//         });
//     }

#ifndef EXAMPLES_PROGRAM_H
#define EXAMPLES_PROGRAM_H

#include "../server.h"

#include <algorithm>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

// ----------------------------------------------------------------------------
// Options
// ----------------------------------------------------------------------------

// "--port N" has a value, "--verbose" has none, "PORT" is known by its place. `set` gets the value
// and throws std::invalid_argument("must be …") if it is wrong; readOptions() adds name and value.
// Without `set`, this is just a line of --help.
struct Option {
    std::string form;
    std::string help;
    std::function<void(const std::string &value)> set;

    std::string name() const { return form.substr(0, form.find(' ')); }
    bool hasPlace() const { return set && form[0] != '-'; }
};

// The text as a number; none unless it is one from `least` to `most`.
inline std::optional<int> numberIn(const std::string &text, int least, int most) {
    int number = 0;
    const char *end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || rest != end || number < least || number > most) return {};
    return number;
}

inline int numberFrom(const std::string &text, int least, int most) {
    if (const auto number = numberIn(text, least, most)) return *number;
    throw std::invalid_argument("must be a number from " + std::to_string(least) + " to " +
                                std::to_string(most));
}

inline Option portOption(const char *form, WSBaseConfig &config) {
    return {form, "port to listen on (12345); 0 picks a free one",
            [&](const std::string &value) { config.port = numberFrom(value, 0, 65535); }};
}

inline Option addressOption(const char *form, WSBaseConfig &config) {
    return {form, "address (localhost); \"\" for all, unix:PATH for a Unix socket",
            [&](const std::string &value) { config.address = value; }};
}

inline Option originOption(WSBaseConfig &config) {
    return {"--origin ORIGIN", "let in only pages from this origin (may be repeated)",
            [&](const std::string &value) { config.uniqueOrigin.push_back(value); }};
}

inline Option verboseOption(WSBaseConfig &config) {
    return {"--verbose", "log users that come and go",
            [&](const std::string &) { config.debug = true; }};
}

inline std::string usageOf(const std::string &program, const std::vector<Option> &options) {
    std::string usage = program;
    for (const Option &option : options)
        if (option.set) usage += " [" + option.form + ']';
    return usage;
}

inline void printHelp(const std::string &program, const std::vector<Option> &options) {
    std::size_t width = 0;
    for (const Option &option : options) width = std::max(width, option.form.size());
    std::cout << "usage: " << usageOf(program, options) << '\n';
    for (const auto &[form, help, set] : options)
        std::cout << "  " << form << std::string(width - form.size() + 2, ' ') << help << '\n';
}

// Calls `set` for each word of the command line. Throws std::invalid_argument with a sentence that
// says which word is wrong, and what to write.
inline void readOptions(const std::string &program, const std::vector<std::string> &words,
                        const std::vector<Option> &options) {
    auto place = options.begin();  // options before it have had their word
    // cppcheck-suppress StlMissingComparison  // it is compared
    for (auto word = words.begin(); word != words.end(); ++word) {
        const bool isName = word->compare(0, 2, "--") == 0;
        const auto option = std::find_if(
            isName ? options.begin() : place, options.end(),
            [&](const Option &one) { return isName ? one.name() == *word : one.hasPlace(); });
        if (option == options.end())
            throw std::invalid_argument("unexpected argument '" + *word +
                                        "'; write: " + usageOf(program, options));
        if (!isName) place = std::next(option);
        else if (option->form != *word && ++word == words.end())
            throw std::invalid_argument(option->name() + " needs a value; write " + option->form);
        try {
            option->set(*word);
        } catch (const std::invalid_argument &error) {
            throw std::invalid_argument(option->name() + ' ' + error.what() + ", not '" + *word +
                                        "'");
        }
    }
}

// ----------------------------------------------------------------------------
// Start and end
// ----------------------------------------------------------------------------

// If descriptor 0, 1 or 2 is closed, as some daemons start programs, the next file or socket to be
// opened would get that number, and what the program prints.
inline void occupyStandardDescriptors() {
    int fd = 0;
    while (fd >= 0 && fd <= STDERR_FILENO) fd = ::open("/dev/null", O_RDWR);
    if (fd >= 0) ::close(fd);
}

// Returns the exit status: 0, 2 if an argument is wrong, 1 for any other failure.
inline int runProgram(int argc, char **argv, const std::vector<Option> &options,
                      const std::function<void()> &body) {
    const std::string program = std::filesystem::path(argv[0]).filename().string();
    const std::vector<std::string> words(argv + 1, argv + argc);
    const auto fail = [&](const std::exception &error, int status) {
        std::cerr << program << ": " << error.what() << '\n';
        return status;
    };
    try {
        occupyStandardDescriptors();
        if (std::find(words.begin(), words.end(), "--help") != words.end()) {
            printHelp(program, options);
        } else {
            readOptions(program, words, options);
            body();
        }
        return 0;
    } catch (const std::invalid_argument &error) {  // also listen() throws it
        return fail(error, 2);
    } catch (const std::exception &error) {
        return fail(error, 1);
    }
}

// The program's folder. Linux tells us which one that is; elsewhere we take it from argv[0], so start
// the program by its path.
inline std::filesystem::path folderOf(const char *program) {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::canonical("/proc/self/exe", error);
    return (error ? std::filesystem::path(program) : path).parent_path();
}

inline std::string readPage(const char *program, const char *name) {
    const std::filesystem::path path = folderOf(program) / name;
    std::ifstream file(path, std::ios::binary);
    std::string page(std::istreambuf_iterator<char>(file), {});
    if (page.empty()) throw std::runtime_error("cannot read " + path.string());
    return page;
}

// The line to print once the server listens. A Unix socket has no port, and no URL to open.
inline std::string placeOf(std::string address, int port) {
    if (port == 0) return "listening at " + address;
    if (address.empty() || address == "0.0.0.0" || address == "::") address = "localhost";
    if (address.find(':') != std::string::npos) address = '[' + address + ']';
    return "open http://" + address + ':' + std::to_string(port) + '/';
}

// ----------------------------------------------------------------------------
// Pages
// ----------------------------------------------------------------------------

// 128 unpredictable bits.
inline std::string randomHex() {
    std::random_device random;
    std::string hex;
    for (std::uint32_t word = 0; hex.size() < 32; word >>= 4) {
        if (hex.size() % 8 == 0) word = random();
        hex += "0123456789abcdef"[word & 15];
    }
    return hex;
}

// The browser runs only the script and styles that carry this response's nonce. If a user's
// text ever got into the page as HTML, it could do nothing.
inline void fillIn(WSResponse &response, const std::string &page) {
    constexpr std::string_view kPlace = "{{nonce}}";
    const std::string nonce = randomHex();
    response.body = page;
    for (std::size_t at; (at = response.body.find(kPlace)) != std::string::npos;)
        response.body.replace(at, kPlace.size(), nonce);
    response.headers.emplace_back(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'nonce-" + nonce + "'; style-src 'nonce-" + nonce +
            "'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'");
}

#endif
