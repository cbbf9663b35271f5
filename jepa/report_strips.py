"""Frames as pictures: cells and pixels in colours, one PNG for a frame of the report, and a moving one for many."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

# The colours of ARC, as the rest of the report draws them, and a light grey for what is outside a grid.
CELLS = np.array(
    [
        *((0, 0, 0), (0, 116, 217), (255, 65, 54), (46, 204, 64), (255, 220, 0), (170, 170, 170)),
        *((240, 18, 190), (255, 133, 27), (127, 219, 255), (135, 12, 37), (232, 230, 224)),
    ],
    np.uint8,
)
# Of two channels the first is an agent, drawn over the second, the walls; of one, grey; three are red, green and blue.
PAPER, WALL, AGENT = (np.array(colour, np.float64) for colour in ((250, 249, 246), (60, 62, 72), (214, 61, 8)))
SIDE = 130  # pixels of a frame in the moving picture, about
GAP = 4  # pixels between frames that belong together
STEP, PAUSE = 350, 1400  # milliseconds that a frame is shown, and the last one


def coloured(frames: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [..., H, W, 3] of observations {"cells": int [..., H, W]} or {"image": [..., H, W, C] in [0, 1]}, C 1 to 3.
    Raises ValueError for others."""
    if "cells" in frames:
        return CELLS[np.clip(frames["cells"], 0, len(CELLS) - 1)]
    if "image" not in frames or frames["image"].shape[-1] not in (1, 2, 3):
        raise ValueError(f"frames of {sorted(frames)} cannot be drawn: cells can, and images of one to three channels")
    image = np.clip(np.asarray(frames["image"], np.float64), 0.0, 1.0)
    if image.shape[-1] != 2:
        return np.uint8(np.round(255 * np.broadcast_to(image, (*image.shape[:-1], 3))))
    agent, walls = image[..., :1], image[..., 1:]
    under = PAPER + walls * (WALL - PAPER)
    return np.uint8(np.round(under + agent * (AGENT - under)))


def data_uri(image: np.ndarray) -> str:
    """One frame [H, W, 3] as a PNG inside a page, a pixel for a pixel."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def moving(pairs: Sequence[Sequence[np.ndarray]]) -> bytes:
    """An animated PNG of frames [T, H, W, 3] of one length: each group of them side by side, the groups in a row, wider
    apart."""
    scale = max(1, round(SIDE / pairs[0][0].shape[2]))
    groups = [_beside([_enlarged(frames, scale) for frames in group], GAP) for group in pairs]
    whole = _beside(groups, 6 * GAP)
    first, *rest = (Image.fromarray(frame) for frame in whole)
    durations = [STEP] * (len(whole) - 1) + [PAUSE]
    with io.BytesIO() as file:
        first.save(file, "PNG", save_all=True, append_images=rest, duration=durations, loop=0)
        return file.getvalue()


def _enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _beside(parts: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """[T, H, W, 3] from left to right, with a gap of paper between."""
    between = np.broadcast_to(np.uint8(PAPER), (*parts[0].shape[:2], gap, 3))
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [between, part]
    return np.concatenate(joined, axis=2)
