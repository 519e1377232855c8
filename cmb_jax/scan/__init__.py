"""What the images of a scan are: intensity or phase, in which unit, of a head or not."""

from typing import Literal

VERSION = 2
"""Version of the rules by which images are taken, left out or refused; scans that were prepared by another
version are prepared again."""

PhaseSign = Literal["auto", "+1", "-1"]
"""Factor that makes paramagnetic phase positive; auto: determined from the images."""

StoredPhase = tuple[str, ...]
"""How phase is stored, as typed: auto, a name, or two numbers; see `phase_range.asked_range`."""
