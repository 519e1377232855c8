"""CMB-Phantom: fixed splits of simulated subjects, and the checksums of their files.

Tables, labels and sidecars are the same bytes wherever a subject is generated, so they have a SHA-256. Stored
images are not: sums in another order change their last bit here and there (docs/cmb-phantom.md). Theirs is a
sketch, mean, standard deviation and some voxels, which is compared with a tolerance.
"""

import base64
import dataclasses
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.header import open_nifti
from cmb_jax.io.nifti import stored_values
from cmb_jax.io.outside import check_is_file, reading
from cmb_jax.io.tables import read_rows
from cmb_jax.phantom.settings import SubjectSettings
from cmb_jax.phantom.tree import VERSION, CohortMember

Split = Literal["train", "validation", "test"]
SIZES: Mapping[str, int | None] = {"train": None, "validation": 40, "test": 60}  # train has no end
PROTOCOL_NAMES = ("iso05", "iso08", "sabre", "rss", "thick3", "swi7t")
ANATOMIES = ("mni2009c", "colin27", "pycortex-s1")
_FIRST_SEED = {"train": 1_000_000, "validation": 2_000_000, "test": 3_000_000}
TIER_OFFSET = {"easy": 0, "hard": 500_000}  # the tiers that have splits
TRAIN_LIMIT = 500_000
_CHECKSUMS = Path(__file__).resolve().parent / "checksums"
_SAMPLES = 64  # voxels of an image's sketch
_STEPS = 2  # of storage by which a voxel may differ
_OTHERS = 4  # voxels that may differ by more: where a phase sits at +-pi, it may change sign
_SHIFT = 0.01  # of mean and standard deviation that is allowed, in standard deviations


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSplit:
    """One split of one tier."""

    split: Split
    tier: str

    def __post_init__(self) -> None:
        if self.split not in SIZES:
            raise UserError(f"unknown split {self.split!r}; choose one of: {', '.join(SIZES)}")
        if self.tier not in TIER_OFFSET:
            raise UserError(f"unknown tier {self.tier!r}; choose one of: {', '.join(TIER_OFFSET)}")

    @property
    def title(self) -> str:
        """For dataset_description.json."""
        return f"CMB-Phantom {VERSION}, {self.tier}, {self.split}"

    @property
    def checksum_file(self) -> Path:
        """The published list of this split."""
        return _CHECKSUMS / f"cmb-phantom-{VERSION}-{self.tier}-{self.split}.tsv"

    def members(self, count: int | None = None) -> list[CohortMember]:
        """The first `count` subjects; None: all. Protocols in turn, anatomies by groups of protocols.

        Raises:
            UserError: more subjects than the split has, or none.
        """
        size = SIZES[self.split]
        if count is None:
            if size is None:
                raise UserError("the train split has no end: give --subjects")
            count = size
        if not 1 <= count <= (size or TRAIN_LIMIT):
            raise UserError(f"{count} subjects; the {self.split} split has 1 to {size or TRAIN_LIMIT}")
        first = _FIRST_SEED[self.split] + TIER_OFFSET[self.tier]
        names = PROTOCOL_NAMES
        return [
            CohortMember(
                name=f"sub-{self.split}{self.tier}{index + 1:04d}",
                seed=first + index,
                settings=SubjectSettings(protocol=names[index % len(names)], tier=self.tier),
                anatomy=ANATOMIES[(index // len(names)) % len(ANATOMIES)],
            )
            for index in range(count)
        ]


def content_sha256(path: Path) -> str:
    """Of a file's content; of a gzipped one's uncompressed content, as compressors differ between systems."""
    with reading(path, "make the split again"):
        check_is_file(path, "make the split again")
        digest = hashlib.sha256()
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
        return digest.hexdigest()


def image_sketch(path: Path) -> str:
    """Mean and standard deviation of the stored values, and `_SAMPLES` of them spread over the image."""
    stored = stored_values(open_nifti(path)).ravel()
    # multiples of the golden ratio: no two axes of an image are in step with them
    at = (np.arange(1, _SAMPLES + 1) * 0.6180339887498949 % 1 * stored.size).astype(np.int64)
    samples = base64.b64encode(stored[at].astype("<i2").tobytes()).decode()
    return f"{stored.mean(dtype=np.float64):.3f} {stored.std(dtype=np.float64):.3f} {samples}"


def agree(found: str, published: str) -> bool:
    """Whether two checksums are equal, or two sketches alike."""
    if found == published:
        return True
    pair = [text.split(" ") for text in (found, published)]
    if any(len(parts) != 3 for parts in pair):
        return False
    (mean, sd), (mean_there, sd_there) = (map(float, parts[:2]) for parts in pair)
    one, other = (np.frombuffer(base64.b64decode(parts[2]), "<i2").astype(int) for parts in pair)
    if max(abs(mean - mean_there), abs(sd - sd_there)) > _SHIFT * sd_there or one.shape != other.shape:
        return False
    return int((np.abs(one - other) > _STEPS).sum()) <= _OTHERS


def checksums(root: Path) -> dict[str, str]:
    """Of every file of the subjects below `root`, by its path there: an image's sketch, else the sha256."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and any(q.startswith("sub-") for q in p.parts))

    def is_image(path: Path) -> bool:
        return path.name.endswith(".nii.gz") and not path.name.endswith("_dseg.nii.gz")

    return {str(p.relative_to(root)): image_sketch(p) if is_image(p) else content_sha256(p) for p in files}


def write_checksums(path: Path, sums: Mapping[str, str]) -> None:
    """One line per file: path, tab, checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\t{digest}\n" for name, digest in sums.items()), encoding="utf-8")


def read_checksums(path: Path) -> dict[str, str]:
    """What `write_checksums` wrote.

    Raises:
        UserError: there is no list.
    """
    if not path.is_file():
        raise UserError(f"{path.name}: this version of the benchmark has no checksum list for that split")
    sums = {}
    with reading(path):
        for name, digest in read_rows(path, "\t"):
            sums[name] = digest
    return sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Files of a generated split against the published list."""

    equal: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]  # of the subjects that are there
    subjects: int  # of the list, that are there
    unlisted: int  # subjects that are there and not in the list

    @property
    def identical(self) -> bool:
        """Whether every file of every subject that is there is the published one."""
        return not self.different and not self.missing


def compare(root: Path, published: Mapping[str, str]) -> Comparison:
    """Compare what lies below `root` with a list; subjects that were not generated do not count."""

    def subject(name: str) -> str:
        return next(part for part in Path(name).parts if part.startswith("sub-"))

    listed = {subject(name) for name in published}
    everything = checksums(root)
    found = {name: sums for name, sums in everything.items() if subject(name) in listed}
    there = {subject(name) for name in found}
    equal = tuple(n for n, sums in found.items() if n in published and agree(sums, published[n]))
    return Comparison(
        equal=equal,
        different=tuple(n for n in found if n not in equal),
        missing=tuple(n for n in published if subject(n) in there and n not in found),
        subjects=len(there),
        unlisted=len({subject(name) for name in everything} - listed),
    )
