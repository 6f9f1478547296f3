#!/usr/bin/env node
// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Does what the README tells a new user to do, word for word, in a temporary folder: copies the
// files, compiles, starts the program, talks to it from a shell and with the README's JavaScript,
// builds it with CMake, compiles each of the ready answers alone, and makes a new project. Only the
// port is another one, because 12345 may be taken. Arguments select steps, by name.

import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const root = path.resolve(here, '../..');
const files = ['server.cpp', 'server.h', 'config.h', 'user.h'];
const WebSocket = createRequire(import.meta.url)('ws');  // comes with wscat
const scratch = mkdtempSync(path.join(tmpdir(), 'first-hour-'));
const running = new Set();

async function freePort() {
  const server = createServer().listen(0);
  const { port } = server.address();
  await new Promise(done => server.close(done));
  return port;
}

const port = await freePort();
const readme = readFileSync(path.join(root, 'README.md'), 'utf8').replaceAll('12345', port);

// What stands between two marks in the README.
function between(begin, end) {
  const at = readme.indexOf(begin);
  assert.notEqual(at, -1, `the README lacks ${begin}`);
  return readme.slice(at + begin.length, readme.indexOf(end, at + begin.length));
}

function folder(name, where) {
  const made = path.join(scratch, name);
  mkdirSync(path.join(made, where), { recursive: true });
  for (const file of files) cpSync(path.join(root, file), path.join(made, where, file));
  return made;
}

// A program that runs until the end of this one. `printed(part)` waits for a line with `part`.
function start(command, cwd) {
  console.log(`  ${command}`);
  const child = spawn('sh', ['-c', command], { cwd, detached: true });
  running.add(child);
  let output = '', wake = () => {};
  const more = text => { output += text; wake(); };
  child.stdout.setEncoding('utf8').on('data', more);
  child.stderr.setEncoding('utf8').on('data', more);
  child.on('exit', () => { running.delete(child); more('\n[it has ended]'); });
  const printed = async part => {
    const patience = setTimeout(() => more('\n[it has ended: too late]'), 120_000);
    for (;;) {
      const line = output.split('\n').find(one => one.includes(part));
      if (line !== undefined) { clearTimeout(patience); return line; }
      if (output.includes('[it has ended')) throw new Error(`no '${part}' in:\n${output}`);
      await new Promise(done => { wake = done; });
    }
  };
  return { child, printed, say: text => child.stdin.write(`${text}\n`) };
}

function stop({ child }) {
  running.delete(child);
  try { process.kill(-child.pid, 'SIGTERM'); } catch { /* it has ended */ }
}

async function copiesAndTalks() {
  const dir = folder('copied', '.');
  writeFileSync(path.join(dir, 'mine.cpp'), between('```cpp\n', '```'));
  const [command, output] = between('    $ ', '\n\n').split('\n');
  const server = start(command, dir);
  const withoutTime = line => line.replace(/^ *[0-9.]+ /, '');
  assert.equal(withoutTime(await server.printed('listening')), withoutTime(output));

  const shell = start(`npx${between('```\n    npx', '\n')}`, here);
  await server.printed(' came');
  const heard = await new Promise((hear, fail) => {
    const script = between('```js\n', '```');
    new Function('WebSocket', 'console', script)(WebSocket, { log: hear });
    shell.printed('hello from the browser').then(() => shell.say('hello from the shell'), fail);
  });
  assert.equal(heard.toString(), 'hello from the shell');
  stop(shell);
  stop(server);
}

function buildsWithCMake() {
  const dir = folder('cmake', 'ws');
  const program = between('```cpp\n', '```').replace('"server.h"', between('folder: `#include ', '`'));
  writeFileSync(path.join(dir, 'mine.cpp'), program);
  writeFileSync(path.join(dir, 'CMakeLists.txt'),
    `cmake_minimum_required(VERSION 3.12)\nproject(mine CXX)\n${between('```cmake\n', '```')}`);
  const run = words => {
    console.log(`  cmake ${words.join(' ')}`);
    execFileSync('cmake', words, { cwd: dir, stdio: ['ignore', 'pipe', 'inherit'] });
  };
  run(['-S', '.', '-B', 'build']);
  run(['--build', 'build']);
}

// Each with the headers that it names, and no others.
async function compilesEachBlockAlone() {
  const dir = folder('blocks', 'ws');
  cpSync(path.join(root, 'tests/readme.h'), path.join(dir, 'readme.h'));
  const awk = only => execFileSync('awk', ['-f', 'tests/readme.awk', '-v', `only=${only}`, 'README.md'],
    { cwd: root, encoding: 'utf8' });
  for (const name of awk('names').trim().split('\n')) {
    console.log(`  ${name}`);
    writeFileSync(path.join(dir, `${name}.cpp`), awk(name));
    await promisify(execFile)('g++', ['-std=c++17', '-fsyntax-only', '-Wall', '-Werror', `${name}.cpp`],
      { cwd: dir });
  }
}

async function makesANewProject() {
  const dir = path.join(scratch, 'my chat');  // with a space
  const words = ['new', between('make new ', ' ').replace('../mychat', dir)];
  const make = () => promisify(execFile)('make', words, { cwd: root });
  await make();
  await assert.rejects(make(), /is not an empty folder/);

  // The hooks that are comments have real signatures: all of them compile.
  const main = path.join(dir, 'main.cpp');
  const text = readFileSync(main, 'utf8').replaceAll('12345', port);
  writeFileSync(main, text);
  const whole = text.replace(/^( *)\/\/ ((void|bool) .*override \{|\w+ = |  |\})/gm, '$1$2');
  const flags = readFileSync(path.join(dir, 'Makefile'), 'utf8').match(/(-Wall .*)/)[1].split(' ');
  const compile = (name, code, cxx, extra) => {
    writeFileSync(path.join(dir, name), code);
    return promisify(execFile)(cxx, ['-std=c++17', '-fsyntax-only', ...flags, ...extra, name], { cwd: dir });
  };
  const header = readFileSync(path.join(root, 'server.h'), 'utf8');
  for (const [, hook] of header.matchAll(/^ {4}virtual void (?!call)(\w+)/gm))
    assert.match(whole, new RegExp(`^    void ${hook}\\(.*\\) override \\{`, 'm'));
  await compile('hooks.cpp', whole, 'g++', ['-Werror', '-Wno-unused-parameter']);

  // The flags of its Makefile find hooks that are slightly wrong, or that lack `override`.
  const mistakes = [
    ['void postConnect(const User &, int) {}', /hidden|hides/],
    ['void postConnect(User &) {}', /hidden|hides/],
    ['void postConnect(User &, int) {}', /override/],
  ];
  for (const cxx of ['g++', 'clang++']) {
    for (const [mistake, warning] of mistakes) {
      const code = text.replace(/void postConnect.*/, mistake);
      assert.match((await compile('wrong.cpp', code, cxx, [])).stderr, warning);
    }
  }

  const server = start(`make -C '${dir}' CXXFLAGS='-O0 ${flags.join(' ')} -Werror' run`, root);
  const [url] = (await server.printed('open http')).match(/http.*/);
  assert.equal(url, `http://localhost:${port}/`);
  const page = await fetch(url);
  assert.equal(page.headers.get('Content-Type'), 'text/html; charset=utf-8');
  assert.equal(await page.text(), readFileSync(path.join(dir, 'page.html'), 'utf8'));
  const heard = await new Promise((hear, fail) => {
    const socket = new WebSocket(url.replace('http', 'ws'));
    socket.onerror = fail;
    socket.onopen = () => socket.send('hello');
    socket.onmessage = message => hear(message.data);
  });
  assert.equal(heard.toString(), 'user 1: hello');
  stop(server);
}

// `make run PORT=8000 ADDRESS=`, which the README has for the chat.
async function runsTheChatElsewhere() {
  const command = between('that is `', '`').replace('8000', port);
  const chat = start(command, root);
  await chat.printed(`open http://localhost:${port}/`);
  assert.equal((await fetch(`http://127.0.0.1:${port}/`)).status, 200);
  stop(chat);
}

for (const signal of ['SIGINT', 'SIGTERM'])
  process.on(signal, () => { for (const child of running) stop({ child }); process.exit(1); });

try {
  for (const step of [copiesAndTalks, buildsWithCMake, compilesEachBlockAlone, makesANewProject,
    runsTheChatElsewhere]) {
    if (process.argv.length > 2 && !process.argv.includes(step.name)) continue;
    console.log(`--- ${step.name}`);
    await step();
  }
  console.log('first-hour: all that the README says works');
} finally {
  for (const child of running) stop({ child });
  rmSync(scratch, { recursive: true });
}
process.exit();
