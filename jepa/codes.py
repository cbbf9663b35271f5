"""What each discrete code of a run means, as one page: `python -m jepa.codes runs/lejepa_codes` writes its codes.html.

The page needs no network and loads nothing. What is computed is in
`jepa.code_tokens` and `jepa.code_rules`, what the page holds is here, and how it is shown is `codes.html` beside this
file, which draws the grids from the JSON that is put into it. `page.css` and `page.js` are what pages have in common.
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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa import checkpoint, diagnostics, encode, registry, representation, run_folder
from jepa.code_rules import (
    LISTED_TASKS,
    MATCHES,
    RECURRENT_LIFT,
    RECURRENT_TASKS,
    Change,
    Rule,
    Unit,
    alone_on_average,
    appearing,
    listed_changes,
    listed_rules,
    recurrent,
    recurrent_by_chance,
    rules,
    vanishing,
)
from jepa.code_tokens import (
    ATTRIBUTES,
    COLOURS,
    KINDS,
    ROLES,
    SHUFFLES,
    Collection,
    Purity,
    Tokens,
    Told,
    Vocabulary,
    collect,
    nearest_codes,
    purity,
    symbols_of,
    token_of_cells,
    tokens_of,
    told,
)
from jepa.data import _collections
from jepa.data._collections import Task
from jepa.parts import build_objective, keywords
from jepa.registry import nearest
from jepa.types import Observation, PyTree

HELD_OUT = "validation"  # the collection that stands for the tasks a run held out
NEIGHBOURS = 5
LISTED_RULES = 60
LISTED_CHANGES = 12
EXAMPLES_OF_CODE = 48
CELLS = 1_200_000  # of the grids on the page, at two characters a cell: what keeps it under 5 MB


def choose_tasks(config: ConfigDict, held_out: Iterable[str], name: str) -> tuple[str, list[Task]]:
    """A title and the tasks: those a run held out for `validation`, those of a collection, or those of a folder.

    A run on other grids than ARC held out none; ARC-1 evaluation stands for them.
    Raises ValueError for another name, and where the data of the run is not what it was.
    """
    if name in _collections.COLLECTIONS:
        return name, _collections.load(name)
    if name != HELD_OUT:
        if not Path(name).is_dir():
            known = [HELD_OUT, *_collections.COLLECTIONS]
            raise ValueError(f"there is no collection and no folder {name!r}: {nearest(name, known)}")
        return Path(name).resolve().name, _collections.load_folder(name)
    if config.data.name == "images":
        raise ValueError("the data of this run are images, not grids")
    data = _arc(config.data)
    if data is None:
        return "tasks of arc1-eval, none of which the run has seen", _collections.load("arc1-eval")
    where = data.folder
    if where is not None and not Path(where).is_dir():
        raise ValueError(f"the run's data.folder {where} is not here: start from where it was, or name a --collection")
    tasks = _collections.load(data.collection) if where is None else _collections.load_folder(where)
    ids = set(held_out)
    chosen = [task for task in tasks if task.id in ids]
    if not chosen:
        raise ValueError(f"none of the tasks that the run held out is in {where}: name a --collection")
    source = data.collection if where is None else Path(where).resolve().name
    return f"held-out tasks of {source}", chosen


def _arc(data: ConfigDict) -> ConfigDict | None:
    """The part of `config.data` that is ARC, if there is one."""
    if data.name == "mixture":
        names = [part.partition(":")[0].strip() for part in data.shares.split(",")]
        return next((data.sources[name] for name in names if data.sources[name].name == "arc"), None)
    return data if data.name == "arc" else None


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


def even_usage(num_codes: int, num_tokens: int) -> float:
    """Share of the codes that so many tokens are expected to have, if every code is equally likely."""
    return 1.0 if num_codes == 1 else -math.expm1(num_tokens * math.log1p(-1 / num_codes))


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
    quantizer = registry.build("quantizers", config.quantizer.name, **keywords(config.quantizer))
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
    even = even_usage(math.prod(found.levels), len(found.tokens.code))
    if usage["perplexity"] < 2:
        lines.append("They have collapsed: nearly every token has the same code.")
    elif usage["usage"] < even / 4:
        lines.append(
            f"Most do not occur here, where even draws would reach {100 * even:.0f}\u00a0%; training may have shown "
            "grids under symmetries, palettes and places of which these have one each."
        )
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
        "evenUsage": _rounded(even_usage(num_codes, len(tokens.code))),
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


def trained_on(seen: Iterable[str], shown: Sequence[str]) -> str:
    """A warning where the run has seen tasks that are shown; empty where it has not."""
    both = len(set(seen) & set(shown))
    return f"The run was trained on {both:,} of these {len(shown):,} tasks." if both else ""


def render(found: Findings, *, run: str, quantizer: str, step: int, warning: str) -> str:
    """The page of a run."""
    here = Path(__file__)
    template = here.with_suffix(".html").read_text(encoding="utf-8")
    levels = " · ".join(map(str, found.levels))
    about = f"{quantizer}, levels {levels}" if len(found.levels) > 1 else f"{quantizer}, {levels} codes"
    data = json.dumps(page_data(found), ensure_ascii=False, separators=(",", ":"))
    parts = {
        "style": here.with_name("page.css").read_text(encoding="utf-8"),
        "script": here.with_name("page.js").read_text(encoding="utf-8"),
        "run": html.escape(run),
        "about": html.escape(f"{about} · step {step:,} · {found.collection.title}"),
        "verdict": html.escape(" ".join(verdict(found))),
        "warning": html.escape(warning),
        "recurrent": f"{RECURRENT_TASKS} tasks or more at a lift of {RECURRENT_LIFT:g} or more",
        "listed": str(LISTED_TASKS),
        "shuffles": str(SHUFFLES),
        "data": data.replace("<", "\\u003c"),  # which could end the script element that it is in
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


# The command.


def write(workdir: Path, output: Path, step: int | str, collection: str) -> list[str]:
    """Writes the page of the run in `workdir`; returns its verdict.

    Raises ValueError for a run without codes, and for a run, a checkpoint, a collection or a folder that is not there.
    """
    config = ConfigDict(run_folder.read_config(workdir))
    if not build_objective(config).levels:
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
    step = checkpoint.step_of(options.checkpoint)
    try:
        lines = write(workdir, output, step, options.collection)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)
    print(*lines, f"done: {output}", sep="\n")


if __name__ == "__main__":
    main()
