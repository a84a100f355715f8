// What is refused, how, and that it harms nobody: by the stock client and by raw packets.

import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { ask, connect, main, ok, open, received, within } from "./harness.mjs";

const RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];
const nested = (depth) => "[".repeat(depth) + "]".repeat(depth);

/** A Socket.IO client without a library: what it sends is not checked by anybody. */
async function raw(node, uid) {
  const socket = new WebSocket(`ws://${node}/socket.io/?EIO=4&transport=websocket&product=rooms&uid=${uid}`);
  const got = [];
  const waiting = new Set();
  socket.on("error", () => {});
  socket.on("message", (data, binary) => {
    const text = binary ? data : String(data);
    if (text === "2") return socket.send("3");
    got.push(text);
    for (const look of waiting) look();
  });
  const find = (what, wanted) => within(what, new Promise((yes) => {
    const look = () => {
      const found = got.find(wanted);
      if (found === undefined) return;
      waiting.delete(look);
      yes(found);
    };
    waiting.add(look);
    look();
  }));
  const closed = new Promise((yes) => socket.on("close", yes));
  await find("the handshake", (text) => text[0] === "0");
  socket.send("40");
  await find("CONNECT", (text) => String(text).startsWith("40"));
  const ack = (id) => find(`ack ${id}`, (text) => String(text).startsWith(`43${id}[`)).then((text) => JSON.parse(text.slice(2 + String(id).length))[0]);
  return { send: (...packets) => packets.forEach((packet) => socket.send(packet)), ack, closed, find, socket };
}

await main({
  /** Every request that can be refused is, with its code, and the connection stays. */
  async codes(nodes) {
    const a = await connect(nodes[0], "a");
    const code = async (...args) => {
      const answer = await ask(a, ...args);
      assert.equal(answer.ok, false, JSON.stringify(args).slice(0, 100));
      assert.equal(typeof answer.message, "string");
      return answer.code;
    };
    assert.equal(await code("join"), "arguments");
    assert.equal(await code("join", "r", "more"), "arguments");
    assert.equal(await code("dance", "r"), "unknown_event");
    for (const room of ["", "x".repeat(257), "a\nb", 5, null, {}]) assert.equal(await code("join", room), "room_name", String(room));
    assert.equal(await code("publish", "r", "say", 1), "not_member");
    await ok(a, "join", "r");
    assert.equal(await code("publish"), "arguments");
    assert.equal(await code("publish", "r"), "arguments");
    assert.equal(await code("publish", "r", { event: "say", exept: [] }), "arguments");
    assert.equal(await code("publish", "r", { event: "say", self: "yes" }), "arguments");
    for (const event of [...RESERVED, "x".repeat(129), null, true]) {
      assert.equal(await code("publish", "r", event, 1), "event_name", String(event));
    }
    for (const event of RESERVED) assert.equal(await code("publish", "r", { event }, 1), "event_name", event);
    assert.deepEqual((await ok(a, "rooms")).rooms, ["r"]);
    assert.deepEqual(a.disconnects, []);
  },

  /** One room more than a session may be in. The node of this test allows three. */
  async room_limit(nodes) {
    const a = await connect(nodes[0], "a");
    for (const room of ["1", "2", "3"]) await ok(a, "join", room);
    const answer = await ask(a, "join", "4");
    assert.deepEqual([answer.ok, answer.code], [false, "room_limit"]);
    await ok(a, "leave", "1");
    await ok(a, "join", "4");
  },

  /** A backend alone may publish, or put clients into rooms, where the product says so. */
  async forbidden(nodes) {
    const a = await connect(nodes[0], "a");
    assert.equal((await ask(a, "join", "other")).code, "forbidden");
    await ok(a, "join", "{a}own");
    assert.equal((await ask(a, "publish", "{a}own", "say")).code, "forbidden");
  },

  /** connect_error with data.code, as the documentation has it; no retry is asked of the client. */
  async connect_errors(nodes) {
    const refused = async (query) => {
      const socket = open(nodes[0], query);
      const error = await within("connect_error", new Promise((yes) => socket.once("connect_error", yes)));
      assert.equal(typeof error.message, "string");
      assert.equal(socket.active, false, "the client does not come back unchanged");
      socket.close();
      return error.data.code;
    };
    assert.equal(await refused({ product: "rooms" }), "uid_required");
    assert.equal(await refused({ product: "rooms", uid: "" }), "uid_required");
    assert.equal(await refused({ product: "rooms", uid: "x".repeat(129) }), "uid_invalid");
    assert.equal(await refused({ product: "nope", uid: "a" }), "product_unknown");
  },

  /** No publish closes a member's connection, whatever is in it; and honest ones go on arriving. */
  async no_publish_harms_members(nodes) {
    const members = await Promise.all(nodes.map((node, i) => connect(node, `m${i}`)));
    for (const socket of members) await ok(socket, "join", "r");
    const poison = [
      ...RESERVED.map((event) => [`["publish","r","${event}",1]`, "event_name"]),
      ...RESERVED.map((event) => [`["publish","r",{"event":"${event}"},1]`, "event_name"]),
      [`["publish","r","\\u0063onnect",1]`, "event_name"],
      [`["publish","r",{"event":"say","event":"connect"},1]`, null],
      [`["publish","r","say",{"_placeholder":true,"num":0}]`, "placeholder"],
      [`["publish","r","say",{"_placeholder":true,"num":"splice"}]`, "placeholder"],
      [`["publish","r","say",{"_placeholder":true,"num":-1}]`, "placeholder"],
      [`["publish","r","say",{"_placeholder":true}]`, "placeholder"],
      [`["publish","r","say",${nested(128)}]`, "depth"],
      [`["publish","r",null]`, "event_name"],
      [`["publish","r",[]]`, "event_name"],
    ];
    // Some of these close their sender, as the reference server does; so each has its own.
    await Promise.all(poison.map(async ([json, code], i) => {
      const sender = await raw(nodes[i % nodes.length], `p${i}`);
      sender.send(`420["join","r"]`);
      assert.equal((await sender.ack(0)).ok, true);
      sender.send(`421${json}`);
      const answer = await Promise.race([sender.ack(1), sender.closed.then(() => "closed")]);
      if (answer !== "closed" && code) assert.deepEqual([answer.ok, answer.code], [false, code], json);
      sender.socket.terminate();
    }));
    // Broken at the level of the protocol: the sender is closed, nobody else notices.
    const breaking = ["42", "42[", "42[1", "42{}", "42[]", `42["connect"]`, `42["publish","r","say",]`, "451-[", `45["a"]`,
      "4-1", "49", "9", `4599-["publish","r","say",{"_placeholder":true,"num":0}]`, `42["publish","r","say",${nested(5000)}]`,
      `42["publish","r","say","\ud800`];
    await Promise.all(breaking.map(async (packet, i) => {
      const sender = await raw(nodes[i % nodes.length], `x${i}`);
      sender.send(`420["join","r"]`);
      await sender.ack(0);
      sender.send(packet);
      await within(`the end of the sender of ${packet.slice(0, 40)}`, sender.closed);
    }));
    // What JavaScript can just about hold passes as it is.
    const a = await connect(nodes[0], "honest");
    await ok(a, "join", "r");
    await ok(a, "publish", "r", "say", "x".repeat(900_000));
    await ok(a, "publish", "r", "say", "last");
    for (const socket of members) {
      const got = await received(socket, 1, ([event, text]) => event === "say" && text === "last");
      assert.equal(got.length, 1);
      assert.ok(socket.connected && socket.disconnects.length === 0, "members stay");
      const names = new Set(socket.seen.map(([event]) => event));
      assert.deepEqual([...names], ["say"], "nothing reserved was delivered");
      await ok(socket, "rooms");
    }
  },

  /** Larger than a message may be: the sender alone is closed. */
  async too_big(nodes) {
    const member = await connect(nodes[1], "member");
    const sender = await connect(nodes[0], "sender", { reconnection: false });
    for (const socket of [member, sender]) await ok(socket, "join", "r");
    const gone = within("a disconnect", new Promise((yes) => sender.once("disconnect", yes)));
    sender.emit("publish", "r", "say", "x".repeat(1_000_001));
    await gone;
    await ok(member, "publish", "r", { event: "say", self: true }, "still here");
    assert.deepEqual(await received(member, 1), [["say", "still here"]]);
  },
});
