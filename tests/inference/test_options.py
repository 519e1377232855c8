"""What results are made with: told by the options and the weights, kept in JSON, compared when read again."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cmb_jax.cohort.result import what_changed
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.errors import UserError
from cmb_jax.inference import options as module
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.options import ScanOptions


def bundle(**inference):
    config = Config(inference=InferenceConfig(score_threshold=0.6, **inference))
    return WeightsBundle(path=Path("a/tiny.safetensors"), sha256="5a" * 32, config=config, params={})


def changed(folder, then, now):
    """What `what_changed` says of a result made with the record `then`."""
    made = {
        "Making": then,
        "Version": "0",
        "Taken": {"Images": [], "Kind": "swi_alone"},
        "MagneticFieldStrength": 3.0,
        "Settings": {},
        "Steps": [],
        "Warnings": [],
        "RegionsTrusted": True,
    }
    path = folder / "table.json"
    path.write_text(json.dumps({"CmbJax": made}))
    return what_changed(SimpleNamespace(table_sidecar=path), (), now)


def test_the_record_is_what_options_and_weights_come_to():
    assert ScanOptions().record(bundle()) == {
        "Weights": {"Name": "tiny.safetensors", "SHA256": "5a" * 32},
        "Threshold": 0.6,
        "PhaseSign": "auto",
        "PhaseRange": "auto",
        "Precision": "float32",
        "Regions": "network",
    }
    asked = ScanOptions(threshold=0.7, phase_sign="-1", phase_range=("0", "255"), viewer=False)
    record = asked.record(bundle(flips="x", precision="mixed"), "ab" * 32)
    assert [record[name] for name in ("Threshold", "Flips", "PhaseSign", "PhaseRange", "Precision")] == [
        *(0.7, "x", "-1", "0 255", "mixed")
    ]
    assert record["Regions"] == {"LabelTableSHA256": "ab" * 32}
    with pytest.raises(UserError, match="--phase-range wide: give auto"):
        ScanOptions(phase_range=("wide",)).record(bundle())


@pytest.mark.parametrize(
    ("then", "now", "wanted"),
    [
        ({}, {}, None),
        ({"flips": "x", "precision": "mixed"}, {"flips": "x", "precision": "mixed"}, None),
        ({}, {"flips": "x"}, "flips"),
        ({"flips": "x"}, {}, "flips"),
        ({"precision": "bfloat16"}, {"precision": "mixed"}, "precision"),
    ],
)
def test_a_result_is_stale_where_weights_are_used_otherwise(tmp_path, then, now, wanted):
    records = [ScanOptions().record(bundle(**inference)) for inference in (then, now)]
    assert changed(tmp_path, *records) == wanted


def test_a_result_of_an_earlier_version_lacks_what_was_not_an_option(tmp_path):
    now = ScanOptions().record(bundle())
    then = {name: value for name, value in now.items() if name not in ("Precision", "Regions")}
    assert changed(tmp_path, then, now) is None
    assert changed(tmp_path, then, ScanOptions().record(bundle(precision="mixed"))) == "precision"


def test_an_option_that_nothing_else_tells_is_recorded_by_its_name(tmp_path, monkeypatch):
    # as one that is added later
    monkeypatch.setattr(module, "_NOT_BY_NAME", module._NOT_BY_NAME - {"save_regions"})
    usual, asked = ScanOptions(), ScanOptions(save_regions=True)
    assert (usual.further(), asked.further()) == ({}, {"save_regions": True})
    records = [options.record(bundle()) for options in (usual, asked)]
    assert [record.get("SaveRegions") for record in records] == [None, True]
    for then, now in (records, records[::-1]):
        assert changed(tmp_path, then, now) == "saveregions"
    assert changed(tmp_path, records[1], records[1]) is None


def test_fields_of_a_command_are_no_options_of_a_scan():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Command(ScanOptions):
        jobs: int = 1

    assert Command(jobs=3).further() == {}
