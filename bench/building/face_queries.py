"""Choose the queries of `faces`: prompts and noises whose picture shows rare values under models of several seeds.

The prompts are drawn with keys, the common values at random. A noise is taken if the probe finds every part that the
prompt asks for, the rare values that are wanted, and no other rare value, in the picture of **each** model: of the
original one, and of the one that judges removals, since a detail that this one never draws can't be lost. In the
group "named" the prompt asks for these. In the group "unnamed" no prompt can ask: it only has the named values that
the detail goes with, and the noise decides. The two groups take turns, and each goes round its rare values, so that
the first 8, 16 and 32 queries are balanced too. The weights of the models come from safetensors files, such as
`benchmarks.faces_recipe --weights` keeps.

Usage: python -m bench.building.face_queries WEIGHTS WEIGHTS --output DIR
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.building.face_parts import PARTS, Face, caption, draw_face
from bench.data.face_queries import asked_parts
from bench.diffusion.model import DiffusionModel
from bench.foundation import seeds
from bench.foundation.machine import compute_threads
from bench.pretrained.probe import Probe, embedded_probe
from bench.studies import Study, study

NUM_NOISES = 24
CLEAR = 0.95
"""Least probability that the probe gives a rare value for it to count as shown."""
MOST_PROMPTS = 8
"""Prompts that are tried for the rare values of one query."""
Entry = dict[str, Any]
COUNTS = {"reported": 32, "held-out": 8}
"""Queries of each group."""
SHIFTS = {"reported": 0, "held-out": 5}
"""Where each split begins in the list of rare values."""
PAIR_EVERY = 4
"""Every fourth query of the group "named" asks for two rare values."""


def rare_values(*, named: bool) -> list[tuple[str, str]]:
    """(part, value) of the rare values, the parts taking turns, so that a beginning of the list is balanced."""
    by_part = [[(name, value) for value in part.rare] for name, part in PARTS.items() if part.named == named]
    longest = max(map(len, by_part))
    return [values[turn] for turn in range(longest) for values in by_part if turn < len(values)]


def shifted(split: str, *, named: bool) -> list[tuple[str, str]]:
    """The rare values in the order in which the queries of a split go round them."""
    values = rare_values(named=named)
    return values[SHIFTS[split] :] + values[: SHIFTS[split]]


def wanted(split: str, *, named: bool) -> Iterator[Face]:
    """The rare values of each query of a group, without end."""
    values = shifted(split, named=named)
    singles = cycle([{part: value} for part, value in values])
    pairs = cycle(
        {one[0]: one[1], other[0]: other[1]}
        for step in (2, 3, 5)
        for one, other in zip(values, values[step:] + values[:step], strict=True)
        if one[0] != other[0]
    )
    for turn in count(1):
        yield next(pairs) if named and turn % PAIR_EVERY == 0 else next(singles)


def rare_in(face: Face) -> Face:
    """The rare values of a face."""
    return {part: value for part, value in face.items() if value in PARTS[part].rare}


def a_face(rare: Face, *key: str | int) -> Face:
    """A face with the values `rare`; of the rest no value is rare."""
    for attempt in range(1000):
        face = draw_face(rare, *key, attempt)
        if face is not None:
            return face
    raise ValueError(f"no face with {rare}")


class Search:
    """Looks for pictures that all models agree on; no prompt is taken twice."""

    def __init__(self, models: Sequence[DiffusionModel], the_study: Study, probe: Probe) -> None:
        self.models, self.study, self.probe = models, the_study, probe
        self.prompts: set[str] = set()

    def good(self, model: DiffusionModel, prompt: str, candidates: Sequence[int]) -> Iterator[tuple[int, Face]]:
        """Seed and rare values of each of the noises ``candidates`` whose picture has every part asked for."""
        noise = torch.stack([seeds.normal(model.latent_shape, "query-noise", seed) for seed in candidates])
        prompts = [prompt] * len(candidates)
        images = model.autoencoder.decode(self.study.sampler.sample(model, noise, prompts))
        asked, shares = asked_parts(prompt), self.probe.probabilities(images)
        for index, (seed, face) in enumerate(zip(candidates, self.probe.parts(images), strict=True)):
            rare = rare_in(face)
            clear = all(float(shares[part][index].max()) >= CLEAR for part in rare)
            if clear and all(face[part] == value for part, value in asked.items()):
                yield seed, rare

    def group(self, split: str, name: str) -> list[Entry]:
        """The queries of a group, "named" or "unnamed"."""
        chosen: list[Entry] = []
        for turn, rare in enumerate(islice(wanted(split, named=name == "named"), 2 * COUNTS[split])):
            found = self._shown(rare, split, name, turn)
            print(f"{split} {name} {turn}: {rare} {found or 'not shown'}", flush=True)
            if found is not None:
                chosen.append(entry(*found, name, rare))
            if len(chosen) == COUNTS[split]:
                return chosen
        raise ValueError(f"only {len(chosen)} pictures of {split} show the rare values of the group {name}")

    def _shown(self, rare: Face, *key: str | int) -> tuple[str, int] | None:
        """A prompt for `rare`, and the seed of a noise whose picture shows it under every model, or None."""
        for turn in range(MOST_PROMPTS):
            prompt = caption(a_face(rare, "query", *key, turn))
            if prompt in self.prompts:
                continue
            left: Sequence[int] = noises(NUM_NOISES, *key, turn)
            for model in self.models:
                left = [seed for seed, shown in self.good(model, prompt, left) if shown == rare] if left else left
            if left:
                self.prompts.add(prompt)
                return prompt, left[0]
        return None


def noises(count: int, *key: str | int) -> range:
    """Seeds of ``count`` noises."""
    first = seeds.integer("query-seeds", *key) % 1_000_000
    return range(first, first + count)


def entry(prompt: str, seed: int, group: str, rare: Face) -> Entry:
    """A query as it is written."""
    return {"prompt": prompt, "seed": seed, "group": group, "rare": [list(pair) for pair in rare.items()]}


def build(weights: Sequence[Path], output: Path) -> None:
    """Write `queries.json` into the folder `output`."""
    the_study = study("faces")
    models = [DiffusionModel(the_study.model).load(load_file(path)) for path in weights]
    search = Search(models, the_study, embedded_probe())
    texts = []
    for split in COUNTS:
        with compute_threads(1):
            pairs = zip(search.group(split, "named"), search.group(split, "unnamed"), strict=True)
        lines = ",\n".join(f"    {json.dumps(one)}" for pair in pairs for one in pair)
        texts.append(f'  "{split}": [\n{lines}\n  ]')
    (output / "queries.json").write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "weights", type=Path, nargs="+", help="safetensors file with a model's weights, the original first"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write queries.json into")
    arguments = parser.parse_args()
    build(arguments.weights, arguments.output)


if __name__ == "__main__":
    main()
