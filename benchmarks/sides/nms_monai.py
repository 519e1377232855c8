"""MONAI's non-maximum suppression."""

from __future__ import annotations

from typing import Any

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_torch import device_peak_mb, finish, start

__all__ = ["device_peak_mb", "prepare"]

IOU = 0.1


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The same boxes, threshold and limit as ours."""
    where = start(device)
    count = options["boxes"]
    boxes, scores = (torch.from_numpy(part).to(where) for part in inputs.clustered_boxes(count))

    def run() -> Tensor:
        kept = torch.as_tensor(non_max_suppression(boxes, scores, IOU, max_proposals=count // 5))
        finish()
        return kept

    return Prepared(run=run, result=lambda kept: float(len(kept)))
