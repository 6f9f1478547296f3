# SPDX-License-Identifier: MIT
# Extendible WebSocket Server
#
#     make deps run     installs what is missing, starts the chat
#     make deps test    installs what is missing, runs the tests
#     make help         lists all targets
#
# CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS, PREFIX and DESTDIR can be set in the
# environment or on the command line; the flags that the project needs are added to them.
# V=1 shows the commands. Works with GNU make 3.81 (macOS) and later.

all: library examples  ## The library and the examples; the default

ifeq ($(origin CXX),default)
CXX = c++
endif
CXXFLAGS ?= -O2 -g
PREFIX ?= /usr/local
PKG_CONFIG ?= pkg-config

# On macOS nothing searches Homebrew's folders by itself, and the linker has no --wrap.
ifeq ($(shell uname),Darwin)
brew := $(shell brew --prefix 2>/dev/null)
unlinkable := tests/black_faults_test.cpp
endif

# --- what there is to build -------------------------------------------------------------

name := extendible-websocket-server
version := 1.0.0
headers := server.h config.h user.h
library := .build/plain/lib$(name).a

# Examples that need more than jsoncpp have targets of their own, which install it.
demanding := examples/auth examples/cluster
examples := $(filter-out $(demanding),$(patsubst %.cpp,%,$(wildcard examples/*.cpp)))
pages := $(wildcard examples/*.html)

# White-box tests include server.cpp. They form one program, which compiles in a quarter of
# the time that separate ones take. Black-box tests are linked with server.o.
white_sources := $(wildcard tests/white_*_test.cpp)
black_sources := $(filter-out $(unlinkable),$(wildcard tests/black_*_test.cpp))
black_tests := $(black_sources:tests/%.cpp=.build/test/%)
# A quick test first, because somebody is waiting, with the two that take longest.
first := $(filter %/black_readme_test %/black_faults_test %/black_users_test,$(black_tests))
tests := $(first) .build/test/white_tests $(filter-out $(first),$(black_tests))

# --- building, running, testing ---------------------------------------------------------

library: $(library)  ## The library alone
examples: $(examples)  ## examples/echo, hooks, chat, game, wire and readme
auth: examples/auth  ## examples/auth, which needs OpenSSL
cluster: examples/cluster  ## The chat of several processes, which Redis joins

run: examples/chat  ## Starts the chat; PORT=8000 and ADDRESS= say where
	@examples/chat $(PORT:%=--port %) $(if $(filter command%,$(origin ADDRESS)),--address '$(ADDRESS)')

game: ## Starts the game
wire: ## Starts a page that draws each bit of its connection
game wire: %: examples/%
	@examples/$@

# Goals that install something come before all others, even with -j.
installing := $(filter deps deps-%,$(MAKECMDGOALS))

# make calls itself, with a job more than there are cores, because tests wait a lot. If a test
# cannot be built, the others run all the same, and .ci/test counts a failure.
jobs = $(if $(filter -j%,$(MAKEFLAGS)),,-j$$(($$(getconf _NPROCESSORS_ONLN) + 1)))
define run_tests
@rm -f .build/$(1)/*.status .build/$(1)/unbuilt
+@$(3) $(MAKE) --no-print-directory -k $(jobs) $(2:=.ran) || touch .build/$(1)/unbuilt
@.ci/test .build/$(1) $(2)
endef
test: | $(installing)  ## Builds and runs all tests, with sanitizers
	$(call run_tests,test,$(tests))

new:  ## Makes a project of your own: make new DIR=../mychat
	@.ci/new '$(DIR)'
clean:  ## Removes all that was built
	rm -rf .build $(examples) $(demanding)

help:  ## This list
	@awk -F ':.*## *' '/^[a-z0-9-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' \
	    Makefile $(wildcard tests/checks.mk)

# --- installing -------------------------------------------------------------------------

untested := deps% all library examples run game wire auth cluster new install
deps:  ## Installs what is missing to build, run and test (`make deps run`: no tests)
	@CXX='$(CXX)' .ci/deps base \
	    $(if $(filter-out $(untested),$(or $(filter-out deps,$(MAKECMDGOALS)),test)),test)

deps-auth: ## for auth
deps-cluster: ## for cluster
deps-auth deps-cluster: deps-%:
	@CXX='$(CXX)' .ci/deps base $*

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

# --- flags ------------------------------------------------------------------------------

# jsoncpp's flags, from pkg-config if it knows them, when they are used: `make deps` may have
# installed it just now. -isystem silences warnings about its headers.
json_cflags = $(patsubst -I%,-isystem %,$(shell $(PKG_CONFIG) --cflags jsoncpp 2>/dev/null))
json_libs = $(or $(shell $(PKG_CONFIG) --libs jsoncpp 2>/dev/null),-ljsoncpp)
brew_cflags := $(brew:%=-isystem %/include)
brew_ldflags := $(brew:%=-L%/lib)

# Each folder of .build has its own flags: .build/plain is for the library and the examples,
# .build/test for the tests. FOLDER_flags are added for a folder (and FOLDER_ldflags when it
# links), PROGRAM_cflags and PROGRAM_libs for a program, `extra` for an object. FOLDER_cxx
# replaces the compiler.
folder = $(word 2,$(subst /, ,$@))
compiler = $(or $($(folder)_cxx),$(CXX))
warnings := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
compile_flags = -std=c++17 $(warnings) -I. $(CPPFLAGS) $(json_cflags) $(brew_cflags) \
    $(CXXFLAGS) $($(folder)_flags)
link_flags = $(CXXFLAGS) $($(folder)_flags) $(LDFLAGS) $(brew_ldflags) $($(folder)_ldflags)
libs = -pthread $(LDLIBS) $(json_libs)
extra =

cluster_libs := -lhiredis
auth_cflags := $(brew:%=-isystem %/opt/openssl@3/include)
auth_libs := $(brew:%=-L%/opt/openssl@3/lib) -lcrypto

# Tests, and the programs that they start, always have sanitizers. They take longer to
# compile than to run: half the time without optimization, and half of that without two kinds
# of checks, which only server.o has.
test_flags := -O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all \
    -fno-sanitize=null,alignment,vptr -fno-sanitize-address-use-after-scope
.build/test/server.o: extra = -fsanitize=null,alignment,vptr -fsanitize-address-use-after-scope

# Nothing outside a test uses what the test defines. -fwhole-program tells g++ so, which
# then leaves out unused functions and needs a third of the time. (Its "maybe uninitialized"
# warnings about <regex> and others are wrong then.) main.cpp is doctest and nothing else.
is_gcc = $(findstring Free Software,$(shell $(compiler) --version 2>/dev/null))
alone = $(if $(is_gcc),-fwhole-program -fno-var-tracking -Wno-maybe-uninitialized)
%_test.o %/white_tests.o: extra = $(alone)
%/black_examples_test.o: extra = $(alone) -DEXAMPLES_DIR='".build/$(folder)/examples"'
.build/test/tests/main.o: extra = -fno-sanitize=all

# --- compiling and linking --------------------------------------------------------------

say = $(if $(V),,@printf '  %s\n' '$(1)';)
compile = $(call say,compile $@)mkdir -p $(@D) && \
    $(compiler) $(compile_flags) $(extra) $($(*F)_cflags) -MMD -MP -c $< -o $@
link = $(call say,link $@)mkdir -p $(@D) && \
    $(compiler) $(link_flags) $(wraps) $^ $(libs) $($(@F)_libs) -o $@

# Files that change only when their content does. Objects depend on their folder's flags.
write = @mkdir -p $(@D); printf '%s\n' $(1) | cmp -s - $@ || printf '%s\n' $(1) > $@
flags = $(compiler) $(compile_flags) $(alone) $(link_flags) $(libs)
.build/white_tests.cpp: always | $(installing)
	$(call write,$(white_sources:%='#include "%"'))

# $(call rules,FOLDER): how the programs in that folder of .build are made.
define rules
.build/$(1)/flags: always | $(installing)
	$$(call write,'$$(subst ','\'',$$(flags))')
.build/$(1)/%.o: %.cpp .build/$(1)/flags
	$$(compile)
.build/$(1)/tests/white_tests.o: .build/white_tests.cpp .build/$(1)/flags
	$$(compile)
.build/$(1)/white_tests: .build/$(1)/tests/white_tests.o .build/$(1)/tests/main.o
	$$(link)
$(black_sources:tests/%.cpp=.build/$(1)/%): .build/$(1)/%: .build/$(1)/tests/%.o \
    .build/$(1)/tests/main.o .build/$(1)/server.o
	$$(link)
$(patsubst %,.build/$(1)/%,$(examples) $(demanding)): %: %.o .build/$(1)/server.o
	$$(link)
.build/$(1)/%.ran: .build/$(1)/server.o .build/$(1)/tests/main.o .build/readme.h
	@$$(MAKE) --no-print-directory $$(@:.ran=)
	@.ci/test --one $$(@:.ran=)
$(pages:%=.build/$(1)/%): .build/$(1)/%: %
	@mkdir -p $$(@D) && cp $$< $$@
.build/$(1)/black_examples_test: | $(patsubst %,.build/$(1)/%,$(examples) $(pages))
.build/$(1)/examples/auth.o: | deps-auth
.build/$(1)/examples/cluster.o: | deps-cluster
endef
$(foreach each,plain test,$(eval $(call rules,$(each))))

$(examples) $(demanding): %: .build/plain/%.o .build/plain/server.o
	$(link)

$(library): .build/plain/server.o
	@rm -f $@
	$(call say,archive $@)$(AR) rcs $@ $^

-include $(wildcard .build/*/*.d .build/*/*/*.d .build/*/*/*/*.d)

# What only tests need; a copy of the project may come without them.
-include tests/checks.mk

always:
.PHONY: all library examples auth run game wire cluster new test clean help deps deps-auth
.PHONY: deps-cluster install uninstall always
.DELETE_ON_ERROR:
.SECONDARY:
