"""`cmb-jax benchmark`: rows in the table and in JSON, exit codes, one line for what a user can put right."""

import json
import subprocess
import sys

import pytest

import benchmarks.__main__ as command
from benchmarks.cases import CASES
from benchmarks.turns import NO_GPU

FIELDS = ("case", "ours_s", "other_s", "ratio", "ours_peak_mb", "other_peak_mb", "fraction_of_peak")


@pytest.fixture
def run(fakes, monkeypatch, capsys):
    """Run the command with fake cases by name; (exit code, stdout, stderr)."""
    peak = fakes.case(fakes.side("m", [2.0] * 9, gflop=100.0), fakes.side("n", [1.0] * 9))
    monkeypatch.setattr(command, "PEAK", peak)
    facts = {"gpu": None, "cpu": "a processor", "cores": 1, "instruction_set": "none"}
    facts.update(dict.fromkeys(command.machine.PACKAGES, "1"))
    monkeypatch.setattr(command.machine, "look", lambda: ("cpu", facts))

    def go(cases, *arguments):
        monkeypatch.setattr(command, "CASES", cases)
        with pytest.raises(SystemExit) as stop:
            command.main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return go


def test_json_is_what_was_measured(fakes, run, tmp_path):
    """100e9 operations in 1 s is the peak, by the better side; 60e9 in 4 s is 15 % of it."""
    ours = fakes.side("a", [9, 9, 9, 4, 3, 6], gflop=60.0, result=2.0)
    other = fakes.side("b", [9, 9, 9, 1, 2, 8], result=2.5)
    cases = {
        "fake": fakes.case(ours, other, convolves=True),
        "plain": fakes.case(fakes.side("c"), fakes.side("d"), gpu=False),
    }
    path = tmp_path / "new" / "rows.json"
    code, out, _ = run(cases, "--repeats", 3, "--json", path)
    content = json.loads(path.read_text())
    assert code == 0
    assert (content["repeats"], content["device"], content["matmul_gflop_per_s"]) == (3, "cpu", 100.0)
    row, plain, gpu = content["rows"]
    assert [row[key] for key in ("ours_s", "other_s", "ratio")] == [4, 2, 2]
    assert row["fraction_of_peak"] == pytest.approx(0.15)
    assert (row["ours_min_s"], row["ours_max_s"], row["ours_repeats_s"]) == (3, 6, [4, 3, 6])
    assert (row["ours_result"], row["other_result"]) == (2, 2.5)
    assert plain["fraction_of_peak"] is None
    assert plain["ratio"] == 1
    assert gpu["device"] == "gpu"
    assert gpu["ours_s"] is None
    assert gpu["ours_note"] == NO_GPU
    assert all(field in each for each in content["rows"] for field in FIELDS)
    cells = next(line for line in out.splitlines() if "4 s (3 s to 6 s)" in line)
    assert "2 s (1 s to 8 s)" in cells
    assert cells.endswith("15%")
    assert out.count(f"unmeasured: {NO_GPU}") == 2


def test_exit_code_1_at_the_end_if_a_side_failed(fakes, run, tmp_path):
    bad = fakes.side("bad", fails_after=0, failure="raise RuntimeError('out of luck')")
    cases = {
        "first": fakes.case(bad, fakes.side("b"), gpu=False),
        "second": fakes.case(fakes.side("a"), fakes.without("c", "torch"), gpu=False),
    }
    path = tmp_path / "rows.json"
    code, out, err = run(cases, "--repeats", 1, "--json", path)
    first, second = json.loads(path.read_text())["rows"]
    assert code == 1
    assert err.splitlines()[-1] == "error: fake, ours: failed: RuntimeError: out of luck"
    assert "unmeasured: failed: RuntimeError: out of luck" in out
    assert (first["ours_s"], first["other_s"]) == (None, 1)
    assert (second["ours_s"], second["other_s"]) == (1, None)
    assert "torch is not installed" in second["other_note"]


def test_a_missing_peer_alone_is_no_failure(fakes, run):
    code, out, err = run(
        {"fake": fakes.case(fakes.side("a"), fakes.without("c", "torch"), gpu=False)}, "--repeats", 1
    )
    assert code == 0
    assert "unmeasured: torch is not installed" in out
    assert "error" not in err


def test_overwrite_replaces_the_file(fakes, run, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("old")
    cases = {"fake": fakes.case(fakes.side("a"), fakes.side("b"))}
    assert run(cases, "--repeats", 1, "--json", path, "--overwrite")[0] == 0
    assert json.loads(path.read_text())["rows"][0]["case"] == "fake"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--case", "fake", "nonsense"], "nonsense: no such case; choose from: fake"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--repeats", "-3"], "--repeats is -3"),
        (["--json", "{}/there.json"], "there.json: exists already"),
        (["--json", "{}"], "this is a folder"),
        (["--json", "{}/there.json/below.json"], "choose another place"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(fakes, run, tmp_path, arguments, what):
    there = tmp_path / "there.json"
    there.write_text("mine")
    cases = {"fake": fakes.case(fakes.side("a"), fakes.side("b"))}
    before = sorted(tmp_path.iterdir())
    code, out, err = run(cases, *[argument.format(tmp_path) for argument in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert what in err
    assert there.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == before
    assert not fakes.log.exists()  # nothing was run


def cli(*arguments):
    code = "from cmb_jax.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "benchmark", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_line_hands_on_arguments_and_exit_code(tmp_path):
    path = tmp_path / "rows.json"
    done = cli("--case", "froc", "nonsense", "--json", path)
    assert done.returncode == 2
    assert not path.exists()
    assert done.stderr.splitlines() == [
        f"error: nonsense: no such case; choose from: {', '.join(CASES)}",
    ]


def test_froc_against_monai(tmp_path):
    """A real case from end to end; both sides get the same mean sensitivity."""
    pytest.importorskip("monai")
    path = tmp_path / "rows.json"
    done = cli("--case", "froc", "--repeats", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["case"] == "froc"
    assert row["ours_s"] > 0
    assert row["other_s"] > 0
    assert row["ratio"] == pytest.approx(row["ours_s"] / row["other_s"])
    assert row["ours_result"] == pytest.approx(row["other_result"], rel=1e-6)
