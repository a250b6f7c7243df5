"""The contract suite: what every attribution method promises, tried on a small study.

``bench check NAME`` runs it on any registered method, a third party's included; its messages coach the author. Each
check below is a function that raises ``Broken`` with what is wrong and how to mend it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from bench.contracts import CEILING, AttributionContext, Build, Method
from bench.diffusion.queries import Query
from bench.diffusion.regions import Corners, Region
from bench.errors import BenchError, InvalidInput
from bench.experiments.scoring import checked_scores
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.machine import available_threads, compute_threads
from bench.studies import Study

NUM_QUERIES = 2
NUM_SELF_QUERIES = 16
SELF_RANK_SHARE = 0.01
"""Of the images, and no fewer than three: on a small study the first percent is one or two."""
SELF_RANK_LEVEL, MIRROR_LEVEL = 0.05, 0.01
"""Of the sign tests that tell a broken promise from chance."""
T = TypeVar("T")
TOLERANCE = 1e-3
"""Scores count as equal when they differ by less than this share of their standard deviation (float summation)."""


GLOBAL_STATES: dict[str, Callable[[], str]] = {
    "torch": lambda: str(torch.get_rng_state().tolist()),
    "numpy": lambda: str(np.asarray(np.random.get_state()[1]).tolist()),  # type: ignore[index]  # noqa: NPY002
    "random": lambda: str(random.getstate()),
}
"""What must stay as it was, by the library that owns it."""


class Broken(Exception):
    """A promise is not kept."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name, in words.
        status: "passed", "broken" or "excused" (the method declares why the promise does not hold for it).
        message: what is wrong and how to mend it, or the excuse.
    """

    check: str
    status: str
    message: str = ""


@dataclass(frozen=True, eq=False)
class Trial:
    """What the checks share: the method, its context on a small study, and queries."""

    method: Method
    context: AttributionContext
    queries: tuple[Query, ...]

    def scores(self, queries: Sequence[Query], context: AttributionContext | None = None) -> Tensor:
        """Scores from an empty cache, so that nothing is merely remembered."""
        where = context or self.context
        return checked_scores(self.method, replace(where, cached=_fresh_cache()), queries)

    @cached_property
    def once(self) -> Tensor:
        """Scores of the queries, from an empty cache: what most checks compare with."""
        return self.scores(self.queries)

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of the images, in pixels."""
        height, width = self.context.dataset.images.shape[1:3]
        return width, height

    @property
    def whole_box(self) -> Corners:
        """All of an image."""
        return 0, 0, *self.picture

    @property
    def small_box(self) -> Corners:
        """The upper left part of an image's middle."""
        width, height = self.picture
        return width // 4, height // 4, max(width // 2, width // 4 + 1), max(height // 2, height // 4 + 1)

    @property
    def boxes_outside(self) -> dict[str, Corners]:
        """Boxes that must be refused, by what is wrong with them."""
        width, height = self.picture
        return {"which is empty": (1, 1, 1, height), "which leaves the image": (0, 0, width + 1, height)}

    def within(self, box: Corners) -> tuple[Query, ...]:
        """The queries, to be attributed in ``box`` alone."""
        _, rows, columns = self.context.model.latent_shape
        region = Region(box, self.picture, (columns, rows))
        return tuple(query.within(region) for query in self.queries)

    @cached_property
    def self_places(self) -> tuple[list[int], list[int]]:
        """Places that training images take when given as the query: as they are, and mirrored.

        Images of equal score all take the last of their places. The images are drawn from the half of the data set
        that resembles its mirror images least.
        """
        dataset = self.context.dataset
        unlike = (dataset.pixels() - dataset.pixels(flipped=True)).flatten(1).norm(dim=1).argsort(descending=True)
        drawn = np.random.default_rng(1).permutation(max(1, len(dataset) // 2))[:NUM_SELF_QUERIES]
        chosen = [int(unlike[index]) for index in drawn]
        made = [_query_of(self, index, side) for side in (0, 1) for index in chosen]
        rows = self.scores(made)
        places = [int((row >= row[index]).sum()) for row, index in zip(rows, chosen * 2, strict=True)]
        return places[: len(chosen)], places[len(chosen) :]


def check(method: Method, study: Study, folder: Path | None = None) -> list[Finding]:
    """Try every promise of ``method`` on ``study``; the model is trained in ``folder``, or in a temporary one.

    A method that cannot run here is excused from all but its description.
    """
    findings = [_finding("describes itself", lambda: _describes_itself(method))]
    if why := method.unavailable():
        return [*findings, Finding("can run here", "excused", why)]
    with tempfile.TemporaryDirectory() as temporary, compute_threads(available_threads()):
        workspace = Workspace(study, folder or Path(temporary), metrics=())
        queries = tuple(workspace.queries(study.queries(NUM_QUERIES)))
        trial = Trial(method, workspace.context(), queries)
        for promise, function in PROMISES.items():
            findings.append(_finding(promise, lambda tried=function: tried(trial)))  # type: ignore[misc]
            if promise == FIRST and findings[-1].status == "broken":
                break
    return findings


def _finding(promise: str, tried: Callable[[], str | None]) -> Finding:
    try:
        excuse = tried()
    except (Broken, BenchError) as broken:
        return Finding(promise, "broken", str(broken))
    return Finding(promise, "excused", excuse) if excuse else Finding(promise, "passed")


def _describes_itself(method: Method) -> None:
    if not method.summary.strip():
        raise Broken("`summary` is empty: give the definition in one line; `bench list` and the leaderboard show it.")
    try:
        json.dumps([method.settings(), method.sources()])
    except TypeError as error:
        raise Broken(
            f"The settings are no JSON ({error}): fields may be numbers, texts, booleans, or tuples of these, so that "
            "a result can name what produced it. Keep tensors and models out of the fields; load them in `scores`."
        ) from error


def _returns_scores(trial: Trial) -> None:
    try:
        _ = trial.once
    except Exception as error:
        raise Broken(
            f"{error} Rows are queries, columns are training images in the order of context.dataset."
        ) from error


def _is_deterministic(trial: Trial) -> None:
    with _global_seeds(2):
        again = trial.scores(trial.queries)
    if not _equal(trial.once, again):
        raise Broken(
            "Two calls gave different scores. Something is drawn from global random state (torch.rand, np.random.*, "
            "random.*) or a fresh generator. Key every number: seeds.generator('what it is for', context.seed, id, …)."
        )


def _leaves_global_random_state_alone(trial: Trial) -> None:
    with _global_seeds(3):
        before = {name: state() for name, state in GLOBAL_STATES.items()}
        trial.scores(trial.queries)
        moved = [name for name, state in GLOBAL_STATES.items() if state() != before[name]]
    if moved:
        raise Broken(
            f"The global random state of {', '.join(moved)} moved: whoever runs after this method gets other numbers. "
            "Use bench.foundation.seeds instead of torch.manual_seed, torch.rand, np.random.* or random.*."
        )


def _scores_queries_alone(trial: Trial) -> None:
    alone = torch.cat([trial.scores([query]) for query in trial.queries])
    if not _equal(trial.once, alone):
        raise Broken(
            "A query's scores change with the other queries asked at the same time. Do not normalise over queries, "
            "and key noise by query.noise_key rather than by its place in the list."
        )


def _ignores_the_order_of_images(trial: Trial) -> None:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(trial.context.dataset)))
    reordered = trial.scores(trial.queries, _reordered(trial.context, order))
    if not _equal(trial.once[:, order], reordered):
        raise Broken(
            "An image's scores change with its place in the data set, so also with the batch that it falls into. Key "
            "noise by the image's id, not by its index or batch; draw images from sorted ids; compute no statistics "
            "over a batch (batch norm in training mode, softmax over the batch)."
        )


def _ranks_a_training_image_first(trial: Trial) -> str | None:
    if trial.method.self_rank:
        return trial.method.self_rank
    places, _ = trial.self_places
    total = len(trial.context.dataset)
    allowed = max(3, round(SELF_RANK_SHARE * total))
    within = sum(place <= allowed for place in places)
    if binomtest(within, len(places), alternative="less").pvalue < SELF_RANK_LEVEL:
        flipped = " They are at the bottom: the sign is wrong, or all scores are equal; higher is more influential."
        raise Broken(
            f"Training images given as the query took places {places} of {total}: {within} of {len(places)} are within "
            f"the first {allowed}, where at least half should be."
            f"{flipped if float(np.median(places)) > 0.9 * total else ''} If that is not to be expected of this "
            "method, say why in the class attribute `self_rank`."
        )
    return None


def _takes_the_larger_of_the_mirror_images(trial: Trial) -> str | None:
    if trial.method.self_rank:
        return trial.method.self_rank
    places, mirrored = trial.self_places
    worse = sum(after > before for before, after in zip(places, mirrored, strict=True))
    changed = sum(after != before for before, after in zip(places, mirrored, strict=True))
    if changed and binomtest(worse, changed, alternative="greater").pvalue < MIRROR_LEVEL:
        raise Broken(
            f"Training images given as the query took places {places}, and when the query was mirrored {mirrored}. "
            "Training saw both, so score each image as it is and mirrored (context.data.latents[:, 1], "
            "context.dataset.pixels(flipped=True)) and take the maximum of the two scores."
        )
    return None


def _does_not_read_the_parts(trial: Trial) -> str | None:
    dataset = trial.context.dataset
    if trial.method.role == CEILING:
        return "a ceiling reads the parts"
    if not dataset.parts:
        return "this study's images have no known parts; `--study faces` has them"
    order = np.random.default_rng(4).permutation(len(dataset)).tolist()
    exchanged = {part: tuple(column[index] for index in order) for part, column in dataset.parts.items()}
    blind = replace(trial.context, dataset=replace(dataset, parts=exchanged))
    if not _equal(trial.once, trial.scores(trial.queries, blind)):
        raise Broken(
            "The scores change when the columns of parts are exchanged between images. These columns are the truth "
            "that methods are judged by: read images and captions alone (a ceiling, which reads them, has "
            "`role = bench.contracts.CEILING`)."
        )
    return None


def _writes_only_to_its_cache(trial: Trial) -> None:
    with _watched_writes() as written:
        trial.scores(trial.queries)
    left = [path for path in sorted(written) if Path(path).is_file()]  # temporary ones that are gone do no harm
    if left:
        raise Broken(
            f"Files were written outside the cache: {', '.join(left)}. Keep tensors by context.cached(key, "
            "build); it is shared, checked, written whole or not at all, and goes with the results folder."
        )


def _honours_regions(trial: Trial) -> str | None:
    """The whole image as region changes no bit, a small one changes scores, and one outside the image is refused."""
    for place, box in trial.boxes_outside.items():
        _refuses(trial, place, box)
    if trial.method.role == CEILING:
        return "a ceiling reads the parts, not the picture"
    if not trial.method.honours_regions:
        return "it has no regions (`honours_regions` is False): it attributes whole images only"
    if not torch.equal(trial.once, trial.scores(trial.within(trial.whole_box))):
        raise Broken(
            "The whole image as region gives other scores than the whole image. Take what is inside by "
            "query.region.of_latent or .of_image, which cut out a box and leave a whole image as it is, and do the "
            "same with it as without a region."
        )
    if _equal(trial.once, trial.scores(trial.within(trial.small_box))):
        raise Broken(
            "A small box gives the whole image's scores: query.region is not read. Read it, or leave out "
            "`honours_regions = True`."
        )
    return None


def _refuses(trial: Trial, place: str, box: Corners) -> None:
    """Raise Broken where a ``box`` that is ``place`` is taken, or refused without the size of the images."""
    width, height = trial.picture
    try:
        trial.within(box)
    except InvalidInput as error:
        if f"{width} × {height}" in str(error):
            return
        raise Broken(f"The box {box}, {place}, is refused without the size of the images: {error}") from error
    raise Broken(f"The box {box}, {place}, is not refused.")


FIRST = "returns queries × images, finite"
PROMISES: dict[str, Callable[[Trial], str | None]] = {
    FIRST: _returns_scores,
    "gives the same scores twice": _is_deterministic,
    "leaves global random state alone": _leaves_global_random_state_alone,
    "scores a query whichever others are asked": _scores_queries_alone,
    "scores an image wherever it stands": _ignores_the_order_of_images,
    "ranks a training image given as the query first": _ranks_a_training_image_first,
    "takes the larger of an image and its mirror image": _takes_the_larger_of_the_mirror_images,
    "reads no column of parts": _does_not_read_the_parts,
    "attributes a region of the query": _honours_regions,
    "writes nothing outside its cache": _writes_only_to_its_cache,
}


def _query_of(trial: Trial, index: int, side: int) -> Query:
    """A query whose picture is a training image, mirrored where ``side`` is 1."""
    like, dataset, latent = trial.queries[0], trial.context.dataset, trial.context.data.latents[index, side]
    noise = seeds.normal(trial.context.model.latent_shape, "check-noise", dataset.ids[index])
    name = f"self-{dataset.ids[index]}-{side}"
    return replace(like, id=name, prompt=dataset.captions[index], noise=noise, latent=latent)


def _reordered(context: AttributionContext, order: Tensor) -> AttributionContext:
    """The same data set with its images in another order."""
    old = context.dataset

    def shuffled(column: Sequence[T]) -> tuple[T, ...]:
        return tuple(column[index] for index in order.tolist())

    dataset = replace(
        old,
        ids=shuffled(old.ids),
        captions=shuffled(old.captions),
        concepts=shuffled(old.concepts),
        styles=shuffled(old.styles),
        images=old.images[order],
        images_digest="",
        parts={part: shuffled(column) for part, column in old.parts.items()},
        more_captions=shuffled(old.more_captions) if old.more_captions else (),
    )
    return replace(context, dataset=dataset, data=context.data.only(order))


def _equal(one: Tensor, two: Tensor) -> bool:
    scale = one.std(1, keepdim=True).clamp_min(torch.finfo(one.dtype).tiny)
    return bool(((one - two).abs() <= TOLERANCE * scale).all())


def _fresh_cache() -> Callable[[str, Build], dict[str, Tensor]]:
    """A cache in memory that begins empty."""
    kept: dict[str, Mapping[str, Tensor]] = {}

    def cached(key: str, build: Build) -> dict[str, Tensor]:
        if key not in kept:
            kept[key] = {name: tensor.detach().cpu().clone() for name, tensor in build().items()}
        return dict(kept[key])

    return cached


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """Global random state set to ``seed`` within, and put back after."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


_watching: set[str] | None = None
_hooked = False


@contextmanager
def _watched_writes() -> Iterator[set[str]]:
    """Collect the paths of files opened for writing, but for Python's own caches and devices."""
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_note_write)  # an audit hook cannot be taken out again; it rests while _watching is None
        _hooked = True
    _watching = set()
    try:
        yield _watching
    finally:
        _watching = None


def _note_write(event: str, arguments: tuple[object, ...]) -> None:
    if _watching is None or event != "open":
        return
    path, _, flags = arguments
    if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and isinstance(path, str | bytes):
        name = os.fsdecode(path)
        if not name.startswith("/dev/") and "__pycache__" not in name:
            _watching.add(name)
