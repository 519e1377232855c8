"""The cases of damage that were reported, each by itself (docs/reliability.md)."""

import gzip
import io
import json
import time
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from cmb_jax.anatomy import assets
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack
from cmb_jax.config import Config, ModelConfig
from cmb_jax.config_load import CONFIGS, config_from_file, config_from_json, config_to_json, read_config
from cmb_jax.datasets.bids.sidecar import facts_beside
from cmb_jax.datasets.images import read_grid
from cmb_jax.datasets.index import read_index
from cmb_jax.datasets.tables import read_csv, read_sheet
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.tables import read_columns
from cmb_jax.io.weights import load_weights

NOISE = np.random.default_rng(1).integers(0, 900, (40, 40, 24)).astype(np.int16)


def refused(read, *parts):
    with pytest.raises(UserError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1200
    for part in parts:
        assert part in text
    return text


@pytest.mark.parametrize("level", [0, 1, 9])
def test_no_flipped_bit_of_a_gzip_stream_goes_unnoticed(tmp_path, level):
    """Also behind the header's claim, in the checksum and in the length."""
    content = gzip.compress(nib.Nifti1Image(NOISE, np.eye(4)).to_bytes(), level, mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    good = read_volume(path).data
    rng = np.random.default_rng(0)
    places = [*rng.integers(10, len(content), 60), *range(len(content) - 8, len(content))]
    unseen = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_volume(path).data, good)
            unseen += 1  # padding between blocks of the stream
        except UserError:
            continue
    assert unseen <= 2


def test_what_follows_the_image(tmp_path):
    whole = nib.Nifti1Image(NOISE, np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole) + bytes(500))  # padding
    read_volume(path)
    path.write_bytes(gzip.compress(whole) + b"rubbish")
    refused(lambda: read_volume(path), "other bytes follow")
    for name, content in (("a.nii.gz", gzip.compress(whole + bytes(5000))), ("a.nii", whole + bytes(5000))):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: read_volume(tmp_path / name), "more than its header says")


def test_a_bomb_behind_an_image(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(NOISE, np.eye(4)).to_bytes() + bytes(2**28)))
    tracemalloc.start()
    refused(lambda: read_volume(path), "more than its header says")
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


GEOMETRY = {
    "meters": (np.diag([0.5, 0.5, 0.5, 1]), "meter"),
    "1e5 mm": (np.diag([1e5, 1, 1, 1]), "mm"),
    "1e300": (np.diag([1e300, 1, 1, 1]), "mm"),
    "too small": (np.diag([1e-4, 1e-4, 1e-4, 1]), "mm"),
    "far away": (np.array([[1, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "mm"),
    "flat": (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "mm"),
}


@pytest.mark.parametrize("what", GEOMETRY)
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.filterwarnings("ignore")
def test_impossible_geometry_is_refused_before_anything_is_made_of_it(tmp_path, what, version, capsys):
    affine, unit = GEOMETRY[what]
    image = version(NOISE, None)
    for name, row in zip(("srow_x", "srow_y", "srow_z"), affine, strict=False):
        image.header[name] = row
    image.header["sform_code"] = 1
    image.header.set_xyzt_units(unit)
    (tmp_path / "a.nii").write_bytes(_bytes(image))
    refused(lambda: read_volume(tmp_path / "a.nii"), "a.nii")
    refused(lambda: read_grid(tmp_path / "a.nii"), "a.nii")
    assert capsys.readouterr() == ("", "")


def _bytes(image):
    """The header as it is, which to_bytes would write anew from the affine."""
    header = image.header
    header["magic"] = (
        b"n+1" if header["sizeof_hdr"] == 348 else b"n+2\0\r\n\x1a\n"[: header["magic"].dtype.itemsize]
    )
    header["vox_offset"] = 544 if header["sizeof_hdr"] == 540 else 352
    return header.binaryblock + b"\0" * 4 + NOISE.tobytes(order="F")


def test_a_2d_image_with_both_forms(tmp_path):
    image = nib.Nifti1Image(NOISE[:, :, 0], np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "a.nii.gz")
    refused(lambda: read_volume(tmp_path / "a.nii.gz"), "is not a volume")
    refused(lambda: read_grid(tmp_path / "a.nii.gz"), "is not a volume")


def book_with(tmp_path, part, change):
    book = openpyxl.Workbook()
    book.active.append(["x", "y", "z"])
    book.save(tmp_path / "good.xlsx")
    with zipfile.ZipFile(tmp_path / "good.xlsx") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[part] = change(members[part])
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return tmp_path / "a.xlsx"


SHEET, STYLES = "xl/worksheets/sheet1.xml", "xl/styles.xml"
BOMBS = {
    "cells": (SHEET, lambda x: x.replace(b"</row>", b"<c/>" * 10_000_000 + b"</row>")),
    "rows": (SHEET, lambda x: x.replace(b"</sheetData>", b"<row/>" * 8_000_000 + b"</sheetData>")),
    "styles": (STYLES, lambda x: x.replace(b"</cellXfs>", b"<xf/>" * 8_000_000 + b"</cellXfs>")),
    "far row": (SHEET, lambda x: x.replace(b'<row r="1"', b'<row r="1048576"')),
    "zeros": (SHEET, lambda x: x + b" " * 2**27),
}


@pytest.mark.parametrize("what", BOMBS)
def test_workbooks_that_are_bombs(tmp_path, what):
    path = book_with(tmp_path, *BOMBS[what])
    assert path.stat().st_size < 500_000
    tick = time.process_time()
    tracemalloc.start()
    refused(lambda: read_sheet(path), "a.xlsx")
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()
    assert time.process_time() - tick < 20


def test_numbers_and_texts_without_bounds(tmp_path):
    (tmp_path / "a.json").write_text(f'{{"EchoTime": 1{"0" * 400}, "MagneticFieldStrength": {"9" * 5000}}}')
    facts = facts_beside(tmp_path / "a.nii.gz", "its JSON")
    assert facts.echo_time_ms is None
    assert facts.field_strength_t is None
    assert all(len(note) < 200 for note in facts.notes)
    long = tmp_path / "long.csv"
    long.write_text(f"x_mm,y_mm,z_mm\n{'1' * 140_000},2,3\n")
    refused(lambda: read_columns(long, required=("x_mm",)), "field larger")
    refused(lambda: read_csv(long, ("x_mm",)), "field larger")
    long.write_text(f"x_mm,y_mm,z_mm\n{'x' * 5000},2,3\n")
    refused(lambda: read_columns(long, required=("x_mm",)).numbers("x_mm"), "line 2")
    index = {"format": "cmb-jax data index", "version": 1, "kind": "folder", "root": ".", "cases": []}
    for change in (
        {"kind": ["folder"]},
        {"root": "x" * 5000},
        {"root": 5},
        {"cases": 1},
        {"version": 10**400},
    ):
        (tmp_path / "i.json").write_text(json.dumps(index | change))
        refused(lambda: read_index(tmp_path / "i.json"), "i.json")
    case = {"case_id": "a", "patient_id": "a", "cohort": "c", "truth": None}
    case["images"] = {"swi": "y" * 5000}
    (tmp_path / "i.json").write_text(json.dumps(index | {"cases": [case | {"notes": []}]}))
    refused(lambda: read_index(tmp_path / "i.json"), "i.json")


@pytest.mark.parametrize(
    "change",
    [
        {"model": []},
        {"model": {"widths": 5}},
        {"model": {"widths": ["a", 2, 3]}},
        {"model": {"encoder_convs": [0, 1, 2, 10**9]}},
        {"inference": {"score_threshold": "high"}},
        {"inference": {"score_threshold": None}},
        {"inference": {"tile_shape": [1, 2]}},
        {"train": {"steps": 1.5}},
        {"train": {"precision": "float8"}},
        {"data": {"spacing_mm": [1.0, 0.5, float("inf")]}},
        {"name": 5},
        {"nothing": 1},
    ],
)
def test_a_configuration_of_other_types(tmp_path, change):
    values = json.loads(config_to_json(Config()))
    for part, new in change.items():
        values[part] = values[part] | new if isinstance(new, dict) and part in values else new
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    refused(lambda: read_config(path, "do this"), "config.json", "do this")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"x"', "[" * 100_000])
def test_a_configuration_that_is_cut(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    refused(lambda: read_config(path, "do this"), "config.json")


def test_a_configuration_goes_there_and_back():
    config = Config(
        name="x", model=ModelConfig(widths=(4, 6, 8), encoder_convs=(0, 1, 1), decoder_convs=(0, 1))
    )
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    "code",
    [
        "undefined_name",
        "raise KeyError('x')",
        "raise SystemExit(3)",
        "1 / 0",
        "def get_config(): return get_config()",
        "raise MemoryError",
        "x = '\\ud800'.encode()",
    ],
)
def test_a_configuration_file_whose_program_fails(tmp_path, code):
    (tmp_path / "c.py").write_text(code)
    refused(lambda: config_from_file(tmp_path / "c.py"), "c.py", str(CONFIGS))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "U64", "F64"])
def test_weights_of_other_types(tmp_path, kind):
    size = {"F8_E4M3": 1, "F8_E5M2": 1, "U64": 8, "F64": 8}[kind]
    header = json.dumps({"a": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * size))
    if kind.startswith("F8"):
        refused(lambda: load_weights(path), "w.safetensors")
    else:
        assert load_weights(path)[0]["a"].shape == (4,)
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: load_weights(path), "w.safetensors")


def test_weights_that_are_not_finite(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = np.array([1.0, np.nan], "<f4").tobytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    refused(lambda: load_weights(path), "not finite")


def test_a_pack_that_others_put_into_the_cache_is_built_again(tmp_path, capsys):
    def pack(value):
        return AnatomyPack(
            fractions=np.full((3, 4, 5, NUM_CHANNELS), value, np.uint8),
            code=np.zeros((3, 4, 5), np.uint8),
            affine=np.eye(4),
            name="x",
        )

    path = tmp_path / "pack.npz"
    assert assets.cached_pack(path, lambda: pack(1)).fractions.max() == 1
    assert assets.cached_pack(path, lambda: pack(9)).fractions.max() == 1
    (tmp_path / "other").mkdir()
    assets.cached_pack(tmp_path / "other" / "pack.npz", lambda: pack(7))
    path.write_bytes((tmp_path / "other" / "pack.npz").read_bytes())
    assert assets.cached_pack(path, lambda: pack(2)).fractions.max() == 2
    assert "built again" in capsys.readouterr().err
    assert assets.cached_pack(path, lambda: pack(9)).fractions.max() == 2
    path.with_suffix(".sha256").unlink()
    assert assets.cached_pack(path, lambda: pack(3)).fractions.max() == 3


def test_an_archive_member_of_another_kind(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "pack.npz", "w") as archive:
        archive.writestr("fractions.npy", stream.getvalue())
    assert assets._read_pack(tmp_path / "pack.npz") is None
