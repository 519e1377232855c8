"""The tool that damages files knows every reader of the package, and its short form finds nothing bad."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "fuzz_readers.py"
DOOR = {"reading", "parse_json", "parse_rows"} | {
    f"read_{what}" for what in ("bytes", "text", "json", "json_object", "rows", "arrays", "array")
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("fuzz_readers", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_readers"] = module
    spec.loader.exec_module(module)
    return module


def readers():
    """module:function of all that opens the door of io/outside.py."""
    package = ROOT / "cmb_jax"
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        if name == "io.outside":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                calls = {
                    getattr(call.func, "id", "") for call in ast.walk(node) if isinstance(call, ast.Call)
                }
                if calls & DOOR:
                    yield f"{name}:{node.name}"


def test_every_reader_is_in_the_tool(tool):
    known = {reader for kind in tool.KINDS.values() for reader in kind.covers} | set(tool.OWN)
    found = set(readers())
    assert found - known == set()
    assert known - found == set()  # nor does it name any that is gone


def test_every_kind_of_damage_changes_files_and_is_given_by_its_seed(tool, tmp_path):
    for name in ("nifti_plain", "sidecar", "points_csv", "workbook", "nifti_gz_renewed", "config_py"):
        (tmp_path / name).mkdir()
        good = tool.KINDS[name].make(tmp_path / name).read_bytes()
        made = [tool.input_of(name, number, good) for number in range(12)]
        assert made == [tool.input_of(name, number, good) for number in range(12)]
        assert sum(content != good for content in made) >= 9
        assert len(set(made)) >= 9


def read_badly(kind):
    def crash(path):
        raise KeyError("x")

    def write_beside(path):
        path.with_name("left").touch()

    def two_lines(path):
        from cmb_jax.errors import UserError

        raise UserError("one\ntwo")

    return {"CRASH": crash, "LEFT": write_beside, "WRONG": two_lines}[kind]


@pytest.mark.parametrize("kind", ["CRASH", "LEFT", "WRONG"])
def test_the_tool_notices(tool, tmp_path, kind):
    path = tmp_path / "a"
    bad = tool.Kind(lambda folder: path, read_badly(kind), ())
    assert tool.outcome(bad, path, b"x", b"y", None, 1.0)[0] == kind
    silent = tool.Kind(lambda folder: path, lambda path: 5, (), checked=True)
    assert tool.outcome(silent, path, b"x", b"y", 4, 1.0)[0] == "WRONG"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are read from /proc")
def test_the_short_form(tmp_path):
    command = [sys.executable, str(TOOL), "--each", "5", "--out", str(tmp_path / "counts.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
