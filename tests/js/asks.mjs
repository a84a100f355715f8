// Questions to the members of rooms, and actions on them, by stock clients at three nodes whose code is
// in `tests/tests/asks.rs`.

import assert from "node:assert/strict";
import { ask, main, open, received, within } from "./harness.mjs";

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];

/** Members of room `r`, each at a node and by transports of its own; with what they carry to come back. */
async function members(nodes) {
  const sockets = nodes.map((node, i) =>
    open(node, { product: "chat", uid: `user${i}`, recovery: "1" }, { transports: TRANSPORTS[i] }));
  await Promise.all(sockets.map((socket) => within("a connect", new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("connect_error", reject);
  }))));
  return sockets;
}

const answering = (sockets) => sockets.forEach((socket, i) =>
  socket.on("what", (text, answer) => answer(`${text} of ${i}`, Buffer.from([i, i]))));

await main({
  /** Every member answers once, with text and bytes, whoever asks by whatever transport. */
  async answers(nodes) {
    const sockets = await members(nodes);
    answering(sockets);
    const expected = [0, 1, 2].map((i) => [`name of ${i}`, 2]);
    for (const socket of sockets) assert.deepEqual(await ask(socket, "ask", "name"), { complete: true, all: expected });
    const got = sockets.map((socket) => socket.seen.filter(([event]) => event === "what").length);
    assert.deepEqual(got, [3, 3, 3]);
  },

  /** One says nothing, one goes while it is asked: the others' answers come, with the word of Socket.IO. */
  async partial(nodes) {
    const sockets = await members(nodes);
    answering(sockets.slice(0, 1));
    sockets[1].on("what", () => sockets[1].disconnect());
    const told = await ask(sockets[0], "ask", "name");
    assert.deepEqual(told, { complete: false, all: [["name of 0", 2]], missing: 2, error: "operation has timed out" });
  },

  /** Members are moved, told, and sent away in the order of the room's events. */
  async actions(nodes) {
    const [a, b, c] = await members(nodes);
    assert.deepEqual(await ask(a, "join all", "new"), 3);
    await ask(b, "say", "new", 1);
    for (const socket of [a, b, c]) await received(socket, 1, ([event, n]) => event === "said" && n === 1);
    // One handler: an event, everybody else leaves, another event.
    await ask(a, "say, leave, say", "new");
    await received(a, 3, ([event]) => event === "said");
    await ask(a, "say", "r", 4);
    for (const socket of [b, c]) {
      await received(socket, 1, ([event, n]) => event === "said" && n === 4);
      const said = socket.seen.filter(([event]) => event === "said").map(([, n]) => n);
      assert.deepEqual(said, [1, 2, 4], "what came after the leave is not for it");
    }
    assert.equal(await ask(a, "end others"), 2);
    for (const socket of [b, c]) {
      await within("a disconnect", new Promise((yes) => socket.connected ? socket.once("disconnect", yes) : yes()));
      assert.deepEqual(socket.disconnects, ["io server disconnect"]);
    }
    assert.equal(a.connected, true);
    assert.deepEqual(await ask(a, "who"), ["user0"]);
  },
});
