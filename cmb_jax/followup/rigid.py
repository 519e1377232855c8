"""Rigid motion between two scans, as 4 x 4 matrices of RAS mm."""

from __future__ import annotations

import numpy as np


def moved(matrix: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Points (..., 3) under an affine map (4, 4)."""
    return np.asarray(points_mm, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The motion back, exactly rigid as its argument is."""
    back = np.eye(4)
    back[:3, :3] = matrix[:3, :3].T
    back[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return back


def rotation_deg(matrix: np.ndarray) -> float:
    """The angle of the rotation, 0 to 180 degrees."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
