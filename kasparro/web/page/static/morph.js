// Changes an element into a newer version of itself, and touches only what differs.
//
// Elements with `data-key` keep their identity when they move. Those with `data-keep` belong to a module, which
// draws them itself.

export function morph(old, fresh, mark) {
  if (old.nodeName !== fresh.nodeName || keyOf(old) !== keyOf(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (mark && old.nodeName === "DATA" && old.value !== fresh.value) flash(old, fresh);
  attributes(old, fresh);
  if (!old.hasAttribute("data-keep")) children(old, fresh, mark);
}

const keyOf = (node) => node.dataset?.key;

function attributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    // `open` is what the reader opened; `data-flash` ends by itself.
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "data-flash") old.removeAttribute(name);
  }
}

function children(old, fresh, mark) {
  const keyed = new Map();
  for (const child of old.children) if (keyOf(child)) keyed.set(keyOf(child), child);
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const found = keyOf(wanted) ? keyed.get(keyOf(wanted)) : undefined;
    if (found && found !== at) old.insertBefore(found, at);
    const same = found ?? (at && !keyOf(at) && at.nodeName === wanted.nodeName ? at : null);
    if (!same) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    morph(same, wanted, mark);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function flash(old, fresh) {
  const difference = Number(fresh.value) - Number(old.value);
  // Without this pause the animation would not start again.
  old.removeAttribute("data-flash");
  requestAnimationFrame(() => {
    old.dataset.flash = difference < 0 ? "down" : "up";
  });
}

document.addEventListener("animationend", ({ target }) => target.removeAttribute?.("data-flash"));
