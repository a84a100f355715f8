// The network between one client and the nodes: a TCP relay that can be cut.

import { connect, createServer } from "node:net";

export class Gate {
  #server = createServer((client) => this.#relay(client));
  #pairs = new Set();
  #closed = false;
  #fused = false;
  #turn = 0;
  /** Where connections go, by turns. */
  to;
  /** How many bytes towards the client each cut that is still to come lets through. */
  budgets = [];
  /** Cuts so far that a budget made. */
  cuts = 0;

  /** A gate that listens, with connections to these addresses by turns. */
  static async start(...to) {
    const gate = new Gate();
    gate.to = to;
    await new Promise((yes) => gate.#server.listen(0, "127.0.0.1", yes));
    gate.#server.unref();
    return gate;
  }

  get address() {
    return `127.0.0.1:${this.#server.address().port}`;
  }

  /** Connections that a node has not closed yet after a silent cut. */
  get abandoned() {
    return [...this.#pairs].filter(({ client, node }) => client.destroyed && node && !node.destroyed).length;
  }

  /** Nothing passes any more; both ends notice. */
  cut() {
    this.#closed = true;
    for (const pair of this.#pairs) pair.end();
  }

  /** The same, and the nodes are not told: their connections stay, and nobody reads what they write. */
  cutSilently() {
    this.#closed = true;
    for (const { client } of this.#pairs) client.destroy();
  }

  /** As soon as a node closes a connection, nothing passes any more. */
  fuse() {
    this.#fused = true;
  }

  /** Connections pass again, to these addresses by turns. */
  open(...to) {
    this.#closed = false;
    this.#fused = false;
    if (to.length > 0) this.to = to;
  }

  #relay(client) {
    if (this.#closed) return client.destroy();
    const pair = { client, node: null, end: () => { client.destroy(); pair.node?.destroy(); } };
    this.#pairs.add(pair);
    client.on("error", () => {});
    client.pause();
    this.#dial(pair, this.to.length);
  }

  /** Tries the next node, and the one after it if that one refuses. */
  #dial(pair, tries) {
    if (tries === 0) return pair.end();
    const [host, port] = this.to[this.#turn++ % this.to.length].split(":");
    const node = connect({ host, port, noDelay: true });
    const refused = () => this.#dial(pair, tries - 1);
    node.once("error", refused);
    node.once("connect", () => {
      node.off("error", refused);
      node.on("error", () => {});
      pair.node = node;
      const { client } = pair;
      if (client.destroyed) node.destroy();
      client.setNoDelay();
      client.pipe(node);
      node.on("data", (bytes) => this.#towardsClient(client, bytes));
      node.on("close", () => {
        this.#pairs.delete(pair);
        client.destroy();
        if (this.#fused) this.cut();
      });
      client.on("close", () => {
        // After a silent cut the node is left waiting.
        if (!this.#closed) node.destroy();
      });
    });
  }

  #towardsClient(client, bytes) {
    if (client.destroyed) return;
    const left = this.budgets[0] ?? Infinity;
    client.write(bytes.length > left ? bytes.subarray(0, left) : bytes);
    if (this.budgets.length === 0) return;
    this.budgets[0] -= bytes.length;
    if (this.budgets[0] > 0) return;
    this.budgets.shift();
    this.cuts++;
    // What was let through is to arrive.
    for (const pair of this.#pairs) {
      pair.client.end(() => pair.client.destroy());
      pair.node?.destroy();
    }
  }
}
