"""Train the probe of `faces`: a classifier of all parts, on the training split.

Hair, hat and background are given other colours at random, so that the classifier knows rare colours with every shape.
Every image is mirrored half of the time, shifted in brightness and contrast, slightly blurred, made uneven and noisy,
so that it also reads generated images, which are never as clean as real ones. Carriers of rare values are drawn
RARE_WEIGHT times as often as others. The script prints the accuracy on the held-out split.

Usage: python -m bench.building.face_probe --output DIR
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, interpolate, pad

from bench.building.face_layers import WHITE
from bench.building.face_parts import ABSENT, PARTS
from bench.building.tensors import write_safetensors
from bench.data.dataset import Dataset, load_embedded
from bench.pretrained.probe import SIZE, Probe, ProbeNet

NUM_STEPS = 4000
BATCH = 64
LEARNING_RATE = 2e-3
RARE_WEIGHT = 4.0
NOISE = 0.12
BLUR = 0.35
RECOLOURED = {"hair_colour": 14, "hat": 11, "background": 16}
SHIFT = 0.08
UNEVEN = 0.15
"""Standard deviation of the stains, which are about four pixels wide."""


def values_of(dataset: Dataset) -> dict[str, list[str]]:
    """Part → its values that occur, absent first."""
    found = {name: set(column) for name, column in dataset.parts.items()}
    return {name: [value for value in [ABSENT, *part.drawn] if value in found[name]] for name, part in PARTS.items()}


def targets(dataset: Dataset, values: dict[str, list[str]]) -> Tensor:
    """The row of each image's value among those of its part: [images, parts]."""
    return torch.tensor([[of_part.index(value) for value in dataset.parts[name]] for name, of_part in values.items()]).T


def recoloured(images: Tensor, labels: Tensor, values: dict[str, list[str]]) -> tuple[Tensor, Tensor]:
    """`images`, uint8 [N, 16, 16, 3], and `labels` with other colours of the parts RECOLOURED in half of the images.

    A pixel belongs to a part if it has exactly its colour, above the row that is given. White backgrounds stay, as
    other things are white too.
    """
    images, labels = images.clone(), labels.clone()
    for name, end in RECOLOURED.items():
        column = list(values).index(name)
        colours = torch.tensor([list(bytes.fromhex(PARTS[name].drawn.get(value, WHITE))) for value in values[name]])
        shown = [index for index, value in enumerate(values[name]) if value != ABSENT]
        old = labels[:, column]
        chosen = (colours[old] < 255).any(1) & (torch.rand(len(images)) < 0.5)
        new = torch.where(chosen, torch.tensor(shown)[torch.randint(len(shown), (len(images),))], old)
        mask = (images == colours[old][:, None, None]).all(-1) & chosen[:, None, None]
        mask[:, end:] = False
        images[mask] = colours[new][:, None, None].expand(images.shape)[mask].to(images.dtype)
        labels[:, column] = new
    return images, labels


def spoiled(images: Tensor) -> Tensor:
    """`images` [N, 3, 16, 16] as a generative model might have made them."""
    count = len(images)
    images = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images.flip(-1), images)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
    blurred = conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    images = torch.lerp(images, blurred, BLUR * torch.rand(count, 1, 1, 1))
    images = images * (1 + SHIFT * torch.randn(count, 1, 1, 1)) + SHIFT * torch.randn(count, 3, 1, 1)
    stains = interpolate(torch.randn(count, 3, 5, 5), SIZE, mode="bilinear", align_corners=True)
    images = images + UNEVEN * torch.rand(count, 1, 1, 1) * stains
    return (images + NOISE * torch.rand(count, 1, 1, 1) * torch.randn_like(images)).clamp(-1, 1)


def train(dataset: Dataset, values: dict[str, list[str]]) -> ProbeNet:
    """A classifier trained on `dataset`."""
    torch.manual_seed(0)
    net = ProbeNet(sum(map(len, values.values())))
    labels = targets(dataset, values)
    rare = {index for name, part in PARTS.items() for value in part.rare for index in dataset.carriers(name, value)}
    weights = torch.tensor([RARE_WEIGHT if index in rare else 1.0 for index in range(len(dataset))])
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS)
    sizes = [len(of_part) for of_part in values.values()]
    for _ in range(NUM_STEPS):
        drawn = torch.multinomial(weights, BATCH, replacement=True)
        images, wanted = recoloured(dataset.images[drawn], labels[drawn], values)
        logits = net(spoiled(images.permute(0, 3, 1, 2) / 127.5 - 1)).split(sizes, 1)
        pairs = zip(logits, wanted.T, strict=True)
        loss = torch.stack([cross_entropy(of_part, label, label_smoothing=0.02) for of_part, label in pairs]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def accuracy(probe: Probe, dataset: Dataset, values: dict[str, list[str]], *, spoil: bool) -> dict[str, float]:
    """Share of the images of `dataset` whose part is told right, for each part."""
    torch.manual_seed(1)
    images = spoiled(dataset.pixels()) if spoil else dataset.pixels()
    told = probe.parts(images)
    return {
        name: sum(face[name] == value for face, value in zip(told, dataset.parts[name], strict=True)) / len(dataset)
        for name in values
    }


def build(output: Path) -> None:
    """Write `probe.safetensors` into the folder `output`, and print what it can do."""
    dataset, held_out = load_embedded("faces"), load_embedded("faces", split="held-out")
    values = values_of(dataset)
    start = time.time()
    net = train(dataset, values)
    halves = {name: weight.half().numpy() for name, weight in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(weight).float() for name, weight in halves.items()})
    metadata = {"values": json.dumps(values), "licence": "MIT", "source": "trained on the training split of faces"}
    write_safetensors(halves, metadata, output / "probe.safetensors")
    print(f"{NUM_STEPS} steps in {time.time() - start:.0f} s")
    for title, data, spoil in (
        ("training", dataset, False),
        ("held out", held_out, False),
        ("spoiled", held_out, True),
    ):
        found = accuracy(Probe(values, net), data, values, spoil=spoil)
        print(
            title, f"{sum(found.values()) / len(found):.4f}", {name: round(share, 4) for name, share in found.items()}
        )


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write probe.safetensors into")
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
