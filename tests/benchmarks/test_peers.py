"""The comparison's common ground: budget, resuming, candidates of a segmentation, predictions, the page."""

import importlib.util
import itertools
import json
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import benchmarks.peers.__main__ as command
from benchmarks.peers import contest, twin
from benchmarks.peers.contest import (
    CONTESTANTS,
    Budget,
    Contestant,
    Found,
    TestScan,
    components,
    run_one,
    spheres,
)
from benchmarks.peers.page import BEGIN, END, NOT_RUN, write_page
from benchmarks.peers.plan import PLAN, Run, budget_seconds
from benchmarks.peers.torch_loop import train_loop
from cmb_jax.data.prepare import PreparedVolume
from cmb_jax.data.subjects import store_scan
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_detections_csv

ROOT = Path(__file__).resolve().parents[2]
AFFINE = np.array([[0.5, 0, 0, -3], [0, 0.5, 0, 4], [0, 0, 1.0, 10], [0, 0, 0, 1]])


@pytest.fixture
def clock(monkeypatch):
    """CPU time that goes forward when the test says so."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "process_time", lambda: Clock.now)
    return Clock


def flooded(mask):
    """Connected voxels (26 neighbors) of a mask, by flood fill over a set."""
    left, found = set(map(tuple, np.argwhere(mask))), []
    while left:
        part, todo = [], [left.pop()]
        while todo:
            voxel = todo.pop()
            part.append(voxel)
            for step in itertools.product((-1, 0, 1), repeat=3):
                near = tuple(np.add(voxel, step).tolist())
                if near in left:
                    left.remove(near)
                    todo.append(near)
        found.append(np.array(part))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_components_are_what_a_flood_fill_finds(seed):
    rng = np.random.default_rng(seed)
    probability = np.where(rng.random((7, 9, 8)) < 0.12, rng.uniform(0.05, 1, (7, 9, 8)), 0.0)
    expected = sorted(
        (
            probability[tuple(part.T)].max(),
            *(part.mean(0) + 0.5),
            (6 / np.pi * len(part) * 0.25) ** (1 / 3),
        )
        for part in flooded(probability >= 0.1)
    )
    found = components(probability)
    rows = sorted(
        (score, *center, diameter)
        for score, center, diameter in zip(found.scores, found.centers, found.diameters_mm, strict=True)
    )
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


def test_a_certain_segmentation_is_no_set_of_labels():
    probability = np.zeros((4, 6, 6))
    probability[1, 1, 1] = probability[3, 4, 4] = 1.0
    assert len(components(probability).scores) == 2
    assert len(components(np.zeros((4, 6, 6))).scores) == 0


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_spheres_are_the_cells_with_centers_inside(stride):
    boxes = np.array([[1.02, 3.1, 2, 4, 9, 8.2], [-1.1, 8, 8, 2, 12, 12.5], [4.4, 0, 0, 4.6, 0.3, 0.3]])
    shape = (6, 12 // stride[1], 12 // stride[2])
    expected = np.zeros(shape, bool)
    for cell in np.ndindex(shape):
        point = (np.array(cell) + 0.5) * stride
        for box in boxes:
            half = (box[3:] - box[:3]) / 2
            expected[cell] |= np.sum(((point - box[:3]) / half - 1) ** 2) <= 1
    assert expected.any()
    np.testing.assert_array_equal(spheres(boxes, shape, stride), expected)


class Weight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))


def train_weight(folder, clock, seconds=1000.0, stop_after=None):
    """Each step costs 50 s and moves the weight by the spent share; (steps, weight)."""
    model, taken = Weight(), 0

    def take_step(share):
        nonlocal taken
        if taken == stop_after:
            raise KeyboardInterrupt
        taken += 1
        clock.now += 50
        with torch.no_grad():
            model.value += share
        return 0.0

    steps = train_loop(folder, Budget(folder, seconds), {"model": model}, take_step)
    return steps, model.value.item()


def test_a_budget_ends_training_and_a_stopped_one_comes_to_the_same(tmp_path, clock):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    steps, weight = train_weight(tmp_path / "whole", clock)
    assert steps == 20  # 1000 s
    assert json.loads((tmp_path / "whole/spent.json").read_text())["cpu_s"] == 1000
    for stop_after in (1, 5, 8):  # before the first checkpoint, and after some
        clock.now += 12345  # what another process spends is not ours
        with pytest.raises(KeyboardInterrupt):
            train_weight(tmp_path / "parts", clock, stop_after=stop_after)
    assert train_weight(tmp_path / "parts", clock) == (steps, pytest.approx(weight))
    # and a spent one is not gone on with
    assert train_weight(tmp_path / "parts", clock, stop_after=0)[0] == steps


def test_atss_takes_what_a_loop_over_anchors_takes():
    rng = np.random.default_rng(3)
    grid, sizes = (6, 7, 8), np.array([[2.5, 5, 5], [4, 8, 8]])
    low = rng.uniform(0, [3, 6, 7], (4, 3))
    boxes = np.concatenate([low, low + rng.uniform([2, 4, 4], [5, 9, 9], (4, 3))], 1)
    best = {}  # anchor -> (overlap, truth)
    for truth, box in enumerate(boxes):
        middle = (box[:3] + box[3:]) / 2
        cells = np.array(list(np.ndindex(grid)))
        centers = (cells + 0.5) * (1, 2, 2)
        nearest = np.argsort(np.linalg.norm((centers - middle) / (1, 2, 2), axis=1))[:4]
        overlaps = {}
        for cell in nearest:
            for number, size in enumerate(sizes):
                a0, a1 = centers[cell] - size / 2, centers[cell] + size / 2
                shared = np.prod(np.maximum(np.minimum(a1, box[3:]) - np.maximum(a0, box[:3]), 0))
                union = np.prod(size) + np.prod(box[3:] - box[:3]) - shared
                overlaps[cell * len(sizes) + number] = shared / union
        values = np.array(list(overlaps.values()))
        for anchor, overlap in overlaps.items():
            if overlap >= values.mean() + values.std() and overlap > best.get(anchor, (0, 0))[0]:
                best[anchor] = (overlap, truth)
    flat, truth = twin.atss(torch.from_numpy(boxes), grid, torch.from_numpy(sizes))
    assert dict(zip(flat.tolist(), truth.tolist(), strict=True)) == {a: t for a, (_, t) in best.items()}


def test_hidden_cells_are_whole_cubes():
    jax = pytest.importorskip("jax")
    from benchmarks.peers.ours import MASK_CELLS, hide

    cells = np.ones((2, 8, 12, 10, 3), np.float32)
    seen, hidden = hide(jax.numpy.asarray(cells), jax.random.key(0))
    np.testing.assert_array_equal(seen, cells * (1 - np.asarray(hidden)))
    for corner in itertools.product(range(2), *(range(0, n, MASK_CELLS) for n in (8, 12, 10))):
        block = hidden[(corner[0], *(slice(c, c + MASK_CELLS) for c in corner[1:]))]
        assert block.min() == block.max()
    assert 0.3 < hidden.mean() < 0.9


def stored(folder, rng):
    """A prepared subject with two bright marks at its lesions, at (z, y, x) voxels."""
    image = rng.uniform(0, 0.1, (12, 24, 24, 2)).astype(np.float16)
    centers = np.array([[3, 6, 6], [8, 16, 15]])
    image[tuple(centers.T)] = 1.0
    prepared = PreparedVolume(image=image, affine=AFFINE, spacing_mm=(1.0, 0.5, 0.5), has_phase=True)
    middle, half = centers + 0.5, np.array([1, 2, 2])
    return store_scan(
        folder,
        prepared,
        boxes=np.stack([middle - half, middle + half], 1).reshape(-1, 6),
        mimics_mm=np.zeros((0, 3)),
        brain_mask=np.ones((24, 24, 12), bool),
        affine=AFFINE,
        seed=0,
    )


TOY = """
import numpy as np
from benchmarks.peers.contest import Found

def train(subjects, folder, budget, seed):
    with (folder / "calls").open("a") as calls:
        calls.write("trained\\n")
    budget.save(steps=len(subjects))
    return {"parameters": 7}

def load(folder):
    def find(image):
        places = np.argwhere(image[..., 0] > 0.05)
        return Found(centers=places + 0.5, diameters_mm=np.full(len(places), 2.0),
                     scores=image[tuple(places.T)][:, 0].astype(float))
    return find
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_contestant.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return Contestant(name="base", module="toy_contestant")


def run_toy(toy, folder, tmp_path):
    rng = np.random.default_rng(0)
    subjects = [stored(tmp_path / f"seed-{number}", rng) for number in range(2)]

    def scan(number):
        image = np.asarray(subjects[number].image())
        return TestScan(subject=f"sub-{number}", image=image, affine=AFFINE)

    readers = [lambda: scan(0), lambda: scan(1)]
    facts = {"commit": "c", "cpu": "p", "cores": 1}
    run_one(toy, folder, subjects, subjects, readers, seconds=60, seed=0, facts=facts)


def test_a_run_ends_in_predictions_in_ras_and_is_not_made_twice(tmp_path, toy):
    folder = tmp_path / "run"
    run_toy(toy, folder, tmp_path)
    found = read_detections_csv(folder / "predictions/sub-0/detections.csv", "sub-0").at(None)
    best = found.centers_mm[np.argsort(-found.scores)[:2]]
    # voxel (z, y, x) = (3, 6, 6) and (8, 16, 15) by the affine, x first
    expected = [AFFINE[:3] @ [6, 6, 3, 1], AFFINE[:3] @ [15, 16, 8, 1]]
    np.testing.assert_allclose(sorted(best.tolist()), sorted(np.array(expected).tolist()), atol=1e-3)
    content = json.loads((folder / "result.json").read_text())
    assert content["parameters"] == 7
    assert content["steps"] == 2
    assert 0.05 < content["threshold"] < 1
    assert (folder / "calls").read_text().count("trained") == 1
    (folder / "result.json").unlink()
    run_toy(toy, folder, tmp_path)
    assert (folder / "calls").read_text().count("trained") == 1


def test_the_page_says_what_was_found_and_what_was_not_run(tmp_path, toy):
    runs = [
        Run(contestant=name, budget="1h", seed=0, subjects=count)
        for name, count in (("base", 72), ("nnunet", 72), ("base", 4), ("nnunet", 4))
    ]
    run_toy(toy, runs[0].folder(tmp_path), tmp_path)
    truth = tmp_path / "truth"
    truth.mkdir()
    for number in range(2):
        labels = np.zeros((24, 24, 12), np.uint8)
        labels[6, 6, 3], labels[15, 16, 8] = 1, 2
        nib.save(nib.Nifti1Image(labels, AFFINE), truth / f"sub-{number}.nii.gz")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nEnd.\n")
    write_page(tmp_path, truth, runs, page)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("End.\n")
    assert "old" not in text
    assert "1 of 4 runs are done" in text
    rows = [line for line in text.splitlines() if line.startswith("| `base` |")]
    assert "| 1.000 [1.000, 1.000] |" in rows[0]  # both lesions score highest in both scans
    assert all(NOT_RUN in line for line in text.splitlines() if line.startswith("| `nnunet`"))
    few = next(line for line in text.splitlines() if line.startswith("| `base`, 1h"))
    assert few == f"| `base`, 1h | {NOT_RUN} | - | - | - | 1.000 [1.000, 1.000] |"
    write_page(tmp_path / "nothing", tmp_path / "no_scans", runs, page)
    text = page.read_text()
    assert "None of 4 runs is done" in text
    assert f"All {NOT_RUN}: `base`, `nnunet`." in text
    page.write_text("# no place for results\n")
    with pytest.raises(UserError, match="has no part"):
        write_page(tmp_path, truth, runs, page)


def test_what_is_not_installed_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CONTESTANTS, "nnunet", Contestant(name="nnunet", module="x", needs=("no_such_peer",)))
    monkeypatch.setattr(command, "training_and_validation", lambda given: None)
    monkeypatch.setattr(command, "test_scans", lambda given: ())
    with pytest.raises(SystemExit) as stop:
        command.main(["run", "--work", str(tmp_path), "--only", "nnunet", "--budget", "2m"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "no_such_peer is not installed: pip install -r benchmarks/peers/requirements-peers.txt" in out


@pytest.mark.parametrize(
    "options", [("--only", "yolo"), ("--budget", "soon"), ("--budget", "0h"), ("--budget", "-1h")]
)
def test_bad_options_are_one_line(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stop:
        command.main(["run", "--work", str(tmp_path), *(f"{options[0]}={options[1]}",)])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plan_and_page_know_the_same_contestants():
    assert budget_seconds("90s") == 90
    assert budget_seconds("1.5h") == 5400
    assert {run.contestant for run in PLAN} == set(CONTESTANTS)
    assert len(set(PLAN)) == len(PLAN)
    text = (ROOT / "docs" / "comparison.md").read_text()
    table = text[text.index("## Who") : text.index(BEGIN)]
    named = set(
        re.findall(r"`([a-z-]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    assert named == set(CONTESTANTS)
    for each in CONTESTANTS.values():
        assert importlib.util.find_spec(each.module) is not None
    assert contest.OPERATING_FP_RATE == 2


def test_found_are_per_candidate():
    empty = Found(centers=np.zeros((0, 3)), diameters_mm=np.zeros(0), scores=np.zeros(0))
    assert contest.as_detections(empty, "sub-0").centers_mm.shape == (0, 3)
