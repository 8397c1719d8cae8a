// Pieces of the page, and words, which know nothing of runs.

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

// What the lines of a plot mean beside their colours; nothing where all mean the same.
export function legend(traces) {
  const words = ({ means, held_out }) => [means, held_out && "held-out"].filter(Boolean).join(", ") || "training";
  const named = new Map(traces.map(({ meta }) => [dashOf(meta), words(meta)]));
  return named.size < 2 ? [] : [...named].map(([dash, told]) => {
    const entry = document.createElement("span");
    entry.innerHTML = `<svg width="28" height="6" aria-hidden="true"><line class="${dash}" x2="28" y1="3" y2="3"/></svg> `;
    entry.append(told);
    return entry;
  });
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

// A figure by its name: bytes are told in GiB, as they are drawn.
export function inWords(name, value) {
  return name === "memory" && value != null ? `${number(value / 2 ** 30)} GiB` : number(value);
}

export function plain(value) {
  return value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

export function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes < 1 ? `${Math.floor(seconds)} s` : minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
