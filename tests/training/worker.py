"""A training process of its own, to be killed, stopped, and run several at a time: see --help.

It is what train.py is but for the data, which takes a moment to make here: the tiny detector on spheres.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, help="the run's folder; the subject lies in SUBJECT beside it")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpoint-every", type=int, default=3)
    parser.add_argument("--mesh", default="1x1", help="devices that share the batch x the depth")
    parser.add_argument("--devices", type=int, default=1, help="simulated devices of this process")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes")
    parser.add_argument("--process", type=int)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    chosen = arguments(given)
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={chosen.devices} --xla_backend_optimization_level=0"
        " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("NPROC", "32")

    import jax

    from cmb_jax.cli.common import run_cli
    from cmb_jax.data.subjects import StoredSubject
    from cmb_jax.training.checkpoint import fingerprint
    from cmb_jax.training.detector import train_detector
    from cmb_jax.training.distributed import (
        exit_without_barrier,
        is_primary,
        primary_first,
        start_processes,
        wait_for_all,
    )
    from tests.training.spheres import CONFIG, store_spheres

    def run() -> None:
        start_processes(chosen.coordinator, chosen.processes, chosen.process)
        jax.config.update("jax_compilation_cache_dir", str(chosen.workdir.parent / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        folder = chosen.workdir.parent / "subject"

        def make() -> StoredSubject:
            return StoredSubject(folder=folder) if folder.exists() else store_spheres(folder)

        subject = primary_first(make, "subject")
        data, space = map(int, chosen.mesh.split("x"))
        settings = dataclasses.replace(
            CONFIG.train,
            steps=chosen.steps,
            checkpoint_every=chosen.checkpoint_every,
            log_every=1,
            mesh_data=data,
            mesh_space=space,
        )
        chosen.workdir.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(CONFIG, train=settings)
        state = train_detector(config, chosen.workdir, (subject,))
        if is_primary():
            print("final", fingerprint(state), flush=True)
        wait_for_all("the end")

    with exit_without_barrier():
        run_cli(run)


if __name__ == "__main__":
    main()
