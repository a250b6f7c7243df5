/* ---- gallery ---- */
function picture(key, alt) { const source = data.gallery.images[key]; return source ? el("img", { src: source, alt, title: alt, width: 46, height: 46, loading: "lazy" }) : null; }
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
  const rows = chosen.methods.map((shown) => el("div", { class: "shown" },
    el("span", { class: "name" }, shown.method),
    el("div", { class: "strip" }, ...(shown.top.length ? shown.top.map((image, place) => picture(image, `${place + 1}. by ${shown.method}: ${captions[image] ?? ""} (${image})`)) : [el("span", { class: "sub" }, "top images not kept")])),
    el("div", { class: "made" }, ...data.ks.filter((k) => shown.made[k]).map((k) => el("figure", {}, picture(shown.made[k], `${chosen.prompt}, made again without the top ${k} of ${shown.method}`), el("figcaption", {}, `K = ${count(k)}`))))));
  fill(byId("gallery"), head, el("div", { class: "shown head" }, el("span", {}, "method"), el("span", {}, "its most influential training images, from the first on"), el("span", {}, "made again without its top K")), ...rows);
}
function query_figure(key, alt, caption) { const image = key && picture(key, alt); return image ? el("figure", {}, image, el("figcaption", {}, caption)) : null; }
