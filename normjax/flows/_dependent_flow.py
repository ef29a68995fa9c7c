"""A flow that learns how alike the members of a block are, besides their density.

https://arxiv.org/abs/2209.14933. The correlation is sigmoid(speed * raw): with the authors' speed 1
an optimizer of bounded steps, such as Adam at a rate for networks, takes thousands of steps to
reach strong correlations.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from normjax.flows._checks import check_above_zero
from normjax.flows._dependent_data import block_log_prob, sigmoid_correlation
from normjax.flows._distribution import Distribution
from normjax.flows._flow import Flow
from normjax.flows._standard_normal import StandardNormal


class DependentFlow(Distribution):
  """Gives data in blocks of equally correlated examples their joint density.

  l_i = block_log_prob(z, block_id, rho)_i + log_det_i,  (z, log_det) = bijector.forward(x) of the
  flow, rho = sigmoid(speed * raw),  x (b, p)

  A new, independent example has the density of the flow itself, which `log_prob` returns and
  `sample` draws from.

  Args:
    flow: over a `StandardNormal` of vectors (p,), whose rows the blocks correlate.
    rho: correlation at first, above 0 and below 1: a scalar, or one per block (k,).
    trainable: False keeps it as it is.
    speed: above 0; a larger one lets equal steps of `raw` change rho more.
    param_dtype: dtype of `raw`.

  Raises:
    ValueError: if `flow` is not a `Flow` over a `StandardNormal` of vectors, or a number is out of
      range.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> from normjax import flows
    >>> flow = flows.Flow(flows.ElementwiseAffine(1.0, 1.0), flows.StandardNormal((2,)))
    >>> flow = DependentFlow(flow, rho=0.9)
    >>> block_id = jnp.array([0, 0, 1])
    >>> alike = jnp.array([[2.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    >>> bool(flow.joint_log_prob(alike, block_id).sum() > flow.log_prob(alike).sum())
    True
  """

  def __init__(
    self,
    flow: Flow,
    *,
    rho: ArrayLike = 0.5,
    trainable: bool = True,
    speed: float = 1.0,
    param_dtype=jnp.float32,
  ):
    if not isinstance(flow, Flow):
      raise ValueError(f"flow must be a flows.Flow, got {flow!r}")
    if not isinstance(flow.base, StandardNormal) or len(flow.base.shape) != 1:
      raise ValueError(f"flow's base must be a StandardNormal of vectors (p,), got {flow.base!r}")
    correlation = np.asarray(rho, np.float64)
    if correlation.ndim > 1 or not np.all((correlation > 0) & (correlation < 1)):
      raise ValueError(f"rho must be between 0 and 1, a scalar or (k,), got {rho}")
    check_above_zero(speed=speed)
    self.flow, self.speed = flow, speed
    raw = jnp.asarray(np.log(correlation / (1 - correlation)) / speed, param_dtype)
    self.raw = nnx.Param(raw) if trainable else nnx.Variable(raw)

  @property
  def rho(self) -> Float[Array, "..."]:
    """The correlation within blocks, a scalar or one per block (k,)."""
    return sigmoid_correlation(self.speed * self.raw[...])

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,) of examples that depend on no others."""
    return self.flow.log_prob(z, cond)

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` independent examples."""
    return self.flow.sample(key, n, cond, temperature)

  def joint_log_prob(
    self,
    x: Float[Array, "b p"],
    block_id: Int[ArrayLike, "n"],
    *,
    index: Int[Array, "b"] | None = None,
    cond: PyTree | None = None,
  ) -> Float[Array, "b"]:
    """Return what each example contributes to the joint log-density; see `block_log_prob`.

    Args:
      x: all data, or a batch of them that was drawn uniformly.
      block_id: block of each of all n examples.
      index: which of these the rows of x are; None: all, in order.
      cond: the condition of the flow's bijector, if it has one.
    """
    z, log_det = self.flow.bijector.forward(x, cond)
    return block_log_prob(z, block_id, self.rho, index=index) + log_det
