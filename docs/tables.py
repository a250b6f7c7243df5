"""Write the table of `faces` in the README and that of `fashion` in docs/findings.md from the published boards.

Usage: python docs/tables.py

A method stands in a table when it has half of the queries of the method with the most, or more; its queries are told
where it has fewer. A variant needs all of them. What each column means is told below the table, and in
docs/reading-the-leaderboard.md.
"""

from pathlib import Path

import pandas as pd

from bench.data.face_queries import face_queries
from bench.records.names import MethodName
from bench.records.rows import labels
from bench.report.ceilings import BEST

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"faces": (ROOT / "README.md", "## Portraits"), "fashion": (ROOT / "docs" / "findings.md", "## `fashion`")}
BUDGET = 500
ABLATED = ("fashion",)  # whose variants of a method stand in a figure of their own
FLOORS = {"random": "random", "same_caption": "captions"}  # as the column "beats" names them
COMMON = {"rank": "rank", "method": "method", "mean": "loss change, mean ± 1 SE"}
COLUMNS = {
    "faces": COMMON
    | {
        "beats": "beats",
        "named": "where named",
        "unnamed": "where unnamed",
        "image": "regeneration MSE, minus random [95 %]",
        "lost": "rare part lost",
        "found": "carriers found [95 %]",
        "seconds": "scoring s/query",
    },
    "fashion": COMMON
    | {
        "apart": "minus random [95 %]",
        "beats": "beats",
        "left": "as bad as trained on … random images [95 %]",
        "image": "regeneration MSE, minus random [95 %]",
        "image_beats": "beats",
        "seconds": "scoring s/query",
    },
}


def board(study):
    """The lines of a published board at K = 500, the largest loss change first; those with fewer queries below."""
    lines = pd.read_csv(ROOT / "results" / study / "leaderboard.csv")
    lines = lines[lines["k"] == BUDGET]
    most = lines["loss_change_queries"].max()
    lines = lines[lines["loss_change_queries"] >= most / 2].assign(most=most)
    lines = lines[lines["method"] != BEST]  # the board draws it
    is_plain = lines["method"].map(lambda label: MethodName.of_old_label(label).plain)
    lines = lines[is_plain | ((study not in ABLATED) & (lines["loss_change_queries"] == most))]
    return lines.sort_values(["loss_change_queries", "loss_change_mean"], ascending=False).to_dict("records")


def cells(line):
    """The cells of one line of a board by their column, as text, but those that only ``faces`` has."""
    rank, count = line["role"], int(line["loss_change_queries"])
    if rank == "method":
        first, last = (int(line[f"loss_change_rank_{end}"]) for end in ("first", "last"))
        rank = f"{first}–{last}" if first < last else str(first)
    left = "more than 5500" if isinstance(line["equivalent_random_outside"], str) else ""
    if pd.notna(line["random_left"]) and not left:
        left = f"{line['random_left']:.0f} [{line['random_left_low']:.0f}, {line['random_left_high']:.0f}]"
    return {
        "rank": rank,
        "method": line["method"] + ("" if count == line["most"] else f", {count} queries"),
        "mean": f"{line['loss_change_mean']:.5f} ± {line['loss_change_standard_error']:.5f}",
        "apart": _apart(line, "loss_change"),
        "beats": _beats(line, "loss_change"),
        "left": left,
        "image": _apart(line, "regeneration_mse"),
        "image_beats": _beats(line, "regeneration_mse"),
        "seconds": f"{line['score_seconds']:.0f}" if line["score_seconds"] >= 0.5 else "",
    }


def _apart(line, metric):
    if line["method"] == "random":
        return ""
    mean, low, high = (line[f"{metric}_minus_random{end}"] for end in ("", "_low", "_high"))
    return f"{mean:+.5f} [{low:+.5f}, {high:+.5f}]"


def _beats(line, metric):
    verdicts = {said: line.get(f"{metric}_verdict_{floor}") for floor, said in FLOORS.items()}
    won = ", ".join(said for said, verdict in verdicts.items() if verdict == "better")
    if won or line["method"] == "random":
        return won
    same = [said for said, verdict in verdicts.items() if verdict == "equivalent"]
    return f"equivalent to {' and '.join(same)}" if same else "not settled"


def known_parts():
    """The cells that only ``faces`` has, by method: groups of queries, parts lost, carriers found."""
    folder = ROOT / "results" / "faces"
    rows = pd.read_parquet(folder / "results.parquet")
    rows = rows[(rows["design"] == "paired") & (rows["status"] == "done") & (rows["k"] == BUDGET)]
    group = {f"q{number:02d}": query.group for number, query in enumerate(face_queries())}
    rows = rows.assign(label=labels(rows), group=rows["query"].map(group))
    means = rows[rows["metric"] == "loss_change"].groupby(["label", "group"])["value"].mean()
    lost = rows[rows["metric"] == "part_change"].groupby("label")["value"].agg(["sum", "count"])
    text = (folder / "table.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    [start] = [number for number, row in enumerate(table) if len(row) > 3 and row[3].startswith("carriers found")]
    found = {row[1]: row[3] for row in table[start:] if len(row) > 3 and row[0] == str(BUDGET)}
    return {
        label: {
            **{name: f"{means[label, name]:.5f}" for name in ("named", "unnamed")},
            "lost": f"{lost.loc[label, 'sum']:g} of {lost.loc[label, 'count']:.0f}",
            "found": found.get(label, ""),
        }
        for label in lost.index
    }


def table(study):
    """The Markdown table of one board."""
    columns, parts = COLUMNS[study], known_parts() if study == "faces" else {}
    lines = [cells(line) | parts.get(line["method"], {}) for line in board(study)]
    body = [list(columns.values()), ["---"] * len(columns), *([line[name] for name in columns] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in body).replace("| --- ", "|---").replace("|--- |", "|---|")


def written(study):
    """A page with the table of ``study``, the first below its heading, written anew."""
    page, heading = PLACES[study]
    text = page.read_text()
    start = text.index("| rank |", text.index(heading))
    return text[:start] + table(study) + text[text.index("\n\n", start) :]


if __name__ == "__main__":
    for name, (place, _) in PLACES.items():
        place.write_text(written(name))
