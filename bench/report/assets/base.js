const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = { k: data.mainK, metric: data.metrics[0].name, text: "", sort: "rank", down: false, lit: new Set(), variants: false, query: 0, compare: ["", ""] };
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
function span(low, high, text) { return known(low) && known(high) ? `[${text(low)}, ${text(high)}]` : null; }
const placesText = (of) => (of.rank === of.rankLast ? String(of.rank) : `${of.rank}\u2013${of.rankLast}`);
const rankText = (line) => (known(line.rank) ? placesText(line) : line.role === "method" ? "\u2013" : line.role);
function leftText(left) {
  if (!left) return "\u2013";
  return left.outside ? `${left.outside} than ${count(left.end)}` : count(left.images);
}

/* ---- what is chosen ---- */
const chartK = () => (state.k === null ? data.mainK : state.k);
const charted = (line) => state.variants || data.charted.includes(line.method); // variants only where they are asked for
const at = (k) => data.lines.filter((line) => line.k === k);
const cellOf = (line) => line.cells[state.metric];
const shortened = (name, limit = 26) => (name.length > limit ? name.slice(0, limit - 1) + "\u2026" : name);
