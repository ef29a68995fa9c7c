"""The shape that all coupling layers share: one part conditions, the other is transformed.

Splitting a coupling into five small pure methods, instead of writing `forward` and `inverse` anew
in each, is what lets `Scan(memory="reversible")` rebuild a layer's input *and* differentiate the
layer with one evaluation of its network (see `_reversible.py`).
"""

import abc

from jaxtyping import Array, Float, PyTree

from normjax.flows._bijector import Bijector


class Coupling(Bijector):
  """Transforms one part of its input with parameters computed from the other, unchanged part.

  (x1, x2) = split(x);  theta = conditioner(x1, cond);  (y2, log_det) = transform(x2, theta);
  y = join(x1, y2), with `log_det` (B,).

  A subclass implements `split`, `join`, `conditioner`, `transform` and `untransform` under two
  rules: all Params are used by `conditioner` alone, and `join` is the inverse of `split`, which
  merely rearranges entries (so `join` is also its transpose).

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.
  """

  @abc.abstractmethod
  def split(self, x: Float[Array, "b *event"]) -> tuple[Array, Array]:
    """Return `(x1, x2)`: the conditioning and the transformed entries of `x`."""

  @abc.abstractmethod
  def join(self, x1: Array, x2: Array) -> Float[Array, "b *event"]:
    """Undo `split`."""

  @abc.abstractmethod
  def conditioner(self, x1: Array, cond: PyTree | None) -> PyTree:
    """Return the parameters `theta` of the transform, a function of `x1` and `cond`."""

  @abc.abstractmethod
  def transform(self, x2: Array, theta: PyTree) -> tuple[Array, Float[Array, "b"]]:
    """Return `(y2, log_det)` of the transform with parameters `theta`."""

  @abc.abstractmethod
  def untransform(self, y2: Array, theta: PyTree) -> tuple[Array, Float[Array, "b"]]:
    """Undo `transform`, with the log-determinant of the inverse."""

  def forward(self, x, cond=None):
    """Return `(y, log_det)` with one evaluation of the conditioner."""
    x1, x2 = self.split(x)
    y2, log_det = self.transform(x2, self.conditioner(x1, cond))
    return self.join(x1, y2), log_det

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`; as fast as `forward`, since the conditioning part is unchanged."""
    z1, z2 = self.split(z)
    x2, log_det = self.untransform(z2, self.conditioner(z1, cond))
    return self.join(z1, x2), log_det

  def data_init(self, x, cond=None):
    """Start the conditioner from data; return the latent."""
    x1, x2 = self.split(x)
    return self.join(x1, self.transform(x2, self.init_conditioner(x1, cond))[0])

  def data_init_inverse(self, z, cond=None):
    """Start the conditioner from latents; return the data."""
    z1, z2 = self.split(z)
    return self.join(z1, self.untransform(z2, self.init_conditioner(z1, cond))[0])

  def init_conditioner(self, x1: Array, cond: PyTree | None) -> PyTree:
    """Start what in the conditioner depends on data, if anything, in place; return `theta`."""
    return self.conditioner(x1, cond)
