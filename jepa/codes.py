"""What each discrete code of a run means, as one page: `python -m jepa.codes runs/lejepa_codes` writes its codes.html.

The page needs no network and loads nothing. What is computed is here, as small functions of arrays; how it is shown is
`codes.html` beside this file, which draws the grids from the JSON that is put into it.
"""

from __future__ import annotations

import argparse
import functools
import html
import itertools
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa import checkpoint, diagnostics, encode, registry, representation, run_folder, train
from jepa.data import _collections, _objects, _segmentation
from jepa.data._collections import Task
from jepa.quantizers import fsq
from jepa.registry import nearest
from jepa.tables import NUM_COLOURS, OVERFLOW
from jepa.types import Observation, PyTree

HELD_OUT = "validation"  # the collection that stands for the tasks a run held out
ROLES = ("input", "output")
KINDS = ("grid", "object", "overflow")
GRID, OBJECT, OVERFLOWING = range(3)
COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "sky", "maroon", "several")
SEVERAL = NUM_COLOURS  # the colour of an object of more than one
ATTRIBUTES = ("colour", "shape", "size", "role", "kind")

SHUFFLES = 20  # what is expected by chance is the mean of as many
NEIGHBOURS = 5
RECURRENT_TASKS, RECURRENT_LIFT = 3, 2.0  # what a pair of codes needs to be counted as recurrent
LISTED_TASKS = 2  # a pair of codes seen in one task alone is never listed
LISTED_RULES = 60
LISTED_CHANGES = 12
EXAMPLES_OF_CODE, EXAMPLES_OF_RULE = 48, 3
CELLS = 1_200_000  # of the grids on the page, at two characters a cell: what keeps it under 5 MB


# The grids and their tokens.


class Collection(NamedTuple):
    """The grids of tasks, each pair by its input and its output: grids 2 p and 2 p + 1 are pair p."""

    title: str
    task_ids: list[str]
    grids: list[np.ndarray]
    task: np.ndarray  # int [G]: index into `task_ids`
    backgrounds: list[int]  # of the whole task, which a single grid says too little of


class Tokens(NamedTuple):
    """The real tokens of a collection, grid by grid; int [n] each. Only objects have a colour, a size and a shape."""

    code: np.ndarray
    grid: np.ndarray
    row: np.ndarray  # of the grid's object table
    task: np.ndarray
    role: np.ndarray  # index into ROLES
    kind: np.ndarray  # index into KINDS
    colour: np.ndarray  # index into COLOURS, -1 unless an object, as below
    size: np.ndarray  # index into `sizes` of the vocabulary
    shape: np.ndarray  # index into `shapes` of the vocabulary
    box: np.ndarray  # int [n, 4]: top, left, height, width; 0 for overflow


class Vocabulary(NamedTuple):
    """What sizes and shapes there are, in the order in which they first occur. A shape is the cells of a box."""

    sizes: list[tuple[int, int]]
    shapes: list[np.ndarray]  # bool [height, width]


def choose_tasks(config: ConfigDict, held_out: Iterable[str], name: str) -> tuple[str, list[Task]]:
    """A title and the tasks: those a run held out for `validation`, those of a collection, or those of a folder.

    Raises ValueError for another name, and where the data of the run is not what it was.
    """
    if name in _collections.COLLECTIONS:
        return name, _collections.load(name)
    if name != HELD_OUT:
        if not Path(name).is_dir():
            known = [HELD_OUT, *_collections.COLLECTIONS]
            raise ValueError(f"there is no collection and no folder {name!r}: {nearest(name, known)}")
        return Path(name).resolve().name, _collections.load_folder(name)
    if config.data.name != "arc":
        raise ValueError(f"the data of this run are {config.data.name!r}, not grids of tasks: name a --collection")
    where = config.data.folder
    if where is not None and not Path(where).is_dir():
        raise ValueError(f"the run's data.folder {where} is not here: start from where it was, or name a --collection")
    tasks = _collections.load(config.data.collection) if where is None else _collections.load_folder(where)
    ids = set(held_out)
    chosen = [task for task in tasks if task.id in ids]
    if not chosen:
        raise ValueError(f"none of the tasks that the run held out is in {where}: name a --collection")
    source = config.data.collection if where is None else Path(where).resolve().name
    return f"held-out tasks of {source}", chosen


def collect(title: str, tasks: Sequence[Task]) -> Collection:
    """The grids of tasks in order."""
    grids, owner, backgrounds = [], [], []
    for index, task in enumerate(tasks):
        of_task = [grid for pair in task.demos + task.tests for grid in pair]
        grids += of_task
        owner += [index] * len(of_task)
        backgrounds += [_objects.background(of_task)] * len(of_task)
    return Collection(title, [task.id for task in tasks], grids, np.array(owner), backgrounds)


def token_of_cells(grid: np.ndarray, background: int, table: Observation) -> np.ndarray:
    """The row of the object table that each cell belongs to, int [height, width]; 0, the grid's, for the background.

    Box and colours name an object: two connected objects of one box would have to cross, and so to touch.
    """
    rows = np.zeros(grid.shape, int)
    cells, _, length = _segmentation.lay_out([grid], np.array([grid.shape]))
    foreground = cells.colour != background
    cells = _segmentation.Cells(*(field[foreground] for field in cells))
    if not len(cells.row):
        return rows
    labels, count = _segmentation.segment(cells, length, 1)
    kept = np.flatnonzero(table["mask"][1:OVERFLOW]) + 1
    row_of = {(*table["box"][row].tolist(), *table["histogram"][row].tolist()): int(row) for row in kept}
    for label in range(count):
        own = labels == label
        row, column = cells.row[own], cells.column[own]
        box = (int(row.min()), int(column.min()), int(np.ptp(row)) + 1, int(np.ptp(column)) + 1)
        name = (*box, *np.bincount(cells.colour[own], minlength=NUM_COLOURS).tolist())
        rows[row, column] = row_of[name] if name in row_of else OVERFLOW
    return rows


def tokens_of(
    collection: Collection, owners: Sequence[np.ndarray], table: Observation, codes: np.ndarray
) -> tuple[Tokens, Vocabulary]:
    """The tokens of all grids [G], given the object of every cell, the object tables and the codes [G, N]."""
    grid, row = np.nonzero(codes >= 0)
    kind = np.where(row == 0, GRID, np.where(row == OVERFLOW, OVERFLOWING, OBJECT))
    box = table["box"][grid, row]
    colours = table["histogram"][grid, row] > 0
    sizes: dict[tuple[int, int], int] = {}
    shapes: dict[tuple[tuple[int, int], bytes], int] = {}
    size, shape = np.full((2, len(grid)), -1)
    for i in np.flatnonzero(kind == OBJECT):
        top, left, height, width = box[i].tolist()
        cells = owners[grid[i]][top : top + height, left : left + width] == row[i]
        size[i] = sizes.setdefault((height, width), len(sizes))
        shape[i] = shapes.setdefault((cells.shape, cells.tobytes()), len(shapes))
    colour = np.where(colours.sum(-1) > 1, SEVERAL, colours.argmax(-1))
    masks = [np.frombuffer(cells, bool).reshape(extent) for extent, cells in shapes]
    tokens = Tokens(
        code=codes[grid, row].astype(int),
        grid=grid,
        row=row,
        task=collection.task[grid],
        role=grid % 2,
        kind=kind,
        colour=np.where(kind == OBJECT, colour, -1),
        size=size,
        shape=shape,
        box=box,
    )
    return tokens, Vocabulary(list(sizes), masks)


# What a code says of its tokens.


class Purity(NamedTuple):
    """How far the tokens of a code agree in one attribute; arrays [U], one entry for each code."""

    total: np.ndarray  # int: tokens that have the attribute
    value: np.ndarray  # int: the commonest value among them, the smallest of equals; -1 without any
    share: np.ndarray  # of that value among them; nan without any, as below
    base: np.ndarray  # share of that value among the tokens of all codes
    chance: np.ndarray  # share of the commonest value of as many tokens drawn at random


class Told(NamedTuple):
    """Share of tokens whose attribute is guessed right, always by the commonest value."""

    share: float  # the commonest of the token's code
    base: float  # the commonest of all tokens
    chance: float  # the commonest of the token's code, after codes were dealt out at random

    @property
    def gain(self) -> float:
        """How much of the way from chance to certainty the codes go; 0 where chance is certain already."""
        return (self.share - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


def commonest(codes: np.ndarray, values: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """By code, [num_codes]: the commonest of its values (the smallest of equals), and its count; -1 and 0 if none."""
    width = values.max(initial=0) + 1
    both, count = np.unique(codes * width + values, return_counts=True)
    order = np.lexsort((both, -count, both // width))
    code, first = np.unique((both // width)[order], return_index=True)
    value, most = np.full(num_codes, -1), np.zeros(num_codes, int)
    value[code], most[code] = (both % width)[order][first], count[order][first]
    return value, most


def purity(codes: np.ndarray, values: np.ndarray, num_codes: int) -> Purity:
    """The purity of codes 0..num_codes-1 by the `values` [n] of their tokens; a token whose value is -1 has none."""
    has = values >= 0
    codes, values = codes[has], values[has]
    total = np.bincount(codes, minlength=num_codes)
    value, most = commonest(codes, values, num_codes)
    rng = np.random.default_rng(0)
    by_chance = np.mean([commonest(codes, rng.permutation(values), num_codes)[1] for _ in range(SHUFFLES)], axis=0)
    frequency = np.bincount(values, minlength=1) / max(len(values), 1)
    known = total > 0
    share, base, chance = (np.full(num_codes, np.nan) for _ in range(3))
    share[known], chance[known] = most[known] / total[known], by_chance[known] / total[known]
    base[known] = frequency[value[known]]
    return Purity(total, value, share, base, chance)


def told(found: Purity, values: np.ndarray) -> Told | None:
    """What the codes tell of an attribute over all tokens that have it; None where none has."""
    if not found.total.sum():
        return None
    known = found.total > 0
    weight = found.total[known] / found.total.sum()
    base = np.bincount(values[values >= 0]).max() / found.total.sum()
    return Told(float(weight @ found.share[known]), float(base), float(weight @ found.chance[known]))


def symbols_of(codes: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """The symbols of each code, int [n, S]."""
    return np.asarray(fsq.unpack(jnp.asarray(codes, jnp.int32), tuple(levels)))


def nearest_codes(values: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the decoded codes [U, D] the `num` nearest others, int [U, num], and how far they are.

    Distances are Euclidean, over the mean distance of two codes; equals in the order of the codes.
    """
    values = values.astype(np.float64)
    num = min(num, len(values) - 1)
    index, distance, total = np.zeros((len(values), num), int), np.zeros((len(values), num)), 0.0
    for i, value in enumerate(values):
        to_others = np.linalg.norm(values - value[None], axis=-1)
        total += to_others.sum()
        to_others[i] = np.inf
        index[i] = np.argsort(to_others, kind="stable")[:num]
        distance[i] = to_others[index[i]]
    mean = total / max(len(values) * (len(values) - 1), 1)
    return index, distance / mean if mean > 0 else distance


# What happens to codes from an input to its output.


class Unit(NamedTuple):
    """Something of one pair in which codes of the input and codes of the output are seen at once."""

    task: int
    pair: int
    inputs: Mapping[int, int]  # code -> a token that has it
    outputs: Mapping[int, int]


class Rule(NamedTuple):
    """A code of the input and a code of the output, and how often they are seen, in units."""

    before: int
    after: int
    together: int
    with_before: int
    with_after: int
    units: int
    pairs: int  # different pairs among the units with both
    tasks: int  # different tasks among them
    examples: tuple[tuple[int, int], ...]  # tokens that have the two codes, each of another task

    @property
    def lift(self) -> float:
        """P(before, after) / (P(before) P(after)): 1 when they are independent."""
        return self.together * self.units / (self.with_before * self.with_after)

    @property
    def pmi(self) -> float:
        """Pointwise mutual information, in bits."""
        return math.log2(self.lift)

    @property
    def evidence(self) -> float:
        """`pmi` times the tasks after the first, which by itself shows nothing; by lift alone, rare codes would lead."""
        return (self.tasks - 1) * self.pmi


class Change(NamedTuple):
    """A code on one side of a pair, and how often the other side lacks it."""

    code: int
    pairs: int  # that have it on this side
    alone: int  # of these, pairs whose other side lacks it
    tasks: int
    always: int  # of these tasks, the ones whose other side lacks it in every pair that has it

    @property
    def share(self) -> float:
        """Of the pairs that have it on this side, those whose other side lacks it."""
        return self.alone / self.pairs


def _objects_by_pair(tokens: Tokens) -> dict[int, tuple[list[int], list[int]]]:
    """The object tokens of every pair: of its input, of its output. A pair without any object is among them."""
    found = {int(pair): ([], []) for pair in np.unique(tokens.grid // 2)}
    for i in np.flatnonzero(tokens.kind == OBJECT):
        found[int(tokens.grid[i] // 2)][tokens.role[i]].append(int(i))
    return found


def together(tokens: Tokens) -> list[Unit]:
    """One unit for every pair of grids: all codes of objects that occur in its input and in its output."""
    task_of = dict(zip((tokens.grid // 2).tolist(), tokens.task.tolist(), strict=True))

    def first_of_code(side: list[int]) -> dict[int, int]:
        return {int(tokens.code[i]): i for i in reversed(side)}

    pairs = _objects_by_pair(tokens)
    return [Unit(task_of[pair], pair, *map(first_of_code, sides)) for pair, sides in pairs.items()]


def _match(tokens: Tokens, i: int, j: int) -> Unit:
    code_in, code_out = int(tokens.code[i]), int(tokens.code[j])
    return Unit(int(tokens.task[i]), int(tokens.grid[i] // 2), {code_in: i}, {code_out: j})


def same_place(tokens: Tokens) -> list[Unit]:
    """One unit for every object of an input and object of its output that have the same box."""
    units = []
    for inputs, outputs in _objects_by_pair(tokens).values():
        boxes = {i: tuple(tokens.box[i].tolist()) for i in inputs + outputs}
        units += [_match(tokens, i, j) for i, j in itertools.product(inputs, outputs) if boxes[i] == boxes[j]]
    return units


def same_shape(tokens: Tokens) -> list[Unit]:
    """One unit for every shape that exactly one object of an input, and exactly one of its output, has."""
    units = []
    for sides in _objects_by_pair(tokens).values():
        only = [{} for _ in ROLES]
        for found, side in zip(only, sides, strict=True):
            counts = Counter(int(tokens.shape[i]) for i in side)
            found |= {int(tokens.shape[i]): i for i in side if counts[int(tokens.shape[i])] == 1}
        units += [_match(tokens, i, only[1][shape]) for shape, i in only[0].items() if shape in only[1]]
    return units


MATCHES = {"together": together, "place": same_place, "shape": same_shape}


def rules(units: Sequence[Unit]) -> list[Rule]:
    """Every code of an input with every code of an output that a unit shows at once, by falling evidence."""
    before = Counter(code for unit in units for code in unit.inputs)
    after = Counter(code for unit in units for code in unit.outputs)
    shared: dict[tuple[int, int], list[Unit]] = defaultdict(list)
    for unit in units:
        for both in itertools.product(unit.inputs, unit.outputs):
            shared[both].append(unit)
    found = []
    for (a, b), those in shared.items():
        by_task = {unit.task: unit for unit in reversed(those)}
        examples = [(by_task[task].inputs[a], by_task[task].outputs[b]) for task in sorted(by_task)[:EXAMPLES_OF_RULE]]
        pairs = len({unit.pair for unit in those})
        counts = (len(those), before[a], after[b], len(units), pairs, len(by_task))
        found.append(Rule(a, b, *counts, tuple(examples)))
    return sorted(found, key=lambda rule: (-rule.evidence, rule.before, rule.after))


def listed_rules(found: Iterable[Rule]) -> dict[str, list[Rule]]:
    """The rules that are worth a look, in their order: where the code changes, and where it stays."""
    worth = [rule for rule in found if rule.tasks >= LISTED_TASKS and rule.lift > 1]
    return {
        "changed": [rule for rule in worth if rule.before != rule.after],
        "kept": [rule for rule in worth if rule.before == rule.after],
    }


def recurrent(found: Iterable[Rule]) -> int:
    """How many of the rules come back in enough tasks, often enough beyond chance."""
    return sum(rule.tasks >= RECURRENT_TASKS and rule.lift >= RECURRENT_LIFT for rule in found)


def with_foreign_outputs(units: Sequence[Unit], rng: np.random.Generator) -> list[Unit]:
    """The units with the outputs of another task, unit for unit: what is left of rules is chance."""
    by_task: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        by_task[unit.task].append(unit)
    order = rng.permutation(sorted(by_task))
    lender = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [
        unit._replace(outputs=by_task[lender[task]][i % len(by_task[lender[task]])].outputs)
        for task, own in by_task.items()
        for i, unit in enumerate(own)
    ]


def recurrent_by_chance(units: Sequence[Unit]) -> float:
    """How many rules are recurrent between inputs and the outputs of other tasks, on average."""
    rng = np.random.default_rng(0)
    return float(np.mean([recurrent(rules(with_foreign_outputs(units, rng))) for _ in range(SHUFFLES)]))


def vanishing(units: Sequence[Unit]) -> list[Change]:
    """Every code of an input, and how often the output lacks it, in the order of the codes."""
    seen: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        for code in unit.inputs:
            seen[code].append(unit)
    found = []
    for code, those in sorted(seen.items()):
        tasks, kept = {unit.task for unit in those}, {unit.task for unit in those if code in unit.outputs}
        alone = sum(code not in unit.outputs for unit in those)
        found.append(Change(code, len(those), alone, len(tasks), len(tasks - kept)))
    return found


def appearing(units: Sequence[Unit]) -> list[Change]:
    """Every code of an output, and how often the input lacks it, in the order of the codes."""
    return vanishing([unit._replace(inputs=unit.outputs, outputs=unit.inputs) for unit in units])


def alone_on_average(changes: Sequence[Change]) -> float:
    """Share of the codes of one side, each counted in every pair, that the other side lacks; nan without any."""
    pairs = sum(change.pairs for change in changes)
    return sum(change.alone for change in changes) / pairs if pairs else math.nan


def listed_changes(changes: Sequence[Change]) -> list[Change]:
    """The codes that the other side lacks more often than the average one, always so in a few tasks at least.

    They come in the order of what is the evidence of a rule: those tasks after the first, times the logarithm of the
    share over the average.
    """
    average = alone_on_average(changes)
    worth = [change for change in changes if change.always >= LISTED_TASKS and change.share > average]
    return sorted(worth, key=lambda change: ((1 - change.always) * math.log2(change.share / average), change.code))


# What the page holds.


def room(collection: Collection, wanted: Iterable[int], limit: int = CELLS) -> dict[int, int]:
    """Which grids are on the page, and where: those wanted first, each with the other of its pair, until it is full."""
    places: dict[int, int] = {}
    cells = 0
    for grid in wanted:
        pair = (grid - grid % 2, grid - grid % 2 + 1)
        size = sum(collection.grids[i].size for i in pair)
        if pair[0] not in places and cells + size <= limit:
            cells += size
            places |= {pair[0]: len(places), pair[1]: len(places) + 1}
    return places


def examples(codes: np.ndarray, tasks: np.ndarray, num_codes: int, num: int) -> list[list[int]]:
    """For each code the tokens to show, `num` at most: one of each task in turn, then the second of each, and so on."""
    found: list[list[int]] = [[] for _ in range(num_codes)]
    turn: Counter = Counter()
    turns = np.zeros(len(codes), int)
    for i, key in enumerate(zip(codes.tolist(), tasks.tolist(), strict=True)):
        turns[i] = turn[key]
        turn[key] += 1
    for i in np.lexsort((np.arange(len(codes)), tasks, turns)).tolist():
        if len(found[codes[i]]) < num:
            found[codes[i]].append(i)
    return found


def _rounded(value: float) -> float | None:
    """Four digits, which is what a page can show; None, JSON's word for it, where there is no value."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def usage_by_kind(tokens: Tokens, num_codes: int) -> dict[str, dict[str, float]]:
    """`jepa.diagnostics.code_usage` of all tokens and of each kind that there is, with the codes that occur once."""
    chosen = {"all": np.ones(len(tokens.code), bool)} | {name: tokens.kind == k for k, name in enumerate(KINDS)}
    found = {}
    for name, those in chosen.items():
        codes = tokens.code[those]
        if len(codes):
            figures = diagnostics.code_usage(jnp.asarray(codes, jnp.int32), num_codes)
            counts = np.unique(codes, return_counts=True)[1]
            found[name] = {key: float(value) for key, value in figures.items()}
            found[name] |= {"used": len(counts), "once": int((counts == 1).sum())}
    return found


def decode(config: ConfigDict, params: PyTree, state: PyTree, codes: np.ndarray) -> np.ndarray:
    """The values [U, D] of codes by the quantizer of a run, from what its checkpoint holds."""
    quantizer = registry.build("quantizers", config.quantizer.name, **train.keywords(config.quantizer))
    name = representation.SHARED
    trunk = params["trunk"]
    parts = [tree[name] if name in tree else {} for tree in (trunk, state)]
    return np.asarray(quantizer.decode(*parts, jnp.asarray(codes, jnp.int32)))


class Findings(NamedTuple):
    """All that the page says, before it is put in words."""

    collection: Collection
    owners: list[np.ndarray]  # by grid: the token of every cell
    tokens: Tokens
    vocabulary: Vocabulary
    levels: tuple[int, ...]
    codes: np.ndarray  # int [U]: the codes that occur
    usage: dict[str, dict[str, float]]
    purity: dict[str, Purity]  # by attribute
    told: dict[str, Told | None]  # by attribute
    symbols: list[dict[str, Told | None]]  # the same of every symbol by itself
    near: tuple[np.ndarray, np.ndarray]
    units: dict[str, list[Unit]]  # by the name of a match
    rules: dict[str, list[Rule]]
    chance: dict[str, float]  # recurrent rules that chance makes


def analyse(
    collection: Collection,
    table: Observation,
    codes: np.ndarray,
    levels: tuple[int, ...],
    decode_codes: Callable[[np.ndarray], np.ndarray],
) -> Findings:
    """The findings on grids [G], whose tokens have these codes [G, N]; `decode_codes` gives the values of some."""
    rows = ({key: leaf[i] for key, leaf in table.items()} for i in range(len(collection.grids)))
    grids = zip(collection.grids, collection.backgrounds, rows, strict=True)
    owners = [token_of_cells(*grid) for grid in grids]
    tokens, vocabulary = tokens_of(collection, owners, table, codes)
    used, index = np.unique(tokens.code, return_inverse=True)
    values = {name: getattr(tokens, name) for name in ATTRIBUTES}
    pure = {name: purity(index, values[name], len(used)) for name in ATTRIBUTES}
    symbols = [
        {name: told(purity(symbol, values[name], level), values[name]) for name in ATTRIBUTES}
        for symbol, level in zip(symbols_of(tokens.code, levels).T, levels, strict=True)
        if len(levels) > 1
    ]
    units = {name: match(tokens) for name, match in MATCHES.items()}
    return Findings(
        collection,
        owners,
        tokens,
        vocabulary,
        levels,
        used,
        usage_by_kind(tokens, math.prod(levels)),
        pure,
        {name: told(pure[name], values[name]) for name in ATTRIBUTES},
        symbols,
        nearest_codes(decode_codes(used), NEIGHBOURS),
        units,
        {name: rules(found) for name, found in units.items()},
        {name: recurrent_by_chance(found) for name, found in units.items()},
    )


# The page.


def verdict(found: Findings) -> list[str]:
    """What somebody who would build on the codes has to know first, in sentences."""
    usage = found.usage["all"]
    lines = [
        f"{usage['used']:,} of {math.prod(found.levels):,} codes occur; used evenly, {usage['perplexity']:,.1f} would "
        "say as much."
    ]
    if usage["perplexity"] < 2:
        lines.append("They have collapsed: nearly every token has the same code.")
    known = {name: of for name, of in found.told.items() if of is not None and name != "kind"}
    guesses = [
        f"{name} {100 * of.share:.0f}\u00a0% ({100 * of.chance:.0f}\u00a0%)"
        for name, of in sorted(known.items(), key=lambda item: -item[1].gain)
    ]
    lines.append(f"What is guessed right from the code of a token, in brackets by chance: {', '.join(guesses)}.")
    count, chance = recurrent(found.rules["together"]), found.chance["together"]
    lines.append(
        f"{count:,} pairs of codes recur from input to output, in {RECURRENT_TASKS} tasks or more and at least "
        f"{RECURRENT_LIFT:g} times as often as by chance; between inputs and the outputs of other tasks, {chance:,.1f} "
        "do."
    )
    return lines


def page_data(found: Findings) -> dict[str, Any]:
    """What the page draws from, as JSON holds it: figures, codes, rules, and every grid that they show."""
    tokens, index = found.tokens, np.searchsorted(found.codes, found.tokens.code)
    counts = np.bincount(index)
    num_codes = math.prod(found.levels)
    listed = {name: listed_rules(those) for name, those in found.rules.items()}
    drawn_rules = [rule for sides in listed.values() for those in sides.values() for rule in those[:LISTED_RULES]]
    shown = examples(index, tokens.task, len(found.codes), EXAMPLES_OF_CODE)
    # A token of every code in turn, so that a page that is full shows some of each.
    in_turn = (i for turn in itertools.zip_longest(*shown) for i in turn if i is not None)
    wanted = itertools.chain((i for rule in drawn_rules for both in rule.examples for i in both), in_turn)
    places = room(found.collection, (int(tokens.grid[i]) for i in wanted))

    def drawn(those: Iterable[int]) -> list[list[int]]:
        """[place of the grid, row of its table] of those of the tokens that the page has room for."""
        rows = ((int(tokens.grid[i]), int(tokens.row[i])) for i in those)
        return [[places[grid], row] for grid, row in rows if grid in places]

    codes = [
        _code_data(found, i, tokens.task[index == i], drawn(shown[i]))
        for i in np.lexsort((found.codes, -counts)).tolist()
    ]
    shapes = {code["is"]["shape"][0] for code in codes if code["is"]["shape"]}
    return {
        "numCodes": num_codes,
        "levels": list(found.levels),
        "numTokens": len(tokens.code),
        "numGrids": len(found.collection.grids),
        "numTasks": len(found.collection.task_ids),
        "evenUsage": -math.expm1(len(tokens.code) * math.log1p(-1 / num_codes)) if num_codes > 1 else 1.0,
        "usage": found.usage,
        "told": {name: [] if of is None else [*map(_rounded, of)] for name, of in found.told.items()},
        "symbols": [
            {name: None if of is None else _rounded(of.share) for name, of in symbol.items()}
            for symbol in found.symbols
        ],
        "attributes": list(ATTRIBUTES),
        "roles": list(ROLES),
        "kinds": list(KINDS),
        "colours": list(COLOURS),
        "sizes": [f"{height} × {width}" for height, width in found.vocabulary.sizes],
        "shapes": {str(i): _shape_data(found.vocabulary.shapes[i]) for i in sorted(shapes)},
        "codes": codes,
        "matches": {
            name: {
                "units": len(found.units[name]),
                "recurrent": recurrent(found.rules[name]),
                "byChance": round(found.chance[name], 1),
                "listed": {side: len(those) for side, those in sides.items()},
                **{side: [_rule_data(rule, drawn) for rule in those[:LISTED_RULES]] for side, those in sides.items()},
            }
            for name, sides in listed.items()
        },
        "gone": _change_data(vanishing(found.units["together"])),
        "new": _change_data(appearing(found.units["together"])),
        "tasks": found.collection.task_ids,
        "grids": [_grid_data(found, grid) for grid in places],
    }


def _code_data(found: Findings, i: int, tasks: np.ndarray, shown: list[list[int]]) -> dict[str, Any]:
    """Of the code with index i, whose tokens are in these tasks."""
    near = zip(*(part[i].tolist() for part in found.near), strict=True)
    return {
        "code": int(found.codes[i]),
        "symbols": symbols_of(found.codes[i : i + 1], found.levels)[0].tolist() if len(found.levels) > 1 else [],
        "count": len(tasks),
        "tasks": len(np.unique(tasks)),
        "is": {name: _purity_data(pure, i) for name, pure in found.purity.items()},
        "near": [[int(found.codes[j]), _rounded(distance)] for j, distance in near],
        "examples": shown,
    }


def _purity_data(pure: Purity, i: int) -> list[float | None]:
    """[value, share, base, chance, tokens that have the attribute]; empty where none has."""
    if not pure.total[i]:
        return []
    shares = (_rounded(float(part[i])) for part in (pure.share, pure.base, pure.chance))
    return [int(pure.value[i]), *shares, int(pure.total[i])]


def _shape_data(cells: np.ndarray) -> list[Any]:
    """[width, a 0 or 1 for each cell of the box]."""
    return [cells.shape[1], "".join(map(str, cells.ravel().astype(int)))]


def _grid_data(found: Findings, grid: int) -> list[Any]:
    """[task, number of the pair in it, width, a digit a cell for the colour, one of base 36 for the row, codes]."""
    cells, task = found.collection.grids[grid], int(found.collection.task[grid])
    first = int(np.searchsorted(found.collection.task, task))
    colours = "".join(map(str, cells.ravel().tolist()))
    rows = "".join(np.base_repr(row, 36) for row in found.owners[grid].ravel().tolist())
    here = found.tokens.grid == grid
    codes = dict(zip(map(str, found.tokens.row[here].tolist()), found.tokens.code[here].tolist(), strict=True))
    return [task, (grid - first) // 2 + 1, cells.shape[1], colours, rows, codes]


def _rule_data(rule: Rule, drawn: Callable[[Iterable[int]], list[list[int]]]) -> dict[str, Any]:
    both_drawn = [drawn(both) for both in rule.examples]
    return {
        **{name: getattr(rule, name) for name in ("before", "after", "pairs", "tasks")},
        "given": _rounded(rule.together / rule.with_before),
        "anyway": _rounded(rule.with_after / rule.units),
        "lift": _rounded(rule.lift),
        "evidence": _rounded(rule.evidence),
        "examples": [both for both in both_drawn if both],
    }


def _change_data(changes: Sequence[Change]) -> dict[str, Any]:
    """The average, and the codes whose other side lacks them most clearly beyond it."""
    listed = listed_changes(changes)[:LISTED_CHANGES]
    return {
        "average": _rounded(alone_on_average(changes)),
        "codes": [change._asdict() | {"share": _rounded(change.share)} for change in listed],
    }


@functools.cache
def _template() -> str:
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


def trained_on(seen: Iterable[str], shown: Sequence[str]) -> str:
    """A warning where the run has seen tasks that are shown; empty where it has not."""
    both = len(set(seen) & set(shown))
    return f"The run was trained on {both:,} of these {len(shown):,} tasks." if both else ""


def render(found: Findings, *, run: str, quantizer: str, step: int, warning: str) -> str:
    """The page of a run."""
    levels = " · ".join(map(str, found.levels))
    about = f"{quantizer}, levels {levels}" if len(found.levels) > 1 else f"{quantizer}, {levels} codes"
    data = json.dumps(page_data(found), ensure_ascii=False, separators=(",", ":"))
    parts = {
        "run": html.escape(run),
        "about": html.escape(f"{about} · step {step:,} · {found.collection.title}"),
        "verdict": html.escape(" ".join(verdict(found))),
        "warning": html.escape(warning),
        "recurrent": f"{RECURRENT_TASKS} tasks or more at a lift of {RECURRENT_LIFT:g} or more",
        "listed": str(LISTED_TASKS),
        "shuffles": str(SHUFFLES),
        "data": data.replace("<", "\\u003c"),  # which could end the script element that it is in
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template())


# The command.


def write(workdir: Path, output: Path, step: int | str, collection: str) -> list[str]:
    """Writes the page of the run in `workdir`; returns its verdict.

    Raises ValueError for a run without codes, and for a run, a checkpoint, a collection or a folder that is not there.
    """
    config = ConfigDict(run_folder.read_config(workdir))
    if not train.build_objective(config).levels:
        raise ValueError(
            f"{workdir} has no codes: its quantizer is {config.quantizer.name!r}; "
            "configs/lejepa_codes.py trains a run that has"
        )
    if not output.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to: make it, or choose another")
    model = encode.load(workdir, step)
    saved = checkpoint.read(workdir, model.step)
    title, tasks = choose_tasks(model.config, saved.host["validation_ids"], collection)
    grids = collect(title, tasks)
    described = model.describe(grids.grids, grids.backgrounds)
    state = saved.state["objective_state"] if "objective_state" in saved.state else {}
    decode_codes = functools.partial(decode, model.config, model.params, state)
    found = analyse(grids, described.table, described.codes, model.levels, decode_codes)
    page = render(
        found,
        run=workdir.resolve().name,
        quantizer=model.config.quantizer.name,
        step=model.step,
        warning=trained_on(saved.host["seen_ids"], grids.task_ids),
    )
    run_folder.atomic_write_text(output, page)
    return verdict(found)


def main(argv: Sequence[str] | None = None) -> None:
    """A mistake of the user is one sentence and exit code 2, never a traceback."""
    parser = argparse.ArgumentParser(prog="python -m jepa.codes", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run with a quantizer")
    parser.add_argument("--output", type=Path, help="the page; <run>/codes.html if not given")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step")
    parser.add_argument(
        "--collection",
        default=HELD_OUT,
        help=f"{HELD_OUT} (the tasks the run held out), {', '.join(_collections.COLLECTIONS)}, or a folder of ARC JSON",
    )
    options = parser.parse_args(argv)
    workdir = options.run.expanduser()
    output = workdir / "codes.html" if options.output is None else options.output.expanduser()
    step = int(options.checkpoint) if options.checkpoint.isdecimal() else options.checkpoint
    try:
        lines = write(workdir, output, step, options.collection)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)
    print(*lines, f"done: {output}", sep="\n")


if __name__ == "__main__":
    main()
