// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// examples/cluster as it is meant to run: a Redis server, three processes, HAProxy in front of
// them with examples/cluster.cfg, and hundreds of clients that do what chat.html does.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { promisify } from 'node:util';
import WebSocket from 'ws';
import { CLUSTER, freePort, start, startAndRead, stopAll } from './support.mjs';

const CROWD = Number(process.env.CROWD ?? 240);  // clients
const EACH_SAYS = 5;
const limit = { timeout: 40_000 };

// --- Redis, the processes, HAProxy --------------------------------------------

const folder = mkdtempSync(path.join(tmpdir(), 'cluster-'));
const redisPort = await freePort();
const processes = [];
let redis, haproxy;

async function startRedis() {
  redis = await startAndRead(
    /Ready to accept connections/, 'redis-server', '--port', redisPort, '--bind', '127.0.0.1',
    '--dir', folder, '--save', '', '--appendonly', 'yes', '--appendfsync', 'always');
}

function startProcess(...options) {
  return start(CLUSTER, '--port', '0', '--redis', `127.0.0.1:${redisPort}`, ...options);
}

async function startHaproxy() {
  const port = await freePort();
  const servers = processes.map((one, i) => [`SERVER${i + 1}`, `127.0.0.1:${one.port}`]);
  Object.assign(process.env, { BIND: `127.0.0.1:${port}`, ...Object.fromEntries(servers) });
  haproxy = await startAndRead(null, 'haproxy', '-q', '-db', '-f', 'examples/cluster.cfg');
  haproxy.port = port;
  const end = haproxy.ended.then(([status]) => { throw new Error(`haproxy exited with ${status}`); });
  await Promise.race([healthIs(200, haproxy), end]);
}

const runFile = promisify(execFile);
const cli = async (...words) =>
  (await runFile('redis-cli', ['-p', redisPort, ...words])).stdout.trim();

function health(port) {
  return new Promise((answered) => {
    http.get({ port, path: '/healthz', agent: false }, (answer) => {
      answer.resume();
      answered(answer.statusCode);
    }).on('error', () => answered(0));
  });
}

// Polls until /healthz answers with that status.
async function healthIs(status, { port }) {
  while (await health(port) !== status) await new Promise((done) => setTimeout(done, 30));
}

// Starts process `i` behind HAProxy. One that replaces another takes its port, which HAProxy
// knows. The ids of its users tell its own id.
async function startMember(i) {
  const one = processes[i] = await startProcess('--port', String(processes[i]?.port ?? 0));
  await healthIs(200, one);
  const visitor = new Page('visitor', one);
  await until(() => visitor.isHere);
  one.id = visitor.process;
  visitor.leave();
}

const allWell = () => Promise.all([...processes, haproxy].map((one) => healthIs(200, one)));

before(async () => {
  await startRedis();
  for (const i of [0, 1, 2]) await startMember(i);
  await startHaproxy();
}, limit);

after(async () => {
  Page.leaveAll();
  try {
    haproxy?.kill();
    await stopAll([...processes, redis]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, limit);

// --- a page ---------------------------------------------------------------------

const something = new EventEmitter().setMaxListeners(0);  // 'happened' at some page

// Resolves when `condition` is true. It is checked whenever something happens at a page.
async function until(condition) {
  while (!condition()) {
    await once(something, 'happened');
    await new Promise(setImmediate);  // let pending events happen first
  }
}

let sessions = 0;
let keys = 0;

// Does what chat.html does, but reconnects faster; and records in `wrong` what must not happen.
class Page {
  static all = new Set();
  static leaveAll() { for (const page of Page.all) page.leave(); }

  constructor(nick, { port } = haproxy) {
    Object.assign(this, { nick, port, session: `session ${++sessions}`, wrong: [], notices: [] });
    Object.assign(this, { isHere: false, welcomes: 0, refusals: 0, ids: [], outbox: [] });
    Object.assign(this, { epoch: '', lastId: 0, messages: [], people: new Set(), departed: [] });
    Page.all.add(this);
    this.connect();
  }

  connect() {
    const socket = this.socket = new WebSocket(`ws://127.0.0.1:${this.port}/chat`);
    socket.on('open', () => this.send({ type: 'hello', nick: this.nick, session: this.session }));
    socket.on('message', (data) => this.hear(JSON.parse(data)));
    socket.on('error', () => {});  // 'close' follows
    socket.on('close', (code, reason) => {
      this.isHere = false;
      this.closed = `${code} ${reason}`;
      this.refusals += code === 1006;
      something.emit('happened');
      setTimeout(() => { if (Page.all.has(this)) this.connect(); }, 50 + 100 * Math.random());
    });
  }

  // Leaves without a close, as if its machine had lost power.
  leave() {
    Page.all.delete(this);
    this.socket.terminate();
  }

  send(message) { this.socket.send(JSON.stringify(message)); }

  // Sends a message and keeps it in the outbox until the server has confirmed it.
  say(text) {
    const said = { type: 'say', text, key: `key ${++keys}` };
    this.outbox.push(said);
    if (this.isHere) this.send(said);
    return said.key;
  }

  get process() { return this.ids.at(-1)?.split('-')[0]; }

  hear(message) {
    this[message.type]?.(message);
    something.emit('happened');
  }

  welcome({ you, nick, epoch, people, history }) {
    if (epoch !== this.epoch) Object.assign(this, { epoch, lastId: 0 });
    if (history.length && this.lastId && history[0].id > this.lastId + 1) this.wrong.push('a gap');
    this.ids.push(you);
    this.nick = nick;
    this.people = new Set(people);
    if (this.people.size !== people.length) this.wrong.push('a nick twice');
    for (const message of history) if (message.id > this.lastId) this.take(message);
    this.isHere = true;
    ++this.welcomes;
    for (const said of this.outbox) this.send(said);
  }

  // Messages follow the history without a gap. Only the answer to a repeated key, which its
  // sender alone gets, may be older.
  message(message) {
    const isConfirmation = this.outbox.some(({ key }) => key === message.key);
    if (message.id > this.lastId) return this.take(message);
    if (!isConfirmation) this.wrong.push(`again: ${message.id}`);
    this.confirm(message.key);
  }

  take(message) {
    if (this.lastId && message.id !== this.lastId + 1)
      this.wrong.push(`${message.id} after ${this.lastId}`);
    this.lastId = message.id;
    this.confirm(message.key);
    this.messages.push(message);
  }

  confirm(key) { this.outbox = this.outbox.filter((said) => said.key !== key); }

  joined({ nick }) {
    if (this.people.has(nick)) this.wrong.push(`${nick} joined twice`);
    this.people.add(nick);
  }

  left({ nick }) {
    if (!this.people.delete(nick)) this.wrong.push(`${nick} left but was not here`);
    this.departed.push(nick);
  }

  renamed({ nick, was }) {
    if (!this.people.delete(was)) this.wrong.push(`${was} became ${nick} but was not here`);
    this.people.add(nick);
    if (was === this.nick) this.nick = nick;
  }

  error({ about, text, key }) {
    this.confirm(key);
    this.notices.push(about ? `${about}: ${text}` : text);
  }

  hasHeard(text) { return this.messages.some((message) => message.text === text); }
  wasTold(pattern) { return this.notices.some((notice) => pattern.test(notice)); }
}

async function crowd(count, nick, server) {
  const pages = Array.from({ length: count }, (_, i) => new Page(`${nick} ${i}`, server));
  await until(() => pages.every((page) => page.isHere));
  await until(() => pages.every((page) => page.people.size === Page.all.size));
  return pages;
}

const allSaid = (pages) => pages.every((page) => page.outbox.length === 0);
const allAt = (pages, id) => pages.every((page) => page.lastId === id);
const lastId = async () => Number(await cli('get', '{chat}:last'));
const spread = (pages) => new Set(pages.map((page) => page.process));
const sorted = (names) => [...names].sort();

// All pages heard all texts once, in the same order, and those of each sender in order.
function assertHeard(pages, texts) {
  const expected = sorted(texts);
  const order = pages[0].messages.map(({ text }) => text).filter((text) => texts.has(text));
  assert.deepEqual(sorted(order), expected);
  const lastOf = new Map();
  for (const text of order) {
    const [, sender, number] = text.match(/^(.*) (\d+)$/);
    assert.ok(Number(number) > (lastOf.get(sender) ?? -1), `${text} came too late`);
    lastOf.set(sender, Number(number));
  }
  for (const page of pages)
    assert.deepEqual(page.messages.map(({ text }) => text).filter((t) => texts.has(t)), order);
}

// Whatever a test did, no page may have seen anything wrong. All leave.
afterEach(async () => {
  const wrong = [...Page.all].flatMap((page) => page.wrong.map((what) => `${page.nick}: ${what}`));
  Page.leaveAll();
  while (await cli('hlen', '{chat}:people') !== '0') await new Promise((done) => setTimeout(done, 50));
  assert.deepEqual(wrong, []);
}, limit);

// --- one chat ---------------------------------------------------------------------

test("every process serves the chat's page", limit, async () => {
  for (const { port } of processes) {
    const page = await (await fetch(`http://127.0.0.1:${port}/`)).text();
    assert.match(page, /<title>Chat<\/title>/);
  }
});

test(`${CROWD} clients at three processes hear all once, in order, and see each other`, limit, async () => {
  const pages = await crowd(CROWD, 'one');
  assert.equal(spread(pages).size, 3);
  const texts = new Set();
  const start = await lastId();
  for (let i = 0; i < EACH_SAYS; ++i)
    for (const page of pages) {
      const text = `${page.session} ${i}`;
      texts.add(text);
      page.say(text);
    }
  await until(() => allSaid(pages) && allAt(pages, start + CROWD * EACH_SAYS));
  assertHeard(pages, texts);
});

test('many clients that want the same nick at once all get different ones', limit, async () => {
  const pages = Array.from({ length: 60 }, (_, i) => new Page('Ann', processes[i % 3]));
  await until(() => pages.every((page) => page.people.size === 60));
  assert.equal(new Set(pages.map((page) => page.nick)).size, 60);
  for (const page of pages) page.send({ type: 'nick', nick: 'Bob' });
  await until(() => pages.every((page) => [...page.people].every((nick) => nick.startsWith('Bob'))));
  assert.equal(new Set(pages.map((page) => page.nick)).size, 60);
});

test('a newcomer misses nothing between history and events, and hears nothing twice', limit, async () => {
  const [speaker] = await crowd(1, 'speaker');
  const newcomers = [];
  for (let i = 0; i < 15; ++i) {
    speaker.say(`speech ${i}`);
    for (let j = 0; j < 4; ++j) newcomers.push(new Page('new'));
    await until(() => allSaid([speaker]));
  }
  await until(() => newcomers.every((page) => page.isHere && page.lastId === speaker.lastId));
  for (const page of newcomers)
    for (let i = 0; i < 15; ++i)
      assert.equal(page.messages.filter(({ text }) => text === `speech ${i}`).length, 1);
});

test('a message repeated at another process is said once, and confirmed', limit, async () => {
  const pages = await Promise.all(processes.map(async (one) => (await crowd(1, 'k', one))[0]));
  const key = pages[0].say('only once');
  await until(() => pages.every((page) => page.hasHeard('only once')));
  // Say more until the message is no longer in the history that pages get.
  const fillers = await crowd(12, 'filler');
  fillers.forEach((page) => { for (let i = 0; i < 10; ++i) page.say(`filling ${i}`); });
  await until(() => allSaid(fillers) && pages.every((page) => page.lastId === fillers[0].lastId));
  pages[1].outbox.push({ type: 'say', text: 'only once', key });
  pages[1].send(pages[1].outbox[0]);
  await until(() => allSaid(pages));
  for (const page of pages)
    assert.equal(page.messages.filter(({ text }) => text === 'only once').length, 1);
});

test('that a user is typing is told to all others, and only to them', limit, async () => {
  const pages = await crowd(3, 't');
  const typists = pages.map(() => []);
  pages.forEach((page, i) => { page.typing = ({ nick }) => typists[i].push(nick); });
  pages[0].send({ type: 'typing' });
  await until(() => typists[1].length && typists[2].length);
  pages[0].say('done');
  await until(() => pages.every((page) => page.hasHeard('done')));
  assert.deepEqual(typists, [[], ['t 0'], ['t 0']]);
});

// --- processes come and go ----------------------------------------------------------

test('a process is killed: its users come back through others, and the rest have left', limit, async () => {
  const pages = await crowd(CROWD, 'k');
  const theirs = pages.filter((page) => page.process === processes[1].id);
  const [quitter, ...movers] = theirs;
  const others = pages.filter((page) => !theirs.includes(page));
  const start = await lastId();
  const speakers = [...movers.slice(0, 20), ...others.slice(0, 20)];  // no more than fit the history
  for (const page of speakers) page.say(`${page.session} 0`);
  Page.all.delete(quitter);
  processes[1].kill();
  for (const page of speakers) page.say(`${page.session} 1`);
  await until(() => movers.every((page) => page.isHere && page.welcomes === 2));
  const stayers = pages.filter((page) => page !== quitter);
  await until(() => allSaid(stayers));
  await until(() => allAt(stayers, start + 2 * speakers.length));
  assertHeard(stayers, new Set(speakers.flatMap(({ session }) => [`${session} 0`, `${session} 1`])));
  await until(() => stayers.every((page) => !page.people.has(quitter.nick)));
  for (const page of stayers) assert.equal(page.people.size, stayers.length);
  for (const page of others) assert.deepEqual(page.departed, [quitter.nick]);
  assert.equal(spread(stayers).size, 2);
  await startMember(1);
  await allWell();
});

test('a process is stopped: a user that does not come back leaves at once', limit, async () => {
  const leaving = await startProcess();
  await healthIs(200, leaving);
  const pages = await crowd(3, 'stays');
  const [guest] = await crowd(1, 'guest', leaving);
  Page.all.delete(guest);
  const started = Date.now();
  await leaving.stop();
  await until(() => pages.every((page) => page.departed.includes('guest 0')));
  assert.ok(Date.now() - started < 4000, 'it took as long as a lease');
});

test('a process that hung longer than its lease gets its users back', limit, async () => {
  const pages = await crowd(30, 'h');
  const { id, process: hung } = processes[2];
  const others = pages.filter((page) => page.process !== id);
  hung.kill('SIGSTOP');
  await until(() => others.every((page) => page.people.size === others.length));
  hung.kill('SIGCONT');
  await until(() => pages.every((page) => page.isHere && page.people.size === pages.length));
  assert.deepEqual(sorted(pages[0].people), sorted(pages.map((page) => page.nick)));
});

test('two processes share a port', limit, async () => {
  const first = await startProcess('--reuse-port');
  const second = await startProcess('--reuse-port', '--port', String(first.port));
  try {
    await healthIs(200, first);
    await Promise.all([first, second].map(({ process: { pid } }) => assert.ok(pid)));
    const pages = await crowd(40, 'shared', first);
    assert.equal(spread(pages).size, 2);
    pages[0].say('hello, both');
    await until(() => pages.every((page) => page.hasHeard('hello, both')));
    Page.leaveAll();
  } finally {
    await stopAll([first, second]);
  }
});

// --- Redis goes and comes ------------------------------------------------------------

test('Redis is killed and comes back with its data: nothing is lost, all users are told', limit, async () => {
  const pages = await crowd(CROWD, 'r');
  const start = await lastId();
  for (const page of pages) page.say(`${page.session} 0`);
  await until(() => pages.some((page) => page.outbox.length === 0));
  redis.kill();
  await until(() => pages.every((page) => page.wasTold(/lost its connection/)));
  for (const page of pages) page.say(`${page.session} 1`);
  await Promise.all(processes.map((one) => healthIs(503, one)));
  const acknowledged = pages.flatMap((page) => page.messages.filter(({ from }) => from === page.ids[0]));
  await startRedis();
  await until(() => allSaid(pages) && allAt(pages, start + 2 * CROWD));
  assert.ok(pages.every((page) => page.wasTold(/connected to Redis again/)));
  assert.ok(pages.every((page) => page.welcomes === 1), 'a page had to reconnect');
  assertHeard(pages, new Set(pages.flatMap(({ session }) => [`${session} 0`, `${session} 1`])));
  const kept = (await cli('lrange', '{chat}:history', '0', '-1')).split('\n').map((one) => JSON.parse(one));
  const keptIds = new Set(kept.map(({ id, text }) => `${id} ${text}`));
  for (const { id, text } of acknowledged) assert.ok(keptIds.has(`${id} ${text}`), `${text} is lost`);
  assert.ok(acknowledged.length > 0);
  await allWell();
});

test('a newcomer is refused while Redis is down, and accepted when it is back', limit, async () => {
  redis.kill();
  await Promise.all(processes.map((one) => healthIs(503, one)));
  const page = new Page('early', processes[0]);
  await until(() => page.refusals > 0);
  await startRedis();
  await until(() => page.isHere);
  await allWell();
});

test('messages wait for Redis up to a limit; beyond it, the sender is told', limit, async () => {
  const small = await startProcess('--keep', '1000');
  try {
    await healthIs(200, small);
    const pages = await crowd(2, 'w', small);
    redis.kill();
    await until(() => pages.every((page) => page.wasTold(/lost its connection/)));
    for (let i = 0; i < 15; ++i) pages[0].say(`waits ${i}`);
    await until(() => pages[0].wasTold(/^say: Too much/));
    await startRedis();
    await until(() => allSaid(pages) && pages.every((page) => page.lastId === pages[0].lastId));
    const heard = pages[1].messages.map(({ text }) => text).filter((text) => text.startsWith('waits'));
    const refused = pages[0].notices.filter((notice) => notice.startsWith('say: '));
    assert.deepEqual(heard, heard.map((_, i) => `waits ${i}`));
    assert.ok(heard.length >= 4);
    assert.equal(heard.length + refused.length, 15);
    Page.leaveAll();
  } finally {
    await small.stop();
  }
  await allWell();
});

test('Redis comes back empty: all users are told, and the chat goes on', limit, async () => {
  const pages = await crowd(30, 'f');
  for (let i = 0; i < 3; ++i) pages[i].say(`forgotten ${i}`);
  await until(() => pages.every((page) => page.hasHeard('forgotten 2')) && allSaid(pages));
  redis.kill();
  await until(() => pages.every((page) => page.wasTold(/lost its connection/)));
  rmSync(path.join(folder, 'appendonlydir'), { recursive: true, force: true });
  pages[7].say('is anybody here?');
  await startRedis();
  await until(() => pages.every((page) => page.hasHeard('is anybody here?') && page.welcomes === 2));
  await until(() => pages.every((page) => page.people.size === pages.length));
  assert.ok(pages.every((page) => page.wasTold(/lost \d+ of the last \d+ messages/)));
  assert.ok(pages.every((page) => page.lastId === 1));
  assert.deepEqual(sorted(pages[0].people), sorted(pages.map((page) => page.nick)));
  await allWell();
});

test('Redis comes back with less than it had: no page misses what is new', limit, async () => {
  const pages = await crowd(12, 'b');
  pages[0].say('before 0');
  await until(() => pages.every((page) => page.hasHeard('before 0')));
  const epoch = pages[0].epoch;
  // As an older backup would have it: fewer events, fewer messages.
  await cli('eval', `redis.call('INCRBY', '{chat}:n', -5) redis.call('DECR', '{chat}:last')
                     redis.call('RPOP', '{chat}:history')`, '0');
  await cli('client', 'kill', 'type', 'pubsub');
  await until(() => pages.every((page) => page.welcomes === 2));
  pages[1].say('after 1');
  await until(() => pages.every((page) => page.hasHeard('after 1')));
  assert.ok(pages.every((page) => page.epoch !== epoch && page.epoch === pages[0].epoch));
  assert.ok(pages.every((page) => page.wasTold(/lost 1 of the last/)));
});

test('a subscription that breaks while users talk costs no message', limit, async () => {
  const pages = await crowd(30, 's');
  const start = await lastId();
  for (let i = 0; i < 12; ++i) {
    for (const page of pages) page.say(`${page.session} ${i}`);
    if (i % 4 === 1) await cli('client', 'kill', 'type', 'pubsub');
    if (i % 4 === 3) await cli('client', 'kill', 'type', 'normal');
    await until(() => allSaid(pages));
  }
  await until(() => allAt(pages, start + 12 * pages.length));
  const numbers = [...Array(12).keys()];
  assertHeard(pages, new Set(pages.flatMap(({ session }) => numbers.map((i) => `${session} ${i}`))));
  assert.ok(pages.every((page) => page.welcomes === 1));
});

test('the chat goes on after all data in Redis is deleted', limit, async () => {
  const pages = await crowd(12, 'd');
  pages[0].say('before 0');
  await until(() => pages.every((page) => page.hasHeard('before 0')));
  await cli('flushall');
  pages[1].say('after 0');
  await until(() => pages.every((page) => page.welcomes === 2 && page.hasHeard('after 0')));
  await until(() => pages.every((page) => page.people.size === pages.length));
});

test('a Redis that forgot the script gets it again', limit, async () => {
  const pages = await crowd(12, 'x');
  await cli('script', 'flush');
  pages[0].say('script 0');
  await until(() => pages.every((page) => page.hasHeard('script 0')));
});

test('a Redis that hangs is treated as one that is down', limit, async () => {
  const pages = await crowd(12, 'y');
  redis.process.kill('SIGSTOP');
  try {
    pages[0].say('hung 0');
    await until(() => pages.every((page) => page.wasTold(/lost its connection/)));
  } finally {
    redis.process.kill('SIGCONT');
  }
  await until(() => pages.every((page) => page.hasHeard('hung 0') && page.wasTold(/connected to Redis again/)));
  await allWell();
});
