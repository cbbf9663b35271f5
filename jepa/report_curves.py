"""Which curves of a record are drawn, in which order: `sections` picks the panels that it has metrics for.

What no panel names goes to the last section, so that nothing measured is hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from jepa import report_panels
from jepa.report_panels import Curve, Panel

CURVES = 6  # in one panel; more cannot be told apart


class Section(NamedTuple):
    name: str
    title: str
    panels: list[Panel]


def sections(names: Collection[str]) -> list[Section]:
    """The sections of the metrics `names`: panels without their curves, and sections without panels, are left out."""
    names = list(names)
    planned = [
        Section("loss", "Loss", report_panels.loss(names)),
        Section("prediction", "Prediction", [*report_panels.prediction(), *report_panels.contrast(names)]),
        Section("imagined", "Rollout health", report_panels.rollouts(names)),
        Section("latents", "Spectrum and scale", report_panels.latents()),
        Section("codes", "Codes", report_panels.codes(names)),
        Section("gradients", "Gradients", report_panels.gradients(names)),
        Section("pace", "Pace and health", report_panels.pace()),
    ]
    found = [Section(name, title, list(_present(panels, names))) for name, title, panels in planned]
    shown = {metric for section in found for panel in section.panels for c in panel.curves for metric in c.metrics()}
    rest = Section("other", "Other measurements", _other([name for name in names if name not in shown]))
    return [section for section in [*found, rest] if section.panels]


def apart(panel: Panel) -> list[Panel]:
    """A panel for each curve, for figures in which colours stand for runs."""
    if len(panel.curves) == 1:
        return [panel]
    return [panel._replace(title=f"{panel.title}: {curve.label}", curves=(curve,)) for curve in panel.curves]


def _present(panels: Sequence[Panel], names: Collection[str]) -> Iterator[Panel]:
    def known(name: str | None) -> str | None:
        return name if name in names else None

    for panel in panels:
        there = [curve for curve in panel.curves if curve.metric in names]
        curves = [Curve(c.label, c.metric, known(c.beside), known(c.low), known(c.high)) for c in there]
        for start in range(0, len(curves), CURVES):
            part = f" ({start // CURVES + 1})" if start else ""
            yield panel._replace(title=panel.title + part, curves=tuple(curves[start : start + CURVES]))


def _other(names: Sequence[str]) -> list[Panel]:
    """Panels of what is left, a path's metrics together."""
    groups: dict[str, list[Curve]] = {}
    for name in names:
        parent, _, label = name.rpartition("/")
        groups.setdefault(parent, []).append(Curve(label, name))
    panels = [
        Panel(curves[0].metric if len(curves) == 1 else parent or "Top level", "As recorded.", tuple(curves))
        for parent, curves in groups.items()
    ]
    return list(_present(panels, names))
