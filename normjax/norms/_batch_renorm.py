"""Batch renormalization (https://arxiv.org/abs/1702.03275).

What differs from the paper: `decay` is 1 - alpha; a batch without any valid position leaves the
statistics and the step alone. The paper averages the standard deviation; libraries that average the
variance instead are `average="var"`. The paper's schedule of the limits is the default, and counts
the updates of the running values, as the paper counts steps from 0.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_position_mask,
  check_decay,
  check_epsilon,
  prepare,
  statistics_dtype,
)
from normjax.norms._running import (
  RunningMode,
  check_batch,
  check_state,
  evaluation_affine,
  moved,
  per_channel,
)
from normjax.norms._statistics import Reduction, finite_or_zero, moments

Limit = ArrayLike | Callable[[Int[Array, ""]], ArrayLike]
RenormState = tuple[Float[Array, " c"], Float[Array, " c"], Int[Array, ""]]
Average = Literal["sigma", "var"]


def batch_renorm(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: RenormState | None = None,
  *,
  use_running_average: bool = False,
  r_max: Limit | None = None,
  d_max: Limit | None = None,
  average: Average = "sigma",
  epsilon: float = 1e-3,
  decay: float = 0.99,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  allow_single: bool = False,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], RenormState]:
  """Normalize each channel by its batch statistics, corrected towards the running ones.

  y = ((x - mean(x)) / sigma(x) * r + d) * scale + bias, with x (..., c) -> y (..., c),
  sigma(x) = sqrt(var(x) + epsilon), r = clip(sigma(x) / sigma, 1 / r_max, r_max) and
  d = clip((mean(x) - mean) / sigma, -d_max, d_max), both (c,) and constants for the gradient. Then
  mean <- decay * mean + (1 - decay) * mean(x), and sigma likewise towards sigma(x). Evaluation is
  y = (x - mean) / sigma * scale + bias; so is training, in value, where nothing is clipped. With
  r_max = 1 and d_max = 0 training is that of BatchNorm.

  Args:
    x: floating input, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: running `(mean, sigma, step)`, the first two (c,) and float32 or wider, step an integer.
      None: zeros, ones and 0. With `average="var"` the second is the variance.
    use_running_average: evaluate with the running values, which stay as they are.
    r_max: largest r, at least 1: a number, or a function of the traced step. None: that of the
      paper, 1 up to step 5000, then linearly to 3 at step 40000.
    d_max: largest d, at least 0, as `r_max`. None: 0 up to step 5000, then linearly to 5 at step
      25000.
    average: which running value is kept: "sigma", or "var" for the (biased) variance, of which
      sigma is sqrt(var + epsilon).
    epsilon: added to the variance. 0 is allowed; a constant channel then gives NaN.
    decay: share of the old running value in the new one, in [0, 1).
    mask: True where a position enters the statistics; (...), or (..., 1), of sizes 1 or those of x.
      Every position is normalized.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`). Without it each shard
      has its own statistics there; under `jit` with a sharded batch statistics are global anyway.
    allow_single: whether to accept a single position, whose output is d * scale + bias.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array, and the new state. Without any valid position running values normalize,
    and the state stays.

  Raises:
    ValueError: if x is not floating, r_max < 1, d_max < 0, epsilon < 0, decay is outside [0, 1),
      `average` is unknown, scale, bias, state or mask have another shape, or a training batch has
      no position or only one.

  Reference:
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", 2017, arXiv 1702.03275.

  Example:
    >>> x = jnp.array([[1.0], [3.0]])
    >>> y, (mean, sigma, step) = batch_renorm(x, r_max=3.0, d_max=5.0)
    >>> print([round(float(v), 3) for v in y.ravel()], mean.round(3), step)
    [1.0, 3.0] [0.02] 1
  """
  x, _ = prepare(x, -1, epsilon)
  c = x.shape[-1]
  check_decay(decay)
  check_limits(r_max, d_max, average)
  state = (jnp.zeros(c), jnp.ones(c), jnp.zeros((), jnp.int32)) if state is None else state
  if len(state) != 3:
    raise ValueError(f"state must be (mean, {average}, step), got {len(state)} entries")
  check_state(state[:2], f"mean, {average}", (c,))
  mask = as_position_mask(mask, x.shape)
  wide = finite_or_zero(x.astype(statistics_dtype(x)), mask)
  mean, spread = (per_channel(v, wide) for v in state[:2])
  sigma = spread if average == "sigma" else jnp.sqrt(spread + epsilon)
  if use_running_average:
    y = (wide - mean) / sigma
  else:
    check_batch(x, allow_single, axis_name)
    reduction = Reduction(tuple(range(x.ndim - 1)), x.shape, mask, axis_name)
    centered, batch_mean, var = moments(wide, reduction)
    inverse = jax.lax.rsqrt(var + epsilon)
    r_limit = _at(r_max, _paper_r_max, state[2], wide.dtype)
    d_limit = _at(d_max, _paper_d_max, state[2], wide.dtype)
    r = jax.lax.stop_gradient(jnp.clip(1 / (inverse * sigma), 1 / r_limit, r_limit))
    d = jax.lax.stop_gradient(jnp.clip((batch_mean - mean) / sigma, -d_limit, d_limit))
    y = centered * inverse * r + d
    batch_spread = 1 / inverse if average == "sigma" else var
    new = [
      moved(old, value.reshape(-1), decay)
      for old, value in zip(state[:2], (batch_mean, batch_spread), strict=True)
    ]
    filled = jnp.any(reduction.count(wide.dtype) > 0)
    if mask is not None:
      y = jnp.where(filled, y, (wide - mean) / sigma)
      new = [jnp.where(filled, v, old) for v, old in zip(new, state[:2], strict=True)]
    state = (new[0], new[1], state[2] + filled.astype(state[2].dtype))
  y = apply_affine(y, scale, bias, (x.ndim - 1,), x.dtype if dtype is None else dtype)
  return y, state


def check_limits(r_max: Limit | None, d_max: Limit | None, average: str) -> None:
  """Raise if a limit that is a number is too small, or if there is no such average."""
  for name, value, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
    known = isinstance(value, int | float | np.ndarray | np.generic)
    if known and not np.all(np.asarray(value) >= least):
      raise ValueError(f"{name} must be >= {least}, got {value}")
  if average not in ("sigma", "var"):
    raise ValueError(f"average must be 'sigma' or 'var', got {average!r}")


def _paper_r_max(step: Int[Array, ""]) -> Array:
  return jnp.interp(step, jnp.array([5000.0, 40000.0]), jnp.array([1.0, 3.0]))


def _paper_d_max(step: Int[Array, ""]) -> Array:
  return jnp.interp(step, jnp.array([5000.0, 25000.0]), jnp.array([0.0, 5.0]))


def _at(limit: Limit | None, paper: Callable, step: Int[Array, ""], dtype: Any) -> Array:
  value = paper if limit is None else limit
  return jnp.asarray(value(step) if callable(value) else value, dtype)


class BatchRenorm(RunningMode):
  """Normalizes each channel by its batch statistics, corrected towards the running ones.

  y = ((x - mean(x)) / sigma(x) * r + d) * scale + bias: `batch_renorm` with the parameters `scale`
  and `bias`, the running statistics `mean` and `sigma` (or `var`), all (num_features,), and the
  number of their updates, `step`.

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    r_max: largest r: a number, or a function of the traced step. None: the paper's schedule.
    d_max: largest d, as `r_max`.
    average: which running value is kept, "sigma" or "var"; also the name of that Variable.
    epsilon: added to the variance.
    decay: share of the old running value in the new one (1 - alpha of the paper).
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    allow_single: whether to train on a single position.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `batch_renorm`, and if the input does not have `num_features` entries.

  Reference:
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
    Models", 2017, arXiv 1702.03275.

  Example:
    >>> norm = BatchRenorm(4, d_max=lambda step: jnp.minimum(1e-3 * step, 5), rngs=nnx.Rngs(0))
    >>> y = norm(jnp.arange(8.0).reshape(2, 4))
    >>> norm.step.get_value().item()
    1
  """

  def __init__(
    self,
    num_features: int,
    *,
    use_running_average: bool | None = False,
    r_max: Limit | None = None,
    d_max: Limit | None = None,
    average: Average = "sigma",
    epsilon: float = 1e-3,
    decay: float = 0.99,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    allow_single: bool = False,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_decay(decay)
    check_limits(r_max, d_max, average)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.r_max, self.d_max = r_max, d_max
    self.average: Average = average
    self.epsilon, self.decay, self.dtype = epsilon, decay, dtype
    self.axis_name, self.allow_single = axis_name, allow_single
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
    setattr(self, average, nnx.BatchStat(jnp.ones(num_features, jnp.float32)))
    self.step = nnx.BatchStat(jnp.zeros((), jnp.int32))

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
    spread = getattr(self, self.average)
    y, state = batch_renorm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      (self.mean[...], spread[...], self.step[...]),
      use_running_average=evaluates,
      r_max=self.r_max,
      d_max=self.d_max,
      average=self.average,
      epsilon=self.epsilon,
      decay=self.decay,
      mask=mask,
      axis_name=self.axis_name,
      allow_single=self.allow_single,
      dtype=self.dtype,
    )
    if not evaluates:
      self.mean[...], spread[...], self.step[...] = state
    return y

  def evaluation_affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns `(scale, shift)`, each (c,): evaluation is x * scale + shift."""
    spread = getattr(self, self.average)[...]
    sigma = spread if self.average == "sigma" else jnp.sqrt(spread + self.epsilon)
    return evaluation_affine(1 / sigma, self.scale, self.bias, self.mean[...])
