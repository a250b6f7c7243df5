/* ---- the table ---- */
const LEFT = "Random images left";
const columns = [
  { key: "rank", head: "Rank", value: (line) => line.rank },
  { key: "method", head: "Method", value: (line) => line.method.toLowerCase() },
  { key: "k", head: "K", num: true, value: (line) => line.k },
  { key: "mean", num: true, down: true, value: (line) => cellOf(line)?.mean },
  { key: "diff", head: `Minus ${data.baseline}`, down: true, value: (line) => cellOf(line)?.diff },
  { key: "verdict", head: "Verdict", down: true, value: (line) => cellOf(line)?.beaten },
  { key: "left", head: LEFT, num: true, value: (line) => (!line.left ? null : line.left.outside === "fewer" ? -Infinity : line.left.outside === "more" ? Infinity : line.left.images) },
  { key: "seconds", head: "Scoring, s a query", num: true, value: (line) => line.seconds },
  { key: "tuned", head: "Tuned on", value: (line) => line.tuned.toLowerCase() },
].filter((column) => column.key !== "left" || data.lines.some((line) => line.left)); // nothing to say without a reference
function compare(a, b) {
  const column = columns.find((one) => one.key === state.sort);
  const [x, y] = [column.value(a), column.value(b)];
  if (known(x) !== known(y)) return known(x) ? -1 : 1;
  let order = !known(x) || x === y ? 0 : x < y ? -1 : 1;
  if (state.down) order = -order;
  return order || (a.k - b.k) || ((a.rank ?? 1e9) - (b.rank ?? 1e9)) || ((b.cells[data.rankedBy]?.mean ?? -1e9) - (a.cells[data.rankedBy]?.mean ?? -1e9)) || (a.method < b.method ? -1 : 1);
}
function visible() {
  const wanted = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return data.lines.filter((line) => {
    const text = `${line.method} ${line.tuned} ${JSON.stringify(line.settings)}`.toLowerCase();
    return (state.k === null || line.k === state.k) && wanted.every((word) => text.includes(word));
  }).sort(compare);
}
function tableHead() {
  const metric = metricOf(state.metric);
  const heads = el("tr", { role: "row" });
  for (const column of columns) {
    const label = column.key === "mean" ? `${words(metric.name)} ${unitOf(metric)}`.trim() : column.head;
    const active = state.sort === column.key;
    const button = el("button", { type: "button" }, label);
    button.addEventListener("click", () => sortBy(column.key));
    heads.append(el("th", { scope: "col", role: "columnheader", "data-key": column.key, class: column.num ? "num" : null, "aria-sort": active ? (state.down ? "descending" : "ascending") : "none" }, button));
  }
  byId("table").tHead.replaceChildren(heads);
}
function sortBy(key) {
  const column = columns.find((one) => one.key === key);
  state.down = state.sort === key ? !state.down : Boolean(column.down) && metricOf(state.metric).higher;
  state.sort = key;
  table();
  byId("table").querySelector(`th[data-key="${key}"] button`).focus({ preventScroll: true });
}
function whisker(cell, scale) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "whisker"); svg.setAttribute("viewBox", "0 0 150 16"); svg.setAttribute("aria-hidden", "true");
  draw(svg, "line", { x1: scale(0), x2: scale(0), y1: 0, y2: 16, stroke: "var(--grey)", "stroke-dasharray": "2 2" });
  if (known(cell.diffLow)) draw(svg, "line", { x1: scale(cell.diffLow), x2: scale(cell.diffHigh), y1: 8, y2: 8, stroke: "var(--ink)", "stroke-width": 1.5 });
  draw(svg, "circle", { cx: scale(cell.diff), cy: 8, r: 3.5, fill: "var(--ink)" });
  return svg;
}
function row(line, scale) {
  const metric = metricOf(state.metric), cell = cellOf(line);
  const plain = (value) => scaled(value, metric), signed = (value) => scaled(value, metric, true);
  const tr = el("tr", { role: "row", class: line.role === "method" ? null : "baseline", "data-method": line.method, "data-k": line.k });
  const add = (key, label, classes, ...content) => tr.append(el("td", { role: "cell", "data-key": key, "data-label": label, class: classes }, ...content));
  add("rank", "Rank", "rank-cell", el("span", { class: known(line.rank) ? "rank" : "sub" }, rankText(line)), known(line.group) ? el("span", { class: "sub" }, `group\u00a0${line.group}`) : null);
  const settings = Object.entries(line.settings).map(([name, value]) => `${name} = ${value}`).join(", ");
  add("method", "Method", "name-cell", el("span", { class: "name", title: settings || null }, ...line.method.split(/(?=\[)/).flatMap((part) => [el("wbr"), part])));
  add("k", "K", "num", count(line.k));
  const failed = cell?.failed ? el("span", { class: "sub failed" }, `${cell.failed} failed, left out`) : null;
  const few = cell && cell.queries > 0 && cell.queries < data.minQueries;
  if (!cell) add("mean", words(metric.name), "num", "not measured");
  else if (!cell.queries) add("mean", words(metric.name), "num", el("span", { class: "failed" }, "failed"), failed);
  else add("mean", words(metric.name), "num", plain(cell.mean) + (known(cell.se) ? ` \u00b1 ${plain(cell.se)}` : ""),
    el("span", { class: "sub" }, few ? "too few queries for an interval" : span(cell.low, cell.high, plain)), el("span", { class: "sub" }, `${cell.queries} quer${cell.queries === 1 ? "y" : "ies"}`), failed);
  const baseline = line.method === data.baseline;
  const won = Object.entries(cell?.won ?? {}).filter(([, one]) => one.of).map(([floor, one]) => el("span", { class: "sub" }, `ahead of ${floor} on ${one.won} of ${one.of}${known(one.low) ? ` [${fixed(100 * one.low, 0)},\u00a0${fixed(100 * one.high, 0)}]\u00a0%` : ""}`));
  if (baseline) add("diff", `Minus ${data.baseline}`, "wide", el("span", { class: "sub" }, "the baseline"));
  else if (!cell || !known(cell.diff)) add("diff", `Minus ${data.baseline}`, "wide", el("span", { class: "sub" }, cell && cell.queries ? "no baseline" : "\u2013"));
  else add("diff", `Minus ${data.baseline}`, "wide", `${signed(cell.diff)} `, el("span", { class: "sub" }, span(cell.diffLow, cell.diffHigh, signed) ?? "too few queries for an interval",
    cell.compared < cell.queries ? ` \u00b7 ${cell.compared} of ${cell.queries} queries have a baseline` : ""), whisker(cell, scale));
  const places = cell && known(cell.rank) && metric.name !== data.rankedBy ? el("span", { class: "sub" }, `rank by ${words(metric.name)}: ${placesText(cell)}`) : null;
  add("verdict", "Verdict", "wide", cell?.verdict || "\u2013", places, ...won);
  const { left } = line;
  if (columns.some((column) => column.key === "left")) add("left", LEFT, "num", leftText(left), left && !left.outside && span(left.low, left.high, count) ? el("span", { class: "sub" }, span(left.low, left.high, count)) : null);
  add("seconds", "Scoring, s a query", "num", seconds(line.seconds), known(line.shared) ? el("span", { class: "sub" }, `${fixed(100 * line.shared, 0)}\u00a0% of its top K in a second scoring too`) : null,
    known(line.overlap) ? el("span", { class: "sub" }, `${fixed(100 * line.overlap, 0)}\u00a0% of its top K shared by two queries (chance ${fixed((100 * line.k) / data.images, 0)}\u00a0%)`) : null);
  add("tuned", "Tuned on", "wide", el("span", { class: "sub" }, line.tuned || "\u2013"));
  return tr;
}
function table() {
  const lines = visible(), metric = metricOf(state.metric);
  const ends = data.lines.filter((line) => state.k === null || line.k === state.k).flatMap((line) => { const cell = cellOf(line) ?? {}; return [cell.diff, cell.diffLow, cell.diffHigh]; }).filter(known);
  const low = Math.min(0, ...ends), high = Math.max(0, ...ends), width = high - low || 1;
  tableHead();
  byId("table").tBodies[0].replaceChildren(...lines.map((line) => row(line, (value) => 6 + (138 * (value - low)) / width)));
  byId("count").textContent = `${lines.length} of ${data.lines.length} lines`;
  byId("not-beaten").textContent = data.notBeaten.filter((one) => one.metric === metric.name && (state.k === null || one.k === state.k)).map((one) => `K = ${count(one.k)}: ${one.text}.`).join(" ");
  const power = metric.power ? `, shown in units of 10${superscript(metric.power)}` : "";
  byId("about-metric").textContent = `${words(metric.name)}: ${metric.summary || "a metric of its own"}; ${metric.higher ? "higher" : "lower"} is better (${metric.unit}${power}).`;
}
