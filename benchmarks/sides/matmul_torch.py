"""A matrix product in PyTorch: what the processor can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Prepared
from benchmarks.sides.on_torch import finish, start


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Square, float32."""
    where = start(device)
    n = options["size"]
    a = torch.from_numpy(np.random.default_rng(8).standard_normal((n, n), np.float32)).to(where)

    def run() -> Tensor:
        product = a @ a
        finish()
        return product

    return Prepared(run=run, result=lambda c: float(c.abs().mean()))
