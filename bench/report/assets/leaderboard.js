"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = { k: data.mainK, metric: data.metrics[0].name, text: "", sort: "rank", down: false, lit: new Set(), variants: false, query: 0 };
const SVG = "http://www.w3.org/2000/svg";
const MINUS = "\u2212";

/* ---- making things: text is always text, never markup ---- */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function draw(parent, tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const fill = (node, ...children) => node.replaceChildren(...children.filter((child) => child !== null && child !== undefined));

/* ---- numbers as text ---- */
const known = (value) => value !== null && value !== undefined;
const metricOf = (name) => data.metrics.find((metric) => metric.name === name);
const words = (name) => name.replaceAll("_", " ");
const superscript = (power) => String(power).replace("-", "\u207b").replace(/\d/g, (digit) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[digit]);
const unitOf = (metric) => (metric.power ? `\u00d710${superscript(metric.power)}` : "");
const fixed = (value, digits) => value.toFixed(digits).replace("-", MINUS);
function scaled(value, metric, sign = false) {
  if (!known(value)) return "\u2013";
  const shown = value / 10 ** metric.power;
  const digits = Math.abs(shown) >= 100 ? 0 : Math.abs(shown) >= 10 ? 1 : 2;
  return (sign && shown > 0 ? "+" : "") + fixed(shown, digits);
}
const count = (value) => Math.round(value).toLocaleString("en-US");
function seconds(value) {
  if (!known(value)) return "\u2013";
  if (value < 0.01) return "< 0.01";
  return value < 10 ? fixed(value, 2) : value < 1000 ? fixed(value, 0) : count(value);
}
function span(low, high, show) { return known(low) && known(high) ? `[${show(low)}, ${show(high)}]` : null; }
const rankText = (line) => (known(line.rank) ? `${line.rank}${line.tied ? "=" : ""}` : "\u2013");
function equivalentText(equivalent) {
  if (!equivalent) return "\u2013";
  if (equivalent.outside === "above") return "beyond the curve";
  if (equivalent.outside === "below") return "below the curve";
  return count(equivalent.images);
}

/* ---- colours: the leading methods of the main K each have one, the rest are grey ---- */
const colour = { [data.baseline]: "var(--grey)" };
[...new Set([...data.charted, ...data.methods])].filter((name) => name !== data.baseline).forEach((name, index) => { colour[name] = index < 8 ? `var(--c${index})` : "var(--grey)"; });
const chartK = () => (state.k === null ? data.mainK : state.k);
const charted = (line) => state.variants || data.charted.includes(line.method); // variants only where they are asked for
const at = (k) => data.lines.filter((line) => line.k === k);
const cellOf = (line) => line.cells[state.metric];

/* ---- the table ---- */
const columns = [
  { key: "rank", head: "Rank", value: (line) => line.rank },
  { key: "method", head: "Method", value: (line) => line.method.toLowerCase() },
  { key: "k", head: "K", num: true, value: (line) => line.k },
  { key: "mean", num: true, down: true, value: (line) => cellOf(line)?.mean },
  { key: "diff", head: `Minus ${data.baseline}`, down: true, value: (line) => cellOf(line)?.diff },
  { key: "equivalent", head: "\u2248 random images", num: true, down: true, value: (line) => (!line.equivalent ? null : line.equivalent.outside === "above" ? Infinity : line.equivalent.outside === "below" ? -Infinity : line.equivalent.images) },
  { key: "seconds", head: "Scoring, s a query", num: true, value: (line) => line.seconds },
  { key: "tuned", head: "Tuned on", value: (line) => line.tuned.toLowerCase() },
];
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
  const row = el("tr", { role: "row" });
  for (const column of columns) {
    const label = column.key === "mean" ? `${words(metric.name)} ${unitOf(metric)}`.trim() : column.head;
    const active = state.sort === column.key;
    const button = el("button", { type: "button" }, label);
    button.addEventListener("click", () => sortBy(column.key));
    row.append(el("th", { scope: "col", role: "columnheader", "data-key": column.key, class: column.num ? "num" : null, "aria-sort": active ? (state.down ? "descending" : "ascending") : "none" }, button));
  }
  byId("table").tHead.replaceChildren(row);
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
  const show = (value) => scaled(value, metric), signed = (value) => scaled(value, metric, true);
  const tr = el("tr", { role: "row", class: line.method === data.baseline ? "baseline" : null, "data-method": line.method, "data-k": line.k });
  const add = (key, label, classes, ...content) => tr.append(el("td", { role: "cell", "data-key": key, "data-label": label, class: classes }, ...content));
  add("rank", "Rank", "rank-cell", el("span", { class: "rank" }, rankText(line)));
  const settings = Object.entries(line.settings).map(([name, value]) => `${name} = ${value}`).join(", ");
  add("method", "Method", "name-cell", el("span", { class: "name", title: settings || null }, line.method));
  add("k", "K", "num", count(line.k));
  const failed = cell?.failed ? el("span", { class: "sub failed" }, `${cell.failed} failed, left out`) : null;
  const few = cell && cell.queries > 0 && cell.queries < data.minQueries;
  if (!cell) add("mean", words(metric.name), "num", "not measured");
  else if (!cell.queries) add("mean", words(metric.name), "num", el("span", { class: "failed" }, "failed"), failed);
  else add("mean", words(metric.name), "num", show(cell.mean) + (known(cell.se) ? ` \u00b1 ${show(cell.se)}` : ""),
    el("span", { class: "sub" }, few ? "too few queries for an interval" : span(cell.low, cell.high, show)), el("span", { class: "sub" }, `${cell.queries} quer${cell.queries === 1 ? "y" : "ies"}`), failed);
  const baseline = line.method === data.baseline;
  if (baseline) add("diff", `Minus ${data.baseline}`, "wide", el("span", { class: "sub" }, "the baseline"));
  else if (!cell || !known(cell.diff)) add("diff", `Minus ${data.baseline}`, "wide", el("span", { class: "sub" }, cell && cell.queries ? "no baseline" : "\u2013"));
  else add("diff", `Minus ${data.baseline}`, "wide", `${signed(cell.diff)} `, el("span", { class: "sub" }, span(cell.diffLow, cell.diffHigh, signed) ?? "too few queries for an interval",
    cell.compared < cell.queries ? ` \u00b7 ${cell.compared} of ${cell.queries} queries have a baseline` : ""), whisker(cell, scale));
  const equivalent = line.equivalent;
  add("equivalent", "\u2248 random images", "num", equivalentText(equivalent), equivalent && span(equivalent.low, equivalent.high, count) ? el("span", { class: "sub" }, span(equivalent.low, equivalent.high, count)) : null);
  add("seconds", "Scoring, s a query", "num", seconds(line.seconds));
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
  const power = metric.power ? `, shown in units of 10${superscript(metric.power)}` : "";
  byId("about-metric").textContent = `${words(metric.name)}: ${metric.summary || "a metric of its own"}; ${metric.higher ? "higher" : "lower"} is better (${metric.unit}${power}).`;
}

/* ---- charts ---- */
function nice(low, high, wanted = 5) {
  const raw = (high - low || 1) / wanted, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * base).find((one) => one >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Math.abs(tick) < step * 1e-6 ? 0 : tick);
  return ticks;
}
function canvas(id, height, alt) {
  const box = byId(id), width = Math.max(280, box.clientWidth);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.setAttribute("role", "img"); svg.setAttribute("aria-label", alt);
  box.replaceChildren(svg);
  return [svg, width];
}
function apart(labels, gap, low, high) {
  labels.sort((a, b) => a.y - b.y);
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap);
  const over = labels.length ? labels[labels.length - 1].y - high : 0;
  if (over > 0) for (let i = labels.length - 1; i >= 0; i--) { const limit = i === labels.length - 1 ? high : labels[i + 1].y - gap; labels[i].y = Math.max(low, Math.min(labels[i].y, limit)); }
  return labels;
}
const shortened = (name, limit = 26) => (name.length > limit ? name.slice(0, limit - 1) + "\u2026" : name);
const dimmed = (name) => (state.lit.size && !state.lit.has(name) ? "dim" : "");
const spoken = (k, pick, show) => at(k).filter((line) => charted(line) && known(pick(line))).map((line) => `${line.method} ${show(pick(line))}`).join(", ");

function yAxis(svg, y, low, high, left, right, metric) {
  const ticks = nice(low, high).map((tick) => tick / 10 ** metric.power), digits = Math.max(...ticks.map((tick) => String(+tick.toFixed(6)).split(".")[1]?.length ?? 0));
  for (const tick of ticks) {
    const place = y(tick * 10 ** metric.power);
    draw(svg, "line", { x1: left, x2: right, y1: place, y2: place, class: tick === 0 ? "zero" : "axis" });
    draw(svg, "text", { x: left - 8, y: place + 4, "text-anchor": "end", class: "tick" }, fixed(tick, digits));
  }
}
function curve() {
  const metric = metricOf(state.metric), reference = data.reference[state.metric] ?? [], floor = data.floors[state.metric];
  const lines = data.lines.filter((line) => charted(line) && known(cellOf(line)?.mean));
  const ks = [...new Set([...lines.map((line) => line.k), ...reference.map((point) => point.k)])].sort((a, b) => a - b), largest = ks[ks.length - 1];
  const values = [...(known(floor) ? [floor] : []), ...[...lines.map(cellOf), ...reference].flatMap((one) => [one.mean - (one.se ?? 0), one.mean + (one.se ?? 0)])];
  const [low, high] = range(values);
  const alt = `${words(metric.name)} against K, mean plus or minus one standard error. ${data.ks.map((k) => `At K = ${k}: ${spoken(k, (line) => cellOf(line)?.mean, (value) => scaled(value, metric))}.`).join(" ")}${known(floor) ? ` Noise floor ${scaled(floor, metric)}.` : ""}`;
  const [svg, width] = canvas("curve", width_of("curve") < 560 ? 330 : 420, alt);
  const height = svg.viewBox.baseVal.height, wide = width > 620;
  const atEnd = lines.some((line) => line.k === largest);
  const left = 46, right = width - (wide ? (atEnd ? 190 : 130) : 14), top = 14, bottom = height - 40;
  const logit = (k) => Math.log(k / (data.images - k)); // few removed and few left are both told apart
  const single = ks.length === 1, from = logit(ks[0]), to = logit(largest);
  const x = (k) => (single ? (left + right) / 2 : left + 26 + ((right - left - 52) * (logit(k) - from)) / (to - from));
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  yAxis(svg, y, low, high, left, right, metric);
  let last = -99;
  for (const k of ks) {
    draw(svg, "line", { x1: x(k), x2: x(k), y1: bottom, y2: bottom + 5, class: "zero" });
    if (x(k) - last > 34) { draw(svg, "text", { x: x(k), y: bottom + 19, "text-anchor": "middle", class: "tick" }, count(k)); last = x(k); }
  }
  draw(svg, "text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle", class: "tick" }, `K of ${count(data.images)} images removed${single ? "" : " (logit scale)"}`);
  if (known(floor)) {
    draw(svg, "line", { x1: left, x2: right, y1: y(floor), y2: y(floor), stroke: "var(--grey)", "stroke-dasharray": "1.5 4", "stroke-width": 1.5 });
    draw(svg, "text", { x: (left + right) / 2, y: y(floor) - 5, "text-anchor": "middle", class: "tick halo" }, wide ? "noise floor: nothing removed, another seed" : "noise floor");
  }
  const labels = [];
  if (reference.length) {
    const band = [...reference.map((point) => [point.k, point.mean + (point.se ?? 0)]), ...[...reference].reverse().map((point) => [point.k, point.mean - (point.se ?? 0)])];
    draw(svg, "polygon", { points: band.map(([k, value]) => `${x(k)},${y(value)}`).join(" "), fill: "var(--grey)", opacity: .18 });
    draw(svg, "polyline", { points: reference.map((point) => `${x(point.k)},${y(point.mean)}`).join(" "), fill: "none", stroke: "var(--grey)", "stroke-width": 2.5 });
    const end = reference[reference.length - 1];
    labels.push({ k: end.k, name: null, text: "random reference", ink: "var(--soft)", from: [x(end.k), y(end.mean)], y: y(end.mean) });
  }
  const named = data.methods.filter((name) => lines.some((line) => line.method === name));
  const spread = single ? Math.min(44, (right - left - 60) / named.length) : Math.min(7, 60 / named.length);
  named.forEach((name, index) => {
    const own = lines.filter((line) => line.method === name).sort((a, b) => a.k - b.k);
    const shift = (index - (named.length - 1) / 2) * spread, ink = colour[name];
    const group = draw(svg, "g", { class: dimmed(name) });
    draw(group, "polyline", { points: own.map((line) => `${x(line.k) + shift},${y(cellOf(line).mean)}`).join(" "), fill: "none", stroke: ink, "stroke-width": state.lit.has(name) ? 3 : 1.8, "stroke-dasharray": name === data.baseline ? "5 4" : "none" });
    for (const line of own) {
      const cell = cellOf(line), centre = x(line.k) + shift;
      if (known(cell.se)) draw(group, "line", { x1: centre, x2: centre, y1: y(cell.mean - cell.se), y2: y(cell.mean + cell.se), stroke: ink, "stroke-width": 1.5 });
      const dot = draw(group, "circle", { cx: centre, cy: y(cell.mean), r: 4, fill: ink });
      draw(dot, "title", {}, `${name}, K = ${line.k}: ${scaled(cell.mean, metric)} \u00b1 ${scaled(cell.se, metric)} ${unitOf(metric)}`);
    }
    const end = own[own.length - 1];
    labels.push({ k: end.k, name, text: name, ink, from: [x(end.k) + shift, y(cellOf(end).mean)], y: y(cellOf(end).mean) });
  });
  if (wide) for (const k of ks) { // a column of names beside the points that end at this K
    const column = labels.filter((label) => label.k === k), place = k === largest ? right + 8 : Math.max(...column.map((label) => label.from[0])) + 22;
    for (const label of apart(column, 15, top + 6, bottom)) {
      const group = draw(svg, "g", { class: label.name ? dimmed(label.name) : "" });
      draw(group, "line", { x1: label.from[0] + 7, y1: label.from[1], x2: place, y2: label.y, stroke: label.ink, "stroke-width": .6, opacity: .55 });
      draw(group, "text", { x: place + 4, y: label.y + 4, fill: label.ink, class: "halo" }, shortened(label.text)).append(document.createElementNS(SVG, "title"));
      group.lastChild.lastChild.textContent = label.text;
    }
  }
  const random = reference.length ? " The grey band is the random reference: random images removed, shared by all methods." : " These rows hold no random reference yet.";
  byId("curve-caption").textContent = `${words(metric.name)} ${unitOf(metric)} against the number of images removed: mean over queries \u00b1 1 standard error, paired retraining.${random} Points at one K stand a little apart so that they can be seen.`;
  legend(named);
}
function range(values) { const low = Math.min(0, ...values), high = Math.max(0, ...values), air = 0.04 * (high - low || 1); return [low < 0 ? low - air : 0, high > 0 ? high + air : 0]; }
const width_of = (id) => byId(id).clientWidth;
function legend(named) {
  const press = (text, pressed, key, act, ...before) => {
    const button = el("button", { type: "button", "aria-pressed": String(pressed), "data-key": key }, ...before, text);
    button.addEventListener("click", () => {
      act();
      charts();
      [...byId("curve-legend").children].find((one) => one.dataset.key === key)?.focus({ preventScroll: true });
    });
    return button;
  };
  const variants = data.methods.length - data.charted.length;
  fill(byId("curve-legend"), ...named.map((name) => {
    const mark = el("i"); mark.style.background = colour[name];
    return press(name, state.lit.has(name), `method ${name}`, () => { if (!state.lit.delete(name)) state.lit.add(name); }, mark);
  }), variants ? press(`show ${variants} variant${variants === 1 ? "" : "s"}`, state.variants, "variants", () => { state.variants = !state.variants; }) : null);
}
function equivalent() {
  const k = chartK(), lines = at(k).filter((line) => line.equivalent), caption = byId("equivalent-caption"), curveOf = data.reference[data.rankedBy] ?? [];
  if (!lines.length) {
    byId("equivalent").replaceChildren();
    caption.textContent = "How many random images must go for the same loss change? These rows hold no random reference at all, or none for these queries, so the question cannot be answered yet.";
    return;
  }
  const least = curveOf[0].k, most = curveOf[curveOf.length - 1].k;
  const length = (line) => (line.equivalent.outside === "above" ? most : line.equivalent.outside === "below" ? least : line.equivalent.images);
  lines.sort((a, b) => length(b) - length(a));
  const alt = `Equivalent number of random images at K = ${k}: ${lines.map((line) => `${line.method} ${equivalentText(line.equivalent)}`).join(", ")}.`;
  const [svg, width] = canvas("equivalent", 30 * lines.length + 34, alt);
  const left = Math.min(150, width * .36), right = width - 96, height = 30 * lines.length;
  const x = (value) => left + ((right - left) * value) / most;
  for (const tick of nice(0, most, width < 420 ? 2 : 4)) {
    draw(svg, "line", { x1: x(tick), x2: x(tick), y1: 0, y2: height, class: "axis" });
    draw(svg, "text", { x: x(tick), y: height + 16, "text-anchor": "middle", class: "tick" }, count(tick));
  }
  lines.forEach((line, index) => {
    const middle = 30 * index + 15, found = line.equivalent, ink = colour[line.method];
    draw(svg, "text", { x: left - 8, y: middle + 4, "text-anchor": "end" }, shortened(line.method, Math.floor(left / 7)));
    draw(svg, "rect", { x: left, y: middle - 8, width: Math.max(1, x(length(line)) - left), height: 16, fill: ink, opacity: found.outside ? .3 : .75 });
    if (known(found.low)) draw(svg, "line", { x1: x(found.low), x2: x(found.high), y1: middle, y2: middle, stroke: "var(--ink)", "stroke-width": 1.5 });
    const after = Math.max(x(length(line)), known(found.high) ? x(found.high) : 0) + 6;
    draw(svg, "text", { x: after, y: middle + 4, class: "halo" }, found.outside === "above" ? `> ${count(most)}` : found.outside === "below" ? `< ${count(least)}` : count(found.images));
  });
  caption.textContent = `How many random images must be removed for the same mean loss change as the top ${count(k)} of each method. Lines are bootstrap intervals over queries; a pale bar lies outside the measured curve (${count(least)} to ${count(most)} images), which is never extrapolated.`;
}
function cost() {
  const metric = metricOf(state.metric), k = chartK();
  const lines = at(k).filter((line) => charted(line) && known(cellOf(line)?.mean) && known(line.seconds));
  const alt = `${words(metric.name)} at K = ${k} against scoring seconds a query: ${lines.map((line) => `${line.method} ${scaled(cellOf(line).mean, metric)} at ${seconds(line.seconds)} s`).join(", ")}.`;
  const [svg, width] = canvas("cost", 340, alt);
  const left = 46, right = width - 18, top = 12, bottom = 296, least = .01;
  const values = lines.flatMap((line) => [cellOf(line).mean - (cellOf(line).se ?? 0), cellOf(line).mean + (cellOf(line).se ?? 0)]);
  const [low, high] = range(values);
  const most = Math.max(1, ...lines.map((line) => line.seconds)) * 1.6, from = Math.log10(least) - .15, to = Math.log10(most);
  const x = (value) => left + ((right - left) * (Math.log10(Math.max(value, least)) - from)) / (to - from);
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  yAxis(svg, y, low, high, left, right, metric);
  for (let power = -2; power <= to; power++) {
    draw(svg, "line", { x1: x(10 ** power), x2: x(10 ** power), y1: bottom, y2: bottom + 5, class: "zero" });
    draw(svg, "text", { x: x(10 ** power), y: bottom + 18, "text-anchor": "middle", class: "tick" }, power === -2 ? "\u2264 0.01" : String(10 ** power));
  }
  draw(svg, "text", { x: (left + right) / 2, y: 334, "text-anchor": "middle", class: "tick" }, "seconds to score one query (log scale)");
  const labels = lines.map((line) => ({ line, y: y(cellOf(line).mean), x: x(line.seconds) }));
  for (const { line, x: centre } of labels) {
    const cell = cellOf(line), ink = colour[line.method], group = draw(svg, "g", { class: dimmed(line.method) });
    if (known(cell.se)) draw(group, "line", { x1: centre, x2: centre, y1: y(cell.mean - cell.se), y2: y(cell.mean + cell.se), stroke: ink, "stroke-width": 1.5 });
    draw(draw(group, "circle", { cx: centre, cy: y(cell.mean), r: 4.5, fill: ink }), "title", {}, `${line.method}: ${scaled(cell.mean, metric)} ${unitOf(metric)}, ${seconds(line.seconds)} s`);
  }
  for (const label of apart(labels, 13, top, bottom)) {
    const before = label.x > (left + right) / 2;
    draw(svg, "text", { x: label.x + (before ? -9 : 9), y: label.y + 4, "text-anchor": before ? "end" : "start", fill: colour[label.line.method], class: `halo ${dimmed(label.line.method)}` }, shortened(label.line.method, 22));
  }
  byId("cost-caption").textContent = `${words(metric.name)} ${unitOf(metric)} at K = ${count(k)}, mean \u00b1 1 standard error, against what scoring a query costs on the machine of the run.`;
}

/* ---- verdicts ---- */
const MARK = { better: "\u25b2", worse: "\u25bc", indistinguishable: "=", "too few queries": "?" };
const OPPOSITE = { better: "worse", worse: "better" };
function verdict(pair, metric) {
  const word = pair.verdict === "better" || pair.verdict === "worse" ? `${pair.a} is ${pair.verdict} than ${pair.b}` : pair.verdict === "indistinguishable" ? `${pair.a} and ${pair.b} are indistinguishable` : `${pair.a} and ${pair.b}: too few queries for a verdict`;
  const numbers = known(pair.diff) ? `: by ${scaled(pair.diff, metric, true)} ${unitOf(metric)} over ${pair.queries} queries${known(pair.p) ? `, corrected p = ${pair.p < 0.001 ? "< 0.001" : fixed(pair.p, 3)}` : ""}` : "";
  const more = pair.verdict === "indistinguishable" ? (known(pair.needed) ? `. A difference of this size would take about ${count(pair.needed)} queries to see.` : ". No number of queries worth running would settle it.") : ".";
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
    const kind = pair.verdict === "too few queries" ? "few" : pair.verdict;
    const button = el("button", { type: "button", class: kind, title: verdict(pair, metric), "aria-label": verdict(pair, metric) }, MARK[pair.verdict]);
    button.addEventListener("click", () => { byId("pair").textContent = verdict(pair, metric); });
    return el("td", {}, button);
  })));
  fill(byId("pairs"), el("thead", {}, head), el("tbody", {}, ...body));
  const settled = found.filter((pair) => pair.verdict in OPPOSITE).length;
  byId("pairs-caption").textContent = `${words(metric.name)} at K = ${count(k)}: \u25b2 the row's method is better than the column's, \u25bc worse, = indistinguishable, ? too few queries. Student's paired test over queries at 5 %, corrected by Holm for all pairs of methods, and apart for all pairs with a variant: ${settled} of ${found.length} settled. Choose a cell for its numbers.`;
  const open = found.filter((pair) => pair.verdict === "indistinguishable").sort((a, b) => (a.needed ?? Infinity) - (b.needed ?? Infinity) || 0);
  fill(byId("unsettled"), ...(open.length ? [
    el("summary", {}, `How many queries would it take? ${open.length} unsettled pair${open.length === 1 ? "" : "s"}`),
    el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["pair", "difference " + unitOf(metric), "queries", "would take"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...open.map((pair) => el("tr", {}, el("td", {}, `${pair.a} \u2212 ${pair.b}`), el("td", { class: "num" }, scaled(pair.diff, metric, true)), el("td", { class: "num" }, String(pair.queries)), el("td", { class: "num" }, known(pair.needed) ? `about ${count(pair.needed)}` : "more than 100,000"))))),
    el("p", { class: "note" }, "For a true difference as large as the one seen, found with probability 0.8 at this pair's share of the 5 %. The seen difference is itself uncertain: read it as an order of magnitude."),
  ] : []));
  byId("unsettled").hidden = !open.length;
}

/* ---- gallery ---- */
function picture(key, alt) { const source = data.gallery.images[key]; return source ? el("img", { src: source, alt, title: alt, width: 46, height: 46, loading: "lazy" }) : null; }
function gallery() {
  const { queries, captions, all } = data.gallery;
  if (!queries.length) { byId("gallery-caption").textContent = "These records hold no pictures."; return; }
  const chosen = queries[state.query];
  byId("gallery-caption").textContent = `Each method's most influential training images for a query, and what the model makes of the same prompt and noise after retraining without its top K.${queries.length < all ? ` ${queries.length} of ${all} queries are shown, to keep the page small.` : ""}`;
  fill(byId("queries"), ...queries.map((query, index) => {
    const button = el("button", { type: "button", "aria-pressed": String(index === state.query), title: query.prompt, "aria-label": `${query.id}: ${query.prompt}` }, query.image ? picture(query.image, "") : query.id);
    button.addEventListener("click", () => { state.query = index; gallery(); byId("queries").children[index].focus({ preventScroll: true }); });
    return button;
  }));
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

/* ---- words ---- */
function intro() {
  const { facts } = data, k = data.mainK, lines = at(k), first = lines.filter((line) => line.rank === 1);
  byId("title").textContent = `Who made this image possible? ${facts.study}`;
  const queries = Math.max(0, ...data.lines.map((line) => line.cells[data.rankedBy]?.queries ?? 0));
  const leaders = first.map((line) => line.method);
  const story = !leaders.length ? "There are too few queries for a verdict." : leaders.length === lines.length && lines.length > 1 ? `At K = ${count(k)} no method can be told from the others yet.` : `At K = ${count(k)}, ${leaders.length === 1 ? `${leaders[0]} leads` : leaders.length <= 3 ? `nothing beats ${leaders.slice(0, -1).join(", ")} and ${leaders.at(-1)}` : `${leaders.length} methods share the first rank; ${leaders[0]} has the highest figure`}.`;
  byId("lede").textContent = `Each method names the K training images that mattered most for a generated image; the model is retrained without them, and what it lost tells who was right. ${facts.description ? facts.description + ". " : ""}${queries} queries, ${data.methods.length} methods, K = ${data.ks.map(count).join(", ")}. ${story}`;
  document.title = `${facts.study} \u00b7 attribution leaderboard`;
  byId("table-note").textContent = "Mean over queries \u00b1 1 standard error; in brackets Student\u2019s 95 % intervals over queries. Rank: 1 + the number of methods that are significantly better on the loss change at that K, so \u201c=\u201d marks methods that share a rank because the data cannot tell them apart.";
  const failures = data.failures.map((one) => el("tr", {}, el("td", {}, one.method), el("td", { class: "num" }, one.k ? count(one.k) : "\u2013"), el("td", {}, words(one.metric)), el("td", {}, one.queries.join(", ")), el("td", { class: "failed" }, one.reason)));
  const notes = data.notes.length ? el("details", {}, el("summary", {}, `${data.notes.length} remark${data.notes.length === 1 ? "" : "s"} on these rows`), el("ul", { class: "note" }, ...data.notes.map((note) => el("li", {}, note)))) : null;
  fill(byId("failures"), failures.length ? el("details", { open: "" }, el("summary", {}, `Failed figures, left out of every mean (${data.failures.reduce((sum, one) => sum + one.queries.length, 0)})`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Failed figures" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["method", "K", "metric", "queries", "reason"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...failures)))) : null, notes);
}
function provenance() {
  const { facts } = data, { manifest, record } = facts, runs = manifest.runs ?? [];
  const list = el("dl", {});
  const add = (name, ...value) => list.append(el("dt", {}, name), el("dd", {}, ...value));
  add("study", `${facts.study}, version ${record.digest}`);
  add("bench", manifest.version ?? "not recorded");
  add("metrics", data.metrics.map((metric) => `${metric.name} (${metric.unit})`).join("; "));
  for (const [name, version] of Object.entries(record.parts ?? {})) if (typeof version !== "object") add(words(name), String(version));
  const hours = runs.reduce((sum, run) => sum + (run.wall_seconds ?? 0), 0) / 3600;
  add("wall time", `${hours < 0.1 ? "under 0.1" : fixed(hours, 1)} hours in ${runs.length} run${runs.length === 1 ? "" : "s"} as recorded (a run that was resumed counts its last part)`);
  add("training", `${count(facts.models)} models retrained, ${fixed(facts.trainSeconds / 3600, 1)} machine hours`);
  add("machines", facts.machines.join("; ") || "not recorded");
  const commands = [...new Set(runs.map((run) => run.command).filter(Boolean))];
  const settings = Object.entries(manifest.methods ?? {}).map(([name, fact]) => el("tr", {}, el("td", {}, name), el("td", {}, el("code", {}, fact.digest ?? "")), el("td", {}, Object.entries(fact.settings ?? {}).map(([key, value]) => `${key} = ${value}`).join(", ")), el("td", {}, fact.tuned_on ?? "")));
  fill(byId("provenance"), list, el("h3", {}, "Make it again"), el("pre", {}, [...commands, facts.command].join("\n")),
    el("details", {}, el("summary", {}, "Runs"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["date", "K", "queries", "seconds", "processor", "torch"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...runs.map((run) => el("tr", {}, ...[run.date, (run.budgets ?? []).join(", "), run.queries, run.wall_seconds, run.machine?.processor, run.machine?.torch].map((value) => el("td", {}, String(value ?? ""))))))))),
    el("details", {}, el("summary", {}, "Settings of the methods"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["method", "digest", "settings", "tuned on"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...settings)))),
    el("details", {}, el("summary", {}, "Manifest"), el("pre", {}, JSON.stringify(manifest, null, 1))));
}

/* ---- controls ---- */
function charts() { curve(); equivalent(); cost(); }
function show() { table(); charts(); pairs(); }
function controls() {
  for (const k of [...data.ks, ...(data.ks.length > 1 ? [null] : [])]) {
    const input = el("input", { type: "radio", name: "k", value: k ?? "all" });
    input.checked = k === state.k;
    input.addEventListener("change", () => { state.k = k; show(); });
    byId("ks").append(el("label", {}, input, el("span", {}, k === null ? "all" : count(k))));
  }
  byId("metric").append(...data.metrics.map((metric) => el("option", { value: metric.name }, words(metric.name))));
  byId("metric").addEventListener("change", (event) => { state.metric = event.target.value; show(); });
  byId("text").addEventListener("input", (event) => { state.text = event.target.value; table(); });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(charts, 120); });
}
controls(); intro(); show(); gallery(); provenance();
})();
