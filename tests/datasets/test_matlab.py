"""Our reader of MATLAB files against SciPy's writer and reader; damage is always told, never a crash."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import loadmat, savemat

from cmb_jax.datasets.tables import read_mat
from cmb_jax.errors import UserError

DTYPES = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@settings(max_examples=60, deadline=None)
@given(
    value=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5),
            elements=st.integers(0, 100),
        )
    ),
    compressed=st.booleans(),
)
def test_arrays_are_what_scipy_reads(tmp_path_factory, value, compressed):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    others = {"struct": {"a": 1}, "cell": np.array([1, "b"], object), "text": "word", "n": 7}
    savemat(path, {**others, "cen": value, "z": 1j}, do_compression=compressed)
    found = read_mat(path, ("cen", "n", "absent"))
    assert found.keys() == {"cen", "n"}
    np.testing.assert_array_equal(found["cen"], loadmat(path)["cen"])
    assert found["cen"].shape == value.shape
    assert found["n"] == [[7]]
    assert found["cen"].dtype == np.float64


@pytest.mark.parametrize("name", ["struct", "cell", "text", "z", "sparse"])
def test_what_holds_no_plain_numbers_is_refused(tmp_path, name):
    from scipy.sparse import eye_array

    values = {"struct": {"a": 1}, "cell": np.array([1, "b"], object), "text": "word", "z": 1j}
    savemat(tmp_path / "a.mat", {**values, "sparse": eye_array(3)})
    with pytest.raises(UserError, match=f"{name} holds no plain numbers"):
        read_mat(tmp_path / "a.mat", (name,))


def test_other_versions(tmp_path):
    savemat(tmp_path / "4.mat", {"cen": np.ones((2, 3))}, format="4")
    with pytest.raises(UserError, match="not a readable MATLAB file of version 5 to 7"):
        read_mat(tmp_path / "4.mat", ("cen",))
    with pytest.raises(UserError, match="no such file"):
        read_mat(tmp_path / "none.mat", ("cen",))


def test_a_bomb_is_not_unpacked(tmp_path):
    savemat(tmp_path / "a.mat", {"cen": np.zeros((3000, 3000))}, do_compression=True)
    with pytest.raises(UserError, match="too large"):
        read_mat(tmp_path / "a.mat", ("cen",))


def test_big_endian(tmp_path):
    """Written by hand: tag, flags, shape, packed name, numbers."""

    def tag(kind, length):
        return kind.to_bytes(4, "big") + length.to_bytes(4, "big")

    values = np.array([[1, 2, 3], [4, 5, 6]], ">f8")
    body = tag(6, 8) + (6).to_bytes(4, "big") + bytes(4)
    body += tag(5, 8) + np.array([2, 3], ">i4").tobytes()
    body += (3).to_bytes(2, "big") + (1).to_bytes(2, "big") + b"cen\0"
    body += tag(9, 48) + values.tobytes(order="F")
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + tag(14, len(body)) + body)
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", ("cen",))["cen"], values)
    np.testing.assert_array_equal(loadmat(tmp_path / "a.mat")["cen"], values)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
    compressed=st.booleans(),
)
def test_damage_is_refused_or_harmless(tmp_path_factory, changes, keep, compressed):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    savemat(path, {"cen": np.arange(30.0).reshape(10, 3), "gt_num": 10}, do_compression=compressed)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content[: int(keep * len(content))])
    try:
        found = read_mat(path, ("cen", "gt_num"))
    except UserError:
        return
    assert all(value.dtype == np.float64 for value in found.values())
