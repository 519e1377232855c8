"""cmb_jax: cerebral microbleeds in susceptibility MRI, found, named by place and reported.

    detector = cmb_jax.load_detector()
    prediction = detector.predict("swi.nii.gz", "phase.nii.gz")
    prediction.table()
    prediction.save("result")

Research use only; not a medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmb_jax.api import Detector, Prediction, load_detector, predict
    from cmb_jax.errors import UserError
    from cmb_jax.io.nifti import read_volume
    from cmb_jax.io.volume import Volume

    __version__: str

__all__ = [
    "Detector",
    "Prediction",
    "UserError",
    "Volume",
    "__version__",
    "load_detector",
    "predict",
    "read_volume",
]

# Imported when first asked for, so that `import cmb_jax` does not wait for JAX.
_HOMES = {
    "Detector": "cmb_jax.api",
    "Prediction": "cmb_jax.api",
    "UserError": "cmb_jax.errors",
    "Volume": "cmb_jax.io.volume",
    "load_detector": "cmb_jax.api",
    "predict": "cmb_jax.api",
    "read_volume": "cmb_jax.io.nifti",
}


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
