"""What the images of a scan are: intensity or phase, in which unit, of a head or not."""

VERSION = 2
"""Of what is taken, left out or refused: prepared scans of another version are made anew."""
