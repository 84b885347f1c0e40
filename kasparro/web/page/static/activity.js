// The views Sources and runs, and Run: what a run at work has done so far.
import { current } from "./view.js";

// These views follow from runs, not from rows.
export const isAffected = () => false;

// Whether a run has begun or ended, or one of its sources has. Its counts are shown at once.
export function onRun(run) {
  const newest = current().querySelector("[data-newest]");
  const shown = current().querySelector(`[data-run="${run.id}"]`);
  if (newest && newest.dataset.newest !== `${run.id} ${run.status}`) return true;
  if (!shown) return false;
  if (!newest && shown.dataset.status !== run.status) return true;
  return run.sources.map((source) => isDone(shown, source)).some(Boolean);
}

function isDone(shown, source) {
  const part = [...shown.querySelectorAll("[data-source]")].find((found) => found.dataset.source === source.source);
  if (!part) return true;
  const counts = { ...source.records, changed: source.records.inserted + source.records.updated };
  for (const cell of part.querySelectorAll("[data-count]")) {
    const text = counts[cell.dataset.count].toLocaleString("en");
    if (cell.textContent !== text) cell.textContent = text;
  }
  return part.dataset.status !== source.status;
}
