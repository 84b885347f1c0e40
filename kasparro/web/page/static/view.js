// Loads the fragment of the view again: for another query, or because its data changed.
import { ReadError, read } from "./http.js";
import { morph } from "./morph.js";
import { updateAges } from "./time.js";

const fragment = document.documentElement.dataset.fragment;
const main = document.getElementById("main");
const notice = document.getElementById("notice");
const RETRY_MS = 3000;
let pending = null;
let retry;
let module = {};

export const current = () => document.getElementById("view");

// What to do about an error that only the reader can settle, a missing key; when a load brings the view to a page
// without one; and with each new view.
export const handlers = { key: () => {}, first: () => {}, shown: () => {} };

export async function load({ mark = false } = {}) {
  pending?.abort();
  clearTimeout(retry);
  const mine = (pending = new AbortController());
  // Only a load that the reader asked for may take the eye.
  if (!mark) main.setAttribute("aria-busy", "true");
  try {
    const response = await read(fragment + search(), { signal: mine.signal, cache: "no-cache" });
    const text = await response.text();
    show(new DOMParser().parseFromString(text, "text/html").getElementById("view"), mark);
    say(null);
    return true;
  } catch (error) {
    if (error.name === "AbortError") return true;
    const failure = error instanceof ReadError ? error : broken(error);
    if (failure.kind === "key") handlers.key(failure);
    else {
      say(failure);
      if (failure.kind !== "request") retry = setTimeout(load, RETRY_MS, { mark });
    }
    return false;
  } finally {
    if (pending === mine) {
      pending = null;
      main.removeAttribute("aria-busy");
    }
  }
}

// The connection ended within the answer, or the answer is not the view, as that of a gateway.
function broken(error) {
  console.error(error);
  return new ReadError("offline", "The answer of the service cannot be read.");
}

// The query of the address, and what the module adds to it.
function search() {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(module.parameters?.() ?? {})) query.set(name, value);
  const text = query.toString();
  return text && `?${text}`;
}

function show(fresh, mark) {
  const old = current();
  if (old) morph(old, fresh, mark);
  else main.replaceChildren(fresh);
  document.title = `${fresh.dataset.title} · Kasparro`;
  updateAges();
  if (!old) {
    handlers.first();
    return;
  }
  handlers.shown(current());
  module.shown?.(current());
}

// The data on screen stays, and a line above it says why it may be old.
function say(error) {
  notice.hidden = !error;
  document.body.classList.toggle("stale", Boolean(error) && error.kind !== "request");
  if (error) {
    const ending = error.kind === "request" ? "" : " What you see may be old; the page tries again by itself.";
    notice.textContent = error.message + ending;
  }
}

export async function start() {
  const view = current();
  if (view) handlers.shown(view);
  if (view?.dataset.module) {
    module = await import(`./${view.dataset.module}.js`);
    module.shown?.(view);
  }
}

// The data version on screen, the filter of the stream that the view follows, and whether a newer one or a run changes what is on screen.
export const version = () => Number(current()?.dataset.version);
export const follows = () => module.follows?.() ?? {};
export const isAffected = (change) => module.isAffected?.(change) ?? true;
export const onRun = (run) => module.onRun?.(run) ?? run.status !== "running";

// Another query of the same view: its address changes, and only the fragment is loaded.
export function go(search, { replace = false } = {}) {
  const url = location.pathname + search;
  if (replace) history.replaceState(null, "", url);
  else if (search !== location.search) history.pushState(null, "", url);
  return load();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-swap]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(new URL(link.href).search).then(() => {
    if (link.dataset.swap === "top") document.querySelector("[data-top]")?.scrollIntoView();
  });
});
addEventListener("popstate", () => load());
