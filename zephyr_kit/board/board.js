// The board: asks for the runs again and again, and draws those that are compared.

import { duration, fill, inWords, legend, plain, put, query, table } from "./parts.js";

const $ = (id) => document.getElementById(id);
const FIRST = 8, COLOURS = 8, WAIT = 1000, WAIT_AT_REST = 3000;
const BESIDE = ["step", "held_out/step", "epoch", "tokens", "seconds"];
const ONGOING = ["running", "failed", "unfinished"];

const board = {
  told: "", runs: {}, compared: new Set(), touched: false, colours: new Map(),
  sort: { by: "changed", down: true }, rows: new Map(),
  curves: null, drawn: "", turn: 0, charts: new Map(),
};

// Asking

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.text();
}

async function look() {
  try {
    const told = await ask("runs");
    if (told !== board.told) {
      board.told = told;
      const { folder, runs } = JSON.parse(told);
      board.runs = runs;
      put($("folder"), folder);
      await update();
    }
    else drawList(); // how long a stage has been at it goes on without a word from its files
    tellStatus();
  } catch (error) {
    put($("status"), `The board does not answer (${error.message}). To start it again: zkit board`);
  }
  const busy = Object.values(board.runs).some((run) => run.state === "running");
  setTimeout(look, busy ? WAIT : WAIT_AT_REST);
}

async function update() {
  if (!board.touched) board.compared = new Set(listed().slice(0, FIRST));
  drawList();
  await drawCompared();
}

function tellStatus() {
  const counts = Map.groupBy(Object.values(board.runs), (run) => run.state);
  put($("status"), [...counts].map(([name, runs]) => `${runs.length} ${name}`).join(", ") || "There is no run yet.");
}

// What is compared

function compared() {
  return [...board.compared].filter((name) => name in board.runs);
}

function compare(names) {
  board.touched = true;
  board.compared = new Set(names);
  update();
}

// Each run keeps its colour as long as it is compared.
function colourOf(name) {
  for (const known of board.colours.keys()) if (!board.compared.has(known)) board.colours.delete(known);
  if (!board.colours.has(name)) {
    const taken = new Set(board.colours.values());
    let place = 0;
    while (taken.has(place)) place++;
    board.colours.set(name, place);
  }
  return `--c${board.colours.get(name) % COLOURS}`;
}

// The list of runs

function matches(name, run) {
  const allowed = [...document.querySelectorAll("#states input:checked")].map((box) => box.value);
  const about = [name, run.preset, ...Object.entries(run.settings).map(([key, value]) => `${key}=${plain(value)}`)].map((part) => part.toLowerCase());
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  // A setting is named by the end of its path and by its whole value: beta=0.1 is not beta=0.15.
  const has = (word) => about.some((part) => (word.includes("=") ? part.endsWith(word) : part.includes(word)));
  return allowed.includes(run.state) && words.every(has);
}

function stageOf(run) {
  const stages = Object.entries(run.stages);
  return stages.find(([, stage]) => ONGOING.includes(stage.state)) ?? stages.findLast(([, stage]) => stage.kind === "trains") ?? stages[0];
}

// The stage that has trained last: a figure of another would be compared with what it is not.
function trainedOf(run) {
  return Object.entries(run.stages).findLast(([, stage]) => stage.step) ?? ["", null];
}

function figureOf(run) {
  const name = $("figure").value, [, stage] = trainedOf(run);
  return stage?.last[name] ?? run.measured[name] ?? null;
}

function nameOfFigure(run) {
  const name = $("figure").value, [stage] = trainedOf(run);
  return name in run.measured ? name : `${stage} ${name}`;
}

const SORTS = {
  name: (name) => name,
  state: (name) => board.runs[name].state,
  progress: (name) => Object.values(board.runs[name].stages).reduce((sum, stage) => sum + (stage.progress ?? (stage.state === "done" ? 1 : 0)), 0),
  figure: (name) => figureOf(board.runs[name]),
  changed: (name) => board.runs[name].changed,
};

function listed() {
  const value = SORTS[board.sort.by], sign = board.sort.down ? -1 : 1;
  return Object.keys(board.runs).filter((name) => matches(name, board.runs[name])).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what has none comes last either way
    if (value === SORTS.figure) {
      const [own, other] = [nameOfFigure(board.runs[a]), nameOfFigure(board.runs[b])];
      if (own !== other) return own < other ? -1 : 1; // figures of two stages are not compared
    }
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  });
}

function drawList() {
  const figures = Object.values(board.runs).flatMap((run) => [run.measured, ...Object.values(run.stages).map((stage) => stage.last)].flatMap(Object.keys));
  const names = [...new Set(figures)].filter((name) => !BESIDE.includes(name)).sort();
  const held_out = Object.values(board.runs).some((run) => trainedOf(run)[1]?.last["held_out/loss"] != null);
  fill($("figure"), names, held_out ? "held_out/loss" : "loss");
  const shown = listed(), body = document.querySelector("#runs tbody");
  put($("count"), `${shown.length} of ${Object.keys(board.runs).length} listed, ${compared().length} compared`);
  const rows = shown.map(rowOf);
  if (rows.length !== body.children.length || rows.some((row, place) => body.children[place] !== row)) {
    const focused = document.activeElement;
    body.replaceChildren(...rows);
    if (body.contains(focused)) focused.focus();
  }
  const chosen = compared();
  $("report").hidden = !chosen.length;
  $("report").href = "report?" + query(chosen);
}

function rowOf(name) {
  const run = board.runs[name], [stageName, stage] = stageOf(run) ?? ["", {}];
  if (!board.rows.has(name)) board.rows.set(name, newRow(name));
  const row = board.rows.get(name), [box, title, status, where, value, changed] = row.cells;
  const input = box.querySelector("input"), badge = status.firstChild;
  input.checked = board.compared.has(name);
  title.querySelector(".swatch").style.background = input.checked ? `var(${colourOf(name)})` : "none";
  put(badge, run.state);
  badge.className = `badge ${run.state}`;
  badge.title = run.troubles.join("\n");
  tellProgress(where, stageName, stage);
  const found = figureOf(run);
  put(value.firstChild, inWords($("figure").value, found));
  put(value.lastChild, found === null ? "" : nameOfFigure(run));
  put(changed, new Date(run.changed * 1000).toLocaleString());
  return row;
}

function newRow(name) {
  const row = document.createElement("tr");
  row.innerHTML = `<td><input type="checkbox"></td><th scope="row"><span class="swatch" aria-hidden="true"></span></th><td><span></span></td><td></td><td class="number"><span></span> <span class="soft"></span></td><td class="number"></td>`;
  const input = row.querySelector("input");
  input.setAttribute("aria-label", `compare ${name}`);
  input.addEventListener("change", () => compare(input.checked ? [...board.compared, name] : [...board.compared].filter((each) => each !== name)));
  row.cells[1].append(name);
  return row;
}

function tellProgress(cell, name, stage) {
  const left = stage.seconds_left == null ? "" : `, ${duration(stage.seconds_left)} left`;
  const since = stage.began == null ? "" : `, for ${duration(Math.max(0, Date.now() / 1000 - stage.began))}`;
  const text = stage.step ? `${name}, step ${stage.step}${left}` : `${name}${since}`;
  const bar = stage.state === "running" && stage.progress != null;
  if (bar !== Boolean(cell.querySelector("progress"))) cell.innerHTML = bar ? `<progress max="1"></progress> <span></span>` : "";
  if (!bar) return put(cell, text);
  cell.firstChild.value = stage.progress;
  cell.firstChild.setAttribute("aria-label", `progress of ${name}`);
  put(cell.lastChild, text);
}

// The curves

async function drawCompared() {
  const turn = ++board.turn;
  const names = compared();
  const stages = [...new Set(names.flatMap((name) => Object.entries(board.runs[name].stages).filter(([, stage]) => stage.step).map(([stage]) => stage)))];
  fill($("stage"), stages, stages.at(-1));
  const path = `curves?stage=${encodeURIComponent($("stage").value)}&${query(names)}`;
  const wanted = path + names.map((name) => board.runs[name].version).join();
  if (wanted !== board.drawn) {
    const curves = names.length ? JSON.parse(await ask(path)) : { plots: [], axes: {} };
    if (turn !== board.turn) return; // another choice was made meanwhile, and is drawn
    board.curves = curves;
    board.drawn = wanted;
  }
  drawCurves();
  drawSettings(names);
  drawFigures(names);
}

function drawCurves() {
  if (!board.curves) return;
  const { plots } = board.curves;
  $("empty").hidden = plots.length > 0;
  for (const [id, figure] of board.charts) {
    if (plots.some((plot) => plot.id === id)) continue;
    Plotly.purge(figure.querySelector(".plot"));
    figure.remove();
    board.charts.delete(id);
  }
  for (const plot of plots) {
    if (!board.charts.has(plot.id)) board.charts.set(plot.id, newChart(plot));
    const figure = board.charts.get(plot.id), box = figure.querySelector(".plot");
    box.setAttribute("aria-label", plot.told);
    figure.querySelector(".legend").replaceChildren(...legend(plot.traces));
    table(figure.querySelector("table"), plot.head, plot.rows);
    Plotly.react(box, plot.traces.flatMap(lines), layout(plot.layout), { displayModeBar: false, responsive: true });
  }
  // In the order of the report, also where a new one has come between.
  $("plots").append(...plots.map((plot) => board.charts.get(plot.id)).filter((figure, place) => $("plots").children[place] !== figure));
}

function newChart(plot) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption><b></b></figcaption><div class="legend"></div><div class="plot" role="img"></div><details><summary>The same as a table</summary>
    <div class="scroll" tabindex="0" role="region"><table></table></div></details>`;
  figure.querySelector("b").textContent = plot.title;
  figure.querySelector("figcaption").append(plot.meaning);
  figure.querySelector(".scroll").setAttribute("aria-label", `Table of ${plot.title}`);
  $("plots").append(figure);
  return figure;
}

function lines(trace) {
  const { axis, noisy, run } = trace.meta;
  const x = board.curves.axes[axis][$("axis").value], share = Number($("smooth").value) / 100;
  if (!x) return [];
  const colour = css(colourOf(board.curves.runs[run]));
  const dash = dashOf(trace.meta);
  const whole = { ...asText(trace), x, line: { color: colour, width: 2, dash }, marker: { color: colour, size: 6, maxdisplayed: 12 } };
  if (!noisy || !share) return [whole];
  return [{ ...whole, opacity: 0.25, hoverinfo: "skip", line: { color: colour, width: 1 } }, { ...whole, y: smoothed(trace.y, share) }];
}

function layout(own) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line") };
  return {
    ...own, height: 260, margin: { l: 48, r: 14, t: 12, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: css("--soft") }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
    xaxis: { ...axis, title: { text: $("axis").selectedOptions[0].text }, rangemode: "tozero" },
    yaxis: { ...axis, automargin: true, ...own.yaxis, ...($("log").checked && !own.yaxis ? { type: "log" } : {}) },
  };
}

// The tables

function drawSettings(names) {
  const keys = [...new Set(names.flatMap((name) => Object.keys(board.runs[name].settings)))];
  const values = (key) => names.map((name) => plain(board.runs[name].settings[key]));
  const rows = keys.map((key) => [key, ...values(key)]).filter((row) => new Set(row.slice(1)).size > 1);
  table($("settings"), ["setting", ...names], rows);
}

function drawFigures(names) {
  const last = (name) => board.runs[name].stages[$("stage").value]?.last ?? {};
  const keys = [...new Set(names.flatMap((name) => Object.keys(last(name))))].filter((key) => !BESIDE.includes(key));
  table($("figures"), [`stage ${$("stage").value}`, ...names], keys.map((key) => [key, ...names.map((name) => inWords(key, last(name)[key]))]));
}

// The controls

for (const input of document.querySelectorAll('input[name="theme"]')) input.addEventListener("change", () => {
  if (input.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = input.value;
  drawCurves();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
for (const id of ["narrow", "view"]) $(id).addEventListener("submit", (event) => event.preventDefault());
$("narrow").addEventListener("input", drawList);
$("stage").addEventListener("input", drawCompared);
for (const id of ["axis", "smooth", "log"]) $(id).addEventListener("input", drawCurves);
$("first").addEventListener("click", () => compare(listed().slice(0, FIRST)));
$("all").addEventListener("click", () => compare(listed()));
$("none").addEventListener("click", () => compare([]));
for (const head of document.querySelectorAll("[data-sort]")) head.querySelector("button").addEventListener("click", () => {
  const by = head.dataset.sort;
  board.sort = { by, down: board.sort.by === by ? !board.sort.down : ["figure", "changed", "progress"].includes(by) };
  for (const each of document.querySelectorAll("[data-sort]")) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", board.sort.down ? "descending" : "ascending");
  drawList();
});

look();
