// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The files of examples/deploy: real nginx, HAProxy and Caddy with these configurations, over
// TLS, in front of the chat and of the interop server; the systemd units; the Dockerfile.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import WebSocket from 'ws';
import { allShown, joinAt, launchBrowser, say, shown, state } from './pages.mjs';
import {
  CHAT, INTEROP_SERVER, MIB, PLACE, Program, assertSame, forEach, freePort, noise, start, stopAll,
} from './support.mjs';

const run = promisify(execFile);
const limit = { timeout: 60_000 };
const folder = mkdtempSync(path.join(os.tmpdir(), 'ws'));
const certificate = path.join(folder, 'chat.crt');
const key = path.join(folder, 'chat.key');
const both = path.join(folder, 'chat.pem');
let ca;

// ----------------------------------------------------------------------------
// The proxies. prepare() gets a folder, the proxy's copy of its configuration, its port, and
// where the server listens; it returns the command and the environment. reload() makes the
// proxy read its configuration again.
// ----------------------------------------------------------------------------

const deployed = (name) => readFileSync(path.join('examples/deploy', name), 'utf8');

// Makes each of `changes` in the text. What is changed must be there exactly once.
function changed(text, changes) {
  for (const [from, to] of changes) {
    assert.equal(text.split(from).length, 2, `"${from}" must be there exactly once`);
    text = text.replace(from, to);
  }
  return text;
}

const proxies = {
  nginx: {
    file: 'nginx.conf',
    timeouts: [['proxy_read_timeout 60s', 'proxy_read_timeout 2s'],
      ['proxy_send_timeout 60s', 'proxy_send_timeout 2s']],
    prepare(place, file, port, server) {
      const at = server.unix ? `unix:${server.unix}` : `127.0.0.1:${server.port}`;
      writeFileSync(file, changed(readFileSync(file, 'utf8'), [
        ['server 127.0.0.1:12345;', `server ${at};`],
        ['listen      443 ssl;', `listen 127.0.0.1:${port} ssl;`],
        ['server_name chat.example.com;', 'server_name localhost;'],
        ['/etc/ssl/chat/fullchain.pem', certificate],
        ['/etc/ssl/chat/privkey.pem', key],
      ]));
      const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
      writeFileSync(path.join(place, 'main.conf'), `
        daemon off;
        user ${os.userInfo().username};
        pid nginx.pid;
        error_log error.log;
        events {}
        http {
          access_log off;
          ${temporary.map((name) => `${name}_temp_path ${name};`).join('\n')}
          include ${file};
        }`);
      return { command: ['nginx', '-p', place, '-e', 'error.log', '-c', 'main.conf'] };
    },
    reload: (program) => program.process.kill('SIGHUP'),
    keepsConnections: true,
  },

  HAProxy: {
    file: 'haproxy.cfg',
    timeouts: [['timeout tunnel 60s', 'timeout tunnel 2s']],
    prepare(place, file, port, server) {
      const CHAT = server.unix ? `unix@${server.unix}` : `127.0.0.1:${server.port}`;
      const env = { LISTEN: `127.0.0.1:${port}`, CERTIFICATE: both, CHAT };
      return { command: ['haproxy', '-W', '-f', file], env };
    },
    reload: (program) => program.process.kill('SIGUSR2'),
    keepsConnections: true,
  },

  Caddy: {
    file: 'Caddyfile',
    timeouts: [],  // it has none
    prepare(place, file, port, server) {
      const main = path.join(place, 'main');
      writeFileSync(main, `{
        admin unix/${place}/admin
        default_bind 127.0.0.1
        auto_https disable_redirects
        storage file_system ${place}
      }
      import ${file}\n`);
      const CHAT = server.unix ? `unix/${server.unix}` : `127.0.0.1:${server.port}`;
      const env = { SITE: `https://localhost:${port}`, CERTIFICATE: certificate, KEY: key, CHAT };
      return { command: ['caddy', 'run', '--adapter', 'caddyfile', '--config', main], env };
    },
    reload: ({ place, env }) => run('caddy', ['reload', '--adapter', 'caddyfile', '--config',
      path.join(place, 'main'), '--address', `unix/${place}/admin`],
    { env: { ...process.env, ...env } }),
    keepsConnections: false,
  },
};

// Starts a proxy with its configuration from examples/deploy, and waits until it serves.
async function startProxy(name, port, server, changes = []) {
  const { file, prepare, reload } = proxies[name];
  const place = mkdtempSync(path.join(folder, 'p'));
  const copy = path.join(place, file);
  writeFileSync(copy, changed(deployed(file), changes));
  const { command: [command, ...options], env } = prepare(place, copy, port, server);
  const program = new Program(command, options, env, 'ignore');
  program.process.stdout.resume();
  Object.assign(program, { port, place, env });
  program.change = (...more) => {
    writeFileSync(copy, changed(readFileSync(copy, 'utf8'), more));
    return reload(program);
  };
  await until(`${name} serves`, () => statusOf(port, '/').catch(() => null), program);
  return program;
}

// Polls until isSo() is true, for what a proxy does not report.
async function until(what, isSo, program) {
  const end = Date.now() + 15_000;
  while (!await isSo()) {
    const { exitCode } = program.process;
    assert.equal(exitCode, null, `until ${what}: ${program.name} exited with ${exitCode}`);
    assert.ok(Date.now() < end, `waited in vain until ${what}`);
    await delay(20);
  }
}

async function stopProxy(program) {
  if (!program) return;
  program.process.kill('SIGTERM');
  await program.ended;
  program.kill();
}

function statusOf(port, path) {
  return new Promise((got, failed) => {
    const request = https.get({ host: 'localhost', family: 4, port, path, ca, agent: false });
    request.on('response', (response) => {
      response.resume();
      got(response.statusCode);
    });
    request.on('error', failed);
  });
}

// ----------------------------------------------------------------------------
// The servers behind the proxies. Each proxy is tested with both servers, over TCP and over a
// Unix socket.
// ----------------------------------------------------------------------------

const ways = Object.keys(proxies).flatMap((name) => [
  [`${name} and a TCP port`, name, 'tcp'], [`${name} and a Unix socket`, name, 'unix']]);
const interop = {}, interopFronts = {}, chats = {}, chatFronts = {};
let browser;

async function startServer(program, way, ...options) {
  const unix = path.join(mkdtempSync(path.join(folder, 's')), 'socket');
  const where = way === 'unix' ? ['--address', `unix:${unix}`, '--proxy', 'unix']
    : ['--port', '0', '--proxy', '127.0.0.1'];
  const server = await start(program, ...where, ...options);
  return Object.assign(server, way === 'unix' && { unix });
}

async function startChatBehind(label, name, way) {
  const port = await freePort();
  const origin = `https://localhost:${port}`;
  chats[label] = await startServer(CHAT, way, '--origin', origin);
  chatFronts[label] = await startProxy(name, port, chats[label]);
}

before(async () => {
  await run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
    '-nodes', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost',
    '-keyout', key, '-out', certificate]);
  ca = readFileSync(certificate);
  writeFileSync(both, Buffer.concat([ca, readFileSync(key)]));
  const spki = new X509Certificate(ca).publicKey.export({ type: 'spki', format: 'der' });
  const hash = createHash('sha256').update(spki).digest('base64');
  // The browser accepts this one key, and refuses every other.
  browser = await launchBrowser(`--ignore-certificate-errors-spki-list=${hash}`);
  for (const way of ['tcp', 'unix'])
    interop[way] = await startServer(INTEROP_SERVER, way, '--ping', '0.5');
  await Promise.all(ways.map(async ([label, name, way]) => {
    interopFronts[label] =
      await startProxy(name, await freePort(), interop[way], proxies[name].timeouts);
    await startChatBehind(label, name, way);
  }));
}, limit);

after(async () => {
  await browser?.close();
  await Promise.all([...Object.values(interopFronts), ...Object.values(chatFronts)].map(stopProxy));
  await stopAll([...Object.values(interop), ...Object.values(chats)]);
  rmSync(folder, { recursive: true });
}, limit);

// --- a client that verifies the certificate ---

// An open client, with its messages in a queue.
async function connect(front, target = '/', options = {}) {
  const url = `wss://localhost:${front.port}${target}`;
  const client = new WebSocket(url, { ca, family: 4, perMessageDeflate: false, ...options });
  const messages = [], waiting = [];
  client.on('message', (data, isBinary) => {
    const message = isBinary ? data : data.toString();
    if (waiting.length) waiting.shift()(message);
    else messages.push(message);
  });
  client.next = () => messages.length ? Promise.resolve(messages.shift())
    : new Promise((got) => waiting.push(got));
  client.closed = once(client, 'close').then(([code, reason]) => [code, reason.toString()]);
  client.closed.catch(() => {});  // for tests that do not wait for it
  await once(client, 'open');
  return client;
}

const through = (title, body) => forEach(title, ways.map(([label]) => [label, label]), body);

async function hear(client, type) {
  for (;;) {
    const message = JSON.parse(await client.next());
    if (message.type === type) return message;
  }
}

through('two clients that verify the certificate chat, through', async (label) => {
  const front = chatFronts[label];
  const ann = await connect(front, '/chat');
  ann.send('{"type":"hello","nick":"Ann"}');
  await hear(ann, 'welcome');
  const bob = await connect(front, '/chat');
  bob.send('{"type":"hello","nick":"Bob"}');
  await hear(bob, 'welcome');
  bob.send('{"type":"say","text":"Hello, Ann!"}');
  assert.equal((await hear(ann, 'message')).text, 'Hello, Ann!');
  ann.terminate();
  bob.terminate();
});

through('a client that does not know the certificate does not connect, through', async (label) => {
  await assert.rejects(connect(chatFronts[label], '/chat', { ca: undefined }), /self.signed/);
});

through('messages of 1 MiB go both ways, through', async (label) => {
  const client = await connect(interopFronts[label]);
  for (const message of [noise(MIB), '€uros.'.repeat(MIB / 8)]) {
    client.send(message);
    assertSame(await client.next(), message);
  }
  client.terminate();
});

through('close codes and reasons pass both ways, through', async (label) => {
  const front = interopFronts[label];
  const closed = await connect(front, '/close?code=4001&reason=that+is+all');
  assert.deepEqual(await closed.closed, [4001, 'that is all']);
  const witness = await connect(front, '/witness');
  assert.equal(await witness.next(), 'ready');
  const leaver = await connect(front, '/?leaver');
  leaver.close(4002, 'Grüße');
  assert.deepEqual(await leaver.closed, [4002, '']);  // answered with the code alone
  let left;
  do left = JSON.parse(await witness.next()); while (left.query !== 'leaver');
  assert.deepEqual([left.code, left.reason], [4002, 'Grüße']);
  witness.terminate();
});

// On Linux all of 127.0.0.0/8 is this machine, so the client can have an address of its own.
const client = os.platform() === 'linux' ? '127.0.0.2' : '127.0.0.1';
through("the server sees the client's real address, not the claimed one, through", async (label) => {
  const headers = { 'X-Forwarded-For': '192.0.2.7' };
  const asking = await connect(interopFronts[label], '/request', { headers, localAddress: client });
  const { forwarded, address } = JSON.parse(await asking.next());
  assert.deepEqual([forwarded, address], [client, client]);
  asking.terminate();
});

through('/healthz is answered and /metrics is not, through', async (label) => {
  const { port } = chatFronts[label];
  assert.deepEqual([await statusOf(port, '/healthz'), await statusOf(port, '/metrics')], [200, 404]);
});

// The timeouts are 2 s here and pingSeconds is 0.5, in place of 60 s and 20.
test('pings keep silent clients connected beyond the timeouts of nginx and HAProxy', limit, () =>
  Promise.all(['nginx and a TCP port', 'HAProxy and a TCP port'].map(async (label) => {
    const client = await connect(interopFronts[label]);
    for (const end = Date.now() + 2500; Date.now() < end;) await once(client, 'ping');
    client.send('still here');
    assert.equal(await client.next(), 'still here');
    client.terminate();
  })));

// --- the page ---

// These tests mostly wait for pages to reconnect, so TCP and Unix socket run at once.
for (const name of Object.keys(proxies)) {
  const title = `pages survive a reload of the proxy and a restart of the server, with ${name}`;
  test(title, limit, (t) => Promise.all(
    ways.filter((way) => way[1] === name).map(([label, , way]) => survive(t, label, name, way))));
}

async function survive(t, label, name, way) {
  const front = chatFronts[label];
  const url = `https://localhost:${front.port}/`;
  const ann = await joinAt(t, browser, url, 'Ann');
  const bob = await joinAt(t, browser, url, 'Bob');
  await say(ann, 'at first');
  await shown(bob, 'at first');

  const program = await connect(front, '/chat');
  await front.change(['404', '410']);
  const isReloaded = async () => await statusOf(front.port, '/metrics') === 410;
  await until(`${name} has reloaded`, isReloaded, front);
  if (proxies[name].keepsConnections) {
    program.ping();
    await once(program, 'pong');
    program.terminate();
  } else {
    // Caddy 2.6 sends a Close both ways, but does not mask the one to the server. So the server
    // fails the connection (RFC 6455 5.1), and its 1002 may come before Caddy's 1001.
    assert.ok([1001, 1002].includes((await program.closed)[0]));
  }
  await say(ann, 'after the reload');
  await shown(bob, 'after the reload');
  const cleo = await joinAt(t, browser, url, 'Cleo');
  await shown(cleo, 'after the reload');

  const { port, unix } = chats[label];
  await chats[label].stop();
  await Promise.all([state(ann, 'lost'), state(bob, 'lost')]);
  await say(ann, 'while it is away');
  const where = way === 'unix' ? ['--address', `unix:${unix}`] : ['--port', String(port)];
  chats[label] = await start(CHAT, ...where, '--origin', url.slice(0, -1));
  await shown(bob, 'while it is away');
  const words = ['at first', 'after the reload', 'while it is away'];
  assert.deepEqual((await allShown(bob)).slice(-words.length), words);
}

// ----------------------------------------------------------------------------
// systemd and Docker
// ----------------------------------------------------------------------------

const hasSystemd = await run('systemd-analyze', ['--version']).then(() => true, () => false);
const withSystemd = { ...limit, skip: !hasSystemd && 'this machine has no systemd' };

test('systemd finds no fault with the units, and rates the chat as safe', withSystemd,
  async () => {
    const units = ['chat.service', 'chat.socket'].map((name) => path.join(folder, name));
    for (const unit of units) writeFileSync(unit, deployed(path.basename(unit)));
    writeFileSync(units[0], changed(deployed('chat.service'),
      [['ExecStart=/opt/chat/chat', `ExecStart=${path.resolve(CHAT)}`]]));
    const { stdout, stderr } =
      await run('systemd-analyze', ['verify', '--man=no', '--recursive-errors=yes', ...units]);
    assert.equal(stdout + stderr, '');
    // The exposure level, from 0 to 100; without sandboxing a service is at 96.
    await run('systemd-analyze', ['security', '--offline=yes', '--threshold=10', units[0]]);
  });

test('the chat serves a socket that systemd opened', withSystemd, async (t) => {
  const port = await freePort();
  const options = ['-l', `127.0.0.1:${port}`, CHAT, '--proxy', '127.0.0.1'];
  const program = new Program('systemd-socket-activate', options, {}, 'ignore');
  t.after(() => program.kill());
  // The first connection starts the chat.
  await until('systemd listens', () => new Promise((got) => {
    const probe = net.connect(port, '127.0.0.1', () => got(probe.destroy()));
    probe.on('error', () => got(false));
  }), program);
  assert.equal(Number((await program.lineThatMatches(PLACE))[1]), port);
  const client = new WebSocket(`ws://127.0.0.1:${port}/chat`);
  await once(client, 'open');
  client.send('{"type":"hello","nick":"Ann"}');
  const [welcome] = await once(client, 'message');
  assert.equal(JSON.parse(welcome).nick, 'Ann');
  client.terminate();
  await program.stop();
});

// This needs no Docker.
test('the files that the Dockerfile copies are enough to build the chat', limit, async () => {
  const place = path.join(folder, 'image');
  const copies = [...deployed('Dockerfile').matchAll(/^COPY ([^-].*) (\S+)$/gm)];
  assert.equal(copies.length, 2);
  for (const [, files, to] of copies) {
    mkdirSync(path.join(place, to), { recursive: true });
    for (const file of files.split(' '))
      cpSync(file, path.join(place, to, path.basename(file)));
  }
  const [, target] = deployed('Dockerfile').match(/^RUN make (\S+)$/m);
  await run('make', [target], { cwd: place, env: { ...process.env, CXXFLAGS: '-O0', MAKEFLAGS: '' } });
  await run(path.join(place, target), ['--help']);
});
