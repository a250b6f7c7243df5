"""A study: data set, model, recipe, queries and budgets, all fixed and summed up in one digest.

Every embedded study is a function below that returns one; its docstring states a command, the machine it ran on and
the values to expect. ``study("fashion")`` finds them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bench import study_file
from bench.data import prepared
from bench.data.dataset import Dataset, load_embedded
from bench.data.face_queries import FaceQuery, face_queries, fixed_query
from bench.data.prepared import Prepared
from bench.diffusion.autoencoder import autoencoder
from bench.diffusion.fine_tuning import FineTuning
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.phrases import text_encoder
from bench.diffusion.pipelines import unet_digest
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.regions import Region, parsed_corners
from bench.diffusion.released import Released
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import Recipe
from bench.errors import InvalidInput, UnknownName
from bench.foundation import seeds
from bench.foundation.digests import digest_of

TRAINING_VERSION = 1
"""Raised whenever the same study would train other models: part of every study digest."""
MAX_CONTROLS = 8
HELD_OUT = "held-out"
"""Begins the ids of held-out queries, which are for tuning and never reported."""
HELD_OUT_SEED = 1000


class Look(NamedTuple):
    """When ``bench run --until-settled`` looks, and what probability of a false verdict it spends on that look.

    Attributes:
        queries: the first so many of the study.
        significance: family-wise, of this look; those of all looks sum to at most 5 %.
    """

    queries: int
    significance: float


LOOKS = (Look(16, 0.01), Look(32, 0.015), Look(64, 0.025))
"""Of a study with 64 queries or more. None at 8: the smallest p-value of 8 sign flips is 1/128, so a look there could
settle something only by spending a sixth of the error, and hardly ever does (docs/log/2026-11-25-verdicts.md)."""
LOOKS_16 = (Look(12, 0.015), Look(16, 0.035))
"""Of a study with 16 queries."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is held fixed while methods are compared.

    Attributes:
        name: by which commands call it.
        dataset_name, split, per_concept: of ``load_embedded``.
        model, recipe, sampler: of the generative model.
        prompts: of the reported queries, one query each.
        held_out_prompts: of the queries that settings are tuned on, never reported.
        prompt_seeds, held_out_seeds: of the noises of these queries; () for 0, 1, … and for 1000, 1001, …
        budgets: the K of the study, ascending.
        num_queries: how many queries a run has by default.
        metrics: names of those that a run computes by default.
        seed: of the original model θ0, of its training draws and of everything else that is keyed.
        margins: (metric, difference between two methods that does not matter): inside it they are equivalent.
        data: of a user's own data set, prepared in a folder; None for one that ships with the project.
        given: folder of the pipeline whose weights are θ0, which is then not trained; "" where it is.
        rounding: share of the mean absolute value of a metric by which a value may differ where another kind of machine
            trains the same models: training may amplify the last digits.
        looks: of a run that adds queries until an order is settled, fixed before the first one; the last at all
            queries or fewer.
        fine_tuning: what every training starts from, and what moves; None to train all weights from the beginning.
        released: latents, text states and more that others published; None where the study's own model encodes D.
    """

    name: str
    dataset_name: str
    split: str = "train"
    per_concept: int | None = None
    model: ModelConfig
    recipe: Recipe
    sampler: Sampler
    prompts: tuple[str, ...]
    held_out_prompts: tuple[str, ...]
    budgets: tuple[int, ...]
    num_queries: int = 8
    seed: int = 0
    prompt_seeds: tuple[int, ...] = ()
    held_out_seeds: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ("loss_change", "regeneration_mse")
    margins: tuple[tuple[str, float], ...] = ()
    rounding: float = 0.01
    looks: tuple[Look, ...] = LOOKS
    data: Prepared | None = None
    given: str = ""
    fine_tuning: FineTuning | None = None
    released: Released | None = None
    description: str = field(default="", compare=False)

    @cached_property
    def dataset(self) -> Dataset:
        """D, read on first use."""
        if self.data is not None:
            return prepared.dataset(self.data)
        return load_embedded(self.dataset_name, split=self.split, per_concept=self.per_concept)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """What a trained model depends on."""
        model, recipe = asdict(self.model), asdict(self.recipe)
        if not recipe["channels_last"]:
            del recipe["channels_last"]  # studies older than the setting keep their digests
        for name, usual in (("unet", ""), ("beta_schedule", "linear"), ("clip_range", None)):
            if model[name] == usual:
                del model[name]  # the same
        for name, plain in (("stack", 1), ("epsilon", 1e-8), ("precision", "float32"), ("compile", False)):
            if recipe[name] == plain:
                del recipe[name]
        return {
            "training_version": TRAINING_VERSION,
            "dataset": self.dataset.digest,
            "text_encoder": text_encoder(model.pop("text_encoder"), self.model.num_tokens).digest,
            "autoencoder": autoencoder(model.pop("autoencoder")).digest,
            "model": model,
            "recipe": recipe,
            "seed": self.seed,
            **({"given": unet_digest(self.given)} if self.given else {}),
            **({"fine_tuning": self.fine_tuning.parts} if self.fine_tuning else {}),
            **({"released": self.released.digest} if self.released else {}),
        }

    def fresh_model(self) -> DiffusionModel:
        """An untrained model that reads the captions of D, the new word of a fine-tuning among them."""
        model = DiffusionModel(self.model)
        return self.fine_tuning.with_word(model) if self.fine_tuning else model

    @cached_property
    def digest(self) -> str:
        """Names this version of the study: equal digests train equal models."""
        return digest_of(self.parts)

    @property
    def untrainable(self) -> str:
        """Why no model of this study can be trained; "" where they can."""
        return self.given and (
            f"The model of study '{self.name}' is given, and how it was trained is not known: what it would be without "
            "some images cannot be told by retraining. `bench attribute` and `bench localized` work; for a verdict let "
            f"the study train its model ([{'released' if self.released else 'model'}] weights in the study file)."
        )

    @property
    def middle_budget(self) -> int:
        """The K at which methods are compared first."""
        return self.budgets[len(self.budgets) // 2]

    def margin(self, metric: str) -> float | None:
        """A difference of ``metric`` that does not matter; None where the study fixes none."""
        return dict(self.margins).get(metric)

    def queries(self, count: int) -> list[QuerySpec]:
        """The first ``count`` reported queries."""
        if not 0 < count <= len(self.prompts):
            raise InvalidInput(
                f"--queries {count}: study '{self.name}' has {len(self.prompts)} queries; "
                f"give 1 to {len(self.prompts)}."
            )
        chosen = self.prompt_seeds or range(len(self.prompts))
        return [QuerySpec(f"q{i:02d}", prompt, chosen[i]) for i, prompt in enumerate(self.prompts[:count])]

    def held_out_queries(self, count: int) -> list[QuerySpec]:
        """The first ``count`` held-out queries, on which settings are tuned: other prompts, other seeds."""
        if not 0 < count <= len(self.held_out_prompts):
            raise InvalidInput(
                f"--queries {count}: study '{self.name}' holds out {len(self.held_out_prompts)} queries for tuning."
            )
        chosen = self.held_out_seeds or range(HELD_OUT_SEED, HELD_OUT_SEED + len(self.held_out_prompts))
        prompts = self.held_out_prompts[:count]
        return [QuerySpec(f"{HELD_OUT}-{i:02d}", prompt, chosen[i]) for i, prompt in enumerate(prompts)]

    def region(self, text: str) -> Region:
        """The region of the images that ``text`` names: a part whose box is known, or X0,Y0,X1,Y1 in pixels.

        Raises InvalidInput for any other text, and for a box that is empty or leaves the image.
        """
        height, width = self.dataset.images.shape[1:3]
        picture, latent = (width, height), (self.model.sample_size, self.model.sample_size)
        if text in self.dataset.boxes:
            return Region(self.dataset.boxes[text], picture, latent, name=text)
        corners = parsed_corners(text)
        if corners is None:
            parts = _join(sorted(self.dataset.boxes))
            raise InvalidInput(
                f"'{text}' is no box: X0,Y0,X1,Y1 is expected, whole numbers of pixels from the upper left corner of "
                f"images of {width} × {height} pixels, X1 and Y1 excluded"
                + (f"; or a part: {parts}." if parts else f". The parts of the images of '{self.name}' are not known.")
            )
        return Region(corners, picture, latent)

    def controls(self, query: Query | QuerySpec, *, held_out: bool = False) -> list[QuerySpec]:
        """The control queries of ``query``: other queries with other prompts, one for each prompt.

        They depend on the study alone, never on which queries a run asks for. Of more than MAX_CONTROLS prompts, as
        many are drawn, keyed by the query's prompt. Held-out queries have held-out controls.
        """
        pool = self.held_out_queries(len(self.held_out_prompts)) if held_out else self.queries(len(self.prompts))
        first: dict[str, QuerySpec] = {}
        for spec in pool:
            if spec.prompt != query.prompt:
                first.setdefault(spec.prompt, spec)
        others = list(first.values())
        chosen = seeds.generator("controls", query.prompt).permutation(len(others))[:MAX_CONTROLS]
        return [others[int(index)] for index in sorted(chosen)]

    def known_set(self, query: Query | QuerySpec) -> frozenset[int]:
        """Indices of the training images that carry the rare parts that ``query`` was chosen to show.

        Empty where that is not known: the data set has no parts, or the query is not one of the study's own. It is
        for ceilings, metrics and reports; no method reads it.
        """
        fixed = self._fixed(query)
        return frozenset(fixed.known_set(self.dataset)) if fixed else frozenset()

    def group(self, query: Query | QuerySpec) -> str:
        """The group that ``query`` is reported in apart: "named" or "unnamed"; "" where there are no groups."""
        fixed = self._fixed(query)
        return fixed.group if fixed else ""

    def _fixed(self, query: Query | QuerySpec) -> FaceQuery | None:
        """What is known of ``query`` where the data set knows its parts."""
        return fixed_query(query.prompt, query.seed) if self.dataset.parts else None

    def check_budget(self, k: int) -> int:
        """``k`` where it can be removed; raises InvalidInput otherwise."""
        if not 0 < k < len(self.dataset):
            raise InvalidInput(
                f"K = {k} images cannot be removed from the {len(self.dataset)} of study '{self.name}': "
                f"give --k between 1 and {len(self.dataset) - 1} (this study's own: {_join(self.budgets)})."
            )
        return k


def fashion() -> Study:
    """Fashion-MNIST at 14×14 pixels: 6,000 photos of ten kinds of clothes. Dense and aligned, so it resolves well.

    ``bench run --study fashion --method ours --floor random --queries 2 --k 500 --workers 2`` took 8:55 min and 0.9 GiB
    from an empty folder (two cores of an Intel Xeon at 2.0 GHz, 2026-11-22): loss change 0.0048 ± 0.0026 of ``ours``,
    −0.0002 ± 0.0004 of ``random``.

    The margin of equivalence of ``loss_change`` is a tenth of the best effect published: +0.00835 of ``d_trak`` over
    ``random`` at K = 500, 8 queries (results/fashion, 2026-11-22), rounded.
    """
    kinds = (
        "an ankle boot",
        "a bag",
        "a dress",
        "trousers",
        "a sneaker",
        "a pullover",
        "a sandal",
        "a t-shirt",
    )
    return Study(
        name="fashion",
        description="6,000 photos of clothes at 14×14 pixels (Fashion-MNIST)",
        dataset_name="fashion",
        model=ModelConfig(sample_size=14, latent_channels=1, block_channels=(16, 32), cross_attention=(False, True)),
        recipe=Recipe(num_steps=700, batch_size=64, learning_rate=2e-3, weight_power=0.5),
        sampler=Sampler(num_steps=50, guidance=1.25),
        prompts=tuple(f"a photo of {kind}" for kind in kinds) * 2,
        held_out_prompts=tuple(f"a photo of {kind}" for kind in ("a coat", "a shirt", "a bag", "an ankle boot")),
        budgets=(180, 500, 1500),
        margins=(("loss_change", 0.0008),),
        looks=LOOKS_16,
    )


def tiny() -> Study:
    """A slice of ``fashion`` for tests: 200 images, a small network, a few steps. It resolves nothing.

    A run of three methods on two queries takes seconds anywhere; its values mean nothing.
    """
    whole = fashion()
    return replace(
        whole,
        name="tiny",
        description="200 images of fashion and a small network, for tests",
        per_concept=20,
        model=replace(whole.model, block_channels=(8, 8), norm_groups=4),
        recipe=replace(whole.recipe, num_steps=30, batch_size=32, learning_rate=5e-3),
        sampler=Sampler(num_steps=5),
        budgets=(5, 20, 50),
        num_queries=2,
        margins=(),
    )


def small() -> Study:
    """``tiny`` trained until its weights tell images of one caption apart, for ``bench check``.

    A model that has hardly begun to learn is moved by all images of a caption alike, so that the query's own gradient
    is lost among theirs, whatever the method (``docs/decisions.md``).
    """
    whole = tiny()
    return replace(
        whole,
        name="small",
        description="as tiny, trained long enough to tell images apart: for bench check",
        recipe=replace(whole.recipe, num_steps=400),
    )


def emoji() -> Study:
    """Smileys in three styles at 32×32 pixels: 480 images, three or two of each concept. Colourful, text-rich, sparse.

    The reported queries are held-out (concept, style) pairs: the model knows the concept in the other styles and the
    style from the other concepts.

    ``bench run --study emoji --method ours --floor random --queries 2 --k 8 --workers 2`` took 18:57 min from an empty
    folder (two cores of an Intel Xeon at 2.0 GHz, 2026-11-22; 310 s for two models): loss change 0.0104 ± 0.0010 of
    ``ours``, 0.0003 ± 0.0054 of ``random``.
    """
    held_out = load_embedded("emoji", split="held-out")
    return Study(
        name="emoji",
        description="480 smileys in three styles at 32×32 pixels, captions such as 'grinning face, noto style'",
        dataset_name="emoji",
        model=ModelConfig(
            sample_size=8, latent_channels=4, block_channels=(32, 64), cross_attention=(False, True),
            num_tokens=11, autoencoder="emoji_autoencoder",
        ),
        recipe=Recipe(num_steps=1600, batch_size=64, learning_rate=3e-3, weight_power=0.5),
        sampler=Sampler(num_steps=50, guidance=2.0),
        prompts=held_out.captions[::2],
        held_out_prompts=held_out.captions[1::2],
        budgets=(2, 8, 32),
        num_queries=2,
        looks=(Look(12, 0.05),),
    )  # fmt: skip


def faces() -> Study:
    """Portraits of 16×16 pixels whose parts are known: 6,000 faces, captions such as "pale skin, pink hat, smile".

    Every query shows one or two rare values, named by its prompt or brought by its noise; the training images that
    carry them are its known set (``bench.data.face_queries``). How the recipe was found:
    docs/log/2026-11-25-faces-recipe.md. Of 200 held-out prompts 85 % show every part that they ask for.

    The margin of equivalence of ``loss_change`` follows the rule of ``fashion``, a tenth of the best effect published:
    +0.0368 of ``carriers`` over ``random`` at K = 500, 16 queries (results/faces, 2026-11-27), fixed after these.

    Its training amplifies rounding: of 15 removals made on a CPU and on a GPU, 14 differ by less than a fifth of the
    mean loss change, one by more than it (docs/decisions.md, "What verification may allow").
    """
    reported, held_out = face_queries(), face_queries("held-out")
    return Study(
        name="faces",
        description="6,000 portraits at 16×16 pixels whose parts are known",
        dataset_name="faces",
        model=ModelConfig(
            sample_size=16, latent_channels=3, block_channels=(16, 32), cross_attention=(False, True),
            attention_heads=2, num_tokens=16, text_encoder="phrases",
        ),
        recipe=Recipe(
            num_steps=1000, batch_size=32, learning_rate=8e-3, caption_dropout=0.0, weight_power=0.75, num_shards=1,
            channels_last=True,
        ),
        sampler=Sampler(num_steps=25, guidance=1.0),
        prompts=tuple(query.prompt for query in reported),
        prompt_seeds=tuple(query.seed for query in reported),
        held_out_prompts=tuple(query.prompt for query in held_out),
        held_out_seeds=tuple(query.seed for query in held_out),
        budgets=(100, 200, 500),
        metrics=("loss_change", "regeneration_mse", "part_change", "other_change"),
        margins=(("loss_change", 0.0037),),
        rounding=0.25,
    )  # fmt: skip


def customized() -> Study:
    """Models that were customized on known exemplars (``bench.data.customizations``), with ``faces`` as their base.

    No retraining: a method is to name a model's exemplars among images of the base's training data
    (``bench.experiments.customized``). This is the base: the study ``faces`` by another name, so settings are tuned
    for it apart.
    """
    return replace(
        faces(),
        name="customized",
        description="20 models of faces, each customized on 1 to 12 known exemplars that methods are to name",
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "faces": faces,
    "customized": customized,
    "fashion": fashion,
    "emoji": emoji,
    "small": small,
    "tiny": tiny,
}


def study(name: str) -> Study:
    """The study called ``name``, or that of the study file ``name``; raises UnknownName with the nearest and all."""
    if study_file.is_file(name):
        return _own(study_file.arguments(Path(name), STUDIES))
    if name == "mscoco":
        raise InvalidInput(
            "Study 'mscoco' needs its images: `bench prepare mscoco mscoco.toml --images train2017 --captions "
            "captions_train2017.json --model FOLDER` writes it, then --study mscoco.toml. Before that there "
            "is `bench plan "
            "--study mscoco` alone."
        )
    if name not in STUDIES:
        raise UnknownName("study", name, STUDIES)
    return STUDIES[name]()


def _own(given: dict[str, Any]) -> Study:
    """A study of the user's, with the looks that its number of queries allows."""
    count = len(given["prompts"])
    looks = LOOKS if count >= LOOKS[-1].queries else LOOKS_16 if count >= LOOKS_16[-1].queries else (Look(count, 0.05),)
    return Study(**given, looks=looks)


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
