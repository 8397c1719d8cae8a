// Pieces of the page, and words, which know nothing of runs.

// A moving mean over so large a share of the curve.
export function smoothed(values, share) {
  const half = Math.floor((share * values.length) / 6);
  if (half < 1) return values;
  return values.map((value, place) => {
    const reach = Math.min(half, place, values.length - 1 - place);
    const near = values.slice(place - reach, place + reach + 1).filter((each) => each !== null);
    return value === null ? null : near.reduce((sum, each) => sum + each, 0) / near.length;
  });
}

export function table(place, head, rows) {
  const line = (cells, tag) => {
    const row = document.createElement("tr");
    cells.forEach((text, column) => {
      const cell = document.createElement(column ? tag : "th");
      cell.textContent = text;
      if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      if (column) cell.className = "number";
      row.append(cell);
    });
    return row;
  };
  const [top, body] = [document.createElement("thead"), document.createElement("tbody")];
  top.append(line(head, "th"));
  body.append(...(rows.length ? rows.map((cells) => line(cells, "td")) : [line(["none"], "td")]));
  place.replaceChildren(top, body);
}

export function query(names) {
  return names.map((name) => `run=${encodeURIComponent(name)}`).join("&");
}

export function fill(select, names, first) {
  if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) return;
  const before = select.value;
  select.replaceChildren(...names.map((name) => new Option(name)));
  select.value = names.includes(before) ? before : (first ?? "");
}

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function number(value) {
  if (value == null) return "–";
  return Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export function plain(value) {
  return value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? `${Math.round(seconds)} s` : minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
}

// Plotly reads every text as a kind of HTML: names, categories, and what hovers.
export function asText(trace) {
  const told = (value) => (Array.isArray(value) ? value.map(told) : typeof value === "string" ? escaped(value) : value);
  const keys = ["name", "text", "hovertext", "x", "y", "theta"].filter((key) => key in trace);
  return { ...trace, ...Object.fromEntries(keys.map((key) => [key, told(trace[key])])) };
}

export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
