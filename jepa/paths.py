"""The names of leaves: where an array stands in a tree of parameters or of state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jepa.types import PyTree


def path_name(path: tuple) -> str:
    """`trunk/encoder/embed/kernel` for the key path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path. Raises ValueError where two have the same, because of a name with a '/' in it."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two arrays have the same path: do not use '/' in the names of parameters")
    return named


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
