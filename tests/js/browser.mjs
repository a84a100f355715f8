// The stock client in headless Chromium, on a page of another origin than the nodes, with credentials.
//
// Prints `origin …`, where its page is, and takes one line of JSON: `listed`, a balancer before nodes that
// list this origin, and `any`, a node that takes pages from everywhere.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect, line, main, ok, received } from "./harness.mjs";
import { PATIENCE, withBrowser } from "./chromium.mjs";

const bundle = readFileSync(new URL("node_modules/socket.io-client/dist/socket.io.min.js", import.meta.url));
const TRANSPORTS = { polling: ["polling"], upgrade: ["polling", "websocket"], websocket: ["websocket"] };

const upTo = (count) => Array.from({ length: count }, (_, n) => n);

/** Serves one page with the stock client on it. */
async function serve() {
  const server = createServer((request, answer) => {
    if (request.url === "/client.js") return answer.setHeader("Content-Type", "text/javascript").end(bundle);
    answer.setHeader("Content-Type", "text/html").end('<!doctype html><script src="/client.js"></script>');
  });
  await new Promise((yes) => server.listen(0, "127.0.0.1", yes));
  return server;
}

/** Opens a client `name` on the page: `clients[name]`, with what it hears in `seen` and what befalls it in `told`. */
const open = (page, name, url, options) => page.evaluate((name, url, options) => {
  const socket = io(url, { forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 300, ...options });
  window.clients ??= {};
  window.clients[name] = Object.assign(socket, { seen: [], told: [] });
  socket.on("say", (n) => socket.seen.push(n instanceof ArrayBuffer ? [...new Uint8Array(n)] : n));
  socket.on("connect", () => socket.told.push(["connect", socket.recovered, socket.id]));
  socket.on("disconnect", (reason) => socket.told.push(["disconnect", reason]));
  socket.on("connect_error", (error) => socket.told.push(["connect_error", error.message, error.description ?? null]));
}, name, url, options);

const emit = (page, name, ...args) => page.evaluate(
  (name, args) => window.clients[name].timeout(20_000).emitWithAck(...args), name, args);

const state = (page, name) => page.evaluate((name) => {
  const { seen, told, io } = window.clients[name];
  return { seen, told, transport: io.engine.transport.name };
}, name);

/** Waits until what client `name` was told has an entry that begins with `word`, at or after `from`; gives it. */
const told = (page, name, word, from = 0) => page.waitForFunction(
  (name, word, from) => window.clients[name].told.slice(from).find(([what]) => what === word),
  PATIENCE, name, word, from).then((found) => found.jsonValue());

const heard = (page, name, count) => page.waitForFunction(
  (name, count) => window.clients[name].seen.length >= count, PATIENCE, name, count);

async function page_at(browser, origin) {
  const page = await browser.newPage();
  await page.goto(`${origin}/`);
  // Sent to every port of this host by requests with credentials.
  await page.evaluate(() => { document.cookie = "app=1"; });
  return page;
}

/** Rooms, acks, bytes both ways, the upgrade, and the way back after the network was gone. */
async function everything(page, publisher, url, name) {
  const say = async (numbers) => {
    for (const n of numbers) await ok(publisher, "publish", name, "say", n);
  };
  await open(page, name, `http://${url}`, {
    transports: TRANSPORTS[name],
    query: { product: "rooms", uid: name },
    withCredentials: true,
    // A header of the page's own makes the browser ask first, for each request.
    extraHeaders: name === "websocket" ? undefined : { "x-app": "1" },
  });
  const [, , id] = await told(page, name, "connect");
  for (const answer of [await emit(page, name, "join", name), await ok(publisher, "join", name)]) assert.equal(answer.ok, true);
  if (name === "upgrade") await page.waitForFunction(() => window.clients.upgrade.io.engine.transport.name === "websocket", PATIENCE);
  await say([...upTo(30), Buffer.from([0, 1, 255])]);
  const expected = [...upTo(30), [0, 1, 255]];
  await heard(page, name, expected.length);
  const answers = await page.evaluate((name) => Promise.all(
    ["one", "two", new Uint8Array([7, 8]).buffer].map((what) => window.clients[name].emitWithAck("publish", name, name, what))), name);
  assert(answers.every((answer) => answer.ok), JSON.stringify(answers));
  const published = await received(publisher, 3, ([event]) => event === name);
  assert.deepEqual(published.map(([, what]) => (typeof what === "string" ? what : [...what])), ["one", "two", [7, 8]]);
  const { seen, transport, told: before } = await state(page, name);
  assert.deepEqual(seen, expected);
  assert.equal(transport, name === "polling" ? "polling" : "websocket");
  assert.equal(before.length, 1, JSON.stringify(before));

  await page.setOfflineMode(true);
  await told(page, name, "disconnect");
  await say(upTo(20).map((n) => n + 100));
  await page.setOfflineMode(false);
  assert.deepEqual(await told(page, name, "connect", 1), ["connect", true, id]);
  await say([200]);
  await heard(page, name, expected.length + 21);
  assert.deepEqual((await state(page, name)).seen, [...expected, ...upTo(20).map((n) => n + 100), 200]);
}

await main({
  async origins() {
    const server = await serve();
    const { port } = server.address();
    console.log(`origin http://127.0.0.1:${port}`);
    const { listed, any } = JSON.parse(await line());
    const publisher = await connect(listed, "publisher");
    await withBrowser(async (browser) => {
      // A page for each: one that has several clients and loses the network tells only every other of them.
      await Promise.all(Object.keys(TRANSPORTS).map(async (name) => {
        const page = await page_at(browser, `http://127.0.0.1:${port}`);
        await everything(page, publisher, listed, name);
      }));

      // The same host by another name is another origin, and not on the list.
      const stranger = await page_at(browser, `http://localhost:${port}`);
      for (const [name, transports] of Object.entries(TRANSPORTS)) {
        await open(stranger, name, `http://${listed}`, { transports, query: { product: "rooms", uid: name }, reconnection: false });
        const [, message] = await told(stranger, name, "connect_error");
        assert.equal(message, name === "websocket" ? "websocket error" : "xhr poll error");
      }
      // Where any page may come, it comes without credentials: the browser keeps such an answer from it else.
      for (const [name, transports] of Object.entries(TRANSPORTS)) {
        const options = { transports, query: { product: "rooms", uid: name } };
        await open(stranger, `any-${name}`, `http://${any}`, options);
        await told(stranger, `any-${name}`, "connect");
        assert.equal((await emit(stranger, `any-${name}`, "join", "r")).ok, true);
      }
      await open(stranger, "with", `http://${any}`, { transports: ["polling"], withCredentials: true, reconnection: false });
      assert.equal((await told(stranger, "with", "connect_error"))[1], "xhr poll error");
    });
    assert.deepEqual(publisher.disconnects, []);
    server.close();
  },
});
