// Search as you type, in views whose query has `q`.
import { go } from "./view.js";

const PAUSE_MS = 120;
let typing;

// Going back changes the search; while somebody types, their text stays.
export function showSearch(view) {
  const input = view.querySelector("#q");
  const asked = new URLSearchParams(location.search).get("q") ?? "";
  if (input && document.activeElement !== input && input.value !== asked) input.value = asked;
}

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
