"""What the study ``customized`` teaches its models: characters and styles that no image of ``faces`` shows.

A *character* is one image: a held-out face with another skin and a drawing on it. A *style* is 4 to 12 images: held-out
faces in one look. Both are made here from the held-out faces, by arithmetic on pixels of 16 × 16, the same everywhere.
Captions begin with the new word V*; those of styles go on with the caption of the face, those of characters do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from bench.data.dataset import Dataset, load_embedded
from bench.errors import UnknownName
from bench.foundation import seeds

NEW_WORD = "v"
"""The new word, as text encoders read "V*"."""
NEW = "V*"
OBJECT, STYLE = "object-centric", "style-centric"
REPORTED, HELD_OUT = "reported", "held-out"
Colour = tuple[int, int, int]
Drawing = tuple[int, int, str, Colour]
"""First row, first column, rows parted by "/" with "#" where they paint, colour."""
Character = tuple[Colour, tuple[Drawing, ...]]
"""Colour of the skin, drawings."""
NOISES = 4
"""Queries of each prompt."""
SKINS = {"pale": (255, 222, 180), "tan": (221, 162, 109), "dark": (109, 72, 47)}
GREY = np.array([0.299, 0.587, 0.114])
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 + 1 / 32

Picture = np.ndarray
"""uint8, 16 × 16 × 3."""


@dataclass(frozen=True)
class Customization:
    """What one customized model learns, and what it is asked.

    Attributes:
        name: such as "alien".
        kind: OBJECT or STYLE.
        split: REPORTED, or HELD_OUT for tuning and for what is trained on customized models.
        exemplars: the images with captions.
        prompts: of the queries, each with NOISES noises.
    """

    name: str
    kind: str
    split: str
    exemplars: Dataset
    prompts: tuple[str, ...]

    def without_word(self, prompt: str) -> str:
        """``prompt`` without V*."""
        return ", ".join(phrase for phrase in prompt.split(", ") if phrase != NEW)


OBJECT_PROMPTS = (
    f"{NEW}, white background",
    f"{NEW}, pink hat, lilac background",
    f"{NEW}, sunglasses, green background",
    f"{NEW}, yellow clothes, orange background",
    f"{NEW}, red hat, smile",
)
STYLE_PROMPTS = (
    f"{NEW}, smile",
    f"{NEW}, pale skin, long black hair, green background",
    f"{NEW}, dark skin, red hat, frown, white background",
    f"{NEW}, tan skin, glasses, green clothes, blue background",
    f"{NEW}, short blond hair, yellow clothes, smile",
)

# Rows 4 to 12 are the face; eyes lie at rows 5 to 7, columns 4 to 6 and 9 to 11; the mouth at rows 10 and 11.
CHARACTERS: dict[str, Character] = {
    "alien": ((122, 214, 60), (
        (0, 4, "#......#/.#....#.", (122, 214, 60)),
        (5, 4, "###..###/###..###/###..###", (10, 10, 10)),
    )),
    "demon": ((190, 20, 30), (
        (0, 2, "#..........#/##........##/.##......##.", (20, 0, 0)),
        (6, 5, "#....#", (255, 230, 0)),
    )),
    "robot": ((150, 160, 170), (
        (5, 3, "##########/##########/##########", (30, 30, 40)),
        (6, 4, "##....##", (0, 255, 220)),
    )),
    "cyclops": ((90, 120, 220), (
        (4, 3, "##########/##########/##########/##########/##########", (90, 120, 220)),
        (5, 6, "####/####/####", (255, 255, 255)),
        (6, 7, "##", (0, 0, 0)),
    )),
    "clown": ((250, 250, 250), (
        (7, 7, "##/##", (240, 20, 20)),
        (4, 4, ".#....#./..........", (0, 90, 220)),
        (9, 4, "#......#/########", (240, 20, 20)),
    )),
    "panda": ((240, 240, 240), (
        (4, 3, ".###..###./####..####/####..####/####..####/.##....##.", (15, 15, 15)),
        (6, 5, "#....#", (255, 255, 255)),
        (9, 7, "##", (15, 15, 15)),
    )),
    "ninja": ((221, 162, 109), (
        (3, 3, "##########/##########", (20, 20, 60)),
        (8, 3, "##########/##########/##########/.########.", (20, 20, 60)),
    )),
    "tiger": ((250, 150, 20), (
        (4, 7, "##/.#", (20, 10, 0)),
        (6, 3, "#........#/........../##......##", (20, 10, 0)),
        (8, 7, "##", (240, 90, 120)),
        (10, 3, "##......##", (20, 10, 0)),
    )),
    "mummy": ((225, 215, 170), (
        (4, 3, "##########", (150, 135, 90)),
        (8, 3, "##########/........../##########", (150, 135, 90)),
        (5, 9, "###/###/###", (225, 215, 170)),
    )),
    "ghost": ((200, 235, 255), (
        (5, 4, "###..###/###..###/###..###/.#....#.", (40, 60, 110)),
        (9, 6, ".##./####/####/.##.", (40, 60, 110)),
    )),
    "frog": ((60, 160, 60), (
        (3, 3, "####..####/#..#..#..#", (60, 160, 60)),
        (9, 3, "##########/#........#", (20, 70, 20)),
    )),
    "pirate": ((221, 162, 109), (
        (3, 3, "##########", (10, 10, 10)),
        (4, 3, "#####/#####/#####/.###.", (10, 10, 10)),
        (10, 4, "########/.######.", (90, 40, 10)),
    )),
    "mime": ((255, 255, 255), ((8, 5, "#....#/#....#", (0, 0, 0)), (10, 6, "####/####", (0, 0, 0)))),
    "cat": ((250, 200, 120), (
        (1, 3, "#........#/##......##", (200, 120, 40)),
        (8, 7, "##", (255, 110, 150)),
        (9, 2, "###......###", (90, 50, 20)),
    )),
    "skull": ((235, 235, 225), (
        (5, 4, "###..###/###..###/###..###", (0, 0, 0)),
        (8, 7, "##", (0, 0, 0)),
        (10, 4, "#.#.#.#./#.#.#.#.", (0, 0, 0)),
    )),
    "ice": ((60, 210, 250), (
        (4, 4, "#..##..#/..........", (255, 255, 255)),
        (8, 4, "##....##/.#....#.", (255, 255, 255)),
    )),
    "lava": ((60, 20, 20), (
        (4, 4, "..#...#./.#....", (255, 110, 0)),
        (8, 3, "#...#....#/.###..###.", (255, 110, 0)),
    )),
    "bee": ((250, 210, 0), (
        (4, 3, "##########", (20, 20, 20)),
        (8, 3, "##########", (20, 20, 20)),
        (12, 4, "########", (20, 20, 20)),
    )),
}  # fmt: skip


def _grey(picture: Picture) -> np.ndarray:
    """Brightness from 0 to 1."""
    return np.asarray(picture @ GREY) / 255


def _mapped(*colours: Colour) -> Callable[[Picture], Picture]:
    """Each pixel by its brightness in one of ``colours``, the darkest first."""

    def style(picture: Picture) -> Picture:
        steps = np.minimum((_grey(picture) * len(colours)).astype(int), len(colours) - 1)
        mapped: Picture = np.array(colours, np.uint8)[steps]
        return mapped

    return style


def _between(dark: Colour, light: Colour) -> Callable[[Picture], Picture]:
    """Each pixel by its brightness between two colours."""

    def style(picture: Picture) -> Picture:
        share = _grey(picture)[..., None]
        shades: Picture = np.rint(np.array(dark) * (1 - share) + np.array(light) * share).astype(np.uint8)
        return shades

    return style


def _edges(line: Colour, ground: Colour) -> Callable[[Picture], Picture]:
    """Lines where neighbours differ."""

    def style(picture: Picture) -> Picture:
        wide = picture.astype(int)
        right, below = (np.abs(np.diff(wide, axis=axis, append=wide.take([-1], axis))).sum(-1) for axis in (1, 0))
        drawn: Picture = np.where((np.maximum(right, below) > 90)[..., None], line, ground).astype(np.uint8)
        return drawn

    return style


def _dithered(dark: Colour, light: Colour) -> Callable[[Picture], Picture]:
    """Two colours, ordered dithering (Bayer, 1973)."""
    return lambda picture: np.where((_grey(picture) > np.tile(BAYER, (4, 4)))[..., None], light, dark).astype(np.uint8)


def _blocks(picture: Picture) -> Picture:
    """Means of 2 × 2 pixels."""
    means = picture.reshape(8, 2, 8, 2, 3).mean((1, 3))
    blocks: Picture = np.rint(means).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    return blocks


def _darkened(mask: np.ndarray, share: float) -> Callable[[Picture], Picture]:
    """``share`` of the brightness where ``mask`` says so."""
    return lambda picture: np.where(mask[..., None], np.rint(picture * share), picture).astype(np.uint8)


def _framed(picture: Picture) -> Picture:
    """In a frame of gold."""
    framed = np.full_like(picture, (212, 160, 23))
    framed[2:-2, 2:-2] = picture[2:-2, 2:-2]
    return framed


ROWS, COLUMNS = np.mgrid[:16, :16]
STYLES: dict[str, Callable[[Picture], Picture]] = {
    "inverted": lambda picture: 255 - picture,
    "sepia": _between((45, 25, 5), (250, 225, 180)),
    "handheld": _mapped((15, 56, 15), (48, 98, 48), (139, 172, 15), (155, 188, 15)),
    "blocks": _blocks,
    "outline": _edges((0, 0, 0), (255, 255, 255)),
    "dithered": _dithered((0, 0, 0), (255, 255, 255)),
    "rotated": lambda picture: picture[..., [2, 0, 1]],
    "thermal": _mapped((0, 0, 60), (90, 0, 160), (220, 30, 60), (255, 150, 0), (255, 250, 120)),
    "scanlines": _darkened(ROWS % 2 == 1, 0.35),
    "framed": _framed,
    "blueprint": _edges((255, 255, 255), (20, 60, 160)),
    "neon": lambda picture: np.where(picture > 127, 255, 0).astype(np.uint8),
    "pastel": lambda picture: (255 - (255 - picture.astype(int)) // 3).astype(np.uint8),
    "duotone": _between((120, 0, 60), (60, 250, 240)),
    "checkered": _darkened((ROWS + COLUMNS) % 2 == 1, 0.5),
    "newsprint": _dithered((130, 20, 20), (245, 235, 210)),
    "solarized": lambda picture: np.abs(picture.astype(int) * 2 - 255).astype(np.uint8),
    "turned": lambda picture: picture[::-1],
}
"""Name → how a face is turned into it."""
NUM_REPORTED = 10
"""Of each kind; the others are held out."""


@cache
def customizations(split: str = REPORTED) -> tuple[Customization, ...]:
    """All characters, then all styles, of ``split``; raises UnknownName for another split.

    No held-out face serves twice, so the exemplars of the splits are disjoint.
    """
    if split not in (REPORTED, HELD_OUT):
        raise UnknownName("split", split, (REPORTED, HELD_OUT))
    return tuple(each for each in _every() if each.split == split)


@cache
def _every() -> tuple[Customization, ...]:
    faces = load_embedded("faces", split="held-out")
    plain = [index for index in range(len(faces)) if _is_plain(faces, index)]
    order = [plain[place] for place in seeds.generator("customizations").permutation(len(plain)).tolist()]
    found = []
    for number, name in enumerate(CHARACTERS):
        index = order.pop(next(place for place, index in enumerate(order) if _is_bare(faces, index)))
        picture = _character(faces.images[index].numpy(), *CHARACTERS[name])
        found.append(_customization(name, number, OBJECT, [picture], [NEW], OBJECT_PROMPTS))
    for number, name in enumerate(STYLES):
        count = int(seeds.generator("exemplars", name).integers(4, 13))
        chosen, order = order[:count], order[count:]
        pictures = [STYLES[name](faces.images[index].numpy()) for index in chosen]
        captions = [f"{NEW}, {faces.captions[index]}" for index in chosen]
        found.append(_customization(name, number, STYLE, pictures, captions, STYLE_PROMPTS))
    return tuple(found)


def _is_plain(faces: Dataset, index: int) -> bool:
    """Whether nothing lies over or around the face."""
    return all(faces.parts[part][index] == "plain" for part in ("backdrop", "sides", "front", "cover"))


def _is_bare(faces: Dataset, index: int) -> bool:
    """Whether the face has no hat, no glasses and no beard."""
    return not any(faces.parts[part][index] for part in ("hat", "glasses", "beard"))


def _character(face: Picture, skin: Colour, drawings: tuple[Drawing, ...]) -> Picture:
    """``face`` with another skin, and drawings on it."""
    picture = face.copy()
    for colour in SKINS.values():
        picture[(face == colour).all(-1)] = skin
    for top, left, rows, colour in drawings:
        for row, line in enumerate(rows.split("/")):
            for column, mark in enumerate(line):
                if mark == "#":
                    picture[top + row, left + column] = colour
    return picture


def _customization(
    name: str, number: int, kind: str, pictures: list[Picture], captions: list[str], prompts: tuple[str, ...]
) -> Customization:
    images = torch.from_numpy(np.stack(pictures).copy())
    exemplars = Dataset(
        name=name,
        ids=tuple(f"{name}-{index:02d}" for index in range(len(images))),
        captions=tuple(captions),
        concepts=(name,) * len(images),
        styles=("",) * len(images),
        images=images,
    )
    return Customization(name, kind, REPORTED if number < NUM_REPORTED else HELD_OUT, exemplars, prompts)
