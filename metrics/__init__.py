"""Metrics of leave-K-out models, one file each. Adding a file that registers a class is all it takes."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
