// Recovery of the stock client, as a table: what breaks × transport × what is missed meanwhile.
//
// Each pair of transport and story is a client of its own, behind a gate of its own, with rooms of its own; all of
// them meet the same fault in the same cluster at the same time. Every client has an exact list of events that it
// must have got in the end, and a value that `recovered` must have had at each reconnect.
//
// Arguments: the fault, and the nodes as JSON `[{"client":…,"api":…,"admin":…}]`: the first is the clients' edge, they
// come back by the third; publishers and requests are at the second; the last owns every session and every room `a`.
// Prints `strike` when the test is to do its part, which answers `struck`. `MESH_BUSY_SECONDS` says how long the busy
// rooms are busy beside the fault.

import assert from "node:assert/strict";
import http from "node:http";
import { Gate } from "./gate.mjs";
import { connect, main, ok, received, told, within } from "./harness.mjs";

const BUSY_SECONDS = Number(process.env.MESH_BUSY_SECONDS ?? 3);
const BUSY_EVERY_MS = 40;

const say = (room, what) => ({ say: what, room });
const volatile = (room, what) => ({ volatile: what, room });
const upTo = (count) => Array.from({ length: count }, (_, n) => n);

/**
 * What happens in a client's rooms: it is in `a` and `b`; `c` it is not in. `before` its transport is lost, and while
 * it is `away`, which for some stories begins when the mesh knows that it is away.
 */
const STORIES = {
  nothing: { before: [], away: [] },
  one: { before: [], away: [say("a", 1)] },
  one_after_one: { before: [say("a", 0)], away: [say("a", 1)] },
  many: { before: [say("a", 0)], away: upTo(60).map((n) => say("a", n + 1)) },
  two_rooms: { before: [say("a", 0), say("b", 0)], away: upTo(40).map((n) => say(n % 2 ? "a" : "b", n + 1)) },
  volatile_last: {
    before: [say("a", 0), volatile("a", "seen last")],
    known: true,
    away: [say("a", 1), volatile("a", "not for those who are away")],
  },
  binary_last: { before: [say("a", 0), say("a", Buffer.from([0]))], away: [say("a", 1), say("a", Buffer.from([1, 2, 3]))] },
  left_before: { before: [say("b", 0), say("a", 0), { leave: "b" }], away: [say("b", 1), say("a", 1)] },
  left_meanwhile: { before: [say("b", 0)], away: [say("a", 1), { take_out: "b" }, say("b", 2), say("a", 3)] },
  joined_meanwhile: { before: [say("a", 0)], known: true, away: [{ put_in: "c" }, say("c", 1), say("a", 1)] },
  two_busy_rooms: { before: [], away: [], busy: true },
};

const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };

/**
 * What breaks. `cut` does the script's part before the test strikes; clients that are not `stays` lose their
 * transport; `back` lets them come back. `hears`: their old transport still takes events in, for nobody.
 */
const FAULTS = {
  blip: { cut: (gate) => gate.cut(), back: (gate) => gate.open() },
  half_open: { cut: (gate) => gate.cutSilently(), back: (gate, nodes) => gate.open(nodes[2].client), hears: true },
  cut_in_the_middle_of_the_replay: {
    cut: (gate) => gate.cut(),
    back: (gate) => {
      gate.budgets = [450, 900, 1_300, 2_000];
      gate.open();
    },
    midway: true,
  },
  edge_kill: { cut: (gate) => gate.fuse(), back: (gate, nodes) => gate.open(nodes[2].client) },
  owner_kill: { stays: true },
  both: { cut: (gate) => gate.fuse(), back: (gate, nodes) => gate.open(nodes[2].client), lost: true },
  rolling_restart: { cut: (gate) => gate.cut(), back: (gate, nodes) => gate.open(...nodes.map((node) => node.client)), moves: true },
};

const comparable = (value) => (value instanceof Uint8Array || value instanceof ArrayBuffer ? [...Buffer.from(value)] : value);

const pause = (ms) => new Promise((yes) => setTimeout(yes, ms));

/** Repeats `look` until it gives something. */
const until = (what, look) => within(what, (async () => {
  for (;;) {
    const found = await look();
    if (found) return found;
    await pause(20);
  }
})());

/**
 * A request to the API of the second node, again as long as it says that nothing was done, or does not listen. What
 * was perhaps done (504) is then perhaps not there any more (404).
 */
const api = ([, node], path, body, tried = {}) => until(`${path} ${JSON.stringify(body ?? "")}`, async () => {
  const method = body ? "POST" : "GET";
  const answer = await fetch(`http://${node.api}/v1/products/rooms/${path}`, { method, body: body && JSON.stringify(body) })
    .catch(() => null);
  tried.perhaps ||= answer?.status === 504;
  if (answer === null || answer.status === 503 || answer.status === 504) return null;
  const told = await answer.json();
  if (tried.perhaps && answer.status === 404) return told;
  assert.equal(answer.status, 200, `${path} ${JSON.stringify(body)}: ${JSON.stringify(told)}`);
  return told;
});

/** A name that begins with `stem` and whose owner and backup are as `wanted(owner, backup)` says, by number of the node. */
async function named([, { admin }], what, stem, wanted) {
  for (let n = 0; ; n++) {
    const name = `${stem}-${n}`;
    const answer = await fetch(`http://${admin}/v1/explain?product=rooms&${what}=${name}`);
    const { owner, backup } = await answer.json();
    if (wanted(Number(owner.slice(1)) - 1, Number(backup.slice(1)) - 1)) return name;
  }
}

/** A client that is to come back, and what becomes of it. */
async function member(nodes, kind, name, story, uid) {
  const owner = nodes.length - 1;
  const gate = await Gate.start(nodes[0].client);
  const socket = await connect(gate.address, uid, {
    transports: TRANSPORTS[kind],
    query: { product: "rooms", uid, recovery: "1" },
    // Its XMLHttpRequest for Node waits for ever once a connection that was kept for a second request breaks.
    agent: new http.Agent({ keepAlive: false }),
    reconnectionDelay: 50,
    reconnectionDelayMax: 300,
  });
  const me = { title: `${kind}, ${name}`, uid, story, gate, socket, id: socket.id, expected: [], unsure: [], back: [], rooms: {} };
  // In which it is, and whether what is said there now is for it.
  me.rooms_in = new Map([["a", true], ["b", true]]);
  // Neither room is lost where the edge and the owner die together.
  me.rooms.a = await named(nodes, "room", `${uid}.a`, (first, second) => first === owner && second !== 0);
  for (const room of ["b", "c"]) me.rooms[room] = await named(nodes, "room", `${uid}.${room}`, (first) => first !== 0 && first !== owner);
  for (const room of ["a", "b"]) await ok(socket, "join", me.rooms[room]);
  socket.on("connect", () => me.back.push([socket.recovered, socket.id]));
  return me;
}

/** What becomes of what is said while a client is there: whether volatile events arrive. */
const HERE = { volatile: "at last" };

/** One step of a story. */
async function step(nodes, publisher, me, { room, ...what }, when) {
  if (what.leave) {
    me.rooms_in.delete(what.leave);
    await ok(me.socket, "leave", me.rooms[what.leave]);
  } else if (what.take_out) {
    me.rooms_in.set(what.take_out, when.leaves);
    assert.equal((await api(nodes, "leave", { uid: me.uid, room: me.rooms[what.take_out] })).sessions, 1);
  } else if (what.put_in) {
    assert.equal((await api(nodes, "join", { uid: me.uid, room: me.rooms[what.put_in] })).sessions, 1);
    me.rooms_in.set(what.put_in, when.joins);
  } else if (what.volatile) {
    const send = () => api(nodes, "publish", { room: me.rooms[room], event: "say", args: [room, what.volatile], volatile: true });
    if (when.volatile !== "never") me.unsure.push([room, what.volatile]);
    await send();
    if (when.volatile === "at last") {
      // Not for a client that has anything queued, or no poll open: once more, after all that was said before.
      await received(me.socket, me.expected.length);
      await until(`${me.title}: a volatile event`, async () => me.socket.seen.at(-1)[2] === what.volatile || (await send(), false));
    }
  } else {
    await ok(publisher, "publish", me.rooms[room], "say", room, what.say);
    const gets = me.rooms_in.get(room) ?? false;
    if (gets) (gets === "maybe" ? me.unsure : me.expected).push([room, comparable(what.say)]);
  }
}

/** Publishes until it is answered: it is known by its id, so that it is sent once. */
const publish = (socket, me, room, what, more = {}) => until(`${me.title}: the ack of ${what} in ${room}`, () => socket
  .timeout(2_000)
  .emitWithAck("publish", me.rooms[room], { event: "say", id: `${room}.${what}`, ...more }, room, what)
  .then((answer) => assert.equal(answer.ok, true, JSON.stringify(answer)) ?? true, () => false));

/** Publishes into both rooms, one event after the other in each, until `over`. */
const busy = (publisher, me, over) => Promise.all(["a", "b"].map(async (room) => {
  for (let n = 0; !over(); n++) {
    await publish(publisher, me, room, n);
    me.expected.push([room, n]);
    await pause(BUSY_EVERY_MS);
  }
}));

/** What `me` has got, but for what may be missing: `[room, what]` each. */
const certain = (me) => me.socket.seen
  .map(([, room, what]) => [room, comparable(what)])
  .filter((event) => !me.unsure.some((unsure) => String(unsure) === String(event)));

/** Waits until `me` has got all it must have got, and checks that it is exactly this, room by room. */
async function check(me, fault) {
  const { socket, title } = me;
  if (!fault.stays) {
    await until(`${title} to be back`, () => socket.connected && me.back.length > 0);
    for (const [recovered, id] of me.back) assert.deepEqual([recovered, id], [true, me.id], title);
  }
  // The last word shows that nothing is missing before it, and that both ways work.
  for (const room of [...me.rooms_in.keys()].filter((room) => me.story.away.every((step) => step.take_out !== room))) {
    await publish(socket, me, room, "end", { self: true });
    me.expected.push([room, "end"]);
  }
  await until(`${title}: all events`, () => certain(me).length >= me.expected.length).catch((error) => console.error(error.message));
  for (const room of ["a", "b", "c"]) {
    const of = (all) => all.filter(([at]) => at === room).map(([, what]) => what);
    assert.deepEqual(of(certain(me)), of(me.expected), `${title}, room ${room}`);
  }
  if (fault.stays) assert.deepEqual(socket.disconnects, [], title);
  else assert(socket.disconnects.length > 0, `${title} lost its transport`);
  if (fault.midway && me.story === STORIES.many) assert(me.gate.cuts >= 2, `${title}: cut ${me.gate.cuts} times on its way back`);
}

async function play(fault, nodes) {
  const owner = nodes.length - 1;
  const everyone = await (await fetch(`http://${nodes[1].admin}/v1/explain?product=rooms&room=`)).json();
  assert.notDeepEqual([everyone.owner, everyone.backup].sort(), ["n1", `n${owner + 1}`], "all clients would lose what they have in common");
  const outside = await Gate.start(nodes[1].client);
  const publishers = await Promise.all(["one", "two"].map((uid) => connect(outside.address, uid, { reconnectionDelay: 50 })));
  const [publisher, busyPublisher] = publishers;
  const members = (await Promise.all(Object.keys(TRANSPORTS).map(async (kind) => {
    const of = [];
    for (const [name, story] of Object.entries(STORIES)) {
      const uid = await named(nodes, "uid", `${kind}.${name}`, (first, second) => first === owner && second !== 0);
      of.push(await member(nodes, kind, name, story, uid));
    }
    return of;
  }))).flat();
  // Whose session was at both: nobody is left who knows it.
  const lost = fault.lost ? await Promise.all(Object.keys(TRANSPORTS).map(async (kind) => {
    const uid = await named(nodes, "uid", `${kind}.lost`, (first, second) => first === owner && second === 0);
    return member(nodes, kind, "lost", { before: [say("a", 0)], away: [say("a", 1)] }, uid);
  })) : [];
  const all = [...members, ...lost];
  const each = (of, what) => Promise.all(of.map(what));

  await each(all, async (me) => {
    for (const before of me.story.before) await step(nodes, publisher, me, before, HERE);
    await until(`${me.title}: what was said before`, () => certain(me).length === me.expected.length);
  });
  await until("every upgrade", () => all.every((me) => {
    const { name } = me.socket.io.engine.transport;
    return name === "websocket" || me.title.startsWith("polling");
  }));

  if (fault.moves) outside.open(...nodes.map((node) => node.client));
  let mended = Infinity;
  const began = Date.now();
  const rooms = each(members.filter((me) => me.story.busy), (me) => busy(busyPublisher, me, () => {
    return mended !== Infinity && Date.now() > Math.max(mended + 500, began + BUSY_SECONDS * 1_000);
  }));
  await pause(Math.min(500, BUSY_SECONDS * 300));
  for (const me of all) fault.cut?.(me.gate);
  console.log("strike");
  const struck = told("struck");
  if (!fault.stays) await until("all to lose their transport", () => all.every((me) => !me.socket.connected));
  const when = {
    volatile: fault.stays ? "maybe" : "never",
    // A room that it is put into while it is away begins when it is back. Else its node hears of that from the owner of the
    // session, and of events from the owner of the room: which is first is not promised.
    joins: fault.stays || fault.hears ? "maybe" : false,
    leaves: fault.stays ? "maybe" : false,
  };
  await each(all, async (me) => {
    if (me.story.known && !fault.stays && !fault.hears) {
      await until(`${me.title} to be known as away`, async () => {
        const { sessions } = await api(nodes, `users/${me.uid}`);
        return sessions.length === 1 && !sessions[0].connected;
      });
    }
    for (const away of me.story.away) await step(nodes, publisher, me, away, when);
  });
  await struck;
  for (const me of all) fault.back?.(me.gate, nodes);
  mended = Date.now();
  await rooms;
  await each(members, (me) => check(me, fault));
  await each(all, (me) => until(`${me.title}: its node to close what was abandoned`, () => me.gate.abandoned === 0));
  await each(lost, async (me) => {
    await until(`${me.title} to be back`, () => me.socket.connected && me.back.length > 0);
    assert.equal(me.back[0][0], false, me.title);
    assert.notEqual(me.socket.id, me.id, me.title);
    assert.deepEqual(me.socket.seen.map(([, room, what]) => [room, what]), [["a", 0]], me.title);
  });
  if (!fault.moves) for (const socket of publishers) assert.deepEqual(socket.disconnects, []);
}

await main(Object.fromEntries(Object.entries(FAULTS).map(([name, fault]) => [name, ([nodes]) => play(fault, JSON.parse(nodes))])));
