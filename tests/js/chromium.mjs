// Headless Chromium with a profile of its own.

import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import puppeteer from "puppeteer-core";

/** How long a page may take to show something, for `page.waitForFunction`. */
export const PATIENCE = { timeout: 20_000, polling: 100 };

/** Runs `use(browser)` and ends the browser, whatever comes of it. */
export async function withBrowser(use) {
  const chromium = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
    .find((path) => path && existsSync(path));
  assert.ok(chromium, "Chromium is not installed (Debian: apt-get install chromium)");
  const profile = mkdtempSync(join(tmpdir(), "mesh-page-"));
  const browser = await puppeteer.launch({
    executablePath: chromium,
    headless: true,
    userDataDir: profile,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"],
  });
  try {
    await use(browser);
  } finally {
    await browser.close();
    rmSync(profile, { recursive: true, force: true });
  }
}
