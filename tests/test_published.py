"""The published folder of ``fashion``: every file and the page of findings print the same intervals."""

import json
import math
import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

from bench.data.face_queries import face_queries
from bench.records.names import MethodName
from bench.records.rows import labels
from bench.registry import methods, tuned
from bench.report.statistics import interval

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "fashion"
METRICS = ("loss_change", "regeneration_mse")
NUMBER = r"[-+]?\d+\.?\d*"
Figures = dict[str, tuple[float, ...]]  # by what they are: the mean, its error, bounds, a difference, what is left
PLACES = {"mean": 5, "bounds": 5, "difference": 5, "left": 0}


def cells_of(text: str) -> list[list[str]]:
    """The cells of the lines of Markdown tables."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:1] == "|"]


def numbers(text: str) -> tuple[float, ...]:
    """What a cell says: "1.5 ± 0.5" and "[1, 2]"; one without a number, or with a bound alone, is empty."""
    if " than " in text:
        return ()
    return tuple(float(found) for found in re.findall(NUMBER, text.partition(", ")[0] if "quer" in text else text))


def from_rows() -> dict[tuple[str, int, str], Figures]:
    """Made here from the committed rows: every interval of a mean and of a difference."""
    rows = pd.read_parquet(FOLDER / "results.parquet")
    rows = rows.assign(method=labels(rows))
    rows = rows[(rows["design"] == "paired") & (rows["status"] == "done") & (rows["method"] != "random reference")]
    found = {}
    for (metric, k), own in rows.groupby(["metric", "k"]):
        table = own.pivot_table(index="query", columns="method", values="value")
        table["best measured set"] = table.drop(columns=["random", "same_caption"], errors="ignore").max(axis=1)
        for method in table:
            bounds = interval(table[method].dropna().to_numpy())
            figures = {"mean": (bounds.mean, table[method].sem()), "bounds": bounds[1:]}
            if method != "random":
                figures["difference"] = tuple(interval((table[method] - table["random"]).dropna().to_numpy()))
            found[str(metric), int(k), str(method)] = figures
    return found


def from_csv() -> dict[tuple[str, int, str], Figures]:
    found = {}
    for line in pd.read_csv(FOLDER / "leaderboard.csv").to_dict("records"):
        for metric in METRICS:
            parts = {
                "mean": ("mean", "standard_error"),
                "bounds": ("low", "high"),
                "difference": ("minus_random", "minus_random_low", "minus_random_high"),
            }
            figures = {name: tuple(line[f"{metric}_{part}"] for part in some) for name, some in parts.items()}
            if metric == METRICS[0]:
                figures["left"] = tuple(line[f"random_left{end}"] for end in ("", "_low", "_high"))
            found[metric, line["k"], line["method"]] = known(figures)
    return found


def from_page() -> dict[tuple[str, int, str], Figures]:
    text = (FOLDER / "leaderboard.html").read_text()
    [data] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    found = {}
    for line in json.loads(data)["lines"]:
        for metric, cell in line["cells"].items():
            parts = {"mean": ("mean", "se"), "bounds": ("low", "high"), "difference": ("diff", "diffLow", "diffHigh")}
            figures = {name: tuple(cell[part] for part in some) for name, some in parts.items()}
            if metric == METRICS[0] and line["left"]:
                figures["left"] = tuple(line["left"][end] for end in ("images", "low", "high"))
            found[metric, line["k"], line["method"]] = known(figures)
    return found


def known(figures: Figures) -> Figures:
    """Without what is not told: a difference of random, what is left beyond the curve."""
    return {name: values for name, values in figures.items() if values[0] is not None and not math.isnan(values[0])}


def from_board_table() -> dict[tuple[str, int, str], Figures]:
    found, k = {}, 0
    for part in re.split(r"^## K = ", (FOLDER / "leaderboard.md").read_text(), flags=re.MULTILINE)[1:]:
        k = int(part.split()[0])
        for _, _, method, loss, loss_apart, _, image, image_apart, _, left, *_ in cells_of(part)[2:]:
            for metric, mean, apart in ((METRICS[0], loss, loss_apart), (METRICS[1], image, image_apart)):
                said = re.findall(NUMBER, mean.rpartition(",")[0])
                figures = {
                    "mean": tuple(map(float, said[:2])),
                    "bounds": tuple(map(float, said[2:])),
                    "difference": numbers(apart),
                }
                if metric == METRICS[0]:
                    figures["left"] = numbers(left)
                found[metric, k, method] = {name: values for name, values in figures.items() if values}
    return found


def from_summary() -> dict[tuple[str, int, str], Figures]:
    found = {}
    for metric, k, method, design, _, mean, apart, left, _ in cells_of((FOLDER / "table.md").read_text())[2:]:
        if design == "paired" and method != "random reference":
            figures = {"mean": numbers(mean), "difference": numbers(apart)}
            if metric == METRICS[0]:
                figures["left"] = numbers(left)
            found[metric, int(k), method] = {name: values for name, values in figures.items() if values}
    return found


def shown_table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of a page."""
    section = (ROOT / page).read_text().partition(heading)[2]
    return cells_of(next(part for part in section.split("\n\n") if part.startswith("| rank | method | loss change")))


def from_findings() -> dict[tuple[str, int, str], Figures]:
    found = {}
    for _, method, mean, apart, _, left, image_apart, *_ in shown_table("docs/findings.md", "## `fashion`")[2:]:
        figures = {"mean": numbers(mean), "difference": numbers(apart), "left": numbers(left)}
        found["loss_change", 500, method] = {name: values for name, values in figures.items() if values}
        if values := numbers(image_apart):
            found["regeneration_mse", 500, method] = {"difference": values}
    return found


@pytest.mark.parametrize("printed", [from_page, from_board_table, from_summary, from_findings, from_csv])
def test_every_interval_is_the_one_of_the_rows_and_of_the_csv(printed):
    exact, rows, said = from_csv(), from_rows(), printed()
    assert len(said) >= 11
    if printed is not from_findings:
        assert said.keys() == {key for key in rows if printed is not from_summary or key[2] != "best measured set"}
    for key, figures in said.items():
        expected = exact[key] | rows[key]
        wanted = expected.keys() - ({"bounds"} if printed in (from_summary, from_findings) else set())
        if printed is from_findings and key[0] != METRICS[0]:
            wanted &= {"difference"}
        assert figures.keys() == wanted, key
        for name, values in figures.items():
            tolerance = {from_csv: 1e-9, from_page: 1e-6}.get(printed, 0)
            close = 0.5001 * 10.0 ** -PLACES[name] if not tolerance else tolerance * max(map(abs, expected[name]))
            assert values == pytest.approx(expected[name], rel=0, abs=close), (key, name)


def test_the_readme_says_of_faces_what_the_rows_say():
    folder = ROOT / "results" / "faces"
    rows = pd.read_parquet(folder / "results.parquet")
    rows = rows[(rows["design"] == "paired") & (rows["status"] == "done") & (rows["k"] == 500)]
    rows = rows.assign(method=labels(rows))
    group = {f"q{number:02d}": query.group for number, query in enumerate(face_queries())}
    values = {
        name: own.pivot_table(index="query", columns="method", values="value") for name, own in rows.groupby("metric")
    }
    lines = shown_table("README.md", "## Portraits")[2:]
    counts = values["loss_change"].notna().sum()
    in_table = (counts >= counts.max() / 2) & (~counts.index.str.contains(":") | (counts == counts.max()))
    assert {line[1].split(", ")[0] for line in lines} == set(counts[in_table].index)
    for _, method, mean, _, on_named, on_unnamed, image_apart, lost, found, _ in lines:
        name, *fewer = method.split(", ")
        assert fewer == ([] if counts[name] == counts.max() else [f"{counts[name]} queries"])
        own = values["loss_change"][name].dropna()
        for said, which in ((on_named, "named"), (on_unnamed, "unnamed")):
            assert float(said) == pytest.approx(own[own.index.map(group) == which].mean(), abs=5.001e-6)
        assert numbers(mean) == pytest.approx((own.mean(), own.sem()), abs=5.001e-6)
        apart = (values["regeneration_mse"][name] - values["regeneration_mse"]["random"]).dropna().to_numpy()
        assert (numbers(image_apart) == pytest.approx(tuple(interval(apart)), abs=5.001e-6)) == (name != "random")
        assert lost == f"{values['part_change'][name].sum():g} of {len(own)}"
        told = next(cells for cells in cells_of((folder / "table.md").read_text()) if cells[:2] == ["500", name])
        assert found == told[3]


@pytest.mark.parametrize("study", ["faces", "fashion"])
def test_settings_of_every_method_on_a_board_were_tuned_for_it_in_a_stated_number_of_trials(study):
    lines = pd.read_csv(ROOT / "results" / study / "leaderboard.csv")
    told = lines[lines["role"] == "method"].drop_duplicates("method").set_index("method")["tuned_on"]
    names = {name: MethodName.of_old_label(name) for name in told.index}
    found = {name: methods.create(name, study) for name in names if not names[name].settings}
    with_settings = [name for name, method in found.items() if method.settings()]
    assert {"ours", "ours:sgd-10", "mucs", "nda", "fast", "retrac"} <= set(with_settings) < set(found)
    for name in with_settings:
        assert re.search(r"\d+ (trials|cutoffs)", told[name]), (name, told[name])
        assert told[name].startswith(tuned(type(found[name]), study, names[name].variant)["tuned_on"]), name


@pytest.mark.parametrize("study", ["faces", "fashion"])
def test_the_tables_of_pages_are_those_that_their_script_writes(study):
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    assert script["written"](study) == script["PLACES"][study][0].read_text()


def test_the_page_of_boxes_says_what_the_published_table_says():
    published = cells_of((ROOT / "results" / "faces" / "localized.md").read_text())
    page = (ROOT / "docs" / "localized.md").read_text()
    switches = {(row[0], row[2], row[3]): row for row in published if len(row) == 10}
    gains = {(row[0], row[2]): row for row in published if len(row) == 7}
    share, loss = "carriers, share of the top K", "loss_change_inside"
    found = [row for row in cells_of(page) if len(row) == 6][2:]
    for name, on_hat, on_clothes, whole, interaction, apart in found:
        method = name.split()[0].strip("`")
        row = switches[share, method, "hat"]
        assert [said for said in (on_hat, on_clothes, whole) if said] == [
            f"{float(value):.2f}" for value in (row[4], row[5], row[6]) if value and method != "chance"
        ] or method == "chance"
        if interaction:
            exact = gains[share, method]
            for said, value in ((interaction, exact[3]), (apart, exact[4])):
                assert numbers(said) == pytest.approx(numbers(value), abs=0.00501)
    for part, *values, switch in [row for row in cells_of(page) if len(row) == 7][2:]:
        row, random = switches[loss, "ours", part], switches[loss, "random", part]
        assert [float(value) for value in values] == pytest.approx(
            [float(value) for value in (*row[4:8], random[6])], abs=5.1e-5
        )
        assert numbers(switch) == pytest.approx(numbers(row[8]), abs=5.1e-5)
    for text, names in ((page, "image"), ((ROOT / "README.md").read_text(), "picture")):
        [whole] = re.findall(rf"what the whole {names} names(?:\*\*)? \((.*?)\)", text)
        assert numbers(whole.replace("−", "-")) == pytest.approx(numbers(gains[loss, "ours"][4]), abs=5.1e-5)


@pytest.mark.parametrize(("distractors", "heading"), [(1000, "## What twenty"), (200, "### Among 200")])
def test_the_log_of_customized_models_says_what_the_published_rows_say(distractors, heading):
    board = pd.read_csv(ROOT / "results" / "customized" / "leaderboard.csv")
    own = board[board["distractors"] == distractors].set_index(["method", "group"])
    section = (ROOT / "docs" / "log" / "2026-11-27-customized.md").read_text().partition(heading)[2]
    lines = cells_of(next(part for part in section.split("\n\n") if part.startswith("| method | Recall@10")))[2:]
    shown = {
        re.sub(r"`([^`]*)`", r"\1", line[0]).replace(" (reads V*)", "").replace(" (see below)", ""): line
        for line in lines
        if line[0] not in ("by chance", "ceiling")
    }
    every = own.xs("all", level="group")
    assert set(shown) <= set(every.index)
    if distractors == 200:
        assert set(shown) == set(every.index)  # of the whole pool some methods ran on few models alone
    for method, (_, recall, mean, on_objects, on_styles, *rest) in shown.items():
        row = every.loc[method]
        assert numbers(recall) == pytest.approx((row["recall_at_10"], row["recall_se"]), abs=5.001e-4), method
        assert numbers(mean) == pytest.approx((row["map"], row["map_se"]), abs=5.001e-4), method
        for said, group in ((on_objects, "object-centric"), (on_styles, "style-centric")):
            assert float(said) == pytest.approx(own.loc[(method, group), "map"], abs=5.001e-4), (method, group)
        if rest:
            assert [int(count) for count in rest[:2]] == [row["models"], row["queries"]], method


def test_the_page_of_customized_models_stays_small():
    folder = ROOT / "results" / "customized"
    assert (folder / "leaderboard.html").stat().st_size <= 2 * 2**20
    assert len(list((folder / "figures").glob("*.png"))) == 20
