"""The detector's loss in PyTorch: that of `cmb_jax.detector.total_loss` with the defaults of `LossConfig`.

Shapes are static but for the assignment, which looks at each true box's own neighborhood and so runs in
Python over the boxes: in eager mode that is far quicker than a dense pass a box.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.torch_detector import STEM_STRIDE, TorchDetector, channels_last
from cmb_jax.config import LossConfig
from cmb_jax.detector.anchors import MIN_SIZE
from cmb_jax.detector.prototype_losses import Concentration
from cmb_jax.detector.total_loss import MAX_BOX_ANCHORS

SMOOTH_L1_BETA = 1 / 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchTerms:
    """As `cmb_jax.detector.total_loss.LossTerms`; detached scalars."""

    objectness: Tensor
    box: Tensor
    concentration: Tensor
    semantic: Tensor
    total: Tensor
    positives: Tensor
    hard_negatives: Tensor


def detection_loss(
    model: TorchDetector,
    features: Tensor,
    objectness: Tensor,
    boxes: Tensor,
    valid: Tensor,
    mimics: Tensor,
    sizes: Tensor,
    config: LossConfig,
) -> tuple[Tensor, TorchTerms]:
    """Objectness + weighted box + weighted concentration loss.

    Args:
        model: gives box codes, embeddings and prototypes.
        features: (B, C, Z, Y, X) of the proposal grid.
        objectness: (B, A, Z, Y, X) logits.
        boxes: (B, M, 6) in voxels of the working grid.
        valid: (B, M) bool: the box is not padding.
        mimics: (B, Z, Y, X) uint8, not 0 where a known mimic lies.
        sizes: (A, 3) edge lengths of the anchors in voxels, of the logits' type.
        config: thresholds and weights.

    Returns:
        The total () and its terms.
    """
    logits = channels_last(objectness).flatten(1)  # (B, N), N = Z Y X A
    features = channels_last(features)
    grid, anchors = features.shape[1:4], sizes.shape[0]
    with torch.no_grad():
        boxes = torch.where(valid[..., None], boxes.to(sizes), boxes.new_tensor([0, 0, 0, 1, 1, 1]).to(sizes))
        label, matched = assign(boxes, valid, grid, sizes, config)
        positives = (label == 1).sum()
        chosen, chosen_valid = spread(label == 1, MAX_BOX_ANCHORS)
        own = boxes.gather(1, matched.gather(1, chosen)[..., None].expand(-1, -1, 6))
        target = encode(chosen, grid, sizes, own)
    focal = focal_sum(logits, label, config.focal_alpha, config.focal_gamma) / positives.clamp(min=1)

    concentration = logits.new_zeros(())
    hard_negatives = positives.new_zeros(())
    assert isinstance(config.prototype, Concentration), "the one that is written in PyTorch"
    if not model.config.use_prototypes:
        cells = _cells(features, chosen // anchors)
    else:
        with torch.no_grad():
            on_mimic = (mimics != 0).flatten(1).repeat_interleave(anchors, dim=1)
            slots = (config.max_positives, config.max_hard_negatives)
            mined, mined_valid = mine(logits, label, on_mimic, *slots)
            hard = torch.arange(mined.shape[1], device=mined.device) >= config.max_positives
            hard_negatives = (mined_valid & hard).sum()
        cells = _cells(features, torch.cat([chosen, mined], dim=1) // anchors)
        cells, mined_cells = cells.split([chosen.shape[1], mined.shape[1]], dim=1)
        samples = concentration_loss(
            model.embedding(mined_cells, mined % anchors),
            hard.long(),
            mined_valid,
            model.prototypes,
            config.prototype.gamma,
            config.prototype.pull,
        )
        concentration = samples.sum() / mined_valid.sum().clamp(min=1)
    codes = model.box_codes(cells, chosen % anchors)
    errors = F.smooth_l1_loss(codes, target, beta=SMOOTH_L1_BETA, reduction="none")
    box = (errors * chosen_valid[..., None]).sum() / chosen_valid.sum().clamp(min=1)
    total = focal + config.box_weight * box + config.concentration_weight * concentration
    return total, TorchTerms(
        objectness=focal.detach(),
        box=box.detach(),
        concentration=concentration.detach(),
        semantic=torch.zeros_like(concentration),
        total=total.detach(),
        positives=positives,
        hard_negatives=hard_negatives,
    )


def assign(
    boxes: Tensor, valid: Tensor, grid: torch.Size, sizes: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Label of every anchor and its truth's number, as `cmb_jax.detector.assignment.assign_lattice`.

    Args:
        boxes: (B, M, 6).
        valid: (B, M) bool.
        grid: cells (Z, Y, X).
        sizes: (A, 3) voxels.
        config: thresholds.

    Returns:
        label (B, N) int8: 1 positive, 0 negative, -1 ignored; matched (B, N) int64.
    """
    batch, anchors = boxes.shape[0], sizes.shape[0]
    best = boxes.new_zeros(batch, *grid, anchors)
    matched = torch.zeros_like(best, dtype=torch.int64)
    forced: list[tuple[int, int, int]] = []  # patch, flat anchor, truth
    reach = [0.5 * size for size in sizes.amax(dim=0).tolist()]
    half, volume = 0.5 * sizes, sizes[:, 0] * sizes[:, 1] * sizes[:, 2]
    corners = boxes.tolist()
    for patch, number in valid.nonzero().tolist():
        corner = corners[patch][number]
        first, window, overlaps = [], [], []
        for axis, (cells, stride) in enumerate(zip(grid, STEM_STRIDE, strict=True)):
            near, far = corner[axis], corner[axis + 3]
            low = min(max(int((near - reach[axis]) // stride), 0), cells)
            high = min(max(int((far + reach[axis]) // stride) + 1, low), cells)
            centers = (torch.arange(low, high, device=boxes.device, dtype=boxes.dtype) + 0.5)[
                :, None
            ] * stride
            overlap = (centers + half[:, axis]).clamp(max=far) - (centers - half[:, axis]).clamp(min=near)
            overlaps.append(overlap.clamp_(min=0))  # (cells, A)
            first.append(low)
            window.append(slice(low, high))
        if any(part.stop <= part.start for part in window):
            continue
        z, y, x = overlaps
        inter = z[:, None, None] * y[:, None] * x
        edges = (boxes[patch, number, 3:] - boxes[patch, number, :3]).clamp(min=0)
        union = volume + edges[0] * edges[1] * edges[2] - inter
        iou = torch.where(union > 0, inter / union, 0)
        at = (patch, *window)
        better = iou > best[at]
        best[at] = torch.where(better, iou, best[at])
        matched[at].masked_fill_(better, number)
        claim = _claim(iou, first, grid, {flat for p, flat, _ in forced if p == patch})
        if claim is not None:
            forced.append((patch, claim, number))
    label = (best >= config.positive_iou).to(torch.int8)
    label.masked_fill_((best >= config.negative_iou) & (best < config.positive_iou), -1)
    label, matched = label.flatten(1), matched.flatten(1)
    if forced:
        patches, flat, numbers = torch.tensor(forced, device=boxes.device).unbind(1)
        label[patches, flat] = 1
        matched[patches, flat] = numbers
    return label, matched


def _claim(iou: Tensor, first: list[int], grid: torch.Size, taken: set[int]) -> int | None:
    """Flat number of the best anchor (ties: the lowest) of a window (z, y, x, A) that is not yet taken."""
    _, y, x, anchors = iou.shape
    iou = iou.flatten().clone()
    while True:
        value, place = iou.max(dim=0)
        if value <= 0:
            return None
        cell, anchor = divmod(int(place), anchors)
        row, column = cell // x, cell % x
        cell = ((row // y + first[0]) * grid[1] + row % y + first[1]) * grid[2] + column + first[2]
        if cell * anchors + anchor not in taken:
            return cell * anchors + anchor
        iou[place] = 0


def spread(flags: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Places (B, slots) of the set flags of (B, N) in rising order, an even choice if too many; valid."""
    ends = flags.cumsum(dim=1, dtype=torch.int32)
    found = ends[:, -1:]
    slot = torch.arange(slots, device=flags.device)
    rank = torch.where(found > slots, slot * found // slots, slot)
    valid = slot < found
    places = torch.searchsorted(ends, (rank + 1).to(torch.int32))
    return torch.where(valid, places, 0), valid


def mine(
    logits: Tensor, label: Tensor, mimic: Tensor, max_positives: int, max_negatives: int
) -> tuple[Tensor, Tensor]:
    """Positives and hardest negatives of (B, N): places (B, S) and valid; as `cmb_jax.detector.mining.mine`.

    Of equal scores at the last slot `topk` may take another one than JAX does.
    """
    score = logits.sigmoid().nan_to_num_(0.0)
    positive, positive_valid = spread(label == 1, max_positives)
    count = min(max_negatives, score.shape[1])
    best, negative = torch.where(label == 0, score + mimic, -1.0).topk(count, dim=1, sorted=False)
    rest = (0, max_negatives - count)
    places = torch.cat([positive, F.pad(negative, rest)], dim=1)
    return places, torch.cat([positive_valid, F.pad(best >= 0, rest)], dim=1)


def focal_sum(logits: Tensor, label: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the binary focal loss over (B, N) anchors; those labeled -1 add nothing."""
    with torch.no_grad():
        sign = torch.where(label == 1, 1.0, -1.0).to(logits)
        weight = torch.where(label == 1, -alpha, alpha - 1.0).to(logits).masked_fill_(label < 0, 0.0)
    margin = logits * sign
    log_right = F.logsigmoid(margin)
    return (torch.exp(gamma * (log_right - margin)) * log_right * weight).sum()


def concentration_loss(
    embeddings: Tensor, labels: Tensor, valid: Tensor, prototypes: Tensor, gamma: float, pull: float
) -> Tensor:
    """Distance cross-entropy plus pull, as `cmb_jax.detector.prototype_losses`.

    Args:
        embeddings: (B, S, E).
        labels: (S,) class of each slot.
        valid: (B, S) bool.
        prototypes: (2, K, E).
        gamma: temperature.
        pull: weight of the pull.

    Returns:
        (B, S), 0 where not valid.
    """
    distances = (embeddings[:, :, None, None] - prototypes).square().sum(dim=-1)  # (B, S, 2, K)
    by_class = torch.logsumexp(-gamma * distances, dim=-1)
    own = labels[None, :, None].expand(valid.shape[0], -1, 1)
    own_log_sum = by_class.gather(2, own).squeeze(2)
    own_nearest = distances.amin(dim=-1).gather(2, own).squeeze(2)
    return (torch.logsumexp(by_class, dim=-1) - own_log_sum + pull * own_nearest) * valid


def encode(anchor: Tensor, grid: torch.Size, sizes: Tensor, boxes: Tensor) -> Tensor:
    """Box codes (B, S, 6) of boxes (B, S, 6) relative to the anchors of flat numbers (B, S)."""
    anchors = sizes.shape[0]
    cell = torch.stack(torch.unravel_index(anchor // anchors, tuple(grid)), dim=-1)
    centers = (cell.to(sizes) + 0.5) * torch.tensor(STEM_STRIDE).to(sizes)
    size = sizes[anchor % anchors]
    near, far = boxes[..., :3], boxes[..., 3:]
    ratio = (far - near).clamp(min=MIN_SIZE) / size
    return torch.cat([(0.5 * (near + far) - centers) / size, ratio.log()], dim=-1)


def _cells(features: Tensor, cell: Tensor) -> Tensor:
    """Features (B, S, C) of the cells (B, S) of (B, Z, Y, X, C)."""
    rows = features.flatten(1, 3)
    start = torch.arange(rows.shape[0], device=cell.device)[:, None] * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, (cell + start).flatten()).view(*cell.shape, -1)
