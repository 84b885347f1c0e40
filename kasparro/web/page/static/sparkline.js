// Draws the small lines of the last seven days: elements with `data-line`, which name an asset.
import { read } from "./http.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 112;
const HEIGHT = 32;
const MARGIN = 2;
// The service draws so many at once.
const AT_ONCE = 100;

export async function drawLines(view, signal) {
  const holders = [...view.querySelectorAll("[data-line]")];
  const assets = [...new Set(holders.map((holder) => holder.dataset.line))].slice(0, AT_ONCE);
  if (!assets.length) return;
  const response = await read(`page/sparklines?asset=${assets.map(encodeURIComponent).join(",")}`, { signal, cache: "no-cache" });
  const { lines, parts } = await response.json();
  for (const holder of holders) draw(holder, lines[holder.dataset.line] ?? [], parts);
}

function draw(holder, heights, parts) {
  const points = heights
    .map((height, part) => [part, height])
    .filter(([, height]) => height !== null);
  const drawn = JSON.stringify(points);
  if (holder.drawn === drawn) return;
  holder.drawn = drawn;
  if (points.length < 2) {
    holder.replaceChildren();
    return;
  }
  const x = (part) => MARGIN + (part / (parts - 1)) * (WIDTH - 2 * MARGIN);
  const y = (height) => HEIGHT - MARGIN - (height / 100) * (HEIGHT - 2 * MARGIN);
  const line = points.map(([part, height]) => `${x(part).toFixed(1)} ${y(height).toFixed(1)}`).join("L");
  const first = points[0][1];
  const last = points.at(-1)[1];
  const svg = element("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
    class: last > first ? "up" : last < first ? "down" : "flat",
  });
  svg.append(
    element("path", { class: "fill", d: `M${line}L${x(points.at(-1)[0]).toFixed(1)} ${HEIGHT}L${x(points[0][0]).toFixed(1)} ${HEIGHT}Z` }),
    element("path", { class: "stroke", d: `M${line}`, "vector-effect": "non-scaling-stroke" }),
  );
  holder.replaceChildren(svg);
}

export function element(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}
