/* ---- gallery ---- */
function picture(key, alt) { const source = data.gallery.images[key]; return source ? el("img", { src: source, alt, title: alt, width: 46, height: 46, decoding: "async" }) : null; }
function choices(id) { // a button for each query; both rows of buttons choose for the whole page
  fill(byId(id), ...data.gallery.queries.map((query, index) => {
    const button = el("button", { type: "button", "aria-pressed": String(index === state.query), title: query.prompt, "aria-label": `${query.id}: ${query.prompt}` }, query.image ? picture(query.image, "") : query.id);
    button.addEventListener("click", () => { state.query = index; first(); gallery(); byId(id).children[index].focus({ preventScroll: true }); });
    return button;
  }));
}
function gallery() {
  const { queries, captions, all } = data.gallery;
  if (!queries.length) { byId("gallery-caption").textContent = "These records hold no pictures."; return; }
  const chosen = queries[state.query];
  byId("gallery-caption").textContent = `Each method's most influential training images for a query, and what the model makes of the same prompt and noise after retraining without its top K.${queries.length < all ? ` ${queries.length} of ${all} queries are shown, to keep the page small.` : ""}`;
  choices("queries");
  const head = el("div", { class: "query" },
    query_figure(chosen.image, `The query: ${chosen.prompt}`, "the query"),
    chosen.untouched ? query_figure(chosen.untouched, `${chosen.prompt}, by the model with nothing removed that the retrained ones are compared with`, "nothing removed: compare with this") : null,
    el("p", {}, `\u201c${chosen.prompt}\u201d`, el("span", { class: "sub" }, chosen.id)));
  const pair = compared(chosen), both = pair.length === 2 ? new Set(pair[0].top.filter((image) => pair[1].top.includes(image))) : new Set();
  const named = (shown, image, place) => { const made = picture(image, `${place + 1}. by ${shown.method}${both.has(image) ? ", named by both" : ""}: ${captions[image] ?? ""} (${image})`); if (both.has(image)) made?.classList.add("both"); return made; };
  const rows = (pair.length ? pair : chosen.methods).map((shown) => el("div", { class: "shown" },
    el("span", { class: "name" }, shown.method),
    el("div", { class: "strip" }, ...(shown.top.length ? shown.top.map((image, place) => named(shown, image, place)) : [el("span", { class: "sub" }, "top images not kept")])),
    el("div", { class: "made" }, ...data.ks.filter((k) => shown.made[k]).map((k) => el("figure", {}, picture(shown.made[k], `${chosen.prompt}, made again without the top ${k} of ${shown.method}`), el("figcaption", {}, `K = ${count(k)}`))))));
  const told = pair.length === 2 ? el("p", { class: "note" }, `${both.size} of the ${pair[0].top.length} images shown stand in both rows; they have a frame.`) : null;
  fill(byId("gallery"), head, compareChoice(chosen), told, el("div", { class: "shown head" }, el("span", {}, "method"), el("span", {}, "its most influential training images, from the first on"), el("span", {}, "made again without its top K")), ...rows);
}
const compared = (query) => state.compare.map((name) => query.methods.find((shown) => shown.method === name)).filter(Boolean);
function compareChoice(query) { // two methods side by side, or all of them
  const choice = (index, none, label) => {
    const box = el("select", { "aria-label": label }, el("option", { value: "" }, none), ...query.methods.map((shown) => el("option", { value: shown.method }, shown.method)));
    box.value = state.compare[index] ?? "";
    box.addEventListener("change", () => { state.compare[index] = box.value; gallery(); byId("gallery").querySelectorAll(".compare select")[index].focus({ preventScroll: true }); });
    return box;
  };
  return el("p", { class: "compare" }, "Show ", choice(0, "every method", "First method to show"), " beside ", choice(1, "nobody else", "Second method to show"));
}
function query_figure(key, alt, caption) { const image = key && picture(key, alt); return image ? el("figure", {}, image, el("figcaption", {}, caption)) : null; }
