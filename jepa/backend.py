"""What JAX computes on, and where it keeps compiled programs: to be called before anything is computed."""

from __future__ import annotations

from pathlib import Path

import jax


def select_platform(platform: str) -> None:
    """Computes on the CPU alone, or makes sure of a GPU. Raises ValueError where there is none, or for another name."""
    if platform not in ("cpu", "gpu"):
        raise ValueError(f"config.platform is {platform!r}; it must be 'cpu' or 'gpu'")
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    try:
        jax.devices("gpu")  # where there is one, it is what JAX takes by itself
    except RuntimeError as error:
        raise ValueError(
            "config.platform is 'gpu', but JAX finds no GPU; install jepa[cuda] on a machine with one, "
            f"or leave config.platform=cpu ({str(error).splitlines()[0]})"
        ) from error


def use_compile_cache(cache_dir: str) -> None:
    """Keeps compiled programs between processes, in JAX's own cache folder if one is set, else below `cache_dir`."""
    if jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(cache_dir).expanduser() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
