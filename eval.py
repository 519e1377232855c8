"""Evaluate a trained detector: python eval.py --config configs/small.py --workdir runs/small.

Writes WORKDIR/eval/metrics.json and report.html.
"""

from cmb_jax.commands.evaluate_run import main

if __name__ == "__main__":
    main()
