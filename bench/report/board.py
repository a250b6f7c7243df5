"""Stage 8, the leaderboard's numbers: rows in, lines with ranks, intervals, verdicts and equivalents out.

A line is one method, floor or ceiling at one K in the paired design. A method has no rank but a set of ranks, which
the settled pairs of methods at that K leave open (``bench.report.verdicts``), and a verdict against each floor. The
methods fall into groups by the loss change: those that nobody beats, then those that nobody of the rest beats, and so
on. Floors and ceilings have neither rank nor group.

A value that failed is left out of every mean, counted, and listed with its reason; it is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts import CEILING, METHOD, Method
from bench.errors import BenchError, ResultsFolderError
from bench.records.names import MethodName
from bench.records.rows import BASELINE, NOT_RANKED, NOTHING_REMOVED, labels
from bench.registry import methods as method_registry
from bench.registry import metrics as metric_registry
from bench.registry import role_of, tuned_on
from bench.report.ceilings import BEST, best_sets
from bench.report.floors import Parts, against, judged, names_of, not_beaten, over_prompts, parts_of, prompts_of
from bench.report.projections import beside
from bench.report.statistics import (
    MIN_QUERIES,
    Equivalent,
    Interval,
    Won,
    interval,
    mean_and_error,
    queries_won,
)
from bench.report.summary import equivalent, reference_curve
from bench.report.verdicts import OPPOSITE, Verdict, Verdicts, groups, rank_sets

RANKED_BY = "loss_change"
SHOWN_PAIRS = 4


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """What a metric is.

    Attributes:
        name, unit, summary: as the metric says.
        higher_is_better: whether a higher value means that the removed images mattered more.
    """

    name: str
    unit: str
    summary: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one line.

    Attributes:
        mean, standard_error: over queries, as the paper reports them.
        low, high: interval of the mean; NaN where there are too few queries.
        difference, difference_low, difference_high: to the baseline, paired by query, with its interval.
        won: by floor, on how many of the queries that both have the method is ahead of it.
        against: by floor, the verdict.
        ranks: the first and the last that it may have among the methods by the settled pairs; None for a floor or a
            ceiling and where there are too few queries to say. A variant has those that it would have beside them.
        queries: over how many.
        compared: how many of these have a baseline.
        failed: values that were left out.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    won: Mapping[str, Won]
    against: Mapping[str, str]
    ranks: tuple[int, int] | None
    queries: int
    compared: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method at one K.

    Attributes:
        method: its label, name: the columns behind it.
        role: of the method.
        ranks: of the ranking metric's cell.
        group: from 1, of those whom nobody of the rest beats; None for a variant too.
        cells: by metric.
        equivalent: number of random images whose removal does as much; None without a random reference.
        score_seconds: wall time of scoring one query, a mean.
        shared: of its top K, what a second scoring with other draws names too, a mean; None where nobody measured it.
        overlap: of its top K, what two queries with different prompts have in common, a mean; None where selections
            were not kept.
        settings, digest, tuned_on: of the method.
    """

    method: str
    name: MethodName
    k: int
    role: str
    group: int | None
    cells: Mapping[str, Cell]
    equivalent: Equivalent | None
    score_seconds: float
    shared: float | None
    overlap: float | None
    settings: Mapping[str, Any]
    digest: str
    tuned_on: str

    @property
    def ranks(self) -> tuple[int, int] | None:
        """By the ranking metric."""
        cell = self.cells.get(RANKED_BY)
        return None if cell is None else cell.ranks


def charted(lines: Iterable[Line]) -> list[str]:
    """The labels of ``lines``, each once, without variants of a method that is among them: these would crowd charts."""
    names = {line.method: line.name for line in lines}
    plain = {name.method for name in names.values() if name.plain}
    return [label for label, name in names.items() if name.plain or name.method not in plain]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A value, or several alike, that could not be had."""

    method: str
    k: int
    metric: str
    queries: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything that the leaderboard's files show.

    Attributes:
        metrics: in the order of their columns, the one that ranks first.
        lines: by K, first rank and mean.
        pairs: the verdict on each pair of methods by K.
        groups: of methods by K, the first beaten by nobody, each in the order of the means.
        floors_named: the labels of the floors among the lines.
        not_beaten: which methods do not beat each floor, in words, by (metric, K).
        margin: a difference of the ranking metric that does not matter; None where the study fixes none.
        tables: queries × methods by (metric, K), the values behind the lines.
        reference: K × queries of the random reference by metric.
        floors: mean size of a metric with nothing removed but another seed (unpaired), by metric.
        failures, notes: what was left out and why.
        num_images: N, the size of the training set.
    """

    metrics: tuple[MetricFacts, ...]
    lines: tuple[Line, ...]
    pairs: Mapping[int, Mapping[tuple[str, str], Verdict]]
    groups: Mapping[int, Sequence[Sequence[str]]]
    floors_named: tuple[str, ...]
    not_beaten: Mapping[tuple[str, int], str]
    margin: float | None
    tables: Mapping[tuple[str, int], pd.DataFrame]
    reference: Mapping[str, pd.DataFrame]
    floors: Mapping[str, float]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    num_images: int

    @property
    def ks(self) -> tuple[int, ...]:
        """The budgets, ascending."""
        return tuple(sorted({line.k for line in self.lines}))

    @property
    def shared_known(self) -> bool:
        """Whether any method was scored twice."""
        return any(line.shared is not None for line in self.lines)

    @property
    def overlap_known(self) -> bool:
        """Whether the overlap of any method's top images is known."""
        return any(line.overlap is not None for line in self.lines)

    @property
    def main_k(self) -> int:
        """The budget with most methods, the middle one of several."""
        counts = {k: sum(line.k == k for line in self.lines) for k in self.ks}
        fullest = [k for k in self.ks if counts[k] == max(counts.values())]
        return fullest[len(fullest) // 2]

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method once, in the order of the main K, those that it lacks at the end."""
        return tuple(dict.fromkeys(line.method for line in self.ordered))

    @property
    def ordered(self) -> list[Line]:
        """The lines, those of the main K first."""
        main_k = self.main_k
        return sorted(self.lines, key=lambda line: line.k != main_k)


def leaderboard(
    frame: pd.DataFrame,
    manifest: Mapping[str, Any],
    study: str,
    num_images: int,
    margin: float | None = None,
    shared: Mapping[tuple[str, int], float] = MappingProxyType({}),
    overlap: Mapping[tuple[str, int], float] = MappingProxyType({}),
    projected: Mapping[str, str] = MappingProxyType({}),
) -> Board:
    """The numbers of the leaderboard.

    Args:
        frame: rows with the columns of ``bench.records.rows.COLUMNS``, of one study version.
        manifest: with the definitions of metrics and the settings of methods.
        study: its name, to look up what untold settings were tuned on.
        num_images: N, the size of the training set.
        margin: of the ranking metric, within which two methods are equivalent.
        shared: by digest of a method and K, what two scorings have in common (``bench.report.reliability``).
        overlap: by digest of a method and K, what two queries have in common (``bench.report.query_overlap``).
        projected: by digest of a method, what is known of its projection, in words (``bench.report.projections``).
    """
    rows = frame.assign(label=labels(frame), done=(frame["status"] == "done") & np.isfinite(frame["value"]))
    ranked = ranked_rows(rows)
    if ranked.empty:
        raise ResultsFolderError(
            "There are no rows of the paired design, which the leaderboard compares: run `bench run` with "
            "--design paired (the default) or both."
        )
    facts = _metric_facts(rows, manifest)
    tables = _tables(ranked)
    reference = _reference(rows)
    labelled = names_of(ranked)
    parts = parts_of(labelled)
    ks = sorted({int(k) for k in ranked["k"]})
    found = {
        (metric, k): judged(
            tables.get((metric, k)),
            parts,
            higher_is_better=facts[metric].higher_is_better,
            margin=margin if metric == RANKED_BY else None,
        )
        for metric in facts
        for k in ks
    }
    competing = {(metric, k): _competing(tables.get((metric, k)), facts[metric], parts) for metric, k in found}
    pairs = {k: found.get((RANKED_BY, k), {}) for k in ks}
    grouped = {k: groups(pairs[k], competing.get((RANKED_BY, k), [])) for k in ks}
    notes: list[str] = []
    lines: list[Line] = []
    for k, at_k in ranked.groupby("k"):
        group = {name: place for place, part in enumerate(grouped[int(k)], 1) for name in part}
        for label, own in at_k.groupby("label"):
            cells = {}
            for metric, values in own.groupby("metric"):
                key = (str(metric), int(k))
                failed, higher = int((~values["done"]).sum()), facts[str(metric)].higher_is_better
                table, role = tables.get(key), role_of(labelled[str(label)].method)
                cells[key[0]] = _cell(str(label), role, table, found[key], competing[key], parts, failed, higher)
            lines.append(_line(str(label), int(k), own, cells, tables, reference, manifest, study, notes))
            line = lines[-1]
            place, of_projection = (line.digest, int(k)), projected.get(line.digest)
            lines[-1] = replace(
                line, group=group.get(str(label)), shared=shared.get(place), overlap=overlap.get(place),
                tuned_on=beside(line.tuned_on, of_projection),
            )  # fmt: skip
    best, said = _best_lines(ranked, facts, tables, reference)
    lines, notes = [*lines, *best], [*notes, *said]
    prompts = prompts_of(rows)
    for k in ks:
        if (table := tables.get((RANKED_BY, k))) is not None:
            higher = facts[RANKED_BY].higher_is_better
            text = over_prompts(table, prompts, pairs[k], parts, higher_is_better=higher)
            notes += [f"K = {k}, {RANKED_BY}: {text}."] if text else []
    notes += _over_k(pairs, {k: competing.get((RANKED_BY, k), []) for k in ks}, tables)
    return Board(
        metrics=tuple(facts.values()),
        lines=tuple(sorted(lines, key=_order)),
        pairs=pairs,
        groups=grouped,
        floors_named=parts.floors,
        not_beaten={
            (metric, k): not_beaten({label: against(own, label, parts) for label in parts.methods}, parts)
            for (metric, k), own in found.items()
            if own
        },
        margin=margin,
        tables=tables,
        reference=reference,
        floors=_floors(rows),
        failures=_failures(rows),
        notes=tuple(notes),
        num_images=num_images,
    )


def ranked_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that the board compares: of the paired design, of removals that a method, floor or ceiling named."""
    return rows[(rows["design"] == "paired") & (rows["k"] > 0) & ~rows["method"].isin(NOT_RANKED)]


def _order(line: Line) -> tuple[float, ...]:
    cell = line.cells.get(RANKED_BY)
    mean = cell.mean if cell is not None and math.isfinite(cell.mean) else -math.inf
    first = math.inf if line.ranks is None else float(line.ranks[0])
    return (float(line.k), float(line.role != METHOD), first, -mean)


def _metric_facts(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, MetricFacts]:
    """The metrics of ``rows``, the ranking one first; facts from the manifest, else from the plugins here."""
    names = sorted(set(rows["metric"]), key=lambda name: (name != RANKED_BY, name))
    plugins = {metric.name: metric for metric in metric_registry}
    facts = {}
    for name in names:
        said, plugin = manifest.get("metrics", {}).get(name, {}), plugins.get(name)
        facts[name] = MetricFacts(
            name=name,
            unit=str(said.get("unit", getattr(plugin, "unit", ""))),
            summary=str(said.get("summary", getattr(plugin, "summary", ""))),
            higher_is_better=bool(said.get("higher_is_better", getattr(plugin, "higher_is_better", True))),
        )
    return facts


def _tables(rows: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """Queries × methods by (metric, K), a mean over seeds, NaN where a value failed or is missing."""
    done = rows[rows["done"]]
    return {
        (str(metric), int(k)): own.pivot_table(index="query", columns="label", values="value", aggfunc="mean")
        for (metric, k), own in done.groupby(["metric", "k"])
    }


def _reference(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """K × queries of the random reference by metric, a mean over its models; queries without every K are left out."""
    done = rows[rows["done"]]
    curves = {str(metric): reference_curve(done, str(metric)).dropna(axis=1) for metric in done["metric"].unique()}
    return {metric: curve for metric, curve in curves.items() if len(curve) and len(curve.columns)}


def _floors(rows: pd.DataFrame) -> dict[str, float]:
    own = rows[(rows["method"] == NOTHING_REMOVED) & rows["done"]]
    per_query = own.groupby(["metric", "query"])["value"].mean().abs()
    return {str(metric): float(size) for metric, size in per_query.groupby(level="metric").mean().items()}


def _competing(table: pd.DataFrame | None, facts: MetricFacts, parts: Parts) -> list[str]:
    """Methods with enough queries, the best mean first."""
    if table is None:
        return []
    means = table.mean().sort_values(ascending=not facts.higher_is_better, kind="stable")
    return [str(name) for name in means.index if name in parts.methods and table[name].count() >= MIN_QUERIES]


def _over_k(
    pairs: Mapping[int, Verdicts],
    competing: Mapping[int, Sequence[str]],
    tables: Mapping[tuple[str, int], pd.DataFrame],
) -> list[str]:
    """Whether two methods stand in the same order at every K that both have, on the queries that all of them have."""
    seen: dict[tuple[str, str], dict[int, Verdict]] = {}
    for k, names in competing.items():
        for (one, other), found in pairs[k].items():
            if {one, other} <= set(names) and found.queries >= MIN_QUERIES:
                seen.setdefault((one, other), {})[k] = found
    ahead = {pair: _ahead(pair, found, tables) for pair, found in seen.items() if len(found) > 1}
    several = {pair: seen[pair] for pair, found in ahead.items() if found}
    if not several:
        return []
    turning = [pair for pair in several if len({one > 0 for one in ahead[pair]}) > 1]
    ks = sorted({k for found in several.values() for k in found})
    held = len(several) - len(turning)
    texts = [f"Over K ({', '.join(map(str, ks))}): {held} of {len(several)} pairs of methods have the same "
             "order of means at every K that both have, over the queries of all these K"]  # fmt: skip
    if turning:
        listed = ", ".join(" and ".join(pair) for pair in turning[:SHOWN_PAIRS])
        more = f" and {len(turning) - SHOWN_PAIRS} more" if len(turning) > SHOWN_PAIRS else ""
        both = sum({one.verdict for one in several[pair].values()} >= set(OPPOSITE) for pair in turning)
        against = f"{both} of them settled in both directions" if both else "none of them settled in both directions"
        texts.append(f"it turns for {listed}{more}, {against}")
    always = [pair for pair, found in several.items() if all(one.settled for one in found.values())
              and pair not in turning]  # fmt: skip
    settled = {0: "no pair is", 1: "one is"}.get(len(always), f"{len(always)} are")
    texts.append(f"{settled} settled at every K")
    return ["; ".join(texts) + "."]


def _ahead(pair: tuple[str, str], ks: Iterable[int], tables: Mapping[tuple[str, int], pd.DataFrame]) -> list[float]:
    """By how much the first of ``pair`` is ahead at each K, over the queries that both have at all of ``ks``.

    Empty where there is no such query.
    """
    one, other = pair
    apart = pd.DataFrame({k: tables[RANKED_BY, k][one] - tables[RANKED_BY, k][other] for k in ks}).dropna()
    return [float(mean) for mean in apart.mean()] if len(apart) else []


def _line(
    label: str,
    k: int,
    rows: pd.DataFrame,
    cells: Mapping[str, Cell],
    tables: Mapping[tuple[str, int], pd.DataFrame],
    reference: Mapping[str, pd.DataFrame],
    manifest: Mapping[str, Any],
    study: str,
    notes: list[str],
) -> Line:
    if RANKED_BY in cells:
        notes += _remarks(label, k, tables.get((RANKED_BY, k)))
    table = tables.get((RANKED_BY, k))
    curve = reference.get(RANKED_BY)
    amount: Equivalent | None = None
    if table is not None and curve is not None and label in table:
        amount = equivalent(table[label].dropna(), curve)
    [name] = names_of(rows).values()
    settings, tuned_on = _settings(name, str(rows["method_digest"].iloc[0]), manifest, study)
    return Line(
        method=label,
        name=name,
        k=k,
        role=role_of(name.method),
        group=None,
        cells=cells,
        equivalent=amount,
        score_seconds=float(rows.drop_duplicates("query")["score_seconds"].mean()),
        shared=None,
        overlap=None,
        settings=settings,
        digest=str(rows["method_digest"].iloc[0]),
        tuned_on=tuned_on,
    )


def _best_lines(
    ranked: pd.DataFrame,
    facts: Mapping[str, MetricFacts],
    tables: Mapping[tuple[str, int], pd.DataFrame],
    reference: Mapping[str, pd.DataFrame],
) -> tuple[list[Line], list[str]]:
    """The ceiling of the best measured set at each K, and what a reader must know of it."""
    lines, notes = [], []
    done = ranked[ranked["done"]]
    among = [label for label, name in names_of(ranked).items() if role_of(name.method) == METHOD]
    for k, at_k in done.groupby("k"):
        cells, amount, tuned_on = {}, None, ""
        for metric, own in at_k.groupby("metric"):
            found = best_sets(own, among, higher_is_better=facts[str(metric)].higher_is_better)
            if found is None:
                continue
            cells[str(metric)] = _values_cell(found.by_query, tables[str(metric), int(k)])
            if metric == RANKED_BY:
                how = "under other training seeds than it is valued under" if found.fair else "by its own value"
                tuned_on = f"the truth: of up to {found.most} sets of each query the best {how}"
                if not found.fair:
                    notes.append(_flattery(int(k), found.flattered))
                if (curve := reference.get(RANKED_BY)) is not None:
                    amount = equivalent(found.by_query, curve)
        if RANKED_BY in cells:
            lines.append(
                Line(
                    method=BEST, name=MethodName(BEST), k=int(k), role=CEILING, group=None, cells=cells,
                    equivalent=amount, score_seconds=math.nan, shared=None, overlap=None, settings={}, digest="",
                    tuned_on=tuned_on,
                )
            )  # fmt: skip
    return lines, notes


def _flattery(k: int, most: float) -> str:
    """That the best of several measured values is too high, and by how much at most."""
    told = f"K = {k}, {BEST}: chosen by the values that are shown, of one training each, so its mean is too high"
    if math.isnan(most):
        return f"{told}."
    return f"{told}, by at most about {most:.5f} where trainings are as noisy as random's; --seeds 2 would tell."


def _values_cell(values: pd.Series[float], table: pd.DataFrame) -> Cell:
    """A cell without verdicts, of values by query."""
    mean, error = mean_and_error(values.to_numpy())
    bounds = interval(values.to_numpy())
    apart = (values - table[BASELINE]).dropna().to_numpy() if BASELINE in table else np.empty(0)
    difference = interval(apart)
    return Cell(
        mean=mean, standard_error=error, low=bounds.low, high=bounds.high, difference=difference.mean,
        difference_low=difference.low, difference_high=difference.high, won={}, against={}, ranks=None,
        queries=len(values), compared=len(apart), failed=0,
    )  # fmt: skip


def _cell(
    label: str,
    role: str,
    table: pd.DataFrame | None,
    found: Verdicts,
    competing: Sequence[str],
    parts: Parts,
    failed: int,
    higher_is_better: bool,
) -> Cell:
    nan = float("nan")
    if table is None or label not in table:
        return Cell(mean=nan, standard_error=nan, low=nan, high=nan, difference=nan, difference_low=nan,
                    difference_high=nan, won={}, against={}, ranks=None, queries=0, compared=0,
                    failed=failed)  # fmt: skip
    own = table[label].dropna()
    mean, error = mean_and_error(own.to_numpy())
    bounds = interval(own.to_numpy())
    difference, compared = Interval(nan, nan, nan), 0
    if label != BASELINE and BASELINE in table:
        apart = (table[label] - table[BASELINE]).dropna().to_numpy()
        compared = len(apart)
        difference = interval(apart)
    sign = 1.0 if higher_is_better else -1.0
    won = {
        floor: queries_won(sign * (table[label] - table[floor]).dropna().to_numpy())
        for floor in parts.floors
        if floor != label and floor in table
    }
    ranked = role == METHOD and len(own) >= MIN_QUERIES
    return Cell(
        mean=mean,
        standard_error=error,
        low=bounds.low,
        high=bounds.high,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        won=won,
        against=against(found, label, parts),
        ranks=rank_sets(found, [label], competing)[label] if ranked else None,
        queries=len(own),
        compared=compared,
        failed=failed,
    )


def _remarks(label: str, k: int, table: pd.DataFrame | None) -> list[str]:
    """What a reader of this line must know: queries without a baseline, too few queries."""
    if table is None or label not in table:
        return [f"K = {k}, {label}: every value failed; see the list of failures."]
    own = table[label].dropna()
    found = []
    if len(own) < MIN_QUERIES:
        few = f"{len(own)} queries are too few for an interval, a rank or a verdict ({MIN_QUERIES} are needed)"
        found.append(f"K = {k}, {label}: {few}.")
    if label == BASELINE:
        return found
    if BASELINE not in table:
        return [*found, f"K = {k}, {label}: no query has a baseline ({BASELINE} at this K), so no difference is shown."]
    lonely = sorted(set(own.index) - set(table[BASELINE].dropna().index))
    if lonely:
        without = f"{', '.join(lonely)} without a baseline ({BASELINE} at this K)"
        found.append(f"K = {k}, {label}: {without}, left out of the difference.")
    return found


def _failures(rows: pd.DataFrame) -> tuple[Failure, ...]:
    failed = rows[~rows["done"]]
    reasons = [row.reason or f"the value is {row.value}" for row in failed.itertuples()]
    return tuple(
        Failure(method=str(label), k=int(k), metric=str(metric), reason=str(reason), queries=tuple(sorted(own)))
        for (label, k, metric, reason), own in failed.assign(reason=reasons).groupby(
            ["label", "k", "metric", "reason"]
        )["query"]
    )


def _settings(name: MethodName, digest: str, manifest: Mapping[str, Any], study: str) -> tuple[dict[str, Any], str]:
    """A method's settings and what they were tuned on: from the manifest, else from the plugins where they agree."""
    said = manifest.get("methods", {}).get(name.label, {})
    if said.get("digest") == digest:
        return dict(said.get("settings", {})), str(said.get("tuned_on", ""))
    try:
        method: Method = method_registry.create(f"{name.method}:{name.variant}" if name.variant else name.method, study)
    except BenchError:
        return {}, "not recorded"
    if method.digest != digest:
        return {}, "not recorded"
    return method.settings(), tuned_on(type(method), study, name)
