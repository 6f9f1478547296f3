// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What has to work in every browser, and where browsers differ: the same tests for Chromium,
// Firefox or WebKitGTK, whichever ENGINE names. Chromium is tested in detail elsewhere, with the
// same pages: browser.test.mjs, game.test.mjs, wire.test.mjs, auth.test.mjs.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import tls from 'node:tls';
import WebSocket from 'ws';
import { openEngine } from './engines.mjs';
import { CHAT, GAME, INTEROP_SERVER, MIB, WIRE, forEach, freePort, start, stopAll } from './support.mjs';

const AUTH = process.env.AUTH ?? 'examples/auth';
const { ENGINE } = process.env;
const limit = { timeout: 40_000 };
let engine, interop, elsewhere, guarded;
let ann, bob;  // two windows

before(async () => {
  engine = await openEngine(ENGINE);
  [ann, bob] = await Promise.all([engine.newWindow(), engine.newWindow()]);
  interop = await start(INTEROP_SERVER);
  elsewhere = await start(INTEROP_SERVER);
  guarded = await start(INTEROP_SERVER, '--origin', originOf(elsewhere));
  await openPage(ann, interop);
}, limit);

after(async () => {
  await engine?.close();
  await stopAll([interop, elsewhere, guarded]);
}, limit);

const originOf = (server) => `http://localhost:${server.port}`;

// ----------------------------------------------------------------------------
// A WebSocket in a page
// ----------------------------------------------------------------------------

// Opens an empty page of this server, with tools for the functions that the tests evaluate.
async function openPage(window, server, query = '') {
  await window.open(`${originOf(server)}/page${query}`);
  await window.evaluate(tools);
}

function tools() {
  // An open socket. It keeps its messages, and how it closed.
  globalThis.connect = (url, protocols = []) => new Promise((opened, failed) => {
    const socket = new WebSocket(url, protocols);
    socket.binaryType = 'arraybuffer';
    socket.messages = [];
    socket.onmessage = ({ data }) => { socket.messages.push(data); socket.wake?.(); };
    socket.closed = new Promise((done) => {
      socket.onclose = ({ code, reason, wasClean }) => done({ code, reason, wasClean });
    });
    socket.onopen = () => opened(socket);
    socket.closed.then((how) => { socket.wake?.(); failed(new Error(`closed with ${how.code}`)); });
  });

  globalThis.nextMessage = async (socket) => {
    while (!socket.messages.length) {
      if (socket.readyState === WebSocket.CLOSED) throw new Error('no message, but a close');
      await new Promise((wake) => { socket.wake = wake; });
    }
    return socket.messages.shift();
  };
}

forEach('a text comes back:', [
  ['an empty one', '', 1],
  ['characters of one to four bytes', 'aé€😀', 1],
  ['1 MiB', '€uros.', MIB / 8],
], async (text, times) => {
  const isSame = await ann.evaluate(async ({ url, text, times }) => {
    const socket = await connect(url);
    socket.send(text.repeat(times));
    return await nextMessage(socket) === text.repeat(times);
  }, { url: interop.url(), text, times });
  assert.ok(isSame);
});

test('half a character comes back as U+FFFD, because the browser replaces it', limit, async () => {
  const isReplaced = await ann.evaluate(async (url) => {
    const socket = await connect(url);
    socket.send('x\ud800');
    return await nextMessage(socket) === 'x\ufffd';
  }, interop.url());
  assert.ok(isReplaced);
});

forEach('binary data comes back,', [
  ['an ArrayBuffer of no bytes as an ArrayBuffer', 'ArrayBuffer', 0, 'arraybuffer'],
  ['an ArrayBuffer of 1 MiB as an ArrayBuffer', 'ArrayBuffer', MIB, 'arraybuffer'],
  ['a Blob of 1 MiB as a Blob', 'Blob', MIB, 'blob'],
], async (sentAs, size, binaryType) => {
  const got = await ann.evaluate(async ({ url, sentAs, size, binaryType }) => {
    const sent = new Uint8Array(size);
    for (let at = 0; at < size; at += 65536) crypto.getRandomValues(sent.subarray(at, at + 65536));
    const socket = await connect(url);
    socket.binaryType = binaryType;
    socket.send(sentAs === 'Blob' ? new Blob([sent]) : sent.buffer);
    const data = await nextMessage(socket);
    const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
    const isSame = bytes.length === size && bytes.every((byte, i) => byte === sent[i]);
    return { type: data.constructor.name.toLowerCase(), size: bytes.length, isSame };
  }, { url: interop.url(), sentAs, size, binaryType });
  assert.deepEqual(got, { type: binaryType, size, isSame: true });
});

test('ten thousand messages come back in order; none is left in the browser', limit, async () => {
  const got = await ann.evaluate(async (url) => {
    const socket = await connect(url);
    for (let i = 0; i < 10_000; ++i) socket.send(String(i));
    for (let i = 0; i < 10_000; ++i)
      if (await nextMessage(socket) !== String(i)) return `no ${i}`;
    return socket.bufferedAmount;
  }, interop.url());
  assert.equal(got, 0);
});

test('a page can have fifteen connections at once', limit, async () => {
  const got = await ann.evaluate(async (url) => {
    const sockets = await Promise.all(Array.from({ length: 15 }, () => connect(url)));
    sockets.forEach((socket, i) => socket.send(String(i)));
    return Promise.all(sockets.map(nextMessage));
  }, interop.url());
  assert.deepEqual(got, Array.from({ length: 15 }, (_, i) => String(i)));
});

test('the browser answers pings, so that a silent page stays connected', limit, async (t) => {
  const pinging = await start(INTEROP_SERVER, '--ping', '0.5');
  t.after(() => pinging.stop());
  await ann.evaluate(async (url) => { globalThis.silent = await connect(url); }, pinging.url());
  // This one is silent for a shorter time, but does not answer.
  const dead = new WebSocket(pinging.url(), { autoPong: false });
  await once(dead, 'close');
  const answer = await ann.evaluate(() => {
    silent.send('still here');
    return nextMessage(silent);
  });
  assert.equal(answer, 'still here');
});

// --- closing ----------------------------------------------------------------

forEach('the page sees how the server closes:', [
  ['1000', 1000, ''],
  ['1001 and a reason', 1001, 'gone for lunch'],
  ['1011, internal error', 1011, ''],
  ['4001 and a reason that is not ASCII', 4001, 'schöne Grüße 👋'],
  ['4999 and the longest reason', 4999, 'r'.repeat(123)],
], async (code, reason) => {
  const how = await ann.evaluate(async (url) => (await connect(url)).closed,
    interop.url(`/close?code=${code}&reason=${encodeURIComponent(reason)}`));
  assert.deepEqual(how, { code, reason, wasClean: true });
});

// Here wasClean is false in Chromium, and sometimes in WebKit: bytes were left to send.
test('code and reason arrive although the page is still sending', limit, async () => {
  const { code, reason } = await ann.evaluate((url) => {
    const socket = new WebSocket(url);
    socket.onopen = () => { for (let i = 0; i < 50; ++i) socket.send('x'.repeat(100_000)); };
    return new Promise((done) => {
      socket.onclose = ({ code, reason }) => done({ code, reason });
    });
  }, interop.url('/close?code=4001&reason=bye'));
  assert.deepEqual({ code, reason }, { code: 4001, reason: 'bye' });
});

// Here wasClean is false in Firefox.
test('the page learns that its message is too big', limit, async () => {
  const { code, reason } = await ann.evaluate(async (url) => {
    const socket = await connect(url);
    socket.send('x'.repeat(33 * 1024 * 1024));
    return socket.closed;
  }, interop.url());
  assert.deepEqual({ code, reason }, { code: 1009, reason: 'the message is too big' });
});

// Connects the page of `bob`, and returns the code and the reason with which the server saw it
// leave.
async function seenByWitness(leave, query) {
  await ann.evaluate(async (url) => {
    globalThis.witness = await connect(url);
    await nextMessage(witness);  // "ready"
  }, interop.url('/witness'));
  await openPage(bob, interop, query);
  await bob.evaluate(async (url) => { globalThis.leaver = await connect(url); },
    interop.url('/?leaver'));
  await leave();
  return ann.evaluate(async () => {
    let left;
    do left = JSON.parse(await nextMessage(witness)); while (left.query !== 'leaver');
    witness.close();
    return [left.code, left.reason];
  });
}

forEach('the server sees how a page closes:', [
  ['with a code and a reason', () => leaver.close(4002, 'Grüße 👋'), 4002, 'Grüße 👋'],
  ['with 1000', () => leaver.close(1000), 1000, ''],
  ['without a code, as 1005', () => leaver.close(), 1005, ''],
], async (leave, code, reason) => {
  assert.deepEqual(await seenByWitness(() => bob.evaluate(leave)), [code, reason]);
});

// WebKit sends a reason, too: "WebSocket is closed due to suspension."
test('a page that the user leaves closes with 1001', limit, async () => {
  const [code] = await seenByWitness(() => bob.open('about:blank'), '?no-store');
  assert.equal(code, 1001);
});

// Without that, Chromium keeps the page and its connection until the user comes back. Firefox is
// quicker than the page, and closes with 1001.
test('a page that may be cached can close when the user leaves it', limit, async () => {
  const [code] = await seenByWitness(async () => {
    await bob.evaluate(() => addEventListener('pagehide', () => leaver.close(4003)));
    await bob.open('about:blank');
  });
  assert.equal(code, ENGINE === 'firefox' ? 1001 : 4003);
});

forEach('when the server', [
  ['stops, the page sees a clean 1001', (server) => server.stop(), { code: 1001, wasClean: true }],
  ['is killed, the page sees 1006', (server) => server.kill(), { code: 1006, wasClean: false }],
], async (end, expected, t) => {
  const server = await start(INTEROP_SERVER);
  t.after(() => server.kill());  // if the test fails before it ends
  await ann.evaluate(async (url) => { globalThis.left = await connect(url); }, server.url());
  await end(server);
  const { code, wasClean } = await ann.evaluate(() => left.closed);
  assert.deepEqual({ code, wasClean }, expected);
});

// --- handshakes -------------------------------------------------------------

// Whether the server accepts a connection; a page cannot learn why it does not.
const isLetIn = (window, url) => window.evaluate(async (url) => {
  const socket = await connect(url).catch(() => null);
  socket?.close();
  return socket !== null;
}, url);

test('a page is let in from the listed origin only', limit, async () => {
  assert.equal(await isLetIn(ann, guarded.url()), false);
  await openPage(bob, guarded);
  assert.equal(await isLetIn(bob, guarded.url()), false);
  await openPage(bob, elsewhere);
  assert.equal(await isLetIn(bob, guarded.url()), true);
});

forEach('the subprotocol is', [
  ["the server's favourite", ['v1.interop', 'v2.interop'], 'v2.interop'],
  ['the only one that the server knows', ['v9', 'v1.interop'], 'v1.interop'],
  ['none, when none is offered', [], ''],
], async (offered, agreed) => {
  const got = await ann.evaluate(async ({ url, offered }) => {
    const socket = await connect(url, offered);
    return [socket.protocol, socket.extensions, JSON.parse(await nextMessage(socket)).protocol];
  }, { url: interop.url('/request'), offered });
  assert.deepEqual(got, [agreed, '', agreed]);
});

test('with no subprotocol in common, Chromium fails and the others open', limit, async () => {
  const how = await ann.evaluate((url) => connect(url, ['v8', 'v9'])
    .then((socket) => `open: "${socket.protocol}"`, (error) => error.message), interop.url());
  assert.equal(how, ENGINE === 'chromium' ? 'closed with 1006' : 'open: ""');
});

test("the page's origin, query and cookies arrive", limit, async () => {
  const request = await ann.evaluate(async (url) => {
    document.cookie = 'size=3';
    document.cookie = 'colour=red';
    return JSON.parse(await nextMessage(await connect(url)));
  }, interop.url('/request?name=blue+sky%21'));
  assert.equal(request.origin, originOf(interop));
  assert.equal(request.name, 'blue sky!');
  assert.equal(request.colour, 'red');
});

// ----------------------------------------------------------------------------
// The examples
// ----------------------------------------------------------------------------

// Opens an example's page, and keeps the errors of its script.
async function openExample(window, origin) {
  await window.open(origin);
  await window.evaluate(() => {
    globalThis.troubles = [];
    addEventListener('error', ({ message }) => troubles.push(message));
    addEventListener('unhandledrejection', ({ reason }) => troubles.push(String(reason)));
  });
}

async function assertNoTroubles(...windows) {
  for (const window of windows) assert.deepEqual(await window.evaluate(() => troubles), []);
}

const isHere = () => document.getElementById('status').dataset.state === 'here';
const isAway = () => document.getElementById('status').dataset.state !== 'here';

// --- the chat ---

async function join(window, chat, nick) {
  await openExample(window, originOf(chat));
  await window.type('#nick', nick);
  await window.click('#join');
  await window.until(isHere);
}

const say = (window, text) => window.type('#text', `${text}\n`);

const hear = (window, text) => window.until((text) =>
  [...document.querySelectorAll('#messages .text')].some((it) => it.textContent === text), text);

const heard = (window) => window.evaluate(() =>
  Array.from(document.querySelectorAll('#messages .text'), (it) => it.textContent));

test('the chat: two windows talk, are lost when the server stops, and come back', limit, async (t) => {
  const first = await start(CHAT, '--port', '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  await join(ann, first, 'Ann');
  await join(bob, first, 'Bob');
  await say(ann, 'Hello <b>Bob</b>!');
  await hear(bob, 'Hello <b>Bob</b>!');
  await say(bob, 'Hello Ann, schön');
  await hear(ann, 'Hello Ann, schön');
  await first.stop();
  await Promise.all([ann.until(isAway), bob.until(isAway)]);
  await say(ann, 'while it is away');
  const second = await start(CHAT, '--port', first.port);
  t.after(() => second.stop());
  await Promise.all([ann.until(isHere), bob.until(isHere)]);
  await hear(bob, 'while it is away');
  await say(bob, 'after');
  await Promise.all([hear(ann, 'after'), hear(bob, 'after')]);
  const all = ['Hello <b>Bob</b>!', 'Hello Ann, schön', 'while it is away', 'after'];
  assert.deepEqual([await heard(ann), await heard(bob)], [all, all]);
  await assertNoTroubles(ann, bob);
});

// --- the game ---

// Moves the pointer to a place of the board, from 0 to 1.
async function point(window, x, y) {
  const { left, top, width, height } = await window.evaluate(() => {
    const { left, top, width, height } = document.getElementById('board').getBoundingClientRect();
    return { left, top, width, height };
  });
  await window.point(left + x * width, top + y * height);
}

// Waits until something is drawn on the board there.
const drawn = (window, x, y) => window.until(([x, y]) => {
  const board = document.getElementById('board');
  const [px, py] = [x, y].map((share) => Math.floor(share * (board.width - 1)));
  return board.getContext('2d').getImageData(px, py, 1, 1).data[3] > 0;
}, [x, y]);

const count = (window, text) => window.until((text) =>
  document.getElementById('count').textContent === text, text);

test("the game: two windows see each other's pointers, also after a restart", limit, async (t) => {
  const first = await start(GAME, '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  for (const window of [ann, bob]) {
    await openExample(window, originOf(first));
    await window.until(isHere);
  }
  await count(ann, '2 players');
  await point(ann, 0.2, 0.8);
  await drawn(bob, 0.2, 0.8);
  await point(bob, 0.9, 0.1);
  await drawn(ann, 0.9, 0.1);
  await first.stop();
  await Promise.all([ann.until(isAway), bob.until(isAway)]);
  const second = await start(GAME, first.port);
  t.after(() => second.stop());
  await Promise.all([ann.until(isHere), bob.until(isHere)]);
  await count(bob, '2 players');
  await point(ann, 0.4, 0.4);
  await drawn(bob, 0.4, 0.4);
  await assertNoTroubles(ann, bob);
});

// --- the wire ---

const shows = (window, text) => window.until((text) =>
  document.getElementById('log').textContent.replaceAll('\u202f', ' ').includes(text), text);

test('the wire: all that a page sends is drawn, and each mistake earns its code', limit, async (t) => {
  const wire = await start(WIRE, '--port', '0');
  t.after(() => wire.stop());
  await openExample(ann, originOf(wire));
  await ann.until(isHere);
  assert.match(await ann.evaluate(() => document.querySelector('.steps b').textContent), /^✓/);
  await ann.click('#composer .main');
  await shows(ann, 'page → server text 5 bytes Hello');
  await shows(ann, 'server → page text 5 bytes Hello');
  await ann.until(() => document.querySelectorAll('#log .grid .cell').length > 12);
  await ann.click('#ping');
  await shows(ann, 'server → small client pong 5 bytes Hello');
  await shows(ann, 'The connection of the small client has ended: 1000');
  await ann.click('#lengths button:last-child');
  await ann.click('#composer .main');
  await shows(ann, 'server → page text 65 536 bytes');
  for (let i = 0; i < 19; ++i) {
    await ann.evaluate((i) => document.querySelectorAll('.shelf button')[i].click(), i);
    await ann.until((i) => document.querySelectorAll('.shelf button')[i].hasAttribute('aria-current'), i);
    assert.equal(await ann.evaluate(() => document.querySelector('.verdict').className), 'verdict');
  }
  await ann.click('#close');
  await shows(ann, 'The connection of the page has ended: 1000');
  await ann.click('#reconnect');
  await ann.until(isHere);
  await assertNoTroubles(ann);
});

// --- access control ---

const password = 'schön & geheim: 1';

// A key of its own, so that no cookie of another test is valid.
async function startAuth(t, ...options) {
  Object.assign(process.env, { AUTH_KEY: randomBytes(32).toString('hex'), AUTH_PASSWORD: password });
  const auth = await start(AUTH, '--port', await freePort(), ...options);
  t.after(() => auth.stop());
  return auth;
}

const says = (window, text) => window.until((text) =>
  document.getElementById('status').textContent.includes(text), text);

async function logIn(window, name) {
  await says(window, 'Log in first.');
  await window.type('#name', name);
  await window.type('#password', password);
  await window.click('#login button');
}

async function talk(origin) {
  for (const [window, name] of [[ann, 'ann'], [bob, 'bob']]) {
    await openExample(window, origin);
    await logIn(window, name);
    await says(window, `You are ${name}`);
  }
  await ann.type('#text', 'Hello, <b>Bob</b>\n');
  await bob.until(() => document.getElementById('log').textContent.includes('Hello, <b>Bob</b>'));
  assert.equal(await bob.evaluate(() => document.cookie.includes('token')), false);
  await assertNoTroubles(ann, bob);
  await bob.open(origin);
  await says(bob, 'You are bob');
}

// WebKit drops cookies that are Secure and come over http, even from localhost. So the page
// does not get beyond its login form.
test('access control over http: users log in and talk, but not in WebKit', limit, async (t) => {
  const auth = await startAuth(t);
  if (ENGINE !== 'webkit') return talk(originOf(auth));
  await openExample(ann, originOf(auth));
  await ann.evaluate(() => {
    const { fetch } = globalThis;
    globalThis.answers = [];
    globalThis.fetch = async (url, ...more) => {
      const answer = await fetch(url, ...more);
      answers.push(`${url} ${answer.status}`);
      return answer;
    };
  });
  await logIn(ann, 'ann');
  await ann.until(() => answers.includes('/login 200') && answers.at(-1) === '/me 401');
  await says(ann, 'has dropped the cookie');
  await ann.until(() => getComputedStyle(document.getElementById('login')).display !== 'none');
  await assertNoTroubles(ann);
});

// What a proxy does in production: TLS outside, plain TCP to the server.
async function startTls(t, port, server) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'tls'));
  const [key, cert] = ['key', 'cert'].map((name) => path.join(folder, name));
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
    '-nodes', '-days', '2', '-subj', '/CN=localhost', '-keyout', key, '-out', cert], { stdio: 'ignore' });
  const files = { key: readFileSync(key), cert: readFileSync(cert) };
  rmSync(folder, { recursive: true });
  const front = tls.createServer(files, (client) => {
    const behind = net.connect(server.port, 'localhost');
    for (const socket of [client, behind]) socket.on('error', () => {});
    client.pipe(behind).pipe(client);
  }).listen(port, 'localhost');
  t.after(() => front.close());
  await once(front, 'listening');
}

test('access control over TLS: users log in and talk in every browser', limit, async (t) => {
  const port = await freePort();
  const origin = `https://localhost:${port}`;
  await startTls(t, port, await startAuth(t, '--origin', origin));
  await talk(origin);
});
