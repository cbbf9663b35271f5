"""Contrastive prediction on programs drawn without end: the data of `configs/lejepa_programs.py`, told apart.

    python -m jepa.main --config=configs/infonce_programs.py

The objective of `configs/infonce.py` with the predictor over tokens. Readouts are four times as wide as there: what is
kept of a grid is read before the projector, and more of it is kept than the loss asks for.

Expected, over seeds 0 to 2: family 0.357 [0.330, 0.384] (raw tables 0.384, untrained 0.326), next grid of an orbit by
extrapolation 0.299 [0.289, 0.309] (0.310, 0.268), first step of three 0.508 [0.490, 0.525] (0.505, 0.442). A seed takes
16 minutes on two CPU cores of its own, twice that beside other work. `python experiments/programs.py` repeats it.

Variants, after a colon and comma-separated: those of `configs/lejepa_programs.py`.
"""

from ml_collections import ConfigDict

from configs import base, infonce, lejepa_programs


def get_config(variant: str = "") -> ConfigDict:
    config = lejepa_programs.get_config(variant)
    tiny = "tiny" in base.words(variant, lejepa_programs.VARIANTS)
    contrastive = infonce.get_config("tokens,tiny" if tiny else "tokens")
    for name in ("objective", "weights", "target_ema", "best_metric"):
        config[name] = contrastive[name]
    if not tiny:
        config.num_steps = 1600
        config.encoder.readout_dim = 64
        config.objective.projector_dim = 128
    return config
