"""What is said about the devices of a machine."""

import subprocess
import sys

import pytest

from cmb_jax import devices


def test_the_processor_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.device_line().startswith("computing on the processor (")


def test_an_accelerator_that_jax_does_not_see_is_named(tmp_path, monkeypatch):
    assert devices.idle_accelerators(tmp_path) == {}
    trace = tmp_path / "proc/driver/nvidia/version"
    trace.parent.mkdir(parents=True)
    trace.write_text("NVRM version")
    idle = devices.idle_accelerators(tmp_path)
    assert list(idle) == ["cuda12"]
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(devices, "idle_accelerators", lambda: idle)
    assert "NVIDIA GPU of this machine lies idle" in devices.device_line()
    assert "pip install 'cmb-jax[cuda12]'" in devices.device_line()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # asked for: nothing lies idle
    assert "idle" not in devices.device_line()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_refused_in_a_line(platform):
    code = "from cmb_jax.devices import device_line; device_line()"
    environment = {"JAX_PLATFORMS": platform, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        pytest.skip(f"this machine has a {platform}")
    assert "UserError: JAX cannot use" in done.stderr
    assert "pip install 'cmb-jax[" in done.stderr
