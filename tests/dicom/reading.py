"""From a folder to candidates and images, as the commands go."""

from cmb_jax.dicom.choose import candidates, choose
from cmb_jax.dicom.folder import read_folder
from cmb_jax.dicom.load import load
from cmb_jax.dicom.stacks import sort_into_stacks


def found_in(folder):
    """The candidates of a folder."""
    return candidates(sort_into_stacks(read_folder(folder).frames))


def loaded(folder, *wanted):
    """The images of the one scan in a folder."""
    return load(choose(found_in(folder), wanted))
