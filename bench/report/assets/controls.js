/* ---- controls ---- */
function charts() { order(); curve(); equivalent(); cost(); }
function show() { first(); table(); charts(); pairs(); }
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
}
state.query = widest(); controls(); intro(); show(); gallery(); sections(); provenance();
