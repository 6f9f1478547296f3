// SPDX-License-Identifier: MIT
// Extendible WebSocket Server

// The page of examples/wire, every button of it, in Chromium. What the server tells the page is
// tested without a browser in black_examples_test.cpp.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import path from 'node:path';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';
import { hasIcon, launchBrowser } from './pages.mjs';
import { MIB, WIRE, forEach, lightness, start, stopAll } from './support.mjs';

const limit = { timeout: 40_000 };
let browser, wire;

before(async () => {
  browser = await launchBrowser();
  wire = await start(WIRE, '--port', '0');
}, limit);

after(async () => {
  await browser?.close();
  await stopAll([wire]);
}, limit);

async function openPage(t, server = wire, options = {}) {
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

// Waits until the page's state is `name`: connecting, here, closed or lost.
const state = (page, name) => page.waitForSelector(`#status[data-state="${name}"]`);

// The frame with this number in the log, opened.
async function frame(page, number) {
  const found = page.locator('#log details.frame')
    .filter({ has: page.locator('.number', { hasText: new RegExp(`^#${number} $`) }) });
  await found.waitFor();
  if (await found.getAttribute('open') === null) await found.locator('summary').click();
  return found;
}

// What the cells of a frame say: by the name of the field, the text that a screen reader gets.
async function fieldsOf(found) {
  await found.locator('.grid').waitFor();
  const labels = await found.locator('button.cell').evaluateAll((cells) =>
    cells.map((cell) => [cell.querySelector('.name').textContent, cell.getAttribute('aria-label')]));
  return Object.fromEntries(labels);
}

// What "Copy as hex" puts on the clipboard, as bytes.
async function copied(page, found) {
  await found.locator('.copy').click();
  await found.locator('[role=status]', { hasText: 'Copied' }).waitFor();
  return Buffer.from((await page.evaluate(() => navigator.clipboard.readText())).replaceAll(' ', ''), 'hex');
}
const clipboard = { permissions: ['clipboard-read', 'clipboard-write'] };

// A client's frame taken apart, as RFC 6455 5.2 and 5.3 have it.
function parsed(bytes) {
  const short = bytes[1] & 0x7f, extended = short < 126 ? 0 : short === 126 ? 2 : 8;
  const masked = bytes[1] >= 0x80, start = 2 + extended + (masked ? 4 : 0);
  const key = masked ? bytes.subarray(start - 4, start) : [0, 0, 0, 0];
  return { fin: bytes[0] >> 7, opcode: bytes[0] & 15, masked, extended, key,
    payload: bytes.subarray(start).map((byte, i) => byte ^ key[i % 4]) };
}

const summaries = (page) => page.locator('#log summary').allTextContents();

// ----------------------------------------------------------------------------
// The handshake
// ----------------------------------------------------------------------------

test('the handshake is shown as it was, its lines marked, the accept computed step by step', limit, async (t) => {
  const page = await openPage(t);
  const heads = page.locator('#heads .head');
  const request = await heads.nth(0).locator('code').allTextContents();
  assert.match(request[0], /^GET \/wire\?ticket=[0-9a-f]{32} HTTP\/1.1$/);
  const key = request.find((line) => line.startsWith('Sec-WebSocket-Key: ')).slice(19);
  for (const [line, place] of [['GET', '4.1, point 2'], ['Host', '4.1, point 4'], ['Upgrade', '4.1, point 5'],
    ['Connection', '4.1, point 6'], ['Sec-WebSocket-Key', '4.1, point 7'], ['Origin', '4.1, point 8'],
    ['Sec-WebSocket-Version', '4.1, point 9'], ['Sec-WebSocket-Extensions', '4.1, point 11']]) {
    const marked = heads.nth(0).locator('li.matters', { has: page.locator(`code:text-matches("^${line}[ :]")`) });
    assert.match(await marked.locator('small').textContent(), new RegExp(`^RFC 6455 ${place}: `));
  }
  assert.equal(await heads.nth(0).locator('li', { hasText: 'User-Agent' }).locator('small').count(), 0);
  const marks = await heads.nth(1).locator('li.matters small').allTextContents();
  assert.deepEqual(marks.map((text) => text.match(/step (5.\d)/)[1]), ['5.1', '5.2', '5.3', '5.4']);

  const guid = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const hash = createHash('sha1').update(key + guid).digest();
  const steps = await page.locator('#heads .steps code').allTextContents();
  assert.deepEqual(steps, [key, key + guid, hash.toString('hex').match(/../g).join(' '), hash.toString('base64')]);
  assert.match(await page.locator('#heads .steps b').textContent(), /^✓/);
  assert.ok(await heads.nth(1).getByText(`Sec-WebSocket-Accept: ${hash.toString('base64')}`).isVisible());
  assert.deepEqual(page.troubles, []);
});

// ----------------------------------------------------------------------------
// The composer
// ----------------------------------------------------------------------------

test('a text goes out masked and comes back unmasked, bit by bit', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.click('#composer .main');
  const up = await frame(page, 1), down = await frame(page, 2);
  const sent = await copied(page, up);
  const { key, payload, ...rest } = parsed(sent);
  assert.deepEqual(rest, { fin: 1, opcode: 1, masked: true, extended: 0 });
  assert.equal(payload.toString(), 'Hello');
  assert.deepEqual(await copied(page, down), Buffer.from('\x81\x05Hello', 'latin1'));

  const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, '0'));
  const fields = await fieldsOf(up);
  assert.match(fields.FIN, /^FIN 1\. FIN is 1: .* RFC 6455 5\.2, 5\.4\.$/);
  for (const name of ['RSV1', 'RSV2', 'RSV3']) assert.match(fields[name], /^RSV. 0\. RSV. is reserved .* RFC 6455 5\.2\.$/);
  assert.match(fields.opcode, /^opcode 0001\. opcode 1 is “text”: .* RFC 6455 5\.6\.$/);
  assert.match(fields.MASK, /^MASK 1\. .* RFC 6455 5\.1\.$/);
  assert.match(fields.length, /^length 0000101 = 5\. length is 5, .* RFC 6455 5\.2\.$/);
  assert.match(fields['masking key'], /^masking key [0-9a-f]{2} [0-9a-f]{2}\. .* RFC 6455 5\.3\.$/);
  assert.match(fields.payload, /^payload .* is masked, and has 5 bytes\. RFC 6455 5\.3\.$/);
  // The grid: 16 bits of header, then the key and the payload from bit 16 on.
  const cells = await up.locator('.cell').evaluateAll((all) => all.map((cell) =>
    [cell.dataset.field, cell.style.gridArea.replaceAll(' ', ''), cell.querySelector('.mono').textContent]));
  assert.deepEqual(cells.slice(7), [
    ['mask', '2/17/auto/span16', hex(key.subarray(0, 2)).join(' ')], ['mask', '3/1/auto/span16', hex(key.subarray(2)).join(' ')],
    ['payload', '3/17/auto/span16', hex(sent.subarray(6, 8)).join(' ')], ['payload', '4/1/auto/span24', hex(sent.subarray(8)).join(' ')]]);
  // The XOR of the first bytes.
  const rows = await up.locator('tr').evaluateAll((all) => all.map((row) =>
    [...row.cells].map((cell) => (cell.querySelector('code') ?? cell).textContent)));
  assert.deepEqual(rows, [['as sent', ...hex(sent.subarray(6))], ['XOR key', ...hex([...key, key[0]])],
    ['payload', ...hex(Buffer.from('Hello'))], ['in ASCII', ...'Hello']]);
  assert.ok(await up.getByText('“Hello”').isVisible());

  const plain = await fieldsOf(down);
  assert.match(plain.MASK, /^MASK 0\. MASK is 0: .* A server must not mask its frames\. RFC 6455 5\.1\.$/);
  assert.equal(plain['masking key'], undefined);
  assert.equal(await down.locator('table').count(), 0);
  assert.match(await page.locator('#news').textContent(), /2 new frames|1 new frame; the last: #2 server → page text 5 bytes/);
  assert.deepEqual(page.troubles, []);
});

forEach('a message of', [
  ['0 bytes has no payload', '0', 0, undefined, [0]],
  ['125 bytes has its length in 7 bits', '125', 0, undefined, [125]],
  ['126 bytes has it in 16 bits', '126', 2, /is 126 bytes/, [126]],
  ['65 535 bytes has it in 16 bits', '65 535', 2, /is 65 535 bytes/, [65535]],
  ['65 536 bytes has it in 64 bits', '65 536', 8, /is 65 536 bytes/, [65536]],
], async (label, extended, words, [size], t) => {
  const page = await openPage(t, wire, clipboard);
  const button = page.locator('#lengths button', { hasText: new RegExp(`^${label.replace(' ', '\u202f')}$`) });
  if (size > 0) await button.click();
  else await page.fill('#length', '0');
  assert.equal(await page.inputValue('#length'), String(size));
  await page.click('#composer .main');
  const down = await frame(page, 2), got = parsed(await copied(page, down));
  assert.equal(got.extended, extended);
  assert.equal(got.payload.toString(), 'Hello'.repeat(size / 5 + 1).slice(0, size));
  const fields = await fieldsOf(down);
  assert.equal(fields['extended length'] === undefined, extended === 0);
  if (extended) assert.match(fields['extended length'].replaceAll('\u202f', ' '), words);
  assert.deepEqual(page.troubles, []);
});

test('a message of 1 MiB passes, a longer one is not sent; the page keeps the first 128 KiB', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.fill('#length', String(MIB + 1));
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /^The server takes up to 1.048.576 bytes\./);
  await page.fill('#length', String(MIB));
  await page.click('#composer .main');
  const down = page.locator('details.down').first();
  await down.waitFor();
  assert.match(await down.locator('summary').textContent(), /text 1.048.576 bytes/);
  assert.match((await fieldsOf(down))['extended length'], /is 1.048.576 bytes/);
  assert.equal((await copied(page, down)).length, 128 * 1024 + 10);
  assert.match(await down.locator('[role=status]').textContent(), /^Copied the first 131.082 bytes\.$/);
  // While it is on its way, the page sends no more than that.
  await page.evaluate(() => { for (let i = 0; i < 3; ++i) document.forms.composer.requestSubmit(); });
  assert.match(await page.textContent('#said'), /^Wait a moment/);
  await page.locator('#log .number', { hasText: '#4 ' }).waitFor();
  assert.deepEqual(page.troubles, []);
});

test('binary data is typed in hexadecimal digits', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.getByLabel('Binary').check();
  assert.equal(await page.inputValue('#payload'), '48 65 6c 6c 6f');
  assert.equal(await page.textContent('#payloadLabel'), 'Payload, in hexadecimal digits');
  await page.fill('#payload', '00 fF7');
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /pairs of hexadecimal digits/);
  await page.fill('#payload', '00 fF7e');
  await page.click('#composer .main');
  assert.deepEqual(await copied(page, await frame(page, 2)), Buffer.from([0x82, 3, 0, 0xff, 0x7e]));
  await page.fill('#length', '5');
  await page.click('#composer .main');
  assert.deepEqual(await copied(page, await frame(page, 4)), Buffer.from([0x82, 5, 0, 0xff, 0x7e, 0, 0xff]));
  await page.fill('#payload', '48 69');
  await page.getByLabel('Text', { exact: true }).check();
  assert.equal(await page.inputValue('#payload'), 'Hi');
});

test('a text that would be cut inside a character ends with dots', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.fill('#payload', '5 €');
  for (const [length, text] of [[5, '5 €'], [9, '5 €5 ..'], [7, '5 €5 '], [10, '5 €5 €']]) {
    await page.fill('#length', String(length));
    await page.click('#composer .main');
    await page.locator('#log .preview', { hasText: text }).first().waitFor();
  }
  assert.equal(await page.getAttribute('#status', 'data-state'), 'here');
});

test('the small client sends a message in fragments', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.fill('#pieces', '3');
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /The small client sends it/);
  await page.getByText('The connection of the small client has ended: 1000').waitFor();
  const frames = [];
  for (let number = 1; number <= 6; ++number) frames.push(parsed(await copied(page, await frame(page, number))));
  assert.deepEqual(frames.map(({ fin, opcode, masked, payload }) => [fin, opcode, masked, payload.toString('latin1')]), [
    [0, 1, true, 'H'], [0, 0, true, 'el'], [1, 0, true, 'lo'], [1, 8, true, '\x03\xe8'],
    [1, 1, false, 'Hello'], [1, 8, false, '\x03\xe8']]);
  assert.match((await fieldsOf(await frame(page, 1))).FIN, /^FIN 0\. FIN is 0: more frames/);
  assert.match((await summaries(page)).join('\n'), /small client → server continuation 2 bytes/);
  // Its own handshake is there as well.
  const opening = page.locator('#log .opening');
  await opening.locator('summary').click();
  assert.ok(await opening.getByText('✓ The answer says the same').isVisible());
  await page.fill('#pieces', '51');
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /1 to 50 frames/);
});

test('a ping is answered by a pong with its payload', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  await page.click('#ping');
  await page.getByText('The connection of the small client has ended: 1000').waitFor();
  const [ping, , pong] = [await frame(page, 1), await frame(page, 2), await frame(page, 3)];
  assert.equal(parsed(await copied(page, ping)).opcode, 9);
  assert.deepEqual(await copied(page, pong), Buffer.from('\x8a\x05Hello', 'latin1'));
  assert.match((await fieldsOf(pong)).opcode, /A is “pong”: the frame answers a Ping/);
  await page.fill('#length', '126');
  await page.click('#ping');
  assert.match(await page.textContent('#said'), /at most 125 bytes/);
});

forEach('closing', [
  ['with a code and a reason', '4000', 'Lunch', 'page', /Close code 4000, reason “Lunch”/, 4000],
  ['with 1000', '1000', '', 'page', /Close code 1000 \(normal closure\), no reason/, 1000],
  ['without a code', '', '', 'page', undefined, 1005],
], async (code, reason, from, words, seen, t) => {
  const page = await openPage(t);
  await page.fill('#code', code);
  await page.fill('#reason', reason);
  await page.click('#close');
  await state(page, 'closed');
  const up = await frame(page, 1), down = await frame(page, 2);
  assert.match(await up.locator('summary').textContent(), new RegExp(`${from} → server close`));
  if (words) assert.match(await up.textContent(), words);
  if (words) assert.match(await down.textContent(), new RegExp(`Close code ${code}`));
  await page.getByText(`The connection of the page has ended: ${seen}`).waitFor();
  assert.match(await page.textContent('#why'), new RegExp(`is closed, code ${seen}`));
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /connect again/);
  await page.click('#close');
  assert.match(await page.textContent('#said'), /closed already/);
  const before = await page.locator('#heads code').first().textContent();
  await page.focus('#close');
  await page.keyboard.press('Tab');  // goes on to the button that connects again
  await page.keyboard.press('Enter');
  await state(page, 'here');
  assert.equal(await page.isVisible('#notice'), false);
  assert.equal(await page.locator(':focus').textContent(), 'Send');
  await page.waitForFunction((old) => document.querySelector('#heads code').textContent !== old, before);
  await page.click('#composer .main');
  await frame(page, 4);
  assert.deepEqual(page.troubles, []);
});

test('codes that a page may not send go through the small client; the page says what cannot be', limit, async (t) => {
  const page = await openPage(t);
  await page.fill('#code', '1001');
  await page.fill('#reason', 'Bye');
  await page.click('#close');
  await page.getByText('The connection of the small client has ended: 1001 (going away), “Bye”').waitFor();
  for (const [code, reason, words] of [['', 'Why?', /needs a code/], ['70000', '', /16 bits/], ['1000', 'x'.repeat(124), /at most 123 bytes/]]) {
    await page.fill('#code', code);
    await page.fill('#reason', reason);
    await page.click('#close');
    assert.match(await page.textContent('#said'), words);
  }
  assert.equal(await page.getAttribute('#status', 'data-state'), 'here');
});

// ----------------------------------------------------------------------------
// The mistakes
// ----------------------------------------------------------------------------

const mistakes = [
  ['Unmasked', 'RFC 6455 5.1', 1002, 'MASK'],
  ['A reserved bit', 'RFC 6455 5.2', 1002, 'RSV1'],
  ['A reserved opcode', 'RFC 6455 5.2', 1002, 'opcode'],
  ['A fragmented ping', 'RFC 6455 5.5', 1002, 'FIN'],
  ['A ping of 126 bytes', 'RFC 6455 5.5', 1002, 'length'],
  ['A length that is not minimal', 'RFC 6455 5.2', 1002, 'extended length'],
  ['A length with the top bit', 'RFC 6455 5.2', 1002, 'extended length'],
  ['A continuation of nothing', 'RFC 6455 5.4', 1002],
  ['A message inside a message', 'RFC 6455 5.4', 1002],
  ['Text that is not UTF-8', 'RFC 6455 8.1', 1007],
  ['Text that ends inside a character', 'RFC 6455 5.6', 1007],
  ['A close code that may not be sent', 'RFC 6455 7.4.1', 1002],
  ['A Close of one byte', 'RFC 6455 5.5.1', 1002],
  ['A message that is too big', 'RFC 6455 10.4', 1009],
  ['A wrong version', 'RFC 6455 4.2.2', 426, 'Sec-WebSocket-Version: 8'],
  ['A short key', 'RFC 6455 4.2.1', 400, 'Sec-WebSocket-Key: c2hvcnQ='],
  ['A foreign origin', 'RFC 6455 10.2', 403, 'Origin: https://evil.example'],
  ['A POST', 'RFC 6455 4.2.1', 405, 'POST /wire HTTP/1.1'],
  ['A folded header', 'RFC 9112 5.2', 400, '\n Upgrade'],
];

test('the shelf has these mistakes and no others', limit, async (t) => {
  const page = await openPage(t);
  assert.deepEqual(await page.locator('.shelf button').allTextContents(), mistakes.map(([label]) => label));
});

test('for each mistake the page shows what was sent, the rule, what it earned, and the code', { timeout: 100_000 }, async (t) => {
  const page = await openPage(t);
  for (const mistake of mistakes) await t.test(mistake[0], () => showsMistake(page, ...mistake));
  assert.deepEqual(page.troubles, []);
});

async function showsMistake(page, label, section, earns, wrong) {
  const result = page.locator('#result');
  await page.click(`.shelf button:text-is("${label}")`);
  await page.locator('#resultTitle', { hasText: label }).waitFor();
  const verdict = result.locator('.verdict');
  assert.match(await verdict.textContent(), new RegExp(`^(Close code|HTTP status) ${earns} [(\\w]`));
  assert.equal(await verdict.getAttribute('class'), 'verdict');
  assert.equal(await result.locator('dd b').textContent(), section);
  assert.ok((await result.locator('dd').first().textContent()).length > 60);
  assert.ok(await result.getByText('The server closed the TCP connection.').isVisible());
  assert.match(await page.textContent('#news'), new RegExp(`^${label}: .*${earns}`));
  assert.equal(await page.locator('.shelf [aria-current]').textContent(), label);
  if (earns < 1000) {
    const [out, back] = await result.locator('pre').allTextContents();
    assert.ok(out.includes(wrong), out);
    assert.match(back, new RegExp(`^HTTP/1.1 ${earns} `));
  } else {
    const frames = result.locator('details.frame');
    const last = frames.last(), count = await frames.count();
    assert.equal(count, label === 'A message inside a message' ? 3 : 2);
    assert.match(await last.locator('summary').textContent(), new RegExp(`server → small client close .*${earns}`));
    const marked = await frames.first().locator('.cell.wrong .name').allTextContents();
    assert.deepEqual(marked, wrong ? [wrong] : []);
    assert.equal(await frames.first().getByText('the rest was not sent').count(), /top bit|too big/.test(label) ? 1 : 0);
  }
  // The link leads to the function, and the browser marks it.
  const [source] = await Promise.all([page.waitForEvent('popup'), result.locator('a').click()]);
  await source.waitForLoadState();
  const { name, code, background } = await source.evaluate(() => {
    const found = document.querySelector(':target');
    return { name: found.id, code: found.textContent, background: getComputedStyle(found).backgroundColor };
  });
  assert.equal(name, await result.locator('a code').textContent());
  assert.match(code, new RegExp(`${name}\\([^;]*{\\n`));
  assert.match(await result.locator('a').textContent(), new RegExp(`line ${code.match(/\d+/)[0]} of`));
  assert.notEqual(background, 'rgba(0, 0, 0, 0)');
  await source.close();
}

// ----------------------------------------------------------------------------
// Trouble
// ----------------------------------------------------------------------------

test('thousands of frames: the last 200 are kept, and the page still answers', limit, async (t) => {
  const page = await openPage(t);
  await page.evaluate(() => { for (let i = 0; i < 3000; ++i) document.forms.composer.requestSubmit(); });
  await page.locator('#log .number', { hasText: '#6000 ' }).waitFor();
  assert.equal(await page.locator('#log > li').count(), 200);
  assert.equal((await page.textContent('#dropped')).replace('\u202f', ' '), 'The last 200 are kept; 5 800 are gone.');
  assert.ok(await page.locator('#log details[open]').count() <= 2);
  await page.click('#clear');
  assert.equal(await page.locator('#log > li').count(), 0);
  assert.equal(await page.textContent('#dropped'), '');
  await page.click('#composer .main');
  await frame(page, 6002);
  assert.equal(await page.locator('#log > li').count(), 2);
});

test('two pages see their own frames only', limit, async (t) => {
  const ann = await openPage(t), bob = await openPage(t);
  await ann.fill('#payload', 'Ann');
  await bob.fill('#payload', 'Bob');
  for (const page of [ann, bob, ann]) await page.click('#composer .main');
  await frame(ann, 4);
  await frame(bob, 2);
  assert.doesNotMatch((await summaries(ann)).join(), /Bob/);
  assert.doesNotMatch((await summaries(bob)).join(), /Ann/);
  assert.equal(await bob.locator('#log > li').count(), 2);
});

test('when the server stops, the page says so; it comes back with the server', limit, async (t) => {
  const first = await start(WIRE, '--port', '0');
  t.after(() => first.kill());  // if the test fails before its stop()
  const page = await openPage(t, first);
  await page.click('#composer .main');
  await frame(page, 2);
  await first.stop();
  await state(page, 'lost');
  assert.equal(await page.textContent('#why'), 'The server has shut down.');
  await page.click('.shelf button >> nth=0');  // nothing happens
  await page.click('#composer .main');
  assert.match(await page.textContent('#said'), /connect again/);
  await page.click('#reconnect');  // in vain
  await page.locator('#why', { hasText: 'does not answer' }).waitFor();
  const second = await start(WIRE, '--port', String(first.port));
  t.after(() => second.stop());
  await page.click('#reconnect');
  await state(page, 'here');
  await page.click('#composer .main');
  await frame(page, 4);
  assert.equal(await page.locator('.shelf button').count(), mistakes.length);
});

test('a page that the server has disconnected as too slow says so, and starts over', limit, async (t) => {
  const page = await openPage(t);
  let attempts = 0;
  await page.routeWebSocket(/trace$/, (socket) => {
    socket.connectToServer();
    if (++attempts === 1) setTimeout(() => socket.close({ code: 1008 }), 500);
  });
  await page.reload();
  await page.locator('#why', { hasText: 'read too slowly' }).waitFor();
  await state(page, 'here');
});

test('an observer that does not read costs the server its queue and no more', limit, async (t) => {
  const observer = new WebSocket(wire.url('/trace'));
  t.after(() => observer.terminate());
  const [welcome] = await once(observer, 'message');
  const closed = once(observer, 'close');
  observer.pause();
  const studied = new WebSocket(wire.url(`/wire?ticket=${JSON.parse(welcome).ticket}`));
  t.after(() => studied.terminate());
  await once(studied, 'open');
  for (let i = 0; i < 30; ++i) {
    studied.send(Buffer.alloc(MIB));
    const [echo] = await once(studied, 'message');  // it is served all the same
    assert.equal(echo.length, MIB);
  }
  observer.resume();
  const [code] = await closed;
  assert.ok([1006, 1008].includes(code), String(code));
});

test('without the clipboard of secure pages, copying works the old way', limit, async (t) => {
  const context = { permissions: ['clipboard-read', 'clipboard-write'] };
  const page = await openPage(t, wire, context);
  await page.evaluate(() => {
    globalThis.board = navigator.clipboard;
    Object.defineProperty(navigator, 'clipboard', { value: undefined });
  });
  await page.click('#composer .main');
  const down = await frame(page, 2);
  await down.locator('.copy').click();
  await down.locator('[role=status]', { hasText: 'Copied 7 bytes.' }).waitFor();
  assert.equal(await page.evaluate(() => board.readText()), '81 05 48 65 6c 6c 6f');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Copy as hex');
});

// ----------------------------------------------------------------------------
// Keyboard, colours, sizes
// ----------------------------------------------------------------------------

// Presses Tab until the element that has the focus fits.
async function tabTo(page, selector) {
  for (let i = 0; i < 120; ++i) {
    await page.keyboard.press('Tab');
    const found = await page.evaluate((selector) => document.activeElement.matches(selector), selector);
    if (found) return page.locator(':focus');
  }
  throw new Error(`the Tab key does not reach ${selector}`);
}

test('all of it works with the keyboard alone', limit, async (t) => {
  const page = await openPage(t, wire, clipboard);
  const outlined = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle !== 'none');
  await tabTo(page, '#large');
  await page.keyboard.press('Space');
  assert.equal(await page.getAttribute('#large', 'aria-pressed'), 'true');
  await page.keyboard.press('Space');
  await tabTo(page, '#payload');
  await page.keyboard.press('Control+A');
  await page.keyboard.type('Keys');
  await tabTo(page, '#composer .main');
  assert.ok(await outlined());
  await page.keyboard.press('Enter');
  const down = await frame(page, 2);
  await tabTo(page, '#log summary');
  await page.keyboard.press('Enter');  // closes it
  assert.equal(await down.getAttribute('open'), null);
  await page.keyboard.press('Enter');
  await tabTo(page, '.cell[data-field="length"]');
  assert.ok(await outlined());
  assert.match(await down.locator('.explain').textContent(), /^length is 4, in bytes: .* RFC 6455 5\.2$/);
  await tabTo(page, '.copy');
  await page.keyboard.press('Enter');
  await down.locator('[role=status]', { hasText: 'Copied 6 bytes.' }).waitFor();
  await tabTo(page, '#clear');
  await page.keyboard.press('Enter');
  await tabTo(page, '.shelf button');
  await page.keyboard.press('Enter');
  await page.locator('#resultTitle', { hasText: 'Unmasked' }).waitFor();
  await tabTo(page, '#result a');
  assert.deepEqual(page.troubles, []);
});

test('a pointer shows what a field is', limit, async (t) => {
  const page = await openPage(t);
  await page.click('#composer .main');
  const up = await frame(page, 1);
  assert.match(await up.locator('.explain').textContent(), /^opcode 1 is “text”/);
  await up.locator('.cell[data-field="mask"]').nth(0).hover();
  assert.match(await up.locator('.explain').textContent(), /^MASK is 1/);
  await up.locator('.cell[data-field="mask"]').nth(2).hover();  // the key's second half
  assert.match(await up.locator('.explain').textContent(), /^masking key is 32 bits/);
  await up.locator('.cell[data-field="payload"]').first().click();
  assert.match(await up.locator('.explain').textContent(), /^payload is masked, and has 5 bytes\./);
});

// Runs in a page: texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3).
function faintTexts() {
  const rgb = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = rgb(colour).map((part) => (part / 255 <= .04045 ? part / 255 / 12.92 : ((part / 255 + .055) / 1.055) ** 2.4));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (element) => {
    const { backgroundColor } = getComputedStyle(element);
    return rgb(backgroundColor)[3] === 0 && element.parentElement ? behind(element.parentElement) : backgroundColor;
  };
  const faint = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || element.closest('script, style') || element.getClientRects().length === 0) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.add(`${text.slice(0, 30)}: ${((a + .05) / (b + .05)).toFixed(2)}`);
  }
  return [...faint];
}

const looks = [
  ['wide-light', { width: 1200, height: 800 }, 'light'],
  ['wide-dark', { width: 1200, height: 800 }, 'dark'],
  ['narrow-light', { width: 360, height: 780 }, 'light'],
  ['narrow-dark', { width: 360, height: 780 }, 'dark'],
  ['large-light', { width: 1024, height: 768 }, 'light'],
  ['large-narrow', { width: 360, height: 780 }, 'dark'],
];

test('the page fits into wide and narrow windows, light and dark, with large type', limit, async (t) => {
  const page = await openPage(t);
  assert.ok(await hasIcon(page));
  for (const [name, size, colorScheme] of looks) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme });
    if ((await page.getAttribute('#large', 'aria-pressed') === 'true') !== name.startsWith('large')) await page.click('#large');
    await page.click('#clear');
    await page.click('#composer .main');
    await page.locator('details.up[open] .grid').first().waitFor();
    await page.click('.shelf button >> nth=6');
    await page.locator('#resultTitle', { hasText: 'top bit' }).waitFor();
    const isLight = await page.evaluate(lightness) > 0.5;
    assert.equal(isLight, colorScheme === 'light', `${name} has the wrong colours`);
    const [width, columns] = await page.evaluate(() => [document.documentElement.scrollWidth,
      getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length]);
    assert.ok(width <= size.width, `${name} needs ${width} pixels`);
    assert.equal(columns, size.width === 360 ? 16 : 32);
    assert.deepEqual(await page.evaluate(faintTexts), [], name);
    await page.evaluate(() => {
      document.activeElement.blur();
      document.getElementById('frames').scrollIntoView();
    });
    await page.mouse.move(0, 0);
    await page.screenshot({ path: path.join(process.env.SCREENSHOTS ?? '.', `wire-${name}.png`) });
  }
  await page.reload();
  assert.equal(await page.getAttribute('#large', 'aria-pressed'), 'true', 'large type is forgotten');
  assert.deepEqual(page.troubles, []);
});

test('the page asks no other server for anything', limit, async (t) => {
  const asked = [];
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  page.on('request', (request) => asked.push(request.url()));
  page.on('websocket', (socket) => asked.push(socket.url()));
  await page.goto(`http://localhost:${wire.port}/`);
  await state(page, 'here');
  const places = asked.filter((url) => !url.startsWith('data:')).map((url) => new URL(url));
  assert.deepEqual([...new Set(places.map(({ host }) => host))], [`localhost:${wire.port}`]);
  assert.deepEqual(places.map(({ pathname }) => pathname).sort(), ['/', '/trace', '/wire']);
});
