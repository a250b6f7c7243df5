"""What there is, read from source files without importing them: for completion and the overview of ``bench list``.

Importing a method imports torch and diffusers, which takes seconds. Names and summaries that stand in a class as texts
are found here in tens of milliseconds; what a program computes, such as the metrics of each encoder, is not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench import shipped

DECORATORS = {"methods": "register_method", "metrics": "register_metric"}


class Declared(NamedTuple):
    """A study, method or metric as its source says.

    Attributes:
        name: by which commands call it.
        summary: what it is; "" where that is computed.
        variants: names of the settings that it has names for.
    """

    name: str
    summary: str
    variants: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of it and its variants."""
        return [self.name, *(f"{self.name}:{variant}" for variant in self.variants)]


def declared(kind: str) -> list[Declared]:
    """All of ``kind`` ("studies", "methods" or "metrics"): studies in the order of the source, others by name."""
    if kind == "studies":
        return list(_studies(ast.parse(Path(shipped.HERE, "studies.py").read_text())))
    found = {each.name: each for file in _files(kind) for each in _plugins(file, DECORATORS[kind])}
    return [found[name] for name in sorted(found)]


def _files(kind: str) -> Iterator[Path]:
    """The source files of every installed plugin of ``kind``; one that cannot be found is left out."""
    for entry in entry_points(group=f"bench.{kind}"):
        place = shipped.folder(entry.attr) if entry.module == shipped.__name__ else _place(entry.module)
        if place is not None and place.is_dir():
            yield from sorted(place.glob("*.py"))
        elif place is not None and place.suffix == ".py":
            yield place


def _place(module: str) -> Path | None:
    """The folder or file of ``module``, none of which is imported."""
    top, *parts = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin)
    if place.name == "__init__.py":
        place = place.parent.joinpath(*parts)
    return place if place.is_dir() or place.is_file() else place.with_suffix(".py")


def _plugins(file: Path, decorator: str) -> Iterator[Declared]:
    """The classes in ``file`` that are registered by ``decorator``."""
    try:
        tree = ast.parse(file.read_text())
    except (OSError, ValueError, SyntaxError):  # of somebody's: the command that needs it says what is wrong
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_called(each) == decorator for each in node.decorator_list):
            values = dict(_assigned(node.body))
            if name := _text(values.get("name")):
                yield Declared(name, _text(values.get("summary")), _variants(values.get("variants")))


def _studies(tree: ast.Module) -> Iterator[Declared]:
    makers = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    known = dict(_assigned(tree.body)).get("STUDIES")
    assert isinstance(known, ast.Dict)
    for key, value in zip(known.keys, known.values, strict=True):
        maker = makers.get(_called(value))
        said = [
            _text(each.value)
            for each in (ast.walk(maker) if maker else ())
            if isinstance(each, ast.keyword) and each.arg == "description"
        ]
        yield Declared(_text(key), said[0] if said else "")


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of the assignments in ``body``."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name):
                yield target.id, node.value


def _called(node: ast.expr) -> str:
    """The last name of ``registry.register_method``."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _variants(node: ast.expr | None) -> tuple[str, ...]:
    """The keys of a dict, or of the one in ``MappingProxyType({…})``."""
    if isinstance(node, ast.Call) and node.args:
        node = node.args[0]
    return tuple(filter(None, map(_text, node.keys))) if isinstance(node, ast.Dict) else ()
