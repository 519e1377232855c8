"""Which process is at work on a scan, as files in the output folder that all processes see.

A claim is a file that only one process can create. It stands from before the first look at a scan's result
until after the last file is written, and is touched now and then. One that has not been touched for
`LEASE_S`, or whose process on this machine has gone, is dead: the next number is then claimed over it, which
again only one process can. No lock is held and no process waits for another to answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

from cmb_jax.errors import UserError

HEARTBEAT_S = 20.0
LEASE_S = 300.0
"""Age from which the claim of a process on another machine is dead: longer than file systems cache."""
_POLL_S = 1.0


class Claims:
    """The claims of this process; a context, at whose end all are released.

    Args:
        folder: for the claims' files, on the file system of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = f"{_machine()} {os.getpid()}"
        self._held: dict[str, Path] = {}
        self._stopped = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claims:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._heart.join()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # others' claims are in it
            self._folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim a scan; False if a living process has it."""
        standing = self._standing(name)
        if standing and self._alive(standing[-1]):
            return False
        number = _number(standing[-1]) + 1 if standing else 0
        path = self._folder / f"{name}.{number}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("x") as stream:
                stream.write(self._owner)
        except (FileExistsError, FileNotFoundError):
            return False  # another process was faster, or has just taken the empty folder away
        self._held[name] = path
        return True

    def holds(self, name: str) -> bool:
        """Whether the claim still stands: a process that slept for too long may have lost it."""
        standing = self._standing(name)
        return name in self._held and bool(standing) and standing[-1] == self._held[name]

    def release(self, name: str) -> None:
        """Give a claim up, and clear away the dead ones under it."""
        own = self._held.pop(name, None)
        if own is not None:
            for path in self._standing(name):
                if _number(path) <= _number(own):
                    path.unlink(missing_ok=True)

    def wait_for_any(self, names: list[str]) -> None:
        """Come back when the claim on one of the scans has been released or is dead."""
        while all((standing := self._standing(name)) and self._alive(standing[-1]) for name in names):
            time.sleep(_POLL_S)

    def _standing(self, name: str) -> list[Path]:
        """Claims on a scan, the one that counts last."""
        found = (path for path in self._folder.glob(f"{name}.*") if path.suffix[1:].isdigit())
        return sorted((path for path in found if path.stem == name), key=_number)

    def _alive(self, claim: Path) -> bool:
        try:
            owner, touched = claim.read_text().split(), claim.stat().st_mtime
            # the time of the file system: machines need not agree with it
            with tempfile.NamedTemporaryFile(prefix=".now.", dir=self._folder) as file:
                now = os.stat(file.name).st_mtime
        except FileNotFoundError:
            return False  # released meanwhile
        if len(owner) == 2 and owner[0] == _machine() and not _runs(int(owner[1])):
            return False
        return now - touched < LEASE_S

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)


def _number(claim: Path) -> int:
    return int(claim.suffix[1:])


def _machine() -> str:
    """This machine or container, as a hash: process numbers mean something only in one and the same."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        processes = boot = ""
    return hashlib.sha256(f"{platform.node()} {boot} {processes}".encode()).hexdigest()[:16]


def _runs(process: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
