"""From a prepared volume to boxes with MONAI's RetinaNet, sliding window and box selector, random weights."""

from __future__ import annotations

from typing import Any

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.peers import retinanet
from benchmarks.peers.contest import Found
from benchmarks.sides.on_torch import device_peak_mb, start

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The detector of the comparison, untrained."""
    start(device)
    image = inputs.head(inputs.triple(options["shape"]))
    find = retinanet.finder_of(retinanet.make_detector())

    def run() -> Found:
        return find(image)

    return Prepared(
        run=run,
        result=lambda found: float(len(found.scores)),
        note=f"random weights, window {' x '.join(map(str, retinanet.WINDOW))}, overlap 0.25",
    )
