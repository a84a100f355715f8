// Who a stock client is by the token in its `auth`.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { ask, main, ok, open, received, within } from "./harness.mjs";

const SECRET = "0123456789abcdef0123456789abcdef";
const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

function sign(claims, secret = SECRET) {
  const message = `${encoded({ alg: "HS256" })}.${encoded({ exp: Math.floor(Date.now() / 1000) + 600, ...claims })}`;
  return `${message}.${createHmac("sha256", secret).update(message).digest("base64url")}`;
}

const connected = (socket) => within("a connect", new Promise((yes, no) => {
  if (socket.connected) return yes();
  socket.once("connect", yes);
  socket.once("connect_error", no);
}));
const refused = (socket) => within("a refusal", new Promise((yes) => socket.once("connect_error", yes)));

/** The product's rule is that a user may join rooms of its own tag only: so we see who it is. */
async function is(socket, uid) {
  await ok(socket, "join", `{${uid}}room`);
  assert.equal((await ask(socket, "join", "{somebody-else}room")).code, "forbidden");
}

const WAYS = [["websocket"], ["polling"], ["polling", "websocket"]];

await main({
  async auth(nodes) {
    for (const [at, transports] of WAYS.entries()) {
      const node = nodes[at % nodes.length];
      const a = open(node, {}, { transports, auth: { token: sign({ sub: "alice" }) } });
      await connected(a);
      await is(a, "alice");
      // As a function, asked at each connect; the same user by another node.
      const other = open(nodes[(at + 1) % nodes.length], {}, { transports, auth: (tell) => tell({ token: sign({ sub: "alice" }) }) });
      await connected(other);
      await ok(other, "join", "{alice}room");
      await ok(other, "publish", "{alice}room", "say", at);
      assert.deepEqual((await received(a, 1))[0].slice(0, 2), ["say", at]);
      // Another namespace over the same transport is another user.
      const admin = a.io.socket("/admin", { auth: { token: sign({ sub: "root" }) } });
      await connected(admin);
      await is(admin, "root");
      const nobody = other.io.socket("/admin", { auth: {} });
      assert.equal((await refused(nobody)).data.code, "uid_required");
      assert.ok(a.connected && other.connected, "refused alone");
      for (const socket of [a, admin, other]) socket.disconnect();
    }
  },

  async refusals(nodes) {
    const bad = [
      ["uid_required", {}],
      ["uid_required", { token: "" }],
      ["uid_invalid", { token: "nonsense" }],
      ["uid_invalid", { token: 7 }],
      ["uid_invalid", { token: sign({ sub: "alice" }, "another secret of thirty-two bytes") }],
      ["uid_invalid", { token: sign({ sub: "alice", exp: 1 }) }],
      ["uid_invalid", { token: sign({ sub: "x".repeat(129) }) }],
      ["uid_invalid", { token: sign({ sub: "a\u0000" }) }],
      ["uid_invalid", { token: sign({}) }],
    ];
    for (const transports of WAYS) {
      for (const [code, auth] of bad) {
        const a = open(nodes[0], {}, { transports, auth });
        const why = await refused(a);
        assert.equal(why.data?.code, code, JSON.stringify(auth).slice(0, 60));
        assert.ok(!why.message.includes("eyJ"), why.message);
        // The stock client does not try again by itself. With a good token it may.
        a.auth = { token: sign({ sub: "alice" }) };
        a.connect();
        await connected(a);
        a.disconnect();
      }
    }
  },

  /** Comes back to its session as who it was, and tells what no log may show. */
  async recovery(nodes) {
    const a = open(nodes[0], { recovery: "1" }, { auth: { token: sign({ sub: "alice" }) }, reconnectionDelay: 50, reconnectionDelayMax: 50 });
    await connected(a);
    const [id, pid] = [a.id, a._pid];
    assert.ok(pid);
    console.log(`pid ${pid}`);
    await ok(a, "join", "{alice}room");
    const again = within("the way back", new Promise((yes) => a.once("connect", yes)));
    a.io.engine.close();
    await again;
    assert.equal(a.recovered, true);
    assert.equal(a.id, id);
    await is(a, "alice");
  },
});
