"""cmb_jax: cerebral microbleeds in susceptibility MRI, found, named by place and reported.

Research use only; not a medical device.
"""

__version__ = "0.1.0"
