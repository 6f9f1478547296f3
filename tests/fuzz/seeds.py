#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

# Writes the seeds of the fuzz targets to tests/fuzz/corpus, each to a file named after what it
# is. Other files there, found by the fuzzer or once broken, are left alone.

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def write(target, seeds):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in seeds.items():
        (folder / name).write_bytes(content)


# --- head: requests ---------------------------------------------------------------------


def request(*fields, line="GET /chat HTTP/1.1", host="Host: server.example.com"):
    lines = [line] + ([host] if host else []) + list(fields)
    return "".join(text + "\r\n" for text in lines + [""]).encode("latin-1")


# RFC 6455 1.2 and 1.3
UPGRADE = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Origin: http://example.com",
    "Sec-WebSocket-Protocol: chat, superchat",
    "Sec-WebSocket-Version: 13",
]
BARE = UPGRADE[:3] + UPGRADE[5:]


def without(name):
    return request(*[field for field in UPGRADE if not field.startswith(name)])


HEADS = {
    "rfc6455-1.2": request(*UPGRADE),
    "plain-get": request(),
    "get-with-query": request(line="GET /room?name=blue+sky&x=%41%zz&&y HTTP/1.1"),
    "absolute-form": request(*BARE, line="GET HTTP://a.example:80/x?y HTTP/1.1"),
    "absolute-form-no-path": request(line="GET http://[::1] HTTP/1.1"),
    "asterisk-form": request(line="OPTIONS * HTTP/1.1"),
    "post-with-body": request("Content-Length: 5", line="POST /form HTTP/1.1") + b"hello",
    "content-length-zero": request("Content-Length: 0"),
    "chunked": request("Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "http-1.0": request(*UPGRADE, line="GET / HTTP/1.0"),
    "http-1.2": request(*UPGRADE, line="GET / HTTP/1.2"),
    "bare-lf": request(*UPGRADE).replace(b"\r\n", b"\n"),
    "bare-cr": request("X: a\rb"),
    "nul": request("X: a\0b"),
    "folded": request("X: a", " b"),
    "space-before-colon": request("X : a"),
    "no-colon": request("X"),
    "no-host": request(*UPGRADE, host=None),
    "two-hosts": request("Host: b"),
    "host-ipv6-port": request(host="Host: [2001:db8::1]:8080"),
    "host-empty-port": request(host="Host: a.example:"),
    "host-with-user": request(host="Host: a@b"),
    "key-missing": without("Sec-WebSocket-Key"),
    "key-twice": request(*UPGRADE, UPGRADE[2]),
    "key-short": request(*[f.replace("dGhl", "") for f in UPGRADE]),
    "version-8": request(*[f.replace("13", "8") for f in UPGRADE]),
    "connection-list": request(*[f.replace("Upgrade", "keep-alive, uPGRADE", 1)
                                 if f.startswith("Conn") else f for f in UPGRADE]),
    "cookies": request("Cookie: a=1; b=x=y; c", "Cookie: d=\"4\"", *BARE),
    "forwarded": request("X-Forwarded-For: 203.0.113.7, [2001:db8::7]:80",
                         "X-Forwarded-For: 192.0.2.1:443 , ::ffff:192.0.2.1"),
    "forwarded-unknown": request("X-Forwarded-For: 203.0.113.7, unknown, 192.0.2.1"),
    "network-alone": b"::ffff:10.0.0.0/104",
    "empty-values": request("A:", "B: \t ", "Origin:", "C:x"),
    "obs-text": request("X: gr\xfc\xdfe"),
    "frames-behind": request(*BARE) + bytes.fromhex("818537fa213d7f9f4d5158"),
    "lowercase-names": request(*[field.lower() for field in BARE]),
    "origin-alone": b"https://[2001:db8::1]:443",
    "base64-alone": b"Zm9vYg==",
    "list-alone": b"chat, ,\tsuperchat ,",
}

# --- frames: a byte for the limits, a byte for the cuts, a client's frames ------------------


def frame(opcode, payload=b"", fin=True, key="37fa213d", length=None):
    key = bytes.fromhex(key)
    size = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UMLAUTS = "κόσμε \U0001F600".encode()


def stream(*frames, limits=0x7F, cuts=6):  # up to 32 KiB, 128 fragments
    return bytes([limits, cuts]) + b"".join(frames)


FRAMES = {
    "rfc6455-5.7-hello": stream(frame(TEXT, b"Hello")),
    "rfc6455-5.7-fragments": stream(frame(TEXT, b"Hel", fin=False), frame(0, b"lo")),
    "rfc6455-5.7-ping": stream(frame(PING, b"Hello"), frame(PONG, b"Hello")),
    "rfc6455-5.7-256-bytes": stream(frame(BINARY, bytes(range(256)))),
    "rfc6455-5.7-unmasked": stream(bytes.fromhex("810548656c6c6f")),
    "length-126": stream(frame(BINARY, b"a" * 126)),
    "length-not-minimal-16": stream(bytes.fromhex("82fe007d00000000")),
    "length-not-minimal-64": stream(bytes.fromhex("82ff000000000000ffff00000000")),
    "length-64-kib": stream(frame(BINARY, b"part", length=65536), limits=0xFF),
    "length-top-bit": stream(bytes.fromhex("82ff8000000000000000")),
    "empty-messages": stream(frame(TEXT), frame(BINARY), frame(TEXT, fin=False), frame(0)),
    "ping-inside": stream(frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(0, b"b")),
    "continues-nothing": stream(frame(0, b"x")),
    "begins-inside": stream(frame(TEXT, b"a", fin=False), frame(BINARY, b"b")),
    "utf8": stream(frame(TEXT, UMLAUTS)),
    "utf8-no-key": stream(frame(TEXT, UMLAUTS, key="00000000")),
    "utf8-across-fragments": stream(frame(TEXT, UMLAUTS[:1], fin=False),
                                    frame(0, UMLAUTS[1:-2], fin=False), frame(0, UMLAUTS[-2:])),
    "utf8-surrogate": stream(frame(TEXT, b"\xed\xa0\x80", key="00000000")),
    "utf8-overlong": stream(frame(TEXT, b"\xc0\xaf\xe0\x80\xaf", key="00000000")),
    "utf8-above-10ffff": stream(frame(TEXT, b"\xf4\x90\x80\x80", key="00000000")),
    "utf8-cut-off": stream(frame(TEXT, b"ok\xf0\x9f", key="00000000")),
    "close-empty": stream(frame(CLOSE)),
    "close-1000": stream(frame(CLOSE, b"\x03\xe8bye", key="00000000")),
    "close-one-byte": stream(frame(CLOSE, b"\x03")),
    "close-1005": stream(frame(CLOSE, b"\x03\xed", key="00000000")),
    "close-reason-not-utf8": stream(frame(CLOSE, b"\x03\xe8\xff", key="00000000")),
    "control-too-long": stream(frame(PING, b"a" * 126)),
    "control-fragmented": stream(frame(PING, fin=False)),
    "reserved-bit": stream(b"\xc1\x80\0\0\0\0"),
    "reserved-opcode": stream(b"\x83\x80\0\0\0\0"),
    "too-big": stream(frame(BINARY, b"12345"), limits=0x72),
    "too-big-together": stream(frame(BINARY, b"123", fin=False), frame(0, b"45"), limits=0x72),
    "too-many-fragments": stream(frame(BINARY, fin=False), frame(0, fin=False), frame(0),
                                 limits=0x1F),
    "long-in-pieces": stream(frame(BINARY, b"0123456789" * 60), frame(TEXT, b"next"), cuts=60),
}

# --- server: a byte for the configuration, then events (tests/fuzz/kernel.h) ----------------

HELLO = b"f0\x81\x05Hello"


def story(text, configuration=0):
    return bytes([configuration]) + (text if isinstance(text, bytes) else text.encode("latin-1"))


SERVER = {
    "nothing": story(""),
    "echo": story(b"c h0" + HELLO + b" "),
    "everything-in-one-packet": story(b"ch0" + HELLO + HELLO + b"n0 "),
    "plain-get": story("c l0 "),
    "http-answers": story("cccccc k\x09l0 k\x19l1 k\x29l2 k\x39l3 k\x05l4 k\x06l5 "),
    "goodbye": story(b"c h0" + HELLO + b"n0 "),
    "half-close": story(b"c h0" + HELLO + b"e0 "),
    "reset": story(b"c h0" + HELLO + b" r0 "),
    "reset-before-accept": story("cr0 "),
    "slow-reader": story(b"c h0 w0\x05" + HELLO * 3 + b" w0\x30  w0\xff "),
    "pings-unread": story(b"c h0 w0\x00" + b"f0\x89\x03abc" * 3 + b" w0\x08 w0\xff "),
    "queue-too-long": story("c h0 w0\x00m0\xf0 m0\xf0 m0\xf0 m0\xf0 ", 2),
    "shared-payload": story("cc h0h1 w1\x20k\x02m0\xf0 w1\x90 w1\xff  "),
    "three-users-all": story(b"cccc h0h1h2 k\x02" + HELLO + b" k\x03" + HELLO + b" "),
    "two-too-many": story("ccccc h0h1h2h3h4 "),
    "handshake-too-slow": story("co0\x05GET / t\xff t\xff "),
    "idle": story("c h0 t\xff t\xff t\xff t\xff "),
    "idle-makes-room": story("ccch0h1h2 t\xff t\xff t\xff t\xff ch3 ", 0x40),
    "idle-but-unread": story(b"ccch0h1h2 t\xff t\xff t\xff t\xff ch3" + HELLO + b" ", 0x40),
    "slow-processor": story(b"cccch0h1h2h3" + b"f0\x81\x01a" * 40 + b"f1\x89\x01p" * 40 +
                            b" n0 n1 ", 0x21),
    "refused": story("c k\x08h0 "),
    "refused-by-disconnect": story("c k\x04h0 "),
    "hook-throws-at-each": story(b"ccc k\x05h0 k0k\x05h1 h2k0k0k0k\x05" + HELLO + b" "),
    "hook-throws-no-exception": story(b"c h0 k\x06" + HELLO + b" "),
    "disconnected-by-hook": story(b"c h0 k0k0k\x04" + HELLO + b" n0 "),
    "everybody-disconnected": story(b"ccc h0h1h2 k0k\x0c" + HELLO + b" n0n1 "),
    "shutdown-from-hook": story(b"cc h0h1 k\x07" + HELLO + b" n0 n1 "),
    "shutdown-vetoed": story("c h0 k\x0aq k\x0aq q n0 "),
    "stopped-twice": story("c h0 q q "),
    "quit-by-turns": story(b"cc h0 " + HELLO + b" ", 0x80),
    "big-message-in-pieces": story("c h0z\x40m0\xf0    ", 0),
    "protocol-error": story("c h0f0\x83\x00 n0 "),
    "unmasked": story("c h0o0\x02\x81\x05 "),
    "not-utf8": story("c h0f0\x81\x02\xc3\x28 "),
    "raw-request": story(b"co0" + bytes([len(HEADS["plain-get"])]) + HEADS["plain-get"] + b" "),
    "too-many-messages": story(b"c h0" + b"f0\x81\x01a" * 6 + b" ", 4),
    "json-escapes": story(b"c h0 k\x0ef0\x81\x18[\"\\ud83d\\ude00\\n\\ud83d\"] "),
    "posted": story(b"cc h0h1 k\x10k\x02" + HELLO + b" k\x20k\x05q n0 n1 "),
    "ticks": story("cc h0h1 k\x02t\x10 t\x14k\x0c t\x14 t\x14 ", 8),
    "too-big": story("c h0m0\xff "),
    "reused-memory": story("cc h0h1 w0\x20k\x0bm0\xf0k\xfbm1\xf0 w0\xff m0\xfam1\xe0 "),
    "json": story(b"c h0 k\x0ef0\x81\x09{\"a\":[1]} "),
    "wrong-origin": story("c h0 ", 0x10),
    "no-descriptor": story("ci\x33c  t\x05 h0 "),
    "accept-fails-after-a-rest": story("c l0i\x42 ci\x33 c "),
    "no-memory-in-the-kernel": story(b"c h0 i\x41" + HELLO + b" i\x42" + HELLO + b" i\x50  "),
    "send-comes-short": story(b"c h0 i\x02" + HELLO + b" i\x22" + HELLO + b" i\x32" + HELLO + b" "),
    "receive-fails": story(b"c h0 i\x01" + HELLO + b" i\x41" + HELLO + b" i\x51" + HELLO + b" "),
    "poll-fails": story(b"c i\x10 h0 i\x40 " + HELLO + b" "),
    "no-socket": story("i\x34 "),
    "no-pipe": story("i\x38 "),
    "port-taken": story("i\x65 "),
}

write("head", HEADS)
write("frames", FRAMES)
write("server", SERVER)
