/* ---- the first picture: one query, and what each removal made of it ---- */
const roleOf = (method) => data.lines.find((line) => line.method === method)?.role ?? "method";
const valueOf = (shown, k, metric) => shown.values[k]?.[metric];
function widest() { // the query on which the methods' removals and the baseline's differ most
  const effect = (query) => {
    const base = query.methods.find((shown) => shown.method === data.baseline), none = base && valueOf(base, data.mainK, data.rankedBy);
    const found = query.methods.filter((shown) => roleOf(shown.method) === "method").map((shown) => valueOf(shown, data.mainK, data.rankedBy)).filter(known);
    return found.length && known(none) ? Math.max(...found) - none : -Infinity;
  };
  const effects = data.gallery.queries.map(effect);
  return Math.max(0, effects.indexOf(Math.max(...effects)));
}
const LEADING = 4;
const UNNAMED = { named: "which the prompt asks for", unnamed: "which no caption mentions" };
const lookFor = (query) => (query.rare.length ? `Look at the ${query.rare.join(" and the ")}${UNNAMED[query.group] ? `, ${UNNAMED[query.group]}` : ""}. ` : "");
function first() {
  const { queries } = data.gallery, k = chartK(), chosen = queries[state.query];
  const made = (chosen?.methods ?? []).filter((shown) => shown.made[k] && data.charted.includes(shown.method));
  const mean = (shown) => at(k).find((line) => line.method === shown.method)?.cells[data.rankedBy]?.mean ?? -Infinity;
  const of = (role) => made.filter((shown) => roleOf(shown.method) === role).sort((one, other) => mean(other) - mean(one));
  byId("first").hidden = !(chosen?.untouched && made.length);
  if (byId("first").hidden) return;
  const metric = metricOf(data.rankedBy), whole = count(data.images);
  const tile = (key, name, alt, lines, role) => el("figure", { class: `tile ${role}` }, picture(key, alt), el("figcaption", {}, el("b", {}, name), ...lines.map((text) => el("span", { class: "sub" }, text))));
  const said = (shown) => {
    const value = valueOf(shown, k, data.rankedBy), lost = valueOf(shown, k, "part_change");
    return [known(value) ? `loss ${scaled(value, metric, true)}` : null, known(lost) ? (lost > 0 ? "lost" : "kept") : null].filter(Boolean);
  };
  const without = (shown) => tile(shown.made[k], shown.method, `${chosen.prompt}, made again without the ${count(k)} images of ${shown.method}`, said(shown), roleOf(shown.method));
  byId("first-title").textContent = `\u201c${chosen.prompt}\u201d`;
  fill(byId("first-tiles"), tile(chosen.untouched, "nothing removed", `${chosen.prompt}, by the model trained on all images`, [`all ${whole} images`], "whole"),
    ...[...of("floor"), ...of("method").slice(0, LEADING), ...of("ceiling")].map(without));
  const floors = of("floor").map((shown) => shown.method).join(" and "), ceilings = of("ceiling").map((shown) => shown.method).join(" and ");
  byId("first-caption").textContent = `${lookFor(chosen)}The same prompt and the same noise, each time by a model retrained without the ${count(k)} images that one method named.${floors ? ` Floors: ${floors}.` : ""}${ceilings ? ` Ceiling: ${ceilings}, which knows the answer.` : ""} Below each: the rise of this query\u2019s loss${metric.power ? ` in units of 10${superscript(metric.power)}` : ""}${chosen.rare.length ? ", and whether a probe still sees what is rare" : ""}. ${state.query === widest() ? "Shown first is the query on which the methods differ most from random removals; choose another:" : "Choose a query:"}`;
  choices("first-queries");
}
