"""The encoder of images: its windows are those of a convolution, and it sees where things are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import registry
from jepa.encoders.conv import windows

IMAGE = jax.random.normal(jax.random.key(0), (2, 13, 11, 3))


@pytest.mark.parametrize("side,stride", [(3, 1), (3, 2), (5, 5), (2, 2), (1, 3)])
def test_a_linear_map_of_windows_is_a_convolution(side, stride):
    kernel = jax.random.normal(jax.random.key(1), (side, side, 3, 4))
    mapped = jax.jit(lambda x: windows(x, side, stride) @ kernel.reshape(-1, 4))(IMAGE)
    true = jax.jit(
        lambda x: jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )(IMAGE)
    np.testing.assert_allclose(mapped, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [0, 4])
def test_a_spot_is_told_from_its_neighbour(patch):
    """Also where both lie within one square."""
    encoder = registry.build("encoders", "conv", dim=8, channels=(6, 6), patch=patch)
    spots = jnp.eye(12 * 12).reshape(144, 12, 12, 1)
    params = jax.jit(encoder.init)(jax.random.key(1), {"image": spots})
    z = np.asarray(jax.jit(encoder.apply)(params, {"image": spots}).pooled)
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1) + np.eye(len(z))
    assert apart.min() > 1e-4


def test_a_scale_is_that_of_the_channels():
    plain, scaled = (registry.build("encoders", "conv", dim=8, channels=(6,), scale=s) for s in ((), (2.0, 1.0, 0.5)))
    params = jax.jit(plain.init)(jax.random.key(1), {"image": IMAGE})
    given = {"image": IMAGE * jnp.array([2.0, 1.0, 0.5])[None, None, None]}
    z = jax.jit(scaled.apply)(params, {"image": IMAGE}).pooled
    np.testing.assert_allclose(z, jax.jit(plain.apply)(params, given).pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"channels": ()}, {"patch": -1}, {"scale": (1.0, 0.0)}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=f"encoder.{next(iter(options))} is"):
        registry.build("encoders", "conv", **options)
