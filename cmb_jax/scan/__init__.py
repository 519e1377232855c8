"""What the images of a scan are: intensity or phase, in which unit, of a head or not."""

from typing import Literal

VERSION = 2
"""Of what is taken, left out or refused: prepared scans of another version are made anew."""

PhaseSign = Literal["auto", "+1", "-1"]
"""What the stored phase is multiplied with, so that paramagnetic is positive; auto: read from the data."""

StoredPhase = tuple[str, ...]
"""How phase is stored, as typed: auto, a name, or two numbers; see `phase_range.asked_range`."""
