"""LeJEPA on ARC grids through discrete codes: every object is one of 1000 codes before anything is predicted.

    python -m jepa.main --config=configs/lejepa_codes.py

`configs/lejepa.py` with a quantizer between the tokens of the encoder and their pooling, for context and target alike.
FSQ with levels 8, 5, 5, 5: Mentzer et al., arXiv:2309.15505.

Expected, over seeds 0 to 2, the quickest in 12 minutes on two busy CPU cores: usage of the codes 0.82 [0.74, 0.91] over
8192 held-out tokens, never below 0.76 after the first tenth; prediction error 0.350 [0.325, 0.376] of that of copying;
effective rank 16 to 17 of 127; same-task retrieval 0.33, where the run without codes has 0.51.
`python experiments/codes.py` repeats it.

Variants, after a colon and comma-separated: `tiny` (seconds, for tests), `small` (a minute, for suites of many
runs), `teacher` (EMA target), and other quantizers: `vq_ema` (768 codes, moving averages), `vq_gradient`, `gumbel`.
"""

from ml_collections import ConfigDict

from configs import base, lejepa

QUANTIZERS = {
    "fsq": dict(levels=(8, 5, 5, 5), hidden_dim=128, statistics_ema=0.99),
    "vq_ema": dict(
        num_codes=768,
        decay=0.99,
        commitment=0.25,
        distance="euclidean",
        rotation=False,
        initialise="data",
        refresh="split",
        refresh_every=1,
        smoothing=0.0,
    ),
    "vq_gradient": dict(num_codes=768, commitment=0.25, codebook_weight=1.0, simvq=False),
    "gumbel": dict(num_codes=768, logits="linear", tau=2.0, tau_final=0.5, tau_steps=1000, diversity=1.0),
}


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, ("tiny", "small", "teacher", *QUANTIZERS))
    config = lejepa.get_config(",".join(word for word in words if word not in QUANTIZERS))
    chosen = [word for word in words if word in QUANTIZERS] or ["fsq"]
    config.quantizer = ConfigDict(dict(name=chosen[-1]) | QUANTIZERS[chosen[-1]])
    config.init_batches = 2  # some 6000 tokens
    config.weights.quantizer = 1.0
    if not {"tiny", "small"} & set(words):
        config.eval_every = config.checkpoint_every = 120  # usage is to be seen from the first tenth of the run on

    if "tiny" in words:
        if "num_codes" in config.quantizer:
            config.quantizer.num_codes = 32
        if "tau_steps" in config.quantizer:
            config.quantizer.tau_steps = 10
        if "levels" in config.quantizer:
            config.quantizer.update(levels=(4, 3, 3), hidden_dim=16)
    return config
