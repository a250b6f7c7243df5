"""What ships beside the harness, ``cli``, ``methods`` and ``metrics``, by whatever name it is installed.

In a checkout they are its top level. A wheel has them in ``bench._shipped`` (``package-dir`` in pyproject.toml), so
that they neither hide a user's own modules of these names nor are hidden by them; where that would happen in a
checkout, they are loaded by that name too. The entry points of this distribution lead here: ``bench.shipped:methods``.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

NAMES = ("cli", "methods", "metrics")
PRIVATE = "bench._shipped"
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent


def module(name: str) -> ModuleType:
    """The module that is called ``name`` (one of NAMES) in a checkout."""
    if _is_ours(name):
        return import_module(name)
    if PRIVATE not in sys.modules and not (HERE / "_shipped").is_dir():
        package = ModuleType(PRIVATE, "The top level of a checkout, by the name that it has in a wheel.")
        package.__path__ = [str(CHECKOUT)]
        sys.modules[PRIVATE] = package
    return import_module(f"{PRIVATE}.{name}")


def folder(name: str) -> Path:
    """Where the package ``name`` lies, which is not imported."""
    inside = HERE / "_shipped"
    return (inside if inside.is_dir() else CHECKOUT) / name


def _is_ours(name: str) -> bool:
    """Whether ``import name`` finds what lies in this checkout, and not a module of the user's."""
    if (HERE / "_shipped").is_dir():
        return False
    loaded = sys.modules.get(name)
    spec = None if loaded else find_spec(name)
    file = getattr(loaded, "__file__", None) or getattr(spec, "origin", None)
    return file is not None and Path(file).resolve() in (CHECKOUT / f"{name}.py", CHECKOUT / name / "__init__.py")


def __getattr__(name: str) -> ModuleType:
    if name in NAMES:
        return module(name)
    raise AttributeError(f"module 'bench.shipped' has no attribute '{name}'")
