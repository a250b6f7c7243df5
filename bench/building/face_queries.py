"""Choose the queries of `faces`: prompts and noises whose picture, under the original model, shows rare values.

The prompts are drawn with keys, the common values at random. A noise is taken if the probe finds every part that the
prompt asks for and no other rare value. In the group "named" the prompt asks for the rare values, and a noise is looked
for that shows them. In the group "unnamed" no prompt can ask: of POOL noises those are tried that lean towards the
detail, and the first whose picture clearly has it and no other is taken. The two groups take turns, and each goes
round its rare values, so that the first 8, 16 and 32 queries are balanced too. The weights of the original model come
from a safetensors file, such as `benchmarks.faces_recipe --weights` keeps.

Usage: python -m bench.building.face_queries WEIGHTS --output DIR
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
POOL = 2000
"""Noises of which those are tried that lean towards an unnamed detail."""
MOST_TURNS = 6
"""Prompts that are tried for each query of the group "unnamed"."""
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


def wanted(split: str) -> Iterator[Face]:
    """The rare values of each query of the group "named", without end."""
    values = shifted(split, named=True)
    singles = cycle(values)
    pairs = cycle(
        {one[0]: one[1], other[0]: other[1]}
        for step in (2, 3, 5)
        for one, other in zip(values, values[step:] + values[:step], strict=True)
        if one[0] != other[0]
    )
    for turn in count(1):
        yield next(pairs) if turn % PAIR_EVERY == 0 else dict([next(singles)])


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
    """Looks for pictures under one model."""

    def __init__(self, model: DiffusionModel, the_study: Study, probe: Probe) -> None:
        self.model, self.study, self.probe = model, the_study, probe

    def good(self, prompt: str, candidates: Sequence[int]) -> Iterator[tuple[int, Face]]:
        """Seed and rare values of each of the noises ``candidates`` whose picture has every part asked for."""
        noise = torch.stack([seeds.normal(self.model.latent_shape, "query-noise", seed) for seed in candidates])
        prompts = [prompt] * len(candidates)
        images = self.model.autoencoder.decode(self.study.sampler.sample(self.model, noise, prompts))
        asked, shares = asked_parts(prompt), self.probe.probabilities(images)
        for index, (seed, face) in enumerate(zip(candidates, self.probe.parts(images), strict=True)):
            rare = rare_in(face)
            clear = all(float(shares[part][index].max()) >= CLEAR for part in rare)
            if clear and all(face[part] == value for part, value in asked.items()):
                yield seed, rare

    def named(self, split: str) -> list[Entry]:
        """The queries of the group "named"."""
        chosen: list[Entry] = []
        for turn, rare in enumerate(wanted(split)):
            found = self._shown(rare, split, "named", turn)
            if found is None:
                print(f"{split} named {turn}: no picture shows {rare}", flush=True)
                continue
            chosen.append(entry(*found, "named", rare))
            print(f"{split} named {turn}: {chosen[-1]}", flush=True)
            if len(chosen) == COUNTS[split]:
                break
        return chosen

    def _shown(self, rare: Face, *key: str | int) -> tuple[str, int] | None:
        """A prompt that asks for `rare`, and the seed of a noise whose picture shows it, or None."""
        for turn in range(MOST_PROMPTS):
            prompt = caption(a_face(rare, "query", *key, turn))
            for seed, shown in self.good(prompt, noises(NUM_NOISES, *key, turn)):
                if shown == rare:
                    return prompt, seed
        return None

    def unnamed(self, split: str) -> list[Entry]:
        """The queries of the group "unnamed": the details take turns, each with prompts of its own."""
        chosen: list[Entry] = []
        for turn, (part, value) in enumerate(islice(cycle(shifted(split, named=False)), MOST_TURNS * COUNTS[split])):
            face = a_face({part: value}, "query", split, "unnamed", turn)
            prompt, likely = caption(face), self.likely(part, value, split, turn)
            shown = next((seed for seed, rare in self.good(prompt, likely) if rare == {part: value}), None)
            print(f"{split} unnamed {turn}: {value} {part} {'not ' if shown is None else ''}shown", flush=True)
            if shown is not None:
                chosen.append(entry(prompt, shown, "unnamed", {part: value}))
            if len(chosen) == COUNTS[split]:
                return chosen
        raise ValueError(f"only {len(chosen)} pictures of {split} show a rare unnamed detail")

    def likely(self, part: str, value: str, *key: str | int) -> list[int]:
        """Seeds of the NUM_NOISES of POOL noises that lean most towards the detail.

        A noise leans by its inner product with the difference of the mean training images with and without it.
        """
        dataset = self.study.dataset
        carriers = dataset.carriers(part, value)
        others = sorted(set(range(len(dataset))) - set(carriers))
        towards = dataset.pixels(carriers).mean(0) - dataset.pixels(others).mean(0)
        pool = noises(POOL, *key, part, value)
        leaning = [float((seeds.normal(self.model.latent_shape, "query-noise", seed) * towards).sum()) for seed in pool]
        return [seed for _, seed in sorted(zip(leaning, pool, strict=True), reverse=True)[:NUM_NOISES]]


def noises(count: int, *key: str | int) -> range:
    """Seeds of ``count`` noises."""
    first = seeds.integer("query-seeds", *key) % 1_000_000
    return range(first, first + count)


def entry(prompt: str, seed: int, group: str, rare: Face) -> Entry:
    """A query as it is written."""
    return {"prompt": prompt, "seed": seed, "group": group, "rare": [list(pair) for pair in rare.items()]}


def build(weights: Path, output: Path) -> None:
    """Write `queries.json` into the folder `output`."""
    the_study = study("faces")
    model = DiffusionModel(the_study.model).load(load_file(weights))
    search = Search(model, the_study, embedded_probe())
    texts = []
    for split in COUNTS:
        with compute_threads(1):
            pairs = zip(search.named(split), search.unnamed(split), strict=True)
        lines = ",\n".join(f"    {json.dumps(one)}" for pair in pairs for one in pair)
        texts.append(f'  "{split}": [\n{lines}\n  ]')
    (output / "queries.json").write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="safetensors file with the original model's weights")
    parser.add_argument("--output", type=Path, required=True, help="folder to write queries.json into")
    arguments = parser.parse_args()
    build(arguments.weights, arguments.output)


if __name__ == "__main__":
    main()
