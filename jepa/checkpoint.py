"""Checkpoints of a run: the training state and a JSON record, the newest few and the best one.

On disk a checkpoint is a folder named by its step with two Orbax items: `state`, the arrays as nested dictionaries
by parameter path, and `record`, a JSON object with what the host knows, the metrics, and of every array its
shape, dtype and CRC-32. The record carries a CRC-32 of itself. So a reader needs no code of the model, a damaged
checkpoint is told from one of another model, and neither is ever restored silently.

A save is synchronous: when `save` returns, the checkpoint is on disk under its final name, and a full disk shows at
that save. One process writes; any number may read while it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

PyTree = Any
Step = int | Literal["latest", "best"]


class Checkpoints(NamedTuple):
    """The checkpoints in a folder. `values` is the metric that `best` minimises, by step, where it is known."""

    folder: Path
    manager: ocp.CheckpointManager | None  # None for a reader, which never changes the folder
    best_metric: str | None
    values: dict[int, float]


class Restored(NamedTuple):
    """A restored checkpoint. `notices` are sentences for the person at the keyboard, empty when all is well."""

    state: PyTree
    host: dict[str, Any]
    step: int
    notices: tuple[str, ...]


class Damaged(Exception):
    """The files of a checkpoint are not what was saved."""


class _KeepBest(NamedTuple):
    """Preserves the step of the lowest finite metric. Reads the checked records: Orbax's own metrics file is not."""

    values: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        known = {info.step: self.values[info.step] for info in checkpoints if info.step in self.values}
        best = min(known, key=lambda step: (known[step], step), default=None)
        return [info.step == best for info in checkpoints]


def open_manager(folder: Path | str, *, best_metric: str, keep_latest: int = 2) -> Checkpoints:
    """Opens `folder` for the one process that writes, and removes what a killed run left half-written.

    Kept are the newest `keep_latest` checkpoints and the one with the lowest `best_metric`.
    """
    folder = Path(folder).absolute()
    values: dict[int, float] = {}
    policies = [checkpoint_managers.LatestN(keep_latest), _KeepBest(values)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        enable_async_checkpointing=False,
    )
    _remove_half_written(folder)
    with _orbax():
        checkpoints = Checkpoints(folder, ocp.CheckpointManager(folder, options=options), best_metric, values)
    _refresh(checkpoints)
    return checkpoints


def open_reader(folder: Path | str, *, best_metric: str | None = None) -> Checkpoints:
    """Opens `folder` for reading only, also while a run writes to it: nothing is created, moved or removed.

    `best` follows the metric that the run itself minimised, unless `best_metric` names another that it recorded.
    """
    checkpoints = Checkpoints(Path(folder).absolute(), None, best_metric, {})
    _refresh(checkpoints)
    return checkpoints


def close(checkpoints: Checkpoints) -> None:
    if checkpoints.manager is not None:
        with _orbax():
            checkpoints.manager.close()


def steps(checkpoints: Checkpoints) -> list[int]:
    """Steps with a finished checkpoint, ascending, as the folder is now."""
    return sorted(ocp.utils.checkpoint_steps(checkpoints.folder)) if checkpoints.folder.is_dir() else []


def best_step(checkpoints: Checkpoints) -> int | None:
    """The step of the lowest metric (the earliest of equals), or None where no checkpoint has a finite one."""
    return min(checkpoints.values, key=lambda step: (checkpoints.values[step], step), default=None)


def save(
    checkpoints: Checkpoints, step: int, state: PyTree, host: Mapping[str, Any], metrics: Mapping[str, float]
) -> bool:
    """Writes a checkpoint; True once it is on disk, False where this step had been saved already (left as it is).

    `host` is what JSON can hold. A metric that is not finite is left out, so it never makes a checkpoint the best.
    Raises OSError when it cannot be written (the earlier checkpoints are untouched), and ValueError when the folder
    holds a later step, which this one could not follow.
    """
    assert checkpoints.manager is not None, "these checkpoints were opened for reading"
    known = steps(checkpoints)
    if step in known:
        return False
    if known and known[-1] > step:
        raise ValueError(
            f"{checkpoints.folder} already holds step {known[-1]}, later than step {step} to be saved: "
            f"continue an earlier step in a new workdir"
        )
    leaves = _by_path(state)
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"{path} of the state is a {type(leaf).__name__}: a state holds JAX arrays only")
    arrays = {path: _to_host(leaf) for path, leaf in leaves.items()}
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    record = _sign(
        {
            "step": step,
            "host": dict(host),
            "metrics": finite,
            "best_metric": checkpoints.best_metric,
            "arrays": {path: _describe(leaf, arrays[path]) for path, leaf in leaves.items()},
        }
    )
    tree = _nest({path: x for path, x in arrays.items() if x.size})  # Orbax refuses arrays of size zero
    items = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record))
    if checkpoints.best_metric in finite:  # before the save, which decides what to keep
        checkpoints.values[step] = finite[checkpoints.best_metric]
    try:
        with _orbax():
            checkpoints.manager.save(step, args=items, force=True)
    except Exception as error:
        checkpoints.values.pop(step, None)
        _remove_half_written(checkpoints.folder)
        raise OSError(f"could not save step {step} to {checkpoints.folder}: {_first_line(error)}") from error
    _refresh(checkpoints)
    return True


def restore(checkpoints: Checkpoints, abstract_state: PyTree, step: Step = "latest") -> Restored | None:
    """The state at `step`, bit for bit as saved, or None where there is no checkpoint at all.

    abstract_state: the state or its `jax.eval_shape`; gives structure, shapes, dtypes and, where present, shardings.
    A damaged checkpoint is skipped for the next best or the one before, with a notice; a writer also moves it
    to `damaged/`, once another has proved readable. A step given as a number has no substitute.
    Raises ValueError naming the arrays by path when the checkpoint is of another model, when a numbered step
    is missing or damaged, and when no checkpoint can be read.
    """
    found = _first_intact(checkpoints, step, abstract_state)
    if found is None:
        return None
    record, arrays, notices = found
    expected, structure = _by_path(abstract_state), jax.tree.structure(abstract_state)
    leaves = [_to_device(arrays[path], record["arrays"][path], leaf) for path, leaf in expected.items()]
    return Restored(jax.tree.unflatten(structure, leaves), record["host"], record["step"], notices)


def restore_params(workdir: Path | str, step: Step = "best", *, subtree: str = "params") -> dict[str, Any]:
    """The arrays saved under `subtree` in a run, as nested dictionaries by name; needs no code of the model.

    Another checkpoint used in place of a damaged one is logged as a warning.
    Raises ValueError when the run has no checkpoint, none that can be read, or nothing under that name.
    """
    found = _first_intact(open_reader(Path(workdir) / "checkpoints"), step)
    if found is None:
        raise ValueError(f"there is no checkpoint in {Path(workdir) / 'checkpoints'}")
    record, arrays, notices = found
    for notice in notices:
        logging.warning("%s", notice)
    chosen = {path: x for path, x in arrays.items() if path.startswith(f"{subtree}/")}
    if not chosen:
        known = sorted({path.split("/")[0] for path in arrays})
        raise ValueError(f"step {record['step']} of {workdir} has no {subtree!r}; it has {known}")
    leaves = {path: _to_device(x, record["arrays"][path], None) for path, x in chosen.items()}
    return _nest({path.removeprefix(f"{subtree}/"): x for path, x in leaves.items()})


def _remove_half_written(folder: Path) -> None:
    for debris in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(debris, ignore_errors=True)


def _first_intact(
    checkpoints: Checkpoints, step: Step, abstract_state: PyTree = None
) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[str, ...]] | None:
    """Record and arrays of the first candidate that is whole, and what to say about those before it."""
    damaged: dict[int, str] = {}
    for candidate in _candidates(checkpoints, step):
        try:
            record = _read_record(checkpoints.folder, candidate)
            if abstract_state is not None:  # another model is the user's mistake: it must not look like damage
                _check_same(record, _by_path(abstract_state), checkpoints.folder)
            arrays = _read_arrays(checkpoints.folder, record)
        except Damaged as error:
            if checkpoints.manager is None and _was_replaced(checkpoints, candidate):
                return _first_intact(checkpoints, step, abstract_state)
            damaged[candidate] = str(error)
            continue
        notices = [_set_aside(checkpoints, bad, reason, record["step"]) for bad, reason in damaged.items()]
        if step == "best" and not checkpoints.values:
            notices.append(f"no checkpoint has a finite metric: using the latest, step {record['step']}, as the best")
        return record, arrays, tuple(notices)
    if damaged:
        reasons = "; ".join(f"step {bad}: {reason}" for bad, reason in damaged.items())
        raise ValueError(f"no checkpoint asked for in {checkpoints.folder} can be read ({reasons})")
    return None


def _was_replaced(checkpoints: Checkpoints, step: int) -> bool:
    """Whether the run removed this checkpoint for a newer one while it was read: no damage, look again."""
    time.sleep(0.2)  # removing takes a moment, during which the folder is still there
    return step not in steps(checkpoints)


def _candidates(checkpoints: Checkpoints, step: Step) -> list[int]:
    """Steps to try, in order."""
    _refresh(checkpoints)
    known = steps(checkpoints)
    if isinstance(step, int):
        if step not in known:
            raise ValueError(f"there is no checkpoint at step {step} in {checkpoints.folder}; there are {known}")
        return [step]
    if step not in ("latest", "best"):
        raise ValueError(f"a checkpoint is 'latest', 'best' or a step, not {step!r}")
    values = checkpoints.values if step == "best" else {}
    ranked = sorted(values, key=lambda s: (values[s], s))
    return ranked + sorted(set(known) - set(ranked), reverse=True)


def _refresh(checkpoints: Checkpoints) -> None:
    """Brings `values` up to date with the folder."""
    known = steps(checkpoints)
    for gone in set(checkpoints.values) - set(known):
        del checkpoints.values[gone]
    for step in set(known) - set(checkpoints.values):
        try:
            record = _read_record(checkpoints.folder, step)
        except Damaged:
            continue  # said when it is restored
        name = checkpoints.best_metric or record["best_metric"]
        if name in record["metrics"]:
            checkpoints.values[step] = record["metrics"][name]


def _read(folder: Path, step: int, **items: Any) -> Any:
    """Items of a checkpoint; whatever Orbax or the file system makes of broken files, it is Damaged."""
    with _orbax():
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
            try:
                return checkpointer.restore(folder / str(step), args=ocp.args.Composite(**items))
            except MemoryError:
                raise
            except Exception as error:
                raise Damaged(_first_line(error)) from error


class _DrainingLoop(asyncio.SelectorEventLoop):
    """When one array fails, Orbax closes its loop under the others still in flight, which then fail in threads where
    nothing can catch them and print tracebacks. This one lets them end first."""

    def close(self) -> None:
        pending = [] if self.is_closed() else asyncio.all_tasks(self)
        if pending:
            self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()


class _DrainingPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _DrainingLoop()


@contextlib.contextmanager
def _orbax() -> Iterator[None]:
    """Around calls of Orbax: no tracebacks from its threads, and none of the sixty lines it logs for a save."""
    loops, verbosity = asyncio.get_event_loop_policy(), logging.get_verbosity()
    asyncio.set_event_loop_policy(_DrainingPolicy())
    logging.set_verbosity(min(verbosity, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        asyncio.set_event_loop_policy(loops)


def _read_record(folder: Path, step: int) -> dict[str, Any]:
    record = _read(folder, step, record=ocp.args.JsonRestore()).record
    if not isinstance(record, dict) or "crc32" not in record or record["crc32"] != _sign(record)["crc32"]:
        raise Damaged("its record differs from its checksum")
    return record


def _read_arrays(folder: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by path, each compared with its shape, dtype and CRC-32 in the record."""
    described = record["arrays"]
    arrays = {path: np.empty(d["shape"], d["stored"]) for path, d in described.items() if math.prod(d["shape"]) == 0}
    if len(arrays) < len(described):
        arrays |= _by_path(_read(folder, record["step"], state=ocp.args.StandardRestore()).state)
    for path, d in described.items():
        if path not in arrays:
            raise Damaged(f"{path} is missing")
        x = arrays[path]
        if (str(x.dtype), list(x.shape), _crc32(x)) != (d["stored"], d["shape"], d["crc32"]):
            raise Damaged(f"{path} differs from its checksum")
    return arrays


def _check_same(record: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, *, show: int = 5) -> None:
    """Raises ValueError naming the arrays in which a checkpoint and the model differ."""
    saved = {path: _typed_shape(d["dtype"], d["logical_shape"]) for path, d in record["arrays"].items()}
    wanted = {path: _typed_shape(leaf.dtype, leaf.shape) for path, leaf in expected.items()}
    lines = [
        f"{path} is {saved[path]} in the checkpoint, {wanted[path]} in the model"
        for path in wanted
        if path in saved and saved[path] != wanted[path]
    ]
    lines += [f"{path} ({wanted[path]}) is not in the checkpoint" for path in wanted if path not in saved]
    lines += [f"{path} ({saved[path]}) is in the checkpoint only" for path in saved if path not in wanted]
    if lines:
        more = [f"and {len(lines) - show} more"] if len(lines) > show else []
        raise ValueError(
            f"step {record['step']} of {folder} is of another model: {'; '.join(lines[:show] + more)}. "
            f"Use the config it was trained with, or a new workdir"
        )


def _set_aside(checkpoints: Checkpoints, step: int, reason: str, used: int) -> str:
    """Moves a damaged checkpoint to `damaged/<step>-<n>`, unless opened for reading. Returns the notice."""
    sentence = f"the checkpoint at step {step} is damaged ({reason}): using step {used}"
    if checkpoints.manager is None:
        return sentence
    folder = checkpoints.folder / "damaged"
    folder.mkdir(exist_ok=True)
    target = next(folder / f"{step}-{n}" for n in itertools.count(1) if not (folder / f"{step}-{n}").exists())
    (checkpoints.folder / str(step)).rename(target)
    checkpoints.values.pop(step, None)
    with _orbax():
        checkpoints.manager.reload()
    return f"{sentence}; the damaged one is now {target}"


def _by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, such as `params/trunk/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two arrays of the state have the same path: do not use '/' in the names of parameters")
    return named


def _nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    """An array as stored: a typed PRNG key as its words."""
    return np.asarray(jax.device_get(jax.random.key_data(leaf) if _is_key(leaf) else leaf))


def _describe(leaf: Any, stored: np.ndarray) -> dict[str, Any]:
    """What the record holds of an array; `impl` names the generator of a typed PRNG key."""
    return {
        "dtype": str(leaf.dtype),
        "logical_shape": list(leaf.shape),
        "stored": str(stored.dtype),
        "shape": list(stored.shape),
        "crc32": _crc32(stored),
        "impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
    }


def _to_device(stored: np.ndarray, described: Mapping[str, Any], like: Any) -> jax.Array:
    """The array again, with the sharding of `like`; a copy, since a donated buffer must not belong to NumPy."""
    sharding = like.sharding if hasattr(like, "sharding") else None
    if described["impl"] is None:
        return jax.device_put(stored, sharding, may_alias=False)
    key = jax.random.wrap_key_data(jax.device_put(stored, may_alias=False), impl=described["impl"])
    return key if sharding is None else jax.device_put(key, sharding)


def _typed_shape(dtype: Any, shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(str(n) for n in shape)}]"


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _sign(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON returns it, with the CRC-32 of its text."""
    unsigned = json.loads(json.dumps({name: value for name, value in record.items() if name != "crc32"}))
    return unsigned | {"crc32": zlib.crc32(json.dumps(unsigned, sort_keys=True).encode())}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
