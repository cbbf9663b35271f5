"""Frozen features of images: logistic regression, nearest neighbours and few shots, through scikit-learn.

Everything is fitted on the images that the encoder was trained on, with their labels, and asked of the held-out ones.
Beside the encoder stand what learned nothing: raw pixels, the same encoder at its initialisation, and chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jepa import scorers
from jepa.bootstrap import Outcome, interval, paired_difference, resamples, scored
from jepa.types import Array, Observation, Source

FLOORS = ("pixels", "untrained")
Embed = Callable[[Observation], Array]


class Labelled(NamedTuple):
    """All images of a source as they are, in its order, on the host."""

    observation: dict[str, np.ndarray]  # leaves [n, ...]
    labels: np.ndarray  # [n]


class Features(NamedTuple):
    """What one encoder makes of the images to fit on and of those to be asked about."""

    training: np.ndarray  # [n, D]
    held_out: np.ndarray  # [m, D]


def read(source: Source) -> Labelled:
    """Every image of a source that has labels."""

    @jax.jit
    def all_of(tables, rows):
        batch = source.gather(tables, rows, jax.random.key(0), False)
        return batch.target, batch.labels

    observation, labels = jax.device_get(all_of(source.tables, np.arange(source.num_examples)))
    return Labelled(observation, labels)


def linear() -> ClassifierMixin:
    """Multinomial logistic regression with scikit-learn's penalty, on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))


def right(model: ClassifierMixin, x: np.ndarray, y: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float [m]: 1 where `model`, fitted on x [n, D] with labels y [n], knows the label of asked [m, D]."""
    return np.float64(model.fit(x, y).predict(asked) == truth)


def choose_shots(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Rows of `shots` images of every class, another choice for every `draw`."""
    rng = np.random.default_rng([draw, shots])
    return np.concatenate([rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.unique(labels)])


def answers(
    z: Features, training: Labelled, held_out: Labelled, *, neighbours: int, shots: int, draws: int
) -> dict[str, Outcome]:
    """Outcomes by probe: of every held-out image, and with few shots, where the class sizes allow it, of every draw."""
    labels, truth, images = training.labels, held_out.labels, np.arange(len(held_out.labels))
    nearest = KNeighborsClassifier(min(neighbours, len(labels)))
    found = {
        "logistic": Outcome(right(linear(), z.training, labels, z.held_out, truth), images),
        f"{neighbours}-nn": Outcome(right(nearest, z.training, labels, z.held_out, truth), images),
    }
    if np.unique(labels, return_counts=True)[1].min() >= shots:
        chosen = [choose_shots(labels, shots, draw) for draw in range(draws)]
        accuracy = [right(linear(), z.training[s], labels[s], z.held_out, truth).mean() for s in chosen]
        found[f"{shots}-shot"] = Outcome(np.array(accuracy), np.arange(draws))
    return found


def evaluate(
    source: Source, embed: Embed, untrained: Embed, *, neighbours: int = 5, shots: int = 5, draws: int = 20
) -> dict:
    """Accuracies of an encoder beside its floors, as JSON-able rows; `rows` makes them readable.

    embed, untrained: an observation, leaves [CHUNK, ...] (`jepa.scorers`), -> [CHUNK, D]. Intervals are 95 %, over the
    held-out images, or over `draws` of the `shots` images of each class; the difference to the better floor is paired.
    """
    training, held_out = read(source), read(next(iter(source.validation.values())))
    asked = dict(neighbours=neighbours, shots=shots, draws=draws)

    def of(function: Callable[[Labelled], np.ndarray]) -> dict[str, Outcome]:
        return answers(Features(function(training), function(held_out)), training, held_out, **asked)

    def embedded(function: Embed) -> dict[str, Outcome]:
        return of(lambda side: scorers.in_chunks(function, side.observation, np.arange(len(side.labels))))

    answered = {"trained": embedded(embed), "untrained": embedded(untrained), "pixels": of(pixels)}
    classes, counts = np.unique(held_out.labels, return_counts=True)
    return {
        "num_training": len(training.labels),
        "num_held_out": len(held_out.labels),
        "num_classes": len(classes),
        "draws": draws,
        "rows": [_row(name, answered, float(counts.max() / counts.sum())) for name in answered["trained"]],
    }


def pixels(side: Labelled) -> np.ndarray:
    """[n, H W C] in [0, 1]."""
    image = side.observation["image"]
    return image.reshape(len(image), -1).astype(np.float32) / 255.0


def _row(name: str, answered: Mapping[str, Mapping[str, Outcome]], chance: float) -> dict:
    weights = resamples(answered["trained"][name].groups)
    own = scored(answered["trained"][name], weights)
    floors = {floor: scored(answered[floor][name], weights) for floor in FLOORS}
    best = max(floors, key=lambda floor: floors[floor].score)
    row = {"probe": name, **interval(own), "chance": chance}
    row["floors"] = {floor: interval(other) for floor, other in floors.items()}
    return row | {"over_best_floor": {"floor": best, **paired_difference(own, floors[best])}}


def rows(result: Mapping) -> list[dict[str, float | str]]:
    """`evaluate`'s result for a person, a row for each probe."""
    lines = []
    for row in result["rows"]:
        over = row["over_best_floor"]
        line = {"probe": row["probe"], "trained": row["score"], "95 %": f"[{row['low']:.3f}, {row['high']:.3f}]"}
        line |= {floor: row["floors"][floor]["score"] for floor in FLOORS} | {"chance": row["chance"]}
        difference = f"{over['difference']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}] {over['floor']}"
        lines.append(line | {"over the better floor": difference})
    return lines
