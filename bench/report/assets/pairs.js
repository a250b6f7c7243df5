/* ---- verdicts ---- */
const MARK = { better: "\u25b2", worse: "\u25bc", equivalent: "=", "not settled": "\u00b7", "too few queries": "?" };
const OPPOSITE = { better: "worse", worse: "better" };
function verdict(pair, metric) {
  const word = pair.verdict === "better" || pair.verdict === "worse" ? `${pair.a} is ${pair.verdict} than ${pair.b}` : pair.verdict === "equivalent" ? `${pair.a} and ${pair.b} are equivalent` : pair.verdict === "not settled" ? `${pair.a} and ${pair.b}: not settled` : `${pair.a} and ${pair.b}: too few queries for a verdict`;
  const numbers = known(pair.diff) ? `: by ${scaled(pair.diff, metric, true)} ${unitOf(metric)} over ${pair.queries} queries${known(pair.p) ? `, corrected p = ${pair.p < 0.001 ? "< 0.001" : fixed(pair.p, 3)}` : ""}` : "";
  const more = pair.verdict === "not settled" ? (known(pair.needed) ? `. A difference of this size would take about ${count(pair.needed)} queries to see.` : ". No number of queries worth running would settle it.") : ".";
  return word + numbers.replace("= <", "<") + more;
}
function pairs() {
  const k = chartK(), metric = metricOf(data.rankedBy) ?? data.metrics[0], found = data.pairs[String(k)] ?? [];
  const named = at(k).map((line) => line.method).filter((name) => found.some((pair) => pair.a === name || pair.b === name));
  const of = (a, b) => { const same = found.find((pair) => pair.a === a && pair.b === b); if (same) return same; const other = found.find((pair) => pair.a === b && pair.b === a); return other && { ...other, a, b, verdict: OPPOSITE[other.verdict] ?? other.verdict, diff: known(other.diff) ? -other.diff : null }; };
  byId("pair").textContent = "";
  if (!found.length) { byId("pairs").replaceChildren(); byId("unsettled").replaceChildren(); byId("pairs-caption").textContent = `There is no pair to compare at K = ${count(k)}.`; return; }
  const head = el("tr", {}, el("td"), ...named.map((name, index) => el("th", { scope: "col", title: name, "aria-label": name }, String(index + 1))));
  const body = named.map((a, index) => el("tr", {}, el("th", { scope: "row", title: a }, `${index + 1}\u2002${shortened(a, 22)}`), ...named.map((b) => {
    const pair = a === b ? null : of(a, b);
    if (!pair) return el("td");
    const kind = { "too few queries": "few", "not settled": "open" }[pair.verdict] ?? pair.verdict;
    const button = el("button", { type: "button", class: kind, title: verdict(pair, metric), "aria-label": verdict(pair, metric) }, MARK[pair.verdict]);
    button.addEventListener("click", () => { byId("pair").textContent = verdict(pair, metric); });
    return el("td", {}, button);
  })));
  fill(byId("pairs"), el("thead", {}, head), el("tbody", {}, ...body));
  const settled = found.filter((pair) => pair.verdict in OPPOSITE).length;
  const same = found.filter((pair) => pair.verdict === "equivalent").length;
  byId("pairs-caption").textContent = `${words(metric.name)} at K = ${count(k)}: \u25b2 the row's method is better than the column's, \u25bc worse, ${known(data.margin) ? `= equivalent (the 95 % interval of the difference lies within \u00b1${scaled(data.margin, metric)}${unitOf(metric)}), ` : ""}\u00b7 not settled, ? too few queries. Tested at 5 % by sign flips of whole queries, corrected for all pairs of methods, apart for all pairs with a floor, and apart for all pairs with a variant or a ceiling: ${settled} of ${found.length} settled${same ? `, ${same} equivalent` : ""}. Choose a cell for its numbers.`;
  const open = found.filter((pair) => pair.verdict === "not settled").sort((a, b) => (a.needed ?? Infinity) - (b.needed ?? Infinity) || 0);
  fill(byId("unsettled"), ...(open.length ? [
    el("summary", {}, `How many queries would it take? ${open.length} unsettled pair${open.length === 1 ? "" : "s"}`),
    el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["pair", "difference " + unitOf(metric), "queries", "would take"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...open.map((pair) => el("tr", {}, el("td", {}, `${pair.a} \u2212 ${pair.b}`), el("td", { class: "num" }, scaled(pair.diff, metric, true)), el("td", { class: "num" }, String(pair.queries)), el("td", { class: "num" }, known(pair.needed) ? `about ${count(pair.needed)}` : "more than 100,000"))))),
    el("p", { class: "note" }, "For a true difference as large as the one seen, found with probability 0.8 by Student's test at this pair's share of the 5 %: a cautious plan. The seen difference is itself uncertain: read it as an order of magnitude."),
  ] : []));
  byId("unsettled").hidden = !open.length;
}
