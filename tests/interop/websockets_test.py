# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

"""The server and Python's `websockets`, a client that checks every frame and, with asyncio,
can be two hundred clients at once."""

import asyncio
import itertools
import json
import random
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request

try:
    import websockets
except ImportError:
    sys.exit('python3 has no websockets: install python3-websockets (on Debian)')

import support
from support import TimedTest, for_each, with_tables

MIB = 1024 * 1024
PAGE_ORIGIN = 'http://page.example:8080'

# Bytes that look random and are the same in every run.
NOISE = random.Random(6455).getrandbits(8 * 16 * MIB).to_bytes(16 * MIB, 'big')

numbers = itertools.count(1)


def setUpModule():
    global echo, interop, guarded
    echo = support.start_for_module(support.ECHO, '0')
    interop = support.start_for_module(support.INTEROP_SERVER)
    guarded = support.start_for_module(support.INTEROP_SERVER, '--origin', PAGE_ORIGIN)


def connect(server, path='/', **options):
    return websockets.connect(server.url(path), max_size=None, **options)


async def echoed(server, message):
    """What comes back for a message, which is a str, bytes, or a list of fragments."""
    async with connect(server) as client:
        await client.send(message)
        return await client.recv()


async def seen_by_witness(leave):
    """Connects a client and calls leave(client). Returns the client, and what the server saw
    of its end."""
    tag = f'client{next(numbers)}'
    async with connect(interop, '/witness') as witness:
        assert await witness.recv() == 'ready'
        client = await connect(interop, f'/?{tag}')
        await leave(client)
        async for line in witness:
            left = json.loads(line)
            if left['query'] == tag:
                return client, left


SMALL_MESSAGES = {
    'an empty text': ('',),
    'an empty binary message': (b'',),
    'a text of one byte': ('x',),
    'a text with characters of one to four bytes': ('aé€😀',),
    'a text with a NUL in it': ('a\0b',),
    'a text that is JSON': ('{"a": [1e3, 0.10, "\\u00e9"]}',),
    'every byte value': (bytes(range(256)),),
    '125 bytes, the longest short frame': (NOISE[:125],),
    '126 bytes, the shortest with a length of 16 bits': (NOISE[:126],),
    '65535 bytes, the longest with a length of 16 bits': (NOISE[:65535],),
    '65536 bytes, the shortest with a length of 64 bits': (NOISE[:65536],),
    'a binary message of 1 MiB': (NOISE[:MIB],),
    'a text of 1 MiB': ('€' * (MIB // 3) + 'x',),
}

LARGE_MESSAGES = {
    'a binary message of 16 MiB': (NOISE,),
    'a text of 16 MiB': ('é' * (8 * MIB),),
}

FRAGMENTED_MESSAGES = {
    'a text in two fragments': (['one ', 'two'],),
    'a binary message in three': ([b'\0', b'\1\2', b'\3'],),
    'a text whose first fragment is empty': (['', 'later'],),
    'a text whose last fragment is empty': (['earlier', ''],),
    'a text of one character per fragment': (list('aé€😀') * 50,),
    'a binary message of a thousand single bytes': ([bytes([i % 256]) for i in range(1000)],),
}

LARGE_FRAGMENTED_MESSAGES = {
    'a text of 16 MiB in sixteen fragments': (['é' * (MIB // 2)] * 16,),
    'a binary message of 16 MiB in 256 fragments':
        ([NOISE[at:at + 65536] for at in range(0, 16 * MIB, 65536)],),
}

SENDABLE_CLOSES = {
    '1000': (1000, ''),
    '1000 with a reason': (1000, 'done'),
    '1001, going away': (1001, 'leaving the page'),
    '1002, protocol error': (1002, ''),
    '1003, unsupported data': (1003, ''),
    '1007, invalid data': (1007, ''),
    '1008, policy violation': (1008, ''),
    '1009, message too big': (1009, ''),
    '1010, extension missing': (1010, ''),
    '1011, internal error': (1011, ''),
    '3000, the first registered code': (3000, ''),
    '4999, the last private code': (4999, ''),
    'a reason of 123 bytes, the longest': (4000, 'r' * 123),
    'a reason that is not ASCII': (4000, 'auf Wiedersehen, schöne Grüße 👋'),
}


class AsyncTest(TimedTest):
    def wait(self, coroutine):
        return asyncio.run(coroutine)

    def assert_same(self, got, sent):
        # Not assertEqual(): it would print megabytes, and take minutes to compare them.
        self.assertIs(type(got), type(sent))
        self.assertTrue(got == sent, f'sent {len(sent)}, got {len(got)} back: {got[:40]!r} …')


@with_tables
class Messages(AsyncTest):
    @for_each(SMALL_MESSAGES)
    def the_echo_example_returns(self, message):
        self.assert_same(self.wait(echoed(echo, message)), message)

    @for_each(LARGE_MESSAGES)
    def the_server_returns(self, message):
        self.assert_same(self.wait(echoed(interop, message)), message)

    @for_each({**FRAGMENTED_MESSAGES, **LARGE_FRAGMENTED_MESSAGES})
    def the_server_joins_and_returns(self, fragments):
        whole = type(fragments[0])().join(fragments)
        self.assert_same(self.wait(echoed(interop, fragments)), whole)

    def test_one_byte_over_the_limit_is_answered_with_1009(self):
        async def send_too_much():
            async with connect(echo) as client:
                await client.send(NOISE[:MIB + 1])
                await client.wait_closed()
                return client.close_code
        self.assertEqual(self.wait(send_too_much()), 1009)

    def test_a_thousand_messages_come_back_in_order(self):
        async def send_and_receive():
            async with connect(echo) as client:
                sending = asyncio.gather(*[client.send(str(i)) for i in range(1000)])
                got = [await client.recv() for _ in range(1000)]
                await sending
                return got
        self.assertEqual(self.wait(send_and_receive()), [str(i) for i in range(1000)])

    def test_ten_thousand_messages_sent_at_once_arrive_in_order(self):
        async def receive():
            async with connect(interop, '/many?count=10000') as client:
                return [await client.recv() for _ in range(10000)]
        self.assertEqual(self.wait(receive()), [str(i) for i in range(10000)])

    def test_two_hundred_clients_at_once_each_get_their_own_echo(self):
        async def many():
            everyone = [await connect(interop) for _ in range(200)]
            await asyncio.gather(*[c.send(f'client {i}') for i, c in enumerate(everyone)])
            got = await asyncio.gather(*[client.recv() for client in everyone])
            await asyncio.gather(*[client.close() for client in everyone])
            return got, {client.close_code for client in everyone}
        got, codes = self.wait(many())
        self.assertEqual(got, [f'client {i}' for i in range(200)])
        self.assertEqual(codes, {1000})

    def test_two_hundred_clients_may_connect_at_the_same_moment(self):
        async def come_and_talk(i):
            async with connect(interop) as client:
                await client.send(f'client {i}')
                return await client.recv()

        async def many():
            return await asyncio.gather(*[come_and_talk(i) for i in range(200)])
        self.assertEqual(self.wait(many()), [f'client {i}' for i in range(200)])


@with_tables
class Pings(AsyncTest):
    @for_each({
        'nothing': (b'',),
        'a text': (b'are you there?',),
        'bytes that are not text': (b'\xff\0\xfe',),
        '125 bytes, the longest': (NOISE[:125],),
    })
    def a_ping_is_answered_with_its_payload(self, payload):
        async def ping():
            async with connect(echo) as client:
                await (await client.ping(payload))  # resolved by a pong with this payload
        self.wait(ping())

    def test_a_ping_between_two_fragments_is_answered_before_the_message_ends(self):
        async def ping():
            async with connect(echo) as client:
                async def fragments():
                    yield 'before '
                    await (await client.ping(b'between'))
                    yield 'and after'
                await client.send(fragments())
                return await client.recv()
        self.assertEqual(self.wait(ping()), 'before and after')


@with_tables
class Closing(AsyncTest):
    @for_each(SENDABLE_CLOSES)
    def the_client_closes_with(self, code, reason):
        async def leave(client):
            await client.close(code, reason)
        client, left = self.wait(seen_by_witness(leave))
        self.assertEqual((left['code'], left['reason']), (code, reason))
        self.assertEqual(client.close_code, code)

    @for_each(SENDABLE_CLOSES)
    def the_server_closes_with(self, code, reason):
        async def be_closed():
            query = urllib.parse.urlencode({'code': code, 'reason': reason})
            async with connect(interop, '/close?' + query) as client:
                await client.wait_closed()
                return client.close_code, client.close_reason
        self.assertEqual(self.wait(be_closed()), (code, reason))

    def test_a_lost_connection_counts_as_1006(self):
        async def leave(client):
            client.transport.abort()
        _, left = self.wait(seen_by_witness(leave))
        self.assertEqual(left['code'], 1006)

    def test_messages_sent_before_the_close_come_back(self):
        async def send_and_close():
            async with connect(echo) as client:
                for i in range(100):
                    await client.send(str(i))
                closing = asyncio.create_task(client.close())
                got = [message async for message in client]
                await closing
                return got
        self.assertEqual(self.wait(send_and_close()), [str(i) for i in range(100)])

    def test_a_server_that_stops_sends_1001(self):
        async def see_it_end():
            server = support.Server(support.INTEROP_SERVER)
            async with connect(server) as client:
                await asyncio.gather(asyncio.to_thread(server.stop), client.wait_closed())
                return client.close_code
        self.assertEqual(self.wait(see_it_end()), 1001)


@with_tables
class Handshakes(AsyncTest):
    def request_seen(self, path='/request', **options):
        async def ask():
            async with connect(interop, path, **options) as client:
                return client, json.loads(await client.recv())
        return self.wait(ask())

    def status(self, server, path='/', **options):
        async def knock():
            async with connect(server, path, **options):
                return 101
        try:
            return self.wait(knock())
        except websockets.InvalidStatusCode as refusal:
            return refusal.status_code

    @for_each({
        'the only one offered': (['v1.interop'], 'v1.interop'),
        "the server's favourite, though offered last": (['v1.interop', 'v2.interop'], 'v2.interop'),
        'the only one that the server knows': (['v9', 'v1.interop', 'v8'], 'v1.interop'),
        'none, when none is in common': (['v8', 'v9'], None),
        'none, when none is offered': (None, None),
        'none, when only the case differs': (['V1.INTEROP'], None),
    })
    def the_subprotocol_is(self, offered, agreed):
        client, request = self.request_seen(subprotocols=offered)
        self.assertEqual(client.subprotocol, agreed)
        self.assertEqual(request['protocol'], agreed or '')

    def test_compression_is_offered_and_not_agreed_on(self):
        client, _ = self.request_seen(compression='deflate')
        self.assertIn('permessage-deflate', client.request_headers['Sec-WebSocket-Extensions'])
        self.assertEqual(client.extensions, [])
        self.assertNotIn('Sec-WebSocket-Extensions', client.response_headers)

    def test_path_query_and_headers_arrive(self):
        _, request = self.request_seen(
            '/request?name=blue+sky%21', origin='http://any.example',
            extra_headers={'Cookie': 'size=3; colour=red', 'x-custom': 'yes'})
        self.assertIn(request.pop('address'), ('127.0.0.1', '::1'))
        self.assertEqual(request, {
            'path': '/request', 'name': 'blue sky!', 'origin': 'http://any.example',
            'colour': 'red', 'custom': 'yes', 'protocol': '', 'forwarded': ''})

    @for_each({
        'the listed one': (PAGE_ORIGIN, 101),
        'the listed one in capitals': ('HTTP://PAGE.EXAMPLE:8080', 101),
        'none, as from a program': (None, 101),
        'another host': ('http://other.example:8080', 403),
        'another port': ('http://page.example', 403),
        'another scheme': ('https://page.example:8080', 403),
        'a host that only begins with it': ('http://page.example:8080.evil.example', 403),
        'null, as from a sandboxed frame': ('null', 403),
    })
    def the_answer_to_an_origin(self, origin, status):
        self.assertEqual(self.status(guarded, origin=origin), status)

    @for_each({'401': (401,), '404': (404,), '429': (429,), '503': (503,)})
    def a_hook_may_refuse_with(self, status):
        self.assertEqual(self.status(interop, f'/refuse?status={status}&text=no'), status)


class Addresses(AsyncTest):
    def greet(self, address, port):
        async def say_hello():
            async with websockets.connect(f'ws://{address}:{port}/') as client:
                await client.send('hello')
                return await client.recv()
        self.assertEqual(self.wait(say_hello()), 'hello')

    def test_the_server_listens_on_every_address_of_localhost(self):
        found = socket.getaddrinfo('localhost', None, type=socket.SOCK_STREAM)
        for family, *_, (address, *_) in found:
            self.greet(f'[{address}]' if family == socket.AF_INET6 else address, echo.port)

    def test_the_server_can_listen_on_an_IPv6_address(self):
        if not has_ipv6():
            self.skipTest('this machine has no IPv6')
        server = support.Server(support.INTEROP_SERVER, '--address', '::1')
        self.greet('[::1]', server.port)
        server.stop()


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as any_port:
            any_port.bind(('::1', 0))
        return True
    except OSError:
        return False


class PlainHttp(TimedTest):
    def test_a_page_is_served_on_the_same_port(self):
        with urllib.request.urlopen(f'http://localhost:{interop.port}/page') as answer:
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.headers['Content-Type'], 'text/html; charset=utf-8')
            self.assertIn(b'<title>interop</title>', answer.read())

    def test_a_get_that_no_hook_answers_is_told_to_upgrade(self):
        with self.assertRaises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f'http://localhost:{interop.port}/elsewhere')
        self.assertEqual(refusal.exception.code, 426)
        self.assertEqual(refusal.exception.headers['Upgrade'], 'websocket')

    def test_a_post_is_not_allowed(self):
        with self.assertRaises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f'http://localhost:{interop.port}/', data=b'x')
        self.assertEqual(refusal.exception.code, 405)
        self.assertEqual(refusal.exception.headers['Allow'], 'GET, HEAD')


if __name__ == '__main__':
    support.main()
