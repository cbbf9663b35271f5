"""Joint-embedding predictive architectures, trained as pure functions.

A JEPA learns by predicting the *embedding* of one part of its input from another, never the input itself. Words used
throughout: the *context* is what is seen and the *target* what is predicted; the *predictor* maps one's embedding to
the other's; *SIGReg* keeps embeddings Gaussian, so that predicting a constant is no way out; an *objective* is such a
method as a handful of functions; an *observation* is what an encoder reads (for ARC grids, an object table).
"""


def load(workdir, checkpoint_step="latest"):
    """The encoder of a run folder; see `jepa.encode.load`."""
    from jepa import encode  # imported late: `import jepa` must not start JAX

    return encode.load(workdir, checkpoint_step)
