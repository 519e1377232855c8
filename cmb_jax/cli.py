"""The command line `cmb-jax`: one subcommand a task.

Examples:
  cmb-jax predict --swi swi.nii.gz --phase phase.nii.gz --out result
  cmb-jax predict --dicom examination --out result --dicom-out
  cmb-jax simulate --out phantoms --subjects 4 --seed 1
  cmb-jax evaluate --pred results --truth phantoms --out metrics.json
  cmb-jax calibrate --pred results --truth validation --weights small --out calibrated.safetensors
  cmb-jax swi --magnitude mag.nii.gz --phase phase.nii.gz --out swi
  cmb-jax implant --magnitude mag.nii.gz --phase phase.nii.gz --te-ms 20 --b0-t 3 --out implanted
  cmb-jax data check valdo/Task2 --out sheet.png
  cmb-jax bids study study/derivatives/cmb-jax participant --participant-label 01 02
  cmb-jax compare --baseline r1 --followup r2 --baseline-image 1.nii.gz --followup-image 2.nii.gz --out change
  cmb-jax view result
  cmb-jax review export result --out for_readers
  cmb-jax review import for_readers/review.xlsx --result result --out sub-01_points.csv
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import tyro

import cmb_jax
from cmb_jax.arguments.implant import implant
from cmb_jax.arguments.scans import bids, compare, dicom, predict, swi, view
from cmb_jax.arguments.studies import benchmark, benchmark_data, calibrate, demo, evaluate, plan, simulate
from cmb_jax.commands.common import run_for_people
from cmb_jax.errors import UserError


def data() -> None:
    """Look into a data set (VALDO, CSIRO, Dou, Yonsei, BIDS, own folders): `data check`, `data index`."""


def review() -> None:
    """Hand candidates to readers and take their verdicts back: `review export`, `import`, `agreement`."""


def weights() -> None:
    """What weights are: `weights show NAME` tells training, operating points, calibration."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "view": view,
    "dicom": dicom,
    "simulate": simulate,
    "benchmark-data": benchmark_data,
    "evaluate": evaluate,
    "swi": swi,
    "implant": implant,
    "demo": demo,
    "calibrate": calibrate,
    "weights": weights,
    "data": data,
    "plan": plan,
    "bids": bids,
    "compare": compare,
    "review": review,
    "benchmark": benchmark,
}

RENAMED = {"predict-cohort": "cmb-jax bids DIR OUT participant"}
"""Earlier commands and what to type now."""

GROUPS = ("data", "review", "weights")
"""Commands with subcommands of their own: `COMMANDS` of the module of that name."""


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"cmb-jax {cmb_jax.__version__} (research use only)")
        return

    def command() -> None:
        if arguments[:1] and (now := RENAMED.get(arguments[0].replace("_", "-"))):
            raise UserError(f"the command {arguments[0]} is now: {now}")
        if arguments[:1] and arguments[0] in GROUPS:
            group = importlib.import_module(f"cmb_jax.commands.{arguments[0]}")
            tyro.extras.subcommand_cli_from_dict(
                group.COMMANDS, prog=f"cmb-jax {arguments[0]}", args=arguments[1:] or ["--help"]
            )
            return
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="cmb-jax", description=__doc__, args=arguments or ["--help"]
        )

    run_for_people(command)


if __name__ == "__main__":
    main()
