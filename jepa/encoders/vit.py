"""Vision transformer (Dosovitskiy et al., arXiv:2010.11929) with register tokens (arXiv:2309.16588) and drop path.

It sees {"image": [..., H, W, C]}, uint8 or float32 in [0, 1], of any size that whole patches fill: positions are
interpolated. {"image": [B, V, H, W, C], "local": [B, v, h, w, C]} is V + v views of B images, the smaller ones last;
what they lack in tokens is masked.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jepa.modules import Block, LayerNorm, drop_path, masked_mean
from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Encoder, Observation, PyTree

POOLINGS = ("cls", "mean")
POSITIONS = ("learned", "sincos")


def patches(images: Array, size: int) -> Array:
    """[n, H, W, C] -> [n, H / size, W / size, size size C], in reading order. ValueError where patches do not fit."""
    num, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"images are {height} x {width} but encoder.patch {size} must divide both")
    rows, columns = height // size, width // size
    split = images.reshape(num, rows, size, columns, size, channels).swapaxes(2, 3)
    return split.reshape(num, rows, columns, size * size * channels)


def sincos(side: int, dim: int) -> np.ndarray:
    """Fixed positions float32 [side, side, dim]: sines and cosines of rows, then of columns; MoCo v3, 2104.02057."""
    frequencies = 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))
    angles = np.arange(side)[:, None] * frequencies[None]
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, dim / 2]
    shape = (side, side, dim // 2)
    both = [np.broadcast_to(one[:, None], shape), np.broadcast_to(one[None], shape)]
    return np.concatenate(both, axis=-1).astype(np.float32)


class ImageTokens(nn.Module):
    """Images [n, H, W, C] -> float32 tokens [n, N, dim] after a last LayerNorm: [CLS] and then patches."""

    dim: int
    depth: int
    num_heads: int
    patch: int
    side: int  # patches along a side of the images that positions are given for
    positions: str
    num_registers: int
    drop_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array, key: Array | None = None) -> Array:
        x = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(patches(2.0 * x - 1.0, self.patch))
        x = x + self.position(x.shape[1:3]).astype(self.dtype)[None]
        x = x.reshape(len(x), -1, self.dim)
        extra = self.param(
            "extra", nn.initializers.normal(0.02), (1 + self.num_registers, self.dim)
        )  # [CLS], registers
        x = jnp.concatenate([jnp.broadcast_to(extra.astype(self.dtype)[None], (len(x), *extra.shape)), x], axis=1)
        mask = jnp.ones(x.shape[:2], bool)
        for layer in range(self.depth):
            x = Block(self.num_heads, dtype=self.dtype)(x, mask, kept=self.kept(key, layer, len(x)))
        x = jnp.concatenate([x[:, :1], x[:, 1 + self.num_registers :]], axis=1)
        return LayerNorm(dtype=self.dtype)(x).astype(jnp.float32)

    def position(self, shape: tuple[int, int]) -> Array:
        """[rows, columns, dim], interpolated where the image has another number of patches."""
        table = sincos(self.side, self.dim)
        if self.positions == "learned":
            table = self.param("positions", nn.initializers.normal(0.02), table.shape)
        return table if table.shape[:2] == shape else jax.image.resize(table, (*shape, self.dim), "linear")

    def kept(self, key: Array | None, layer: int, num: int) -> Array | None:
        """Factors of the two branches of a block, per image; the rate rises linearly with depth. None without a key."""
        rate = self.drop_rate * layer / max(1, self.depth - 1)
        if key is None or not rate:
            return None
        return drop_path(jax.random.fold_in(key, layer), (2, num, 1, 1), rate, self.dtype)


class Pool(nn.Module):
    """[CLS], or the mean of the patches, and a linear map to `width`: tokens [..., N, D] -> float32 [..., width].

    The map is last: a normalisation there would make a Gaussianity test on the result inert.
    """

    width: int
    pooling: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        one = tokens[..., 0, :] if self.pooling == "cls" else masked_mean(tokens[..., 1:, :], mask[..., 1:])
        return nn.Dense(self.width, dtype=self.dtype, name="out")(one).astype(jnp.float32)


def build(
    *,
    dim: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    size: int = 16,
    patch: int = 4,
    width: int = 64,
    positions: str = "learned",
    num_registers: int = 0,
    pooling: str = "cls",
    drop_rate: float = 0.0,
    compute_dtype: str = "float32",
) -> Encoder:
    """An encoder of images; `pooled` is [..., width].

    size: of the images that the table of positions is made for. positions: "learned" or "sincos".
    pooling: "cls" reads the [CLS] token, "mean" the mean of the patches.
    drop_rate: in training, the probability with which an image skips a branch of the last block.
    """
    for name, value, known in (("pooling", pooling, POOLINGS), ("positions", positions, POSITIONS)):
        if value not in known:
            raise ValueError(f"encoder.{name} is {value!r}; it must be one of {list(known)}")
    if dim % num_heads or dim % 4:
        raise ValueError(f"encoder.dim {dim} must be a multiple of 4 and of encoder.num_heads {num_heads}")
    if size % patch:
        raise ValueError(f"encoder.patch {patch} must divide encoder.size {size}")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"encoder.drop_rate is {drop_rate}; it must lie in [0, 1)")
    dtype = resolve_dtype(compute_dtype)
    module = ImageTokens(dim, depth, num_heads, patch, size // patch, positions, num_registers, drop_rate, dtype)
    pool_module = Pool(width, pooling, dtype)

    def fold(params: PyTree, images: Array, key: Array | None) -> Array:
        # Leading axes become one: under vmap, JAX 0.10.2 compiles the gradient of a LayerNorm wrongly for a CPU.
        lead = images.shape[:-3]
        tokens = module.apply({"params": params}, images.reshape(math.prod(lead), *images.shape[-3:]), key)
        return tokens.reshape(*lead, *tokens.shape[1:])

    def embed(params: PyTree, observation: Observation, key: Array | None = None) -> tuple[Array, Array]:
        if "image" not in observation:
            raise ValueError("encoder 'vit' sees images, and these data are object tables: use encoder.name 'objects'")
        tokens = fold(params, observation["image"], key)
        mask = jnp.ones(tokens.shape[:-1], bool)
        if "local" not in observation:
            return tokens, mask
        local = fold(params, observation["local"], None if key is None else jax.random.fold_in(key, depth))
        missing = tokens.shape[-2] - local.shape[-2]
        padded = jnp.pad(local, ((0, 0), (0, 0), (0, missing), (0, 0)))
        real = jnp.broadcast_to((jnp.arange(tokens.shape[-2]) < local.shape[-2])[None, None], padded.shape[:-1])
        return jnp.concatenate([tokens, padded], axis=1), jnp.concatenate([mask, real], axis=1)

    def init(key: Array, observation: Observation) -> PyTree:
        example = observation["image"].reshape(-1, *observation["image"].shape[-3:])[:1]
        params = module.init(key, example)["params"]
        return params | pool_module.init(key, *embed(params, {"image": example}))["params"]

    def pool(params: PyTree, tokens: Array, mask: Array) -> Array:
        return pool_module.apply({"params": params}, tokens, mask)

    return Encoder(init, embed, pool, embed if drop_rate else None)
