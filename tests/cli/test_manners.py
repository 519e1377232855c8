"""How the command line treats people: one line for what is wrong, said before JAX is imported."""

import ast
import dataclasses
import inspect
import itertools
import resource
import subprocess
import sys
import textwrap

import pytest

from cmb_jax import cli, progress
from cmb_jax.cli import present
from tests.command_line import run_cli as run

WRONG = {
    "no such command": (("predct",), "did you mean predict?"),
    "no such subcommand": (("data", "chek"), "did you mean check?"),
    "no such option": (("predict", "--swi", "s", "--fase", "p", "--out", "o"), "did you mean --phase?"),
    "positional": (("predict", "s.nii.gz", "-o", "o"), "--swi s.nii.gz"),
    "no number": (("predict", "-i", "s", "-o", "o", "--threshold", "high"), "--threshold high"),
    "no such choice": (("predict", "-i", "s", "-o", "o", "--device", "gp"), "did you mean gpu?"),
    "missing": (("predict", "-i", "s"), "--out must be given"),
    "no such file": (("predict", "-i", "nowhere.nii", "-o", "o"), "nowhere.nii: no such file"),
    "no such folder": (
        ("evaluate", "--pred", "nowhere", "--truth", ".", "-o", "m"),
        "nowhere: no such folder",
    ),
    "no whole number": (("simulate", "-o", "o", "--subjects", "few"), "--subjects few: give a whole number"),
    "no such regions": (
        ("predict", "-i", __file__, "-o", "o", "--regions", "none.nii"),
        "none.nii: no such file",
    ),
    "no such data set": (("data", "check", "nowhere"), "nowhere: no such folder"),
    "no such verdicts": (("review", "agreement", "none.json", "-o", "o"), "none.json: no such file"),
    "no such baseline": (
        ("evaluate", "--pred", ".", "--truth", ".", "--baseline", "nowhere", "-o", "m"),
        "nowhere: no such folder",
    ),
    "no such mesh": (("plan", "--mesh", "0x4"), "--mesh 0x4"),
    "output exists": (("demo", "--out", "."), "exists already"),
    "no such weights": (("weights", "show", "larg"), "base, small"),
    "no such configuration": (("train", "--config", "smal", "--workdir", "w"), "small"),
    "no such setting": (
        ("train", "--config", "small", "--workdir", "w", "--train.stps", "3"),
        "did you mean --train.steps?",
    ),
    "not trained": (("eval", "--config", "small", "--workdir", "nowhere"), "no trained weights"),
    "renamed": (("predict_cohort",), "cmb-jax bids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(monkeypatch, capsys, case):
    arguments, match = WRONG[case]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert match in err
    assert "None" not in err


def test_nothing_heavy_is_imported_for_it():
    """All of them in one process of its own, within the CPU time that a single one may take."""
    script = f"""
import sys
from cmb_jax import cli
for arguments in {[list(arguments) for arguments, _ in WRONG.values()]}:
    try:
        cli.main(arguments)
    except SystemExit:
        pass
print(sorted({{"jax", "flax", "nibabel", "numpy", "scipy", "pydicom"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wrong_option_costs_less_than_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments, _ = WRONG["no such setting"]  # the largest parser
    subprocess.run([sys.executable, "-m", "cmb_jax.cli", *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # twice that is allowed here: other work on the machine slows the clock down
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("name", sorted(cli.all_commands()))
def test_help_says_every_option(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(monkeypatch, capsys, "help", *name.split())
    assert code == 0
    assert "{None}" not in out
    for option in present.option_names(cli.all_commands()[name]):
        assert option in out or option in ("--tyro-print-completion", "--tyro-write-completion")
    # the first word of every field's help is there
    command = cli.function_of(*name.split())
    owner = inspect.signature(command, eval_str=True).parameters["options"].annotation
    told = {}
    for each in filter(dataclasses.is_dataclass, owner.__mro__):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                told.setdefault(field.target.id, text.value.value.split()[0].rstrip(".,;:"))
    assert set(told) == {field.name for field in dataclasses.fields(owner)}
    assert all(word in out for field, word in told.items() if field != "verbose")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Options of several commands."""

    shared: bool = False
    """help of the shared one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Shared):
    """What the command does."""

    value: int = 1
    """help of its own."""


def test_common_options_act_before_the_command(monkeypatch):
    seen = {}

    def command(options: Own) -> None:
        seen["options"] = options
        seen["quiet"] = progress._quiet

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    arguments = ["--quiet", "--device", "gpu", "--value", "3", "--shared"]
    present.run(present.presented(command, cli.apply), "prog", arguments)
    assert seen == {"options": Own(value=3, shared=True), "quiet": True}
    assert cli.os.environ.pop("JAX_PLATFORMS") == "cuda"
    assert cli.os.environ.pop("TF_CPP_MIN_LOG_LEVEL") == "3"  # XLA keeps its alarms about slow compilation
    progress.set_quiet(False)


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_is_a_script_that_knows_the_commands(monkeypatch, capsys, shell):
    code, out, _ = run(monkeypatch, capsys, "completion", shell)
    assert code == 0
    assert all(name in out for name in ("predict", "bids", "--phase-sign"))


def test_lines_instead_of_bars_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    err = capsys.readouterr().err
    assert err.splitlines() == ["counting: 1 of 3", "counting: 2 of 3", "counting: 3 of 3"]
    assert "\x1b" not in err


def test_bars_within_bars_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    for _ in progress.track(range(2), "outer"):
        for _ in progress.track(range(2), "inner"):
            progress.tell("a line above them")
    err = capsys.readouterr().err
    assert err.count("a line above them") == 4
    assert "outer" in err
    assert "inner" in err
