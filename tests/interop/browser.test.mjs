// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The server and a real browser, Chromium: first what a page can do with a WebSocket, then the
// chat, used as its users would.

import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import path from 'node:path';
import { after, before, test } from 'node:test';
import {
  allShown, colourOf, hasIcon, joinAt, launchBrowser, overflow, say, shown, state,
} from './pages.mjs';
import {
  CHAT, INTEROP_SERVER, MIB, forEach, lightness, start, stopAll,
} from './support.mjs';

const limit = { timeout: 40_000 };
let browser, interop, elsewhere, guarded;
let page;  // an empty page that interop has served

before(async () => {
  browser = await launchBrowser();
  interop = await start(INTEROP_SERVER);
  elsewhere = await start(INTEROP_SERVER);
  guarded = await start(INTEROP_SERVER, '--origin', originOf(elsewhere));
  page = await openPage(interop);
}, limit);

after(async () => {
  await browser?.close();
  await stopAll([interop, elsewhere, guarded]);
}, limit);

const originOf = (server) => `http://localhost:${server.port}`;

// ----------------------------------------------------------------------------
// A WebSocket in a page
// ----------------------------------------------------------------------------

// An empty page from a server, with the tools below in its window.
async function openPage(server) {
  const context = await browser.newContext();
  await context.addInitScript(tools);
  const page = await context.newPage();
  await page.goto(`${originOf(server)}/page`);
  return page;
}

// Runs in the page, as do the functions given to page.evaluate() below.
function tools() {
  // An open socket. It keeps its messages, and how it closed.
  window.connect = (url, protocols = []) => new Promise((opened, failed) => {
    const socket = new WebSocket(url, protocols);
    socket.binaryType = 'arraybuffer';
    socket.messages = [];
    socket.closed = new Promise((done) => {
      socket.onclose = ({ code, reason, wasClean }) => done({ code, reason, wasClean });
    });
    socket.addEventListener('message', ({ data }) => socket.messages.push(data));
    socket.onopen = () => opened(socket);
    socket.closed.then(({ code }) => failed(new Error(`closed with ${code}`)));
  });

  window.nextMessage = (socket) => new Promise((received, failed) => {
    const take = () => received(socket.messages.shift());
    if (socket.messages.length) return take();
    socket.addEventListener('message', take, { once: true });
    socket.closed.then(({ code }) => failed(new Error(`no message, but a close with ${code}`)));
  });

  // Whether the server accepts a connection; a page cannot learn why it does not.
  window.isLetIn = async (url) => {
    const socket = await connect(url).catch(() => null);
    socket?.close();
    return socket !== null;
  };

  window.noise = (size) => {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
    return bytes;
  };
  window.areSame = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
}

forEach('a text comes back:', [
  ['an empty one', '', 1, ''],
  ['characters of one to four bytes', 'aé€😀', 1, 'aé€😀'],
  ['half a character, which the browser replaces', 'x\ud800', 1, 'x\ufffd'],
  ['1 MiB', '€uros.', MIB / 8, '€uros.'],
  ['16 MiB', '😀', 4 * MIB, '😀'],
], async (text, times, expected) => {
  const isSame = await page.evaluate(async ({ url, text, times, expected }) => {
    const socket = await connect(url);
    socket.send(text.repeat(times));
    return await nextMessage(socket) === expected.repeat(times);
  }, { url: interop.url(), text, times, expected });
  assert.ok(isSame);
});

forEach('binary data comes back,', [
  ['an ArrayBuffer of no bytes as an ArrayBuffer', 'ArrayBuffer', 0, 'arraybuffer'],
  ['an ArrayBuffer as an ArrayBuffer', 'ArrayBuffer', 1000, 'arraybuffer'],
  ['an ArrayBuffer as a Blob', 'ArrayBuffer', 1000, 'blob'],
  ['a Blob as an ArrayBuffer', 'Blob', 1000, 'arraybuffer'],
  ['a Blob as a Blob', 'Blob', 70_000, 'blob'],
  ['an ArrayBuffer of 1 MiB', 'ArrayBuffer', MIB, 'arraybuffer'],
  ['a Blob of 1 MiB', 'Blob', MIB, 'blob'],
  ['an ArrayBuffer of 16 MiB', 'ArrayBuffer', 16 * MIB, 'arraybuffer'],
], async (sentAs, size, binaryType) => {
  const got = await page.evaluate(async ({ url, sentAs, size, binaryType }) => {
    const sent = noise(size);
    const socket = await connect(url);
    socket.binaryType = binaryType;
    socket.send(sentAs === 'Blob' ? new Blob([sent]) : sent.buffer);
    const data = await nextMessage(socket);
    const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
    const type = data.constructor.name.toLowerCase();
    return { type, size: bytes.length, isSame: areSame(sent, bytes) };
  }, { url: interop.url(), sentAs, size, binaryType });
  assert.deepEqual(got, { type: binaryType, size, isSame: true });
});

test('ten thousand messages come back in order; none is left in the browser', limit, async () => {
  const got = await page.evaluate(async (url) => {
    const socket = await connect(url);
    for (let i = 0; i < 10_000; ++i) socket.send(String(i));
    for (let i = 0; i < 10_000; ++i)
      if (await nextMessage(socket) !== String(i)) return `no ${i}`;
    return socket.bufferedAmount;
  }, interop.url());
  assert.equal(got, 0);
});

test('a page can have fifteen connections at once', limit, async () => {
  const got = await page.evaluate(async (url) => {
    const sockets = await Promise.all(Array.from({ length: 15 }, () => connect(url)));
    sockets.forEach((socket, i) => socket.send(String(i)));
    return Promise.all(sockets.map(nextMessage));
  }, interop.url());
  assert.deepEqual(got, Array.from({ length: 15 }, (_, i) => String(i)));
});

// --- closing ----------------------------------------------------------------

forEach('the page sees how the server closes:', [
  ['1000', 1000, ''],
  ['1001 and a reason', 1001, 'gone for lunch'],
  ['1011, internal error', 1011, ''],
  ['4001 and a reason that is not ASCII', 4001, 'schöne Grüße 👋'],
  ['4999 and the longest reason', 4999, 'r'.repeat(123)],
], async (code, reason) => {
  const how = await page.evaluate(async (url) => (await connect(url)).closed,
    interop.url(`/close?code=${code}&reason=${encodeURIComponent(reason)}`));
  assert.deepEqual(how, { code, reason, wasClean: true });
});

forEach('the server sees how a page closes:', [
  ['with a code and a reason', () => leaver.close(4002, 'Grüße 👋'), 4002, 'Grüße 👋'],
  ['with 1000', () => leaver.close(1000), 1000, ''],
  ['without a code, as 1005', () => leaver.close(), 1005, ''],
  ['by going to another page, as 1001', () => { location.href = 'about:blank'; }, 1001, ''],
], async (leave, code, reason) => {
  const witness = await page.evaluateHandle(async (url) => {
    const socket = await connect(url);
    return await nextMessage(socket) === 'ready' && socket;
  }, interop.url('/witness'));
  const other = await openPage(interop);
  const url = interop.url('/?leaver');
  await other.evaluate(async (url) => { window.leaver = await connect(url); }, url);
  await other.evaluate(leave);
  const left = JSON.parse(await witness.evaluate((socket) => nextMessage(socket)));
  assert.deepEqual(left, { query: 'leaver', code, reason });
  await witness.evaluate((socket) => socket.close());
  await other.context().close();
});

forEach('when the server', [
  ['stops, the page sees a clean 1001', (server) => server.stop(), { code: 1001, wasClean: true }],
  ['is killed, the page sees 1006', (server) => server.kill(), { code: 1006, wasClean: false }],
], async (end, expected, t) => {
  const server = await start(INTEROP_SERVER);
  t.after(() => server.kill());  // if the test fails before it ends
  const page = await openPage(server);
  const socket = await page.evaluateHandle((url) => connect(url), server.url());
  await end(server);
  const { code, wasClean } = await socket.evaluate((it) => it.closed);
  assert.deepEqual({ code, wasClean }, expected);
  await page.context().close();
});

// --- handshakes -------------------------------------------------------------

test('a page from an origin that is not listed is refused', limit, async () => {
  assert.equal(await page.evaluate((url) => isLetIn(url), guarded.url()), false);
});

test("the guarded server's own page is refused too, because it is not listed", limit, async () => {
  const page = await openPage(guarded);
  assert.equal(await page.evaluate((url) => isLetIn(url), guarded.url()), false);
  await page.context().close();
});

test('a page from the listed origin is accepted', limit, async () => {
  const page = await openPage(elsewhere);
  assert.equal(await page.evaluate((url) => isLetIn(url), guarded.url()), true);
  await page.context().close();
});

test('a sandboxed frame, whose origin is null, is refused', limit, async () => {
  const page = await openPage(elsewhere);
  await page.evaluate(() => {
    const frame = document.createElement('iframe');
    frame.sandbox = 'allow-scripts';
    frame.srcdoc = '<!doctype html>';
    document.body.append(frame);
  });
  const frame = await page.waitForFunction(() => frames.length === 1).then(() => page.frames()[1]);
  assert.equal(await frame.evaluate(() => window.origin), 'null');
  assert.equal(await frame.evaluate((url) => isLetIn(url), guarded.url()), false);
  await page.context().close();
});

forEach('the subprotocol is', [
  ["the server's favourite", ['v1.interop', 'v2.interop'], 'v2.interop'],
  ['the only one that the server knows', ['v9', 'v1.interop'], 'v1.interop'],
  ['none, when none is offered', [], ''],
], async (offered, agreed) => {
  const got = await page.evaluate(async ({ url, offered }) => {
    const socket = await connect(url, offered);
    return [socket.protocol, socket.extensions, JSON.parse(await nextMessage(socket)).protocol];
  }, { url: interop.url('/request'), offered });
  assert.deepEqual(got, [agreed, '', agreed]);
});

test("the page's origin, query and cookies arrive", limit, async () => {
  const request = await page.evaluate(async (url) => {
    document.cookie = 'size=3';
    document.cookie = 'colour=red';
    return JSON.parse(await nextMessage(await connect(url)));
  }, interop.url('/request?name=blue+sky%21'));
  assert.equal(request.origin, originOf(interop));
  assert.equal(request.name, 'blue sky!');
  assert.equal(request.colour, 'red');
});

// ----------------------------------------------------------------------------
// The chat
// ----------------------------------------------------------------------------


// A chat for one test, stopped when the test is done.
async function startChat(t, port = 0) {
  const chat = await start(CHAT, '--port', String(port));
  t.after(() => chat.stop());
  return chat;
}

const join = (t, chat, nick) => joinAt(t, browser, `${originOf(chat)}/`, nick);

test('two pages chat, and a third one sees what was said before', limit, async (t) => {
  const chat = await startChat(t);
  const ann = await join(t, chat, 'Ann');
  const bob = await join(t, chat, 'Bob');
  await say(ann, 'Hello Bob!');
  await shown(bob, 'Hello Bob!');
  await say(bob, 'Hello Ann, schön 😀');
  await shown(ann, 'Hello Ann, schön 😀');
  const cleo = await join(t, chat, 'Cleo');
  await shown(cleo, 'Hello Ann');
  const said = ['Hello Bob!', 'Hello Ann, schön 😀'];
  for (const page of [ann, bob, cleo]) {
    await page.locator('#people li').nth(2).waitFor();
    assert.deepEqual(await allShown(page), said);
    assert.deepEqual(page.troubles, []);
  }
  await cleo.context().close();
  await ann.waitForFunction(() => document.querySelectorAll('#people li').length === 2);
});

test('two users with the same name are told apart', limit, async (t) => {
  const chat = await startChat(t);
  const first = await join(t, chat, 'Ann');
  const second = await join(t, chat, 'Ann');
  assert.notEqual(await second.textContent('#myNick'), await first.textContent('#myNick'));
});

test('text with HTML in it is shown as text', limit, async (t) => {
  const chat = await startChat(t);
  const ann = await join(t, chat, '<i>Ann</i>');
  const bob = await join(t, chat, 'Bob');
  const html = '<b>bold</b> &amp; <img src="x" onerror="document.title = 1"> <script>1</script>';
  await say(ann, html);
  for (const page of [ann, bob]) {
    assert.equal(await shown(page, 'onerror'), html);
    assert.equal(await page.locator('#messages :is(b, img, script), #people i').count(), 0);
    assert.equal(await page.title(), 'Chat');
    assert.deepEqual(page.troubles, []);
  }
  assert.equal(await bob.locator('#messages .nick').first().textContent(), '<i>Ann</i>');
});

test('each line of a text is aligned as its script runs', limit, async (t) => {
  const chat = await startChat(t);
  const ann = await join(t, chat, 'Ann'), bob = await join(t, chat, 'Bob');
  const lines = ['שלום', 'hello', 'the longest line of all, by far', '12, مرحبا', 'bye', 'ש'];
  await ann.fill('#text', lines.join('\n'));
  const { direction, unicodeBidi } = await ann.evaluate(() => getComputedStyle(text));
  assert.deepEqual([direction, unicodeBidi], ['rtl', 'plaintext']);
  await ann.press('#text', 'Enter');
  for (const page of [ann, bob]) {
    await shown(page, 'by far');
    const sides = await page.evaluate(sidesOfLines);
    assert.deepEqual(sides, ['right', 'left', 'both', 'right', 'left', 'right']);
  }
});

// Runs in the page: which sides of its bubble each line of the first text touches.
function sidesOfLines() {
  const bubble = document.querySelector('#messages .bubble');
  const { paddingLeft, borderLeftWidth } = getComputedStyle(bubble);
  const { left, right } = bubble.getBoundingClientRect();
  const edge = parseFloat(paddingLeft) + parseFloat(borderLeftWidth) + 1;
  const range = new Range();
  range.selectNodeContents(bubble.querySelector('.text'));
  const lines = {};  // by their place
  for (const box of range.getClientRects()) {
    if (box.width === 0) continue;  // the end of a line
    const line = lines[box.bottom.toFixed()] ??= { left: Infinity, right: 0 };
    line.left = Math.min(line.left, box.left);
    line.right = Math.max(line.right, box.right);
  }
  return Object.values(lines).map((line) => {
    const touches = { left: line.left < left + edge, right: line.right > right - edge };
    return touches.left && touches.right ? 'both' : Object.keys(touches).find((side) => touches[side]);
  });
}

test('however many messages there are, only the log scrolls', limit, async (t) => {
  const chat = await startChat(t);
  const ann = await join(t, chat, 'Ann');
  await page.evaluate(async (url) => {
    for (const nick of ['Bob', 'Cleo']) {  // each says as much as one user may at once
      const socket = await connect(url);
      socket.send(JSON.stringify({ type: 'hello', nick }));
      for (let i = 0; i < 15; ++i) socket.send(JSON.stringify({ type: 'say', text: `${nick} ${i}` }));
    }
  }, chat.url('/chat'));
  await shown(ann, 'Cleo 14');
  for (const size of [{ width: 1200, height: 800 }, { width: 360, height: 640 }]) {
    await ann.setViewportSize(size);
    assert.deepEqual(await overflow(ann), [0, 0]);
    assert.ok(await ann.evaluate(() => log.scrollHeight > log.clientHeight));
  }
});

test('when the server restarts, the pages reconnect and lose no message', limit, async (t) => {
  const first = await start(CHAT, '--port', '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  const ann = await join(t, first, 'Ann');
  const bob = await join(t, first, 'Bob');
  await say(ann, 'before');
  await shown(bob, 'before');
  await first.stop();
  await Promise.all([state(ann, 'lost'), state(bob, 'lost')]);
  await say(ann, 'while you were away');
  await startChat(t, first.port);
  await Promise.all([state(ann, 'here'), state(bob, 'here')]);
  await shown(bob, 'while you were away');
  await say(bob, 'after');
  await shown(ann, 'after');
  await shown(bob, 'after');
  for (const page of [ann, bob])
    assert.deepEqual(await allShown(page), ['before', 'while you were away', 'after']);
});

forEach('the chat says what became of a server that', [
  ['has shut down', (server) => server.stop(), 'Server is away', 'The server has shut down.'],
  ['was killed', (server) => server.kill(), 'Connection lost', 'when the connection is back'],
], async (end, status, reason, t) => {
  const chat = await start(CHAT, '--port', '0');
  t.after(() => chat.kill());  // if the test fails before it ends
  const ann = await join(t, chat, 'Ann');
  const usual = await colourOf(ann, '#status');
  await end(chat);
  await ann.locator('#lost', { hasText: reason }).waitFor();
  await ann.click('#tryNow');  // in vain, which does not change what the page says
  await ann.locator('#countdown', { hasText: 'Next try in 2 s.' }).waitFor();
  assert.equal(await ann.textContent('#status'), status);
  assert.equal(await colourOf(ann, '#status') === usual, status === 'Server is away');
});

// Firefox delays an attempt by up to a minute when earlier ones have failed.
test('the page waits a minute for a connection, but seconds for a welcome', limit, async (t) => {
  const ann = await join(t, await startChat(t), 'Ann');
  const network = new EventEmitter();
  let attempts = 0;
  await ann.clock.install();
  await ann.routeWebSocket(/chat$/, async (socket) => {
    if (++attempts === 3) return socket.connectToServer();
    if (attempts === 2) return network.emit('hangs') && new Promise(() => {});
    socket.onMessage(() => network.emit('hello'));  // and no welcome
    await once(network, 'is back');
  });
  await ann.reload();
  await state(ann, 'connecting');
  await ann.clock.runFor(60_000);
  assert.equal(attempts, 1);
  const hello = once(network, 'hello');
  network.emit('is back');
  await hello;
  const hangs = once(network, 'hangs');
  await ann.clock.runFor(10_000);
  await hangs;
  await ann.click('#tryNow');
  await state(ann, 'here');
});

test('when no more messages can wait to be sent, the page says so', limit, async (t) => {
  const first = await start(CHAT, '--port', '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  const ann = await join(t, first, 'Ann');
  await ann.setViewportSize({ width: 360, height: 640 });
  await first.stop();
  await state(ann, 'lost');
  await ann.evaluate(() => {
    for (let i = 1; i <= 49; ++i) {
      text.value = `${i}.`;
      document.forms.say.requestSubmit();
    }
  });
  assert.equal(await ann.textContent('#full'), '');
  await say(ann, '50.');
  assert.equal(await ann.textContent('#full'), '50 messages are waiting to be sent; no more fit.');
  const { y, height } = await ann.locator('#full').boundingBox();
  assert.ok(y > 0 && y + height < 640, 'it is out of sight');
  await say(ann, '51.');
  assert.equal(await ann.inputValue('#text'), '51.');
  assert.ok(await ann.isDisabled('#send'));
  await startChat(t, first.port);
  await ann.waitForFunction(() => full.textContent === '');
  await ann.click('#send');  // which waits until the button is enabled
  assert.equal(await ann.inputValue('#text'), '');
});

test('a page of another origin cannot join a guarded chat', limit, async (t) => {
  const chat = await start(CHAT, '--port', '0', '--origin', originOf(elsewhere));
  t.after(() => chat.stop());
  const answers = [];
  for (const server of [elsewhere, interop]) {
    const page = await openPage(server);
    answers.push(await page.evaluate((url) => isLetIn(url), chat.url('/chat')));
    await page.context().close();
  }
  assert.deepEqual(answers, [true, false]);
});

// --- pictures ---------------------------------------------------------------

const conversation = [
  ['Ann', 'Good morning! Does anybody know when the new server goes live?'],
  ['Bob', 'It is live. You are talking to it.'],
  ['Ann', 'Oh. 😀 And what if it is restarted?'],
  ['Cleo', 'Then we reconnect by ourselves, and what we wrote meanwhile is sent. ' +
    'I read how on the train: first the loop, then the handshake, then the frames.'],
  ['Bob', 'int main() { ChatServer().run(); }'],
];

const looks = [
  ['wide-light', { width: 1200, height: 800 }, 'light'],
  ['wide-dark', { width: 1200, height: 800 }, 'dark'],
  ['narrow-light', { width: 390, height: 844 }, 'light'],
  ['narrow-dark', { width: 390, height: 844 }, 'dark'],
];

test('the chat fits into a wide and a narrow window, light and dark', limit, async (t) => {
  const chat = await startChat(t);
  const people = {};
  for (const nick of ['Cleo', 'Bob', 'Ann']) people[nick] = await join(t, chat, nick);
  for (const [nick, text] of conversation) {
    await say(people[nick], text);
    await shown(people.Ann, text);
  }
  for (const [name, size, colorScheme] of looks) {
    await people.Ann.setViewportSize(size);
    await people.Ann.emulateMedia({ colorScheme });
    const isLight = await people.Ann.evaluate(lightness) > 0.5;
    assert.equal(isLight, colorScheme === 'light', `${name} has the wrong colours`);
    const width = await people.Ann.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= size.width, `${name} needs ${width} pixels`);
    const file = path.join(process.env.SCREENSHOTS ?? '.', `chat-${name}.png`);
    await people.Ann.screenshot({ path: file });
  }
  assert.ok(await hasIcon(people.Ann));
  assert.deepEqual(people.Ann.troubles, []);
});
