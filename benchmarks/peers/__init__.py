"""Detectors that people would use instead, trained here on the same subjects for the same CPU time.

python -m benchmarks.peers run --work runs/peers      # every run of the plan; run again to resume
python -m benchmarks.peers table --work runs/peers    # docs/comparison.md from what there is
"""
