"""Batch normalization ("Batch Normalization", https://arxiv.org/abs/1502.03167).

What differs from flax: `decay` is the share that the old running value keeps, as flax's `momentum`
is (torch's is 1 - decay); the running variance is unbiased, as torch's, unless
`var_estimator="biased"`; a batch without any valid position leaves the statistics alone; devices
combine sums and counts, not means, so that they may hold different numbers of valid positions.
"""

from typing import Literal

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
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._running import (
  Moments,
  RunningMoments,
  check_batch,
  check_state,
  evaluation_affine,
  moved,
  per_channel,
)
from normjax.norms._standardize import can_standardize, standardize
from normjax.norms._statistics import Reduction, finite_or_zero, moments


def batch_norm(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: Moments | None = None,
  *,
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  ghost_batch_size: int | None = None,
  var_estimator: Literal["unbiased", "biased"] = "unbiased",
  masked_output: Literal["keep", "zero"] = "keep",
  allow_single: bool = False,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], Moments]:
  """Normalize each channel to mean 0 and variance 1 over the batch, then scale and shift it.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias, with x (..., c) -> y (..., c). In training
  mean and var (c,) are those of the n valid positions, through which gradients flow, and the
  running values move: mean <- decay * mean + (1 - decay) * mean(x), and var likewise towards
  var(x) * n / (n - 1). In evaluation the running values are used.

  Args:
    x: floating input, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: running `(mean, var)`, each (c,) and float32 or wider. None: zeros and ones.
    use_running_average: evaluate with the running values, which stay as they are.
    epsilon: added to the variance. 0 is allowed; a constant channel then gives NaN.
    decay: share of the old running value in the new one, in [0, 1).
    mask: True where a position enters the statistics; (...), or (..., 1), of sizes 1 or those of x.
      A masked entry that is infinite or NaN is normalized as 0.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`). Without it each shard
      has its own statistics there; under `jit` with a sharded batch statistics are global anyway.
    ghost_batch_size: examples, along the first axis, that share statistics; None: all. The running
      values move towards the mean of the groups' values.
    var_estimator: which variance the running one averages; y always uses the biased one.
    masked_output: "keep" normalizes every position, "zero" sets masked ones to 0.
    allow_single: whether to accept a single position, whose output is the bias.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array, and the new state. Without any valid position (in the ghost batch) running
    values normalize, and stay.

  Raises:
    ValueError: if x is not floating, epsilon < 0, decay is outside [0, 1), scale, bias, state or
      mask have another shape, ghost_batch_size does not divide the batch or comes with axis_name,
      an option is unknown, or a training batch has no position or only one.

  Reference:
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, arXiv 1502.03167.

  Example:
    >>> y, (mean, var) = batch_norm(jnp.array([[1.0], [3.0]]))
    >>> print(y.ravel().round(3), mean.round(3), var.round(3))
    [-1.  1.] [0.2] [1.1]
  """
  x, channel = prepare(x, -1, epsilon)
  c = x.shape[-1]
  check_decay(decay)
  _check_options(var_estimator, masked_output)
  state = (jnp.zeros(c), jnp.ones(c)) if state is None else state
  check_state(state, "mean, var", (c,))
  mask = as_position_mask(mask, x.shape)
  dtype = x.dtype if dtype is None else floating_dtype(dtype, "dtype")
  if use_running_average:
    wide = finite_or_zero(x.astype(statistics_dtype(x)), mask)
    mean, var = (per_channel(v, wide) for v in state)
    y = apply_affine((wide - mean) * jax.lax.rsqrt(var + epsilon), scale, bias, channel, dtype)
  else:
    check_batch(x, allow_single, axis_name)
    groups = _num_groups(x.shape, ghost_batch_size, axis_name)
    split = x.reshape(groups, -1, *x.shape[1:])  # (g * b, ..., c) -> (g, b, ..., c)
    shared = None if mask is None else jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
    shared = None if shared is None else shared.reshape(groups, -1, *shared.shape[1:])
    reduction = Reduction(tuple(range(1, x.ndim)), split.shape, shared, axis_name)
    if can_standardize(split, reduction, scale, bias):
      y, (shift, mean, var) = standardize(
        split, scale, bias, reduction, epsilon=epsilon, dtype=dtype
      )
      y, mean = y.reshape(x.shape), shift + mean
      state = _moved(state, mean, var, reduction, decay, var_estimator)
    else:
      wide = finite_or_zero(split.astype(statistics_dtype(x)), shared)
      centered, var, state = _masked_moments(wide, state, reduction, decay, var_estimator)
      y = (centered * jax.lax.rsqrt(var + epsilon)).reshape(x.shape)
      y = apply_affine(y, scale, bias, channel, dtype)
  if mask is not None and masked_output == "zero":
    y = jnp.where(mask, y, jnp.zeros_like(y))
  return y, state


def _check_options(var_estimator: str, masked_output: str) -> None:
  if var_estimator not in ("unbiased", "biased"):
    raise ValueError(f"var_estimator must be 'unbiased' or 'biased', got {var_estimator!r}")
  if masked_output not in ("keep", "zero"):
    raise ValueError(f"masked_output must be 'keep' or 'zero', got {masked_output!r}")


def _moved(
  state: Moments,
  mean: Float[Array, "..."],
  var: Float[Array, "..."],
  reduction: Reduction,
  decay: float,
  var_estimator: str,
) -> Moments:
  """Returns the state after a batch with moments (groups, 1, ..., c)."""
  n = jnp.broadcast_to(reduction.count(mean.dtype), mean.shape)
  filled = n > 0
  factor = n / jnp.maximum(n - 1, 1) if var_estimator == "unbiased" else jnp.ones_like(n)
  weight = filled / jnp.maximum(jnp.sum(filled, 0, keepdims=True), 1)
  over_groups = lambda v: jnp.sum(v * weight, 0).reshape(-1)
  new = [moved(o, over_groups(v), decay) for o, v in zip(state, (mean, var * factor), strict=True)]
  if reduction.mask is not None:
    new = [jnp.where(jnp.any(filled), v, o) for o, v in zip(state, new, strict=True)]
  return new[0], new[1]


def _masked_moments(
  x: Float[Array, "..."],
  state: Moments,
  reduction: Reduction,
  decay: float,
  var_estimator: str,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Moments]:
  """Returns the deviations (groups, batch, ..., c), their variance and the new state."""
  centered, mean, var = moments(x, reduction)
  new = _moved(state, mean, var, reduction, decay, var_estimator)
  if reduction.mask is not None:
    filled = reduction.count(x.dtype) > 0
    old_mean, old_var = (per_channel(v, x) for v in state)
    centered = jnp.where(filled, centered, x - old_mean)
    var = jnp.where(filled, var, old_var)
  return centered, var, new


def _num_groups(shape: tuple[int, ...], ghost_batch_size: int | None, axis_name: str | None) -> int:
  if ghost_batch_size is None:
    return 1
  if axis_name is not None:
    raise ValueError(
      f"ghost_batch_size must be None where devices share statistics, got {ghost_batch_size} with "
      f"axis_name={axis_name!r}"
    )
  if ghost_batch_size < 1 or len(shape) < 2 or shape[0] % ghost_batch_size:
    raise ValueError(
      f"ghost_batch_size must divide the first axis of x, got {ghost_batch_size} for {shape}"
    )
  return shape[0] // ghost_batch_size


class BatchNorm(RunningMoments):
  """Normalizes each channel to mean 0 and variance 1 over the batch, then scales and shifts it.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias: `batch_norm` with the parameters `scale` and
  `bias` and the running statistics `mean` and `var`, all (num_features,).

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old running value in the new one (flax calls it `momentum`).
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    ghost_batch_size: examples that share statistics; None: all.
    var_estimator: which variance the running one averages, "unbiased" or "biased".
    masked_output: "keep" normalizes every position, "zero" sets masked ones to 0.
    allow_single: whether to train on a single position.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `batch_norm`, and if the input does not have `num_features` entries.

  Reference:
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, arXiv 1502.03167.

  Example:
    >>> norm = BatchNorm(4, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.arange(8.0).reshape(2, 4))
    >>> [round(float(v), 2) for v in norm.mean]
    [0.2, 0.3, 0.4, 0.5]
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
    ghost_batch_size: int | None = None,
    var_estimator: Literal["unbiased", "biased"] = "unbiased",
    masked_output: Literal["keep", "zero"] = "keep",
    allow_single: bool = False,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_decay(decay)
    _check_options(var_estimator, masked_output)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.epsilon, self.decay, self.dtype = epsilon, decay, dtype
    self.axis_name, self.ghost_batch_size = axis_name, ghost_batch_size
    self.var_estimator: Literal["unbiased", "biased"] = var_estimator
    self.masked_output: Literal["keep", "zero"] = masked_output
    self.allow_single = allow_single
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self._begin(num_features)

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
    y, state = batch_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      self._moments(),
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      mask=mask,
      axis_name=self.axis_name,
      ghost_batch_size=self.ghost_batch_size,
      var_estimator=self.var_estimator,
      masked_output=self.masked_output,
      allow_single=self.allow_single,
      dtype=self.dtype,
    )
    self._keep(state, evaluates)
    return y

  def evaluation_affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns `(scale, shift)`, each (c,): evaluation is x * scale + shift."""
    inverse = jax.lax.rsqrt(self.var[...] + self.epsilon)
    return evaluation_affine(inverse, self.scale, self.bias, self.mean[...])
