"""Unified normalization (https://arxiv.org/abs/2208.01313).

Follows the authors' code where it departs from the paper: the variance that outliers are measured
by is the unbiased one over the window and all channels (`variance_scope="channel"` takes one per
channel, as the bound suggests); the ratio of standard deviations enters the gradient after 1000
steps (`ratio_warmup`), and enters that of the scale too; during the warm-up the gradient already
uses its running mean. What differs from the code: a window with a row that was never written is not
used, the rounding of equal numbers is no outlier, devices combine sums and counts, and a batch
without any valid position is evaluated and leaves all state alone.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.carried import GradCarried
from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import as_position_mask, prepare, statistics_dtype
from normjax.norms._mean_square import as_counter, check_positions, evaluated
from normjax.norms._running import RunningMode, check_state, evaluation_affine
from normjax.norms._unified_training import UnifiedRule, UnifiedState, scaled_backward, train

Err = tuple[Float[Array, " c"], Float[Array, "v c"]]


def unified_norm(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: tuple[Array, Array, Array, Array] | None = None,
  err: Err | None = None,
  *,
  use_running_average: bool = False,
  window: int | tuple[int, int] = 4,
  warmup_iters: int = 4000,
  outlier_filtration: bool = False,
  variance_scope: Literal["layer", "channel"] = "layer",
  ratio_warmup: int = 1000,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask_backward: bool = False,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], UnifiedState]:
  """Divide each channel by a quadratic mean smoothed over steps, then scale and shift it.

  y = z * scale + bias, z = x / sqrt(m + epsilon), with x (..., c) -> y (..., c). At step k of
  training, b (c,) is the mean of x^2 over the valid positions, `recent` keeps it for w steps, and m
  is b while k <= w or k < warmup_iters, and the geometric mean of `recent` after that; phi moves:
  phi <- decay * phi + (1 - decay) * m. In evaluation m = phi. With `outlier_filtration`, a batch
  from step warmup_iters on for which AM - GM of `recent` exceeds w * Var(sqrt(recent before)) in
  some channel is an outlier: m = b, and phi stands in for it in `recent`.

  The backward pass of training is not the derivative. From dy it takes g = dy * scale * r, where
  r = sqrt(m + epsilon) / sqrt(phi + epsilon), with the old phi and clipped to [1/5, 5], is 1 up to
  step max(ratio_warmup, warmup_iters) and for an outlier. The mean of g * z over all positions is
  smoothed over v steps by its arithmetic mean, e <- decay * e + (1 - decay) * smoothed, and
  dx = (g - e * z) / sqrt(m + epsilon). The "gradient" of `err` is the increment of e and of that
  window (see `normjax.carried`). It has no forward mode.

  Args:
    x: floating input of two axes or more, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: `(phi, recent, iters, skips)`: the running mean square (c,) and the last mean squares
      (w, c), float32 or wider, and integers, the training steps and the outliers so far. None: ones
      and zeros.
    err: `(e, window)`, (c,) and (v, c), float32 or wider. None: zeros.
    use_running_average: evaluate with phi; the state stays as it is.
    window: number of steps w = v, or the pair (w, v). With w = 1 nothing is smoothed.
    warmup_iters: steps before smoothing and filtration begin. Set `iters` to 0 to warm up again.
    outlier_filtration: whether to keep outliers out; the authors do so for vision.
    variance_scope: whether the variance is that of all channels together, "layer", or "channel".
    ratio_warmup: steps before r enters the gradient.
    epsilon: added to the mean square. 0 is allowed; a channel of zeros then gives NaN.
    decay: share of the old running values in the new ones, in [0, 1).
    mask_backward: whether masked positions stay out of the mean of g * z. Without it they must hold
      finite values.
    mask: True where a position enters the statistics; (...), or (..., 1), of sizes 1 or those of x.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`, with `check_vma`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array and the new state. A batch without any valid position is evaluated.

  Raises:
    ValueError: if x is not floating or has one axis only, epsilon or a number of steps is negative,
      decay is outside [0, 1), a window is < 1, an option is unknown, or scale, bias, state, err or
      mask have another shape.

  Reference:
    Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers", 2022,
    arXiv 2208.01313.

  Example:
    >>> y, state = unified_norm(jnp.array([[0.0], [2.0]]), window=2)
    >>> print(y.ravel().round(3), state.phi.round(3), state.recent.ravel())
    [0.    1.414] [1.1] [0. 2.]
  """
  rule = UnifiedRule(
    window,
    warmup_iters,
    outlier_filtration,
    variance_scope,
    ratio_warmup,
    epsilon,
    decay,
    mask_backward,
    axis_name,
  )
  rule.check()
  x, _ = prepare(x, -1, epsilon)
  check_positions(x)
  c, (w, v) = x.shape[-1], rule.windows
  phi, recent, iters, skips = (jnp.ones(c), jnp.zeros((w, c)), 0, 0) if state is None else state
  e, past = (jnp.zeros(c), jnp.zeros((v, c))) if err is None else err
  check_state((phi, e), "phi, e", (c,))
  check_state((recent,), "recent", (w, c))
  check_state((past,), "window", (v, c))
  old = UnifiedState(
    jnp.asarray(phi), jnp.asarray(recent), as_counter(iters, "iters"), as_counter(skips, "skips")
  )
  mask = as_position_mask(mask, x.shape)
  wide = x.astype(statistics_dtype(x))
  axes, dtype = (x.ndim - 1,), x.dtype if dtype is None else dtype
  if use_running_average or x.size == 0:
    return apply_affine(evaluated(wide, old.phi, epsilon), scale, bias, axes, dtype), old
  z, ratio, new = train(rule, wide, old, (jnp.asarray(e), jnp.asarray(past)), mask)
  y = scaled_backward(apply_affine(z, scale, None, axes, z.dtype), ratio)
  return apply_affine(y, None, bias, axes, dtype), new


class UnifiedNorm(RunningMode):
  """Divides each channel by a quadratic mean smoothed over steps, then scales and shifts it.

  y = z * scale + bias, z = x / sqrt(m + epsilon): `unified_norm` with the parameters `scale` and
  `bias` and the running mean square `phi`, all (num_features,), the window `recent` (w,
  num_features), the counters `iters` and `skips`, and `err` (num_features,) and `err_recent` (v,
  num_features), which are `GradCarried`: train with `normjax.carried`. In evaluation it is a
  constant scale and shift, `evaluation_affine`, which fold into a linear layer next to it.

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running value; a call, `train()`, `eval()` and
      `nnx.view` may set it later.
    window: number of steps w = v to smooth over, or the pair (w, v).
    warmup_iters: steps before smoothing and filtration begin.
    outlier_filtration: whether to keep outliers out.
    variance_scope: whether outliers are measured by the variance of the "layer" or of the
      "channel".
    ratio_warmup: steps before the ratio of standard deviations enters the gradient.
    epsilon: added to the mean square.
    decay: share of the old running values in the new ones.
    mask_backward: whether masked positions stay out of the gradient's statistics.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `unified_norm`, and if the input does not have `num_features` entries.

  Reference:
    Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers", 2022,
    arXiv 2208.01313.

  Example:
    >>> norm = UnifiedNorm(4, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.arange(8.0).reshape(2, 4))
    >>> int(norm.iters[...])
    1
    >>> norm.restart_warmup()  # before training on another task
    >>> int(norm.iters[...])
    0
  """

  def __init__(
    self,
    num_features: int,
    *,
    use_running_average: bool | None = False,
    window: int | tuple[int, int] = 4,
    warmup_iters: int = 4000,
    outlier_filtration: bool = False,
    variance_scope: Literal["layer", "channel"] = "layer",
    ratio_warmup: int = 1000,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    mask_backward: bool = False,
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
    self.num_features, self.use_running_average = num_features, use_running_average
    self.window = window if isinstance(window, int) else (*window,)
    self.warmup_iters, self.ratio_warmup = warmup_iters, ratio_warmup
    self.outlier_filtration, self.variance_scope = outlier_filtration, variance_scope
    self.epsilon, self.decay = epsilon, decay
    self.mask_backward, self.axis_name = mask_backward, axis_name
    rule = UnifiedRule(**self._options())
    rule.check()
    self.dtype = dtype
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    w, v = rule.windows
    self.phi = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
    self.recent = nnx.BatchStat(jnp.zeros((w, num_features), jnp.float32))
    self.iters = nnx.BatchStat(jnp.zeros((), jnp.int32))
    self.skips = nnx.BatchStat(jnp.zeros((), jnp.int32))
    self.err = GradCarried(jnp.zeros(num_features, jnp.float32))
    self.err_recent = GradCarried(jnp.zeros((v, num_features), jnp.float32))

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
    y, state = unified_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      (self.phi[...], self.recent[...], self.iters[...], self.skips[...]),
      (self.err[...], self.err_recent[...]),
      use_running_average=evaluates,
      mask=mask,
      dtype=self.dtype,
      **self._options(),
    )
    if not evaluates:
      self.phi[...], self.recent[...], self.iters[...], self.skips[...] = state
    return y

  def _options(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(UnifiedRule)}

  def restart_warmup(self) -> None:
    """Set `iters` to 0, for training on another task: the next steps use their own statistics."""
    self.iters[...] = jnp.zeros_like(self.iters[...])

  def evaluation_affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns the scale and shift of which evaluation is y = x * scale + shift."""
    inverse = jax.lax.rsqrt(self.phi[...] + self.epsilon)
    return evaluation_affine(inverse, self.scale, self.bias)
