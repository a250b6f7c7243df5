"""What this project draws itself: rectangles under and over DiceBear's portrait, on the same grid of 16 x 16 pixels.

Under it lie the background and the backdrop. Over it comes what must be seen at a glance: the sides of short hair,
hats, beards, mouths, and most of the details that no caption names.
"""

import numpy as np

from bench.building.face_parts import PARTS, Face

Rectangle = tuple[int, int, int, int]
Layer = tuple[str, list[Rectangle]]
"""A colour (hexadecimal) and the rectangles (x0, y0, x1, y1), x1 and y1 excluded, that have it."""
SIZE = 16
WHITE, MOUTH, DARK = "ffffff", "c4122f", "1b2030"
HAT: list[Rectangle] = [(4, 0, 12, 1), (3, 1, 13, 2), (2, 2, 14, 4)]
MOUTHS: dict[str, list[Layer]] = {
    "smile": [(MOUTH, [(5, 10, 11, 11), (6, 11, 10, 12)]), (WHITE, [(6, 10, 10, 11)])],
    "frown": [(MOUTH, [(6, 10, 10, 11), (5, 11, 7, 12), (9, 11, 11, 12)])],
}
BACKDROPS: dict[str, list[Layer]] = {
    "plain": [],
    "frame": [],
    "night": [("101840", [(0, 0, SIZE, 11)])],
    "stripes": [("0c3a1a", [(0, y, SIZE, y + 2) for y in range(0, SIZE, 4)])],
}
IN_FRONT: dict[str, list[Layer]] = {
    "hood": [(DARK, [(3, 0, 13, 2), (1, 1, 3, 14), (13, 1, 15, 14), (0, 3, 1, 14), (15, 3, 16, 14)])],
    "sign": [(WHITE, [(3, 12, 13, 16)])],
    "curtains": [("240610", [(0, 0, SIZE, 1), (0, 0, 2, SIZE), (14, 0, SIZE, SIZE)])],
    "frame": [(DARK, [(0, 0, SIZE, 1), (0, 15, SIZE, SIZE), (0, 0, 1, SIZE), (15, 0, SIZE, SIZE)])],
}


def under(face: Face) -> list[Layer]:
    """What lies behind the portrait, the farthest first."""
    background = PARTS["background"].drawn[face["background"]]
    return [(background, [(0, 0, SIZE, SIZE)]), *BACKDROPS[face["backdrop"]]]


def over(face: Face) -> list[Layer]:
    """What lies before the portrait, the nearest last."""
    hair = PARTS["hair_colour"].drawn[face["hair_colour"]]
    layers: list[Layer] = []
    if face["hair_length"] == "short":
        layers.append((hair, [(2, 4, 4, 7), (12, 4, 14, 7)]))
    if face["beard"]:
        layers.append((hair, [(3, 9, 13, 11), (4, 11, 12, 12)]))
    layers += MOUTHS[face["mouth"]]
    if face["hat"]:
        layers.append((PARTS["hat"].drawn[face["hat"]], HAT))
    for part in ("cover", "front", "sides", "backdrop"):
        layers += IN_FRONT.get(face[part], [])
    return layers


def paint(pixels: np.ndarray, layers: list[Layer]) -> None:
    """Paint `layers` into `pixels`, uint8 [SIZE, SIZE, 3], in place."""
    for colour, rectangles in layers:
        for x0, y0, x1, y1 in rectangles:
            pixels[y0:y1, x0:x1] = list(bytes.fromhex(colour))


def compose(face: Face, portrait: np.ndarray) -> np.ndarray:
    """The picture of `face` as uint8 [SIZE, SIZE, 3] from DiceBear's `portrait`, uint8 [SIZE, SIZE, 4] with alpha."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    paint(pixels, under(face))
    opacity = portrait[..., 3:].astype(np.uint16)
    mixed = (portrait[..., :3] * opacity + pixels * (255 - opacity) + 127) // 255
    pixels = mixed.astype(np.uint8)
    paint(pixels, over(face))
    return pixels
