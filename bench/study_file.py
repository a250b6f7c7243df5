"""A study of one's own: a TOML file with data, model, recipe, sampler and queries, which commands take as --study.

``bench study new`` writes one (``bench.authoring.new_study``). ``arguments`` reads it; what it cannot use it names,
with what is expected. Paths are relative to the file. The prepared images lie beside it, in ``<file>.data``; what was
tuned for the study lies in ``<file>.tuned.json``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.data.prepared import Prepared
from bench.data.source_files import Source
from bench.diffusion.autoencoder import Identity, autoencoder
from bench.diffusion.fine_tuning import FineTuning, Start
from bench.diffusion.model import ModelConfig
from bench.diffusion.pipelines import HUB, PREFIX, FolderAutoencoder, local_folder, pipeline_settings, unet_file
from bench.diffusion.released import Released
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import Recipe
from bench.errors import InvalidInput, UnknownName
from bench.foundation.settings import fitted

T = TypeVar("T")
SUFFIX = ".toml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
OPENED: dict[str, Path] = {}
"""Study name → the file that it was read from."""
WEIGHTS = ("given", "fresh", "fine-tune")
PARTS = ("data", "model", "recipe", "sampler", "fine_tuning", "released")
"""The tables of a study file."""
MOST_PIXELS = 1024
BUILT_IN_FACTORS = {"emoji_autoencoder": 4}


@dataclass(frozen=True, kw_only=True)
class Top:
    """What stands at the top of a study file."""

    name: str
    description: str = ""
    budgets: tuple[int, ...]
    num_queries: int = 8
    metrics: tuple[str, ...] = ("loss_change", "regeneration_mse")


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """The table [data] of a study file."""

    source: str
    size: int
    format: str = ""
    split: str = "train"
    image_column: str = ""
    caption_column: str = ""
    id_column: str = ""
    annotations: str = ""
    captionless: bool = False
    all_captions: bool = False
    grey: bool = False
    skip_broken: bool = False
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """What [model] may hold beside the settings of ``ModelConfig``."""

    pretrained: str = ""
    weights: str = "given"


@dataclass(frozen=True, kw_only=True)
class ReleasedTable:
    """The table [released] of a study file, which `bench prepare mscoco --released` writes."""

    folder: str
    digest: str
    weights: str = "given"


@dataclass(frozen=True, kw_only=True)
class QueryTable:
    """One of [[queries]] or [[held_out]]."""

    prompt: str
    seed: int


def is_file(name: str) -> bool:
    """Whether ``name`` of a study is a study file."""
    return name.endswith(SUFFIX)


def file_of(study: str) -> Path | None:
    """The file that the study called ``study`` was read from; None for a study that ships with the project."""
    return OPENED.get(study)


def tuned_file(study: str) -> Path | None:
    """Where the settings that are tuned for ``study`` are kept; None for a study that ships with the project."""
    file = file_of(study)
    return file and file.with_suffix(".tuned.json")


def prepared_folder(file: Path) -> Path:
    """Where the prepared images of the study in ``file`` lie."""
    return file.with_suffix(".data")


def released_folder(file: Path) -> Path:
    """Where the imported release of the study in ``file`` lies."""
    return file.with_suffix(".released")


def arguments(file: Path, taken: Collection[str]) -> dict[str, Any]:
    """The arguments of ``Study`` that ``file`` gives.

    Args:
        file: a study file.
        taken: names that are not free.
    """
    tables = _read(file)
    queries, held_out = (_queries(file, tables.pop(part, []), part) for part in ("queries", "held_out"))
    parts = {name: _table(file, tables, name) for name in PARTS}
    top = _made(file, "", Top, tables)
    if not NAME.fullmatch(top.name) or top.name in taken:
        raise InvalidInput(
            f"{file}: a study cannot be called '{top.name}': small letters, digits, '_' and '-' are expected"
            + (f", and none of {', '.join(sorted(taken))}, which ship with the project." if top.name in taken else ".")
        )
    if not top.budgets or list(top.budgets) != sorted(set(top.budgets)) or top.budgets[0] < 1:
        raise InvalidInput(
            f"{file}: budgets = {list(top.budgets)}: numbers of images from 1 on are expected, ascending."
        )
    if not 1 <= top.num_queries <= len(queries):
        raise InvalidInput(f"{file}: num_queries = {top.num_queries}: there are {len(queries)} [[queries]].")
    if parts["released"] and "pretrained" in parts["model"]:
        raise InvalidInput(f"{file}: [released] and [model] pretrained do not go together: leave one out.")
    data = _data(file, parts["data"])
    model, start, weights = _model(file, parts["model"], data)
    if parts["fine_tuning"] and weights != "fine-tune":
        raise InvalidInput(f"{file} has [fine_tuning]: [model] needs pretrained = FOLDER, weights = 'fine-tune'.")
    given = str(start) if weights == "given" else ""
    released = _released(file, parts["released"], data) if parts["released"] else None
    if released and released.given:
        given = released.place
    tuning = _fine_tuning(file, start, parts["fine_tuning"]) if start and weights == "fine-tune" else None
    recipe = _made(file, "recipe", Recipe, parts["recipe"])
    sampler = _made(file, "sampler", Sampler, parts["sampler"])
    if not 1 <= sampler.num_steps <= model.num_timesteps or not 0 <= sampler.guidance <= 100:
        raise InvalidInput(
            f"{file}, [sampler]: 1 to {model.num_timesteps} num_steps and a guidance of 0 to 100 are expected."
        )
    OPENED[top.name] = file.resolve()
    return {
        "name": top.name, "description": top.description, "budgets": top.budgets, "num_queries": top.num_queries,
        "metrics": top.metrics, "dataset_name": Path(data.source.path).name, "data": data,
        "model": model, "given": given, "fine_tuning": tuning, "released": released, "recipe": recipe,
        "sampler": sampler,
        "prompts": tuple(one.prompt for one in queries), "prompt_seeds": tuple(one.seed for one in queries),
        "held_out_prompts": tuple(one.prompt for one in held_out),
        "held_out_seeds": tuple(one.seed for one in held_out),
    }  # fmt: skip


def source_of(file: Path, table: DataTable) -> Source:
    """The source that [data] names; a path is relative to the file."""
    path = table.source if table.format == "hub" else _beside(file, table.source)
    return Source(
        path=path, format=table.format, split=table.split, image=table.image_column, caption=table.caption_column,
        id=table.id_column, annotations=_beside(file, table.annotations) if table.annotations else "",
        captionless=table.captionless, all_captions=table.all_captions,
    )  # fmt: skip


def _beside(file: Path, path: str) -> str:
    """``path``, which is relative to the study file, as an absolute one; of a pipeline on the hub, its folder here."""
    if path.startswith(HUB):
        return str(local_folder(path))
    return str((file.parent / Path(path).expanduser()).resolve())


def _data(file: Path, given: Mapping[str, Any]) -> Prepared:
    table = _made(file, "data", DataTable, given)
    if not 4 <= table.size <= MOST_PIXELS:
        raise InvalidInput(f"{file}, [data]: size = {table.size}: 4 to {MOST_PIXELS} pixels are expected.")
    place, source = str(prepared_folder(file.resolve())), source_of(file, table)
    return Prepared(
        place=place, source=source, size=table.size, grey=table.grey, skip_broken=table.skip_broken, digest=table.digest
    )


def _released(file: Path, given: Mapping[str, Any], data: Prepared) -> Released:
    """What others published of the study."""
    table = _made(file, "released", ReleasedTable, given)
    if table.weights not in ("given", "fresh"):
        raise InvalidInput(f"{file}, [released]: weights = '{table.weights}': given or fresh is expected.")
    return Released(
        place=str(released_folder(file.resolve())), root=_beside(file, table.folder), given=table.weights == "given",
        all_captions=data.source.all_captions, digest=table.digest,
    )  # fmt: skip


def _fine_tuning(file: Path, pipeline: Path, given: Mapping[str, Any]) -> FineTuning:
    """Fine-tuning from the weights of ``pipeline``."""
    if "start" in given:
        raise InvalidInput(f"{file}, [fine_tuning]: the start is the pipeline of [model]; leave 'start' out.")
    return _made(file, "fine_tuning", FineTuning, {**given, "start": Start.of_file(unet_file(pipeline))})


def _model(file: Path, given: Mapping[str, Any], data: Prepared) -> tuple[ModelConfig, Path | None, str]:
    """The model's settings, the pipeline that it is, and what becomes of its weights."""
    own = {field.name for field in fields(ModelTable)}
    table = _made(file, "model", ModelTable, {name: value for name, value in given.items() if name in own})
    rest = {name: value for name, value in given.items() if name not in own}
    if table.weights not in WEIGHTS:
        raise InvalidInput(f"{file}, [model]: weights = '{table.weights}': one of {', '.join(WEIGHTS)} is expected.")
    folder = None
    if table.pretrained:
        folder = Path(_beside(file, table.pretrained))
        rest = pipeline_settings(folder) | rest
    elif "weights" in given:
        raise InvalidInput(f"{file}, [model]: weights are those of a pipeline: give pretrained = FOLDER too.")
    for name in ("text_encoder", "autoencoder"):
        value = rest.get(name, "")
        if isinstance(value, str) and value.startswith(PREFIX):
            rest[name] = PREFIX + _beside(file, value.removeprefix(PREFIX))
    channels = 1 if data.grey else 3
    coder = autoencoder(str(rest.get("autoencoder", "identity")))
    if isinstance(coder, Identity):
        rest = {"sample_size": data.size, "latent_channels": channels} | rest
        factor = 1
    elif isinstance(coder, FolderAutoencoder):
        rest = {"latent_channels": coder.channels, "sample_size": data.size // coder.factor} | rest
        factor = coder.factor
        if coder.pixels != channels:
            raise InvalidInput(f"{file}: the autoencoder takes {coder.pixels} colours; the images have {channels}.")
    else:
        factor = BUILT_IN_FACTORS.get(str(rest["autoencoder"]), 1)
    model = _made(file, "model", ModelConfig, rest)
    if model.sample_size * factor != data.size:
        raise InvalidInput(
            f"{file}: images of {data.size} × {data.size} pixels ([data], size) have latents of "
            f"{data.size / factor:g} × {data.size / factor:g}; the model's sample_size is {model.sample_size}."
        )
    return model, folder, table.weights if folder else "fresh"


def _queries(file: Path, given: Any, part: str) -> list[QueryTable]:
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise InvalidInput(f"{file}: [[{part}]] is expected, each with prompt and seed.")
    found = [_made(file, f"{part}", QueryTable, each) for each in given]
    double = [one for place, one in enumerate(found) if one in found[:place]]
    if double:
        raise InvalidInput(f"{file}: [[{part}]] has '{double[0].prompt}' with seed {double[0].seed} more than once.")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(
            f"There is no study file {file}; `bench study new {file} --data FOLDER` writes one."
        ) from None
    except IsADirectoryError:
        raise InvalidInput(f"{file} is a folder; a study file is expected.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read as TOML: {error}.") from error


def _table(file: Path, tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.pop(name, {})
    if not isinstance(found, dict):
        raise InvalidInput(f"{file}: [{name}] is expected to be a table.")
    return found


def _made(file: Path, part: str, kind: Callable[..., T], given: Mapping[str, Any]) -> T:
    """``kind`` from a table, its settings checked; unknown ones and those that lack are named."""
    where = f"[{part}] of {file}" if part else str(file)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise UnknownName(f"setting in {where} called", name, known)
    lacking = [
        name for name, field in known.items()
        if name not in given and field.default is MISSING and field.default_factory is MISSING
    ]  # fmt: skip
    if lacking:
        raise InvalidInput(f"{where} lacks {', '.join(lacking)}.")
    try:
        return kind(**fitted(where, kind, given))  # type: ignore[arg-type]
    except InvalidInput:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{where}: {error}.") from error
