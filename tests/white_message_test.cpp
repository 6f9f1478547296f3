// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What hooks hold (section 8): messages, which of them are JSON, requests, and users.

#include "white.h"

#include <clocale>
#include <functional>

#include <pthread.h>

namespace {

std::string repeated(const std::string &text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
}

std::string nested(int depth) { return repeated("[", depth) + repeated("]", depth); }

}  // namespace

// --- messages ---

TEST_CASE("a message keeps what it was made of") {
    using namespace std::string_literals;
    CHECK(WSMessage().payload().empty());
    CHECK(WSMessage("text").payload() == "text");
    CHECK(WSMessage(static_cast<const char *>(nullptr)).payload().empty());
    CHECK(WSMessage("a\0b"s).payload() == "a\0b"s);
    CHECK(WSMessage(std::string_view("text", 2)).payload() == "te");
    CHECK(WSMessage("\u20AC").payload() == "\xE2\x82\xAC");
    CHECK(WSMessage::binary("\xFF\0"s).payload() == "\xFF\0"s);
    CHECK(WSMessage::binary("").isBinary());
    CHECK_FALSE(WSMessage("").isBinary());
    CHECK_FALSE(WSMessage(Json::Value(Json::arrayValue)).isBinary());
}

TEST_CASE("a text that is not UTF-8 is refused") {
    const std::pair<std::string, std::string> rows[] = {
        {"a byte that no character has", "a\xFF"},
        {"the first half of a character", "a\xE2\x82"},
        {"the second half of a character", "\x82\xAC"},
        {"a surrogate", "\xED\xA0\x80"},
        {"a slash, encoded in two bytes", "\xC0\xAF"},
    };
    for (const auto &[label, text] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        Json::Value value(Json::objectValue), key(Json::objectValue);
        value["a"] = text;
        key[text] = "a";
        CHECK_THROWS_AS(WSMessage{text}, std::invalid_argument);
        CHECK_THROWS_AS(WSMessage{std::string_view(text)}, std::invalid_argument);
        CHECK_THROWS_AS(WSMessage{text.c_str()}, std::invalid_argument);
        CHECK_THROWS_AS(WSMessage{value}, std::invalid_argument);
        CHECK_THROWS_AS(WSMessage{key}, std::invalid_argument);
        CHECK(WSMessage::binary(text).payload() == text);
    }
}

TEST_CASE("JSON is sent compact, with UTF-8 as it is") {
    Json::Value json(Json::objectValue);
    json["name"] = "Gr\u00FC\u00DFe \U0001F600";
    json["list"].append(1);
    json["list"].append(Json::nullValue);
    json["list"].append("\"\n");
    const WSMessage msg(json);
    CHECK(msg.payload() ==
          "{\"list\":[1,null,\"\\\"\\n\"],\"name\":\"Gr\u00FC\u00DFe \U0001F600\"}");
    CHECK(msg.isJson());
    CHECK(msg.json() == json);

    const WSMessage five{Json::Value(5)}, text{Json::Value("five")};
    CHECK(five.payload() == "5");
    CHECK(text.payload() == "\"five\"");
    CHECK_FALSE(five.isJson());
    CHECK_FALSE(text.isJson());
}

TEST_CASE("texts that are JSON, and others") {
    using namespace std::string_literals;
    struct Row {
        std::string label;
        std::string text;
        bool json;
    };
    const Row rows[] = {
        // clang-format off
        {"an array", "[]", true},
        {"an object", "{}", true},
        {"values of all types", "{\"a\":[1,-2.5,1e3,true,false,null,\"x\\n\\u20ac\\/\"]}", true},
        {"with spaces around it", " \t\r\n[ 1 , 2 ] \t\r\n", true},
        {"a string that is not ASCII", "[\"\u20AC\"]", true},
        {"a surrogate pair in escapes", "[\"\\ud83d\\ude00\"]", true},
        {"an escaped NUL", "[\"\\u0000\"]", true},
        {"an escaped backslash before a u", "[\"\\\\udc00\"]", true},
        {"an empty key", "{\"\":1}", true},
        {"an empty text", "", false},
        {"only spaces", "  ", false},
        {"a number", "5", false},
        {"a string", "\"five\"", false},
        {"true", "true", false},
        {"null", "null", false},
        {"a word", "hello", false},
        {"a word behind it", "[1] x", false},
        {"a second array behind it", "[1][2]", false},
        {"a second array on another line", "[1]\n[2]", false},
        {"one bracket too many", "[1]]", false},
        {"a comma behind it", "[1],", false},
        {"a NUL behind it", "[1]\0"s, false},
        {"a NUL and a word behind it", "[1]\0 x"s, false},
        {"a NUL and an array behind it", "[1]\0[2]"s, false},
        {"a string that looks like comments", "[\"/* x */ // y\"]", true},
        {"a NUL in front", "\0[1]"s, false},
        {"a byte order mark in front", "\xEF\xBB\xBF[1]", false},
        {"a form feed in front", "\f[1]", false},
        {"a form feed inside", "[\f1]", false},
        {"a form feed behind it", "[1]\f", false},
        {"a NUL inside", "[\0]"s, false},
        {"an array that is not closed", "[1", false},
        {"an array that is closed by a brace", "[1}", false},
        {"a trailing comma in an array", "[1,]", false},
        {"a trailing comma in an object", "{\"a\":1,}", false},
        {"a leading comma", "[,1]", false},
        {"two commas", "[1,,2]", false},
        {"a missing comma", "[1 2]", false},
        {"a missing colon", "{\"a\" 1}", false},
        {"a missing value", "{\"a\":}", false},
        {"a missing key", "{:1}", false},
        {"a key without quotes", "{a:1}", false},
        {"a key that is a number", "{1:2}", false},
        {"single quotes", "['a']", false},
        {"a key twice", "{\"a\":1,\"a\":2}", false},
        {"a key twice, once with an escape", "{\"a\":1,\"\\u0061\":2}", false},
        {"a key twice, in an object further inside", "[{\"a\":{\"b\":1,\"b\":1}}]", false},
        {"the same key in two objects", "[{\"a\":1},{\"a\":2}]", true},
        {"a comment in front", "/* x */[1]", false},
        {"a comment behind it", "[1]// x", false},
        {"a comment inside", "[1/* x */]", false},
        {"a comment behind a value", "[1/* x */,2]", false},
        {"a comment behind an opening brace", "{/* x */\"a\":1}", false},
        {"a comment behind the value of a key", "{\"a\":1/* x */}", false},
        {"a comment to the end of a line, inside", "[1// x\n]", false},
        {"a comment of shell scripts", "[1]# x", false},
        {"NaN", "[NaN]", false},
        {"Infinity", "[Infinity]", false},
        {"true in capitals", "[TRUE]", false},
        {"true that is cut", "[tru]", false},
        {"a string that does not end", "[\"a]", false},
        {"an escape that does not exist", "[\"\\x41\"]", false},
        {"an escape of no digits", "[\"\\u00g0\"]", false},
        {"the first half of a surrogate pair, alone", "[\"\\ud800\"]", false},
        {"the first half, before something else", "[\"\\ud83dx\"]", false},
        {"the first half, before more text", "[\"\\ud83dxyzabc\"]", false},
        {"the first half, before another character", "[\"\\ud83d\\u0041\"]", false},
        {"the first half twice", "[\"\\ud83d\\ud83d\"]", false},
        {"the second half, alone", "[\"\\udc00\"]", false},
        {"the second half, alone, in capitals", "[\"\\uDC00\"]", false},
        {"the second half, alone, in a key", "{\"\\udc00\":1}", false},
        {"the halves in the wrong order", "[\"\\ude00\\ud83d\"]", false},
        {"two pairs", "[\"\\ud83d\\ude00\\uD83D\\uDE01\"]", true},
        {"a pair, then a second half", "[\"\\ud83d\\ude00\\ude00\"]", false},
        {"the last escape below the halves", "[\"\\ud7ff\"]", true},
        {"the halves in two strings", "[\"\\ud83d\",\"\\ude00\"]", false},
        {"a first half whose string ends", "[\"\\ud83d\"", false},
        {"an escape that is cut", "[\"\\ud8", false},
        {"an escape that is cut behind u", "[\"\\u", false},
        {"an escape that is cut behind the backslash", "[\"\\", false},
        {"a line break in a string (RFC 8259 7)", "[\"a\nb\"]", false},
        {"a tab in a string (RFC 8259 7)", "[\"a\tb\"]", false},
        {"a NUL in a string (RFC 8259 7)", "[\"a\0b\"]"s, false},
        // clang-format on
    };
    for (const Row &row : rows) {
        INFO(row.label);
        const WSMessage msg(row.text);
        CHECK(msg.isJson() == row.json);
        CHECK(msg.isJson() == row.json);
        CHECK(msg.json().isNull() == !row.json);
        CHECK(msg.payload() == row.text);
        CHECK_FALSE(WSMessage::binary(row.text).isJson());
        CHECK(WSMessage::binary(row.text).json().isNull());
        if (msg.isJson()) CHECK_NOTHROW(WSMessage(msg.json()));
    }
}

TEST_CASE("numbers as RFC 8259 6 has them are read as what they are") {
    struct Row {
        std::string number;
        double value;
    };
    const Row rows[] = {
        {"0", 0},
        {"-0", 0},
        {"7", 7},
        {"-10", -10},
        {"100", 100},
        {"0.5", 0.5},
        {"-0.5", -0.5},
        {"10.25", 10.25},
        {"100.001", 100.001},
        {"-0.0", 0},
        {"1e3", 1000},
        {"1E3", 1000},
        {"1e+3", 1000},
        {"1e-3", 0.001},
        {"1e05", 1e5},
        {"1e-05", 1e-5},
        {"-1.5e+005", -1.5e5},
        {"0e0", 0},
        {"0E-01", 0},
        {"12.5e10", 12.5e10},
        {"0.1000000000000000055511151231257827", 0.1},
        {"9223372036854775807", 9223372036854775807.0},
        {"-9223372036854775808", -9223372036854775808.0},
        {"18446744073709551615", 18446744073709551615.0},
        {"18446744073709551616", 18446744073709551616.0},  // above 64 bits, a double
        {"-9223372036854775809", -9223372036854775808.0},
        {"123456789012345678901", 123456789012345678901.0},
        {"1e308", 1e308},
        {"1.7976931348623157e308", std::numeric_limits<double>::max()},
        {"2.2250738585072014e-308", std::numeric_limits<double>::min()},
    };
    for (const Row &row : rows) {
        CAPTURE(row.number);
        const WSMessage array("[" + row.number + "]"), object("{\"a\":" + row.number + "}"),
            second("[1, " + row.number + " ]");
        CHECK(array.isJson());
        CHECK(array.json()[0].asDouble() == row.value);
        CHECK(object.json()["a"].asDouble() == row.value);
        CHECK(second.json()[1].asDouble() == row.value);
    }
    // Integers of 64 bits keep each digit; a value too small for a double is rounded, if it is read.
    CHECK(WSMessage("[18446744073709551615]").json()[0].asUInt64() == 18446744073709551615U);
    CHECK(WSMessage("[-9223372036854775807]").json()[0].asInt64() == -9223372036854775807);
    const WSMessage small("[1e-999]");
    CHECK((!small.isJson() || small.json()[0].asDouble() == 0));
}

TEST_CASE("other numbers are not JSON, in whatever place, though jsoncpp may read them") {
    const std::string nines(400, '9');
    const std::string rows[] = {
        // clang-format off
        "-", "+", "+1", "+0.5", "--1", "- 1", "1-", "1-1", "1+1",
        "01", "00", "-01", "-00.5", "01e5", "000",
        ".", ".5", "-.5", "1.", "-1.", "1.e5", "1..5", "1.5.5", "1.-5",
        "e5", "-e5", "1e", "1e+", "1e5.5", "1e5e5",
        "0x10", "1f", "1_000", "1 000", "1,000",
        "Infinity", "-Infinity", "+Infinity", "inf", "-NaN", "nan",
        // too large for a double, which would be infinite
        "1e309", "-1e309", "1e999", "-1.5E+999", "1e99999999999999999999", "1.7976931348623159e308",
        nines, '-' + nines, nines + ".5",
        // clang-format on
    };
    for (const std::string &number : rows) {
        CAPTURE(number);
        CHECK_FALSE(WSMessage('[' + number + ']').isJson());
        CHECK_FALSE(WSMessage("[1, " + number + " ]").isJson());
        CHECK_FALSE(WSMessage('[' + number + ",1]").isJson());
        CHECK_FALSE(WSMessage("{\"a\":" + number + '}').isJson());
        CHECK_FALSE(WSMessage("{\"a\":[[],{\"b\":" + number + "}]}").isJson());
        CHECK(WSMessage("[\"" + number + "\"]").isJson());  // as a string
    }
}

TEST_CASE("JSON keeps its values") {
    const Json::Value json =
        WSMessage("{\"a\":[1e3,-0.5,\"\\ud83d\\ude00\",9007199254740993],\"b\":null}").json();
    CHECK(json["a"].size() == 4);
    CHECK(json["a"][0].asDouble() == 1000.0);
    CHECK(json["a"][1].asDouble() == -0.5);
    CHECK(json["a"][2].asString() == "\U0001F600");
    CHECK(json["a"][3].asInt64() == 9007199254740993);
    CHECK(json.isMember("b"));
}

// --- locales ---

namespace {

// The global C++ locale with another decimal point, as in "1.234,5", for as long as this lives.
class DecimalPoint {
  public:
    DecimalPoint(char point, char separator, const char *grouping)
        : before_(std::locale::global(
              std::locale(std::locale(), new Punctuation(point, separator, grouping)))) {}
    ~DecimalPoint() { std::locale::global(before_); }
    DecimalPoint(const DecimalPoint &) = delete;
    DecimalPoint &operator=(const DecimalPoint &) = delete;

  private:
    class Punctuation : public std::numpunct<char> {
      public:
        Punctuation(char point, char separator, const char *grouping)
            : point_(point), separator_(separator), grouping_(grouping) {}

      protected:
        char do_decimal_point() const override { return point_; }
        char do_thousands_sep() const override { return separator_; }
        std::string do_grouping() const override { return grouping_; }

      private:
        char point_, separator_;
        std::string grouping_;
    };
    std::locale before_;
};

struct Punctuated {
    std::string label;
    char point, separator;
    const char *grouping;
};
const Punctuated kPunctuated[] = {{"as in French, Polish, Swedish", ',', ' ', "\3"},
                                  {"as in German, Spanish, Turkish", ',', '.', "\3"},
                                  {"as in Portugal", ',', '.', ""},
                                  {"as in English", '.', ',', "\3"},
                                  {"as nowhere", '5', '1', "\1"}};

// jsoncpp from 1.9.7 on reads numbers in the same way under every locale.
bool isRead(const Punctuated &row) {
    return JSONCPP_VERSION_HEXA >= 0x01090700 || row.point == '.';
}

}  // namespace

TEST_CASE("under no global locale is a number misread") {
    for (const Punctuated &row : kPunctuated) {
        INFO(row.label);
        const bool read = isRead(row);
        {
            const DecimalPoint point(row.point, row.separator, row.grouping);
            for (const std::string number : {"1.5", "1.500", "-0.25", "1234567.5", "1e3", "1.5e3",
                                             "123456789012345678901234567890"}) {
                CAPTURE(number);
                const WSMessage msg("{\"a\":1,\"b\":[" + number + "]}");
                CHECK(msg.isJson() == read);
                if (read) CHECK(msg.json()["b"][0].asDouble() == std::stod(number));
            }
            const WSMessage whole("[1234567, -10, \"1.5\"]");
            CHECK(whole.isJson());
            CHECK(whole.json()[0].asInt() == 1234567);
            CHECK(whole.json()[1].asInt() == -10);
            CHECK(whole.json()[2].asString() == "1.5");
        }
        CHECK(WSMessage("[1.5]").json()[0].asDouble() == 1.5);
    }
}

TEST_CASE("a global locale that jsoncpp misreads numbers in gives one line for the log") {
    for (const Punctuated &row : kPunctuated) {
        INFO(row.label);
        const bool read = isRead(row);
        jsonTrouble = nullptr;
        {
            const DecimalPoint point(row.point, row.separator, row.grouping);
            CHECK(WSMessage("[1]").isJson());
            const char *const trouble = std::exchange(jsonTrouble, nullptr);
            CHECK((trouble == nullptr) == read);
            if (!read)
                CHECK(std::string(trouble).find("std::locale::numeric") != std::string::npos);
            CHECK(WSMessage("[1.5]").isJson() == read);
            CHECK_FALSE(WSMessage("garbage").isJson());
            CHECK(jsonTrouble == nullptr);

            // What that line recommends.
            const std::locale before = std::locale::global(
                std::locale(std::locale(), std::locale::classic(), std::locale::numeric));
            CHECK(WSMessage("[1.5]").json()[0].asDouble() == 1.5);
            CHECK(jsonTrouble == nullptr);
            std::locale::global(before);
        }
        CHECK(WSMessage("[1.5]").json()[0].asDouble() == 1.5);
        CHECK(jsonTrouble == nullptr);
    }
}

TEST_CASE("under no global locale is a number miswritten") {
    Json::Value json(Json::arrayValue);
    for (const double number : {1.5, -0.25, 1234567.5, 1e100}) json.append(number);
    json.append(1234567);
    json.append(Json::UInt64(18446744073709551615U));
    json.append(Json::Int64(-9223372036854775807));
    const std::string text =
        "[1.5,-0.25,1234567.5,1e+100,1234567,18446744073709551615,-9223372036854775807]";
    CHECK(WSMessage(json).payload() == text);
    for (const Punctuated &row : kPunctuated) {
        INFO(row.label);
        const DecimalPoint point(row.point, row.separator, row.grouping);
        CHECK(WSMessage(json).payload() == text);
    }
    // Locales of C, where they are installed. That of Pashto has a point of two bytes.
    const std::string before = std::setlocale(LC_ALL, nullptr);
    for (const char *name : {"de_DE.UTF-8", "fr_FR.UTF-8", "ps_AF.UTF-8"}) {
        CAPTURE(std::string(name));
        if (std::setlocale(LC_ALL, name) == nullptr) continue;
        CHECK(WSMessage(json).payload() == text);
        CHECK(WSMessage(text).json() == json);
    }
    std::setlocale(LC_ALL, before.c_str());
}

TEST_CASE("jsoncpp writes under the plain locale, and the thread's own one is restored") {
    struct Spy : Json::StreamWriter {
        Spy(locale_t &seen, bool throws) : seen_(seen), throws_(throws) {}
        int write(const Json::Value &, std::ostream *text) override {
            seen_ = ::uselocale(nullptr);
            if (throws_) throw std::bad_alloc();
            *text << "1";
            return 0;
        }

      private:
        locale_t &seen_;
        bool throws_;
    };
    REQUIRE(::uselocale(nullptr) == LC_GLOBAL_LOCALE);
    auto writer = std::move(jsonTools.writer);
    for (const bool throws : {false, true}) {
        locale_t seen = LC_GLOBAL_LOCALE;
        jsonTools.writer = std::make_unique<Spy>(seen, throws);
        if (throws) CHECK_THROWS_AS(writeJson(1), std::bad_alloc);
        else CHECK(writeJson(1) == "1");
        CHECK(seen != LC_GLOBAL_LOCALE);
        CHECK(::uselocale(nullptr) == LC_GLOBAL_LOCALE);
    }
    jsonTools.writer = std::move(writer);
}

// --- limits ---

TEST_CASE("JSON may be nested 1000 levels deep, and no text crashes the parser") {
    const int most = kMaxJsonDepth;
    CHECK(WSMessage(nested(most)).isJson());
    CHECK_FALSE(WSMessage(nested(most + 1)).isJson());
    const auto objects = [](int depth) {
        return repeated("{\"a\":", depth - 1) + "{}" + repeated("}", depth - 1);
    };
    CHECK(WSMessage(objects(most)).isJson());
    CHECK_FALSE(WSMessage(objects(most + 1)).isJson());
    CHECK(WSMessage("[\"" + repeated("[", 1000) + "\"]")
              .isJson());  // brackets in a string do not count
    const std::pair<std::string, std::string> rows[] = {
        {"arrays that are closed", nested(100000)},
        {"arrays that are not", repeated("[", 100000)},
        {"objects that are closed", repeated("{\"a\":", 100000) + "1" + repeated("}", 100000)},
        {"objects that are not", repeated("{\"a\":", 100000)},
        {"arrays and objects in turn", repeated("[{\"a\":", 100000)},
        {"closing brackets alone", repeated("]", 100000)},
    };
    for (const auto &[label, text] : rows) {
        const auto &shown = label;  // clang captures no structured binding
        INFO(shown);
        CHECK_FALSE(WSMessage(text).isJson());
    }
}

namespace {

void runOnStack(std::size_t size, const std::function<void()> &function) {
    pthread_attr_t attributes;
    REQUIRE(::pthread_attr_init(&attributes) == 0);
    REQUIRE(::pthread_attr_setstacksize(&attributes, size) == 0);
    const auto call = [](void *argument) -> void * {
        (*static_cast<const std::function<void()> *>(argument))();
        return nullptr;
    };
    pthread_t thread;
    const auto argument = const_cast<std::function<void()> *>(&function);
    REQUIRE(::pthread_create(&thread, &attributes, call, argument) == 0);
    REQUIRE(::pthread_join(thread, nullptr) == 0);
    REQUIRE(::pthread_attr_destroy(&attributes) == 0);
}

}  // namespace

TEST_CASE("JSON takes no more than 1 KiB of stack for each level") {
    const std::string deep[] = {nested(kMaxJsonDepth), repeated("{\"a\":", kMaxJsonDepth - 1) +
                                                           "{}" + repeated("}", kMaxJsonDepth - 1)};
    for (const std::string &text : deep) {
        std::string written;
        runOnStack(std::size_t{kMaxJsonDepth + 256} * 1024, [&] {
            const WSMessage msg(text);
            const Json::Value copy = msg.json();
            written = WSMessage(copy).payload();
        });
        CHECK(written == text);
    }
}

TEST_CASE("JSON may have no more values than its limit") {
    struct Row {
        std::string text;
        int values;
    };
    const Row rows[] = {
        {"[1]", 2},
        {"[1,2,3]", 4},
        {"[\"a,b[{\",[5,6]]", 5},
        {"{\"a\":1,\"b\":[2,3]}", 5},
        {" [ true , null ] ", 3},
    };
    for (const Row &row : rows) {
        INFO(row.text);
        CHECK(parseJson(row.text, 9, row.values) != nullptr);
        CHECK(parseJson(row.text, 9, row.values - 1) == nullptr);
    }
    // The default is for received messages. The program's own ones may be as wide as it likes.
    const int most = WSBaseConfig().maxJsonValues;
    const auto numbers = [](int count) { return "[1" + repeated(",1", count - 1) + "]"; };
    CHECK(parseJson(numbers(most - 1), 9, most) != nullptr);
    CHECK(parseJson(numbers(most), 9, most) == nullptr);
    CHECK(WSMessage(numbers(100'000)).isJson());
}

TEST_CASE("JSON is parsed once, when a hook asks for it") {
    std::string text = "[" + repeated("1,", 5000) + "1]";
    Heap::reset();
    const WSMessage msg(std::move(text));
    const WSMessage copy = msg;
    const long made = Heap::most();
    const bool json = msg.isJson();
    const long parsed = Heap::most();
    Heap::reset();
    const bool same = &msg.json() == &msg.json() && &copy.json() == &msg.json() && copy.isJson();
    const long again = Heap::most();
    CHECK(made < 1000);
    CHECK(json);
    CHECK(parsed > 5000);
    CHECK(same);
    CHECK(again == 0);
}

TEST_CASE("copies share their content, and assigning to one leaves the others alone") {
    const WSMessage msg("[1]");
    WSMessage copy = msg;
    CHECK(&copy.payload() == &msg.payload());
    CHECK(&copy.json() == &msg.json());

    Json::Value json = copy.json();
    json.append(2);
    copy = json;
    CHECK(copy.payload() == "[1,2]");
    CHECK(msg.payload() == "[1]");
    CHECK(msg.json().size() == 1);

    copy = WSMessage::binary("x");
    CHECK(copy.isBinary());
    CHECK_FALSE(copy.isJson());
    CHECK_FALSE(msg.isBinary());
}

// --- requests ---

namespace {

WSRequest requestFor(const std::string &target, const std::string &lines = "") {
    return {"GET " + target + " HTTP/1.1\r\nHost: example.com\r\n" + lines + "\r\n", "::1"};
}

}  // namespace

TEST_CASE("a request gives the parts of its head") {
    const WSRequest request = requestFor("/chat%20room?a=1&b",
                                         "Origin: https://example.com\r\n"
                                         "X-Empty:\r\n"
                                         "x-twice: 1\r\n"
                                         "Sec-WebSocket-Protocol: b , a\r\n"
                                         "X-Twice: 2\r\n"
                                         "sec-websocket-protocol: c\r\n");
    CHECK(request.method() == "GET");
    CHECK(request.path() == "/chat%20room");
    CHECK(request.query() == "a=1&b");
    CHECK(request.header("hOST") == "example.com");
    CHECK(request.header("X-TWICE") == "1, 2");
    CHECK(request.header("X-Empty").empty());
    CHECK(request.hasHeader("x-empty"));
    CHECK(request.header("X-None").empty());
    CHECK_FALSE(request.hasHeader("X-None"));
    CHECK(request.origin() == "https://example.com");
    CHECK(request.protocols() == std::vector<std::string>{"b", "a", "c"});
    CHECK(request.address() == "::1");
    REQUIRE(request.headers().size() == 7);
    CHECK(request.headers()[3] == std::pair<std::string, std::string>("x-twice", "1"));

    const WSRequest copy = request;  // it must not refer to the other one
    CHECK(copy.path() == "/chat%20room");
    CHECK(requestFor("/").protocols().empty());
}

TEST_CASE("a text that is not a head gives an empty request") {
    const std::string rows[] = {"",
                                "\r\n\r\n",
                                "GET / HTTP/1.1\r\n",
                                "GET / HTTP/2.0\r\n\r\n",
                                "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
                                "GET / HTTP/1.1\nHost: x\n\n"};
    for (const std::string &head : rows) {
        CAPTURE(head);
        const WSRequest request(head, "1.2.3.4");
        CHECK(request.method().empty());
        CHECK(request.path().empty());
        CHECK(request.query().empty());
        CHECK(request.headers().empty());
        CHECK(request.header("Host").empty());
        CHECK(request.cookie("a").empty());
        CHECK(request.parameter("a").empty());
        CHECK(request.protocols().empty());
        CHECK(request.address() == "1.2.3.4");
    }
    CHECK(WSRequest().path().empty());
    CHECK(WSRequest().address().empty());
}

TEST_CASE("parameters of a query") {
    struct Row {
        const char *query, *name, *value;
    };
    const Row rows[] = {
        {"room=blue", "room", "blue"},         {"room=blue+sky", "room", "blue sky"},
        {"room=%41%2b%2B", "room", "A++"},     {"room=%e2%82%ac", "room", "\u20AC"},
        {"room=a%26b%3Dc", "room", "a&b=c"},   {"room=a=b", "room", "a=b"},
        {"a=1&room=2&b=3", "room", "2"},       {"room=first&room=second", "room", "first"},
        {"room=&room=second", "room", ""},     {"room", "room", ""},
        {"&&room=1&&", "room", "1"},           {"%72oom=1", "room", "1"},
        {"my+room=1", "my room", "1"},         {"rooms=1&oom=2&Room=3", "room", ""},
        {"room=1;room=2", "room", "1;room=2"}, {"", "room", ""},
        {"room=100%", "room", "100%"},
    };
    for (const Row &row : rows) {
        CAPTURE(std::string(row.query));
        CHECK(requestFor(std::string("/?") + row.query).parameter(row.name) == row.value);
    }
    CHECK(requestFor("/?a=%00").parameter("a") == std::string(1, '\0'));
    CHECK(requestFor("/room=1").parameter("room").empty());
}

TEST_CASE("cookies (RFC 6265 5.4)") {
    struct Row {
        const char *lines, *name, *value;
    };
    const Row rows[] = {
        {"Cookie: a=1\r\n", "a", "1"},
        {"cookie: a=1; b=2; c=3\r\n", "b", "2"},
        {"Cookie: a=1;b=2\r\n", "b", "2"},
        {"Cookie: a=1\r\nCookie: b=2\r\n", "b", "2"},
        {"Cookie: a=1; a=2\r\n", "a", "1"},
        {"Cookie: a=1=2\r\n", "a", "1=2"},
        {"Cookie: a=\"1 2\"\r\n", "a", "\"1 2\""},
        {"Cookie: a=%41+\r\n", "a", "%41+"},
        {"Cookie: a=1, b=2\r\n", "a", "1, b=2"},
        {"Cookie: a=\r\n", "a", ""},
        {"Cookie: a; b=2\r\n", "a", ""},
        {"Cookie: A=1; ab=2; xa=3\r\n", "a", ""},
        {"X-Cookie: a=1\r\n", "a", ""},
        {"", "a", ""},
    };
    for (const Row &row : rows) {
        CAPTURE(std::string(row.lines));
        CHECK(requestFor("/", row.lines).cookie(row.name) == row.value);
    }
}

// --- users ---

TEST_CASE("a user without a server has no data, and is never idle") {
    WSBaseUser user;
    CHECK(user.id() == 0);
    CHECK(user.socket() == -1);
    CHECK(user.closeCode() == 0);
    CHECK(user.closeReason().empty());
    CHECK(user.protocol().empty());
    CHECK(user.address().empty());
    CHECK(user.maxIdle == 60);
    user.messageReceived();
    CHECK(user.idleSeconds() == 0);
    CHECK_FALSE(user.isIdle());
    user.maxIdle = 0;
    CHECK_FALSE(user.isIdle());
}
