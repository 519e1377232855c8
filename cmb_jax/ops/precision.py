"""Which precision a device offers."""

from __future__ import annotations

import logging
from typing import Literal

import jax

from cmb_jax.ops.cpu import library

_log = logging.getLogger(__name__)


def usable_precision(
    wish: Literal["float32", "mixed", "bfloat16"], setting: str, device: jax.Device | None = None
) -> Literal["float32", "mixed", "bfloat16"]:
    """The precision that is wished for, or float32 and a line in the log where the device has no better.

    Accelerators always have one: TensorFloat-32 or bfloat16. A processor needs instructions for bfloat16;
    `conv3d` rounds without them too, but gains nothing by it.

    Args:
        wish: one of the three of `config.Precision`.
        setting: its name, for the line.
        device: that is to work; default: JAX's first.
    """
    platform = jax.devices()[0].platform if device is None else device.platform
    if wish == "float32" or platform != "cpu" or library.multiplies_bfloat16():
        return wish
    _log.warning("%s %s: this processor has no instructions for bfloat16; float32 is used", setting, wish)
    return "float32"
