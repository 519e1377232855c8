"""`ablate` compares variants of the detector, `plan` predicts what a training costs, `benchmark` times."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cmb_jax
from cmb_jax.config import Config, Precision
from cmb_jax.config_load import config_from_file
from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.research.plan import StepPlan

CHECKOUT = Path(cmb_jax.__file__).resolve().parent.parent

# A program that is compiled only to be inspected needs no fast machine code, which takes minutes to make.
_QUICK_COMPILATION = "--xla_backend_optimization_level=0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Train a grid of variants and seeds and compare them; run again to go on."""

    config: Path
    """file with get_grid(), such as configs/ablation.py."""
    workdir: Path
    """a folder for each run; tables; ablation.html."""
    validation: Path | None = None
    """folder of prepared subjects (seed-*) to choose thresholds by; default: simulated ones."""
    test: Path | None = None
    """folder of prepared subjects (seed-*) to compare on; default: simulated ones."""
    train: bool = True
    """train what is not finished; --no-train: tables of the finished runs alone."""
    sensitivity: float | None = None
    """at which false positives are compared; default: as get_grid() says."""
    out: Path | None = None
    """folder for tables and page; default: --workdir."""
    samples: int = 2000
    """bootstrap resamples."""


def ablate(options: AblateOptions) -> None:
    """Train what is not finished, compare, write tables and page."""
    from absl import flags

    from cmb_jax.devices import keep_freed_memory
    from cmb_jax.research.ablation import run_study
    from cmb_jax.research.runs import grid_from_file

    keep_freed_memory()
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    grid = grid_from_file(options.config)
    if options.sensitivity is not None:
        if not 0 < options.sensitivity <= 1:
            raise UserError(f"--sensitivity {options.sensitivity:g}: give a number above 0, at most 1")
        grid = dataclasses.replace(grid, matched_sensitivity=options.sensitivity)
    run_study(
        grid,
        options.workdir,
        validation=options.validation,
        test=options.test,
        training=options.train,
        samples=options.samples,
        out=options.out,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Plan a training: compile its step for a mesh of devices and predict memory, messages and time."""

    mesh: str = "1x1"
    """devices that share the batch x devices that share the depth of each patch, such as 32x4."""
    hardware: Literal["v5e", "v5p", "h100", "cpu"] = "cpu"
    """TPU v5e, TPU v5p, H100, or this machine's processor."""
    config: Path | None = None
    """configuration file, as for `cmb-jax train`; default: the small detector."""
    batch_size: int | None = None
    """patches for each of the devices that share the batch; default: the configuration's."""
    precision: Precision | None = None
    """type of maps and products; default: the configuration's."""
    remat: bool = False
    """compute the inside of each block again in the backward pass."""
    accumulate: int = 1
    """parts that the batch is computed in."""
    measure: bool = False
    """also run the step here (with --mesh 1x1 --hardware cpu)."""
    json: Path | None = None
    """file for the plan with every message."""
    overwrite: bool = False
    """replace the file if it exists."""


def plan(options: PlanOptions) -> None:
    """Print the plan; write it as JSON if asked to."""
    shape, out = mesh_shape(options.mesh), options.json
    if options.measure and (options.hardware != "cpu" or shape != (1, 1)):
        raise UserError("--measure runs the step on this machine: use it with --mesh 1x1 --hardware cpu")
    if out is not None and out.exists() and not options.overwrite:
        raise UserError(f"{out}: exists already; choose another name or give --overwrite")
    if options.accumulate < 1 or (options.batch_size is not None and options.batch_size < 1):
        raise UserError("--accumulate and --batch-size must be 1 or more")
    # everything above fails before JAX is imported, which below must find its devices set
    start = Config() if options.config is None else config_from_file(options.config)
    from cmb_jax.devices import keep_freed_memory
    from cmb_jax.io.atomic import atomic_write_text
    from cmb_jax.research.plan import BANDWIDTH_SHARE, CPU, LATENCY_S, describe, measure_step, plan_step

    model = dataclasses.replace(start.model, remat=options.remat or start.model.remat)
    wanted = dataclasses.replace(
        start,
        model=model,
        data=dataclasses.replace(start.data, batch_size=options.batch_size or start.data.batch_size),
        train=dataclasses.replace(
            start.train,
            precision=options.precision or start.train.precision,
            accumulate=options.accumulate,
            mesh_data=shape[0],
            mesh_space=shape[1],
        ),
    )
    simulate_devices(shape[0] * shape[1], quick=options.hardware != CPU)
    keep_freed_memory()  # as `cmb-jax train` does: its steps wait for no new pages
    step = plan_step(wanted, shape, options.hardware)
    print(describe(step))
    print(
        f"assumed: convolutions reach {step.hardware.flops_share:.0%} of the peak "
        f"({step.hardware.flops(wanted.train.precision) / 1e12:.3g} TFLOP/s), memory and links "
        f"{BANDWIDTH_SHARE:.0%} of {step.hardware.memory_bandwidth / 1e9:.0f} and "
        f"{step.hardware.link_bandwidth / 1e9:.0f} GB/s, {1e6 * LATENCY_S:.0f} us a message, "
        "no message hidden (docs/planning.md)"
    )
    measured = measure_step(wanted) if options.measure else None
    if measured is not None:
        print(f"measured: {1e3 * measured:.2f} ms, predicted {step.seconds.total / measured:.2f} times that")
    if out is not None:
        text = json.dumps(record(step, measured), indent=2) + "\n"
        atomic_write_text(out, text, overwrite=options.overwrite)


def mesh_shape(text: str) -> tuple[int, int]:
    """ "32x4" to (32, 4)."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UserError(
            f"--mesh {text}: give devices that share the batch x devices that share the depth, as in 32x4"
        )
    return int(found[1]), int(found[2])


def simulate_devices(count: int, *, quick: bool) -> None:
    """Give this process that many CPU devices; called before JAX is initialized."""
    import jax

    if quick:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK_COMPILATION}"
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has begun: `make_mesh` says if its devices are too few
        return


def record(plan: StepPlan, measured: float | None) -> dict[str, Any]:
    """The plan as JSON values."""
    from cmb_jax.research.plan import BANDWIDTH_SHARE, LATENCY_S

    return {
        "name": plan.config.name,
        "mesh": plan.mesh,
        "hardware": dataclasses.asdict(plan.hardware),
        "batch_size": plan.config.data.batch_size,
        "patch_shape": plan.config.data.patch_shape,
        "precision": plan.config.train.precision,
        "remat": plan.config.model.remat,
        "accumulate": plan.config.train.accumulate,
        "device": {
            "flops": plan.costs.flops,
            "bytes": plan.costs.bytes,
            "memory": dataclasses.asdict(plan.memory),
            "collectives": [dataclasses.asdict(message) for message in plan.costs.collectives],
            "loops_of_unknown_length": plan.costs.unknown_loops,
        },
        "model_flops": plan.model_flops,
        "predicted": {
            "seconds": plan.seconds.total,
            **dataclasses.asdict(plan.seconds),
            "weak_scaling": plan.weak_scaling,
            "utilisation": plan.utilisation,
        },
        "assumed": {
            "bandwidth_share": BANDWIDTH_SHARE,
            "message_seconds": LATENCY_S,
        },
        "measured_seconds": measured,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time this package against PyTorch, MONAI and NumPy on the same cores (source checkout only)."""

    case: tuple[str, ...] = ()
    """names of cases, such as train-small; default: all."""
    json: Path | None = None
    """file for the rows with facts about the machine."""
    repeats: int = 9
    """of each side of a case; they take turns."""
    scaling: bool = False
    """also measure time and memory against volume size and number of candidates."""
    overwrite: bool = False
    """replace the file if it exists."""
    keep_memory: bool | None = None
    """whether both sides' allocator keeps freed memory; default: in training, as `cmb-jax train` does."""
    self_test: bool = False
    """instead compare the convolution kernels of every instruction set with sums in float64."""


def benchmark(options: BenchmarkOptions) -> None:
    """Run the comparison in a process of its own and exit with its code.

    With `self_test`, compare the CPU kernels with sums in float64 instead; the exit code is 1 if they differ.
    """
    if options.self_test:
        from cmb_jax.ops import self_test as kernels_self_test

        tests = kernels_self_test.run()
        print(kernels_self_test.table(tests))
        if not all(test.passed for test in tests):
            sys.exit(1)
        return
    if not (CHECKOUT / "benchmarks" / "__main__.py").is_file():
        raise UserError(
            "the comparison with other frameworks is in the source checkout only (folder benchmarks); "
            "clone the repository and install it with: pip install -e '.[bench]'"
        )
    given = ["--repeats", str(options.repeats)]
    given += ["--case", *options.case] if options.case else []
    given += ["--json", str(options.json.absolute())] if options.json is not None else []
    given += ["--scaling"] if options.scaling else []
    given += ["--overwrite"] if options.overwrite else []
    if options.keep_memory is not None:
        given += ["--keep-memory" if options.keep_memory else "--no-keep-memory"]
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "benchmarks", *given], cwd=CHECKOUT, check=False).returncode
    if code:
        sys.exit(code)
