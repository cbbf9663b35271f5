"""Embeddings from a finished, or running, run: `jepa.load("runs/lejepa").encode(grids)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import checkpoint, run_folder, train
from jepa.data import _objects
from jepa.types import Encoded, PyTree

CHUNK = 256


class Model(NamedTuple):
    """A trained encoder. `step` is the training step of the weights."""

    encode: Callable[..., np.ndarray]
    config: ConfigDict
    params: PyTree
    step: int


def load(workdir: Path | str, checkpoint_step: int | str = "best") -> Model:
    """The encoder of the run in `workdir`, from its `best` (default) or `latest` checkpoint or a given step.

    `encode(grids, background=None)` takes a list of 2-D integer arrays with colours 0..9 and sides up to 30, and
    returns float32 [len(grids), D]. The grids are embedded each alone; their background is the commonest colour of
    each, unless one colour (or -1, none) is given for all. Raises ValueError where there is no run, or for a grid
    that is not one.
    """
    config = ConfigDict(run_folder.read_config(Path(workdir)))
    parts = train.build(config)
    opened = checkpoint.open_reader(Path(workdir) / "checkpoints")
    restored = checkpoint.restore(opened, jax.eval_shape(parts.init), checkpoint_step)
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet")
    run = restored.state

    @jax.jit
    def embed(params: PyTree, table: PyTree) -> jax.Array:
        encoded: Encoded = parts.objective.encode(params, run.objective_state, table)
        return encoded.pooled

    def encode(grids: Sequence[np.ndarray], background: int | None = None) -> np.ndarray:
        checked = [_objects.check_grid(grid, f"grid {i}") for i, grid in enumerate(grids)]
        colours = [_objects.background([grid]) if background is None else background for grid in checked]
        table = _objects.tokenise(checked, colours)
        embedded = []
        for start in range(0, len(checked), CHUNK):
            chunk = jax.tree.map(lambda leaf, start=start: leaf[start : start + CHUNK], table)
            embedded.append(np.asarray(embed(run.params, chunk)))
        return np.concatenate(embedded)

    return Model(encode, config, run.params, restored.step)
