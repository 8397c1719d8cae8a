"use strict";
// What the report and the board have in common; a plain script, for the report has it inside its page.

// A mean over neighbours within so large a share of the curve, as many before as after: at an end, over fewer.
function smoothed(values, share) {
  const half = Math.floor((share * values.length) / 6);
  if (half < 1) return values;
  const sums = [0], counts = [0];
  values.forEach((value, place) => {
    sums.push(sums[place] + (value ?? 0));
    counts.push(counts[place] + (value === null ? 0 : 1));
  });
  return values.map((value, place) => {
    const reach = Math.min(half, place, values.length - 1 - place);
    const first = place - reach, end = place + reach + 1;
    return value === null ? null : (sums[end] - sums[first]) / (counts[end] - counts[first]);
  });
}

// Plotly reads every text as a kind of HTML: names, categories, and what hovers.
function asText(trace) {
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const told = (value) => (Array.isArray(value) ? value.map(told) : typeof value === "string" ? escaped(value) : value);
  const keys = ["name", "text", "hovertext", "x", "y", "theta"].filter((key) => key in trace);
  return { ...trace, ...Object.fromEntries(keys.map((key) => [key, told(trace[key])])) };
}

// How a curve is drawn where colours tell runs apart.
function dashOf({ held_out, series }) {
  return held_out ? (series ? "dashdot" : "dash") : series ? "dot" : "solid";
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
