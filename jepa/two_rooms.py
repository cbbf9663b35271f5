"""Two rooms: a point agent, a wall with a door between them, and actions that are steps in the plane.

The geometry is that of the public benchmark (Sobal et al., PLDM, arXiv:2502.14819): images of 65 x 65 pixels with a
channel for the agent, a Gaussian spot, and one for the walls. Border lines run at pixel 4 and 60; the inner wall is 3
wide, its door 4 pixels to either side of its middle. A step that would cross a wall ends just before it. Positions are
(x, y) in pixels; a layout is (x of the wall, y of the door). All functions are pure and batched over leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa.types import Array

SIZE = 65
LOW, HIGH = 4.0, 60.0  # the borders
HALF_WALL, HALF_DOOR = 1.0, 4.0
SPOT = 1.3  # standard deviation of the agent's spot, in pixels
WALL_RANGE, DOOR_RANGE = (20, 44), (10, 54)  # where the wall and its door can be
MARGIN = 0.05  # pixels that are kept from a wall
SUCCESS = 4.5  # pixels from the goal
LONGEST = 2.45  # step that a planner may take
STEP_MEAN, STEP_STD, STEP_RANGE = 1.0, 0.4, (0.2, 1.8)
TURN = 0.2  # a step's angle varies about that of its trajectory by a von Mises distribution of this variance


class Episode(NamedTuple):
    """A trajectory: what the agent was shown is `render(positions, layout)`."""

    positions: Array  # [T + 1, 2]
    actions: Array  # [T, 2]: the steps that were tried
    layout: Array  # [2]


def free(position: Array, layout: Array) -> Array:
    """Whether the agent can be at a position, bool [...]: within the borders and not in the wall."""
    x, y = position[..., 0], position[..., 1]
    inside = (x > LOW) & (x < HIGH) & (y > LOW) & (y < HIGH)
    in_wall = (jnp.abs(x - layout[..., 0]) <= HALF_WALL) & (jnp.abs(y - layout[..., 1]) >= HALF_DOOR)
    return inside & ~in_wall


def move(position: Array, action: Array, layout: Array) -> Array:
    """Where a step leads: to position + action, or to just before the first wall on the way. [..., 2] each."""
    position, action, layout = jnp.broadcast_arrays(position, action, layout)
    x, y = position[..., 0], position[..., 1]
    wall, door = layout[..., 0], layout[..., 1]
    share = jnp.ones_like(x)
    for axis, at, of, start in (
        (0, LOW, None, x),
        (0, HIGH, None, x),
        (1, LOW, None, y),
        (1, HIGH, None, y),
        (0, wall - HALF_WALL, "face", x),
        (0, wall + HALF_WALL, "face", x),
        (1, door - HALF_DOOR, "jamb", y),
        (1, door + HALF_DOOR, "jamb", y),
    ):
        along = action[..., axis]
        safe = jnp.where(along == 0, 1.0, along)
        t = jnp.where(along == 0, jnp.inf, (at - start) / safe)  # when the line is reached
        crossing = (t >= 0) & (t <= 1)
        there = position + jnp.where(crossing, t, 0.0)[..., None] * action
        if of == "face":  # solid where the door is not
            crossing &= jnp.abs(there[..., 1] - door) > HALF_DOOR
        elif of == "jamb":  # solid within the wall
            crossing &= jnp.abs(there[..., 0] - wall) < HALF_WALL
        share = jnp.minimum(share, jnp.where(crossing, t, 1.0))
    length = jnp.linalg.norm(action, axis=-1)
    kept = jnp.where(share < 1, jnp.maximum(share - MARGIN / jnp.maximum(length, 1e-6), 0.0), 1.0)
    return position + kept[..., None] * action


def render(position: Array, layout: Array) -> Array:
    """Images [..., 65, 65, 2] in [0, 1], rows along y: the agent's spot and the walls."""
    spots = jnp.exp(-jnp.square(_pixels(position.ndim) - position[..., None]) / (2 * SPOT**2))  # [..., 2, 65]
    spot = spots[..., 1, :, None] * spots[..., 0, None, :]
    return jnp.stack([spot, jnp.broadcast_to(walls(layout), spot.shape)], axis=-1)


def walls(layout: Array) -> Array:
    """The channel of the walls, [..., 65, 65]."""
    pixels = _pixels(layout.ndim - 1)
    border = (pixels == LOW) | (pixels == HIGH)
    wall = jnp.abs(pixels - layout[..., :1]) <= HALF_WALL  # [..., 65] along x
    door = jnp.abs(pixels - layout[..., 1:]) <= HALF_DOOR  # along y
    inner = wall[..., None, :] & ~door[..., :, None]
    return (inner | border[..., :, None] | border[..., None, :]).astype(jnp.float32)


def _pixels(axes: int) -> Array:
    """0 to 64 along the last axis, after as many others."""
    return jnp.expand_dims(jnp.arange(SIZE, dtype=jnp.float32), range(axes))


def draw_layout(key: Array) -> Array:
    """A wall and a door anywhere, [2]."""
    keys = jax.random.split(key)
    return jnp.stack(
        [
            jax.random.randint(k, (), low, high + 1).astype(jnp.float32)
            for k, (low, high) in zip(keys, (WALL_RANGE, DOOR_RANGE), strict=True)
        ]
    )


def draw_position(key: Array, layout: Array, side: Array, margin: float = 2 * SPOT) -> Array:
    """A place in the room on one side of the wall, 0 or 1, `margin` pixels from what bounds it, [2]."""
    left = jnp.where(side == 0, LOW + margin, layout[0] + HALF_WALL + margin)
    right = jnp.where(side == 0, layout[0] - HALF_WALL - margin, HIGH - margin)
    u = jax.random.uniform(key, (2,))
    return jnp.stack([left + u[0] * (right - left), LOW + margin + u[1] * (HIGH - LOW - 2 * margin)])


def draw_steps(key: Array, num: int, angle: Array) -> Array:
    """Steps [num, 2] about a direction: lengths of a truncated normal distribution, angles that vary by `TURN`."""
    key_length, key_angle = jax.random.split(key)
    low, high = ((bound - STEP_MEAN) / STEP_STD for bound in STEP_RANGE)
    length = STEP_MEAN + STEP_STD * jax.random.truncated_normal(key_length, low, high, (num,))
    turned = angle + jnp.sqrt(TURN) * jax.random.normal(key_angle, (num,))
    return length[:, None] * jnp.stack([jnp.cos(turned), jnp.sin(turned)], axis=-1)


def follow(position: Array, actions: Array, layout: Array) -> Array:
    """Positions [T + 1, 2] of the agent that takes the steps [T, 2]."""

    def step(here: Array, action: Array) -> tuple[Array, Array]:
        there = move(here, action, layout)
        return there, there

    return jnp.concatenate([position[None], jax.lax.scan(step, position, actions)[1]])


def episode(key: Array, length: int, crossing_share: float) -> Episode:
    """A trajectory of `length` steps in a layout of its own, that starts anywhere and heads in one direction; the
    share `crossing_share` of them passes through the door."""
    keys = jax.random.split(key, 6)
    layout = draw_layout(keys[0])
    side = jax.random.bernoulli(keys[1]).astype(jnp.int32)
    start = draw_position(keys[2], layout, side, margin=2 * MARGIN)
    actions = draw_steps(keys[3], length, jax.random.uniform(keys[4], (), maxval=2 * jnp.pi))
    usual = Episode(follow(start, actions, layout), actions, layout)
    crossed = through_the_door(keys[5], length, layout)
    passes = jax.random.bernoulli(jax.random.fold_in(keys[5], 1), crossing_share)
    return jax.tree.map(lambda a, b: jnp.where(passes, a, b), crossed, usual)


def through_the_door(key: Array, length: int, layout: Array) -> Episode:
    """A trajectory that is in the door at some step: walked from there both ways, and the one half turned around."""
    keys = jax.random.split(key, 6)
    u = jax.random.uniform(keys[0], (2,), minval=-1.0)
    door = layout + u * jnp.array([HALF_WALL, HALF_DOOR - 2 * MARGIN])
    at = jax.random.randint(keys[1], (), 1, length)  # the step that ends in the door
    angle = jax.random.uniform(keys[2], (), minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    angle += jnp.pi * jax.random.bernoulli(keys[3])
    onward = draw_steps(keys[4], length, angle)
    back = draw_steps(keys[5], length, angle + jnp.pi)
    after, before = follow(door, onward, layout), follow(door, back, layout)
    steps = jnp.arange(length + 1)
    early = (steps < at)[:, None]
    positions = jnp.where(early, before[jnp.abs(at - steps)], after[jnp.maximum(steps - at, 0)])
    # A half that is turned around tries what it did; the other what it tried.
    moved = jnp.diff(positions, axis=0)
    actions = jnp.where(early[:-1], moved, onward[jnp.maximum(steps[:-1] - at, 0)])
    return Episode(positions, actions, layout)
