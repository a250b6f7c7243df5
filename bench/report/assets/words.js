/* ---- words ---- */
function intro() {
  const { facts } = data, k = data.mainK, parts = data.groups[String(k)] ?? [];
  byId("title").textContent = `Who made this image possible? ${facts.study}`;
  const queries = Math.max(0, ...data.lines.map((line) => line.cells[data.rankedBy]?.queries ?? 0));
  const leaders = parts[0] ?? [], competing = new Set(data.lines.filter((line) => line.role === "method" && data.charted.includes(line.method)).map((line) => line.method)).size;
  const floors = data.notBeaten.find((one) => one.metric === data.rankedBy && one.k === k)?.text ?? "";
  const story = !leaders.length ? "There are too few queries for a verdict." : parts.length === 1 && leaders.length > 1 ? `At K = ${count(k)} no method can be told from the others yet.` : `At K = ${count(k)}, ${leaders.length === 1 ? `${leaders[0]} leads` : leaders.length <= 3 ? `nothing beats ${leaders.slice(0, -1).join(", ")} and ${leaders.at(-1)}` : `nobody beats any of ${leaders.length} methods, of which ${leaders[0]} has the best mean`}.`;
  byId("lede").textContent = "Each method names the K training images that mattered most for a generated image. The model is retrained without them: what it can no longer make tells who was right.";
  byId("verdict").textContent = `${story}${floors ? ` ${floors[0].toUpperCase()}${floors.slice(1)}.` : ""} (${facts.description ? facts.description + "; " : ""}${queries} queries, ${competing} method${competing === 1 ? "" : "s"}, K = ${data.ks.map(count).join(", ")}.)`;
  document.title = `${facts.study} \u00b7 attribution leaderboard`;
  byId("table-note").textContent = "Mean over queries \u00b1 1 standard error; in brackets Student\u2019s 95 % intervals over queries. Group 1: those that nobody beats on the loss change at that K, then those that nobody of the rest beats. Rank: all places that the settled pairs of methods leave open; floors and ceilings have none. Verdict: against each floor, by the metric that is shown. Random images left: without the method\u2019s K images a model is as bad as one that was trained on so many random images. Ahead of a floor: on how many queries, ties counted half, with the 95 % interval of the share.";
  const failures = data.failures.map((one) => el("tr", {}, el("td", {}, one.method), el("td", { class: "num" }, one.k ? count(one.k) : "\u2013"), el("td", {}, words(one.metric)), el("td", {}, one.queries.join(", ")), el("td", { class: "failed" }, one.reason)));
  const notes = data.notes.length ? el("details", {}, el("summary", {}, `${data.notes.length} remark${data.notes.length === 1 ? "" : "s"} on these rows`), el("ul", { class: "note" }, ...data.notes.map((note) => el("li", {}, note)))) : null;
  fill(byId("failures"), failures.length ? el("details", { open: "" }, el("summary", {}, `Failed values, left out of every mean (${data.failures.reduce((sum, one) => sum + one.queries.length, 0)})`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Failed values" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["method", "K", "metric", "queries", "reason"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...failures)))) : null, notes);
}
function sections() {
  fill(byId("sections"), ...(data.facts.sections ?? []).map(({ key, title, about, parts }) => el("section", { id: key, "aria-labelledby": `${key}-title` },
    el("h2", { id: `${key}-title` }, title), el("p", { class: "note" }, about),
    ...parts.flatMap((part) => [...(part.title ? [el("h3", {}, part.title)] : []), ...plain(part.tables, part.title || title)]))));
}
function plain(tables, label) {
  const numeric = /^[+\-]?\d/;
  const cell = (text) => (numeric.test(text) ? el("td", { class: "num" }, text.replaceAll("-", MINUS)) : el("td", {}, text));
  return tables.map(([head, lines]) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...lines.map((line) => el("tr", {}, ...line.map(cell)))))));
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
  const settings = Object.entries(manifest.methods ?? {}).map(([name, fact]) => el("tr", {}, el("td", {}, name), el("td", {}, el("code", {}, fact.digest ?? "")), el("td", {}, Object.entries(fact.settings ?? {}).map(([key, value]) => `${key} = ${value}`).join(", ")), el("td", {}, data.lines.find((line) => line.method === name)?.tuned ?? fact.tuned_on ?? "")));
  fill(byId("provenance"), list, el("h3", {}, "Make it again"), el("pre", {}, [...commands, facts.command].join("\n")),
    el("details", {}, el("summary", {}, "Runs"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["date", "K", "queries", "seconds", "processor", "torch"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...runs.map((run) => el("tr", {}, ...[run.date, (run.budgets ?? []).join(", "), run.queries, run.wall_seconds, run.machine?.processor, run.machine?.torch].map((value) => el("td", {}, String(value ?? ""))))))))),
    el("details", {}, el("summary", {}, "Settings of the methods"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings" }, el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...["method", "digest", "settings", "tuned on"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...settings)))),
    el("details", {}, el("summary", {}, "Manifest"), el("pre", {}, JSON.stringify(manifest, null, 1))));
}
