"""What is listed and completed without importing it."""

import os
import subprocess
import sys

import pytest

from bench.authoring.declared import declared
from bench.registry import methods, metrics
from bench.studies import STUDIES

HEAVY = ("torch", "diffusers", "scipy", "pandas")
LISTED = f"import sys, cli; cli.main(['list'], standalone_mode=False); print([n for n in {HEAVY} if n in sys.modules])"


def test_methods_and_their_variants_are_those_of_the_registry():
    known = [name for name in methods.names() if methods.is_installed(name.partition(":")[0])]
    assert [name for each in declared("methods") for name in each.names] == known
    assert {each.name: each.summary for each in declared("methods")} == {name: methods.get(name).summary for name in
        known if ":" not in name}  # fmt: skip


def test_metrics_are_those_of_the_registry_but_for_computed_ones():
    assert [each.name for each in declared("metrics")] == [name for name in metrics.names() if "@" not in name]


def test_studies_are_those_that_ship():
    assert {each.name: each.summary for each in declared("studies")} == {
        name: make().description for name, make in STUDIES.items()
    }


def test_a_broken_plugin_is_left_out(tmp_path, monkeypatch):
    package = tmp_path / "their_methods"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError\n")
    (package / "bad.py").write_text("def (:\n")
    (package / "good.py").write_text(
        "@bench.register_method\nclass Good:\n    name = 'good'\n    variants = {'more': {}}\n"
        "@register_method\nclass Computed:\n    name = 'a' + 'b'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Entry:
        def __init__(self, module):
            self.module, self.attr = module, ""

    entries = [Entry("their_methods"), Entry("their_methods.good"), Entry("not.there"), Entry("their_methods.gone")]
    monkeypatch.setattr("bench.authoring.declared.entry_points", lambda group: entries)
    [found] = declared("methods")
    assert found.names == ["good", "good:more"]


@pytest.mark.parametrize(
    ("words", "word"), [("bench run --method ours_e", "ours_ekfac"), ("bench run --study fac", "faces")]
)
def test_the_list_and_completion_import_nothing_heavy(words, word):
    listed = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[-1] == "[]"
    assert "loss_change" in listed.stdout
    asked = {"_BENCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "3"}
    program = [sys.executable, "-X", "importtime", "-c", "import cli; cli.main(prog_name='bench')"]
    completed = subprocess.run(program, capture_output=True, text=True, env=os.environ | asked)
    assert completed.stdout.splitlines() == [f"plain,{word}"]
    assert not any(line.endswith(f" {name}") for line in completed.stderr.splitlines() for name in HEAVY)
