// The view Coin: its chart, the prices as a table, and downloads.
import { Chart } from "./chart.js";
import { key, read } from "./http.js";

let chart = null;

export function shown(view) {
  const plot = view.querySelector("#plot");
  if (!plot) {
    chart = null;
    return;
  }
  const bars = JSON.parse(view.querySelector("#bars").textContent);
  if (chart?.plot !== plot) chart = new Chart(plot, view.querySelector("#reading"));
  chart.draw(bars, plot.dataset.chart === "candles");
  const details = view.querySelector("details.table");
  const fill = () => {
    const table = details.open ? chart.table() : null;
    view.querySelector("#prices").replaceChildren(...(table ? [table] : []));
  };
  details.ontoggle = fill;
  fill();
}

// Only what changes this coin is sent.
export const follows = () => ({ asset: decodeURIComponent(location.pathname.split("/").at(-1)) });

// A link cannot send the API key.
document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[data-download]");
  if (!link || !key.get()) return;
  event.preventDefault();
  const response = await read(link.getAttribute("href").replace(/^(\.\.\/)+/, ""));
  const file = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(await response.blob()),
    download: link.dataset.download,
  });
  file.click();
  URL.revokeObjectURL(file.href);
});
