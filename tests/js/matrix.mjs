// Recovery of the stock client, as a table: what breaks × transport × what is missed meanwhile.
//
// Each pair of transport and story is a client of its own with rooms of its own; all of them meet the same
// fault at the same time. Every client has an exact list of events that it must have got in the end, and a
// value that `recovered` must have had at each reconnect.

import assert from "node:assert/strict";
import { connect, main, ok, received, told, within } from "./harness.mjs";

/** What happens in a client's rooms `a` and `b`, before its transport is lost and while it is away. */
const STORIES = {
  nothing: { before: [], away: [] },
  one: { before: [], away: [["a", 1]] },
  one_after_one: { before: [["a", 0]], away: [["a", 1]] },
  many: { before: [["a", 0]], away: Array.from({ length: 60 }, (_, n) => ["a", n + 1]) },
  binary_last: { before: [["a", 0]], away: [["a", 1], ["a", Buffer.from([1, 2, 3])]] },
  left_a_room: { before: [["b", 0], ["a", 0]], leave: "b", away: [["b", 1], ["a", 1]], not: ["b"] },
  two_rooms: { before: [["a", 0], ["b", 0]], away: Array.from({ length: 40 }, (_, n) => [n % 2 ? "a" : "b", n + 1]) },
};

const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };

const comparable = (value) => (value instanceof Uint8Array || value instanceof ArrayBuffer ? [...Buffer.from(value)] : value);

async function cast(node, publisher) {
  const members = [];
  for (const [kind, transports] of Object.entries(TRANSPORTS)) {
    for (const [name, story] of Object.entries(STORIES)) {
      const uid = `${kind}-${name}`;
      const socket = await connect(node, uid, {
        transports,
        query: { product: "rooms", uid, recovery: "1" },
        reconnectionDelay: 50,
        reconnectionDelayMax: 300,
      });
      const member = { uid, story, socket, id: socket.id, expected: [], back: [] };
      for (const room of ["a", "b"]) {
        await ok(socket, "join", `${uid}.${room}`);
        await ok(publisher, "join", `${uid}.${room}`);
      }
      socket.on("connect", () => member.back.push([socket.recovered, socket.id]));
      members.push(member);
    }
  }
  return members;
}

async function say(publisher, member, events, except = []) {
  for (const [room, what] of events) {
    await ok(publisher, "publish", `${member.uid}.${room}`, "say", room, what);
    if (!except.includes(room)) member.expected.push([room, comparable(what)]);
  }
}

async function play(nodes, strike, mayStay) {
  const publisher = await connect(nodes[1], "publisher");
  const members = await cast(nodes[0], publisher);
  await Promise.all(members.map(async (member) => {
    await say(publisher, member, member.story.before);
    await received(member.socket, member.story.before.length);
    if (member.story.leave) await ok(member.socket, "leave", `${member.uid}.${member.story.leave}`);
  }));
  await strike(members, publisher);
  await Promise.all(members.map((member) => say(publisher, member, member.story.away, member.story.not)));
  await Promise.all(members.map(async (member) => {
    const { socket } = member;
    if (!mayStay || !socket.connected) {
      await within(`${member.uid} to be back`, new Promise((yes) => {
        if (socket.connected && member.back.length > 0) yes();
        else socket.once("connect", yes);
      }));
    }
    for (const [recovered, id] of member.back) assert.deepEqual([recovered, id], [true, member.id], member.uid);
    // The last word shows that nothing is missing before it, and that both ways work.
    await ok(socket, "publish", `${member.uid}.a`, { event: "say", self: true }, "a", "end");
    member.expected.push(["a", "end"]);
    await received(socket, 1, ([, , what]) => what === "end");
    const seen = socket.seen.map(([, room, what]) => [room, comparable(what)]);
    for (const room of ["a", "b"]) {
      const of = (events) => events.filter(([at]) => at === room);
      assert.deepEqual(of(seen), of(member.expected), `${member.uid}, room ${room}`);
    }
    if (mayStay) assert.deepEqual(socket.disconnects, [], member.uid);
  }));
  assert.deepEqual(publisher.disconnects, []);
}

/** The link of a client is gone; both ends notice. */
function cut(socket) {
  const { transport } = socket.io.engine;
  if (transport.ws) return transport.ws.terminate();
  transport._poll = () => {};
  transport.onError("cut");
}

const goElsewhere = (members, node) => {
  for (const { socket } of members) socket.io.uri = `http://${node}`;
};

await main({
  /** A blip: they come back to the same node. */
  blip: (nodes) => play(nodes, async (members) => members.forEach(({ socket }) => cut(socket)), false),

  /** A blip, and back by another node. */
  elsewhere: (nodes) => play(nodes, async (members) => {
    goElsewhere(members, nodes[2]);
    members.forEach(({ socket }) => cut(socket));
  }, false),

  /** The edge dies. */
  edge_kill: (nodes) => play(nodes, async (members) => {
    goElsewhere(members, nodes[2]);
    const lost = Promise.all(members.map(({ socket }) => new Promise((yes) => socket.once("disconnect", yes))));
    console.log("kill the edge");
    await within("all to lose their edge", lost);
  }, false),

  /** A node dies that owns a share of sessions and rooms, and backs up another: nobody is disconnected. */
  owner_kill: (nodes) => play(nodes, async () => {
    console.log("kill the owner");
    await told("killed");
  }, true),

  /** The link breaks in the middle of the replay, again and again. */
  cut_in_replay: (nodes) => play(nodes, async (members) => {
    for (const { socket } of members) {
      let cuts = 0;
      socket.on("connect", () => {
        if (cuts++ < 3) setImmediate(() => cut(socket));
      });
      cut(socket);
    }
  }, false),
});
