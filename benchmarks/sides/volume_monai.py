"""From a prepared volume to detections with the PyTorch twin, MONAI's sliding window and suppression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression
from monai.inferers import sliding_window_inference
from torch import Tensor

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_torch import device_peak_mb, fastest, finish, forms_of, start
from benchmarks.torch_detector import STEM_STRIDE, TorchDetector, channels_first, channels_last
from benchmarks.torch_weights import to_torch
from cmb_jax.config import Config, Triple
from cmb_jax.detector.anchors import MAX_LOG_RATIO, anchor_sizes
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.inference.proposals import pad_to, round_up

__all__ = ["device_peak_mb", "prepare"]

EDGE = 128  # of the window in y and x; in z it holds all slices of a clinical scan
DEPTH = 80
OVERLAP = 0.25  # MONAI's default, as are one window at a time and constant weights


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The network in the precision and form that is fastest, in windows or in one pass."""
    where = start(device)
    bundle = load_bundle("small")
    config = bundle.config
    model = TorchDetector(config.model).to(where).eval()
    to_torch(bundle.params, model)
    image = inputs.head(inputs.triple(options["shape"]))
    stride = config.model.total_stride
    z, y, x = (round_up(size, step) for size, step in zip(image.shape[:3], stride, strict=True))
    roi = (min(z, DEPTH), min(y, EDGE), min(x, EDGE)) if options["sliding"] else (z, y, x)

    @torch.inference_mode()
    def detections(forward: Callable[..., Any]) -> Tensor:
        padded = torch.from_numpy(pad_to(image, (z, y, x))).to(where)
        batch = channels_first(padded[None])

        def maps(tile: Tensor) -> tuple[Tensor, Tensor]:
            tile = tile.contiguous(memory_format=torch.channels_last_3d)
            return forward(tile)[1:]

        whole = roi == (z, y, x)
        objectness, deltas = maps(batch) if whole else sliding_window_inference(batch, roi, 1, maps, OVERLAP)
        boxes = select(objectness[0], deltas[0], config)
        finish()
        return boxes

    forward, note = fastest(forms_of(model, casts_each_time=False), detections)
    windows = f"window {' x '.join(map(str, roi))}" + (f", overlap {OVERLAP}" if options["sliding"] else "")
    return Prepared(
        run=lambda: detections(forward),
        result=lambda boxes: float(len(boxes)),
        note=f"{windows}; {note}",
    )


def select(objectness: Tensor, deltas: Tensor, config: Config) -> Tensor:
    """Boxes (K, 6) kept, from objectness (A, Z, Y, X) and box codes (6 A, Z, Y, X)."""
    settings = config.inference
    anchors, *grid = objectness.shape
    logits = objectness.permute(1, 2, 3, 0).reshape(-1)
    best, index = logits.topk(min(settings.max_candidates, len(logits)))
    scores = best.sigmoid()
    index = index[scores >= settings.candidate_threshold]
    scores = scores[: len(index)]
    sizes = anchor_sizes(config.model.anchor_diameters_mm, config.data.spacing_mm)
    codes = channels_last(deltas[None])[0].reshape(-1, anchors, 6)[index // anchors, index % anchors]
    boxes = decode(index, codes, (grid[0], grid[1], grid[2]), sizes)
    return boxes[non_max_suppression(boxes, scores, settings.nms_iou, settings.max_detections)]


def decode(index: Tensor, codes: Tensor, grid: Triple, sizes: np.ndarray) -> Tensor:
    """Boxes (K, 6) of the anchors with flat numbers (K,), as `cmb_jax.detector.anchors.decode_boxes`."""
    anchors = len(sizes)
    cell = torch.stack(torch.unravel_index(index // anchors, grid), dim=-1)
    size = torch.from_numpy(sizes).to(codes)[index % anchors]
    center = (cell + 0.5) * torch.tensor(STEM_STRIDE).to(codes) + codes[:, :3] * size
    half = 0.5 * size * codes[:, 3:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return torch.cat([center - half, center + half], dim=1)
