"""Caches: what they hold is what the source shows, to the bit; nothing damaged is read; memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa import cache, main, registry, train
from jepa.data import _batches, _objects, _packing, _sequences, _shards
from jepa.data import cache as cached
from jepa.parts import keywords
from jepa.types import Source

ROOT = Path(__file__).parent.parent


def random_grids(rng, number: int) -> list[np.ndarray]:
    """Grids of every kind: a single cell, a few objects, more than fit, one colour."""
    grids = [np.zeros((1, 1), np.uint8), np.full((30, 30), 3, np.uint8), np.zeros((30, 30), np.uint8)]
    grids[2][::2, ::2] = 5  # 225 objects
    for _ in range(number - len(grids)):
        shape = rng.integers(1, 31, size=2)
        grids.append((rng.integers(1, 10, shape) * (rng.random(shape) < rng.choice([0.1, 0.5, 0.9]))).astype(np.uint8))
    return grids


def narrow(table: dict) -> dict:
    return {key: leaf if leaf.dtype.itemsize == 1 else leaf.astype(np.int16) for key, leaf in table.items()}


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """40 grids, and after them one that is missing."""
    grids = random_grids(np.random.default_rng(0), 40)
    table = narrow(_objects.tokenise(grids, [0] * len(grids)))
    return {key: np.concatenate([leaf, np.zeros_like(leaf[:1])]) for key, leaf in table.items()}


def assert_same(one, other) -> None:
    """The same trees, dtypes included."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


# --- packing --------------------------------------------------------------------------------------------------------


def test_unpacking_gives_back_every_table_in_any_order(table):
    records, lengths = _packing.pack(table)
    starts = np.cumsum(lengths) - lengths
    assert len(records) == lengths.sum()
    for chosen in (np.arange(41), np.array([40]), np.array([7, 2, 2, 40, 0])):
        assert_same(_packing.unpack(records, starts[chosen]), {key: leaf[chosen] for key, leaf in table.items()})
    assert lengths[0] == 7 + 25 + 2  # one cell of the background: the grid token and its one count
    assert lengths[40] == 7


@pytest.mark.parametrize(
    ("key", "place"), [("offset", (0, 0)), ("histogram", (3, 0, 0)), ("edges", (2, 1, 2)), ("box", (40, 5, 2))]
)
def test_tables_that_a_record_cannot_hold_are_refused(table, key, place):
    changed = {name: leaf.copy() for name, leaf in table.items()}
    changed[key][place] += 1
    with pytest.raises(ValueError, match=key if key != "histogram" else "shape"):
        _packing.pack(changed)


# --- orders ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(num=st.integers(1, 300), seed=st.integers(0, 5), batch_size=st.integers(1, 40))
def test_a_shuffled_epoch_shows_everything_once(num, seed, batch_size):
    indices = _batches.shuffled(num, seed=seed, batch_size=batch_size)
    seen = np.concatenate([indices(step) for step in range(3 * num // batch_size + 1)])[: 3 * num].reshape(3, num)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(num), (3, 1)))


def test_a_shuffled_order_looks_like_chance_and_differs_between_epochs_and_seeds():
    num = 20_000
    first, second, other = (
        _batches.shuffled(num, seed=seed, batch_size=num)(step) for seed, step in ((0, 0), (0, 1), (1, 0))
    )
    place = np.arange(num)
    for a, b in ((first, place), (first, second), (first, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(num)
        assert np.count_nonzero(a == b) < 8  # 1 by chance, on average
    assert abs(np.corrcoef(np.diff(first), np.diff(first, append=0)[1:])[0, 1] + 0.5) < 0.03  # -1/2 of a random order


# --- what a cache shows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six tasks of two to four pairs."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(1)
    for number in range(6):
        grids = [grid.tolist() for grid in random_grids(rng, 12)[3:]]
        pairs = [{"input": grids[2 * n], "output": grids[2 * n + 1]} for n in range(2 + number % 3)]
        (folder / f"task{number}.json").write_text(json.dumps({"train": pairs}))
    return folder


def config_of(spec: str, folder: Path, tmp_path: Path):
    config = main.load_config(spec)
    config.cache_dir = str(tmp_path / "tokens")
    config.data.update(folder=str(folder), validation_share=0.4)
    config.batch_size = 8
    return config


def raw_source(config) -> Source:
    options = dict(seed=config.seed, batch_size=config.batch_size, cache_dir=config.cache_dir)
    return registry.build("data", config.data.name, **options, **keywords(config.data))


def open_cache(folder: Path, **options) -> Source:
    return cached.build(**(dict(seed=0, batch_size=8, cache_dir="", folder=str(folder)) | options))


def gathered(source: Source, step: int, train: bool):
    compiled = jax.jit(source.gather, static_argnums=3)
    return jax.tree.map(np.asarray, compiled(source.tables, source.indices(step), jax.random.key(step), train))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("configs/infonce.py:tiny", {}),  # with negatives
        ("configs/lejepa.py:tiny,views", {}),
        ("configs/lejepa.py:tiny", {"context_window": 6, "drop_objects": 0.3}),  # with absent frames
    ],
)
def test_batches_are_those_of_the_source_to_the_bit(folder, tmp_path, spec, options):
    """Order, augmentation, held-out sources, foreign demonstrations and negatives included."""
    config = config_of(spec, folder, tmp_path)
    config.data.update(options)
    raw = raw_source(config)
    index = cache.write(config, tmp_path / "cache", grids_per_shard=10)
    assert len(index["shards"]) > 3
    ours = open_cache(tmp_path / "cache", drop_objects=config.data.drop_objects)
    assert (ours.num_examples, ours.ids, list(ours.validation)) == (raw.num_examples, raw.ids, list(raw.validation))
    assert ours.stats.items() >= raw.stats.items()
    for one, other in [(ours, raw), *((ours.validation[name], raw.validation[name]) for name in raw.validation)]:
        assert_same(gathered(one, 1, True), gathered(other, 1, True))
    assert_same(gathered(ours, 5, False), gathered(raw, 5, False))


@pytest.mark.slow
def test_batches_of_programs_are_those_that_were_drawn(tmp_path):
    config = main.load_config("configs/lejepa_programs.py:tiny")
    config.final_examples = 16
    options = dict(seed=config.seed, batch_size=config.batch_size, cache_dir=config.cache_dir)
    raw = registry.build("data", "programs", **options, **keywords(config.data.sources.analogies))
    cache.write(config, tmp_path / "cache", source_name="analogies", num_grids=128)
    ours = open_cache(tmp_path / "cache", batch_size=config.batch_size, order="stored")
    assert list(ours.validation) == list(raw.validation)
    assert_same(gathered(ours, 1, True), gathered(raw, 1, True))
    for name in raw.validation:
        assert_same(ours.validation[name].indices(0)["grids"], raw.validation[name].indices(0)["grids"])


def drawn_source(table: dict, batch_size: int, with_level: bool = True) -> Source:
    """A stream of sequences of three of these grids, another one on each of two levels, and a held-out one."""

    def indices(seed: int, step: int, level: int = 0):
        rng = np.random.default_rng([seed, step, level])
        chosen = rng.integers(len(table["mask"]) - 1, size=(batch_size, 3))
        chosen[: batch_size // 2, 0] = len(table["mask"]) - 1  # a missing frame
        return {
            "grids": {key: leaf[chosen] for key, leaf in table.items()},
            "ids": chosen[:, -1].astype(np.int32),
            "groups": chosen[:, 0].astype(np.int32),
            "extent": table["size"][chosen].max(axis=1).astype(np.int32),
            "actions": rng.integers(-5, 2**30, (batch_size, 2, 11)).astype(np.int32),
        }

    symmetry = {"d4": True, "palette": True, "translation": True}

    def source(seed: int, validation: dict) -> Source:
        return Source(
            tables={},
            indices=lambda step, level=0: indices(seed, step, level),
            gather=lambda tables, rows, key, train: _sequences.to_batch(symmetry, rows, key, train),
            validation=validation,
            num_examples=0,
            ids=("drawn",),
            digest="d",
            stats={},
            num_levels=2,
        )

    held_out = {"drawn": source(1, {}), "drawn_level": source(2, {})}
    return source(0, held_out)


@pytest.fixture
def drawn(table, monkeypatch):
    """A config whose data is drawn, and that source."""
    source = drawn_source(table, 4)
    monkeypatch.setattr(cache.registry, "build", lambda *arguments, **options: source)
    config = main.load_config("configs/lejepa.py:tiny")
    config.batch_size, config.final_examples, config.num_steps = 4, 10, 15
    return config, source


def test_of_what_is_drawn_the_steps_asked_for_are_stored(drawn, tmp_path):
    config, raw = drawn
    index = cache.write(config, tmp_path / "cache", num_grids=100, grids_per_shard=64)  # 9 steps of 12 grids
    assert index["splits"]["train"]["examples"] == 36 and index["splits"]["drawn"]["examples"] == 12
    assert index["grids"] == 3 * 48 and len(index["shards"]) == 3
    ours = open_cache(tmp_path / "cache", batch_size=4, order="stored")
    assert list(ours.validation) == ["drawn"]  # a cache has one level
    for step in range(9):
        stored, there = ours.indices(step), raw.indices(step, 1)  # the last level
        assert_same(stored["grids"], there["grids"])
        for key in set(there) - {"grids"}:
            np.testing.assert_array_equal(stored[key], there[key], err_msg=key)
    assert_same(ours.indices(9), ours.indices(0))
    compiled = jax.jit(raw.gather, static_argnums=3)
    theirs = jax.tree.map(np.asarray, compiled({}, raw.indices(2, 1), jax.random.key(2), True))
    assert_same(gathered(ours, 2, True), theirs)
    np.testing.assert_array_equal(
        ours.validation["drawn"].indices(1)["ids"], raw.validation["drawn"].indices(1, 1)["ids"]
    )


def test_drawn_examples_are_shuffled_unless_said_otherwise(drawn, tmp_path):
    config, _ = drawn
    cache.write(config, tmp_path / "cache", level=0)
    ours = open_cache(tmp_path / "cache", batch_size=12)
    assert ours.num_examples == 60  # config.num_steps
    stored = open_cache(tmp_path / "cache", batch_size=60, order="stored").indices(0)["actions"][:, 0, 0]
    epochs = [np.concatenate([ours.indices(5 * n + k)["actions"][:, 0, 0] for k in range(5)]) for n in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(stored))
    assert (epochs[0] != epochs[1]).any() and (epochs[0] != stored).any()
    assert ours.digest != open_cache(tmp_path / "cache", order="stored").digest
    with pytest.raises(ValueError, match="order is 'tasks', but this cache was drawn"):
        open_cache(tmp_path / "cache", order="tasks")


def test_a_source_without_grids_or_with_all_of_them_is_told_what_it_cannot_do(folder, tmp_path, monkeypatch):
    config = config_of("configs/lejepa.py:tiny", folder, tmp_path)
    with pytest.raises(ValueError, match="this source is stored whole"):
        cache.write(config, tmp_path / "cache", num_grids=100)
    with pytest.raises(ValueError, match="--level is 1; the source has the levels 0 to 0"):
        cache.write(config, tmp_path / "cache", level=1)
    with pytest.raises(ValueError, match=r"--source is for a mixture, but config\.data\.name is 'arc'"):
        cache.write(config, tmp_path / "cache", source_name="arc")
    source = raw_source(config)._replace(tables={}, validation={})
    monkeypatch.setattr(cache.registry, "build", lambda *arguments, **options: source)
    with pytest.raises(ValueError, match="no sequences of object tables"):
        cache.write(config, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_of_a_mixture_one_source_is_stored(folder, tmp_path):
    config = config_of("configs/lejepa.py:tiny", folder, tmp_path)
    own = config.data.to_dict()
    config.data = main.ConfigDict(dict(name="mixture", shares="a:1", sources=dict(a=own)))
    for name, sentence in ((None, r"say with --source which of \['a'\]"), ("b", "--source is 'b': known: a")):
        with pytest.raises(ValueError, match=sentence):
            cache.write(config, tmp_path / "cache", source_name=name)
    assert cache.write(config, tmp_path / "cache", source_name="a")["data"]["name"] == "arc"


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(table, tmp_path) -> Path:
    """A folder of 41 grids in shards of 16, without examples."""
    blocks = [{key: leaf[start : start + 7] for key, leaf in table.items()} for start in range(0, 41, 7)]
    num, shards = _shards.write_grids(tmp_path, blocks, 16)
    assert num == 41 and len(shards) == 3
    _shards.write_index(tmp_path, {"grids_per_shard": 16, "shards": shards, "splits": {}})
    return tmp_path


def test_grids_are_found_across_shards(table, written):
    shards = _shards.read(written, verify=True)
    numbers = np.random.default_rng(2).integers(41, size=(5, 6)).astype(np.uint32)
    assert_same(_shards.grids(shards, numbers), {key: leaf[numbers] for key, leaf in table.items()})


def test_a_damaged_or_cut_file_is_named(written):
    path = written / "grids-00001.npy"
    content = path.read_bytes()
    for place in (3, len(content) // 2, len(content) - 1):  # its header, a record, the last byte
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"grids-00001\.npy is damaged: its checksum"):
            _shards.read(written, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"grids-00001\.npy has \d+ bytes and not \d+: it was cut"):
        _shards.read(written, verify=False)
    path.unlink()
    with pytest.raises(ValueError, match=r"grids-00001\.npy has 0 bytes"):
        _shards.read(written, verify=False)


def test_a_folder_that_is_no_cache_is_a_sentence(written, monkeypatch):
    index = written / "index.json"
    whole = index.read_text()
    for text, sentence in (("{", "is not JSON"), ("[]", "is not the index of a cache")):
        index.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            _shards.read(written, verify=True)
    index.write_text(whole)
    monkeypatch.setattr(_packing, "FORMAT", 2)
    with pytest.raises(ValueError, match="a cache of format 1 of tables 1; this version reads 2 and 1"):
        _shards.read(written, verify=True)
    index.unlink()
    with pytest.raises(ValueError, match=r"has no index\.json: it is no cache, or what wrote it was stopped"):
        _shards.read(written, verify=True)


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    config, output = config_of("configs/lejepa.py:tiny", folder, tmp_path), tmp_path / "cache"
    first = cache.write(config, output, grids_per_shard=8)
    with pytest.raises(ValueError, match="holds a cache; --overwrite replaces it"):
        cache.write(config, output)
    (output / "index.json").unlink()
    with pytest.raises(ValueError, match="what is left of a cache that was not finished"):
        cache.write(config, output)
    assert len(cache.write(config, output, overwrite=True)["shards"]) == 1 < len(first["shards"])
    assert len(list(output.glob("grids-*.npy"))) == 2
    (output / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds other files, such as thesis\.txt"):
        cache.write(config, output, overwrite=True)


def test_the_options_of_a_cache_are_checked():
    for options, sentence in (
        ({"folder": None}, r"set config\.data\.folder"),
        ({"folder": "x", "order": "shufled"}, "there is no order 'shufled': did you mean 'shuffled'"),
        ({"folder": "x", "batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cached.build(**(dict(seed=0, batch_size=1, cache_dir="") | options))


# --- the command and a run ------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jepa.cache", "--config=configs/lejepa_manifest.py:tiny", *arguments]


STOPPED_AT_THE_FIRST_BLOCK = """
import os, signal
from jepa import cache
from jepa.data import _packing
_packing.pack = lambda tables: os.kill(os.getpid(), signal.SIGTERM)
cache.run()
"""


@pytest.mark.slow
def test_an_interrupted_command_leaves_no_index_and_says_so(folder, tmp_path):
    output = tmp_path / "cache"
    arguments = [sys.executable, "-c", STOPPED_AT_THE_FIRST_BLOCK, "--config=configs/lejepa_manifest.py:tiny"]
    arguments += [f"--output={output}", f"--config.data.paths={folder}", "--config.data.validation_share=0.4"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == f"jepa: interrupted; {output} has no index.json and is no cache: --overwrite replaces it\n"
    assert output.is_dir() and not (output / "index.json").exists()


@pytest.mark.slow
def test_the_command_writes_a_cache_that_a_run_trains_on(folder, tmp_path):
    output = tmp_path / "cache"
    arguments = (f"--config.data.paths={folder}", "--config.data.validation_share=0.4", f"--output={output}")
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bytes per grid" in done.stdout
    again = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("jepa: --output") and "Traceback" not in again.stderr

    config = main.load_config("configs/lejepa_manifest.py:tiny,cache")
    config.data.folder = str(output)
    config.num_steps = 10
    train.run(config, tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "task0" in str(environment)
