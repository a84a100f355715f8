// Many stock clients behind one balancer, half by polling alone, half upgrading, while nodes come and go.
//
// Prints `now kill` and `now drain` when the test is to do so, and at the end one line of figures. Everything
// that was acknowledged must have reached every member of its room, once, except where a client was told that
// it begins anew; no transport may be lost but for the node that was killed or drained.

import assert from "node:assert/strict";
import http from "node:http";
import { main, ok, open, within } from "./harness.mjs";

const ROOMS = 20;
const PUBLISH_EVERY_MS = 4_000;
// What a kill or a drain may cost comes within this time: a drain may take 25 s.
const TROUBLE_MS = 30_000;

// The stock client's XMLHttpRequest for Node sends a request again if the kept connection it went out by breaks, and forgets to
// end it: the client then waits for nothing until its ping timeout. Browsers have their own. So no connection looks kept.
Object.defineProperty(http.ClientRequest.prototype, "reusedSocket", { get: () => false, set() {} });

const pause = (ms) => new Promise((yes) => setTimeout(yes, ms));

function member(address, index, upgrades, rooms, trouble) {
  const room = `r${index % ROOMS}`;
  const query = { product: "rooms", uid: `u${index}`, recovery: "1" };
  const transports = upgrades ? ["polling", "websocket"] : ["polling"];
  const socket = open(address, query, {
    transports,
    agent: new http.Agent({ keepAlive: index % 4 < 2 }),
    reconnectionDelay: 200,
    reconnectionDelayMax: 1_000,
  });
  const me = { socket, room, got: new Map(), since: Infinity, doubled: [], backAt: [], recovered: 0, anew: 0, lost: [], sent: 0 };
  socket.onAny((event, from, n) => {
    const key = `${from}.${n}`;
    const now = Date.now();
    if (me.got.has(key)) {
      me.doubled.push({ index, key, times: [me.got.get(key), now], back: me.backAt, transport: socket.io.engine?.transport?.name });
    }
    me.got.set(key, now);
    socket.seen.length = 0;
  });
  socket.on("disconnect", (reason) => {
    // Told again when a transport ends by which it had not been back yet.
    if (me.is_in) me.lost.push([Date.now(), reason, trouble.now, socket.io.engine?.transport?.name]);
    me.is_in = false;
  });
  socket.on("connect", () => {
    me.is_in = true;
    me.backAt.push(Date.now());
    if (me.since === Infinity) return;
    if (socket.recovered) return me.recovered++;
    me.anew++;
    me.since = Infinity;
    me.join();
  });
  me.join = async () => {
    await ok(socket, "join", room);
    me.since = Date.now();
  };
  me.publish = async () => {
    const n = me.sent++;
    const at = Date.now();
    try {
      const answer = await socket.timeout(15_000).emitWithAck("publish", room, "say", index, n);
      if (answer.ok) rooms.get(room).push({ key: `${index}.${n}`, index, at });
    } catch {
      // Its transport was lost: nobody knows what became of it.
      me.unanswered = (me.unanswered ?? 0) + 1;
    }
  };
  return me;
}

await main({
  async herd([address, plan]) {
    const { clients, seconds } = JSON.parse(plan);
    const rooms = new Map(Array.from({ length: ROOMS }, (_, n) => [`r${n}`, []]));
    const trouble = { now: null };
    const herd = [];
    for (let index = 0; index < 2 * clients; index++) {
      herd.push(member(address, index, index % 2 === 1, rooms, trouble));
      if (index % 20 === 19) await pause(100);
    }
    await within("all to connect", Promise.all(herd.map((m) => m.socket.connected || new Promise((yes) => m.socket.once("connect", yes)))));
    await Promise.all(herd.map((m) => m.join()));
    const began = Date.now();
    const at = (share) => began + share * seconds * 1_000;
    const steps = [[at(0.25), "kill"], [at(0.6), "drain"]];
    const calm = async (until) => {
      while (Date.now() < until) await pause(50);
    };
    const talk = herd.map(async (m, i) => {
      await pause((i / herd.length) * PUBLISH_EVERY_MS);
      while (Date.now() < at(1)) {
        if (m.socket.connected && m.since !== Infinity) await m.publish();
        await pause(PUBLISH_EVERY_MS);
      }
    });
    for (const [when, what] of steps) {
      await calm(when);
      trouble.now = what;
      console.log(`now ${what}`);
      await calm(Date.now() + Math.min(TROUBLE_MS, seconds * 250));
      trouble.now = null;
    }
    await Promise.all(talk);
    await pause(3_000);
    const figures = { clients: herd.length, seconds, published: 0, deliveries: 0, lost: 0, doubled: 0 };
    figures.upgraded = herd.filter((m) => m.socket.io.engine?.transport?.name === "websocket").length;
    for (const m of herd) {
      figures.deliveries += m.got.size;
      figures.doubled += m.doubled.length;
      for (const { key, index, at: when } of rooms.get(m.room)) {
        if (herd[index] !== m && when > m.since && !m.got.has(key)) figures.lost++;
      }
    }
    for (const events of rooms.values()) figures.published += events.length;
    const of = (what) => herd.flatMap((m) => m.lost).filter(([, , during]) => during === what).length;
    Object.assign(figures, {
      lost_by_kill: of("kill"),
      lost_by_drain: of("drain"),
      lost_otherwise: of(null),
      recovered: herd.reduce((sum, m) => sum + m.recovered, 0),
      anew: herd.reduce((sum, m) => sum + m.anew, 0),
      unanswered: herd.reduce((sum, m) => sum + (m.unanswered ?? 0), 0),
    });
    console.log(`figures ${JSON.stringify(figures)}`);
    for (const doubled of herd.flatMap((m) => m.doubled).slice(0, 50)) console.log(`doubled ${JSON.stringify(doubled)}`);
    const others = herd.flatMap((m) => m.lost).filter(([, , during]) => during === null);
    assert.deepEqual(others, [], "transports lost for no cause");
    assert.deepEqual([figures.lost, figures.doubled, figures.anew], [0, 0, 0]);
    assert(figures.published > 0 && herd.every((m) => m.socket.connected));
    process.exitCode = 0;
  },
});
