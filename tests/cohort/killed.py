"""A cohort with a stub for a detector as a process to kill: python -m tests.cohort.killed ROOT OUT."""

import sys
from pathlib import Path

from cmb_jax.cli.bids import Lines
from cmb_jax.cohort.dataset import write_dataset_files
from cmb_jax.cohort.participants import Selection, run_participants
from cmb_jax.cohort.result import Status
from cmb_jax.datasets.bids.layout import read_layout
from tests.cohort import app

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    layout = read_layout(root)
    write_dataset_files(root, out)
    selection = Selection(participants=layout.participants)
    run = run_participants(layout, out, selection, app.pipeline(app.StubDetector()), progress=Lines())
    statuses = [outcome.status for outcome in run.outcomes]
    print(statuses.count(Status.DONE), statuses.count(Status.SKIPPED))
