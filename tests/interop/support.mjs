// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the tests in Node share: starting servers and ending them, tables, pages.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, rmSync } from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { test } from 'node:test';

const SECONDS_TO_START_OR_END = 10;
const { RUNNING } = process.env;  // a folder with a file for each process that runs

export const ECHO = process.env.ECHO ?? 'examples/echo';
export const CHAT = process.env.CHAT ?? 'examples/chat';
export const GAME = process.env.GAME ?? 'examples/game';
export const CLUSTER = process.env.CLUSTER ?? '.build/test/examples/cluster';
export const INTEROP_SERVER = process.env.INTEROP_SERVER ?? '.build/interop-server';
export const MIB = 1024 * 1024;

// So that 'exit' handlers, ours and the browser's, end what this process has started.
process.on('SIGTERM', () => process.exit(1));
process.setMaxListeners(100);  // one for each program

// How our servers print where they listen: a port, or none if it is a Unix socket.
export const PLACE = /(?:port |localhost:|at unix:)(\d*)/;

// Starts a server and waits for the port that it prints; 0 if it listens at a Unix socket.
export async function start(command, ...options) {
  const server = await startAndRead(PLACE, command, ...options);
  server.port = Number(server.printed[1]);
  return server;
}

// Starts any program and waits until it prints that; or for nothing, if that is null.
export async function startAndRead(pattern, command, ...options) {
  const server = new Program(command, options.map(String));
  try {
    const line = server.lineThatMatches(pattern ?? /^$/);
    if (pattern)
      server.printed = await within(SECONDS_TO_START_OR_END, line, `${server.name} told no ${pattern}`);
    else line.catch(() => {});
    return server;
  } catch (error) {
    server.kill();
    throw error;
  }
}

// Ends them all, even if some do not end as they should; then fails for those.
export async function stopAll(servers) {
  const stops = await Promise.allSettled(servers.map((server) => server?.stop()));
  for (const { reason } of stops) assert.ifError(reason);
}

// A program in a process group of its own: what it has started is ended with it.
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

  // Reads to the very end, so that the server never has to wait for its reader.
  async lineThatMatches(pattern) {
    const lines = readline.createInterface(this.process.stdout);
    const match = new Promise((found) => lines.on('line', (line) => {
      if (pattern.test(line)) found(line.match(pattern));
    }));
    const end = this.ended.then((how) => Promise.reject(new Error(`${this.name} ended: ${how}`)));
    return Promise.race([match, end]);
  }

  url(pathAndQuery = '/') {
    return `ws://localhost:${this.port}${pathAndQuery}`;
  }

  // Ends it as its owner would. It must end in good time, and with success.
  async stop() {
    this.process.kill('SIGINT');
    try {
      const end = await within(SECONDS_TO_START_OR_END, this.ended, `${this.name} does not end`);
      assert.deepEqual(end, [0, null], `${this.name} must end with status 0, by no signal`);
    } finally {
      this.kill();
    }
  }

  kill() {
    try {
      process.kill(-this.process.pid, 'SIGKILL');
    } catch {}  // nobody is left
    if (this.note) rmSync(this.note, { force: true });
    process.off('exit', this.killAtExit);
  }
}

export async function within(seconds, promise, complaint) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${complaint} (${seconds} s)`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// One test for each row of a table [label, ...arguments]; the label completes the title.
// run() gets the arguments, and the test's context behind them.
export function forEach(title, table, run) {
  for (const [label, ...row] of table)
    test(`${title} ${label}`, { timeout: 20_000 }, (t) => run(...row, t));
}

// In a page: how light it is, from 0 (black) to 1 (white).
export function lightness() {
  const colours = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
  return (colours[0] + colours[1] + colours[2]) / 3 / 255;
}

// For messages of any size: assert.equal() would print them.
export function assertSame(got, sent) {
  assert.equal(typeof got, typeof sent);
  const isSame = Buffer.from(got).equals(Buffer.from(sent));
  const beginning = got.toString().slice(0, 40);
  assert.ok(isSame, `${sent.length} went, ${got.length} came back: ${beginning} …`);
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
