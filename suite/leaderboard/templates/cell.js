// A chosen line: the numbers in it, the rows behind it with their provenance, its holes, and its pictures.

const dialog = document.getElementById("cell");
const chunks = {};

/** Load a side file of row details. They are scripts, since pages opened from disk may not fetch. */
function chunk(number) {
  chunks[number] ??= new Promise((resolve, reject) => {
    const script = h("script", { src: DATA.rows.files[number] });
    script.onload = () => resolve(window.ROW_DETAILS[number]);
    script.onerror = () => reject(new Error(`${DATA.rows.files[number]} is not beside this page`));
    document.head.append(script);
  });
  return chunks[number];
}
window.ROW_DETAILS = {};

function drawCell() {
  if (!state.cell) {
    if (dialog.open) dialog.close();
    return;
  }
  const table = DATA.tables.find(t => t.slug === state.view);
  if (!table || dialog.open && dialog.dataset.cell === state.cell) return;
  let line = 0;
  while (line < table.count && identity(table, line) !== state.cell) line++;
  dialog.dataset.cell = state.cell;
  const missing = line === table.count;
  document.getElementById("cell-title").textContent = missing ? "No such line" : title(table, line);
  const body = document.getElementById("cell-body");
  if (missing) body.replaceChildren(h("p", {}, `This page has no line ${state.cell} in ${table.title}.`));
  else body.replaceChildren(...about(table, line), ...behind(table, line), ...picturesOf(table, line));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  document.getElementById("cell-title").focus();
}

function title(table, i) {
  const names = table.columns.filter(c => c.identity && text(c, i) !== NONE);
  const said = { ipc: "IPC ", teacher: "teacher ", student: "student " };
  const part = c => (said[c.name] ?? "") + text(c, i);
  return names.map(part).join(" \u00b7 ");
}

function about(table, i) {
  const shown = table.columns.filter(c => !c.identity && c.form !== "notes" && text(c, i) !== NONE);
  const notes = table.notes[i] ?? [];
  const brief = shown.filter(c => text(c, i).length <= 40), long = shown.filter(c => text(c, i).length > 40);
  return [
    brief.length ? h("dl", { class: "numbers" }, ...brief.map(c => h("div", {}, h("dt", {}, c.header), h("dd", { title: c.help || null }, text(c, i))))) : null,
    long.length ? h("dl", { class: "pairs" }, ...long.flatMap(c => [h("dt", {}, c.header), h("dd", {}, text(c, i))])) : null,
    notes.length ? h("ul", { class: "notes" }, ...notes.map(n => h("li", {}, table.footnotes[n - 1]))) : null,
  ].filter(Boolean);
}

const NAMES = ["method", "dataset", "ipc", "teacher", "student", "protocol", "setting", "synthesis_setting", "device"];

/** Positions of rows that a line is made from: those with the same values of the columns that name both. */
function rowsOf(rows, table, i) {
  const tests = [];
  for (const c of table.columns.filter(c => NAMES.includes(c.name))) {
    const value = text(c, i);
    const own = rows.columns.filter(r => r.name === c.name || c.name === "setting" && r.name === "synthesis_setting");
    if (own.length && ![NONE, "?"].includes(value)) tests.push(k => own.some(r => text(r, k) === value));
  }
  const found = [];
  for (let k = 0; k < rows.count; k++) if (tests.every(t => t(k))) found.push(k);
  return found;
}

function behind(table, i) {
  if (table.section === "papers") return [h("p", { class: "soft" }, "Papers name methods and networks in their own way: the rows that were measured stand under the suite's names in Accuracy.")];
  const rows = rowsOf(DATA.rows, table, i), holes = rowsOf(DATA.holes, table, i);
  const value = (data, name, k) => text(data.columns.find(c => c.name === name), k);
  const parts = [h("h3", {}, rows.length === 1 ? "1 row" : `${rows.length || "No"} rows of this store`)];
  if (DATA.rows.total > DATA.rows.count) parts.push(h("p", { class: "soft" },
    `This page knows ${DATA.rows.count.toLocaleString("en")} of ${DATA.rows.total.toLocaleString("en")} rows one by one; the others are in the store under their keys.`));
  for (const k of rows.slice(0, 60)) {
    const inside = h("div", {}, "loading");
    const at = h("details", { class: "row" }, h("summary", {}, `seed ${value(DATA.rows, "seed", k)}: `,
      h("b", {}, `${value(DATA.rows, "accuracy_last", k)} %`), " ", student(table, k), h("code", {}, value(DATA.rows, "key", k))), inside);
    at.addEventListener("toggle", () => { if (at.open) fill(inside, k); });
    if (rows.length === 1) at.open = true;
    parts.push(at);
  }
  if (rows.length > 60) parts.push(h("p", { class: "soft" }, `and ${rows.length - 60} more; filter for a student or choose a line of another table`));
  for (const k of holes.slice(0, 60)) parts.push(h("p", { class: "row" }, `seed ${value(DATA.holes, "seed", k)}: no number, ${value(DATA.holes, "reason", k)} `,
    h("code", {}, value(DATA.holes, "key", k))));
  return parts;
}

/** Lines of some tables are not about one student: their rows say which. */
function student(table, k) {
  const named = table.columns.some(c => c.identity && c.name === "student");
  return named ? "" : `${text(DATA.rows.columns.find(c => c.name === "student"), k)} `;
}

async function fill(home, k) {
  try {
    const details = (await chunk(DATA.rows.chunk[k]))[text(DATA.rows.columns.find(c => c.name === "key"), k)];
    home.replaceChildren(...details.map(part));
  } catch (error) {
    home.replaceChildren(h("p", { class: "warning" }, error.message));
  }
}

/** One part of a row's details: pairs, a table, or text as it was printed. */
function part({ heading, pairs, lines, head, pre }) {
  const content = pairs ? h("dl", { class: "pairs" }, ...pairs.flatMap(([a, b]) => [h("dt", {}, a), h("dd", {}, b)]))
    : pre !== undefined ? h("pre", { tabindex: 0 }, pre)
    : h("table", {}, h("thead", {}, h("tr", {}, ...head.map((x, j) => h("th", { scope: "col", class: j ? "num" : null }, x)))),
      h("tbody", {}, ...lines.map(line => h("tr", {}, ...line.map((x, j) => h("td", { class: j ? "num" : null }, x))))));
  return h("div", {}, h("h3", {}, heading), content);
}

dialog.addEventListener("close", () => {
  const from = state.cell;
  state.cell = "";
  writeState();
  const made = boards[state.view];
  if (made && from) {
    // The line may have been drawn again, or reached by a link: focus goes back to it if it is there.
    const row = [...made.body.rows].find(r => r.dataset.cell === from);
    row?.querySelector("button")?.focus();
  }
});
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
document.getElementById("cell-close").addEventListener("click", () => dialog.close());
