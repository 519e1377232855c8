import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import ModelConfig
from cmb_jax.detector import unet
from cmb_jax.detector.heads import initial_prototypes
from cmb_jax.detector.network import Detector, receptive_halo

TINY = ModelConfig(
    widths=(4, 6, 8),
    encoder_convs=(0, 1, 1),
    decoder_convs=(0, 1),
    fusion_width=4,
    head_width=5,
    anchor_diameters_mm=(2.5, 5.0, 10.0),
    embedding_dim=7,
    prototypes_per_class=2,
)
FOUR = [
    dataclasses.replace(TINY, use_fusion=fusion, use_prototypes=prototypes)
    for fusion, prototypes in itertools.product((False, True), repeat=2)
]


@functools.cache
def make(config):
    """A detector with drawn weights, all of them by one compiled function."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Detector(config, rngs=nnx.Rngs(0))))
    key = jax.random.key(0, impl="rbg")  # compiles quickly
    state = jax.jit(lambda: nnx.state(Detector(config, rngs=nnx.Rngs(key))))()
    return nnx.merge(graph, state)


@functools.cache
def runner(config, precision="float32"):
    """Functional use: the weights are an argument, the structure is closed over."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Detector(config, precision=precision, rngs=nnx.Rngs(0))))
    state = nnx.state(make(config))
    run = jax.jit(lambda state, image: nnx.merge(graph, state)(image))
    return lambda image: run(state, image)


def shapes(config, shape):
    return jax.eval_shape(make(config), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("config", FOUR)
def test_four_configurations(config):
    detector = make(config)
    maps = shapes(config, (2, 8, 16, 24, 2))
    assert maps.features.shape == (2, 8, 8, 12, 5)
    assert maps.objectness.shape == (2, 8, 8, 12, 3)
    assert maps.deltas.shape == (2, 8, 8, 12, 3, 6)
    assert len(detector.fusion.reduce) == (3 if config.use_fusion else 1)
    assert hasattr(detector, "prototypes") == config.use_prototypes
    if not config.use_prototypes:
        with pytest.raises(ValueError, match="without prototypes"):
            detector.embed(maps.features, jnp.zeros(maps.features.shape[:-1], int))


def test_concatenation_feeds_all_levels_to_the_head():
    config = dataclasses.replace(TINY, fusion="concat")
    assert make(config).head.block.conv.kernel.shape == (3, 3, 3, 12, 5)
    assert shapes(config, (1, 4, 8, 8, 2)).objectness.shape == (1, 4, 4, 4, 3)


def test_the_second_level_alone_is_repeated_to_the_proposal_grid(rng):
    """Every 2 mm cell gives eight equal ones, and nothing of the finest decoder level arrives."""
    config = dataclasses.replace(TINY, use_fusion=False, second_level=True, box_width=4)
    detector = Detector(config, rngs=nnx.Rngs(0))
    image = jnp.asarray(rng.normal(size=(1, 8, 16, 16, 2)), jnp.float32)
    maps = detector(image)
    seen = np.asarray(maps.box_input)  # what the head sees, where boxes have a block of their own
    assert seen.shape == (1, 8, 8, 8, config.fusion_width)
    blocks = seen.reshape(1, 4, 2, 4, 2, 4, 2, -1)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1, :, :1], blocks.shape))
    detector.unet.laterals[0].kernel[...] += 1.0
    np.testing.assert_array_equal(detector(image).objectness, maps.objectness)
    with pytest.raises(ValueError, match="without fusion"):
        dataclasses.replace(TINY, second_level=True)


def test_untrained_scores_are_near_the_prior(rng):
    image = jnp.asarray(rng.normal(size=(1, 8, 16, 16, 2)), jnp.float32)
    scores = jax.nn.sigmoid(runner(TINY)(image).objectness)
    assert 0.002 < float(scores.mean()) < 0.05


def test_prototypes_start_apart():
    prototypes = np.asarray(initial_prototypes(4, 16, jax.random.key(3)))
    assert prototypes.shape == (2, 4, 16)
    flat = prototypes.reshape(8, 16)
    distance = np.square(flat[:, None] - flat[None]).sum(-1)
    np.testing.assert_allclose(distance[~np.eye(8, dtype=bool)], 2, rtol=1e-4)  # orthonormal
    crowded = np.asarray(initial_prototypes(2, 2, jax.random.key(3)))  # no room for right angles
    np.testing.assert_allclose(np.square(crowded).sum(-1), 1, rtol=1e-4)
    assert (
        np.abs(crowded.reshape(4, 2)[:, None] - crowded.reshape(4, 2)).max(-1)[~np.eye(4, dtype=bool)].min()
        > 0
    )


def test_absolute_intensity_reaches_the_output():
    dark, bright = (runner(TINY)(jnp.full((1, 8, 16, 16, 2), value)) for value in (0.2, 1.0))
    assert float(jnp.abs(dark.objectness - bright.objectness)[0, 4, 4, 4].max()) > 1e-3


@pytest.mark.parametrize("shape", [(1, 6, 16, 16, 2), (1, 8, 12, 16, 2)])
def test_sizes_off_the_stride_are_refused(shape):
    with pytest.raises(ValueError, match=r"multiple of \(4, 8, 8\)"):
        make(TINY)(jnp.zeros(shape))


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(B, Z, Y, X, 2\)"):
        make(TINY)(jnp.zeros((1, 8, 16, 16, 1)))


@pytest.mark.parametrize("box_width", [0, 6])
def test_boxes_of_single_anchors_agree_with_the_maps(rng, box_width):
    config = dataclasses.replace(TINY, box_width=box_width)
    maps = runner(config)(jnp.asarray(rng.normal(size=(2, 8, 16, 16, 2)), jnp.float32))
    # with the rim, where a kernel sees zeros
    anchors = jnp.asarray(rng.integers(0, maps.objectness[0].size, (2, 900)), jnp.int32)
    codes = make(config).box_codes(maps.box_input, anchors)
    dense = np.asarray(maps.deltas).reshape(2, -1, 6)
    want = np.take_along_axis(dense, np.asarray(anchors)[..., None], axis=1)
    np.testing.assert_allclose(codes, want, rtol=1e-4, atol=1e-5)


def test_scores_and_boxes_apart(rng):
    """With a block of their own the boxes do not depend on the scores' block, nor the scores on theirs."""
    graph, state = nnx.split(make(dataclasses.replace(TINY, box_width=6)))
    image = jnp.asarray(rng.normal(size=(1, 8, 16, 16, 2)), jnp.float32)
    before = nnx.merge(graph, state)(image)
    for name, same, other in (("block", "deltas", "objectness"), ("box_block", "objectness", "deltas")):
        detector = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        block = getattr(detector.head, name)
        block.conv.kernel[...] = -block.conv.kernel[...]
        after = detector(image)
        np.testing.assert_array_equal(getattr(after, same), getattr(before, same))
        assert float(jnp.abs(getattr(after, other) - getattr(before, other)).max()) > 1e-3


def test_embeddings_of_single_anchors(rng):
    detector = make(TINY)
    maps = runner(TINY)(jnp.asarray(rng.normal(size=(1, 8, 16, 16, 2)), jnp.float32))
    anchor = jnp.asarray(rng.integers(0, 3, maps.features.shape[:-1]))
    embeddings = np.asarray(detector.embed(maps.features, anchor))
    kernel, bias = (np.asarray(part[...]) for part in (detector.embedding.kernel, detector.embedding.bias))
    for place in itertools.product(*(range(size) for size in anchor.shape)):
        own = int(anchor[place])
        np.testing.assert_allclose(
            embeddings[place],
            np.asarray(maps.features)[place] @ kernel[own] + bias[own],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_less_precision_is_close_to_float32(rng, precision):
    image = jnp.asarray(rng.normal(size=(1, 8, 16, 16, 2)), jnp.float32)
    full = runner(TINY)(image)
    low = runner(TINY, precision)(image)
    assert low.features.dtype == (jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    assert (low.objectness != full.objectness).any()
    assert low.objectness.dtype == low.deltas.dtype == jnp.float32
    np.testing.assert_allclose(low.objectness, full.objectness, atol=0.05)


def dependent_cells(config, shape, cell):
    """Which voxels (Z, Y, X) of the image change the proposals of one block of cells, by their gradient."""
    graph, state = nnx.split(make(config))

    @jax.jit
    def influence(image):
        # Positive weights and inputs: no ReLU is shut and nothing cancels, so every path shows.
        detector = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, state))
        return jax.grad(lambda image: detector(image).objectness[0][cell].sum())(image)

    gradient = influence(jax.random.uniform(jax.random.key(0), (*shape, 2))[None] + 0.5)
    return np.asarray(jnp.abs(gradient[0]).max(axis=-1) > 0)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(TINY, use_fusion=False, encoder_convs=(1, 2, 1), decoder_convs=(1, 0)),
        dataclasses.replace(TINY, stem_kernel=(3, 3, 3), encoder_convs=(0, 1, 2), decoder_convs=(0, 0)),
    ],
)
def test_halo_bounds_what_a_block_depends_on(config):
    halo, stride = receptive_halo(config), config.total_stride
    shape = tuple(2 * (h + 2 * s) + s for h, s in zip(halo, stride, strict=True))
    first = [h + 2 * s for h, s in zip(halo, stride, strict=True)]  # the middle block of coarsest cells
    cell = tuple(slice(f // d, (f + s) // d) for f, s, d in zip(first, stride, (1, 2, 2), strict=True))
    seen = dependent_cells(config, shape, cell)
    for axis in range(3):
        places = np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
        reach = max(first[axis] - places[0], places[-1] + 1 - (first[axis] + stride[axis]))
        # It holds, and no smaller multiple of the stride would.
        assert halo[axis] - stride[axis] < reach <= halo[axis]


def test_halo_of_the_default_configuration():
    assert receptive_halo(ModelConfig()) == (40, 80, 80)


@pytest.mark.parametrize("low", [(0, 0, 0), (16, 32, 32), (32, 64, 48)])
def test_windows_give_the_values_of_the_whole(rng, low):
    halo = receptive_halo(TINY)
    assert halo == (12, 24, 24)
    shape, core = (48, 80, 80), (16, 16, 16)
    image = jnp.asarray(rng.normal(size=(1, *shape, 2)), jnp.float32)
    whole = runner(TINY)(image)
    begin = [max(0, at - h) for at, h in zip(low, halo, strict=True)]
    end = [min(n, at + c + h) for at, c, h, n in zip(low, core, halo, shape, strict=True)]
    window = runner(TINY)(image[:, begin[0] : end[0], begin[1] : end[1], begin[2] : end[2]])

    def cells(array, origin):
        start = [(at - o) // d for at, o, d in zip(low, origin, (1, 2, 2), strict=True)]
        size = [c // d for c, d in zip(core, (1, 2, 2), strict=True)]
        return array[:, *(slice(s, s + n) for s, n in zip(start, size, strict=True))]

    for name in ("features", "objectness", "deltas"):
        np.testing.assert_allclose(
            cells(getattr(window, name), begin), cells(getattr(whole, name), (0, 0, 0)), rtol=1e-4, atol=1e-4
        )


def forward_gflop(config, monkeypatch, shape=(64, 128, 128)):
    """Multiplications and additions of the convolutions of one forward pass, in 1e9."""
    count = []
    real = unet.conv3d

    def counting(x, kernel, *rest, **options):
        count.append(2 * x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] * kernel.size)
        return real(x, kernel, *rest, **options)

    monkeypatch.setattr(unet, "conv3d", counting)
    jax.eval_shape(
        lambda image: Detector(config, rngs=nnx.Rngs(0))(image),
        jax.ShapeDtypeStruct((1, *shape, 2), jnp.float32),
    )
    return sum(count) / 1e9


def test_cost_of_the_default_is_within_budget(monkeypatch):
    assert 4 < forward_gflop(ModelConfig(), monkeypatch) <= 8


def test_cost_of_twice_the_width_is_within_the_larger_budget(monkeypatch):
    base = ModelConfig(widths=(32, 48, 64, 96), fusion_width=32, head_width=32)
    assert 20 < forward_gflop(base, monkeypatch) <= 40
