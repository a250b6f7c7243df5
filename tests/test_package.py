"""The packages: built from the checkout, installed elsewhere, used beside modules of the same names."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench import shipped

pytest.importorskip("build", reason="`pip install build` builds the packages")
ROOT = Path(__file__).parents[1]
OWN = {
    "cli.py": "raise SystemExit('the command line of the user')",
    "metrics.py": "accuracy = 1.0",
    "methods/__init__.py": "mine = True",
}
CLASHES = """
import json, metrics, methods
import bench.registry as registry
print(json.dumps([metrics.accuracy, methods.mine, registry.methods.names(), registry.metrics.names()]))
"""


def done(*command, cwd, **env):
    """What ``command`` prints where nothing of this checkout is on the path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([*map(str, command)], cwd=cwd, env=clean | env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The source package, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    [source], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory):
    """The folder of programs of an environment that has the wheel, and the packages of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    places = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    Path(places["purelib"], "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    python = Path(places["scripts"], "python")
    pip = (sys.executable, "-m", "pip", "--python", python)
    done(*pip, "install", "--quiet", "--no-deps", "--no-index", packages[1], cwd=home)
    return python.parent


@pytest.fixture
def own(tmp_path):
    """A user's folder, with modules that are called as the plugins are."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def test_the_wheel_has_one_top_level_name_and_all_licences(packages):
    with zipfile.ZipFile(packages[1]) as wheel:
        names = wheel.namelist()
        [metadata] = [wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"bench"}
    for text in ("LICENSE", "ATTRIBUTION.md", "Apache-2.0.txt", "CC-BY-4.0.txt", "CC0-1.0.txt"):
        assert any("/licenses/" in name and name.endswith(text) for name in names), text
    assert "Author: the attribution-bench developers" in metadata


def test_the_wheel_runs_a_study_beside_a_users_own_modules(installed, own):
    command = ("run", "--study", "tiny", "--method", "pixel", "--floor", "random", "--queries", "1", "--k", "20")
    done(installed / "bench", *command, "--results", "here", cwd=own, PYTHONPATH=str(own))
    rows = pd.read_parquet(own / "here" / "results.parquet")
    assert set(rows["method"]) == {"pixel", "random", "nothing removed"}
    assert rows["status"].eq("done").all()


@pytest.mark.slow
def test_neither_hides_the_other(installed, own):
    assert "loss_change" in done(installed / "python", "-m", "bench", "list", "metrics", cwd=own)
    found = json.loads(done(installed / "python", "-c", CLASHES, cwd=own))
    assert found[:2] == [1.0, True]
    assert "ours" in found[2]
    assert "loss_change" in found[3]
    beside = json.loads(done(sys.executable, "-c", CLASHES, cwd=own, PYTHONPATH=f"{own}{os.pathsep}{ROOT}"))
    assert beside == found


@pytest.mark.slow
def test_a_source_package_runs_its_own_tests(packages, tmp_path):
    with tarfile.open(packages[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    tests = ("tests/test_published.py", "tests/test_statistics.py", "-p", "no:cacheprovider")
    done(sys.executable, "-m", "pytest", *tests, cwd=unpacked, PYTHONPATH=str(unpacked))
    assert {path.name for path in (unpacked / "tests").iterdir()} >= {
        path.name for path in (ROOT / "tests").glob("*.py")
    }


def test_the_version_is_that_of_the_distribution():
    assert bench.__version__ == version("attribution-bench")


def test_a_checkout_uses_its_top_level():
    assert shipped.module("methods").__name__ == "methods"
    with pytest.raises(AttributeError, match="nothing"):
        _ = shipped.nothing
