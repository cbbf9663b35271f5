"""LeJEPA on programs drawn without end: two scenes under one program, and orbits of one primitive, half of each.

    python -m jepa.main --config=configs/lejepa_programs.py

The model and its weights are those of `configs/lejepa.py`, the data are 31 of 37 families of primitives, alone or two
in a row; six families and a tenth of the ordered pairs of families are never trained on: held-out sources of their own.

Expected, over seeds 0 to 2, each in 8 minutes on two CPU cores, the probes included: prediction error over that of
copying 0.445 [0.394, 0.496] on analogies, 0.681 on those of held-out families, 0.427 on held-out compositions, 0.633 on
orbits; no probe of frozen features exceeds raw object tables. With `mixture`, no probe on ARC is better than after as
many steps on ARC alone. `python experiments/programs.py` repeats it.

Variants, after a colon and comma-separated: `tiny` (seconds, for tests), `mixture` (half of the rows from ARC),
`curriculum` (three levels of difficulty, each begun once the error of the one before has stopped falling),
`analogies`, `orbits` (one of the two streams alone).
"""

from ml_collections import ConfigDict

from configs import base, lejepa

VARIANTS = ("tiny", "mixture", "curriculum", "analogies", "orbits")


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, VARIANTS)
    config = lejepa.get_config("tiny" if "tiny" in words else "")
    if "tiny" not in words:
        config.num_steps = 800
    programs = dict(
        name="programs",
        stream="analogy",  # or "orbit", "transition"
        families="all",  # or "geometry", "cells", "lines", "objects", joined by "+"
        length=2,  # steps of a program, at most
        objects=8,  # of a scene, at most
        side=30,  # of a scene, at most
        held_out_families=("wrap", "outline", "hollow", "sort", "half", "copy"),
        held_out_share=0.1,  # of ordered pairs of families
        context_window=3,
        target_offset=1,  # above 1 in the stream "orbit" alone
        drop_objects=0.0,  # in training, the share of the context's objects that is hidden
        drop_frames=0.0,  # ... of its grids but the last
        noise=0.0,  # ... of its objects that are moved by a cell or have other colours
        d4=True,
        palette=True,
        translation=True,
        num_workers=1,  # processes that draw ahead of the step
        batches_per_block=20,
        blocks_ahead=2,
    )
    if "curriculum" in words:
        programs.update(
            families=("geometry", "geometry+cells", "all"),
            length=(1, 1, 2),
            objects=(3, 5, 8),
            side=(15, 20, 30),
            level_every=config.get_oneway_ref("eval_every"),  # nothing is drawn ahead of a decision
        )
        config.curriculum.patience = 1
        config.eval_every = config.checkpoint_every = 100
    arc = config.data.to_dict()
    config.data = ConfigDict(
        dict(
            name="mixture",
            shares="analogies:0.5,orbits:0.5",
            sources=dict(arc=arc, analogies=programs, orbits=programs | dict(stream="orbit")),
        )
    )
    if "mixture" in words:
        config.data.shares = "arc:0.5,analogies:0.25,orbits:0.25"
    for word in ("analogies", "orbits"):
        if word in words:
            config.data.shares = f"{word}:1"
    config.probes = ("arc", "programs")
    if "tiny" in words:
        config.probes = ()
        config.eval_every = config.checkpoint_every = 10
        for name in ("analogies", "orbits"):
            config.data.sources[name].update(num_workers=0, batches_per_block=10)
    return config
