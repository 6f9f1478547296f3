# SPDX-License-Identifier: MIT
# Extendible WebSocket Server
#
#     make deps run     installs what is missing, starts the chat
#     make deps test    installs what is missing, runs the tests
#     make help         lists all targets
#
# CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS, PREFIX and DESTDIR can be set in the
# environment or behind make; what the project itself needs is added to them. V=1
# shows the commands. This works with GNU make from 3.81 (macOS) on.

all: library examples  ## The library and the examples; the default

# --- what can be set from outside -------------------------------------------------------

ifeq ($(origin CXX),default)
CXX = c++
endif
CXXFLAGS ?= -O2 -g
PREFIX ?= /usr/local
PKG_CONFIG ?= pkg-config

# --- what is where ----------------------------------------------------------------------

name := extendible-websocket-server
version := 1.0.0
headers := server.h config.h user.h

plain := .build/plain
tested := .build/test
covered := .build/coverage
library := $(plain)/lib$(name).a
# Some examples need more than jsoncpp. They have targets of their own, which install that.
demanding := examples/auth examples/cluster
examples := $(filter-out $(demanding),$(patsubst %.cpp,%,$(wildcard examples/*.cpp)))

# White-box tests include ../server.cpp, and are compiled as one, which takes a quarter of
# the time that it takes one by one; black-box tests are linked with it.
white_sources := $(wildcard tests/white_*_test.cpp)
white_tests := $(if $(white_sources),$(tested)/white_tests)
black_tests := $(patsubst tests/%.cpp,$(tested)/%,$(wildcard tests/black_*_test.cpp))
ifeq ($(shell uname),Darwin)  # Apple's linker has no --wrap
black_tests := $(filter-out %/black_faults_test,$(black_tests))
endif
slowest := $(filter %_faults_test %_users_test,$(black_tests))  # begin first
tests := $(slowest) $(white_tests) $(filter-out $(slowest),$(black_tests))
decoder := $(tested)/decoder

# For lint: all that is compiled, and the part that clang-tidy and cppcheck read. The servers
# that ours is measured against need libraries that only `make bench` installs.
foreign := $(addprefix tests/bench/,websocketpp.cpp beast.cpp libwebsockets.cpp)
sources := $(filter-out $(foreign),server.cpp $(wildcard examples/*.cpp tests/*.cpp tests/*/*.cpp))
checked := $(filter-out tests/%,$(sources))

# --- compiling --------------------------------------------------------------------------

# jsoncpp, from pkg-config if that knows it. These ask when they are used and not when
# this file is read, because `make deps` may install it in between. Its headers are
# system headers to us: their warnings are not ours.
json_cflags = $(patsubst -I%,-isystem %,$(shell $(PKG_CONFIG) --cflags jsoncpp 2>/dev/null))
json_libs = $(or $(shell $(PKG_CONFIG) --libs jsoncpp 2>/dev/null),-ljsoncpp)

# Homebrew's folders are not among those that the compiler searches.
ifeq ($(shell uname),Darwin)
brew := $(shell brew --prefix 2>/dev/null)
brew_cflags := $(if $(brew),-isystem $(brew)/include)
brew_ldflags := $(if $(brew),-L$(brew)/lib)
endif

# What these examples need. (Homebrew keeps OpenSSL in a folder of its own.)
cluster_libs := -lhiredis
auth_cflags := $(if $(brew),-isystem $(brew)/opt/openssl@3/include)
auth_libs := $(if $(brew),-L$(brew)/opt/openssl@3/lib) -lcrypto

warnings := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
cxx = $(CXX) -std=c++17 $(warnings) -I. $(CPPFLAGS) $(json_cflags) $(brew_cflags) $(CXXFLAGS)
link = $(CXX) $(CXXFLAGS) $(LDFLAGS) $(brew_ldflags)
libs = $(LDLIBS) $(json_libs)

# The tests have sanitizers in them, always, and so has all that they start. (Only in
# main.cpp, which is nothing but doctest, they would just take time.) Compiling takes
# longer than running: without optimization it takes half of that.
sanitized := -O0 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=all -pthread
examples_dir := -DEXAMPLES_DIR='"$(tested)/examples"'

# A test is the only user of all that is in its file, be it all of server.cpp. g++, told so,
# leaves out what is not used, and is done in a third of the time. (What it then says
# about <regex> and others "may be" so; without sanitizers they are fine.)
is_gcc = $(findstring Free Software,$(shell $(CXX) --version 2>/dev/null))
alone = $(if $(is_gcc),-fwhole-program -fno-var-tracking -Wno-maybe-uninitialized)

ifndef V
say = @printf '  %s\n' '$(1)';
endif

# Targets that install something come before all others, `make -j` or not.
installing := $(filter deps deps-%,$(MAKECMDGOALS))

# What is compiled depends on this file, which holds the flags, and is written anew
# only if they change.
flags = $(cxx) $(link) $(libs) $(sanitized) $(for_valgrind) $(for_tsan) $(examples_dir) \
    $(alone)
.build/flags: always | $(installing)
	@mkdir -p $(@D)
	@echo '$(subst ','\'',$(flags))' | cmp -s - $@ || echo '$(subst ','\'',$(flags))' > $@

$(plain)/%.o: %.cpp .build/flags
	@mkdir -p $(@D)
	$(call say,compile $<)$(cxx) $($(*F)_cflags) -MMD -MP -c $< -o $@

$(tested)/%.o: %.cpp .build/flags
	@mkdir -p $(@D)
	$(call say,compile $< for the tests)$(cxx) $(sanitized) $(examples_dir) $(extra) \
	    -MMD -MP -c $< -o $@

$(tested)/white_tests.cpp: $(white_sources) .build/flags
	@mkdir -p $(@D)
	@printf '#include "%s"\n' $(white_sources) > $@

$(tested)/tests/white_tests.o: $(tested)/white_tests.cpp
	@mkdir -p $(@D)
	$(call say,compile tests/white_*_test.cpp)$(cxx) $(sanitized) $(alone) -MMD -MP -c $< -o $@

extra =
$(tests:$(tested)/%=$(tested)/tests/%.o): extra = $(alone)
$(tested)/tests/differential/decoder.o: extra = $(alone)
$(tested)/tests/main.o: extra = -fno-sanitize=all

# This one has system calls of its own, which those of the server become: so --wrap has it,
# and all that takes part must stay visible.
wrapped := poll recv recvmsg send sendmsg accept4 close open shutdown socket bind listen \
    setsockopt getsockname getaddrinfo freeaddrinfo fcntl chmod pipe2 read write sigaction \
    getrlimit setrlimit clock_gettime
$(tested)/tests/black_faults_test.o: extra =
$(tested)/black_faults_test $(covered)/black_faults_test: wraps = $(wrapped:%=-Wl,--wrap=%)

$(library): $(plain)/server.o
	@rm -f $@
	$(call say,archive $@)$(AR) rcs $@ $^

$(examples) $(demanding): %: $(plain)/%.o $(plain)/server.o
	$(call say,link $@)$(link) $^ $(libs) $($(@F)_libs) -o $@

$(plain)/examples/auth.o: | deps-auth
$(plain)/examples/cluster.o $(tested)/examples/cluster.o: | deps-cluster

.build/interop-server: $(plain)/tests/interop/server.o $(plain)/server.o
	$(call say,link $@)$(link) $^ $(libs) -o $@

.build/load: $(plain)/tests/cluster/load.o
	$(call say,link $@)$(link) $^ $(LDLIBS) -o $@

.build/attack: $(plain)/tests/attack/attack.o
	$(call say,link $@)$(link) -pthread $^ $(LDLIBS) -o $@

$(tested)/attack-server: $(tested)/tests/attack/server.o $(tested)/server.o
	$(call say,link $@)$(link) $(sanitized) $^ $(libs) -o $@

tested_examples := $(patsubst %,$(tested)/%,$(examples))
$(tested_examples) $(tested)/examples/cluster: %: %.o $(tested)/server.o
$(white_tests): $(tested)/%: $(tested)/tests/%.o $(tested)/tests/main.o
$(black_tests): $(tested)/%: $(tested)/tests/%.o $(tested)/tests/main.o $(tested)/server.o
$(decoder): $(tested)/tests/differential/decoder.o
$(tested_examples) $(tested)/examples/cluster $(tests) $(decoder):
	$(call say,link $@)$(link) $(sanitized) $(wraps) $^ $(libs) $($(@F)_libs) -o $@

# Tests for valgrind, without sanitizers. Left out are those that start other programs, or
# no server at all, and two that take minutes there: they let everything fail in turn.
memory := .build/valgrind
for_valgrind := -O1 -g -DUNDER_VALGRIND -pthread
unfit := %/black_examples_test %/black_readme_test %/black_faults_test %/black_trouble_test
valgrind_tests := $(patsubst $(tested)/%,$(memory)/%,$(filter-out $(unfit),$(tests)))
$(memory)/%.o: %.cpp .build/flags
	@mkdir -p $(@D)
	$(call say,compile $< for valgrind)$(cxx) $(for_valgrind) $(extra) -MMD -MP -c $< -o $@

$(memory)/tests/white_tests.o: $(tested)/white_tests.cpp
	@mkdir -p $(@D)
	$(call say,compile tests/white_*_test.cpp for valgrind)$(cxx) $(for_valgrind) $(alone) \
	    -MMD -MP -c $< -o $@

$(valgrind_tests:$(memory)/%=$(memory)/tests/%.o): extra = $(alone)
$(memory)/white_tests: $(memory)/tests/white_tests.o $(memory)/tests/main.o
$(filter-out %/white_tests,$(valgrind_tests)): $(memory)/%: \
    $(memory)/tests/%.o $(memory)/tests/main.o $(memory)/server.o
$(valgrind_tests):
	$(call say,link $@)$(link) $(for_valgrind) $^ $(libs) -o $@

# Tests with several threads, for the thread sanitizer.
racing := .build/tsan
for_tsan := -O1 -g -fsanitize=thread -pthread
racing_tests := $(addprefix $(racing)/,black_threads_test black_shutdown_test)
$(racing)/%.o: %.cpp .build/flags
	@mkdir -p $(@D)
	$(call say,compile $< for tsan)$(cxx) $(for_tsan) -MMD -MP -c $< -o $@

$(racing_tests): $(racing)/%: $(racing)/tests/%.o $(racing)/tests/main.o $(racing)/server.o
	$(call say,link $@)$(link) $(for_tsan) $^ $(libs) -o $@

# The pages lie beside their programs.
tested_pages := $(addprefix $(tested)/,$(wildcard examples/*.html))
$(tested_pages): $(tested)/%: %
	@mkdir -p $(@D) && cp $< $@

# For the coverage: clang++ counts what is reached of server.cpp (also as the white-box tests
# include it), and of nothing else. No sanitizers.
covered_black := $(black_tests:$(tested)/%=$(covered)/%)
covered_examples := $(patsubst %,$(covered)/%,$(examples))
covered_tests := $(covered)/white_tests $(covered_black)
covered_cxx = clang++ -std=c++17 -O0 -I. $(CPPFLAGS) $(json_cflags) $(brew_cflags) -pthread \
    -DEXAMPLES_DIR='"$(covered)/examples"'

$(covered)/%.o: %.cpp .build/flags
	@mkdir -p $(@D)
	$(call say,compile $< for the coverage)$(covered_cxx) $(counting) -MMD -MP -c $< -o $@

$(covered)/tests/white_tests.o: $(tested)/white_tests.cpp
	@mkdir -p $(@D)
	$(call say,compile tests/white_*_test.cpp for the coverage)$(covered_cxx) $(counting) \
	    -MMD -MP -c $< -o $@

$(covered)/server.o $(covered)/tests/white_tests.o: counting = -fprofile-instr-generate \
    -fcoverage-mapping
$(covered)/white_tests: $(covered)/tests/white_tests.o $(covered)/tests/main.o
$(covered_black): $(covered)/%: $(covered)/tests/%.o $(covered)/tests/main.o $(covered)/server.o
$(covered_examples): %: %.o $(covered)/server.o
$(covered_tests) $(covered_examples):
	$(call say,link $@)clang++ -fprofile-instr-generate -pthread $(LDFLAGS) $(brew_ldflags) \
	    $(wraps) $^ $(libs) -o $@

covered_pages := $(addprefix $(covered)/,$(wildcard examples/*.html))
$(covered_pages): $(covered)/%: %
	@mkdir -p $(@D) && cp $< $@

-include $(wildcard $(addsuffix .d,$(addprefix .build/*/,* */* */*/*)))

# --- building, running, testing ---------------------------------------------------------

library: $(library)  ## The library alone
examples: $(examples)  ## examples/echo, hooks, chat, game and readme

auth: examples/auth  ## examples/auth, which needs OpenSSL

run: examples/chat  ## Starts the chat
	@examples/chat

game: examples/game  ## Starts the game
	@examples/game

cluster: examples/cluster  ## The chat of several processes, which Redis joins

# make starts itself once more, to use all cores, unless -j says otherwise. What cannot
# be built does not keep the rest from being tested, but counts as failed.
cores = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN))
test: | $(installing)  ## Builds and runs all tests, with sanitizers
	@mkdir -p $(tested) && rm -f $(tested)/unbuilt
	@$(MAKE) --no-print-directory -k $(cores) built-tests || touch $(tested)/unbuilt
	@.ci/test $(tested) $(tests)

built-tests: $(tests) $(examples:%=$(tested)/%) $(tested_pages)

# --- installing what is needed ----------------------------------------------------------

deps:  ## Installs what is missing to build, run and test
	@CXX='$(CXX)' .ci/deps base

# The same for further checks, which do that by themselves:
deps-lint: ## for lint
deps-install: ## for install-check
deps-auth: ## for auth
deps-interop: ## for interop
deps-differential: ## for differential
deps-fuzz: ## for fuzz
deps-coverage: ## for coverage
deps-valgrind: ## for valgrind
deps-bench: ## for bench
deps-micro: ## for bench-micro
deps-counts: ## for counts
deps-cluster: ## for cluster
deps_groups := lint install interop auth cluster differential fuzz coverage valgrind bench micro \
    counts
$(deps_groups:%=deps-%): deps-%:
	@CXX='$(CXX)' .ci/deps base $*
ifneq ($(filter interop,$(MAKECMDGOALS)),)  # which wants them all: one after the other
deps-interop: | deps-cluster
deps-cluster: | deps-auth
endif

# --- further checks ---------------------------------------------------------------------

# Each file is checked by each tool, and nothing that they find is let pass. clang-tidy
# counts on standard error what it does not show; that matters only if it fails.
strict = $(warnings) -Werror -std=c++17 -I. $(json_cflags) $(brew_cflags) $(auth_cflags) $(examples_dir)
compiled := $(addprefix compiled/,$(sources))
tidied := $(addprefix tidied/,$(checked))
# (examples/readme.cpp is set like the README, which shows it.)
formatted := $(headers) $(wildcard examples/*.h tests/*.h tests/*/*.h) $(foreign) \
    $(filter-out examples/readme.cpp,$(sources))

lint: format-check cppcheck $(compiled) $(tidied)  ## Format, warnings, cppcheck, clang-tidy

$(compiled): compiled/%: | deps-lint
	$(call say,g++ and clang++ $*)g++ $(strict) -fsyntax-only $* && \
	    clang++ $(strict) -fsyntax-only $*

$(tidied): tidied/%: | deps-lint
	@mkdir -p .build/$(@D)
	$(call say,clang-tidy $*)clang-tidy --quiet $* -- $(strict) 2>.build/$@.log || \
	    { cat .build/$@.log; false; }

cppcheck: | deps-lint
	$(call say,cppcheck)cppcheck --quiet --error-exitcode=1 --std=c++17 --library=posix \
	    --enable=warning,style,performance,portability --inline-suppr -I. $(checked)

format-check: | deps-lint
	$(call say,clang-format)clang-format --dry-run -Werror $(formatted)

format: | deps-lint  ## Formats all sources in place
	clang-format -i $(formatted)

# What the README promises, word for word, in a folder of its own.
in_scratch = set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT
dropin-check:  ## The four files and the README's example compile by themselves
	@$(in_scratch); cp server.cpp $(headers) "$$dir"; cp examples/readme.cpp "$$dir/mine.cpp"; \
	cd "$$dir"; for cxx in g++ clang++; do \
	    if ! command -v $$cxx >/dev/null; then continue; fi; \
	    echo "  $$cxx -std=c++17 mine.cpp server.cpp -ljsoncpp"; \
	    $$cxx -std=c++17 mine.cpp server.cpp -ljsoncpp; \
	done

install-check: $(library) | deps-install  ## Installs, uses, uninstalls it in a temporary place
	@$(in_scratch); cp examples/readme.cpp "$$dir/mine.cpp"; \
	$(MAKE) --no-print-directory install DESTDIR= PREFIX="$$dir/prefix"; \
	export PKG_CONFIG_PATH="$$dir/prefix/lib/pkgconfig:$$PKG_CONFIG_PATH"; \
	(cd "$$dir" && $(CXX) -std=c++17 mine.cpp $$($(PKG_CONFIG) --cflags --libs $(name)) -o mine); \
	$(MAKE) --no-print-directory uninstall DESTDIR= PREFIX="$$dir/prefix"; \
	left=$$(find "$$dir/prefix" ! -type d -o -name '*$(name)*'); \
	if [ -n "$$left" ]; then echo "left behind: $$left"; exit 1; fi

sanitized_cluster := $(addprefix $(tested)/examples/,cluster chat.html)
interop: examples examples/auth $(sanitized_cluster) .build/interop-server | deps-interop  ## A browser, Node's and Python's clients against it
	@tests/interop/run

cluster-bench: examples/chat examples/cluster .build/load | deps-cluster  ## How much the cluster can say
	@tests/cluster/bench

# ATTACK: more options, see .build/attack --help
attack: .build/attack  ## Treats the echo server at PORT badly, beside a canary
	@.build/attack --port=$(or $(PORT),12345) $(ATTACK)

# The deadlines are those of tests/attack/server.cpp; what the sanitizers cost is added.
attack-check: .build/attack $(tested)/attack-server  ## The same, with a sanitized server of its own
	@tests/attack/run $(tested)/attack-server .build/attack --handshake-seconds=2 \
	    --close-seconds=1 --ping-seconds=2 --connection-kib=64 --slack-kib=32768 $(ATTACK)

# DIFFERENTIAL='--seed TEXT --cases NUMBER' makes another run of it.
python = $(shell for p in python3 /usr/bin/python3; do \
    $$p -c 'import websockets' 2>/dev/null && echo $$p && break; done)
differential: $(decoder) | deps-differential  ## Random frames for this decoder and for another one
	@$(or $(python),python3) -B tests/differential/differential.py $(decoder) $(DIFFERENTIAL)

# The profiles are kept apart by what server.o is in them: by itself, or in the white-box tests.
coverage: | deps-coverage  ## What of server.cpp the tests reach
	@mkdir -p $(covered) && rm -f $(covered)/*.profraw
	@$(MAKE) --no-print-directory $(cores) built-coverage
	@LLVM_PROFILE_FILE='$(CURDIR)/$(covered)/white.%m.profraw' .ci/test $(covered) \
	    $(covered)/white_tests
	@LLVM_PROFILE_FILE='$(CURDIR)/$(covered)/black.%m.profraw' .ci/test $(covered) $(covered_black)
	@tests/coverage/check $(covered) white=$(covered)/white_tests \
	    black=$(firstword $(covered_black))

built-coverage: $(covered_tests) $(covered_examples) $(covered_pages)

# (Some tests have an operator new of their own, which valgrind shall leave alone.)
memcheck := valgrind --quiet --error-exitcode=99 --leak-check=full \
    --show-leak-kinds=definite,possible --errors-for-leak-kinds=definite,possible \
    --soname-synonyms=somalloc=nouserintercepts --log-file=%q{BASE}.sanitizer.%p
valgrind: | deps-valgrind  ## The tests once more, under valgrind
	@mkdir -p $(memory) && rm -f $(memory)/unbuilt
	@$(MAKE) --no-print-directory -k $(cores) built-valgrind || touch $(memory)/unbuilt
	@RUN_WITH='$(memcheck)' .ci/test $(memory) $(valgrind_tests)

built-valgrind: $(valgrind_tests)

tsan:  ## The tests with threads, under the thread sanitizer
	@mkdir -p $(racing) && rm -f $(racing)/unbuilt
	@$(MAKE) --no-print-directory -k $(cores) built-tsan || touch $(racing)/unbuilt
	@.ci/test $(racing) $(racing_tests)

built-tsan: $(racing_tests)

soak: .build/soak .build/soak-server  ## Clients of all habits for SOAK_SECONDS (300)
	@.build/soak --server .build/soak-server --seconds $(or $(SOAK_SECONDS),300)

.build/soak: $(plain)/tests/soak/soak.o
	$(call say,link $@)$(link) $^ -o $@

.build/soak-server: $(plain)/tests/soak/server.o $(plain)/server.o
	$(call say,link $@)$(link) $^ $(libs) -o $@

# BENCH_ROUNDS, BENCH_SECONDS (of one measurement), BENCH_ROWS='1x1 churn' and
# BENCH_SERVERS='ours ws' say what is measured; tests/bench/run has their names. The results are
# in .build/bench/, the README's chart in .github/.
BENCH_ROUNDS ?= 3
BENCH_SECONDS ?= 1
benched := .build/bench
bench_servers := $(patsubst tests/%.cpp,.build/%,tests/bench/ours.cpp $(foreign))
lws_libs = $(or $(shell $(PKG_CONFIG) --libs libwebsockets 2>/dev/null),-lwebsockets)

$(foreign:%.cpp=$(plain)/%.o): | deps-bench
$(benched)/ours: $(plain)/server.o
$(benched)/libwebsockets: bench_libs = $(lws_libs)
$(bench_servers) $(benched)/client: $(benched)/%: $(plain)/tests/bench/%.o
	@mkdir -p $(@D)
	$(call say,link $@)$(link) -pthread $^ $(bench_libs) $(libs) -o $@

bench: $(bench_servers) $(benched)/client | deps-bench  ## Measures this server and four others
	@tests/bench/run --programs=$(benched) --chart=.github/bench.svg --rounds=$(BENCH_ROUNDS) \
	    --seconds=$(BENCH_SECONDS) --rows='$(BENCH_ROWS)' --servers='$(BENCH_SERVERS)'

bench-check: $(bench_servers) $(benched)/client | deps-bench  ## Whether that can be measured
	@tests/bench/run --programs=$(benched) --check

bench-micro: .build/micro  ## How fast its parts are that look at each byte
	@.build/micro

.build/micro: $(plain)/tests/bench/micro.o
	$(call say,link $@)$(link) -pthread $^ -lbenchmark $(libs) -o $@

$(plain)/tests/bench/micro.o: | deps-micro

# Counted is what -O2 makes of it, whatever CXXFLAGS say.
counts counts-update: CXXFLAGS = -O2 -g
counts: .build/counts  ## Whether a message takes as many instructions as the table says
	@tests/counts/run $< $(CXX)

counts-update: .build/counts  ## Writes that table
	@tests/counts/run $< $(CXX) --update

.build/counts: $(plain)/tests/counts/stories.o $(plain)/server.o
	$(call say,link $@)$(link) $^ $(libs) -o $@

$(plain)/tests/counts/stories.o: | deps-counts

# libFuzzer comes with clang only, and Apple's has none. The targets include ../../server.cpp;
# the whole server gets its system calls from a kernel in memory.
FUZZ_SECONDS ?= 60
fuzzed := .build/fuzz
fuzz_targets := $(addprefix $(fuzzed)/,head frames server)
fuzz_flags = -O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=all
fuzz_wrapped := poll clock_gettime read write close fcntl getaddrinfo freeaddrinfo socket bind \
    listen setsockopt getsockname accept4 pipe2 shutdown recv recvmsg send sendmsg
$(fuzzed)/server: wraps = $(fuzz_wrapped:%=-Wl,--wrap=%)

$(fuzz_targets): $(fuzzed)/%: tests/fuzz/%.cpp .build/flags | deps-fuzz
	@mkdir -p $(@D)
	$(call say,compile $<)clang++ $(strict) $(fuzz_flags) -MMD -MP -MF $@.d -MT $@ $< $(wraps) \
	    $(brew_ldflags) $(libs) -o $@

fuzz: $(fuzz_targets)  ## Replays the fuzzing corpus, then fuzzes for FUZZ_SECONDS (60)
	@tests/fuzz/run $(fuzzed) $(FUZZ_SECONDS)

fuzz-replay: $(fuzz_targets)  ## Replays the fuzzing corpus
	@tests/fuzz/run $(fuzzed) 0

# --- installing the library -------------------------------------------------------------

root = $(DESTDIR)$(PREFIX)
include_dir = $(root)/include/$(name)
doc_dir = $(root)/share/doc/$(name)
pc = $(root)/lib/pkgconfig/$(name).pc
json_known = $(shell $(PKG_CONFIG) --exists jsoncpp 2>/dev/null && echo yes)

install: $(library)  ## Installs headers, library, pkg-config file in PREFIX
	install -d "$(include_dir)" "$(doc_dir)" "$(root)/lib/pkgconfig"
	install -m 644 $(headers) "$(include_dir)"
	install -m 644 $(library) "$(root)/lib"
	install -m 644 LICENSE "$(doc_dir)"
	@printf '%s\n' 'prefix=$(PREFIX)' \
	    'includedir=$${prefix}/include/$(name)' 'libdir=$${prefix}/lib' '' \
	    'Name: Extendible WebSocket Server' 'Version: $(version)' \
	    'Description: A WebSocket server to derive from' 'Cflags: -I$${includedir}' \
	    'Libs: -L$${libdir} -l$(name)$(if $(json_known),, -ljsoncpp)' \
	    $(if $(json_known),'Requires: jsoncpp') > "$(pc)"
	chmod 644 "$(pc)"

uninstall:  ## Removes what install put there
	rm -f $(patsubst %,"$(include_dir)/%",$(headers)) "$(pc)" "$(doc_dir)/LICENSE" \
	    "$(root)/lib/$(notdir $(library))"
	-rmdir "$(include_dir)" "$(doc_dir)"

# --- the rest ---------------------------------------------------------------------------

clean:  ## Removes all that was built
	rm -rf .build $(examples) $(demanding)

help:  ## This list
	@awk -F ':.*## *' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

always:
.PHONY: all always library examples auth run game test built-tests help clean install uninstall
.PHONY: deps $(deps_groups:%=deps-%) differential coverage built-coverage
.PHONY: fuzz fuzz-replay valgrind built-valgrind soak tsan built-tsan
.PHONY: attack attack-check cluster cluster-bench bench bench-check bench-micro counts counts-update
.PHONY: lint format-check cppcheck $(compiled) $(tidied) format dropin-check install-check interop
.DELETE_ON_ERROR:
.SECONDARY:
