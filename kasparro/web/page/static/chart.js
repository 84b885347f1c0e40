// Draws prices over time as a line or as candles, with a crosshair that reads exact values.
//
// A bar is [seconds, close] of a line or [seconds, open, high, low, close, count] of candles. Prices are digits as
// text; they become floats only to place pixels.
import { element } from "./sparkline.js";

const HEIGHT = 320;
const TOP = 12;
const BOTTOM = 28;
const RIGHT = 78;
const TICKS = 5;
const DAY = 86400;
// A time without prices of so many usual steps is a gap.
const GAP = 8;
const TIMES = [60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 7 * DAY, 14 * DAY, 30 * DAY,
  91 * DAY, 182 * DAY, 365 * DAY, 730 * DAY, 1825 * DAY];

export class Chart {
  constructor(plot, reading) {
    this.plot = plot;
    this.reading = reading;
    this.bars = [];
    this.chosen = null;
    new ResizeObserver(() => this.#render()).observe(plot);
    plot.addEventListener("pointermove", (event) => this.#point(event));
    plot.addEventListener("pointerdown", (event) => this.#point(event));
    plot.addEventListener("pointerleave", () => this.#choose(null));
    plot.addEventListener("blur", () => this.#choose(null));
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && this.#choose(this.bars.length - 1));
    plot.addEventListener("keydown", (event) => this.#key(event));
  }

  draw(bars, candles) {
    this.bars = bars;
    this.candles = candles;
    const last = Math.max(bars.length - 1, 0);
    if (this.chosen !== null) this.chosen = Math.min(this.chosen, last);
    this.plot.setAttribute("aria-valuemax", last);
    this.width = 0;
    this.#render();
  }

  // The same prices for people who cannot see the chart.
  table() {
    const table = document.createElement("table");
    table.className = "grid";
    const head = table.createTHead().insertRow();
    for (const name of this.candles ? ["Time (UTC)", "Open", "High", "Low", "Close", "Prices"] : ["Time (UTC)", "Price"]) {
      head.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col" }));
    }
    const body = table.createTBody();
    for (const [time, ...values] of this.bars) {
      const row = body.insertRow();
      for (const text of [moment(time), ...values]) row.insertCell().textContent = text;
    }
    return table;
  }

  #render() {
    const width = Math.floor(this.plot.clientWidth);
    if (!width || width === this.width || !this.bars.length) return;
    this.width = width;
    const lows = this.bars.map((bar) => Number(this.candles ? bar[3] : bar[1]));
    const highs = this.bars.map((bar) => Number(this.candles ? bar[2] : bar[1]));
    let low = Math.min(...lows);
    let high = Math.max(...highs);
    if (low === high) [low, high] = low ? [low - Math.abs(low) / 100, high + Math.abs(high) / 100] : [-1, 1];
    const air = (high - low) / 25;
    low -= air;
    high += air;
    const first = this.bars[0][0];
    const last = this.bars.at(-1)[0];
    const inner = width - RIGHT;
    const space = this.candles ? room(this.bars, inner) : 0;
    this.x = (time) => (last === first ? inner / 2 : space / 2 + ((time - first) / (last - first)) * (inner - space));
    this.y = (price) => TOP + ((high - price) / (high - low)) * (HEIGHT - TOP - BOTTOM);

    const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" });
    this.#grid(svg, low, high, first, last, inner);
    if (this.candles) this.#candles(svg, space);
    else this.#line(svg);
    this.cross = element("g", { class: "cross", visibility: "hidden" });
    this.cross.append(
      element("line", { y1: TOP, y2: HEIGHT - BOTTOM }),
      element("circle", { r: 4 }),
    );
    svg.append(this.cross);
    this.plot.replaceChildren(svg);
    this.#choose(this.chosen);
  }

  #grid(svg, low, high, first, last, inner) {
    const step = nice((high - low) / TICKS);
    const group = element("g", { class: "axis" });
    for (let price = Math.ceil(low / step) * step; price <= high; price += step) {
      const y = Math.round(this.y(price)) + 0.5;
      group.append(element("line", { x1: 0, x2: inner, y1: y, y2: y }));
      group.append(label(inner + 8, y + 4, priceLabel(price, step), "start"));
    }
    const every = TIMES.find((length) => (last - first) / length <= inner / 70) ?? TIMES.at(-1);
    for (let time = Math.ceil(first / every) * every; time <= last; time += every) {
      const x = this.x(time);
      if (x > 24 && x < inner - 24) group.append(label(x, HEIGHT - 8, timeLabel(time, every, last - first), "middle"));
    }
    svg.append(group);
  }

  #line(svg) {
    const bottom = HEIGHT - BOTTOM;
    const rising = Number(this.bars.at(-1)[1]) >= Number(this.bars[0][1]);
    const group = element("g", { class: rising ? "up" : "down" });
    let before = null;
    for (const part of parts(this.bars)) {
      const points = part.map(([time, price]) => [this.x(time).toFixed(1), this.y(Number(price)).toFixed(1)]);
      const [first, last] = [points[0], points.at(-1)];
      // Nothing is known of a gap.
      if (before) group.append(element("path", { class: "gap", d: `M${before.join(" ")}L${first.join(" ")}` }));
      if (points.length === 1) group.append(element("circle", { cx: first[0], cy: first[1], r: 3, class: "dot" }));
      else {
        const path = points.map((point) => point.join(" ")).join("L");
        group.append(element("path", { class: "fill", d: `M${path}L${last[0]} ${bottom}L${first[0]} ${bottom}Z` }));
        group.append(element("path", { class: "stroke", d: `M${path}` }));
      }
      before = last;
    }
    svg.append(group);
  }

  #candles(svg, space) {
    const body = Math.max(1, Math.min(space * 0.65, 14));
    for (const [time, open, high, low, close] of this.bars) {
      const x = this.x(time);
      const [o, h, l, c] = [open, high, low, close].map((digits) => this.y(Number(digits)));
      const group = element("g", { class: c <= o ? "up" : "down" });
      group.append(element("line", { class: "stroke", x1: x, x2: x, y1: h, y2: l }));
      group.append(element("rect", { class: "body", x: x - body / 2, y: Math.min(o, c), width: body, height: Math.max(1, Math.abs(o - c)) }));
      svg.append(group);
    }
  }

  #point(event) {
    if (!this.x || !this.bars.length) return;
    const at = event.clientX - this.plot.getBoundingClientRect().left;
    let nearest = 0;
    let least = Infinity;
    this.bars.forEach(([time], index) => {
      const distance = Math.abs(this.x(time) - at);
      if (distance < least) [nearest, least] = [index, distance];
    });
    this.#choose(nearest);
  }

  #key(event) {
    const last = this.bars.length - 1;
    const at = this.chosen ?? last;
    const moves = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageDown: at - 10, PageUp: at + 10, Home: 0, End: last,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.#choose(Math.max(0, Math.min(last, moves[event.key])));
  }

  #choose(index) {
    this.chosen = index;
    this.cross?.setAttribute("visibility", index === null ? "hidden" : "visible");
    const bar = this.bars[index ?? this.bars.length - 1];
    const [time, ...values] = bar;
    const words = this.candles
      ? [["Open", values[0]], ["High", values[1]], ["Low", values[2]], ["Close", values[3]]]
      : [["", values[0]]];
    this.reading.replaceChildren(
      span(moment(time), "quiet"),
      ...words.map(([name, digits]) => {
        const part = span(name && `${name[0]} `, "quiet");
        part.append(Object.assign(document.createElement("data"), { value: digits, textContent: `$${grouped(digits)}` }));
        return part;
      }),
    );
    this.plot.setAttribute("aria-valuenow", index ?? this.bars.length - 1);
    this.plot.setAttribute("aria-valuetext", `${moment(time)}: ${words.map(([name, digits]) => `${name} $${grouped(digits)}`.trim()).join(", ")}`);
    if (index === null || !this.cross) return;
    const x = this.x(time);
    const [line, dot] = this.cross.children;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", this.y(Number(this.candles ? values[3] : values[0])));
  }
}

// Exact digits with commas.
function grouped(digits) {
  return digits.replace(/^-?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));
}

function span(text, name) {
  return Object.assign(document.createElement("span"), { textContent: text, className: name });
}

function label(x, y, text, anchor) {
  const made = element("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// A line, cut where it has no price for much longer than usual.
function parts(bars) {
  const steps = bars.slice(1).map(([time], index) => time - bars[index][0]);
  const usual = steps.toSorted((a, b) => a - b)[Math.floor(steps.length / 2)];
  const found = [[bars[0]]];
  bars.slice(1).forEach((bar, index) => {
    if (steps[index] > GAP * usual) found.push([]);
    found.at(-1).push(bar);
  });
  return found;
}

// How wide a candle may be: the shortest time between two of them.
function room(bars, inner) {
  const steps = bars.slice(1).map(([time], index) => time - bars[index][0]);
  const span = bars.at(-1)[0] - bars[0][0];
  return span ? (inner * Math.min(...steps)) / (span + Math.min(...steps)) : inner / 4;
}

// 1, 2 or 5 times a power of ten.
function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  const share = step / power;
  return (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10) * power;
}

function priceLabel(price, step) {
  if (Math.abs(price) >= 1e9 || (price && Math.abs(price) < 1e-6)) return price.toExponential(2);
  const decimals = Math.max(0, Math.min(12, -Math.floor(Math.log10(step))));
  return price.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function moment(time) {
  return `${new Date(time * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

function timeLabel(time, every, span) {
  const date = new Date(time * 1000);
  const format = (options) => date.toLocaleString("en-GB", { timeZone: "UTC", ...options });
  if (every < DAY) {
    return time % DAY ? format({ hour: "2-digit", minute: "2-digit" }) : format({ day: "numeric", month: "short" });
  }
  return span > 2 * 365 * DAY ? format({ month: "short", year: "numeric" }) : format({ day: "numeric", month: "short" });
}
