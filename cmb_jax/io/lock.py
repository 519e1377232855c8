"""One process at a time for a folder: a lock that the system takes back when its process ends, however."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cmb_jax.errors import UserError

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: set[Path] = set()  # by this process, to which the system would give the same lock twice


@contextlib.contextmanager
def locked(folder: Path, todo: str, name: str = NAME) -> Iterator[None]:
    """Holds a folder for this process; children do not inherit the lock, so that it dies with the process.

    Args:
        folder: that exists.
        todo: what the message of a second process tells to do.
        name: of the file that the lock is on; it is taken away at the end, and left by a killed process.

    Raises:
        UserError: another process holds it, or no file can be made there.
    """
    path = folder.resolve() / name
    taken = f"{folder}: another process is at work in it; {todo}"
    if path in _held:
        raise UserError(taken)
    try:
        handle = open_locked(path)
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


def open_locked(path: Path) -> int:
    """A handle of the file that lies at `path`, locked. Raises BlockingIOError if another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if fcntl is not None:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except PermissionError as error:  # as some systems say it
                    raise BlockingIOError from error
            # the process before may have taken the file away between the two lines above
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
