"""Quantizers agree with vector-quantize-pytorch (golden/quantizers.npz): integers exactly, floats to 1e-5."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.quantizers import fsq, gumbel, vq_ema, vq_gradient
from jepa.quantizers._codebook import kmeans, rotate, unit

# vector-quantize-pytorch 1.31.0 in float32. Its inputs keep away from ties, so an index that differs is a fault.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "quantizers.npz"))
KEY = jax.random.key(0)
EMA = dict(num_codes=32, decay=0.9, commitment=0.25, refresh="none", smoothing=1e-5)

compiled = pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])


def golden(case, *keys):
    return tuple(jnp.asarray(GOLDEN[f"{case}_{key}"]) for key in keys)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def same(actual, expected):
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)


def ema_state(case):
    codebook, counts = golden(case, "init_embed", "init_cluster_size")
    return {"codebook": codebook, "counts": counts, "sums": codebook * counts[:, None], "calls": jnp.int32(0)}


def ema_step(quantizer, wrap):
    """(state, x, mask, cotangent) -> Quantized, the state after, and the gradients of the values and of the loss."""

    @wrap
    def step(state, x, mask, cotangent):
        def apply(x):
            out = quantizer.apply({}, state, x, mask, key=KEY, train=True)
            return (out.values, out.loss), out

        _, pull, out = jax.vjp(apply, x, has_aux=True)
        after = quantizer.update({}, state, x, mask, out.codes, key=KEY)
        return out, after, pull((cotangent, jnp.float32(0)))[0], pull((jnp.zeros_like(x), jnp.float32(1)))[0]

    return step


# ---------------------------------------------------------------- moving averages


@compiled
@pytest.mark.parametrize("case", ["vqeuc", "vqcos"])
def test_three_masked_steps_of_moving_averages(case, wrap):
    distance = "cosine" if case == "vqcos" else "euclidean"
    step, state = ema_step(vq_ema.build(**EMA, distance=distance), wrap), ema_state(case)
    steps = golden(case, "x", "mask", "indices", "loss", "post_embed", "post_cluster_size")
    for t, (x, mask, codes, loss, codebook, counts) in enumerate(zip(*steps, strict=True)):
        cotangent = GOLDEN["vqcos_cot"] if case == "vqcos" else jnp.zeros_like(x)
        out, after, from_values, from_loss = step(state, x, mask, cotangent)
        same(out.codes, codes)
        close(out.values, np.where(mask[..., None], state["codebook"][codes], 0.0))
        close(out.loss, loss)
        if t == 0 and case == "vqcos":
            close(from_values, GOLDEN["vqcos_grad_x_from_cot"])
        elif t == 0:
            close(from_loss, GOLDEN["vqeuc_grad_x_from_loss"])
        close(after["codebook"], codebook)
        close(after["counts"], counts)
        state = after
    if case == "vqcos":  # only the codebook is put back on the sphere
        close(state["sums"], GOLDEN["vqcos_post_embed_avg"])


@compiled
def test_a_step_with_the_rotation_trick(wrap):
    x, mask, codes, cotangent, gradient = golden("vqrot", "x", "mask", "indices", "cot", "grad_x_from_cot")
    state = ema_state("vqrot")
    out, _, from_values, _ = ema_step(vq_ema.build(**EMA, rotation=True), wrap)(state, x, mask, cotangent)
    same(out.codes, codes)
    close(out.values, np.where(mask[..., None], state["codebook"][codes], 0.0))
    close(from_values, gradient)


@compiled
def test_rotation_of_collinear_unrelated_and_orthogonal_pairs(wrap):
    source, target, cotangent, gradient = golden("rot", "src", "tgt", "cot", "grad_src")
    out, pull = jax.vjp(wrap(rotate), source, target)
    close(out, target)
    from_source, from_target = pull(cotangent)
    close(from_source, gradient)
    np.testing.assert_array_equal(from_target, 0.0)


@compiled
def test_expired_codes_take_the_given_rows_in_order(wrap):
    x, mask, codes, chosen, codebook, counts = golden(
        "expire", "x", "mask", "indices", "rows", "post_embed", "post_cluster_size"
    )
    out, after, *_ = ema_step(vq_ema.build(**EMA), wrap)(ema_state("expire"), x, mask, jnp.zeros_like(x))
    same(out.codes, codes)
    dead = np.asarray(after["counts"]) < 1.0
    assert dead.sum() == len(chosen)
    rows = np.full((EMA["num_codes"], x.shape[-1]), 1e6, np.float32)  # what is beyond the dead codes is never taken
    rows[: len(chosen)] = np.asarray(x)[np.asarray(mask)][chosen]
    expired = wrap(lambda state, rows: vq_ema.expire(state, rows, threshold=1.0, count=1.0))(after, jnp.asarray(rows))
    close(expired["codebook"], codebook)
    close(expired["counts"], counts)
    close(expired["sums"], np.where(dead[:, None], codebook, after["sums"]))


@compiled
@pytest.mark.parametrize("case", ["kmeans", "kmeanscos"])
def test_kmeans(case, wrap):
    samples, first = golden(case, "samples", "init_rows")
    cosine = case == "kmeanscos"
    rows = unit(samples) if cosine else samples

    @wrap
    def run(rows, real):
        return kmeans(rows, real, rows[first], num_steps=5, cosine=cosine)

    means, counts = run(rows, jnp.ones(len(rows), bool))
    close(means, GOLDEN[f"{case}_means"])
    np.testing.assert_array_equal(counts, GOLDEN[f"{case}_bins"])


# ---------------------------------------------------------------- a codebook learned by gradient


@compiled
def test_the_loss_of_the_paper_and_its_gradients(wrap):
    x, mask, codebook, codes, error, d_x, d_codebook = golden(
        "learn", "x", "mask", "embed", "indices", "paper_codebook_loss", "paper_grad_x", "paper_grad_embed"
    )
    quantizer = vq_gradient.build(num_codes=32, commitment=0.25, codebook_weight=1.0)

    def loss(params, x):
        out = quantizer.apply(params, {}, x, mask, key=KEY, train=True)
        return out.loss, out

    gradient = wrap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, out), found = gradient({"codebook": codebook}, x)
    same(out.codes, codes)
    close(out.values, np.where(mask[..., None], codebook[codes], 0.0))
    close(value, (1.0 + 0.25) * error)  # the two halves differ in their gradients only
    close(found[0]["codebook"], d_codebook)
    close(found[1], d_x)


# ---------------------------------------------------------------- finite scalars


@compiled
@pytest.mark.parametrize(("case", "levels"), [("fsq8555", (8, 5, 5, 5)), ("fsq865", (8, 6, 5))])
def test_finite_scalars_and_their_gradient(case, levels, wrap):
    z, cotangent = golden(case, "z", "cot")

    def quantize(z):
        symbols, values = fsq.round_to_levels(z, levels)
        return values, fsq.pack(symbols, levels)

    values, pull, codes = jax.vjp(wrap(quantize), z, has_aux=True)
    same(codes, GOLDEN[f"{case}_indices"])
    close(values, GOLDEN[f"{case}_codes"])
    close(pull(cotangent)[0], GOLDEN[f"{case}_grad_z"])


@compiled
def test_finite_scalars_between_two_projections(wrap):
    levels = (8, 5, 5, 5)
    x, cotangent, *weights = golden("fsqproj", "x", "cot", "w_in", "b_in", "w_out", "b_out")

    def quantize(x, w_in, b_in, w_out, b_out):
        symbols, values = fsq.round_to_levels(x @ w_in.T + b_in[None, None], levels)
        return values @ w_out.T + b_out[None, None], fsq.pack(symbols, levels)

    out, pull, codes = jax.vjp(wrap(quantize), x, *weights, has_aux=True)
    same(codes, GOLDEN["fsqproj_indices"])
    close(out, GOLDEN["fsqproj_out"])
    for found, name in zip(pull(cotangent), ("x", "w_in", "b_in", "w_out", "b_out"), strict=True):
        close(found, GOLDEN[f"fsqproj_grad_{name}"])


# ---------------------------------------------------------------- Gumbel-softmax with given noise


@compiled
@pytest.mark.parametrize(("case", "given", "tau"), [("gumt10", "logits", 1.0), ("gumdistt05", "x", 0.5)])
def test_gumbel_softmax_with_given_noise(case, given, tau, wrap):
    x, codebook, noise, cotangent = golden(case, given, "embed", "noise", "cot")

    def scores(x, codebook):
        return x if given == "logits" else -gumbel.squared_distances(x, codebook)

    def soft(x, codebook):
        return gumbel.soft_assignment(scores(x, codebook), noise, tau) @ codebook

    def hard(x, codebook):
        score = scores(x, codebook)
        codes = jnp.argmax(score + noise, axis=-1).astype(jnp.int32)
        values = gumbel.hard_values(codebook, codes, gumbel.soft_assignment(score, noise, tau))
        return values, (codes, jnp.argmax(score, axis=-1).astype(jnp.int32))

    value, pull = jax.vjp(wrap(soft), x, codebook)
    close(value, GOLDEN[f"{case}_z_soft"])
    soft_gradients = pull(cotangent)
    close(soft_gradients[0], GOLDEN[f"{case}_soft_grad_{given}"])

    value, pull, (drawn, most_probable) = jax.vjp(wrap(hard), x, codebook, has_aux=True)
    same(drawn, GOLDEN[f"{case}_idx_sampled"])
    same(most_probable, GOLDEN[f"{case}_idx_inference"])
    np.testing.assert_array_equal(value, codebook[drawn])
    hard_gradients = pull(cotangent)
    close(hard_gradients[0], GOLDEN[f"{case}_soft_grad_{given}"])  # the hard value has the gradient of the soft one
    if given == "x":
        close(soft_gradients[1], GOLDEN[f"{case}_soft_grad_embed"])
        close(hard_gradients[1], GOLDEN[f"{case}_hard_grad_embed"])
    else:
        one_hot = np.eye(len(codebook), dtype=np.float32)[np.asarray(drawn)]
        close(hard_gradients[1], one_hot.T @ cotangent)
