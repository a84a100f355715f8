// The demo page: a chat, and what the cluster looks like while one chats.

import { Mesh } from "./mesh.js";
import { draw, fly } from "./ring.js";

const POLL_MS = 400, ASK_MS = 900, KEPT_MESSAGES = 200, COLOURS = 8;
const NAMES = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];

const $ = (id) => document.getElementById(id);
const el = (name, className, ...children) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
};
const query = new URLSearchParams(location.search);

/** The last answer of a node, and every node seen so far: a dead one stays in the table. */
let state = null;
const known = new Map();
let wished = query.get("node");
let control = null;

/** Nodes keep the colour they were first seen with. */
function colour(name) {
  if (!known.has(name)) known.set(name, { name, colour: `c${known.size % COLOURS}`, since: Date.now() });
  return known.get(name).colour;
}

/* ---- the cluster ---- */

/** Asks any node that answers; the one that served this page may be the one that died. */
async function look() {
  const wanted = new URLSearchParams({ product: "rooms", uid: mesh.uid, room: mesh.room });
  const hosts = [mesh.node?.client, location.host, ...[...known.values()].map((node) => node.client)];
  for (const host of new Set(hosts.filter(Boolean))) {
    try {
      const answer = await fetch(`http://${host}/demo/state.json?${wanted}`, { signal: AbortSignal.timeout(ASK_MS), cache: "no-store" });
      if (answer.ok) return show(await answer.json());
    } catch { /* the next one */ }
  }
  agreement("no node answers", false);
}

function show(next) {
  const before = state;
  state = next;
  control = next.control ?? control;
  for (const node of next.nodes) {
    colour(node.name);
    Object.assign(known.get(node.name), node);
  }
  const here = new Set(next.nodes.map((node) => node.name));
  for (const node of known.values()) {
    if (!here.has(node.name)) Object.assign(node, { state: "gone", clients: 0, sessions: 0, rooms: 0, share: 0 });
  }
  if (before && before.digest !== next.digest) tellRingChange(before, next);
  const agreed = new Set(next.nodes.map((node) => node.digest).filter(Boolean)).size <= 1;
  agreement(agreed ? `ring ${next.digest.slice(0, 6)} · all agree` : "the ring is changing", agreed);
  $("node-count").textContent = `${next.nodes.length} node${next.nodes.length === 1 ? "" : "s"}`;
  draw(next, colour, [...known.keys()], mesh.open ? mesh.node?.name : null);
  facts();
  entries();
  table();
}

function tellRingChange(before, next) {
  const on = (view) => new Set(view.nodes.filter((node) => node.share > 0).map((node) => node.name));
  const [old, now] = [on(before), on(next)];
  for (const name of old) {
    const share = before.nodes.find((node) => node.name === name).share;
    if (!now.has(name)) note(`${name} left the ring: its ${percent(share)} went to the others`, true);
  }
  for (const name of now) if (!old.has(name)) note(`${name} joined the ring`, true);
}

function agreement(text, good) {
  $("agreement").textContent = text;
  $("agreement").className = `pill ${good ? "good" : "bad"}`;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const dot = (name) => el("span", `dot ${colour(name)}`, name);

function facts() {
  const row = (label, owner, small, backup) => [el("dt", "", label),
    el("dd", "", owner ? dot(owner) : "nobody yet", ...(backup ? [" then ", dot(backup)] : []), " ", el("small", "", small))];
  const { uid, room } = state;
  $("facts").replaceChildren(
    ...row("you enter by", mesh.open && mesh.node?.name, mesh.open ? mesh.node.client : ""),
    ...(uid ? row(`${uid.name} is owned by`, uid.owner, uid.hash, uid.backup) : []),
    ...(room ? row(`#${room.name} is owned by`, room.owner, room.hash, room.backup) : []));
}

function entries() {
  const key = JSON.stringify([...known.values()].map((node) => [node.name, node.state, node.name === mesh.node?.name]));
  if ($("entries").dataset.key === key) return;
  $("entries").dataset.key = key;
  const alive = [...known.values()].filter((node) => node.state === "active" || node.state === "suspect");
  $("entries").replaceChildren(...alive.map((node) => {
    const button = el("button", colour(node.name), node.name);
    button.type = "button";
    button.dataset.entry = node.name;
    button.setAttribute("aria-pressed", node.name === mesh.node?.name);
    button.onclick = () => { wished = node.name; mesh.enter(mesh.uid, mesh.room); };
    return button;
  }));
  const other = alive.find((node) => node.name !== mesh.node?.name) ?? alive[0];
  const name = NAMES.find((name) => name !== mesh.uid);
  $("second").href = `?${new URLSearchParams({ uid: name, room: mesh.room, node: other?.name ?? "" })}`;
}

/** Rows stay the same elements, so that a click is not lost to an update that comes in between. */
const rows = new Map();

function table() {
  for (const node of known.values()) {
    if (!rows.has(node.name)) rows.set(node.name, newRow(node));
    const { cells, button } = rows.get(node.name);
    const gone = node.state === "gone";
    cells[0].parentElement.className = gone ? "is-gone" : "";
    cells[1].className = node.state;
    const counts = [node.clients, node.sessions, node.rooms, percent(node.share)];
    [node.state, ...counts.map((count) => (gone ? "–" : String(count)))].forEach((text, i) => {
      cells[i + 1].textContent = text;
    });
    button.hidden = !control;
    button.textContent = gone ? "start" : "kill";
    button.className = gone ? "start" : "";
    button.title = gone ? `start ${node.name} again` : `kill -9 ${node.name}`;
    button.disabled = busy.has(node.name);
  }
}

function newRow({ name }) {
  const button = el("button");
  button.onclick = () => killOrStart(name);
  const cells = [el("td", "", dot(name)), el("td"), ...Array.from({ length: 4 }, () => el("td", "n"))];
  const row = el("tr", "", ...cells, el("td", "", button));
  row.dataset.node = name;
  $("nodes").append(row);
  return { cells, button };
}

/* ---- killing and starting, where the demo offers it ---- */

const busy = new Set();

async function killOrStart(name) {
  const act = known.get(name).state === "gone" ? "start" : "kill";
  busy.add(name);
  table();
  try {
    const answer = await fetch(`${control}/${act}?node=${encodeURIComponent(name)}`, { method: "POST" });
    if (!answer.ok) throw new Error(await answer.text());
    note(act === "start" ? `starting ${name}` : `kill -9 ${name}`);
    $("control-note").textContent = "";
  } catch (error) {
    $("control-note").textContent = `could not ${act} ${name}: ${error.message}`;
  }
  busy.delete(name);
  table();
}

/* ---- the chat ---- */

const mesh = new Mesh(choose, {
  open(node, pause) {
    linkState(`entered by ${node.name}`, "open");
    if (pause) note(`back by ${node.name} after ${(pause / 1000).toFixed(1)} s`, true);
    look();
  },
  lost(node) {
    linkState("finding another node", "lost");
    note(`the connection to ${node.name} is gone; entering by another node`, true);
  },
  refused(text) {
    linkState("not connected", "lost");
    note(text, true);
  },
  message(room, pos, event, args) {
    if (event === "say" && room === mesh.room) said(pos, args[0] ?? {});
  },
});

/** The wished node while it lives; else any other, the one that just failed last. */
function choose() {
  const alive = [...known.values()].filter((node) => node.client && (node.state === "active" || node.state === "suspect"));
  const failed = mesh.node?.name;
  if (wished && wished !== failedLately(failed)) {
    const found = alive.find((node) => node.name === wished);
    if (found) return found;
  }
  const others = alive.filter((node) => node.name !== failed);
  return others[Math.floor(Math.random() * others.length)] ?? alive[0] ?? null;
}

/** A node that dropped us is not the first to be tried again. */
const failedLately = (name) => ($("link-state").classList.contains("lost") ? name : null);

function linkState(text, className) {
  $("link-state").textContent = text;
  $("link-state").className = `link-state ${className}`;
  $("send").disabled = className !== "open";
}

/** `3-9f3a….42` for people: the 42nd event of the room, in its 3rd term. */
function position(pos) {
  const [term, seq] = [pos.split("-")[0], pos.split(".").pop()];
  return `t${term} · ${seq}`;
}

function said(pos, { from = "?", text = "", via = "" }) {
  const mine = from === mesh.uid;
  const avatar = el("span", `avatar c${[...from].reduce((sum, c) => sum + c.codePointAt(0), 0) % COLOURS}`, from.slice(0, 1));
  const where = el("span", "pos", `#${mesh.room} ${position(pos)}`);
  where.title = `position in the room's log, the same for everyone: ${pos}`;
  const item = el("li", `said${mine ? " mine" : ""}`, avatar, el("div", "bubble", text),
    el("div", "meta", el("b", "", mine ? "you" : from), where, ...(via && known.has(via) ? [dot(via)] : [])));
  item.dataset.pos = pos;
  append(item);
  const owner = state?.room?.owner;
  fly([via, mine ? state?.uid?.owner : via, owner, mesh.node?.name].filter(Boolean));
}

function note(text, loud = false) {
  append(el("li", `note${loud ? " loud" : ""}`, text));
}

function append(item) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.append(item);
  while (list.childElementCount > KEPT_MESSAGES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

$("composer").onsubmit = async (submit) => {
  submit.preventDefault();
  const text = $("text").value.trim();
  if (!text || !mesh.open) return;
  $("text").value = "";
  const answer = await mesh.publish("say", { from: mesh.uid, text, via: mesh.node.name });
  if (!answer.ok) note(`not sent: ${answer.message}`, true);
};

function reenter() {
  const [uid, room] = [$("uid").value.trim(), $("room").value.trim()];
  if (!uid || !room || (uid === mesh.uid && room === mesh.room)) return;
  if (room !== mesh.room) $("messages").replaceChildren();
  history.replaceState(null, "", `?${new URLSearchParams({ uid, room, ...(wished && { node: wished }) })}`);
  mesh.enter(uid, room);
}
$("who").onsubmit = (submit) => { submit.preventDefault(); document.activeElement.blur(); };
$("uid").onchange = $("room").onchange = reenter;

async function start() {
  $("uid").value = query.get("uid") || NAMES[Math.floor(Math.random() * NAMES.length)];
  $("room").value = query.get("room") || "lobby";
  linkState("connecting", "");
  await look();
  if (!wished) wished = [...known.values()].find((node) => node.client === location.host)?.name ?? null;
  reenter();
  for (;;) {
    await new Promise((next) => setTimeout(next, document.hidden ? POLL_MS * 5 : POLL_MS));
    await look();
  }
}
start();
