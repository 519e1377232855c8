"""A forward pass of the PyTorch twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_torch import device_peak_mb, fastest, finish, forms_of, start
from benchmarks.torch_detector import TorchDetector, channels_first
from benchmarks.torch_weights import to_torch

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """In inference mode, channels last, in the precision and form that is fastest."""
    where = start(device)
    config = inputs.MODELS[options["model"]]
    model = TorchDetector(config).to(where).eval()
    to_torch(inputs.parameters(config), model)
    image = channels_first(torch.from_numpy(inputs.image(inputs.triple(options["shape"]))[None])).to(where)

    @torch.inference_mode()
    def use(forward: Callable[..., Any]) -> Any:
        maps = forward(image)
        finish()
        return maps

    forward, note = fastest(forms_of(model, casts_each_time=False), use)
    return Prepared(run=lambda: use(forward), result=lambda maps: float(maps[2].abs().mean()), note=note)
