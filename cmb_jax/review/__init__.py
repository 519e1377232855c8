"""Round trips to the viewers in which readers work: candidates out, verdicts back, agreement."""
