"""What the authors of arXiv 2406.09408 released of their MSCOCO study, read with every check that its layout allows.

The unpacked folder (data set ``sywang/AttributeByUnlearning``, part ``mscoco``) holds, itself or one folder deeper,

    coco17_train_latents.npy           2 N × 4 × 16 × 16: the images as they are, then mirrored; scaled
    coco17_train_text_embeddings.npy   N × 5 × 77 × 1024: text states of the first five captions of each image
    model.bin                          the weights of the U-Net by diffusers' names
    fisher_info.pt                     the diagonal Fisher information of all of these (may be left out)
    sample_caption.txt, sample/<i>.png                         prompts, a line each, and pictures of the queries
    coco17_sample_latents.npy          queries × 4 × 16 × 16
    coco17_sample_text_embeddings.npy  queries × 1 × 77 × 1024

``.bin`` and ``.pt`` are PyTorch's own files: they are read with ``weights_only``, which refuses whatever would run
code. ``import_release`` writes what is small beside the study file, as ``<study>.released``; text states stay where
they are and are memory-mapped. Which noise a query came from cannot be told (one generator made 500 at once): it is
NaN, and a method that looks at it fails.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bench.data.arrays import mapped
from bench.diffusion.customized_weights import tensors_of
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import TrainingData
from bench.errors import DamagedArtifact, InvalidInput
from bench.foundation.digests import digest_of, tensors_digest
from bench.records import folder
from bench.records.sealing import read_sealed, read_tensors, record_bytes, tensors_bytes
from bench.records.store import write_whole

LATENTS, STATES = "coco17_train_latents.npy", "coco17_train_text_embeddings.npy"
MODEL, FISHER = "model.bin", "fisher_info.pt"
PROMPTS, PICTURES = "sample_caption.txt", "sample"
SAMPLE_LATENTS, SAMPLE_STATES = "coco17_sample_latents.npy", "coco17_sample_text_embeddings.npy"
CAPTIONS = 5
KINDS = (np.float16, np.float32)
BLOCK = 512
"""Images whose text states are read and hashed at a time."""
KEPT_LATENTS, KEPT_FISHER, KEPT_MODEL = "latents.npy", "fisher.safetensors", "unet"
JOURNAL = "journal.json"
Advance = Callable[[str, int, int], None]


class Release:
    """The released files in ``root``; raises InvalidInput where one is missing or of another form."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise InvalidInput(f"--released {root}: there is no such folder; the unpacked files are expected.")

    def place(self, name: str) -> Path:
        """The file or folder ``name``: in the folder, or one folder deeper."""
        found = self._places(name)
        if len(found) != 1:
            raise InvalidInput(
                f"{self.root} holds {name} {len(found)} times, itself or one folder deeper; it is expected once: "
                "unpack latents_text_embeddings, model_fisher and sample of the release there."
            )
        return found[0]

    def has(self, name: str) -> bool:
        """Whether ``name`` is there."""
        return bool(self._places(name))

    def _places(self, name: str) -> list[Path]:
        return [path for path in (self.root / name, *sorted(self.root.glob(f"*/{name}"))) if path.exists()]

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array ``name``, memory-mapped, of this shape, in float16 or float32."""
        place = self.place(name)
        found = mapped(place, shape)
        if found.dtype not in KINDS:
            raise InvalidInput(f"{place} holds numbers of type {found.dtype}; float16 or float32 is expected.")
        return found

    def weights(self, name: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The tensors of ``name``: exactly those of ``shapes``, of finite numbers, in float32."""
        place = self.place(name)
        found = {key: value.contiguous() for key, value in tensors_of(place).items()}
        for word, names in (("lacks", shapes.keys() - found.keys()), ("has", found.keys() - shapes.keys())):
            if names:
                what = "weights of the U-Net" if word == "lacks" else "tensors that are no weights of the U-Net"
                raise InvalidInput(f"{place} {word} {len(names)} {what}, such as {min(names)}: it is of another model.")
        for key, value in found.items():
            if value.shape != shapes[key]:
                raise InvalidInput(
                    f"{place}: {key} is {tuple(value.shape)}; that of the U-Net is {tuple(shapes[key])}."
                )
            if not torch.isfinite(value).all():
                raise InvalidInput(f"{place}: {key} holds numbers that are not finite.")
        return found

    def prompts(self) -> list[str]:
        """Of the queries."""
        place = self.place(PROMPTS)
        try:
            lines = [" ".join(line.split()) for line in place.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{place} cannot be read ({error}).") from error
        if not lines or not all(lines):
            raise InvalidInput(f"{place} has empty lines or none; the prompt of a query is expected in each.")
        return lines

    def pictures(self, count: int, size: int) -> Float[Tensor, "queries 3 size size"]:
        """Of the queries, in [−1, 1]."""
        home = self.place(PICTURES)
        found = {path.stem: path for path in home.glob("*.png")}
        numbers = sorted(int(stem) for stem in found if stem.isdecimal())
        if numbers != list(range(count)) or len(found) != count:
            raise InvalidInput(
                f"{home} holds {len(found)} pictures; those of {count} queries are expected, 0.png to {count - 1}.png."
            )
        rows = []
        for path in sorted(found.values(), key=lambda path: int(path.stem)):
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:
                raise InvalidInput(f"{path} is no picture that can be read ({error}).") from error
            if pixels.shape != (size, size, 3):
                raise InvalidInput(
                    f"{path} has {pixels.shape[1]} × {pixels.shape[0]} pixels; {size} × {size} are expected."
                )
            rows.append(torch.from_numpy(pixels.copy()))
        return torch.stack(rows).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True)
class Released:
    """The imported release of a study.

    Attributes:
        place: the folder ``<study>.released``.
        root: the folder of the release, where the text states are.
        given: whether θ0, the queries and the Fisher information are the released ones; else the data alone are.
        all_captions: whether an image has its five captions; else the first.
        digest: of everything that is used.
    """

    place: str
    root: str
    given: bool
    all_captions: bool
    digest: str

    @cached_property
    def index(self) -> dict[str, Any]:
        """The record of the import; raises InvalidInput where it is missing, damaged or another one."""
        again = "run `bench prepare mscoco` again, with --released."
        try:
            found = read_sealed(Path(self.place) / folder.INDEX)
        except (FileNotFoundError, DamagedArtifact) as error:
            raise InvalidInput(f"The imported release in {self.place} cannot be read ({error}): {again}") from error
        asked = {"given": self.given, "all_captions": self.all_captions}
        if found["digest"] != self.digest or asked.items() - found["facts"].items():
            raise InvalidInput(
                f"{self.place} holds another import (version {found['digest']}) than the study file asks for "
                f"(version {self.digest}, {'given' if self.given else 'fresh'} weights): {again}"
            )
        return found

    def data(self, model: DiffusionModel) -> TrainingData:
        """Latents and text states, memory-mapped."""
        states, latents = Release(Path(self.root)).place(STATES), Path(self.place) / KEPT_LATENTS
        for path, size in ((states, self.index["states_size"]), (latents, self.index["latents_size"])):
            if not path.is_file() or path.stat().st_size != size:
                raise InvalidInput(f"{path} is not the file that was imported ({size:,} bytes): get it again.")
        told = torch.from_numpy(np.load(states, mmap_mode="c", allow_pickle=False)).flatten(0, 1)
        first = torch.arange(len(told) // CAPTIONS) * CAPTIONS
        return TrainingData(
            latents=torch.from_numpy(np.load(latents, mmap_mode="c", allow_pickle=False)),
            states=told,
            caption_of=first,
            more_of=first[:, None] + torch.arange(1, CAPTIONS) if self.all_captions else None,
            empty=model.text_encoder.encode([""])[0],
        )

    @cached_property
    def _sampled(self) -> tuple[dict[str, Tensor], list[str]]:
        """Latents of the queries, and their prompts."""
        tensors, facts = read_tensors(Path(self.place) / folder.QUERIES)
        return tensors, json.loads(facts["prompts"])

    def query(self, spec: QuerySpec, sampler: Sampler) -> Query | None:
        """The released query of this prompt and number (its seed); None where there is none."""
        if not self.given:
            return None
        tensors, prompts = self._sampled
        if not 0 <= spec.seed < len(prompts) or prompts[spec.seed] != spec.prompt:
            return None
        latent = tensors["latents"][spec.seed]
        return Query(spec.id, spec.prompt, spec.seed, torch.full_like(latent, torch.nan), latent, sampler)

    @property
    def fisher(self) -> Callable[[], dict[str, Tensor]] | None:
        """Reads the released Fisher information of all weights; None where it is not used."""
        place = Path(self.place) / KEPT_FISHER
        return (lambda: read_tensors(place)[0]) if self.given and place.exists() else None


def import_release(
    place: Path,
    release: Release,
    model: DiffusionModel,
    images: int,
    size: int,
    *,
    given: bool,
    all_captions: bool,
    advance: Advance = lambda *_: None,
) -> tuple[Released, list[str]]:
    """Write ``place`` from ``release`` and return it, with the prompts of its queries.

    Raises InvalidInput where anything is missing, of another shape, not finite, or not what the layout says.

    Args:
        place: the folder to write; one that was interrupted is gone on with.
        model: a study's untrained model, which says the shapes.
        images: their number, size: of their side in pixels.
        given: whether the model, its Fisher information and the queries are wanted.
        all_captions: see ``Released``.
        advance: told what is done, how much, and of how much.
    """
    part = place.with_name(f".{place.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    (part / JOURNAL).touch()
    encoder, shape = model.text_encoder, model.latent_shape
    states = release.array(STATES, (images, CAPTIONS, encoder.num_tokens, encoder.dim))
    latents = release.array(LATENTS, (2 * images, *shape))
    prompts = release.prompts()
    facts: dict[str, Any] = {"given": given, "all_captions": all_captions, "prompts": digest_of(prompts)}
    if given:
        facts["model"], facts["fisher"] = _import_model(part, release, model)
        facts["queries"] = _import_queries(part, release, model, prompts, size)
    facts["latents"] = _import_latents(part / KEPT_LATENTS, latents, images, advance)
    facts["states"] = _hashed_states(part / JOURNAL, release.place(STATES), states, advance)
    digest = digest_of(facts)
    sizes = {
        "states_size": release.place(STATES).stat().st_size, "latents_size": (part / KEPT_LATENTS).stat().st_size,
    }  # fmt: skip
    (part / JOURNAL).unlink()
    write_whole(part / folder.INDEX, record_bytes(place / folder.INDEX, {"digest": digest, "facts": facts, **sizes}))
    shutil.rmtree(place, ignore_errors=True)
    part.replace(place)
    made = Released(
        place=str(place), root=str(release.root.resolve()), given=given, all_captions=all_captions, digest=digest
    )
    return made, prompts


def _import_model(part: Path, release: Release, model: DiffusionModel) -> tuple[str, str]:
    """Weights and Fisher information as safetensors; their digests, that of the second "" where there is none."""
    weights = release.weights(MODEL, {name: value.shape for name, value in model.unet.state_dict().items()})
    home = part / KEPT_MODEL
    home.mkdir(exist_ok=True)
    settings = {"_class_name": "UNet2DConditionModel", **model.config.unet_arguments(model.text_encoder.dim)}
    (home / "config.json").write_text(json.dumps(settings))
    save_file(weights, home / "diffusion_pytorch_model.safetensors")
    if not release.has(FISHER):
        (part / KEPT_FISHER).unlink(missing_ok=True)
        return tensors_digest(weights, {})[:16], ""
    fisher = release.weights(FISHER, {name: value.shape for name, value in model.unet.named_parameters()})
    negative = [name for name, value in fisher.items() if (value < 0).any()]
    if negative or not any(value.any() for value in fisher.values()):
        raise InvalidInput(
            f"{release.place(FISHER)} is no diagonal Fisher information: "
            + (f"{negative[0]} has values below 0." if negative else "all of it is 0.")
        )
    write_whole(part / KEPT_FISHER, tensors_bytes(part / KEPT_FISHER, fisher, {}))
    return tensors_digest(weights, {})[:16], tensors_digest(fisher, {})[:16]


def _import_queries(part: Path, release: Release, model: DiffusionModel, prompts: Sequence[str], size: int) -> str:
    """Latents and prompts of the queries; returns their digest."""
    count, encoder = len(prompts), model.text_encoder
    latents = torch.from_numpy(release.array(SAMPLE_LATENTS, (count, *model.latent_shape))).float()
    states = release.array(SAMPLE_STATES, (count, 1, encoder.num_tokens, encoder.dim))
    if not torch.isfinite(latents).all():
        raise InvalidInput(f"{release.place(SAMPLE_LATENTS)} holds numbers that are not finite.")
    expect_states(release.place(SAMPLE_STATES), torch.from_numpy(states[:, 0]), prompts, model)
    pictures = release.pictures(count, size)
    expect_near(
        model.autoencoder.decode(latents), pictures,
        f"{release.place(SAMPLE_LATENTS)} does not give the pictures in {release.place(PICTURES)}: the latents are of "
        "another order, not multiplied by the autoencoder's scaling factor, or the autoencoder of --model is another",
    )  # fmt: skip
    place = part / folder.QUERIES
    write_whole(place, tensors_bytes(place, {"latents": latents}, {"prompts": json.dumps(list(prompts))}))
    return tensors_digest({"latents": latents}, {})[:16]


def _import_latents(place: Path, latents: np.ndarray, images: int, advance: Advance) -> str:
    """Write images × 2 × channels × rows × columns in float32; returns the digest."""
    target = np.lib.format.open_memmap(place, "w+", np.float32, (images, 2, *latents.shape[1:]))
    sha = hashlib.sha256()
    for start in range(0, images, BLOCK):
        stop = min(images, start + BLOCK)
        for side in (0, 1):
            target[start:stop, side] = latents[side * images + start : side * images + stop]
        block = target[start:stop]
        if not np.isfinite(block).all():
            raise InvalidInput(f"{LATENTS} holds numbers that are not finite, at images {start} to {stop - 1}.")
        sha.update(block.tobytes())
        advance("import latents", stop, images)
    target.flush()
    return sha.hexdigest()[:16]


def _hashed_states(journal: Path, place: Path, states: np.ndarray, advance: Advance) -> str:
    """The digest of all text states, block by block; the journal keeps those of blocks that were read."""
    who = [str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns]
    try:
        kept = json.loads(journal.read_text() or "{}")
    except ValueError:
        kept = {}
    blocks: list[str] = kept["blocks"] if kept.get("who") == who else []
    for number, start in enumerate(range(0, len(states), BLOCK)):
        if number < len(blocks):
            continue
        block = np.ascontiguousarray(states[start : start + BLOCK])
        if not np.isfinite(block).all():
            raise InvalidInput(f"{place} holds numbers that are not finite, at images {start} to {start + BLOCK - 1}.")
        blocks.append(hashlib.sha256(block.tobytes()).hexdigest())
        write_whole(journal, json.dumps({"who": who, "blocks": blocks}).encode())
        advance("read text states", min(len(states), start + BLOCK), len(states))
    return digest_of([str(states.dtype), list(states.shape), blocks])


FAR = 0.05
"""Text states may differ from those of the model's own encoder by so much of their size: half precision takes 0.001."""


def expect_states(place: Path, found: Tensor, texts: Sequence[str], model: DiffusionModel) -> None:
    """Raise InvalidInput where ``found``, text states of ``place``, are not those of ``texts``."""
    for row, text in enumerate(texts):
        own = model.text_encoder.encode([text])[0]
        error = float((found[row].float() - own).norm() / own.norm())
        if not error < FAR:
            raise InvalidInput(
                f"{place} has other text states of '{text}' than the text encoder of --model ({error:.0%} off): the "
                "captions are in another order, or the encoder is another one."
            )


def expect_near(found: Tensor, own: Tensor, problem: str) -> None:
    """Raise InvalidInput with ``problem`` where a row of ``found`` is not much nearer to its own than to the others.

    "Much": less than half of the median distance to the other rows. A row that is alone cannot be told.
    """
    distances = torch.cdist(found.flatten(1).double(), own.flatten(1).double())
    for row in range(len(distances)):
        others = distances[row][torch.arange(len(distances)) != row]
        if len(others) and not distances[row, row] < others.median() / 2:
            raise InvalidInput(f"{problem} (number {row} is no nearer to its own than to others).")
