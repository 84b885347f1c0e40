// The view Market: search as you type, the lines of the coins, and what a run does.
import { drawLines } from "./sparkline.js";
import { current, go } from "./view.js";

const PAUSE_MS = 120;
let typing;
let drawing = null;
let newestRun = null;

export function shown(view) {
  drawing?.abort();
  drawing = new AbortController();
  // Without them the table is still complete.
  drawLines(view, drawing.signal).catch(() => {});
  const input = view.querySelector("#q");
  const asked = new URLSearchParams(location.search).get("q") ?? "";
  // Going back changes the search; while somebody types, their text stays.
  if (document.activeElement !== input && input.value !== asked) input.value = asked;
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

document.addEventListener("input", ({ target }) => {
  if (target.id !== "q") return;
  clearTimeout(typing);
  typing = setTimeout(search, PAUSE_MS, target.value);
});

document.addEventListener("submit", (event) => {
  const input = event.target.querySelector("#q");
  if (!input) return;
  event.preventDefault();
  clearTimeout(typing);
  search(input.value);
});

document.addEventListener("keydown", (event) => {
  const input = document.getElementById("q");
  if (!input || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !event.target.closest("input, textarea")) {
    event.preventDefault();
    input.select();
  } else if (event.key === "Escape" && event.target === input && input.value) {
    input.value = "";
    search("");
  }
});

function search(text) {
  const query = new URLSearchParams(location.search);
  query.delete("page");
  if (text.trim()) query.set("q", text.trim());
  else query.delete("q");
  const found = query.toString();
  // Each letter is no step of its own to go back.
  go(found ? `?${found}` : "", { replace: true });
}
