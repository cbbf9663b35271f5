"""Small line charts as SVG: text stays text, and colours are those of the page, in light and in dark.

Matplotlib draws in sentinel colours, which then become CSS variables (`--c0` ... for curves) and `currentColor`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 340, 195  # CSS pixels, at which the text is 12 pixels tall
DENSE = 250  # points from which on a line is drawn thinner
POINTS = 600  # of a curve; a page of many thins further
COLOURS = 8  # as many as the page has variables --c0 ...
NICE = (1, 2, 2.5, 5, 10)  # ticks are multiples of these
_INK, _GRID, _WARN = "#fe0a01", "#fe0b01", "#fe0c01"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jepa",  # the same record gives the same bytes
    "font.size": 12,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.solid_capstyle": "butt",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


class Line(NamedTuple):
    """A curve to draw. Values that are not finite leave a gap and a mark; the band needs both of its bounds."""

    steps: np.ndarray
    values: np.ndarray
    colour: int  # of --c0 to --c7
    dashed: bool = False
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # steps, low, high


def thin(steps: np.ndarray, values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """About `points` of them, such that every peak, valley and gap still shows: of each stretch the smallest and the
    largest value, and the first that is not finite."""
    if len(steps) <= points:
        return steps, values
    kept = {0, len(steps) - 1}
    for stretch in np.array_split(np.arange(len(steps)), max(points // 2 - 1, 1)):
        finite = np.isfinite(values[stretch])
        kept |= set(stretch[~finite][:1].tolist())
        if finite.any():
            those = stretch[finite]
            kept |= {int(those[np.argmin(values[those])]), int(those[np.argmax(values[those])])}
    index = sorted(kept)
    return steps[index], values[index]


def draw(
    lines: Sequence[Line],
    *,
    name: str,
    log: bool = False,
    zero: bool = False,
    at: Sequence[float] = (),
    events: Sequence[int] = (),
) -> str:
    """One chart over steps, as an SVG element whose ids start with `name`.

    log: a logarithmic axis, where no value is negative and they span a factor of 30. zero: a linear axis holds 0.
    at: levels drawn as thin lines, where the axis holds them. events: steps marked by vertical ones.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((54 / WIDTH, 26 / HEIGHT, 1 - 68 / WIDTH, 1 - 36 / HEIGHT))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        for line in lines:
            _plot(axes, line)
        _scale(axes, lines, log, zero, at)
        for step in events:
            axes.axvline(step, color=_WARN, linewidth=0.8, linestyle=(0, (2, 2)))
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name)


def _plot(axes: Axes, line: Line) -> None:
    colour = f"#fe00{line.colour % COLOURS:02x}"
    finite = np.isfinite(line.values)
    values = np.where(finite, line.values, np.nan)
    if line.band is not None:
        steps, low, high = line.band
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    if line.dashed:
        axes.plot(line.steps, values, color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
    else:
        axes.plot(line.steps, values, color=colour, linewidth=1.6 if len(values) < DENSE else 1)
    before, after = np.append(False, finite[:-1]), np.append(finite[1:], False)
    alone = finite & ~before & ~after  # a point without neighbours is no line
    if alone.any():
        axes.plot(line.steps[alone], values[alone], "o", color=colour, markersize=4)
    if not finite.all():
        bad = line.steps[~finite]
        bad = bad[np.unique(np.linspace(0, len(bad) - 1, 60).astype(int))]
        marks = dict(color=_WARN, markersize=6, clip_on=False, transform=axes.get_xaxis_transform())
        axes.plot(bad, np.full(len(bad), 0.02), "x", **marks)


def _scale(axes: Axes, lines: Sequence[Line], log: bool, zero: bool, at: Sequence[float]) -> None:
    """Limits, ticks and levels."""
    drawn = [values[np.isfinite(values)] for line in lines for values in (line.values, *(line.band or ())[1:])]
    values = np.concatenate(drawn) if drawn else np.zeros(0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    positive = values[values > 1e-8 * high]
    if log and low >= 0 and high > 30 * positive.min(initial=high):
        low = float(positive.min())
        axes.set_yscale("log", nonpositive="clip")  # what is 0 lies on the axis
        axes.set_ylim(low / 1.2, high * 1.2)
        ticks = LogLocator(numticks=5).tick_values(low, high)
    else:
        near = [level for level in at if low - (high - low) <= level <= high + (high - low)]
        low, high = min([low, *near, *([0.0] if zero else [])]), max([high, *near])
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low if zero and low == 0 else low - margin, high + margin)
        ticks = MaxNLocator(4, steps=NICE).tick_values(*axes.get_ylim())
    ticks = _within(ticks, axes.get_ylim())
    axes.set_yticks(ticks, labels(ticks))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.yaxis.grid(True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for level in _within(np.asarray(at, float), axes.get_ylim()):
        axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (1, 2)))
    steps = [step for line in lines for step in (line.steps[:1].tolist() + line.steps[-1:].tolist())]
    right = max([1, *steps])
    axes.set_xlim(0, right)
    ticks = _within(MaxNLocator(5, steps=NICE, integer=True).tick_values(0, right), (0, right))
    axes.set_xticks(ticks, labels(ticks))


def _within(ticks: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return ticks[(ticks >= limits[0]) & (ticks <= limits[1])]


def labels(ticks: Sequence[float]) -> list[str]:
    """The shortest texts of numbers that tell them apart: 0.25, 2e-5, 20k."""
    for digits in range(1, 9):
        texts = [_short(float(tick), digits) for tick in ticks]
        close = all(abs(float(f"{tick:.{digits}g}") - tick) <= 1e-3 * abs(tick) for tick in ticks)
        if close and len(set(texts)) == len(texts):
            break
    return texts


def _short(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:.{max(digits, 3)}g}{unit}".replace("-", "−")
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:.{max(digits, len(str(int(abs(value)))))}g}".replace("-", "−")


def _inline(svg: str, name: str) -> str:
    """The SVG element alone, at the width of its place, in the page's colours and font, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>|<defs>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-labelledby="{name}">', svg)
    svg = re.sub(r'font-family: [^;"]*;? ?', "", svg)
    svg = re.sub(r'id="(\w+_\d+|matplotlib\.axis_\d)"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    # Of coordinates a tenth of a pixel is enough; numbers that are text stay.
    svg = re.sub(r"-?\d+\.\d{2,}(?=[^<>]*>)", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), svg)
    for sentinel, colour in ((_INK, "currentColor"), (_GRID, "var(--line)"), (_WARN, "var(--warn)")):
        svg = svg.replace(sentinel, colour)
    svg = re.sub(r"#fe00(\d\d)", lambda found: f"var(--c{int(found[1])})", svg)
    return re.sub(r"\s*\n\s*", " ", svg).replace(" >", ">").strip()
