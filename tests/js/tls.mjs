// The stock client by TLS: arguments are the port of a node and the file of the certificate that it shows.

import assert from "node:assert/strict";
import fs from "node:fs";
import { connect, main, ok, received, within } from "./harness.mjs";

const upTo = (count) => Array.from({ length: count }, (_, n) => n);
const numbers = (socket) => socket.seen.filter(([event]) => event === "say").map(([, n]) => n);

await main({
  /** Polling, WebSocket and the way from one to the other, with bytes both ways and messages of many records. */
  async transports([port, certificate]) {
    const ca = fs.readFileSync(certificate);
    const by = (uid, ...transports) => connect(`https://localhost:${port}`, uid, { ca, transports });
    const members = await Promise.all([
      by("polling", "polling"),
      by("websocket", "websocket"),
      by("upgrading", "polling", "websocket"),
    ]);
    for (const socket of members) await ok(socket, "join", "r");
    const [, publisher, upgrading] = members;
    const big = Buffer.alloc(200_000, 7);
    for (let n = 0; n < 20; n++) await ok(publisher, "publish", "r", "say", n, big);
    for (const socket of members.filter((socket) => socket !== publisher)) {
      const events = await received(socket, 20);
      assert.deepEqual(numbers(socket), upTo(20));
      for (const [, , bytes] of events) assert(Buffer.from(bytes).equals(big));
      assert.deepEqual(socket.disconnects, []);
    }
    await within("an upgrade", new Promise((yes) => {
      if (upgrading.io.engine.transport.name === "websocket") yes();
      else upgrading.io.engine.once("upgrade", yes);
    }));
  },

  /** A certificate that the client does not trust. */
  async untrusted([port]) {
    await assert.rejects(connect(`https://localhost:${port}`, "a", { reconnection: false }));
  },
});
