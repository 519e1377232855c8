"""Loss curves of other precisions, rematerialisation and accumulation over float32, on a small detector.

python tools/precision.py SUBJECTS OUT.png [STEPS]

SUBJECTS is a folder of prepared subjects (RUN/phantoms/...). Every variant sees the same patches in the same
order from the same start; another float32 run, from another start, shows how far apart curves lie by chance.
Writes the picture and OUT.csv, and prints the mean distance of each curve from float32.
"""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from cmb_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import StoredSubject, is_stored
from cmb_jax.training.detector import init_state, make_step, put_batch
from cmb_jax.training.distributed import make_mesh

WINDOW = 20  # steps of the running mean that is drawn and compared


def small_config(steps):
    return Config(
        model=ModelConfig(
            widths=(8, 12, 16), encoder_convs=(0, 1, 1), decoder_convs=(0, 1), fusion_width=8, head_width=8
        ),
        data=DataConfig(patch_shape=(16, 48, 48), batch_size=4, max_truths=8),
        train=TrainConfig(steps=steps, warmup_steps=20, precision="float32"),
    )


def variants(config):
    """Name -> configuration; the first is what the others are compared with."""

    def with_train(**changes):
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))

    remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=True))
    return {
        "float32": config,
        "float32, another start": with_train(seed=1),
        "mixed": with_train(precision="mixed"),
        "bfloat16": with_train(precision="bfloat16"),
        "remat": remat,
        "accumulate 2": with_train(accumulate=2),
    }


def losses(config, batches):
    mesh = make_mesh()
    state, step = init_state(config, mesh), make_step(config, mesh)
    values = []
    for batch in batches:
        state, metrics = step(state, put_batch(batch, mesh))
        values.append(float(metrics.terms.total))
    return np.array(values)


def smooth(values):
    return np.convolve(values, np.ones(WINDOW) / WINDOW, "valid")


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    subjects = [StoredSubject(folder=path) for path in sorted(folder.iterdir()) if is_stored(path)]
    config = small_config(steps)
    stream = patch_batches(subjects[:16], config.data, seed=0)
    batches = [next(stream) for _ in range(steps)]
    curves = {}
    for name, variant in variants(config).items():
        curves[name] = losses(variant, batches)
        distance = np.abs(smooth(curves[name]) - smooth(curves["float32"]))
        print(f"{name}: mean distance {distance.mean():.4f}, last loss {curves[name][-WINDOW:].mean():.4f}")
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *curves])
        writer.writerows(zip(range(1, steps + 1), *curves.values(), strict=True))
    draw(curves, out)


def draw(curves, out):
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, values in curves.items():
        chance = "start" in name
        axis.plot(
            np.arange(WINDOW, len(values) + 1),
            smooth(values),
            label=name,
            color="0.8" if chance else None,
            lw=1,
            zorder=1 if chance else 2,
        )
    axis.set(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps")
    axis.legend(frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
