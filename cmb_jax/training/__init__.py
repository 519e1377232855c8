"""Training of both networks: state, steps, loop, checkpoints, runs."""
