// Clients of unmodified Socket.IO servers behind the mesh. The address given is that of a balancer which sends
// each connection to the next node; without keep-alive that is each request.

import assert from "node:assert/strict";
import http from "node:http";
import { ask, main, open, told, within } from "./harness.mjs";

const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };

function client(address, kind, query = {}) {
  return open(address, query, {
    transports: TRANSPORTS[kind],
    agent: new http.Agent({ keepAlive: false }),
    reconnectionDelay: 50,
    reconnectionDelayMax: 300,
  });
}

const connected = (socket) => within("a connect", new Promise((yes) => {
  if (socket.connected) yes();
  else socket.once("connect", yes);
}));

const upgraded = (socket) => within("an upgrade", new Promise((yes) => {
  const engine = socket.io.engine;
  if (engine.transport.name === "websocket") yes();
  else engine.once("upgrade", yes);
}));

/** Emits until it is answered: a server that dies takes what was on its way along. */
async function name(socket) {
  for (;;) {
    await connected(socket);
    const answer = await new Promise((yes) => socket.timeout(1_000).emit("who", (error, answer) => yes(error ? null : answer)));
    if (answer) return answer.name;
  }
}

/** Every transport, each request by another node: sessions stay whole and are spread. */
async function transports([address]) {
  const sockets = [];
  for (const kind of Object.keys(TRANSPORTS)) {
    for (let n = 0; n < 4; n++) sockets.push([kind, client(address, kind)]);
  }
  await Promise.all(sockets.map(([, socket]) => connected(socket)));
  const seen = new Set();
  await Promise.all(sockets.map(async ([kind, socket]) => {
    if (kind === "upgrade") await upgraded(socket);
    const first = await ask(socket, "who");
    seen.add(first.name);
    for (let n = 0; n < 20; n++) {
      assert.deepEqual(await ask(socket, "echo", { n, text: "ä".repeat(n) }), { n, text: "ä".repeat(n) });
    }
    const bytes = Buffer.alloc(50_000, 7);
    assert.deepEqual(Buffer.from(await ask(socket, "echo", bytes)), bytes);
    assert.deepEqual(await ask(socket, "who"), first, kind);
    assert.deepEqual(socket.disconnects, [], kind);
  }));
  assert(seen.size > 1, `all sessions are at ${[...seen]}`);
}

/** A server dies and comes back: its clients find another one, the others notice nothing. */
async function kill([address]) {
  const sockets = [];
  for (const kind of Object.keys(TRANSPORTS)) {
    for (let n = 0; n < 6; n++) sockets.push(client(address, kind));
  }
  const before = await Promise.all(sockets.map(name));
  console.log(`at ${JSON.stringify([...new Set(before)])}`);
  await told("killed");
  const after = await within("all clients to be somewhere else", Promise.all(sockets.map(async (socket, n) => {
    for (;;) {
      const at = await name(socket);
      if (at !== "a") return at;
      await new Promise((yes) => setTimeout(yes, 20));
    }
  })));
  for (const [n, at] of after.entries()) {
    if (before[n] === "a") continue;
    assert.equal(at, before[n], "who was at another server stays there");
    assert.deepEqual(sockets[n].disconnects, []);
  }
  console.log("moved");
  await told("back");
  // New ones are taken by it again.
  for (;;) {
    const socket = client(address, "polling");
    if (await name(socket) === "a") return;
    socket.disconnect();
  }
}

/** All devices of a user are at one server, whatever their node and transport; also after one has died. */
async function devices(addresses) {
  const users = Array.from({ length: 8 }, (_, n) => `user-${n}`);
  const of = new Map(users.map((uid) => [uid, addresses.flatMap((address) =>
    Object.keys(TRANSPORTS).map((kind) => client(address, kind, { uid })))]));
  const places = async () => {
    const places = new Map();
    for (const [uid, sockets] of of) {
      const names = new Set(await Promise.all(sockets.map(name)));
      places.set(uid, [...names]);
    }
    return places;
  };
  const together = (places) => [...places.values()].every((names) => names.length === 1);
  const before = await places();
  assert(together(before), JSON.stringify([...before]));
  assert(new Set([...before.values()].flat()).size > 1, "all of them at one server");
  for (const [uid, [socket]] of of) assert.equal((await ask(socket, "who")).uid, uid);
  console.log(`at ${JSON.stringify([...before])}`);
  await told("killed");
  await within("all devices of each user at one living server", (async () => {
    for (;;) {
      const after = await places();
      const moved = [...after.values()].every((names) => !names.includes("n3"));
      if (together(after) && moved) {
        for (const [uid, [at]] of before) if (at !== "n3") assert.deepEqual(after.get(uid), [at], `${uid} had no reason to move`);
        return;
      }
      await new Promise((yes) => setTimeout(yes, 100));
    }
  })());
}

await main({ transports, kill, devices });
