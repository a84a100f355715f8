// The picture of the ring: who owns which part, where a user and a room fall on it, and the way a
// message takes. Draws what `/demo/state.json` says; knows nothing of the connection.

const SVG = "http://www.w3.org/2000/svg";
const CENTRE = 200, RADIUS = 166, INNER = 88, DISC = 27;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const make = (name, attributes = {}, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const layer = (name) => document.getElementById(name);
/** A point on the circle; `at` runs clockwise from the top, 0 to 1. */
const point = (at, radius) => {
  const angle = (at - 0.25) * 2 * Math.PI;
  return [CENTRE + radius * Math.cos(angle), CENTRE + radius * Math.sin(angle)];
};
const fixed = (numbers) => numbers.map((number) => number.toFixed(2)).join(" ");
const short = (text, length = 10) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** Where each node's disc stands inside the ring, by name. */
let places = new Map();
let drawnDigest = "";

/**
 * Draws one answer of `/demo/state.json`. `colour(name)` gives a class; `slots` are all nodes seen so
 * far, dead ones too, so that nobody else moves when one goes; `entry` is the node entered by.
 */
export function draw(state, colour, slots, entry) {
  if (state.digest !== drawnDigest) {
    drawArcs(state, colour);
    drawnDigest = state.digest;
  }
  places = new Map(state.nodes.map((node) => [node.name, point(slots.indexOf(node.name) / slots.length, INNER)]));
  drawWires();
  layer("dots").replaceChildren(...state.nodes.map((node) => disc(node, colour(node.name), node.name === entry)));
  layer("leads").replaceChildren();
  layer("pins").replaceChildren();
  if (state.room) pin(state.room, `#${short(state.room.name)}`, colour);
  if (state.uid) pin(state.uid, short(state.uid.name), colour);
}

function drawArcs(state, colour) {
  const paths = new Map();
  for (const [from, to, owner] of state.arcs) {
    const sweep = to - from;
    if (sweep <= 0) continue;
    const far = sweep > 0.5 ? 1 : 0;
    // A whole circle has no arc of its own: two halves.
    const piece = sweep > 0.999
      ? `M${fixed(point(0, RADIUS))}A${RADIUS} ${RADIUS} 0 1 1 ${fixed(point(0.5, RADIUS))}A${RADIUS} ${RADIUS} 0 1 1 ${fixed(point(0, RADIUS))}`
      : `M${fixed(point(from, RADIUS))}A${RADIUS} ${RADIUS} 0 ${far} 1 ${fixed(point(to, RADIUS))}`;
    paths.set(owner, (paths.get(owner) ?? "") + piece);
  }
  const arcs = [...paths].map(([owner, d]) => make("path", { d, class: `arc ${colour(owner)}`, "data-owner": owner }));
  layer("arcs").replaceChildren(...arcs);
}

function drawWires() {
  const ends = [...places.values()];
  const wires = ends.flatMap((a, i) => ends.slice(i + 1).map((b) =>
    make("line", { class: "wire", x1: a[0], y1: a[1], x2: b[0], y2: b[1] })));
  layer("wires").replaceChildren(...wires);
}

function disc(node, colour, isEntry) {
  const [x, y] = places.get(node.name);
  const group = make("g", { class: `node ${colour} ${node.state}`, transform: `translate(${fixed([x, y])})`, "data-node": node.name });
  group.append(make("title", {}, `${node.name}: ${node.state}, ${node.clients} clients, owns ${node.sessions} sessions and ${node.rooms} rooms`));
  if (isEntry) group.append(make("circle", { class: "halo", r: DISC + 7 }));
  group.append(make("circle", { class: "disc", r: DISC }), make("text", {}, short(node.name, 7)));
  const note = isEntry ? "you enter here" : node.state !== "active" ? node.state : `${node.clients} client${node.clients === 1 ? "" : "s"}`;
  group.append(make("text", { class: "under", y: DISC + 17 }, note));
  return group;
}

/** A user's or a room's place on the ring, with a line to the node that owns it. */
function pin(key, label, colour) {
  const [x, y] = point(key.at, RADIUS);
  const owner = key.owner && places.get(key.owner);
  if (owner) {
    const length = Math.hypot(owner[0] - x, owner[1] - y) || 1;
    const end = [0, 1].map((i) => owner[i] + ([x, y][i] - owner[i]) * (DISC + 3) / length);
    const bend = point(key.at, RADIUS - 42);
    layer("leads").append(make("path", { class: `lead ${colour(key.owner)}`, d: `M${fixed([x, y])}Q${fixed(bend)} ${fixed(end)}` }));
  }
  const group = make("g", { class: "pin" });
  // Beside the ring on its left and right, above and below it elsewhere.
  const [tx, ty] = point(key.at, RADIUS + 24);
  const side = Math.abs(tx - CENTRE) < 60 ? "middle" : tx > CENTRE ? "start" : "end";
  group.append(make("circle", { cx: x, cy: y, r: 7 }), make("text", { x: tx, y: ty, "text-anchor": side }, label));
  layer("pins").append(group);
}

/** Shows a message travelling through these nodes, in order; repeats are one stop. */
export function fly(names) {
  const stops = names.filter((name, i) => name !== names[i - 1]).map((name) => places.get(name)).filter(Boolean);
  if (calm.matches || stops.length < 2 || document.hidden || layer("flights").childElementCount > 20) return;
  const dot = make("circle", { class: "flight", r: 6 });
  layer("flights").append(dot);
  const frames = stops.map(([x, y]) => ({ transform: `translate(${x}px, ${y}px)` }));
  const flight = dot.animate(frames, { duration: 420 * (stops.length - 1), easing: "ease-in-out" });
  flight.onfinish = flight.oncancel = () => dot.remove();
}
