"""The local server: who may ask, what is answered, what is written."""

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from cmb_jax.cli.view import open_server
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.nifti import write_volume

ALL = {"detections.csv", "detections.json", "labels.nii.gz", "viewer.html"}


def ask(server, method, path="", body=None, token=None, **headers):
    """Status, headers, content; the token is put in front of the path unless another is given."""
    address = urlsplit(server.address)
    start = address.path if token is None else f"/{token}/"
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request(
        method, start + path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def verdicts(made, reader="AB", verdict="microbleed", **changes):
    row = made.rows[0]
    content = {
        "format": "cmb-jax verdicts",
        "format_version": 1,
        "swi_sha256": "ab" * 32,
        "detections_sha256": sha256_file(made.folder / "detections.csv"),
        "reader": reader,
        "saved": "2026-01-01T00:00:00Z",
        "coordinates": "RAS mm",
        "marks": [{"candidate": row.id, "verdict": verdict, "position_mm": [row.x_mm, row.y_mm, row.z_mm]}],
        "added": [],
    }
    return json.dumps(content | changes).encode()


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_this_machine_and_only_with_the_token(served):
    assert served.server_address[0] == "127.0.0.1"
    assert ask(served, "GET")[0] == 200
    for token in ("", "x", "x" * 32, served.address.rsplit("/", 2)[1][:-1]):
        assert ask(served, "GET", token=token)[0] == 404
        assert ask(served, "PUT", "verdicts/AB", b"{}", token=token, If_None_Match="*")[0] == 404
    assert ask(served, "GET", Host="evil.example")[0] == 403
    assert ask(served, "PUT", "verdicts/AB", b"{}", Origin="http://evil.example", If_None_Match="*")[0] == 403


def test_tokens_differ(made):
    first, second = open_server(made.folder), open_server(made.folder)
    try:
        assert first.address.rsplit("/", 2)[1] != second.address.rsplit("/", 2)[1]
        assert len(first.address.rsplit("/", 2)[1]) >= 32  # 24 random bytes
    finally:
        first.server_close()
        second.server_close()


def test_nothing_else_is_answered(served, made):
    (made.folder / "verdicts").mkdir()
    (made.folder / "secret.json").write_text("{}")
    for path in ("detections.csv", "../detections.csv", "verdicts/../secret", "verdicts/..%2fsecret",
                 "images/../detections.csv", "images/other", "truth", "verdicts/a/b"):  # fmt: skip
        assert ask(served, "GET", path)[0] == 404, path
    assert ask(served, "GET", "verdicts/AB")[0] == 204
    for method in ("DELETE", "HEAD", "OPTIONS"):
        assert ask(served, method)[0] == 501


def test_headers(served):
    status, headers, content = ask(served, "GET")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"  # the address is a secret
    assert headers["Cache-Control"] == "no-store"
    assert b'id="image-' not in content  # images come by themselves
    status, _, content = ask(served, "GET", "images/swi")
    assert (status, content[:2]) == (200, b"\x1f\x8b")


def test_saves_whole_files_and_replaces_only_what_was_read(served, made):
    status, headers, _ = ask(served, "PUT", "verdicts/AB", verdicts(made), If_None_Match="*")
    assert status == 200
    assert (made.folder / "verdicts" / "AB.json").read_bytes() == verdicts(made)
    first = headers["ETag"]
    assert ask(served, "PUT", "verdicts/AB", verdicts(made, verdict="mimic"), If_None_Match="*")[0] == 412
    assert ask(served, "PUT", "verdicts/AB", verdicts(made))[0] == 428
    assert ask(served, "PUT", "verdicts/AB", verdicts(made, verdict="mimic"), If_Match=first)[0] == 200
    assert ask(served, "PUT", "verdicts/AB", verdicts(made), If_Match=first)[0] == 412
    status, headers, content = ask(served, "GET", "verdicts/AB")
    assert json.loads(content)["marks"][0]["verdict"] == "mimic"
    assert headers["ETag"] not in (None, first)
    assert files_in(made.folder) == ALL | {"verdicts/AB.json"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"swi_sha256": "cd" * 32}, "was read on another scan"),
        ({"detections_sha256": "cd" * 32}, "was read on another run"),
        ({"reader": "CD"}, "the file is by CD"),
        ({"reader": "../x"}, "its reader is"),
        ({"marks": [{"candidate": 1, "verdict": "yes", "position_mm": [0, 0, 0]}]}, "verdict is 'yes'"),
        ({"format": "x"}, "holds no verdicts"),
    ],
)
def test_refuses_what_import_would_not_read(served, made, changes, told):
    status, _, content = ask(served, "PUT", "verdicts/AB", verdicts(made, **changes), If_None_Match="*")
    assert (status, told in content.decode()) == (422, True), content
    assert files_in(made.folder) == ALL


@pytest.mark.parametrize("name", ["..", ".hidden", "a%2Fb", "a.b", "a" * 40, "-a", "%00", "%C3%A4"])
def test_readers_names_are_no_paths(served, made, name):
    assert ask(served, "PUT", f"verdicts/{name}", verdicts(made), If_None_Match="*")[0] == 404
    assert files_in(made.folder) == ALL


def test_limits(served, made):
    assert ask(served, "PUT", "verdicts/AB", b"x", If_None_Match="*", Content_Length="5000000")[0] == 413
    assert ask(served, "POST", "truth", b"[]")[0] == 400
    assert ask(served, "POST", "truth", b'{"readers": []}')[0] == 422
    assert ask(served, "POST", "truth", b'{"readers": ["../x"]}')[0] == 404
    assert ask(served, "POST", "truth", b'{"readers": ["nobody"]}')[0] == 422
    assert files_in(made.folder) == ALL


def test_lists_readers_and_passes_over_other_files(served, made):
    ask(served, "PUT", "verdicts/AB", verdicts(made), If_None_Match="*")
    (made.folder / "verdicts" / "notes.json").write_text("[]")
    (made.folder / "verdicts" / "XY.json").write_text("{")
    (listed,) = json.loads(ask(served, "GET", "verdicts")[2])
    assert listed == {"reader": "AB", "saved": "2026-01-01T00:00:00Z", "marks": 1, "added": 0}


def test_images_gone(made, tmp_path):
    made.page.unlink()
    with pytest.raises(UserError, match=r"holds no viewer.html with the images; give them: --swi FILE"):
        open_server(made.folder)
    write_volume(tmp_path / "other.nii.gz", made.scan.swi.data, made.scan.swi)
    with pytest.raises(UserError, match="is not the swi image of"):
        open_server(made.folder, tmp_path / "other.nii.gz")
    made.page.write_text("<html>")
    with pytest.raises(UserError, match=r"viewer.html: cannot be read .*give the images"):
        open_server(made.folder)


def test_images_given(made, tmp_path):
    """The image that was searched, told by its hash, takes the place of the page's."""
    made.page.unlink()
    path = tmp_path / "sub-07_ses-1_swi.nii.gz"
    write_volume(path, made.scan.swi.data, made.scan.swi)
    record = {"inputs": [{"role": "swi", "file": path.name, "sha256": sha256_file(path)}]}
    (made.folder / "detections.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was made without a phase image"):
        open_server(made.folder, path, path)
    open_server(made.folder, path).server_close()
    with pytest.raises(UserError, match="--phase goes with --swi"):
        open_server(made.folder, None, path)


def test_port_taken(made):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot be listened on"):
            open_server(made.folder, port=port)
