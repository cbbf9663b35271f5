"""A loss is a function of the whole batch: how many devices hold the batch changes neither it nor its gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jepa import main, registry
from jepa.parts import build

NUM_DEVICES = 8
CONFIGS = (
    "configs/lejepa.py:tiny",
    "configs/infonce.py:tiny",
    "configs/lejepa_codes.py:tiny",
    "configs/lejepa_codes.py:tiny,vq_ema",
)


def losses_and_gradients(config_file: str, num_devices: int) -> dict[str, np.ndarray]:
    """Every term, the queue after the step and the gradient of every term, with the batch over `num_devices`."""
    config = main.load_config(config_file)
    parts = build(config)
    mesh = jax.make_mesh((num_devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:num_devices])
    rows, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    source, state = parts.source, parts.init()
    first, second = (source.gather(source.tables, source.indices(i), jax.random.key(i), True) for i in range(2))
    first, second = jax.device_put((first, second), rows)
    state = jax.device_put(state, whole)

    def terms(params, objective_state, batch):
        fixed = (state.target_params, objective_state)
        named = dict(key=jax.random.key(5), step=0, train=True)
        latents, kept = parts.objective.trunk(params, *fixed, batch, **named)
        out = parts.objective.loss(params, fixed[0], kept, latents, batch, **named)
        return dict(out.terms), out.state

    @jax.jit
    def both(params, objective_state, first, second):
        _, objective_state = terms(params, objective_state, first)  # so that a queue is filled
        values, pullback, state = jax.vjp(lambda params: terms(params, objective_state, second), params, has_aux=True)
        # One term after the other: jacrev takes all at once under vmap, which JAX 0.10 compiles wrongly for a CPU where
        # a normalisation by rsqrt is differentiated.
        chosen = {name: jnp.eye(len(values))[i] for i, name in enumerate(values)}
        gradients = jax.lax.map(lambda chosen: pullback(chosen)[0], chosen)
        return (values, state), {name: jax.tree.map(lambda g, i=i: g[i], gradients) for i, name in enumerate(values)}

    leaves = jax.tree.leaves_with_path(both(state.params, state.objective_state, first, second))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def codes_and_states(num_devices: int) -> dict[str, np.ndarray]:
    """Of every quantizer, what it gives and the state after an update, with the tokens over `num_devices`."""
    mesh = jax.make_mesh((num_devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:num_devices])
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    key = jax.random.key(2)
    tokens = jax.random.normal(key, (64, 12, 16)) * jnp.linspace(0.2, 2.0, 16)[None, None]
    mask = jax.random.uniform(jax.random.key(1), (64, 12)) < 0.7
    found = {}
    for name in registry.available("quantizers"):
        quantizer = registry.build("quantizers", name, **({} if name in ("identity", "fsq") else {"num_codes": 24}))
        params, state = quantizer.init(key, tokens, mask)

        @jax.jit
        def step(tokens, mask, params=params, state=state, quantizer=quantizer):
            quantized = quantizer.apply(params, state, tokens, mask, key=key, train=True)
            return quantized, quantizer.update(params, state, tokens, mask, quantized.codes, key=key)

        found[name] = step(*jax.device_put((tokens, mask), rows))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(found)}


@pytest.mark.slow
@pytest.mark.parametrize("config_file", [*CONFIGS, "quantizers"])
def test_one_device_and_eight_agree_on_every_loss_and_gradient(config_file, tmp_path):
    flags = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, config_file, str(tmp_path / "result.json")]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads((tmp_path / "result.json").read_text())
    assert len(differences) > 20
    assert {name: value for name, value in differences.items() if not value < 1e-5} == {}


def largest(named: dict[str, np.ndarray], name: str) -> float:
    """The largest entry that `name` is measured by: its own, and for a gradient that of its term over all parameters.

    Some gradients are 0 in exact arithmetic (a bias of attention keys, or of what a mean-free loss sees): by themselves
    they are rounding and nothing else.
    """
    term = name.split("]")[:2]
    group = (
        [value for other, value in named.items() if other.split("]")[:2] == term] if name[1] == "1" else [named[name]]
    )
    return max(float(np.abs(value).max()) for value in group)


if __name__ == "__main__":
    if sys.argv[1] == "quantizers":
        one, eight = (codes_and_states(count) for count in (1, NUM_DEVICES))
    else:
        one, eight = (losses_and_gradients(sys.argv[1], count) for count in (1, NUM_DEVICES))
    difference = {
        name: np.abs(one[name].astype(float) - eight[name]).max() / max(largest(one, name), 1e-3) for name in one
    }
    Path(sys.argv[2]).write_text(json.dumps({name: float(value) for name, value in difference.items()}))
