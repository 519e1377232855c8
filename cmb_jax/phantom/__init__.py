"""Simulated subjects: susceptibility, field, signal, acquisition, lesions, mimics.

The chain of `simulate_subject`: a posed and warped head, tissue values, veins, calcifications and
microbleeds, field, complex signal, k-space, coil and noise, SWI, truth. All of it is jitted JAX.
"""

from cmb_jax.phantom.settings import PROTOCOLS, TIERS, Protocol, SubjectSettings, Tier
from cmb_jax.phantom.simulate import Sample, simulate_batch, simulate_sample, simulate_subject
from cmb_jax.phantom.tree import simulate_tree, write_subject
from cmb_jax.phantom.types import CMB_KIND, LesionRow, LesionTable, MimicKind, PhantomSubject

__all__ = [
    "CMB_KIND",
    "PROTOCOLS",
    "TIERS",
    "LesionRow",
    "LesionTable",
    "MimicKind",
    "PhantomSubject",
    "Protocol",
    "Sample",
    "SubjectSettings",
    "Tier",
    "simulate_batch",
    "simulate_sample",
    "simulate_subject",
    "simulate_tree",
    "write_subject",
]
