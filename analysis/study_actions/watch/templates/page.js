// Poll the state of the study, update the grid in place, and draw the charts that changed.
"use strict";

const POLL_MS = 2000;
const CURVES_MS = 8000; // between new curves
const NARROW = 480; // pixels
const COLUMNS = 3; // of the legend of a narrow chart
const SYMBOLS = {
  finished: "✓", running: "▸", failed: "✕", diverged: "∞", interrupted: "‖", unreadable: "?", planned: "·",
};
const layout = JSON.parse(document.getElementById("layout").textContent);
const byId = new Map(layout.runs.map((run, index) => [run.id, index]));
const cells = []; // buttons, in the order of layout.runs
const versions = {}; // of the documents that are shown
const get = (id) => document.getElementById(id);
let state = null, curves = null, lastUpdate = null, shownDetails = "";

// State of the page, kept in the fragment of its address: run, hide, x.
const view = new URLSearchParams(location.hash.slice(1));
const hidden = new Set((view.get("hide") ?? "").split(",").filter(Boolean));
function remember(name, value) {
  if (value) view.set(name, value);
  else view.delete(name);
  history.replaceState(null, "", `#${view}`);
}

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

// ---- grid ----
function swatch(family) {
  const made = element("span", { className: "swatch" });
  made.style.setProperty("--family", layout.swatches[family]);
  return made;
}

// Allow a line to end after an underscore.
function breakable(text) {
  return text.split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]);
}

function buildGrid() {
  const seeds = (row, column) => {
    const here = layout.runs.filter((run) => run.row === row && run.column === column);
    return [...new Set(here.map((run) => run.seed))].sort((a, b) => a - b);
  };
  const head = element("tr", {}, element("td"));
  for (const size of layout.columns) {
    const budgets = layout.budgets.map((budget) => element("small", { textContent: budget }));
    const block = element("div", { className: "block" }, ...budgets);
    head.append(element("th", { scope: "col" }, size, block));
  }
  const body = element("tbody");
  layout.rows.forEach(({ family, label }, row) => {
    const text = element("span", {}, ...breakable(label ? `${family}, ${label}` : family));
    const name = element("span", { className: "family" }, swatch(family), text);
    const line = element("tr", {}, element("th", { scope: "row" }, name));
    line.dataset.family = family;
    layout.columns.forEach((_, column) => {
      const order = seeds(row, column);
      const block = element("div", { className: "block" });
      layout.runs.forEach((run, index) => {
        if (run.row !== row || run.column !== column) return;
        const button = element("button", { type: "button", className: "cell planned symbol", tabIndex: -1 });
        button.style.gridColumn = layout.budgets.indexOf(run.budget) + 1;
        button.style.gridRow = order.indexOf(run.seed) + 1;
        button.addEventListener("click", () => openDetails(run.id));
        cells[index] = button;
        block.append(button);
      });
      line.append(element("td", {}, block));
    });
    body.append(line);
  });
  get("grid").append(element("thead", {}, head), body);
  cells[0].tabIndex = 0;
  get("grid").addEventListener("keydown", moveFocus);
  get("grid").addEventListener("focusin", ({ target }) => {
    for (const cell of cells) cell.tabIndex = cell === target ? 0 : -1;
  });
}

// Move the focus to the nearest cell in the direction of an arrow key.
function moveFocus(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !cells.includes(event.target)) return;
  event.preventDefault();
  const place = (cell) => {
    const box = cell.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const [x, y] = place(event.target);
  let nearest = null, least = Infinity;
  for (const cell of cells) {
    if (!cell.offsetParent) continue; // of a hidden family
    const [dx, dy] = [place(cell)[0] - x, place(cell)[1] - y];
    const along = dx * step[0] + dy * step[1];
    const across = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
    if (along > 4 && along + 20 * across < least) [nearest, least] = [cell, along + 20 * across];
  }
  nearest?.focus();
}

function buildFilter() {
  for (const family of layout.families) {
    const box = element("input", { type: "checkbox", value: family, checked: !hidden.has(family) });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(family);
      else hidden.add(family);
      remember("hide", [...hidden].join(","));
      applyFilter();
    });
    get("families").append(element("label", {}, box, swatch(family), family));
  }
  for (const button of document.querySelectorAll("[data-x]")) {
    button.addEventListener("click", () => {
      remember("x", button.dataset.x === "flops" ? "flops" : "");
      markAxis();
      loadCurves(true);
    });
  }
}

function markAxis() {
  for (const button of document.querySelectorAll("[data-x]")) {
    button.setAttribute("aria-pressed", String(button.dataset.x === (view.get("x") ?? "tokens")));
  }
}

function applyFilter() {
  for (const row of get("grid").tBodies[0].rows) row.hidden = hidden.has(row.dataset.family);
  drawCurves();
}

function symbol(name, text) {
  const mark = element("span", { className: `symbol ${name}`, textContent: SYMBOLS[name] ?? "?" });
  mark.setAttribute("aria-hidden", "true");
  return element("span", { className: `state ${name}` }, mark, text);
}

// Rounded down, so that it is 100 only at the end; 100 * 0.29 is 28.999999999999996.
const wholePercent = (share) => Math.floor(100 * share + 1e-6);

function showState() {
  const { counts, cells: total, flops_share, remaining } = state.summary;
  const percent = wholePercent(flops_share);
  get("progress").setAttribute("aria-valuenow", percent);
  get("progress").firstChild.style.width = `${100 * flops_share}%`;
  get("share").textContent = `${percent}% of the FLOPs done`;
  const isDone = (counts.finished ?? 0) + (counts.diverged ?? 0) === total;
  get("remaining").textContent = isDone ? "" : remaining ? `about ${remaining} remaining` : "";
  document.title = `${percent}% ${layout.study}`;
  const order = Object.keys(SYMBOLS).filter((name) => counts[name]);
  get("counts").replaceChildren(...order.map((name) => symbol(name, `${counts[name]} ${name}`)));
  state.runs.forEach((run, index) => {
    const cell = cells[index];
    const text = `${layout.runs[index].name}: ${run.state}`;
    cell.className = `cell symbol ${run.state}`;
    cell.textContent = SYMBOLS[run.state] ?? "?";
    cell.style.setProperty("--done", run.state === "running" ? `${100 * run.done}%` : "");
    const share = run.state === "finished" ? "" : ` ${wholePercent(run.done)}%`;
    const loss = run.loss === null ? "" : `, loss ${run.loss.toFixed(4)}`;
    cell.title = `${text}${share}${loss}${run.speed ? `, ${run.speed}` : ""}`;
    cell.setAttribute("aria-label", cell.title);
  });
  const failed = state.runs.map((run, index) => [run, layout.runs[index]])
    .filter(([run]) => ["failed", "diverged", "unreadable"].includes(run.state));
  get("failures").replaceChildren(...failed.map(([run, { id, name }]) => {
    const link = element("button", { type: "button", className: "link", textContent: name });
    link.addEventListener("click", () => openDetails(id));
    return element("li", {}, symbol(run.state, run.state), " ", link, run.note ? `: ${run.note}` : "");
  }));
  if (!failed.length) get("failures").append(element("li", { className: "muted", textContent: "none" }));
  fillList(get("machine"), state.machine);
  if (!curves) showNoCurves();
}

function fillList(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

// ---- charts ----
async function draw(target, spec, onClick) {
  const shown = structuredClone(spec);
  if (target.clientWidth < NARROW) fit(shown, target.clientWidth);
  const stage = element("div", { className: "stage" });
  target.append(stage); // the old chart stays until the new one is complete
  try {
    const { view: chart } = await vegaEmbed(stage, shown, {
      actions: false, ast: true, defaultStyle: false, logLevel: 1, renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    if (onClick) chart.addEventListener("click", (_, item) => item?.datum?.group && onClick(item.datum.group));
    target.chart?.finalize();
    target.chart = chart;
  } catch (error) {
    stage.textContent = `This chart cannot be drawn: ${error}`;
    console.error(error);
  }
  while (target.firstChild !== stage) target.firstChild.remove();
  stage.className = "";
}

function clear(target) {
  target.chart?.finalize();
  target.chart = null;
  target.replaceChildren();
}

// Make labels, titles and legends fit a narrow chart.
function fit(spec, width) {
  Object.assign(spec.config.axis, { labelLimit: 0.42 * width, titleFontSize: 12 });
  for (const legend of objects(spec, "legend")) {
    legend.columns = Math.min(legend.columns ?? COLUMNS, COLUMNS);
    legend.labelLimit = width / legend.columns - 30;
  }
}

function* objects(value, name) {
  for (const [key, inner] of Object.entries(value ?? {})) {
    if (typeof inner !== "object" || inner === null) continue;
    if (key === name) yield inner;
    else if (key !== "datasets") yield* objects(inner, name);
  }
}

let drawing = Promise.resolve(); // one drawing of the curves at a time
function drawCurves() {
  drawing = drawing.then(drawCurvesNow);
  return drawing;
}

async function drawCurvesNow() {
  const target = get("curves");
  const isAllHidden = layout.families.every((family) => hidden.has(family));
  target.classList.toggle("filled", Boolean(curves) && !isAllHidden);
  if (!curves || isAllHidden) {
    clear(target);
    showNoCurves(isAllHidden);
    return;
  }
  const spec = structuredClone(curves.spec);
  for (const [name, rows] of Object.entries(spec.datasets)) {
    spec.datasets[name] = rows.filter((row) => !hidden.has(row.series));
  }
  await draw(target, spec, openDetails);
  get("curves-text").textContent = `${curves.caption} A click shows the run.`;
}

function showNoCurves(isAllHidden = false) {
  const started = state?.runs?.some((run) => run.state !== "planned");
  get("curves-text").textContent = isAllHidden ? "All families are hidden."
    : started ? "No loss has been read yet."
    : "No run has started yet. The command of this page without action=watch starts the study.";
}

async function showAnalysis(found) {
  const { deep, wide, pairs, summary, comparison, audit } = found;
  const interval = comparison?.numbers.length > 1 ? comparison.numbers[0] : null;
  get("interval").replaceChildren(...(interval ? [element("b", { textContent: interval[0] }), ` ${interval[1]}`] : []));
  get("pairs-summary").replaceChildren(...summary.map((line) => element("li", { textContent: line })));
  get("pairs-text").textContent = pairs ? pairs.caption
    : deep === wide ? "The study has one family."
    : `No pair is finished yet: it needs a run of ${deep} and one of ${wide} of equal size, budget and seed.`;
  get("pairs-rows").hidden = !pairs;
  if (pairs) {
    const head = ["size", layout.unit, "seed", deep, wide, "difference"];
    const line = (tag, values) => element("tr", {}, ...values.map((value) => element(tag, { textContent: value })));
    get("pairs-rows").querySelector("table").replaceChildren(line("th", head), ...pairs.rows.map((row) => line("td", row)));
    await draw(get("pairs"), pairs.spec);
  } else clear(get("pairs"));
  showVerdict(found);
  get("audit").hidden = !audit;
  const lines = audit ? [audit.title, ...audit.lines.map(([name, text]) => `${name}: ${text}`)] : [];
  get("audit").querySelector("ul").replaceChildren(...lines.map((text) => element("li", { textContent: text })));
  const figures = comparison?.figures ?? [];
  get("figures").replaceChildren(...figures.map(({ title, caption }) => element("figure", {},
    element("h3", { textContent: title }), element("div", { className: "chart" }),
    element("figcaption", { textContent: caption }))));
  for (const [index, { spec }] of figures.entries()) {
    await draw(get("figures").children[index].querySelector(".chart"), spec);
  }
}

function showVerdict({ comparison, error, is_running: isRunning }) {
  const parts = [];
  const { counts, cells: total } = state.summary;
  const isComplete = (counts.finished ?? 0) + (counts.diverged ?? 0) === total;
  if (comparison?.word === "refused" && !isComplete) {
    parts.push(element("p", { textContent: `The ${comparison.cells} finished cells do not allow an estimate yet.` }));
    parts.push(...comparison.lines.map((line) => element("p", { className: "muted", textContent: line })));
  } else if (comparison) {
    const tag = element("span", { className: "tag", textContent: comparison.word });
    parts.push(element("p", {}, element("b", { textContent: comparison.headline }), " ", tag));
    const interim = " p values of an interim result are valid only if the decision to stop does not depend on them.";
    const source = `From ${comparison.cells} finished cells.${isComplete ? "" : interim}`;
    parts.push(element("p", { className: "muted", textContent: source }));
    parts.push(element("ul", {}, ...comparison.numbers.map(([value, label]) =>
      element("li", {}, element("span", { className: "number", textContent: value }), ` ${label}`))));
    parts.push(...comparison.lines.map((line) => element("p", { textContent: line })));
    if (comparison.conditions.length) {
      parts.push(element("p", { textContent: "Conditions:" }));
      parts.push(element("ul", {}, ...comparison.conditions.map((line) => element("li", { textContent: line }))));
    }
  }
  if (error) parts.push(element("p", { textContent: `The comparison failed: ${error}` }));
  const waiting = isRunning ? "The finished cells are being compared." : "Too few cells are finished to compare.";
  if (isRunning || !parts.length) parts.push(element("p", { className: "muted", textContent: waiting }));
  get("verdict").replaceChildren(...parts);
}

// ---- details of a run ----
async function openDetails(id) {
  if (!byId.has(id)) return;
  remember("run", id);
  shownDetails = "";
  await refreshDetails();
}

async function refreshDetails() {
  const id = view.get("run"), index = byId.get(id);
  if (index === undefined) return;
  const version = id + JSON.stringify(state?.runs?.[index]);
  if (version === shownDetails) return;
  shownDetails = version;
  const answer = await fetch(`runs/${encodeURIComponent(id)}.json`);
  if (!answer.ok || view.get("run") !== id) return;
  const run = await answer.json();
  get("details-title").textContent = run.name;
  get("run-state").replaceChildren(symbol(run.state, run.state), run.note ? `: ${run.note}` : "");
  fillList(get("latest"), Object.entries(run.latest));
  fillList(get("facts"), Object.entries(run.facts));
  const texts = [["Traceback", run.traceback], ["Last log lines", run.log]].filter(([, text]) => text);
  get("texts").replaceChildren(...texts.flatMap(([title, text]) => {
    const block = element("pre", { textContent: text, tabIndex: 0 });
    block.setAttribute("aria-label", title);
    return [element("h3", { textContent: title }), block];
  }));
  if (!get("details").open) get("details").showModal();
  for (const block of get("texts").querySelectorAll("pre")) block.scrollTop = block.scrollHeight;
  if (run.curve) await draw(get("run-curve"), run.curve.spec);
  else clear(get("run-curve"));
}

get("details").addEventListener("close", () => remember("run", ""));
get("details").addEventListener("click", (event) => {
  if (event.target === get("details")) get("details").close(); // the backdrop
});

// ---- polling ----
async function request(address, headers = {}) {
  const answer = await fetch(address, { headers });
  if (!answer.ok && answer.status !== 304) throw new Error(`HTTP ${answer.status}`);
  return answer;
}

let curvesDue = 0;
async function loadCurves(isAsked) {
  if (!isAsked && (versions.curves === state.curves || (curves && Date.now() < curvesDue))) return;
  const version = state?.curves;
  curves = await (await request(`curves.json?x=${view.get("x") ?? "tokens"}`)).json();
  versions.curves = version;
  curvesDue = Date.now() + CURVES_MS;
  await drawCurves();
}

async function update() {
  const answer = await request("state.json", versions.state ? { "If-None-Match": versions.state } : {});
  if (answer.status !== 304) {
    versions.state = answer.headers.get("etag");
    state = await answer.json();
    if (state.summary) showState();
  }
  if (!state.summary) return;
  await loadCurves(false);
  if (versions.analysis !== state.analysis) {
    await showAnalysis(await (await request("analysis.json")).json());
    versions.analysis = state.analysis;
  }
  await refreshDetails();
  document.documentElement.dataset.drawn = "true";
}

async function poll() {
  let problem = "";
  try {
    if (!document.hidden || !lastUpdate) {
      await update();
      lastUpdate = new Date();
      if (state.error) problem = `The state cannot be read: ${state.error}`;
      else if (state.reading !== null && state.reading !== undefined) {
        problem = `Reading the logs: ${wholePercent(state.reading)}%`;
      }
    }
  } catch (error) {
    const last = lastUpdate ? `Last update ${lastUpdate.toLocaleTimeString()}.` : "";
    problem = `Connection lost: the server does not answer. ${last} Trying again.`;
    if (!(error instanceof TypeError) && !String(error).includes("HTTP")) console.error(error);
  }
  get("connection").hidden = !problem;
  if (get("connection").textContent !== problem) get("connection").textContent = problem;
  setTimeout(poll, state?.summary ? POLL_MS : 200);
}

buildGrid();
buildFilter();
get("legend").append("", ...Object.keys(SYMBOLS).filter((name) => name !== "unreadable").map((name) => symbol(name, name)));
markAxis();
applyFilter();
poll();
