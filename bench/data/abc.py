"""The AbC benchmark as its authors released it: customized Stable Diffusion models with their exemplars and queries.

    all_tasks.json                    the queries: one entry for each, of twenty models (arXiv 2406.09408)
    json/<test case>.json             a list of models: {"exemplar": ["dataset/exemplar/…"], …}
    exemplar/…, synth/…               images
    models/…/<model>/                 weights and the new word (``bench.diffusion.customized_weights``)
    laion_subset/images/, captions.txt    the pool of distractors, a line for each image in the order of their names
    laion_latents.npy                 of these, scaled: as they are, then mirrored       (optional: encoded otherwise)
    laion_text_embeddings.npy         the states of the captions                         (optional)
    sd_fisher.pt                      the Fisher information of the base model           (optional)

Sources: arXiv 2306.09345 (data: sywang/GenDataAttribution, sywang/AttributeByUnlearning). Paths in the JSON files begin
with "dataset/", which stands for the folder. An entry of ``all_tasks.json`` names the model's test case and its place
there, its folder of weights, the prompt of its exemplars, and the prompt and image of the query.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.arrays import mapped
from bench.data.dataset import Dataset
from bench.data.prepared import BROKEN, square
from bench.data.source_files import SUFFIXES, Example
from bench.errors import InvalidInput

TASKS, LAION, CAPTIONS = "all_tasks.json", "laion_subset/images", "laion_subset/captions.txt"
LATENTS, STATES, FISHER = "laion_latents.npy", "laion_text_embeddings.npy", "sd_fisher.pt"
KEYS = {
    "synth_image_path": str, "prompt": str, "test_case": str, "test_case_ind": int, "model_path": str,
    "train_prompt": str,
}  # fmt: skip
"""What an entry of ``all_tasks.json`` must hold."""
STYLE_CASES = ("artchive", "bamfg")
"""Parts of the names of test cases whose models learned a style; the others learned an object."""


@dataclass(frozen=True)
class AbcQuery:
    """A synthesized image: its prompt, which holds V* as "<new1>", and its file."""

    prompt: str
    image: Path


@dataclass(frozen=True)
class AbcModel:
    """A customized model.

    Attributes:
        name: test case and place in it.
        is_style: whether it learned a style; else an object.
        weights: the folder of its weights and its new word.
        caption: of its exemplars.
        exemplars: their files.
        queries: what is asked of it.
    """

    name: str
    is_style: bool
    weights: Path
    caption: str
    exemplars: tuple[Path, ...]
    queries: tuple[AbcQuery, ...]


class AbcFolder:
    """The released data in ``root``; raises InvalidInput where something needed is missing or of another form."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise InvalidInput(f"--data {root}: there is no such folder; the unpacked data of AbC are expected.")

    @cached_property
    def models(self) -> tuple[AbcModel, ...]:
        """All models with queries, in the order of ``all_tasks.json``."""
        tasks = self._json(self.root / TASKS)
        if not isinstance(tasks, list) or not tasks:
            raise InvalidInput(f"{self.root / TASKS}: a list of queries is expected.")
        groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for number, task in enumerate(tasks):
            wrong = [
                key for key, kind in KEYS.items() if not isinstance(task, dict) or not isinstance(task.get(key), kind)
            ]
            if wrong:
                raise InvalidInput(f"{self.root / TASKS}: entry {number} has no {', '.join(wrong)} of the right kind.")
            groups.setdefault((task["test_case"], task["test_case_ind"]), []).append(task)
        return tuple(self._model(case, index, asked) for (case, index), asked in groups.items())

    def _model(self, case: str, index: int, tasks: Sequence[Mapping[str, Any]]) -> AbcModel:
        listed = self._json(self.root / "json" / f"{case}.json")
        if not isinstance(listed, list) or not 0 <= index < len(listed):
            raise InvalidInput(f"{self.root / 'json' / case}.json has no entry {index}, which {TASKS} asks for.")
        exemplars = listed[index].get("exemplar") if isinstance(listed[index], dict) else None
        if not isinstance(exemplars, list) or not exemplars:
            raise InvalidInput(f"{self.root / 'json' / case}.json: entry {index} has no list 'exemplar'.")
        folder = self.path(tasks[0]["model_path"])
        return AbcModel(
            name=f"{case}-{index}",
            is_style=any(part in case for part in STYLE_CASES),
            weights=folder if folder.is_dir() else folder.parent,
            caption=tasks[0]["train_prompt"],
            exemplars=tuple(map(self.path, exemplars)),
            queries=tuple(AbcQuery(task["prompt"], self.path(task["synth_image_path"])) for task in tasks),
        )

    def path(self, listed: str) -> Path:
        """The file or folder that a JSON file calls ``listed``; raises InvalidInput where it is not in the data."""
        place = self.root / listed.removeprefix("dataset/")
        if not place.resolve().is_relative_to(self.root.resolve()):
            raise InvalidInput(f"'{listed}' lies outside {self.root}.")
        if not place.exists():
            raise InvalidInput(f"{place} is missing: unpack all of the data, or leave its queries out of {TASKS}.")
        return place

    @cached_property
    def laion(self) -> tuple[Path, ...]:
        """The files of the pool, by name."""
        folder = self.root / LAION
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        images = tuple(path for path in found if path.suffix.lower() in SUFFIXES)
        if not images:
            raise InvalidInput(f"{folder} holds no images: the pool of distractors is expected there.")
        return images

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """A caption for each image of the pool."""
        try:
            lines = (self.root / CAPTIONS).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InvalidInput(f"{self.root / CAPTIONS} cannot be read ({error.strerror}).") from error
        if len(lines) != len(self.laion):
            raise InvalidInput(
                f"{self.root / CAPTIONS} has {len(lines)} lines; {self.root / LAION} has {len(self.laion)} images: one "
                "line for each image is expected."
            )
        return tuple(line.strip() for line in lines)

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The array ``name``, mapped; None where there is none. Raises InvalidInput where its shape is another."""
        place = self.root / name
        return mapped(place, shape) if place.exists() else None

    def _json(self, place: Path) -> Any:
        try:
            return json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{place} cannot be read as JSON ({type(error).__name__}: {error}).") from error


def images_of(name: str, files: Sequence[Path], ids: Sequence[str], captions: Sequence[str], size: int) -> Dataset:
    """The middle squares of ``files``, ``size`` pixels wide, as a data set.

    Raises InvalidInput where one cannot be read.
    """
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    for row, file in enumerate(files):
        try:
            pixels[row] = square(Example(ids[row], file, captions[row], "", str(file)), size, grey=False)
        except BROKEN as error:
            raise InvalidInput(f"{file} is no image that can be read ({error}).") from error
    return Dataset(
        name=name, ids=tuple(ids), captions=tuple(captions), concepts=("",) * len(files), styles=("",) * len(files),
        images=torch.from_numpy(pixels),
    )  # fmt: skip
