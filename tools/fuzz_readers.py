"""Damage every kind of file that the package reads, and see that each is read right or refused in one line.

python tools/fuzz_readers.py [--each 200] [--kinds nifti_gz verdicts ...] [--out counts.json]
python tools/fuzz_readers.py --doc docs/reliability.md --out counts.json

The first runs and adds its counts to a file, so that kinds can be run one by one; the second writes all of
them into the table of docs/reliability.md.

Kinds of files, each with the functions that read it (`KINDS` below): NIfTI packed and plain, labels,
headers alone, stored numbers; DICOM; JSON sidecars, indexes, results, records, verdicts, reviews, Slicer
markups, configurations, provenance, failures, data set descriptions; CSV and TSV tables; Excel workbooks;
MATLAB files; weights and their records; anatomy packs and other arrays in caches; metrics of checkpoints and
logs; viewer pages; Python configurations.

An input is made of a good file by a seed: bits and bytes changed, cut, put in, values of JSON and cells of
tables replaced, members of archives changed, and a few bombs. It is read in a process of its own that may
take 1 GiB and 10 s more than the good file does. Outcomes:

  refused     one line that says what is wrong (`UserError`, or left out with a note)
  read        accepted, with the same content as the good file
  other       accepted with other content: where no checksum could tell
  WRONG       accepted with other content, though a checksum tells; or a refusal of several lines
  CRASH       any other exception, or the end of the process
  SLOW, LARGE more than 10 s, more than 1 GiB
  LEFT        something was written

Ends with code 1 if there is any outcome in capitals.
"""

import argparse
import collections
import contextlib
import copy
import csv
import dataclasses
import gzip
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np

from cmb_jax.errors import UserError

SECONDS, BYTES = 10, 2**30
BAD = ("WRONG", "CRASH", "SLOW", "LARGE", "LEFT")
GOOD = ("refused", "read", "other")
BEGIN, END = "<!-- counts of tools/fuzz_readers.py -->", "<!-- end of the counts -->"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], Path]  # writes a good file (and what belongs to it) into a folder
    read: Callable[[Path], object]
    covers: tuple[str, ...]  # module:function of the package
    damage: str = "bytes"
    checked: bool = False  # a checksum tells of any change of the stored bytes
    share: float = 1.0  # of the inputs of each kind: some readers take long


class TooSlow(BaseException):
    """Not an Exception: readers turn those into refusals."""


# ------------------------------------------------------------------------------------------------- damage

WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\xc0\x7f", b"\x01\0\0\0")


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(data)
        # headers are short and decide most: half of the places lie in the first kilobyte
        at = rng.randrange(max(1, min(size, 1024 if rng.random() < 0.5 else size)))
        end = min(size, at + rng.choice((1, 2, 4, 16, 200, 5000)))
        match rng.randrange(10):
            case 0 | 1:
                if size:
                    data[at] ^= 1 << rng.randrange(8)
            case 2:
                if size:
                    data[at] = rng.randrange(256)
            case 3:
                del data[at:]
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = rng.randbytes(rng.choice((1, 3, 64, 4096)))
            case 6:
                data[at:at] = data[at:end]
            case 7:
                data[at:end] = bytes(end - at)
            case 8:
                data[at : at + 4] = rng.choice(WORDS)
            case 9:
                data += rng.randbytes(rng.choice((1, 100, 10_000)))
    return bytes(data)


def hostile_value(rng: random.Random) -> object:
    deep: object = 1
    for _ in range(rng.choice((3, 40, 300))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            *(
                10**400,
                -(10**30),
                10**5000 if rng.random() < 0.1 else 2**64,
                1e308,
                float("nan"),
                float("inf"),
            ),
            *(
                -1,
                0,
                1,
                0.5,
                True,
                False,
                None,
                "",
                "x",
                "7" * 5000,
                "../" * 200,
                "x\0y",
                "\ud800",
                "é" * 300,
            ),
            *(
                [],
                {},
                [[]],
                [1, 2, 3],
                ["a"] * 1000,
                {"a": 1},
                {"value": 1},
                deep,
                -0.0,
                1e-320,
                "1e5",
                "nan",
            ),
        )
    )


def places_of(node: object) -> list:
    """Every container of a JSON value with a key of its own."""
    found, left = [], [node]
    while left:
        each = left.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            found.append((each, key))
            left.append(each[key])
    return found


def dumped(value: object) -> bytes:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    finally:
        sys.set_int_max_str_digits(limit)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Values replaced, taken away or doubled; at times bytes."""
    if rng.random() < 0.2:
        return damage_bytes(content, rng)
    if rng.random() < 0.03:
        return rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b"[1e999]", b"nul", b"", b"\xef\xbb\xbf" + content)
        )
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = places_of(value)
        if not places or rng.random() < 0.03:
            value = hostile_value(rng)
            continue
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1 | 2:
                parent[key] = hostile_value(rng)
            case 3:
                del parent[key]
            case 4:
                if isinstance(parent, list):
                    parent.insert(key, copy.deepcopy(parent[key]))
                else:
                    parent[str(key) + rng.choice(("x", " ", ""))] = parent.pop(key)
            case 5:
                other, source = rng.choice(places)
                with contextlib.suppress(KeyError, IndexError):
                    parent[key] = copy.deepcopy(other[source])
    return dumped(value)


CELLS = (
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 5000,
        "x" * 140_000,
        '"',
        '"open',
        "a\nb",
        "a\tb",
        ",,,",
        "é\u2028",
    ),
    *(
        "-1",
        "0",
        "1e-320",
        "=1+1",
        "kept",
        "None",
        "0x10",
        "1_000",
        "٣",
        "\ufeff",
        "a\0b",
        "1,5",
        ";",
        "1e9",
        "n/a",
    ),
)


def damage_table(content: bytes, rng: random.Random) -> bytes:
    """Cells, lines and columns changed; at times bytes."""
    if rng.random() < 0.25:
        return damage_bytes(content, rng)
    text = content.decode()
    delimiter = "\t" if "\t" in text else ";" if ";" in text else ","
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows) if rows else []
        at = rng.randrange(len(row) + 1)
        match rng.randrange(6):
            case 0 | 1 | 2:
                if row:
                    row[min(at, len(row) - 1)] = rng.choice(CELLS)
            case 3:
                row.insert(at, rng.choice(CELLS))
            case 4:
                del row[at:]
            case 5:
                rows.insert(rng.randrange(len(rows) + 1), list(row))
    out = io.StringIO()
    csv.writer(
        out, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n", "\r")), quoting=csv.QUOTE_MINIMAL
    ).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def damage_zip(content: bytes, rng: random.Random) -> bytes:
    """A member changed under a new checksum; at times the archive's own bytes, or a bomb."""
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    if rng.random() < 0.1:
        sheets = [each for each in members if "sheet1" in each]
        bomb = rng.choice((b"<c/>", b"<row/>", b"<row r='1048576'/>", b"<xf/>", b"<si/>", b"\0", b"<a>"))
        filler = bomb * rng.choice((1000, 300_000, 3_000_000))
        if sheets and rng.random() < 0.7:
            name = sheets[0]
            members[name] = members[name].replace(b"</sheetData>", filler + b"</sheetData>")
        else:
            members[name] += filler
    else:
        members[name] = damage_bytes(members[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return out.getvalue()


def damage_gzip(content: bytes, rng: random.Random) -> bytes:
    """What is packed changed under a new checksum, mostly in the header; at times a bomb."""
    if rng.random() < 0.02:
        return gzip.compress(gzip.decompress(content) + bytes(2**28), 1)
    return gzip.compress(damage_bytes(gzip.decompress(content), rng), 1)


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header's values under a right length, or bytes."""
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    size = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + size]
    value = json.loads(header)
    if rng.random() < 0.6 and "config" in value.get("__metadata__", {}):
        value["__metadata__"]["config"] = damage_json(value["__metadata__"]["config"].encode(), rng).decode(
            "utf-8", "replace"
        )
        header = dumped(value)
    else:
        header = damage_json(header, rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def damage_page(content: bytes, rng: random.Random) -> bytes:
    """The JSON in a page, or bytes."""
    start = content.index(b'id="case">') + len(b'id="case">')
    end = content.index(b"</script>", start)
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    return content[:start] + damage_json(content[start:end], rng).replace(b"<", b"\\u003c") + content[end:]


PYTHON = (
    *(
        "raise KeyError('x')",
        "raise SystemExit(0)",
        "exit()",
        "undefined",
        "1 / 0",
        "def get_config(): return get_config()",
    ),
    *(
        "import nowhere",
        "get_config = None",
        "def get_config(x): pass",
        "raise RuntimeError('a\\nb')",
        "[].x",
        "assert 0",
    ),
    *(
        "def get_config(): return 5",
        "class A(Exception): pass\nraise A",
        "raise StopIteration",
    ),
)


def damage_python(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return rng.choice(PYTHON).encode() if rng.random() < 0.5 else content + rng.choice(PYTHON).encode()
    data = bytearray(content)  # letters for letters: what is made is run
    for _ in range(rng.choice((1, 2, 5))):
        data[rng.randrange(len(data))] = rng.choice(b"abcxyz_.,()[]{}=: \n0123456789'#")
    return bytes(data)


DAMAGE = {
    "bytes": damage_bytes,
    "json": damage_json,
    "table": damage_table,
    "zip": damage_zip,
    "gzip": damage_gzip,
    "safetensors": damage_safetensors,
    "page": damage_page,
    "python": damage_python,
}

# ------------------------------------------------------------------------------- good files and their readers


def volume_array() -> np.ndarray:
    return np.random.default_rng(5).integers(1, 900, (14, 16, 12)).astype(np.int16)


AFFINE = np.array([[-0.8, 0, 0, 9], [0, 0.9, 0.1, -12], [0, -0.1, 1.5, -7], [0, 0, 0, 1.0]])


def nifti(folder: Path, name: str, array: np.ndarray | None = None) -> Path:
    path = folder / name
    content = nib.Nifti1Image(volume_array() if array is None else array, AFFINE).to_bytes()
    path.write_bytes(gzip.compress(content, 6, mtime=0) if name.endswith(".gz") else content)
    return path


def labels_array() -> np.ndarray:
    array = np.zeros((14, 16, 12), np.int16)
    array[3:5, 3:5, 3:5], array[9, 9, 9] = 1, 2
    return array


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def js(name: str, value: object) -> Callable[[Path], Path]:
    return text(name, json.dumps(value))


def from_result(name: str) -> Callable[[Path], Path]:
    """A file of a result, with the result in the folder RESULT beside it."""

    def make(folder: Path) -> Path:
        from tests.review.conftest import make_result

        result = make_result(folder / "RESULT")
        record = json.loads((result / "detections.json").read_text())
        record |= {
            "version": "0",
            "weights": {"name": "w", "sha256": "cd" * 32},
            "settings": {"score_threshold": "0.5"},
            "regions_trusted": True,
        }
        (result / "detections.json").write_text(json.dumps(record))
        return result / name

    return make


def result_at(path: Path):
    from cmb_jax.review.result import load_result

    folder = next(
        each for each in (path.parent, *path.parents) if (each / "RESULT").is_dir() or each.name == "RESULT"
    )
    return load_result(folder if folder.name == "RESULT" else folder / "RESULT")


def exported(name: str) -> Callable[[Path], Path]:
    """A file as a reader sends it back, beside RESULT."""

    def make(folder: Path) -> Path:
        from cmb_jax.io.atomic import sha256_file
        from cmb_jax.review import outside_viewers, reading, spreadsheet, statistics, verdicts

        from_result("detections.csv")(folder)
        result = result_at(folder / "x")
        path = folder / name
        if name.endswith(".xlsx"):
            path.write_bytes(spreadsheet.spreadsheet(result))
        elif name == "points.mrk.json":
            path.write_text(outside_viewers.markups(result))
        elif name == "painted.nii.gz":
            shutil.copy(result.paths.labels, path)
        elif name == "review.json":
            shutil.copy(result.paths.labels, folder / "painted.nii.gz")
            scan = statistics.ScanReview(
                subject=result.subject,
                rows=result.rows,
                readings=tuple(reading.read_readings(folder / "painted.nii.gz", result)),
            )
            path.write_text(statistics.review_json(scan))
        else:
            entry = {"candidate": 1, "verdict": "microbleed", "certainty": "definite", "comment": ""}
            place = {"position_mm": list(reading.positions_mm(result.rows)[0]), "diameter_mm": None}
            content = {
                "format": verdicts.FORMAT,
                "format_version": verdicts.VERSION,
                "coordinates": "RAS mm",
                "reader": "AB",
                "saved": "2026-01-01T00:00:00Z",
                "swi_sha256": result.swi_sha256,
                "detections_sha256": sha256_file(result.paths.table),
                "marks": [entry | place],
                "added": [],
            }
            path.write_text(json.dumps(content))
        return path

    return make


def read_reading(path: Path) -> object:
    from cmb_jax.review.reading import read_readings

    return repr(read_readings(path, result_at(path)))


def read_verdict_folder(path: Path) -> object:
    from cmb_jax.viewer.server import Site, VerdictFolder

    folder = path.parent / "verdicts"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "AB.json")
    try:
        site = Site(
            page=b"", images={}, folder=path.parent, swi_sha256="", detections_sha256="", write_truth=dict
        )
        found = VerdictFolder(site)
        return repr((found.summaries(), found.read("AB")))
    finally:
        shutil.rmtree(folder)


def make_index(folder: Path) -> Path:
    from cmb_jax.datasets.cases import Case, DatasetIndex, MaskTruth, PointTruth
    from cmb_jax.datasets.index import write_index

    (folder / "data").mkdir()
    nifti(folder / "data", "a.nii.gz")
    nifti(folder / "data", "m.nii.gz", labels_array())
    images = {"swi": "a.nii.gz"}
    points = PointTruth(convention="ras-mm", points=((1.0, 2.0, 3.0),), diameters_mm=(3.0,), source="a.csv")
    truths = {"a": MaskTruth(path="m.nii.gz"), "b": points}
    cases = tuple(
        Case(case_id=name, patient_id=name, cohort="c", images=images, truth=truth)
        for name, truth in truths.items()
    )
    write_index(folder / "i.json", DatasetIndex(kind="folder", cases=cases), folder / "data")
    return folder / "i.json"


def read_index(path: Path) -> object:
    from cmb_jax.datasets.index import read_index as read

    return repr(read(path)[0])


def make_weights(folder: Path) -> Path:
    from cmb_jax.config import Config
    from cmb_jax.inference.bundle import save_bundle, shapes_of
    from cmb_jax.io.weights import named_leaves, unflatten_state
    from tests.tiny import TINY_MODEL

    rng = np.random.default_rng(0)
    leaves = {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in named_leaves(shapes_of(TINY_MODEL))
    }
    save_bundle(folder / "w.safetensors", unflatten_state(leaves), Config(model=TINY_MODEL))
    return folder / "w.safetensors"


def read_bundle(path: Path) -> object:
    from cmb_jax.inference.bundle import load_bundle
    from cmb_jax.io.weights import named_leaves

    bundle = load_bundle(path)
    digest = hashlib.sha256(repr(bundle.config).encode())
    for name, leaf in named_leaves(bundle.params):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def bundled_record(folder: Path) -> Path:
    from cmb_jax.inference.bundle import BUNDLED

    shutil.copy(BUNDLED / "small.json", folder / "w.json")
    return folder / "w.json"


def read_description(path: Path) -> object:
    from cmb_jax.config import Config
    from cmb_jax.inference.bundle import WeightsBundle, describe

    config = Config()
    config = dataclasses.replace(
        config,
        inference=dataclasses.replace(
            config.inference, calibration_scores=(0.1, 0.9), calibration_probabilities=(0.2, 0.8)
        ),
    )
    return describe(
        WeightsBundle(path=path.with_suffix(".safetensors"), sha256="0", config=config, params={})
    )


def small_config(folder: Path) -> Path:
    from cmb_jax.config import Config
    from cmb_jax.config_load import config_to_json

    return text("config.json", config_to_json(Config()))(folder)


def read_configuration(path: Path) -> object:
    from cmb_jax.config_load import read_config

    return repr(read_config(path, "do this"))


def make_pack(folder: Path) -> Path:
    from cmb_jax.anatomy.assets import _write_pack
    from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack

    rng = np.random.default_rng(3)
    pack = AnatomyPack(
        fractions=rng.integers(0, 255, (6, 7, 8, NUM_CHANNELS)).astype(np.uint8),
        code=rng.integers(0, 9, (6, 7, 8)).astype(np.uint8),
        affine=np.eye(4),
        name="x",
    )
    _write_pack(folder / "pack.npz", pack)
    return folder / "pack.npz"


def read_pack(path: Path) -> object:
    from cmb_jax.anatomy import assets

    with contextlib.redirect_stderr(io.StringIO()):
        pack = assets._read_pack(path)
    if pack is None:
        raise UserError(f"{path}: is built again")
    return hashlib.sha256(pack.fractions.tobytes() + pack.code.tobytes()).hexdigest()


def make_kept(folder: Path) -> Path:
    from cmb_jax.research.findings import write_kept

    write_kept(folder / "kept.npz", "this", {"a": np.arange(500.0), "b": np.array(["x"])})
    return folder / "kept.npz"


def read_kept_arrays(path: Path) -> object:
    from cmb_jax.research.findings import read_kept

    found = read_kept(path, "this")
    if found is None:
        raise UserError(f"{path}: is made again")
    return repr(sorted((name, array.tobytes()) for name, array in found.items()))


def make_store(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from cmb_jax.data.subjects import STORE_FILE, _versions

        rng = np.random.default_rng(2)
        arrays = {
            "image": rng.normal(size=(6, 8, 8, 2)).astype(np.float16),
            "mimics": rng.integers(0, 3, (6, 4, 4)).astype(np.uint8),
            "boxes": rng.normal(size=(2, 6)).astype(np.float32),
            "ignored_boxes": np.zeros((0, 6), np.float32),
            "mimic_points": np.zeros((4, 3), np.int32),
            "brain_points": np.zeros((4, 3), np.int32),
        }
        (folder / "seed-1").mkdir()
        for each, array in arrays.items():
            np.save(folder / "seed-1" / f"{each}.npy", array)
        (folder / "seed-1" / STORE_FILE).write_text(json.dumps(_versions()))
        return folder / "seed-1" / name

    return make


def read_store(path: Path) -> object:
    from cmb_jax.data.subjects import subjects_in

    (subject,) = subjects_in(path.parent.parent)
    parts = (subject.image, subject.boxes, subject.ignored_boxes, subject.mimics, subject.mimic_points)
    return repr([(part().shape, part().tobytes()) for part in (*parts, subject.brain_points)])


def make_views(folder: Path) -> Path:
    np.savez_compressed(
        folder / "v.npz", images=np.zeros((2, 4, 4, 4), np.uint8), code=np.zeros((4, 4, 4), np.uint8)
    )
    return folder / "v.npz"


def read_views(path: Path) -> object:
    from cmb_jax.io.outside import read_arrays, reading

    with reading(path):
        stored = read_arrays(path)
        return repr((stored["images"], stored["code"]))


def make_metrics(folder: Path) -> Path:
    (folder / "10" / "metrics").mkdir(parents=True)
    return js("metrics", {"quality": 0.5})(folder / "10" / "metrics")


def read_metrics(path: Path) -> object:
    from cmb_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._folder = path.parents[2]
    checkpoints._leave_out_unreadable_records()
    return "whole"


def read_run_log(path: Path) -> object:
    from cmb_jax.research.runs import _times

    return repr(_times(path))


def read_train_log(path: Path) -> object:
    from cmb_jax.training.monitor import TrainLog

    with tempfile.TemporaryDirectory() as other:
        shutil.copy(path, Path(other) / "metrics.csv")
        with TrainLog(Path(other), 10, 0) as log:
            log._widen(["more"])
        return (Path(other) / "metrics.csv").read_bytes()


def read_losses(path: Path) -> object:
    from cmb_jax.training.regions import _last_losses

    return repr(_last_losses(path))


def read_run_record(path: Path) -> object:
    from types import SimpleNamespace

    from cmb_jax.research.runs import _record

    (path.parent / "weights.safetensors").touch()
    try:
        return repr(
            _record(SimpleNamespace(folder=path.parent, weights=path.with_name("weights.safetensors")))
        )
    finally:
        (path.parent / "weights.safetensors").unlink()


def make_dicom(folder: Path) -> Path:
    from tests.dicom import phantoms

    magnitude, _ = phantoms.head((12, 10, 4))
    paths = phantoms.write_series(folder / "study", phantoms.SIEMENS_MAGNITUDE, magnitude.astype(np.int32))
    return sorted(paths)[0]


def read_dicom(path: Path) -> object:
    from cmb_jax.dicom.folder import read_folder
    from cmb_jax.dicom.identity import source_headers
    from cmb_jax.dicom.stacks import sort_into_stacks

    found = read_folder(next(each for each in path.parents if each.name == "study"))
    sort_into_stacks(found.frames)
    source_headers([frame.instance for frame in found.frames], keep_identifiers=False)
    if found.problems:
        for problem in found.problems:
            assert "\n" not in problem.what
        raise UserError(f"{path}: is left out")
    return repr([dataclasses.replace(frame, instance=None) for frame in found.frames])  # type: ignore[arg-type]


def make_provenance(folder: Path) -> Path:
    made = {
        "Making": {
            "Weights": {"Name": "w", "SHA256": "ab"},
            "Threshold": 0.5,
            "PhaseSign": "auto",
            "PhaseRange": "auto",
            "Regions": "network",
        },
        "Taken": {"Kind": "swi", "Images": [{"Role": "swi", "File": "a", "SHA256": "b"}]},
        "Settings": {"score_threshold": "0.647", "phase": "used", "calibrated": "yes"},
        "RegionsTrusted": True,
        "MagneticFieldStrength": 3.0,
        "Warnings": [],
        "Version": "1",
    }
    return js("p.json", {"CmbJax": made})(folder)


def read_made(path: Path) -> object:
    from cmb_jax.cohort.result import read_provenance

    return repr(read_provenance(path))


def read_failure(path: Path) -> object:
    from cmb_jax.cohort.result import read_reason, read_status

    return repr((read_reason(path), read_status(path)))


def read_data_set(path: Path) -> object:
    from cmb_jax.calibration import tree_name
    from cmb_jax.datasets.bids.reader import is_result
    from cmb_jax.phantom.tree import phantom_version

    return repr((tree_name(path.parent), is_result(path.parent), phantom_version(path.parent)))


def read_sidecar(path: Path) -> object:
    from cmb_jax.datasets.bids.layout import parse_name
    from cmb_jax.datasets.bids.sidecar import facts_beside, read_facts
    from cmb_jax.implant.scan import echo_times, field_strength, sidecar

    image = path.with_name("sub-1_swi.nii.gz")
    facts = facts_beside(image, "its JSON file"), read_facts(image, parse_name(image.name), path.parent)
    for note in (*facts[0].notes, *facts[1].notes):
        assert "\n" not in note
    notes = sidecar([image])
    return repr((facts, echo_times((), notes, 1, image), field_strength(None, notes, image)))


def read_detections(path: Path) -> object:
    from cmb_jax.evaluation.read import read_detections_csv

    return repr(read_detections_csv(path, "s"))


def read_points(path: Path) -> object:
    from cmb_jax.datasets.tables import read_csv

    return repr(read_csv(path, ("x_mm", "y_mm", "z_mm")))


def read_regions(path: Path) -> object:
    from cmb_jax.anatomy.own_regions import read_label_table

    return repr(read_label_table(path).kinds)


def read_sums(path: Path) -> object:
    from cmb_jax.phantom.benchmark import content_sha256, read_checksums

    content_sha256(path)
    return repr(read_checksums(path))


def read_packed_sum(path: Path) -> object:
    from cmb_jax.phantom.benchmark import content_sha256

    return content_sha256(path)


def make_sheet(folder: Path) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["id", "x", "y"], [1, 2.5, "text"], [2, None, True]):
        book.active.append(row)
    book.save(folder / "t.xlsx")
    return folder / "t.xlsx"


def read_workbook(path: Path) -> object:
    from cmb_jax.datasets.tables import read_sheet

    return repr(read_sheet(path))


def make_mat(folder: Path) -> Path:
    from scipy.io import savemat

    savemat(folder / "a.mat", {"cen": np.arange(12.0).reshape(4, 3)}, do_compression=True)
    return folder / "a.mat"


def read_matrix(path: Path) -> object:
    from cmb_jax.datasets.tables import read_mat

    return repr(read_mat(path, ("cen",)))


def make_page(folder: Path) -> Path:
    from_result("detections.csv")(folder)
    digest = result_at(folder / "x").swi_sha256
    facts = {"swi_sha256": digest, "windows": {"swi": [0, 1]}, "units": {"swi": ""}}
    page = (
        f'<script type="application/json" id="case">{json.dumps(facts)}</script>'
        '<script type="application/octet-stream" id="image-swi">AAAA</script>'
    )
    return text("viewer.html", page)(folder / "RESULT")


def read_page(path: Path) -> object:
    from cmb_jax.cli.view import _embedded

    return repr(_embedded(result_at(path)))


def read_image(path: Path) -> object:
    from cmb_jax.io.nifti import read_volume

    volume = read_volume(path)
    return hashlib.sha256(volume.data.tobytes() + volume.affine.tobytes()).hexdigest()


def read_stored(path: Path) -> object:
    from cmb_jax.io.header import open_nifti
    from cmb_jax.io.nifti import stored_values

    return stored_values(open_nifti(path)).tobytes()


def read_label_image(path: Path) -> object:
    from cmb_jax.evaluation.read import read_detections_volume, read_truth_volume

    sides = read_detections_volume(path, "s"), read_truth_volume(path, "s")
    return repr([(side.centers_mm, side.diameters_mm) for side in sides])


def make_mask(folder: Path) -> Path:
    nifti(folder, "image.nii")
    return nifti(folder, "mask.nii", labels_array())


def read_mask(path: Path) -> object:
    from cmb_jax.datasets.cases import Case, MaskTruth
    from cmb_jax.datasets.lesions import lesions_of

    case = Case(
        case_id="a", patient_id="a", cohort="c", images={"swi": "image.nii"}, truth=MaskTruth(path="mask.nii")
    )
    found = lesions_of(case, path.parent)
    return repr((found.centers_mm, found.boxes, found.counted))


def read_header(path: Path) -> object:
    from cmb_jax.datasets.bids.choice import _grid
    from cmb_jax.datasets.images import read_grid

    return repr((read_grid(path), _grid(path)))


def read_prediction(path: Path) -> object:
    from cmb_jax.followup.time_point import read_record

    result = result_at(path)
    return repr((result.rows, result.swi_sha256, read_record(result.paths)))


def read_review_record(path: Path) -> object:
    from cmb_jax.review.statistics import read_review

    return repr(read_review(path))


def read_python(path: Path) -> object:
    from cmb_jax.config_load import config_from_file

    with contextlib.redirect_stdout(io.StringIO()):
        return repr(config_from_file(path))


def python_config(folder: Path) -> Path:
    return text(
        "c.py",
        "from cmb_jax.config import Config, ModelConfig\n\n\n"
        "def get_config():\n    return Config(name='x', model=ModelConfig(widths=(4, 6, 8), "
        "encoder_convs=(0, 1, 1), "
        "decoder_convs=(0, 1)))\n",
    )(folder)


def read_bids_filter(path: Path) -> object:
    from cmb_jax.datasets.bids.layout import read_filter

    return repr(read_filter(path))


def read_comparison(path: Path) -> object:
    from cmb_jax.cohort.group import _compared

    return repr(list(_compared(path, {"ab" * 32: 1})))


def make_picture(folder: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)).save(folder / "p.jpg")
    return folder / "p.jpg"


def read_picture(path: Path) -> object:
    from cmb_jax.io.outside import read_bytes
    from cmb_jax.report.cohort import Projection, shrunk

    record = {"Width": 800, "Height": 600, "ToPixel": [[0.0] * 8] * 2}
    return shrunk(Projection.from_json(read_bytes(path), record), 100, path).jpeg


def read_dicom_pixels(path: Path) -> object:
    from pydicom.errors import InvalidDicomError

    from cmb_jax.dicom.convert import _hand_over, _pixels
    from cmb_jax.dicom.folder import has_mark

    try:
        has_mark(path)
        with tempfile.TemporaryDirectory() as other:
            _hand_over(path, Path(other) / "a.dcm")
        return _pixels(path, {}).tobytes()
    except InvalidDicomError as error:  # the callers leave such files out
        raise UserError(f"{path}: is left out") from error


HEADER = ("io.header:_opened", "io.header:_image", "io.header:decoded", "io.header:world_affine")
SIDE = {"EchoTime": 0.02, "MagneticFieldStrength": 3, "ParamagneticPhaseSign": 1, "Manufacturer": "X"}
DETECTIONS = (
    "x_mm,y_mm,z_mm,diameter_mm,score,status,probability\n1,2,3,4,0.9,kept,0.8\n2,3,4,5,0.2,rejected,\n"
)

KINDS: dict[str, Kind] = {
    "nifti_gz": Kind(lambda f: nifti(f, "a.nii.gz"), read_image, HEADER, checked=True),
    "nifti_gz_renewed": Kind(lambda f: nifti(f, "a.nii.gz"), read_image, HEADER, "gzip"),
    "nifti_plain": Kind(lambda f: nifti(f, "a.nii"), read_image, HEADER),
    "nifti_labels": Kind(
        lambda f: nifti(f, "a.nii", labels_array()),
        read_label_image,
        ("evaluation.read:read_detections_volume", "evaluation.read:read_truth_volume"),
    ),
    "nifti_mask": Kind(make_mask, read_mask, ("datasets.lesions:_label",)),
    "nifti_header": Kind(lambda f: nifti(f, "a.nii"), read_header, (*HEADER, "datasets.bids.choice:_grid")),
    "nifti_stored": Kind(
        lambda f: nifti(f, "a.nii.gz"), read_stored, ("io.nifti:stored_values",), checked=True
    ),
    "dicom": Kind(make_dicom, read_dicom, ("dicom.folder:_read", "dicom.identity:source_headers"), share=0.5),
    "sidecar": Kind(
        js("sub-1_swi.json", SIDE),
        read_sidecar,
        (
            "datasets.bids.sidecar:read_facts",
            "datasets.bids.sidecar:facts_beside",
            "implant.scan:sidecar",
        ),
        "json",
    ),
    "data_set": Kind(
        js("dataset_description.json", {"Name": "x", "GeneratedBy": [{"Name": "y"}], "PhantomVersion": 2}),
        read_data_set,
        (
            *("calibration:tree_name", "datasets.bids.reader:is_result"),
            "phantom.tree:phantom_version",
        ),
        "json",
    ),
    "index": Kind(make_index, read_index, ("datasets.index:read_index", "datasets.index:_load"), "json"),
    "detections_csv": Kind(
        text("d.csv", DETECTIONS), read_detections, ("io.tables:read_columns", "io.tables:read_rows"), "table"
    ),
    "points_csv": Kind(
        text("p.csv", "x_mm;y_mm;z_mm;kind\n1;2;3;cmb\n"), read_points, ("io.tables:read_columns",), "table"
    ),
    "label_table": Kind(
        text("l.csv", "label,region,side\n1,frontal,left\n2,thalamus,\n"),
        read_regions,
        ("anatomy.own_regions:read_label_table", "anatomy.own_regions:_parse_table"),
        "table",
    ),
    "checksums": Kind(
        text("c.tsv", "a\tbb\nc\tdd\n"), read_sums, ("phantom.benchmark:read_checksums",), "table"
    ),
    "packed_sum": Kind(
        lambda f: nifti(f, "a.nii.gz"), read_packed_sum, ("phantom.benchmark:content_sha256",), checked=True
    ),
    "workbook": Kind(
        make_sheet,
        read_workbook,
        ("datasets.tables:read_sheet", "datasets.tables:_check_parts", "datasets.tables:_cells"),
        "zip",
    ),
    "mat": Kind(make_mat, read_matrix, ("datasets.tables:read_mat",)),
    "result_json": Kind(
        from_result("detections.json"),
        read_prediction,
        (
            "review.result:_searched_image",
            "review.result:load_result",
            "review.result:read_record",
            "followup.time_point:read_record",
        ),
        "json",
    ),
    "result_csv": Kind(from_result("detections.csv"), read_prediction, ("io.tables:read_columns",), "table"),
    "result_labels": Kind(from_result("labels.nii.gz"), read_prediction, HEADER, checked=True),
    "verdicts": Kind(
        exported("AB.json"),
        read_reading,
        (
            *(
                "review.verdicts:parse_verdicts",
                "review.verdicts:read_verdicts",
                "review.reading:read_readings",
            ),
            "review.reading:_holds_verdicts",
        ),
        "json",
    ),
    "verdict_folder": Kind(
        exported("AB.json"),
        read_verdict_folder,
        ("viewer.server:summaries", "viewer.server:read", "viewer.server:write"),
        "json",
    ),
    "markups": Kind(exported("points.mrk.json"), read_reading, ("review.outside_viewers:_points",), "json"),
    "review_workbook": Kind(
        exported("r.xlsx"), read_reading, ("datasets.tables:read_sheet",), "zip", share=0.5
    ),
    "painted": Kind(exported("painted.nii.gz"), read_reading, HEADER, "gzip"),
    "review_record": Kind(
        exported("review.json"), read_review_record, ("review.statistics:read_review",), "json"
    ),
    "weights": Kind(
        make_weights,
        read_bundle,
        ("io.weights:_read", "inference.bundle:_load_one"),
        "safetensors",
        share=0.4,
    ),
    "weights_record": Kind(
        bundled_record,
        read_description,
        (
            "inference.bundle:read_weights_record",
            "inference.bundle:describe",
            "cli.weights:show",
        ),
        "json",
    ),
    "config_json": Kind(
        small_config, read_configuration, ("config_load:read_config", "config_load:config_from_json"), "json"
    ),
    "config_py": Kind(python_config, read_python, ("config_load:made_by_file",), "python"),
    "pack": Kind(make_pack, read_pack, ("anatomy.assets:_read_pack",), "zip", checked=True),
    "kept": Kind(make_kept, read_kept_arrays, ("research.findings:read_kept",), "zip"),
    "region_views": Kind(make_views, read_views, ("regions.phantoms:phantom_views",), "zip"),
    "stored_image": Kind(
        make_store("image.npy"), read_store, ("data.subjects:image", "data.subjects:mimics"), share=0.5
    ),
    "stored_boxes": Kind(
        make_store("boxes.npy"),
        read_store,
        tuple(f"data.subjects:{name}" for name in ("boxes", "ignored_boxes", "mimic_points", "brain_points")),
        share=0.5,
    ),
    "stored_form": Kind(
        make_store("store.json"), read_store, ("data.subjects:_check_versions",), "json", share=0.5
    ),
    "checkpoint_metrics": Kind(
        make_metrics, read_metrics, ("training.checkpoint:_leave_out_unreadable_records",), "json", share=0.5
    ),
    "run_log": Kind(
        text("metrics.csv", "step,loss,steps/s\n20,0.5,2.0\n40,0.4,2.5\n"),
        read_run_log,
        ("research.runs:_times",),
        "table",
    ),
    "train_log": Kind(
        text("metrics.csv", "step,loss\n20,0.5\n40,0.4\n"),
        read_train_log,
        ("training.monitor:_read",),
        "table",
    ),
    "region_log": Kind(
        text("metrics.csv", "step,loss,cross_entropy,dice,side\n20,0.5,0.2,0.2,0.1\n40,0.4,0.2,0.1,0.1\n"),
        read_losses,
        ("training.regions:_last_losses",),
        "table",
    ),
    "run_record": Kind(
        js("weights.json", {"steps": 100}), read_run_record, ("research.runs:_record",), "json"
    ),
    "provenance": Kind(
        make_provenance, read_made, ("cohort.result:read_provenance", "cohort.dataset:read_json"), "json"
    ),
    "failure": Kind(
        js("sub-1.json", {"Scan": "x", "Reason": "y"}),
        read_failure,
        ("cohort.result:read_reason", "cohort.result:read_status"),
        "json",
    ),
    "bids_filter": Kind(
        js("f.json", {"swi": {"acquisition": "axial", "run": [1, 2]}, "phase": {"part": None}}),
        read_bids_filter,
        ("datasets.bids.layout:read_filter",),
        "json",
    ),
    "comparison": Kind(
        js(
            "c.json",
            {
                "counts": {"new": 2, "resolved": 3},
                "baseline": {"inputs": [{"sha256": "ab" * 32}]},
                "followup": {"inputs": []},
            },
        ),
        read_comparison,
        ("cohort.group:_compared",),
        "json",
    ),
    "picture": Kind(make_picture, read_picture, ("report.cohort:shrunk", "cohort.group:_picture"), share=0.5),
    "dicom_pixels": Kind(
        make_dicom,
        read_dicom_pixels,
        (
            *("dicom.folder:has_mark", "dicom.folder:open_whole", "dicom.convert:_pixels"),
            "dicom.convert:_hand_over",
        ),
        share=0.5,
    ),
    "page": Kind(
        make_page,
        read_page,
        ("viewer.page:embedded_in", "cli.view:_embedded", "cli.view:_searched"),
        "page",
    ),
}

OWN = {
    "anatomy.lookup:template_landmarks": "comes with the package",
    "anatomy.own_regions:freesurfer_table": "comes with the package",
    "dicom.convert:_is_of": "dcm2niix wrote it a moment before into a folder of this process",
    "io.atomic:sha256_file": "makes nothing of the content",
    "io.header:_system_lines": "what the system says of its memory",
    "training.regions:_last_losses": "the log of this run, which `monitor` has read at its start",
    "viewer.server:_post": "takes a request of the page, not a file; tests/viewer",
}
"""Readers that read nothing from outside."""

# ------------------------------------------------------------------------------------------------- one input


def listing(folder: Path) -> set:
    return {(path, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def outcome(
    kind: Kind, path: Path, content: bytes, good: bytes, expected: object, seconds: float
) -> tuple[str, str]:
    """What becomes of one input, and a remark."""
    path.write_bytes(content)
    before = listing(path.parent)
    name, remark = "CRASH", ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS + seconds)
    try:
        found = kind.read(path)
        if found == expected:
            name = "read"
        else:
            name = "WRONG" if kind.checked and content != good else "other"
    except UserError as error:
        said = str(error)
        name = "LARGE" if "more memory than there is" in said else "WRONG" if "\n" in said else "refused"
        remark = said
    except TooSlow:
        name = "SLOW"
    except BaseException as error:
        remark = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if name not in BAD and listing(path.parent) != before:
        name = "LEFT"
    return name, " ".join(remark.split())[:300]


def prepare(kind: Kind, folder: Path) -> tuple[Path, bytes, object, float]:
    path = kind.make(folder)
    kind.read(path)  # what is imported or compiled at first is not counted
    tick = time.perf_counter()
    expected = kind.read(path)
    return path, path.read_bytes(), expected, time.perf_counter() - tick


def input_of(name: str, number: int, good: bytes) -> bytes:
    rng = random.Random(f"{name} {number}")
    return DAMAGE[KINDS[name].damage](good, rng)


def chunk(name: str, numbers: range, pipe) -> None:
    """In a process of its own: (number, None) before and (number, outcome) after each input."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    signal.signal(signal.SIGALRM, _too_slow)
    sys.stderr = sys.stdout = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        path, good, expected, seconds = prepare(KINDS[name], Path(folder))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES + 2**27, resource.RLIM_INFINITY))
        for number in numbers:
            pipe.send((number, None, ""))
            path.parent.mkdir(parents=True, exist_ok=True)
            content = input_of(name, number, good)
            pipe.send((number, *outcome(KINDS[name], path, content, good, expected, seconds)))
            if not path.parent.is_dir() or name == "checkpoint_metrics":
                shutil.rmtree(folder)
                Path(folder).mkdir()
                path = KINDS[name].make(Path(folder))
    pipe.send(None)


def _too_slow(number, frame):
    raise TooSlow


def run_kind(name: str, count: int, show: Callable[[str], None]) -> collections.Counter:
    """Outcomes of `count` inputs of a kind."""
    counts: collections.Counter = collections.Counter()
    context = multiprocessing.get_context("fork")
    first = 0
    while first < count:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=chunk, args=(name, range(first, count), theirs))
        process.start()
        theirs.close()
        last = None
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while (message := ours.recv()) is not None:
                number, found, remark = message
                last = (number, found)
                if found is not None:
                    counts[found] += 1
                    if found in BAD:
                        show(f"{name} {number}: {found} {remark}")
            first = count
        process.join()
        if first < count:
            if last is None:
                raise SystemExit(f"{name}: the good file cannot be read")
            counts["CRASH"] += 1
            show(f"{name} {last[0]}: CRASH, the process ended with {process.exitcode}")
            first = last[0] + 1
    return counts


def preload(names: Sequence[str]) -> None:
    """Import what the readers of these kinds import, so that each process has it."""
    for name in names:
        for covered in KINDS[name].covers:
            importlib.import_module(f"cmb_jax.{covered.partition(':')[0]}")


def write_table(page: Path, counts: dict[str, dict[str, int]]) -> None:
    """The counts as a table, between two marks of a page."""
    columns = (*GOOD, "bad")
    rows = [f"| kind of file | inputs | {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) + 1)}"]
    total: collections.Counter = collections.Counter()
    for name in KINDS:
        if name in counts:
            found = collections.Counter(counts[name])
            found["bad"] = sum(found[each] for each in BAD)
            found["inputs"] = sum(found[each] for each in columns)
            total += found
            cells = " | ".join(str(found[column]) for column in ("inputs", *columns))
            rows.append(f"| {name.replace(chr(95), chr(32))} | {cells} |")
    rows.append(f"| **all** | {' | '.join(str(total[c]) for c in ('inputs', *columns))} |")
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    page.write_text("\n".join([head + BEGIN, *rows, END]) + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--each", type=int, default=200, help="inputs of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, help="JSON file to add the counts to")
    parser.add_argument("--doc", type=Path, help="write the table of --out into this page, and end")
    parser.add_argument("--keep", type=Path, help="write the input --number of the one kind here, and end")
    parser.add_argument("--number", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.doc:
        write_table(chosen.doc, json.loads(chosen.out.read_text()))
        return
    if chosen.keep:
        with tempfile.TemporaryDirectory() as folder:
            good = KINDS[chosen.kinds[0]].make(Path(folder)).read_bytes()
        chosen.keep.write_bytes(input_of(chosen.kinds[0], chosen.number, good))
        return
    preload(chosen.kinds)
    bad, total = 0, 0
    for name in chosen.kinds:
        tick = time.perf_counter()
        counts = run_kind(
            name, max(1, round(chosen.each * KINDS[name].share)), lambda text: print(text, flush=True)
        )
        total += sum(counts.values())
        bad += sum(counts[each] for each in BAD)
        told = ", ".join(f"{counts[each]} {each}" for each in (*GOOD, *BAD) if counts[each])
        print(f"{name}: {told} ({time.perf_counter() - tick:.1f} s)", flush=True)
        if chosen.out:
            known = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
            chosen.out.write_text(json.dumps(known | {name: dict(counts)}, indent=1))
    print(f"{total} inputs of {len(chosen.kinds)} kinds, {bad} with an outcome that must not be")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
