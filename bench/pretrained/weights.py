"""Pretrained weights: where they are had, whether they fit, and what names them in results.

The weights called ``name`` are, in this order,

1. what ``--weights NAME=PATH`` says (the variable BENCH_WEIGHTS_NAME, so that worker processes see it too): a
   safetensors file, a folder that holds one, or the word ``random`` for seeded random weights, which every table then
   declares;
2. ``NAME.safetensors`` in the folder that the variable BENCH_WEIGHTS names;
3. their origin: a model hub (its cache, or a download on first use) or an installed package.

Nothing is ever unpickled, with one exception: a package's file whose sha256 is written down here in the code.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from bench.errors import InvalidInput, Unavailable, UnknownName
from bench.foundation import seeds
from bench.foundation.tensor_files import read_safetensors

VARIABLE = "BENCH_WEIGHTS"
RANDOM = "random"
SUFFIX = ".safetensors"
CONNECT_SECONDS = 2.0

CONVERSION = (
    'python -c "import sys, torch; from safetensors.torch import save_file as save; '
    "flat = lambda d, p='': {q: t for k, v in d.items() for q, t in "
    "(flat(v, p + k + '.') if isinstance(v, dict) else {p + k: v.contiguous()}).items()}; "
    'save(flat(torch.load(sys.argv[1], weights_only=True)), sys.argv[2])" OLD.pt NEW.safetensors'
)
"""Makes a safetensors file of a checkpoint of tensors, nested dictionaries joined by dots."""


class Origin(ABC):
    """Where published weights are had."""

    @property
    def files(self) -> tuple[str, ...]:
        """What the file may be called in a folder of the user's, beside the weights' own name."""
        return ()

    @abstractmethod
    def missing(self) -> str:
        """Why the weights cannot be had here, "" where they can. Never downloads."""

    def here(self) -> Path | None:
        """Their file, where it lies on this machine already."""
        return None

    def fetch(self) -> Path:
        """Their file, downloaded where need be; raises Unavailable."""
        path = self.here()
        if path is None:
            raise Unavailable(self.missing())
        return path

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors in that file."""
        return read_safetensors(path)


@dataclass(frozen=True)
class Hub(Origin):
    """A safetensors file on the Hugging Face hub."""

    repository: str
    file: str

    @property
    def files(self) -> tuple[str, ...]:
        """As in a copy of the repository."""
        return (self.file,)

    def missing(self) -> str:
        """Weights count as available when they are in the hub's cache, or when a download looks possible."""
        from huggingface_hub import constants

        if self.here() is not None:
            return ""
        if constants.HF_HUB_OFFLINE:
            return f"{self.repository} is not in the hub's cache, and HF_HUB_OFFLINE forbids to download it"
        if not reachable(constants.ENDPOINT):
            return f"{self.repository} is not in the hub's cache, and the hub cannot be reached from this machine"
        return ""

    def here(self) -> Path | None:
        """In the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.file)
        return Path(found) if isinstance(found, str) else None

    def fetch(self) -> Path:
        """From the cache, or downloaded into it."""
        from huggingface_hub import hf_hub_download

        cached = self.here()
        if cached is not None:
            return cached
        try:
            return Path(hf_hub_download(self.repository, self.file))
        except Exception as error:  # the client raises those of its transport, of the hub and of the disk
            raise Unavailable(
                f"{self.repository} could not be downloaded ({type(error).__name__}: {error})."
            ) from error


@dataclass(frozen=True)
class Package(Origin):
    """A file inside an installed package, known by its sha256; PyTorch's own format is read because of that alone."""

    module: str
    file: str
    sha256: str

    @property
    def files(self) -> tuple[str, ...]:
        """Only where the package has safetensors."""
        return (Path(self.file).name,) if self.file.endswith(SUFFIX) else ()

    def missing(self) -> str:
        """Whether the package is installed; the encoder says which extra has it."""
        return "" if self.here() is not None else f"the package with the module {self.module} is not installed"

    def here(self) -> Path | None:
        """In the package's folder; the package itself is not imported."""
        spec = find_spec(self.module)
        path = Path(spec.origin).parent / self.file if spec is not None and spec.origin is not None else None
        return path if path is not None and path.exists() else None

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors, after the file's sha256 was found to be the known one."""
        found = file_sha256(path)
        if found != self.sha256:
            raise InvalidInput(
                f"{path} has sha256 {found[:12]}…, expected {self.sha256[:12]}…: reinstall the package {self.module}."
            )
        if path.suffix == SUFFIX:
            return read_safetensors(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))


@dataclass(frozen=True)
class Nowhere(Origin):
    """Weights that the user has to bring; ``published`` says where their authors have them."""

    published: str

    def missing(self) -> str:
        """Always."""
        return f"{self.published}; they are not downloaded for you"


@dataclass(frozen=True)
class Weights:
    """The weights called ``name``, of an encoder or of AbC's heads."""

    name: str
    origin: Origin

    @property
    def variable(self) -> str:
        """Where ``--weights`` is noted."""
        return f"{VARIABLE}_{self.name.upper()}"

    @property
    def random(self) -> bool:
        """Whether random weights were asked for."""
        return os.environ.get(self.variable) == RANDOM

    def unavailable(self) -> str:
        """Why they cannot be had here and how to mend that; "" where they can. Never downloads."""
        try:
            if self.random or self.own() is not None:
                return ""
        except InvalidInput as error:
            return str(error)
        why = self.origin.missing()
        return why and f"{why}. Give --weights {self.name}=FILE{SUFFIX}, or {VARIABLE}=FOLDER with {self.name}{SUFFIX}."

    def own(self) -> Path | None:
        """The file that the user gave; raises InvalidInput where it is none that can be used."""
        given, folder = os.environ.get(self.variable), os.environ.get(VARIABLE)
        if given:
            return self.file_of(Path(given))
        if folder and not Path(folder).is_dir():
            raise InvalidInput(f"{VARIABLE}={folder} is not a folder; give one that holds {self.name}{SUFFIX}.")
        path = Path(folder) / f"{self.name}{SUFFIX}" if folder else None
        return path if path is not None and path.exists() else None

    def file_of(self, path: Path) -> Path:
        """The safetensors file that ``path``, a file or a folder, means."""
        if path.is_dir():
            names = (f"{self.name}{SUFFIX}", *self.origin.files)
            found = [path / name for name in names if (path / name).exists()]
            if not found:
                raise InvalidInput(f"The folder {path} holds no weights of '{self.name}': {' or '.join(names)}.")
            return found[0]
        if not path.exists():
            raise InvalidInput(f"--weights {self.name}={path}: there is no such file; '{RANDOM}' means random weights.")
        if path.suffix != SUFFIX:
            raise InvalidInput(
                f"--weights {self.name}={path}: only safetensors files are read, as unpickling runs code. "
                f"Convert it, if you trust it: {CONVERSION}"
            )
        return path

    def fetch(self) -> None:
        """Download them where need be; raises Unavailable."""
        if not self.random and self.own() is None:
            self.origin.fetch()

    def identity(self) -> str:
        """What names them in manifests and digests: their sha256, or that they are random. Never downloads."""
        if self.random:
            return "random (seeded, never trained)"
        try:
            path = self.own() or self.origin.here()
        except InvalidInput:
            return "not usable"
        return "not downloaded yet" if path is None else f"sha256 {file_sha256(path)}"

    def load(self, build: Callable[[], nn.Module], rename: Callable[[str], str] = str) -> nn.Module:
        """What ``build`` makes with these weights, ready to compute; raises InvalidInput where they do not fit.

        Args:
            build: makes the module, with initial weights from torch's random generator.
            rename: what a name in the file is called in the module, "" where it is not wanted.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer("random-weights", self.name))
            module = build()
        if not self.random:
            own = self.own()
            path = own or self.origin.fetch()
            tensors = read_safetensors(path) if own else self.origin.read(path)
            named = {rename(name): tensor for name, tensor in tensors.items()}
            named.pop("", None)
            _fit(module, named, self.name, path)
        return module.eval().requires_grad_(False)


@contextmanager
def chosen(choices: Mapping[str, str], known: Mapping[str, Weights]) -> Iterator[None]:
    """Within the context the weights of ``--weights NAME=PATH`` are used; each is checked to be there."""
    for name, path in choices.items():
        if name not in known:
            raise UnknownName("set of weights", name, known)
        if path != RANDOM:
            known[name].file_of(Path(path))
    given = {
        known[name].variable: path if path == RANDOM else str(Path(path).absolute()) for name, path in choices.items()
    }
    before = {variable: os.environ.get(variable) for variable in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def file_sha256(path: Path) -> str:
    """The sha256 of a file, computed once a process for each of its versions."""
    facts = path.stat()
    return _sha256(str(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def reachable(address: str) -> bool:
    """Whether a connection to ``address`` opens within two seconds; asked once a process. A proxy is believed."""
    if urllib.request.getproxies():
        return True
    parts, opened = urlsplit(address), threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname, parts.port or 443), CONNECT_SECONDS).close()
        except OSError:
            return
        opened.set()

    thread = threading.Thread(target=connect, daemon=True)  # looking a name up has no time limit of its own
    thread.start()
    thread.join(CONNECT_SECONDS)
    return opened.is_set()


def _fit(module: nn.Module, tensors: Mapping[str, Tensor], name: str, path: Path) -> None:
    wanted = module.state_dict()
    wrong = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    missing = [f"{key} is missing" for key in wanted if key not in tensors]
    foreign = [f"{key} is not known" for key in tensors if key not in wanted]
    problems = [*wrong, *missing, *foreign]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise InvalidInput(
            f"{path} does not hold the weights of '{name}': {shown}. Give --weights {name}=PATH of these."
        )
    module.load_state_dict(dict(tensors))
