"""Which images of a scan are taken, what is said about it, and what happens to the others."""

import gzip
import json

import numpy as np
import pytest

from cmb_jax.cohort.participants import Selection
from cmb_jax.datasets.bids.choice import ChoiceKind, choose
from cmb_jax.datasets.bids.layout import read_filter, read_layout
from cmb_jax.errors import UserError
from tests.datasets.bids import tree
from tests.datasets.trees import LPS, SHAPE, brain, mask

SHIFTED = LPS + np.array([[0, 0, 0, 3.0], *[[0.0] * 4] * 3])
COARSE = LPS @ np.diag([2.0, 2.0, 1.0, 1.0])


@pytest.fixture
def chosen(tmp_path):
    """Chooses of the only scan of sub-01 what images of these names give."""

    def choice(*stems, **affines):
        for stem in stems:
            data = tree.phase() if "phase" in stem else None
            tree.image(tmp_path, f"sub-01/anat/sub-01_{stem}", data, affines.get(stem, LPS))
        (scan,) = read_layout(tmp_path).scans("01")
        return choose(scan, tmp_path)

    return choice


def taken(choice):
    return [image.file.path.name.removeprefix("sub-01_").removesuffix(".nii.gz") for image in choice.images]


def left(choice):
    return {
        image.file.path.name.removeprefix("sub-01_").removesuffix(".nii.gz"): image.why
        for image in choice.left
    }


@pytest.mark.parametrize(
    ("stems", "kind", "expected"),
    [
        (["swi", "part-phase_GRE"], ChoiceKind.SWI_AND_PHASE, ["swi", "part-phase_GRE"]),
        (["swi", "phase"], ChoiceKind.SWI_AND_PHASE, ["swi", "phase"]),
        (
            ["swi", "part-mag_T2starw", "part-phase_T2starw"],
            ChoiceKind.SWI_AND_PHASE,
            ["swi", "part-mag_T2starw", "part-phase_T2starw"],
        ),
        (
            ["swi", "part-mag_swi", "part-phase_swi"],
            ChoiceKind.SWI_AND_PHASE,
            ["swi", "part-mag_swi", "part-phase_swi"],
        ),
        (
            ["part-mag_swi", "part-phase_swi"],
            ChoiceKind.MAGNITUDE_AND_PHASE,
            ["part-mag_swi", "part-phase_swi"],
        ),
        (
            ["T2starw", "part-phase_T2starw"],
            ChoiceKind.MAGNITUDE_AND_PHASE,
            ["T2starw", "part-phase_T2starw"],
        ),
        (["swi", "T1w"], ChoiceKind.SWI_ALONE, ["swi"]),
        (["part-mag_GRE"], ChoiceKind.MAGNITUDE_ALONE, ["part-mag_GRE"]),
        (["T2STARW"], ChoiceKind.MAGNITUDE_ALONE, ["T2STARW"]),
    ],
)
def test_kinds(chosen, stems, kind, expected):
    choice = chosen(*stems)
    assert choice.kind is kind
    assert taken(choice) == expected
    assert choice.why == kind.value
    assert left(choice) == {}


def test_swi_goes_with_the_phase_that_has_most_of_its_name(chosen):
    choice = chosen("acq-b_swi", "acq-a_part-phase_GRE", "acq-b_part-phase_GRE")
    assert taken(choice) == ["acq-b_swi", "acq-b_part-phase_GRE"]
    assert "no magnitude of an echo" in left(choice)["acq-a_part-phase_GRE"]


def test_of_two_swi_the_one_of_the_phase_s_acquisition_is_taken(chosen):
    choice = chosen("acq-a_swi", "acq-b_swi", "acq-b_part-phase_GRE")
    assert taken(choice) == ["acq-b_swi", "acq-b_part-phase_GRE"]
    assert "more like that of the phase" in left(choice)["acq-a_swi"]


def test_a_phase_on_another_grid_is_left_and_the_next_kind_taken(chosen):
    choice = chosen("swi", "part-phase_GRE", **{"part-phase_GRE": SHIFTED})
    assert choice.kind is ChoiceKind.SWI_ALONE
    assert "on its grid there is no SWI" in left(choice)["part-phase_GRE"]
    again = chosen("part-mag_GRE", **{"part-mag_GRE": SHIFTED})  # now magnitude and phase fit together
    assert again.kind is ChoiceKind.MAGNITUDE_AND_PHASE
    assert left(again) == {"swi": f"{again.kind.value} goes before SWI without phase"}


def test_echoes_are_combined_in_the_order_of_their_times(tmp_path):
    tree.echoes(tmp_path, times_s=(0.024, 0.008, 0.016))
    tree.image(tmp_path, "sub-01/anat/sub-01_part-mag_T2starw")
    tree.image(tmp_path, "sub-01/anat/sub-01_part-phase_T2starw", tree.phase())
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert choice.te_ms == (8.0, 16.0, 24.0)
    assert [image.file.name.get("echo") for image in choice.magnitudes] == ["2", "3", "1"]
    assert [image.file.name.get("echo") for image in choice.phases] == ["2", "3", "1"]
    assert "before sub-01/anat/sub-01_part-mag_T2starw.nii.gz: 3 echoes against 1" in choice.why
    assert set(left(choice)) == {"part-mag_T2starw", "part-phase_T2starw"}


def test_echoes_without_times_leave_the_last_one(tmp_path):
    tree.echoes(tmp_path, times_s=())
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert taken(choice) == ["echo-3_part-mag_MEGRE", "echo-3_part-phase_MEGRE"]
    assert choice.te_ms == ()
    assert any("echo times of 3 echoes" in note for note in choice.notes)
    assert len(left(choice)) == 4


def test_echoes_without_partner(tmp_path):
    tree.echoes(tmp_path)
    (tmp_path / "sub-01/anat/sub-01_echo-2_part-phase_MEGRE.nii.gz").unlink()
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert choice.te_ms == (8.0, 24.0)
    assert list(left(choice)) == ["echo-2_part-mag_MEGRE"]


def test_echoes_that_have_no_numbers(chosen):
    choice = chosen("echo-b_part-mag_GRE", "echo-a_part-mag_GRE", "echo-3_part-mag_GRE")
    assert taken(choice) == ["echo-b_part-mag_GRE"]  # the last by name, as no time is known


def test_magnitudes_of_several_echoes_without_phase_leave_the_longest(tmp_path):
    for echo, seconds in ((1, 0.03), (2, 0.01)):
        tree.image(tmp_path, f"sub-01/anat/sub-01_echo-{echo}_part-mag_MEGRE", EchoTime=seconds)
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert taken(choice) == ["echo-1_part-mag_MEGRE"]


@pytest.mark.parametrize(
    ("stems", "affines", "first", "says"),
    [
        (["acq-a_swi", "acq-b_swi"], {}, "acq-a_swi", "first by name"),
        (["acq-a_swi", "acq-b_swi"], {"acq-a_swi": COARSE}, "acq-b_swi", "finer voxels"),
        (["part-mag_T2starw", "part-mag_GRE"], {}, "part-mag_GRE", "GRE goes before"),
    ],
)
def test_candidates_of_one_rank(chosen, stems, affines, first, says):
    choice = chosen(*stems, **affines)
    assert taken(choice) == [first]
    (other,) = left(choice)
    assert other == next(stem for stem in stems if stem != first)
    assert says in choice.why
    assert says in left(choice)[other]


def test_what_cannot_be_read_is_left_with_the_reason(tmp_path):
    anat = tmp_path / "sub-01/anat"
    tree.image(tmp_path, "sub-01/anat/sub-01_swi")
    tree.image(tmp_path, "sub-01/anat/sub-01_acq-4d_swi", np.ones((*SHAPE, 2), np.float32))
    tree.image(tmp_path, "sub-01/anat/sub-01_part-real_GRE")
    tree.image(tmp_path, "sub-01/anat/sub-01_minIP")
    (anat / "sub-01_acq-text_swi.nii.gz").write_text("no image")
    (anat / "sub-01_acq-annex_swi.nii.gz").symlink_to("../.git/annex/objects/gone")
    (anat / "sub-01_swi.nii").write_bytes(gzip.decompress((anat / "sub-01_swi.nii.gz").read_bytes()))
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    reasons = left(choice)
    assert "not a 3D image" in reasons["acq-4d_swi"]
    assert "part-real" in reasons["part-real_GRE"]
    assert "projection" in reasons["minIP"]
    assert "NIfTI" in reasons["acq-text_swi"]
    assert "link to a file that is not here" in reasons["acq-annex_swi"]
    assert reasons["swi"] == "stands for the same image as sub-01/anat/sub-01_swi.nii"
    assert not any(str(tmp_path) in why for why in reasons.values())


def test_nothing_to_take(chosen, tmp_path):
    with pytest.raises(UserError, match="neither SWI nor magnitude"):
        chosen("part-phase_GRE")
    (tmp_path / "sub-01/anat/sub-01_part-phase_GRE.nii.gz").write_text("text")
    with pytest.raises(UserError, match=r"no image can be used: sub-01/anat/.*NIfTI"):
        chosen("minIP")


def test_every_image_that_is_left_has_its_own_reason(tmp_path):
    tree.image(tmp_path, "sub-01/anat/sub-01_part-phase_GRE", tree.phase())
    tree.image(tmp_path, "sub-01/anat/sub-01_rec-mip_swi")
    (tmp_path / "sub-01/anat/sub-01_swi.nii.gz").write_text("/annex/objects/SHA256E-s12--ab.nii.gz\n")
    with pytest.raises(UserError) as error:
        choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    reasons = str(error.value).split("; ")
    assert any("sub-01_swi" in text and "points to a file that is not here" in text for text in reasons)
    assert any("sub-01_rec-mip_swi" in text and "projection" in text for text in reasons)
    assert any("part-phase_GRE" in text and "neither SWI nor magnitude" in text for text in reasons)


@pytest.mark.parametrize("entity", ["rec-mip", "rec-mIP", "acq-minIP8mm", "proc-mnip", "desc-projection"])
def test_projections_are_told_by_any_entity(chosen, entity):
    choice = chosen(f"{entity}_swi", "swi")
    assert taken(choice) == ["swi"]
    assert "projection" in left(choice)[f"{entity}_swi"]


def test_what_was_reconstructed_anew_comes_after_the_original(chosen):
    choice = chosen("rec-dis2d_swi", "swi")
    assert taken(choice) == ["swi"]
    assert "rec-" in choice.why
    assert list(left(choice)) == ["rec-dis2d_swi"]


@pytest.mark.parametrize("entity", ["ce-gad", "space-MNI152", "mt-on", "desc-denoised"])
def test_variants_come_after_the_image_as_it_was_acquired(chosen, entity):
    choice = chosen("swi", f"{entity}_swi")
    assert taken(choice) == ["swi"]
    assert "entities of variants" in left(choice)[f"{entity}_swi"]


@pytest.mark.parametrize("entity", ["acq-phase", "rec-Pha", "acq-PH"])
def test_a_phase_may_be_told_by_another_entity(chosen, entity):
    choice = chosen(f"{entity}_swi", "swi")
    assert choice.kind is ChoiceKind.SWI_AND_PHASE
    assert taken(choice) == ["swi", f"{entity}_swi"]


def test_folders_that_are_misnamed_are_named_where_nothing_else_is_there(tmp_path):
    tree.image(tmp_path, "Sub-01/anat/Sub-01_swi", None, LPS)
    with pytest.raises(UserError, match="Sub-01 is not a BIDS name"):
        read_layout(tmp_path)


def test_chunks_are_scans_of_their_own_and_say_so(tmp_path):
    for chunk in ("1", "2"):
        tree.image(tmp_path, f"sub-01/anat/sub-01_chunk-{chunk}_swi")
        tree.image(tmp_path, f"sub-01/anat/sub-01_chunk-{chunk}_part-phase_GRE", tree.phase())
    scans = read_layout(tmp_path).scans("01")
    assert [scan.name for scan in scans] == ["sub-01_chunk-1", "sub-01_chunk-2"]
    for scan in scans:
        choice = choose(scan, tmp_path)
        assert choice.kind is ChoiceKind.SWI_AND_PHASE
        assert any("part of the brain" in note for note in choice.notes)


def test_pieces_of_an_image_are_never_counted_alone(tmp_path):
    for piece in ("1", "2"):
        tree.image(tmp_path, f"sub-01/anat/sub-01_split-{piece}_swi")
    for part in ("real", "imag"):
        tree.image(tmp_path, f"sub-02/anat/sub-02_part-{part}_T2starw")
    for label, reason in (("01", "join the pieces"), ("02", "make magnitude and phase of it")):
        (scan,) = read_layout(tmp_path).scans(label)
        with pytest.raises(UserError, match=reason):
            choose(scan, tmp_path)


def test_a_piece_beside_a_whole_image_is_left(chosen):
    choice = chosen("swi", "split-1_swi")
    assert taken(choice) == ["swi"]
    assert "only a piece" in left(choice)["split-1_swi"]


def test_runs_are_numbers(tmp_path):
    tree.image(tmp_path, "sub-01/anat/sub-01_run-01_swi")
    tree.image(tmp_path, "sub-01/anat/sub-01_run-1_part-phase_GRE", tree.phase())
    (scan,) = read_layout(tmp_path).scans("01")
    assert choose(scan, tmp_path).kind is ChoiceKind.SWI_AND_PHASE


def test_a_phase_of_another_run_on_the_same_grid_is_named(tmp_path):
    tree.image(tmp_path, "sub-01/anat/sub-01_run-1_swi")
    tree.image(tmp_path, "sub-01/anat/sub-01_run-2_part-phase_GRE", tree.phase())
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert choice.kind is ChoiceKind.SWI_ALONE
    assert any("run-2_part-phase_GRE" in note and "same grid" in note for note in choice.notes)


def test_equal_echo_times_are_not_combined(tmp_path):
    tree.echoes(tmp_path, times_s=(0.02, 0.02, 0.02))
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert len(choice.magnitudes) == 1
    assert any("same echo time" in note for note in choice.notes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"swi": {"acquisition": "b"}}, ["acq-b_swi"]),
        ({"swi": {"acquisition": None}}, ["swi"]),
        ({"swi": {"acquisition": ["x", "a"]}, "t1w": {"run": 1}}, ["acq-a_swi"]),
        ({"swi": {"acquisition": "*", "run": 2}}, ["acq-c_run-02_swi"]),
    ],
)
def test_filter_files(tmp_path, content, expected):
    for stem in ("swi", "acq-a_swi", "acq-b_swi", "acq-c_run-02_swi"):
        tree.image(tmp_path, f"sub-01/anat/sub-01_{stem}")
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(content))
    (scan,) = Selection(filter=read_filter(path)).of(read_layout(tmp_path).scans("01"))
    choice = choose(scan, tmp_path)
    assert taken(choice) == expected
    assert set(left(choice).values()) == {"not among the images asked for"}


@pytest.mark.parametrize("text", ["[]", "{", '{"swi": 3}', '{"bold": {}}', '{"swi": {"run": {"a": 1}}}'])
def test_filter_files_that_are_none(tmp_path, text):
    path = tmp_path / "filter.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"filter\.json"):
        read_filter(path)


def test_bad_sidecars_of_what_is_taken_are_said(tmp_path):
    tree.image(tmp_path, "sub-01/anat/sub-01_swi", EchoTime=20)
    (tmp_path / "swi.json").write_text("{")
    choice = choose(read_layout(tmp_path).scans("01")[0], tmp_path)
    assert len(choice.notes) == 2


def test_truth_of_derivatives(tmp_path, run):
    tree.description(tmp_path)
    blob = mask([(slice(5, 8), slice(7, 10), slice(4, 7))])
    for label in ("01", "02", "03", "04", "05"):
        tree.image(tmp_path, f"sub-{label}/anat/sub-{label}_swi")
    tree.image(tmp_path, "derivatives/hand/sub-01/anat/sub-01_label-CMB_mask", blob)
    tree.image(tmp_path, "derivatives/truth/sub-02/anat/sub-02_desc-cmb_dseg", mask([]))
    tree.image(tmp_path, "derivatives/truth/sub-02/anat/sub-02_desc-mimics_dseg", blob)
    tree.image(tmp_path, "derivatives/hand/sub-03/anat/sub-03_desc-microbleeds_mask", blob)
    tree.image(tmp_path, "derivatives/more/sub-03/anat/sub-03_desc-cmb_mask", blob)
    tree.image(tmp_path, "derivatives/found/sub-04/anat/sub-04_desc-cmb_dseg", blob)
    tree.image(tmp_path, "derivatives/hand/sub-05/anat/sub-05_label-cmb_mask", blob[:-1])
    found = {"GeneratedBy": [{"Name": "cmb-jax bids"}]}
    (tmp_path / "derivatives/found/dataset_description.json").write_text(json.dumps(found))
    tree.image(tmp_path, "sub-06/anat/sub-06_T1w", brain())
    code, out, err = run("check", tmp_path)
    assert code == 0, err
    assert "bids: 3 cases of 3 patients" in out
    assert "bids: 3 cases, 2 with truth, 1 with lesions, 1 lesions" in out
    assert "sub-03: two truths (derivatives/hand/sub-03" in out
    assert "sub-04: no truth" in out  # results of this program are no truth
    assert "different shapes" in out
    assert "sub-06: no susceptibility images" in out
    code, out, err = run("index", tmp_path, "--kind", "bids", "--out", tmp_path / "index.json")
    assert code == 0, err
    index = json.loads((tmp_path / "index.json").read_text())
    assert [case["case_id"] for case in index["cases"]] == ["sub-01", "sub-02", "sub-04"]


def test_truth_of_sessions_and_runs(tmp_path, run):
    tree.description(tmp_path)
    for run_ in ("1", "2"):
        tree.image(tmp_path, f"sub-01/ses-a/anat/sub-01_ses-a_run-{run_}_swi")
    tree.image(tmp_path, "sub-01/ses-b/anat/sub-01_ses-b_run-1_swi")
    where = "derivatives/hand/sub-01"
    tree.image(
        tmp_path, f"{where}/ses-a/anat/sub-01_ses-a_run-2_label-cmb_mask", mask([(5, 5, 5), (9, 9, 9)])
    )
    tree.image(tmp_path, f"{where}/ses-b/anat/sub-01_ses-b_label-cmb_mask", mask([(5, 5, 5)]))
    code, _, err = run("index", tmp_path, "--out", tmp_path / "index.json")
    assert code == 0, err
    cases = json.loads((tmp_path / "index.json").read_text())["cases"]
    truths = {case["case_id"]: case["truth"] and case["truth"]["mask"] for case in cases}
    assert truths == {
        "sub-01_ses-a_run-1": None,
        "sub-01_ses-a_run-2": f"{where}/ses-a/anat/sub-01_ses-a_run-2_label-cmb_mask.nii.gz",
        "sub-01_ses-b_run-1": f"{where}/ses-b/anat/sub-01_ses-b_label-cmb_mask.nii.gz",
    }
    assert {case["patient_id"] for case in cases} == {"sub-01"}
