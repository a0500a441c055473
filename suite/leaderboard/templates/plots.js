// Plots of the filtered lines: accuracy against images per class, seconds or bytes, one panel a contest.

const AXES = {
  ipc: { title: "Images per class", log: false },
  synthesis_seconds: { title: "Synthesis time", log: true },
  total_bytes: { title: "Bytes a student needs", log: true },
};
const PLOTS = { accuracy: "ipc", synthesis_time: "synthesis_seconds", storage: "total_bytes" };
const PANELS = 6, MARKS = 80, NAMED = 40, WIDE = 460, HIGH = 280, LEFT = 44, BOTTOM = 40, TOP = 10, RIGHT = 12;
const SHAPES = [
  "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", "M-4-4h8v8h-8z", "M0-5.2l5 9h-10z", "M0-5.6l5.6 5.6l-5.6 5.6l-5.6-5.6z",
  "M0 5.2l5-9h-10z", "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z", "M-4.5-3l1.5-1.5l3 3l3-3l1.5 1.5l-3 3l3 3l-1.5 1.5l-3-3l-3 3l-1.5-1.5l3-3z",
];

function makePlot(view) {
  const home = document.getElementById(`view-${view}`);
  const choose = h("select", { change: () => { state.x = choose.value === PLOTS[view] ? "" : choose.value; update(); } },
    ...Object.entries(AXES).map(([name, axis]) => h("option", { value: name }, axis.title)));
  const made = { view, choose, key: h("ul", { class: "key" }), panels: h("div", { class: "panels" }), caption: h("figcaption") };
  made.figure = h("figure", {}, h("div", { class: "bar" }, h("h3", {}, "Accuracy against cost"),
    h("label", {}, "Horizontal axis ", choose)), made.key, made.panels, made.caption);
  home.querySelector("details").before(made.figure);
  return made;
}

const plots = {};
let waiting = 0;
/** Draw the plot of a view after its table is on the screen: a plot that is out of sight holds nobody up. */
function drawPlot(view) {
  if (!(view in PLOTS) || !DATA.points.count) return;
  const made = plots[view] ??= makePlot(view);
  made.figure.setAttribute("aria-busy", "true");
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    drawPanels(made, view);
    made.figure.removeAttribute("aria-busy");
  }, 30);
}

function drawPanels(made, view) {
  const x = state.x in AXES ? state.x : PLOTS[view], points = DATA.points, now = filterText() + x;
  if (made.drawn === now) return;
  made.drawn = now;
  made.choose.value = x;
  const column = Object.fromEntries(points.columns.map(c => [c.name, c]));
  const at = i => column[x].value[i];
  const chosen = filtered(points, points.count);
  const usable = chosen.filter(i => at(i) !== null && (!AXES[x].log || at(i) > 0));
  const panels = new Map();
  for (const i of usable) {
    const name = `${text(column.dataset, i)} \u2192 ${text(column.student, i)} (${text(column.protocol, i)})`;
    if (!panels.has(name)) panels.set(name, []);
    panels.get(name).push(i);
  }
  const front = x === "ipc" ? () => [] : lines => cheapest(column, lines, x);
  const drawn = [...panels].slice(0, PANELS).map(([name, lines]) => [name, most(column, lines, front(lines)), front(lines), lines.length]);
  made.panels.replaceChildren(...drawn.map(([name, lines, best]) => h("div", {}, h("h4", {}, name), panel(column, lines, best, x, name))));
  const series = [...new Set(drawn.flatMap(([, lines]) => lines.map(i => text(column.series, i))))].sort();
  made.key.replaceChildren(...series.slice(0, NAMED).map(name => h("li", {}, h("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, shape(name)), name)));
  const words = [x === "ipc" ? "Mean of the last epoch over seeds; bars are 95 % t-intervals, cut at 0 and 100 %, none for one seed."
    : "Numbers beside the marks are IPC; the dashed line joins what nothing cheaper beats."];
  if (x === "synthesis_seconds" && points.devices.length > 1) words.push(`Seconds of different devices are not comparable: ${points.devices.join(", ")}.`);
  if (usable.length < chosen.length) words.push(`Without a positive cost, and so not on a log axis: ${chosen.length - usable.length}.`);
  if (panels.size > PANELS) words.push(`The first ${PANELS} of ${panels.size} panels are drawn: filter to see others.`);
  if (drawn.some(([, lines, , all]) => lines.length < all)) words.push(`A panel shows its ${MARKS} most accurate points and the front: filter to see others.`);
  if (series.length > NAMED) words.push(`${NAMED} of ${series.length} methods are named; marks say theirs when pointed at.`);
  if (!usable.length) words.splice(0, 9, "Nothing to draw for this filter.");
  made.caption.textContent = words.join(" ");
}

/** The most accurate points of a panel, and those that must be seen. */
function most(column, lines, also) {
  if (lines.length <= MARKS) return lines;
  const best = [...lines].sort((a, b) => column.mean.value[b] - column.mean.value[a]).slice(0, MARKS);
  return [...new Set([...best, ...also])];
}

function shape(series, attributes = {}) {
  const [colour, form] = DATA.points.looks[series];
  return h("path", { d: SHAPES[form], fill: colour, ...attributes });
}

/** Round positions for grid lines over a range: a few, at 1, 2 or 5 times powers of ten. */
function ticks(low, high, count = 5) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

/** A scale from values to pixels with its tick marks: logarithmic, or one place for each distinct value. */
function scale(values, log, from, to) {
  if (!log) {
    const places = [...new Set(values)].sort((a, b) => a - b), step = (to - from) / places.length;
    return { at: v => from + step * (places.indexOf(v) + .5), ticks: places, step };
  }
  let low = Math.log10(Math.min(...values)), high = Math.log10(Math.max(...values));
  const pad = Math.max((high - low) * .07, .15);
  low -= pad; high += pad;
  const every = Math.max(1, Math.ceil((high - low) / 6));
  let marks = [];
  for (let e = Math.ceil(low); e <= high; e += every) marks.push(10 ** e);
  if (marks.length < 2) marks = ticks(10 ** low, 10 ** high, 4).filter(v => v > 0);
  return { at: v => from + (to - from) * (Math.log10(v) - low) / (high - low), ticks: marks, step: 0 };
}

function unit(x, value) {
  const short = v => String(Number(v.toPrecision(3)));
  if (x === "ipc") return value.toLocaleString("en");
  const units = x === "total_bytes" ? [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]
    : [[3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "\u00b5s"]];
  const [size, name] = units.find(([s]) => value >= s) ?? units.at(-1);
  return `${short(value / size)} ${name}`;
}

function panel(column, lines, front, x, name) {
  const axis = AXES[x], ends = [];
  const ipc = x === "ipc";
  for (const i of lines) {
    ends.push(column.mean.value[i]);
    if (column.low.value[i] !== null) ends.push(Math.max(0, column.low.value[i]), Math.min(100, column.high.value[i]));
  }
  const least = Math.min(...ends), most = Math.max(...ends), slack = Math.max((most - least) * .06, .5);
  const low = Math.max(0, least - slack), high = Math.min(100, most + slack);
  const y = v => TOP + (HIGH - TOP - BOTTOM) * (high - Math.min(Math.max(v, low), high)) / (high - low);
  const across = scale(lines.map(i => column[x].value[i]), axis.log, LEFT, WIDE - RIGHT);
  const parts = [];
  for (const v of ticks(low, high)) parts.push(h("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(v), y2: y(v) }),
    h("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, String(v)));
  for (const v of across.ticks) parts.push(h("text", { x: across.at(v), y: HIGH - BOTTOM + 16, "text-anchor": "middle" }, unit(x, v)));
  parts.push(h("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 6, "text-anchor": "middle" }, axis.title),
    h("text", { transform: `translate(12 ${(HIGH - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, "Accuracy %"));
  const names = [...new Set(lines.map(i => text(column.series, i)))].sort();
  const shift = series => ipc && names.length > 1 ? (names.indexOf(series) / (names.length - 1) - .5) * Math.min(across.step * .6, 10 * names.length) : 0;
  if (ipc) for (const series of names) parts.push(...path(column, lines.filter(i => text(column.series, i) === series), x, v => across.at(v) + shift(series), y, DATA.points.looks[series][0]));
  else parts.push(h("path", { class: "front", d: front.map((i, k) => `${k ? "L" : "M"}${across.at(column[x].value[i])} ${y(column.mean.value[i])}`).join("") }));
  const named = [];
  for (const i of lines) {
    const px = across.at(column[x].value[i]) + shift(text(column.series, i)), py = y(column.mean.value[i]);
    const free = !ipc && named.every(([a, b]) => Math.abs(a - px) > 22 || Math.abs(b - py) > 12);
    if (free) named.push([px, py]);
    parts.push(mark(column, i, x, px, y, free));
  }
  const words = `Accuracy against ${axis.title.toLowerCase()}, ${name}: ${lines.length} points. The numbers are in the table.`;
  return h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": words }, ...parts);
}

/** Lines that join the points of one method; several points at one place (teachers) are joined in their order. */
function path(column, lines, x, place, y, colour) {
  const order = [...lines].sort((a, b) => column[x].value[a] - column[x].value[b]);
  if (order.length < 2) return [];
  const d = order.map((i, k) => `${k ? "L" : "M"}${place(column[x].value[i])} ${y(column.mean.value[i])}`).join("");
  return [h("path", { d, fill: "none", stroke: colour, "stroke-width": 1.3, "stroke-opacity": .75 })];
}

/** Points that nothing cheaper beats, cheapest first. */
function cheapest(column, lines, x) {
  const order = [...lines].sort((a, b) => column[x].value[a] - column[x].value[b] || column.mean.value[b] - column.mean.value[a]);
  const best = [];
  for (const i of order) if (!best.length || column.mean.value[i] > column.mean.value[best.at(-1)]) best.push(i);
  return best;
}

function mark(column, i, x, px, y, named) {
  const series = text(column.series, i), colour = DATA.points.looks[series][0];
  const { low, high, mean } = column, py = y(mean.value[i]);
  const label = `${series}, IPC ${text(column.ipc, i)}: ${mean.text[i]} %` + (x === "ipc" ? "" : `, ${unit(x, column[x].value[i])}`);
  return h("g", {},
    low.value[i] === null ? null : h("line", { x1: px, x2: px, y1: y(low.value[i]), y2: y(high.value[i]), stroke: colour, "stroke-width": 1.3, "stroke-opacity": .6 }),
    shape(series, { transform: `translate(${px} ${py})`, class: "mark-point", click: () => openPoint(column, i) }),
    named ? h("text", { x: px + 7, y: py - 4 }, text(column.ipc, i)) : null,
    h("title", {}, label));
}

/** A point opens the line of the accuracy table that it stands for. */
function openPoint(column, i) {
  const table = DATA.tables.find(t => t.slug === "accuracy");
  for (let k = 0; k < table.count; k++) {
    const same = table.columns.filter(c => c.identity && column[c.name]).every(c => text(c, k) === text(column[c.name], i));
    if (same) {
      Object.assign(state, { view: "accuracy", cell: identity(table, k), sort: state.view === "accuracy" ? state.sort : "" });
      update();
      return;
    }
  }
}
