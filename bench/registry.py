"""Plugins by name: registered by decorator, found in installed packages by entry points.

The shipped ``methods`` and ``metrics`` are found the same way as anybody else's, through the entry-point groups
``bench.methods`` and ``bench.metrics``; the harness imports no plugin by name.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench import study_file
from bench.contracts import FLOOR, METHOD, Method, Metric
from bench.diffusion.observations import Observation
from bench.errors import BenchError, InvalidInput, UnknownName, reason_of
from bench.foundation.settings import fitted
from bench.records.names import NAME, RESERVED, MethodName

P = TypeVar("P", Method, Metric)

TUNED_FILE = "tuned.json"


class Registry(Generic[P]):
    """The plugins of one kind.

    Args:
        kind: for messages, "method" or "metric".
        group: of the entry points.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._classes: dict[str, type[P]] = {}
        self._loaded = False
        self._installed: frozenset[str] = frozenset()
        self.broken: dict[str, str] = {}
        """Entry points that could not be loaded, with the reason."""

    def register(self, cls: type[P]) -> type[P]:
        """Class decorator: enter ``cls`` under its ``name``; a bad name, or one that another class has, is refused."""
        check_name(self.kind, getattr(cls, "name", None))
        _check_description(self.kind, cls)
        for variant in variants_of(cls):
            check_name(f"variant of {self.kind}", variant, reserved=())
        taken = self._classes.get(cls.name)
        if taken is not None and taken.__module__ != cls.__module__:
            raise InvalidInput(
                f"The {self.kind} name '{cls.name}' of {cls.__module__} is taken by {taken.__module__}; rename one."
            )
        self._classes[cls.name] = cls
        return cls

    def __iter__(self) -> Iterator[type[P]]:
        self._load()
        return iter([self._classes[name] for name in sorted(self._classes)])

    def get(self, name: str) -> type[P]:
        """The class called ``name``; raises UnknownName with the nearest and all others."""
        self._load()
        if name not in self._classes:
            why = "".join(f" {text}" for text in self._hints(name))
            raise UnknownName(self.kind, name, self._classes, hint=why)
        return self._classes[name]

    def is_installed(self, name: str) -> bool:
        """Whether ``name`` came with an installed package, rather than from a file or the program itself."""
        self._load()
        return name in self._installed

    def _hints(self, name: str) -> list[str]:
        """Why plugins may be missing."""
        return [f"Not loaded: {entry} ({why})." for entry, why in self.broken.items()]

    def find(self, name: str) -> type[P] | None:
        """The class called ``name``, None where there is none: the plugin of an old row may be gone."""
        self._load()
        return self._classes.get(name)

    def names(self) -> list[str]:
        """All names, variants included."""
        self._load()
        names: list[str] = []
        for name in sorted(self._classes):
            names.append(name)
            for variant in variants_of(self._classes[name]):
                names.append(f"{name}:{variant}")
        return names

    def create(self, name: str, study: str | None = None, /, **settings: Any) -> P:
        """``name`` or ``name:variant``: the defaults, what was tuned for ``study``, the variant, ``settings``.

        A variant differs from the tuned method by its own settings alone, until it is tuned itself.
        """
        base, _, variant = name.partition(":")
        cls = self.get(base)
        if variant and variant not in variants_of(cls):
            raise UnknownName(f"variant of {self.kind} '{base}'", variant, variants_of(cls))
        own = variants_of(cls)[variant] if variant else {}
        found = [tuned(cls, study, part)["settings"] if study else {} for part in ("", variant)]
        chosen = {**found[0], **own, **(found[1] if variant else {}), **settings}
        known: set[str] = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
        for setting in chosen:
            if setting not in known:
                raise UnknownName(f"setting of {self.kind} '{name}'", setting, known)
        chosen = fitted(f"{self.kind} '{name}'", cls, chosen)  # 1 and 1.0 are one setting, with one digest
        try:
            made = cls(**chosen)
            hash(made)
        except BenchError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{key} = {value!r}"[:80] for key, value in chosen.items())
            raise InvalidInput(
                f"The {self.kind} '{name}' cannot be made{f' with {given}' if given else ''}: {reason_of(error)}."
            ) from error
        return made

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for entry in entry_points(group=self.group):
                before = set(self._classes)
                try:
                    entry.load()
                except (Exception, SystemExit) as error:
                    for name in set(self._classes) - before:
                        del self._classes[name]
                    self.broken[f"{entry.name} = {entry.value}"] = reason_of(error)
                    warnings.warn(
                        f"The {self.group} '{entry.name}' ({entry.value}) could not be loaded and is left out: "
                        f"{reason_of(error)}",
                        BrokenPlugin,
                        stacklevel=2,
                    )
            self._installed = frozenset(self._classes)


class BrokenPlugin(UserWarning):
    """An installed package registers plugins that cannot be loaded; the others are there."""


def _check_description(kind: str, cls: type[Any]) -> None:
    """Raise InvalidInput where what ``cls`` says of itself is not of the type that tables and digests need."""
    texts = ("summary", "needs", "self_rank") if kind == "method" else ("summary", "unit")
    for text in texts:
        if not isinstance(getattr(cls, text, None), str):
            raise InvalidInput(f"The {kind} '{cls.name}' has no text {text}: give it as a class attribute.")
    if type(getattr(cls, "version", 1)) is not int:
        raise InvalidInput(f"The {kind} '{cls.name}' has the version {cls.version!r}: a whole number is expected.")
    variants = variants_of(cls)
    if not isinstance(variants, Mapping) or not all(isinstance(each, Mapping) for each in variants.values()):
        raise InvalidInput(f"The {kind} '{cls.name}' has variants that are no dict of dicts of settings.")
    if kind == "metric":
        observation = getattr(cls, "observation", None)
        if not isinstance(observation, Observation) or not isinstance(getattr(observation, "name", None), str):
            raise InvalidInput(f"The metric '{cls.name}' observes nothing: `observation` must be an Observation.")


def label_of(method: Method, study: str) -> str:
    """The method's name in tables; its own alone where it cannot say its settings."""
    try:
        return named(method, study).label
    except BenchError:
        return method.name


def check_name(kind: str, name: object, *, reserved: Collection[str] = RESERVED) -> None:
    """Raise InvalidInput where a ``kind`` of plugin must not be called ``name``."""
    parts = name.split("@", 1) if isinstance(name, str) and kind == "metric" else [name]  # a metric's encoder
    if not all(isinstance(part, str) and NAME.fullmatch(part) for part in parts) or name in reserved:
        raise InvalidInput(
            f"A {kind} cannot be called {name!r}: small letters, digits, '_' and '-' are expected, a letter or digit "
            f"first{', and none of: ' + ', '.join(reserved) if reserved else ''}."
        )


def variants_of(cls: type[Any]) -> Mapping[str, Mapping[str, Any]]:
    """The named settings of a plugin; a metric has none."""
    return getattr(cls, "variants", {})


def named(method: Method, study: str) -> MethodName:
    """How rows call ``method``: variant, caveat, and the settings that differ from those tuned for ``study``."""
    given = method.settings()

    def others(variant: str) -> dict[str, Any]:
        usual = methods.create(f"{method.name}:{variant}" if variant else method.name, study).settings()
        return {key: value for key, value in given.items() if key not in usual or value != usual[key]}

    variant = next((variant for variant in ("", *method.variants) if not others(variant)), "")
    caveat = {method.caveat(): True} if method.caveat() else {}
    return MethodName.of(method.name, variant, others(variant) | caveat)


def tuned(cls: type[Any], study: str, variant: str = "") -> dict[str, Any]:
    """What was tuned for ``study``: {"settings": …, "tuned_on": …}, from ``tuned_file``."""
    path = tuned_file(cls, study)
    everything = json.loads(path.read_text()) if path is not None and path.exists() else {}
    name = f"{cls.name}:{variant}" if variant else cls.name
    nothing = {"settings": {}, "tuned_on": "not tuned: defaults"}
    if variant and study in everything.get(cls.name, {}):
        base = everything[cls.name][study]["tuned_on"]
        nothing["tuned_on"] = f"not tuned; what the variant leaves open is as of {cls.name} ({base})"
    return dict(everything.get(name, {}).get(study, nothing))


def tuned_on(cls: type[Any], study: str, name: MethodName) -> str:
    """On what the settings of ``name`` were chosen, in words; settings that a run was given were not chosen here."""
    if name.settings:
        return f"given: {name.given}; the others as tuned"
    return str(tuned(cls, study, name.variant)["tuned_on"])


def says_tuned(text: str) -> bool:
    """Whether what ``tuned_on`` says is that all settings were tuned."""
    return not text.startswith(("not tuned", "given: "))


def tuned_file(cls: type[Any], study: str) -> Path | None:
    """Where settings tuned for ``study`` are kept: tuned.json beside the plugin's file, or the study file's own."""
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return study_file.tuned_file(study) or (Path(source).with_name(TUNED_FILE) if source else None)


def load_plugin(path: Path) -> None:
    """Run the file ``path``, whose methods and metrics register themselves; worker processes load it too."""
    path = path.resolve()
    if str(path) in PLUGINS:
        return
    if path.suffix != ".py" or not path.is_file():
        raise InvalidInput(
            f"--plugin {path}: expected an existing Python file (.py) that registers a method or metric."
        )
    known = (methods.names(), metrics.names())
    module_name = f"bench_plugin_{path.stem}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise InvalidInput(
            f"--plugin {path}: running it raised {type(error).__name__}: {error}{_line_of(error, path)}."
        ) from error
    if known == (methods.names(), metrics.names()):
        raise InvalidInput(
            f"--plugin {path} registers no method and no metric: decorate its class with @register_method or "
            "@register_metric (`bench new-method NAME` writes a file to begin with)."
        )
    PLUGINS.append(str(path))


def _line_of(error: BaseException, path: Path) -> str:
    """The last line of ``path`` that led to ``error``."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""


PLUGINS: list[str] = []
"""Files loaded by ``load_plugin``."""

methods: Registry[Method] = Registry("method", "bench.methods")
metrics: Registry[Metric] = Registry("metric", "bench.metrics")
register_method = methods.register
register_metric = metrics.register


def role_of(name: str) -> str:
    """Of a method by name; one whose plugin is not here competes."""
    kind = methods.find(name)
    return METHOD if kind is None else kind.role


def phrase_of(name: str) -> str:
    """How sentences call the method ``name``."""
    kind = methods.find(name)
    return name if kind is None else kind.phrase or name


def floors() -> list[str]:
    """Every method whose role is a floor."""
    return [method.name for method in methods if method.role == FLOOR]
