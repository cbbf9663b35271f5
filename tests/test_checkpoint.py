from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jepa import checkpoint, checkpoint_files

METRIC = "validation/prediction"
OPTIMIZER = optax.adamw(1e-3)  # a static part of a TrainState: one object, or structures differ


def make_state(seed: int = 0, width: int = 5):
    """A state with every kind of leaf: float32, bfloat16, int, bool, uint8, typed keys, a scalar, an empty array."""
    rng = np.random.default_rng(seed)
    params = {
        "trunk": {"kernel": jnp.asarray(rng.normal(size=(3, width)), jnp.float32), "bias": jnp.zeros(width)},
        "heads": {"scale": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16)},
    }
    state = TrainState.create(apply_fn=None, params=params, tx=OPTIMIZER).replace(step=jnp.int32(seed))
    extra = {
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed + 1, impl="rbg"), 3),
        "mask": jnp.asarray(rng.random((4,)) > 0.5),
        "table": jnp.asarray(rng.integers(0, 255, (6, 2)), jnp.uint8),
        "queue": jnp.zeros((0, 8)),
        "special": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        "none": None,
    }
    return {"train": state, "extra": extra, "params": params}


def raw(x) -> bytes:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()


def assert_identical(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert raw(a) == raw(b)


def small(seed: int):
    rng = np.random.default_rng(seed)
    return {
        "params": {"kernel": jnp.asarray(rng.normal(size=(64, 8)), jnp.float32), "bias": jnp.full((5,), 0.5 + seed)},
        "step": jnp.int32(seed),
    }


def write(folder: Path, metrics: dict[int, float | None], **options) -> checkpoint.Checkpoints:
    """A writer with a checkpoint of `small(step)` for every step."""
    checkpoints = checkpoint.open_manager(folder, best_metric=METRIC, **options)
    for step, value in metrics.items():
        assert checkpoint.save(checkpoints, step, small(step), {"at": step}, {} if value is None else {METRIC: value})
    return checkpoints


def files_of(folder: Path, step: int, *, item: str = "") -> list[Path]:
    return sorted(p for p in (folder / str(step) / item).rglob("*") if p.is_file())


def data_file(folder: Path, step: int) -> Path:
    """The file that holds the arrays."""
    return max(files_of(folder, step, item="state"), key=lambda p: p.stat().st_size)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state, host = make_state(3), {"patience": 2, "best": math.inf, "seen": ["a", "ä"], "lr": 0.1 + 0.2}
    checkpoints = checkpoint.open_manager(tmp_path / "c", best_metric=METRIC)
    assert checkpoint.restore(checkpoints, state) is None
    assert checkpoint.save(checkpoints, 3, state, host, {METRIC: np.float32(0.5), "other": jnp.float32(1.0)})
    checkpoint.close(checkpoints)

    reopened = checkpoint.open_manager(tmp_path / "c", best_metric=METRIC)
    for template in (state, jax.eval_shape(lambda: make_state(0)), make_state(0)):
        restored = checkpoint.restore(reopened, template)
        assert (restored.step, restored.host, restored.notices) == (3, host, ())
        assert_identical(restored.state, state)
    assert jax.random.key_impl(restored.state["extra"]["keys"]) == "rbg"
    # Donating a restored buffer must be safe: it is JAX's own.
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(restored.state["params"]["trunk"]["kernel"])
    np.testing.assert_array_equal(doubled, 2 * state["params"]["trunk"]["kernel"])


def test_shardings_of_the_template_are_kept(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    checkpoints = write(tmp_path, {1: None})
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small(1))
    template["params"]["kernel"] = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=sharding)
    assert checkpoint.restore(checkpoints, template).state["params"]["kernel"].sharding == sharding


def test_only_jax_arrays_are_saved(tmp_path):
    checkpoints = checkpoint.open_manager(tmp_path, best_metric=METRIC)
    with pytest.raises(ValueError, match="a/step of the state is a int"):
        checkpoint.save(checkpoints, 1, {"a": {"step": 1}}, {}, {})


def test_kept_are_the_latest_two_and_the_best(tmp_path):
    checkpoints = checkpoint.open_manager(tmp_path, best_metric=METRIC)
    # A metric that is not finite, is missing, or is minus infinity never makes, nor unmakes, the best.
    values = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: None, 6: -math.inf, 7: 1.0, 8: math.nan, 9: 0.5, 10: 4.0, 11: 0.7}
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6], 7: [2, 6, 7], 8: [2, 7, 8]}
    kept |= {9: [8, 9], 10: [9, 10], 11: [9, 10, 11]}
    best = {1: 1, **dict.fromkeys(range(2, 9), 2), 9: 9, 10: 9, 11: 9}
    for step, value in values.items():
        if step in (4, 6, 10):  # what is kept survives reopening
            checkpoint.close(checkpoints)
            checkpoints = checkpoint.open_manager(tmp_path, best_metric=METRIC)
        metrics = {"other": -1.0} | ({} if value is None else {METRIC: value})
        checkpoint.save(checkpoints, step, small(step), {}, metrics)
        assert checkpoint.steps(checkpoints) == kept[step]
        assert checkpoint.best_step(checkpoints) == best[step]
    reader = checkpoint.open_reader(tmp_path)
    assert checkpoint.restore(reader, small(0), "best").step == 9
    assert checkpoint.restore(reader, small(0), "latest").step == 11
    assert_identical(checkpoint.restore(reader, small(0), 10).state, small(10))
    assert (
        checkpoint.restore(checkpoint.open_reader(tmp_path, best_metric="other"), small(0), "best").step == 9
    )  # all equal


def test_best_without_any_metric_is_the_latest_and_says_so(tmp_path):
    checkpoint.close(write(tmp_path, {1: None, 2: math.nan}))
    restored = checkpoint.restore(checkpoint.open_reader(tmp_path), small(0), "best")
    assert restored.step == 2 and "no checkpoint has a finite metric" in restored.notices[0]


def test_a_step_is_saved_once_and_never_behind_a_later_one(tmp_path):
    checkpoints = write(tmp_path, {2: 1.0})
    assert not checkpoint.save(checkpoints, 2, small(7), {}, {})
    assert_identical(checkpoint.restore(checkpoints, small(0)).state, small(2))
    with pytest.raises(ValueError, match="already holds step 2, later than step 1"):
        checkpoint.save(checkpoints, 1, small(1), {}, {})


def test_an_unknown_step_is_an_error(tmp_path):
    checkpoints = write(tmp_path, {1: None, 2: None})
    with pytest.raises(ValueError, match=r"no checkpoint at step 7 .* there are \[1, 2\]"):
        checkpoint.restore(checkpoints, small(0), 7)
    with pytest.raises(ValueError, match="'latest', 'best' or a step, not 'newest'"):
        checkpoint.restore(checkpoints, small(0), "newest")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << (position % 8)
    path.write_bytes(content)


def test_a_flipped_byte_never_restores_other_numbers(tmp_path):
    """Wherever the byte is: the state is right (the byte did not matter) or the one before is used, with a notice."""
    rng, detected = random.Random(0), 0
    checkpoint.close(write(tmp_path / "c", {1: 0.5, 2: 0.7}))
    reader, clean = checkpoint.open_reader(tmp_path / "c"), snapshot(tmp_path / "c")
    for trial in range(24):
        path = data_file(tmp_path / "c", 2) if trial % 2 else rng.choice(files_of(tmp_path / "c", 2))
        flip(path, rng.randrange(path.stat().st_size))
        restored = checkpoint.restore(reader, small(0))
        assert_identical(restored.state, small(restored.step))
        assert restored.host == {"at": restored.step}
        assert (restored.step == 2) == (restored.notices == ())
        detected += restored.step == 1
        path.write_bytes(clean[str(path.relative_to(tmp_path / "c"))])
    assert detected >= 10


def test_a_flip_that_the_format_does_not_notice_is_found_by_the_checksum(tmp_path):
    checkpoints = write(tmp_path, {1: 0.5, 2: 0.7})
    record = checkpoint_files.read_record(tmp_path, 2)
    record["arrays"]["params/bias"]["crc32"] ^= 1  # as if the array differed by a bit
    with pytest.raises(checkpoint_files.Damaged, match="params/bias differs from its checksum"):
        checkpoint_files.read_arrays(tmp_path, record)
    checkpoint.close(checkpoints)


@pytest.mark.parametrize(("old", "new"), [('"at": 2', '"at": 3'), ("64", "65"), ("float32", "float16"), ("0.7", "0.4")])
def test_a_changed_record_is_damage_and_not_another_model(tmp_path, old, new):
    checkpoint.close(write(tmp_path, {1: 0.5, 2: 0.7}))
    path = max(files_of(tmp_path, 2, item="record"), key=lambda p: p.stat().st_size)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    reader = checkpoint.open_reader(tmp_path)
    restored = checkpoint.restore(reader, small(0))
    assert restored.step == 1 and "step 2 is damaged (its record differs from its checksum)" in restored.notices[0]
    assert checkpoint.best_step(reader) == 1


@pytest.mark.parametrize("damage", ["truncate", "delete", "empty", "no record", "no state", "folder only"])
def test_a_writer_moves_a_damaged_checkpoint_aside_and_goes_on(tmp_path, damage):
    checkpoint.close(write(tmp_path, {1: 0.5, 2: 0.7}))
    path = data_file(tmp_path, 2)
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "delete":
        path.unlink()
    elif damage == "empty":
        os.truncate(path, 0)
    else:
        for file in files_of(tmp_path, 2, item={"no record": "record", "no state": "state", "folder only": ""}[damage]):
            file.unlink()
    left = snapshot(tmp_path / "2")
    checkpoints = checkpoint.open_manager(tmp_path, best_metric=METRIC)
    restored = checkpoint.restore(checkpoints, small(0))
    assert restored.step == 1
    assert_identical(restored.state, small(1))
    assert len(restored.notices) == 1
    assert "step 2 is damaged" in restored.notices[0] and "using step 1" in restored.notices[0]
    assert snapshot(tmp_path / "damaged" / "2-1") == left
    assert checkpoint.steps(checkpoints) == [1]
    # The run continues from step 1 and saves step 2 again.
    assert checkpoint.save(checkpoints, 2, small(2), {}, {METRIC: 0.6})
    again = checkpoint.restore(checkpoints, small(0))
    assert (again.step, again.notices) == (2, ())
    # A second damage to the same step takes the next free name.
    os.truncate(data_file(tmp_path, 2), 3)
    assert checkpoint.restore(checkpoints, small(0)).step == 1
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["2-1", "2-2"]


def test_a_damaged_best_is_replaced_by_the_next_best(tmp_path):
    checkpoint.close(write(tmp_path, {1: 0.1, 2: 0.6, 3: 0.7}))
    os.truncate(data_file(tmp_path, 1), 10)
    restored = checkpoint.restore(checkpoint.open_reader(tmp_path), small(0), "best")
    assert restored.step == 2 and "step 1 is damaged" in restored.notices[0]


def test_a_reader_changes_nothing(tmp_path):
    checkpoint.close(write(tmp_path, {1: 0.5, 2: 0.7}))
    os.truncate(data_file(tmp_path, 2), 10)
    before = snapshot(tmp_path)
    reader = checkpoint.open_reader(tmp_path)
    assert checkpoint.restore(reader, small(0)).step == 1
    assert snapshot(tmp_path) == before
    assert checkpoint.restore(checkpoint.open_reader(tmp_path / "absent"), small(0)) is None
    assert not (tmp_path / "absent").exists()


def test_when_nothing_can_be_read_nothing_is_moved(tmp_path):
    checkpoints = write(tmp_path, {1: 0.5, 2: 0.7})
    for step in (1, 2):
        os.truncate(data_file(tmp_path, step), 10)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"can be read .*step 2: .*step 1: "):
        checkpoint.restore(checkpoints, small(0))
    with pytest.raises(ValueError, match=r"can be read .*step 2: "):
        checkpoint.restore(checkpoints, small(0), 2)  # a step asked for by number has no substitute
    assert snapshot(tmp_path) == before


def test_another_model_is_an_error_that_names_the_parameters(tmp_path):
    checkpoints = write(tmp_path, {1: 0.5, 2: 0.7})
    before = snapshot(tmp_path)
    wrong = small(0)
    wrong["params"] = {"kernel": jnp.zeros((64, 9)), "bias": jnp.zeros((5,), jnp.bfloat16), "new": jnp.zeros(2)}
    del wrong["step"]
    with pytest.raises(ValueError) as caught:
        checkpoint.restore(checkpoints, wrong)
    for part in (
        f"step 2 of {tmp_path} is of another model",
        "params/kernel is float32[64, 8] in the checkpoint, float32[64, 9] in the model",
        "params/bias is float32[5] in the checkpoint, bfloat16[5] in the model",
        "params/new (float32[2]) is not in the checkpoint",
        "step (int32[]) is in the checkpoint only",
    ):
        assert part in str(caught.value)
    wrong["params"] |= {f"new{i}": jnp.zeros(1) for i in range(20)}
    with pytest.raises(ValueError, match="and 19 more"):
        checkpoint.restore(checkpoints, wrong)
    assert snapshot(tmp_path) == before


def test_a_key_of_another_kind_is_a_mismatch(tmp_path):
    checkpoints = checkpoint.open_manager(tmp_path, best_metric=METRIC)
    checkpoint.save(checkpoints, 1, {"key": jax.random.key(0)}, {}, {})
    for other in (jax.random.key(0, impl="rbg"), jax.random.key_data(jax.random.key(0))):
        with pytest.raises(ValueError, match=r"key is key<fry>\[\] in the checkpoint"):
            checkpoint.restore(checkpoints, {"key": other})


def test_saving_and_restoring_print_nothing_and_leave_the_settings(tmp_path, capfd, caplog):
    loops, verbosity = asyncio.get_event_loop_policy(), logging.get_verbosity()
    logging.set_verbosity(logging.INFO)  # as absl.app sets it
    try:
        checkpoints = write(tmp_path, {1: 0.5, 2: None, 3: math.nan, 4: 0.1})
        data_file(tmp_path, 4).unlink()
        assert checkpoint.restore(checkpoints, small(0)).step == 3
        checkpoint.close(checkpoints)
        assert logging.get_verbosity() == logging.INFO and asyncio.get_event_loop_policy() is loops
    finally:
        logging.set_verbosity(verbosity)
    assert (capfd.readouterr(), caplog.messages) == (("", ""), [])


def test_params_are_read_without_the_state(tmp_path, caplog):
    state, folder = make_state(2), tmp_path / "checkpoints"
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        checkpoint.read(tmp_path, "best")
    checkpoints = checkpoint.open_manager(folder, best_metric=METRIC)
    checkpoint.save(checkpoints, 2, state, {}, {METRIC: 0.1})
    checkpoint.save(checkpoints, 3, make_state(3), {}, {METRIC: 0.2})
    assert_identical(checkpoint.read(tmp_path, "best").state["params"], state["params"])
    assert_identical(checkpoint.read(tmp_path).state["params"], make_state(3)["params"])
    assert caplog.messages == []
    os.truncate(data_file(folder, 2), 10)
    assert_identical(checkpoint.read(tmp_path, "best").state["params"], make_state(3)["params"])
    assert "step 2 is damaged" in caplog.messages[0]


def python(code: str, *args: object) -> subprocess.Popen:
    """A process that has `make` (a state by step) and an open writer on its first argument."""
    head = f"""
import sys
import jax.numpy as jnp, numpy as np
from jepa import checkpoint
def make(step, size):
    rng = np.random.default_rng(step)
    return {{"params": {{"w": jnp.asarray(rng.normal(size=(size,)), jnp.float32)}}, "step": jnp.int32(step)}}
checkpoints = checkpoint.open_manager(sys.argv[1], best_metric={METRIC!r})
"""
    command = [sys.executable, "-c", head + code, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_full_disk_shows_at_that_save_and_costs_no_other(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    process = python(
        """
import resource
checkpoint.save(checkpoints, 1, make(1, 1000), {}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(checkpoints, 2, make(2, 500_000), {}, {"validation/prediction": 0.1})
except OSError as error:
    print("OSError", error)
print(checkpoint.steps(checkpoints), checkpoint.best_step(checkpoints))
print(checkpoint.save(checkpoints, 3, make(3, 1000), {}, {}), checkpoint.steps(checkpoints))
""",
        tmp_path,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith(f"OSError could not save step 2 to {tmp_path}")
    assert lines[1:] == ["[1] None", "True [1, 3]"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_it_reported(tmp_path):
    """In mid-save or in mid-removal: what was reported as saved, or the one after it, is restored, without a notice."""
    rng, size = random.Random(1), 300_000
    for _ in range(10):
        process = python(
            """
first = int(sys.argv[2]) + 1
for step in range(first, first + 1000):
    checkpoint.save(checkpoints, step, make(step, 300_000), {"at": step}, {"validation/prediction": 1 / step})
    print(step, flush=True)
""",
            tmp_path,
            max(checkpoint.steps(checkpoint.open_reader(tmp_path)), default=0),
        )
        reported = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        reported = max([reported, *map(int, process.communicate()[0].split())])
        template = {"params": {"w": jnp.zeros(size)}, "step": jnp.int32(0)}
        for which in ("latest", "best"):
            restored = checkpoint.restore(checkpoint.open_reader(tmp_path), template, which)
            assert restored.step in (reported, reported + 1)
            assert (restored.host, restored.notices) == ({"at": restored.step}, ())
            expected = np.random.default_rng(restored.step).normal(size=(size,)).astype(np.float32)
            np.testing.assert_array_equal(restored.state["params"]["w"], expected)
        checkpoint.close(checkpoint.open_manager(tmp_path, best_metric=METRIC))
        assert all(p.name.isdigit() for p in tmp_path.iterdir())  # nothing half-written is left


@pytest.mark.slow
def test_a_reader_reads_the_best_while_the_run_replaces_it(tmp_path):
    """Every save is the new best, so that the one being read is removed all the time."""
    process = python(
        """
for step in range(1, 10_000):
    checkpoint.save(checkpoints, step, make(step, 100_000), {}, {"validation/prediction": 1 / step})
    print(step, flush=True)
""",
        tmp_path,
    )
    try:
        process.stdout.readline()
        template, seen = {"params": {"w": jnp.zeros(100_000)}, "step": jnp.int32(0)}, set()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            restored = checkpoint.restore(checkpoint.open_reader(tmp_path), template, "best")
            assert restored.notices == () and int(restored.state["step"]) == restored.step
            seen.add(restored.step)
        assert len(seen) > 3
    finally:
        process.kill()
        process.communicate()
