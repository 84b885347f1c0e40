// Starts the page: key, theme, copying, ages, and what happens when data changes.
import { key } from "./http.js";
import { showSearch } from "./search.js";
import { Stream } from "./stream.js";
import { updateAges } from "./time.js";
import * as view from "./view.js";

const page = document.documentElement;
const live = document.getElementById("live");

const WORDS = { live: "Live", waiting: "Reconnecting", offline: "Offline", off: "Not live", paused: "Paused" };

function state(name) {
  live.dataset.state = name;
  live.firstElementChild.textContent = WORDS[name];
}

// Versions may come several times a second. One load at a time, and one more for what came meanwhile.
let loading = false;
let wanted = false;
async function refresh() {
  wanted = true;
  if (loading) return;
  loading = true;
  try {
    while (wanted) {
      wanted = false;
      await view.load({ mark: true });
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  } finally {
    loading = false;
  }
}

// The first event says which version is current, but not what changed since the document was rendered.
let known = false;
const stream = new Stream({
  filter: view.follows,
  state,
  missed: refresh,
  event(name, data) {
    let changed = name === "reset";
    if (name === "run") changed = view.onRun(data);
    if (name === "version" && !(data.data_version <= view.version())) changed = !known || view.isAffected(data);
    if (name === "version") known = true;
    if (changed) refresh();
  },
});

function follow() {
  if (document.hidden) {
    stream.stop();
    state("paused");
  } else stream.start();
}

addEventListener("online", () => stream.retry());
document.addEventListener("visibilitychange", () => {
  follow();
  if (!document.hidden) refresh();
});

view.handlers.shown = showSearch;
setInterval(updateAges, 1000);

document.getElementById("theme").addEventListener("click", () => {
  const dark = page.dataset.theme
    ? page.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  page.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", page.dataset.theme);
});

// Copied numbers have all their digits.
document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (selection.isCollapsed || event.target.closest?.("input, textarea")) return;
  const within = selection.getRangeAt(0).commonAncestorContainer;
  const number = (within.nodeType === Node.TEXT_NODE ? within.parentElement : within).closest("data");
  const holder = document.createElement("div");
  holder.append(number ? number.cloneNode(true) : selection.getRangeAt(0).cloneContents());
  const numbers = holder.querySelectorAll("data");
  if (!numbers.length) return;
  for (const data of numbers) data.textContent = data.value;
  event.clipboardData.setData("text/plain", plainText(holder).replace(/\t +/g, "\t").trim());
  event.preventDefault();
});

function plainText(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data.replace(/\s+/g, " ");
  const text = [...node.childNodes].map(plainText).join("");
  if (/^(TD|TH)$/.test(node.nodeName)) return `${text.trim()}\t`;
  return /^(TR|P|LI|DIV|DT|DD|H\d)$/.test(node.nodeName) ? `${text.trim()}\n` : text;
}

// The key form is on the page from the start if the service needs a key, and comes back if a key is refused.
const form = document.getElementById("key");
if (form) {
  const input = form.querySelector("input");
  view.handlers.key = (error) => {
    document.getElementById("refused").textContent = key.get() ? error.message : "";
    key.forget();
    stream.stop();
    state("off");
    document.getElementById("main").replaceChildren(form);
    input.focus();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(input.value);
    input.value = "";
    view.load();
  });
}

// With API keys the document has no view. The load that brings it may be one of several attempts.
async function begin() {
  await view.start();
  follow();
}
view.handlers.first = begin;

// Wait as long as the service asks for, and for the answer before the next attempt.
async function reloadOnceAvailable() {
  let wait = 3;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    const again = await fetch(location.href, { cache: "no-cache" }).catch(() => null);
    if (again?.ok) {
      location.reload();
      return;
    }
    wait = Number(again?.headers.get("Retry-After")) || 3;
  }
}

const problem = document.getElementById("problem");
if (problem) {
  state("off");
  if (problem.dataset.status === "503") reloadOnceAvailable();
} else if (!form) begin();
else if (key.get()) view.load();
else state("off");
