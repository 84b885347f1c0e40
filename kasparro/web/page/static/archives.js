// The view Archives: search as you type, and copying of settings.
import { showSearch } from "./search.js";
import { current } from "./view.js";

// Files change when a run ends, not with every version.
export const isAffected = () => false;

export function onRun(run) {
  const { newest } = current().querySelector("[data-newest]").dataset;
  return run.status !== "running" && newest !== `${run.id} ${run.status}`;
}

export function shown(view) {
  showSearch(view);
  for (const button of view.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.previousElementSibling.textContent);
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
});
