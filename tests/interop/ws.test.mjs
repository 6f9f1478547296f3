// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server and Node's `ws`, the most common client in JavaScript programs: it streams, offers
// compression, and is strict about what it receives.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import WebSocket, { createWebSocketStream } from 'ws';
import {
  CHAT, ECHO, INTEROP_SERVER, MIB, assertSame, forEach, noise, start, stopAll,
} from './support.mjs';

const PAGE_ORIGIN = 'https://page.example';
const limit = { timeout: 20_000 };
const bytes = noise(16 * MIB);
let echo, chat, interop, guarded, pinging;

before(async () => {
  echo = await start(ECHO, '0');
  chat = await start(CHAT, '--port', '0');
  interop = await start(INTEROP_SERVER);
  guarded = await start(INTEROP_SERVER, '--origin', PAGE_ORIGIN);
  pinging = await start(INTEROP_SERVER, '--ping', '0.5');
}, limit);

after(async () => {
  await stopAll([echo, chat, interop, guarded, pinging]);
}, limit);

// --- tools for the tests below ----------------------------------------------

// A connected client. It keeps its messages and its end, so none is missed.
async function connect(server, path = '/', protocols = [], options = {}) {
  const client = new WebSocket(server.url(path), protocols, options);
  const closed = new Promise((done) => {
    client.on('close', (code, reason) => done([code, reason.toString()]));
  });
  const messages = [];
  client.on('message', (data, isBinary) => messages.push(isBinary ? data : data.toString()));
  await once(client, 'open');
  return Object.assign(client, { closed, messages });
}

async function nextMessage(client) {
  while (!client.messages.length) {
    const end = await Promise.race([client.closed, once(client, 'message').then(() => null)]);
    if (end && !client.messages.length) throw new Error(`no message, but a close: ${end}`);
  }
  return client.messages.shift();
}

// Closes, and expects an answer with the same code (RFC 6455 5.5.1) and any reason.
async function close(client, code = 1000, reason = '') {
  client.close(code, reason);
  assert.equal((await client.closed)[0], code);
}

// The status of the server's answer; 101 if it accepts.
function status(server, path, options = {}) {
  return new Promise((answered, failed) => {
    const client = new WebSocket(server.url(path), [], options);
    client.on('open', () => { client.close(); answered(101); });
    client.on('unexpected-response', (request, response) => {
      response.resume();
      response.on('end', () => answered(response.statusCode));
    });
    client.on('error', failed);
  });
}

// --- messages ---------------------------------------------------------------

forEach('the echo example returns', [
  ['an empty text', ''],
  ['an empty binary message', Buffer.alloc(0)],
  ['a text with characters of one to four bytes', 'aé€😀'],
  ['a text with a NUL in it', 'a\0b'],
  ['a text that is JSON, untouched', '{"n": 1e3, "d": 0.10}'],
  ['every byte value', Buffer.from(Array.from({ length: 256 }, (_, i) => i))],
  ['125 bytes', bytes.subarray(0, 125)],
  ['126 bytes', bytes.subarray(0, 126)],
  ['65535 bytes', bytes.subarray(0, 65535)],
  ['65536 bytes', bytes.subarray(0, 65536)],
  ['a binary message of 1 MiB', bytes.subarray(0, MIB)],
  ['a text of 1 MiB', '€'.repeat(MIB / 4)],
], async (message) => {
  const client = await connect(echo);
  client.send(message);
  assertSame(await nextMessage(client), message);
  await close(client);
});

test('a binary message of 16 MiB comes back', limit, async () => {
  const client = await connect(interop);
  client.send(bytes);
  assertSame(await nextMessage(client), bytes);
  await close(client);
});

forEach('binary data comes back as', [
  ['a Buffer', 'nodebuffer', (data) => data],
  ['an ArrayBuffer', 'arraybuffer', (data) => Buffer.from(data)],
  ['fragments', 'fragments', (data) => Buffer.concat(data)],
], async (binaryType, join) => {
  const client = await connect(echo);
  client.binaryType = binaryType;
  client.send(bytes.subarray(0, 100_000));
  assertSame(join(await nextMessage(client)), bytes.subarray(0, 100_000));
  await close(client);
});

forEach('fragments make one message:', [
  ['two of text', ['one ', 'two'], 'one two'],
  ['an empty first one', ['', 'later'], 'later'],
  ['an empty last one', ['earlier', ''], 'earlier'],
  ['three that are empty', ['', '', ''], ''],
  ['a thousand', Array(1000).fill('x'), 'x'.repeat(1000)],
], async (fragments, whole) => {
  const client = await connect(echo);
  const last = fragments.length - 1;
  fragments.forEach((part, i) => client.send(part, { binary: false, fin: i === last }));
  assertSame(await nextMessage(client), whole);
  await close(client);
});

test('fragments may cut a character, with a ping in the cut', limit, async () => {
  const client = await connect(echo);
  client.send(Buffer.from([0xe2, 0x82]), { binary: false, fin: false });
  client.ping('in the cut');
  client.send(Buffer.from([0xac]), { binary: false, fin: true });
  const [payload] = await once(client, 'pong');
  assert.equal(payload.toString(), 'in the cut');
  assert.equal(await nextMessage(client), '€');
  await close(client);
});

test('a stream of 16 MiB passes in pieces, both ways', limit, async () => {
  const client = await connect(interop);
  const stream = createWebSocketStream(client);
  const pieces = [];
  let received = 0;
  const allIsBack = new Promise((done) => stream.on('data', (piece) => {
    pieces.push(piece);
    received += piece.length;
    if (received >= bytes.length) done();
  }));
  for (let at = 0; at < bytes.length; at += 50_000)
    if (!stream.write(bytes.subarray(at, at + 50_000))) await once(stream, 'drain');
  await allIsBack;
  assertSame(Buffer.concat(pieces), bytes);
  stream.end();
  await client.closed;
});

test('ten thousand messages sent at once come back in order', limit, async () => {
  const client = await connect(echo);
  for (let i = 0; i < 10_000; ++i) client.send(String(i));
  for (let i = 0; i < 10_000; ++i) assert.equal(await nextMessage(client), String(i));
  await close(client);
});

test('ten thousand messages that the server sends at once arrive in order', limit, async () => {
  const client = await connect(interop, '/many?count=10000');
  for (let i = 0; i < 10_000; ++i) assert.equal(await nextMessage(client), String(i));
  await close(client);
});

test('two hundred clients at once each get their own echo', limit, async () => {
  const clients = await Promise.all(Array.from({ length: 200 }, () => connect(interop)));
  clients.forEach((client, i) => client.send(`client ${i}`));
  const got = await Promise.all(clients.map(nextMessage));
  assert.deepEqual(got, clients.map((_, i) => `client ${i}`));
  await Promise.all(clients.map((client) => close(client)));
});

test('a message one byte too big is answered with 1009', limit, async () => {
  const client = await connect(echo);
  client.on('error', () => {});  // the rest of the message may meet a closed connection
  client.send(bytes.subarray(0, MIB + 1));
  assert.equal((await client.closed)[0], 1009);
});

// --- pings ------------------------------------------------------------------

forEach('a ping is answered with its payload:', [
  ['none', Buffer.alloc(0)],
  ['a text', Buffer.from('are you there?')],
  ['bytes that are not text', Buffer.from([0xff, 0, 0xfe])],
  ['125 bytes, the longest', bytes.subarray(0, 125)],
], async (payload) => {
  const client = await connect(echo);
  client.ping(payload);
  const [answer] = await once(client, 'pong');
  assert.ok(answer.equals(payload));
  await close(client);
});

test('a silent client is pinged, and its pongs keep it connected', limit, async () => {
  const client = await connect(pinging);
  for (let i = 0; i < 3; ++i) await once(client, 'ping');  // ws answers each with a pong
  client.send('still here');
  assert.equal(await nextMessage(client), 'still here');
  await close(client);
});

// --- closing ----------------------------------------------------------------

const closes = [
  ['1000', 1000, ''],
  ['1000 and a reason', 1000, 'done'],
  ['1001, going away', 1001, 'leaving'],
  ['1002, protocol error', 1002, ''],
  ['1003, unsupported data', 1003, ''],
  ['1007, invalid data', 1007, ''],
  ['1008, policy violation', 1008, ''],
  ['1009, message too big', 1009, ''],
  ['1010, extension missing', 1010, ''],
  ['1011, internal error', 1011, ''],
  ['1012, service restart', 1012, ''],
  ['1013, try again later', 1013, ''],
  ['1014, bad gateway', 1014, ''],
  ['3000, the first registered code', 3000, ''],
  ['4999, the last private code', 4999, ''],
  ['a reason of 123 bytes, the longest', 4000, 'r'.repeat(123)],
  ['a reason that is not ASCII', 4000, 'schöne Grüße 👋'],
];

// Makes a client leave, and returns the code and the reason that the server saw.
let leavers = 0;
async function seenByWitness(leave) {
  const tag = `leaver${++leavers}`;
  const witness = await connect(interop, '/witness');
  assert.equal(await nextMessage(witness), 'ready');
  leave(await connect(interop, `/?${tag}`));
  let left;
  do left = JSON.parse(await nextMessage(witness)); while (left.query !== tag);
  await close(witness);
  return [left.code, left.reason];
}

forEach('the client closes with', closes, async (code, reason) => {
  let answer;
  const seen = await seenByWitness((client) => { answer = close(client, code, reason); });
  assert.deepEqual(seen, [code, reason]);
  await answer;
});

forEach('the server closes with', closes, async (code, reason) => {
  const client = await connect(interop, `/close?code=${code}&reason=${encodeURIComponent(reason)}`);
  assert.deepEqual(await client.closed, [code, reason]);
});

test('a close without a code counts as 1005, on both sides', limit, async () => {
  let answer;
  const seen = await seenByWitness((client) => { client.close(); answer = client.closed; });
  assert.deepEqual(seen, [1005, '']);
  assert.deepEqual(await answer, [1005, '']);
});

test('a lost connection counts as 1006', limit, async () => {
  assert.equal((await seenByWitness((client) => client.terminate()))[0], 1006);
});

test('messages sent before the close come back', limit, async () => {
  const client = await connect(echo);
  for (let i = 0; i < 100; ++i) client.send(String(i));
  await close(client);
  assert.deepEqual(client.messages, Array.from({ length: 100 }, (_, i) => String(i)));
});

test('a server that stops sends 1001 to all clients', limit, async (t) => {
  const server = await start(INTEROP_SERVER);
  t.after(() => server.kill());  // if the test fails before its stop()
  const clients = await Promise.all(Array.from({ length: 20 }, () => connect(server)));
  await server.stop();
  for (const client of clients) assert.equal((await client.closed)[0], 1001);
});

// --- handshakes -------------------------------------------------------------

forEach('the subprotocol is', [
  ['the only one offered', ['v1.interop'], 'v1.interop'],
  ["the server's favourite, though offered last", ['v1.interop', 'v2.interop'], 'v2.interop'],
  ['the only one that the server knows', ['v9', 'v1.interop'], 'v1.interop'],
  ['none, when none is offered', [], ''],
], async (offered, agreed) => {
  const client = await connect(interop, '/request', offered);
  assert.equal(client.protocol, agreed);
  assert.equal(JSON.parse(await nextMessage(client)).protocol, agreed);
  await close(client);
});

test('with no subprotocol in common, this client gives up', limit, async () => {
  await assert.rejects(connect(interop, '/', ['v8', 'v9']), /Server sent no subprotocol/);
});

forEach('compression is not agreed on, though offered', [
  ['plainly', true],
  ['with parameters', { serverMaxWindowBits: 10, clientNoContextTakeover: true, threshold: 0 }],
], async (perMessageDeflate) => {
  let offered;
  const finishRequest = (request) => {
    offered = request.getHeader('Sec-WebSocket-Extensions');
    request.end();
  };
  const client = new WebSocket(echo.url(), { perMessageDeflate, finishRequest });
  const [[response]] = await Promise.all([once(client, 'upgrade'), once(client, 'open')]);
  assert.match(offered, /permessage-deflate/);
  assert.equal(response.headers['sec-websocket-extensions'], undefined);
  assert.equal(client.extensions, '');
  client.send('x'.repeat(5000));
  const [data] = await once(client, 'message');
  assertSame(data.toString(), 'x'.repeat(5000));
  client.close();
  await once(client, 'close');
});

forEach('the answer to an origin:', [
  ['the listed one is accepted', PAGE_ORIGIN, 101],
  ['the listed one with its default port is accepted', `${PAGE_ORIGIN}:443`, 101],
  ['another scheme is refused', 'http://page.example', 403],
  ['a subdomain is refused', 'https://www.page.example', 403],
  ['null is refused', 'null', 403],
], async (origin, expected) => assert.equal(await status(guarded, '/', { origin }), expected));

forEach('a refusal has its status:', [
  ['401 from a hook', '/refuse?status=401', {}, 401],
  ['404 from a hook', '/refuse?status=404', {}, 404],
  ['503 from a hook', '/refuse?status=503', {}, 503],
  ['431 for a head that is too long', '/', { headers: { 'X-Long': 'l'.repeat(9000) } }, 431],
  ['431 for a path that is too long', `/${'p'.repeat(9000)}`, {}, 431],
  ['426 for version 8', '/', { protocolVersion: 8 }, 426],
], async (path, options, expected) => assert.equal(await status(interop, path, options), expected));

forEach('the chat example answers', [
  ['101 at /chat', '/chat', 101],
  ['404 elsewhere', '/elsewhere', 404],
], async (path, expected) => assert.equal(await status(chat, path), expected));
