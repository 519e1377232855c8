"""One training step of the PyTorch twin, equal to `cmb_jax.training.detector.train_step`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.torch_detector import TorchDetector, channels_first
from benchmarks.torch_loss import TorchTerms, detection_loss
from cmb_jax.config import Config, TrainConfig
from cmb_jax.data.patches import PatchBatch
from cmb_jax.detector.anchors import anchor_sizes

Maps = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchBatch:
    """A batch of patches. B patches, Z Y X voxels, M truths."""

    image: Tensor  # (B, 2, Z, Y, X), channels last in memory
    boxes: Tensor  # (B, M, 6)
    valid: Tensor  # (B, M) bool
    mimics: Tensor  # (B, Z, Y // 2, X // 2) uint8

    @classmethod
    def of(cls, batch: PatchBatch, like: Tensor) -> TorchBatch:
        """The batch of the data pipeline, with the type and device of `like`; no copy on CPU in float32."""
        image, boxes = (torch.from_numpy(part).to(like) for part in (batch.image, batch.boxes))
        valid, mimics = (torch.from_numpy(part).to(like.device) for part in (batch.boxes_valid, batch.mimics))
        return cls(image=channels_first(image), boxes=boxes, valid=valid, mimics=mimics)


class TorchTrainer:
    """Model, AdamW, moving average and counters of one run.

    Args:
        model: its parameters are trained in place.
        config: the experiment.
        maps: what gives features and objectness; `torch.compile(model.training_maps)` for a compiled run,
            `model.training_maps` where None.

    Raises:
        ValueError: the model has a block for its boxes or a semantic head, whose losses the twin lacks.
    """

    def __init__(self, model: TorchDetector, config: Config, maps: Maps | None = None) -> None:
        if config.model.box_width or config.model.semantic_head:
            raise ValueError("the twin trains without box_width and semantic_head: leave them out")
        self.model, self.config = model, config
        self.maps = model.training_maps if maps is None else maps
        self.params: list[Tensor] = list(model.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.params]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.params if p.ndim >= 5], "weight_decay": config.train.weight_decay},
            {"params": [p for p in self.params if p.ndim < 5]},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.0,
            fused=True,
        )
        sizes = anchor_sizes(config.model.anchor_diameters_mm, config.data.spacing_mm)
        self.sizes = torch.from_numpy(sizes).to(self.params[0])
        self.step = self.updates = self.skipped = self.skipped_in_a_row = 0

    def loss(self, batch: TorchBatch) -> tuple[Tensor, TorchTerms]:
        """Total loss () of a batch and its terms."""
        features, objectness = self.maps(batch.image)
        return detection_loss(
            self.model,
            features,
            objectness,
            batch.boxes,
            batch.valid,
            batch.mimics,
            self.sizes,
            self.config.loss,
        )

    def rate(self) -> float:
        """Learning rate of the next update."""
        return learning_rate(self.config.train, self.updates)

    def train_step(self, batch: TorchBatch) -> tuple[TorchTerms, Tensor]:
        """Gradient, clipped update, moving average; what is not finite changes only the counters.

        Returns:
            The terms of the loss and the gradient's norm () before clipping.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self.loss(batch)
        loss.backward()
        # A parameter that the loss does not reach has a gradient of zero, as in JAX: it decays all the same.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        norm = torch.nn.utils.get_total_norm(grads)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            limit = self.config.train.clip_norm
            if norm >= limit:
                torch._foreach_mul_(grads, limit / norm)
            for parameter, grad in zip(self.params, grads, strict=True):
                parameter.grad = grad
            self._update()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.step += 1
        return terms, norm

    @torch.no_grad()
    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        decay = min(self.config.train.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(self.ema, self.params, 1.0 - decay)
        self.updates += 1


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak; step 0 has rate 0."""
    warmup = min(config.warmup_steps, max(1, config.steps // 2))
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = min(1.0, (step - warmup) / (max(config.steps, warmup + 1) - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (0.99 * cosine + 0.01)
