// The view Market: the lines of the coins, and what a run does.
import { showSearch } from "./search.js";
import { drawLines } from "./sparkline.js";
import { current } from "./view.js";

let drawing = null;
let newestRun = null;

export function shown(view) {
  drawing?.abort();
  drawing = new AbortController();
  // Without them the table is still complete.
  drawLines(view, drawing.signal).catch(() => {});
  showSearch(view);
}

export function isAffected({ changed, truncated }) {
  if (truncated) return true;
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
