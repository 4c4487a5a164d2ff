// The page of a run: asks the chief every two seconds while somebody looks, and shows what it answers.
// Text is only ever set as text, so that no name, host or message of a run becomes markup.
"use strict";

const ASK_MS = 2000, AFTER_END_MS = 10000, WITHIN_MS = 5000;
const FEW = 10, MOST_ROWS = 500, FEW_EVENTS = 12, MOST_POINTS = 600;
const NAMES = {
  loss: "Training loss", examples_per_second: "Examples/s", staleness_mean: "Staleness, mean", learning_rate: "Learning rate",
};
const SCORES = { map_at_100: "mAP@100", map_at_100_unweighted: "mAP@100, unweighted" };
const GUESSING = { map_at_100: "chance_weighted", map_at_100_unweighted: "chance" }; // what a score is without learning
const byId = (id) => document.getElementById(id);
const view = { status: null, answered: null, since: null, file: null, next: 0, curves: {}, open: new Set(), newest: null };

// ---- small helpers

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "title", "path", "rect", "line", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s >= 172800) return `${Math.round(s / 86400)} days`;
  if (s < 60) return `${s} s`;
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h} h ${m} min` : `${m} min ${s % 60} s`;
}

const bytes = (value) => {
  const [unit, size] = value >= 1e9 ? ["GB", 1e9] : value >= 1e6 ? ["MB", 1e6] : ["KB", 1e3];
  return `${number(value / size, 3)} ${unit}`;
};
const ms = (seconds) => (seconds === undefined ? "–" : number(seconds * 1000, 3));
const sum = (values) => values.reduce((total, one) => total + (one || 0), 0);
const words = (name) => name.replaceAll("_", " ");

// Replaces the rows of a list of names and values, without touching those that are the same.
function tiles(id, rows) {
  const list = byId(id);
  rows.forEach(([name, value, small], i) => {
    let tile = list.children[i];
    if (!tile) list.append(tile = make("div", {}, make("dt"), make("dd")));
    const [dt, dd] = tile.children;
    const text = small ? `${value}\n${small}` : value;
    dt.textContent = name;
    if (dd.dataset.text === text) return;
    dd.dataset.text = text;
    dd.replaceChildren(value, ...(small ? [make("small", {}, small)] : []));
  });
  while (list.children.length > rows.length) list.lastChild.remove();
}

// ---- what runs

function showNow(status) {
  const training = status.state === "training", ended = ["done", "failed"].includes(status.state);
  setText("title", status.recipe ? `Downpour: ${status.recipe}` : "Downpour");
  document.title = `${status.recipe || "Downpour"}: ${status.state}${training ? ` ${percent(status)}` : ""}`;
  byId("state").dataset.state = status.state;
  setText("state", status.state);
  byId("failure").hidden = !status.failure;
  setText("failure", status.failure ? `The job has failed: ${status.failure}` : "");
  setText("steps-text", `Step ${number(status.step)}${status.num_steps ? ` of ${number(status.num_steps)}` : ""}`);
  byId("steps").max = status.num_steps || 1;
  byId("steps").value = Math.min(status.step || 0, status.num_steps || 1);
  const saved = status.checkpoint;
  const rows = [
    ["Time left", training ? duration(status.seconds_left) : ended ? "none" : "–", `trained for ${duration(status.seconds)}`],
    ["Training loss", number(status.loss)],
    ...Object.entries(status.scores).filter(([name]) => isScore(name)).map(([name, value]) => [heldOut(name), number(value), atStep(status, name)]),
    ["Examples/s", number(status.examples_per_second), `${number(status.pushes_per_second, 3)} pushes/s`],
    ["Staleness, mean", number(status.staleness_mean, 3), "updates behind"],
    ["Epoch", number(status.epochs, 3)],
    ["Learning rate", number(status.learning_rate)],
    ["Last checkpoint", saved ? `step ${number(saved.step)}` : "none yet", saved && saved.age_seconds !== null ? `${duration(saved.age_seconds)} ago, complete` : saved ? "by an earlier chief" : ""],
    ["Faults", sum(Object.values(status.faults)) ? Object.entries(status.faults).filter(([, n]) => n).map(([name, n]) => `${number(n)} ${words(name)}`).join(", ") : "none"],
  ];
  tiles("facts", rows);
  byId("about").textContent = `Job ${status.job_id || "–"}${saved ? `, checkpoints in ${saved.directory.replace(/\/[^/]*$/, "")}` : ""}`;
  const findings = status.findings || [];
  byId("findings-section").hidden = !findings.length;
  if (byId("findings").dataset.text !== JSON.stringify(findings)) {
    byId("findings").dataset.text = JSON.stringify(findings);
    byId("findings").replaceChildren(...findings.map((one) => make("li", { "data-kind": one.kind }, one.text)));
  }
}

const heldOut = (name) => `Held-out ${SCORES[name] || words(name)}`;
const isScore = (name) => !Object.values(GUESSING).includes(name);

function atStep(status, name) {
  const guessing = status.scores[GUESSING[name]];
  return `at step ${number(status.score_step)}${guessing === undefined ? "" : `; guessing ${number(guessing, 3)}`}`;
}

const percent = (status) => (status.num_steps ? `${Math.floor((100 * status.step) / status.num_steps)} %` : "");

function showSummary(summary) {
  byId("summary-section").hidden = !summary;
  if (!summary) return;
  const lost = sum(Object.values(summary.updates_lost || {}));
  tiles("summary", [
    ["Ended by", summary.failure ? "a failure" : words(summary.ended_by || "–"), summary.ended_because || ""],
    ["Steps", number(summary.global_steps), `${number(summary.epochs, 3)} epochs`],
    ["Time of training", duration(summary.seconds)],
    ["Last loss", number(summary.loss)],
    ["Examples/s", number(summary.examples_per_second), "over the whole run"],
    ["Staleness, mean", number(summary.staleness_mean, 3)],
    ["Parameters", number(summary.parameters), `on ${number(summary.num_ps)} shards`],
    ["Moved in a step", bytes(summary.bytes_per_step || 0)],
    ["Updates lost", number(lost)],
    ["Records repeated", number(summary.records_repeated), `${number(summary.records_skipped)} skipped`],
  ]);
}

// ---- workers and shards

function stateOf(one) {
  const [sign, kind] = SIGNS[one.state] || ["", ""];
  return make("span", { class: kind }, sign + one.state);
}

function stepOf(worker) {
  const parts = worker.seconds_per_step;
  return sum([parts.input, parts.compute, parts.wait]);
}

function pushOf(shard) {
  const parts = shard.seconds_per_push;
  return sum([parts.receive, parts.queue, parts.apply]);
}

function bar(parts, names, most) {
  const svg = make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  let x = 0;
  for (const name of names) {
    const width = most ? (100 * (parts[name] || 0)) / most : 0;
    svg.append(make("rect", { class: name, x, y: 0, width, height: 10 }));
    x += width;
  }
  return svg;
}

// The worst first; beyond ten the rest are shown on request.
function table(id, all, length, cells) {
  const sorted = [...all].sort((a, b) => (WORST[a.state] ?? 2) - (WORST[b.state] ?? 2) || length(b) - length(a));
  const most = Math.max(...all.map(length), 0), open = view.open.has(id);
  const shown = sorted.slice(0, open ? MOST_ROWS : FEW);
  byId(id).tBodies[0].replaceChildren(...shown.map((one) => {
    const [head, ...rest] = cells(one, most);
    const row = make("tr", {}, make("th", { scope: "row" }, head));
    for (const cell of rest) row.append(make("td", cell instanceof SVGElement ? { class: "bar" } : {}, cell));
    return row;
  }));
  more(id, all.length - FEW, open, id);
}

function more(id, hidden, open, what) {
  const button = byId(`${id}-more`);
  button.hidden = hidden <= 0;
  button.setAttribute("aria-expanded", String(open));
  setText(`${id}-more`, open ? `Show fewer ${what}` : `Show ${hidden} more ${what}`);
}

function showWorkers(workers) {
  setText("workers-states", statesText(workers, "worker") || "None known yet.");
  table("workers", workers, stepOf, (one, most) => {
    const parts = one.seconds_per_step;
    return [
      String(one.worker), stateOf(one), number(stepOf(one), 3), bar(parts, ["input", "compute", "wait"], most),
      ...["input", "compute", "wait", "push", "pull"].map((name) => `${ms(parts[name])} ms`),
      number(one.examples_per_second), number(one.staleness_mean, 3), number(one.steps), `${duration(one.silent_seconds)} ago`, one.host,
    ];
  });
}

function showShards(shards) {
  setText("shards-states", statesText(shards, "shard") || "None known yet.");
  table("shards", shards, pushOf, (one, most) => {
    const parts = one.seconds_per_push;
    return [
      String(one.shard), stateOf(one), ms(pushOf(one)), bar(parts, ["receive", "queue", "apply"], most),
      ...["receive", "queue", "apply"].map((name) => `${ms(parts[name])} ms`),
      number(one.pushes_per_second, 3), number(one.pushes_waiting), `${bytes(one.bytes_received_per_second)}/s`,
      `${bytes(one.bytes_sent_per_second)}/s`, bytes(one.memory_bytes), number(one.version), duration(one.uptime_seconds), one.address,
    ];
  });
}

// ---- figures: a picture, what it says in a sentence, and the numbers as a table

const W = 340, H = 170, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 22;

function figure(parent, id, title) {
  let found = byId(id);
  if (!found) {
    const caption = make("figcaption", {}, make("h3", {}, title), make("span", { class: "value" }));
    const details = make("details", {}, make("summary", {}, `${title} as a table`));
    details.addEventListener("toggle", show);
    parent.append(found = make("figure", { id }, caption, make("svg", { role: "img", viewBox: `0 0 ${W} ${H}` }), details));
  }
  return found;
}

function frame(svg, low, high, left, right, name) {
  for (const share of [0, 0.5, 1]) {
    const y = H - BOTTOM - share * (H - TOP - BOTTOM);
    svg.append(make("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y, y2: y }));
    svg.append(make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, number(low + share * (high - low), 3)));
  }
  svg.append(make("text", { x: LEFT, y: H - 5 }, left), make("text", { x: W - RIGHT, y: H - 5, "text-anchor": "end" }, right));
  svg.append(make("text", { x: (LEFT + W - RIGHT) / 2, y: H - 5, "text-anchor": "middle" }, name));
}

function numbers(details, caption, heads, rows) {
  if (!details.open) return;
  const body = make("tbody", {}, ...rows.map(([head, ...rest]) => make("tr", {}, make("th", { scope: "row" }, head), ...rest.map((one) => make("td", {}, one)))));
  const head = make("tr", {}, ...heads.map((one) => make("th", { scope: "col" }, one)));
  const made = make("table", {}, make("caption", {}, caption), make("thead", {}, head), body);
  details.replaceChildren(details.firstElementChild, made);
}

function showCurve(name, points) {
  const score = name.startsWith("score."), title = score ? heldOut(name.slice(6)) : NAMES[name] || words(name);
  const found = figure(byId("curves"), `curve-${name}`, title);
  const [, svg, details] = found.children, steps = points.map((p) => p[0]), values = points.map((p) => p[2]);
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && low < 0.6 * high) low = 0;
  if (low === high) [low, high] = [Math.min(0, low), high > 0 ? high * 1.1 : high || 1];
  const first = steps[0], last = steps.at(-1), newest = values.at(-1);
  const x = (step) => LEFT + ((W - LEFT - RIGHT) * (step - first)) / (last - first || 1);
  const y = (value) => H - BOTTOM - ((H - TOP - BOTTOM) * (value - low)) / (high - low);
  svg.replaceChildren();
  frame(svg, low, high, number(first), number(last), "step");
  const line = points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[2]).toFixed(1)}`).join("");
  svg.append(make("path", { class: "curve", d: line }));
  if (score || points.length < 3) for (const p of points) svg.append(make("circle", { class: "dot", cx: x(p[0]), cy: y(p[2]), r: 3 }));
  svg.setAttribute("aria-label", `${title}: ${number(values[0])} at step ${number(first)}, ${number(newest)} at step ${number(last)}, from ${number(Math.min(...values))} to ${number(Math.max(...values))}`);
  found.querySelector(".value").textContent = number(newest);
  const stride = Math.max(1, Math.ceil(points.length / 20));
  const rows = points.filter((_, i) => (points.length - 1 - i) % stride === 0).map((p) => [number(Math.round(p[0])), duration(p[1]), number(p[2])]);
  numbers(details, `${title}: up to 20 points`, ["Step", "Time of training", title], rows);
}

function showStaleness(counts) {
  const end = counts.findLastIndex((count) => count > 0) + 1, all = sum(counts);
  if (!end) return;
  const found = figure(byId("staleness"), "histogram", "Pushes by staleness");
  const [, svg, details] = found.children, shares = counts.slice(0, end).map((count) => (100 * count) / all);
  const high = Math.max(...shares), width = (W - LEFT - RIGHT) / end, height = H - TOP - BOTTOM;
  svg.replaceChildren();
  frame(svg, 0, high, "0", String(end - 1), "updates behind; height in %");
  shares.forEach((share, i) => svg.append(make("rect", {
    class: "column", x: LEFT + (i + 0.08) * width, width: 0.84 * width, y: H - BOTTOM - (height * share) / high, height: (height * share) / high,
  })));
  const usual = shares.indexOf(high);
  svg.setAttribute("aria-label", `Pushes by staleness: from 0 to ${end - 1} updates behind, most often ${usual} (${number(high, 3)} %)`);
  found.querySelector(".value").textContent = `${number(all)} pushes to all shards`;
  const rows = shares.map((share, i) => [String(i), number(counts[i]), `${number(share, 3)} %`]).filter((_, i) => counts[i]);
  numbers(details, "Pushes by staleness", ["Updates behind", "Pushes", "Share"], rows);
}

// ---- events

function showEvents(events, now) {
  byId("no-events").hidden = events.length > 0;
  const newest = events.length ? JSON.stringify(events.at(-1)) : "", open = view.open.has("events");
  more("events", events.length - FEW_EVENTS, open, "events");
  if (view.newest !== null && newest !== view.newest && newest) setText("news", events.at(-1).text);
  view.newest = newest;
  const shown = [...events].reverse().slice(0, open ? events.length : FEW_EVENTS);
  const text = JSON.stringify(shown);
  if (byId("events").dataset.text === text) return;
  byId("events").dataset.text = text;
  byId("events").replaceChildren(...shown.map((one) => {
    const at = new Date(one.time * 1000), time = make("time", { datetime: at.toISOString() }, clock(at, now));
    return make("li", { "data-event": one.event }, time, make("span", { class: "step" }, `step ${number(one.step)}`), one.text);
  }));
}

function clock(at, now) {
  const time = at.toLocaleTimeString("en-GB");
  return Math.abs(now - at / 1000) < 43200 ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

// ---- the chief's answers

function show() {
  const status = view.status;
  if (!status) return;
  showNow(status);
  showSummary(status.summary);
  showTopology(status);
  showWorkers(status.workers);
  showShards(status.shards);
  showStaleness(status.staleness_histogram);
  showEvents(status.events, status.time);
  const order = (name) => ["loss", "score", "examples_per_second", "staleness_mean", "learning_rate"].indexOf(name.split(".")[0]);
  const names = Object.keys(view.curves).filter((name) => view.curves[name].length && isScore(name.replace("score.", ""))).sort((a, b) => order(a) - order(b));
  byId("no-curves").hidden = names.length > 0;
  for (const name of names) showCurve(name, view.curves[name]);
  names.forEach((name, i) => {
    const at = byId("curves").children[i], mine = byId(`curve-${name}`);
    if (at !== mine) byId("curves").insertBefore(mine, at);
  });
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(WITHIN_MS), credentials: "same-origin" });
  if (answer.status === 401) location.reload(); // the token has changed: the login form
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function askForCurves() {
  const long = Object.values(view.curves).some((points) => points.length > MOST_POINTS);
  const all = view.file === null || long;
  const found = await ask(`history.json?since=${all ? 0 : view.next}`);
  if (!all && (found.file !== view.file || found.next < view.next)) {
    view.file = null; // the history was replaced: a new run, or back to a checkpoint
    return askForCurves();
  }
  if (all) {
    for (const name of Object.keys(view.curves)) if (!(name in found.curves)) byId(`curve-${name}`)?.remove();
    view.curves = {};
  }
  Object.assign(view, { file: found.file, next: found.next });
  for (const [name, points] of Object.entries(found.curves)) (view.curves[name] ||= []).push(...points);
}

const ended = () => view.status !== null && ["done", "failed"].includes(view.status.state);

async function look() {
  let pause = ASK_MS;
  if (!document.hidden) {
    try {
      const status = await ask("status.json");
      await askForCurves();
      Object.assign(view, { status, answered: performance.now(), since: new Date() });
      setText("connection", "");
      show();
    } catch {
      noAnswer();
    }
    if (ended()) pause = AFTER_END_MS;
  }
  setTimeout(look, pause);
}

function noAnswer() {
  if (view.answered === null) setText("connection", "No answer yet; asking on");
  else if (ended()) setText("connection", "The run has ended, and with it the chief that served this page");
  else setText("connection", `No answer since ${view.since.toLocaleTimeString("en-GB")}, ${duration((performance.now() - view.answered) / 1000)} ago; asking on`);
}

for (const id of ["workers", "shards", "events"]) {
  byId(`${id}-more`).addEventListener("click", () => {
    if (!view.open.delete(id)) view.open.add(id);
    show();
  });
}
look();
