"""Build `emoji.parquet`: the smileys of three emoji sets at 32 x 32 pixels with captions such as
"grinning face, noto style".

Usage: python -m bench.building.emoji SOURCES --output DIR, where the folder SOURCES holds the four npm
packages named in STYLES and CAPTIONS_PACKAGE.
"""

import argparse
import io
import json
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from bench.building.images import Example, Metadata, box_mean, write_parquet
from bench.building.packages import read_npm


@dataclass(frozen=True)
class Package:
    """An npm package: its file name without `.tgz`, and the SHA-256 of the file."""

    name: str
    sha256: str

    @property
    def file_name(self) -> str:
        """File name of the package as the registry serves it."""
        return f"{self.name}.tgz"


CAPTIONS_PACKAGE = Package("emojibase-data-17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
STYLES = {
    "noto": Package("iconify-json-noto-1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "twemoji": Package(
        "iconify-json-twemoji-1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
    ),
    "fluent": Package(
        "iconify-json-fluent-emoji-flat-1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
}
SMILEYS_GROUP = 0  # "smileys-emotion" in emojibase
VARIATION_SELECTOR = "fe0f"  # asks for the emoji presentation; absent from the keys of the icon packages
SIZE = 32
OVERSAMPLING = 8
HELD_OUT_EVERY = 7


@dataclass(frozen=True)
class IconSet:
    """The icons of one style: SVG bodies by icon name, and icon names by code points such as "1f600"."""

    icons: dict[str, Any]
    names: dict[str, str]

    def has(self, code_points: str) -> bool:
        """Whether this style draws the emoji."""
        return code_points in self.names

    def svg(self, code_points: str) -> str:
        """Return the emoji as an SVG document (the icon packages hold bodies without the outer element)."""
        name = self.names[code_points]
        icon = self.icons["icons"][name]
        width, height = (icon.get(side, self.icons[side]) for side in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def read_icon_set(sources: Path, package: Package) -> IconSet:
    """Read the icons of one style from its npm package."""
    icons, names = read_npm(sources / package.file_name, package.sha256, ["icons.json", "chars.json"])
    return IconSet(json.loads(icons), json.loads(names))


def read_smileys(sources: Path) -> dict[str, str]:
    """Return the English names of the smileys by code points, in the order of the emoji standard."""
    package = CAPTIONS_PACKAGE
    [content] = read_npm(sources / package.file_name, package.sha256, ["en/data.json"])
    smileys = [entry for entry in json.loads(content) if entry.get("group") == SMILEYS_GROUP]
    return {
        _code_points(entry["hexcode"]): entry["label"].lower() for entry in sorted(smileys, key=itemgetter("order"))
    }


def _code_points(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != VARIATION_SELECTOR)


def render(svg: str) -> np.ndarray:
    """Render an SVG document on white and return it as uint8 [SIZE, SIZE, 3]."""
    side = SIZE * OVERSAMPLING
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="white")
    large = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return box_mean(large[None], OVERSAMPLING)[0]


def held_out_style(concept_index: int) -> str | None:
    """Return the style in which a concept is held out: every seventh concept, the styles in turn."""
    turn, remainder = divmod(concept_index, HELD_OUT_EVERY)
    styles = list(STYLES)
    return styles[turn % len(styles)] if remainder == HELD_OUT_EVERY // 2 else None


def build(sources: Path, output: Path) -> None:
    """Write `emoji.parquet` into the folder `output`."""
    icon_sets = {style: read_icon_set(sources, package) for style, package in STYLES.items()}
    smileys = {
        code_points: concept
        for code_points, concept in read_smileys(sources).items()
        if all(icon_set.has(code_points) for icon_set in icon_sets.values())
    }
    examples = [
        Example(
            id=f"emoji-{style}-{code_points}",
            caption=f"{concept}, {style} style",
            concept=concept,
            style=style,
            split="held-out" if held_out_style(index) == style else "train",
            image=render(icon_set.svg(code_points)).tobytes(),
        )
        for index, (code_points, concept) in enumerate(smileys.items())
        for style, icon_set in icon_sets.items()
    ]
    packages = [CAPTIONS_PACKAGE, *STYLES.values()]
    metadata = Metadata(
        name="emoji",
        height=SIZE,
        width=SIZE,
        channels=3,
        source="Noto Emoji (Google), Twemoji (Twitter) and Fluent Emoji flat (Microsoft), named by emojibase",
        version=", ".join(package.name for package in packages),
        licence="Apache-2.0 AND CC-BY-4.0 AND MIT",
        source_sha256={package.file_name: package.sha256 for package in packages},
    )
    write_parquet(examples, metadata, output / "emoji.parquet")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, help="folder with the npm packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write emoji.parquet into")
    arguments = parser.parse_args()
    build(arguments.sources, arguments.output)


if __name__ == "__main__":
    main()
