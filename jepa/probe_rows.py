"""Rows of a probe table: a score beside chance, controls and baselines, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jepa.bootstrap import Outcome, interval, paired_difference, resamples, score, scored
from jepa.controls import CONTROLS

MAIN_COLUMNS = ("probe", "trained", "95 %", "untrained", "randnet", "tables", "chance", "over the best control")
Answered = Mapping[str, Mapping[str, Outcome]]  # the outcomes of every encoder, by its name and theirs


def row(name: str, chance: float, answered: Answered, *, of_controls: str, baselines: Mapping[str, str]) -> dict:
    """One probe: the encoder, the controls on the same questions and the paired difference to each and to the best.

    answered: `trained`, `untrained` if there is one, CONTROLS, `pixels` and `no_information`. of_controls: the outcome
    of the controls that `name` is held against. baselines: outcomes of the same encoder by the name they are shown by.
    """
    outcomes = answered["trained"]
    weights = resamples(outcomes[name].groups)
    own = scored(outcomes[name], weights)
    controls = {control: scored(answered[control][of_controls], weights) for control in (*CONTROLS, "pixels")}
    against = {key: scored(outcomes[path], weights) for key, path in baselines.items()}
    over = {control: paired_difference(own, other) for control, other in controls.items()}
    best = max(controls, key=lambda control: controls[control].score)
    found = {"probe": name, **interval(own), "chance": chance}
    found |= {"n": len(own.outcome.groups), "num_tasks": len(np.unique(own.outcome.groups))}
    found["no_information"] = float(score(answered["no_information"][of_controls])[0])
    found["controls"] = {control: interval(other) for control, other in controls.items()}
    found["baselines"] = {key: interval(other) for key, other in against.items()}
    found["over_controls"] = over
    found["over_best_control"] = {"control": best, **over[best]}
    found["over_baselines"] = {key: paired_difference(own, other) for key, other in against.items()}
    if "untrained" in answered and name in answered["untrained"]:
        untrained = scored(answered["untrained"][name], weights)
        found["untrained"] = interval(untrained)
        found["over_untrained"] = paired_difference(own, untrained)
    return found


def lines(result: Mapping) -> list[str]:
    """The rows of a result for a person: a table of the scores and one of what else to hold them against."""
    readable = [_readable(row) for row in result["rows"]]
    rest = ["probe", *dict.fromkeys(name for line in readable for name in line if name not in MAIN_COLUMNS)]
    return [*_aligned(readable, list(MAIN_COLUMNS)), "", *_aligned(readable, rest)]


def _aligned(lines: list[dict[str, str]], columns: list[str]) -> list[str]:
    """The columns under their names, padded to equal width; a row without a value has a gap."""
    cells = [columns, *[[line[name] if name in line else "" for name in columns] for line in lines]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _readable(row: Mapping) -> dict[str, str]:
    """Every column as text."""
    estimates = {"trained": row} | ({"untrained": row["untrained"]} if "untrained" in row else {}) | row["controls"]
    for name, baseline in row["baselines"].items():
        estimates["foreign demos" if name.endswith("_foreign") else name.replace("_", " ")] = baseline
    line = {"probe": row["probe"]} | {name: f"{estimate['score']:.3f}" for name, estimate in estimates.items()}
    line |= {"no information": f"{row['no_information']:.3f}", "chance": f"{row['chance']:.3f}"}
    line["95 %"] = f"[{row['low']:.3f}, {row['high']:.3f}]"
    over = row["over_best_control"]
    line["over the best control"] = (
        f"{over['difference']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}] {over['control']}"
    )
    return line
