// What the scenarios share: stock clients, and waiting for what they receive.
//
// A scenario is `async (nodes, tools) => …` with the nodes' client addresses. It is over when it
// returns; a failed assertion or a wait that takes too long ends the process with 1.

import * as v48 from "socket.io-client";
import * as v45 from "socket.io-client-4.5";

/** `CLIENT=4.5` runs a scenario with that version of the stock client. */
const { io } = process.env.CLIENT === "4.5" ? v45 : v48;

// Shorter than the test's own, so that it is the scenario that says what is missing.
const PATIENCE_MS = 20_000;

const sockets = [];

/** A stock client at `node` (which may name a namespace, and a scheme other than http) as `uid`; resolves when it is connected. */
export async function connect(node, uid, more = {}) {
  const socket = open(node, { product: "rooms", uid }, more);
  await within("a connect", new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("connect_error", reject);
  }));
  return socket;
}

/** A stock client that may be refused. Records every event in `seen`. */
export function open(node, query, more = {}) {
  const url = node.includes("://") ? node : `http://${node}`;
  const socket = io(url, { transports: ["websocket"], query, forceNew: true, ...more });
  socket.seen = [];
  socket.waiting = new Set();
  socket.disconnects = [];
  socket.onAny((event, ...args) => {
    socket.seen.push([event, ...args]);
    for (const look of socket.waiting) look();
  });
  socket.on("disconnect", (reason) => socket.disconnects.push(reason));
  sockets.push(socket);
  return socket;
}

/** What `socket` has got, once there are `count` events that `wanted` accepts. */
export function received(socket, count, wanted = () => true) {
  return within(`${count} events, has ${JSON.stringify(socket.seen.slice(-3))}`, new Promise((resolve) => {
    const look = () => {
      const found = socket.seen.filter(wanted);
      if (found.length < count) return;
      socket.waiting.delete(look);
      resolve(found);
    };
    socket.waiting.add(look);
    look();
  }));
}

/** Emits with an ack and gives it. */
export const ask = (socket, ...args) => within(`the ack of ${args[0]}`, new Promise((yes) => socket.emit(...args, yes)));

/** Emits what must be answered `ok: true`. */
export async function ok(socket, ...args) {
  const answer = await ask(socket, ...args);
  if (answer?.ok !== true) throw new Error(`${JSON.stringify(args).slice(0, 200)} was answered ${JSON.stringify(answer)}`);
  return answer;
}

/** `promise`, or an error that names what was waited for. */
export function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${PATIENCE_MS} ms for ${what}`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The next line of our own input. */
export function line() {
  return within("a line", new Promise((resolve) => {
    let text = "";
    process.stdin.on("data", function take(data) {
      text += data;
      if (!text.includes("\n")) return;
      process.stdin.off("data", take);
      process.stdin.pause();
      resolve(text);
    });
  }));
}

/** Waits for a line of our own input: the test says when to go on. */
export function told(line) {
  // Paused since the last time, if there was one.
  process.stdin.resume();
  return within(`to be told ${line}`, new Promise((resolve) => {
    process.stdin.on("data", function take(data) {
      if (!String(data).includes(line)) return;
      process.stdin.off("data", take);
      process.stdin.pause();
      resolve();
    });
  }));
}

/** Runs the scenario that the command line names. */
export async function main(scenarios) {
  const [name, ...nodes] = process.argv.slice(2);
  try {
    await scenarios[name](nodes);
    console.log(`${name}: passed`);
  } catch (error) {
    console.error(`${name}: ${error.stack}`);
    process.exit(1);
  }
  for (const socket of sockets) socket.close();
  process.stdin.destroy();
}
