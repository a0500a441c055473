// Drawing what the state says, and taking what the reader does into the state.

function update() {
  writeState();
  draw();
}

let view = "";
/** Show one section and mark its link. */
function show() {
  if (view === state.view) return;
  view = state.view;
  for (const part of document.querySelectorAll("section[data-view]")) part.hidden = part.dataset.view !== view;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function draw() {
  show();
  const made = board(state.view);
  if (made) drawBoard(made);
  drawPlot(state.view);
  if (state.view === "gallery") drawGallery();
  drawCell();
}

/** Show the state in the controls, after the address was read. */
function controls() {
  document.getElementById("query").value = state.q;
  for (const { name } of DATA.facets) document.getElementById(`facet-${name}`).value = state.facets[name] ?? "";
}

function choose(name, value) {
  if (value) state.facets[name] = value;
  else delete state.facets[name];
  update();
}

for (const { name, header, values } of DATA.facets) {
  const control = h("select", { id: `facet-${name}`, change: () => choose(name, control.value) }, h("option", { value: "" }, "all"),
    ...values.map(v => h("option", { value: v }, v)));
  document.getElementById("facets").append(h("label", {}, header, control));
}
document.getElementById("query").addEventListener("input", event => {
  state.q = event.target.value.trim();
  update();
});
document.getElementById("filters").addEventListener("submit", event => event.preventDefault());
document.getElementById("clear").addEventListener("click", event => {
  event.preventDefault();
  Object.assign(state, { q: "", facets: {}, sort: "", class: "" });
  controls();
  update();
});
for (const link of document.querySelectorAll("#views a")) link.addEventListener("click", event => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  Object.assign(state, { view: link.dataset.view, sort: "", cell: "", x: "" });
  clearTimeout(pending);
  history.pushState(null, "", address());
  update();
});
document.querySelector("[data-skip]").addEventListener("click", event => {
  event.preventDefault();
  document.getElementById("main").focus();
});
function follow() {
  readState();
  controls();
  document.getElementById("permalink").href = address();
  draw();
}
addEventListener("hashchange", follow);
addEventListener("popstate", follow);
document.getElementById("filters").hidden = false;
follow();
