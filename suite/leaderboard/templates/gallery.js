// Galleries: one line a distilled set, one column a class (its first image), or all kept images of a chosen class.

function drawGallery() {
  const home = document.querySelector("#view-gallery .gallery");
  if (!home) return;
  const sets = DATA.gallery, found = filtered(sets, sets.count);
  const value = (name, i) => text(sets.columns.find(c => c.name === name), i);
  const parts = [];
  for (const dataset of [...new Set(found.map(i => value("dataset", i)))]) {
    const lines = found.filter(i => value("dataset", i) === dataset), sheet = sets.sheets[lines[0]];
    const chosen = sheet.classes.some(([at]) => String(at) === state.class) ? state.class : "";
    const choose = h("select", { change: () => { state.class = choose.value; update(); } }, h("option", { value: "" }, "every class, first image"),
      ...sheet.classes.map(([at, name]) => h("option", { value: at, selected: String(at) === chosen }, `class ${name}`)));
    const real = sets.real[dataset];
    const most = chosen === "" ? 0 : Math.max(...lines.map(i => sets.sheets[i].images), real?.images ?? 0);
    const heads = chosen === "" ? sheet.classes.map(([, name]) => name) : Array.from({ length: most }, (_, j) => String(j + 1));
    const row = (name, at, sheet) => h("tr", {}, h("th", { scope: "row", class: "who" }, name), h("td", { class: "num" }, at),
      ...heads.map((head, j) => h("td", {}, tile(sheet, chosen === "" ? j : sheet.classes.findIndex(([c]) => String(c) === chosen),
        chosen === "" ? 0 : j, name, chosen === "" ? () => { state.class = String(sheet.classes[j][0]); update(); } : null))));
    parts.push(h("div", { class: "bar" }, h("h3", {}, dataset), h("label", { class: "soft" }, "Show ", choose)),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Images of ${dataset}` },
        h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "who" }, "Set"), h("th", { scope: "col", class: "num" }, "IPC"),
          ...heads.map(x => h("th", { scope: "col", class: "tile-head" }, x)))),
        h("tbody", {}, ...(real ? [row("real images", NONE, real)] : []),
          ...lines.slice(0, 60).map(i => row(value("name", i), value("ipc", i), sets.sheets[i]))))));
    if (lines.length > 60) parts.push(h("p", { class: "soft" }, `The first 60 of ${lines.length} sets are shown: filter to see others.`));
  }
  home.replaceChildren(...(parts.length ? parts : [h("p", {}, "No images for this filter.")]));
}

/** One image of a contact sheet: line `i` (a class), place `j`; empty where the set has fewer. */
function tile(sheet, i, j, name, click) {
  if (i < 0 || j >= sheet.images) return "";
  const label = `${name}, class ${sheet.classes[i][1]}, image ${j + 1}`;
  const made = click ? h("button", { type: "button", class: "tile", "aria-label": `${label}: show this class`, click }) : h("div", { class: "tile", role: "img", "aria-label": label });
  if (sheet.side < 64) made.classList.add("small");
  made.title = label;
  const part = (k, n) => n > 1 ? `${k / (n - 1) * 100}%` : "0%";
  made.style.backgroundImage = `url("${sheet.file}")`;
  made.style.backgroundSize = `${sheet.images * 100}% ${sheet.classes.length * 100}%`;
  made.style.backgroundPosition = `${part(j, sheet.images)} ${part(i, sheet.classes.length)}`;
  return made;
}

/** The pictures of the sets behind a line, in its dialog. */
function picturesOf(table, i) {
  if (!DATA.gallery || table.section === "papers") return [];
  const found = rowsOf(DATA.gallery, table, i).slice(0, 3);
  return found.flatMap(k => {
    const sheet = DATA.gallery.sheets[k], name = text(DATA.gallery.columns.find(c => c.name === "name"), k);
    const label = `${name}: ${sheet.images} of each class, classes ${sheet.classes.map(([, n]) => n).join(", ")}`;
    return [h("h3", {}, `Distilled images, seed ${sheet.seed}`),
      h("a", { href: sheet.file, class: "sheet" }, h("img", { src: sheet.file, alt: label, loading: "lazy", class: sheet.side < 64 ? "small" : null,
        width: sheet.images * Math.max(sheet.side, 28), height: sheet.classes.length * Math.max(sheet.side, 28) }))];
  });
}
