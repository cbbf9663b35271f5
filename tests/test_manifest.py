"""Manifests: every shape of line becomes the sequences it says, and what is malformed is named to the field."""

from __future__ import annotations

import gzip
import hashlib
import json

import jax
import numpy as np
import pytest

from configs import lejepa_manifest
from jepa import curriculum, parts, train
from jepa.data import _collections, _manifest_files, _objects, arc, manifest


def random_grid(rng, colours: int = 5) -> np.ndarray:
    return rng.integers(0, colours, rng.integers(2, 6, size=2)).astype(np.uint8) * (rng.integers(2) > 0)


def distinct(rng, number: int) -> list[np.ndarray]:
    """Grids of which no two are equal: each has its number in the first row, in binary."""
    grids = []
    for count in range(number):
        grid = rng.integers(2, 9, (4, 7)).astype(np.uint8)
        grid[0] = [count >> bit & 1 for bit in range(7)]
        grids.append(grid)
    return grids


def raw(grids) -> list:
    return [grid.tolist() for grid in grids]


def write(path, lines) -> str:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.write(text)
    return str(path)


def pair(x, y, **more) -> dict:
    return {"input": x.tolist(), "output": y.tolist()} | more


@pytest.fixture
def build(tmp_path):
    def build(paths, **keywords):
        defaults = dict(seed=0, batch_size=4, validation_share=0.5, cache_dir=tmp_path / "tokens")
        return manifest.build(paths=paths, **(defaults | keywords))

    return build


def sequences(path, window: int = 3, offset: int = 1, most: int = 8) -> list[tuple]:
    """What the manifest makes of files, task by task: (grids, background)."""
    reading = _manifest_files.Reading(hashlib.sha256(), [])
    tasks: dict = {}
    for record in _manifest_files.read(_manifest_files.files_of(path), skip_malformed=False, reading=reading):
        tasks.setdefault(record.task, []).append(record)
    found = [manifest._sequences_of(task, window=window, offset=offset, most=most) for task in tasks.values()]
    return [sequence for task in found for sequence in task]


def assert_sequences(found, expected) -> None:
    """Equal grids, None where a frame is missing, and the background of the context."""
    assert len(found) == len(expected)
    for (grids, background), wanted in zip(found, expected, strict=True):
        assert [None if g is None else g.tolist() for g in grids] == [None if g is None else g.tolist() for g in wanted]
        assert background == _objects.background([grid for grid in wanted[:-1] if grid is not None])


# --- lines ----------------------------------------------------------------------------------------------------------


def test_frames_give_every_window_they_have_room_for(tmp_path):
    g = distinct(np.random.default_rng(0), 7)
    path = write(tmp_path / "a.jsonl", [{"frames": raw(g[:6])}])
    assert_sequences(sequences(path), [g[i : i + 4] for i in range(3)])
    assert_sequences(sequences(path, offset=2), [[*g[i : i + 3], g[i + 4]] for i in range(2)])
    assert_sequences(sequences(path, window=1), [g[i : i + 2] for i in range(5)])
    assert_sequences(sequences(path, window=5), [g[:6]])
    # Too few for the window: all that there are, filled up on the left.
    assert_sequences(sequences(path, window=7), [[None, None, *g[:6]]])
    assert_sequences(sequences(path, window=3, offset=4), [[None, *g[:2], g[5]]])
    assert_sequences(sequences(path, offset=6), [])


def test_a_context_is_cut_or_filled_up_to_the_window(tmp_path):
    g = distinct(np.random.default_rng(1), 5)
    path = write(tmp_path / "a.jsonl", [{"context": raw(g[:4]), "target": g[4].tolist()}])
    assert_sequences(sequences(path), [g[1:5]])
    assert_sequences(sequences(path, window=6), [[None, None, *g]])


def test_pairs_of_a_rule_are_joined_and_a_single_pair_asks_for_its_output(tmp_path):
    g = distinct(np.random.default_rng(2), 8)
    traces = [{"name": "turn", "steps": 2}, {"steps": 2, "name": "turn"}]  # one rule, whatever the order of its keys
    lines = [pair(g[0], g[1], rule_trace=traces[0]), pair(g[2], g[3]), pair(g[4], g[5], rule_trace=traces[1])]
    path = write(tmp_path / "a.jsonl", lines)
    joined = [[*g[:2], *g[4:6]], [*g[4:6], *g[:2]]]
    assert_sequences(sequences(path), [*joined, [None, None, g[2], g[3]]])
    assert_sequences(sequences(path, window=1), [[g[4], g[5]], [g[0], g[1]], [g[2], g[3]]])
    assert_sequences(sequences(path, window=2)[:1], [[g[1], g[4], g[5]]])
    assert_sequences(sequences(path, window=5)[:1], [[None, None, *g[:2], *g[4:6]]])
    # A name of the task comes before the trace.
    other = write(tmp_path / "b.jsonl", [pair(g[0], g[1], task="a", rule_trace="r"), pair(g[2], g[3], rule_trace="r")])
    assert len(sequences(other)) == 2 and all(grids[:2] == [None, None] for grids, _ in sequences(other))


def test_demonstrations_of_a_large_task_are_bounded_and_serve_alike(tmp_path):
    g = distinct(np.random.default_rng(3), 20)
    path = write(tmp_path / "a.jsonl", [pair(g[2 * n], g[2 * n + 1], task="t") for n in range(10)])
    found = sequences(path, most=3)
    assert len(found) == 30
    for position in (0, 2):  # as a demonstration, and as the question
        shown = [grids[position].tobytes() for grids, _ in found]
        assert {shown.count(grid.tobytes()) for grid in g[::2]} == {3}
    assert len(sequences(path, most=9)) == len(sequences(path, most=50)) == 90
    further = sequences(path, window=5, most=3)
    assert all(len({grid.tobytes() for grid in grids[::2]}) == 3 for grids, _ in further)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 6])
def test_a_folder_of_arc_json_gives_the_batches_of_arc(tmp_path, build, window):
    rng = np.random.default_rng(4)
    for number in range(8):
        pairs = [pair(random_grid(rng), random_grid(rng)) for _ in range(2 + number % 3)]
        (tmp_path / f"task{number}.json").write_text(json.dumps({"train": pairs[1:], "test": pairs[:1]}))
    ours = build(str(tmp_path), context_window=window)
    options = dict(seed=0, batch_size=4, validation_share=0.5, cache_dir=tmp_path / "tokens", context_window=window)
    theirs = arc.build(folder=tmp_path, **options)
    assert (ours.ids, ours.num_examples) == (theirs.ids, theirs.num_examples)
    np.testing.assert_array_equal(ours.indices(3), theirs.indices(3))
    assert [name.removeprefix("manifest") for name in ours.validation] == [
        name.removeprefix("arc") for name in theirs.validation
    ]
    sources = zip((ours, *ours.validation.values()), (theirs, *theirs.validation.values()), strict=True)
    for one, other in sources:
        jax.tree.map(np.testing.assert_array_equal, one.tables, other.tables)
    if window != 3:
        return
    batches = [
        jax.jit(source.gather, static_argnums=3)(source.tables, source.indices(1), jax.random.key(0), True)
        for source in (ours, theirs)
    ]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_other_dumps_are_read_too(tmp_path):
    """Nested folders as ConceptARC's, a list of pairs as re-arc's, and names that repeat are not one task."""
    g = distinct(np.random.default_rng(5), 12)
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    dumped = [pair(g[0], g[1]), pair(g[2], g[3])]
    (tmp_path / "one" / "deep" / "a.json").write_text(json.dumps(dumped))
    (tmp_path / "two" / "deep" / "a.json").write_text(json.dumps({"train": [pair(g[4], g[5])]}))
    write(tmp_path / "two" / "b.jsonl", [{"frames": raw(g[6:8])}])
    (tmp_path / "readme.txt").write_text("no grids")
    joined = [g[:4], [*g[2:4], *g[:2]]]
    assert_sequences(sequences(str(tmp_path)), [*joined, [None, None, *g[6:8]], [None, None, *g[4:6]]])
    assert_sequences(sequences(str(tmp_path / "one" / "**" / "*.json")), joined)
    assert len(_manifest_files.files_of((str(tmp_path), str(tmp_path / "two")))) == 3


def test_gzip_and_plain_lines_are_the_same_data(tmp_path, build):
    rng = np.random.default_rng(6)
    lines = [{"frames": raw([random_grid(rng) for _ in range(5)])} for _ in range(6)]
    plain, packed = build(write(tmp_path / "a.jsonl", lines)), build(write(tmp_path / "b.jsonl.gz", lines))
    assert plain.digest == packed.digest and plain.ids == packed.ids
    assert plain.digest != build(write(tmp_path / "c.jsonl", lines[:-1])).digest
    assert plain.digest != build(str(tmp_path / "a.jsonl"), context_window=2).digest
    assert plain.num_examples + plain.validation["manifest"].num_examples == 12
    assert list(plain.validation) == ["manifest"]  # frames have no demonstration to exchange


def test_a_sequence_stays_on_its_side_whatever_else_there_is(tmp_path, build):
    rng = np.random.default_rng(7)
    lines = [{"frames": raw([random_grid(rng) for _ in range(4)])} for _ in range(12)]
    whole, half = build(write(tmp_path / "a.jsonl", lines)), build(write(tmp_path / "b.jsonl", lines[::-2]), seed=5)
    assert not set(whole.ids) & set(whole.validation["manifest"].ids)
    assert set(half.ids) < set(whole.ids)
    assert set(half.validation["manifest"].ids) < set(whole.validation["manifest"].ids)


def test_a_task_of_arc_is_recognised_by_its_content(tmp_path, build):
    task = _collections.load("arc1-eval")[0]
    frames = [grid for shown in task.demos for grid in shown]
    lines = [{"frames": raw(frames), "task": "mine"}, {"frames": raw(distinct(np.random.default_rng(8), 4))}]
    source = build(write(tmp_path / "a.jsonl", lines))
    known = source.ids if "mine" in source.ids else source.validation["manifest"].ids
    assert task.id in known


# --- missing frames -------------------------------------------------------------------------------------------------


def test_a_missing_frame_has_no_token_before_and_after_a_symmetry(tmp_path, build):
    g = distinct(np.random.default_rng(9), 12)
    lines = [{"frames": raw(g[3 * n : 3 * n + 3])} for n in range(4)]
    source = build(write(tmp_path / "a.jsonl", lines), context_window=4)
    batch = jax.jit(source.gather, static_argnums=3)(source.tables, source.indices(0), jax.random.key(0), True)
    present = np.asarray(batch.context["mask"]).any(axis=-1)
    np.testing.assert_array_equal(present, np.tile([False, False, True, True], (4, 1)))
    for key in set(batch.context) - {"offset"}:
        assert not np.asarray(batch.context[key])[:, :2].any(), key


# --- what is malformed ----------------------------------------------------------------------------------------------

GOOD = {"frames": [[[0, 1]], [[1, 0]], [[1, 1]], [[2, 1]]]}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{\n", "line 2 is not JSON"),
        ("[1]\n", "line 2 is no object"),
        ({"grids": 1, "b": 2}, r"line 2 has the fields \['b', 'grids'\]; a line has input and output"),
        ({"input": [[0]], "output": [[0, 1], [0]]}, "line 2, output: rows differ in length"),
        ({"input": [[0]], "output": None}, "line 2, output: shape"),
        ({"frames": [[[0]], [[10]]]}, r"line 2, frames\[1\]: row 0, column 0 holds 10"),
        ({"frames": [[[0]]]}, "line 2, frames: there is one frame"),
        ({"frames": 3}, "line 2, frames is not a list of grids"),
        ({"context": [[[0]]], "target": [[0.5]]}, "line 2, target: cells of type float64"),
        ({"context": [], "target": [[0]]}, "line 2, context is not a list of grids"),
    ],
)
def test_a_malformed_line_is_named_to_the_field_or_left_out_and_counted(tmp_path, build, capsys, line, sentence):
    others = [GOOD | {"task": str(n)} for n in range(4)]
    path = write(tmp_path / "x.jsonl", [others[0], line, "\n", *others[1:]])
    with pytest.raises(ValueError, match=rf"x\.jsonl, {sentence}.*skip_malformed"):
        build(path)
    source = build(path, skip_malformed=True)
    assert source.stats["malformed"] == 1
    assert source.num_examples + source.validation["manifest"].num_examples == 4
    assert "1 malformed lines or files are left out" in capsys.readouterr().out


def test_a_damaged_archive_is_an_error_in_any_case(tmp_path, build):
    path = tmp_path / "x.jsonl.gz"
    rng = np.random.default_rng(11)
    write(path, [{"frames": raw([random_grid(rng) for _ in range(6)])} for _ in range(50)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz is damaged after line \d+"):
        build(str(path), skip_malformed=True)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"paths": None}, "set config.data.paths"),
        ({"paths": "nowhere/*.jsonl"}, "'nowhere/\\*.jsonl' names no .jsonl"),
        ({"context_window": 8}, "context_window is 8; it must be from 1 to 7"),
        ({"max_demonstrations": 0}, "max_demonstrations is 0"),
        ({"validation_share": 0.0}, "leaves 4 to train on and 0 to validate on"),
        ({"target_offset": 4}, "of 0 tasks"),
    ],
)
def test_an_option_that_cannot_work_is_a_sentence(tmp_path, build, keywords, sentence):
    path = write(tmp_path / "x.jsonl", [GOOD | {"task": str(n)} for n in range(4)])
    with pytest.raises(ValueError, match=sentence):
        build(**({"paths": path} | keywords))


def test_an_answer_has_no_grid_after_it(tmp_path, build):
    path = write(tmp_path / "x.jsonl", [{"context": [[[0]]], "target": [[1]]}])
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1 has a single answer, but target_offset is 2"):
        build(path, target_offset=2)


# --- the config -----------------------------------------------------------------------------------------------------


def test_a_step_of_the_config_takes_a_manifest(tmp_path):
    """Traced and not computed."""
    rng = np.random.default_rng(12)
    config = lejepa_manifest.get_config("tiny")
    lines = [{"frames": raw([random_grid(rng) for _ in range(5)])} for _ in range(40)]
    config.data.paths = write(tmp_path / "a.jsonl", lines)
    config.cache_dir = str(tmp_path / "tokens")
    built = parts.build(config)
    rows = curriculum.rows(built.source, 0, config.steps_per_call)
    _, measured = jax.eval_shape(
        train.make_train_call(config, built), jax.eval_shape(built.init), built.source.tables, rows
    )
    assert measured["loss/prediction"].shape == (config.steps_per_call,)


def test_the_config_names_what_is_missing():
    with pytest.raises(ValueError, match=r"set config\.data\.paths"):
        parts.build(lejepa_manifest.get_config("tiny"))
