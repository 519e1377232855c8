"""cmb-jax predict-cohort: the participant level of the BIDS App, shared among processes, with a bar."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from cmb_jax.commands.bids import participants
from cmb_jax.commands.cohort_progress import Bar
from cmb_jax.commands.participant_options import ParticipantOptions
from cmb_jax.errors import UserError
from cmb_jax.training.processes import start_processes

_LONGEST_WAIT_S = 7 * 24 * 3600
"""For the other processes at the end: shares of a cohort do not end together."""


def run(
    *, bids: Path, out: Path, process: str | None, distributed: bool, options: ParticipantOptions
) -> None:
    """Run this process's share.

    Raises:
      UserError: anything wrong with the data set as a whole or the arguments, or no scan that can be used.
      SystemExit: with code 1 if some scans failed.
    """
    if process is not None and distributed:
        raise UserError("--process and --distributed both say which share is meant; give one of them")
    share = distributed_share() if distributed else parse_share(process or "0/1")
    with Bar() as bar:
        participants(bids, out, options, progress=bar, share=share)


def parse_share(text: str) -> tuple[int, int]:
    """(index from 0, count) of "2/8".

    Raises:
      UserError: it is not of that form, or the index is not below the count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UserError(f"--process {text}: give number/count, such as 0/8 to 7/8 for eight processes")
    return index, count


def distributed_share() -> tuple[int, int]:
    """Index and count of this process in `jax.distributed`, which is started as the cluster tells.

    Raises:
      UserError: no cluster is recognised, or the processes do not find each other.
    """
    start_processes(None, "auto", None, patience_s=_LONGEST_WAIT_S)
    return jax.process_index(), jax.process_count()
