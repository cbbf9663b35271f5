"""Two rooms: no step passes a wall, the door is open, and pictures show where the agent is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import two_rooms as world

LAYOUT = jnp.array([32.0, 20.0])


@pytest.fixture(scope="module")
def episodes():
    keys = jax.random.split(jax.random.key(0), 4000)
    return jax.jit(jax.vmap(lambda key: world.episode(key, 16, 0.35)))(keys)


def test_the_agent_is_never_in_a_wall(episodes):
    layouts = episodes.layout[:, None]
    assert bool(jnp.all(world.free(episodes.positions, layouts)))


def test_an_episode_is_what_its_actions_do(episodes):
    follow = jax.jit(jax.vmap(world.follow))
    np.testing.assert_allclose(
        follow(episodes.positions[:, 0], episodes.actions, episodes.layout), episodes.positions, atol=2e-3
    )


def test_steps_have_the_lengths_they_should(episodes):
    length = np.linalg.norm(episodes.actions, axis=-1)
    assert length.max() < 1.8 + 1e-4
    assert length.mean() == pytest.approx(1.0, abs=0.03)


def test_a_third_and_more_pass_the_door(episodes):
    side = np.sign(np.asarray(episodes.positions[..., 0] - episodes.layout[:, None, 0]))
    share = np.mean(side[:, 0] != side[:, -1])
    assert 0.3 < share < 0.5
    none = jax.jit(jax.vmap(lambda key: world.episode(key, 16, 0.0)))(jax.random.split(jax.random.key(1), 2000))
    side = np.sign(np.asarray(none.positions[..., 0] - none.layout[:, None, 0]))
    assert np.mean(side[:, 0] != side[:, -1]) < 0.05


def test_layouts_cover_their_range(episodes):
    layouts = np.asarray(episodes.layout)
    assert (layouts.min(0), layouts.max(0)) == (pytest.approx((20, 10)), pytest.approx((44, 54)))


@pytest.mark.parametrize(
    ("start", "step", "end"),
    [
        ((20.0, 40.0), (2.0, 1.0), (22.0, 41.0)),  # nothing in the way
        ((30.0, 40.0), (2.0, 0.0), (31 - world.MARGIN, 40.0)),  # the wall
        ((34.0, 40.0), (-2.0, 0.0), (33 + world.MARGIN, 40.0)),  # from the other side
        ((30.5, 20.0), (2.0, 0.0), (32.5, 20.0)),  # the door
        ((32.0, 22.0), (0.0, 2.4), (32.0, 24 - world.MARGIN)),  # its jamb
        ((5.0, 30.0), (-2.0, 0.0), (4 + world.MARGIN, 30.0)),  # a border
        ((5.0, 59.0), (-2.0, 2.0), (5 - 1 + world.MARGIN / 2**0.5, 60 - world.MARGIN / 2**0.5)),  # a corner
        ((20.0, 40.0), (0.0, 0.0), (20.0, 40.0)),
    ],
)
def test_a_step_ends_before_what_it_meets(start, step, end):
    there = world.move(jnp.array(start), jnp.array(step), LAYOUT)
    np.testing.assert_allclose(there, end, atol=1e-4)
    assert bool(world.free(there, LAYOUT))


def test_no_walk_gets_stuck_in_or_through_a_wall():
    """Large random steps from everywhere, along all directions, twice: what lies between is free as well."""
    rng = np.random.default_rng(0)
    places = jnp.array(rng.uniform(4.1, 59.9, (20000, 2)), jnp.float32)
    places = places[world.free(places, LAYOUT)]
    for _ in range(2):
        angle = rng.uniform(0, 2 * np.pi, len(places))
        steps = world.LONGEST * jnp.array(np.stack([np.cos(angle), np.sin(angle)], 1), jnp.float32)
        there = world.move(places, steps, LAYOUT)
        between = places[None] + jnp.linspace(0, 1, 30)[:, None, None] * (there - places)[None]
        assert bool(jnp.all(world.free(between, LAYOUT)))
        places = there


def test_one_step_is_the_same_in_a_batch_and_under_jit():
    places = jnp.array([[10.0, 10.0], [30.0, 40.0]])
    step = jnp.array([2.0, 0.5])
    together = jax.jit(world.move)(places, step, LAYOUT)
    for place, there in zip(places, together, strict=True):
        np.testing.assert_array_equal(world.move(place, step, LAYOUT), there)


def test_a_picture_shows_the_agent_and_the_walls():
    image = np.asarray(world.render(jnp.array([12.0, 50.0]), LAYOUT))
    assert image.shape == (65, 65, 2) and image.min() >= 0 and image.max() == 1
    assert np.unravel_index(image[..., 0].argmax(), (65, 65)) == (50, 12)
    walls = image[..., 1]
    assert walls[4].all() and walls[60].all() and walls[:, 4].all() and walls[:, 60].all()
    assert walls[40, 31:34].all() and not walls[40, 30] and not walls[40, 34] and not walls[16:25, 31:34].any()


def test_a_place_in_a_room_is_there():
    keys = jax.random.split(jax.random.key(2), 500)
    for side in (0, 1):
        places = jax.vmap(lambda key, side=side: world.draw_position(key, LAYOUT, jnp.int32(side)))(keys)
        assert bool(jnp.all((places[:, 0] > LAYOUT[0]) == bool(side)))
        assert bool(jnp.all(world.free(places, LAYOUT)))
        assert float(jnp.abs(places[:, 0] - LAYOUT[0]).min()) > 1 + 2 * world.SPOT - 1e-4
