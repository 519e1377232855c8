"""Mirror images and several networks: the average is that of passes run one by one."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import Config, InferenceConfig
from cmb_jax.detector.anchors import anchor_sizes
from cmb_jax.detector.network import Detector, Template, params_of
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle, save_bundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import CmbDetector
from cmb_jax.inference.proposals import ProposalFinder
from tests.tiny import TINY_MODEL

AXES = {"none": [()], "x": [(), (2,)], "xyz": [(), (0,), (1,), (2,)]}
SHAPE = (32, 64, 64)  # whole windows: nothing is padded, so the reference needs no plan


def config_with(flips="none", tile=(160, 320, 320)):
    inference = InferenceConfig(
        flips=flips, tile_shape=tile, candidate_threshold=0.0, nms_iou=1.0, max_detections=64
    )
    return Config(model=TINY_MODEL, inference=inference)


@pytest.fixture(scope="module")
def networks():
    return [params_of(Detector(TINY_MODEL, rngs=nnx.Rngs(seed))) for seed in (1, 2)]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)


def reference_logits(networks, image, flips):
    """One plain pass of the network for each view, turned back and averaged by NumPy."""
    template = Template.of(lambda: Detector(TINY_MODEL, rngs=nnx.Rngs(0)))
    run = jax.jit(lambda params, image: template.bind(params)(image).objectness)
    passes = [
        np.flip(np.asarray(run(params, np.flip(image, view)[None]))[0], view)
        for params in networks
        for view in AXES[flips]
    ]
    return np.mean(passes, axis=0)


@pytest.mark.parametrize(("flips", "count"), [("none", 1), ("x", 1), ("xyz", 1), ("none", 2), ("xyz", 2)])
def test_scores_are_the_mean_of_the_passes(networks, image, flips, count):
    finder = ProposalFinder(config_with(flips), networks[0], others=networks[1:count])
    expected = reference_logits(networks[:count], image, flips)
    assert finder.plan(SHAPE).padded_shape == SHAPE
    np.testing.assert_allclose(finder.objectness(image), expected, atol=1e-4)
    # and slab by slab, as the search does it
    best = np.sort(expected.ravel())[::-1][:64]
    np.testing.assert_allclose(finder.find(image).scores, 1 / (1 + np.exp(-best)), atol=1e-4)


def test_boxes_are_the_unflipped_passes_mean_over_networks(networks, image):
    """The best anchor's code, from each network's own maps of the image as it is."""
    found = ProposalFinder(config_with("xyz"), networks[0], others=networks[1:]).find(image)
    mean = reference_logits(networks, image, "xyz")
    cell = np.unravel_index(mean.argmax(), mean.shape)
    codes = []
    for params in networks:
        detector = Template.of(lambda: Detector(TINY_MODEL, rngs=nnx.Rngs(0))).bind(params)
        codes.append(np.asarray(detector(image[None]).deltas)[0][cell])
    code = np.mean(codes, axis=0)
    size = np.asarray(anchor_sizes(TINY_MODEL.anchor_diameters_mm, Config().data.spacing_mm))[cell[3]]
    center = (np.array(cell[:3]) + 0.5) * (1, 2, 2) + code[:3] * size
    box = np.asarray(found.boxes)[0]
    np.testing.assert_allclose((box[:3] + box[3:]) / 2, center, atol=1e-3)


def test_averages_do_not_depend_on_the_tiles(networks):
    image = np.random.default_rng(1).normal(size=(70, 150, 100, 2)).astype(np.float32)
    whole, tiled = (
        ProposalFinder(config_with("xyz", tile), networks[0]) for tile in ((160, 320, 320), (60, 120, 88))
    )
    assert len(tiled.plan(image.shape[:3]).windows) > 4
    np.testing.assert_allclose(tiled.objectness(image), whole.objectness(image), atol=1e-4)
    np.testing.assert_allclose(tiled.find(image).scores, whole.find(image).scores, atol=1e-4)


def test_a_mirrored_volume_has_mirrored_scores(networks, image):
    """With flips along x the scores of an image and of its mirror image are each other's mirror images."""
    finder = ProposalFinder(config_with("x"), networks[0])
    one, other = finder.objectness(image), finder.objectness(image[:, :, ::-1])
    np.testing.assert_allclose(other[:, :, ::-1], one, atol=1e-4)
    plain = ProposalFinder(config_with("none"), networks[0])
    assert np.abs(plain.objectness(image[:, :, ::-1])[:, :, ::-1] - plain.objectness(image)).max() > 0.01


def test_several_files_are_read_with_commas_and_named(networks, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, params in zip(paths, networks, strict=True):
        save_bundle(path, params, config_with("none"))
    both = f"{paths[0]},{paths[1]}"
    bundle = load_bundle(both, "xyz")
    assert bundle.file_name == "a.safetensors,b.safetensors"
    assert bundle.config.inference.flips == "xyz"
    assert bundle.sha256 not in {load_bundle(path).sha256 for path in paths}
    assert bundle.sha256 != load_bundle(f"{paths[1]},{paths[0]}").sha256
    detector = CmbDetector.load(ScanOptions(weights=both, flips="x"))
    settings = dict(detector._settings(InferenceConfig(flips="x"), True))
    assert settings["weights"] == "a,b"
    assert settings["flips"] == "x"


def test_networks_that_do_not_go_together_are_refused(networks, tmp_path):
    other = dataclasses.replace(config_with(), model=dataclasses.replace(TINY_MODEL, head_width=6))
    save_bundle(tmp_path / "a.safetensors", networks[0], config_with())
    save_bundle(tmp_path / "b.safetensors", params_of(Detector(other.model, rngs=nnx.Rngs(0))), other)
    with pytest.raises(UserError, match="cannot be averaged"):
        load_bundle(f"{tmp_path / 'a.safetensors'},{tmp_path / 'b.safetensors'}")


def test_an_unknown_flip_is_refused():
    with pytest.raises(ValueError, match=r"inference\.flips"):
        InferenceConfig(flips="y")  # type: ignore[arg-type]
