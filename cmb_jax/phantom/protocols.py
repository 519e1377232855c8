"""Acquisitions that can be simulated."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.phantom.types import SubjectSettings

GAMMA_BAR_MHZ_PER_T = 42.577  # proton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One three-dimensional gradient-echo sequence; ranges are drawn from for each subject."""

    name: str
    spacing_mm: tuple[float, float, float]  # (x, y, z) of the acquired and stored grid
    field_of_view_mm: tuple[float, float, float]  # whole multiples of the spacing
    discarded_slices: int  # at either end of the slab, as scanners do where the excitation falls off
    te_ms: tuple[float, float]
    b0_t: tuple[float, ...]
    snr: tuple[float, float]
    phase_sign: int  # +1: paramagnetic tissue is stored with positive phase
    b0_direction: tuple[float, float, float]  # unit vector in array axes

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Acquired voxels (x, y, z), discarded slices included."""
        x, y, z = (round(f / s) for f, s in zip(self.field_of_view_mm, self.spacing_mm, strict=True))
        return (x, y, z)


_FIELD_OF_VIEW_MM = (192.0, 240.0, 162.0)
_TILT = math.radians(8.0)  # slices tipped about the left-right axis

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="iso05",
            spacing_mm=(0.5, 0.5, 2.0),
            field_of_view_mm=_FIELD_OF_VIEW_MM,
            discarded_slices=2,
            te_ms=(20.0, 20.0),
            b0_t=(3.0,),
            snr=(15.0, 40.0),
            phase_sign=1,
            b0_direction=(0.0, 0.0, 1.0),
        ),
        Protocol(
            name="iso08",
            spacing_mm=(0.8, 0.8, 2.0),
            field_of_view_mm=_FIELD_OF_VIEW_MM,
            discarded_slices=2,
            te_ms=(25.0, 40.0),
            b0_t=(1.5, 3.0),
            snr=(15.0, 40.0),
            phase_sign=-1,
            b0_direction=(0.0, math.sin(_TILT), math.cos(_TILT)),
        ),
        Protocol(
            name="thick3",
            spacing_mm=(1.0, 1.0, 3.0),
            field_of_view_mm=_FIELD_OF_VIEW_MM,
            discarded_slices=1,
            te_ms=(20.0, 40.0),
            b0_t=(1.5, 3.0),
            snr=(15.0, 40.0),
            phase_sign=1,
            b0_direction=(0.0, 0.0, 1.0),
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; UserError listing the names when there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; choose one of: {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def check_protocol(protocol: Protocol) -> None:
    """UserError where a protocol cannot be simulated."""
    if not 0 < protocol.te_ms[0] <= protocol.te_ms[1] <= 100:
        raise UserError(
            f"protocol {protocol.name}: te_ms is {protocol.te_ms}; allowed: 0 < low <= high <= 100"
        )
    if not protocol.b0_t or not all(0.1 <= b <= 14 for b in protocol.b0_t):
        raise UserError(f"protocol {protocol.name}: b0_t is {protocol.b0_t}; allowed: 0.1 to 14 T")
    if protocol.phase_sign not in (-1, 1):
        raise UserError(f"protocol {protocol.name}: phase_sign is {protocol.phase_sign}; allowed: +1 or -1")
    if not 0 < protocol.snr[0] <= protocol.snr[1]:
        raise UserError(f"protocol {protocol.name}: snr is {protocol.snr}; allowed: 0 < low <= high")
    sizes = np.array(protocol.field_of_view_mm) / np.array(protocol.spacing_mm)
    if not np.allclose(sizes, np.round(sizes), atol=1e-6):
        raise UserError(f"protocol {protocol.name}: field_of_view_mm must be whole multiples of spacing_mm")
    if not math.isclose(math.hypot(*protocol.b0_direction), 1.0, abs_tol=1e-5):
        raise UserError(f"protocol {protocol.name}: b0_direction must have length 1")


def check_settings(settings: SubjectSettings) -> Protocol:
    """The protocol that the settings name; UserError where a setting makes no sense."""
    protocol = get_protocol(settings.protocol)
    check_protocol(protocol)
    if settings.mean_cmbs is not None and not 0 <= settings.mean_cmbs <= 80:
        raise UserError(
            f"mean_cmbs is {settings.mean_cmbs}; allowed: 0 to 80, or none for patient-like counts"
        )
    if not 0.4 <= settings.simulation_spacing_mm <= 4:
        raise UserError(f"simulation_spacing_mm is {settings.simulation_spacing_mm}; allowed: 0.4 to 4")
    return protocol


def rotation_to_scanner(b0_direction: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) smallest rotation from array axes to scanner axes: takes `b0_direction` to (0, 0, 1)."""
    b = np.asarray(b0_direction, np.float64)
    z = np.array([0.0, 0.0, 1.0])
    v, c = np.cross(b, z), float(b @ z)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + c)
