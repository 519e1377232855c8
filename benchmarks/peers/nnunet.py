"""nnU-Net v2: its own fingerprint, plan, preprocessing, network, loss, augmentation and predictor.

Only the loop is ours: steps until the CPU budget is spent, the rate following the budget instead of epochs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.peers.contest import SPACING_MM, Budget, Finder, Found, components, spheres
from benchmarks.peers.torch_loop import count, restore, start, train_loop
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.io.atomic import atomic_write_text

DATASET, NUMBER = "Dataset001_Microbleeds", 1
MEMORY_GB = 2.0  # that the patch is planned for
POWER = 0.9
OVERLAP_STEP = 0.9  # of a window's edge from one window to the next
CONFIGURATION = "3d_fullres"
_FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


def train(subjects: Sequence[StoredSubject], folder: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """Plan and preprocess (not in the budget), then nnU-Net's own steps."""
    start(seed)
    facts = prepare(subjects, folder)
    trainer = make_trainer(folder)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    # augmentation in this process, whose time is counted; the planner would refuse the 0
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  its name
    batches, _ = trainer.get_dataloaders()
    budget = Budget(folder, budget.seconds)  # from here on

    def take_step(share: float) -> float:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** POWER
        return float(trainer.train_step(next(batches))["loss"])

    trainer.network.train()
    train_loop(folder, budget, {"network": trainer.network, "optimizer": trainer.optimizer}, take_step)
    return {"parameters": count(trainer.network), **budget.facts, **facts}


def load(folder: Path) -> Finder:
    """nnU-Net's predictor on the last weights, components as candidates."""
    trainer = make_trainer(folder)
    trainer.initialize()
    restore(folder / "state.pt", {"network": trainer.network})
    return finder_of(trainer)


def finder_of(trainer: Any) -> Finder:
    """nnU-Net's predictor with a trainer's network as the comparison uses it."""
    predictor = make_predictor(trainer)

    def find(image: np.ndarray) -> Found:
        channels = np.ascontiguousarray(np.asarray(image, np.float32).transpose(3, 0, 1, 2))
        _, probabilities = predictor.predict_single_npy_array(
            channels, {"spacing": list(SPACING_MM)}, save_or_return_probabilities=True
        )
        return components(probabilities[1])

    return find


def make_predictor(trainer: Any) -> Any:
    """The predictor of a trainer's network."""
    predictor = nnUNetPredictor(
        tile_step_size=OVERLAP_STEP, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        None,
    )
    return predictor


def use_folders(folder: Path) -> None:
    """Tell nnU-Net where its data lie."""
    for name, part in _FOLDERS.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / part)


def make_trainer(folder: Path) -> Any:
    """nnU-Net's trainer on all subjects, with its plan."""
    use_folders(folder)
    plans = json.loads((folder / "preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    description = json.loads((folder / "raw" / DATASET / "dataset.json").read_text())
    plans["continue_training"] = False
    return nnUNetTrainer(plans, CONFIGURATION, "all", description, torch.device("cpu"))


def prepare(subjects: Sequence[StoredSubject], folder: Path) -> dict[str, Any]:
    """Plan and preprocess, unless that is done; the planned patch and batch."""
    facts = plan(subjects, folder)
    done = folder / "preprocessed" / "done"
    if not done.exists():
        preprocess([NUMBER], configurations=(CONFIGURATION,), num_processes=(1,))
        done.touch()
    return facts


def plan(subjects: Sequence[StoredSubject], folder: Path) -> dict[str, Any]:
    """Raw data set, fingerprint and plan, unless they are there; the planned patch and batch."""
    use_folders(folder)
    raw, planned = folder / "raw" / DATASET, folder / "preprocessed" / DATASET / "nnUNetPlans.json"
    if not planned.exists():
        for number, subject in enumerate(subjects):
            write_case(subject, raw, f"case_{number:03d}")
        description = {
            "channel_names": {"0": "SWI", "1": "phase"},
            "labels": {"background": 0, "microbleed": 1, "ignore": 2},
            "numTraining": len(subjects),
            "file_ending": ".nii.gz",
        }
        atomic_write_text(raw / "dataset.json", json.dumps(description) + "\n", overwrite=True)
        extract_fingerprints([NUMBER], num_processes=1)
        plan_experiments([NUMBER], gpu_memory_target_in_gb=MEMORY_GB)
    configuration = json.loads(planned.read_text())["configurations"][CONFIGURATION]
    return {"patch": configuration["patch_size"], "batch": configuration["batch_size"]}


def write_case(subject: StoredSubject, raw: Path, name: str) -> None:
    """The images and labels of one subject; NIfTI has x first."""
    z, y, x = SPACING_MM
    affine = np.diag([x, y, z, 1.0])
    image = np.asarray(subject.image(), np.float32)
    label = spheres(subject.boxes(), image.shape[:3]).astype(np.uint8)
    label[spheres(subject.ignored_boxes(), image.shape[:3]) & (label == 0)] = 2
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    for channel in range(2):
        volume = nib.Nifti1Image(image[..., channel].T, affine)
        nib.save(volume, raw / "imagesTr" / f"{name}_000{channel}.nii.gz")
    nib.save(nib.Nifti1Image(label.T, affine), raw / "labelsTr" / f"{name}.nii.gz")
