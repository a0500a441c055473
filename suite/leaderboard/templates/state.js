// What the page shows: one object, kept in the part of the address after #, so that a link is a filter.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NONE = "-";
const state = { view: "", q: "", facets: {}, sort: "", cell: "", x: "", class: "" };

const SVG = new Set(["svg", "g", "path", "line", "text", "title"]);

/** An element with attributes, listeners (functions) and children; text is only ever a text node. */
function h(name, attributes = {}, ...children) {
  const made = SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

/** The text of column `c` of a table on line `i`. */
function text(c, i) {
  return c.pick ? c.text[c.pick[i]] : c.text[i];
}

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const views = [...document.querySelectorAll("section[data-view]")].map(s => s.dataset.view);
  state.view = views.includes(given.get("view")) ? given.get("view") : views[0];
  for (const name of ["q", "sort", "cell", "x", "class"]) state[name] = given.get(name) ?? "";
  state.facets = {};
  for (const { name, values } of DATA.facets) {
    if (values.includes(given.get(name))) state.facets[name] = given.get(name);
  }
}

function address() {
  const parts = new URLSearchParams({ view: state.view });
  if (state.q) parts.set("q", state.q);
  for (const [name, value] of Object.entries(state.facets)) parts.set(name, value);
  for (const name of ["sort", "x", "class", "cell"]) if (state[name]) parts.set(name, state[name]);
  return "#" + parts;
}

let pending = 0;
/** Put the state into the address bar; typing does not fill the history, and browsers limit how often this is done. */
function writeState() {
  document.getElementById("permalink").href = address();
  clearTimeout(pending);
  pending = setTimeout(() => history.replaceState(null, "", address()), 200);
}

/**
 * What a query means: every word must match, `a|b` is either of two, `-a` is without. A number matches a whole value
 * only, so that 10 does not find resnet101.
 */
function matcher(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const not = word.length > 1 && word.startsWith("-");
    return { not, either: (not ? word.slice(1) : word).split("|").filter(Boolean) };
  }).filter(w => w.either.length);
  const has = (hay, part) => hay.includes(/^\d+$/.test(part) ? `\n${part}\n` : part);
  return hay => words.every(w => w.either.some(part => has(hay, part)) !== w.not);
}

/** What the filter depends on, to tell whether something has to be drawn again. */
function filterText() {
  return JSON.stringify([state.q, state.facets]);
}

/** Lines of a table (or points, rows, pictures: anything with columns) that the filter lets through, as positions. */
function filtered(table, count) {
  const byName = Object.fromEntries(table.columns.map(c => [c.name, c]));
  const wanted = [];
  for (const [name, value] of Object.entries(state.facets)) {
    const c = byName[name];
    // Papers name networks in their own way: there, the choice of a network or protocol says nothing.
    if (!c || table.section === "papers" && !["dataset", "ipc"].includes(name)) continue;
    if (c.pick) {
      const at = c.text.indexOf(value);
      wanted.push(i => c.pick[i] === at);
    } else wanted.push(i => c.text[i] === value);
  }
  if (state.q) {
    const searched = table.columns.filter(c => c.search);
    table.hay ??= Array.from({ length: count }, (_, i) => `\n${searched.map(c => text(c, i)).join("\n").toLowerCase()}\n`);
    const match = matcher(state.q);
    wanted.push(i => match(table.hay[i]));
  }
  const found = [];
  for (let i = 0; i < count; i++) if (wanted.every(w => w(i))) found.push(i);
  return found;
}
