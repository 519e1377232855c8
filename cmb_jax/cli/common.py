"""What the commands share: error messages, output streams, checks of arguments; quick to import."""

import contextlib
import functools
import logging
import math
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.io.atomic import refuse_existing

USER_ERROR_CODE = 2
NOT_ANALYSABLE_CODE = 3
CLOSED_OUTPUT_CODE = 128 + 13  # as of a program that SIGPIPE (13) ended

_EXTRAS = {"pydicom": "dicom", "highdicom": "dicom", "dcm2niix": "dicom", "SimpleITK": "compare"}
"""Modules that not every installation has -> the extra that installs them."""

_FILES = {
    "swi": "SWI",
    "phase": "phase",
    "magnitude": "magnitude",
    "lesions": "table of lesions",
    "brain_mask": "brain mask",
    "region_labels": "label table",
    "baseline_image": "baseline image",
    "followup_image": "follow-up image",
    "files": "verdicts",
}
_FOLDERS = {
    "path": "data set",
    "pred": "predictions",
    "baseline": "baseline",
    "truth": "truth",
    "followup": "follow-up's result",
    "result": "result",
    "folder": "DICOM folder",
    "dicom": "DICOM folder",
    "data": "BIDS data set",
}
_WRITTEN = ("out", "report", "labels", "json")
_BUNDLED = Path(__file__).resolve().parent.parent / "weights"


def run_cli(command: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit code 2 (not analysable: 3).

    If stdout is closed early, as by `head`, the command ends quietly.
    """
    with _streams_that_may_fail():
        _run_cli(command)


def _run_cli(command: Callable[[], None]) -> None:
    try:
        command()
        sys.stdout.flush()
    except (UserError, ModuleNotFoundError) as error:
        if logging.getLogger("cmb_jax").isEnabledFor(logging.DEBUG):  # --verbose
            raise
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif extra := _EXTRAS.get(error.name or ""):
            print(
                f"error: this needs the package {error.name}: pip install 'cmb-jax[{extra}]'", file=sys.stderr
            )
        else:
            raise
        sys.exit(NOT_ANALYSABLE_CODE if isinstance(error, NotAnalysableError) else USER_ERROR_CODE)
    except MemoryError:
        print("error: this takes more memory than there is; close other programs", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _output_is_closed():  # another pipe broke, such as one to a worker
            raise
        # Python flushes stdout at exit, and would report the broken pipe once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_OUTPUT_CODE)
    except OSError as error:  # files that vanish, disks that fail: a traceback would add nothing
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; check the disk and the folder", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


class _MayFail:
    """A stream that ignores failures to write, as on a full disk: printing must not stop the work.

    A closed pipe (`BrokenPipeError`) is left to `run_cli`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost = error
            # buffered text is dropped, so that flushing it at exit does not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def _streams_that_may_fail() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    # a stream that was closed before the start is None
    nowhere = functools.partial(open, os.devnull, "w", encoding="utf-8")
    streams = [_MayFail(stream or nowhere()) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout.flush()
        lost = streams[0].lost
        if lost is not None:
            what = f"note: what was to be printed could not be written ({lost.strerror})"
            print(f"{what}; files that were written are complete", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _output_is_closed() -> bool:
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # 0: nothing but errors
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def existing_file(path: Path, role: str) -> None:
    """Refuse a path that is not a file.

    Raises:
      UserError: nothing is there, or a folder; `role` says in the message what the file should be.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; give the {role} file itself")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path of the {role}")


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse early an output that would fail after minutes of work.

    Raises:
      UserError: `out` exists, holds readers' verdicts, or nothing can be written there.
    """
    if out.is_symlink():
        raise UserError(f"{out}: is a link; give the place itself as --out")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; choose another --out or add --overwrite")
    # verdicts cannot be made again: not even --overwrite deletes them, here or in a folder of predictions
    if read := [*out.glob("verdicts/*.json"), *out.glob("*/verdicts/*.json")]:
        raise UserError(
            f"{read[0]}: verdicts of a reader would be lost with the folder; move them away, or choose "
            "another --out"
        )
    if out.is_dir():
        refuse_existing(out, overwrite)
    # folders that are missing will be made: permission counts in the first one that exists
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{out}: cannot be written (no permission in {parent}); choose another --out")


def check(given: Mapping[str, Any]) -> None:
    """Refuse values that cannot be right; an option means the same in every command that has it.

    Raises:
      UserError: no such file, folder or weights; output that exists; a number that is not finite; a
        threshold that no score has.
    """
    for name, role in (_FILES | _FOLDERS).items():
        value = given.get(name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and name in _FILES:
                existing_file(path, role)
            elif isinstance(path, Path) and not path.exists():
                raise UserError(f"{path}: no such folder; check the path of the {role}")
    for name, value in given.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"--{name.replace('_', '-')} {number}: give a finite number")
    threshold = given.get("threshold")
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise UserError(f"--threshold {threshold}: scores lie between 0 and 1; choose a number there")
    if isinstance(given.get("weights"), str):
        check_weights(given["weights"])
    # `bids` adds to its output; --verify reads it
    if "level" not in given and not given.get("verify"):
        for name in _WRITTEN:
            if isinstance(given.get(name), Path):
                check_output(given[name], bool(given.get("overwrite")))


def check_weights(weights: str) -> None:
    """Refuse a name that no bundled weights have, as `inference.bundle.load_bundle` does later.

    Raises:
      UserError: no such name.
    """
    if Path(weights).exists():
        return
    known = sorted(path.stem for path in _BUNDLED.glob("*.safetensors") if path.stem != "region")
    for part in (part.strip() for part in weights.split(",")):
        if not Path(part).exists() and Path(part).name == part and Path(part).suffix == "":
            if part not in known:
                names = ", ".join(known)
                raise UserError(f"{part}: no such weights; give a file or one of the bundled names: {names}")
        elif not Path(part).exists():
            raise UserError(f"{part}: no such file; check the path of the weights")


def check_run(workdir: Path, overwrite: bool) -> None:
    """Refuse to evaluate a run that is not trained yet, or was evaluated before.

    Raises:
      UserError: there are no weights, or there is an evaluation that may not be replaced.
    """
    weights = workdir / "weights.safetensors"
    if not weights.exists():
        raise UserError(f"{weights}: no trained weights; run cmb-jax train with this --workdir first")
    if (workdir / "eval").exists() and not overwrite:
        raise UserError(f"{workdir / 'eval'}: exists already; add --overwrite to replace it")
