"""One scan out of many series; what is ambiguous or broken is listed."""

import dataclasses

import pytest

from cmb_jax.dicom.choose import choose
from cmb_jax.errors import UserError
from tests.dicom.phantoms import (
    AXIAL,
    GE_SWAN,
    OBLIQUE,
    SIEMENS_MAGNITUDE,
    SIEMENS_PHASE,
    SIEMENS_SWI,
    Grid,
    generate_uid,
    write_series,
)
from tests.dicom.reading import found_in


def keys(stacks):
    return [stack.key for stack in stacks]


def test_the_one_scan_of_a_folder(siemens):
    choice = choose(found_in(siemens))
    assert (choice.swi.key, keys(choice.phase), keys(choice.magnitude)) == ("7", ["5"], ["4"])
    assert choice.reference.key == "7"


def test_two_scans_are_listed_and_one_is_taken_by_number_or_uid(siemens, phantom):
    study = generate_uid(entropy_srcs=["another study"])
    for series in (SIEMENS_SWI, SIEMENS_PHASE):
        other = dataclasses.replace(series, number=series.number + 20, study_uid=study)
        write_series(siemens / "other", other, phantom[0], OBLIQUE)
    found = found_in(siemens)
    with pytest.raises(UserError, match=r"2 susceptibility-weighted series: .*7 \(.*27 \(.*--series"):
        choose(found)
    choice = choose(found, ("27",))
    assert (choice.swi.key, keys(choice.phase)) == ("27", ["25"])
    uid = next(c.stack.instance.series_uid for c in found if c.stack.key == "7")
    assert choose(found, (uid,)).swi.key == "7"
    assert keys(choose(found, (uid,)).phase) == ["5"]


def test_geometry_decides_where_anonymisation_has_changed_uids(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0], OBLIQUE)
    stranger = {"study_uid": generate_uid(entropy_srcs=["a"]), "frame_uid": generate_uid(entropy_srcs=["b"])}
    write_series(tmp_path, dataclasses.replace(SIEMENS_PHASE, **stranger), phantom[0], OBLIQUE)
    choice = choose(found_in(tmp_path))
    assert keys(choice.phase) == ["5"]
    assert any("UIDs differ" in note for note in choice.notes)
    # a phase that the UIDs give to it goes first
    write_series(tmp_path, dataclasses.replace(SIEMENS_PHASE, number=8), phantom[0], OBLIQUE)
    choice = choose(found_in(tmp_path))
    assert (keys(choice.phase), choice.notes) == (["8"], ())


def test_echo_times_that_differ_in_the_last_digits_are_one_echo(tmp_path, phantom):
    for k in range(phantom[0].shape[2]):
        jitter = dataclasses.replace(SIEMENS_SWI, echo_ms=20.005 + 1e-6 * (-1) ** k)
        write_series(tmp_path, jitter, phantom[0], only=[k])
    choice = choose(found_in(tmp_path))
    assert choice.swi.shape[2] == phantom[0].shape[2]


def test_the_phase_difference_of_a_field_map_is_no_phase(tmp_path, phantom):
    for echo_ms in (10.0, 12.46):
        write_series(
            tmp_path / f"{echo_ms}",
            dataclasses.replace(SIEMENS_MAGNITUDE, echo_ms=echo_ms, acquisition=int(echo_ms)),
            phantom[0],
        )
    write_series(tmp_path, dataclasses.replace(SIEMENS_PHASE, echo_ms=12.46), phantom[0])
    with pytest.raises(UserError, match="--series"):
        choose(found_in(tmp_path))


def test_two_phases_on_one_grid_are_asked_about(siemens, phantom):
    write_series(siemens, dataclasses.replace(SIEMENS_PHASE, number=15), phantom[0], OBLIQUE)
    found = found_in(siemens)
    with pytest.raises(UserError, match=r"2 phase series on the grid of series 7: 5 .*; 15 "):
        choose(found)
    assert keys(choose(found, ("7", "15")).phase) == ["15"]


def test_two_acquisitions_in_one_series_are_asked_about(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, dataclasses.replace(SIEMENS_SWI, acquisition=2), phantom[0])
    found = found_in(tmp_path)
    with pytest.raises(UserError, match=r"7\.1 .*7\.2 "):
        choose(found)
    assert choose(found, ("7.2",)).swi.first.acquisition == 2


def test_series_of_one_number_are_listed_by_uid(tmp_path, phantom):
    other = dataclasses.replace(SIEMENS_SWI, series_uid=generate_uid(entropy_srcs=["same number"]))
    write_series(tmp_path / "a", SIEMENS_SWI, phantom[0])
    write_series(tmp_path / "b", other, phantom[0])
    with pytest.raises(UserError, match=other.uid):
        choose(found_in(tmp_path))
    assert choose(found_in(tmp_path), (other.uid,)).swi.instance.series_uid == other.uid


def test_phase_on_another_grid_is_not_used_but_told(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0][:, :, :-1])
    choice = choose(found_in(tmp_path))
    assert choice.phase == ()
    assert "phase in series 5 is not used" in choice.notes[0]


def test_the_phase_of_the_same_echo_is_taken(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0])
    write_series(tmp_path, dataclasses.replace(SIEMENS_PHASE, number=8, echo_ms=7.5), phantom[0])
    assert keys(choose(found_in(tmp_path)).phase) == ["5"]


def test_a_broken_scan_is_refused_with_what_is_wrong(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0], only=[0, 1, 2, 4, 5])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0])
    with pytest.raises(UserError, match="series 7: 1 slice is missing"):
        choose(found_in(tmp_path))


def test_a_broken_phase_does_not_stop_the_scan(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0], only=[0, 1, 3])
    assert choose(found_in(tmp_path)).phase == ()


def test_without_swi_magnitude_and_phase_are_taken(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_MAGNITUDE, phantom[0])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0])
    choice = choose(found_in(tmp_path))
    assert choice.swi is None
    assert (keys(choice.magnitude), keys(choice.phase), choice.reference.key) == (["4"], ["5"], "4")
    assert "made from magnitude and phase" in choice.notes[0]


def test_echoes_are_paired_by_time(tmp_path, phantom):
    for echo in (20.0, 7.5):
        for series in (SIEMENS_MAGNITUDE, SIEMENS_PHASE):
            write_series(
                tmp_path, dataclasses.replace(series, echo_ms=echo, acquisition=int(echo)), phantom[0]
            )
    choice = choose(found_in(tmp_path))
    assert [stack.first.echo_ms for stack in choice.magnitude] == [7.5, 20.0]
    assert [stack.first.echo_ms for stack in choice.phase] == [7.5, 20.0]


def test_echoes_on_different_grids_are_not_combined(tmp_path, phantom):
    moved = Grid(spacing=AXIAL.spacing, origin=(-20.0, -30.0, 10.6))
    for echo, grid in ((20.0, AXIAL), (7.5, moved)):
        for series in (SIEMENS_MAGNITUDE, SIEMENS_PHASE):
            one = dataclasses.replace(series, echo_ms=echo, acquisition=int(echo))
            write_series(tmp_path, one, phantom[0], grid)
    with pytest.raises(UserError, match="its echoes lie on different grids"):
        choose(found_in(tmp_path))


def test_the_imaginary_part_is_found_for_the_real_one(tmp_path, phantom):
    for number, component in ((31, 2), (32, 3)):
        write_series(
            tmp_path, dataclasses.replace(GE_SWAN, number=number, ge_component=component), phantom[0]
        )
    choice = choose(found_in(tmp_path), ("31",))
    assert (keys(choice.real), keys(choice.imaginary), choice.reference.key) == (["31"], ["32"], "31")


def test_magnitude_alone_is_taken_as_it_is(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_MAGNITUDE, phantom[0])
    choice = choose(found_in(tmp_path))
    assert choice.swi.key == "4"
    assert "T2*-weighted" in choice.notes[0]


def test_unknown_images_are_used_only_as_asked(tmp_path, phantom):
    unknown = dataclasses.replace(
        SIEMENS_SWI,
        number=3,
        description="axial",
        image_type=("ORIGINAL", "PRIMARY"),
        sequence="",
        scanning="SE",
    )
    write_series(tmp_path, unknown, phantom[0])
    with pytest.raises(UserError, match="no susceptibility-weighted series was recognized"):
        choose(found_in(tmp_path))
    assert choose(found_in(tmp_path), ("3",)).swi.key == "3"
    with pytest.raises(UserError, match="--series 99: there is no such series; there are 3"):
        choose(found_in(tmp_path), ("99",))


def test_grids_of_other_position_do_not_fit(tmp_path, phantom):
    moved = Grid(spacing=AXIAL.spacing, origin=(-20.0, -30.0, 10.6))
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, SIEMENS_PHASE, phantom[0], moved)
    assert choose(found_in(tmp_path)).phase == ()
