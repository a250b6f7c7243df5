"""The probe: a small classifier that tells the parts of a face from its pixels.

It judges generated images, where no column says what they show. It ships as ``bench/data/faces/probe.safetensors``,
trained on the training split of ``faces`` by the committed script ``bench/building/face_probe.py``, and is a metric's
tool: no method may use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib import resources

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from bench.errors import InvalidInput
from bench.foundation.digests import tensors_digest

CHANNELS = (24, 48, 32)
HIDDEN = 128
SIZE = 16


class ProbeNet(nn.Module):
    """Three convolutions, one hidden layer, one logit for every value of every part.

    Args:
        num_values: of all parts together.
    """

    def __init__(self, num_values: int) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(third * (SIZE // 2) ** 2, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, num_values),
        )

    def forward(self, images: Float[Tensor, "images 3 16 16"]) -> Float[Tensor, "images values"]:
        """Logits of all values, the parts one after the other."""
        logits: Tensor = self.layers(images)
        return logits


class Probe:
    """Tells the parts of faces.

    Args:
        values: part → its values in the order of the logits, "" for absent or hidden.
        net: the trained classifier.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], net: ProbeNet) -> None:
        self.values = {part: tuple(of_part) for part, of_part in values.items()}
        self.net = net.eval()

    @cached_property
    def digest(self) -> str:
        """Of its weights."""
        return tensors_digest(self.net.state_dict(), {})

    @torch.no_grad()
    def probabilities(
        self, images: Float[Tensor, "images channels height width"]
    ) -> dict[str, Float[Tensor, "images values"]]:
        """For each part the probability of each of its values (``self.values[part]``); a row sums to one.

        Args:
            images: of 3 channels, 16 × 16 pixels, in [-1, 1], as ``Dataset.pixels`` gives them.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise InvalidInput(f"The probe reads images × 3 × {SIZE} × {SIZE}; these are {tuple(images.shape)}.")
        logits = self.net(images.float().clamp(-1, 1)).split([len(of_part) for of_part in self.values.values()], 1)
        return {part: of_part.softmax(1) for part, of_part in zip(self.values, logits, strict=True)}

    def parts(self, images: Float[Tensor, "images channels height width"]) -> list[dict[str, str]]:
        """For each image its likeliest value of every part, "" for absent or hidden. See ``probabilities``."""
        likeliest = {part: table.argmax(1).tolist() for part, table in self.probabilities(images).items()}
        return [
            {part: self.values[part][rows[index]] for part, rows in likeliest.items()} for index in range(len(images))
        ]


@cache
def embedded_probe() -> Probe:
    """The probe that ships with the project."""
    with (
        resources.as_file(resources.files("bench.data") / "faces" / "probe.safetensors") as path,
        safe_open(path, "pt") as file,
    ):
        values = json.loads(file.metadata()["values"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    net = ProbeNet(sum(len(of_part) for of_part in values.values()))
    net.load_state_dict(weights)
    return Probe(values, net)
