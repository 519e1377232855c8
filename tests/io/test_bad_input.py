"""Every bad image gives one line that names the file and says what to do."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_echoes, read_volume


def header_of(shape, dtype=np.int32):
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4


def image_bytes(data):
    return nib.Nifti1Image(data, np.eye(4)).to_bytes()


NOISE = np.random.default_rng(1).normal(size=(12, 11, 10)).astype(np.float32)


def missing(path):
    del path


def text_renamed(path):
    path.write_text("this is no image\n" * 50)


def text_compressed(path):
    path.write_bytes(gzip.compress(b"this is no image\n" * 50))


def empty(path):
    path.write_bytes(b"")


def truncated_gzip(path):
    content = gzip.compress(image_bytes(NOISE))
    path.write_bytes(content[: len(content) // 2])


def gzip_without_its_checksum(path):
    path.write_bytes(gzip.compress(image_bytes(NOISE))[:-6])


def gzip_with_a_flipped_bit(path):
    content = bytearray(gzip.compress(image_bytes(NOISE), 0))
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def truncated_plain(path):
    path.write_bytes(image_bytes(NOISE)[:-500])


def gzip_of_truncated(path):
    path.write_bytes(gzip.compress(image_bytes(NOISE)[:-500]))


def flat(path):
    path.write_bytes(image_bytes(NOISE[:, :, 0]))


def one_slice(path):
    path.write_bytes(image_bytes(NOISE[:, :, :1]))


def series(path):
    path.write_bytes(image_bytes(np.stack([NOISE, NOISE], axis=-1)))


def zeros(path):
    path.write_bytes(image_bytes(np.zeros((5, 5, 5), np.int16)))


def constant(path):
    path.write_bytes(image_bytes(np.full((5, 5, 5), 7, np.int16)))


def all_nan(path):
    path.write_bytes(image_bytes(np.full((5, 5, 5), np.nan, np.float32)))


def color(path):
    path.write_bytes(image_bytes(np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])))


def huge_plain(path):
    path.write_bytes(header_of((2000, 2000, 2500)))


def huge_gzip(path):
    path.write_bytes(gzip.compress(header_of((2000, 2000, 2500))))


def more_than_gzip_can_hold(path):
    path.write_bytes(gzip.compress(header_of((700, 700, 700))))


def negative_shape(path):
    path.write_bytes(header_of((-5, 4, 4)) + b"\0" * 4000)


def unknown_type(path):
    block = bytearray(header_of((4, 4, 4)))
    block[70:72] = np.int16(4242).tobytes()
    path.write_bytes(bytes(block) + b"\0" * 4000)


def singular_affine(path):
    image = nib.Nifti1Image(NOISE, None)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
    )
    image.header["sform_code"] = 1
    content = bytearray(image.to_bytes())
    content[254:256] = np.int16(1).tobytes()
    content[280:328] = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    path.write_bytes(bytes(content))


def half_of_a_pair(path):
    path.write_bytes(nib.Nifti1Pair(NOISE, np.eye(4)).header.binaryblock + b"\0" * 10000)


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "no such file"),
        (text_renamed, "not a NIfTI file"),
        (text_compressed, "not a NIfTI file"),
        (empty, "shorter than a NIfTI header"),
        (truncated_gzip, "truncated"),
        (gzip_without_its_checksum, "truncated"),
        (gzip_with_a_flipped_bit, "damaged"),
        (truncated_plain, "truncated"),
        (gzip_of_truncated, "truncated"),
        (flat, "not a volume"),
        (one_slice, "not a volume"),
        (series, "2 volumes"),
        (zeros, "every voxel is 0"),
        (constant, "every voxel is 7"),
        (all_nan, "no voxel holds a number"),
        (color, "colors"),
        (huge_plain, r"40\.0 GB"),
        (huge_gzip, r"40\.0 GB"),
        (more_than_gzip_can_hold, "truncated"),
        (negative_shape, "impossible shape"),
        (unknown_type, "makes no sense"),
        (singular_affine, "singular"),
        (half_of_a_pair, r"\.hdr/\.img"),
        (folder, "is a folder"),
    ],
)
def test_one_line_that_helps(tmp_path, make, says):
    path = tmp_path / "scan.nii.gz"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=says) as caught:
            read_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    assert peak < 20e6  # a claim of gigabytes is refused before memory is asked for


def test_huge_claims_are_refused_for_echoes_too(tmp_path):
    huge_gzip(tmp_path / "scan.nii.gz")
    with pytest.raises(UserError, match="40"):
        read_echoes(tmp_path / "scan.nii.gz")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii"
    path.write_bytes(image_bytes(NOISE))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(UserError, match="Permission denied"):
        read_volume(path)
