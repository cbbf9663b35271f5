"""Hard negatives of ARC: beside the very batches of `arc`, all that is wrong but looks right, and nothing else."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache, partial

import jax
import numpy as np
import pytest

from jepa import symmetries
from jepa.data import _collections, _negatives, _objects, arc

SHARE = 0.5
NAMES = ("arc_same_task", "arc_palette_matched")
EVERY = 40  # more negatives than any row can have
PER_TOKEN = ("mask", "histogram", "box", "moment", "shape", "border", "symmetry", "bitmap")


def random_grid(rng: np.random.Generator, shape: tuple[int, int] | None = None, num_colours: int = 3) -> np.ndarray:
    """A few blocks on a background, in about `num_colours` colours, which differ between grids."""
    colours = rng.permutation(10)[:num_colours]
    grid = np.full(rng.integers(5, 12, size=2) if shape is None else shape, colours[0], np.uint8)
    for colour in np.tile(colours[1:], 2):
        top, left = (rng.integers(side) for side in grid.shape)
        height, width = rng.integers(1, 4, size=2)
        grid[top : top + height, left : left + width] = colour
    return grid


def write_tasks(folder) -> None:
    """Twelve random tasks, the held-out half of which has everything that needs care."""
    rng = np.random.default_rng(0)
    training, held_out = _collections.split([f"task{n}" for n in range(12)], SHARE)
    assert len(held_out) >= 5
    tasks = {
        name: [(random_grid(rng), random_grid(rng, num_colours=2 + number % 2)) for _ in range(2 + number % 4)]
        for number, name in enumerate(training + held_out)
    }

    def outputs(name: str, grids: list[np.ndarray]) -> None:
        tasks[name] = [(random_grid(rng), grid) for grid in grids]

    some = random_grid(rng, num_colours=3)
    repeated, recoloured, large, few, plain, *_ = held_out
    # One output twice; outputs equal to another task's up to colours, also where these are as common as each other.
    outputs(repeated, [some, random_grid(rng), some, random_grid(rng), np.array([[4, 4], [8, 8]])])
    outputs(recoloured, [(some + 3) % 10, random_grid(rng), some, np.array([[1, 2], [2, 1]])])
    outputs(large, [random_grid(rng, (30, 4)), random_grid(rng, (5, 29)), np.array([[7, 7], [3, 3]])])
    # No output but the target; no other task with as many colours.
    outputs(few, [np.full((3, 3), 4), np.full((3, 3), 4)])
    outputs(plain, [np.full((3, 3), 5), np.full((2, 6), 0), random_grid(rng, num_colours=8)])
    for name, pairs in tasks.items():
        raw = [{"input": x.tolist(), "output": y.tolist()} for x, y in pairs]
        (folder / f"{name}.json").write_text(json.dumps({"train": raw[1:], "test": raw[:1]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def build(folder, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")

    def build(**keywords):
        defaults = dict(seed=0, batch_size=48, folder=folder, validation_share=SHARE, cache_dir=cache_dir)
        return arc.build(**(defaults | {"num_negatives": EVERY} | keywords))

    return build


@pytest.fixture(scope="module")
def source(build):
    return build()


draw = jax.jit(partial(symmetries.draw, d4=True, palette=True, translation=True))


@lru_cache
def compiled(gather):
    return jax.jit(gather, static_argnums=3)


def whole(source, *, train: bool, seed: int = 1):
    """All examples of a source as one batch, in the order of their windows."""
    every = np.arange(source.num_examples, dtype=np.int32)
    return jax.tree.map(np.asarray, compiled(source.gather)(source.tables, every, jax.random.key(seed), train))


def windows_of(source, folder) -> tuple[list[tuple], list[int]]:
    """The grids x_i, y_i, x_j, y_j of each window of a source, and its task, from the files themselves."""
    tasks = {task.id: task for task in _collections.load_folder(folder)}
    pairs = [tasks[name].demos + tasks[name].tests for name in source.ids]
    found = [((*p, *q), n) for n, task in enumerate(pairs) for p, q in itertools.permutations(task, 2)]
    return [grids for grids, _ in found], [n for _, n in found]


def content(grid: np.ndarray) -> tuple:
    return tuple(map(tuple, grid.tolist()))


def real(batch) -> np.ndarray:
    return batch.negative_ids != batch.ids[:, None]


def as_sets(tables: dict) -> list[bytes]:
    """Each of the tables [n, ...] with its tokens sorted by all that they carry."""
    n = len(tables["size"])
    columns = np.concatenate([np.asarray(tables[key], np.int64).reshape(n, 34, -1) for key in PER_TOKEN], axis=2)
    orders = [np.lexsort(tokens.T) for tokens in columns]
    edges = [edges[order][:, order] for edges, order in zip(tables["edges"], orders, strict=True)]
    place = np.concatenate([tables["size"], tables["offset"]], axis=1).astype(np.int64)
    return [columns[i][orders[i]].tobytes() + edges[i].tobytes() + place[i].tobytes() for i in range(n)]


def tokenised(grids: list[np.ndarray], backgrounds: list[int], symmetry: list[tuple]) -> dict:
    """Tables of grids transformed as arrays, each by its (d4, palette, offset)."""
    moved = [_objects.transform_grid(g, int(d4), palette) for g, (d4, palette, _) in zip(grids, symmetry, strict=True)]
    behind = [b if b < 0 else int(s[1][b]) for b, s in zip(backgrounds, symmetry, strict=True)]
    table = _objects.tokenise(moved, behind)
    table["offset"][:] = [offset for *_, offset in symmetry]
    return table


def draws(source, *, train: bool, seed: int = 1) -> list[tuple]:
    """The symmetry of each example of `whole`, as (d4, palette, offset)."""
    if not train:
        return [(0, np.arange(10), np.zeros(2, int))] * source.num_examples
    return list(zip(*map(np.asarray, draw(jax.random.key(seed), source.tables["extent"])), strict=True))


def by_frequency(grid: np.ndarray) -> list[int]:
    """The colours of a grid, the commonest first, of two equally common ones the smaller first."""
    cells = grid.ravel().tolist()
    return sorted(set(cells), key=lambda colour: (-cells.count(colour), colour))


def up_to_colours(grid: np.ndarray) -> tuple:
    """The grid with its colours numbered as they first occur."""
    order = list(dict.fromkeys(grid.ravel().tolist()))
    return tuple(tuple(order.index(cell) for cell in row) for row in grid.tolist())


def distance(grid: np.ndarray, other: np.ndarray) -> int:
    return abs(grid.shape[0] - other.shape[0]) + abs(grid.shape[1] - other.shape[1])


def recoloured(negative: np.ndarray, target: np.ndarray) -> np.ndarray:
    new = dict(zip(by_frequency(negative), by_frequency(target), strict=True))
    return np.array([[new[cell] for cell in row] for row in negative.tolist()], np.uint8)


# What does not change.


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_negatives_are_set_beside_the_batches_of_arc(source, name, train):
    own, other = source.validation["arc"], source.validation[name]
    assert list(source.validation) == ["arc", "arc_foreign_demo", *NAMES]
    assert own.ids == other.ids and own.num_examples == other.num_examples
    for step in range(3):
        np.testing.assert_array_equal(own.indices(step), other.indices(step))
    for seed in range(3):
        a, b = whole(own, train=train, seed=seed), whole(other, train=train, seed=seed)
        assert a.negatives is None and a.negative_ids is None and b.negatives is not None
        bare = b._replace(negatives=None, negative_ids=None)
        assert jax.tree.structure(a) == jax.tree.structure(bare)
        jax.tree.map(np.testing.assert_array_equal, a, bare)
        shape = (own.num_examples, EVERY)
        assert {leaf.shape[:2] for leaf in b.negatives.values()} == {shape} == {b.negative_ids.shape}
        assert b.negative_ids.dtype == np.int32


def test_asking_for_negatives_changes_nothing_else(build, source):
    without = build(num_negatives=0)
    assert set(without.validation) == {"arc", "arc_foreign_demo"}
    assert without.digest == source.digest and without.stats == source.stats
    for name in (None, "arc", "arc_foreign_demo"):
        a, b = (s if name is None else s.validation[name] for s in (without, source))
        assert a.stats == b.stats and a.num_examples == b.num_examples
        for step in range(3):
            np.testing.assert_array_equal(a.indices(step), b.indices(step))
        assert set(a.tables) == set(b.tables) == {"rows", "windows", "ids", "groups", "extent"}
        for key in ("windows", "ids", "groups", "extent"):
            np.testing.assert_array_equal(a.tables[key], b.tables[key])
        for key, leaf in a.tables["rows"].items():  # what negatives need comes after
            assert leaf.dtype == b.tables["rows"][key].dtype
            np.testing.assert_array_equal(leaf, b.tables["rows"][key][: len(leaf)])


def test_object_tables_are_stored_once(source):
    for name in NAMES:
        held_out = source.validation[name]
        assert all(held_out.tables["rows"][key] is leaf for key, leaf in source.tables["rows"].items())
        chosen = held_out.tables["negatives"]
        assert (chosen.rows.dtype, chosen.ids.dtype, chosen.palettes.dtype) == (np.int32, np.int32, np.uint8)


# Outputs of the same task.


@pytest.mark.parametrize("train", [False, True])
def test_same_task_shows_every_output_that_fits_under_the_symmetry_and_background_of_the_row(source, folder, train):
    held_out = source.validation["arc_same_task"]
    batch, drawn = whole(held_out, train=train), draws(held_out, train=train)
    windows, groups = windows_of(held_out, folder)
    identity = {content(grids[3]): number for grids, number in zip(windows, batch.ids.tolist(), strict=True)}
    room, left_out = np.asarray(held_out.tables["extent"]), 0
    found, references = {key: [] for key in batch.negatives}, []
    for w, (grids, task) in enumerate(zip(windows, groups, strict=True)):
        every = {content(g[3]): g[3] for g, other in zip(windows, groups, strict=True) if other == task}
        del every[content(grids[3])]
        outputs = {key: grid for key, grid in every.items() if (grid.shape <= room[w]).all()}
        count = len(outputs)
        left_out += len(every) - count
        np.testing.assert_array_equal(real(batch)[w], np.arange(EVERY) < count)
        by_id = {identity[key]: grid for key, grid in outputs.items()}
        shown = batch.negative_ids[w, :count].tolist()
        assert sorted(shown) == sorted(by_id)
        background = _objects.background(list(grids[:3]))
        references += [(grid, background, drawn[w]) for grid in (*grids, *(by_id[number] for number in shown))]
        for key, leaf in batch.negatives.items():
            found[key] += [*batch.context[key][w], batch.target[key][w], *leaf[w, :count]]
    assert left_out > 0
    expected = tokenised(*map(list, zip(*references, strict=True)))
    assert as_sets({key: np.stack(leaves) for key, leaves in found.items()}) == as_sets(expected)


def test_the_output_of_the_demonstration_comes_first(build, folder):
    for num in (1, 3):
        tables = build(num_negatives=num).validation["arc_same_task"].tables
        rows, ids = np.asarray(tables["negatives"].rows), np.asarray(tables["negatives"].ids)
        windows, _ = windows_of(build().validation["arc_same_task"], folder)
        identity = {content(grids[3]): n for grids, n in zip(windows, tables["ids"].tolist(), strict=True)}
        differ = np.array([content(grids[1]) != content(grids[3]) for grids in windows])
        assert 0 < differ.mean() < 1
        shown = np.array([identity[content(grids[1])] for grids in windows])
        np.testing.assert_array_equal(ids[differ, 0], shown[differ])
        np.testing.assert_array_equal(rows[differ, 0], np.asarray(tables["windows"])[differ, 1])

    longer = build(num_negatives=3, context_window=5).validation["arc_same_task"].tables
    np.testing.assert_array_equal(
        np.asarray(longer["negatives"].rows)[differ, 0], np.asarray(longer["windows"])[differ, -3]
    )


def test_a_context_without_a_demonstration_has_negatives_of_its_task_as_well(build):
    """Its room in the canvas is that of x_j and y_j alone, so that fewer fit."""
    counts = {}
    for window in (1, 3):
        tables = build(num_negatives=3, context_window=window).validation["arc_same_task"].tables
        counts[window] = np.sum(np.asarray(tables["negatives"].ids) != np.asarray(tables["ids"])[:, None], axis=1)
    assert (counts[1] <= counts[3]).all() and counts[1].sum() > 0.5 * counts[3].sum()


# Outputs in the colours of the target.


@pytest.mark.parametrize("train", [False, True])
def test_palette_matched_shows_every_recoloured_output_of_other_tasks(source, folder, train):
    held_out = source.validation["arc_palette_matched"]
    batch, drawn = whole(held_out, train=train), draws(held_out, train=train)
    windows, groups = windows_of(held_out, folder)
    grid_of = {number: grids[3] for grids, number in zip(windows, batch.ids.tolist(), strict=True)}
    room, counts, references, places = np.asarray(held_out.tables["extent"]), set(), [], []
    for w, (grids, task) in enumerate(zip(windows, groups, strict=True)):
        target = grids[3]
        own = {up_to_colours(g[3]) for g, home in zip(windows, groups, strict=True) if home == task}
        alike = [g for g in grid_of.values() if len(by_frequency(g)) == len(by_frequency(target))]
        foreign = {up_to_colours(g) for g in alike if (g.shape <= room[w]).all()} - own
        count = len(foreign)
        counts.add(count)
        np.testing.assert_array_equal(real(batch)[w], np.arange(EVERY) < count)
        originals = [grid_of[number] for number in batch.negative_ids[w, :count].tolist()]
        assert {up_to_colours(grid) for grid in originals} == foreign  # as many as there are, so all differ
        distances = [distance(grid, target) for grid in originals]
        assert distances == sorted(distances)
        for k, original in enumerate(originals):
            references.append((recoloured(original, target), _objects.background(list(grids[:3])), drawn[w]))
            places.append((w, k))
    assert 0 in counts and max(counts) > 3
    expected = as_sets(tokenised(*map(list, zip(*references, strict=True))))
    found = as_sets({key: np.stack([leaf[place] for place in places]) for key, leaf in batch.negatives.items()})
    explained = {place for place, one, other in zip(places, found, expected, strict=True) if one == other}
    assert explained == set(places)


@pytest.mark.parametrize("train", [False, True])
def test_palette_matched_colours_tell_nothing(source, train):
    batch = whole(source.validation["arc_palette_matched"], train=train)
    shown, target = batch.negatives["histogram"][:, :, 0], batch.target["histogram"][:, None, 0]
    np.testing.assert_array_equal(shown > 0, np.broadcast_to(target > 0, shown.shape))
    # Where the target has strictly more cells of one colour than of another, no negative has fewer.
    more = target[..., :, None] > target[..., None, :]
    assert not (more & (shown[..., :, None] < shown[..., None, :])).any()


def test_the_nearest_in_size_come_first_and_equally_near_ones_are_equally_likely():
    """One target in 3000 examples, four candidates a row or a column away, one two away, and one that does not fit."""
    shapes = [(3, 3), (2, 3), (4, 3), (3, 2), (3, 4), (3, 5), (6, 2)]
    rows = {(shape, bytes([1] * (shape[0] * shape[1] - 1) + [2]), 1): row for row, shape in enumerate(shapes)}
    target = np.r_[np.zeros(3000, np.int32), np.arange(1, 7, dtype=np.int32)]  # row, id and task in one
    arguments = np.repeat(target[:, None], 4, axis=1), target, target, np.full((len(target), 2), 5), rows
    found = _negatives.palette_matched(*arguments, num=6, seed=0).ids[:3000]
    assert (found[:, 4:] == [5, 0]).all()
    assert (np.sort(found[:, :4], axis=1) == [1, 2, 3, 4]).all()
    assert all(abs((found[:, k] == n).sum() - 750) < 4 * 24 for k in range(4) for n in range(1, 5))  # 750 +- 24
    other = _negatives.palette_matched(*arguments, num=6, seed=1).ids[:3000]
    assert (found != other).any()


# Both.


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_the_target_itself(source, name):
    for train in (False, True):
        batch = whole(source.validation[name], train=train)
        padding = ~real(batch)
        assert padding.any() and real(batch).any()
        assert (np.sort(padding, axis=1) == padding).all()  # at the end
        for key, leaf in batch.negatives.items():
            expected = np.broadcast_to(batch.target[key][:, None], leaf.shape)
            np.testing.assert_array_equal(leaf[padding], expected[padding])
    stats = source.validation[name].stats
    assert stats["negatives_mean"] == pytest.approx(real(batch).sum(1).mean())
    assert stats["negatives_none"] == pytest.approx((~real(batch).any(1)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_without_training_nothing_moves(source, name):
    held_out = source.validation[name]
    batch = whole(held_out, train=False)
    assert not batch.negatives["offset"].any()
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[held_out.tables["negatives"].rows], held_out.tables["rows"])
    for key in set(rows) - {"histogram"}:
        np.testing.assert_array_equal(batch.negatives[key], rows[key])
    if name == "arc_same_task":
        np.testing.assert_array_equal(batch.negatives["histogram"], rows["histogram"])


@pytest.mark.parametrize("name", NAMES)
def test_every_negative_lies_in_the_canvas_at_the_offset_of_its_target(source, name):
    moved = 0
    for seed in range(5):
        batch = whole(source.validation[name], train=True, seed=seed)
        offset, size, own = batch.negatives["offset"], batch.negatives["size"], batch.target["offset"]
        np.testing.assert_array_equal(offset, np.broadcast_to(own[:, None], offset.shape))
        assert (offset >= 0).all() and (offset + size <= 30).all()
        moved += np.count_nonzero(own)
    assert moved > 0


def test_parts_of_the_symmetry_that_are_off_move_no_negative(build, source):
    still = build(d4=False, palette=False, translation=False)
    for name in NAMES:
        a, b = whole(still.validation[name], train=True), whole(source.validation[name], train=False)
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", NAMES)
def test_negatives_are_chosen_once_and_for_all(build, source, name):
    chosen = source.validation[name].tables["negatives"]
    again = build(seed=7, batch_size=5).validation[name].tables["negatives"]
    jax.tree.map(np.testing.assert_array_equal, chosen, again)
    fewer = build(num_negatives=2).validation[name].tables["negatives"]  # more negatives add to fewer
    np.testing.assert_array_equal(chosen.ids[:, :2], fewer.ids)
    np.testing.assert_array_equal(chosen.palettes[:, :2], fewer.palettes)


def test_wrong_numbers_are_errors(build):
    with pytest.raises(ValueError, match="num_negatives is -1; it must be at least 0"):
        build(num_negatives=-1)
    with pytest.raises(ValueError, match="num_negatives is 8, but only stream 'analogy' has targets"):
        build(stream="views", num_negatives=8)
    assert set(build(stream="views", num_negatives=0).validation) == {"arc"}


def test_negatives_of_the_default_collection(tmp_path):
    source = arc.build(seed=0, batch_size=256, collection="arc2-clean", cache_dir=tmp_path, num_negatives=8)
    same, matched = (source.validation[name] for name in NAMES)
    assert same.stats["negatives_none"] == 0 and 3 < same.stats["negatives_mean"] < 4.5
    assert matched.stats["negatives_none"] < 0.05 and 7 < matched.stats["negatives_mean"] <= 8
    for held_out in (same, matched):
        windows, extent, ids = (np.asarray(held_out.tables[key]) for key in ("windows", "extent", "ids"))
        negatives, size = held_out.tables["negatives"], np.asarray(held_out.tables["rows"]["size"])
        assert (size[negatives.rows] <= extent[:, None]).all()  # so that the offset of the target suits them
    wrong = np.asarray(negatives.ids) != ids[:, None]
    apart = np.abs(size[negatives.rows] - size[windows[:, 3:]]).sum(axis=-1)
    assert apart[wrong].mean() < 6
    histogram = np.asarray(matched.tables["rows"]["histogram"])[:, 0]
    support = np.zeros((*wrong.shape, 10), bool)
    np.put_along_axis(support, np.asarray(negatives.palettes, int), histogram[negatives.rows] > 0, axis=-1)
    target = np.repeat(histogram[windows[:, 3:]] > 0, 8, axis=1)
    np.testing.assert_array_equal(support, target)
