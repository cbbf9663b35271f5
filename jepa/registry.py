"""A folder is a registry: a module of the folder that defines `build` is an entry; there is no list to edit."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that points at the closest known name, or lists them all."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"


def available(package: str) -> list[str]:
    """Names of the entries of `jepa.<package>`; modules that start with an underscore are not entries."""
    folder = importlib.import_module(f"jepa.{package}")
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))


def build(package: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls `build` of `jepa.<package>.<name>`. Raises ValueError naming what it takes when a keyword is wrong."""
    if name not in available(package):
        raise ValueError(f"there is no {package}/{name}: {nearest(name, available(package))}")
    function = importlib.import_module(f"jepa.{package}.{name}").build
    parameters = inspect.signature(function).parameters.values()
    takes = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(kwargs) - set(takes))
    if unknown:
        raise ValueError(f"{package}/{name} does not take {unknown}; it takes {takes}")
    missing = sorted(
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in kwargs
    )
    if missing:
        raise ValueError(f"{package}/{name} needs {missing}")
    return function(*args, **kwargs)
