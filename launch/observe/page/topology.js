// The processes of a run as a picture: who is there, in which state, and what they send each other. Each process is a cell
// with a sign, so that no state is told by its colour alone; of many processes, those of one state share a row.
"use strict";

const WORST = { lost: 0, silent: 0, failed: 0, empty: 1, slow: 1, hot: 1, expected: 1, running: 2, ready: 2, scoring: 2, waiting: 3, finished: 3 };
const SIGNS = {
  lost: ["✕ ", "bad"], silent: ["✕ ", "bad"], empty: ["! ", "warn"], expected: ["… ", "warn"], running: ["✓ ", "good"], ready: ["✓ ", "good"],
  slow: ["! ", "warn"], hot: ["! ", "warn"], training: ["✓ ", "good"], scoring: ["✓ ", "good"], waiting: ["✓ ", "good"], done: ["✓ ", "good"], failed: ["✕ ", "bad"], preparing: ["… ", "warn"], finished: ["✓ ", "plain"],
};

const CELL = { width: 64, height: 42, gap: 6 }, SIDE = 24, PAD = 8, TITLE = 20, MOST_ROWS_OF_CELLS = 4, LETTER = 7;

// "0–4, 7": indices in order.
function ranges(indices) {
  const parts = [];
  for (const i of indices) {
    const last = parts.at(-1);
    if (last && last[1] === i - 1) last[1] = i;
    else parts.push([i, i]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

// States with the indices that are in them, the worst first.
function statesOf(all, index, state = (one) => one.state) {
  const found = new Map();
  for (const one of all) found.set(state(one), [...(found.get(state(one)) || []), one[index]]);
  return [...found].sort(([a], [b]) => (WORST[a] ?? 2) - (WORST[b] ?? 2));
}

// "1 lost: 7; 199 running: 0–6, 8–199"; of more than `most` in a state without their indices.
const statesText = (all, index, state, most = Infinity) =>
  statesOf(all, index, state).map(([name, some]) => `${some.length} ${name}${some.length > most ? "" : `: ${ranges(some)}`}`).join("; ");

const shortened = (text, width) => (text.length * LETTER <= width ? text : `${text.slice(0, Math.max(1, Math.floor(width / LETTER) - 1))}…`);

// A rounded box with a sign and a name, and a line below; its frame has the colour and the dashes of its state.
function box(svg, x, y, width, height, state, name, line, title) {
  const [sign, kind] = SIGNS[state] || ["", "plain"];
  const middle = y + (line ? height / 2 - 3 : height / 2 + 4);
  const made = make("g", { class: `box ${kind} ${state}` }, make("rect", { x, y, width, height, rx: 6 }));
  if (title) made.append(make("title", {}, title));
  made.append(make("text", { class: "name", x: x + 6, y: middle }, shortened(sign + name, width - 8)));
  if (line) made.append(make("text", { x: x + 6, y: middle + 15 }, shortened(line, width - 8)));
  svg.append(made);
}

// A line through points with a head at its end, and a few words beside it.
function arrow(svg, points, words = [], [x, y] = []) {
  const [[ax, ay], [bx, by]] = points.slice(-2), length = Math.hypot(bx - ax, by - ay);
  const [dx, dy] = [(bx - ax) / length, (by - ay) / length];
  const corner = (side) => `${bx - 7 * dx - side * 4 * dy} ${by - 7 * dy + side * 4 * dx}`;
  svg.append(make("path", { class: "arrow", d: `M${points.map((one) => one.join(" ")).join("L")}` }));
  svg.append(make("path", { class: "head", d: `M${bx} ${by}L${corner(1)}L${corner(-1)}Z` }));
  words.forEach((one, i) => svg.append(make("text", { x, y: y + 14 * i }, one)));
}

// A frame with the cells of all processes of a role, or with a row for each state; returns its height.
function panel(svg, y, width, title, all, index, state, line) {
  const inner = width - SIDE - 2 * PAD, columns = Math.max(1, Math.floor((inner + CELL.gap) / (CELL.width + CELL.gap)));
  const groups = all.length > MOST_ROWS_OF_CELLS * columns ? statesOf(all, index, state) : [];
  const rows = Math.max(1, groups.length || Math.ceil(all.length / columns));
  const height = TITLE + rows * (CELL.height + CELL.gap) + PAD;
  svg.append(make("rect", { class: "panel", x: SIDE, y, width: width - SIDE, height, rx: 8 }));
  svg.append(make("text", { class: "name", x: SIDE + PAD, y: y + 15 }, title));
  const top = (row) => y + TITLE + row * (CELL.height + CELL.gap);
  if (!all.length) svg.append(make("text", { x: SIDE + PAD, y: top(0) + 16 }, "none known yet"));
  groups.forEach(([name, some], row) => {
    box(svg, SIDE + PAD, top(row), inner, CELL.height, name, `${some.length} ${name}`, ranges(some));
  });
  if (!groups.length) all.forEach((one, i) => {
    const x = SIDE + PAD + (i % columns) * (CELL.width + CELL.gap), state_ = state(one);
    box(svg, x, top(Math.floor(i / columns)), CELL.width, CELL.height, state_, String(one[index]), line(one), `${index} ${one[index]}: ${state_}`);
  });
  return height;
}

function showTopology(status) {
  const holder = byId("topology"), width = Math.max(280, Math.floor(holder.clientWidth));
  const { workers, shards, evaluators = [] } = status, noted = new Map();
  for (const one of status.findings || []) {
    if (one.kind === "slow_worker") noted.set(one.subject, "slow");
    if (one.kind === "hot_shard") noted.set(one.subject, "hot");
  }
  const stateIn = (role) => (one) => (["running", "ready"].includes(one.state) && noted.get(`${role} ${one[role]}`)) || one.state;
  const pushed = `${bytes(sum(shards.map((one) => one.bytes_received_per_second)))}/s`;
  const pulled = `${bytes(sum(shards.map((one) => one.bytes_sent_per_second)))}/s`;
  const one = evaluators.length === 1 && evaluators[0], worst = evaluators.length && statesOf(evaluators, "evaluator")[0][0];
  const does = !one ? statesText(evaluators, "evaluator", undefined, 0) : one.state === "expected" ? "has not come" : one.state === "scoring" ? `scores ${duration(one.seconds)}` : one.state;
  const svg = make("svg", { role: "img" }), gap = 44, tall = 52;
  box(svg, 0, 1, 0.42 * width, CELL.height, status.state, "Chief", status.state);
  if (evaluators.length) {
    const name = one ? "Evaluator" : `Evaluators: ${number(evaluators.length)}`;
    box(svg, 0.64 * width, 1, 0.36 * width - 1, CELL.height, worst, name, does);
    arrow(svg, [[0.64 * width - 3, 22], [0.42 * width + 3, 22]], ["scores"], [0.53 * width - 20, 15]);
  }
  let y = CELL.height + 2;
  arrow(svg, [[SIDE + 16, y], [SIDE + 16, y + gap - 2]], ["leases"], [SIDE + 22, y + gap / 2 + 4]);
  arrow(svg, [[SIDE + 84, y + gap], [SIDE + 84, y + 2]], ["reports"], [SIDE + 90, y + gap / 2 + 4]);
  const chief = y;
  y += gap;
  y += panel(svg, y, width, `Workers: ${number(workers.length)}`, workers, "worker", stateIn("worker"), (one) => (one.state === "running" && stepOf(one) ? `${number(stepOf(one), 2)} s` : one.state));
  arrow(svg, [[0.42 * width, y], [0.42 * width, y + tall - 2]], ["pushes", pushed], [0.42 * width + 7, y + 23]);
  arrow(svg, [[0.73 * width, y + tall], [0.73 * width, y + 2]], ["pulls", pulled], [0.73 * width + 7, y + 23]);
  arrow(svg, [[10, chief], [10, y + tall + 20], [SIDE - 2, y + tall + 20]], ["checkpoints"], [16, y + 30]);
  y += tall;
  y += panel(svg, y, width, `Shards: ${number(shards.length)}`, shards, "shard", stateIn("shard"), (one) => (one.state === "ready" && pushOf(one) ? `${ms(pushOf(one))} ms` : one.state));
  svg.setAttribute("viewBox", `0 0 ${width} ${y + 1}`);
  const told = [
    `the chief is ${status.state}`, ...(one ? [`the evaluator ${does}`] : evaluators.length ? [`evaluators: ${statesText(evaluators, "evaluator", undefined, 8)}`] : []),
    `workers: ${statesText(workers, "worker", stateIn("worker"), 8) || "none"}`, `shards: ${statesText(shards, "shard", stateIn("shard"), 8) || "none"}`,
    `workers push ${pushed} to the shards and pull ${pulled}`,
  ];
  svg.setAttribute("aria-label", `Topology: ${told.join("; ")}`);
  holder.replaceChildren(svg);
  const { lease_seconds: lease, checkpoint_every_steps: every } = status;
  setText("topology-rules", [
    "A worker shows the seconds of a step, a shard the milliseconds of a push.",
    lease ? `Who has not reported for ${number(lease)}\u00a0s, its lease, counts as lost.` : "",
    every ? `A checkpoint is due every ${number(every)} steps.` : "",
  ].join(" ").trim());
}
