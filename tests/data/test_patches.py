"""Patches: boxes stay on their lesions; the order of the data is a function of the step."""

import dataclasses
import shutil

import numpy as np
import pytest

from cmb_jax.config import DataConfig
from cmb_jax.data.patches import Share, augment, cut_patch, flip, padded_patch, patch_batches, turn
from cmb_jax.data.subjects import StoredSubject

CONFIG = DataConfig(patch_shape=(16, 32, 32), batch_size=4, max_truths=5, workers=0)
SHAPE = (40, 90, 80)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Two stored subjects whose image is dark (value 5 in both channels) exactly inside the true boxes."""
    made = []
    for number in range(2):
        rng = np.random.default_rng(number)
        folder = tmp_path_factory.mktemp(f"subject{number}")
        image = np.zeros((*SHAPE, 2), np.float16)
        boxes = []
        for _ in range(12):
            low = np.array([rng.integers(0, n - 6) for n in SHAPE])
            image[low[0] : low[0] + 3, low[1] : low[1] + 6, low[2] : low[2] + 6] = 5.0
            boxes.append(np.concatenate([low, low + np.array([3, 6, 6])]))
        np.save(folder / "image.npy", image)
        np.save(folder / "boxes.npy", np.array(boxes, np.float32))
        np.save(folder / "ignored_boxes.npy", np.zeros((0, 6), np.float32))
        np.save(folder / "mimics.npy", (image[:, ::2, ::2, 0] > 0).astype(np.uint8))
        np.save(folder / "mimic_points.npy", np.argwhere(image[:, ::2, ::2, 0] > 0).astype(np.int32))
        np.save(folder / "brain_points.npy", rng.integers(0, 40, (50, 3)).astype(np.int32))
        made.append(StoredSubject(folder=folder))
    return tuple(made)


def bright_voxels_are_in_boxes(image, boxes):
    covered = np.zeros(image.shape[:3], bool)
    for box in boxes:
        z0, y0, x0, z1, y1, x1 = np.round(box).astype(int)
        covered[max(z0, 0) : max(z1, 0), max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return np.array_equal(covered, image[..., 0] > 2.0)


def test_cut_patches_hold_their_boxes(subjects):
    rng = np.random.default_rng(3)
    for _ in range(40):
        image, boxes, _, mimics = cut_patch(subjects[0], CONFIG, rng)
        assert image.shape == (16, 32, 32, 2)
        assert mimics.shape == (16, 16, 16)
        assert bright_voxels_are_in_boxes(image, boxes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_move_boxes_with_the_image(subjects, axis):
    image, boxes, _, mimics = cut_patch(subjects[0], CONFIG, np.random.default_rng(4))
    flipped = flip(image, boxes, mimics, axis)
    assert bright_voxels_are_in_boxes(flipped[0], flipped[1])
    again = flip(*flipped, axis)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_allclose(again[1], boxes)


@pytest.fixture
def half_ignored(subjects, tmp_path):
    """The first subject with the latter six of its twelve lesions ignored."""
    folder = tmp_path / "half"
    shutil.copytree(subjects[0].folder, folder)
    boxes = np.load(folder / "boxes.npy")
    np.save(folder / "boxes.npy", boxes[:6])
    np.save(folder / "ignored_boxes.npy", boxes[6:])
    return StoredSubject(folder=folder)


def test_ignored_boxes_stay_ignored_through_augmentation(half_ignored):
    """By their values: the ignored lesions are those painted darker."""
    image = np.load(half_ignored.folder / "image.npy")
    for box in half_ignored.ignored_boxes().astype(int):
        image[box[0] : box[3], box[1] : box[4], box[2] : box[5]] = 50.0
    np.save(half_ignored.folder / "image.npy", image)
    seen = set()
    for batch, _ in zip(patch_batches([half_ignored], CONFIG, seed=5), range(12), strict=False):
        for patch in range(4):
            for box, ignored in zip(
                batch.boxes[patch][batch.boxes_valid[patch]],
                batch.boxes_ignored[patch][batch.boxes_valid[patch]],
                strict=True,
            ):
                low, high = np.clip(np.round([box[:3], box[3:]]).astype(int), 0, CONFIG.patch_shape)
                inside = batch.image[patch, low[0] : high[0], low[1] : high[1], low[2] : high[2], 0]
                assert ignored == (np.median(inside) > 15)
                seen.add(bool(ignored))
        assert not batch.boxes_ignored[~batch.boxes_valid].any()
    assert seen == {False, True}


def test_lesions_at_the_rim_are_ignored_only_if_asked(subjects):
    image = np.zeros((*CONFIG.patch_shape, 2), np.float32)
    mimics = np.zeros((16, 16, 16), np.uint8)
    boxes = np.array([[-2, 4, 4, 1, 10, 10], [3, 4, 4, 6, 10, 10], [4, 28, 4, 7, 36, 10]], np.float32)
    flags = np.array([False, True, False])
    for asked, want in ((False, [0, 1, 0]), (True, [1, 1, 1])):
        config = dataclasses.replace(CONFIG, ignore_rim=asked)
        patch = padded_patch(image, boxes, flags, mimics, config)
        by_box = {
            tuple(box): ignored for box, ignored in zip(patch["boxes"], patch["boxes_ignored"], strict=True)
        }
        assert [by_box[tuple(box)] for box in boxes] == want


def test_turn_moves_boxes_with_the_image(subjects):
    image, boxes, _, mimics = cut_patch(subjects[0], CONFIG, np.random.default_rng(5))
    turned = turn(image, boxes, mimics)
    assert bright_voxels_are_in_boxes(turned[0], turned[1])


def test_augmentation_keeps_lesions_in_their_boxes(subjects):
    rng = np.random.default_rng(6)
    for _ in range(20):
        image, boxes, _, mimics = cut_patch(subjects[1], CONFIG, rng)
        image, boxes, mimics = augment(image, boxes, mimics, CONFIG, rng)
        # noise is far below the lesions' 5, which no contrast change brings under 2
        assert bright_voxels_are_in_boxes(image, boxes)


def test_phase_is_dropped_as_often_as_asked(subjects):
    rng = np.random.default_rng(7)
    config = DataConfig(patch_shape=(16, 32, 32), phase_dropout=0.5, lesion_patch_fraction=1.0)
    patch = (
        np.ones((16, 32, 32, 2), np.float32),
        np.zeros((0, 6), np.float32),
        np.zeros((16, 16, 16), np.uint8),
    )
    dropped = sum(not augment(*patch, config, rng)[0][..., 1].any() for _ in range(400))
    assert 160 < dropped < 240  # binomial(400, 0.5): mean 200, four standard deviations are 40


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_resuming_at_a_step_gives_the_same_batches(subjects):
    whole = take(patch_batches(subjects, CONFIG, seed=1), 6)
    resumed = take(patch_batches(subjects, CONFIG, seed=1, first_step=3), 3)
    for a, b in zip(whole[3:], resumed, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)


def share(rows, planes=(0, 16)):
    return Share(rows=range(*rows), planes=range(*planes))


@pytest.mark.parametrize("workers", [0, 1])
def test_shares_put_together_are_the_global_batch(subjects, workers):
    """Four processes: two of each patch, two of each half of its depth; and any number of workers."""
    one = take(patch_batches(subjects, CONFIG, seed=2, first_step=1), 2)
    config = dataclasses.replace(CONFIG, workers=workers)
    shares = [[share(rows, planes) for planes in ((0, 8), (8, 16))] for rows in ((0, 2), (2, 4))]
    read = [
        [take(patch_batches(subjects, config, seed=2, first_step=1, share=part), 2) for part in row]
        for row in (shares if not workers else shares[:1])
    ]
    for step, batch in enumerate(one):
        for rows, row in zip((slice(0, 2), slice(2, 4)), read, strict=False):
            for name in ("image", "mimics"):
                together = np.concatenate([getattr(part[step], name) for part in row], axis=1)
                np.testing.assert_array_equal(together, getattr(batch, name)[rows])
            for part in row:
                np.testing.assert_array_equal(part[step].boxes, batch.boxes[rows])


def test_a_process_reads_only_its_planes(subjects):
    """The patch stays a view of the file until its planes are copied, and their values are the whole's."""
    for seed in range(8):
        patch, boxes, _, mimics = cut_patch(subjects[0], CONFIG, np.random.default_rng(seed))
        assert isinstance(patch.base, np.memmap) or not np.shares_memory(patch, patch.base)
        part, _, cells = augment(patch, boxes, mimics, CONFIG, np.random.default_rng(seed), range(4, 8))
        whole, _, whole_cells = augment(patch, boxes, mimics, CONFIG, np.random.default_rng(seed))
        np.testing.assert_array_equal(part, whole[4:8])
        np.testing.assert_array_equal(cells, whole_cells[4:8])


def test_shapes_and_padding_are_static(subjects):
    batch = next(patch_batches(subjects, CONFIG, seed=3))
    assert batch.image.shape == (4, 16, 32, 32, 2)
    assert batch.boxes.shape == (4, 5, 6)
    assert batch.boxes_valid.dtype == bool
    assert not batch.boxes[~batch.boxes_valid].any()


def mixed(subjects, phantom_share, **where):
    """Subject 0 is own, subject 1 the phantom."""
    config = dataclasses.replace(CONFIG, phantom_share=phantom_share)
    return patch_batches(subjects[:1], config, seed=4, phantoms=subjects[1:], **where)


def test_phantoms_are_mixed_in_with_their_share(subjects, tmp_path):
    """The phantom is bright everywhere, so that its patches can be told."""
    folder = tmp_path / "phantom"
    shutil.copytree(subjects[1].folder, folder)
    np.save(folder / "image.npy", np.full((*SHAPE, 2), 1.5, np.float16))
    both = (subjects[0], StoredSubject(folder=folder))
    for share in (0.25, 0.5):
        batches = take(mixed(both, share), 20)
        of_phantom = sum((batch.image[..., 0] > 0.8).mean(axis=(1, 2, 3)).round().sum() for batch in batches)
        assert abs(of_phantom - share * 80) <= 1


def test_a_mixed_run_goes_on_with_the_same_batches(subjects):
    whole = take(mixed(subjects, 0.25), 5)
    resumed = take(mixed(subjects, 0.25, first_step=3), 2)
    for a, b in zip(whole[3:], resumed, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    shares = [take(mixed(subjects, 0.25, share=share(rows)), 3) for rows in ((0, 2), (2, 4))]
    for step in range(3):
        together = np.concatenate([shares[0][step].image, shares[1][step].image])
        np.testing.assert_array_equal(together, whole[step].image)


def test_a_share_of_everything_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        DataConfig(phantom_share=1.0)
