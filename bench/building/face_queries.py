"""Choose the queries of `faces`: prompts and noises whose picture, under the original model, shows rare values.

The prompts are drawn with keys, the common values at random. A noise is taken if the probe finds every part that the
prompt asks for, and in the group "unnamed" the rare detail that no prompt can ask for, among NUM_NOISES noises; else
another prompt is tried. The two groups take turns, and each goes round its rare values, so that the first 8, 16 and
32 queries are balanced too. The weights of the original model come from a safetensors file, or from a results folder
of the study (`models/`).

Usage: python -m bench.building.face_queries WEIGHTS --output DIR
"""

import argparse
import json
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.building.face_parts import PARTS, Face, caption, draw_face
from bench.data.face_queries import asked_parts
from bench.diffusion.model import DiffusionModel
from bench.foundation import seeds
from bench.foundation.machine import compute_threads
from bench.pretrained.probe import Probe, embedded_probe
from bench.studies import Study, study

NUM_NOISES = {"named": 24, "unnamed": 72}
MOST_PROMPTS = 8
COUNTS = {"reported": 32, "held-out": 8}
"""Queries of each group."""
SHIFTS = {"reported": 0, "held-out": 5}
"""Where each split begins in the list of rare values."""
PAIR_EVERY = 4
"""Every fourth query of the group "named" asks for two rare values."""
BATCH = 24


def rare_values(*, named: bool) -> list[tuple[str, str]]:
    """(part, value) of the rare values, the parts taking turns, so that a beginning of the list is balanced."""
    by_part = [[(name, value) for value in part.rare] for name, part in PARTS.items() if part.named == named]
    longest = max(map(len, by_part))
    return [values[turn] for turn in range(longest) for values in by_part if turn < len(values)]


def wanted(group: str, split: str) -> Iterator[Face]:
    """The rare values of each query of a group, without end."""
    values = rare_values(named=group == "named")
    values = values[SHIFTS[split] :] + values[: SHIFTS[split]]
    singles = cycle(values)
    pairs = cycle(
        {one[0]: one[1], other[0]: other[1]}
        for step in (2, 3, 5)
        for one, other in zip(values, values[step:] + values[:step], strict=True)
        if one[0] != other[0]
    )
    for turn in count(1):
        yield next(pairs) if group == "named" and turn % PAIR_EVERY == 0 else dict([next(singles)])


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


def search(
    model: DiffusionModel, the_study: Study, probe: Probe, group: str, rare: Face, *key: str | int
) -> tuple[str, int] | None:
    """A prompt and the seed of a noise whose picture shows what it should, or None."""
    for turn in range(MOST_PROMPTS):
        prompt = caption(a_face(rare, "query", *key, turn))
        needed = asked_parts(prompt) | rare
        first = seeds.integer("query-seeds", *key, turn) % 1_000_000
        for start in range(0, NUM_NOISES[group], BATCH):
            candidates = range(first + start, first + start + BATCH)
            noise = torch.stack([seeds.normal(model.latent_shape, "query-noise", seed) for seed in candidates])
            images = model.autoencoder.decode(the_study.sampler.sample(model, noise, [prompt] * BATCH))
            for seed, face in zip(candidates, probe.parts(images), strict=True):
                if all(face[part] == value for part, value in needed.items()) and rare_in(face) == rare:
                    return prompt, seed
    return None


def choose(model: DiffusionModel, the_study: Study, probe: Probe, group: str, split: str) -> list[dict[str, object]]:
    """The queries of one group, as they are written."""
    chosen: list[dict[str, object]] = []
    for turn, rare in enumerate(wanted(group, split)):
        found = search(model, the_study, probe, group, rare, split, group, turn)
        if found is None:
            print(f"{split} {group} {turn}: no picture shows {rare}", flush=True)
            continue
        prompt, seed = found
        chosen.append({"prompt": prompt, "seed": seed, "group": group, "rare": [list(pair) for pair in rare.items()]})
        print(f"{split} {group} {turn}: {chosen[-1]}", flush=True)
        if len(chosen) == COUNTS[split]:
            break
    return chosen


def build(weights: Path, output: Path) -> None:
    """Write `queries.json` into the folder `output`."""
    the_study = study("faces")
    model = DiffusionModel(the_study.model).load(load_file(weights))
    probe = embedded_probe()
    texts = []
    for split in COUNTS:
        with compute_threads(1):
            named, unnamed = (choose(model, the_study, probe, group, split) for group in NUM_NOISES)
        entries = [entry for pair in zip(named, unnamed, strict=True) for entry in pair]
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
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
