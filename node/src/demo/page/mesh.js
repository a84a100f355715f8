// A client of the plain WebSocket protocol (docs/protocol.md) that finds its way back by itself:
// when its node goes, it enters by another one, joins the room again and repeats what was not acked.

/** Refused, and ended on purpose: coming back unchanged is of no use. */
const FINAL = new Set([4409, 4430]);
const RETRY_FIRST_MS = 150, RETRY_LAST_MS = 2000, ANSWER_MS = 5000;

/** Where the demo's clients go: any node takes them. */
const PRODUCT = "rooms";

export class Mesh {
  #socket = null;
  #generation = 0;
  #asked = new Map();
  #next = 1;
  #retry = RETRY_FIRST_MS;
  #lostAt = 0;
  /** Wakes the publishes whose answer got lost. */
  #unsure = [];

  /**
   * `choose()` names the node to enter by: `{name, client}`. `on` has `open(node, pauseMs)`,
   * `lost(node)`, `message(room, pos, event, args)`, and `refused(text)` after which it stays away.
   */
  constructor(choose, on) {
    this.choose = choose;
    this.on = on;
    this.uid = "";
    this.room = "";
    this.node = null;
  }

  /** Leaves whatever was and enters as `uid`, into `room`. */
  enter(uid, room) {
    this.uid = uid;
    this.room = room;
    this.#lostAt = 0;
    this.#retry = RETRY_FIRST_MS;
    this.#connect();
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #connect() {
    const generation = ++this.#generation;
    this.#socket?.close();
    for (const ask of this.#asked.values()) ask.reject(new Error("connection lost"));
    this.#asked.clear();
    const node = this.choose();
    if (!node) return this.#later(generation);
    this.node = node;
    const socket = new WebSocket(`ws://${node.client}/ws?product=${PRODUCT}&uid=${encodeURIComponent(this.uid)}`);
    this.#socket = socket;
    socket.onopen = async () => {
      if (generation !== this.#generation) return;
      try {
        const joined = await this.#ask({ type: "join", room: this.room });
        if (generation !== this.#generation) return;
        if (!joined.ok) return this.on.refused(joined.message);
        for (const again of this.#unsure.splice(0)) again();
        this.#retry = RETRY_FIRST_MS;
        this.on.open(node, this.#lostAt ? performance.now() - this.#lostAt : 0);
        this.#lostAt = 0;
      } catch {
        socket.close();
      }
    };
    socket.onmessage = (message) => generation === this.#generation && this.#take(JSON.parse(message.data));
    socket.onclose = (close) => {
      if (generation !== this.#generation) return;
      for (const ask of this.#asked.values()) ask.reject(new Error("connection lost"));
      this.#asked.clear();
      if (FINAL.has(close.code)) return;
      if (!this.#lostAt) {
        this.#lostAt = performance.now();
        this.on.lost(node);
      }
      this.#later(generation);
    };
  }

  #later(generation) {
    setTimeout(() => generation === this.#generation && this.#connect(), this.#retry);
    this.#retry = Math.min(this.#retry * 1.6, RETRY_LAST_MS);
  }

  #ask(message) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => this.#asked.delete(id) && reject(new Error("no answer")), ANSWER_MS);
      const settle = (how) => (value) => { clearTimeout(late); how(value); };
      this.#asked.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.#socket.send(JSON.stringify({ ...message, id }));
    });
  }

  #take(message) {
    if (message.type === "ack") {
      this.#asked.get(message.id)?.resolve(message);
      this.#asked.delete(message.id);
    } else if (message.type === "event" && message.room !== undefined) {
      this.on.message(message.room, message.pos, message.event, message.args ?? []);
    } else if (message.type === "ping") {
      this.#socket.send(JSON.stringify({ type: "pong" }));
    } else if (message.type === "error" || (message.type === "closed" && !message.reconnect)) {
      this.on.refused(message.message);
    }
  }

  /**
   * Publishes to the room, to this client too; resolves with the answer. An answer that got lost is
   * asked for again by the next node, with the same key: nobody gets the event twice.
   */
  async publish(event, ...args) {
    const message = { type: "publish", room: this.room, event, args, self: true, key: crypto.randomUUID?.() ?? String(Math.random()) };
    for (;;) {
      try {
        return await this.#ask(message);
      } catch {
        await new Promise((again) => this.#unsure.push(again));
      }
    }
  }
}
