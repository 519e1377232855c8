"""Names of BIDS and the inheritance principle of its sidecars."""

import json

import pytest

from cmb_jax.datasets.bids.layout import join_entities, label_of, parse_name
from cmb_jax.datasets.bids.sidecar import read_facts
from cmb_jax.errors import UserError
from tests.datasets.bids import tree


def test_a_name_is_taken_apart_and_put_together_again():
    stem = "sub-01_ses-pre_acq-hi_run-02_echo-1_part-phase"
    name = parse_name(f"{stem}_MEGRE.nii.gz")
    assert name.suffix == "MEGRE"
    assert join_entities(name.entities) == stem
    assert (name.get("run"), name.get("dir")) == ("02", None)
    assert join_entities(name.without("echo", "part")) == "sub-01_ses-pre_acq-hi_run-02"
    assert parse_name("T2starw.json").entities == ()


@pytest.mark.parametrize(
    "name", ["sub-01_swi copy.nii.gz", "sub-01__swi.nii.gz", "sub-_swi.nii", "sub-01_ses_swi.nii", "a_b.json",
             "sub-01_sub-02_swi.nii", "sub-01_swi (1).nii.gz", "sub-é_swi.nii"]
)  # fmt: skip
def test_other_names_are_none(name):
    assert parse_name(name) is None


def test_labels_come_with_or_without_their_key():
    assert label_of("sub-01", "sub") == label_of("01", "sub") == "01"
    for wrong in ("", "sub-", "../01", "sub-0/1", "0 1", "ses-1"):
        with pytest.raises(UserError, match="not a BIDS label"):
            label_of(wrong, "sub")


@pytest.fixture
def facts(tmp_path):
    """Writes sidecars by relative path, and gives what is known of the image then."""
    path = tree.image(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_part-mag_T2starw")

    def read(**sidecars):
        for where, content in sidecars.items():
            file = tmp_path / where.replace("__", "/")
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_facts(path, parse_name(path.name), tmp_path)

    return read


def test_the_nearer_sidecar_wins_and_the_rest_is_inherited(facts):
    known = facts(
        **{
            "T2starw.json": {"EchoTime": 0.04, "MagneticFieldStrength": 3, "Manufacturer": "GE MEDICAL"},
            "part-mag_T2starw.json": {"EchoTime": 0.03},
            "part-phase_T2starw.json": {"EchoTime": 0.001},
            "swi.json": {"EchoTime": 0.002},
            "sub-01__sub-01_T2starw.json": {"EchoTime": 0.02},
            "sub-01__ses-1__sub-01_ses-2_T2starw.json": {"EchoTime": 0.003},
            "sub-01__ses-1__anat__sub-01_ses-1_part-mag_T2starw.json": {"MagneticFieldStrength": 7},
        }
    )
    assert (known.echo_time_ms, known.field_strength_t, known.manufacturer) == (20.0, 7.0, "GE MEDICAL")
    assert known.notes == ()


@pytest.mark.parametrize("content", ["{", "[1, 2]", "null", "\x00\xff", "[" * 5000])
def test_a_sidecar_that_cannot_be_read_is_left_out_and_said(facts, content):
    known = facts(**{"T2starw.json": {"EchoTime": 0.03}, "sub-01__sub-01_T2starw.json": content})
    assert known.echo_time_ms == 30.0
    assert len(known.notes) == 1
    assert known.notes[0].startswith("sub-01/sub-01_T2starw.json: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("EchoTime", 20),  # milliseconds
        ("EchoTime", "0.02"),
        ("EchoTime", 0),
        ("EchoTime", True),
        ("EchoTime", [0.01, 0.02]),
        ("MagneticFieldStrength", 30000),  # gauss
        ("MagneticFieldStrength", -3),
        ("ParamagneticPhaseSign", 0),
        ("ParamagneticPhaseSign", True),
        ("ParamagneticPhaseSign", "1"),
    ],
)
def test_values_that_cannot_be_are_not_used(facts, key, value):
    known = facts(**{"T2starw.json": {key: value}})
    assert (known.echo_time_ms, known.field_strength_t, known.paramagnetic_sign) == (None, None, None)
    assert len(known.notes) == 1
    assert key in known.notes[0]


def test_not_a_number_in_a_sidecar(facts):
    assert facts(**{"T2starw.json": '{"EchoTime": NaN}'}).echo_time_ms is None
    assert facts(**{"T2starw.json": '{"Manufacturer": "a\\u0007b"}'}).manufacturer is None
