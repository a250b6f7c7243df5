"""The command ``bench``: parses, composes, prints. Everything it does is a few calls on ``bench``'s objects.

What a command needs is imported when it runs, so that help and completion come at once.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.errors import EngineStopped, InvalidInput, PartlyFailed
from bench.foundation.commands import EXIT_CODES, Assigned, Assignment, BenchGroup, Duration, Named

if TYPE_CHECKING:
    from bench.contracts import Method
    from bench.experiments.abc import AbcRun
    from bench.experiments.customized import CustomizedRun
    from bench.experiments.experiment import Experiment
    from bench.experiments.leave_k_out import Run
    from bench.experiments.localized import Localized
    from bench.experiments.planning import Plan
    from bench.report.shown import Report
    from bench.studies import Study

Command = Callable[..., Any]


class _Folder(click.Path):
    """A path; an empty one is refused, which pathlib takes for the folder that one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip() or not str(value).isprintable():
            raise InvalidInput(f"{param.opts[0] if param else 'A path'} is {str(value)!r}: name a file or folder.")
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)
KINDS = ("studies", "methods", "metrics")
PLUGINS = "bench.plugins"
MSCOCO = "mscoco"
"""The study of the paper: its cost can be planned before there are data."""


def _named(kind: str, *others: str, form: str = "NAME") -> Named:
    """A name that is completed without importing what it names."""

    def known() -> list[str]:
        from bench.authoring.declared import declared

        return [*others, *(name for each in declared(kind) for name in each.names)]

    return Named(form, known)


METHOD, METRIC, STUDY = _named("methods", "all"), _named("metrics"), _named("studies", "abc")


def _options(*options: Command) -> Command:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _load_plugins(context: click.Context, option: click.Parameter, paths: Sequence[Path]) -> None:
    if paths:
        from bench.registry import load_plugin

        for path in paths:
            load_plugin(path)
        context.meta[PLUGINS] = paths


def _use_weights(context: click.Context, option: click.Parameter, given: Sequence[Assigned]) -> None:
    """Use the weights of --weights until the command ends."""
    if given:
        from bench.pretrained import weights
        from bench.pretrained.encoders import WEIGHTS

        context.with_resource(weights.chosen(dict(given), WEIGHTS))


def _folder(default: str) -> Command:
    return click.option("--results", type=FOLDER, help=f"Results folder. [default: {default}]")


plugins = click.option(
    "--plugin", multiple=True, type=FOLDER, callback=_load_plugins, expose_value=False, is_eager=True,
    help="A file with a method or metric of your own; repeatable.",
)  # fmt: skip
weights_option = click.option(
    "--weights", multiple=True, type=Assignment("--weights ENCODER=PATH"), metavar="ENCODER=PATH", expose_value=False,
    callback=_use_weights,
    help="A safetensors file or folder with pretrained weights, or 'random'; repeatable.",
)  # fmt: skip
settings_option = click.option(
    "--set", "settings", multiple=True, type=Assignment("--set METHOD.SETTING=VALUE"), metavar="METHOD.SETTING=VALUE",
    help="Change a method's setting.",
)  # fmt: skip
study_option = click.option(
    "--study",
    "study_name",
    type=STUDY,
    default="faces",
    show_default=True,
    help="Study to work on, or the file of one of your own (`bench study new`).",
)
own_study_option = click.option(
    "--study", "study_name", type=STUDY, help="Of your own: its file. [default: the folder says]"
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, …"
)
where = _options(plugins, weights_option, study_option, _folder("results/runs/STUDY"), device_option)
common = _options(where, settings_option)
method_option = click.option("--method", "method_name", type=METHOD, required=True)
methods_option = click.option(
    "--method", "method_names", type=METHOD, multiple=True, help="May be given repeatedly; 'all' for all."
)
metrics_option = click.option(
    "--metric", "metric_names", type=METRIC, multiple=True, help="May be given repeatedly. [default: the study's]"
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the study: original model, draws and noises."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be trained, what is cached, and what it would cost."
)
boxes_option = click.option(
    "--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1",
    help="Attribute a part of the picture, and measure in that part and in another: a box in pixels, or a part such as "
    "'hat' where the study knows where it lies. Once or twice.",
)  # fmt: skip
retraining_options = _options(
    click.option("--queries", type=int, help="How many of the study's queries. [default: the study's]"),
    click.option("--workers", type=int, default=1, show_default=True, help="Processes that train side by side."),
    click.option(
        "--stack",
        type=int,
        default=1,
        show_default=True,
        metavar="M",
        help="Train M models in one stack, for a GPU; another version of the study, as the last digits differ.",
    ),
    click.option(
        "--engine",
        default="local",
        show_default=True,
        metavar="NAME",
        help="Who trains: local processes, slurm, dask, or external: whoever runs `bench work` on the results folder.",
    ),
    click.option(
        "--engine-set",
        "engine_options",
        multiple=True,
        type=Assignment("--engine-set NAME=VALUE"),
        metavar="NAME=VALUE",
        help="Of the engine, such as partition=gpu, time=4h or scheduler=tcp://…; repeatable.",
    ),
    click.option("--keep-models-mib", type=float, default=1024.0, show_default=True, help="Older models are deleted."),
    click.option("--retry-failed", is_flag=True, help="Try trainings again that were set aside as failed."),
)
run_options = _options(
    methods_option,
    click.option("--scores", "score_files", multiple=True, type=FOLDER, help="Scores made elsewhere."),
    click.option("--name", "score_names", multiple=True, metavar="NAME", help="What to call the method of --scores."),
    click.option(
        "--floor", "floors", type=METHOD, multiple=True, help="Beside random; may be given repeatedly. [default: all]"
    ),
    click.option("--k", "budgets", multiple=True, type=int, help="Images to remove. [default: the study's]"),
    boxes_option,
    metrics_option,
    seed_option,
    click.option("--seeds", type=int, default=1, show_default=True, help="Evaluation seeds to average over."),
    click.option(
        "--design", "pairing", type=click.Choice(("paired", "unpaired", "both")), default="paired", show_default=True
    ),
    retraining_options,
)
until_options = _options(
    click.option(
        "--until-settled", "order", type=click.Choice(("all", "leader", "floors")),
        help="Add queries, at looks that the study fixes, until it is settled: every pair; the leading method against "
        "the rest; each method against each floor.",
    ),
    click.option("--max-queries", type=int, help="The limit of --until-settled. [default: all queries of the study]"),
)  # fmt: skip

known_options = _options(
    click.option("--models", type=int, help="Customized models: the first so many. [default: all]"),
    click.option("--distractors", type=int, help="Customized models: images beside the exemplars. [default: 1000]"),
    click.option("--pool", type=int, help="Customized models: rank among so many of the distractors. [default: all]"),
    click.option("--held-out", is_flag=True, help="Customized models: those held out, to tune settings on."),
    click.option("--without-word", is_flag=True, help="Customized models: leave V* out of the prompt to attribute."),
    click.option("--data", type=FOLDER, help="With --study abc: the folder of AbC's released data."),
    click.option("--base", type=FOLDER, help="With --study abc: the pipeline. [default: DATA/stable-diffusion-v1-4]"),
)
KNOWN = ("models", "distractors", "pool", "held_out", "without_word", "data", "base")
"""The names of these options."""


@click.group(
    cls=BenchGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="attribution-bench")
def main() -> None:
    """Who made this image possible? Remove the images that a method names, retrain, and see."""


@main.command("list")
@plugins
@click.argument("kind", type=click.Choice(KINDS), required=False)
@weights_option
def list_(kind: str | None) -> None:
    """List studies, methods and metrics; of one KIND, also variants, what each needs, and whether it runs here."""
    if kind is not None or click.get_current_context().meta.get(PLUGINS):
        from bench.authoring.listing import listing

        for title in KINDS:
            if kind in (None, title):
                _table(*listing(title), title=title)
        return
    from bench.authoring.declared import declared

    for title in KINDS:
        _table(("name", "what it is"), [(each.name, each.summary) for each in declared(title)], title=title)
    _line("`bench list methods` and `bench list metrics` say more: variants, needs, and whether each runs here")


@main.command()
@common
@run_options
@until_options
@known_options
@dry_run_option
def run(dry_run: bool, **given: Any) -> None:
    """Run the gold-standard test: score, remove the top K, retrain, measure.

    Scores made elsewhere enter by --scores FILE --name NAME; results/README.md tells how the file must look.

    With --study customized or abc nothing is removed: models were customized on known exemplars, and the table tells
    how high each method ranks these among distractors.
    """
    known = _known_run(given)
    if known is None:
        _execute(_run(given), dry_run)
        return
    if dry_run:
        raise InvalidInput(f"--dry-run: nothing is retrained in study '{given['study_name']}'; try --models 1.")
    if not known.methods:
        raise InvalidInput("No method was given: --method NAME (`bench list methods` shows them).")
    from bench.foundation.console import console_here, progress_on

    with progress_on(console_here()) as progress:
        found = known.execute(progress)
    _show(found)


@main.command("work")
@plugins
@weights_option
@click.option("--results", type=FOLDER, required=True, help="The results folder of a `bench run`.")
@own_study_option
@device_option
@click.option("--for", "seconds", type=Duration(), help="End after 55m, 4h, 90s. [default: never]")
@click.option("--max-models", type=click.IntRange(1), help="End after so many. [default: no limit]")
@click.option("--wait", is_flag=True, help="Where no run has begun, or nothing is left, wait until --for is over.")
@click.option("--threads", type=click.IntRange(1), help="[default: as many as this process may use]")
def work_(
    results: Path, study_name: str | None, device: str, seconds: float | None, max_models: int | None, wait: bool,
    threads: int | None,
) -> None:  # fmt: skip
    """Train what a `bench run` on the same folder asks for, here or on another machine, beside others that do so.

    Exit code 0 where nothing is left, 75 where there is more to do.
    """
    from bench.foundation.console import console_here, progress_on
    from bench.foundation.machine import available_threads, compute_threads, device_of
    from bench.retraining.worker import work
    from bench.studies import study

    device_of(device)
    own = study(study_name) if study_name else None
    with progress_on(console_here()) as progress, compute_threads(threads or available_threads()):
        limit = seconds or math.inf
        finished = work(results, device=device, seconds=limit, most=max_models, wait=wait, progress=progress, study=own)
    if not finished:
        raise EngineStopped("the time or the number of models is used up, and there is more to do.")
    _line("nothing is left to do")


@main.command("plan")
@common
@run_options
@until_options
@known_options
@click.option("--effect", type=float, help="A difference of the first metric: how many queries does it take to see it?")
@click.option(
    "--variances", multiple=True, type=FOLDER,
    help="MSCOCO: a results folder whose rows tell what pairing saves; repeatable. [default: those published]",
)  # fmt: skip
def plan_(effect: float | None, variances: Sequence[Path], **given: Any) -> None:
    """Say what `bench run` with the same options would cost, and what it could show. Nothing is trained or scored.

    Of a study that `bench prepare mscoco` wrote it says too what a whole board costs, as published and paired; so does
    --study mscoco, before any data are there.
    """
    if effect is not None and not 0 < abs(effect) < math.inf:
        raise InvalidInput(f"--effect {effect}: a difference other than 0 is expected, a finite number.")
    if given["study_name"] == MSCOCO:
        _print_board_cost(given["method_names"], variances)
        return
    known = _known_run(given)
    if known is not None:
        from bench.experiments.abc import AbcRun

        if not isinstance(known, AbcRun):
            raise InvalidInput(f"Study '{given['study_name']}' retrains nothing; what it takes: docs/customized.md.")
        _show(known.plan())
        return
    experiment = _run(given)
    data = experiment.study.data
    if variances and not (data and data.source.kind == "coco"):
        raise InvalidInput("--variances: for a study of MSCOCO alone, whose whole board is counted.")
    planned = _print_plan(experiment, effect)
    if data and data.source.kind == "coco":
        seconds = planned.times[0][0].training_seconds if planned.times else math.nan
        _print_board_cost(given["method_names"], variances, experiment.study, seconds)


@main.command("verify")
@plugins
@weights_option
@click.option("--results", type=FOLDER, required=True, help="A results folder.")
@click.option("--row", type=int, help="Number of a row of results.parquet, from 0; or:")
@click.option("--method", type=METHOD, help="As the table calls it.")
@click.option("--query", metavar="ID", help="Such as q03.")
@click.option("--k", type=int, help="Images removed.")
@click.option("--sample", type=int, help="Or: how many removals to draw by chance.")
@click.option("--seed", type=int, help="Of that draw. [default: another one each time]")
@own_study_option
@device_option
@click.option(
    "--tolerance", type=click.FloatRange(0.0),
    help="Where the published machine is another: share of the mean absolute value at that K. [default: the study's, "
    "0.01 for most]",
)  # fmt: skip
def verify_(
    results: Path, sample: int | None, seed: int | None, device: str, tolerance: float | None, study_name: str | None,
    **chosen: Any,
) -> None:  # fmt: skip
    """Recompute published values: retrain from their records, observe, compare. Exit code 1 where one disagrees."""
    from bench.experiments.verification import rows_to_verify, verify, verify_sample
    from bench.foundation.console import console_here, progress_on
    from bench.studies import study

    if tolerance is not None and not math.isfinite(tolerance):
        raise InvalidInput(f"--tolerance {tolerance}: a finite number is expected.")
    named = [f"--{name}" for name, value in chosen.items() if value is not None]
    if sample is None and seed is not None:
        raise InvalidInput("--seed is that of --sample N: say how many removals to draw.")
    if sample is not None and named:
        raise InvalidInput(f"--sample draws rows by chance; leave out {', '.join(named)}, or --sample.")
    with progress_on(console_here()) as progress:
        own = study(study_name) if study_name else None
        shared: dict[str, Any] = {"device": device, "tolerance": tolerance, "progress": progress, "study": own}
        if sample is not None:
            found = verify_sample(results, sample, seed=seed, **shared)
        else:
            found = verify(results, rows_to_verify(results, **chosen), **shared)
    _show(found)


@main.command("reference")
@where
@click.option("--k", "budgets", multiple=True, type=int, help="Images to remove. [default: 8 values up to 99 % of all]")
@click.option("--models", type=int, default=3, show_default=True, help="Random removals for each K.")
@metrics_option
@seed_option
@retraining_options
@dry_run_option
def reference_(dry_run: bool, models: int, budgets: Sequence[int], **given: Any) -> None:
    """Measure the random reference: random images removed, from few up to nearly all, the same for all methods."""
    from bench.experiments.reference import Reference

    _execute(Reference(models=models, budgets=budgets, **_shared(given)), dry_run)


@main.command("lds")
@common
@methods_option
@click.option("--subsets", type=int, default=64, show_default=True, help="Random halves to train on.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings of each half to average over.")
@retraining_options
@dry_run_option
def lds_(dry_run: bool, subsets: int, seeds: int, **given: Any) -> None:
    """Measure the linear datamodeling score: do sums of scores rank models that were trained on random halves?"""
    from bench.experiments.datamodels import DatamodelTest

    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    shared = _shared(given | {"metric_names": ["loss_change"], "seed": 0})
    _execute(DatamodelTest(methods=chosen, subsets=subsets, seeds=seeds, **shared), dry_run)


@main.command("groups")
@common
@methods_option
@click.option(
    "--by",
    multiple=True,
    default=("concept",),
    show_default=True,
    metavar="NAME",
    help="What groups the images: concept, style, a known part such as hat, or 'parts' for all of them; repeatable.",
)
@click.option("--largest", type=click.IntRange(1), help="Leave larger groups out. [default: half of all images]")
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings without each group to average over.")
@retraining_options
@dry_run_option
def groups_(dry_run: bool, by: Sequence[str], largest: int | None, seeds: int, **given: Any) -> None:
    """Ask which group of images made a query possible: leave each group out, retrain, compare with methods' scores."""
    from bench.experiments.groups import GroupTest

    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    shared = _shared(given | {"metric_names": ["loss_change"], "seed": 0})
    _execute(GroupTest(methods=chosen, by=by, largest=largest, seeds=seeds, **shared), dry_run)


@main.command("projection")
@common
@methods_option
@click.option(
    "--dimension",
    "dimensions",
    multiple=True,
    type=click.IntRange(1),
    help="To compare, beside the method's own; repeatable. [default: 256, 1024, 4096, 16384]",
)
@click.option("--images", type=int, default=500, show_default=True, help="To rank, drawn by chance.")
@click.option("--queries", type=int, help="How many of the study's queries. [default: the study's]")
@dry_run_option
def projection_(dry_run: bool, dimensions: Sequence[int], images: int, **given: Any) -> None:
    """Compare ranks by projected gradients with ranks by the gradients themselves. No retraining."""
    from bench.attribution.dimensions import DIMENSIONS
    from bench.experiments.projecting import ProjectionTest

    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    shared = _shared(given | {"metric_names": (), "seed": 0, "workers": 1})
    _execute(ProjectionTest(methods=chosen, dimensions=dimensions or DIMENSIONS, images=images, **shared), dry_run)


@main.command("reliability")
@common
@methods_option
@click.option("--k", "budgets", multiple=True, type=int, help="Of the top K to compare. [default: the study's]")
@click.option("--queries", type=int, help="How many of the study's queries. [default: the study's]")
@dry_run_option
def reliability_(dry_run: bool, budgets: Sequence[int], **given: Any) -> None:
    """Score every query twice, all noise drawn anew: does a method name the same images again? No retraining."""
    from bench.experiments.reliability import Reliability

    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    shared = _shared(given | {"metric_names": (), "seed": 0, "workers": 1})
    _execute(Reliability(methods=chosen, budgets=budgets, **shared), dry_run)


@main.command("forgetting")
@common
@methods_option
@click.option("--queries", type=int, help="How many of the study's queries. [default: the study's]")
@metrics_option
@dry_run_option
def forgetting_(dry_run: bool, **given: Any) -> None:
    """Ask what unlearning a query forgets: the query alone, or other prompts too? No retraining."""
    from bench.experiments.forgetting import Forgetting

    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    _execute(Forgetting(methods=chosen, **_shared(given | {"seed": 0, "workers": 1})), dry_run)


@main.command("localized")
@common
@methods_option
@boxes_option
@click.option(
    "--floor", "floors", type=METHOD, multiple=True, help="Beside random; may be given repeatedly. [default: all]"
)
@click.option("--k", "budgets", multiple=True, type=int, help="Images that are named. [default: the study's]")
@click.option("--queries", type=int, help="How many of the study's queries. [default: 16]")
@dry_run_option
def localized_(dry_run: bool, **given: Any) -> None:
    """Ask which images are named for a box on one part and on another: those that carry that part? No retraining.

    `bench run --box` removes them and measures in both parts.
    """
    chosen = _methods(given["method_names"], given["study_name"], given["settings"])
    _execute(_localized(chosen, given | {"metric_names": (), "seed": 0, "workers": 1}, retrain=False), dry_run)


@main.command("attribute")
@common
@method_option
@click.option("--prompt", required=True, help="What to generate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the initial noise.")
@click.option("--top", type=int, default=16, show_default=True, help="How many training images to show.")
@click.option(
    "--box", metavar="X0,Y0,X1,Y1", help="Attribute what is inside this box, in pixels, or a part such as 'hat' where "
    "the study knows where it lies. [default: the whole image]",
)  # fmt: skip
@click.option("--map", "with_maps", is_flag=True, help="Show where in each training image its loss rose.")
def attribute_(
    method_name: str, prompt: str, seed: int, top: int, box: str | None, with_maps: bool, **given: Any
) -> None:
    """Name the training images that mattered for a prompt, or for a part of its picture: a contact sheet."""
    from bench.experiments.leave_k_out import Run
    from bench.experiments.one_prompt import attribute
    from bench.foundation.console import console_here, progress_on
    from bench.studies import study

    [method] = _methods([method_name], given["study_name"], given["settings"])
    with progress_on(console_here()) as progress:
        home = Run(study=study(given["study_name"]), methods=[], results=given["results"], device=given["device"])
        answer = attribute(home.open(progress), method, prompt, seed=seed, top=top, box=box, with_maps=with_maps)
    _show(answer)


@main.group("queries", cls=BenchGroup)
def queries_() -> None:
    """Write the queries of a study as plain files, for methods that run elsewhere."""


@queries_.command("export")
@click.argument("output", type=FOLDER, metavar="DIR")
@plugins
@study_option
@_folder("results/runs/STUDY")
@device_option
@click.option("--queries", "count", type=int, help="How many of the study's queries. [default: the study's]")
@click.option("--images", "with_images", is_flag=True, help="Write the training images too.")
def export_(output: Path, study_name: str, count: int | None, with_images: bool, **given: Any) -> None:
    """Write pictures, prompts, noises and ids of the queries into DIR, so that a method in any language can start.

    Scores come back by `bench run --scores FILE --name NAME`. Where the results folder has no queries yet, the
    original model is trained first, which makes them.
    """
    from bench.experiments.exporting import export
    from bench.experiments.leave_k_out import Run
    from bench.foundation.console import console_here, progress_on
    from bench.studies import study

    with progress_on(console_here()) as progress:
        home = Run(study=study(study_name), methods=[], num_queries=count, **given)
        exported = export(home.open(progress), home.specs, output, with_images=with_images)
    _show(exported)


@main.command("tune")
@common
@method_option
@click.option(
    "--grid", "grids", multiple=True, required=True, type=Assignment("--grid SETTING=V1,V2,…"),
    metavar="SETTING=V1,V2,…", help="Values to try.",
)  # fmt: skip
@click.option("--queries", type=int, default=2, show_default=True, help="How many held-out queries.")
@click.option("--k", "budgets", multiple=True, type=int, help="Images to remove. [default: the study's middle K]")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that train side by side.")
@click.option(
    "--by", type=click.Choice(["loss-change", "carriers"]), default="loss-change", show_default=True,
    help="What is to be high: the loss change after retraining, or the share of the query's carriers that are "
    "found, without any retraining, where parts of images are known.",
)  # fmt: skip
@click.option("--save", is_flag=True, help="Keep the best settings for this study in the method's tuned.json.")
@dry_run_option
def tune_(
    method_name: str, grids: Sequence[Assigned], budgets: Sequence[int], by: str, dry_run: bool, **given: Any
) -> None:
    """Choose a method's settings on held-out queries."""
    from bench.experiments.tuning import TruthTuningRun, TuningRun, variants

    [method] = _methods([method_name], given["study_name"], given["settings"])
    names = [grid.name for grid in grids]
    if len(set(names)) < len(names):
        raise InvalidInput(f"--grid names a setting more than once: {', '.join(names)}.")
    tried = variants(method, {grid.name: grid.values for grid in grids})
    shared = _shared(given | {"metric_names": (), "seed": 0})
    own = {"tuned": method_name, "save": given["save"], "budgets": budgets or [shared["study"].middle_budget]}
    kind = TruthTuningRun if by == "carriers" else TuningRun
    _execute(kind(methods=tried, **own, **shared), dry_run)


@main.group("study", cls=BenchGroup)
def study_() -> None:
    """Studies of your own."""


@study_.command("new")
@click.argument("file", type=FOLDER)
@click.option(
    "--data", required=True, help="A folder of images, of WebDataset shards or of parquet files, or a hub id."
)
@click.option(
    "--format", "data_format", default="", help="imagefolder, webdataset, parquet or hub. [default: by content]"
)
@click.option("--split", default="train", show_default=True, help="Of a data set on the hub.")
@click.option("--size", type=int, help="Of the images, in pixels. [default: 16, or less where they are smaller]")
@click.option("--image-column", default="", help="[default: by its name]")
@click.option("--caption-column", default="", help="[default: by its name]")
@click.option("--id-column", default="", help="[default: by its name]")
@click.option("--skip-broken", is_flag=True, help="Leave bad examples out instead of refusing the data.")
@click.option("--captionless", is_flag=True, help="Take images without a caption, with the empty prompt.")
@click.option("--all-captions", is_flag=True, help="Take all captions of an image, not the first alone.")
@click.option(
    "--model", "pipeline", type=FOLDER,
    help="A pretrained Stable Diffusion: a folder of `save_pretrained`, or hub:OWNER/NAME.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Choice(("given", "fresh", "fine-tune")), default="given", show_default=True,
    help="Of --model: take it as it is, for `bench attribute`; train its architecture anew; or begin each training "
    "with its weights.",
)  # fmt: skip
def study_new(
    file: Path, data: str, data_format: str, size: int | None, pipeline: Path | None, weights: str, **given: Any
) -> None:
    """Look at the images and captions of --data, propose a study of them, write it to FILE.toml with its reasons.

    `--study FILE.toml` works in every command. docs/your-own-data.md tells the way from a folder to a verdict.
    """
    from bench.authoring.new_study import new_study
    from bench.foundation.console import console_here, progress_on
    from bench.study_file import DataTable

    where = data if data_format == "hub" else str(Path(data).expanduser().resolve())
    table = DataTable(source=where, size=0, format=data_format, **given)
    with progress_on(console_here()) as progress:
        made = new_study(file, table, size=size, pipeline=pipeline, weights=weights, progress=progress)
    _show(made)


@main.group("prepare", cls=BenchGroup)
def prepare_() -> None:
    """Large public data sets."""


@prepare_.command("mscoco")
@click.argument("file", type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="The folder train2017.")
@click.option("--captions", type=FOLDER, required=True, help="captions_train2017.json.")
@click.option(
    "--model", "pipeline", type=FOLDER, required=True,
    help="A folder with the autoencoder and the text encoder of Stable Diffusion 2 (`save_pretrained`), or "
    "hub:OWNER/NAME.",
)  # fmt: skip
@click.option("--skip-broken", is_flag=True, help="Leave bad images out instead of refusing the data.")
@click.option("--all-captions", is_flag=True, help="Take the first five captions of an image, not the first alone.")
@click.option(
    "--released",
    type=FOLDER,
    help="Folder of the paper's released latents, text states, model, Fisher and queries.",
)
@click.option(
    "--weights", type=click.Choice(("given", "fresh")), default="given", show_default=True,
    help="With --released: take its model and queries, for `bench attribute`; or its latents and text states alone, "
    "and train.",
)  # fmt: skip
def prepare_mscoco_(file: Path, images: Path, captions: Path, pipeline: Path, **given: Any) -> None:
    """Write the MSCOCO study of the paper to FILE.toml and prepare its images: cropped, 128 × 128 pixels."""
    from bench.authoring.mscoco import prepare_mscoco
    from bench.foundation.console import console_here, progress_on

    with progress_on(console_here()) as progress:
        made = prepare_mscoco(file, images, captions, pipeline, **given, progress=progress)
    _show(made)


@main.command("train-heads")
@plugins
@weights_option
@study_option
@_folder("results/runs/STUDY")
@device_option
@click.option("--backbone", required=True, metavar="NAME", help="An encoder's features, or, with --teacher, 'pixel'.")
@click.option("--teacher", type=METHOD, help="Train a head that ranks as this method does, for the method fast.")
@settings_option
@click.option("--out", type=FOLDER, required=True, help="The file to write, FILE.safetensors.")
@click.option("--queries", type=int, help="To train on. [default: 20 a model; with --teacher 240]")
@click.option("--models", type=int, help="Held-out customized models. [default: all 16]")
@click.option("--distractors", type=int, help="Images that exemplars are told from. [default: 1000]")
def train_heads_(study_name: str, teacher: str | None, settings: Sequence[Assigned], **given: Any) -> None:
    """Train heads on frozen features: AbC's maps on customized models, or a head that ranks as a slow teacher.

    --study customized trains maps on its held-out models. --study faces --teacher das trains the head of the method
    fast, on queries that no board reports. Both say what is gained on what they were not trained on.
    """
    from bench.experiments.heads import MapperTraining, RankerTraining
    from bench.experiments.known import board_study
    from bench.foundation.console import console_here, progress_on
    from bench.studies import study

    own = {name: value for name, value in given.items() if value is not None}
    made: MapperTraining | RankerTraining
    if teacher is not None:
        if named := [f"--{name}" for name in ("models", "distractors") if name in own]:
            raise InvalidInput(f"{', '.join(named)}: of customized models, not of a --teacher.")
        [chosen] = _methods([teacher], study_name, settings)
        made = RankerTraining(study=study(study_name), teacher=chosen, **own)
    elif (known := board_study(study_name)) and not settings:
        made = MapperTraining(study=known, **own)
    else:
        raise InvalidInput("Give --study customized to train AbC's maps, or --teacher METHOD to learn how that ranks.")
    with progress_on(console_here()) as progress:
        found = made.execute(progress)
    _show(found)


@main.command("leaderboard")
@plugins
@study_option
@click.option("--from", "sources", multiple=True, metavar="FOLDER", type=FOLDER, help="Results folder to merge.")
@_folder("results/STUDY")
def leaderboard_(study_name: str, sources: Sequence[Path], results: Path | None) -> None:
    """Merge runs into a leaderboard: parquet, CSV, Markdown, figures and one HTML page. Trains nothing."""
    from bench.experiments.known import board_study
    from bench.experiments.submissions import accepted
    from bench.report import customized
    from bench.report.publishing import publish
    from bench.studies import study

    if known := board_study(study_name):
        _show(customized.publish(known, sources, results or Path("results") / study_name))
        return
    the_study = study(study_name)
    board = results or Path("results") / the_study.name
    _show(publish(the_study, [*sources, *accepted(board, the_study)], board))


@main.command("submit")
@plugins
@weights_option
@click.option("--results", type=FOLDER, help="Folder of the run.")
@click.option("--method", "label", type=METHOD, help="As its table calls the method.")
@click.option("--out", "output", type=FOLDER, help="Folder to write. [default: submissions/STUDY-METHOD]")
@click.option("--check", "checked", type=FOLDER, help="Instead: a submission to check.")
@click.option("--board", type=FOLDER, help="Results folder of the board. [default: results/STUDY]")
@own_study_option
@click.option("--sample", type=click.IntRange(0), default=0, help="With --check: how many removals to retrain.")
@click.option("--seed", type=int, help="Of that draw. [default: another one each time]")
@device_option
def submit_(
    results: Path | None, label: str | None, output: Path | None, checked: Path | None, board: Path | None,
    study_name: str | None, **given: Any,
) -> None:  # fmt: skip
    """Write a method's rows, with all that they rest on, into a folder for a pull request; or check such a folder.

    docs/taking-part.md tells the way from a run to the board. Exit code 1 where a submission is refused.
    """
    from bench.experiments.submissions import check, submit
    from bench.foundation.console import console_here, progress_on
    from bench.studies import study

    own = study(study_name) if study_name else None
    if checked is not None:
        if results is not None or label is not None or output is not None:
            raise InvalidInput("--check FOLDER stands alone, with --board, --sample, --seed and --device.")
        with progress_on(console_here()) as progress:
            found = check(checked, board=board, progress=progress, own=own, **given)
    elif results is None or label is None:
        raise InvalidInput("Give --results DIR and --method NAME to write a submission, or --check FOLDER.")
    else:
        found = submit(results, label, output, board=board, own=own)
    _show(found)


@main.group("season", cls=BenchGroup)
def season_() -> None:
    """Hidden queries: commit to them before a season, reveal them after it (docs/taking-part.md)."""


@season_.command("commit")
@click.argument("season", type=FOLDER, metavar="SEASON.json")
@study_option
@click.option("--queries", type=FOLDER, required=True, help="CSV file with the columns prompt and seed.")
@click.option("--secret", type=FOLDER, required=True, help="File to write queries and salt to; keep it to yourself.")
@click.option("--closes", required=True, metavar="DATE", help="Last day on which methods are taken.")
def commit_(season: Path, study_name: str, queries: Path, secret: Path, closes: str) -> None:
    """Write the hash of hidden queries to SEASON.json, which is published, and what it is of to --secret."""
    from bench.experiments.seasons import commit

    _show(commit(study_name, queries, season, secret, closes))


@season_.command("reveal")
@click.argument("season", type=FOLDER, metavar="SEASON.json")
@click.option("--secret", type=FOLDER, required=True, help="The file of queries and salt, published by now.")
@own_study_option
def reveal_(season: Path, secret: Path, study_name: str | None) -> None:
    """Say whether the queries of --secret are those that SEASON.json committed to."""
    from bench.experiments.seasons import reveal
    from bench.studies import study

    _show(reveal(season, secret, study(study_name) if study_name else None))


@main.command("compare")
@click.argument("folders", nargs=-1, required=True, metavar="RESULTS…", type=FOLDER)
def compare_(folders: Sequence[Path]) -> None:
    """Say whether the boards in the folders RESULTS, and MSCOCO's as published, put the methods into the same order."""
    from bench.report.agreement import compare

    _show(compare(folders))


@main.command("doctor")
@click.argument("results", type=FOLDER)
@click.option("--seal", is_flag=True, help="Write the digests of files that carry none into digests.json.")
def doctor_(results: Path, seal: bool) -> None:
    """Look through the results folder RESULTS, one's own or a published one: what is damaged, what that costs, how it
    heals. Nothing in it is changed; exit code 1 where something is damaged."""
    from bench.report import doctor

    _show(doctor.seal(results) if seal else doctor.examine(results))


@main.command("check")
@plugins
@weights_option
@click.argument("names", nargs=-1, required=True, metavar="NAME…", type=METHOD)
@click.option("--study", "study_name", type=STUDY, default="small", show_default=True, help="Study to try it on.")
@_folder("a temporary folder")
@settings_option
def check_(names: Sequence[str], study_name: str, results: Path | None, settings: Sequence[Assigned]) -> None:
    """Try every promise of the contract on methods, your own included, and say how to mend what is broken."""
    from bench.authoring.checking import check
    from bench.registry import named
    from bench.studies import study

    broken, the_study = 0, study(study_name)
    with tempfile.TemporaryDirectory() as temporary:
        for method in _methods(names, study_name, settings):
            _line(named(method, the_study.name).label)
            for finding in check(method, the_study, results or Path(temporary)):
                broken += finding.status == "broken"
                message = f": {finding.message}" if finding.message else ""
                _line(f"  {finding.status:8} {finding.check}{message}")
    if broken:
        raise PartlyFailed(f"{broken} promise{'s' if broken > 1 else ''} broken.")


@main.command("new-method")
@click.argument("name")
@click.option("--folder", type=FOLDER, default=Path(), help="Where to write. [default: here]")
def new_method(name: str, folder: Path) -> None:
    """Write a method to begin with, NAME.py, and its test."""
    from bench.authoring.template import write_method

    source, test = write_method(name, folder)
    _line(f"wrote {source} and {test}")
    _line(f"next: bench check --plugin {source} {name}")
    _line(f"then: bench run --plugin {source} --method {name} --queries 2")


def _known_run(given: dict[str, Any]) -> CustomizedRun | AbcRun | None:
    """The experiment of a study in which nothing is retrained; None for another. Takes its options out of ``given``."""
    from bench.experiments.known import NAMES, known_run

    own = {name: given.pop(name) for name in KNOWN}
    name = given["study_name"]
    if name not in NAMES:
        if named := [f"--{option.replace('_', '-')}" for option, value in own.items() if value]:
            raise InvalidInput(f"{', '.join(named)}: for --study {' or '.join(NAMES)} alone.")
        return None
    usual = {"seeds": 1, "pairing": "paired", "workers": 1, "stack": 1, "engine": "local", "keep_models_mib": 1024.0}
    others = {
        option: value
        for option, value in given.items()
        if option not in ("study_name", "method_names", "settings") and value != usual.get(option)
    }
    chosen = _methods(given["method_names"], name, given["settings"]) if given["method_names"] else []
    return known_run(name, chosen, others | own)


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """What every experiment takes."""
    from bench.experiments.known import retrained
    from bench.registry import metrics
    from bench.studies import study

    retrained(given["study_name"])
    chosen, stack = study(given["study_name"]), given.get("stack", 1)
    recipe = replace(chosen.recipe, stack=stack) if stack != 1 else chosen.recipe
    return {
        "study": replace(chosen, seed=given["seed"], recipe=recipe),
        "metrics": [metrics.create(name) for name in given["metric_names"]],
        "num_queries": given["queries"],
        "results": given["results"],
        "device": given["device"],
        "workers": given["workers"],
        "size_limit_mib": given.get("keep_models_mib", 1024.0),
        "retry_failed": given.get("retry_failed", False),
        "engine": given.get("engine", "local"),
        "engine_options": {one.name: one.text for one in given.get("engine_options", ())},
    }


def _run(given: dict[str, Any]) -> Run | Localized:
    from bench.authoring.external import ImportedScores
    from bench.experiments.leave_k_out import Run
    from bench.experiments.until_settled import UntilSettled

    _import_scores(given["score_files"], given["score_names"])
    chosen = _methods([*given["method_names"], *given["score_names"]], given["study_name"], given["settings"])
    if given["boxes"]:
        if given["order"] is not None or given["max_queries"] is not None:
            raise InvalidInput("--box and --until-settled do not go together: give --queries for a fixed number.")
        return _localized(chosen, given, seeds=given["seeds"], pairing=given["pairing"])
    own = {name: given[name] for name in ("floors", "budgets", "seeds", "pairing")} | _shared(given)
    if given["order"] is None:
        if given["max_queries"] is not None:
            raise InvalidInput("--max-queries is the limit of --until-settled; give --queries for a fixed number.")
        made = Run(methods=chosen, **own)
    elif given["queries"] is not None:
        raise InvalidInput("--until-settled finds the number of queries: give --max-queries instead of --queries.")
    else:
        made = UntilSettled(methods=chosen, order=given["order"], max_queries=given["max_queries"], **own)
    for method in chosen:
        if isinstance(method, ImportedScores):
            method.expect(made.study.dataset.ids, [spec.id for spec in made.specs])
    return made


def _localized(chosen: Sequence[Method], given: dict[str, Any], **own: Any) -> Localized:
    """The experiment of the boxes of --box."""
    from bench.experiments.localized import Localized

    shared = {name: given[name] for name in ("floors", "budgets", "boxes")} | _shared(given)
    return Localized(methods=chosen, **shared, **own)


def _execute(experiment: Experiment[Any], dry_run: bool) -> None:
    """Run and show what was found; the plan alone where ``dry_run``."""
    from bench.foundation.console import console_here, progress_on

    if dry_run:
        _print_plan(experiment)
        return
    with progress_on(console_here()) as progress:
        found = experiment.execute(progress)
    _show(found)


def _show(report: Report) -> None:
    """What was found; exit code 1 where a part of it failed."""
    for head, lines in report.tables():
        _table(head, lines)
    for note in report.notes():
        _line(note)
    if problems := report.problems():
        raise PartlyFailed("; ".join(problems))


def _print_plan(experiment: Experiment[Any], effect: float | None = None) -> Plan:
    from bench.experiments.planning import plan

    planned = plan(experiment, effect=effect)
    _show(planned)
    return planned


def _print_board_cost(
    names: Sequence[str], folders: Sequence[Path], own: Study | None = None, seconds: float = math.nan
) -> None:
    """What a board of MSCOCO costs, of ``own`` sizes or of those that `bench prepare mscoco` gives a study."""
    from bench.experiments.board_cost import Scale, board_cost, mscoco

    scale = Scale.of(own) if own else mscoco()
    chosen = _methods(names, own.name if own else MSCOCO, ()) if names else ()
    _show(board_cost(scale, chosen, folders, seconds))


def _import_scores(files: Sequence[Path], names: Sequence[str]) -> None:
    from bench.authoring.external import imported
    from bench.registry import register_method

    if len(files) != len(names):
        raise InvalidInput(
            f"--scores was given {len(files)} times and --name {len(names)} times; each file needs a name."
        )
    for path, name in zip(files, names, strict=True):
        register_method(imported(path, name))


def _methods(names: Sequence[str], study_name: str, settings: Sequence[Assigned]) -> list[Method]:
    """The methods by name ("all" stands for all, without variants), with the settings of --set."""
    from bench.registry import methods
    from bench.studies import study
    from bench.study_file import is_file

    if is_file(study_name):
        study_name = study(study_name).name
    if not names:
        raise InvalidInput("No method was given: --method NAME (`bench list methods` shows them), or --scores FILE.")
    every = [method.name for method in methods]
    chosen: dict[str, dict[str, Any]] = {each: {} for name in names for each in (every if name == "all" else [name])}
    for setting in settings:
        method, dot, key = setting.name.partition(".")
        if not dot or method not in chosen:
            raise InvalidInput(
                f"--set {setting.name}={setting.text}: expected METHOD.SETTING=VALUE with METHOD one of "
                f"{', '.join(chosen)}."
            )
        if key in chosen[method]:
            raise InvalidInput(f"--set {setting.name} is given more than once.")
        chosen[method][key] = setting.value
    return [methods.create(name, study_name, **values) for name, values in chosen.items()]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    from bench.foundation.console import console_here, print_table

    console = console_here()
    print_table(console, head, list(lines), title=title)
    if title:
        console.print()


def _line(text: str) -> None:
    """Text as it is, in one line."""
    from bench.foundation.console import print_line

    print_line(text)


if __name__ == "__main__":
    main()
