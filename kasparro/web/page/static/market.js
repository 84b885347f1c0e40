// The view Market: the lines of the coins, and what a run does.
import { drawLines } from "./sparkline.js";
import { current } from "./view.js";

let drawing = null;
let newestRun = null;

export function shown(view) {
  drawing?.abort();
  drawing = new AbortController();
  // Without them the table is still complete.
  drawLines(view, drawing.signal).catch(() => {});
}

// All coins by rank stay on their page while those of the page stay as they are. In another order, under a filter
// or in an empty table, any change may bring a coin onto the page.
export function isAffected({ changed, truncated }) {
  if (truncated || !current().querySelector("[data-by-rank]")) return true;
  const assets = new Set(changed.assets);
  return [...current().querySelectorAll("[data-line]")].some((holder) => assets.has(holder.dataset.line));
}

// Whether a run has ended that is not on screen. What a running one has fetched is shown at once.
export function onRun(run) {
  if (run.status === "running") {
    document.getElementById("now").textContent = `Running now: ${run.records.fetched.toLocaleString("en")} fetched`;
    return false;
  }
  newestRun = run.id;
  return document.getElementById("last-run").dataset.run !== String(run.id);
}

export const parameters = () => (newestRun ? { run: newestRun } : {});
