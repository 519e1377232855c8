"""Susceptibility-weighted imaging: phase unwrapping, high-pass phase, phase mask, echo combination."""
