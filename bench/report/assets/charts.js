/* ---- charts: drawn with the figures of the files; here they are chosen, named and lit ---- */
const spoken = (k, pick, text) => at(k).filter((line) => charted(line) && known(pick(line))).map((line) => `${line.method} ${text(pick(line))}`).join(", ");
function chart(id, name, alt) {
  const source = data.charts[state.variants ? `${name}_variants` : name] ?? data.charts[name];
  const box = byId(id);
  if (!source) { box.replaceChildren(); return false; }
  const svg = document.importNode(new DOMParser().parseFromString(source, "image/svg+xml").documentElement, true);
  svg.removeAttribute("width"); svg.removeAttribute("height");
  svg.setAttribute("role", "img"); svg.setAttribute("aria-label", alt);
  for (const part of svg.querySelectorAll("[data-series]")) {
    const method = data.methods[Number(part.dataset.series)];
    part.classList.toggle("dim", state.lit.size > 0 && !state.lit.has(method));
  }
  box.replaceChildren(svg);
  return true;
}
function curve() {
  const metric = metricOf(state.metric), floor = data.floors[metric.name], reference = data.reference[metric.name] ?? [];
  const at_k = (k) => `At K = ${k}: ${spoken(k, (line) => cellOf(line)?.mean, (value) => scaled(value, metric))}.`;
  const unit = unitOf(metric);
  chart("curve", `curves_${metric.name}`, `${words(metric.name)} ${unit} against K, mean plus or minus one standard error. ${data.ks.map(at_k).join(" ")}${known(floor) ? ` Noise floor ${scaled(floor, metric)}.` : ""}`);
  const random = reference.length ? "The grey line is the random reference: random images removed, shared by all methods." : "These rows hold no random reference yet.";
  byId("curve-caption").textContent = `${words(metric.name)} against the number of images removed: mean over queries \u00b1 1 standard error, paired retraining. ${random} A line over several K is over the queries that the method has at all of them. Points at one K stand a little apart so that they can be seen.`;
  legend();
}
function legend() {
  const press = (text, pressed, key, act, ...before) => {
    const button = el("button", { type: "button", "aria-pressed": String(pressed), "data-key": key }, ...before, text);
    button.addEventListener("click", () => {
      act();
      charts();
      [...byId("curve-legend").children].find((one) => one.dataset.key === key)?.focus({ preventScroll: true });
    });
    return button;
  };
  const named = data.methods.filter((name) => data.lines.some((line) => line.method === name && charted(line) && known(cellOf(line)?.mean)));
  const buttons = named.map((name) => {
    const [colour, sign] = data.marks[name], mark = el("i", { "aria-hidden": "true", "data-sign": sign });
    mark.style.color = `var(--x${colour.slice(1)})`;
    return press(name, state.lit.has(name), `method ${name}`, () => { if (!state.lit.delete(name)) state.lit.add(name); }, mark);
  });
  const variants = data.methods.length - data.charted.length;
  if (variants) buttons.push(press(`show ${variants} variant${variants === 1 ? "" : "s"}`, state.variants, "variants", () => { state.variants = !state.variants; }));
  fill(byId("curve-legend"), ...buttons);
}
function equivalent() {
  const k = chartK(), lines = at(k).filter((line) => line.left), ends = (data.reference[data.rankedBy] ?? []).map((point) => data.images - point.k);
  const drawn = chart("equivalent", `equivalent_random_${k}`, `Without the top ${k} a model is as bad as one trained on so many random images: ${lines.map((line) => `${line.method} ${leftText(line.left)}`).join(", ")}.`);
  byId("equivalent-caption").textContent = drawn
    ? `Without the top ${count(k)} of a method, a model loses as much at the query as one that was trained on this many random images, of ${count(data.images)}. Fewer: what was removed mattered more. Log scale; lines are bootstrap intervals over queries. An arrow lies outside the measured curve (${count(ends.at(-1))} to ${count(ends[0])} images left), which is never extrapolated.`
    : "How many random images make as bad a model? These rows hold no random reference at all, or none for these queries, so the question cannot be answered yet.";
}
function order() {
  const k = chartK(), parts = data.groups[String(k)] ?? [];
  fill(byId("groups"), ...parts.map((part, index) => el("li", {}, part.join(", "), el("span", { class: "sub" }, index ? "nobody of the rest beats them" : "nobody beats them"))));
  const drawn = chart("order", `order_${k}`, `Methods by mean at K = ${k}, in groups: ${parts.map((part, index) => `${index + 1}: ${part.join(", ")}`).join("; ")}.`);
  byId("order-caption").textContent = drawn
    ? `Methods at K = ${count(k)} by their mean, with Student\u2019s 95 % intervals. A bar joins the methods that have a dot on it: no pair of them is settled. Below the dotted line: floors and ceilings, which do not compete. A dotted upright line is a ceiling: so much is known to be possible.`
    : `There are too few methods with enough queries at K = ${count(k)} to be put in an order.`;
}
function cost() {
  const metric = metricOf(data.rankedBy) ?? data.metrics[0], k = chartK(), mean = (line) => line.cells[metric.name]?.mean;
  const lines = at(k).filter((line) => charted(line) && known(mean(line)) && known(line.seconds));
  chart("cost", `cost_${k}`, `${words(metric.name)} at K = ${k} against scoring seconds a query: ${lines.map((line) => `${line.method} ${scaled(mean(line), metric)} at ${seconds(line.seconds)} s`).join(", ")}.`);
  byId("cost-caption").textContent = `${words(metric.name)} at K = ${count(k)}, mean \u00b1 1 standard error, against what scoring a query costs on the machine of the run.`;
}
