"""The training loop of any network: evaluate, save, next batch, step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cmb_jax.config import TrainConfig
from cmb_jax.errors import UserError
from cmb_jax.training.checkpoint import QUALITY, Checkpoints
from cmb_jax.training.distributed import RunStopped, StopRequest, broadcast_from_primary
from cmb_jax.training.monitor import Pace, StepProfile, Stopwatch, TrainLog, peak_gflops, peak_mb
from cmb_jax.training.state import StepMetrics, TrainState, learning_rate

MAX_SKIPPED_IN_A_ROW = 10

Evaluate = Callable[[Any], Mapping[str, float]]
"""Parameters (pure dict) -> named values, `quality` among them: the larger, the better."""

Step = jax.stages.Wrapped
"""Jitted (TrainState, batch) -> (TrainState, StepMetrics); it can be lowered and exported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Successive steps with batches of one shape, which one compiled step takes."""

    steps: range
    step: Step
    batches: Callable[[int], Iterator[Any]]  # batches on the devices, endless, from a step on
    voxels: int  # of a batch
    gflop: float | None  # 1e9 operations that the model needs per step; None: not known


def train_loop(
    config: TrainConfig,
    workdir: Path,
    state: TrainState,
    mesh: Mesh,
    stages: Sequence[Stage],
    evaluate: Evaluate | None = None,
) -> TrainState:
    """Train from the newest checkpoint in `workdir`, else from a fresh state.

    Args:
      config: numbers of steps, schedule, intervals.
      workdir: checkpoints and logs go here.
      state: where a new run begins; its buffers are donated.
      mesh: where the state lies.
      stages: one after another, all steps of the run together.
      evaluate: called with the averaged parameters every `evaluate_every` steps and at the end.

    Raises:
      UserError: ten steps in a row were not finite, or no checkpoint can be read.
      RunStopped: SIGTERM came; the state is saved.
    """
    # Simulated devices share one pool of threads: two steps at once may wait for each other for ever.
    simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    with Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints, StopRequest() as stop:
        state = checkpoints.restore_newest_whole(state, mesh) or state
        first = int(state.step)
        rate = learning_rate(config)
        profile = StepProfile(workdir / "profile", first, config.profile_steps)
        with TrainLog(workdir, config.steps, first) as log, profile:
            if first:
                log.message(f"continuing from step {first}")
            metrics: StepMetrics | None = None
            stage: Stage | None = None
            stopwatch = Stopwatch()
            # One round more than there are steps: each begins by evaluating and saving what came before it.
            for step in range(first, config.steps + 1):
                last = step == config.steps
                if step > first:
                    due = last or step % config.evaluate_every == 0
                    values = _evaluate(evaluate, state, stop) if due and evaluate is not None else {}
                    if values:
                        log.scalars(step, {f"validation/{name}": value for name, value in values.items()})
                        log.message(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
                        stopwatch.restart()
                    stopping = stop.reached(step)
                    if last or stopping or values or step % config.checkpoint_every == 0:
                        checkpoints.save(state, values.get(QUALITY))
                    if stopping:
                        checkpoints.wait()
                        raise RunStopped(step)
                if last:
                    break
                if stage is None or step not in stage.steps:
                    stage = next(each for each in stages if step in each.steps)
                    batches = stage.batches(step)
                    if stage.gflop is not None:
                        peak = peak_gflops(list(mesh.devices.flat), config.precision)
                with stopwatch.fetching(metrics):
                    batch = next(batches)
                before = metrics
                with profile.step(step):
                    state, metrics = stage.step(state, batch)
                # one step ahead of the devices is enough, and two batches are all that lie on them
                jax.block_until_ready(metrics if simulated else before)
                profile.done(step, metrics)
                log.advance()
                if (step + 1) % config.log_every == 0:
                    # waiting for the device is done only now and then, and before the clock is read
                    jax.block_until_ready(metrics)
                    pace = stopwatch.read()
                    taken = step - int(state.skipped)
                    values = step_values(metrics, state, stage.voxels, pace, float(rate(taken)))
                    if stage.gflop is not None:
                        # model FLOP utilization (Chowdhery et al. 2022, appendix B), 0 to 1: what the model
                        # needs, without what rematerialization or accumulation repeat, over what there is
                        values["mfu"] = stage.gflop * pace.steps_per_s / peak
                    log.scalars(step + 1, values)
                    check_divergence(state)
    return state


def _evaluate(evaluate: Evaluate, state: TrainState, stop: StopRequest) -> Mapping[str, float]:
    """What the evaluation says, in every process; nothing if a request to stop ended it."""
    values: Mapping[str, float] = {}
    with stop.interrupting():
        values = broadcast_from_primary(evaluate(jax.device_get(state.ema)))
    return values


def step_values(
    metrics: StepMetrics, state: TrainState, voxels: int, pace: Pace, rate: float
) -> dict[str, float]:
    """What the log says of a step, by column (docs/planning.md); `rate` is its learning rate."""
    terms = {
        field.name: float(getattr(metrics.terms, field.name)) for field in dataclasses.fields(metrics.terms)
    }
    return {
        "loss": terms.pop("total"),
        **terms,
        "gradient_norm": float(metrics.gradient_norm),
        "learning_rate": rate,
        "steps/s": pace.steps_per_s,
        "voxels/s": pace.steps_per_s * voxels,
        "input_wait": pace.input_wait,
        "memory_mb": peak_mb(),
        "skipped": float(state.skipped),
    }


def check_divergence(state: TrainState) -> None:
    """End a run whose loss is not finite any more.

    Raises:
      UserError: ten steps in a row were not.
    """
    if int(state.skipped_in_a_row) >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"the loss was not finite for {int(state.skipped_in_a_row)} steps in a row "
            f"(step {int(state.step)}): lower the learning rate or look at the data"
        )
