"""What the documents say runs."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import matplotlib.image
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import bench
from bench import methods, metrics
from bench.authoring.checking import GLOBAL_STATES
from bench.authoring.template import write_method
from cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "results" / "README.md",
    ROOT / "benchmarks" / "README.md",
]


def snippet(name: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    return code


def test_the_readme_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet("README.md").replace("faces", "tiny").replace("[500]", "[20]").replace("=2", "=1"), names)
    report = names["report"]
    assert set(report.frame["method"]) == {"ours", "random", "same_caption", "nothing removed"}
    for path in report.figures:
        assert matplotlib.image.imread(path).std() > 0.01


def test_the_method_of_contributing_works_as_written(tmp_path, monkeypatch, context, queries):
    (tmp_path / "brightness.py").write_text(snippet("CONTRIBUTING.md"))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("brightness")
    try:
        scores = methods.create("brightness").scores(context, queries)
    finally:
        methods._classes.pop("brightness")
        sys.modules.pop("brightness")
    assert scores.shape == (len(queries), len(context.dataset))
    assert torch.isfinite(scores).all()


def test_adding_a_method_as_the_readme_says_puts_it_into_the_table(tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(GLOBAL_STATES, "random")  # the shape checks of the tests draw from it
    section = (ROOT / "README.md").read_text().partition("## Add a method in one file")[2]
    [block] = re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    for line in block.strip().splitlines():
        command, *arguments = line.partition("#")[0].split()
        assert command == "bench"
        if arguments[0] == "check":
            arguments += ["--study", "tiny"]  # hardly trained, which is all that a method without a model needs
        outcome = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
    assert len(Path("brightness.py").read_text().splitlines()) == 35  # as the README says
    table = pd.read_parquet("results/runs/tiny/results.parquet")
    assert set(table["method"]) == {"brightness", "random", "same_caption", "nothing removed"}
    assert (table["status"] == "done").all()


def test_every_metric_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text()
    for name in metrics.names():
        assert f"`{name.partition('@')[0]}" in text, name
    for metric in metrics:
        assert metric.unit.split(",")[0] in text, metric.unit


def test_every_public_name_is_documented():
    for name in bench.__all__:
        documented = getattr(bench, name).__doc__
        assert documented or name in ("methods", "metrics", "register_method", "register_metric"), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_document_is_understood(path, tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    write_method("brightness", tmp_path)
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
        for line in block.splitlines():
            program, *words = shlex.split(line, comments=True) or [""]
            if program == "bench" and "new-method" not in words:
                command = main.get_command(click.Context(main), words[0])
                assert command, line
                command.make_context(words[0], words[1:]).close()  # parsed, with its plugins loaded; not carried out


def test_the_log_of_magic_tells_what_its_kept_pairs_say(monkeypatch):
    """Every line of docs/magic.py stands in the page, and the smoothest training is predicted best."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    magic = importlib.import_module("magic")
    pairs, page = pd.read_csv(magic.PAIRS), (ROOT / "docs" / "log" / "2026-11-27-magic.md").read_text()
    lines = magic.lines_of(pairs)
    assert all(f"| {' | '.join(line)} |" in page for line in lines)
    linear = {(line[0], line[1]): float(line[4]) for line in lines}
    assert linear["tiny", "epsilon=1e-2"] > 0.9 > 0.6 > linear["tiny", "epsilon=1e-8"]
