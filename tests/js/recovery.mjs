// Connection state recovery by the stock client: its node dies, or its link does.

import assert from "node:assert/strict";
import { connect, main, ok, received, within } from "./harness.mjs";

const says = ([event]) => event === "say";
const rooms = ["one", "two"];

const carrying = (node, uid) =>
  connect(node, uid, {
    query: { product: "rooms", uid, recovery: "1" },
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
  });

/** Publishes numbers into the rooms by turns, each acknowledged before the next. */
async function publish(socket, from, upto) {
  for (let n = from; n < upto; n++) await ok(socket, "publish", rooms[n % rooms.length], "say", n);
}

/** All numbers below `count`, each once, those of a room in order, each with an offset behind it. */
function assertWhole(socket, count) {
  const numbers = socket.seen.filter(says).map(([, n, offset]) => {
    assert.equal(typeof offset, "string", "every event carries an offset");
    return n;
  });
  for (const [index, room] of rooms.entries()) {
    const wanted = Array.from({ length: count }, (_, n) => n).filter((n) => n % rooms.length === index);
    assert.deepEqual(numbers.filter((n) => n % rooms.length === index), wanted, `room ${room}`);
  }
}

async function setUp(nodes) {
  const [alice, bob] = await Promise.all([carrying(nodes[0], "alice"), connect(nodes[1], "bob")]);
  for (const room of rooms) for (const socket of [alice, bob]) await ok(socket, "join", room);
  return [alice, bob];
}

const reconnected = (socket) =>
  within("a reconnect", new Promise((yes) => socket.once("connect", yes)));

await main({
  /** Its node is killed while others go on publishing. */
  async killed(nodes) {
    const [alice, bob] = await setUp(nodes);
    const { id } = alice;
    await publish(bob, 0, 20);
    await received(alice, 20, says);
    alice.on("disconnect", () => {
      alice.io.uri = `http://${nodes[2]}`;
    });
    const back = reconnected(alice);
    console.log("ready");
    await publish(bob, 20, 120);
    await back;
    assert.equal(alice.recovered, true);
    assert.equal(alice.id, id);
    await publish(bob, 120, 140);
    await received(alice, 140, says);
    assertWhole(alice, 140);
    assert.deepEqual(bob.disconnects, []);
    // It can publish where it was a member, and comes back once more, without any event in between.
    await ok(alice, "publish", "one", "ping", 1);
    const again = reconnected(alice);
    alice.io.engine.transport.ws.terminate();
    await again;
    assert.deepEqual([alice.recovered, alice.id], [true, id]);
    await publish(bob, 140, 150);
    await received(alice, 150, says);
    assertWhole(alice, 150);
  },

  /** It comes back by another node while the old one still believes in the old transport. */
  async half_open(nodes) {
    const [alice, bob] = await setUp(nodes);
    const { id } = alice;
    await publish(bob, 0, 10);
    await received(alice, 10, says);
    const old = alice.io.engine;
    const oldClosed = new Promise((yes) => old.transport.ws.addEventListener("close", yes));
    // The client loses its link, and nobody tells the server.
    old.close = () => {};
    old.removeAllListeners();
    const back = reconnected(alice);
    alice.io.uri = `http://${nodes[2]}`;
    alice.io.onclose("transport close");
    await publish(bob, 10, 30);
    await back;
    assert.deepEqual([alice.recovered, alice.id], [true, id]);
    await within("the old transport to be closed", oldClosed);
    await publish(bob, 30, 40);
    await received(alice, 40, says);
    assertWhole(alice, 40);
  },

  /** Without being asked for, clients that are no browsers get events as they are. */
  async not_asked(nodes) {
    const [alice, bob] = await Promise.all([connect(nodes[0], "alice"), connect(nodes[1], "bob")]);
    for (const socket of [alice, bob]) await ok(socket, "join", "one");
    await ok(bob, "publish", "one", "say", 1);
    assert.deepEqual(await received(alice, 1, says), [["say", 1]]);
    const { id } = alice;
    const back = reconnected(alice);
    alice.io.engine.transport.ws.terminate();
    await back;
    assert.notEqual(alice.recovered, true);
    assert.notEqual(alice.id, id);
  },
});
