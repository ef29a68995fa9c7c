"""Everything in deep learning that is normalized, as pure JAX functions and thin Flax modules."""

__version__ = "0.1.0"
