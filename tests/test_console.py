"""Tables on a terminal."""

import io

from rich.console import Console

from bench.foundation.console import print_table

HEAD = ["metric", "K", "method", "mean ± 1 SE", "minus random [95 % interval]", "empty"]
LINES = [
    ["regeneration_mse", "500", "ours_ekfac", "0.15667 ± 0.05521", "+0.15667 [-0.00374, +0.31708]", ""],
    ["regeneration_mse", "500", "same_caption", "0.11694 ± 0.04732", "+0.07561 [-0.06857, +0.21978]", ""],
]


def shown(width, lines=LINES):
    out = io.StringIO()
    print_table(Console(file=out, width=width), HEAD, lines)
    return out.getvalue()


def test_a_table_that_fits_is_one():
    assert shown(120).count("metric") == 1
    assert "regeneration_mse  500" in shown(120)


def test_a_table_on_a_narrow_terminal_loses_no_letter():
    text = shown(60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.startswith("metric: regeneration_mse")
    assert "…" not in text
    for cell in LINES[0][1:]:
        assert all(word in text for word in cell.split())
    assert "empty" not in text


def test_lines_that_share_nothing_stay_one_table():
    lines = [[f"{number}", *line[1:]] for number, line in enumerate(LINES)]
    assert "metric:" not in shown(60, lines)
