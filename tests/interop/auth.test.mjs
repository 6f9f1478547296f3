// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// examples/auth: which clients it accepts and refuses, and when it disconnects them. Tokens are
// made and parsed with Node's own HMAC and base64url.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';
import { hasIcon, launchBrowser, overflow } from './pages.mjs';
import { forEach, lightness, start, stopAll } from './support.mjs';

const AUTH = process.env.AUTH ?? 'examples/auth';
const limit = { timeout: 40_000 };
const key = randomBytes(32).toString('hex');
const password = 'schön & geheim: 1';
let auth, brief;  // tokens of `brief` are valid for two seconds
let browser;

async function startAuth(...options) {
  const probe = net.createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  return start(AUTH, '--port', String(port), ...options);
}

before(async () => {
  Object.assign(process.env, { AUTH_KEY: key, AUTH_PASSWORD: password });
  auth = await startAuth();
  brief = await startAuth('--seconds', '2');
  browser = await launchBrowser('--host-resolver-rules=MAP elsewhere.test 127.0.0.1');
}, limit);

after(async () => {
  await browser?.close();
  await stopAll([auth, brief]);
}, limit);

const originOf = (server) => `http://localhost:${server.port}`;
const now = () => Math.floor(Date.now() / 1000);
const encoded = (text) => Buffer.from(text).toString('base64url');
const signed = (word, by = key) =>
  `${word}.${createHmac('sha256', by).update(word).digest('base64url')}`;
const token = (user, expires = now() + 60, by = key) =>
  signed(encoded(JSON.stringify({ user, expires })), by);

// Tries to connect. Returns the status of the answer, and the open client if it is 101.
function ask(server, { cookie, protocols = [], origin = originOf(server) } = {}) {
  const headers = cookie === undefined ? {} : { Cookie: `other=1; __Host-token=${cookie}` };
  const client = new WebSocket(server.url(), protocols, { headers, origin });
  client.first = once(client, 'message').then(([data]) => JSON.parse(data));
  client.first.catch(() => {});  // it is refused, or nothing waits for its first message
  return new Promise((got, failed) => {
    client.on('unexpected-response', (request, response) => {
      response.resume();
      request.destroy();
      got({ status: response.statusCode });
    });
    client.on('upgrade', (response) => { client.headers = response.headers; });
    client.on('open', () => got({ status: 101, client }));
    client.on('error', failed);
  });
}

async function statusFor(how) {
  const { status, client } = await ask(auth, how);
  client?.terminate();
  return status;
}

forEach('401 for', [
  ['no token', () => undefined],
  ['an empty token', () => ''],
  ['a word that is not a token', () => 'ann'],
  ['a dot', () => '.'],
  ['a payload without a signature', () => token('ann').split('.')[0]],
  ['a payload with an empty signature', () => `${token('ann').split('.')[0]}.`],
  ['a signature without a payload', () => `.${token('ann').split('.')[1]}`],
  ['a valid signature of an empty payload', () => signed('')],
  ['a valid signature of a payload that is not JSON', () => signed(encoded('ann'))],
  ['a valid signature of a payload that is not base64', () => signed('!')],
  ['a third word', () => `${token('ann')}.${token('ann')}`],
  ['the signature of another payload',
    () => `${token('ann').split('.')[0]}.${token('bob').split('.')[1]}`],
  ['another key', () => token('ann', now() + 60, `${key}0`)],
  ['a token that says it is not signed, as JWTs may',
    () => `${encoded('{"alg":"none"}')}.${encoded('{"user":"ann"}')}.`],
  ['a token that expired a second ago', () => token('ann', now() - 1)],
  ['a token that expires now', () => token('ann', now())],
], async (cookie) => {
  assert.equal(await statusFor({ cookie: cookie() }), 401);
  const offered = cookie() && /^[\w.-]+$/.test(cookie()) ? [`token.${cookie()}`] : [];
  assert.equal(await statusFor({ protocols: ['auth.v1', ...offered] }), 401);
});

test('401 for a token with any letter wrong, or cut at any place', limit, async () => {
  const right = token('ann');
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  for (let i = 0; i < right.length; ++i) {
    const other = letters[letters.indexOf(right[i]) ^ 1] ?? 'A';  // the last bit differs
    const wrong = right.slice(0, i) + other + right.slice(i + 1);
    assert.equal(await statusFor({ cookie: wrong }), 401, wrong);
    assert.equal(await statusFor({ cookie: right.slice(0, i) }), 401, `cut after ${i}`);
  }
  assert.equal(await statusFor({ cookie: right }), 101);
});

test('403 for a valid token of a banned user', limit, async () => {
  assert.equal(await statusFor({ cookie: token('mallory') }), 403);
  assert.equal(await statusFor({ protocols: ['auth.v1', `token.${token('mallory')}`] }), 403);
});

forEach('403 for a valid token from', [
  ["another site's page", () => 'https://elsewhere.example'],
  ['another port', () => originOf(brief)],
  ['a page without an origin', () => 'null'],
], async (origin) => {
  assert.equal(await statusFor({ cookie: token('ann'), origin: origin() }), 403);
});

test('the right origin without a token is not enough', limit, async () => {
  assert.equal(await statusFor({ origin: originOf(auth) }), 401);
});

test('a client with a valid token in a cookie is accepted and identified', limit, async () => {
  const { client } = await ask(auth, { cookie: token('ann') });
  assert.equal((await client.first).you, 'ann');
  assert.equal(client.protocol, '');
  const said = once(client, 'message');
  client.send('{"from":"bob"}');
  assert.deepEqual(JSON.parse((await said)[0]), { from: 'ann', text: '{"from":"bob"}' });
  client.terminate();
});

test('a program may offer the token as a subprotocol; another is agreed on', limit, async () => {
  const protocols = ['auth.v1', `token.${token('bob')}`];
  const { client } = await ask(auth, { protocols, origin: '' });
  assert.equal((await client.first).you, 'bob');
  assert.equal(client.headers['sec-websocket-protocol'], 'auth.v1');
  client.terminate();
});

test('an offered token takes precedence over a cookie', limit, async () => {
  const protocols = ['auth.v1', `token.${token('ann', now() - 1)}`];
  assert.equal(await statusFor({ cookie: token('ann'), protocols }), 401);
});

test('when the token expires, the connection is closed with 4401', limit, async () => {
  const expires = now() + 2;
  const { client } = await ask(auth, { cookie: token('ann', expires) });
  const lasting = await ask(auth, { cookie: token('bob') });
  const [code, reason] = await once(client, 'close');
  assert.deepEqual([code, reason.toString()], [4401, 'the token has expired']);
  assert.ok(Date.now() / 1000 >= expires, 'it is closed too early');
  assert.equal(lasting.client.readyState, WebSocket.OPEN);
  lasting.client.terminate();
});

// --- logging in -------------------------------------------------------------

function get(target, headers) {
  return new Promise((got, failed) => {
    http.get(`${originOf(auth)}${target}`, { headers, agent: false }, (response) => {
      let body = '';
      response.on('data', (data) => { body += data; });
      response.on('end', () => got({ status: response.statusCode, headers: response.headers, body }));
    }).on('error', failed);
  });
}

const basic = (text) => ({ Authorization: `Basic ${Buffer.from(text).toString('base64')}` });

test('a login returns a cookie that the browser sends to this server only', limit, async () => {
  const { status, headers } = await get('/login', basic(`ann:${password}`));
  assert.equal(status, 200);
  assert.equal(headers['cache-control'], 'no-store');
  const [cookie, ...attributes] = headers['set-cookie'][0].split('; ');
  assert.deepEqual(attributes.sort(),
    ['HttpOnly', 'Max-Age=300', 'Path=/', 'SameSite=Strict', 'Secure']);
  const value = cookie.replace(/^__Host-token=/, '');
  const [word] = value.split('.');
  assert.equal(value, signed(word));
  const { user, expires } = JSON.parse(Buffer.from(word, 'base64url'));
  assert.equal(user, 'ann');
  assert.ok(Math.abs(expires - now() - 300) < 5);
  assert.equal(await statusFor({ cookie: value }), 101);
  assert.equal(JSON.parse((await get('/me', { Cookie: cookie })).body).you, 'ann');
});

forEach('a login is refused with', [
  ['nothing', {}],
  ['a wrong password', basic(`ann:${password}1`)],
  ['an empty password', basic('ann:')],
  ['no password', basic('ann')],
  ['an empty name', basic(`:${password}`)],
  ['an unknown name', basic(`eve:${password}`)],
  ['a name in capitals', basic(`ANN:${password}`)],
  ['something that is not base64', { Authorization: 'Basic !!!!' }],
  ['padding alone', { Authorization: 'Basic ====' }],
  ['another scheme', { Authorization: `Bearer ${password}` }],
], async (headers) => {
  const { status, headers: answered } = await get('/login', headers);
  assert.deepEqual([status, answered['set-cookie']], [401, undefined]);
});

test('/me answers 401 without a token, and 403 to a banned user', limit, async () => {
  assert.equal((await get('/me', {})).status, 401);
  assert.equal((await get('/me', { Cookie: `__Host-token=${token('mallory')}` })).status, 403);
});

forEach('it does not start', [
  ['without a key', { AUTH_KEY: undefined }, 'set AUTH_KEY'],
  ['with a short key', { AUTH_KEY: 'short' }, 'at least 32'],
  ['without a password', { AUTH_PASSWORD: '' }, 'set AUTH_PASSWORD'],
], async (env, complaint) => {
  const { status, stderr } = spawnSync(AUTH, { env: { ...process.env, ...env }, timeout: 10_000 });
  assert.equal(status, 2);
  assert.ok(String(stderr).includes(complaint), stderr);
});

// --- the page ---------------------------------------------------------------

async function openPage(t, server, origin = originOf(server)) {
  const context = await browser.newContext();
  t.after(() => context.close());
  context.setDefaultTimeout(10_000);
  const page = await context.newPage();
  await page.goto(origin);
  await page.locator('#status', { hasText: 'Log in first.' }).waitFor();
  return page;
}

async function logIn(page, name, word = password) {
  await page.fill('#name', name);
  await page.fill('#password', word);
  await page.click('#login button');
}

const says = (page, text) => page.locator('#status', { hasText: text }).waitFor();

test('two users log in with the page, talk, and stay logged in', limit, async (t) => {
  const ann = await openPage(t, auth);
  const bob = await openPage(t, auth);
  await logIn(ann, 'ann', 'wrong');
  await says(ann, 'Wrong name or password');
  await logIn(ann, 'ann');
  await says(ann, 'You are ann');
  await logIn(bob, 'bob');
  await says(bob, 'You are bob');
  await ann.fill('#text', 'Hello, <b>Bob</b>');
  await ann.press('#text', 'Enter');
  await bob.getByText('ann: Hello, <b>Bob</b>').waitFor();
  await bob.reload();
  await says(bob, 'You are bob');
  assert.equal(await bob.evaluate(() => document.cookie), '');
});

test('the page tells a banned user so', limit, async (t) => {
  const page = await openPage(t, auth);
  await logIn(page, 'mallory');
  await says(page, 'mallory is banned.');
});

test('the page tells when the token has expired, and the user logs in again', limit, async (t) => {
  const page = await openPage(t, brief);
  await logIn(page, 'ann');
  await says(page, 'Closed: 4401');
  await logIn(page, 'ann');
  await says(page, 'You are ann');
});

// At elsewhere.test Chromium does what WebKit does at localhost, too.
test('the page tells when the browser has dropped its Secure cookie', limit, async (t) => {
  const page = await openPage(t, auth, `http://elsewhere.test:${auth.port}`);
  await logIn(page, 'ann', 'wrong');
  await says(page, 'Wrong name or password');
  await logIn(page, 'ann');
  await says(page, 'the browser has dropped the cookie: it is Secure, and this page came over plain http');
  assert.ok(await page.isVisible('#login'));
});

test('the page tells when its origin is refused', limit, async (t) => {
  const page = await openPage(t, auth, `http://127.0.0.1:${auth.port}`);
  await logIn(page, 'ann');
  await says(page, `refuses pages from http://127.0.0.1:${auth.port}`);
});

forEach('the page connects again, without a login, to a server that', [
  ['has shut down', (server) => server.stop(), '', 'The server has shut down.'],
  ['was killed', (server) => server.kill(), 'bad', 'The connection is lost (1006).'],
], async (end, look, reason, t) => {
  const first = await startAuth();
  t.after(() => first.kill());  // if the test fails before it ends
  const page = await openPage(t, first);
  await logIn(page, 'ann');
  await says(page, 'You are ann');
  const failedTry = page.waitForEvent('requestfailed');
  await end(first);
  await says(page, reason);
  await failedTry;  // which does not change what the page says
  await says(page, reason);
  assert.equal(await page.getAttribute('#status', 'data-state'), look);
  assert.ok(await page.isHidden('#login'));
  const second = await start(AUTH, '--port', String(first.port));
  t.after(() => second.stop());
  await says(page, 'You are ann');
});

// To the browser, a neighbour on another port is the same site, so it sends the cookie along.
// Both servers have the same key, so the cookie is valid for both.
test("a neighbour's page cannot connect with the cookie of a logged-in user", limit, async (t) => {
  const page = await openPage(t, auth);
  await logIn(page, 'ann');
  await says(page, 'You are ann');
  await page.goto(`${originOf(brief)}/`);
  await says(page, 'You are ann');
  // (This answer lacks the Content-Security-Policy of the page, which would forbid the rest.)
  const evil = await page.context().newPage();
  await evil.goto(`${originOf(brief)}/nothing`);
  const connect = (url) => evil.evaluate((url) => new Promise((got) => {
    const socket = new WebSocket(url);
    socket.onopen = () => got('open');
    socket.onerror = () => got('refused');
  }), url);
  assert.equal(await connect(brief.url()), 'open');
  assert.equal(await connect(auth.url()), 'refused');
});

// --- pictures ---------------------------------------------------------------

test('the page fits into a wide and a narrow window, light and dark', limit, async (t) => {
  const ann = await openPage(t, auth), bob = await openPage(t, auth);
  assert.ok(await hasIcon(ann));
  await logIn(ann, 'ann');
  await says(ann, 'You are ann');
  for (let i = 0; i < 30; ++i) {
    await ann.fill('#text', i % 2 ? 'שלום' : 'Hello, is anybody here?');
    await ann.press('#text', 'Enter');
  }
  await ann.locator('#log li').nth(29).waitFor();
  const directions = await ann.evaluate(() =>
    [...log.children].slice(-2).map((line) => getComputedStyle(line).direction));
  assert.deepEqual(directions, ['ltr', 'rtl']);
  const size = { wide: { width: 1200, height: 800 }, narrow: { width: 360, height: 640 } };
  for (const [name, page] of Object.entries({ talk: ann, login: bob }))
    for (const width in size)
      for (const colorScheme of ['light', 'dark']) {
        await page.setViewportSize(size[width]);
        await page.emulateMedia({ colorScheme });
        assert.equal(await page.evaluate(lightness) > 0.5, colorScheme === 'light');
        assert.deepEqual(await overflow(page), [0, 0]);
        const file = `auth-${name}-${width}-${colorScheme}.png`;
        await page.screenshot({ path: process.env.SCREENSHOTS && path.join(process.env.SCREENSHOTS, file) });
      }
});
