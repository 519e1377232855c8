"""Our network in PyTorch: with the loss of the JAX side's defaults, or with nnDetection's ideas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import ours
from benchmarks.peers.contest import Budget, Finder, spheres
from benchmarks.peers.torch_loop import count, start, train_loop
from benchmarks.torch_detector import Conv, TorchDetector, channels_last
from benchmarks.torch_loss import TorchTerms
from benchmarks.torch_step import TorchBatch, TorchTrainer, learning_rate
from benchmarks.torch_weights import to_jax
from cmb_jax.config import PROPOSAL_STRIDE, Config, LossConfig
from cmb_jax.data.patches import PatchBatch, patch_batches
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.anchors import MAX_LOG_RATIO
from cmb_jax.inference.bundle import save_bundle
from cmb_jax.training.detector import template_of

CANDIDATES = 4  # ATSS: nearest cells of each anchor size
SAMPLED = 32  # anchors per patch that the objectness loss looks at
POSITIVE_SHARE = 1 / 3
POOL = 20  # negatives are drawn from so many times as many that score highest
RATE, MOMENTUM, DECAY, POWER, WARMUP = 0.01, 0.9, 3e-5, 0.9, 4000 / (50 * 2500)


def train(
    subjects: Sequence[StoredSubject], folder: Path, budget: Budget, seed: int, ideas: bool
) -> dict[str, Any]:
    """Train the twin; its averaged weights are written as ours, for inference by the same program."""
    start(seed)
    config = twin_config(seed, prototypes=not ideas)
    trainer = (IdeasTrainer if ideas else BudgetTrainer)(config)
    batches = patch_batches(subjects, config.data, seed=seed, first_step=int(budget.facts.get("steps", 0)))

    def take_step(share: float) -> float:
        trainer.share = share
        terms, _ = trainer.train_step(torch_batch(next(batches), trainer.params[0]))
        return float(terms.total)

    parts = {"model": trainer.model, "optimizer": trainer.optimizer, "rest": trainer}
    train_loop(folder, budget, parts, take_step)
    names = [name for name, _ in trainer.model.named_parameters()]
    averaged = dict(zip(names, trainer.ema, strict=True))
    save_bundle(folder / "weights.safetensors", to_jax(averaged, template_of(config).shapes()), config)
    return {"parameters": count(trainer.model)}


def load(folder: Path, ideas: bool) -> Finder:
    """The weights in our network: the same function, and the same suppression."""
    return ours.load(folder)


def twin_config(seed: int, *, prototypes: bool) -> Config:
    """`configs/base.py` as far as the twin has it."""
    config = ours.named_config("base", seed)
    model = dataclasses.replace(config.model, box_width=0, semantic_head=False, use_prototypes=prototypes)
    return dataclasses.replace(config, model=model, loss=LossConfig())


def torch_batch(batch: PatchBatch, like: Tensor) -> TorchBatch:
    """A batch without the ignored lesions, which the twin does not know."""
    return TorchBatch.of(
        dataclasses.replace(batch, boxes_valid=batch.boxes_valid & ~batch.boxes_ignored), like
    )


class BudgetTrainer(TorchTrainer):
    """The twin's trainer, its schedule after the share of the budget that is spent."""

    def __init__(self, config: Config) -> None:
        super().__init__(TorchDetector(config.model), config)
        self.share = 0.0

    def rate(self) -> float:
        """As over the configuration's steps, had each taken its share of the budget."""
        return learning_rate(self.config.train, max(1, round(self.share * self.config.train.steps)))

    def state_dict(self) -> dict[str, Any]:
        """What model and optimizer do not hold."""
        return {"ema": self.ema, "step": self.step, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.ema, self.step, self.updates = state["ema"], state["step"], state["updates"]


class IdeasTrainer(BudgetTrainer):
    """ATSS, hard negative mining with cross-entropy, GIoU, segmentation with Dice and cross-entropy; SGD.

    Baumgartner et al. 2021 (nnDetection); Zhang et al. 2020 (ATSS); Rezatofighi et al. 2019 (GIoU).
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.segmentation = self.model.segmentation = Conv(self.model.fusion.outputs, 1)
        self.params = list(self.model.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.params]
        self.optimizer = torch.optim.SGD(  # type: ignore[assignment]
            self.params, RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
        )

    def rate(self) -> float:
        """Linear warm-up, then a polynomial."""
        return RATE * min(1.0, max(self.share, 1e-4) / WARMUP) * (1 - self.share) ** POWER

    def loss(self, batch: TorchBatch) -> tuple[Tensor, TorchTerms]:
        """Objectness + box + segmentation, all of weight 1."""
        model, fused = self.model, self.model.fused(batch.image)
        features = model.head.block(fused)
        logits = channels_last(model.head.objectness(features))  # (B, Z, Y, X, A)
        grid, anchors = logits.shape[1:4], logits.shape[4]
        cells = channels_last(features)
        scores, targets, positives, box = [], [], 0, logits.new_zeros(())
        for patch in range(len(logits)):
            boxes = batch.boxes[patch][batch.valid[patch]]
            flat, truth = atss(boxes, grid, self.sizes)
            chosen = sample(logits[patch].flatten(), flat)
            scores.append(logits[patch].flatten()[chosen])
            targets.append(torch.isin(chosen, flat).to(logits))
            positives += len(flat)
            if len(flat):
                cell = cells[patch].flatten(0, 2)[flat // anchors]
                codes = model.box_codes(cell, flat % anchors)
                box = box + (1 - giou(decode(codes, flat, grid, self.sizes), boxes[truth])).sum()
        objectness = F.binary_cross_entropy_with_logits(torch.cat(scores), torch.cat(targets))
        box = box / max(1, positives)
        semantic = segmentation_loss(self.segmentation(fused)[:, 0], batch)
        total = objectness + box + semantic
        zero = torch.zeros(())
        return total, TorchTerms(
            objectness=objectness.detach(),
            box=box.detach(),
            concentration=zero,
            semantic=semantic.detach(),
            total=total.detach(),
            positives=torch.tensor(positives),
            hard_negatives=zero,
        )


def atss(boxes: Tensor, grid: Sequence[int], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Positive anchors by adaptive training sample selection, anchor sizes taking the place of levels.

    Args:
        boxes: (M, 6) in voxels.
        grid: cells (Z, Y, X).
        sizes: (A, 3) edges of the anchors in voxels.

    Returns:
        Flat numbers (P,) of distinct anchors, and the truth (P,) of each: that of most overlap.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    stride = torch.tensor(PROPOSAL_STRIDE).to(boxes)
    middle = (boxes[:, :3] + boxes[:, 3:]) / 2 / stride - 0.5  # in cells, whole numbers are their centers
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    near = middle.round().long()[:, None] + offsets  # (M, 27, 3)
    inside = ((near >= 0) & (near < torch.tensor(grid))).all(-1)
    # cells are cubes of 1 mm: distances in cells are distances
    far = (near - middle[:, None]).norm(dim=-1).masked_fill(~inside, math.inf)
    distance, nearest = far.topk(CANDIDATES, largest=False)
    cell = near.gather(1, nearest[..., None].expand(-1, -1, 3))  # (M, 4, 3)
    centers = (cell + 0.5) * stride
    half = sizes / 2
    anchors = torch.cat([centers[:, :, None] - half, centers[:, :, None] + half], -1)  # (M, 4, A, 6)
    overlap = iou(anchors, boxes[:, None, None])[0].masked_fill(distance.isinf()[..., None], -1.0)
    valid = overlap >= 0
    some = overlap.where(valid, torch.nan).flatten(1)
    mean = some.nanmean(1)
    spread = ((some - mean[:, None]) ** 2).nanmean(1).sqrt()
    positive = valid & (overlap >= (mean + spread)[:, None, None])
    number = torch.arange(len(sizes))
    z, y, x = cell.unbind(-1)
    flat = ((z * grid[1] + y) * grid[2] + x)[..., None] * len(sizes) + number
    truth = torch.arange(len(boxes))[:, None, None].expand_as(flat)
    flat, truth, overlap = flat[positive], truth[positive], overlap[positive]
    order = overlap.argsort(descending=True, stable=True)
    flat, truth = flat[order], truth[order]
    first = torch.from_numpy(np.unique(flat.numpy(), return_index=True)[1])
    return flat[first], truth[first]


def sample(logits: Tensor, positive: Tensor) -> Tensor:
    """Anchors that the objectness loss looks at: positives and negatives drawn from the highest scores.

    Args:
        logits: (N,) of a patch.
        positive: (P,) flat numbers.

    Returns:
        Flat numbers, at most `SAMPLED`.
    """
    most = int(SAMPLED * POSITIVE_SHARE)
    positive = positive[torch.randperm(len(positive))[:most]]
    wanted = SAMPLED - len(positive)
    ranked = logits.detach().clone()
    ranked[positive] = -math.inf
    pool = ranked.topk(min(wanted * POOL, len(ranked) - len(positive))).indices
    return torch.cat([positive, pool[torch.randperm(len(pool))[:wanted]]])


def decode(codes: Tensor, flat: Tensor, grid: Sequence[int], sizes: Tensor) -> Tensor:
    """Boxes (P, 6) of the box codes (P, 6) of anchors (P,)."""
    size = sizes[flat % len(sizes)]
    cell = torch.stack(torch.unravel_index(flat // len(sizes), tuple(grid)), -1)
    center = (cell + 0.5) * torch.tensor(PROPOSAL_STRIDE).to(codes) + codes[:, :3] * size
    half = size * codes[:, 3:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], -1)


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap of boxes (..., 6) over their union, and the union."""
    shared = (torch.minimum(a[..., 3:], b[..., 3:]) - torch.maximum(a[..., :3], b[..., :3])).clamp(min=0)
    union = volume(a) + volume(b) - shared.prod(-1)
    return shared.prod(-1) / union, union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized overlap (...) of boxes (..., 6), -1 to 1."""
    overlap, union = iou(a, b)
    around = torch.cat([torch.minimum(a[..., :3], b[..., :3]), torch.maximum(a[..., 3:], b[..., 3:])], -1)
    return overlap - (volume(around) - union) / volume(around)


def volume(boxes: Tensor) -> Tensor:
    """Voxels (...) of boxes (..., 6)."""
    return (boxes[..., 3:] - boxes[..., :3]).prod(-1)


def segmentation_loss(logits: Tensor, batch: TorchBatch) -> Tensor:
    """Soft Dice over the batch plus cross-entropy of the lesions' cells, logits (B, Z, Y, X)."""
    shape = tuple(logits.shape[1:])
    masks = [
        spheres(boxes[valid].numpy(), shape, PROPOSAL_STRIDE)
        for boxes, valid in zip(batch.boxes, batch.valid, strict=True)
    ]
    target = torch.from_numpy(np.stack(masks)).to(logits)
    found = logits.sigmoid()
    dice = (2 * (found * target).sum() + 1e-5) / (found.sum() + target.sum() + 1e-5)
    return F.binary_cross_entropy_with_logits(logits, target) + 1 - dice
