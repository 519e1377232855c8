import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.ops import conv_portable
from cmb_jax.ops.conv import conv3d
from cmb_jax.ops.cpu import library

EDGES = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (3, 3, 1), (1, 1, 1)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)]
LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def taps(x, edges, strides):
    """Every tap of the kernel with the strided view of the padded input that it multiplies, in float64."""
    sizes = x.shape[1:4]
    out = [-(-size // step) for size, step in zip(sizes, strides, strict=True)]
    total = [max((o - 1) * s + k - n, 0) for o, s, k, n in zip(out, strides, edges, sizes, strict=True)]
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
    for tap in itertools.product(*(range(edge) for edge in edges)):
        where = [slice(t, t + (o - 1) * s + 1, s) for t, o, s in zip(tap, out, strides, strict=True)]
        yield tap, padded[(slice(None), *where)]


def direct(x, kernel, strides=(1, 1, 1)):
    return sum(view @ np.asarray(kernel[tap], np.float64) for tap, view in taps(x, kernel.shape[:3], strides))


def direct_kernel_gradient(x, g, edges, strides=(1, 1, 1)):
    want = np.zeros((*edges, x.shape[-1], g.shape[-1]))
    for tap, view in taps(x, edges, strides):
        want[tap] = np.einsum("nzyxi,nzyxo->io", view, np.asarray(g, np.float64))
    return want


def close(got, want):
    """Equal to 1e-5 of the largest value."""
    assert got.shape == want.shape
    scale = np.abs(want).max(initial=1e-30)
    np.testing.assert_allclose(np.asarray(got, np.float64) / scale, want / scale, rtol=0, atol=1e-5)


def sample(rng, shape, outputs, edges):
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(*edges, shape[-1], outputs)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


def check(rng, shape, outputs, edges, strides):
    """Value and both gradients against sums in float64."""
    x, kernel = sample(rng, shape, outputs, edges)
    value, pull = jax.vjp(lambda x, kernel: conv3d(x, kernel, strides=strides), x, kernel)
    close(value, direct(x, kernel, strides))
    g = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    towards_input, towards_kernel = pull(g)
    close(towards_kernel, direct_kernel_gradient(x, g, edges, strides))
    # <g, conv(dx)> = <pull(g), dx> for any dx
    step = rng.normal(size=x.shape)
    left = (np.asarray(g, np.float64) * direct(step, kernel, strides)).sum()
    size = np.linalg.norm(g) * np.linalg.norm(direct(step, kernel, strides))
    assert abs(left - (np.asarray(towards_input, np.float64) * step).sum()) < 1e-5 * size
    one = np.zeros(x.shape)
    one[tuple(rng.integers(size) for size in x.shape)] = 1
    expected = (np.asarray(g, np.float64) * direct(one, kernel, strides)).sum()
    assert (np.asarray(towards_input) * one).sum() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("edges", EDGES)
def test_value_and_gradients_are_sums_over_taps(rng, edges, strides):
    check(rng, (2, 6, 5, 7, 3), 4, edges, strides)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 3, st.integers(1, 35)),
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    edges=st.sampled_from(EDGES),
    strides=st.sampled_from(STRIDES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(size, batch, channels, edges, strides, seed):
    shape = (batch, size[0], size[1], size[3], channels[0])
    check(np.random.default_rng(seed), shape, channels[1], edges, strides)


@pytest.mark.parametrize("channels", [(16, 16), (24, 24), (48, 96), (100, 7)])
def test_rows_longer_than_a_tile_and_chunks_of_rows(rng, channels):
    check(rng, (1, 4, 40, 67, channels[0]), channels[1], (3, 3, 3), (1, 1, 1))


def finished(x, kernel, bias, coarse, relu, strides=(1, 1, 1)):
    """Convolution, bias, repeated coarse map, ReLU, in float64."""
    y = direct(x, kernel, strides) + np.asarray(bias, np.float64)
    if coarse is not None:
        y = y + np.asarray(coarse, np.float64).repeat(2, 1).repeat(2, 2).repeat(2, 3)
    return np.maximum(y, 0) if relu else y


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_coarse", [False, True])
@pytest.mark.parametrize("channels", [(3, 4), (16, 16), (8, 24), (5, 70), (16, 100)])
@pytest.mark.parametrize("edges", [(1, 1, 1), (3, 3, 3), (1, 3, 1)])
def test_bias_coarse_map_and_relu(rng, edges, channels, with_coarse, relu):
    x, kernel = sample(rng, (2, 4, 6, 34, channels[0]), channels[1], edges)
    bias = jnp.asarray(rng.normal(size=channels[1]), jnp.float32)
    shape = (2, 2, 3, 17, channels[1])
    coarse = jnp.asarray(rng.normal(size=shape), jnp.float32) if with_coarse else None
    want = finished(x, kernel, bias, coarse, relu)
    value, pull = jax.vjp(lambda *arrays: conv3d(*arrays, relu=relu), x, kernel, bias, coarse)
    close(value, want)
    g = rng.normal(size=want.shape)
    # not where the sign of the value is a matter of rounding
    g[np.abs(want) < 1e-4 * np.abs(want).max()] = 0
    towards_x, towards_kernel, towards_bias, towards_coarse = pull(jnp.asarray(g, jnp.float32))
    g = np.asarray(jnp.asarray(g, jnp.float32), np.float64) * (want > 0 if relu else 1)
    close(towards_kernel, direct_kernel_gradient(x, g, edges))
    close(towards_bias, g.sum(axis=(0, 1, 2, 3)))
    if with_coarse:
        close(towards_coarse, g.reshape(2, 2, 2, 3, 2, 17, 2, -1).sum(axis=(2, 4, 6)))
    step = rng.normal(size=x.shape)
    moved = (g * direct(step, kernel)).sum()
    size = np.linalg.norm(g) * np.linalg.norm(direct(step, kernel))
    assert abs(moved - (np.asarray(towards_x, np.float64) * step).sum()) < 1e-5 * size


def test_relu_after_strides(rng):
    x, kernel = sample(rng, (1, 5, 6, 7, 3), 4, (3, 3, 3))
    bias = jnp.asarray(rng.normal(size=4), jnp.float32)
    want = finished(x, kernel, bias, None, True, (1, 2, 2))
    value, pull = jax.vjp(lambda x: conv3d(x, kernel, bias, strides=(1, 2, 2), relu=True), x)
    close(value, want)
    step = rng.normal(size=x.shape)
    moved = ((want > 0) * direct(step, kernel, (1, 2, 2))).sum()
    assert (np.asarray(pull(jnp.ones_like(value))[0]) * step).sum() == pytest.approx(moved, rel=1e-4)


def test_what_is_not_a_number_stays_so(rng):
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (1, 1, 1))
    assert jnp.isnan(conv3d(x.at[0, 1, 2, 3, 0].set(jnp.nan), kernel, relu=True)[0, 1, 2, 3]).all()


@pytest.mark.parametrize("setting", [{"CMB_JAX_CPU_ISA": "avx2"}, {"CMB_JAX_CPU_KERNEL": "off"}])
def test_other_instruction_sets_and_no_kernel(setting):
    """The same tests in a process that is told to use something else than the best kernel."""
    tests = "value_and_gradients or any_shape or rows_longer or coarse or relu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, __file__]
    done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]


def log_of(code, **setting):
    program = f"import logging; logging.basicConfig()\n{code}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), [
        line for line in done.stderr.splitlines() if "on CPU without the compiled kernel" in line
    ]


CALL_TWICE = """
import jax.numpy as jnp
from cmb_jax.ops.conv import conv3d
from cmb_jax.ops.cpu import library
for _ in range(2):
    middle = conv3d(jnp.ones((1, 3, 3, 3, 2)), jnp.ones((3, 3, 3, 2, 1)))[0, 1, 1, 1, 0]
    print(float(middle), library.available())
"""


def test_a_missing_kernel_is_one_line_in_the_log():
    out, lines = log_of(CALL_TWICE, CMB_JAX_CPU_ISA="none")
    assert out.split() == ["54.0", "False"] * 2
    assert len(lines) == 1
    assert "no AVX2" in lines[0]


def test_a_library_for_another_machine_is_left_alone(tmp_path, caplog):
    foreign = tmp_path / "_kernels.so"
    foreign.write_bytes(b"\x7fELF" + bytes(200))
    assert library.load(foreign) == "none"
    assert "install the package again" in caplog.text


def test_the_kernel_refuses_what_does_not_fit(rng):
    if not library.available():
        pytest.skip("no compiled kernel on this machine")
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (3, 3, 3))

    nothing = jnp.zeros((0,))

    def call(x, kernel, shape, strides=(1, 1, 1), gate=nothing, bias=nothing, coarse=nothing):
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        options = {"strides": np.array(strides, np.int64), "mirrored": False, "relu": False, "rounded": False}
        return jax.ffi.ffi_call(library.CONVOLUTION, result)(x, gate, kernel, bias, coarse, **options)

    right = {"x": x, "kernel": kernel, "shape": (1, 4, 4, 4, 3)}
    close(call(**right), direct(x, kernel))
    for wrong in [
        {"shape": (1, 4, 4, 5, 3)},
        {"kernel": kernel[..., :1, :]},
        {"strides": (0, 1, 1)},
        {"x": x[0]},
        {"gate": jnp.ones((1, 4, 4, 4, 1))},
        {"bias": jnp.ones((2,))},
        {"coarse": jnp.ones((1, 2, 2, 1, 3))},
    ]:
        with pytest.raises(Exception, match="cmb_jax conv3d"):
            jax.block_until_ready(call(**{**right, **wrong}))


@pytest.mark.parametrize("edges", [(3, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("depth", [4, 5, 11, 12])
def test_portable_slabs_do_not_show(rng, monkeypatch, edges, depth):
    monkeypatch.setattr(conv_portable, "_SLAB_VOXELS", 1)
    monkeypatch.setattr(conv_portable, "_SLAB_PLANES", 4)
    x, kernel = sample(rng, (2, depth, 4, 5, 2), 3, edges)
    close(conv_portable.convolve(x, kernel), direct(x, kernel))


@pytest.mark.parametrize("rows", [1, 200])
def test_portable_kernel_gradient_does_not_depend_on_the_slab(rng, monkeypatch, rows):
    monkeypatch.setattr(conv_portable, "_ROWS", rows)
    x, _ = sample(rng, (2, 6, 5, 7, 3), 4, (3, 3, 3))
    g = jnp.asarray(rng.normal(size=(2, 6, 5, 7, 4)), jnp.float32)
    close(conv_portable.kernel_gradient(x, g, (3, 3, 3)), direct_kernel_gradient(x, g, (3, 3, 3)))


def test_an_empty_batch():
    assert conv3d(jnp.zeros((0, 4, 5, 6, 2)), jnp.ones((3, 3, 3, 2, 4)), strides=(1, 2, 2)).shape == (
        0,
        4,
        3,
        3,
        4,
    )


def test_vmap_and_remat(rng):
    x, kernel = sample(rng, (3, 4, 4, 5, 2), 3, (3, 3, 3))
    kernels = jnp.stack([kernel, 2 * kernel])
    both = jax.jit(jax.vmap(conv3d, in_axes=(None, 0)))(x, kernels)
    close(both[1], direct(x, 2 * kernel))

    def loss(k, f):
        return jnp.square(f(x, k)).sum()

    want = direct_kernel_gradient(x, 2 * direct(x, kernel), (3, 3, 3))
    close(jax.grad(loss)(kernel, jax.checkpoint(conv3d)), want)
    close(jax.vmap(lambda k: jax.grad(loss)(k, conv3d))(kernels)[0], want)


def test_shard_map_and_sharded_jit(rng):
    x, kernel = sample(rng, (8, 4, 4, 5, 2), 3, (3, 3, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(conv3d, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    close(jax.jit(mapped)(x, kernel), direct(x, kernel))
    gradient = jax.jit(jax.grad(lambda k: jnp.square(mapped(x, k)).sum()))(kernel)
    close(gradient, direct_kernel_gradient(x, 2 * direct(x, kernel), (3, 3, 3)))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    close(jax.jit(conv3d)(split, kernel), direct(x, kernel))


def test_export_for_all_platforms(rng):
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (3, 3, 3))
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in library.TARGETS]
    exporter = jax.export.export(jax.jit(conv3d), platforms=("cpu", "cuda", "tpu"), disabled_checks=checks)
    stored = exporter(x, kernel).serialize()
    close(jax.export.deserialize(stored).call(x, kernel), direct(x, kernel))


@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowered_programs(rng, platform, strides):
    x, kernel = sample(rng, (1, 4, 4, 4, 2), 3, (3, 3, 3))
    step = jax.jit(
        jax.value_and_grad(lambda x, k: jnp.square(conv3d(x, k, strides=strides)).sum(), argnums=(0, 1))
    )
    text = step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    ours = sum(text.count(f"custom_call @{name}(") for name in library.TARGETS)
    # forward, towards the input, towards the kernel
    if platform == "cpu" and library.available():
        assert (text.count("stablehlo.convolution"), ours) == (0, 3)
    elif platform != "cpu":
        assert (text.count("stablehlo.convolution"), ours) == (3, 0)
        assert "stablehlo.while" not in text


def test_shapes_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 4, 4, 4, 2))
    with pytest.raises(ValueError, match="kernel of shape"):
        conv3d(x, jnp.zeros((3, 3, 3, 3, 4)))
    with pytest.raises(ValueError, match="1 or 3"):
        conv3d(x, jnp.zeros((5, 3, 3, 2, 4)))
    with pytest.raises(ValueError, match="one type"):
        conv3d(x, jnp.zeros((3, 3, 3, 2, 4), jnp.bfloat16))
    with pytest.raises(ValueError, match="bias"):
        conv3d(x, jnp.zeros((3, 3, 3, 2, 4)), jnp.zeros((3,)))
    with pytest.raises(ValueError, match="coarse"):
        conv3d(x, jnp.zeros((3, 3, 3, 2, 4)), coarse=jnp.zeros((1, 2, 2, 1, 4)))
    with pytest.raises(ValueError, match="strides"):
        conv3d(x, jnp.zeros((3, 3, 3, 2, 4)), strides=(0, 1, 1))


def test_plain_convolution_agrees(rng):
    """The definition of "SAME" in these tests is XLA's."""
    for edges, strides in itertools.product(EDGES, STRIDES):
        x, kernel = sample(rng, (1, 6, 5, 7, 2), 3, edges)
        close(
            lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=LAYOUT),
            direct(x, kernel, strides),
        )
