// The board: asks for the runs again and again, and draws those that are compared.

const $ = (id) => document.getElementById(id);
const FIRST = 8, COLOURS = 8, DASHES = ["solid", "dash", "dot", "dashdot"];
const ORDER = ["loss", "reward/accuracy", "reward/margin", "reward/chosen", "reward/rejected", "logp/chosen", "logp/rejected"];
const LAST = ["gradient_norm", "learning_rate", "tokens_per_second", "memory"];
const AXES = ["step", "epoch", "tokens", "seconds"];
const HELD_OUT = "held_out/";

const state = {
  runs: {}, told: "", curves: {}, compared: new Set(), touched: false,
  sort: { by: "changed", down: true }, rows: new Map(), charts: new Map(), colours: new Map(),
};

// Asking

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.text();
}

async function look() {
  let wait = 3000;
  try {
    const told = await ask("runs");
    if (told !== state.told) {
      state.told = told;
      const { folder, runs } = JSON.parse(told);
      state.runs = runs;
      $("folder").textContent = folder;
      chooseFirst();
      drawLists();
      await refresh();
    }
    if (Object.values(state.runs).some((run) => run.state === "running")) wait = 1000;
    tellStatus();
  } catch (error) {
    $("status").textContent = `the board does not answer (${error.message}); start it again with: zkit board`;
  }
  setTimeout(look, wait);
}

async function refresh() {
  const stale = compared().filter((name) => state.curves[name]?.version !== state.runs[name].version);
  if (stale.length) Object.assign(state.curves, JSON.parse(await ask("curves?" + stale.map((name) => "run=" + encodeURIComponent(name)).join("&"))));
  drawCompared();
}

function tellStatus() {
  const counts = {};
  for (const run of Object.values(state.runs)) counts[run.state] = (counts[run.state] ?? 0) + 1;
  const told = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ") || "no runs yet";
  if ($("status").textContent !== told) $("status").textContent = told;
}

// What is compared

function chooseFirst() {
  if (!state.touched) state.compared = new Set(shownRuns().slice(0, FIRST));
}

function compared() {
  return [...state.compared].filter((name) => name in state.runs);
}

function compare(names) {
  state.touched = true;
  state.compared = new Set(names);
  for (const name of state.colours.keys()) if (!state.compared.has(name)) state.colours.delete(name);
  drawLists();
  refresh();
}

function lineOf(name) {
  if (!state.colours.has(name)) {
    const taken = new Set(state.colours.values());
    let place = 0;
    while (taken.has(place)) place++;
    state.colours.set(name, place);
  }
  const place = state.colours.get(name);
  return { colour: `--c${place % COLOURS}`, dash: DASHES[Math.floor(place / COLOURS) % DASHES.length] };
}

// The list of runs

function matches(name, run) {
  const allowed = [...document.querySelectorAll("#states input:checked")].map((box) => box.value);
  const about = [name, run.preset, ...Object.entries(run.settings).map(([key, value]) => `${key}=${value}`)].join(" ").toLowerCase();
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  return allowed.includes(run.state) && words.every((word) => about.split(" ").some((part) => part.endsWith(word) || (!word.includes("=") && part.includes(word))));
}

function stageOf(run) {
  const stages = Object.entries(run.stages);
  return stages.find(([, stage]) => ["running", "failed", "unfinished"].includes(stage.state)) ?? stages.findLast(([, stage]) => stage.kind === "trains") ?? stages[0];
}

function figureOf(run) {
  const stages = Object.values(run.stages).filter((stage) => stage.last[$("figure").value] != null);
  return stages.at(-1)?.last[$("figure").value] ?? null;
}

function shownRuns() {
  const value = { name: ([name]) => name, state: ([, run]) => run.state, changed: ([, run]) => run.changed, figure: ([, run]) => figureOf(run), progress: ([, run]) => Object.values(run.stages).reduce((sum, stage) => sum + (stage.state === "done" ? 1 : stage.progress ?? 0), 0) }[state.sort.by];
  const sign = state.sort.down ? -1 : 1;
  return Object.entries(state.runs).filter(([name, run]) => matches(name, run)).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // none comes last either way
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  }).map(([name]) => name);
}

function drawLists() {
  const names = new Set(Object.values(state.runs).flatMap((run) => Object.values(run.stages).flatMap((stage) => Object.keys(stage.last))));
  fill($("figure"), ordered([...names].filter((name) => !AXES.includes(name))), names.has(HELD_OUT + "loss") ? HELD_OUT + "loss" : "loss");
  const shown = shownRuns(), body = document.querySelector("#runs tbody");
  $("count").textContent = `${shown.length} of ${Object.keys(state.runs).length} runs, ${compared().length} compared`;
  for (const name of shown) drawRow(name);
  const rows = shown.map((name) => state.rows.get(name));
  if (rows.length !== body.children.length || rows.some((row, place) => body.children[place] !== row)) {
    const focused = document.activeElement;
    body.replaceChildren(...rows);
    if (body.contains(focused)) focused.focus();
  }
}

function drawRow(name) {
  const run = state.runs[name], [stageName, stage] = stageOf(run);
  if (!state.rows.has(name)) state.rows.set(name, newRow(name));
  const row = state.rows.get(name), [box, title, status, where, figure, changed] = row.cells;
  const input = box.querySelector("input"), swatch = title.querySelector(".swatch");
  input.checked = state.compared.has(name);
  const line = input.checked ? lineOf(name) : null;
  swatch.style.borderTopColor = line ? `var(${line.colour})` : "transparent";
  swatch.style.borderTopStyle = line ? { solid: "solid", dash: "dashed", dot: "dotted", dashdot: "double" }[line.dash] : "solid";
  put(status, run.state);
  status.className = `state-${run.state}`;
  status.title = run.troubles.join("\n");
  drawProgress(where, stageName, stage);
  put(figure, number(figureOf(run)));
  put(changed, new Date(run.changed * 1000).toLocaleString());
}

function newRow(name) {
  const row = document.createElement("tr");
  row.innerHTML = `<td><input type="checkbox"></td><th scope="row"><span class="swatch" aria-hidden="true"></span><span></span></th><td></td><td></td><td class="number"></td><td class="number"></td>`;
  const input = row.querySelector("input");
  input.setAttribute("aria-label", `compare ${name}`);
  input.addEventListener("change", () => compare(input.checked ? [...state.compared, name] : [...state.compared].filter((each) => each !== name)));
  row.cells[1].lastChild.textContent = name;
  return row;
}

function drawProgress(cell, name, stage) {
  const left = stage.seconds_left == null ? "" : `, ${duration(stage.seconds_left)} left`;
  const text = stage.step ? `${name}, step ${stage.step}${left}` : name;
  if (stage.state === "running" && stage.progress != null) {
    if (!cell.querySelector("progress")) cell.innerHTML = `<progress max="1"></progress> <span></span>`;
    cell.firstChild.value = stage.progress;
    cell.firstChild.setAttribute("aria-label", `progress of ${name}`);
    put(cell.lastChild, text);
  } else put(cell, text);
}

// The curves

function drawCompared() {
  const names = compared().filter((name) => state.curves[name]);
  const stages = [...new Set(names.flatMap((name) => Object.entries(state.curves[name].stages).filter(([, { steps }]) => steps.step).map(([stage]) => stage)))];
  fill($("stage"), stages, stages.at(-1));
  const having = names.map((name) => [name, state.curves[name].stages[$("stage").value]]).filter(([, curves]) => curves?.steps.step);
  const metrics = ordered([...new Set(having.flatMap(([, curves]) => [...Object.keys(curves.steps), ...Object.keys(curves.held_out)]))].filter((name) => !AXES.includes(name)));
  $("empty").hidden = metrics.length > 0;
  for (const [metric, figure] of state.charts) if (!metrics.includes(metric)) { Plotly.purge(figure.querySelector(".plot")); figure.remove(); state.charts.delete(metric); }
  for (const metric of metrics) drawChart(metric, having);
  drawSettings(names);
  drawFigures(having, metrics);
}

function drawChart(metric, having) {
  if (!state.charts.has(metric)) state.charts.set(metric, newChart(metric));
  const plot = state.charts.get(metric).querySelector(".plot");
  const traces = having.flatMap(([name, curves]) => tracesOf(name, curves, metric));
  const told = having.filter(([, curves]) => curves.steps[metric]).map(([name, curves]) => `${name}: ${number(curves.steps[metric].findLast((value) => value !== null))}`);
  plot.setAttribute("aria-label", `${metric} along ${$("along").value}. Newest: ${told.join("; ") || "none"}`);
  Plotly.react(plot, traces, layout(), { displaylogo: false, displayModeBar: false, responsive: true });
}

function newChart(metric) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption></figcaption><div class="plot" role="img"></div>`;
  figure.firstChild.textContent = metric;
  const after = ordered([...state.charts.keys(), metric]);
  const next = after.slice(after.indexOf(metric) + 1).find((each) => state.charts.has(each));
  $("charts").insertBefore(figure, next ? state.charts.get(next) : null);
  return figure;
}

function tracesOf(name, { steps, held_out }, metric) {
  const { colour, dash } = lineOf(name), along = $("along").value, weight = Number($("smooth").value), traces = [];
  const line = { color: css(colour), dash, width: 1.8 }, x = steps[along];
  if (steps[metric] && x) {
    if (weight) traces.push({ x, y: steps[metric], line: { ...line, width: 1 }, opacity: 0.25, mode: "lines", hoverinfo: "skip" });
    traces.push({ x, y: smoothed(steps[metric], weight), name, line, mode: steps.step.length > 1 ? "lines" : "markers" });
  }
  if (held_out[metric] && x) traces.push({ x: held_out.step.map((step) => at(steps.step, x, step)), y: held_out[metric], name: `${name}, held out`, line: { ...line, width: 1 }, marker: { color: css(colour), size: 7, symbol: "diamond" }, mode: "lines+markers" });
  return traces;
}

function layout() {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  return {
    showlegend: false, margin: { l: 48, r: 12, t: 8, b: 36 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: css("--faint"), size: 12 }, hoverlabel: { namelength: -1 },
    xaxis: { ...axis, title: { text: $("along").selectedOptions[0].text, standoff: 6 } }, yaxis: { ...axis, type: $("log").checked ? "log" : "linear" },
  };
}

// Where a step lies along another axis: between the two steps that were kept beside it.
function at(steps, x, step) {
  const after = steps.findIndex((each) => each >= step);
  if (after < 0) return x.at(-1);
  if (after === 0 || steps[after] === step) return x[after];
  const part = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return x[after - 1] + part * (x[after] - x[after - 1]);
}

// A moving average that the first values do not hold back.
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// The tables

function drawSettings(names) {
  const keys = [...new Set(names.flatMap((name) => Object.keys(state.runs[name].settings)))];
  const value = (name, key) => state.runs[name].settings[key];
  const differing = keys.filter((key) => new Set(names.map((name) => JSON.stringify(value(name, key)))).size > 1);
  table($("settings"), ["setting", ...names], differing.map((key) => [key, ...names.map((name) => plain(value(name, key)))]), "They differ in nothing.");
}

function drawFigures(having, metrics) {
  const last = (name, metric) => state.runs[name].stages[$("stage").value]?.last[metric] ?? null;
  const rows = [...metrics, ...metrics.map((metric) => HELD_OUT + metric)].map((metric) => [metric, ...having.map(([name]) => number(last(name, metric)))]);
  table($("figures"), [`stage ${$("stage").value}`, ...having.map(([name]) => name)], rows.filter((row) => row.slice(1).some((cell) => cell !== "–")), "There are none yet.");
}

function table(place, head, rows, none) {
  const row = (cells, tag) => {
    const made = document.createElement("tr");
    cells.forEach((text, number) => {
      const cell = document.createElement(number && tag === "td" ? "td" : "th");
      cell.scope = tag === "th" ? "col" : "row";
      if (number) cell.className = "number";
      cell.textContent = text;
      made.append(cell);
    });
    return made;
  };
  if (!rows.length) return place.replaceChildren(row([none], "th"));
  const top = document.createElement("thead"), body = document.createElement("tbody");
  top.append(row(head, "th"));
  body.append(...rows.map((cells) => row(cells, "td")));
  place.replaceChildren(top, body);
}

// Small things

function ordered(names) {
  const rank = (name) => { const bare = name.replace(HELD_OUT, ""); return ORDER.includes(bare) ? ORDER.indexOf(bare) : LAST.includes(bare) ? 200 + LAST.indexOf(bare) : 100; };
  return names.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

function fill(select, names, first) {
  if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) return;
  const before = select.value;
  select.replaceChildren(...names.map((name) => new Option(name)));
  select.value = names.includes(before) ? before : first ?? "";
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function number(value) {
  if (value == null) return "–";
  return Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function plain(value) {
  return value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? `${Math.round(seconds)} s` : minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}

// The controls

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches);
dark.addEventListener("change", () => { setTheme(dark.matches); drawCompared(); });
$("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme !== "dark"); drawCompared(); });
for (const form of ["narrow", "view"]) $(form).addEventListener("submit", (event) => event.preventDefault());
$("narrow").addEventListener("input", () => { drawLists(); });
$("view").addEventListener("input", drawCompared);
$("first").addEventListener("click", () => compare(shownRuns().slice(0, FIRST)));
$("none").addEventListener("click", () => compare([]));
for (const head of document.querySelectorAll("[data-sort]")) head.querySelector("button").addEventListener("click", () => {
  const by = head.dataset.sort;
  state.sort = { by, down: state.sort.by === by ? !state.sort.down : ["figure", "changed", "progress"].includes(by) };
  for (const each of document.querySelectorAll("[data-sort]")) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
  drawLists();
});

look();
