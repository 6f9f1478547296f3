// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// What the browser tests share: Chromium, and users of the chat's page.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];

export function launchBrowser(...more) {
  assert.ok(process.env.CHROMIUM, 'set CHROMIUM to the browser, as tests/interop/run does');
  return chromium.launch({ executablePath: process.env.CHROMIUM, args: [...flags, ...more] });
}

// Opens the chat's page, enters a name and connects.
export async function joinAt(t, browser, url, nick) {
  const context = await browser.newContext();
  t.after(() => context.close());
  context.setDefaultTimeout(10_000);
  const page = await context.newPage();
  page.troubles = [];
  page.on('pageerror', (error) => page.troubles.push(error.message));
  page.on('console', (line) => { if (line.type() === 'error') page.troubles.push(line.text()); });
  await page.goto(url);
  await page.fill('#nick', nick);
  await page.click('#join');
  await state(page, 'here');
  return page;
}

// Waits until the page's state is `name`: out, connecting, here or lost.
export function state(page, name) {
  return page.waitForSelector(`#status[data-state="${name}"]`, { state: 'attached' });
}

export async function say(page, text) {
  await page.fill('#text', text);
  await page.press('#text', 'Enter');
}

// Waits for a message and returns its text as the page shows it.
export async function shown(page, text) {
  const found = page.locator('#messages .message .text', { hasText: text });
  await found.first().waitFor();
  return found.first().textContent();
}

export const colourOf = (page, selector) =>
  page.locator(selector).evaluate((element) => getComputedStyle(element).color);

// Whether the page brings its icon along, so that the browser does not ask for /favicon.ico.
export const hasIcon = (page) => page.evaluate(async () => {
  const icon = Object.assign(new Image(), { src: document.querySelector('link[rel=icon]').href });
  await icon.decode();
  return icon.src.startsWith('data:image/svg') && icon.width > 0;
});

// How many pixels of the document are outside the window, across and down.
export const overflow = (page) => page.evaluate(() => {
  const { scrollWidth, scrollHeight } = document.documentElement;
  return [scrollWidth - innerWidth, scrollHeight - innerHeight];
});

export const allShown = (page) => page.locator('#messages .message .text').allTextContents();
