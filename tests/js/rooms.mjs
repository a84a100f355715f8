// The rooms product by the stock client over WebSocket: what works.

import assert from "node:assert/strict";
import { connect, main, ok, received, told, within } from "./harness.mjs";

const says = ([event]) => event === "say";

await main({
  /** Members by three nodes get what three publishers say in one and the same order. */
  async one_order(nodes) {
    const members = await Promise.all(nodes.map((node, i) => connect(node, `member${i}`)));
    const publishers = await Promise.all(nodes.map((node, i) => connect(node, `publisher${i}`)));
    for (const socket of [...members, ...publishers]) await ok(socket, "join", "order");
    const each = 100;
    await Promise.all(publishers.map(async (socket, who) => {
      const acks = [];
      for (let n = 0; n < each; n++) acks.push(ok(socket, "publish", "order", "say", who, n));
      const positions = (await Promise.all(acks)).map((ack) => ack.pos);
      assert.equal(new Set(positions).size, each, "each publish has a position of its own");
    }));
    const all = each * publishers.length;
    const orders = await Promise.all(members.map((socket) => received(socket, all, says)));
    for (const order of orders) {
      assert.deepEqual(order, orders[0]);
      assert.equal(new Set(order.map(String)).size, all, "nothing twice");
      for (const who of publishers.keys()) {
        const own = order.filter(([, from]) => from === who).map(([, , n]) => n);
        assert.deepEqual(own, [...Array(each).keys()], "one publisher's order is kept");
      }
    }
    // Publishers are members too, and do not get their own.
    const others = await received(publishers[0], all - each, says);
    assert.ok(others.every(([, from]) => from !== 0));
  },

  /** `self` includes the sender, before its ack; `except` leaves out sessions and members of rooms. */
  async self_and_except(nodes) {
    const [a, b, c] = await Promise.all(["a", "b", "c"].map((uid, i) => connect(nodes[i % nodes.length], uid)));
    for (const socket of [a, b, c]) await ok(socket, "join", "r");
    await ok(c, "join", "quiet");

    await ok(a, "publish", "r", { event: "say", self: true }, 1);
    assert.deepEqual(a.seen.filter(says), [["say", 1]], "one's own event comes before its ack");
    await ok(a, "publish", "r", { event: "say", except: b.id }, 2);
    await ok(a, "publish", "r", { event: "say", except: ["quiet"] }, 3);
    await ok(a, "publish", "r", "say", 4);

    assert.deepEqual((await received(b, 3, says)).map(([, n]) => n), [1, 3, 4]);
    assert.deepEqual((await received(c, 3, says)).map(([, n]) => n), [1, 2, 4]);
    assert.deepEqual(a.seen.filter(says), [["say", 1]]);
  },

  /** The same user's second publish with an id is acked and not sent, by whichever session. */
  async dedupe(nodes) {
    const [a, again, b, member] = await Promise.all(
      ["a", "a", "b", "member"].map((uid, i) => connect(nodes[i % nodes.length], uid)));
    for (const socket of [a, again, b, member]) await ok(socket, "join", "r");
    const first = await ok(a, "publish", "r", { event: "say", id: "x" }, "a x");
    const second = await ok(again, "publish", "r", { event: "say", id: "x" }, "a x again");
    assert.equal(second.pos, first.pos);
    await ok(b, "publish", "r", { event: "say", id: "x" }, "b x");
    await ok(a, "publish", "r", { event: "say", id: "y" }, "a y");
    assert.deepEqual((await received(member, 3, says)).map(([, text]) => text), ["a x", "b x", "a y"]);
  },

  /** `rooms` tells them; leaving ends delivery. */
  async rooms_and_leave(nodes) {
    const [a, b] = await Promise.all([connect(nodes[0], "a"), connect(nodes[1], "b")]);
    for (const room of ["one", "two", "{a}three", "vier ✓"]) await ok(a, "join", room);
    await ok(b, "join", "one");
    assert.deepEqual((await ok(a, "rooms")).rooms.toSorted(), ["one", "two", "vier ✓", "{a}three"].toSorted());
    await ok(b, "publish", "one", "say", "before");
    await received(a, 1, says);
    await ok(a, "leave", "one");
    await ok(a, "leave", "one");
    await ok(b, "publish", "one", "say", "after");
    assert.deepEqual((await ok(a, "rooms")).rooms.toSorted(), ["two", "vier ✓", "{a}three"].toSorted());
    await ok(b, "join", "two");
    await ok(b, "publish", "two", "say", "there");
    assert.deepEqual((await received(a, 2, says)).map(([, text]) => text), ["before", "there"]);
  },

  /** Bytes arrive as bytes, wherever they stand, in both directions; numbers and text unharmed. */
  async binary(nodes) {
    const [a, b] = await Promise.all([connect(nodes[0], "a"), connect(nodes[1], "b")]);
    for (const socket of [a, b]) await ok(socket, "join", "r");
    const photo = Buffer.from(Array.from({ length: 70_000 }, (_, i) => i % 251));
    const nested = { list: [1, Buffer.from("inner"), { deep: Buffer.alloc(0) }], text: "ünïcödé \u0000 \u2028 💬" };
    await ok(a, "publish", "r", "photo", photo, nested, -0.5, null, 2 ** 53);
    const [[, gotPhoto, gotNested, ...rest]] = await received(b, 1);
    assert.deepEqual(Buffer.from(gotPhoto), photo);
    assert.deepEqual(Buffer.from(gotNested.list[1]), Buffer.from("inner"));
    assert.equal(gotNested.list[2].deep.length ?? gotNested.list[2].deep.byteLength, 0);
    assert.equal(gotNested.text, nested.text);
    assert.deepEqual(rest, [-0.5, null, 2 ** 53]);
    await ok(b, "publish", "r", { event: "photo", self: true }, new Uint8Array([1, 2, 3]));
    const [[, back]] = await received(a, 1);
    assert.deepEqual([...new Uint8Array(back.buffer ?? back, back.byteOffset ?? 0, back.byteLength)], [1, 2, 3]);
  },

  /** Another namespace than the main one is refused as the stock server refuses it; the main one stays. */
  async namespaces(nodes) {
    const main = await connect(nodes[0], "a");
    await assert.rejects(connect(`${nodes[0]}/side`, "a"), /Invalid namespace/);
    await ok(main, "join", "r");
    assert.deepEqual(main.disconnects, []);
  },

  /** Stays connected and goes on while another node is killed; the test says when. */
  async survive(nodes) {
    const [a, b] = await Promise.all([connect(nodes[0], "a"), connect(nodes[1], "b")]);
    const rooms = Array.from({ length: 30 }, (_, i) => `room${i}`);
    for (const room of rooms) for (const socket of [a, b]) await ok(socket, "join", room);
    for (const room of rooms) await ok(a, "publish", room, "say", "before", room);
    await received(b, rooms.length, says);
    console.log("ready");
    await told("killed");
    for (const room of rooms) await ok(a, "publish", room, "say", "after", room);
    const after = await received(b, rooms.length, ([, when]) => when === "after");
    assert.deepEqual(after.map(([, , room]) => room).toSorted(), rooms.toSorted());
    assert.deepEqual([...a.disconnects, ...b.disconnects], [], "nobody was disconnected");
    console.log("went on");
  },

  /** Told to leave by a node that stops, it comes back by itself when there is one at that address. */
  async restart(nodes) {
    const a = await connect(nodes[0], "a");
    console.log("ready");
    const reason = await within("a disconnect", new Promise((yes) => a.once("disconnect", yes)));
    assert.equal(reason, "transport close", "the client will try again by itself");
    assert.equal(a.active, true);
  },
});
