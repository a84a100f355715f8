// Long-polling and upgrade of the stock client, each request through another node: the address given is
// that of a balancer which sends each connection to the next node.

import assert from "node:assert/strict";
import http from "node:http";
import { ask, connect, main, ok, received, within } from "./harness.mjs";

/** A new TCP connection for each request. */
const agent = () => new http.Agent({ keepAlive: false });

const polling = (address, uid, more = {}) =>
  connect(address, uid, { transports: ["polling"], agent: agent(), ...more });

const upgrading = (address, uid, more = {}) =>
  connect(address, uid, { transports: ["polling", "websocket"], agent: agent(), ...more });

const upgraded = (socket) =>
  within("an upgrade", new Promise((yes) => {
    if (socket.io.engine.transport.name === "websocket") yes();
    else socket.io.engine.once("upgrade", yes);
  }));

/** The numbers of `say` that a socket has got, in order. */
const numbers = (socket) => socket.seen.filter(([event]) => event === "say").map(([, n]) => n);

const upTo = (count) => Array.from({ length: count }, (_, n) => n);

/** Rooms, acks, binary and order by polling alone. */
async function by_polling(address, more) {
  const [alice, bob] = await Promise.all([polling(address, "alice", more), polling(address, "bob", more)]);
  for (const socket of [alice, bob]) await ok(socket, "join", "r");
  for (let n = 0; n < 50; n++) await ok(alice, "publish", "r", "say", n);
  await received(bob, 50);
  assert.deepEqual(numbers(bob), upTo(50));
  // Many packets in one payload, answered in order.
  const answers = await Promise.all(upTo(40).map((n) => ask(bob, "publish", "r", { event: "say", self: true }, n)));
  assert(answers.every((answer) => answer.ok === true));
  await received(alice, 40);
  assert.deepEqual(numbers(alice), upTo(40));
  await ok(alice, "publish", "r", "bytes", { deep: [Buffer.from([1, 2, 3])] });
  const [[, got]] = await received(bob, 1, ([event]) => event === "bytes");
  assert.deepEqual(Buffer.from(got.deep[0]), Buffer.from([1, 2, 3]));
  assert.deepEqual([...alice.disconnects, ...bob.disconnects], []);
  assert.equal(alice.io.engine.transport.name, "polling");
}

await main({
  /** A new connection for each request. */
  polling_only: ([address]) => by_polling(address, {}),

  /** Connections that are kept. */
  kept: ([address]) => by_polling(address, { agent: new http.Agent({ keepAlive: true }) }),

  /** The upgrade comes while events flow both ways: nothing is lost, doubled or reordered. */
  async upgrade([address]) {
    const bob = await polling(address, "bob");
    await ok(bob, "join", "r");
    for (let round = 0; round < 10; round++) {
      const alice = await upgrading(address, `alice${round}`);
      const joined = ok(alice, "join", "r");
      const sent = upTo(30).map((n) => ok(alice, "publish", "r", { event: "say", self: true }, n));
      await joined;
      await Promise.all(sent);
      await upgraded(alice);
      await ok(alice, "publish", "r", { event: "say", self: true }, 30);
      await received(alice, 31);
      assert.deepEqual(numbers(alice), upTo(31));
      await received(bob, 31 * (round + 1), ([event]) => event === "say");
      assert.deepEqual(numbers(bob).slice(-31), upTo(31));
      assert.deepEqual(alice.disconnects, []);
      alice.disconnect();
    }
    assert.deepEqual(bob.disconnects, []);
  },

  /** Payloads near the limit, and one over it. */
  async large([address]) {
    const [alice, bob] = await Promise.all([polling(address, "alice"), upgrading(address, "bob")]);
    for (const socket of [alice, bob]) await ok(socket, "join", "r");
    const text = "x".repeat(900_000);
    await ok(alice, "publish", "r", "say", text);
    const [[, got]] = await received(bob, 1);
    assert.equal(got.length, text.length);
    await ok(bob, "publish", "r", "say", text);
    assert.equal((await received(alice, 1))[0][1].length, text.length);
    const closed = within("a close", new Promise((yes) => alice.once("disconnect", yes)));
    alice.emit("publish", "r", "say", "x".repeat(1_100_000));
    assert.match(await closed, /^transport /);
    assert.deepEqual(bob.disconnects, []);
  },

  /** The session of a polling client goes on after its node is killed. */
  async recovered([address]) {
    const bob = await connect(address, "bob", { transports: ["websocket"] });
    const alice = await polling(address, "alice", {
      query: { product: "rooms", uid: "alice", recovery: "1" },
      reconnectionDelay: 50,
      reconnectionDelayMax: 200,
    });
    for (const socket of [alice, bob]) await ok(socket, "join", "r");
    for (let n = 0; n < 20; n++) await ok(bob, "publish", "r", "say", n);
    await received(alice, 20);
    const { id } = alice;
    const back = new Promise((yes) => alice.once("connect", yes));
    // As a lost network: the polls that are open end.
    alice.io.engine.transport._poll = () => {};
    alice.io.engine.transport.onError("cut");
    for (let n = 20; n < 60; n++) await ok(bob, "publish", "r", "say", n);
    await within("a reconnect", back);
    assert.deepEqual([alice.recovered, alice.id], [true, id]);
    for (let n = 60; n < 80; n++) await ok(bob, "publish", "r", "say", n);
    await received(alice, 80);
    assert.deepEqual(numbers(alice), upTo(80));
  },
});
