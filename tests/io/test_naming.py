from pathlib import Path

import pytest

from cmb_jax.io.provenance import is_pseudonym, shown_name, stem

SHA = "3fa81b2c" + "0" * 56
PSEUDONYMS = (
    "sub-01_ses-2_part-phase_T2starw",
    "sub-OAS30001",
    "swi",
    "mag_echo1",
    "T2star-phase",
    "phase 02",
)
TELLING = (
    "DOE_JANE_swi",
    "swi_19400131",
    "jane",
    "Sub 01",
    "sub-01_DOE_JANE",
    "swi_4711",
    "",
    "é_swi",
    "a.b",
)


@pytest.mark.parametrize("name", PSEUDONYMS)
def test_names_that_say_nothing_of_a_person_are_shown(name):
    assert is_pseudonym(name)
    assert shown_name(Path("/home/doe") / f"{name}.nii.gz", SHA) == f"{name}.nii.gz"


@pytest.mark.parametrize("name", TELLING)
def test_other_names_are_not(name):
    assert not is_pseudonym(name)
    assert shown_name(Path("/home/doe") / f"{name}.NII.gz", SHA) == "file-3fa81b2c.nii.gz"
    assert shown_name(Path("/home/doe") / f"{name}.nii", SHA, keep_identifiers=True) == f"{name}.nii"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("A.NII", "A"), ("b.c.csv", "b.c"), ("plain", "plain"), (".hidden", ".hidden")],
)
def test_stem(name, expected):
    assert stem(name) == expected
