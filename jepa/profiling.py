"""The steps of a run that `--profile=first:last` traces."""

from __future__ import annotations

from pathlib import Path

import jax

from jepa.types import PyTree


def parse(profile: str | None, num_steps: int) -> tuple[int, int] | None:
    """`10:20` -> (10, 20). Raises ValueError for anything but two steps of the run in order."""
    if profile is None:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last) <= num_steps):
        raise ValueError(f"--profile is {profile!r}; it must be first:last, two steps up to {num_steps}, such as 10:20")
    return int(first), int(last)


def dispatches(traced: tuple[int, int], steps_per_call: int) -> tuple[int, int]:
    """The steps at which the first dispatch that holds a step to trace begins, and the last one ends."""
    return traced[0] // steps_per_call * steps_per_call, -(-traced[1] // steps_per_call) * steps_per_call


def trace(traced: tuple[int, int] | None, step: int, steps_per_call: int, workdir: Path, pending: PyTree) -> None:
    """Called between dispatches: starts and stops the profiler around those that hold the steps to trace.

    `pending` is what the last dispatch returns: it has to be there before the trace begins or ends.
    """
    if traced is None:
        return
    first, last = dispatches(traced, steps_per_call)
    if step in (first, last):
        jax.block_until_ready(pending)
    if step == first:
        jax.profiler.start_trace(str(workdir / "profile"))
    if step == last:
        jax.profiler.stop_trace()
        print(f"traced steps {first} to {last} into {workdir / 'profile'}")


def close(traced: tuple[int, int] | None, step: int, steps_per_call: int) -> None:
    """Called when the run ends: a trace that is being taken keeps what it has."""
    if traced is None:
        return
    first, last = dispatches(traced, steps_per_call)
    if first <= step < last:
        jax.profiler.stop_trace()
