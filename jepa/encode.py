"""Embeddings from a finished, or running, run: `jepa.load("runs/lejepa").encode(grids)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import checkpoint, run_folder, train
from jepa.data import _objects
from jepa.scorers import in_chunks
from jepa.types import PyTree


class Model(NamedTuple):
    """A trained encoder. `step` is the training step of the weights."""

    encode: Callable[..., np.ndarray]
    config: ConfigDict
    params: PyTree
    step: int


def load(workdir: Path | str, checkpoint_step: int | str = "latest") -> Model:
    """The encoder of the run in `workdir`, from its `latest` (default) or `best` checkpoint or a given step.

    The latest is what `probes.json` measured. `encode(grids, background=None)` takes a list of 2-D integer arrays with
    colours 0..9 and sides up to 30, and returns float32 [len(grids), D]. Each grid is embedded alone; its background is
    its own commonest colour, unless one colour (or -1, none) is given for all. Raises ValueError where there is no run,
    and for a grid or a background that is not one.
    """
    workdir = Path(workdir).expanduser()
    config = ConfigDict(run_folder.read_config(workdir))
    objective = train.build_objective(config)
    saved = checkpoint.read(workdir, checkpoint_step)
    # An objective without state has no arrays, and so no entry.
    objective_state = saved.state["objective_state"] if "objective_state" in saved.state else {}

    @jax.jit
    def embed(params: PyTree, table: PyTree) -> jax.Array:
        return objective.encode(params, objective_state, table).pooled

    def encode(grids: Sequence[np.ndarray], background: int | None = None) -> np.ndarray:
        if not len(grids):
            raise ValueError("there is no grid to encode")
        if background is not None and not -1 <= background <= 9:
            raise ValueError(f"background is {background}; it must be a colour 0..9, or -1 for none")
        checked = [_objects.check_grid(grid, f"grid {i}") for i, grid in enumerate(grids)]
        colours = [_objects.background([grid]) if background is None else background for grid in checked]
        table = _objects.tokenise(checked, colours)
        rows = np.arange(len(checked))
        return in_chunks(functools.partial(embed, saved.state["params"]), table, rows)

    return Model(encode, config, saved.state["params"], saved.step)
