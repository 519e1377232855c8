"""Files and folders that appear whole or not at all: written beside their place, then renamed.

What is being written is locked by its process, and so are folders in which only one process may work: the
system takes such a lock back when the process ends, however it ends.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.outside import reading

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file that the lock of a folder is on."""

_PART = ".part"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_MARKER = ".cmb_jax_output"  # only folders that carry it are ever replaced
_MARKER_TEXT = "Written by cmb-jax. --overwrite replaces this whole folder, files added by hand included.\n"
_held: set[Path] = set()  # by this process, to which the system would give the same lock twice


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with reading(path), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cannot_write(path: Path, error: OSError) -> UserError:
    why = error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({why}); choose a place where you may write and have space")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Around all that the system may refuse; raises UserError."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def _open_permissions(kind: int) -> int:
    """The mode that a plain open() or mkdir() would give: `kind` (0o666 or 0o777) less the umask."""
    umask = os.umask(0)
    os.umask(umask)
    return kind & ~umask


@contextlib.contextmanager
def _made_parents(path: Path) -> Iterator[None]:
    """Makes the missing parents of `path`; takes them away again if the body fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:  # deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents where they are missing.

    Raises:
        UserError: it cannot be made, or is a file.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def atomic_write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Writes a file whole or not at all; missing parent folders are made.

    Raises:
        UserError: the file exists and `overwrite` is false, or it cannot be written.
    """
    path = Path(path)
    with _writing(path):
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{path}: exists already; choose another name or allow overwriting")
        with _made_parents(path):
            # Written beside its place (a rename must not cross file systems), on disk before it is renamed:
            # after a power cut there is the old file or the new one, and never an empty one.
            clear_dead(path.parent, path.name)
            part, handle = _new_part(path)
            try:
                # locked until it is in its place, or another process would take it for a dead one's
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                    os.chmod(part, _open_permissions(0o666))
                    os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                _held.discard(part)


def atomic_write_text(path: Path, content: str, *, overwrite: bool = False) -> None:
    """Like `atomic_write_bytes`, UTF-8 with the line ends as given."""
    atomic_write_bytes(path, content.encode("utf-8"), overwrite=overwrite)


def _new_part(path: Path, *, folder: bool = False) -> tuple[Path, int]:
    """A new file or folder beside `path` for what is being written, and the handle of its lock.

    Until it is locked, a process that clears up may take it for a dead one's; then there is another.
    """
    for tries_left in reversed(range(9)):
        part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}{_PART}")
        _held.add(part)
        try:
            if folder:
                os.mkdir(part, 0o700)
            return part, _open_locked(part / LOCK if folder else part)
        except BaseException as error:
            _held.discard(part)
            if not (tries_left and isinstance(error, (BlockingIOError, FileNotFoundError))):
                raise
    raise AssertionError("the last try raises")


def clear_dead(folder: Path, name: str) -> None:
    """Removes what killed processes left half-written; what living ones are writing is locked, and stays.

    Args:
        folder: of the files.
        name: of a file or folder that was to be made, or a pattern of such names.
    """
    pattern = name if "*" in name else glob.escape(name[:200])
    for left in folder.glob(f".{pattern}.*{_PART}"):
        if left in _held:  # by another thread
            continue
        with contextlib.suppress(OSError):
            # only what nobody holds any more: a file that is being written is locked by its process
            handle = _open_locked(left / LOCK if left.is_dir() else left)
            old, place = left / "old", folder / left.name[1 : -len(_PART)].rpartition(".")[0]
            if old.exists() and not place.exists():  # killed between the two renames of _swap
                os.rename(old, place)
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
            os.close(handle)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Whether a folder may be made at `path`, as `atomic_directory` says.

    Raises:
        UserError: it may not.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise UserError(f"{path}: exists and is not a folder; choose another name for the output folder")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{path}: the output folder exists already; choose another or allow overwriting")
    if not (path / _MARKER).is_file():
        raise UserError(
            f"{path}: was not written by cmb-jax, so it is not replaced; choose another output folder"
        )


@contextlib.contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears under `path` only when the body has succeeded.

    An empty folder may stand there already. With `overwrite`, a folder that an earlier run wrote is replaced
    as a whole; any other folder with content is refused, so that no one's images are lost.

    Args:
        path: the folder to make; missing parents are made too.
        overwrite: replace what an earlier run wrote.

    Yields:
        A temporary folder beside `path` to write into.

    Raises:
        UserError: the folder exists, or it cannot be written.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _writing(path):
            refuse_existing(path, overwrite)
            stack.enter_context(_made_parents(path))
            folder = stack.enter_context(_staging(path))
        try:
            yield folder
        except OSError as error:
            if not folder.is_dir():
                raise UserError(f"{path}: its folder was taken away during the work; run it again") from error
            if error.errno in _NO_ROOM:
                raise _cannot_write(path, error) from error
            raise
        with _writing(path):
            (folder / _MARKER).write_text(_MARKER_TEXT, encoding="utf-8")
            folder.chmod(_open_permissions(0o777))
            refuse_existing(path, overwrite)  # the body may have taken long
            _swap(folder, path)


def replace_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """A folder of a cache, made whole or not at all, in the place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _staging(path) as folder:
        fill(folder)
        _swap(folder, path)


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A folder to write into, beside `path`; taken away at the end, or by the run after a killed one."""
    clear_dead(path.parent, path.name)
    staging, handle = _new_part(path, folder=True)
    try:
        os.mkdir(staging / "new")
        yield staging / "new"
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)
        _held.discard(staging)


def _swap(new: Path, path: Path) -> None:
    """Puts `new` at `path`; what stood there goes beside `new` first, and comes back if that fails."""
    aside = new.parent / "old"
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(new, path)
    except BaseException:
        if aside.exists():
            os.rename(aside, path)
        raise


@contextlib.contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Holds a folder for this process; children do not inherit the lock, so that it dies with the process.

    The file that the lock is on is removed at the end; a killed process leaves it.

    Args:
        folder: that exists.
        remedy: what the message of a second process tells to do.

    Raises:
        UserError: another process holds it, or no file can be made there.
    """
    path = folder.resolve() / LOCK
    taken = f"{folder}: another process is at work in it; {remedy}"
    if path in _held:
        raise UserError(taken)
    try:
        handle = _open_locked(path)
    except BlockingIOError as error:
        raise UserError(taken) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose another folder") from error
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):  # before the lock goes: whoever waits for it sees the file go
            path.unlink()
        os.close(handle)


def _open_locked(path: Path) -> int:
    """A handle of the file at `path`, locked; BlockingIOError if another process has the lock.

    A process removes its file before it gives the lock back, so the file that was opened here may no longer
    be the one at `path` when its lock is granted. Such a lock protects nothing: the file is opened again.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if fcntl is not None:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except PermissionError as error:  # as some systems say it
                    raise BlockingIOError from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
