// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The game, played by pages in Chromium and by programs (Node's `ws`) that speak the messages
// described in the banner of examples/game.cpp.

import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import path from 'node:path';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';
import { colourOf, hasIcon, launchBrowser, overflow } from './pages.mjs';
import { GAME, forEach, lightness, start, stopAll } from './support.mjs';

const limit = { timeout: 40_000 };
const JOIN = 1, MOVE = 2, PING = 3, WELCOME = 4, FRAME = 5, PONG = 6;
let browser, game;

before(async () => {
  browser = await launchBrowser();
  game = await start(GAME, '0');
}, limit);

after(async () => {
  await browser?.close();
  await stopAll([game]);
}, limit);

// A game for one test, where no other players are.
async function startGame(t, port = 0) {
  const own = await start(GAME, String(port));
  t.after(() => own.stop());
  return own;
}

// ----------------------------------------------------------------------------
// Players that are programs
// ----------------------------------------------------------------------------

const f32 = (number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatBE(number);
  return [...bytes];
};
const join = (version = 1) => Buffer.from([JOIN, version]);
const move = (x, y, draws = 0) => Buffer.from([MOVE, ...f32(x), ...f32(y), draws]);
const ping = (...clock) => Buffer.from([PING, ...clock]);

// A connected client. It keeps its messages, so none is missed.
async function connect(t, server = game) {
  const client = new WebSocket(server.url('/game'));
  t.after(() => client.terminate());
  client.heard = [];
  client.closed = once(client, 'close').then(([code]) => code);
  client.on('message', (data) => { client.heard.push(data); client.emit('heard'); });
  await once(client, 'open');
  return client;
}

// Takes messages until one has this type and fits() is true for it, and returns that one.
async function next(client, type, fits = () => true) {
  for (;;) {
    while (!client.heard.length) await once(client, 'heard');
    const data = client.heard.shift();
    if (data[0] !== type) continue;
    const message = type === FRAME ? frameOf(data) : data;
    if (fits(message)) return message;
  }
}

function frameOf(data) {
  const players = new Map();
  for (let at = 7; at < data.length; at += 13)
    players.set(data.readUInt32BE(at), {
      x: data.readFloatBE(at + 4), y: data.readFloatBE(at + 8), draws: data[at + 12],
    });
  assert.equal(players.size, data.readUInt16BE(5));
  return { tick: data.readUInt32BE(1), players };
}

async function joined(t, server = game) {
  const client = await connect(t, server);
  client.send(join());
  const welcome = await next(client, WELCOME);
  assert.equal(welcome.readUInt16BE(5), 30);
  return Object.assign(client, { player: welcome.readUInt32BE(1) });
}

// Keeps moving, faster than the ticks, so that each tick sends a frame. Returns a function that
// stops it.
function keepMoving(t, client) {
  let steps = 0;
  const timer = setInterval(() => client.send(move(++steps % 100 / 100, 0)), 20);
  const stop = () => clearInterval(timer);
  t.after(stop);
  return stop;
}

test('a newcomer gets all players in one frame; a player that leaves is in no later frame', limit,
  async (t) => {
    const own = await startGame(t);
    const ann = await joined(t, own), bob = await joined(t, own);
    ann.send(move(0, 1));
    bob.send(move(0.25, 0.75, 1));
    await next(bob, FRAME, ({ players }) => players.get(ann.player)?.x === 0);
    const cleo = await joined(t, own);
    const { players } = await next(cleo, FRAME);
    assert.deepEqual(Object.fromEntries(players), {
      [ann.player]: { x: 0, y: 1, draws: 0 },
      [bob.player]: { x: 0.25, y: 0.75, draws: 1 },
      [cleo.player]: { x: 0.5, y: 0.5, draws: 0 },
    });
    bob.close();
    await next(cleo, FRAME, (frame) => frame.players.size === 2 && !frame.players.has(bob.player));
  });

test('a client that has not joined is in no frame, and gets none', limit, async (t) => {
  const own = await startGame(t);
  const watcher = await connect(t, own), ann = await joined(t, own);
  assert.deepEqual([...(await next(ann, FRAME)).players.keys()], [ann.player]);
  watcher.send(ping(1, 2, 3, 4, 5, 6, 7, 8));
  await next(watcher, PONG);
  assert.equal(watcher.heard.length, 0);
});

test('while nothing changes, no frames come, though the ticks go on', limit, async (t) => {
  const own = await startGame(t);
  const ann = await joined(t, own);
  const first = await next(ann, FRAME);
  for (let i = 0; i < 10; ++i) {
    await new Promise((done) => setTimeout(done, 50));
    ann.send(move(0.5, 0.5));  // where it is already
    ann.send(ping(0, 0, 0, 0, 0, 0, 0, i));
    while (!ann.heard.length) await once(ann, 'heard');
    assert.deepEqual([...ann.heard.shift()], [PONG, 0, 0, 0, 0, 0, 0, 0, i]);
  }
  ann.send(move(0.5, 0.6));
  const second = await next(ann, FRAME);
  assert.ok(second.tick - first.tick > 10, `from tick ${first.tick} to ${second.tick}`);
});

test('a client that stops reading misses frames, then gets the current one', limit, async (t) => {
  const own = await startGame(t);
  const fast = await joined(t, own), slow = await joined(t, own);
  const many = await Promise.all(Array.from({ length: 170 }, () => joined(t, own)));
  many.forEach((client) => client.pause());  // they only make the frames large
  const stop = keepMoving(t, fast);
  const { tick: before } = await next(slow, FRAME, ({ players }) => players.size === 172);
  slow.pause();
  await next(fast, FRAME, ({ tick }) => tick >= before + 200);
  stop();
  fast.send(move(1, 1));
  const isLast = ({ players }) => players.get(fast.player).y === 1;
  const { tick: current } = await next(fast, FRAME, isLast);
  // Nothing moves any more. Frames that the kernel holds come first, then a gap.
  slow.resume();
  const ticks = [before];
  await next(slow, FRAME, (frame) => { ticks.push(frame.tick); return isLast(frame); });
  const skipped = ticks.at(-1) - ticks.at(-2);
  t.diagnostic(`${ticks.at(-2) - before} ticks were in the kernel, ${skipped} were skipped`);
  assert.equal(ticks.at(-1), current);
  assert.ok(skipped > 50);
  assert.ok(ticks.every((tick, i) => i === 0 || tick > ticks[i - 1]), 'frames out of order');
  many.forEach((client) => client.terminate());  // or the server's shutdown would wait for them
});

forEach('the right close code goes to a client that', [
  ['sends a text', ['hello'], 1003],
  ['sends an empty message', [Buffer.alloc(0)], 1007],
  ['sends an unknown type', [Buffer.from([99])], 1007],
  ["sends one of the server's types", [Buffer.from([WELCOME, 0, 0, 0, 1, 0, 30])], 1007],
  ['sends a join that is a byte short', [join().subarray(0, 1)], 1007],
  ['joins with another version', [join(2)], 1007],
  ['joins twice', [join(), join()], 1008],
  ['moves before the join', [move(0, 0)], 1008],
  ['sends a move that is a byte short', [join(), move(0, 0).subarray(0, 9)], 1007],
  ['sends a move that is a byte long', [join(), Buffer.concat([move(0, 0), ping()])], 1007],
  ['moves to NaN', [join(), move(NaN, 0)], 1007],
  ['moves to infinity', [join(), move(0, Infinity)], 1007],
  ['moves beyond the left edge', [join(), move(-0.01, 0)], 1007],
  ['moves beyond the bottom edge', [join(), move(0, 1.01)], 1007],
  ['draws with a 2', [join(), move(0, 0, 2)], 1007],
  ['pings with 7 bytes', [ping(1, 2, 3, 4, 5, 6, 7)], 1007],
  ['sends 65 bytes', [Buffer.alloc(65, JOIN)], 1009],
  ['sends a thousand moves at once', [join(), ...Array(1000).fill(move(0, 0))], 1008],
], async (messages, code, t) => {
  const client = await connect(t);
  client.on('error', () => {});  // later messages may meet a closed connection
  for (const message of messages) client.send(message);
  assert.equal(await client.closed, code);
});

// ----------------------------------------------------------------------------
// Players that are pages
// ----------------------------------------------------------------------------

async function openPage(t, server, options = {}) {
  const context = await browser.newContext(options);
  t.after(() => context.close());
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  page.troubles = [];
  page.on('pageerror', (error) => page.troubles.push(error.message));
  page.on('console', (line) => { if (line.type() === 'error') page.troubles.push(line.text()); });
  await page.goto(`http://localhost:${server.port}/`);
  await state(page, 'here');
  return page;
}

// Waits until the page's state is `name`: connecting, here or lost.
const state = (page, name) => page.waitForSelector(`#status[data-state="${name}"]`);

// Moves the mouse to a place of the board, from 0 to 1.
async function point(page, x, y) {
  const { x: left, y: top, width, height } = await page.locator('#board').boundingBox();
  await page.mouse.move(left + x * width, top + y * height);
}

// Waits until something is drawn on the board there.
const drawn = (page, x, y, timeout) => page.waitForFunction(([x, y]) => {
  const board = document.getElementById('board');
  const [px, py] = [x, y].map((share) => Math.floor(share * (board.width - 1)));
  return board.getContext('2d').getImageData(px, py, 1, 1).data[3] > 0;
}, [x, y], { timeout });

test("two pages see each other's pointers within a second", limit, async (t) => {
  const own = await startGame(t);
  const ann = await openPage(t, own), bob = await openPage(t, own);
  await ann.waitForFunction(() => document.getElementById('count').textContent === '2 players');
  for (const [from, to, x, y] of [[ann, bob, 0.2, 0.8], [bob, ann, 0.9, 0.1]]) {
    await point(from, x, y);
    await drawn(to, x, y, 1000);
  }
  await ann.context().close();
  await bob.waitForFunction(() => document.getElementById('count').textContent.includes('alone'));
  assert.deepEqual(bob.troubles, []);
});

test('a line that a player draws stays for a while', limit,
  async (t) => {
    const own = await startGame(t);
    const ann = await openPage(t, own), bob = await openPage(t, own), cleo = await joined(t, own);
    await point(ann, 0.2, 0.2);
    await ann.mouse.down();
    await next(cleo, FRAME, ({ players }) => [...players.values()].some(({ draws }) => draws));
    await point(ann, 0.2, 0.4);
    await drawn(bob, 0.2, 0.4);
    await ann.mouse.up();
    await point(ann, 0.8, 0.8);
    await drawn(bob, 0.8, 0.8);
    await drawn(bob, 0.2, 0.3);
    assert.deepEqual([...ann.troubles, ...bob.troubles], []);
  });

test('the page shows about 30 frames per second, and the round trip', limit, async (t) => {
  const own = await startGame(t);
  keepMoving(t, await joined(t, own));
  const page = await openPage(t, own);
  await page.waitForFunction(() => {
    const rate = Number(document.getElementById('rate').value);
    return rate >= 28 && rate <= 32;
  });
  const trip = Number(await page.locator('#trip').textContent());
  assert.ok(trip > 0 && trip < 1000, `${trip} ms`);
  for (const line of ['tripLine', 'rateLine']) {
    const points = await page.locator(`#${line}`).getAttribute('points');
    assert.match(points, /^\d+,[\d.]+( \d+,[\d.]+)*$/);
  }
});

test('a page sends at most one move per tick', limit, async (t) => {
  const own = await startGame(t);
  const page = await openPage(t, own);
  let moves = 0;
  page.on('websocket', (socket) => socket.on('framesent', ({ payload }) => {
    moves += payload[0] === MOVE;
  }));
  await page.reload();
  await state(page, 'here');
  const begin = Date.now();
  for (let i = 0; i < 100; ++i) await point(page, i / 100, 0.5);
  await drawn(page, 0.99, 0.5);
  const most = (Date.now() - begin) * 30 / 1000 + 2;
  assert.ok(moves > 1 && moves <= most, `${moves} moves, but ${most} are allowed`);
});

test('the arrow keys move and the space bar draws', limit, async (t) => {
  const own = await startGame(t);
  const ann = await joined(t, own), page = await openPage(t, own);
  await page.focus('#board');
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowUp');
  await page.keyboard.down(' ');
  await next(ann, FRAME, ({ players }) => [...players.values()].some(({ x, y, draws }) =>
    Math.abs(x - 0.52) < 1e-6 && Math.abs(y - 0.48) < 1e-6 && draws === 1));
});

test('when the server restarts, the page comes back to where it was', limit, async (t) => {
  const first = await start(GAME, '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  const page = await openPage(t, first);
  await point(page, 0.25, 0.75);
  await drawn(page, 0.25, 0.75);
  await first.stop();
  await state(page, 'lost');
  const second = await startGame(t, first.port);
  await state(page, 'here');
  const ann = await joined(t, second);
  await next(ann, FRAME, ({ players }) => [...players.values()].some(({ x, y }) =>
    Math.abs(x - 0.25) < 0.01 && Math.abs(y - 0.75) < 0.01));
});

forEach('the page says what became of a server that', [
  ['has shut down', (server) => server.stop(), 'Server is away', 'The server has shut down.'],
  ['was killed', (server) => server.kill(), 'Connection lost', 'when the connection is back'],
], async (end, status, reason, t) => {
  const own = await start(GAME, '0');
  t.after(() => own.kill());  // if the test fails before it ends
  const page = await openPage(t, own);
  const usual = await colourOf(page, '#status');
  await end(own);
  await page.locator('#lost', { hasText: reason }).waitFor();
  await page.click('#tryNow');  // in vain, which does not change what the page says
  await page.locator('#countdown', { hasText: 'Next try in 2 s.' }).waitFor();
  assert.equal(await page.textContent('#status'), status);
  assert.equal(await colourOf(page, '#status') === usual, status === 'Server is away');
});

// Firefox delays an attempt by up to a minute when earlier ones have failed.
test('the page waits a minute for a connection, but seconds for a pong', limit, async (t) => {
  const page = await openPage(t, game);
  const network = new EventEmitter();
  let attempts = 0;
  await page.clock.install();
  await page.routeWebSocket(/game$/, async (socket) => {
    if (++attempts === 3) return socket.connectToServer();
    if (attempts === 2) return network.emit('hangs') && new Promise(() => {});
    socket.onMessage(() => network.emit('join'));  // and no welcome
    await once(network, 'is back');
  });
  await page.reload();
  await state(page, 'connecting');
  await page.clock.runFor(60_000);
  assert.equal(attempts, 1);
  const join = once(network, 'join');
  network.emit('is back');
  await join;
  const hangs = once(network, 'hangs');
  await page.clock.runFor(10_000);
  await hangs;
  await page.click('#tryNow');
  await state(page, 'here');
});

test('a page that is disconnected after each welcome tries ever more rarely', limit, async (t) => {
  const page = await openPage(t, game);
  await page.routeWebSocket(/game$/, (socket) => {
    const server = socket.connectToServer();
    server.onMessage((data) => {
      socket.send(data);
      if (data[0] === PONG) socket.close({ code: 1011 });
    });
  });
  await page.reload();
  await page.evaluate(() => setInterval(() => {  // rather than to wait for each try
    if (/ [1-7] s/.test(countdown.textContent)) tryNow.click();
  }, 50));
  await page.getByText(/Next try in ([89]|\d\d) s/).waitFor();
});

// --- pictures ---------------------------------------------------------------

test('the game fits into a wide and a narrow window, light and dark', limit, async (t) => {
  const own = await startGame(t);
  const sizes = { wide: { width: 1200, height: 800 }, narrow: { width: 360, height: 740 } };
  const pages = {};
  for (const name in sizes) pages[name] = await openPage(t, own, { viewport: sizes[name] });
  const { wide, narrow } = pages;
  assert.ok(await hasIcon(wide));
  await point(wide, 0.3, 0.2);
  await wide.mouse.down();
  await point(narrow, 0.9, 0.6);
  await narrow.mouse.down();
  for (let angle = 0; angle < 6; angle += 0.1) {
    await point(wide, 0.45 - 0.15 * Math.cos(angle), 0.4 - 0.25 * Math.sin(angle));
    await point(narrow, 0.6 + 0.3 * Math.cos(angle), 0.6 + 0.15 * Math.sin(2 * angle));
  }
  for (const name in sizes)
    for (const colorScheme of ['light', 'dark']) {
      const page = pages[name];
      await page.emulateMedia({ colorScheme });
      const isLight = await page.evaluate(lightness) > 0.5;
      assert.equal(isLight, colorScheme === 'light', `${name} ${colorScheme}: wrong colours`);
      assert.deepEqual(await overflow(page), [0, 0]);
      const { width: across, height: down } = await page.locator('#board').boundingBox();
      assert.equal(across, down);
      const file = path.join(process.env.SCREENSHOTS ?? '.', `game-${name}-${colorScheme}.png`);
      await page.screenshot({ path: file });
      assert.deepEqual(page.troubles, []);
    }
});
