"""Volumes in and out: NIfTI, phase conventions, atomic files, detection tables."""
