import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.detector.unet import FeatureFusion, UNet
from cmb_jax.regions.network import REGION_OUTPUTS, RegionNet, RegionNetConfig


def test_one_map_a_level():
    maps = jax.eval_shape(
        lambda x: UNet(3, (4, 6, 8), (1, 1, 2), (0, 2), rngs=nnx.Rngs(0))(x), jnp.zeros((2, 4, 8, 12, 3))
    )
    assert [m.shape for m in maps] == [(2, 4, 8, 12, 4), (2, 2, 4, 6, 6), (2, 1, 2, 3, 8)]


@pytest.mark.parametrize(("encoder", "decoder"), [((0, 1), (0, 1)), ((0, 1, 0), (0, 0)), ((0, 1, 1), (0,))])
def test_block_counts_that_do_not_fit_are_refused(encoder, decoder):
    with pytest.raises(ValueError, match="U-Net of 3 levels"):
        UNet(1, (4, 4, 4), encoder, decoder, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("mode", ["sum", "concat"])
def test_fusion_brings_all_levels_to_the_finest_grid(rng, mode):
    fusion = FeatureFusion((2, 3, 4), 5, mode, rngs=nnx.Rngs(0))
    levels = [
        rng.normal(size=(1, *(8 // 2**i for _ in range(3)), width)).astype(np.float32)
        for i, width in enumerate((2, 3, 4))
    ]
    parts = []
    for i, (level, reduce) in enumerate(zip(levels, fusion.reduce, strict=True)):
        part = level @ np.asarray(reduce.kernel[...])[0, 0, 0] + np.asarray(reduce.bias[...])
        for axis in (1, 2, 3):
            part = part.repeat(2**i, axis=axis)
        parts.append(part)
    want = sum(parts) if mode == "sum" else np.concatenate(parts, axis=-1)
    assert fusion.outputs == want.shape[-1]
    np.testing.assert_allclose(fusion([jnp.asarray(x) for x in levels]), want, rtol=1e-5, atol=1e-5)


def test_region_net_gives_regions_and_side_on_its_input_grid():
    config = RegionNetConfig(widths=(4, 4, 4), encoder_convs=(0, 1, 1), decoder_convs=(0, 0))

    def shape(*size):
        out = jax.eval_shape(lambda x: RegionNet(nnx.Rngs(0), config)(x), jnp.zeros(size))
        return out.shape

    assert shape(1, 8, 16, 8, 1) == (1, 8, 16, 8, REGION_OUTPUTS) == (1, 8, 16, 8, 17)
    with pytest.raises(ValueError, match=r"multiple of \(8, 8, 8\)"):
        shape(1, 8, 12, 8, 1)
    with pytest.raises(ValueError, match=r"\(B, Z, Y, X, 1\)"):
        shape(1, 8, 16, 8, 2)
