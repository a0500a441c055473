// Leaderboards: every table of the page is drawn by this one function from its embedded columns.

const FIRST = 40, MORE = 60;
const boards = {};

/** The board of a view, made when it is first looked at. */
function board(view) {
  const table = DATA.tables.find(t => t.slug === view);
  if (!table) return null;
  boards[view] ??= makeBoard(table, document.querySelector(`#view-${CSS.escape(view)} .board`));
  return boards[view];
}

function makeBoard(table, home) {
  const columns = table.columns.filter(c => c.show);
  const heads = columns.map(c => h("th", { scope: "col", class: c.name === table.head ? "who" : c.num ? "num" : null },
    h("button", { type: "button", title: c.help || null, click: () => sortBy(table, c) }, c.header)));
  const body = h("tbody");
  const marks = columns.map(c => ({ first: new Set(c.first), second: new Set(c.second) }));
  const made = {
    table, columns, heads, body, marks, breaks: new Set(table.breaks), limit: FIRST, lines: [], used: new Set(), drawn: "",
    count: h("p", { class: "count", role: "status" }),
    notes: h("ol", { class: "notes" }),
    more: h("button", { type: "button", class: "more", click: () => { made.limit += MORE; drawMore(made); } }),
  };
  body.addEventListener("click", event => {
    const line = event.target.closest("tr"), control = event.target.closest("a, button");
    if (!line || control && !control.matches("[aria-haspopup]")) return;
    state.cell = line.dataset.cell;
    update();
  });
  if (table.same.length) home.append(h("p", { class: "same" }, ...table.same.flatMap(([head, value]) =>
    [h("span", {}, `${head} `, h("b", {}, value)), " "])));
  home.append(made.count, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${table.title}, table` },
    h("table", {}, h("thead", {}, h("tr", {}, ...heads)), body)), made.more, made.notes);
  return made;
}

function sortBy(table, column) {
  const [name, way] = state.sort.split(".");
  const first = column.best === "max" ? "down" : "up";
  const next = name !== column.name ? first : way === "up" ? "down" : "up";
  state.sort = `${column.name}.${next}`;
  update();
}

/** Positions in the order that the reader asked for; lines without a value come last either way. */
function ordered(made, lines) {
  const [name, way] = state.sort.split(".");
  const c = made.columns.find(x => x.name === name);
  made.heads.forEach((head, k) => {
    if (made.columns[k] === c) head.setAttribute("aria-sort", way === "down" ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  if (!c) return lines;
  const sign = way === "down" ? -1 : 1;
  const keys = lines.map(i => c.value ? c.value[i] : c.text[c.pick[i]] === NONE ? null : c.pick[i]);
  return lines.map((_, k) => k).sort((a, b) => {
    const x = keys[a], y = keys[b];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  }).map(k => lines[k]);
}

function drawBoard(made) {
  const { table } = made, now = filterText() + state.sort;
  if (made.drawn === now) return;
  Object.assign(made, { drawn: now, limit: FIRST, used: new Set() });
  const found = filtered(table, table.count);
  made.lines = ordered(made, found);
  made.body.replaceChildren();
  const all = table.count.toLocaleString("en");
  let words = found.length === table.count ? `${all} line${table.count === 1 ? "" : "s"}` : `${found.length.toLocaleString("en")} of ${all} lines`;
  if (table.total > table.count) words += `; the page holds the first ${all} of ${table.total.toLocaleString("en")}, the files have all`;
  made.count.textContent = table.count ? words : "No rows yet.";
  drawMore(made);
}

/** Draw lines up to the limit, after those that are there. */
function drawMore(made) {
  const { table, used } = made, there = made.body.rows.length;
  made.body.append(...made.lines.slice(there, made.limit).map(i => drawLine(made, i)));
  const left = made.lines.length - made.body.rows.length;
  made.more.hidden = left === 0;
  made.more.textContent = `Show ${Math.min(MORE, left)} more of ${left.toLocaleString("en")}`;
  made.notes.hidden = used.size === 0;
  made.notes.replaceChildren(...[...used].sort((a, b) => a - b).map(n => h("li", { value: n }, table.footnotes[n - 1])));
}

function drawLine({ table, columns, marks, breaks, used }, i) {
  // In tables of papers, a line without a measurement is no hole: it is what nobody has run.
  const flag = table.section === "papers" ? "" : table.flags[i] ?? "";
  const classes = [flag, !state.sort && breaks.has(i) ? "break" : ""].filter(Boolean).join(" ");
  const line = h("tr", { class: classes || null, "data-cell": identity(table, i) });
  columns.forEach((c, k) => {
    const value = text(c, i);
    if (c.name === table.head) {
      const notes = table.notes[i] ?? [];
      for (const n of notes) used.add(n);
      line.append(h("th", { scope: "row", class: "who" },
        flag === "suspicious" ? h("span", { class: "mark", role: "img", "aria-label": "suspicious" }, "\u26a0\ufe0e ") : null,
        h("button", { type: "button", title: value, "aria-haspopup": "dialog" }, value),
        notes.length ? h("sup", { title: notes.map(n => table.footnotes[n - 1]).join("\n") }, notes.join(",")) : null));
    } else {
      const mark = marks[k].first.has(i) ? " best" : marks[k].second.has(i) ? " second" : "";
      line.append(h("td", { class: (c.num ? "num" : "wide") + mark, title: exact(c, i, value) }, value));
    }
  });
  return line;
}

function exact(c, i, value) {
  if (c.form === "bytes" && c.value[i] !== null) return `${c.value[i].toLocaleString("en")} bytes`;
  return value.length > 40 ? value : null;
}

/** What names a line in an address. */
function identity(table, i) {
  return table.columns.filter(c => c.identity).map(c => text(c, i)).join(",");
}
