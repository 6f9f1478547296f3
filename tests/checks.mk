# SPDX-License-Identifier: MIT
# Extendible WebSocket Server
#
# What `make test` needs besides the Makefile, and all checks beyond it. The Makefile includes this
# file and defines what it uses: `compile`, `link`, their flags, and `rules`. Each check installs
# what it needs.

# --- for `make test` ---------------------------------------------------------------------

# The README's code, for black_answers_test.
.build/readme.h: README.md tests/readme.awk
	@mkdir -p $(@D); awk -f tests/readme.awk README.md > $@
$(patsubst %,.build/%/tests/black_answers_test.o,test valgrind coverage mutate): .build/readme.h

# black_faults_test replaces these system calls of the server with its own functions, which
# the linker has to see.
faults_wrap := poll recv send sendmsg accept4 close shutdown socket bind \
    listen setsockopt getsockname getaddrinfo freeaddrinfo fcntl chmod pipe read write \
    sigaction getrlimit setrlimit clock_gettime
%/black_faults_test.o: extra =
%/black_faults_test: wraps = $(faults_wrap:%=-Wl,--wrap=%)

# --- lint -------------------------------------------------------------------------------

# Both compilers read all sources, clang-tidy and cppcheck all but the tests. The servers to
# compare with (`foreign`) need libraries that only `make bench` installs.
foreign := $(addprefix tests/bench/,websocketpp.cpp beast.cpp libwebsockets.cpp)
sources := $(filter-out $(foreign),server.cpp $(wildcard examples/*.cpp tests/*.cpp tests/*/*.cpp))
checked := $(filter-out tests/%,$(sources))
compiled := $(addprefix compiled/,$(sources))
tidied := $(addprefix tidied/,$(checked))
# The README shows examples/readme.cpp, which therefore has the README's width.
formatted := $(headers) $(wildcard examples/*.h examples/*/*.cpp tests/*.h tests/*/*.h) \
    $(foreign) $(filter-out examples/readme.cpp,$(sources))
strict = $(warnings) -Werror -std=c++17 -I. $(json_cflags) $(brew_cflags) $(auth_cflags) \
    -DEXAMPLES_DIR='""'

# What other machines and programs do with the sources, as far as a compiler can tell: `unity` is
# the server and a program in one file, with all headers twice.
portable := $(addprefix portable/,unity unsigned-char c++20 c++2b libc++)
ifneq ($(shell command -v apt-get 2>/dev/null),)  # from Debian's packages
portable += portable/32-bit portable/musl
endif
musl = $(shell ls -d /usr/include/*-linux-musl)
portable/%: by = g++ clang++
portable/%: reads = server.cpp examples/hooks.cpp examples/chat.cpp
portable/unity: reads = .build/unity.cpp
portable/unsigned-char: as = -funsigned-char
portable/c++20 portable/c++2b: as = -std=$(@F)
portable/libc++ portable/32-bit portable/musl: by = clang++
portable/libc++: as = -stdlib=libc++
portable/32-bit: as = --target=i686-linux-gnu
portable/musl: as = --target=$(notdir $(musl)) -nostdlibinc -D_LIBCPP_HAS_MUSL_LIBC \
    -isystem /usr/include/c++/v1 -isystem $(musl)
portable/unsigned-char portable/libc++ portable/32-bit: reads += .build/white_tests.cpp

lint: budgets format-check cppcheck $(compiled) $(tidied) $(portable)  ## Sizes, format, warnings, analyzers

budgets:  ## Checks that the sources stay small
	@tests/budgets

compiled/tests/black_answers_test.cpp: .build/readme.h
$(compiled): compiled/%: | deps-lint
	$(call say,g++ and clang++ $*)g++ $(strict) -fsyntax-only $* && \
	    clang++ $(strict) -fsyntax-only $*

$(portable): .build/unity.cpp .build/white_tests.cpp | deps-lint
	$(call say,$(by) for $(@F))$(foreach each,$(by),$(each) $(strict) $(as) -fsyntax-only \
	    $(reads) &&) true

.build/unity.cpp: always
	$(call write,$(patsubst %,'#include "%"',$(headers) $(headers) examples/hooks.cpp server.cpp))

# clang-tidy counts suppressed warnings on standard error, which matters only when it fails.
$(tidied): tidied/%: | deps-lint
	@mkdir -p .build/$(@D)
	$(call say,clang-tidy $*)clang-tidy --quiet $* -- $(strict) 2>.build/$@.log || \
	    { cat .build/$@.log; false; }

# Left out are opinions, and what it gets wrong: raise() returns, names of members may be reused.
opinions := passedByValue useStlAlgorithm noExplicitConstructor constParameter shadowFunction \
    shadowVariable duplicateCondition unreachableCode unusedStructMember
cppcheck: | deps-lint
	$(call say,cppcheck)cppcheck --quiet --error-exitcode=1 --std=c++17 --library=posix \
	    --enable=warning,style,performance,portability --inline-suppr \
	    $(opinions:%=--suppress=%) -I. $(checked)

format-check: | deps-lint
	$(call say,clang-format)clang-format --dry-run -Werror $(formatted)

format: | deps-lint  ## Formats all sources in place
	clang-format -i $(formatted)

# --- the library as users get it --------------------------------------------------------

first-hour-check: | deps-first-hour  ## Does what the README tells a new user to do
	@node tests/first-hour/run.mjs

lint: setup-check
setup-check: | deps-lint  ## Checks that a missing C++17 or jsoncpp is told in one sentence
	$(call say,setup-check)tests/setup

# Word for word what the README promises, in a temporary folder.
in_scratch = set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT
install-check: $(library) | deps-install  ## Installs, uses and uninstalls the library
	@$(in_scratch); cp examples/readme.cpp "$$dir/mine.cpp"; \
	$(MAKE) --no-print-directory install DESTDIR= PREFIX="$$dir/prefix"; \
	export PKG_CONFIG_PATH="$$dir/prefix/lib/pkgconfig:$$PKG_CONFIG_PATH"; \
	(cd "$$dir" && $(CXX) -std=c++17 mine.cpp $$($(PKG_CONFIG) --cflags --libs $(name)) -o mine); \
	$(MAKE) --no-print-directory uninstall DESTDIR= PREFIX="$$dir/prefix"; \
	left=$$(find "$$dir/prefix" ! -type d -o -name '*$(name)*'); \
	if [ -n "$$left" ]; then echo "left behind: $$left"; exit 1; fi

# --- the tests with other tools ---------------------------------------------------------

# Left out are tests that start other programs or no server at all, and two that would take
# minutes.
valgrind_flags := -O1 -g -DUNDER_VALGRIND
valgrind_tests := $(patsubst .build/test/%,.build/valgrind/%,$(filter-out %/black_examples_test \
    %/black_readme_test %/black_faults_test %/black_trouble_test,$(tests)))
# Some tests have an operator new of their own, which valgrind must not replace.
memcheck := valgrind --quiet --error-exitcode=99 --leak-check=full \
    --show-leak-kinds=definite,possible --errors-for-leak-kinds=definite,possible \
    --soname-synonyms=somalloc=nouserintercepts --log-file=%q{BASE}.sanitizer.%p
valgrind: | deps-valgrind  ## Runs the tests under valgrind
	$(call run_tests,valgrind,$(valgrind_tests),RUN_WITH='$(memcheck)')

tsan_flags := -O1 -g -fsanitize=thread
tsan_tests := .build/tsan/black_threads_test .build/tsan/black_shutdown_test
tsan:  ## Runs the tests that have threads under the thread sanitizer
	$(call run_tests,tsan,$(tsan_tests))

# clang++ counts in server.cpp and nowhere else. server.cpp is compiled twice, once inside the
# white-box tests; the names of the profiles keep the two apart.
coverage_cxx := clang++
coverage_flags := -O0 -g0
coverage_ldflags := -fprofile-instr-generate
.build/coverage/server.o .build/coverage/tests/white_tests.o: extra = \
    -fprofile-instr-generate -fcoverage-mapping
coverage_white := .build/coverage/white_tests
coverage_black := $(black_tests:.build/test/%=.build/coverage/%)
profile = LLVM_PROFILE_FILE='$(CURDIR)/.build/coverage/$(1).%m.profraw'
coverage: | deps-coverage  ## Checks that the tests reach all of server.cpp
	@rm -f .build/coverage/*.profraw
	$(call run_tests,coverage,$(coverage_white),$(call profile,white))
	$(call run_tests,coverage,$(coverage_black),$(call profile,black))
	@tests/coverage/check .build/coverage white=$(coverage_white) \
	    black=$(firstword $(coverage_black))

# The tool calls make in a copy of the project, where server.cpp has all its mutants. SINCE=COMMIT
# takes only the rules that have changed since then. ALL=1 breaks all of server.cpp; then MUTATE adds
# options, such as --lines 1-99 or --again (only what survived the last time).
mutate_flags := -O0 -g0 -w -D_GLIBCXX_ASSERTIONS
.build/mutate/server.o: extra = -O1 -Wno-narrowing
.build/mutate/tests/white_tests.o: extra = $(alone) -O1 -Wno-narrowing
clang_python = $(shell for p in python3 /usr/bin/python3; do \
    $$p -c 'import clang.cindex' 2>/dev/null && echo $$p && break; done)
mutate: | deps-mutate  ## Breaks each rule of tests/rfc6455.md, and checks that its tests notice
	@$(or $(clang_python),python3) -B tests/mutate/mutate $(if $(ALL),--all) \
	    $(SINCE:%=--since %) $(MUTATE)

# --- other machines ---------------------------------------------------------------------

# What the processor or the C library could make different, under qemu. s390x is big-endian and
# its `char` is unsigned; armhf and i386 have 32 bits, and i386 computes with 80-bit numbers.
CROSS ?= s390x armhf i386
s390x_cxx := s390x-linux-gnu-g++
armhf_cxx := arm-linux-gnueabihf-g++
i386_cxx := i686-linux-gnu-g++
# g++ for armhf notes what was passed differently before version 7.
cross_flags := -O1 -g1 -Werror -Wno-psabi -DUNDER_QEMU
cross_tests := white_tests $(patsubst %,black_%_test,config frames handshake hooks listen loop users)
cross:  ## Runs most tests as on the processors CROSS (s390x armhf i386)
	@failed=; for each in $(CROSS); do \
	    $(MAKE) --no-print-directory cross-$$each || failed=1; done; test -z "$$failed"

# $(call cross_rules,PROCESSOR): its folder of .build, the jsoncpp in it, and how the tests run.
define cross_rules
$(call rules,$(1))
$(1)_flags := $(cross_flags)
.build/$(1)/%: json_cflags = -isystem .build/$(1)/jsoncpp/usr/include/jsoncpp
.build/$(1)/%: json_libs = $$(wildcard $(CURDIR)/.build/$(1)/jsoncpp/usr/lib/*/libjsoncpp.so) \
    -Wl,-rpath,$$(wildcard $(CURDIR)/.build/$(1)/jsoncpp/usr/lib/*-linux-*)
cross-$(1): | deps-$(1)
	@tests/cross/jsoncpp $(1) .build/$(1)/jsoncpp
	$$(call run_tests,$(1),$(cross_tests:%=.build/$(1)/%),RUN_WITH='tests/cross/run $(1)')
endef
$(foreach each,s390x armhf i386,$(eval $(call cross_rules,$(each))))

# As on macOS. jsoncpp is made of the source code of Debian's package.
libcxx_cxx := clang++
libcxx_flags := $(test_flags) -stdlib=libc++
libcxx_tests := .build/libcxx/white_tests
.build/libcxx/%: json_cflags = -isystem .build/libcxx/jsoncpp/include
.build/libcxx/%: json_libs =
.build/libcxx/jsoncpp.o: extra = -w -O2 -fno-sanitize=all
.build/libcxx/jsoncpp.o: .build/libcxx/jsoncpp.cpp
	$(compile)
.build/libcxx/jsoncpp.cpp:
	@printf '#include "jsoncpp/src/lib_json/json_%s.cpp"\n' reader value writer > $@
$(libcxx_tests): .build/libcxx/jsoncpp.o
libcxx: | deps-libcxx  ## Runs the white-box tests over libc++, which macOS has
	@tests/cross/jsoncpp source .build/libcxx/jsoncpp
	$(call run_tests,libcxx,$(libcxx_tests))

# --- other peers ------------------------------------------------------------------------

interop: examples examples/auth .build/test/examples/cluster .build/test/examples/chat.html
interop: .build/interop-server | deps-interop  ## Lets browsers, other clients and proxies talk to it
	@tests/interop/run

# DIFFERENTIAL='--seed TEXT --cases NUMBER' selects other frames.
python = $(shell for p in python3 /usr/bin/python3; do \
    $$p -c 'import websockets' 2>/dev/null && echo $$p && break; done)
differential: .build/test/decoder | deps-differential  ## Compares it with Python's decoder
	@$(or $(python),python3) -B tests/differential/differential.py .build/test/decoder \
	    $(DIFFERENTIAL)

# ATTACK adds options, which .build/attack --help lists.
attack: .build/attack  ## Attacks the echo server at PORT while a well-behaved client watches
	@.build/attack --port=$(or $(PORT),12345) $(ATTACK)

# The deadlines are those of tests/attack/server.cpp; the slack is for the sanitizers.
attack-check: .build/attack .build/test/attack-server  ## Attacks a sanitized server of its own
	@tests/attack/run .build/test/attack-server .build/attack --handshake-seconds=2 \
	    --close-seconds=1 --ping-seconds=2 --connection-kib=64 --slack-kib=32768 $(ATTACK)

# Linux only. FAIRNESS adds options, which .build/fairness lists. The aims are for -O2, whatever
# the environment's CXXFLAGS say.
fairness fairness-check: CXXFLAGS = -O2 -g
fairness: .build/fairness .build/fairness-server  ## Measures a client's waits beside hostile ones
	@.build/fairness .build/fairness-server $(FAIRNESS)

fairness-check: .build/fairness .build/fairness-server  ## Checks that these waits are short
	@.build/fairness .build/fairness-server --check --peers=1,100 --seconds=0.5 $(FAIRNESS)

soak: .build/soak .build/soak-server  ## Runs clients of all habits for SOAK_SECONDS (300)
	@.build/soak --server .build/soak-server --seconds $(or $(SOAK_SECONDS),300)

# libFuzzer comes with clang, but not with Apple's. The targets include server.cpp; `server`
# runs all of it on an imitation of the kernel, which answers these system calls.
FUZZ_SECONDS ?= 60
fuzz_cxx := clang++
fuzz_flags := -Werror -O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=all -fno-sanitize=vptr  # that check calls pipe(), which is imitated
fuzz_wrap := poll clock_gettime read write close fcntl getaddrinfo freeaddrinfo socket bind \
    listen setsockopt getsockname accept4 pipe shutdown recv send sendmsg
fuzz_targets := $(addprefix .build/fuzz/,head frames server)
.build/fuzz/server: wraps = $(fuzz_wrap:%=-Wl,--wrap=%)
$(fuzz_targets:.build/fuzz/%=.build/fuzz/tests/fuzz/%.o): | deps-fuzz
$(fuzz_targets): .build/fuzz/%: .build/fuzz/tests/fuzz/%.o
	$(link)

fuzz: $(fuzz_targets)  ## Replays the fuzzing corpus, then fuzzes for FUZZ_SECONDS (60)
	@tests/fuzz/run .build/fuzz $(FUZZ_SECONDS)

fuzz-replay: $(fuzz_targets)  ## Replays the fuzzing corpus
	@tests/fuzz/run .build/fuzz 0

# --- the tour ---------------------------------------------------------------------------

# .build/tour/N has server.cpp with the change of stop N of the tour, and the white-box tests,
# which include it. No sanitizers: they would take most of the time.
tour_flags = -O0 -g0 -w -ffile-prefix-map=$(@D)/=
tour_needs := $(headers) tests/source.h $(wildcard tests/white*)
.build/tour/%/server.cpp: server.cpp tests/tour.md tests/tour/run $(tour_needs)
	@mkdir -p $(@D)/tests && cp tests/source.h $(wildcard tests/white*) $(@D)/tests
	@tests/tour/run change $* > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
.build/tour/%/server.o: .build/tour/%/server.cpp $(tour_needs) .build/tour/flags
	$(compile) -MF /dev/null
.build/tour/%/white_tests.o: .build/white_tests.cpp .build/tour/%/server.cpp $(tour_needs) \
    .build/tour/flags
	$(compile) -iquote $(@D) -MF /dev/null
.build/tour/%/white_tests: .build/tour/%/white_tests.o .build/tour/tests/main.o
	$(link)
define tour_rules
.build/tour/%/$(1): .build/tour/%/server.o .build/tour/tests/$(1).o .build/tour/tests/main.o
	$$(link)
endef
$(foreach each,$(notdir $(black_tests)),$(eval $(call tour_rules,$(each))))

experiment:  ## Makes a change of tests/tour.md, runs its test: make experiment N=3
	+@MAKE='$(MAKE)' tests/tour/run experiment '$(N)'

tour-check:  ## Checks that each change of tests/tour.md fails its test, and no other
	@tests/tour/run check-text
	+@$(MAKE) -s --no-print-directory -k $(jobs) .build/white_tests.cpp \
	    $$(tests/tour/run objects)
	+@$(MAKE) --no-print-directory -k $(jobs) $$(tests/tour/run list | sed 's/.*/tour-check-&/')
	+@MAKE='$(MAKE)' tests/tour/run check-itself
tour-check-%:
	+@MAKE='$(MAKE)' tests/tour/run check $*

# --- measuring --------------------------------------------------------------------------

# BENCH_ROUNDS, BENCH_SECONDS (of one measurement), BENCH_ROWS='1x1 churn' and
# BENCH_SERVERS='ours ws' select what to measure; tests/bench/run lists the names. The results
# go to .build/bench, the README's chart goes to .github.
BENCH_ROUNDS ?= 5
BENCH_SECONDS ?= 1
benched := $(addprefix .build/bench/,ours floor client) $(foreign:tests/%.cpp=.build/%)
libwebsockets_libs = $(or $(shell $(PKG_CONFIG) --libs libwebsockets 2>/dev/null),-lwebsockets)
$(foreign:%.cpp=.build/plain/%.o): | deps-bench
.build/bench/ours: .build/plain/server.o
$(benched): .build/bench/%: .build/plain/tests/bench/%.o
	$(link)

bench: $(benched) | deps-bench  ## Measures this server, four others and a floor
	@tests/bench/run --programs=.build/bench --chart=.github/bench.svg --rounds=$(BENCH_ROUNDS) \
	    --seconds=$(BENCH_SECONDS) --rows='$(BENCH_ROWS)' --servers='$(BENCH_SERVERS)'

bench-check: $(benched) | deps-bench  ## Checks that all six can be measured
	@tests/bench/run --programs=.build/bench --check

bench-micro: .build/micro  ## Measures the functions that touch each byte
	@.build/micro

cluster-bench: examples/chat examples/cluster .build/load | deps-cluster  ## Measures the cluster
	@tests/cluster/bench

# The table is for -O2, whatever the environment's CXXFLAGS say.
counts counts-update: CXXFLAGS = -O2 -g
counts: .build/counts  ## Compares the instructions per message with a table
	@tests/counts/run $< $(CXX)

counts-update: .build/counts  ## Writes that table
	@tests/counts/run $< $(CXX) --update

# --- the programs of the checks ---------------------------------------------------------

.build/test/decoder: .build/test/tests/differential/decoder.o
.build/test/attack-server: .build/test/tests/attack/server.o .build/test/server.o
.build/interop-server: .build/plain/tests/interop/server.o .build/plain/server.o
.build/attack: .build/plain/tests/attack/attack.o
.build/fairness: .build/plain/tests/attack/fairness.o
.build/fairness-server: .build/plain/tests/attack/fairness_server.o .build/plain/server.o
.build/load: .build/plain/tests/cluster/load.o
.build/soak: .build/plain/tests/soak/soak.o
.build/soak-server: .build/plain/tests/soak/server.o .build/plain/server.o
.build/counts: .build/plain/tests/counts/stories.o .build/plain/server.o
.build/micro: .build/plain/tests/bench/micro.o
.build/test/decoder .build/test/attack-server $(addprefix .build/,interop-server attack fairness \
    fairness-server load soak soak-server counts micro):
	$(link)

.build/plain/tests/counts/stories.o: | deps-counts
.build/plain/tests/bench/micro.o: | deps-micro
.build/test/tests/differential/decoder.o: extra = $(alone)
micro_libs := -lbenchmark

$(foreach each,valgrind tsan coverage fuzz libcxx mutate tour,$(eval $(call rules,$(each))))

# --- what the checks need ---------------------------------------------------------------

deps-lint: ## for lint
deps-first-hour: ## for first-hour-check
deps-install: ## for install-check
deps-interop: ## for interop
deps-differential: ## for differential
deps-fuzz: ## for fuzz
deps-coverage: ## for coverage
deps-valgrind: ## for valgrind
deps-bench: ## for bench
deps-micro: ## for bench-micro
deps-s390x: ## for cross-s390x
deps-armhf: ## for cross-armhf
deps-i386: ## for cross-i386
deps-libcxx: ## for libcxx
deps-mutate: ## for mutate
deps-counts: ## for counts
deps_checks := $(addprefix deps-,lint first-hour install interop differential fuzz coverage \
    valgrind bench micro counts s390x armhf i386 libcxx mutate)
$(deps_checks): deps-%:
	@CXX='$(CXX)' .ci/deps base test $*

# interop needs three groups: one after the other, because package managers take a lock.
ifneq ($(filter interop,$(MAKECMDGOALS)),)
deps-interop: | deps-cluster
deps-cluster: | deps-auth
endif

.PHONY: lint budgets $(compiled) $(tidied) $(portable) cppcheck format-check format install-check
.PHONY: first-hour-check setup-check cross cross-s390x cross-armhf cross-i386 libcxx
.PHONY: valgrind tsan coverage mutate interop differential attack attack-check fairness fairness-check
.PHONY: soak fuzz fuzz-replay experiment tour-check bench bench-check bench-micro cluster-bench
.PHONY: counts counts-update
.PHONY: $(deps_checks)
