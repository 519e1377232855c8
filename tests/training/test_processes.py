"""Several processes of one run over loopback: the same losses, one that is killed, one that is stopped."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cmb_jax.errors import UserError
from cmb_jax.training import distributed
from cmb_jax.training.distributed import LOST_PROCESS_CODE, STOPPED_CODE, start_processes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1200  # seconds that anything may take on a busy machine


@pytest.mark.parametrize(
    ("coordinator", "count", "number", "message"),
    [
        ("node1:7777", "2", None, "need all of"),
        (None, "2", 0, "need all of"),
        ("node1:7777", "2", 2, "counted from 0 to N - 1"),
        ("node1:7777", "two", 0, "counted from 0 to N - 1"),
        ("node1", "2", 0, "give host and port"),
    ],
)
def test_settings_that_do_not_fit_are_refused(coordinator, count, number, message):
    with pytest.raises(UserError, match=message):
        start_processes(coordinator, count, number)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # in the batch script, not under srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, False),
    ],
)
def test_launchers_are_told_by_the_environment(monkeypatch, environment, expected):
    begun = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda **how: begun.append(how))
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start_processes(None, None, None)
    assert bool(begun) == expected


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "XLA_"))}
    return {**kept, **changes}


def by_flags(workdir, count, mesh):
    """As launch/over_ssh.sh starts them."""
    port = free_port()
    for number in range(count):
        flags = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process", str(number)]
        yield begin(workdir, number, ["--mesh", mesh, *flags], environment())


def by_slurm(workdir, count, mesh):
    """As srun starts them: nothing is given but what it says in the environment."""
    port = str(free_port())
    for number in range(count):
        told = {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": str(count),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "JAX_COORDINATOR_PORT": port,
        }
        yield begin(workdir, number, ["--mesh", mesh], environment(**told))


def begin(workdir, number, flags, variables):
    log = workdir.parent / f"{workdir.name}-{number}.log"
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(workdir)]
    steps = ["--steps", "8", "--checkpoint-every", "2"]
    with log.open("a") as stream:
        return subprocess.Popen([*command, *steps, *flags], stdout=stream, stderr=stream, env=variables)


def losses(workdir):
    """By step; of a step that was done twice the later."""
    path = workdir / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("skipped")]
    return {int(row["step"]): float(row["loss"]) for row in rows}


def wait_for_step(workdir, step, running):
    until = time.monotonic() + PATIENCE
    while max(losses(workdir), default=0) < step:
        if time.monotonic() > until or any(process.poll() is not None for process in running):
            for process in running:
                process.kill()
            raise AssertionError(said(workdir))
        time.sleep(0.2)


def said(workdir):
    return "\n".join(path.read_text() for path in sorted(workdir.parent.glob(f"{workdir.name}-*.log")))


def codes(running, patience=PATIENCE):
    try:
        return [process.wait(patience) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "count", "mesh"), [(by_flags, 2, "2x1"), (by_slurm, 4, "2x2")])
def test_several_processes_train_as_one_does(tmp_path, launch, count, mesh):
    """One is killed, and the others stop; all are started again; one is stopped, and all stop and save."""
    alone = begin(tmp_path / "alone", 0, ["--mesh", mesh, "--devices", str(count)], environment())
    assert codes([alone]) == [0], said(tmp_path / "alone")
    workdir = tmp_path / "together"

    running = list(launch(workdir, count, mesh))
    wait_for_step(workdir, 3, running)
    running[-1].kill()
    tick = time.monotonic()
    left = codes(running[:-1])
    assert time.monotonic() - tick < 60
    # Where JAX notices first it ends the process itself, with a message of its own.
    assert set(left) <= {LOST_PROCESS_CODE, -signal.SIGABRT}, said(workdir)
    messages = said(workdir)
    assert messages.count(f"of {count} lost another one") == left.count(LOST_PROCESS_CODE), messages
    assert -signal.SIGABRT not in left or "Terminating process" in messages, messages

    before = max(losses(workdir))
    running = list(launch(workdir, count, mesh))
    wait_for_step(workdir, before + 1, running)
    running[-1].send_signal(signal.SIGTERM)
    assert set(codes(running)) <= {STOPPED_CODE, 0}, said(workdir)  # 0: the last step came first
    assert "continuing from step" in said(workdir)

    assert set(codes(list(launch(workdir, count, mesh)))) == {0}, said(workdir)
    expected, found = losses(tmp_path / "alone"), losses(workdir)
    assert set(found) == set(expected) == set(range(1, 9))
    for step, loss in expected.items():
        # in single precision, rounding may change which anchors are mined once parameters have moved
        assert found[step] == pytest.approx(loss, rel=1e-5 if step <= 2 else 1e-3)


def stand_in(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_ssh_recipe_tells_each_process_its_number(tmp_path):
    """With ssh and Python replaced by stand-ins that say what they were given."""
    ssh = stand_in(tmp_path / "ssh", 'echo "at $1"; bash -c "$2"')
    python = stand_in(
        tmp_path / "python", "printf '<%s>' \"$@\"; echo\ncase \"$*\" in *'--process 1') exit 75;; esac"
    )
    command = [ROOT / "launch" / "over_ssh.sh", "me@node1", "node2", "--", "--config", "with space.py"]
    done = subprocess.run(
        command, env=environment(SSH=ssh, PYTHON=python, DIR=str(ROOT)), capture_output=True, text=True
    )
    assert done.returncode == 75
    given = "<train.py><--config><with space.py><--coordinator><node1:7777><--processes><2><--process>"
    assert f"[me@node1] {given}<0>" in done.stdout
    assert f"[node2] {given}<1>" in done.stdout
    usage = subprocess.run([command[0], "node1"], capture_output=True, text=True)
    assert usage.returncode == 2
    assert "usage" in usage.stderr


def test_the_slurm_recipe_queues_itself_again_when_it_was_stopped(tmp_path):
    calls = tmp_path / "calls"
    stand_in(tmp_path / "srun", f'echo "srun $*" >> {calls}; exit "$CODE"')
    stand_in(tmp_path / "scontrol", f'echo "scontrol $*" >> {calls}')
    for code, again in ((143, True), (75, True), (2, False), (0, False)):
        calls.unlink(missing_ok=True)
        path = f"{tmp_path}:{os.environ['PATH']}"
        variables = environment(PATH=path, CODE=str(code), SLURM_JOB_ID="7")
        script = ["bash", str(ROOT / "launch" / "slurm.sbatch"), "--config", "c.py"]
        assert subprocess.run(script, env=variables).returncode == code
        said = calls.read_text()
        assert "python train.py --config c.py" in said
        assert ("scontrol requeue 7" in said) == again


def test_the_jobset_recipe_restarts_all_pods_together():
    """Read by a YAML parser; the fields are those of JobSet's v1alpha2."""
    recipe = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    assert (recipe["apiVersion"], recipe["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert recipe["spec"]["failurePolicy"]["maxRestarts"] > 0
    (job,) = recipe["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert pod["containers"][0]["command"][:2] == ["python", "train.py"]
