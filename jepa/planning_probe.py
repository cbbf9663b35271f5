"""Does a world model know the way: tasks in two rooms, solved by planning with it, beside those who cannot see.

Every run is given the same tasks, each from one room to the other, so that none is solved at the start. The model sees
pictures alone: of where the agent is and of the goal. Beside the planners stand steps at random, no step, an oracle
that knows the door, and the same planners in the true world, by the true distance: a wall in the way stops them too.
Intervals are Wilson's, over the tasks; differences to random steps are paired.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa import navigation, planning, two_rooms
from jepa.bootstrap import Outcome, paired_difference, resampled, resamples, scored
from jepa.data import _progress
from jepa.dynamics import WorldModel
from jepa.navigation import Policy, Tasks
from jepa.planning import Cost, Planner
from jepa.registry import nearest
from jepa.types import Array, PyTree

FLOORS = {"random": navigation.at_random, "still": navigation.still, "oracle": navigation.oracle}
SEED = 0  # of the tasks, and of what is drawn in solving them
STRETCH = 10  # steps between two looks at how far it is


class Options(NamedTuple):
    """methods: of `jepa.planning`, each asked in turn. num_tasks, num_steps: how many, and the steps allowed.
    every_step: the cost counts the distance to the goal at every step of a plan, or else at its last. planner: the
    rest, whose method is one of `methods`."""

    methods: tuple[str, ...] = planning.METHODS
    num_tasks: int = 100
    num_steps: int = navigation.STEPS
    every_step: bool = True
    planner: Planner = Planner()


def options_of(section: Mapping[str, Any]) -> Options:
    """The options of `config.planning`; what is not in it is as above and in `Planner`. Raises ValueError naming the
    key that is unknown or out of its range."""
    own = {name for name in Options._fields if name != "planner"}
    known = sorted(own | set(Planner._fields) - {"method"})
    for key in section:
        if key not in known:
            raise ValueError(f"config.planning.{key} is read by nothing: {nearest(key, known)}")
    options = Options(**{key: value for key, value in section.items() if key in own})
    options = options._replace(
        methods=tuple(options.methods), planner=Planner(**{k: v for k, v in section.items() if k not in own})
    )
    for name in ("num_tasks", "num_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"config.planning.{name} is {getattr(options, name)}; it must be at least 1")
    if not options.methods:
        raise ValueError(f"config.planning.methods is empty; it names some of {', '.join(planning.METHODS)}")
    for method in options.methods:
        try:
            planning.check(options.planner._replace(method=method))
        except ValueError as error:
            raise ValueError(f"config.planning: {error}") from error
    return options


def cost_of(world: WorldModel, params: PyTree, state: PyTree, *, every_step: bool) -> Callable[[Array, Tasks], Cost]:
    """What a sequence of actions costs, as the model imagines it from a picture of here to a picture of the goal."""

    def see(position: Array, tasks: Tasks) -> Any:
        return world.see(params, state, {"image": two_rooms.render(position, tasks.layout)})

    def of(position: Array, tasks: Tasks) -> Cost:
        imagine = functools.partial(world.imagine, params)
        return planning.distance_to_goal(imagine, see(position, tasks), see(tasks.goal, tasks), every_step=every_step)

    return of


def walk(policy_of: Callable[..., Policy], weights: PyTree, tasks: Tasks, num_steps: int, name: str) -> np.ndarray:
    """Where each agent was, [k + 1, N, 2]: up to `num_steps`, or until all have been at their goals. policy_of: of the
    weights, so that they are arguments of the compiled program."""

    @jax.jit
    def advance(weights: PyTree, tasks: Tasks, now: navigation.Now, keys: Array) -> tuple[navigation.Now, Array]:
        return navigation.advance(policy_of(*weights), tasks, now, keys)

    now, seen = navigation.begin(policy_of(*weights), tasks), [np.asarray(tasks.start)[None]]
    keys = jax.random.split(jax.random.key(SEED + 1), num_steps)
    with _progress.bar(f"planning, {name}") as bar:
        task = bar.add_task(name, total=num_steps)
        for start in range(0, num_steps, STRETCH):
            now, positions = advance(weights, tasks, now, keys[start : start + STRETCH])
            seen.append(np.asarray(positions))
            bar.advance(task, len(positions))
            if np.all(navigation.arrival(np.concatenate(seen), tasks) >= 0):
                break
    return np.concatenate(seen)


def evaluate(world: WorldModel, params: PyTree, state: PyTree, options: Options) -> dict[str, Any]:
    """How often each planner and each floor gets to the goal, as JSON-able rows; `rows` makes them readable.

    A row's `score` is the share of tasks solved, with its interval; `steps` the median number of steps of those,
    `nearest` the mean of the smallest distances to the goal, in pixels.
    """
    tasks = jax.jit(navigation.draw, static_argnums=1)(jax.random.key(SEED), options.num_tasks)

    def planned(planner: Planner, params: PyTree, state: PyTree) -> Policy:
        return navigation.planned(planner, cost_of(world, params, state, every_step=options.every_step))

    asked: dict[str, tuple[Callable[..., Policy], PyTree]] = {name: (floor, ()) for name, floor in FLOORS.items()}
    true_cost = functools.partial(navigation.true_cost, every_step=options.every_step)
    for method in options.methods:
        planner = options.planner._replace(method=method)
        asked[method] = (functools.partial(planned, planner), (params, state))
        asked[f"{method} in the true world"] = (functools.partial(navigation.planned, planner, true_cost), ())
    found, outcomes = [], {}
    for name, (policy_of, weights) in asked.items():
        began = time.perf_counter()
        positions = walk(policy_of, weights, tasks, options.num_steps, name)
        found.append(row(name, positions, tasks))
        if name in options.methods:
            print(
                f"planning by {name}: {found[-1]['score']:.0%} of {options.num_tasks} tasks within "
                f"{options.num_steps} steps; {time.perf_counter() - began:.0f} s"
            )
        reached = navigation.arrival(positions, tasks) >= 0
        outcomes[name] = Outcome(reached.astype(np.float64), np.arange(options.num_tasks))
    planner = {name: value for name, value in options.planner._asdict().items() if name != "method"}
    weights = resamples(outcomes["random"].groups)
    random = scored(outcomes["random"], weights)
    for line in found:
        if line["probe"] in options.methods:
            line["over_random"] = paired_difference(scored(outcomes[line["probe"]], weights), random)
    return {
        "seed": SEED,
        "num_tasks": {"two_rooms": options.num_tasks},
        "options": options._replace(planner=planner)._asdict(),
        "rows": found,
        "resampled": {name: resampled(outcome) for name, outcome in outcomes.items()},
    }


def row(name: str, positions: np.ndarray, tasks: Tasks) -> dict[str, Any]:
    """One policy, from where its agents were."""
    arrived = navigation.arrival(positions, tasks)
    nearest = np.min(navigation.distances(positions, tasks), axis=0)
    steps = float(np.median(arrived[arrived >= 0])) if np.any(arrived >= 0) else None
    return {"probe": name, **navigation.success(arrived >= 0), "steps": steps, "nearest": float(np.mean(nearest))}


def rows(result: Mapping[str, Any]) -> list[dict[str, float | str]]:
    """`evaluate`'s result for a person, a row for each policy."""
    lines = []
    for found in result["rows"]:
        line = {
            "policy": found["probe"],
            "solved": found["score"],
            "95 %": f"[{found['low']:.3f}, {found['high']:.3f}]",
        }
        line |= {"steps": "" if found["steps"] is None else found["steps"], "nearest, pixels": found["nearest"]}
        if "over_random" in found:
            over = found["over_random"]
            line["over random"] = f"{over['difference']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]"
        lines.append(line)
    return lines
