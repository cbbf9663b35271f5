"""The files of a checkpoint: what is written, and how a reader knows that it is what was saved.

On disk a checkpoint is a folder named by its step with two Orbax items: `state`, the arrays as nested dictionaries
by parameter path, and `record`, a JSON object with what the host knows, the metrics, and of every array its
shape, dtype and CRC-32. The record carries a CRC-32 of itself. So a reader needs no code of the model, a damaged
checkpoint is told from one of another model, and neither is ever restored silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from jepa.paths import by_path, nest
from jepa.types import PyTree


class Damaged(Exception):
    """The files of a checkpoint are not what was saved."""


def pack(
    step: int, state: PyTree, host: Mapping[str, Any], metrics: Mapping[str, float], best_metric: str | None
) -> ocp.args.Composite:
    """Both items of a checkpoint, as Orbax saves them. Raises ValueError for a leaf that is not a JAX array."""
    leaves = by_path(state)
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"{path} of the state is a {type(leaf).__name__}: a state holds JAX arrays only")
    arrays = {path: _to_host(leaf) for path, leaf in leaves.items()}
    record = _sign(
        {
            "step": step,
            "host": dict(host),
            "metrics": dict(metrics),
            "best_metric": best_metric,
            "arrays": {path: _describe(leaf, arrays[path]) for path, leaf in leaves.items()},
        }
    )
    tree = nest({path: x for path, x in arrays.items() if x.size})  # Orbax refuses arrays of size zero
    return ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record))


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The record of a checkpoint. Raises Damaged where it cannot be read or differs from its own CRC-32."""
    record = _read(folder, step, record=ocp.args.JsonRestore()).record
    if not isinstance(record, dict) or "crc32" not in record or record["crc32"] != _sign(record)["crc32"]:
        raise Damaged("its record differs from its checksum")
    return record


def read_arrays(folder: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by path, each compared with its shape, dtype and CRC-32 in the record. Raises Damaged."""
    described = record["arrays"]
    arrays = {path: np.empty(d["shape"], d["stored"]) for path, d in described.items() if math.prod(d["shape"]) == 0}
    if len(arrays) < len(described):
        arrays |= by_path(_read(folder, record["step"], state=ocp.args.StandardRestore()).state)
    for path, d in described.items():
        if path not in arrays:
            raise Damaged(f"{path} is missing")
        x = arrays[path]
        if (str(x.dtype), list(x.shape), _crc32(x)) != (d["stored"], d["shape"], d["crc32"]):
            raise Damaged(f"{path} differs from its checksum")
    return arrays


def check_same(record: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, *, show: int = 5) -> None:
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


def to_device(stored: np.ndarray, described: Mapping[str, Any], like: Any) -> jax.Array:
    """The array again, with the sharding of `like`; a copy, since a donated buffer must not belong to NumPy."""
    sharding = like.sharding if hasattr(like, "sharding") else None
    if described["impl"] is None:
        return jax.device_put(stored, sharding, may_alias=False)
    key = jax.random.wrap_key_data(jax.device_put(stored, may_alias=False), impl=described["impl"])
    return key if sharding is None else jax.device_put(key, sharding)


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


def _typed_shape(dtype: Any, shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(str(n) for n in shape)}]"


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _sign(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON returns it, with the CRC-32 of its text."""
    unsigned = json.loads(json.dumps({name: value for name, value in record.items() if name != "crc32"}))
    return unsigned | {"crc32": zlib.crc32(json.dumps(unsigned, sort_keys=True).encode())}


def _read(folder: Path, step: int, **items: Any) -> Any:
    """Items of a checkpoint; whatever Orbax or the file system makes of broken files, it is Damaged."""
    with quiet_orbax():
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
            try:
                return checkpointer.restore(folder / str(step), args=ocp.args.Composite(**items))
            except MemoryError:
                raise
            except Exception as error:
                raise Damaged(first_line(error)) from error


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
def quiet_orbax() -> Iterator[None]:
    """Around calls of Orbax: no tracebacks from its threads, and none of the sixty lines it logs for a save."""
    loops, verbosity = asyncio.get_event_loop_policy(), logging.get_verbosity()
    asyncio.set_event_loop_policy(_DrainingPolicy())
    logging.set_verbosity(min(verbosity, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        asyncio.set_event_loop_policy(loops)


def first_line(error: Exception) -> str:
    """What an error says, cut to one line of a notice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
