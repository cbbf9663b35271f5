"""Runs before any test: JAX on the CPU, accidental broadcasting as an error, compiled programs kept between runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# JAX reads these when it is first imported, and so do the processes that tests start. With NPROC=1 the CPU backend
# never splits a sum, so that results do not depend on the number of cores, nor on the number of test workers.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "1")

# Most of the time of a test is compiling, so every program is kept, however small and however quick.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"jepa-compiled-{os.getuid()}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
from hypothesis import settings

# [B] + [B, 1] is a [B, B] and no error; in tests it is one.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and no deadline, since the first example of a law compiles it.
settings.register_profile("jepa", deadline=None, derandomize=True, database=None)
settings.load_profile("jepa")
