# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

"""The mutants of server.cpp, found with libclang, and the text that contains all of them."""

import collections
import os
import re
import sys

from clang.cindex import CursorKind as Kind, Index, TypeKind

FLAGS = ['-std=c++17', '-I.', '-isystem', '/usr/include/jsoncpp']
FIXED = {'kMaxPieces', 'kMaxFrameHeader'}  # sizes of arrays: the compiler has to know them
SWAPPED = {'<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==', '+': '-', '-': '+',
           '*': '/', '/': '*', '%': '/', '<<': '>>', '>>': '<<', '&': '|', '|': '&', '^': '|',
           '+=': '-=', '-=': '+=', '|=': '&=', '&=': '|=', '^=': '|='}
FUNCTIONS = {Kind.FUNCTION_DECL, Kind.CXX_METHOD, Kind.CONSTRUCTOR, Kind.DESTRUCTOR,
             Kind.FUNCTION_TEMPLATE, Kind.CONVERSION_FUNCTION}

PRELUDE = '''
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
namespace {
struct Mutation {  // which mutant is on, and a file with a byte for each, set when it is reached
    int chosen = 0;
    volatile char *reached = nullptr;
    Mutation() {
        if (const char *number = std::getenv("MUTANT")) chosen = std::atoi(number);
        const char *path = std::getenv("MUTANTS_REACHED");
        const int fd = path != nullptr ? ::open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd < 0) return;
        const auto size = static_cast<std::size_t>(::lseek(fd, 0, SEEK_END));
        void *const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory != MAP_FAILED) reached = static_cast<volatile char *>(memory);
    }
} const mutation;
inline bool mutant(int number) {
    if (mutation.reached != nullptr) mutation.reached[number] = 1;
    return mutation.chosen == number;
}
}
#line 1 "server.cpp"
'''

# `text` replaces the `place` in server.cpp, in a way that depends on `kind`: see wrapped(). `old` and
# `new` are for people: a number is shown with what stands around it, and the second of two mutants
# that look alike has a "#2".
Mutant = collections.namedtuple('Mutant', 'number function line place kind text old new')


def described(mutant):
    return f'{mutant.function}: {mutant.old} -> {mutant.new}'


class Source:
    """server.cpp, its functions and its mutants."""

    def __init__(self, root):
        with open(root / 'server.cpp', encoding='latin-1') as file:  # libclang counts bytes
            self.text = file.read()
        self.functions = collections.defaultdict(list)  # of a name: where its bodies are
        self.mutants = []
        self.known, self.alike = set(), collections.Counter()
        self.constants = {}  # where "constexpr" stands, and what replaces it
        os.chdir(root)
        unit = Index.create().parse('server.cpp', FLAGS)
        for problem in unit.diagnostics:
            if problem.severity >= problem.Error:
                sys.exit(f'mutate: {problem}')
        self.visit(unit.cursor, '', [])

    # --- finding them ---

    def visit(self, node, function, above):
        for child in node.get_children():
            kind, name = child.kind, function
            here = child.location.file and child.location.file.name == 'server.cpp'
            if kind in (Kind.ENUM_DECL, Kind.STATIC_ASSERT) or (
                    kind.is_declaration() and not here) or child.spelling in FIXED and (
                        kind == Kind.VAR_DECL):
                continue
            if not function and kind in FUNCTIONS | {Kind.VAR_DECL, Kind.FIELD_DECL}:
                owner = child.semantic_parent
                member = owner.kind in (Kind.STRUCT_DECL, Kind.CLASS_DECL)
                named = member and owner.spelling != 'WSLoop'
                name = f'{owner.spelling}::{child.spelling}' if named else child.spelling
            if name != function and kind in FUNCTIONS and child.is_definition():
                self.functions[name].append(extent(child))
            if kind in FUNCTIONS:
                self.unfix(child, '')
            if kind == Kind.VAR_DECL:
                member = child.semantic_parent.kind == Kind.STRUCT_DECL
                self.unfix(child, 'inline const' if member else 'const')
            self.mutate(child, node, name, above + [node])
            self.visit(child, name, above + [node])

    def unfix(self, node, instead):
        begin = node.extent.start.offset
        found = re.search(r'\bconstexpr\b', self.text[begin:node.location.offset])
        if found:
            self.constants[begin + found.start()] = (begin + found.end(), instead)

    def add(self, kind, function, node, *texts, around=None):
        place, shown = extent(node), extent(around or node)
        line = self.text.count('\n', 0, place[0]) + 1
        for text in texts:
            new = self.text[shown[0]:place[0]] + text + self.text[place[1]:shown[1]]
            old, new = (' '.join(one.split()) for one in (self.text[slice(*shown)], new))
            if new == old or (place, kind, text) in self.known:
                continue
            self.known.add((place, kind, text))
            self.alike[function, old, new] += 1
            times = self.alike[function, old, new]
            new = (new or '(left out)') + (f' #{times}' if times > 1 else '')
            self.mutants.append(
                Mutant(len(self.mutants) + 1, function, line, place, kind, text, old, new))

    def of(self, node):
        return self.text[slice(*extent(node))]

    def mutate(self, node, parent, function, above):
        kind, text = node.kind, self.of(node)
        children = list(node.get_children())
        operator = ''
        if kind in (Kind.BINARY_OPERATOR, Kind.COMPOUND_ASSIGNMENT_OPERATOR):
            left, right = children
            operator = self.text[extent(left)[1]:extent(right)[0]].strip()
        for child in children if operator == ',' else statements(node, children):
            self.add('statement', function, child, '')
        for child in children if operator in ('&&', '||') else ():
            self.add('bool', function, child, 'true' if operator == '&&' else 'false')
        pointers = [c.type.get_canonical().kind == TypeKind.POINTER for c in children]
        if operator in SWAPPED and node.type.kind != TypeKind.DEPENDENT and not all(pointers):
            self.add('value', function, node,
                     f'{self.of(left)} {SWAPPED[operator]} {self.of(right)}')
        if kind in (Kind.RETURN_STMT, Kind.VAR_DECL) or operator == '=':
            for child in children[-1:]:
                inside = extent(child)[0] > node.location.offset  # not in the type
                if child.kind.is_expression() and child.type.kind == TypeKind.BOOL and inside:
                    self.add('bool', function, child, 'true', 'false')
        for child in conditions(node, children):
            if not text.startswith('if constexpr'):
                loops = kind in (Kind.WHILE_STMT, Kind.FOR_STMT)
                self.add('bool', function, child, 'false', *([] if loops else ['true']))
        if kind == Kind.INTEGER_LITERAL and re.match(r'\d', text) and parent.kind != Kind.CASE_STMT:
            in_type = self.text[extent(node)[1]] == '>' or (
                parent.kind.is_declaration() and extent(node)[0] < parent.location.offset)
            if not in_type:
                near = [a for a in above if len(self.of(a)) < 40 and (
                    a.kind.is_expression() or a.kind == Kind.VAR_DECL)]
                self.add('value', function, node, *neighbours(text), around=[*near, node][0])
        if kind == Kind.STRING_LITERAL and text.startswith('"') and text != '""':
            self.add('value', function, node, '""')
        if kind in (Kind.BREAK_STMT, Kind.CONTINUE_STMT) or (
                kind == Kind.RETURN_STMT and all(c.type.kind == TypeKind.VOID for c in children)):
            self.add('jump', function, node, '')

    # --- writing them ---

    def schemata(self):
        """The text in which the environment's MUTANT selects one of them."""
        kinds = ['jump', 'statement', 'bool', 'value']  # which of two is outside
        places = collections.defaultdict(list)
        for one in self.mutants:
            places[one.place[0], -one.place[1], kinds.index(one.kind)].append(one)
        waiting = [places[key] for key in sorted(places)]

        def plain(begin, end):
            text, at = '', begin
            for constant in sorted(self.constants):
                if begin <= constant < end:
                    text += self.text[at:constant] + self.constants[constant][1]
                    at = self.constants[constant][0]
            return text + self.text[at:end]

        def emit(begin, end):
            text, at = '', begin
            while waiting and waiting[0][0].place[0] < end:
                mutants = waiting.pop(0)
                first, last = mutants[0].place
                text += plain(at, first) + wrapped(mutants, emit(first, last))
                at = self.text.index(';', last) + 1 if mutants[0].kind == 'jump' else last
            return text + plain(at, end)

        return PRELUDE + emit(0, len(self.text))


def wrapped(mutants, original):
    kind, number = mutants[0].kind, mutants[0].number
    if kind == 'jump':
        return f'{{ if (!mutant({number})) {original}; }}'
    if kind == 'statement':
        return f'(mutant({number}) ? void() : void(({original})))'
    choices = ''.join(f'mutant({m.number}) ? ({m.text}) : ' for m in mutants)
    return f'({choices}{"bool" if kind == "bool" else ""}({original}))'


def neighbours(text):
    """The numbers one above and one below; only the former for 0."""
    digits, suffix = re.fullmatch(r"([\da-fA-FxX']+?)([uUlL]*)", text.replace("'", '')).groups()
    base = 16 if digits[1:2] in 'xX' and digits[1:] else 8 if digits[0] == '0' else 10
    value = int(digits, base)
    return [f'{one:#X}'.replace('0X', '0x') + suffix if base == 16 else f'{one}{suffix}'
            for one in (value + 1, value - 1) if one >= 0]


def extent(node):
    return node.extent.start.offset, node.extent.end.offset


def conditions(node, children):
    """The condition of a statement or of an expression: one or none."""
    if node.kind not in (Kind.IF_STMT, Kind.WHILE_STMT, Kind.FOR_STMT, Kind.CONDITIONAL_OPERATOR):
        return []
    found = [c for c in children if c.kind.is_expression()]
    if node.kind == Kind.FOR_STMT:
        found = [c for c in found if c.type.kind == TypeKind.BOOL and c != children[-1]]
    return found[:1]


def statements(node, children):
    """The children that are statements made of one expression."""
    if node.kind == Kind.IF_STMT:
        children = [c for c in children if c.kind != Kind.DECL_STMT][1:]
    elif node.kind in (Kind.WHILE_STMT, Kind.FOR_STMT, Kind.CXX_FOR_RANGE_STMT, Kind.CASE_STMT,
                       Kind.DEFAULT_STMT):
        children = children[-1:]
    elif node.kind != Kind.COMPOUND_STMT:
        return []
    return [c for c in children if c.kind.is_expression()]
