"""The command ``bench``: parses, composes, prints. Everything it does is a few calls on ``bench``'s objects."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.authoring.checking import check
from bench.authoring.external import imported
from bench.authoring.template import write_method
from bench.contracts import Method
from bench.errors import BenchError, InvalidInput
from bench.experiments.datamodels import DatamodelTest
from bench.experiments.datamodels import table_cells as table_cells_of_lds
from bench.experiments.leave_k_out import DEFAULT_METRICS, DESIGNS, Report, Run
from bench.experiments.one_prompt import attribute
from bench.experiments.planning import plan
from bench.experiments.reference import Reference
from bench.experiments.tuning import tune, variants
from bench.experiments.verification import TOLERANCE, rows_to_verify, verify
from bench.experiments.workspace import Workspace
from bench.foundation.console import progress_on
from bench.pretrained import weights
from bench.pretrained.encoders import WEIGHTS
from bench.registry import label_of, load_plugin, methods, metrics, register_method, variant_of
from bench.report.board import RANKED_BY
from bench.report.publishing import line_cells, publish
from bench.report.summary import TABLE_HEAD, table_cells
from bench.studies import STUDIES, study

INTERRUPTED = 130
Command = Callable[..., Any]


def _options(*options: Command) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _load_plugins(context: click.Context, option: click.Parameter, paths: Sequence[Path]) -> None:
    def work() -> None:
        for path in paths:
            load_plugin(path)

    _guarded(work)


plugins = click.option(
    "--plugin",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=_load_plugins,
    expose_value=False,
    is_eager=True,
    help="A file with a method or metric of your own; repeatable.",
)


def _use_weights(context: click.Context, option: click.Parameter, given: Sequence[str]) -> None:
    """Use the weights of --weights until the command ends."""
    pairs = dict(_pair(text, "--weights ENCODER=PATH") for text in given)
    context.with_resource(weights.chosen(pairs, WEIGHTS))


weights_option = click.option(
    "--weights",
    multiple=True,
    metavar="ENCODER=PATH",
    expose_value=False,
    callback=lambda *given: _guarded(lambda: _use_weights(*given)),
    help="A safetensors file or folder with pretrained weights, or 'random'; repeatable.",
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="METHOD.SETTING=VALUE", help="Change a method's setting."
)
where = _options(
    plugins,
    weights_option,
    click.option("--study", "study_name", default="fashion", show_default=True, help="Study to work on."),
    click.option("--results", type=click.Path(path_type=Path), help="Results folder. [default: results/runs/STUDY]"),
    click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, …"),
)
common = _options(where, settings_option)
methods_option = click.option(
    "--method", "method_names", multiple=True, metavar="NAME", help="May be given repeatedly; 'all' for all."
)
metrics_option = click.option(
    "--metric", "metric_names", multiple=True, default=DEFAULT_METRICS, show_default=True, metavar="NAME"
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the study: original model, draws and noises."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be trained, what is cached, and what it would cost."
)
retraining_options = _options(
    click.option("--queries", type=int, help="How many of the study's queries. [default: the study's]"),
    click.option("--workers", type=int, default=1, show_default=True, help="Processes that train side by side."),
    click.option("--keep-models-mib", type=float, default=1024.0, show_default=True, help="Older models are deleted."),
)
run_options = _options(
    methods_option,
    click.option(
        "--scores", "score_files", multiple=True, type=click.Path(path_type=Path), help="Scores made elsewhere."
    ),
    click.option("--name", "score_names", multiple=True, metavar="NAME", help="What to call the method of --scores."),
    click.option(
        "--k", "budgets", multiple=True, type=int, help="Images to remove; repeatable. [default: the study's]"
    ),
    metrics_option,
    seed_option,
    click.option("--seeds", type=int, default=1, show_default=True, help="Evaluation seeds to average over."),
    click.option("--design", type=click.Choice(DESIGNS), default="paired", show_default=True),
    retraining_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="attribution-bench")
def main() -> None:
    """Who made this image possible? Remove the images that a method names, retrain, and see."""


@main.command("list")
@plugins
@click.argument("kind", type=click.Choice(["studies", "methods", "metrics"]), required=False)
@weights_option
def list_(kind: str | None) -> None:
    """List studies, methods and metrics, or one KIND of these."""

    def work() -> None:
        console = _console()
        listings: dict[str, tuple[tuple[str, ...], Callable[[], list[tuple[str, ...]]]]] = {
            "studies": (("name", "what it is"), lambda: [(name, make().description) for name, make in STUDIES.items()]),
            "methods": (("name", "what it is", "needs", "here"), lambda: [_listed(name) for name in methods.names()]),
            "metrics": (
                ("name", "what it is", "here"),
                lambda: [_listed_metric(name) for name in metrics.names()],
            ),
        }
        for title, (head, lines) in listings.items():
            if kind in (None, title):
                table = Table(*head, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
                for line in lines():
                    table.add_row(*(escape(cell) for cell in line))
                console.print(table, "")

    _guarded(work)


def _listed(name: str) -> tuple[str, ...]:
    """A method's line: its name, definition, needs, and whether it can run here."""
    method = methods.create(name)
    variant = variant_of(name)
    settings = ", ".join(f"{key}={value}" for key, value in method.variants[variant].items()) if variant else ""
    return name, settings or method.summary, method.needs, f"no: {why}" if (why := method.unavailable()) else "yes"


def _listed_metric(name: str) -> tuple[str, ...]:
    """A metric's line: its name, definition, direction, and whether it can be computed here."""
    metric = metrics.create(name)
    direction = "higher" if metric.higher_is_better else "lower"
    return name, f"{metric.summary}; {direction} is better", f"no: {why}" if (why := metric.unavailable()) else "yes"


@main.command()
@common
@run_options
@dry_run_option
def run(**given: Any) -> None:
    """Run the gold-standard test: score, remove the top K, retrain, measure.

    Scores made elsewhere enter by --scores FILE --name NAME; results/README.md tells how the file must look.
    """

    def work() -> None:
        _import_scores(given["score_files"], given["score_names"])
        the_run = _run(given)
        console = _console()
        if given["dry_run"]:
            _print_plan(the_run)
            return
        with progress_on(console) as progress:
            report = the_run.execute(progress)
        _print(console, report)
        if report.failures:
            raise BenchError("; ".join(f"{name} failed: {why}" for name, why in report.failures.items()))
        if len(report.skipped) == len(the_run.methods):
            raise BenchError("every method was skipped; see the reasons above.")

    _guarded(work)


@main.command("plan")
@common
@run_options
@click.option("--effect", type=float, help="A difference of the first metric: how many queries does it take to see it?")
def plan_(effect: float | None, **given: Any) -> None:
    """Say what `bench run` with the same options would cost, and what it could show. Nothing is trained or scored."""

    def work() -> None:
        _import_scores(given["score_files"], given["score_names"])
        _print_plan(_run(given), effect)

    _guarded(work)


@main.command("verify")
@plugins
@weights_option
@click.option("--results", type=click.Path(path_type=Path), required=True, help="A results folder.")
@click.option("--row", type=int, help="Number of a row of results.parquet, from 0; or:")
@click.option("--method", metavar="NAME", help="As the table calls it.")
@click.option("--query", metavar="ID", help="Such as q03.")
@click.option("--k", type=int, help="Images removed.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, …")
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0),
    default=TOLERANCE,
    show_default=True,
    help="Where the published machine is another: share of the mean absolute figure at that K.",
)
def verify_(
    results: Path, row: int | None, method: str | None, query: str | None, k: int | None, device: str, tolerance: float
) -> None:
    """Recompute a published figure: retrain from its records, observe, compare. Exit code 1 where it disagrees."""

    def work() -> None:
        console = _console()
        rows = rows_to_verify(results, row=row, method=method, query=query, k=k)
        with progress_on(console) as progress:
            found = verify(results, rows, device=device, tolerance=tolerance, progress=progress)
        for one in found:
            _line(console, one.line())
        if not all(one.agrees for one in found):
            sys.exit(1)

    _guarded(work)


@main.command("reference")
@where
@click.option("--k", "budgets", multiple=True, type=int, help="Images to remove. [default: 8 values up to 99 % of all]")
@click.option("--models", type=int, default=3, show_default=True, help="Random removals for each K.")
@metrics_option
@seed_option
@retraining_options
@dry_run_option
def reference_(**given: Any) -> None:
    """Measure the random reference: random images removed, from few up to nearly all, the same for all methods."""

    def work() -> None:
        console = _console()
        the_run = Reference(
            study=replace(study(given["study_name"]), seed=given["seed"]), models=given["models"],
            metrics=[metrics.create(name) for name in given["metric_names"]], budgets=given["budgets"],
            num_queries=given["queries"], results=given["results"], device=given["device"], workers=given["workers"],
            size_limit_mib=given["keep_models_mib"],
        )  # fmt: skip
        if given["dry_run"]:
            _print_plan(the_run)
            return
        with progress_on(console) as progress:
            report = the_run.execute(progress)
        _print(console, report)

    _guarded(work)


@main.command("lds")
@common
@methods_option
@click.option("--subsets", type=int, default=64, show_default=True, help="Random halves to train on.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings of each half to average over.")
@retraining_options
def lds_(**given: Any) -> None:
    """Measure the linear datamodeling score: do sums of scores rank models that were trained on random halves?"""

    def work() -> None:
        console = _console()
        test = DatamodelTest(
            study=study(given["study_name"]),
            methods=_methods(given["method_names"], given["study_name"], given["settings"]),
            subsets=given["subsets"], seeds=given["seeds"], num_queries=given["queries"], results=given["results"],
            metrics=[metrics.create("loss_change")], device=given["device"], workers=given["workers"],
            size_limit_mib=given["keep_models_mib"],
        )  # fmt: skip
        with progress_on(console) as progress:
            found = test.measure(progress)
        table = Table("method", "LDS [95 % interval over subsets]", "subsets", box=None, padding=(0, 2, 0, 0))
        for cells in table_cells_of_lds(found.table):
            table.add_row(*(escape(cell) for cell in cells))
        console.print(table)
        for name, why in found.skipped.items():
            _line(console, f"skipped {name}: {why}")
        for why in found.failures:
            _line(console, f"a subset was left out: {why}")

    _guarded(work)


@main.command("attribute")
@common
@click.option("--method", "method_name", required=True, metavar="NAME")
@click.option("--prompt", required=True, help="What to generate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the initial noise.")
@click.option("--top", type=int, default=16, show_default=True, help="How many training images to show.")
def attribute_(
    study_name: str, results: Path | None, device: str, settings: Sequence[str], method_name: str,
    prompt: str, seed: int, top: int,
) -> None:  # fmt: skip
    """Name the training images that mattered for a prompt: a contact sheet, no retraining."""

    def work() -> None:
        the_study, console = study(study_name), _console()
        [method] = _methods([method_name], study_name, settings)
        with progress_on(console) as progress:
            folder = results or Path("results/runs") / study_name
            observed = [metrics.create(name) for name in DEFAULT_METRICS]
            workspace = Workspace(the_study, folder, metrics=observed, device=device, progress=progress)
            answer = attribute(workspace, method, prompt, seed=seed, top=top)
        table = Table(*answer.table.columns, box=None, padding=(0, 2, 0, 0))
        for line in answer.table.itertuples(index=False):
            table.add_row(str(line.rank), line.id, line.caption, f"{line.score:.6f}")
        console.print(table)
        _line(console, f"contact sheet: {answer.sheet}")

    _guarded(work)


@main.command("tune")
@common
@click.option("--method", "method_name", required=True, metavar="NAME")
@click.option(
    "--grid",
    "grids",
    multiple=True,
    required=True,
    metavar="SETTING=V1,V2,…",
    help="Values to try; repeatable.",
)
@click.option("--queries", type=int, default=2, show_default=True, help="How many held-out queries.")
@click.option("--k", "budgets", multiple=True, type=int, help="Images to remove. [default: the study's middle K]")
@click.option("--workers", type=int, default=1, show_default=True)
@click.option("--save", is_flag=True, help="Keep the best settings for this study in the method's tuned.json.")
def tune_(
    study_name: str, results: Path | None, device: str, settings: Sequence[str], method_name: str,
    grids: Sequence[str], queries: int, budgets: Sequence[int], workers: int, save: bool,
) -> None:  # fmt: skip
    """Choose a method's settings on held-out queries, by leave-K-out retraining."""

    def work() -> None:
        the_study, console = study(study_name), _console()
        pairs = [_pair(grid, "--grid SETTING=V1,V2,…") for grid in grids]
        [method] = _methods([method_name], study_name, settings)
        grid = {name: [_value(value) for value in values.split(",")] for name, values in pairs}
        the_run = Run(
            study=the_study, methods=variants(method, grid), held_out=True, device=device,
            budgets=budgets or [the_study.middle_budget], num_queries=queries, results=results, workers=workers,
        )  # fmt: skip
        with progress_on(console) as progress:
            tuning = tune(the_run, method_name, progress)
        _print(console, tuning.report)
        _line(console, f"best: {tuning.best.settings()} on {tuning.tuned_on}")
        if save:
            _line(console, f"kept in {tuning.save(study_name)}")

    _guarded(work)


@main.command("leaderboard")
@plugins
@click.option("--study", "study_name", default="fashion", show_default=True, help="Whose runs.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Results folder to merge; repeatable.",
)
@click.option("--results", type=click.Path(path_type=Path), help="Leaderboard's folder. [default: results/STUDY]")
def leaderboard_(study_name: str, sources: Sequence[Path], results: Path | None) -> None:
    """Merge runs into a leaderboard: parquet, CSV, Markdown, figures and one HTML page. Trains nothing."""

    def work() -> None:
        console = _console()
        published = publish(study(study_name), sources, results or Path("results") / study_name)
        table = Table("K", "rank", "method", RANKED_BY, box=None, padding=(0, 2, 0, 0))
        for line in published.board.lines:
            table.add_row(*(escape(cell) for cell in line_cells(line)))
        console.print(table)
        for note in published.notes:
            _line(console, note)
        if failed := sum(len(failure.queries) for failure in published.board.failures):
            _line(console, f"{failed} figures failed and are left out; the page lists them with their reasons.")
        for path in published.files:
            _line(console, f"written: {path}")

    _guarded(work)


@main.command("check")
@plugins
@weights_option
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--study", "study_name", default="small", show_default=True, help="Study to try the method on.")
@click.option(
    "--results", type=click.Path(path_type=Path), help="Where its model is kept. [default: a temporary folder]"
)
@settings_option
def check_(names: Sequence[str], study_name: str, results: Path | None, settings: Sequence[str]) -> None:
    """Try every promise of the contract on methods, your own included, and say how to mend what is broken."""

    def work() -> None:
        console, broken = _console(), 0
        with tempfile.TemporaryDirectory() as temporary:
            for method in _methods(names, study_name, settings):
                _line(console, label_of(method, study_name))
                for finding in check(method, study(study_name), results or Path(temporary)):
                    broken += finding.status == "broken"
                    message = f": {finding.message}" if finding.message else ""
                    _line(console, f"  {finding.status:8} {finding.check}{message}")
        if broken:
            raise BenchError(f"{broken} promise{'s' if broken > 1 else ''} broken.")

    _guarded(work)


@main.command("new-method")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(), help="Where to write. [default: here]")
def new_method(name: str, folder: Path) -> None:
    """Write a method to begin with, NAME.py, and its test."""

    def work() -> None:
        source, test = write_method(name, folder)
        _line(_console(), f"wrote {source} and {test}")
        _line(_console(), f"next: bench check --plugin {source} {name}")
        _line(_console(), f"then: bench run --plugin {source} --method {name} --study tiny")

    _guarded(work)


def _run(given: dict[str, Any]) -> Run:
    the_study = replace(study(given["study_name"]), seed=given["seed"])
    return Run(
        study=the_study,
        methods=_methods([*given["method_names"], *given["score_names"]], the_study.name, given["settings"]),
        metrics=[metrics.create(name) for name in given["metric_names"]],
        budgets=given["budgets"],
        num_queries=given["queries"],
        seeds=given["seeds"],
        design=given["design"],
        results=given["results"],
        device=given["device"],
        workers=given["workers"],
        size_limit_mib=given["keep_models_mib"],
    )


def _print_plan(the_run: Run, effect: float | None = None) -> None:
    console = _console()
    for line in plan(the_run, effect=effect).lines():
        _line(console, line)


def _import_scores(files: Sequence[Path], names: Sequence[str]) -> None:
    if len(files) != len(names):
        raise InvalidInput(
            f"--scores was given {len(files)} times and --name {len(names)} times; each file needs a name."
        )
    for path, name in zip(files, names, strict=True):
        register_method(imported(path, name))


def _methods(names: Sequence[str], study_name: str, settings: Sequence[str]) -> list[Method]:
    """The methods by name ("all" stands for all, without variants), with the settings of --set."""
    if not names:
        raise InvalidInput("No method was given: --method NAME (`bench list methods` shows them), or --scores FILE.")
    every = [method.name for method in methods]
    chosen: dict[str, dict[str, Any]] = {each: {} for name in names for each in (every if name == "all" else [name])}
    for setting in settings:
        path, value = _pair(setting, "--set METHOD.SETTING=VALUE")
        method, dot, key = path.partition(".")
        if not dot or method not in chosen:
            raise InvalidInput(
                f"--set {setting}: expected METHOD.SETTING=VALUE with METHOD one of {', '.join(chosen)}."
            )
        chosen[method][key] = _value(value)
    return [methods.create(name, study_name, **values) for name, values in chosen.items()]


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidInput(f"'{text}' is not of the form {form}.")
    return name, value


def _value(text: str) -> Any:
    """A number, true, false or null as JSON writes them, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print(console: Console, report: Report) -> None:
    table = Table(*TABLE_HEAD, box=None, padding=(0, 2, 0, 0))
    for cells in table_cells(report.table):
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    for name, why in report.skipped.items():
        _line(console, f"skipped {name}: {why}")
    for name, why in report.skipped_metrics.items():
        _line(console, f"skipped {name}: {why}")
    for method, facts in report.manifest["methods"].items():
        _line(console, f"{method}: {facts['tuned_on']}")
    _line(console, f"table, frame, manifest and figures: {report.folder}")


def _line(console: Console, text: str) -> None:
    """Text as it is, in one line."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=180)


def _guarded(work: Callable[[], None]) -> None:
    """What the user can mend ends with one line and exit code 2; Ctrl-C keeps everything that is finished."""
    try:
        work()
    except BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"bench: a file could not be read or written: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("bench: interrupted; what is finished is kept. Run the same command to go on.", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
