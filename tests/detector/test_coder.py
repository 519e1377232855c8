import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.detector.anchors import decode_boxes, encode_boxes


def random_boxes(rng, count):
    near = rng.uniform(-20, 20, (count, 3))
    return np.concatenate([near, near + rng.uniform(0.5, 15, (count, 3))], axis=1).astype(np.float32)


def test_round_trip(rng):
    anchors, boxes = random_boxes(rng, 200), random_boxes(rng, 200)
    np.testing.assert_allclose(decode_boxes(anchors, encode_boxes(anchors, boxes)), boxes, atol=2e-5)


def test_code_worked_by_hand():
    anchor = jnp.array([0.0, 0, 0, 2, 4, 8])  # center (1, 2, 4)
    box = jnp.array([1.0, 0, 2, 3, 8, 4])  # center (2, 4, 3), size (2, 8, 2)
    expected = [0.5, 0.5, -0.125, 0.0, np.log(2), np.log(0.25)]
    np.testing.assert_allclose(encode_boxes(anchor, box), expected, atol=1e-7)


@pytest.mark.parametrize("extreme", [-1e4, 3e38])
def test_extreme_codes_stay_finite(extreme):
    anchor = jnp.array([[0.0, 0, 0, 2, 2, 2]])
    code = jnp.array([[0.0, 0, 0, extreme, extreme, extreme]])
    assert np.isfinite(decode_boxes(anchor, code)).all()
    gradient = jax.grad(lambda c: decode_boxes(anchor, c).sum())(code)
    assert np.isfinite(gradient).all()


def test_empty_box_has_a_finite_code():
    anchor = jnp.array([[0.0, 0, 0, 2, 2, 2]])
    assert np.isfinite(encode_boxes(anchor, jnp.zeros((1, 6)))).all()
