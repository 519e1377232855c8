"""Weights files: what is written is read back, and every bad file gives one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from cmb_jax.errors import UserError
from cmb_jax.io.weights import load_weights, save_weights


@pytest.fixture
def state(rng):
    return {
        "stem": {"kernel": rng.normal(size=(3, 3, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)},
        "levels": {0: {"scale": np.ones(4, np.float32)}, 1: {"scale": np.full(4, 2.0, np.float32)}},
        "count": np.array(7, np.int32),
    }


def leaves(tree):
    return jax.tree.leaves_with_path(tree)


def test_round_trip_is_exact(tmp_path, state):
    path = tmp_path / "w.safetensors"
    save_weights(path, state, {"config": "small"})
    loaded, metadata = load_weights(path, expected=state)
    assert metadata == {"config": "small"}
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for (where, got), (_, want) in zip(leaves(loaded), leaves(state), strict=True):
        np.testing.assert_array_equal(got, want, err_msg=str(where))
        assert got.dtype == want.dtype
    # the library itself reads the file, under dotted names
    assert set(load_file(path)) == {"stem.kernel", "stem.bias", "levels.0.scale", "levels.1.scale", "count"}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path, state):
    """In whatever order metadata come; their hash stands in results."""
    metadata = {f"key {number}": f"value {number} \u00e4\n" for number in range(8)}
    written = []
    for order in (list(metadata), list(reversed(metadata))):
        save_weights(tmp_path / "w.safetensors", state, {name: metadata[name] for name in order})
        written.append((tmp_path / "w.safetensors").read_bytes())
    assert written[0] == written[1]
    assert load_weights(tmp_path / "w.safetensors", expected=state)[1] == metadata
    with safe_open(tmp_path / "w.safetensors", framework="numpy") as file:
        assert file.metadata() == metadata


def test_float16_is_half_the_size_and_close(tmp_path, rng):
    state = {"kernel": rng.normal(size=(50, 50)).astype(np.float32)}
    save_weights(tmp_path / "full", state, {})
    save_weights(tmp_path / "half", state, {}, dtype="float16")
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    got = load_weights(tmp_path / "half")[0]["kernel"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, state["kernel"], rtol=5e-4, atol=1e-7)


def test_bfloat16_comes_back_as_float32(tmp_path):
    save_weights(tmp_path / "w", {"a": jnp.array([1.5, -2.0], jnp.bfloat16)}, {})
    got = load_weights(tmp_path / "w")[0]["a"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1.5, -2.0])


def test_model_state_round_trip(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])

        def __call__(self, x):
            return self.layers[1](self.layers[0](x))

    model = Net(nnx.Rngs(0))
    save_weights(tmp_path / "w", nnx.to_pure_dict(nnx.state(model, nnx.Param)), {})
    other = Net(nnx.Rngs(1))
    graph, params = nnx.split(other, nnx.Param)
    loaded, _ = load_weights(tmp_path / "w", expected=nnx.to_pure_dict(params))
    nnx.replace_by_pure_dict(params, loaded)
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(nnx.merge(graph, params)(x), model(x))


def test_values_that_cannot_be_stored_name_the_parameter(tmp_path):
    with pytest.raises(ValueError, match=r"a\.b is not finite as float16"):
        save_weights(tmp_path / "w", {"a": {"b": np.array([1e6], np.float32)}}, {}, dtype="float16")
    with pytest.raises(ValueError, match="holds a dot"):
        save_weights(tmp_path / "w", {"a.b": np.zeros(1)}, {})
    assert not list(tmp_path.iterdir())


def test_folder_that_is_a_file(tmp_path, state):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        save_weights(tmp_path / "file" / "w", state, {})


def test_replaces_an_older_file(tmp_path):
    for value in (1.0, 2.0):
        save_weights(tmp_path / "w", {"a": np.array([value], np.float32)}, {})
    np.testing.assert_array_equal(load_weights(tmp_path / "w")[0]["a"], [2.0])


def one_line(error):
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such weights file") as error:
        load_weights(tmp_path / "none.safetensors")
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", bytes(range(256)) * 4])
def test_not_safetensors(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file") as error:
        load_weights(path)
    one_line(error)


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_truncated(tmp_path, state, keep):
    path = tmp_path / "w.safetensors"
    save_weights(path, state, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated") as error:
        load_weights(path)
    one_line(error)


def test_other_configuration_names_the_first_parameter(tmp_path, state):
    path = tmp_path / "w.safetensors"
    save_weights(path, state, {})
    wider = {**state, "stem": {"kernel": np.zeros((3, 3, 8)), "bias": np.zeros(8)}}
    with pytest.raises(UserError, match=r"stem\.bias as \(2,\), but the model has \(8,\)") as error:
        load_weights(path, expected=wider)
    one_line(error)
    with pytest.raises(UserError, match=r"lack head\.kernel \(5,\)"):
        load_weights(path, expected={**state, "head": {"kernel": np.zeros(5)}})
    smaller = {key: value for key, value in state.items() if key != "count"}
    with pytest.raises(UserError, match="hold count"):
        load_weights(path, expected=smaller)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    load_weights(path, expected=shapes)
