"""Folders of predictions and truth: every layout, and every way to get one wrong."""

import json

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region, Zone
from cmb_jax.core.detection import DETECTION_COLUMNS
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import (
    find_predictions,
    find_truth,
    phantom_truth,
    read_detections_csv,
    read_detections_volume,
    read_labels,
)
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.tree import VERSION, write_subject
from cmb_jax.phantom.types import CMB_KIND, LesionTable, MimicKind, PhantomSubject

AFFINE = np.array([[0.5, 0, 0, -10.0], [0, 0.5, 0, -8.0], [0, 0, 2.0, -6.0], [0, 0, 0, 1.0]])
SHAPE = (24, 20, 8)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def mask_at(*voxels, dtype=np.uint8, value=1):
    array = np.zeros(SHAPE, dtype)
    for voxel in voxels:
        array[voxel] = value
    return array


def write_csv(path, *rows, columns=DETECTION_COLUMNS, **changed):
    """Rows are (x, y, z, score, status, reason)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns)]
    for number, (x, y, z, score, status, reason) in enumerate(rows, start=1):
        values = dict.fromkeys(DETECTION_COLUMNS, "0") | {
            "id": number,
            "x_mm": x,
            "y_mm": y,
            "z_mm": z,
            "diameter_mm": 3.0,
            "score": score,
            "zone": "lobar",
            "region": "frontal",
            "status": status,
            "reason": reason,
        }
        values |= changed
        lines.append(",".join(str(values[name]) for name in columns))
    path.write_text("\n".join(lines) + "\n")


def write_version(root, version=VERSION):
    """dataset_description.json; of version 1, which names none."""
    content = {"Name": "CMB-Phantom"} | ({} if version == 1 else {"PhantomVersion": version})
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(content))


def write_simulated(root, name, voxels, mimic_voxels=(), ignored=()):
    """One subject in the layout of `cmb-jax simulate`; lesion n has id n + 1."""
    anat = root / "derivatives" / "truth" / name / "anat"
    write_version(root / "derivatives" / "truth")
    labels = np.zeros(SHAPE, np.uint16)
    header = [
        "id",
        "kind",
        "x_mm",
        "y_mm",
        "z_mm",
        "diameter_mm",
        "apparent_diameter_mm",
        "chi_ppm",
        "region",
        "side",
        "zone",
        "cnr",
    ]
    lines = ["\t".join(header)]
    for number, voxel in enumerate(voxels, start=1):
        labels[voxel] = number
        x, y, z = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
        row = [number, "cmb", x, y, z, 2.0, 4.0, 1.0, "frontal", "left", "lobar", 7.5]
        lines.append("\t".join(str(value) for value in row))
    lines.append(
        "\t".join(["99", "calcification_pial", "0", "0", "0", *["1"] * 3, "frontal", "left", "lobar", "3"])
    )
    for number, voxel in enumerate(ignored, start=100):
        x, y, z = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
        row = [number, "ignored_microbleed", x, y, z, 0.8, 1.2, 0.4, "frontal", "left", "lobar", 1.5]
        lines.append("\t".join(str(value) for value in row))
    save(anat / f"{name}_desc-cmb_dseg.nii.gz", labels)
    mimics = mask_at(*mimic_voxels, value=int(MimicKind.PIAL_VEIN))
    save(anat / f"{name}_desc-mimics_dseg.nii.gz", mimics)
    (anat / f"{name}_desc-lesions.tsv").write_text("\n".join(lines) + "\n")


def test_simulated_tree_from_its_root_or_its_truth(tmp_path):
    write_simulated(tmp_path, "sub-0001", [(4, 5, 3), (15, 6, 4)], [(20, 10, 5)], [(8, 2, 3)])
    write_simulated(tmp_path, "sub-0002", [])
    (tmp_path / "participants.tsv").write_text("participant_id\tprotocol\nsub-0001\tiso05\nsub-0002\tiso08\n")
    for root in (tmp_path, tmp_path / "derivatives" / "truth"):
        first, second = [source.read() for source in find_truth(root)]
        assert (first.subject, first.protocol) == ("sub-0001", "iso05")
        np.testing.assert_allclose(first.centers_mm, [[-8, -5.5, 0], [-2.5, -5, 2]])
        assert first.seen_diameters_mm.tolist() == [4.0, 4.0]
        assert first.zones == ("lobar", "lobar")
        assert first.volume.labels[15, 6, 4] == 2
        assert first.mimics.names[first.mimics.codes[20, 10, 5]] == "pial_vein"
        assert len(second.centers_mm) == 0
        assert second.protocol == "iso08"
        np.testing.assert_allclose(first.ignored_centers_mm, [[-6, -7, 0]])
        assert first.ignored_diameters_mm.tolist() == [1.2]
        assert len(second.ignored_centers_mm) == 0
        assert (first.has_phase, second.has_phase) == (True, True)


@pytest.mark.parametrize("below", [".", "derivatives/truth"])
def test_an_older_phantom_is_refused_by_its_version(tmp_path, below):
    write_simulated(tmp_path, "sub-0001", [(4, 5, 3)])
    for folder in (tmp_path, tmp_path / "derivatives" / "truth"):
        write_version(folder, 1)
    with pytest.raises(UserError, match=r"is of CMB-Phantom 1, .*evaluates CMB-Phantom 2") as error:
        find_truth(tmp_path / below)
    assert "\n" not in str(error.value)
    for folder in (tmp_path, tmp_path / "derivatives" / "truth"):
        (folder / "dataset_description.json").write_text('{"PhantomVersion": "two"}')
    with pytest.raises(UserError, match="not a whole number"):
        find_truth(tmp_path / below)
    write_version(tmp_path, VERSION)
    write_version(tmp_path / "derivatives" / "truth", VERSION)
    assert len(find_truth(tmp_path / below)) == 1


def test_whether_there_is_a_phase_is_told_by_the_images_first(tmp_path):
    """A tree whose phase was taken out still names the protocol."""
    write_simulated(tmp_path, "sub-0001", [(4, 5, 3)])
    (tmp_path / "participants.tsv").write_text("participant_id\tprotocol\ttier\nsub-0001\tiso05\thard\n")
    for name, expected in (("T2starw", False), ("part-phase_T2starw", True)):
        save(tmp_path / "sub-0001" / "anat" / f"sub-0001_{name}.nii.gz", mask_at())
        truth = find_truth(tmp_path)[0].read()
        assert (truth.has_phase, truth.tier) == (expected, "hard")


def test_labels_without_a_row_are_refused(tmp_path):
    write_simulated(tmp_path, "sub-0001", [(4, 5, 3)])
    anat = tmp_path / "derivatives/truth/sub-0001/anat"
    save(anat / "sub-0001_desc-cmb_dseg.nii.gz", mask_at((4, 5, 3), (9, 9, 3), value=5))
    with pytest.raises(UserError, match="label 5 has no row"):
        find_truth(tmp_path)[0].read()


def test_subject_without_a_table_is_refused_not_skipped(tmp_path):
    write_simulated(tmp_path, "sub-0001", [(4, 5, 3)])
    (tmp_path / "derivatives/truth/sub-0002/anat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"sub-0002_desc-lesions.tsv: no such file"):
        [source.read() for source in find_truth(tmp_path)]


def test_valdo_layout_with_soft_values_and_nan(tmp_path):
    soft = mask_at((4, 5, 3), dtype=np.float32)
    soft[5, 5, 3], soft[10, 10, 4], soft[0, 0, 0] = 0.5, 0.4, np.nan
    save(tmp_path / "sub-101" / "sub-101_space-T2S_CMB.nii.gz", soft)
    save(tmp_path / "sub-101" / "sub-101_space-T2S_desc-masked_T2S.nii.gz", soft)
    (source,) = find_truth(tmp_path)
    truth = source.read()
    assert truth.subject == "sub-101"
    np.testing.assert_allclose(truth.centers_mm, [[-7.75, -5.5, 0]])


def test_folder_of_label_images(tmp_path):
    save(tmp_path / "sub-7_ses-1_CMB.nii.gz", mask_at((4, 5, 3)))
    save(tmp_path / "case.b.nii", mask_at())
    assert [source.subject for source in find_truth(tmp_path)] == ["case.b", "sub-7_ses-1"]
    assert len(find_truth(tmp_path)[0].read().centers_mm) == 0


def test_two_truth_images_of_one_subject(tmp_path):
    save(tmp_path / "sub-7_CMB.nii.gz", mask_at())
    save(tmp_path / "sub-7_T2S.nii.gz", mask_at())
    with pytest.raises(UserError, match="two truth images for sub-7"):
        find_truth(tmp_path)


@pytest.mark.parametrize("find", [find_truth, lambda folder: find_predictions(folder, ["sub-1"])])
def test_folders_that_are_missing_empty_or_unknown(tmp_path, find):
    with pytest.raises(UserError, match="no such folder"):
        find(tmp_path / "nothing")
    with pytest.raises(UserError, match="is empty"):
        find(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="found; expected"):
        find(tmp_path)


def test_predictions_are_matched_by_name(tmp_path):
    write_csv(tmp_path / "sub-1" / "detections.csv")
    save(tmp_path / "sub-10_space-T2S_prediction.nii.gz", mask_at())
    save(tmp_path / "sub-2" / "labels.nii.gz", mask_at())
    (tmp_path / "log.txt").write_text("x")
    (tmp_path / "sub-3").mkdir()
    sources = find_predictions(tmp_path, ["sub-1", "sub-10", "sub-2", "sub-3"])
    assert [source.path.name if source.path else None for source in sources] == [
        "detections.csv",
        "sub-10_space-T2S_prediction.nii.gz",
        "labels.nii.gz",
        None,
    ]
    assert sources[3].read().missing


def test_one_scan_may_be_the_folder_itself(tmp_path):
    write_csv(tmp_path / "detections.csv")
    assert find_predictions(tmp_path, ["sub-1"])[0].path == tmp_path / "detections.csv"
    table = tmp_path / "bids" / "sub-1_ses-2_desc-cmb_detections.tsv"
    write_csv(table)
    assert find_predictions(table.parent, ["sub-1"])[0].path == table
    with pytest.raises(UserError, match="no predictions found"):
        find_predictions(tmp_path, ["sub-1", "sub-2"])


def test_predictions_without_a_truth_are_named(tmp_path):
    write_csv(tmp_path / "sub-1" / "detections.csv")
    write_csv(tmp_path / "sub-9" / "detections.csv")
    save(tmp_path / "sub-11_prediction.nii.gz", mask_at())
    with pytest.raises(UserError, match=r"without a truth: sub-11_prediction, sub-9"):
        find_predictions(tmp_path, ["sub-1"])


def test_two_predictions_for_one_scan(tmp_path):
    save(tmp_path / "sub-1_a.nii.gz", mask_at())
    save(tmp_path / "sub-1_b.nii.gz", mask_at())
    with pytest.raises(UserError, match=r"several predictions for sub-1: sub-1_a.nii.gz, sub-1_b.nii.gz"):
        find_predictions(tmp_path, ["sub-1"])
    save(tmp_path / "pred" / "sub-1" / "a.nii.gz", mask_at())
    save(tmp_path / "pred" / "sub-1" / "b.nii.gz", mask_at())
    with pytest.raises(UserError, match="holds 2 images"):
        find_predictions(tmp_path / "pred", ["sub-1"])


def test_csv_status_and_reason(tmp_path):
    path = tmp_path / "detections.csv"
    write_csv(
        path,
        (1, 2, 3, 0.9, "kept", ""),
        (4, 5, 6, 0.3, "rejected", "score below the operating point"),
        (7, 8, 9, 0.8, "rejected", "outside the brain"),
    )
    record = read_detections_csv(path, "sub-1")
    assert record.status == ("kept", "candidate", "rejected")
    assert record.at(None).centers_mm.tolist() == [[1, 2, 3]]
    assert record.at(0.1).scores.tolist() == [0.9, 0.3]
    assert record.zones == ("lobar",) * 3


def test_csv_without_rows_is_an_empty_result(tmp_path):
    write_csv(tmp_path / "detections.csv")
    record = read_detections_csv(tmp_path / "detections.csv", "sub-1")
    assert record.centers_mm.shape == (0, 3)
    assert not record.missing


def test_csv_without_optional_columns(tmp_path):
    columns = ("x_mm", "y_mm", "z_mm", "diameter_mm", "score", "status")
    write_csv(tmp_path / "d.csv", (1, 2, 3, 0.9, "kept", ""), columns=columns)
    record = read_detections_csv(tmp_path / "d.csv", "sub-1")
    assert record.zones is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "high"}, r"line 2: score is 'high'"),
        ({"x_mm": "nan"}, r"line 2: x_mm is 'nan'"),
        ({"y_mm": ""}, r"line 2: y_mm is ''"),
        ({"diameter_mm": "-1"}, r"line 2: diameter_mm is '-1', but it must be a number from 0"),
        ({"status": "maybe"}, r"line 2: status is 'maybe'"),
    ],
)
def test_csv_with_wrong_values(tmp_path, changed, message):
    write_csv(tmp_path / "d.csv", (1, 2, 3, 0.9, "kept", ""), **changed)
    with pytest.raises(UserError, match=message):
        read_detections_csv(tmp_path / "d.csv", "sub-1")


def test_csv_that_is_no_table(tmp_path):
    path = tmp_path / "d.csv"
    for content, message in [
        (b"", "is empty"),
        (b"x_mm,y_mm\n1,2\n", "no column z_mm, diameter_mm, score, status"),
        (b"x_mm,y_mm,z_mm,diameter_mm,score,status\n1,2\n", "line 2 has 2 values for 6 columns"),
        (b"\x1f\x8b\x00\xff", "give a CSV file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_detections_csv(path, "sub-1")
    with pytest.raises(UserError, match="no such file"):
        read_detections_csv(tmp_path / "other.csv", "sub-1")


def test_probability_map_and_its_threshold(tmp_path):
    values = mask_at((4, 5, 3), dtype=np.float32, value=0.9)
    values[5, 5, 3], values[12, 8, 4] = 0.6, 0.45
    save(tmp_path / "p.nii.gz", values[..., None])
    record = read_detections_volume(tmp_path / "p.nii.gz", "sub-1")
    np.testing.assert_allclose(record.scores, [0.9])
    np.testing.assert_allclose(record.centers_mm, [[-7.75, -5.5, 0]])
    assert len(read_detections_volume(tmp_path / "p.nii.gz", "sub-1", threshold=0.4).scores) == 2


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_orientation_of_the_file_does_not_matter(tmp_path, codes):
    labels = mask_at((4, 5, 3), dtype=np.int16, value=3)
    labels[15, 6, 4] = 8
    image = nib.Nifti1Image(labels, AFFINE)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(transform), tmp_path / "labels.nii.gz")
    values, affine = read_labels(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(values, labels)
    np.testing.assert_allclose(affine, AFFINE)
    record = read_detections_volume(tmp_path / "labels.nii.gz", "sub-1")
    np.testing.assert_allclose(record.centers_mm, [[-8, -5.5, 0], [-2.5, -5, 2]])


def test_images_that_are_no_labels(tmp_path):
    save(tmp_path / "negative.nii.gz", mask_at((4, 5, 3), dtype=np.int16, value=-1))
    with pytest.raises(UserError, match="negative values"):
        read_labels(tmp_path / "negative.nii.gz")
    save(tmp_path / "series.nii.gz", np.zeros((*SHAPE, 2), np.uint8))
    with pytest.raises(UserError, match="not a volume of labels"):
        read_labels(tmp_path / "series.nii.gz")
    (tmp_path / "text.nii.gz").write_text("text")
    with pytest.raises(UserError, match=r"text\.nii\.gz"):
        read_labels(tmp_path / "text.nii.gz")


def test_phantom_in_memory_is_what_is_read_from_its_files(tmp_path):
    voxels = [(4, 5, 3), (15, 6, 4)]
    labels = np.zeros(SHAPE, np.uint16)
    for number, voxel in enumerate(voxels, start=1):
        labels[voxel] = number
    n = len(voxels) + 1
    image = Volume.from_array(np.ones(SHAPE), AFFINE)
    table = LesionTable(
        id=np.array([1, 2, 99, 100]),
        kind=np.array([CMB_KIND, CMB_KIND, MimicKind.CALCIFICATION_PIAL, MimicKind.IGNORED_MICROBLEED]),
        center_mm=np.array(
            [*(AFFINE[:3, :3] @ voxel + AFFINE[:3, 3] for voxel in voxels), np.zeros(3), np.ones(3)]
        ),
        diameter_mm=np.full(n + 1, 2.0),
        apparent_diameter_mm=np.full(n + 1, 4.0),
        chi_ppm=np.ones(n + 1),
        region=np.full(n + 1, int(Region.FRONTAL)),
        side=np.ones(n + 1, int),
        zone=np.full(n + 1, int(Zone.LOBAR)),
        cnr=np.full(n + 1, 7.5),
    )
    phantom = PhantomSubject(
        swi=image,
        phase=image,
        magnitude=image,
        cmb_labels=labels,
        tier="easy",
        anatomy="synthetic",
        motion_mm=0.0,
        mimic_labels=mask_at((20, 10, 5), value=int(MimicKind.PIAL_VEIN)),
        region_code=mask_at(),
        lesions=table,
        protocol="iso05",
        seed=0,
        te_ms=20.0,
        tr_ms=30.0,
        flip_deg=15.0,
        b0_t=3.0,
        snr=20.0,
        phase_sign=1,
    )
    write_subject(phantom, tmp_path, "sub-0001")
    write_version(tmp_path)
    memory, files = phantom_truth(phantom, "sub-0001"), find_truth(tmp_path)[0].read()
    assert memory.protocol == "iso05"
    for name in ("subject", "regions", "zones"):
        assert getattr(memory, name) == getattr(files, name)
    assert memory.has_phase == files.has_phase is True
    assert len(memory.ignored_centers_mm) == 1
    ignored = ("ignored_centers_mm", "ignored_diameters_mm")
    for name in ("centers_mm", "diameters_mm", "apparent_diameters_mm", "cnr", *ignored):
        np.testing.assert_allclose(getattr(memory, name), getattr(files, name))
    np.testing.assert_array_equal(memory.volume.labels, files.volume.labels)
    np.testing.assert_array_equal(memory.mimics.codes, files.mimics.codes)
    assert memory.mimics.names == files.mimics.names


def test_probabilities_may_be_there_and_may_be_empty(tmp_path):
    rows = [(0, 0, 0, 0.9, "kept", ""), (9, 0, 0, 0.4, "rejected", "score below the operating point")]
    path = tmp_path / "detections.csv"
    write_csv(path, *rows, probability="")
    assert read_detections_csv(path, "s").probabilities is None
    write_csv(path, *rows, probability="0.25")
    assert read_detections_csv(path, "s").candidates().probabilities.tolist() == [0.25, 0.25]
    older = [name for name in DETECTION_COLUMNS if name != "probability"]
    write_csv(path, *rows, columns=older)
    assert read_detections_csv(path, "s").probabilities is None
    for wrong, words in (("1.2", "above 1"), ("-0.1", "from 0 on"), ("likely", "from 0 on")):
        write_csv(path, *rows, probability=wrong)
        with pytest.raises(UserError, match=rf"line 2: probability is .*{words}"):
            read_detections_csv(path, "s")
