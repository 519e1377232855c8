"""The one door for files from outside: nothing reads a file beside it, and it bounds what it reads."""

import ast
import csv
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.io import outside
from cmb_jax.io.outside import (
    MAX_DEPTH,
    Unreadable,
    parse_json,
    read_array,
    read_arrays,
    read_bytes,
    read_json,
    read_json_object,
    reading,
)
from cmb_jax.io.tables import read_rows

PACKAGE = Path(outside.__file__).resolve().parents[1]

RAW = {
    *("json.load", "json.loads", "csv.reader", "csv.DictReader", "np.load", "np.fromfile", "np.memmap"),
    *("nib.load", "dcmread", "read_file_meta_info", "safe_open", "openpyxl.load_workbook"),
    *("zipfile.ZipFile", "tarfile.open", "gzip.open", "gzip.decompress", "open", "os.open", "pickle.load"),
    *("hashlib.file_digest", "loadmat", "yaml.safe_load", "tomllib.load", "ElementTree.parse"),
}
"""Calls that read a file or make values of its content, whatever they are imported from."""

METHODS = {"read_text", "read_bytes", "from_bytes", "from_stream", "from_filename", "exec_module"}

ELSEWHERE = {
    "anatomy/assets.py": "images in packages that are pinned by hash",
    "anatomy/build.py": "files of this package",
    "ops/self_test.py": "the answer of a process of its own",
    "viewer/page.py": "files of this package",
    "io/outside.py": "the door itself: parse_json and parse_rows turn what is raised into ValueError",
}


def readers(tree):
    """(line, name) of the raw calls that stand in no `with reading(...)`."""
    found = []

    def visit(node, guarded):
        if isinstance(node, ast.With):
            names = {
                getattr(item.context_expr.func, "id", "")
                for item in node.items
                if isinstance(item.context_expr, ast.Call)
            }
            guarded = guarded or "reading" in names or "_opened" in names
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            guarded = False
        if isinstance(node, ast.Call) and not guarded:
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            writes = any(
                isinstance(part, ast.Constant) and part.value in ("w", "a", "wb", "ab", "x")
                for part in (*node.args, *(keyword.value for keyword in node.keywords))
            )
            opened = last == "open" and name not in ("webbrowser.open", "archive.open") and not writes
            method = "." in name and last in METHODS and not name.startswith("int.")
            writes |= "os.O_CREAT" in ast.unparse(node)  # a file to lock, which holds nothing
            reads = name in RAW or method or opened
            if reads and not writes and "os.devnull" not in ast.unparse(node):
                found.append((node.lineno, name))
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(tree, False)
    return found


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_reads_files_beside_the_door(module):
    name = module.relative_to(PACKAGE).as_posix()
    if name not in ELSEWHERE:
        assert readers(ast.parse(module.read_text(encoding="utf-8"))) == []


def test_the_search_finds_a_reader_that_forgets_it():
    text = "def f(p):\n    with reading(p):\n        open(p)\n    return json.loads(p.read_text())\n"
    assert [name for _, name in readers(ast.parse(text))] == ["json.loads", "p.read_text"]
    assert readers(ast.parse("def f(p):\n    with open(p, 'w') as s:\n        s.write('')\n")) == []


def test_every_fault_of_a_body_is_one_line_that_names_the_file():
    for fault in (
        ValueError("two\nlines"),
        KeyError("x"),
        RecursionError("deep"),
        MemoryError(),
        OverflowError("inf"),
        PermissionError(13, "Permission denied"),
        AttributeError("'list' object has no attribute 'get'"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid"),
    ):
        with pytest.raises(Unreadable) as caught, reading("some/file.json", "do this"):
            raise fault
        text = str(caught.value)
        assert text.startswith("some/file.json: ")
        assert text.endswith("; do this")
        assert "\n" not in text
        assert "some/file" not in caught.value.reason
    with pytest.raises(UserError, match="own words"), reading("x"):
        raise UserError("own words")
    with pytest.raises(KeyboardInterrupt), reading("x"):
        raise KeyboardInterrupt
    with pytest.raises(StopIteration), reading("x", but=(StopIteration,)):
        raise StopIteration


JSON = {
    "no json": "{",
    "deep": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "very deep": "[" * 100_000,
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("what", JSON)
def test_json_that_is_none(tmp_path, what):
    path = tmp_path / "a.json"
    content = JSON[what]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Unreadable, match=r"a\.json"):
        read_json(path)


def test_json_numbers_are_bounded_and_depth_is_counted():
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    big = parse_json(f"[1{'0' * 400}, -1{'0' * 30}, 9007199254740993, 1{'0' * 5000}]")
    assert big == [float("inf"), -1e30, 9007199254740993, float("inf")]
    assert type(big[2]) is int


def test_other_things_than_plain_files(tmp_path):
    with pytest.raises(Unreadable, match="is a folder"):
        read_bytes(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="not a plain file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(UserError, match="no such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path / ("x" * 5000))
    with pytest.raises(UserError, match="null byte"):
        read_bytes(Path("a\0b"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(Unreadable, match="no JSON object"):
        read_json_object(tmp_path / "list.json")
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(Unreadable, match="MB long"):
        read_bytes(tmp_path / "large", limit=99)


def test_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n\n", encoding="utf-8-sig")
    assert read_rows(path, ",") == [["a", "b"], ["1", "2"]]
    path.write_text("a;b,c\n1;2\n".replace(",", ";"))
    assert read_rows(path, None)[0] == ["a", "b", "c"]
    path.write_text(f"a\n{'x' * (csv.field_size_limit() + 1)}\n")
    with pytest.raises(Unreadable, match="field larger"):
        read_rows(path, ",")
    path.write_bytes(b"a\xff\n")
    with pytest.raises(Unreadable, match="UnicodeDecodeError"):
        read_rows(path, ",")


def npy(array, shape=None):
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    if shape is not None:
        old, new = f"({array.shape[0]},)".encode(), f"({shape},)".encode()
        content = content.replace(old + b", }" + b" " * (len(new) - len(old)), new + b", }")
    return content


def test_arrays_claim_what_they_hold(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5), b=np.array("text"))
    assert read_arrays(path)["a"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.arange(5), 10**11))
    tracemalloc.start()
    with pytest.raises(Unreadable, match="another size"):
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    np.savez(path, a=np.array([{"code": 1}], object))
    with pytest.raises(Unreadable):
        read_arrays(path)
    content = bytearray(path.read_bytes())
    np.savez(path, a=np.arange(500))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable):
        read_arrays(path)
    path.with_suffix(".npy").write_bytes(npy(np.arange(5))[:-1])
    with pytest.raises(Unreadable, match="another size"):
        read_array(path.with_suffix(".npy"), mapped=True)
    with pytest.raises(Unreadable, match="more than 0 GB"):
        read_arrays(path, limit=10)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", json.dumps({}))
    with pytest.raises(Unreadable):
        read_arrays(path)
