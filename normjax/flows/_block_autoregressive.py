"""Block neural autoregressive flows: one network that is increasing in the feature it maps.

What differs from the authors' code (https://arxiv.org/abs/1904.04676): the activation is
`LeakyTanh`, whose range is the whole line, where tanh leaves latents without data; there are no
gates between layers; a condition may enter behind the first layer; and a new layer is nearly the
identity on standard data. With rows of norm 1 and no biases it would be a step, steeper the wider
it is, in which all units of a feature are alike.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_cond
from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._tanh import LeakyTanh
from normjax.flows._widened import widened

_REACH = 3.0  # how far from 0 a new layer is nearly the identity
_STEEPEST = 3.0  # of a new unit: with steeper ones tails would add up, which are not quite flat


class BlockLinear(nnx.Module):
  """Maps (b, d, n) to (b, d, m): unit (i, o) sees features up to i, increasing in those of i.

  Row (i, o) of the weight is exp(log_gain) w / |w|, w = exp(kernel) at feature i, kernel before.
  At first exp(log_gain) = gain, and `bias` (m,) is that of every feature.
  """

  def __init__(self, dim, inputs, outputs, *, gain, bias, param_dtype, rngs):
    shape = (dim, outputs, dim, inputs)
    init = nnx.initializers.normal((dim * inputs) ** -0.5)
    self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
    self.log_gain = nnx.Param(jnp.full((dim, outputs), math.log(gain), param_dtype))
    self.bias = nnx.Param(jnp.tile(jnp.asarray(bias, param_dtype), (dim, 1)))

  def weight(self, dtype):
    """Return the weight (d, m, d, n), and the logs (d, m, n) of its positive diagonal blocks."""
    kernel, log_gain = self.kernel[...].astype(dtype), self.log_gain[...].astype(dtype)
    row, column = np.ogrid[: kernel.shape[0], : kernel.shape[0]]
    row, column = (index[:, None, :, None] for index in (row, column))
    # exp only of what is on the diagonal: elsewhere it might overflow.
    positive = jnp.exp(jnp.where(row == column, kernel, 0))
    raw = jnp.where(row == column, positive, jnp.where(column < row, kernel, 0))
    log_factor = log_gain - jnp.log(jnp.sum(raw**2, axis=(2, 3))) / 2
    diagonal = jnp.moveaxis(jnp.diagonal(kernel, axis1=0, axis2=2), 2, 0)
    return raw * jnp.exp(log_factor)[..., None, None], diagonal + log_factor[..., None]

  def __call__(self, h, log_slope):
    """Return the units (b, d, m), and the logs of their slopes by their own feature."""
    weight, log_diagonal = self.weight(h.dtype)
    # The product of Jacobians, whose entries are positive, by their logs.
    log_slope = jax.nn.logsumexp(log_diagonal[None] + log_slope[:, :, None], axis=3)
    h = jnp.einsum("bjk,iojk->bio", h, weight, precision="highest")
    return h + self.bias[...][None], log_slope


class BlockLayer(nnx.Module):
  """A leaky tanh, then a `BlockLinear`."""

  def __init__(self, dim, inputs, outputs, *, max_val, **options):
    self.activation = LeakyTanh(max_val)
    self.linear = BlockLinear(dim, inputs, outputs, **options)

  def __call__(self, carry):
    h, log_slope = carry
    h, step = self.activation.up(h)
    return self.linear(h, log_slope + step)


class BlockAutoregressive(Bijector):
  """Maps every feature by a network of it and those before it, increasing in itself (BNAF).

  z_i = f_i(x_1 .. x_i, cond),  d f_i / d x_i > 0,  x (B, D), cond (B, C)
  log_det (B,) = sum_i log d f_i / d x_i

  All f_i are one network of D blocks of `width` units with `LeakyTanh` between masked linear
  layers: blocks on the diagonal are positive, exp(kernel), rows have norm exp(log_gain). The
  slopes are products of positive matrices, taken in the logs. The density takes one pass; the
  inverse solves for one feature after the other with `invert_monotone`.

  A new layer is nearly the identity where |x_i| < 3: data should be standardized, by an `ActNorm`
  say. Further out it is flat, so there it learns slowly.

  Args:
    dim: D, at least 1.
    width: units per feature.
    depth: number of hidden layers behind the first, scanned; may be 0.
    max_val: where the activation's straight tails begin, in (0, 8].
    cond_dim: C, or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size or `max_val` is out of range.

  Reference:
    De Cao, Titov, Aziz, "Block Neural Autoregressive Flow", 2019, arXiv 1904.04676.

  Example:
    >>> layer = BlockAutoregressive(3, width=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 3))
    >>> z, log_det = layer.forward(x)
    >>> bool(jnp.allclose(layer.inverse(z)[0], x, atol=1e-4))
    True
  """

  def __init__(
    self,
    dim: int,
    *,
    width: int = 8,
    depth: int = 1,
    max_val: float = 3.0,
    cond_dim: int | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(dim=dim, width=width, cond_dim=cond_dim)
    check_sizes(0, depth=depth)
    self.dim, self.width, self.cond_dim = dim, width, cond_dim
    options = {"param_dtype": param_dtype, "rngs": rngs}
    # The mean of tanh(s (x - c)) over c in [-R, R] is tanh(s R) / R x for small x; s is such that
    # one unit rises where its neighbours do. The weights of a sum are about width^-1/2.
    steepness = min(width / (2 * _REACH), _STEEPEST)
    centres = _REACH * ((2 * np.arange(width) + 1) / width - 1)
    gain = _REACH / math.tanh(steepness * _REACH) * width**-0.5
    bias = -steepness * centres
    self.first = BlockLinear(dim, 1, width, gain=steepness, bias=bias, **options)
    self.context = None if cond_dim is None else nnx.Linear(cond_dim, dim * width, **options)
    make = lambda rngs: BlockLayer(
      dim, width, width, max_val=max_val, gain=steepness * gain, bias=bias,
      param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = BlockLayer(dim, width, 1, max_val=max_val, gain=gain, bias=[0.0], **options)

  def _run(self, x, cond):
    """Return the latents and the logs of their slopes, both (b, d)."""
    carry: Any = self.first(x[..., None], jnp.zeros_like(x)[..., None])
    if self.context is not None:
      shift = self.context(cond.astype(x.dtype)).reshape(-1, self.dim, self.width)
      carry = carry[0] + shift, carry[1]
    z, log_slope = self.last(self.blocks(carry))
    return z[..., 0], log_slope[..., 0]

  def forward(self, x, cond=None):
    """Return `(z, log_det)` with one pass of the network."""
    check_batch("x", x, (self.dim,))
    check_cond(cond, x.shape[0], self.cond_dim)
    z, log_slope = self._run(widened(x), cond)
    return z.astype(x.dtype), jnp.sum(log_slope, axis=1)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`, one feature of x after the other."""
    check_batch("z", z, (self.dim,))
    check_cond(cond, z.shape[0], self.cond_dim)
    wide = widened(z)

    def fill(x, i):
      put = lambda v: jax.lax.dynamic_update_index_in_dim(x, v, i, axis=1)
      take = lambda v: jax.lax.dynamic_index_in_dim(v, i, axis=1, keepdims=False)
      return put(invert_monotone(lambda v: take(self._run(put(v), cond)[0]), take(wide))), None

    x, _ = jax.lax.scan(fill, jnp.zeros_like(wide), jnp.arange(self.dim))
    return x.astype(z.dtype), -jnp.sum(self._run(x, cond)[1], axis=1)
