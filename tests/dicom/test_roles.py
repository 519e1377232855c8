"""What vendors' series are taken for, from headers as they write them."""

import dataclasses

import pytest

from cmb_jax.dicom.choose import Role
from tests.dicom.phantoms import (
    GE_PHASE,
    GE_SWAN,
    PHILIPS_MAGNITUDE,
    PHILIPS_PHASE,
    SIEMENS_MAGNITUDE,
    SIEMENS_MIP,
    SIEMENS_PHASE,
    SIEMENS_SWI,
    Series,
    write_series,
)
from tests.dicom.reading import found_in

PLAIN = Series(
    number=9, description="", image_type=("ORIGINAL", "PRIMARY", "M", "ND"), sequence="*fl3d1", scanning="GR"
)


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


CASES = {
    "Siemens SWI": (SIEMENS_SWI, Role.SWI),
    "Siemens magnitude": (SIEMENS_MAGNITUDE, Role.MAGNITUDE),
    "Siemens phase": (SIEMENS_PHASE, Role.PHASE),
    "Siemens projection": (SIEMENS_MIP, Role.PROJECTION),
    "projection by name alone": (plain(description="SWI_minIP"), Role.PROJECTION),
    "GE SWAN": (GE_SWAN, Role.SWI),
    "GE phase by its private code": (GE_PHASE, Role.PHASE),
    "GE real": (dataclasses.replace(GE_SWAN, ge_component=2), Role.REAL),
    "GE imaginary": (dataclasses.replace(GE_SWAN, ge_component=3), Role.IMAGINARY),
    "GE filtered phase by name": (
        dataclasses.replace(GE_SWAN, description="Filt_Pha: Ax SWAN", ge_component=0),
        Role.PHASE,
    ),
    "Philips SWIp": (PHILIPS_MAGNITUDE, Role.SWI),
    "Philips phase": (PHILIPS_PHASE, Role.PHASE),
    "renamed series of a SWI sequence": (plain(description="axial", sequence="*swi3d1r"), Role.MAGNITUDE),
    "T2* by name": (plain(description="t2_star_3d", echo_ms=None), Role.MAGNITUDE),
    "gradient echo with a long echo": (plain(description="axial gre", echo_ms=25.0), Role.MAGNITUDE),
    "gradient echo with a short echo": (plain(description="t1_fl3d", echo_ms=2.4), Role.OTHER),
    "spin echo": (plain(description="FSE PD AXIAL", scanning="SE", sequence="fse"), Role.OTHER),
    "diffusion": (plain(description="ep2d_diff", scanning=["EP", "GR"], echo_ms=80.0), Role.OTHER),
    "field map by name": (plain(description="gre_field_mapping", echo_ms=4.9), Role.OTHER),
    "field map by protocol": (plain(description="axial", protocol="GRE_FieldMapping"), Role.OTHER),
    "field map of GE, 2D": (plain(description="B0rf", echo_ms=12.0), Role.OTHER),
    "field map of GE, 3D": (plain(description="Ax 3db0map", echo_ms=12.0), Role.OTHER),
    "phase of a field map": (
        plain(description="B0 map", image_type=("ORIGINAL", "PRIMARY", "P", "ND")),
        Role.OTHER,
    ),
    "QSM map": (plain(description="SWI QSM"), Role.OTHER),
    "susceptibility map (SWIM)": (plain(description="SWIM"), Role.OTHER),
    "susceptibility map in full": (plain(description="Susceptibility map"), Role.OTHER),
    "result of a QSM network": (plain(description="QSMnet_result", sequence="*swi3d1r"), Role.OTHER),
    "mask": (plain(description="SWI_Phase_Mask"), Role.OTHER),
    "subtraction": (plain(description="SWI subtraction"), Role.OTHER),
    "segmentation": (plain(description="SWI SEG lesions"), Role.OTHER),
    "thick minimum": (plain(description="Ax SWI Thick MIN"), Role.PROJECTION),
    "Swiss is no SWI": (plain(description="Swiss scout", echo_ms=3.0), Role.OTHER),
    "swing is no SWI": (plain(description="swing_scout", echo_ms=3.0), Role.OTHER),
    "CT": (plain(description="SWI", modality="CT"), Role.OTHER),
    "localizer": (plain(description="SWI loc", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), Role.OTHER),
}


@pytest.mark.parametrize("name", CASES)
def test_role(tmp_path, phantom, name):
    series, role = CASES[name]
    write_series(tmp_path, series, phantom[0])
    (candidate,) = found_in(tmp_path)
    assert candidate.role is role
    assert candidate.reason
