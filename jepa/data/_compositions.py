"""Which primitives may follow each other in a program, and which families and pairs are held out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa.data import _collections, _programs
from jepa.data._primitives import FAMILIES
from jepa.registry import nearest

_TRIES = 48  # scenes for each pair of families
_ENOUGH = 0.1  # the share of scenes on which a pair has to be defined and to change something


class Split(NamedTuple):
    """Families and ordered pairs of them, by what may be trained on; all bool."""

    families: np.ndarray  # [K]: those trained on
    held_out: np.ndarray  # [K]: those never trained on
    pairs: np.ndarray  # [K, K]: the second may follow the first in training
    held_out_pairs: np.ndarray  # [K, K]: of families trained on, but never in this order one after the other
    novel_pairs: np.ndarray  # [K, K]: one of them at least is a held-out family


@functools.cache
def acceptance() -> np.ndarray:
    """float64 [K, K]: the share of scenes on which the second family may follow the first.

    Measured once, in about two seconds, from a seed of its own, so that it is the same in every process.
    """
    count = len(FAMILIES)
    rng = np.random.default_rng(0)
    shares = np.zeros((count, count))
    for first in range(count):
        second = np.repeat(np.arange(count), _TRIES)
        families = np.stack([np.full_like(second, first), second], axis=1)
        kept = _programs.attempted(rng, families)
        shares[first] = np.bincount(second[kept], minlength=count) / _TRIES
    return shares


def split(held_out_families: Sequence[str], held_out_share: float) -> Split:
    """Holds out these families, and `held_out_share` of the pairs of all others, by a hash of their names.

    Raises ValueError for an unknown family.
    """
    for name in held_out_families:
        if name not in FAMILIES:
            raise ValueError(f"there is no family {name!r} to hold out: {nearest(name, FAMILIES)}")
    known = ~np.isin(FAMILIES, list(held_out_families))
    possible = acceptance() >= _ENOUGH
    names = {f"{first} then {second}": (i, j) for i, first in enumerate(FAMILIES) for j, second in enumerate(FAMILIES)}
    held_out = np.zeros_like(possible)
    for name in _collections.split(names, held_out_share)[1]:
        held_out[names[name]] = True
    both = known[:, None] & known
    return Split(known, ~known, possible & both & ~held_out, possible & both & held_out, possible & ~both)


def within(whole: Split, families: np.ndarray) -> Split:
    """The part of a split that is about these families, bool [K]; all that is held out stays held out.

    A program of it is of these families alone, but for those that are held out as families.
    """
    known = whole.families & families
    both = known[:, None] & known
    usable = known | whole.held_out
    novel = whole.novel_pairs & usable[:, None] & usable
    return Split(known, whole.held_out, whole.pairs & both, whole.held_out_pairs & both, novel)


def chains(rng: np.random.Generator, number: int, first: np.ndarray, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Families int64 [number, L] that begin with one of `first` and whose t-th pair is one of `pairs[t]`; L - 1 pairs.

    Every family is uniform over those from which the chain can go on. Raises ValueError if there is no such chain.
    """
    alive = [np.ones(len(FAMILIES), bool)]  # families from which the rest of the chain is possible, last step first
    for allowed in reversed(pairs):
        alive.append((allowed & alive[-1]).any(axis=1))
    alive.reverse()
    if not (first & alive[0]).any():
        raise ValueError(f"no program of {len(pairs) + 1} steps is left: hold out fewer families or pairs")
    chain = [_programs.one_of(rng, np.broadcast_to(first & alive[0], (number, len(FAMILIES))))]
    for allowed, going_on in zip(pairs, alive[1:], strict=True):
        chain.append(_programs.one_of(rng, allowed[chain[-1]] & going_on))
    return np.stack(chain, axis=1)
