# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

"""The server and Python's `websocket-client`, a blocking client that can send and receive
single frames. So it tests what `websockets` does by itself."""

import json
import sys

try:
    import websocket
    from websocket import ABNF
except ImportError:
    sys.exit('python3 has no websocket-client: install python3-websocket (on Debian)')

import support
from support import TimedTest, for_each, with_tables

MIB = 1024 * 1024
SECONDS_PER_READ = 10


def setUpModule():
    global echo, interop, pinging, guarded
    echo = support.start_for_module(support.ECHO, '0')
    interop = support.start_for_module(support.INTEROP_SERVER)
    pinging = support.start_for_module(support.INTEROP_SERVER, '--ping', '0.5')
    guarded = support.start_for_module(support.INTEROP_SERVER, '--origin', 'http://page.example')


def connect(server, path='/', **options):
    # The tests compare the text; this client would take seconds to validate it.
    return websocket.create_connection(server.url(path), timeout=SECONDS_PER_READ,
                                       skip_utf8_validation=True, **options)


def send_frame(client, fin, opcode, payload):
    client.send_frame(ABNF.create_frame(payload, opcode, fin))


def next_frame_but_pings(client):
    frame = client.recv_frame()
    while frame.opcode == ABNF.OPCODE_PING:
        frame = client.recv_frame()
    return frame


@with_tables
class Messages(TimedTest):
    @for_each({
        'an empty text': (ABNF.OPCODE_TEXT, b''),
        'an empty binary message': (ABNF.OPCODE_BINARY, b''),
        'a text': (ABNF.OPCODE_TEXT, 'aé€😀'.encode()),
        'every byte value': (ABNF.OPCODE_BINARY, bytes(range(256))),
        'a text of 1 MiB': (ABNF.OPCODE_TEXT, b'text' * (MIB // 4)),
        'a binary message of 1 MiB': (ABNF.OPCODE_BINARY, bytes(range(256)) * (MIB // 256)),
    })
    def the_echo_example_returns(self, opcode, payload):
        client = connect(echo)
        client.send(payload, opcode)
        got_opcode, got = client.recv_data()
        client.close()
        self.assertEqual(got_opcode, opcode)
        self.assertTrue(got == payload, f'sent {len(payload)} bytes, got {len(got)} back')

    def test_a_binary_message_of_16_MiB_comes_back(self):
        payload = bytes(range(256)) * (16 * MIB // 256)
        client = connect(interop)
        client.send_binary(payload)
        self.assertTrue(client.recv() == payload)
        client.close()

    def test_fragments_that_cut_a_character_make_one_message(self):
        client = connect(echo)
        send_frame(client, 0, ABNF.OPCODE_TEXT, b'1 \xe2')
        send_frame(client, 0, ABNF.OPCODE_CONT, b'\x82')
        send_frame(client, 1, ABNF.OPCODE_CONT, b'\xac')
        self.assertEqual(client.recv(), '1 €')
        client.close()

    def test_a_ping_between_fragments_is_answered_at_once(self):
        client = connect(echo)
        send_frame(client, 0, ABNF.OPCODE_TEXT, b'one ')
        client.ping(b'now')
        pong = client.recv_frame()
        self.assertEqual((pong.opcode, pong.data), (ABNF.OPCODE_PONG, b'now'))
        send_frame(client, 1, ABNF.OPCODE_CONT, b'message')
        self.assertEqual(client.recv(), 'one message')
        client.close()

    def test_an_unsolicited_pong_is_ignored(self):
        client = connect(echo)
        client.pong(b'by the way')
        client.send('hello')
        self.assertEqual(client.recv(), 'hello')
        client.close()


class Pings(TimedTest):
    def test_a_silent_client_is_pinged_and_its_pongs_keep_it_connected(self):
        client = connect(pinging)
        for _ in range(2):
            ping = client.recv_frame()
            self.assertEqual(ping.opcode, ABNF.OPCODE_PING)
            client.pong(ping.data)
        client.send('still here')
        self.assertEqual(next_frame_but_pings(client).data, b'still here')
        client.close()

    def test_a_client_that_does_not_answer_pings_is_disconnected(self):
        witness = connect(pinging, '/witness')
        self.assertEqual(witness.recv(), 'ready')
        silent = connect(pinging, '/?silent')
        self.assertEqual(silent.recv_frame().opcode, ABNF.OPCODE_PING)
        left = json.loads(witness.recv())  # recv() answers the pings that come meanwhile
        self.assertEqual((left['query'], left['code']), ('silent', 1006))
        silent.shutdown()
        witness.close()


@with_tables
class Closing(TimedTest):
    @for_each({
        'a code and a reason, with the same code': (b'\x0f\xa1bye', 4001),
        'a code alone, with the same code': (b'\x03\xe8', 1000),
        'no code, without a code': (b'', None),
        '1005, which must not be sent, with 1002': (b'\x03\xed', 1002),
        '1006, which must not be sent, with 1002': (b'\x03\xee', 1002),
        '2999, which is not defined, with 1002': (b'\x0b\xb7', 1002),
        'half a code, with 1002': (b'\x03', 1002),
        'a reason that is not UTF-8, with 1007': (b'\x03\xe8\xff', 1007),
    })
    def a_close_frame_is_answered(self, payload, code):
        client = connect(echo)
        send_frame(client, 1, ABNF.OPCODE_CLOSE, payload)
        self.assert_closed(client, code)

    @for_each({
        # The arguments of ABNF: fin, three reserved bits, opcode, mask, payload.
        'a reserved bit': ((1, 1, 0, 0, ABNF.OPCODE_TEXT, 1, b'x'), 1002),
        'no mask': ((1, 0, 0, 0, ABNF.OPCODE_TEXT, 0, b'x'), 1002),
        'a fragmented ping': ((0, 0, 0, 0, ABNF.OPCODE_PING, 1, b''), 1002),
        'a ping of 126 bytes': ((1, 0, 0, 0, ABNF.OPCODE_PING, 1, b'p' * 126), 1002),
        'a continuation with nothing to continue': ((1, 0, 0, 0, ABNF.OPCODE_CONT, 1, b'x'), 1002),
        'text that is not UTF-8': ((1, 0, 0, 0, ABNF.OPCODE_TEXT, 1, b'\xc0\xaf'), 1007),
        'half a character': ((1, 0, 0, 0, ABNF.OPCODE_TEXT, 1, b'\xe2\x82'), 1007),
    })
    def the_connection_fails_on_a_frame_with(self, frame, code):
        client = connect(echo)
        client.sock.sendall(ABNF(*frame).format())
        self.assert_closed(client, code)

    def assert_closed(self, client, code):
        """A close frame with that code (None: without a code) must come, then the end."""
        frame = client.recv_frame()
        self.assertEqual(frame.opcode, ABNF.OPCODE_CLOSE)
        self.assertEqual(frame.data[:2], code.to_bytes(2, 'big') if code else b'')
        with self.assertRaises(websocket.WebSocketConnectionClosedException):
            client.recv_frame()
        client.shutdown()

    def test_when_the_server_closes_first_the_answer_ends_the_connection(self):
        client = connect(interop, '/close?code=4001&reason=that+is+all')
        frame = client.recv_frame()
        self.assertEqual((frame.opcode, frame.data), (ABNF.OPCODE_CLOSE, b'\x0f\xa1that is all'))
        client.send_close(4001)
        with self.assertRaises(websocket.WebSocketConnectionClosedException):
            client.recv_frame()
        client.shutdown()


@with_tables
class Handshakes(TimedTest):
    @for_each({
        'the only one': (['v1.interop'], 'v1.interop'),
        "the server's favourite": (['v1.interop', 'v2.interop'], 'v2.interop'),
    })
    def the_subprotocol_is(self, offered, agreed):
        client = connect(interop, subprotocols=offered)
        self.assertEqual(client.getsubprotocol(), agreed)
        client.close()

    @for_each({
        'the listed one': ('http://page.example', 101),
        'the listed one, with the default port': ('http://page.example:80', 101),
        'any other': ('http://elsewhere.example', 403),
    })
    def the_answer_to_an_origin(self, origin, status):
        self.assertEqual(self.status(guarded, origin=origin), status)

    def test_cookies_and_headers_arrive(self):
        client = connect(interop, '/request', cookie='colour=red', header={'X-Custom': 'yes'})
        request = json.loads(client.recv())
        self.assertEqual((request['colour'], request['custom']), ('red', 'yes'))
        client.close()

    @for_each({
        'version 12': ('Sec-WebSocket-Version', '12', 426),
        'version 14': ('Sec-WebSocket-Version', '14', 426),
        'a key of 15 bytes': ('Sec-WebSocket-Key', 'AAAAAAAAAAAAAAAAAAAA', 400),
        'a key that is not base64': ('Sec-WebSocket-Key', '!!!!!!!!!!!!!!!!!!!!!!==', 400),
        'a body': ('Content-Length', '5', 400),
        'a head of 9000 bytes': ('X-Long', 'l' * 9000, 431),
    })
    def a_request_is_refused_for(self, name, value, status):
        self.assertEqual(self.status(interop, header={name: value}), status)

    def test_a_hook_may_refuse(self):
        self.assertEqual(self.status(interop, '/refuse?status=401&text=no'), 401)

    def status(self, server, path='/', **options):
        try:
            client = connect(server, path, **options)
        except websocket.WebSocketBadStatusException as refusal:
            return refusal.status_code
        client.close()
        return 101


if __name__ == '__main__':
    support.main()
