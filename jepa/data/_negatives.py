"""Hard negatives of an analogy: wrong targets that neither the task nor the colours give away.

Targets of other tasks, the negatives that a batch holds anyway, are told apart by a histogram of colours alone. These
share with the target its task, so that what the task looks like decides nothing and copying the output of the
demonstration loses; or its colours and, as nearly as there are such grids, its size, so that neither the set of colours
nor the order of their frequencies decides; proportions still tell. All lie where the target lies: a grid that does not
fit there is no candidate, so that no offset tells either.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa import tables
from jepa.symmetries import Symmetry
from jepa.types import Observation, PyTree

Grid = tuple[tuple[int, int], bytes]  # shape, content
Row = tuple[tuple[int, int], bytes, int]  # shape, content, background


class Negatives(NamedTuple):
    """K wrong targets for each of W examples; one with the id of the example's own target is that target: padding."""

    rows: np.ndarray  # int32 [W, K]: rows of the object table
    ids: np.ndarray  # int32 [W, K]: content of the grid, before it is recoloured
    palettes: np.ndarray  # uint8 [W, K, 10]: colour c is shown as palette[c]


class Image(NamedTuple):
    """A grid up to its colours."""

    pattern: Grid  # of the colours numbered as they first occur: exactly the grids equal up to colours share it
    colours: np.ndarray  # int [10]: colours by falling frequency, equal ones by their number
    num_colours: int


def same_task(
    windows: np.ndarray,
    ids: np.ndarray,
    groups: np.ndarray,
    extent: np.ndarray,
    rows: dict[Row, int],
    *,
    num: int,
    seed: int,
) -> Negatives:
    """Other outputs of the task, each once, as rows under the background of the example's own sequence.

    windows int32 [W, T] name rows that end in y_i, x_j, y_j, or in x_j, y_j alone; ids int32 [W] is the content of y_j,
    groups int32 [W] the task, extent int32 [W, 2] the height and the width that the example has in the canvas; larger
    outputs are left out. y_i comes first, where there is one that is not the target; the others follow at random. An
    output may be new under this background: it is then added to `rows`.
    """
    rng = np.random.default_rng(seed)
    keys = list(rows)
    outputs: dict[int, dict[Grid, int]] = {}  # the id of each output, by task; every output is the target of a window
    for row, content, task in zip(windows[:, -1], ids, groups.tolist(), strict=True):
        outputs.setdefault(task, {})[keys[row][:2]] = content

    negatives = _padding(windows[:, -1], ids, num)
    for example, (task, (*demonstrated, _, target)) in enumerate(zip(groups.tolist(), windows.tolist(), strict=True)):
        grids = list(outputs[task])
        shown = [keys[row][:2] for row in demonstrated[-1:]]
        shuffled = [*shown, *(grids[n] for n in rng.permutation(len(grids)))]
        others = [g for g in dict.fromkeys(shuffled) if g != keys[target][:2] and _fits(g[0], extent[example])]
        for k, grid in enumerate(others[:num]):
            negatives.rows[example, k] = rows.setdefault((*grid, keys[target][2]), len(rows))
            negatives.ids[example, k] = outputs[task][grid]
    return negatives


def palette_matched(
    windows: np.ndarray,
    ids: np.ndarray,
    groups: np.ndarray,
    extent: np.ndarray,
    rows: dict[Row, int],
    *,
    num: int,
    seed: int,
) -> Negatives:
    """Outputs of other tasks with as many colours as the target, recoloured to its own by rank of frequency.

    Arguments as for `same_task`. The c-th commonest colour of a negative is shown as the c-th commonest of the target;
    equally common ones rank by their number. Neither the set of colours nor the order of their frequencies decides;
    proportions still tell. Grids equal up to colours count as one, and those equal up to colours to an output of the
    example's own task are left out, as are those larger than its extent. Of the rest come those nearest to the target
    in size, by |difference of heights| + |difference of widths|, and at random where that ties. A negative is tokenised
    under the colour that is shown as the background of the example; that may add to `rows`.
    """
    rng = np.random.default_rng(seed)
    keys = list(rows)
    images = {row: _image(keys[row]) for row in windows[:, -1].tolist()}
    home: dict[Grid, tuple[int, int]] = {}  # by pattern: row and id of the first output that has it
    owners: dict[Grid, set[int]] = {}  # by pattern: tasks with such an output
    for row, content, task in zip(windows[:, -1].tolist(), ids, groups.tolist(), strict=True):
        home.setdefault(images[row].pattern, (row, content))
        owners.setdefault(images[row].pattern, set()).add(task)

    negatives = _padding(windows[:, -1], ids, num)
    for example, (row, task) in enumerate(zip(windows[:, -1].tolist(), groups.tolist(), strict=True)):
        target, room = images[row], extent[example]
        foreign = [home[pattern] for pattern in home if task not in owners[pattern] and _fits(pattern[0], room)]
        alike = [(other, content) for other, content in foreign if images[other].num_colours == target.num_colours]
        sizes = np.array([keys[other][0] for other, _ in alike], int).reshape(-1, 2)
        near = rng.permutation(len(alike))
        near = near[np.argsort(np.abs(sizes - keys[row][0]).sum(axis=1)[near], kind="stable")]
        for k, choice in enumerate(near[:num]):
            other, negatives.ids[example, k] = alike[choice]
            negatives.palettes[example, k, images[other].colours] = target.colours
            background = keys[row][2]  # of the example; before recolouring it is the colour that becomes it
            if background >= 0:
                background = int(np.flatnonzero(negatives.palettes[example, k] == background)[0])
            negatives.rows[example, k] = rows.setdefault((*keys[other][:2], background), len(rows))
    return negatives


def _image(key: Row) -> Image:
    shape, content, _ = key
    cells = np.frombuffer(content, np.uint8)
    counts = np.bincount(cells, minlength=tables.NUM_COLOURS)
    _, first, occurring = np.unique(cells, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first)).astype(np.uint8)
    return Image((shape, number[occurring].tobytes()), np.argsort(-counts, kind="stable"), np.count_nonzero(counts))


def _fits(shape: tuple[int, int], room: np.ndarray) -> bool:
    return shape[0] <= room[0] and shape[1] <= room[1]


def _padding(targets: np.ndarray, ids: np.ndarray, num: int) -> Negatives:
    """`num` times the target itself in its own colours, for the negatives that are found to be written over."""
    rows, contents = (np.repeat(column[:, None], num, axis=1) for column in (targets, ids))
    palettes = np.broadcast_to(np.arange(tables.NUM_COLOURS, dtype=np.uint8), (*rows.shape, tables.NUM_COLOURS))
    return Negatives(rows, contents, palettes.copy())


def stats(negatives: Negatives, ids: np.ndarray) -> dict[str, float]:
    count = (negatives.ids != ids[:, None]).sum(axis=1)
    return {"negatives_mean": float(count.mean()), "negatives_none": float((count == 0).mean())}


def show(rows: PyTree, negatives: Negatives, symmetry: Symmetry) -> Observation:
    """The tables [B, K, ...] of the negatives (leaves [B, K, ...]) of B examples, each under its example's symmetry."""
    num = negatives.rows.shape[1]
    d4, palette, offset = (jnp.repeat(part[:, None], num, axis=1) for part in symmetry)  # [B, K, ...]
    palette = jnp.take_along_axis(palette, negatives.palettes.astype(jnp.int32), axis=-1)  # recoloured, then moved
    return tables.transform(jax.tree.map(lambda leaf: leaf[negatives.rows], rows), d4, palette, offset)
