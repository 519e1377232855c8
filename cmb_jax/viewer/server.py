"""The local server of `cmb-jax view`: one page, its images, and readers' verdicts in the result's folder.

It listens on the loopback address only. Every path begins with a random token, so that no other page or user
of the machine can guess it, and requests for another host name (DNS rebinding) are refused. Nothing is served
but the paths below; the only files written are RESULT/verdicts/READER.json and, on request, the truth in
RESULT/truth.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.outside import a_text, parse_json, read_bytes, read_json_object, reading
from cmb_jax.review.verdicts import FOLDER, MAX_BYTES, check_belongs, is_reader_name, parse_verdicts
from cmb_jax.viewer.page import policy

HOST = "127.0.0.1"

WriteTruth = Callable[[Sequence[Path]], dict[str, Any]]
"""Writes truth from files of verdicts; returns what the page then shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """What the server serves."""

    page: bytes
    images: Mapping[str, bytes]
    folder: Path  # of the result
    swi_sha256: str
    detections_sha256: str
    write_truth: WriteTruth


class Refused(Exception):
    """The request is refused with this status."""

    def __init__(self, status: HTTPStatus, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class VerdictFolder:
    """Files of verdicts of one result. A save is checked, atomic, and never overwrites an unseen change."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._folder = site.folder / FOLDER
        self._lock = threading.Lock()

    def path(self, reader: str) -> Path:
        """Where a reader's verdicts are.

        Raises:
            Refused: the name is not allowed; it could be a path.
        """
        if not is_reader_name(reader):
            raise Refused(HTTPStatus.NOT_FOUND)
        return self._folder / f"{reader}.json"

    def summaries(self) -> list[dict[str, Any]]:
        """Each reader with the number of verdicts; other files are ignored."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(UserError), reading(path):
                content = read_json_object(path, limit=MAX_BYTES)
                if not is_reader_name(path.stem) or content["reader"] != path.stem:
                    continue
                found.append(
                    {
                        "reader": path.stem,
                        "saved": a_text(content["saved"], "saved", 64),
                        "marks": sum(bool(mark["verdict"]) for mark in content["marks"]),
                        "added": len(content["added"]),
                    }
                )
        return found

    def read(self, reader: str) -> bytes | None:
        """A reader's file; None if there is none yet.

        Raises:
            Refused: the name is not allowed.
        """
        path = self.path(reader)
        return read_bytes(path, limit=MAX_BYTES) if path.exists() else None

    def write(self, reader: str, content: bytes, known: str | None) -> str:
        """Save a file; returns its tag.

        Args:
            reader: whose verdicts.
            content: of the file, which must belong to this result and reader.
            known: tag of the version that this one is based on; None: there should be no file yet.

        Raises:
            Refused: the file was changed in the meantime, or the content cannot be saved; says why.
        """
        path = self.path(reader)
        name = f"verdicts of {reader}"
        try:
            verdicts = parse_verdicts(content.decode("utf-8"), name)
            check_belongs(verdicts, name, self._site.swi_sha256, self._site.detections_sha256)
        except (UserError, UnicodeDecodeError) as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        if verdicts.reader != reader:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: the file is by {verdicts.reader}")
        # the server has several threads: between comparison and writing no other request may write
        with self._lock:
            current = tag(read_bytes(path, limit=MAX_BYTES)) if path.exists() else None
            if current != known:
                raise Refused(HTTPStatus.PRECONDITION_FAILED)
            try:
                atomic_write_bytes(path, content, overwrite=True)
            except UserError as error:
                raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from error
        return tag(content)


def tag(content: bytes) -> str:
    """Entity tag of a file's content."""
    return f'"{hashlib.sha256(content).hexdigest()}"'


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cmb-jax"
    sys_version = ""

    def __init__(self, *arguments: Any, site: Site, folder: VerdictFolder, token: str) -> None:
        self.site, self.folder, self.token = site, folder, token
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Callable[[str], None]) -> None:
        try:
            work(self._checked_path())
        except Refused as refused:
            self._send(str(refused).encode(), "text/plain; charset=utf-8", status=refused.status)

    def _checked_path(self) -> str:
        """What follows the token in the address."""
        assert isinstance(self.server, ViewerServer)
        port = self.server.server_port
        # another name that resolves to this machine is how a foreign page would reach us (DNS rebinding)
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            raise Refused(HTTPStatus.FORBIDDEN)
        if self.headers.get("Origin", f"http://{self.headers['Host']}") != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN)
        start, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        # a comparison in constant time: how long it takes must not tell how much of a guess was right
        if not secrets.compare_digest(start.encode(), self.token.encode()):
            raise Refused(HTTPStatus.NOT_FOUND)
        return rest

    def _get(self, path: str) -> None:
        kind, _, name = path.partition("/")
        if path == "":
            self._send(self.site.page, "text/html; charset=utf-8")
        elif path == "verdicts":
            self._send(json.dumps(self.folder.summaries()).encode(), "application/json")
        elif kind == "verdicts":
            content = self.folder.read(name)
            if content is None:
                raise Refused(HTTPStatus.NO_CONTENT)
            self._send(content, "application/json", ETag=tag(content))
        elif kind == "images" and name in self.site.images:
            self._send(self.site.images[name], "application/octet-stream")
        else:
            raise Refused(HTTPStatus.NOT_FOUND)

    def _put(self, path: str) -> None:
        kind, _, name = path.partition("/")
        content = self._body()
        if kind != "verdicts":
            raise Refused(HTTPStatus.NOT_FOUND)
        known = self.headers.get("If-Match")
        if known is None and self.headers.get("If-None-Match") != "*":
            raise Refused(HTTPStatus.PRECONDITION_REQUIRED)
        self._send(b"", "text/plain", ETag=self.folder.write(name, content, known))

    def _post(self, path: str) -> None:
        content = self._body()
        if path != "truth":
            raise Refused(HTTPStatus.NOT_FOUND)
        try:
            readers = parse_json(content)["readers"]
            files = [self.folder.path(str(reader)) for reader in readers]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "not a list of readers") from error
        if not files:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Choose at least one reader.")
        try:
            summary = self.site.write_truth(files)
        except UserError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        self._send(json.dumps(summary).encode(), "application/json")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > MAX_BYTES:
            self.close_connection = True  # the body stays unread and would be taken for the next request
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return self.rfile.read(int(length))

    def _send(self, content: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", f"{policy()}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the address is a secret."""


class ViewerServer(http.server.ThreadingHTTPServer):
    """The server, which listens from the start; `serve_forever` answers.

    Args:
        site: what is served.
        port: 0 for any free port.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0) -> None:
        self._token = secrets.token_urlsafe(24)
        handler = functools.partial(_Handler, site=site, folder=VerdictFolder(site), token=self._token)
        super().__init__((HOST, port), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close the page in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """URL for a browser on this machine."""
        return f"http://{HOST}:{self.server_port}/{self._token}/"
