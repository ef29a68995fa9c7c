"""The residual network of couplings of vectors (arXiv 1906.04032)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.blocks import Repeat
from normjax.flows._checks import check_cond
from normjax.flows._dropout import make_dropout


class GatedBlock(nnx.Module):
  """h + W1 drop(relu(W0 relu(h))) * sigmoid(V cond); no gate without a condition."""

  def __init__(self, width, cond_dim, dropout_rate, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = nnx.Linear(width, width, **options)
    self.linear1 = nnx.Linear(width, width, **options)
    self.gate = None if cond_dim is None else nnx.Linear(cond_dim, width, **options)
    self.dropout = make_dropout(dropout_rate, rngs)

  def __call__(self, carry):
    h, cond = carry
    step = jax.nn.relu(self.linear0(jax.nn.relu(h)))
    step = self.linear1(step if self.dropout is None else self.dropout(step))
    if self.gate is not None:
      step = step * jax.nn.sigmoid(self.gate(cond))
    return h + step, cond


class ResidualNetwork(nnx.Module):
  """Maps (b, n) and a condition (b, c) to (b, m); zero at first."""

  def __init__(
    self, inputs, outputs, *, width, depth, cond_dim, param_dtype, rngs, dropout_rate=0.0
  ):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.cond_dim = cond_dim
    self.first = nnx.Linear(inputs + (cond_dim or 0), width, **options)
    make = lambda rngs: GatedBlock(width, cond_dim, dropout_rate, param_dtype, rngs)
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = nnx.Linear(width, outputs, kernel_init=nnx.initializers.zeros, **options)

  def __call__(self, x, cond):
    check_cond(cond, x.shape[0], self.cond_dim)
    cond = None if self.cond_dim is None else cond.astype(x.dtype)
    carry: Any = (self.first(x if cond is None else jnp.concatenate([x, cond], axis=1)), cond)
    h, _ = self.blocks(carry)
    return self.last(h)
