// Keeps the ages of moments current: <time data-age>.
const SPACE = "\u202f";

export function duration(seconds) {
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)}${SPACE}${unit}`;
  }
  return `${Math.floor(seconds)}${SPACE}s`;
}

export function age(moment) {
  const seconds = (Date.now() - Date.parse(moment)) / 1000;
  if (Math.abs(seconds) < 1) return "now";
  return seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
}

export function updateAges(within = document) {
  for (const time of within.querySelectorAll("time[data-age]")) {
    const text = age(time.dateTime);
    if (time.textContent !== text) time.textContent = text;
  }
}
