"""Programs as a source: grids and what primitives make of them, drawn without end, seeded, by processes of their own.

A step's rows show its grids as object tables or cell by cell (`jepa.data._program_rows`), a function of the seed, the
step and the level of difficulty. What is held out, whole families and ordered pairs of families, is two more held-out
sources.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa import context_masking
from jepa.data import _compositions, _primitives, _program_blocks, _program_rows, _sequences
from jepa.data._ahead import Ahead, ahead
from jepa.data._analogies import LONGEST
from jepa.data._primitives import FAMILIES
from jepa.data._program_blocks import Recipe
from jepa.data._program_rows import Rows, Shown
from jepa.data._scenes import Limits
from jepa.registry import nearest
from jepa.tables import CANVAS
from jepa.types import Source

STREAMS = ("analogy", "orbit", "transition")
# Held-out programs are the same ones in every run, so that runs of different seeds compare on the same ones.
VALIDATION_SEED = 2**31  # of no run
VALIDATION_BLOCK = 512  # programs
STATISTICS = [VALIDATION_SEED, 2**31]  # a block of no step
VERSION = 1  # to be raised whenever the same options give other programs


class Difficulty(NamedTuple):
    """A level: the most steps of a program, the most objects and the largest side of a scene, and the families."""

    length: int
    limits: Limits
    families: np.ndarray  # bool [K]


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    stream: str = "analogy",
    families: str | tuple[str, ...] = "all",
    length: int | tuple[int, ...] = 1,
    objects: int | tuple[int, ...] = 8,
    side: int | tuple[int, ...] = 30,
    held_out_families: tuple[str, ...] = ("wrap", "outline", "hollow", "sort", "half", "copy"),
    held_out_share: float = 0.1,
    context_window: int = 3,
    target_offset: int = 1,
    canvas: int | None = None,
    drop_objects: float = 0.0,
    drop_frames: float = 0.0,
    noise: float = 0.0,
    d4: bool = True,
    palette: bool = True,
    translation: bool = True,
    num_workers: int = 1,
    batches_per_block: int = 20,
    blocks_ahead: int = 2,
    level_every: int | None = None,
) -> Source:
    """Programs of the families `_primitives.FAMILIES` on drawn scenes; `cache_dir` is not read, nothing is kept there.

    stream 'analogy': the last `context_window` grids of x_1, y_1, ..., x_n as context and y_n as target, every y_i the
    result of one program of 1 to `length` steps. stream 'orbit': `context_window` grids g, P g, P P g, ... of a
    primitive P and, as target, the one `target_offset` after the last. stream 'transition': the grids before each of
    the `length` steps of a program, the grid after the last, and the steps as `actions` float32 [B, length, 47], the
    family one-hot and its parameters over 9. A step that changes nothing is rejected and counted.

    canvas: None for object tables. A side S, in stream 'transition', shows the cells themselves, {"cells": int32
    [..., S, S]}, colours and `tables.OUTSIDE` beyond the grid; no grid of a program is larger than that.

    Levels of difficulty: `families` (names, or the sets 'geometry', 'cells', 'lines', 'objects', joined by '+', or
    'all'), `length`, `objects` and `side` are one value, or a tuple of one for each level.

    `validation['programs']` draws from the last level; `validation['programs_level']`, where there are several, from
    the one asked for; `validation['programs_families']` programs that meet a family of `held_out_families`;
    `validation['programs_compositions']` programs with one of the `held_out_share` of ordered pairs of families that
    is never trained on; analogies add `validation['programs_foreign_demo']`.

    drop_objects, drop_frames, noise: probabilities of `jepa.context_masking`, in training alone.

    `num_workers` processes draw blocks of `batches_per_block` batches, up to `blocks_ahead` before they are needed, and
    none that begins after the next multiple of `level_every` steps, when the level may change.

    Raises ValueError for an unknown name, a value out of range, or levels that differ in number.
    """
    shown = _shown(stream, context_window, target_offset, canvas)
    families, length, objects, side = map(_by_level, (families, length, objects, side))
    levels = _levels(families, length, objects, side, canvas)
    masking = {"drop_objects": drop_objects, "drop_frames": drop_frames, "noise": noise}
    context_masking.check(**masking)
    if stream == "transition" and (d4 or palette):
        raise ValueError("stream 'transition' shows actions, which d4 and palette would make wrong: turn both off")
    if canvas is not None and (translation or any(masking.values())):
        raise ValueError(
            f"a canvas of {canvas} shows cells where they are, and no objects: turn translation off and leave "
            "drop_objects, drop_frames and noise at 0"
        )
    for name, value, least in (("batch_size", batch_size, 1), ("batches_per_block", batches_per_block, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    split = _compositions.split(held_out_families, held_out_share)
    recipes = [_recipes(shown, level, split) for level in levels]
    symmetry = {"d4": d4, "palette": palette, "translation": translation}
    chosen = (stream, context_window, target_offset, families, length, objects, side, sorted(held_out_families))
    digest = f"{VERSION} {chosen} {held_out_share} {symmetry} {masking} {batches_per_block}"
    if stream == "transition":
        digest += f" {canvas} stepwise"

    by_table = functools.partial(_sequences.gather_rows, symmetry)
    gather = by_table if canvas is None else _program_rows.gather_cells

    def source(levels: Sequence[tuple[Recipe, ...]], indices: Callable[..., Rows]) -> Source:
        return Source(
            tables={},
            indices=indices,
            gather=gather,
            validation={},
            num_examples=0,
            ids=tuple(f"programs:{name}" for name in _met(levels)),
            digest=hashlib.sha256(digest.encode()).hexdigest(),
            stats={},
        )

    def held_out(recipes: Sequence[tuple[Recipe, ...]]) -> Callable[..., Rows]:
        batches = max(VALIDATION_BLOCK // batch_size, 1)
        make = functools.partial(_block, recipes, shown, VALIDATION_SEED, batches * batch_size)
        return _indices(ahead(make, num_workers=0), len(recipes), batch_size, batches, 0, None)

    last = recipes[-1]
    own = held_out([last["train"]])
    validation = {"programs": source([last["train"]], own)}
    if stream == "analogy" and context_window > 1:
        validation = {
            f"programs{name}": source([last["train"]], functools.partial(_lend, own, lend))
            for name, lend in (("", False), ("_foreign_demo", True))
        }
    for name in ("families", "compositions"):
        if last[name]:
            validation[f"programs_{name}"] = source([last[name]], held_out([last[name]]))
    training = [level["train"] for level in recipes]
    if len(levels) > 1:
        validation["programs_level"] = source(training, held_out(training))
    make = functools.partial(_block, training, shown, seed, batch_size * batches_per_block)
    blocks = ahead(make, num_workers=num_workers)
    indices = _indices(blocks, len(levels), batch_size, batches_per_block, blocks_ahead, level_every)
    own = source(training, indices)
    return own._replace(
        gather=context_masking.masked(own.gather, **masking),
        validation=validation,
        stats=_program_rows.stats(*_program_rows.draw(training[-1], shown, STATISTICS, VALIDATION_BLOCK)),
        num_levels=len(levels),
        close=blocks.close,
    )


# What the options mean.


def _shown(stream: str, window: int, offset: int, canvas: int | None) -> Shown:
    if stream not in STREAMS:
        raise ValueError(f"there is no stream {stream!r}: {nearest(stream, STREAMS)}")
    if not 1 <= window <= LONGEST:
        raise ValueError(f"context_window is {window}; it must be from 1 to {LONGEST}")
    if offset < 1:
        raise ValueError(f"target_offset is {offset}; the target comes at least 1 grid after the context")
    if offset > 1 and stream != "orbit":
        raise ValueError(
            f"target_offset is {offset}, but only in stream 'orbit' do later grids follow from the context"
        )
    if canvas is not None and stream != "transition":
        raise ValueError(f"canvas is {canvas}, but only in stream 'transition' are cells shown: leave it at None")
    return Shown(stream, window, offset, canvas)


def _by_level(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _levels(families: tuple, length: tuple, objects: tuple, side: tuple, canvas: int | None) -> list[Difficulty]:
    """The levels of difficulty, each option repeated where it has one value for all of them."""
    options = {"families": families, "length": length, "objects": objects, "side": side}
    number = max(map(len, options.values()))
    for name, values in options.items():
        if len(values) not in (1, number):
            raise ValueError(f"{name} has {len(values)} levels and another option {number}; it must be 1 or {number}")
    if min(length) < 1:
        raise ValueError(f"length is {min(length)}; a program has at least 1 step")
    columns = [values * (number // len(values)) for values in options.values()]
    return [
        Difficulty(length, Limits(side, objects, CANVAS if canvas is None else canvas), _family_set(families))
        for families, length, objects, side in zip(*columns, strict=True)
    ]


def _family_set(names: str) -> np.ndarray:
    """bool [K] of families and sets of them, joined by '+'."""
    sets = {"all": FAMILIES} | _primitives.SETS | {name: (name,) for name in FAMILIES}
    for name in names.split("+"):
        if name not in sets:
            raise ValueError(f"there is no family {name!r}, nor a set of that name: {nearest(name, sets)}")
    return np.isin(FAMILIES, [family for name in names.split("+") for family in sets[name]])


def _recipes(shown: Shown, level: Difficulty, split: _compositions.Split) -> dict[str, tuple[Recipe, ...]]:
    """What to draw at a level, for training and for the two held-out sets; the latter are () where they are empty."""
    split = _compositions.within(split, level.families)
    scenes, lengths = 1, (level.length,)
    if shown.stream == "orbit":
        lengths = (shown.window - 1 + shown.offset,)
    if shown.stream == "analogy":
        scenes, lengths = shown.window // 2 + 1, tuple(range(1, level.length + 1))
    orbit, stepwise = (shown.stream == stream for stream in ("orbit", "transition"))
    options = dict(num_scenes=scenes, orbit=orbit, stepwise=stepwise, limits=level.limits)
    found = [_program_blocks.recipes(split, length=n, **options) for n in lengths]
    return {name: tuple(f[name] for f in found if name in f) for name in ("train", "families", "compositions")}


def _met(levels: Sequence[tuple[Recipe, ...]]) -> list[str]:
    """The families of the programs of recipes."""
    met = np.zeros(len(FAMILIES), bool)
    for recipe in (recipe for recipes in levels for recipe in recipes):
        met |= recipe.pairs[0].any(axis=1) if recipe.pairs else recipe.first
        for pairs in (*recipe.pairs, *recipe.later):
            met |= pairs.any(axis=0)
    return [name for name, is_met in zip(FAMILIES, met, strict=True) if is_met]


# From programs to the rows of a step, in a worker or on the host.


def _block(recipes: Sequence[tuple[Recipe, ...]], shown: Shown, seed: int, size: int, key: tuple[int, int]) -> Rows:
    """The rows of a block: `size` programs of a level, key = (level, number of the block)."""
    return _program_rows.draw(recipes[key[0]], shown, [seed, *key], size)[0]


def _indices(
    blocks: Ahead, num_levels: int, batch_size: int, batches_per_block: int, blocks_ahead: int, level_every: int | None
) -> Callable[..., Rows]:
    """indices(step, level): the rows of a step. The next blocks are begun, as far as the level is known by then."""

    def indices(step: int, level: int = 0) -> Rows:
        number, place = divmod(step, batches_per_block)
        level = min(level, num_levels - 1)
        known = math.inf if num_levels == 1 or level_every is None else (step // level_every + 1) * level_every
        upcoming = range(number + 1, number + 1 + blocks_ahead)
        rows = blocks.get((level, number), [(level, n) for n in upcoming if n * batches_per_block < known])
        return jax.tree.map(lambda leaf: leaf[place * batch_size :][:batch_size], rows)

    return indices


def _lend(indices: Callable[..., Rows], lend: bool, step: int, level: int = 0) -> Rows:
    """Analogies, after the demonstrations of the next row with another program if `lend`.

    Both take the room in the canvas that either of them needs, so that one key translates them alike.
    """
    rows = indices(step, level)
    groups = rows["groups"]
    count = len(groups)
    lender = (np.arange(count) + 1) % count
    for _ in range(count):
        same = groups[lender] == groups
        lender = np.where(same, (lender + 1) % count, lender)
    extent = np.maximum(rows["extent"], rows["extent"][lender])
    if not lend:
        return rows | {"extent": extent}
    grids = jax.tree.map(lambda leaf: np.concatenate([leaf[lender, :-2], leaf[:, -2:]], axis=1), rows["grids"])
    return rows | {"extent": extent, "grids": grids}
