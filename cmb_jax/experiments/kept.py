"""Arrays that took long to make, in a file that says what they were made of."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.outside import read_arrays

_MADE_OF = "made_of"


def write_kept(path: Path, made_of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays in the place of older ones.

    Raises:
      UserError: the file cannot be written.
    """
    blob = io.BytesIO()
    # NumPy's own annotation takes no names of arrays
    np.savez_compressed(blob, **{_MADE_OF: np.array(made_of), **arrays})  # type: ignore[arg-type]
    atomic_write_bytes(path, blob.getvalue(), overwrite=True)


def read_kept(path: Path, made_of: str) -> dict[str, np.ndarray] | None:
    """What `write_kept` wrote; None if there is nothing, of something else, or damaged: make it anew."""
    try:
        arrays = read_arrays(path)
    except UserError:
        return None
    if str(arrays.pop(_MADE_OF, "")) != made_of:
        return None
    return arrays
