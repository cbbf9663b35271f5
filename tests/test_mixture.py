"""Several sources in one batch: every row is a row of its own source, at a place that the step alone decides."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jepa import curriculum, main, parts, train
from jepa.data import mixture, programs
from jepa.parts import keywords

OPTIONS = {"name": "programs", "num_workers": 0, "batches_per_block": 2}


def build(**options):
    sources = {"pairs": OPTIONS, "orbits": OPTIONS | {"stream": "orbit"}}
    fixed = {"seed": 3, "batch_size": 8, "cache_dir": "", "shares": "pairs:0.75,orbits:0.25", "sources": sources}
    return mixture.build(**fixed | options)


def test_a_batch_holds_the_rows_of_every_source_by_its_share():
    mixed = build()
    alone = {
        "pairs": programs.build(seed=3, batch_size=6, cache_dir="", num_workers=0, batches_per_block=2),
        "orbits": programs.build(
            seed=3, batch_size=2, cache_dir="", num_workers=0, batches_per_block=2, stream="orbit"
        ),
    }
    keys = jax.random.split(jax.random.key(4))
    batch = jax.jit(mixed.gather, static_argnums=3)(mixed.tables, mixed.indices(3), jax.random.key(4), True)
    parts = [
        jax.jit(source.gather, static_argnums=3)(source.tables, source.indices(3), key, True)
        for key, source in zip(keys, alone.values(), strict=True)
    ]
    jax.tree.map(lambda whole, *leaves: np.testing.assert_array_equal(whole, np.concatenate(leaves)), batch, *parts)
    assert mixed.ids == tuple(dict.fromkeys(alone["pairs"].ids + alone["orbits"].ids))


def test_held_out_sources_keep_their_names_under_that_of_the_source_in_whole_batches():
    mixed = build()
    assert list(mixed.validation) == [
        *("pairs", "pairs_foreign_demo", "pairs_families", "orbits", "orbits_families"),
    ]
    for held_out in mixed.validation.values():
        assert held_out.indices(0)["ids"].shape == (8,)
    # Nothing is seen twice before all that fits in whole batches was seen.
    alone = programs.build(seed=0, batch_size=2, cache_dir="", num_workers=0, stream="orbit").validation["programs"]
    expected = np.concatenate([alone.indices(step)["ids"] for step in range(8)])
    seen = np.concatenate([mixed.validation["orbits"].indices(step)["ids"] for step in range(2)])
    np.testing.assert_array_equal(seen, expected)


def test_shares_are_rounded_to_whole_rows():
    assert mixture._rows({"a": 1.0, "b": 1.0, "c": 1.0}, 8) == {"a": 3, "b": 3, "c": 2}
    assert mixture._rows({"a": 0.1, "b": 0.9}, 10) == {"a": 1, "b": 9}
    assert mixture._rows({"a": 2.0}, 7) == {"a": 7}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("pairs:0.5,orbit:0.5", "names 'orbit', which is no source: did you mean 'orbits'"),
        ("pairs", "'pairs' is not a name and a number"),
        ("pairs:0.0,orbits:1", "the share of 'pairs' must be above 0"),
        ("pairs:0.99,orbits:0.01", "has no row for source 'orbits'"),
    ],
)
def test_a_mistake_in_the_shares_is_named(shares, message):
    with pytest.raises(ValueError, match=message):
        build(shares=shares)


def test_a_mistake_in_a_source_names_the_source():
    with pytest.raises(ValueError, match=r"config\.data\.sources\.pairs: there is no stream 'orbits'"):
        build(sources={"pairs": OPTIONS | {"stream": "orbits"}, "orbits": OPTIONS})


def test_sources_whose_rows_differ_in_shape_cannot_share_a_batch():
    mixed = build(sources={"pairs": OPTIONS, "orbits": OPTIONS | {"stream": "orbit", "context_window": 2}})
    with pytest.raises(ValueError, match="'pairs' and 'orbits' cannot share a batch"):
        jax.eval_shape(lambda rows: mixed.gather(mixed.tables, rows, jax.random.key(0), True), mixed.indices(0))


def test_the_config_mixes_arc_and_programs():
    config = main.load_config("configs/lejepa_programs.py:tiny,mixture")
    source = mixture.build(seed=0, batch_size=16, cache_dir=config.cache_dir, **keywords(config.data))
    batch = jax.eval_shape(lambda rows: source.gather(source.tables, rows, jax.random.key(0), True), source.indices(0))
    assert batch.context["size"].shape == (16, 3, 2)
    assert next(iter(source.validation)) == "arc" and "orbits_families" in source.validation


def test_the_contrastive_config_learns_from_programs():
    config = main.load_config("configs/infonce_programs.py:tiny")
    built = parts.build(config)
    rows = curriculum.rows(built.source, 0, 2)
    dispatch = train.make_dispatch(config, built)
    state, measured = jax.eval_shape(dispatch, jax.eval_shape(built.init), built.source.tables, rows)
    assert measured["loss/infonce"].shape == (2,) and state.objective_state["queue"].embeddings.shape == (24, 8)
