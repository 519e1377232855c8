"""The entry point of the containers, with a stand-in for the command; the images are not built here."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path):
    """Runs the entry point; gives what `cmb-jax` was called with, and its cache folder."""
    command = tmp_path / "bin" / "cmb-jax"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@"\necho "${CMB_JAX_CACHE:-unset}"\n')
    command.chmod(0o755)

    def call(*arguments, **environment):
        done = subprocess.run(
            ["/bin/sh", str(ROOT / "containers/entrypoint.sh"), *arguments],
            env={"PATH": f"{command.parent}:/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return call


def test_folders_mean_the_bids_app_and_words_a_command(run):
    assert run("/data", "/out", "participant")[0] == "bids /data /out participant"
    assert run("./study", "out", "group")[0] == "bids ./study out group"
    assert run("predict", "-i", "/data/swi.nii.gz", "-o", "/out/x")[0].startswith("predict -i /data")
    assert run("--version")[0] == "--version"
    assert run()[0] == ""  # cmb-jax alone: its help


def test_without_a_home_caches_go_to_a_folder_of_the_run(run, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    assert run("help", HOME=str(home))[1] == "unset"
    own = run("help")[1]
    assert Path(own).is_dir()
    assert run("help", HOME="/proc/nowhere")[1] not in ("unset", own)
    assert run("help", CMB_JAX_CACHE="/kept")[1] == "/kept"


def test_recipes_copy_what_is_there_and_run_as_no_root():
    docker = (ROOT / "containers/Dockerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+) ", docker, re.MULTILINE):
        assert (ROOT / source).exists(), source
    assert re.search(r"^USER [1-9]\d*$", docker, re.MULTILINE)
    # else Podman takes the working directory, and caches lie among the derivatives
    assert re.search(r"^ENV HOME=/nonexistent", docker, re.MULTILINE)
    apptainer = (ROOT / "containers/cmb-jax.def").read_text()
    files = re.search(r"%files\n(.*?)\n\n", apptainer, re.DOTALL)[1].split("\n")
    for line in files:
        assert (ROOT / line.split()[0]).exists(), line
    # both install the same
    assert ".[all" in docker
    assert ".[all" in apptainer
