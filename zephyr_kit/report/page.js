(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const several = page.runs.length > 1;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const AXES = { step: "optimiser steps", examples: "examples seen", tokens: "tokens read", flops: "floating-point operations", hours: "hours in steps" };
  const chosen = { axis: "step", smooth: 0.3, log: false, hidden: new Set() };

  // Tabs, as the ARIA authoring practices have them: arrows move, and what is moved to is shown.
  const tabs = all('[role="tab"]');
  function show(tab, { focus = false } = {}) {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
    if (focus) tab.focus();
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    draw();
  }
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => { show(tab); history.replaceState(null, "", "#" + tab.dataset.name); });
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(tabs[(to + tabs.length) % tabs.length], { focus: true });
    });
  });
  const named = () => tabs.find((tab) => "#" + tab.dataset.name === location.hash) || tabs[0];
  window.addEventListener("hashchange", () => show(named()));

  // Light or dark, as the system has it unless it is chosen.
  const themes = all('input[name="theme"]');
  function wear(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    redraw();
  }
  themes.forEach((input) => input.addEventListener("change", () => wear(input.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

  // What is drawn.
  const series = (number) => css("--c" + (number % 8));
  function lines(trace, tint) {
    const { axis, noisy } = trace.meta;
    const x = page.axes[axis][chosen.axis];
    if (!x) return [];
    if (trace.meta.band) return [{ ...trace, x, line: { width: 0 }, fillcolor: tint + "33" }];
    const dash = dashOf(several ? trace.meta : { ...trace.meta, series: 0 }); // of one run, colours tell series apart
    const base = { ...trace, x, line: { color: tint, width: 2, dash }, marker: { color: tint, size: 6 } };
    if (!noisy || !chosen.smooth) return [base];
    const faint = { ...base, opacity: 0.25, showlegend: false, hoverinfo: "skip", line: { color: tint, width: 1 } };
    return [faint, { ...base, y: smoothed(trace.y, chosen.smooth) }];
  }
  function drawn(trace) {
    const { run, series: number } = trace.meta;
    if (chosen.hidden.has(run)) return [];
    const own = asText(trace), tint = series(several && run !== undefined ? run : number);
    if (trace.meta.axis) return lines(own, tint);
    if (trace.type === "scatterpolar") {
      const dash = ["solid", "dash", "dot", "dashdot"][several ? number % 4 : 0];
      return [{ ...own, line: { color: tint, dash }, marker: { color: tint }, fillcolor: tint + "1f" }];
    }
    const marker = { color: tint, size: 11, line: { color: css("--paper"), width: 1 } };
    return [{ ...own, marker, ...(trace.error_x ? { error_x: { ...trace.error_x, color: tint, thickness: 2, width: 5 } } : {}) }];
  }
  function layout(plot) {
    const text = css("--soft"), grid = css("--line");
    const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid };
    const curves = plot.traces.some((trace) => trace.meta.axis);
    const radar = plot.traces.some((trace) => trace.type === "scatterpolar");
    const own = plot.layout;
    const polar = { bgcolor: "rgba(0,0,0,0)", radialaxis: { ...axis, angle: 90, rangemode: "tozero" }, angularaxis: axis };
    return {
      height: own.height || (radar ? 420 : 260),
      ...own,
      margin: radar ? { l: 48, r: 48, t: 40, b: 40 } : { l: 48, r: 14, t: 12, b: 40 }, // a radar has words all around
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: text },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: grid, font: { color: css("--ink") } },
      hovermode: curves ? "x unified" : "closest",
      polar,
      showlegend: own.showlegend ?? (plot.traces.length > 1 && !(several && curves)),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { color: css("--ink") } },
      xaxis: { ...axis, ...own.xaxis, ...(curves ? { title: { text: AXES[chosen.axis] }, rangemode: "tozero" } : {}) },
      yaxis: { ...axis, automargin: true, ...own.yaxis, ...(curves && chosen.log && !own.yaxis ? { type: "log" } : {}) },
    };
  }
  const visible = (box) => box.offsetParent !== null;
  function draw() {
    if (!window.Plotly) return;
    for (const box of all(".plot:not(.drawn)").filter(visible)) {
      const plot = page.plots[box.dataset.plot];
      const traces = plot.traces.flatMap(drawn);
      box.classList.add("drawn");
      box.replaceChildren();
      if (!traces.length) {
        box.append(Object.assign(document.createElement("p"), { textContent: "Nothing to show for this choice." }));
        continue;
      }
      const shape = layout(plot);
      box.style.minHeight = `${shape.height}px`; // a drawing that is resized gives its box no height
      window.Plotly.newPlot(box, traces, shape, { displayModeBar: false, responsive: true });
    }
  }
  function redraw() {
    for (const box of all(".plot.drawn")) {
      window.Plotly.purge(box);
      box.classList.remove("drawn");
    }
    draw();
  }

  // Controls.
  const on = (selector, event, act) => all(selector).forEach((element) => element.addEventListener(event, () => { act(element); }));
  on("#axis", "change", (element) => { chosen.axis = element.value; redraw(); });
  on("#smooth", "input", (element) => { chosen.smooth = Number(element.value) / 100; redraw(); });
  on("#log", "change", (element) => { chosen.log = element.checked; redraw(); });
  on('input[name="stage"]', "change", (element) => {
    all("[data-stage]").forEach((group) => { group.hidden = group.dataset.stage !== element.value; });
    draw();
  });
  on('input[name="run"]', "change", (element) => {
    const run = Number(element.value);
    if (element.checked) chosen.hidden.delete(run); else chosen.hidden.add(run);
    all(`[data-run="${run}"]`).forEach((each) => { each.hidden = !element.checked; });
    redraw();
  });
  function filter() {
    const wanted = document.getElementById("find").value.toLowerCase(), given = document.getElementById("given").checked;
    all("#settings details").forEach((each) => { each.open = true; });
    for (const row of all(".settings tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted) || (given && row.dataset.default === "yes");
    }
  }
  on("#find", "input", filter);
  on("#given", "change", filter);

  // Plotly stands in the page as compressed text: a third of its size.
  async function unpack() {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    draw();
  }
  document.documentElement.classList.add("scripted");
  show(named());
  unpack().catch(() => all(".plot p").forEach((each) => { each.textContent = "This browser cannot draw; the table below has the figures."; }))
    .finally(() => { document.documentElement.dataset.ready = "yes"; });
})();
