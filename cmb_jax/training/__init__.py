"""Train state, sharded step, checkpoints, loop."""
