"""What this project draws itself: rectangles under and over DiceBear's portrait, on the same grid of 16 x 16 pixels.

Under it lie the background, the backdrop and hair that stands out behind the head. Over it come what must be seen at
a glance: hats, beards and mouths, and the rare shapes of hats and patterns of clothes.
"""

import numpy as np

from bench.building.face_parts import PARTS, Face

Rectangle = tuple[int, int, int, int]
Layer = tuple[str, list[Rectangle]]
"""A colour (hexadecimal) and the rectangles (x0, y0, x1, y1), x1 and y1 excluded, that have it."""
SIZE = 16
WHITE, MOUTH, FRAME, SUN = "ffffff", "c4122f", "1b2030", "f2541b"
BEHIND: dict[str, list[Rectangle]] = {
    "afro": [(2, 0, 14, 1), (1, 1, 15, 2), (0, 2, 16, 9), (1, 9, 15, 10)],
    "flat top": [(0, 0, 16, 4)],
}
CROWN: list[Rectangle] = [(4, 0, 12, 1), (3, 1, 13, 2)]
PLAIN = [*CROWN, (2, 2, 14, 4)]
HATS: dict[str, list[Rectangle]] = {
    "plain": PLAIN,
    "wide brim": [*CROWN, (0, 2, 16, 4), (0, 4, 4, 5), (12, 4, 16, 5)],
    "ear flaps": [*PLAIN, (1, 3, 3, 11), (13, 3, 15, 11)],
}
MOUTHS: dict[str, list[Layer]] = {
    "smile": [(MOUTH, [(5, 10, 11, 11), (6, 11, 10, 12)]), (WHITE, [(6, 10, 10, 11)])],
    "frown": [(MOUTH, [(6, 10, 10, 11), (5, 11, 7, 12), (9, 11, 11, 12)])],
}
PATTERNS: dict[str, list[Layer]] = {
    "plain": [],
    "scarf": [(WHITE, [(3, 12, 13, 14)])],
    "halves": [(WHITE, [(3, 13, 8, 14), (2, 14, 8, 16)])],
}


def under(face: Face) -> list[Layer]:
    """What lies behind the portrait, the farthest first."""
    background = PARTS["background"].drawn[face["background"]]
    layers: list[Layer] = [(background, [(0, 0, SIZE, SIZE)])]
    if face["backdrop"] == "sun":
        layers.append((SUN, [(0, 0, 6, 4), (0, 4, 5, 5), (0, 5, 4, 6), (0, 6, 2, 7)]))
    layers.append((PARTS["hair_colour"].drawn[face["hair_colour"]], BEHIND.get(face["haircut"], [])))
    return layers


def over(face: Face) -> list[Layer]:
    """What lies before the portrait, the nearest last."""
    hair = PARTS["hair_colour"].drawn[face["hair_colour"]]
    layers: list[Layer] = []
    if face["haircut"] == "round":
        layers.append((hair, [(2, 4, 4, 7), (12, 4, 14, 7)]))
    if face["beard"]:
        layers.append((hair, [(3, 9, 13, 11), (4, 11, 12, 12)]))
    layers += MOUTHS[face["mouth"]] + PATTERNS[face["cut"]]
    if face["hat"]:
        layers.append((PARTS["hat"].drawn[face["hat"]], HATS[face["hat_shape"] or "plain"]))
    if face["backdrop"] == "frame":
        layers.append((FRAME, [(0, 0, SIZE, 1), (0, 15, SIZE, SIZE), (0, 0, 1, SIZE), (15, 0, SIZE, SIZE)]))
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
