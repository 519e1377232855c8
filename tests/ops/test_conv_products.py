"""Products of bfloat16 on float32 maps: what is rounded, and what is not."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.ops import self_test
from cmb_jax.ops.conv import conv3d
from cmb_jax.ops.cpu import library
from tests.ops.test_conv import (
    EDGES,
    STRIDES,
    close,
    direct,
    direct_kernel_gradient,
    finished,
    sample,
)

SETTINGS = [
    {"CMB_JAX_CPU_ISA": "avx512bf16"},
    {"CMB_JAX_CPU_ISA": "avx512"},
    {"CMB_JAX_CPU_ISA": "avx2"},
    {"CMB_JAX_CPU_KERNEL": "off"},
]


def rounded(x):
    """To bfloat16, in float64: NumPy's ml_dtypes rounds to nearest, ties to even."""
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


def check(rng, shape, outputs, edges, strides):
    """Value and both gradients against float64 sums of products of rounded numbers."""
    x, kernel = sample(rng, shape, outputs, edges)
    run = jax.jit(lambda x, kernel: conv3d(x, kernel, strides=strides, products="bfloat16"))
    value, pull = jax.vjp(run, x, kernel)
    assert value.dtype == np.float32
    close(value, direct(rounded(x), rounded(kernel), strides))
    g = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    towards_input, towards_kernel = pull(g)
    close(towards_kernel, direct_kernel_gradient(rounded(x), rounded(g), edges, strides))
    # <g, conv(step)> = <pull(g), step> for any step
    step = rng.normal(size=x.shape)
    moved = direct(step, rounded(kernel), strides)
    difference = (rounded(g) * moved).sum() - (np.asarray(towards_input, np.float64) * step).sum()
    assert abs(difference) < 1e-5 * np.linalg.norm(g) * np.linalg.norm(moved)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("edges", EDGES)
def test_value_and_gradients_of_rounded_numbers(rng, edges, strides):
    check(rng, (2, 6, 5, 7, 3), 4, edges, strides)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 2, st.integers(1, 35)),
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    edges=st.sampled_from(EDGES),
    strides=st.sampled_from(STRIDES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(size, batch, channels, edges, strides, seed):
    check(np.random.default_rng(seed), (batch, *size, channels[0]), channels[1], edges, strides)


@pytest.mark.parametrize("channels", [(16, 16), (16, 24), (24, 32), (32, 48), (48, 64), (96, 96), (8, 16)])
def test_the_networks_channels(rng, channels):
    check(rng, (1, 4, 40, 34, channels[0]), channels[1], (3, 3, 3), (1, 1, 1))


@pytest.mark.parametrize("with_coarse", [False, True])
@pytest.mark.parametrize("channels", [(3, 4), (16, 16), (8, 24), (16, 100)])
@pytest.mark.parametrize("edges", [(1, 1, 1), (3, 3, 3)])
def test_bias_and_coarse_map_are_not_rounded(rng, edges, channels, with_coarse):
    x, kernel = sample(rng, (2, 4, 6, 34, channels[0]), channels[1], edges)
    bias = jnp.asarray(rng.normal(size=channels[1]), jnp.float32)
    shape = (2, 2, 3, 17, channels[1])
    coarse = jnp.asarray(rng.normal(size=shape), jnp.float32) if with_coarse else None
    want = finished(rounded(x), rounded(kernel), bias, coarse, relu=True)
    value, pull = jax.vjp(lambda *a: conv3d(*a, relu=True, products="bfloat16"), x, kernel, bias, coarse)
    close(value, want)
    g = rng.normal(size=want.shape).astype(np.float32)
    # not where the sign of the value is a matter of the order of the sum
    g[np.abs(want) < 1e-4 * np.abs(want).max()] = 0
    towards_x, towards_kernel, towards_bias, towards_coarse = pull(jnp.asarray(g))
    gated = np.where(want > 0, g, 0)
    close(towards_kernel, direct_kernel_gradient(rounded(x), rounded(gated), edges))
    close(towards_bias, gated.sum(axis=(0, 1, 2, 3), dtype=np.float64))
    if with_coarse:
        blocks = gated.reshape(2, 2, 2, 3, 2, 17, 2, -1)
        close(towards_coarse, blocks.sum(axis=(2, 4, 6), dtype=np.float64))
    step = rng.normal(size=x.shape)
    moved = direct(step, rounded(kernel))
    difference = (rounded(gated) * moved).sum() - (np.asarray(towards_x, np.float64) * step).sum()
    assert abs(difference) < 1e-5 * np.linalg.norm(g) * np.linalg.norm(moved)


def test_ties_go_to_the_even_number(rng):
    """A kernel of one shows how the input is rounded, and the other way round."""
    unit, one = 2.0**-7, jnp.ones((1, 1, 1, 1, 1))
    numbers = np.array([1 + unit / 2, 1 + 3 * unit / 2, -1 - unit / 2, 1 + unit / 2 * 1.01, 3e38, 0, -0.0])
    x = jnp.asarray(numbers, jnp.float32).reshape(1, 1, 1, -1, 1)
    want = np.array([1, 1 + 2 * unit, -1, 1 + unit, rounded(np.float32(3e38)), 0, 0])
    np.testing.assert_array_equal(np.ravel(conv3d(x, one, products="bfloat16")), want.astype(np.float32))
    for number, exact in zip(numbers, want, strict=True):
        kernel = jnp.full((1, 1, 1, 1, 1), number, jnp.float32)
        assert conv3d(one, kernel, products="bfloat16").item() == np.float32(exact)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("inputs", [1, 3, 16, 24])
@pytest.mark.parametrize("width", [5, 34])
def test_what_is_no_number_stays_where_the_kernel_reaches(rng, value, inputs, width):
    x, kernel = sample(rng, (1, 5, 6, width, inputs), 24, (3, 3, 3))
    place = (0, 2, 3, width // 2)
    y = np.asarray(conv3d(x.at[(*place, 0)].set(value), kernel, relu=True, products="bfloat16"))
    reached = np.zeros(y.shape[:-1], bool)
    reached[0, 1:4, 2:5, place[3] - 1 : place[3] + 2] = True
    assert np.isfinite(y[~reached]).all()
    assert (~np.isfinite(y[reached])).any()
    assert np.isnan(y[place]).all() == np.isnan(value)  # ReLU keeps it


@pytest.mark.parametrize("width", [5, 6])
def test_an_infinite_voxel_at_the_end_of_a_row_meets_no_output_beyond_it(rng, width):
    """The kernel's gradient: tap 0 along x of the last voxel belongs to an output outside of the row."""
    x, _ = sample(rng, (1, 3, 3, width, 2), 3, (1, 1, 3))
    x = x.at[0, 1, 1, width - 1, 0].set(jnp.inf)
    g = jnp.asarray(rng.normal(size=(1, 3, 3, width, 3)), jnp.float32)
    pull = jax.vjp(lambda k: conv3d(x, k, products="bfloat16"), jnp.zeros((1, 1, 3, 2, 3)))[1]
    finite = np.isfinite(np.asarray(pull(g)[0][0, 0]))
    assert finite[0].all()
    assert not finite[1:, 0].any()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: next(iter(setting.values())))
def test_every_instruction_set(setting):
    """The tests above in a process that is told what to use; one that the processor lacks counts as none."""
    wish = setting.get("CMB_JAX_CPU_ISA")
    if wish == library.instruction_set():
        pytest.skip("that is what the tests above used")
    tests = "value_and_gradients or any_shape or channels or bias or ties or no_number or infinite"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, __file__]
    done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]


BITS = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import jax, jax.numpy as jnp, numpy as np
from cmb_jax.ops.conv import conv3d
rng, bits = np.random.default_rng(0), hashlib.sha256()
for products in ("float32", "bfloat16"):
    for shape, outputs in (((2, 12, 30, 31, 16), 24), ((1, 24, 40, 48, 8), 16), ((2, 6, 6, 6, 48), 48)):
        x, kernel, g = (
            jnp.asarray(rng.normal(size=s), jnp.float32)
            for s in (shape, (3, 3, 3, shape[-1], outputs), (*shape[:-1], outputs))
        )
        run = lambda *a: conv3d(*a, relu=True, products=products)
        y, pull = jax.vjp(run, x, kernel, jnp.ones(outputs))
        pointwise = jnp.asarray(rng.normal(size=(1, 1, 1, shape[-1], outputs)), jnp.float32)
        z, pull_pointwise = jax.vjp(run, x, pointwise, jnp.ones(outputs))
        for array in (y, *pull(g), z, *pull_pointwise(g)):
            bits.update(np.asarray(array).tobytes())
print(bits.hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose the processors")
@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor")
def test_the_same_bits_on_any_number_of_threads():
    def bits(cores):
        command = [sys.executable, "-c", BITS, str(cores)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one processor")
    assert bits(1) == bits(2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"g": (1, 2, 2, 4, 5)},
        {"gate": (1, 2, 2, 4, 1)},
        {"kernel": (1, 1, 3, 3, 6)},
        {"coarse": (1, 1, 1, 1, 6)},
        {"x": (0, 2, 2, 4, 3), "g": (0, 2, 2, 4, 6)},
    ],
)
def test_the_pointwise_gradient_refuses_what_does_not_fit(wrong):
    if not library.multiplies_bfloat16():
        pytest.skip("no instructions for bfloat16")
    shapes = {"x": (1, 2, 2, 4, 3), "g": (1, 2, 2, 4, 6), "gate": (0,), "kernel": (1, 1, 1, 3, 6)}
    coarse = (1, 1, 1, 2, 6)

    def call(coarse, x, g, gate, kernel):
        results = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel, (6,), coarse)]
        arrays = [jnp.ones(shape) for shape in (x, g, gate, kernel)]
        return jax.block_until_ready(jax.ffi.ffi_call(library.POINTWISE_GRADIENT, results)(*arrays))

    call(coarse, **shapes)
    with pytest.raises(Exception, match="cmb_jax"):
        call(**{"coarse": coarse, **shapes, **wrong})


def test_unknown_products_are_refused():
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        conv3d(jnp.ones((1, 2, 2, 2, 1)), jnp.ones((1, 1, 1, 1, 1)), products="float16")


def test_a_precision_that_the_processor_lacks_is_one_line_and_float32(monkeypatch, caplog):
    monkeypatch.setattr(library, "instruction_set", lambda: "avx2")
    assert library.usable_precision("mixed", "train.precision") == "float32"
    assert [record.getMessage() for record in caplog.records] == [
        "train.precision mixed: this processor has no instructions for bfloat16; float32 is used"
    ]
    caplog.clear()
    assert library.usable_precision("float32", "train.precision") == "float32"
    monkeypatch.setattr(library, "instruction_set", lambda: "avx512bf16")
    assert library.usable_precision("mixed", "train.precision") == "mixed"
    assert not caplog.records


def test_lowered_programs(rng):
    """On accelerators float32 products are float32, others what their compilers are quickest at."""
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (3, 3, 3))

    def text(products):
        step = jax.jit(jax.value_and_grad(lambda x, k: conv3d(x, k, products=products).sum(), argnums=(0, 1)))
        return step.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()

    assert text("float32").count("HIGHEST") == 6  # both factors of three convolutions
    assert "HIGHEST" not in text("bfloat16")
    assert "bf16" not in text("bfloat16")


def test_self_test_of_the_kernels_finds_a_wrong_one(monkeypatch):
    """The table's verdict: as they are, and with a convolution that is wrong by a thousandth."""
    monkeypatch.setattr(self_test, "_CHANNELS", (3, 16))
    monkeypatch.setattr(self_test, "_rates", lambda products: (1.0, 2.0, 3.0))
    right = self_test._test("bfloat16")
    assert right.passed
    assert right.shapes == 4
    monkeypatch.setattr(self_test, "conv3d", lambda *a, **o: 1.001 * conv3d(*a, **o))
    wrong = self_test._test("bfloat16")
    assert not wrong.passed
    lines = self_test.table(
        [right, wrong, self_test.SelfTest(instruction_set="amx", products="both", missing="no")]
    )
    assert [line.split("  ")[-1] for line in lines.splitlines()[1:3]] == [
        "ok",
        "FAILED: an error above 1e-05",
    ]
