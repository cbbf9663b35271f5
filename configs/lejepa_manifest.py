"""LeJEPA on sequences of your own: three grids of each predict the embedding of the one that follows.

    python -m jepa.main --config=configs/lejepa_manifest.py --config.data.paths='orbits/*.jsonl.gz'

`configs/lejepa.py` on files instead of ARC. A line is {"input": grid, "output": grid, "rule_trace": ...}, {"context":
[grids], "target": grid} or {"frames": [grids]}; a folder may hold files of ARC JSON. What does not fit in memory is
tokenised once and read from disk:

    python -m jepa.cache --config=configs/lejepa_manifest.py --config.data.paths='orbits/*.jsonl.gz' --output=cached
    python -m jepa.main --config=configs/lejepa_manifest.py:cache --config.data.folder=cached

Variants, after a colon and comma-separated: `cache`, and those of `configs/lejepa.py` but `views`.
"""

from ml_collections import ConfigDict, config_dict

from configs import base, lejepa


def get_config(variant: str = "") -> ConfigDict:
    words = base.words(variant, ("tiny", "base", "pooled", "mean", "teacher", "cache"))
    config = lejepa.get_config(",".join(word for word in words if word != "cache"))
    augmentation = dict(d4=True, palette=True, translation=True, drop_objects=0.0, drop_frames=0.0, noise=0.0)
    if "cache" in words:
        config.data = ConfigDict(
            dict(
                name="cache",
                folder=config_dict.placeholder(str),  # what python -m jepa.cache has written
                order=config_dict.placeholder(str),  # "shuffled", "tasks" or "stored"; none is that of the source
                num_views=4,  # read where the cache holds single grids
                verify=True,  # compare checksums before training
                **augmentation,
            )
        )
    else:
        config.data = ConfigDict(
            dict(
                name="manifest",
                paths=config_dict.placeholder(str),  # a file, a folder or a pattern; in a config file, a tuple of them
                skip_malformed=False,
                validation_share=0.1,  # of the tasks
                context_window=3,  # grids before the target, 1 to 7
                target_offset=1,  # of frames, how far ahead the target is
                max_demonstrations=8,  # pairs that each pair of a task is shown after, one at a time
                **augmentation,
            )
        )
    return config
