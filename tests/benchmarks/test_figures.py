"""Counts of operations against PyTorch's own counter, and fitted exponents against exact power laws."""

import jax
import numpy as np
import pytest

from benchmarks import inputs
from benchmarks.machine import cpu_model
from benchmarks.scaling import Curve, Sweep, curve_table, exponent
from benchmarks.table import Row
from benchmarks.turns import Measured, SideResult
from cmb_jax.config import ModelConfig
from cmb_jax.detector.network import forward_gflop, training_gflop

SHAPE = (8, 32, 48)


def torch_gflop(model, batch, backward):
    """What PyTorch counts for the twin on an image without values."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.torch_detector import TorchDetector

    with torch.device("meta"):
        detector = TorchDetector(model)
        image = torch.empty(batch, 2, *SHAPE)
    with FlopCounterMode(display=False) as counter:
        if backward:
            features, objectness = detector.training_maps(image)
            (features.sum() + objectness.sum()).backward()
        else:
            detector(image)
    return counter.get_total_flops() / 1e9


MODELS = [*inputs.MODELS.values(), ModelConfig(encoder_convs=(2, 1, 2, 2), decoder_convs=(1, 1, 1))]


@pytest.mark.parametrize("model", MODELS, ids=[*inputs.MODELS, "blocks on the finest level"])
@pytest.mark.parametrize("batch", [1, 3])
def test_operations_of_the_detector(model, batch):
    shapes = inputs.parameter_shapes(model)
    assert forward_gflop(shapes, SHAPE, batch) == pytest.approx(torch_gflop(model, batch, False), rel=1e-12)
    assert training_gflop(shapes, SHAPE, batch) == pytest.approx(torch_gflop(model, batch, True), rel=1e-12)


def test_operations_by_hand():
    """A 3 x 3 x 3 kernel from 8 to 16 channels on half the voxels in y and in x: 2 * 27 * 8 * 16 each."""
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 8, 16), np.float32)
    shapes = {"unet": {"stem": {"conv": {"kernel": kernel, "bias": jax.ShapeDtypeStruct((16,), np.float32)}}}}
    voxels = 4 * 5 * 6
    assert forward_gflop(shapes, (4, 10, 12)) == pytest.approx(2 * 27 * 8 * 16 * voxels / 1e9)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.3])
def test_exponent_of_a_power_law(power):
    sizes = np.array([1e3, 3e3, 7e4, 1e6])
    assert exponent(sizes, 0.2 * sizes**power) == pytest.approx(power, abs=1e-9)


def test_exponent_leaves_out_what_is_missing_or_too_small():
    assert exponent([1, 10, 100, 1000], [1.0, None, 100.0, 1000.0], least=0.5) == pytest.approx(1)
    assert exponent([1, 10, 100, 1000], [4.9, 4.9, 100.0, 1e5], least=5.0) == pytest.approx(3)
    assert exponent([1, 10, 100], [None, 2.0, None]) is None


def test_curve_of_a_sweep(fakes):
    """Our time grows with the square, the other's with the size; memory of a side with one point has none."""
    sizes = (100, 1000, 10_000)
    rows = []
    for size in sizes:
        ours = SideResult(seconds=(1e-6 * size**2,), peak_mb=size / 10)
        other = SideResult(seconds=(1e-3 * size,), peak_mb=size / 1000)
        measured = Measured(case=fakes.case("a", "b"), device="cpu", ours=ours, other=other)
        rows.append(Row.of(measured, None))
    sweep = Sweep(name="work", unit="items", cases=tuple((size, fakes.case("a", "b")) for size in sizes))
    curve = Curve(sweep=sweep, rows=tuple(rows))
    found = curve.exponents()
    assert found["ours_s"] == pytest.approx(2)
    assert found["other_s"] == pytest.approx(1)
    assert found["ours_peak_mb"] == pytest.approx(1)
    assert found["other_peak_mb"] is None
    assert [point["size"] for point in curve.as_json()["points"]] == [100, 1000, 10_000]
    assert "time ~ items ^ 2.00 (other 1.00), memory ~ items ^ 1.00 (other -)" in curve_table(curve)


def test_processor_by_name_and_numbers(tmp_path):
    info = tmp_path / "cpuinfo"
    one = "processor\t: {}\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some CPU @ 2GHz\n\n"
    info.write_text(one.format(0) + one.format(1))
    assert cpu_model(info) == "Some CPU @ 2GHz (family 6, model 143)"
