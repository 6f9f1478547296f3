// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// Three browser engines with one face. Puppeteer drives Chromium and Firefox; WebKitGTK speaks
// plain WebDriver (https://www.w3.org/TR/webdriver2/), HTTP with JSON. openEngine() starts a
// browser; its newWindow() opens a window with cookies and storage of its own:
//
//     open(url)            loads a page and waits until it is loaded
//     evaluate(run, arg)   calls run(arg) in the page; returns what it returns or promises
//     until(isSo, arg)     waits until isSo(arg), called in the page, returns something true
//     click(selector)      clicks on the middle of an element
//     type(selector, text) types into an element; '\n' is the Enter key
//     point(x, y)          moves the pointer there, in CSS pixels of the window

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import puppeteer from 'puppeteer-core';
import { Program, freePort, startAndRead } from './support.mjs';

const { CHROMIUM, FIREFOX, WEBKIT_DRIVER, RUNNING } = process.env;

export function openEngine(name) {
  const [program, open] = {
    chromium: [CHROMIUM, () => openPuppeteer(CHROMIUM, { args: ['--no-sandbox'] })],
    firefox: [FIREFOX, () => openPuppeteer(FIREFOX, { browser: 'firefox' })],
    webkit: [WEBKIT_DRIVER, openWebKit],
  }[name];
  assert.ok(program, `${name} is missing: run it with tests/interop/run, after "make deps-interop"`);
  return open();
}

// What the windows of all engines have in common.
class Window {
  async until(isSo, arg) {
    const end = Date.now() + 15_000;
    while (!await this.evaluate(isSo, arg)) {
      assert.ok(Date.now() < end, `waited in vain until ${isSo} with ${JSON.stringify(arg)}`);
      await delay(20);
    }
  }
}

// --- Chromium and Firefox -----------------------------------------------------------

class PuppeteerWindow extends Window {
  constructor(page) {
    super();
    this.page = page;
  }

  async open(url) { await this.page.goto(url); }
  evaluate(run, arg) { return this.page.evaluate(run, arg); }
  click(selector) { return this.page.click(selector); }
  type(selector, text) { return this.page.type(selector, text); }
  point(x, y) { return this.page.mouse.move(x, y); }
}

// Firefox does not start as root in the home of another user, as in some containers.
async function openPuppeteer(executablePath, more) {
  const home = mkdtempSync(path.join(os.tmpdir(), 'home'));
  const env = { ...process.env, HOME: home };
  const browser = await puppeteer.launch({ executablePath, env, acceptInsecureCerts: true, ...more });
  if (RUNNING) {
    const note = path.join(RUNNING, String(browser.process().pid));
    writeFileSync(note, '');
    process.on('exit', () => rmSync(note));  // when puppeteer's own handler has killed it
  }
  return {
    // A tab in the background would be slowed down; each window has one in the foreground.
    async newWindow() {
      const context = await browser.createBrowserContext();
      return new PuppeteerWindow(await context.newPage({ type: 'window' }));
    },
    async close() {
      await browser.close();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

// --- WebKit ---------------------------------------------------------------------------

const ENTER = '\ue007';
const ELEMENT = 'element-6066-11e4-a52e-4f735466cecf';  // marks a reference to one

class WebKitWindow extends Window {
  constructor(address) {
    super();
    this.address = address;
  }

  async call(method, command, parameters) {
    const body = parameters && JSON.stringify(parameters);
    const response = await fetch(this.address + command, { method, body });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`${command}: ${value.error}, ${value.message}`);
    return value;
  }

  open(url) { return this.call('POST', '/url', { url }); }

  evaluate(run, arg) {
    const script = `return (${run})(arguments[0])`;
    return this.call('POST', '/execute/sync', { script, args: [arg ?? null] });
  }

  async element(selector) {
    const found = await this.call('POST', '/element', { using: 'css selector', value: selector });
    return `/element/${found[ELEMENT]}`;
  }

  async click(selector) { await this.call('POST', `${await this.element(selector)}/click`, {}); }

  async type(selector, text) {
    await this.call('POST', `${await this.element(selector)}/value`,
      { text: text.replaceAll('\n', ENTER) });
  }

  point(x, y) {
    const move = { type: 'pointerMove', duration: 0, x: Math.round(x), y: Math.round(y) };
    return this.call('POST', '/actions',
      { actions: [{ type: 'pointer', id: 'mouse', actions: [move] }] });
  }
}

async function startDriver(env) {
  const port = await freePort();
  const driver = new Program(WEBKIT_DRIVER, [`--port=${port}`], env);
  driver.ended.catch(() => {});  // it cannot be started, so it will not answer
  driver.address = `http://127.0.0.1:${port}`;
  const answers = () => fetch(`${driver.address}/status`).then(({ ok }) => ok, () => false);
  for (const end = Date.now() + 10_000; !await answers(); await delay(20))
    if (Date.now() > end) throw new Error(`${WEBKIT_DRIVER} does not answer`);
  return driver;
}

// A driver has one session, so each window gets a driver of its own. The windows open on a
// screen in memory, which takes the first free number and prints it.
async function openWebKit() {
  const screen = await startAndRead(/^(\d+)$/, 'Xvfb', '-displayfd', 1, '-nolisten', 'tcp');
  const home = mkdtempSync(path.join(os.tmpdir(), 'home'));
  const env = { DISPLAY: `:${screen.printed[1]}`, HOME: home };
  const drivers = [];
  return {
    async newWindow() {
      const driver = await startDriver(env);
      drivers.push(driver);
      const window = new WebKitWindow(driver.address);
      const capabilities = { alwaysMatch: { acceptInsecureCerts: true } };
      const { sessionId } = await window.call('POST', '/session', { capabilities });
      window.address += `/session/${sessionId}`;
      return window;
    },
    async close() {
      for (const driver of drivers) driver.kill();
      await screen.stop();
      rmSync(home, { recursive: true, force: true });
    },
  };
}
