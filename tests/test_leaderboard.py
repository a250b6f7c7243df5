"""The leaderboard on records that are made up but complete: numbers, refusals, files, and the page in a browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.colors import to_hex

from bench.diffusion.queries import Query, save_queries
from bench.foundation.digests import digest_of
from bench.records import tables
from bench.records.names import MethodName
from bench.records.rows import NOTHING_REMOVED, REFERENCE, Row, frame_of
from bench.records.store import Store, read_tensors, write_json, write_tensors
from bench.registry import methods
from bench.report.board import charted, leaderboard
from bench.report.board_figures import ablations, cost, curves, families, order, page_charts, verdict_matrix
from bench.report.ceilings import BEST
from bench.report.figures import MARKS, colour_of
from bench.report.floors import Parts, in_words, not_beaten, notes
from bench.report.gallery import Gallery
from bench.report.localized import COLUMNS
from bench.report.merging import merge_folders, open_folder
from bench.report.page import SCRIPTS, escaped, payload, script
from bench.report.publishing import publish
from bench.report.verdicts import BETTER, UNSETTLED
from bench.studies import Study, study
from cli import main

METRICS = {
    "loss_change": {"unit": "mean squared error", "observation": "query_loss@5", "summary": "rise of the loss"},
    "regeneration_mse": {"unit": "squared pixel value", "observation": "regeneration", "summary": "distance"},
}
HOSTILE = "</script><script>alert(1)</script>|<b>"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@cache
def whole_study() -> Study:
    return study("tiny")


@pytest.fixture(scope="module")
def tiny_study():
    return whole_study()


@pytest.fixture(autouse=True)
def few_figures(monkeypatch, request):
    """Figures are drawn once, for ``published``, which is made before this."""
    monkeypatch.setattr("bench.report.publishing.drawn", lambda board, pictures: {})
    if "browser" not in request.keywords:
        monkeypatch.setattr("bench.report.publishing.page_charts", lambda board: {})


def image(*key: object) -> torch.Tensor:
    return (
        torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(int(digest_of(list(map(str, key)), 8), 16))) * 2
        - 1
    )


class Folder:
    """Writes a results folder as runs leave it: ``values`` are figures by (method, K), one for each query."""

    def __init__(self, root: Path, values, *, queries=8, failed=(), metrics=METRICS, reference=None, digests=None):
        self.root, self.study, self.store = root, whole_study(), Store(root)
        self.digests = digests or {}
        self.queries = {
            f"q{i:02d}": Query(f"q{i:02d}", f"a photo of a bag {i}", i, image("noise", i), image(i), self.study.sampler)
            for i in range(queries)
        }
        self.rows = [row for metric in metrics for row in self._rows(metric, values, failed, reference)]
        root.mkdir(parents=True, exist_ok=True)
        save_queries(self.store, self.queries)
        record = {"name": "tiny", "digest": self.study.digest, "parts": self.study.parts}
        write_json(root / "study.json", record)
        self.write_rows(frame_of(self.rows))
        self._write_records()
        names = sorted({row.method for row in self.rows})
        self.manifest = {
            "version": "0.1.0",
            "methods": {
                name: {"settings": {"draw": 0}, "digest": self.digest(name), "tuned_on": f"how {name} was tuned"}
                for name in names
            },
            "metrics": metrics,
            "runs": [{"command": f"bench run --results {root.name}", "date": "2026-11-22", "wall_seconds": 60.0}],
        }
        write_json(root / "manifest.json", self.manifest)

    def digest(self, method: str) -> str:
        return self.digests.get(method, digest_of(method))

    def _rows(self, metric, values, failed, reference):
        plain = {**values, (NOTHING_REMOVED, 0): [0.0005] * len(self.queries)}
        for (method, k), figures in plain.items():
            for query, value in zip(self.queries.values(), figures, strict=False):
                yield self._row(metric, method, k, query, value, (method, k, query.id) in failed)
        for k, height in (reference or {}).items():
            for draw in range(2):
                for query in self.queries.values():
                    yield replace(self._row(metric, REFERENCE, k, query, height, False), seed=draw)

    def _row(self, metric, method, k, query, value, failed):
        lost = failed or not np.isfinite(value)
        floor, name = method == NOTHING_REMOVED, MethodName.of_old_label(method)
        return Row(
            study="tiny", study_digest=self.study.digest,
            method=name.method, variant=name.variant, settings=name.settings,
            method_digest="" if floor else self.digest(method), query=query.id,
            query_digest=query.digest, prompt=query.prompt, k=k, metric=metric,
            design="unpaired" if floor else "paired", seed=1000 if floor else 0,
            value=float("nan") if failed else value,
            status="failed" if failed else "done", reason="The loss became nan at step 3" if failed else "",
            model_key=digest_of([method, k, "" if floor else query.id]) if not lost else "", train_seconds=10.0,
            score_seconds=0.5, machine="a machine", evaluator="one",
        )  # fmt: skip

    def write_rows(self, frame: pd.DataFrame) -> None:
        frame.to_parquet(self.root / "results.parquet", index=False)

    def _write_records(self) -> None:
        kept: dict[str, dict[str, torch.Tensor]] = {}
        original = digest_of([self.study.digest, [], self.study.seed])
        for query in self.queries.values():
            kept.setdefault(original, {})[f"{query.digest}.regeneration"] = image("original", query.id)
        for row in self.rows:
            kept.setdefault(row.model_key, {})[f"{row.query_digest}.regeneration"] = image(row.model_key, row.query)
            if row.method not in (NOTHING_REMOVED, REFERENCE):
                name = row.method.partition("[")[0].partition(":")[0].replace("/", "-")
                file = f"{name}-{row.method_digest}-{row.query_digest}.json"
                write_json(self.root / "selections" / file, {"ids": list(self.study.dataset.ids[row.k : row.k + 10])})
        for key, tensors in kept.items():
            if key:
                write_tensors(self.root / "observations" / f"{key}.safetensors", tensors, seconds="10")


def noisy(mean: float, count: int = 8, seed: int = 0, spread: float = 0.0002) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).normal(size=count)).tolist()


def ordinary(count: int = 8) -> dict:
    return {
        ("ours", 20): noisy(0.009, count, 1),
        ("pixel", 20): noisy(0.005, count, 2, 0.002),
        ("trak", 20): noisy(0.005, count, 3, 0.002),
        ("random", 20): noisy(0.001, count, 4),
        ("ours", 50): noisy(0.012, count, 5),
        ("random", 50): noisy(0.0015, count, 6),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_study):
    root = tmp_path_factory.mktemp("board")
    Folder(root, ordinary(), reference={20: 0.001, 50: 0.0015, 100: 0.006, 180: 0.01})
    return root, publish(tiny_study, [], root)


def board_of(folder: Folder):
    merged = merge_folders([open_folder(folder.root, "tiny")])
    return leaderboard(merged.frame, merged.manifest, "tiny", 200)


def board_rows(folder: Folder) -> pd.DataFrame:
    return merge_folders([open_folder(folder.root, "tiny")]).frame


def line_of(board, method, k=20):
    [line] = [line for line in board.lines if (line.method, line.k) == (method, k)]
    return line


def bench(*arguments: str):
    return CliRunner().invoke(main, ["leaderboard", "--study", "tiny", *arguments], catch_exceptions=False)


def test_every_file_is_written(published):
    root, result = published
    assert {path.name for path in result.files} == {"leaderboard.csv", "leaderboard.md", "leaderboard.html"}
    drawn = {path.stem for path in (root / "figures").glob("*.png")}
    assert drawn == {path.stem for path in (root / "figures").glob("*.pdf")}
    assert drawn == {
        "curves_loss_change", "curves_regeneration_mse", "equivalent_random_20", "equivalent_random_50", "cost_20",
        "cost_50", "order_20", "verdicts_20", "verdicts_50", "top_images", "regenerations",
        "regenerations_50",
    }  # fmt: skip
    frame = pd.read_csv(root / "leaderboard.csv")
    assert list(frame["method"])[:1] == ["ours"]
    assert frame["loss_change_mean"][0] == pytest.approx(np.mean(ordinary()["ours", 20]))


def test_ranks_are_sets_where_methods_cannot_be_told_apart(published):
    board = published[1].board
    places = {line.method: (line.group, line.ranks) for line in board.lines if line.k == 20}
    assert places == {
        "ours": (1, (1, 1)), "pixel": (2, (2, 3)), "trak": (2, (2, 3)), BEST: (None, None), "random": (None, None),
    }  # fmt: skip
    assert [set(part) for part in board.groups[20]] == [{"ours"}, {"pixel", "trak"}]
    assert {line.cells["regeneration_mse"].ranks for line in board.lines if line.group == 1 and line.k == 20} == {
        (1, 1)
    }
    text = (published[0] / "leaderboard.md").read_text()
    assert re.search(r"^\| 2 \| 2–3 \| (pixel|trak) \|", text, re.MULTILINE)
    assert re.search(r"Group 1: ours; Group 2: (pixel, trak|trak, pixel)\.", text)
    assert re.search(r"^\| – \| floor \| random \|", text, re.MULTILINE)


def test_queries_won_against_each_floor_stand_beside_the_mean(tmp_path, tiny_study):
    values = ordinary() | {("same_caption", 20): noisy(0.004, 8, 7)}
    folder = Folder(tmp_path / "run", values)
    board = board_of(folder)
    ahead = line_of(board, "pixel").cells["loss_change"].won
    apart = np.array(values["pixel", 20]) - np.array(values["same_caption", 20])
    assert set(ahead) == {"random", "same_caption"}
    assert (ahead["same_caption"].won, ahead["same_caption"].queries) == ((apart > 0).sum(), 8)
    assert set(line_of(board, "same_caption").cells["loss_change"].won) == {"random"}
    publish(tiny_study, [], folder.root)
    frame = pd.read_csv(folder.root / "leaderboard.csv").set_index(["method", "k"])
    assert frame["loss_change_won_same_caption"]["pixel", 20] == (apart > 0).mean()
    assert (
        "| queries won against random | queries won against same_caption |"
        in (folder.root / "leaderboard.md").read_text()
    )
    [line] = [one for one in page_data((folder.root / "leaderboard.html").read_text())["lines"]
              if (one["method"], one["k"]) == ("pixel", 20)]  # fmt: skip
    assert line["cells"]["loss_change"]["won"]["same_caption"]["of"] == 8


def test_where_no_method_beats_a_floor_one_sentence_says_so():
    verdicts = {name: {"random": BETTER, "same_caption": UNSETTLED} for name in ("ours", "trak")}
    told = not_beaten(verdicts, Parts(("ours", "trak"), ("random", "same_caption"), ()))
    assert told == "every method beats random; none of the 2 methods beats same_caption (a reader of captions)"


def test_the_verdict_against_each_floor_is_told_in_words(tmp_path, tiny_study):
    values = ordinary() | {("same_caption", 20): noisy(0.0051, 8, 7)}
    folder = Folder(tmp_path / "run", values)
    board = board_of(folder)
    words = {line.method: in_words(line.cells["loss_change"].against) for line in board.lines if line.k == 20}
    assert words["ours"] == "beats random and a reader of captions"
    assert words["pixel"] == words["trak"] == "beats random; not settled against a reader of captions"
    assert (words["same_caption"], words["random"]) == ("beats random", "worse than a reader of captions")
    told = board.not_beaten["regeneration_mse", 20]
    head = "every method beats random; 2 of 3 methods do not beat same_caption (a reader of captions): "
    assert told in (f"{head}pixel, trak", f"{head}trak, pixel")
    assert "there are no rows" in board.not_beaten["loss_change", 50]
    published = publish(tiny_study, [], folder.root)
    assert f"regeneration_mse at K = 20: {told}" in published.notes()
    assert told in notes(board_rows(folder), {"loss_change": True, "regeneration_mse": True})[0]
    assert f"regeneration_mse: {told}." in (folder.root / "leaderboard.md").read_text()
    frame = pd.read_csv(folder.root / "leaderboard.csv").set_index(["method", "k"])
    assert frame["loss_change_verdict_same_caption"]["pixel", 20] == "not settled"
    assert (frame["loss_change_rank_first"]["pixel", 20], frame["loss_change_rank_last"]["pixel", 20]) == (2, 3)
    page = page_data((folder.root / "leaderboard.html").read_text())
    assert {"metric": "regeneration_mse", "k": 20, "text": told} in page["notBeaten"]


def test_queries_of_one_prompt_are_no_evidence_for_other_prompts(tmp_path):
    """Four noises a prompt, and an effect that three of eight prompts turn round: settled for these, not for others."""
    effect = [
        (0.01 if prompt < 5 else -0.004) + wiggle for prompt in range(8) for wiggle in (-0.001, 0.0, 0.001, 0.002)
    ]
    values = {("ours", 20): effect, ("random", 20): noisy(0.0, 32, 3, 0.0005)}
    folder = Folder(tmp_path / "run", values, queries=32)
    rows = board_rows(folder)
    assert len(notes(rows, {"loss_change": True})) == 1
    alike = rows.assign(prompt=[f"prompt {int(query[1:]) // 4}" for query in rows["query"]])
    of_floors, of_prompts = notes(alike, {"loss_change": True})
    assert of_floors.startswith("loss_change at K = 20: every method beats random")
    settled = "1 of 1 pairs are settled for these prompts, 0 for prompts like them (a prompt as the unit)"
    said = f"32 queries share 8 prompts; {settled}"
    assert of_prompts == f"loss_change at K = 20: {said}"
    assert f"K = 20, loss_change: {said}." in leaderboard(alike, folder.manifest, "tiny", 200).notes


def test_floors_make_no_verdict_between_methods_harder(tmp_path):
    before = board_of(Folder(tmp_path / "one", ordinary()))
    after = board_of(Folder(tmp_path / "two", ordinary() | {("same_caption", 20): noisy(0.004, 8, 7)}))
    for pair in (("ours", "pixel"), ("ours", "trak"), ("pixel", "trak")):
        assert after.pairs[20][pair] == before.pairs[20][pair]


def test_too_few_queries_and_alike_notes_share_a_line(tmp_path):
    [note] = notes(board_rows(Folder(tmp_path / "run", ordinary(3), queries=3)), {"loss_change": True})
    assert note.startswith("loss_change at K = 20, loss_change at K = 50: too few queries for a verdict against random")
    assert notes(board_rows(Folder(tmp_path / "floor", {("random", 20): noisy(0.1)})), {"loss_change": True}) == []


def test_a_ceiling_takes_no_rank_and_makes_no_verdict_harder(tmp_path):
    values = ordinary()
    before = board_of(Folder(tmp_path / "methods", values))
    after = board_of(Folder(tmp_path / "ceiling", values | {("carriers", 20): noisy(0.05)}))
    assert (line_of(after, "carriers").ranks, line_of(after, "carriers").group) == (None, None)
    assert after.groups[20] == before.groups[20]
    assert {pair: after.pairs[20][pair] for pair in before.pairs[20]} == before.pairs[20]
    assert after.pairs[20]["carriers", "ours"].verdict == "better"


def test_methods_within_the_margin_are_equivalent_and_others_not_settled(tmp_path):
    values = ordinary() | {("nda", 20): [value + 1e-6 * (-1) ** i for i, value in enumerate(noisy(0.005, 8, 3, 0.002))]}
    merged = merge_folders([open_folder(Folder(tmp_path / "run", values).root, "tiny")])
    board = leaderboard(merged.frame, merged.manifest, "tiny", 200, margin=1e-4)
    assert board.pairs[20]["nda", "trak"].verdict == "equivalent"
    assert board.pairs[20]["pixel", "trak"].verdict == "not settled"
    assert board.pairs[20]["ours", "random"].verdict == "better"
    assert verdict_matrix(board, 20).axes[0].texts


def test_bars_join_the_methods_of_which_no_pair_is_settled(published):
    axes, side = order(published[1].board, 20).axes
    heights = {label.get_text(): place for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert list(heights) == [
        "ours",
        *sorted(("pixel", "trak"), key=lambda name: -np.mean(ordinary()[name, 20])),
        BEST,  # below the methods, without a bar
        "random",
    ]
    dots = [set(line.get_ydata()) for line in side.lines if line.get_linestyle() == "None"]
    assert dots == [{heights["ours"]}, {heights["pixel"], heights["trak"]}]


def test_the_order_over_k_is_told_in_a_note(tmp_path):
    values = ordinary() | {("pixel", 50): noisy(0.006, 8, 8), ("trak", 50): noisy(0.004, 8, 9)}
    values |= {("pixel", 20): noisy(0.004, 8, 8), ("trak", 20): noisy(0.006, 8, 9)}
    [note] = [note for note in board_of(Folder(tmp_path / "run", values)).notes if note.startswith("Over K")]
    assert note == (
        "Over K (20, 50): 2 of 3 pairs of methods have the same order of means at every K that both have, over the "
        "queries of all these K; "
        "it turns for pixel and trak, 1 of them settled in both directions; 2 are settled at every K."
    )
    values |= {("ours", 50): [*noisy(0.012, 4), *[-9.0] * 4], ("pixel", 50): noisy(0.006, 4, 8)}
    del values["trak", 50]
    [like] = [note for note in board_of(Folder(tmp_path / "four", values)).notes if note.startswith("Over K")]
    assert "1 of 1 pairs" in like  # ours leads pixel on the four queries that both have at K = 50
    assert not [
        note for note in board_of(Folder(tmp_path / "one", {("ours", 20): noisy(0.1)})).notes if "Over K" in note
    ]


def test_differences_are_paired_with_random_at_the_same_k(published):
    cell = line_of(published[1].board, "ours", 50).cells["loss_change"]
    assert cell.difference == pytest.approx(np.mean(ordinary()["ours", 50]) - np.mean(ordinary()["random", 50]))
    assert cell.difference_low < cell.difference < cell.difference_high


def test_equivalents_are_read_from_the_random_reference_and_flagged_beyond_it(published):
    board = published[1].board
    assert 100 < line_of(board, "ours").equivalent.images < 180
    assert line_of(board, "ours", 50).equivalent.outside == "above"
    assert line_of(board, "ours", 50).equivalent.left(200).text == "fewer than 20"
    assert 20 < line_of(board, "ours").equivalent.left(200).images < 100
    assert "| fewer than 20 |" in (published[0] / "leaderboard.md").read_text()


def test_without_a_random_reference_there_is_no_equivalent(tmp_path):
    board = board_of(Folder(tmp_path / "run", ordinary()))
    assert all(line.equivalent is None for line in board.lines)


def test_what_a_method_was_tuned_on_comes_from_the_manifest(published):
    assert line_of(published[1].board, "pixel").tuned_on == "how pixel was tuned"


def test_failures_are_shown_with_their_reason_and_never_count_as_zero(tmp_path, tiny_study):
    values = ordinary()
    values["trak", 20][1] = float("nan")
    folder = Folder(tmp_path / "run", values, failed={("pixel", 20, "q00"), ("pixel", 20, "q02")})
    board = board_of(folder)
    cell = line_of(board, "pixel").cells["loss_change"]
    kept = [value for i, value in enumerate(values["pixel", 20]) if i not in (0, 2)]
    assert (cell.mean, cell.queries, cell.failed) == (pytest.approx(np.mean(kept)), 6, 2)
    reasons = {(failure.method, failure.queries, failure.reason) for failure in board.failures}
    assert ("pixel", ("q00", "q02"), "The loss became nan at step 3") in reasons
    assert ("trak", ("q01",), "the value is nan") in reasons
    publish(tiny_study, [], folder.root)
    text = (folder.root / "leaderboard.md").read_text()
    assert "(2 failed)" in text
    assert "The loss became nan at step 3" in text


def test_a_method_whose_every_figure_failed_keeps_its_line(tmp_path):
    lost = {("pixel", 20, f"q{i:02d}") for i in range(8)}
    board = board_of(Folder(tmp_path / "run", ordinary(), failed=lost))
    line = line_of(board, "pixel")
    assert line.ranks is None
    assert (line.cells["loss_change"].queries, line.cells["loss_change"].failed) == (0, 8)
    assert any("every value failed" in note for note in board.notes)


def test_too_few_queries_are_said_instead_of_an_interval(tmp_path, tiny_study):
    folder = Folder(tmp_path / "run", ordinary(3), queries=3)
    board = board_of(folder)
    line = line_of(board, "ours")
    assert line.ranks is None
    assert np.isnan(line.cells["loss_change"].low)
    assert {found.verdict for found in board.pairs[20].values()} == {"too few queries"}
    publish(tiny_study, [], folder.root)
    assert "too few queries for an interval" in (folder.root / "leaderboard.md").read_text()


def test_a_query_without_a_baseline_is_named_and_left_out_of_the_difference(tmp_path):
    board = board_of(Folder(tmp_path / "run", ordinary(), failed={("random", 20, "q03")}))
    cell = line_of(board, "ours").cells["loss_change"]
    assert (cell.queries, cell.compared) == (8, 7)
    assert any("q03 without a baseline" in note and "ours" in note for note in board.notes)


def test_a_k_without_any_baseline_shows_no_difference(tmp_path):
    values = {key: figures for key, figures in ordinary().items() if key != ("random", 50)}
    board = board_of(Folder(tmp_path / "run", values))
    assert line_of(board, "ours", 50).cells["loss_change"].compared == 0
    assert any("no query has a baseline" in note for note in board.notes)


def test_one_name_with_two_settings_gives_two_lines(tmp_path):
    one = Folder(tmp_path / "one", ordinary())
    other = Folder(tmp_path / "other", {("ours", 20): noisy(0.007)}, digests={"ours": "feedfacefeedface"})
    merged = merge_folders([open_folder(folder.root, "tiny") for folder in (one, other)])
    named = {line.method for line in leaderboard(merged.frame, merged.manifest, "tiny", 200).lines}
    assert {f"ours #{digest_of('ours')[:6]}", "ours #feedfa"} <= named


def test_methods_are_in_the_order_of_the_main_k(tmp_path):
    values = ordinary() | {("ours:sgd-1", 50): noisy(0.02), ("random", 50): noisy(0.03)}
    board = board_of(Folder(tmp_path / "run", values))
    main = [line.method for line in board.lines if line.k == board.main_k]
    assert board.main_k == 20
    assert list(board.methods) == [*main, "ours:sgd-1"]


def test_a_method_stands_beside_its_variants_and_random(tmp_path):
    board = board_of(Folder(tmp_path / "run", ordinary() | {("ours:sgd-1", 20): noisy(0.003)}))
    assert families([line for line in board.lines if line.k == 20]) == ["ours"]
    assert families([line for line in board.lines if line.k == 50]) == []
    loss, regeneration = ablations(board, "ours", 20).axes
    assert [label.get_text() for label in loss.get_yticklabels()] == ["random", "ours:sgd-1", "ours"]
    assert len(loss.containers) == len(regeneration.containers) == 3


def test_variants_leave_the_other_figures_to_their_method(tmp_path):
    board = board_of(Folder(tmp_path / "run", ordinary() | {("ours:sgd-1", 20): noisy(0.003)}))
    legend = [text.get_text() for text in curves(board, "loss_change").axes[0].get_legend().get_texts()]
    names = [text.get_text() for text in cost(board, 20).axes[0].texts]
    for shown in (legend, names):
        assert ("ours" in shown, "ours:sgd-1" in shown) == (True, False)
    assert charted([line for line in board.lines if line.method != "ours" and line.k == 20]) == [
        line.method for line in board.lines if line.method != "ours" and line.k == 20
    ]


def test_a_line_over_several_k_is_over_the_queries_that_all_of_them_have(tmp_path):
    values = ordinary() | {("ours", 20): [0.01] * 5 + [0.9] * 3, ("ours", 50): [0.02] * 5, ("pixel", 50): [0.03] * 5}
    board = board_of(Folder(tmp_path / "run", values))
    handles, names = curves(board, "loss_change").axes[0].get_legend_handles_labels()
    drawn = {name: list(handle[0].get_ydata()) for handle, name in zip(handles, names, strict=True)}
    assert drawn["ours"] == pytest.approx([0.01, 0.02])
    assert drawn["pixel"] == pytest.approx([np.mean(values["pixel", 20][:5]), 0.03])
    assert drawn["trak"] == pytest.approx([np.mean(values["trak", 20])])  # one K: all its queries
    assert BEST not in drawn  # its own queries are not known, and it has five at one K and eight at the other


def test_variants_leave_the_verdicts_between_methods_as_they_were(tmp_path):
    values = ordinary()
    variants = {(f"ours:sgd-{steps}", 20): noisy(0.003) for steps in range(1, 9)}
    before = board_of(Folder(tmp_path / "methods", values)).pairs[20]
    after = board_of(Folder(tmp_path / "variants", values | variants)).pairs[20]
    assert {pair: after[pair] for pair in before} == before
    assert len(after) > len(before)


def test_folders_are_merged_into_one_that_stands_alone(tmp_path, tiny_study):
    values = ordinary()
    parts = [{key: own for key, own in values.items() if (key[0] == "pixel") == first} for first in (True, False)]
    folders = [Folder(tmp_path / name, part) for name, part in zip("ab", parts, strict=True)]
    whole = tmp_path / "whole"
    result = bench("--from", str(folders[0].root), "--from", str(folders[1].root), "--results", str(whole))
    assert result.exit_code == 0, result.output
    first = (whole / "leaderboard.html").read_text()
    for folder in folders:
        shutil.rmtree(folder.root)
    publish(tiny_study, [], whole)
    assert (whole / "leaderboard.html").read_text() == first
    assert {"ours", "pixel", "random", "trak"} <= set(pd.read_parquet(whole / "results.parquet")["method"])
    assert len(json.loads((whole / "manifest.json").read_text())["runs"]) == 2


def test_observations_of_one_model_are_joined(tmp_path, tiny_study):
    key, names = "0123456789abcdef", ("x.regeneration", "y.regeneration")
    for folder, name in zip("ab", names, strict=True):
        Folder(tmp_path / folder, ordinary())
        write_tensors(tmp_path / folder / "observations" / f"{key}.safetensors", {name: image(name)}, seconds="1")
    publish(tiny_study, [tmp_path / "a", tmp_path / "b"], tmp_path / "whole")
    assert set(read_tensors(tmp_path / "whole" / "observations" / f"{key}.safetensors")[0]) == set(names)


def test_a_figure_that_was_had_replaces_one_that_failed(tmp_path):
    good = Folder(tmp_path / "good", ordinary())
    bad = Folder(tmp_path / "bad", ordinary(), failed={("ours", 20, "q00")})
    merged = merge_folders([open_folder(folder.root, "tiny") for folder in (good, bad)])
    assert (merged.frame["status"] == "done").all()


def spoiled(folder: Folder, how: str) -> None:
    """Break a finished folder in one way."""
    root, frame = folder.root, frame_of(folder.rows)
    if how.startswith("no "):
        (root / how.removeprefix("no ")).unlink()
    elif how == "truncated rows":
        path = root / "results.parquet"
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "empty rows":
        folder.write_rows(frame.iloc[:0])
    elif how == "missing column":
        folder.write_rows(frame.drop(columns="design"))
    elif how == "held-out rows":
        folder.write_rows(frame.assign(query="held-out-00"))
    elif how == "unpaired rows":
        folder.write_rows(frame.assign(design="unpaired"))
    elif how == "mixed versions":
        folder.write_rows(frame.assign(study_digest=["ffff", *frame["study_digest"][1:]]))
    elif how == "other study":
        write_json(root / "study.json", {"name": "emoji", "digest": folder.study.digest, "parts": {}})
    elif how == "broken manifest":
        (root / "manifest.json").write_text("{")
    elif how == "empty manifest":
        (root / "manifest.json").write_text("{}")
    elif how == "truncated queries":
        path = root / "queries.safetensors"
        path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no manifest.json", "is half written: it has no manifest.json"),
        ("no study.json", "is half written: it has no study.json"),
        ("no queries.safetensors", "is half written: it has no queries.safetensors"),
        ("no results.parquet", "There are no runs of study 'tiny'"),
        ("truncated rows", "cannot be read as parquet"),
        ("empty rows", "holds no rows yet"),
        ("missing column", "lacks the columns design"),
        ("held-out rows", "never reported"),
        ("unpaired rows", "no rows of the paired design"),
        ("mixed versions", "1 rows of ours, version ffff"),
        ("other study", "holds study 'emoji'"),
        ("broken manifest", "cannot be read as JSON"),
        ("empty manifest", "has no methods, metrics"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(tmp_path, how, message):
    folder = Folder(tmp_path / "run", ordinary() | {("nothing removed", 1): noisy(0.1)})
    spoiled(folder, how)
    result = bench("--results", str(folder.root))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (folder.root / "leaderboard.md").exists()


def test_damaged_queries_of_a_source_are_named_and_stay_where_they_are(tmp_path):
    folder = Folder(tmp_path / "run", ordinary())
    spoiled(folder, "truncated queries")
    result = bench("--from", str(folder.root), "--results", str(tmp_path / "whole"))
    assert result.exit_code == 2
    assert "queries.safetensors" in result.output
    assert (folder.root / "queries.safetensors").exists()


def test_a_study_with_no_runs_is_refused_and_nothing_is_made(tmp_path):
    result = bench("--results", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "There are no runs of study 'tiny'" in result.output
    assert "bench run --study tiny" in result.output
    assert not (tmp_path / "none").exists()


def test_a_source_that_is_not_there_is_refused(tmp_path):
    result = bench("--from", str(tmp_path / "none"), "--results", str(tmp_path / "whole"))
    assert result.exit_code == 2
    assert "There is no results folder" in result.output


def changed(metrics: dict, name: str, **facts) -> dict:
    return {**metrics, name: {**metrics[name], **facts}}


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            METRICS,
            changed(METRICS, "loss_change", observation="query_loss@10"),
            "loss_change differs in its observation",
        ),
        (METRICS, changed(METRICS, "regeneration_mse", version=2), "regeneration_mse differs in its version"),
        (
            {"close[clip]": {}, **METRICS},
            {"close[lite0]": {}, **METRICS},
            "close differs in the encoder",
        ),
    ],
)
def test_other_evaluators_are_refused_and_their_rows_named(tmp_path, ours, theirs, message):
    one = Folder(tmp_path / "one", ordinary(), metrics=ours)
    other = Folder(tmp_path / "other", {("pixel", 20): noisy(0.1)}, metrics=theirs)
    result = bench("--from", str(one.root), "--from", str(other.root), "--results", str(tmp_path / "whole"))
    assert result.exit_code == 2
    assert message in result.output
    assert re.search(r"\d+ rows of nothing removed, pixel", result.output)
    assert not (tmp_path / "whole").exists()


def test_another_version_of_the_study_is_refused_with_what_differs(tmp_path):
    one, other = Folder(tmp_path / "one", ordinary()), Folder(tmp_path / "other", ordinary())
    parts = {**other.study.parts, "seed": 7}
    write_json(other.root / "study.json", {"name": "tiny", "digest": "f" * 16, "parts": parts})
    other.write_rows(frame_of(other.rows).assign(study_digest="f" * 16))
    result = bench("--from", str(one.root), "--from", str(other.root), "--results", str(tmp_path / "whole"))
    assert result.exit_code == 2
    assert "They differ in: seed" in result.output


def test_another_image_under_one_querys_name_is_refused(tmp_path):
    one, other = Folder(tmp_path / "one", ordinary()), Folder(tmp_path / "other", ordinary())
    frame = frame_of(other.rows)
    other.write_rows(frame.assign(query_digest=frame["query_digest"].where(frame["query"] != "q02", "beef")))
    result = bench("--from", str(one.root), "--from", str(other.root), "--results", str(tmp_path / "whole"))
    assert result.exit_code == 2
    assert "Query q02 is not the same image everywhere" in result.output


def test_a_damaged_observation_costs_its_picture_alone(tmp_path, tiny_study):
    folder = Folder(tmp_path / "run", ordinary())
    path = next(iter((folder.root / "observations").iterdir()))
    path.write_bytes(path.read_bytes()[:-5])
    result = publish(tiny_study, [], folder.root)
    assert any("Pictures are missing" in note for note in result.remarks)


def page_data(text: str) -> dict:
    [found] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_the_page_is_one_file_that_needs_no_network(published):
    text = (published[0] / "leaderboard.html").read_text()
    assert len(text) < 2_000_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\((?!#)|fetch\(""", text)
    data = page_data(text)
    assert len(data["lines"]) == 7
    shown = data["gallery"]["queries"][0]
    assert len(data["gallery"]["queries"]) == 8
    assert data["gallery"]["images"][shown["image"]].startswith("data:image/png;base64,")
    assert set(shown["methods"][0]["made"]) == {"20", "50"}
    assert len(shown["methods"][0]["top"]) == 8


def test_a_hostile_name_is_text_everywhere(tmp_path, tiny_study):
    values = ordinary() | {(HOSTILE, 20): noisy(0.002)}
    folder = Folder(tmp_path / "run", values, failed={(HOSTILE, 20, "q00")})
    publish(tiny_study, [], folder.root)
    text = (folder.root / "leaderboard.html").read_text()
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 2
    assert HOSTILE in {line["method"] for line in page_data(text)["lines"]}
    markdown = (folder.root / "leaderboard.md").read_text()
    assert "<script>" not in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_escaping_leaves_json_what_it_was():
    value = {"a": "</script><!-- \u2028 \u2029 {{data}} /*{{script}}*/"}
    text = escaped(json.dumps(value, ensure_ascii=False))
    assert "<" not in text
    assert json.loads(text) == value


JAVASCRIPT = Path(__file__).parent / "javascript"
NODE = shutil.which("node") or ""
ESLINT = JAVASCRIPT / "node_modules" / ".bin" / "eslint"


@pytest.fixture
def whole_script(tmp_path):
    path = tmp_path / "page.js"
    path.write_text(script())
    return path


def test_every_file_of_the_script_is_put_into_the_page_and_is_short():
    assets = resources.files("bench.report.assets")
    lines = {one.name: len(one.read_text().splitlines()) for one in assets.iterdir() if one.name.endswith(".js")}
    assert set(lines) == set(SCRIPTS)
    assert max(lines.values()) <= 150


@pytest.mark.skipif(not NODE, reason="no Node on this machine")
def test_the_script_is_javascript(whole_script):
    found = subprocess.run([NODE, "--check", whole_script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr


@pytest.mark.skipif(not (NODE and ESLINT.exists()), reason="no ESLint: npm install --prefix tests/javascript")
def test_the_script_is_linted(whole_script):
    command = [ESLINT, "--config", JAVASCRIPT / "eslint.config.js", "--max-warnings", "0", whole_script.name]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=whole_script.parent)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_method_has_one_colour_on_every_figure(tmp_path):
    more = ordinary() | {("ours:sgd-1", 20): noisy(0.003)}
    boards = [board_of(Folder(tmp_path / name, values)) for name, values in (("few", ordinary()), ("more", more))]
    for board in boards:
        shown = curves(board, "loss_change").axes[0].get_legend_handles_labels()
        drawn = {label: to_hex(handle[0].get_color()) for handle, label in zip(*shown, strict=True)}
        assert drawn == {name: colour_of(name) for name in ("ours", "pixel", "random", "trak", BEST)}
        del drawn[BEST]  # nobody scored it, so it has no place on the axis of seconds
        texts = {text.get_text(): to_hex(text.get_color()) for text in cost(board, 20).axes[0].texts}
        assert {name: texts[name] for name in drawn} == drawn
    marks = payload(boards[1], Gallery(), {})["marks"]
    assert marks["ours"] == [colour_of("ours"), MARKS["o"]]
    assert (marks["ours:sgd-1"][0], marks["ours:sgd-1"][1] != MARKS["o"]) == (colour_of("ours"), True)


def test_no_two_methods_have_the_same_colour():
    colours = [colour_of(method.name) for method in methods if method.__module__.startswith("methods.")]
    assert len(colours) > 10
    assert len(set(colours)) == len(colours)


def test_the_page_shows_the_charts_of_the_files(published):
    board, text = published[1].board, (published[0] / "leaderboard.html").read_text()
    charts = page_data(text)["charts"]
    assert set(charts) == {
        "curves_loss_change", "curves_regeneration_mse", "cost_20", "cost_50", "equivalent_random_20",
        "equivalent_random_50", "order_20",
    }  # fmt: skip
    assert charts == page_charts(board)
    for name, chart in charts.items():
        tree = ElementTree.fromstring(chart)
        assert "K of 200 images removed" in chart or not name.startswith("curves")
        assert {one.tag.rpartition("}")[2] for one in tree.iter()} & {"script", "style", "metadata"} == set()
        assert len(chart) < 40_000
    ticks = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", charts["curves_loss_change"]) if "0.00" in text]
    assert len(set(ticks)) == len(ticks) > 2


SELF_TEST = (Path(__file__).parent / "leaderboard_selftest.js").read_text()


def browsed(page: Path, width: int, folder: Path) -> dict:
    """What the self-test sees on ``page`` in a headless Chromium, which must not complain."""
    tried = page.read_text().replace("</body>", f"<script>{SELF_TEST}</script></body>")
    copy = folder / f"page-{width}.html"  # in a frame, as a headless window is never narrower than 500 pixels
    copy.write_text(f'<meta charset="utf-8"><iframe width={width} height=900 srcdoc="{html.escape(tried)}"></iframe>')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
               "--enable-logging=stderr", "--v=0", "--window-size=1400,1000", "--virtual-time-budget=5000",
               "--dump-dom", copy.as_uri()]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in found.stderr, found.stderr
    [text] = re.findall(r'<pre id="seen">(.*?)</pre>', found.stdout)
    return json.loads(unquote(text))


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(published, tmp_path, width):
    seen = browsed(published[0] / "leaderboard.html", width, tmp_path)
    best = [name.split()[0] for name in seen["best"] if not name.startswith(("random", BEST))]
    assert seen["tiles"] == ["nothing removed", "random", *best]
    assert seen["under"].startswith("loss ")
    assert (seen["changed"], seen["same"]) == (True, True)
    assert seen["top"] < 900  # on the first screen
    assert seen["ranked"][0] == "ours 20"
    assert seen["ranked"][-1] == "random 20"
    assert len(seen["ranked"]) == 5
    assert len(seen["all"]) == 7
    names = [name.split()[0] for name in seen["named"]]
    assert names == sorted(names)
    assert [name.split()[0] for name in seen["reversed"]] == names[::-1]
    assert seen["sort"].count("ascending") == seen["down"].count("descending") == 1
    assert seen["focus"] == "Method"
    assert seen["best"][:2] == [f"{BEST} 20", "ours 20"]  # the ceiling, as no method knows more
    assert seen["filtered"] == ["trak 20"]
    assert seen["count"] == "1 of 7 lines"
    assert seen["none"] == []
    assert seen["metric"].startswith("regeneration mse")
    assert "squared pixel value" in seen["about"]
    assert "ours" in seen["pair"]
    assert seen["lit"] == "true"
    assert seen["legend"] == seen["extended"]  # no variants, no button
    assert "a photo of a bag 2" in seen["query"]
    assert seen["pictures"] > 8
    assert seen["compared"] == [seen["every"][1], seen["every"][0]]
    assert seen["again"] == seen["every"]
    assert seen["framed"] % 2 == 0
    assert (seen["silent"], seen["charts"], seen["injected"]) == (0, 4, 0)
    assert seen["width"] == width
    assert seen["overflow"] <= 0


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_hard_rows_do_not_break_the_page(tmp_path, tiny_study):
    values = ordinary(3) | {(HOSTILE, 20): noisy(0.1, 3), ("lost", 20): [float("nan")] * 3}
    values |= {("ours:sgd-1", 20): noisy(0.003, 3)}
    folder = Folder(tmp_path / "run", values, queries=3, failed={("random", 20, "q01")})
    publish(tiny_study, [], folder.root)
    seen = browsed(folder.root / "leaderboard.html", 390, tmp_path)
    assert f"{HOSTILE} 20" in seen["ranked"]
    assert "lost 20" in seen["ranked"]
    assert "ours:sgd-1 20" in seen["ranked"]
    assert set(seen["extended"]) - set(seen["legend"]) == {"ours:sgd-1"}
    assert (seen["legend"][-1], seen["active"]) == ("show 1 variant", "variants")
    assert seen["injected"] == 0
    assert seen["overflow"] <= 0


def box_rows(parts: tuple[str, str], root: Path) -> pd.DataFrame:
    """Values of five queries in two boxes: what was named for a box raises it by 0.5, and by 0.1 elsewhere."""
    [digest] = {json.loads((root / "study.json").read_text())["digest"]}
    blank = dict.fromkeys(COLUMNS, "") | {"study": "tiny", "study_digest": digest, "status": "done", "seed": 0}
    return pd.DataFrame(
        [
            blank | {"method": HOSTILE if number == 9 else "ours", "method_digest": "m", "query": f"q{number}",
                     "query_digest": f"q{number}", "k": 20, "chosen_in": chosen, "chosen_box": chosen,
                     "measured_in": measured, "measured_box": measured, "metric": "loss_change_inside",
                     "design": "paired", "value": 0.5 if chosen == measured else 0.1 + number * 1e-3}
            for number in (0, 1, 2, 3, 4, 9)
            for chosen in parts
            for measured in parts
        ]
    )  # fmt: skip


def test_boxes_have_a_section_of_their_own(tmp_path, tiny_study):
    root = Folder(tmp_path / "run", ordinary()).root
    publish(tiny_study, [], root)
    text, page = ((root / f"leaderboard.{kind}").read_text() for kind in ("md", "html"))
    assert "Boxes" not in text
    assert page_data(page)["facts"]["sections"] == []
    tables.LOCALIZED.merge(Store(root), box_rows(("left_half", "right_half"), root))
    publish(tiny_study, [], root)
    again, page = ((root / f"leaderboard.{kind}").read_text() for kind in ("md", "html"))
    assert again.startswith(text.rstrip("\n"))
    assert "## Boxes on parts of the picture" in again
    assert "### left half and right half" in again
    assert "| loss_change_inside | 20 | ours | +0.398 [+0.396, +0.4]" in again
    assert "<b>" not in again
    [boxes] = page_data(page)["facts"]["sections"]
    [part] = boxes["parts"]
    assert (boxes["key"], part["title"]) == ("boxes", "left half and right half")
    assert [len(lines) for _, lines in part["tables"]] == [4, 2]


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_section_of_boxes_is_seen_in_a_browser(tmp_path, tiny_study):
    root = Folder(tmp_path / "run", ordinary()).root
    for shown in (False, True):
        if shown:
            tables.LOCALIZED.merge(Store(root), box_rows(("left_half", "right_half"), root))
        publish(tiny_study, [], root)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom",
                   (root / "leaderboard.html").as_uri()]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        assert "CONSOLE" not in found.stderr, found.stderr
        sections = re.findall(r'<section id="boxes".*?</section>', found.stdout, re.DOTALL)
        assert len(sections) == shown
        section = "".join(sections)
        assert ('<td class="num">+0.398 [+0.396, +0.4]</td>' in section) == shown
        assert (html.escape(HOSTILE, quote=False) in section) == shown
