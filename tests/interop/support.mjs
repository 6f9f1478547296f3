// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the Node tests share: starting and stopping servers, tests made from tables, pages.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, rmSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import readline from 'node:readline';
import { test } from 'node:test';

const SECONDS_TO_START_OR_END = 10;
const { RUNNING } = process.env;  // a folder with a file for each running process

export const ECHO = process.env.ECHO ?? 'examples/echo';
export const CHAT = process.env.CHAT ?? 'examples/chat';
export const GAME = process.env.GAME ?? 'examples/game';
export const WIRE = process.env.WIRE ?? 'examples/wire';
export const CLUSTER = process.env.CLUSTER ?? '.build/test/examples/cluster';
export const INTEROP_SERVER = process.env.INTEROP_SERVER ?? '.build/interop-server';
export const MIB = 1024 * 1024;

// So that 'exit' handlers, ours and the browser's, kill what this process has started.
process.on('SIGTERM', () => process.exit(1));
process.setMaxListeners(100);  // one for each program

// How our servers print where they listen: a port, or none for a Unix socket.
export const PLACE = /(?:port |localhost:|at unix:)(\d*)/;

// Starts a server and waits for the port that it prints; 0 for a Unix socket.
export async function start(command, ...options) {
  const server = await startAndRead(PLACE, command, ...options);
  server.port = Number(server.printed[1]);
  return server;
}

// Starts any program and waits until it prints a line that matches; with null, does not wait.
export async function startAndRead(pattern, command, ...options) {
  const server = new Program(command, options.map(String));
  try {
    const line = server.lineThatMatches(pattern ?? /^$/);
    if (pattern)
      server.printed = await within(SECONDS_TO_START_OR_END, line, `${server.name} printed no ${pattern}`);
    else line.catch(() => {});
    return server;
  } catch (error) {
    server.kill();
    throw error;
  }
}

// Stops all servers, and then fails if one did not stop as it should.
export async function stopAll(servers) {
  const stops = await Promise.allSettled(servers.map((server) => server?.stop()));
  for (const { reason } of stops) assert.ifError(reason);
}

// A program in a process group of its own, so that its children are killed with it.
export class Program {
  constructor(command, options, env = {}, errors = 'inherit') {
    this.name = path.basename(command);
    this.process = spawn(command, options,
      { stdio: ['ignore', 'pipe', errors], env: { ...process.env, ...env }, detached: true });
    this.ended = once(this.process, 'exit');
    this.note = RUNNING && this.process.pid && path.join(RUNNING, String(this.process.pid));
    if (this.note) closeSync(openSync(this.note, 'w'));
    this.killAtExit = () => this.kill();
    process.on('exit', this.killAtExit);
  }

  // Goes on reading after the match, so that the server never blocks on a full pipe.
  async lineThatMatches(pattern) {
    const lines = readline.createInterface(this.process.stdout);
    const match = new Promise((found) => lines.on('line', (line) => {
      if (pattern.test(line)) found(line.match(pattern));
    }));
    const end = this.ended.then((how) => Promise.reject(new Error(`${this.name} exited: ${how}`)));
    return Promise.race([match, end]);
  }

  url(pathAndQuery = '/') {
    return `ws://localhost:${this.port}${pathAndQuery}`;
  }

  // Stops it as a user would, with SIGINT. It must exit in time, with status 0.
  async stop() {
    this.process.kill('SIGINT');
    try {
      const end = await within(SECONDS_TO_START_OR_END, this.ended, `${this.name} does not exit`);
      assert.deepEqual(end, [0, null], `${this.name} must exit with status 0, not by a signal`);
    } finally {
      this.kill();
    }
  }

  kill() {
    try {
      process.kill(-this.process.pid, 'SIGKILL');
    } catch {}  // no process is left
    if (this.note) rmSync(this.note, { force: true });
    process.off('exit', this.killAtExit);
  }
}

// For programs that cannot choose a port by themselves.
export async function freePort() {
  const probe = net.createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}

export async function within(seconds, promise, complaint) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${complaint} (${seconds} s)`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Makes one test of each row of a table [label, ...arguments]; the label completes the title.
// run() gets the arguments, then the test's context.
export function forEach(title, table, run) {
  for (const [label, ...row] of table)
    test(`${title} ${label}`, { timeout: 20_000 }, (t) => run(...row, t));
}

// Runs in a page: how light it is, from 0 (black) to 1 (white).
export function lightness() {
  const colours = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
  return (colours[0] + colours[1] + colours[2]) / 3 / 255;
}

// For messages of any size, which assert.equal() would print.
export function assertSame(got, sent) {
  assert.equal(typeof got, typeof sent);
  const isSame = Buffer.from(got).equals(Buffer.from(sent));
  const beginning = got.toString().slice(0, 40);
  assert.ok(isSame, `sent ${sent.length}, got ${got.length} back: ${beginning} …`);
}

// `size` bytes that look random and are the same in every run.
export function noise(size) {
  const bytes = Buffer.alloc(size);
  let state = 6455;
  for (let i = 0; i < size; ++i) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    bytes[i] = state >> 16;
  }
  return bytes;
}
