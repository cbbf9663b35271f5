"""What happens to codes from the input of a pair to its output: codes that recur together, that go and that come."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jepa.code_tokens import OBJECT, ROLES, SHUFFLES, Tokens

RECURRENT_TASKS, RECURRENT_LIFT = 3, 2.0  # what a pair of codes needs to be counted as recurrent
LISTED_TASKS = 2  # a pair of codes seen in one task alone is never listed
EXAMPLES_OF_RULE = 3


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
        """`pmi` times the tasks after the first, which by itself shows nothing; by lift alone rare codes would lead."""
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
