"""MONAI's RetinaNet as in its LUNA16 recipe: ResNet-50 with two pyramid levels, ATSS, hard negative mining.

Settings: the training configuration of MONAI's bundle lung_nodule_ct_detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  without it MONAI fails much later
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.nets import resnet

from benchmarks.peers.contest import SPACING_MM, Budget, Finder, Found
from benchmarks.peers.ours import named_config
from benchmarks.peers.torch_loop import count, restore, start, train_loop
from cmb_jax.data.patches import PatchBatch, patch_batches
from cmb_jax.data.subjects import StoredSubject

STRIDES = ((2, 4, 4), (4, 8, 8), (8, 16, 16))  # of the levels, in voxels
ANCHORS = (
    (2.0, 4.0, 4.0),
    (3.0, 6.0, 6.0),
    (4.0, 8.0, 8.0),
)  # on the finest level; twice and four times above
RATE, MOMENTUM, DECAY = 1e-2, 0.9, 3e-5
WARMUP, DROP = 1 / 30, 0.5  # 10 and 150 of 300 epochs
CLASS_WEIGHT = 0.5
WINDOW = (96, 192, 192)  # of inference


def make_detector() -> RetinaNetDetector:
    """The untrained detector with the recipe's matcher, sampler, losses and box selector."""
    backbone = resnet.ResNet(
        spatial_dims=3,
        block=resnet.ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=resnet.get_inplanes(),
        n_input_channels=2,
        conv1_t_stride=(1, 2, 2),  # type: ignore[arg-type]
        conv1_t_size=(7, 7, 7),  # type: ignore[arg-type]
    )
    features = resnet_fpn_feature_extractor(backbone, 3, False, returned_layers=(1, 2))
    network = RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=len(ANCHORS),
        feature_extractor=features,
        size_divisible=STRIDES[-1],
    )
    anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=(1, 2, 4), base_anchor_shapes=ANCHORS)
    detector = RetinaNetDetector(network=network, anchor_generator=anchors)
    detector.set_cls_loss(torch.nn.BCEWithLogitsLoss(reduction="mean"))
    detector.set_box_regression_loss(
        torch.nn.SmoothL1Loss(beta=1 / 9, reduction="mean"), encode_gt=True, decode_pred=False
    )
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(
        batch_size_per_image=64, positive_fraction=0.3, pool_size=20, min_neg=16
    )
    detector.set_target_keys(box_key="box", label_key="label")
    detector.set_box_selector_parameters(
        score_thresh=0.02, topk_candidates_per_level=1000, nms_thresh=0.22, detections_per_img=300
    )
    detector.set_sliding_window_inferer(roi_size=WINDOW, overlap=0.25, mode="gaussian", sw_batch_size=1)
    return detector


def train(subjects: Sequence[StoredSubject], folder: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """SGD on our patches until the budget is spent."""
    start(seed)
    detector = make_detector()
    detector.train()
    network = detector.network
    optimizer = torch.optim.SGD(
        network.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    data = named_config("base", seed).data
    batches = patch_batches(subjects, data, seed=seed, first_step=int(budget.facts.get("steps", 0)))

    def take_step(share: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, max(share, 1e-4) / WARMUP) * (0.1 if share > DROP else 1.0)
        images, targets = with_targets(next(batches))
        optimizer.zero_grad(set_to_none=True)
        losses = detector(images, targets)
        loss = CLASS_WEIGHT * losses[detector.cls_key] + losses[detector.box_reg_key]
        loss.backward()
        optimizer.step()
        return float(loss)

    train_loop(folder, budget, {"network": network, "optimizer": optimizer}, take_step)
    return {"parameters": count(network)}


def with_targets(batch: PatchBatch) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images (2, Z, Y, X) and what is in them, without ignored lesions; boxes are ours, axes z, y, x."""
    images = [torch.from_numpy(np.ascontiguousarray(image.transpose(3, 0, 1, 2))) for image in batch.image]
    shape = np.tile(batch.image.shape[1:4], 2)
    targets = []
    for boxes, keep in zip(batch.boxes, batch.boxes_valid & ~batch.boxes_ignored, strict=True):
        inside = np.clip(boxes[keep], 0, shape).astype(np.float32)
        inside = inside[(inside[:, 3:] - inside[:, :3] > 0.5).all(1)]
        targets.append({"box": torch.from_numpy(inside), "label": torch.zeros(len(inside), dtype=torch.long)})
    return images, targets


def load(folder: Path) -> Finder:
    """Windows over the scan with Gaussian weights, then the recipe's box selector."""
    detector = make_detector()
    restore(folder / "state.pt", {"network": detector.network})
    return finder_of(detector)


def finder_of(detector: RetinaNetDetector) -> Finder:
    """A detector as the comparison uses it."""
    detector.eval()

    @torch.inference_mode()
    def find(image: np.ndarray) -> Found:
        channels = torch.from_numpy(np.asarray(image, np.float32).transpose(3, 0, 1, 2).copy())
        found = detector([channels], use_inferer=True)[0]
        boxes = found["box"].numpy()
        return Found(
            centers=(boxes[:, :3] + boxes[:, 3:]) / 2,
            diameters_mm=(boxes[:, 3] - boxes[:, 0]) * SPACING_MM[0],
            scores=found["label_scores"].numpy(),
        )

    return find
