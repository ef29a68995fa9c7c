"""PN-V: normalization by the quadratic mean of the batch (https://arxiv.org/abs/2003.07845).

The step from batch normalization to power normalization: no mean is removed. The gradient is the
exact one. The paper says nothing on its evaluation; as in batch normalization, a running mean
square takes the place of the batch's there.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_position_mask,
  check_decay,
  check_epsilon,
  prepare,
  statistics_dtype,
)
from normjax.norms._mean_square import (
  check_positions,
  evaluated,
  mean_square,
  over_positions,
)
from normjax.norms._running import RunningMode, check_state, evaluation_affine, moved


def power_norm_v(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  phi: Float[Array, " c"] | None = None,
  *,
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], Float[Array, " c"]]:
  """Divide each channel by its quadratic mean over the batch, then scale and shift it.

  y = x / sqrt(m + epsilon) * scale + bias, with x (..., c) -> y (..., c). In training m (c,) is the
  mean of x^2 over the valid positions, through which gradients flow, and the running value moves:
  phi <- decay * phi + (1 - decay) * m. In evaluation m = phi.

  Args:
    x: floating input of two axes or more, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    phi: running mean square (c,), float32 or wider. None: ones.
    use_running_average: evaluate with phi, which stays as it is.
    epsilon: added to the mean square. 0 is allowed; a channel of zeros then gives NaN.
    decay: share of the old running value in the new one, in [0, 1).
    mask: True where a position enters the statistics; (...), or (..., 1), of sizes 1 or those of x.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array and the new phi. Without any valid position phi normalizes, and stays.

  Raises:
    ValueError: if x is not floating or has one axis only, epsilon < 0, decay is outside [0, 1), or
      scale, bias, phi or mask have another shape.

  Reference:
    Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", 2020,
    arXiv 2003.07845.

  Example:
    >>> y, phi = power_norm_v(jnp.array([[0.0], [2.0]]))
    >>> print(y.ravel().round(3), phi.round(3))
    [0.    1.414] [1.1]
  """
  x, _ = prepare(x, -1, epsilon)
  check_positions(x)
  check_decay(decay)
  phi = jnp.ones(x.shape[-1]) if phi is None else jnp.asarray(phi)
  check_state((phi,), "phi", x.shape[-1:])
  mask = as_position_mask(mask, x.shape)
  wide = x.astype(statistics_dtype(x))
  if use_running_average or x.size == 0:
    y = evaluated(wide, phi, epsilon)
  else:
    square, filled = mean_square(wide, over_positions(x, mask, axis_name), phi)
    y = wide * jax.lax.rsqrt(square + epsilon)
    phi = jnp.where(filled, moved(phi, square.reshape(-1), decay), phi)
  return apply_affine(y, scale, bias, (x.ndim - 1,), x.dtype if dtype is None else dtype), phi


class PowerNormV(RunningMode):
  """Divides each channel by its quadratic mean over the batch, then scales and shifts it.

  y = x / sqrt(m + epsilon) * scale + bias: `power_norm_v` with the parameters `scale` and `bias`
  and the running mean square `phi`, all (num_features,).

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running value; a call, `train()`, `eval()` and
      `nnx.view` may set it later.
    epsilon: added to the mean square.
    decay: share of the old running value in the new one.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `power_norm_v`, and if the input does not have `num_features` entries.

  Reference:
    Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", 2020,
    arXiv 2003.07845.

  Example:
    >>> norm = PowerNormV(4, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.arange(8.0).reshape(2, 4))
    >>> [round(float(v), 2) for v in norm.phi]
    [1.7, 2.2, 2.9, 3.8]
  """

  def __init__(
    self,
    num_features: int,
    *,
    use_running_average: bool | None = False,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_decay(decay)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.epsilon, self.decay, self.dtype, self.axis_name = epsilon, decay, dtype, axis_name
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self.phi = nnx.BatchStat(jnp.ones(num_features, jnp.float32))

  def __call__(
    self,
    x: Float[Array, "*batch c"],
    use_running_average: bool | None = None,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "*batch c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    evaluates = self._evaluates(use_running_average)
    y, phi = power_norm_v(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      self.phi[...],
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    if not evaluates:
      self.phi[...] = phi
    return y

  def evaluation_affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns the scale and shift of which evaluation is y = x * scale + shift."""
    inverse = jax.lax.rsqrt(self.phi[...] + self.epsilon)
    return evaluation_affine(inverse, self.scale, self.bias)
