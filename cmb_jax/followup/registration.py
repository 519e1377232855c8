"""Rigid registration of two scans of one head, as 4 x 4 matrices of RAS mm, and whether it can be trusted.

Both images are resampled to 1 mm along the RAS axes. Mattes mutual information within the baseline's brain
(Mattes et al. 2003, IEEE Trans Med Imaging 22:120) is maximized by regular-step gradient descent over three
resolutions, with SimpleITK. Samples lie on a regular lattice and are summed by one thread, so that the same
images give the same matrix up to rounding.
"""

import dataclasses

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy import ndimage

from cmb_jax.io.volume import Volume

_GRID_MM = 1.0
_MARGIN_MM = 6.0
_SHRINK = (4, 2, 1)
_SMOOTHING_MM = (3.0, 1.5, 0.0)
_SAMPLED = (0.5, 0.2, 0.05)  # fraction of the voxels, at each resolution
_BINS = 32
_FIRST_STEP_MM, _LAST_STEP_MM, _MOST_STEPS = 2.0, 0.01, 150

# Limits that two scans of one head meet easily and scans of two different heads do not (docs/compare.md).
MIN_DICE = 0.85
MIN_CORRELATION = 0.6
MIN_SHARED = 0.3
MAX_ROTATION_DEG = 45.0
MAX_SHIFT_MM = 25.0


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a rigid motion (4, 4), which is exactly rigid too."""
    back = np.eye(4)
    back[:3, :3] = matrix[:3, :3].T
    back[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return back


def rotation_deg(matrix: np.ndarray) -> float:
    """The angle of the rotation, 0 to 180 degrees."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registration:
    """The position of the head at follow-up relative to the baseline, and how reliable it is."""

    matrix: np.ndarray  # (4, 4) rigid, baseline RAS mm -> follow-up RAS mm
    dice: float  # of the two brain masks, within the field of view of both scans
    correlation: float  # Pearson's, of the two images within both brain masks
    shared: float  # fraction of the baseline's brain within the follow-up's field of view
    rotation_deg: float
    shift_mm: float  # of the center of the brain, after both centers were aligned
    mutual_information: float  # in nats, of the finest resolution
    faults: tuple[str, ...] = ()  # why it must not be trusted, one clause each

    @property
    def trusted(self) -> bool:
        """Whether lesions may be called new or resolved."""
        return not self.faults


@dataclasses.dataclass(frozen=True)
class _Lattice:
    """An image and its brain mask on an isotropic grid along RAS."""

    data: np.ndarray  # (X, Y, Z) float32
    mask: np.ndarray  # (X, Y, Z) bool
    affine: np.ndarray

    @property
    def center_mm(self) -> np.ndarray:
        """(3,) center of the brain, RAS mm."""
        return apply_affine(self.affine, np.argwhere(self.mask).mean(axis=0))

    def image(self, values: np.ndarray) -> sitk.Image:
        """A SimpleITK image with RAS mm as its physical space."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
        image.SetOrigin(self.affine[:3, 3].tolist())
        image.SetSpacing([_GRID_MM] * 3)
        return image


def register(
    baseline: Volume, baseline_brain: np.ndarray, followup: Volume, followup_brain: np.ndarray
) -> Registration:
    """The rigid motion of the head from one scan to another.

    Args:
        baseline: image of the first scan, such as SWI.
        baseline_brain: (X, Y, Z) bool on its grid, not empty.
        followup: image of the second scan, of the same or a similar contrast.
        followup_brain: (X, Y, Z) bool on its grid, not empty.
    """
    fixed, moving = _lattice(baseline, baseline_brain), _lattice(followup, followup_brain)
    # The centers of both brains are aligned first: two scans of one head may lie centimeters apart, farther
    # than the optimizer can move. Samples are regular, not random, to give the same matrix every time.
    start = sitk.Euler3DTransform()
    start.SetCenter(fixed.center_mm.tolist())
    start.SetTranslation((moving.center_mm - fixed.center_mm).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(fixed.image(fixed.mask.astype(np.uint8)))
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel(_SAMPLED, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel(_SMOOTHING_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=_FIRST_STEP_MM,
        minStep=_LAST_STEP_MM,
        numberOfIterations=_MOST_STEPS,
        gradientMagnitudeTolerance=1e-8,
    )
    # radians and mm are not comparable: scale each parameter by how far it moves the image
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed.image(fixed.data), moving.image(moving.data))
        information = -float(method.GetMetricValue())
    except RuntimeError:  # the optimizer lost the overlap of the two images
        start.SetIdentity()
        information = 0.0
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(start.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = start.TransformPoint((0.0, 0.0, 0.0))
    return _judged(matrix, information, fixed, moving, followup)


def _lattice(volume: Volume, brain: np.ndarray) -> _Lattice:
    """The brain and a margin around it, smoothed first along axes that are finer than the new grid."""
    # the axes of the volume may be oblique to RAS, so all eight corners of the brain's box are needed
    inside = np.argwhere(brain)
    box = np.array([inside.min(axis=0), inside.max(axis=0)])
    corners = apply_affine(volume.affine, box[np.indices((2, 2, 2)).reshape(3, -1).T, np.arange(3)])
    low = corners.min(axis=0) - _MARGIN_MM
    shape = np.ceil((corners.max(axis=0) + _MARGIN_MM - low) / _GRID_MM).astype(int) + 1
    affine = np.diag([_GRID_MM] * 3 + [1.0])
    affine[:3, 3] = low
    # half of (factor - 1) voxels is the usual blur before shrinking by a factor; coarser axes are not blurred
    sigma = [max(0.0, 0.5 * (_GRID_MM / edge - 1.0)) for edge in volume.spacing_mm]
    smooth = ndimage.gaussian_filter(volume.data, sigma)
    to_voxel = np.linalg.inv(volume.affine) @ affine
    data = _resampled(smooth, to_voxel, tuple(shape), order=1)
    mask = _resampled(brain.astype(np.uint8), to_voxel, tuple(shape), order=0)
    return _Lattice(data.astype(np.float32), mask > 0, affine)


def _resampled(values: np.ndarray, to_voxel: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """`values` resampled to a grid of this shape; `to_voxel` (4, 4) maps its indices to those of `values`."""
    return ndimage.affine_transform(
        values, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=shape, order=order
    )


def _judged(
    matrix: np.ndarray, information: float, fixed: _Lattice, moving: _Lattice, followup: Volume
) -> Registration:
    """The matrix with measures of its fit."""
    shape = fixed.mask.shape
    to_moving = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    to_followup = np.linalg.inv(followup.affine) @ matrix @ fixed.affine
    data = _resampled(moving.data, to_moving, shape, order=1)
    mask = _resampled(moving.mask.astype(np.uint8), to_moving, shape, order=0) > 0
    seen = _resampled(np.ones(followup.shape, np.uint8), to_followup, shape, order=0) > 0
    # compare only within the follow-up's field of view: a slab must not look like a bad registration
    first, second = fixed.mask & seen, mask & seen
    both = first & second
    dice = 2 * both.sum() / max(int(first.sum() + second.sum()), 1)
    correlation = float(np.corrcoef(fixed.data[both], data[both])[0, 1]) if both.sum() > 1 else 0.0
    shared = first.sum() / fixed.mask.sum()
    rotation = rotation_deg(matrix)
    shift = float(np.linalg.norm(apply_affine(matrix, fixed.center_mm) - moving.center_mm))
    faults = {
        f"the brains overlap by a Dice of {dice:.2f} (needed: {MIN_DICE:g})": dice < MIN_DICE,
        f"the images correlate by {correlation:.2f} (needed: {MIN_CORRELATION:g})": (
            not correlation >= MIN_CORRELATION  # NaN too
        ),
        f"the scans share {100 * shared:.0f} % of the brain (needed: {100 * MIN_SHARED:.0f} %)": (
            shared < MIN_SHARED
        ),
        f"a rotation by {rotation:.0f} degrees is not plausible": rotation > MAX_ROTATION_DEG,
        f"a shift by {shift:.0f} mm against the brain's middle is not plausible": shift > MAX_SHIFT_MM,
    }
    return Registration(
        matrix=matrix,
        dice=round(float(dice), 4),
        correlation=round(float(np.nan_to_num(correlation)), 4),
        shared=round(float(shared), 4),
        rotation_deg=round(rotation, 3),
        shift_mm=round(shift, 3),
        mutual_information=round(information, 4),
        faults=tuple(text for text, present in faults.items() if present),
    )
