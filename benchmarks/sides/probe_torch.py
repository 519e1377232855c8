"""Which GPU PyTorch sees."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Prepared


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The result is 1 with a CUDA device; the note is its name."""
    seen = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if seen else ""
    return Prepared(run=lambda: seen, result=float, note=name)
