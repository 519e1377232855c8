"""cmb_jax: cerebral microbleeds in susceptibility MRI, found, named by place and reported.

Research use only; not a medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmb_jax.inference.predict import load_detector
    from cmb_jax.io.nifti import read_volume

    __version__: str

__all__ = ["__version__", "load_detector", "read_volume"]

# Imported when first asked for, so that `import cmb_jax` does not wait for JAX.
_HOMES = {"load_detector": "cmb_jax.inference.predict", "read_volume": "cmb_jax.io.nifti"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("cmb_jax._release").version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'cmb_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
