# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

"""Compares the server's decoder with that of Python's `websockets`, on random frames.

The frames are valid or slightly damaged. decoder.cpp runs the server's decoder; `websockets`
runs without sockets ("sans I/O"). Both must find the same messages and end with the same
close code.

The table EXPLAINED lists where the two may differ. Each row says why, with the section of
RFC 6455, and computes from what `websockets` found what the server's decoder must find, to
the byte. Any other difference is a failure, and so are a row that a full run never needs and
a stream whose result depends on how it is cut into pieces.

    differential.py DECODER [--seed TEXT] [--cases N] [--only NUMBER]
"""

import argparse
import codecs
import collections
import logging
import random
import subprocess
import sys

try:
    from websockets.connection import OPEN
    from websockets.exceptions import ProtocolError
    from websockets.frames import Close
    from websockets.server import ServerConnection
except ImportError:
    sys.exit('python3 has no websockets of version 10: install python3-websockets')

FULL = 30000  # a run of this many cases must need every row of the table
BATCH = 500
SECONDS_PER_BATCH = 60

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NAMES = {TEXT: b'text', BINARY: b'binary', PING: b'ping', PONG: b'pong'}

QUIET = logging.getLogger('differential')
QUIET.setLevel(logging.CRITICAL)


# --- a client's frames --------------------------------------------------------------------

class Frame:
    """A frame before it is encoded: each part of its header can be damaged by itself."""

    def __init__(self, chance, opcode, payload=b'', fin=True):
        self.opcode, self.payload, self.fin = opcode, payload, fin
        self.reserved = 0
        self.masked = True
        self.key = chance.choice([b'\0\0\0\0', chance.randbytes(4), chance.randbytes(4)])
        self.length = len(payload)  # what the header says
        self.extended = None        # bytes of the extended length; None: as few as possible

    def __bytes__(self):
        first = self.fin << 7 | self.reserved << 4 | self.opcode
        extended = self.extended
        if extended is None:
            extended = 0 if self.length < 126 else 2 if self.length < 65536 else 8
        short = {0: self.length & 0x7F, 2: 126, 8: 127}[extended]
        length = (self.length % 256 ** extended).to_bytes(extended, 'big')
        head = bytes([first, self.masked << 7 | short]) + length
        if not self.masked:
            return head + self.payload
        return head + self.key + masked(self.payload, self.key)


def masked(payload, key):
    size = len(payload)
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, 'big') ^ int.from_bytes(keys, 'big')).to_bytes(size, 'big')


SIZES = [0, 1, 2, 7, 8, 9, 15, 64, 124, 125, 126, 127, 128, 299, 300, 301]
LARGE = [4096, 65534, 65535, 65536, 65537, 70000, 70001]

# The first and the last character of each UTF-8 length, and those around the surrogates.
CHARACTERS = 'a\0\x7f\x80ß\u07ff\u0800€\ud7ff\ue000\uffff\U00010000😀\U0010ffff'

# No lead byte, overlong forms, truncated characters, surrogates and halves of them, characters
# above U+10FFFF, bytes that never occur in UTF-8.
NOT_UTF8 = list(map(bytes.fromhex, (
    '80 bf c0af c1bf e080af e09fbf f08080af f08fbfbf c3 c328 e282 e228a1 efbf f09f98 '
    'eda080 edbfbf eda0 edbf f4908080 f5808080 f888 fe ff').split()))

CODES = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
BAD_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 32768, 65535]


def some_size(chance):
    kind = chance.random()
    return chance.randrange(40) if kind < 0.6 else chance.choice(SIZES if kind < 0.985 else LARGE)


def some_text(chance, size, damaged):
    """UTF-8 of about `size` bytes; if damaged, with something invalid in it."""
    some = ''.join(chance.choices(CHARACTERS, k=min(size, 60))).encode()
    text = (some * (size // max(len(some), 1) + 1))[:size].decode(errors='ignore').encode()
    if damaged:
        at = chance.randint(0, len(text))
        text = text[:at] + chance.choice(NOT_UTF8) + text[at:]
    return text


def some_message(chance, damaged):
    """The frames of one message, cut anywhere."""
    opcode = chance.choice([TEXT, TEXT, BINARY])
    size = some_size(chance)
    payload = some_text(chance, size, damaged) if opcode == TEXT else chance.randbytes(size)
    fragments = chance.choice([1, 1, 1, 2, 3, chance.randint(1, 9)])
    cuts = sorted(chance.randint(0, len(payload)) for _ in range(fragments - 1))
    if cuts and damaged and b'\xed\xa0' in payload:  # cut inside a surrogate
        cuts = sorted(cuts[1:] + [payload.index(b'\xed\xa0') + 2])
    pieces = [payload[a:b] for a, b in zip([0] + cuts, cuts + [len(payload)])]
    return [Frame(chance, CONTINUATION if i else opcode, piece, fin=i == fragments - 1)
            for i, piece in enumerate(pieces)]


def some_control(chance):
    size = chance.choice([0, 0, 1, 5, 124, 125])
    return Frame(chance, chance.choice([PING, PONG]), chance.randbytes(size))


def some_close(chance, damaged):
    """A Close with no code, a code, or a code and a reason; if damaged, one of them may be
    invalid."""
    if chance.random() < 0.2:
        return Frame(chance, CLOSE, b'x' if damaged else b'')
    code = chance.choice(BAD_CODES if damaged and chance.random() < 0.7 else CODES)
    reason = some_text(chance, chance.choice([0, 0, 5, 30, 100]), damaged and chance.random() < 0.5)
    return Frame(chance, CLOSE, code.to_bytes(2, 'big') + reason[:123])


def some_frames(chance, damaged):
    frames = []
    for _ in range(chance.randint(1, 5)):
        for frame in some_message(chance, damaged and chance.random() < 0.15):
            while chance.random() < 0.15:
                frames.append(some_control(chance))
            frames.append(frame)
    if chance.random() < 0.5:
        frames.append(some_close(chance, damaged and chance.random() < 0.5))
        if chance.random() < 0.5:
            frames.append(some_control(chance))
    return frames


# --- damages --------------------------------------------------------------------------------

def change_length(chance, frame):
    frame.extended = chance.choice([None, 0, 2, 8])
    frame.length = chance.choice([
        frame.length, frame.length, frame.length + 1, max(frame.length - 1, 0), 126, 65535, 65536,
        2 ** 31, 2 ** 32, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1])


def not_masked(chance, frame):
    frame.masked = False


def set_reserved(chance, frame):
    frame.reserved = chance.randint(1, 7)


def change_opcode(chance, frame):
    frame.opcode = chance.randrange(16)


def flip_fin(chance, frame):
    frame.fin = not frame.fin


def lengthen_control(chance, frame):
    if frame.opcode >= CLOSE:
        frame.payload += bytes(126)
        frame.length = len(frame.payload)


FRAME_DAMAGES = [change_length, change_length, not_masked, set_reserved, change_opcode, flip_fin,
                 lengthen_control]


def list_damage(chance, items):
    """Removes a piece of a list (or of bytes), doubles it, or swaps it with the next."""
    a, b, c = sorted(chance.randint(0, len(items)) for _ in range(3))
    return chance.choice([items[:a] + items[b:], items[:b] + items[a:],
                          items[:a] + items[b:c] + items[a:b] + items[c:]])


def byte_damage(chance, stream):
    kind = chance.randrange(4)
    at = chance.randrange(chance.choice([len(stream), min(len(stream), 16)]))
    if kind == 0:
        return stream[:at]
    if kind == 1:
        return list_damage(chance, stream)
    changed = stream[at] ^ 1 << chance.randrange(8) if kind == 2 else chance.randrange(256)
    return stream[:at] + bytes([changed]) + stream[at + 1:]


class Case:
    """A stream, its limits and its cuts. They depend on seed and number only."""

    def __init__(self, seed, number):
        chance = random.Random(f'{seed} {number}')
        self.number = number
        self.most = chance.choice([70000, 70000, 300])
        self.fragments = chance.choice([1000, 1000, 4])
        damaged = chance.random() < 0.6
        frames = some_frames(chance, damaged)
        damages = chance.choice([0, 1, 1, 2]) if damaged else 0
        for _ in range(damages if chance.random() < 0.7 else 0):
            chance.choice(FRAME_DAMAGES)(chance, chance.choice(frames))
        if damages and chance.random() < 0.2:
            frames = list_damage(chance, frames)
        parts = [bytes(frame) for frame in frames]
        if damages and chance.random() < 0.2:  # the stream ends inside a header
            last = chance.choice([*some_message(chance, False), some_control(chance)])
            change_length(chance, last)
            parts.append(bytes(last)[:chance.randrange(14)])
        self.stream = b''.join(parts)
        if self.stream and damages and chance.random() < 0.3:
            self.stream = byte_damage(chance, self.stream)
        some = self.cut(chance, chance.randint(1, 6))
        many = self.cut(chance, min(len(self.stream), chance.choice([20, 100, 300])))
        self.pieces = some
        self.deliveries = [[self.stream], some, many]

    def cut(self, chance, pieces):
        cuts = sorted(chance.choices(range(len(self.stream) + 1), k=max(pieces - 1, 0)))
        return [self.stream[a:b] for a, b in zip([0] + cuts, cuts + [len(self.stream)])]

    def __bytes__(self):
        """All deliveries, as decoder.cpp reads them."""
        out = b''
        for pieces in self.deliveries:
            numbers = [self.most, self.fragments, len(pieces), *map(len, pieces)]
            out += b' '.join(b'%d' % number for number in numbers) + b'\n' + self.stream
        return out


# --- what the server's decoder finds --------------------------------------------------------

def decode_ours(decoder, cases):
    """For each case, a list of the answers to its deliveries."""
    run = subprocess.run([decoder], input=b''.join(map(bytes, cases)), stdout=subprocess.PIPE,
                         timeout=SECONDS_PER_BATCH, check=False)
    answers, at, out = [], 0, run.stdout
    while at < len(out):
        line = out.index(b'\n', at)
        end = line + 1 + int(out[at:line])
        answers.append(out[line + 1:end])
        at = end
    each = len(cases[0].deliveries)
    if run.returncode != 0:
        case = cases[min(len(answers) // each, len(cases) - 1)]
        sys.exit(f'the decoder exited with status {run.returncode} in {shown(case)}')
    return [answers[i:i + each] for i in range(0, len(answers), each)]


# --- what `websockets` finds ----------------------------------------------------------------

class Header:
    """The frame at a place of a stream, as far as it is there; missing parts are None. `size`
    is that of the whole frame; is_whole tells whether the header is complete."""

    def __init__(self, stream, at):
        first, second = (*stream[at:at + 2], None, None)[:2]
        self.fin, self.reserved, self.opcode = first >> 7, first >> 4 & 7, first & 15
        self.masked = self.length = self.size = None
        self.extended, self.is_whole, self.payload, self.digits = 0, False, b'', b''
        if second is None:
            return
        self.masked, short = second >> 7, second & 127
        self.extended = {126: 2, 127: 8}.get(short, 0)
        key = at + 2 + self.extended
        self.digits = stream[at + 2:key]  # of the extended length
        if len(self.digits) == self.extended:
            self.length = int.from_bytes(self.digits, 'big') if self.extended else short
            self.size = 2 + self.extended + 4 + self.length
            self.is_whole = key + 4 <= len(stream)
        if self.is_whole:
            self.payload = masked(stream[key + 4:at + self.size], stream[key:key + 4])

    @property
    def is_control(self):
        return self.opcode >= CLOSE


class Theirs:
    """What `websockets` finds, with a layer on top that assembles its frames to messages and
    checks text frame by frame: its sans-I/O layer leaves that to callers.

    `frames` are the valid frames, `headers` those of them and of the invalid or incomplete
    frame after them, `end` is what decoder.cpp prints last."""

    def __init__(self, case, exempt_controls=False):
        self.case = case
        self.connection = ServerConnection(state=OPEN, max_size=case.most, logger=QUIET)
        self.frames = []
        for piece in self.by_frame() if exempt_controls else case.pieces:
            self.connection.receive_data(piece)
            self.frames += self.connection.events_received()
        self.end = self.find_end()
        self.events, bad = events(self.frames)
        if bad is not None:
            self.end = b'fail 1007'
            self.frames = self.frames[:bad]
        self.headers = self.find_headers()

    def by_frame(self):
        """The stream frame by frame, with no size limit for control frames."""
        at = 0
        while at < len(self.case.stream):
            header = Header(self.case.stream, at)
            small = header.is_control and not header.extended
            self.connection.max_size = None if small else self.case.most
            size = header.size or len(self.case.stream)
            yield self.case.stream[at:at + size]
            at += size

    def find_end(self):
        connection = self.connection
        if connection.parser_exc:
            return b'fail %d' % connection.close_sent.code
        if connection.close_rcvd:
            self.frames.pop()  # the Close, which is not an event
            return closed(connection.close_rcvd)
        return b'more'

    def find_headers(self):
        headers, at = [], 0
        while len(headers) <= len(self.frames) and at < len(self.case.stream):
            headers.append(Header(self.case.stream, at))
            at += headers[-1].size or len(self.case.stream)
        return headers

    def last(self):
        """The invalid or incomplete frame at the end; None if there is none."""
        return self.headers[-1] if len(self.headers) > len(self.frames) else None

    def message(self, count):
        """The message that is unfinished after `count` frames: its opcode, its number of
        fragments and its payload; None if there is no such message."""
        opcode, fragments, payload = None, 0, b''
        for frame in self.frames[:count]:
            if frame.opcode < CLOSE:
                opcode = frame.opcode or opcode
                fragments += 1
                payload += frame.data
                if frame.fin:
                    opcode, fragments, payload = None, 0, b''
        return opcode and (opcode, fragments, payload)

    def answer(self, end=None, count=None):
        """What decoder.cpp would print for the first `count` frames (default: all) and this
        end (default: its own)."""
        found = self.events if count is None else events(self.frames[:count])[0]
        return b''.join(found) + (end or self.end) + b'\n'


def closed(close):
    return b'close %d %s' % (close.code, close.reason.encode())


def events(frames):
    """What decoder.cpp prints for these frames, up to the first whose text is not UTF-8; and
    the index of that one, or None."""
    found, payload, opcode, decoder = [], b'', None, None
    for index, frame in enumerate(frames):
        if frame.opcode >= CLOSE:
            found.append(b'%s %d %s\n' % (NAMES[frame.opcode], len(frame.data), frame.data))
            continue
        if frame.opcode != CONTINUATION:
            opcode, payload = frame.opcode, b''
            decoder = codecs.getincrementaldecoder('utf-8')()
        try:
            if opcode == TEXT:
                decoder.decode(frame.data, frame.fin)
        except UnicodeDecodeError:
            return found, index
        payload += frame.data
        if frame.fin:
            found.append(b'%s %d %s\n' % (NAMES[opcode], len(payload), payload))
    return found, None


# --- where the two differ, and why ----------------------------------------------------------
#
# Each function gets what `websockets` found. If its row applies, it returns what the server's
# decoder must find instead: the number of valid frames and the end. (The last row returns
# another run of `websockets`, to compare with instead of this one.)

def is_wrong(theirs, header):
    """Whether a header, as far as it is there, breaks a rule (5.1 to 5.5) that `websockets`
    also checks, but later or in another order."""
    if header.reserved or header.opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        return True
    if header.masked == 0 or header.is_control and (not header.fin or header.extended):
        return True
    if header.is_control or not header.is_whole:
        return False
    in_message = theirs.message(len(theirs.frames)) is not None
    return in_message != (header.opcode == CONTINUATION)


def length_not_minimal(theirs):
    for count, header in enumerate(theirs.headers):
        least = {0: 0, 2: 126, 8: 65536}[header.extended]
        if header.length is not None and header.length < least:
            return count, b'fail 1002'
    return None


def length_has_top_bit(theirs):
    if theirs.end == b'fail 1009' and theirs.last().length >= 2 ** 63:
        return len(theirs.frames), b'fail 1002'
    return None


def header_before_size(theirs):
    if theirs.end == b'fail 1009' and is_wrong(theirs, theirs.last()):
        return len(theirs.frames), b'fail 1002'
    return None


def header_at_once(theirs):
    last = theirs.last()
    if theirs.end == b'more' and last and is_wrong(theirs, last):
        return len(theirs.frames), b'fail 1002'
    return None


def key_before_size(theirs):
    if theirs.end == b'fail 1009' and not theirs.last().is_whole:
        return len(theirs.frames), b'more'
    return None


def too_many_fragments(theirs):
    for count, header in enumerate(theirs.headers):
        if count == len(theirs.frames) and theirs.end in (b'fail 1002', b'fail 1009'):
            return None  # something else is wrong with this frame and is checked first
        _, fragments, _ = theirs.message(count) or (None, 0, b'')
        if header.opcode == CONTINUATION and header.is_whole and fragments >= theirs.case.fragments:
            return count, b'fail 1008'
    return None


def text_at_once(theirs):
    last = theirs.last()
    if theirs.end != b'more' or not last or last.is_control:
        return None
    opcode, _, payload = theirs.message(len(theirs.frames)) or (last.opcode, 0, b'')
    try:
        codecs.getincrementaldecoder('utf-8')().decode(payload + last.payload)
    except UnicodeDecodeError:
        return (len(theirs.frames), b'fail 1007') if opcode == TEXT else None
    return None


def half_surrogate(theirs):
    for count, header in enumerate(theirs.headers):
        if count == len(theirs.frames) and theirs.end != b'more':
            return None
        opcode, _, payload = theirs.message(count) or (header.opcode, 0, b'')
        end = (payload + header.payload)[-2:]
        if opcode == TEXT and not header.is_control and b'\xed\xa0' <= end <= b'\xed\xbf':
            return count, b'fail 1007'
    return None


def close_inside_message(theirs):
    close = theirs.connection.close_rcvd  # valid by itself
    if theirs.end == b'fail 1002' and theirs.last().opcode == CLOSE and close:
        return len(theirs.frames), closed(close)
    return None


def code_before_reason(theirs):
    last = theirs.last()
    if theirs.end != b'fail 1007' or last.opcode != CLOSE:
        return None
    try:
        Close(int.from_bytes(last.payload[:2], 'big'), '').check()
    except ProtocolError:
        return len(theirs.frames), b'fail 1002'
    return None


def control_not_counted(theirs):
    last = theirs.last()
    if theirs.end == b'fail 1009' and last.is_control and not last.extended:
        return Theirs(theirs.case, exempt_controls=True)
    return None


# In the order in which the server's decoder checks a frame: if two rows apply to the same
# frame, the first one counts.
EXPLAINED = [
    (length_not_minimal, '5.2', 'a length is not minimal: 1002; websockets accepts it'),
    (length_has_top_bit, '5.2', 'a length is 2^63 or more: 1002; websockets says 1009'),
    (header_before_size, '5.2', 'an invalid header of a frame too big: 1002; websockets says 1009'),
    (header_at_once, '7.1.7', 'an invalid header: 1002 as soon as that shows; websockets reads on'),
    (key_before_size, '10.4', 'a frame too big: 1009 after the masking key; websockets before it'),
    (too_many_fragments, '10.4', 'more than maxFragments: 1008; websockets has no such limit'),
    (text_at_once, '8.1', 'text is not UTF-8: 1007 as soon as that shows; websockets reads on'),
    (half_surrogate, '8.1', 'ED A0..BF begins no character: 1007; Python waits for a third byte'),
    (close_inside_message, '5.4', 'a Close inside a message is answered; websockets says 1002'),
    (code_before_reason, '7.4', 'a Close, its code and reason invalid: 1002; websockets says 1007'),
    (control_not_counted, '5.4', 'control frames add no message bytes; in websockets they do'),
]


def expected(theirs):
    """What the server's decoder must answer, and the rows that say so: the row for the
    earliest frame counts. If no row applies, that is what `websockets` found."""
    count, answer, rows = len(theirs.frames) + 1, theirs.answer(), []
    for row, _, _ in EXPLAINED:
        instead = row(theirs)
        if isinstance(instead, Theirs) and count > len(theirs.frames):
            count = len(theirs.frames)
            answer, rows = expected(instead)
            rows = [row] + rows
        elif isinstance(instead, tuple) and instead[0] < count:
            count, rows = instead[0], [row]
            answer = theirs.answer(instead[1], count)
    return answer, rows if answer != theirs.answer() else []


# --- a run ------------------------------------------------------------------------------------

def shown(case):
    sizes = ', '.join(str(len(piece)) for piece in case.pieces)
    return (f'case {case.number}: at most {case.most} bytes and {case.fragments} fragments, '
            f'pieces of {sizes} bytes:\n  {short(case.stream.hex())}')


def short(text):
    return text if len(text) < 4000 else text[:4000] + '…'


def check(case, ours, seen):
    """Whether both decoders agree or a row explains the difference; counts the rows. Prints
    what is unexplained."""
    if len(set(ours)) > 1:
        print(f'--- the result depends on the pieces in {shown(case)}')
        for pieces, answer in zip(case.deliveries, ours):
            print(f'  in {len(pieces)} pieces: {short(repr(answer))}')
        return False
    theirs = Theirs(case)
    answer, rows = expected(theirs)
    if answer != ours[0]:
        print(f'--- an unexplained difference in {shown(case)}')
        print(f'  the server: {short(repr(ours[0]))}')
        print(f'  websockets: {short(repr(theirs.answer()))}')
        for row in rows:
            print(f'  {row.__name__} expects: {short(repr(answer))}')
        return False
    seen.update(rows or [theirs.end if theirs.end[:4] == b'fail' else theirs.end[:5]])
    return True


def report(seen, full):
    """Prints how often each row was needed; returns how many never were."""
    unseen = 0
    print('where the decoders agree, the streams end with:')
    for end in sorted(key for key in seen if isinstance(key, bytes)):
        print(f'  {seen[end]:6}  {end.decode()}')
    print('where they differ:')
    for row, section, reason in EXPLAINED:
        print(f'  {seen[row]:6}  {reason} (RFC 6455 {section})')
        if full and not seen[row]:
            print(f'--- {row.__name__} was never needed')
            unseen += 1
    return unseen


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('decoder')
    parser.add_argument('--seed', default='6455')
    parser.add_argument('--cases', type=int, default=FULL)
    parser.add_argument('--only', type=int)
    options = parser.parse_args()
    numbers = range(options.cases) if options.only is None else [options.only]
    print(f'{len(numbers)} streams, seed {options.seed}', flush=True)

    passed, seen = 0, collections.Counter()
    for begin in range(0, len(numbers), BATCH):
        cases = [Case(options.seed, number) for number in numbers[begin:begin + BATCH]]
        answers = decode_ours(options.decoder, cases)
        passed += sum(check(case, ours, seen) for case, ours in zip(cases, answers))
        if begin + BATCH - passed > 20:
            print('--- too many failures: stopped')
            break
    failed = min(begin + BATCH, len(numbers)) - passed
    failed += report(seen, len(numbers) >= FULL)
    print(f'{passed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
