"""Bijectors of parts: of the blocks that an axis falls into, and of some features only."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_blocks, check_features, check_parts
from normjax.flows._reversible import log_det_zeros


class Concatenate(Bijector):
  """Applies a bijector of its own to each of the blocks that the last axis falls into.

  z = [f_1(x_1) | f_2(x_2) | ...],  x = [x_1 | x_2 | ...] (B, ..., sum(sizes)),
  log_det (B,) = sum of theirs

  Every bijector gets the same `cond`, and keeps the size of its block.

  Args:
    bijectors: a list or tuple of bijectors.
    sizes: how many entries of the last axis each of them gets.

  Raises:
    ValueError: if there are not as many sizes as bijectors, one is below 1, or an entry is no
      `Bijector`, or stands there twice.

  Example:
    >>> from normjax import flows
    >>> both = flows.Concatenate([flows.Exp(), flows.Tanh()], [1, 2])
    >>> both.forward(jnp.zeros((1, 3)))[0]
    Array([[1., 0., 0.]], dtype=float32)
  """

  def __init__(self, bijectors: Sequence[Bijector], sizes: Sequence[int]):
    check_parts("bijectors", bijectors, Bijector, "block", least=1)
    self.bijectors, self.sizes = nnx.List(bijectors), check_blocks(sizes, len(bijectors))

  @property
  def constant_logdet(self):
    """Whether all of theirs are constant."""
    return all(bijector.constant_logdet for bijector in self.bijectors)

  def forward(self, x, cond=None):
    """Apply each bijector to its block; return `(z, log_det)`."""
    return self._run("x", x, lambda b, part: b.forward(part, cond))

  def inverse(self, z, cond=None):
    """Undo each bijector; return `(x, log_det)`."""
    return self._run("z", z, lambda b, part: b.inverse(part, cond))

  def forward_varying(self, x, cond=None):
    """Return `(z, log_det)` of those log-determinants, and parts of them, that vary with x."""
    return self._run("x", x, lambda b, part: b.forward_varying(part, cond))

  def inverse_varying(self, z, cond=None):
    """Return `(x, log_det)` likewise."""
    return self._run("z", z, lambda b, part: b.inverse_varying(part, cond))

  def data_init(self, x, cond=None):
    """Start each bijector from its block; return the latent."""
    return self._run("x", x, lambda b, part: (b.data_init(part, cond), 0))[0]

  def data_init_inverse(self, z, cond=None):
    """Start each bijector from its block the other way round; return the data."""
    return self._run("z", z, lambda b, part: (b.data_init_inverse(part, cond), 0))[0]

  def _run(self, name, x, apply):
    check_features(name, x, sum(self.sizes))
    blocks = jnp.split(x, np.cumsum(self.sizes)[:-1], axis=-1)
    done, log_det = [], log_det_zeros(x)
    for bijector, block in zip(self.bijectors, blocks, strict=True):
      block, step = apply(bijector, block)
      done.append(block)
      log_det = log_det + step
    return jnp.concatenate(done, axis=-1), log_det


class Indexed(Bijector):
  """Applies a bijector to some entries of the last axis, and leaves the others alone.

  z[..., indices] = f(x[..., indices]),  x and z (B, ..., D);  log_det (B,) = that of f

  Args:
    bijector: what to apply; it keeps the shape of its input.
    indices: which entries, in the order in which the bijector gets them.

  Raises:
    ValueError: if `bijector` is no `Bijector`, or `indices` no list of different numbers of at
      least 0.

  Example:
    >>> from normjax import flows
    >>> flows.Indexed(flows.Exp(), [2]).forward(jnp.zeros((1, 3)))[0]
    Array([[0., 0., 1.]], dtype=float32)
  """

  def __init__(self, bijector: Bijector, indices: ArrayLike | Sequence[int]):
    if not isinstance(bijector, Bijector):
      raise ValueError(f"bijector must be a Bijector, got {bijector!r}")
    chosen = np.asarray(indices)
    integers = chosen.ndim == 1 and chosen.size and np.issubdtype(chosen.dtype, np.integer)
    if not integers or np.min(chosen) < 0 or np.unique(chosen).size < chosen.size:
      raise ValueError(f"indices must be different integers of at least 0, got {indices}")
    self.bijector, self.indices = bijector, tuple(int(i) for i in chosen)

  @property
  def constant_logdet(self):
    """Whether that of the bijector is constant."""
    return self.bijector.constant_logdet

  def forward(self, x, cond=None):
    """Apply the bijector to the chosen entries; return `(z, log_det)`."""
    return self._run("x", x, lambda part: self.bijector.forward(part, cond))

  def inverse(self, z, cond=None):
    """Undo it; return `(x, log_det)`."""
    return self._run("z", z, lambda part: self.bijector.inverse(part, cond))

  def forward_varying(self, x, cond=None):
    """Return `(z, log_det)`, less the part of log_det that is the same for every x."""
    return self._run("x", x, lambda part: self.bijector.forward_varying(part, cond))

  def inverse_varying(self, z, cond=None):
    """Return `(x, log_det)` of `inverse`, less the same part."""
    return self._run("z", z, lambda part: self.bijector.inverse_varying(part, cond))

  def data_init(self, x, cond=None):
    """Start the bijector from the chosen entries; return the latent."""
    return self._run("x", x, lambda part: (self.bijector.data_init(part, cond), None))[0]

  def data_init_inverse(self, z, cond=None):
    """Start it the other way round; return the data."""
    return self._run("z", z, lambda part: (self.bijector.data_init_inverse(part, cond), None))[0]

  def _run(self, name, x, apply):
    least = max(self.indices) + 1
    if x.ndim < 2 or x.shape[-1] < least:
      raise ValueError(f"{name} must have shape (b, ..., at least {least}), got {x.shape}")
    check_batch(name, x)
    where = np.array(self.indices)
    part, log_det = apply(x[..., where])
    return x.at[..., where].set(part, unique_indices=True), log_det
