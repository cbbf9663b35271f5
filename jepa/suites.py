"""Suites of runs that answer a question, as data: a base config, variants of it, seeds, and what was claimed.

A suite is a file that defines `SUITE`. A run is known by the hash of its whole config and of the content of its data:
two runs that differ in any key have different folders, and one that two suites share is trained once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jepa import config_checks, parts, registry, run_folder
from jepa.main import config_keys, load_config, run_file, section_of

BASE = "base"
MEMBERS = "members.json"  # in the folder of runs that are trained together, their ids
SOURCES = ("validation", "probe", "last", "largest", "growth")


class Metric(NamedTuple):
    """A figure of a finished run. `better` is the side on which more is gained, "neither" of what only describes.

    source: "validation", a final held-out figure by its path; "probe", the score of a row of `probes.json`, named
    `<embedding>: <row>`; "last" or "largest" of a column of the record, `metrics.jsonl`; "growth", its largest value
    since the end of the warm-up over the first of these. A variant that lacks a figure, such as a term that it is
    without, has a gap.
    """

    title: str
    name: str
    source: str = "validation"
    better: str = "lower"  # or "higher", or "neither"


class Claim(NamedTuple):
    """A statement about one figure that the runs can bear out or not.

    The figure of `variant`, less that of `against` (None: as it is) and less `threshold`, is claimed to be on the side
    `expects`: "lower" or "higher" than 0, or "within" `margin` of it. With `ratio` all of this is of logarithms:
    a figure is claimed to be `threshold` times another, and `margin` is a factor.
    """

    text: str
    variant: str
    metric: str  # a title among the suite's metrics
    expects: str
    against: str | None = BASE
    threshold: float | None = None
    margin: float | None = None
    ratio: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """overrides: dotted config keys that hold for every variant. variants: by name, the keys in which one differs from
    the base, which is a variant itself and differs in none. curves: columns of the record to draw over steps.
    """

    question: str
    config: str  # as after --config=
    variants: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Metric]
    claims: Sequence[Claim] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    curves: Sequence[str] = ("val/prediction",)
    remarks: str = ""  # a paragraph for the report: what the figures mean, what the claim was


class Run(NamedTuple):
    """One training run of a suite."""

    variant: str
    seed: int
    config: ConfigDict
    id: str
    workdir: Path


class Job(NamedTuple):
    """What one process trains: a run, or the runs of a variant for all seeds together."""

    id: str
    variant: str
    runs: tuple[Run, ...]
    folder: Path | None  # where runs that are trained together are, until they are finished


def load(path: str) -> Suite:
    """The suite of a file. Raises ValueError naming what is wrong with it."""
    if not Path(path).is_file():
        raise ValueError(f"there is no suite {path!r}, as in --suite=experiments/sigreg.py")
    found = run_file(path)
    if "SUITE" not in found or not isinstance(found["SUITE"], Suite):
        raise ValueError(f"{path} is not a suite: it defines no SUITE = jepa.suites.Suite(...)")
    suite = found["SUITE"]
    check(suite)
    return suite


def check(suite: Suite) -> None:
    """Raises ValueError for names that nothing stands behind."""
    if differences(suite, BASE):
        raise ValueError(f"the variant {BASE!r} is the base config itself: it can differ in nothing")
    titles = [metric.title for metric in suite.metrics]
    for metric in suite.metrics:
        if metric.source not in SOURCES:
            raise ValueError(f"metric {metric.title!r} is from {metric.source!r}; it must be from one of {SOURCES}")
    for claim in suite.claims:
        for name, known in ((claim.variant, names(suite)), (claim.against, [None, *names(suite)])):
            if name not in known:
                raise ValueError(f"the claim {claim.text!r} names the variant {name!r}; there are {names(suite)}")
        if claim.metric not in titles:
            raise ValueError(f"the claim {claim.text!r} names the metric {claim.metric!r}; there are {titles}")
        if claim.expects not in ("lower", "higher", "within") or (claim.expects == "within") != (
            claim.margin is not None
        ):
            raise ValueError(
                f"the claim {claim.text!r} expects {claim.expects!r} with margin {claim.margin}; it must be 'lower', "
                "'higher', or 'within' with a margin"
            )
    if not suite.seeds or len(set(suite.seeds)) < len(suite.seeds):
        raise ValueError(f"the seeds of a suite are distinct, and not {tuple(suite.seeds)}")


def names(suite: Suite) -> list[str]:
    """The variants, the base first."""
    return [BASE, *(name for name in suite.variants if name != BASE)]


def differences(suite: Suite, variant: str) -> Mapping[str, Any]:
    """The keys in which a variant differs from the base."""
    return suite.variants[variant] if variant in suite.variants else {}


def resolve(suite: Suite, variant: str, seed: int) -> ConfigDict:
    """The whole config of a run. Raises ValueError for a key that the config lacks or a value of another type."""
    config = load_config(suite.config)
    for key, value in {**suite.overrides, **differences(suite, variant), "seed": seed}.items():
        override(config, key, value)
    return config


def changed(suite: Suite, variant: str) -> dict[str, Any]:
    """By dotted key, what a variant's config has that the base lacks or has otherwise; of a section that is replaced
    as a whole, the keys in it that are new or different."""
    base, own = (
        run_folder.flatten(config_checks.as_json(resolve(suite, name, suite.seeds[0]))) for name in (BASE, variant)
    )
    return {key: value for key, value in own.items() if key not in base or base[key] != value}


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key that the config has."""
    known = config_keys(config)
    if key not in known:
        raise ValueError(f"unknown config key {key!r}: {registry.nearest(key, known)}")
    section, name = section_of(config, key)
    if isinstance(value, Mapping):
        section[name] = ConfigDict(value)
        return
    try:
        if value is None:
            with section.ignore_type():
                section[name] = None
        else:
            section[name] = value
    except TypeError as error:
        raise ValueError(f"config.{key} cannot be {value!r} ({error})") from error


def identity(config: ConfigDict, digest: str) -> str:
    """The hash of every key of a config and of the digest of its data: 12 hexadecimal digits."""
    text = json.dumps(config_checks.as_json(config), sort_keys=True) + digest
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def runs(suite: Suite, root: Path) -> list[Run]:
    """All runs of a suite, variant by variant, every variant with the same seeds."""
    found, digests = [], {}
    for variant in names(suite):
        for seed in suite.seeds:
            try:
                config = resolve(suite, variant, seed)
                config_checks.check(config)
                data = json.dumps(config_checks.as_json(config.data), sort_keys=True)
                if data not in digests:
                    source = parts.build_source(config)
                    source.close()
                    digests[data] = source.digest
            except ValueError as error:
                raise ValueError(f"variant {variant!r}: {error}") from error
            key = identity(config, digests[data])
            found.append(Run(variant, seed, config, key, root / key))
    return found


def jobs(planned: Sequence[Run], root: Path, *, together: bool) -> list[Job]:
    """What is left to train: every run by itself, or the seeds of a variant together.

    Seeds that have begun together go on together, whatever of them is finished.
    """
    found = []
    for variant in dict.fromkeys(run.variant for run in planned):
        own = [run for run in planned if run.variant == variant]
        left = [run for run in own if not is_finished(run)]
        if not together:
            found += [Job(run.id, variant, (run,), None) for run in left]
            continue
        key = hashlib.sha256("".join(run.id for run in own).encode()).hexdigest()[:12] + "-seeds"
        if (root / key / MEMBERS).is_file():
            begun = json.loads((root / key / MEMBERS).read_text())
            left = [run for run in own if run.id in begun]
        if left:
            found.append(Job(key, variant, tuple(left), root / key))
    return found


def is_finished(run: Run) -> bool:
    """Whether a run is trained to its last step and evaluated."""
    return (run.workdir / "probes.json").is_file()
