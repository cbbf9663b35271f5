"""The normalisation policy of a latent world model: what becomes of z before anybody reads it.

A prediction error that compares unit vectors does not care how long z is, so the encoder's output drifts; normalising
the encoder's output alone leaves the predicted z as it is, and a decoder trained on the one is shown the other. A
policy is one object through which every z passes, encoded or predicted. What has passed is a `Latent`, and the
dynamics, the loss, the decoder, the planner and the probes take nothing else.

    none       z as it is
    loss_only  z as it is; the prediction error compares directions. A control: nothing holds the length
    global     z sqrt(D) / |z|: of the length that N(0, I) has, where SIGReg is at home, and not 1, where it is inert
    anchor     z as it is; the term `norm_anchor` pulls its length to a target
    encoder_only  a deliberate mistake, as a control: what the encoder makes is scaled and what is predicted is not,
        whose length nothing holds, since the prediction error compares directions
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa.losses.norm_anchor import norm_anchor
from jepa.losses.prediction import squared_error, unit
from jepa.types import Array

POLICIES = ("none", "loss_only", "global", "anchor", "encoder_only")


class Latent(NamedTuple):
    """z as everybody sees it. Made by a `LatentNorm` alone (a test holds that), so that an array which has not been
    through the policy is not one. `at` indexes it."""

    value: Array  # [..., D]


def at(latent: Latent, index: int | slice | Array) -> Latent:
    """z of one time step, or of some, of [B, T, D]."""
    return jax.tree.map(lambda leaf: leaf[:, index], latent)


class LatentNorm(NamedTuple):
    """A policy.

    encoded(z) -> what an encoder made, as everybody sees it
    predicted(z) -> what a transition made, as everybody sees it; the same function, but in the control
    error(z_hat, z) -> squared distance per dimension of two latents, float32 [...]
    anchor(z) -> relative squared distance of the length from its target, float32 [...]: zero there, radial, and it
    vanishes at no other length but 0
    """

    name: str
    encoded: Callable[[Array], Latent]
    predicted: Callable[[Array], Latent]
    error: Callable[[Latent, Latent], Array]
    anchor: Callable[[Latent], Array]


def described(policy: str, target_norm: float | None) -> str:
    """A policy in words, such as `'anchor' with target_norm 4`."""
    return repr(policy) if target_norm is None else f"{policy!r} with target_norm {target_norm:g}"


def build(policy: str, *, target_norm: float | None = None) -> LatentNorm:
    """The policy of this name. target_norm: of `anchor`; None is sqrt(D).

    Under `loss_only`, and in the control, the error is that of vectors of length sqrt(D), |z_hat/|z_hat| - z/|z||^2, so
    that all policies weigh it alike against SIGReg.
    """
    if policy not in POLICIES:
        raise ValueError(f"the normalisation policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    if target_norm is not None and policy != "anchor":
        raise ValueError(f"a target norm of {target_norm:g} is for the policy 'anchor', and this is {policy!r}")

    def see(z: Array, is_scaled: bool) -> Latent:
        return Latent(scaled(z) if is_scaled else z)

    def error(z_hat: Latent, z: Latent) -> Array:
        of = scaled if policy in ("loss_only", "encoder_only") else jnp.asarray
        return squared_error(of(z_hat.value), of(z.value))

    def anchor(z: Latent) -> Array:
        return norm_anchor(z.value, target=target_norm, relative=True)

    encoded = functools.partial(see, is_scaled=policy in ("global", "encoder_only"))
    predicted = functools.partial(see, is_scaled=policy == "global")
    return LatentNorm(policy, encoded, predicted, error, anchor)


def scaled(z: Array) -> Array:
    """z sqrt(D) / |z|: the direction of z at the length of N(0, I) in D dimensions, float32."""
    return unit(z) * z.shape[-1] ** 0.5
