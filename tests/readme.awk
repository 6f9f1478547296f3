# SPDX-License-Identifier: MIT
# Extendible WebSocket Server
#
# Prints the C++ of a README as a reader would put it together:
#
#     awk -f tests/readme.awk README.md                  for tests/black_answers_test.cpp
#     awk -f tests/readme.awk -v only=timers README.md   a whole program of that block alone
#
# The first block is the program. Each other one is put into a copy of it, in a namespace that is
# called like its heading: "### Who is this?" gives who_is_this, the next block of the same section
# who_is_this_2. What a block is shows in its first line:
#
#     int main() {                   the program's main(), here called program()
#     config.…                       lines of main(), before the server: configure(config)
#     server.…                       lines of main(), behind it: start(server)
#     anything with "override {"     members of ChatServer
#     anything else                  lines of process()
#
# The table of hooks becomes hooks::Server, which overrides them all. For the tests, ports are
# replaced by 0, and all members are public.

function identifier(heading) {
    heading = tolower(heading)
    gsub(/[^a-z0-9]+/, "_", heading)
    gsub(/^_|_$/, "", heading)
    return heading
}

# A copy of the program's lines, with `members` behind process(), which they may replace.
function program(members,    text, i) {
    for (i = 1; i <= lines && line[i] !~ /^int main/; ++i) {
        if (line[i] !~ /void process/ || members !~ /void process\(/)
            text = text line[i] "\n"
        if (line[i] ~ /void process/) text = text members
    }
    return text
}

function lineMark(n) { return "#line " n " \"README.md\"\n" }

function assembled(    start) {
    start = lineMark(begun) body
    if (first ~ /^int main/) {
        sub(/int main\(\)/, "inline void program()", start)
        return program("") start
    }
    if (first ~ /^config\./)
        return program("") "inline void configure(ChatConfig &config) {\n" start "}\n"
    if (first ~ /^server\./)
        return program("") "inline void start(ChatServer &server) {\n" start "}\n"
    if (index(body, "override {")) return program(start)
    return program("void process(ChatUser &user, WSMessage &msg) override {\n(void)user, (void)msg;\n" \
                   start "}\n")
}

function put(name, text, mainText) {
    names = names name "\n"
    allIncludes = allIncludes includes
    if (only == "") all = all "\nnamespace " name " {\n" text "}  // namespace " name "\n"
    else if (only == name) alone = includes text mainText
}

/^##+ / {
    heading = $0
    sub(/^#+ /, "", heading)
}

/^```cpp$/ {
    inside = 1
    begun = NR + 1
    body = first = includes = ""
    next
}

/^```$/ && inside {
    inside = 0
    name = identifier(heading)
    if (seen[name]++) name = name "_" seen[name]
    if (programRead++ == 0) put("program", program(""), "int main() { ChatServer().run(); }\n")
    else put(name, assembled(), "int main() { return 0; }\n")
    next
}

inside && /^#include/ {
    if ($0 !~ /server\.h/) includes = includes $0 "\n"
    begun = NR + 1
    next
}

inside {
    if (!programRead) line[++lines] = $0
    gsub(/port = [0-9]+/, "port = 0")
    if (first == "") first = $0
    body = body $0 "\n"
}

heading == "Hooks" && /^\| `void / {
    signature = $0
    sub(/^\| `/, "", signature)
    sub(/`.*/, "", signature)
    hooks = hooks lineMark(NR) signature " {}\n"
}

END {
    includes = ""
    put("hooks", "using User = WSBaseUser;\n#pragma GCC diagnostic push\n" \
        "#pragma GCC diagnostic ignored \"-Wunused-parameter\"\n" \
        "struct Server : WebSocketServer<User> {\nusing WebSocketServer::WebSocketServer;\n" hooks \
        "};\n#pragma GCC diagnostic pop\n", "int main() { Server().run(); }\n")
    gsub(/  private:/, "  public:", all)
    if (only == "names") printf "%s", names
    else if (only == "") printf "%s%s", allIncludes, all
    else if (alone == "") exit 1
    else printf "#include \"ws/server.h\"\n#include \"readme.h\"\n%s", alone
}
