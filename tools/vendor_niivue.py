"""Put NiiVue into the package: `python tools/vendor_niivue.py 0.69.0`.

Takes the published package with `npm pack` and copies its one-file browser build (dist/niivue.umd.js,
minified by its authors) byte for byte. Writes beside it vendor/niivue.json (version, SHA-256 of the file and
of the package) and vendor/LICENSES.txt (NiiVue's license and those of what its build contains). Needs npm and
a network; the package itself needs neither.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "cmb_jax" / "viewer" / "vendor"
NIIVUE = "@niivue/niivue"
# NiiVue's package holds no license file; this is the text in its repository, which its package.json names.
NIIVUE_LICENSE = """\
BSD 2-Clause License

Copyright (c) 2021, Niivue
All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this
   list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE
FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""


def packed(name: str, folder: Path) -> Path:
    """The package `name` (with @version or @range) as npm hands it out."""
    done = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True, text=True
    )
    return folder / done.stdout.split()[-1]


def read_member(package: Path, member: str) -> bytes:
    with tarfile.open(package) as archive:
        stream = archive.extractfile(f"package/{member}")
        assert stream is not None, member
        return stream.read()


def license_text(package: Path) -> str:
    with tarfile.open(package) as archive:
        names = [each for each in archive.getnames() if Path(each).name.lower().startswith("licen")]
    name = min(names, key=len).removeprefix("package/")
    return read_member(package, name).decode().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="of NiiVue, such as 0.69.0")
    version = parser.parse_args().version
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package = packed(f"{NIIVUE}@{version}", folder)
        build = read_member(package, "dist/niivue.umd.js")
        about = json.loads(read_member(package, "package.json"))
        assert (about["version"], about["license"]) == (version, "BSD-2-Clause"), about
        licenses = [f"{NIIVUE} {version}\n\n{NIIVUE_LICENSE}"]
        pending, seen = dict(about["dependencies"]), set()
        while pending:
            name, wanted = pending.popitem()
            if name in seen:
                continue
            seen.add(name)
            part = packed(f"{name}@{wanted}", folder)
            its = json.loads(read_member(part, "package.json"))
            licenses.append(f"{name} {its['version']} ({its.get('license')})\n\n{license_text(part)}\n")
            pending |= its.get("dependencies", {})
        record = {
            "package": NIIVUE,
            "version": version,
            "license": about["license"],
            "package_sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
            "file": "niivue.umd.js",
            "sha256": hashlib.sha256(build).hexdigest(),
            "bytes": len(build),
        }
    VENDOR.mkdir(parents=True, exist_ok=True)
    (VENDOR / "niivue.umd.js").write_bytes(build)
    (VENDOR / "niivue.json").write_text(json.dumps(record, indent=1) + "\n")
    rule = "\n" + "-" * 78 + "\n\n"
    (VENDOR / "LICENSES.txt").write_text(rule.join([licenses[0], *sorted(licenses[1:])]))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
