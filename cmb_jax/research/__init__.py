"""Studies of many training runs: which part of the detector does what."""
