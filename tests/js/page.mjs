// The demo page in headless Chromium: two tabs on two nodes, a message each way, a killed node.
//
// Arguments: the page's address; a directory for pictures, or nothing.

import assert from "node:assert/strict";
import { join } from "node:path";
import { PATIENCE, withBrowser } from "./chromium.mjs";

const [page, pictures] = process.argv.slice(2);
const errors = [];

async function tab(browser, query, viewport = { width: 1240, height: 800 }, scheme = "light") {
  const tab = await browser.newPage();
  tab.on("pageerror", (error) => errors.push(`${query}: ${error.message}`));
  tab.on("console", (message) => {
    // A node that is gone refuses connections: that is what the page is there to survive.
    if (message.type() === "error" && !/ERR_CONNECTION|Failed to load/.test(message.text())) errors.push(`${query}: ${message.text()}`);
  });
  await tab.setViewport(viewport);
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.goto(`${page}?${query}`);
  await tab.waitForSelector(".link-state.open", PATIENCE);
  return tab;
}

async function say(tab, text) {
  await tab.bringToFront();
  await tab.type("#text", text);
  await tab.keyboard.press("Enter");
}

const heard = (tab, text) => tab.waitForFunction(
  (text) => [...document.querySelectorAll(".bubble")].find((bubble) => bubble.textContent === text)?.closest("li").dataset.pos,
  PATIENCE, text).then((found) => found.jsonValue());
const drawn = (tab) => tab.$$eval("#dots [data-node]", (dots) => dots.map((dot) => dot.dataset.node).sort());
const owners = (tab) => tab.$$eval("#arcs [data-owner]", (arcs) => arcs.map((arc) => arc.dataset.owner).sort());
const picture = async (tab, name) => {
  if (!pictures) return;
  await tab.bringToFront();
  await tab.waitForFunction(() => document.querySelectorAll("#flights *").length === 0, PATIENCE);
  await tab.screenshot({ path: join(pictures, `${name}.png`) });
};

await withBrowser(async (browser) => {
  const first = await tab(browser, "uid=alice&room=lobby");
  await first.waitForFunction(() => document.querySelectorAll("#dots [data-node]").length === 3, PATIENCE);
  const nodes = await drawn(first);
  assert.deepEqual(await owners(first), nodes, "each node owns a part of the ring");

  const entry = (tab) => tab.$eval('#entries [aria-pressed="true"]', (button) => button.dataset.entry);
  const here = await entry(first);
  const there = nodes.find((node) => node !== here);
  const second = await tab(browser, `uid=bob&room=lobby&node=${there}`, undefined, "dark");
  await second.waitForFunction((there) => document.querySelector('#entries [aria-pressed="true"]')?.dataset.entry === there, PATIENCE, there);

  await say(first, "Hello from the first node. Anyone there?");
  await say(second, "Right here, on another node.");
  await say(first, "Same order for everyone: look at the positions.");
  await say(second, "No broker between us. Everyone can compute who owns the room.");
  for (const text of ["Right here, on another node.", "No broker between us. Everyone can compute who owns the room."]) {
    assert.equal(await heard(first, text), await heard(second, text), "one position for everyone");
  }
  await picture(first, "light");
  await picture(second, "dark");

  const phone = await tab(browser, `uid=carol&room=lobby&node=${here}`, { width: 390, height: 844 });
  const wide = await phone.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 390, `the page is ${wide} wide on a phone`);
  await say(phone, "Me too, on a phone.");
  await heard(second, "Me too, on a phone.");
  await picture(phone, "phone");
  await phone.close();

  // Kill the second tab's node with the page's own button.
  await first.bringToFront();
  await first.waitForSelector(`#nodes [data-node="${there}"] button`, PATIENCE);
  await first.click(`#nodes [data-node="${there}"] button`);
  await first.waitForFunction((gone) => !document.querySelector(`#dots [data-node="${gone}"]`)
    && !document.querySelector(`#arcs [data-owner="${gone}"]`), PATIENCE, there);
  const rest = nodes.filter((node) => node !== there);
  assert.deepEqual(await drawn(first), rest);
  assert.equal(await entry(first), here, "the other tab keeps its node");
  await second.bringToFront();
  await second.waitForFunction((gone) => {
    const entry = document.querySelector('#entries [aria-pressed="true"]')?.dataset.entry;
    return entry && entry !== gone && document.querySelector(".link-state.open");
  }, PATIENCE, there);
  const notes = await second.$$eval(".note", (notes) => notes.map((note) => note.textContent).join("\n"));
  assert.match(notes, /is gone/, "the way back is told");
  await say(second, "Back by another node.");
  await heard(first, "Back by another node.");
  await picture(second, "moved");

  // Start it again: it comes back into the picture.
  await first.bringToFront();
  await first.waitForSelector(`#nodes [data-node="${there}"] button.start:not([disabled])`, PATIENCE);
  await first.click(`#nodes [data-node="${there}"] button.start`);
  await first.waitForFunction((back) => document.querySelector(`#arcs [data-owner="${back}"]`), PATIENCE, there);
  assert.deepEqual(await drawn(first), nodes);
  assert.deepEqual(errors, []);
  console.log("page: passed");
});
