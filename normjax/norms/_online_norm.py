"""Online Normalization ("Online Normalization for Training Neural Networks", Chiley et al.).

https://arxiv.org/abs/1905.05894

What differs from the authors' code: `decay` and `backward_decay` are its alpha_fwd and alpha_bkw;
the control state (u, v) is the paper's (epsilon^(1), epsilon^(y)). As in that code, and not as in
the paper, scale and bias come before layer scaling or clamping (`ecm_first` has the other order);
its numpy version clamps at 5 whatever one asks for, and here `clamp_value` counts. The examples of
a batch are a stream, but only recurrences of one number per channel run through it; each example's
moments, normalization and gradient are computed together. Masks and means over devices are ours.
"""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.carried import GradCarried
from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_position_mask,
  check_epsilon,
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._error_compensation import Compensation, check_compensation, compensate
from normjax.norms._online_stream import Pair, Stream, stream_normalize
from normjax.norms._recurrence import Method, check_method
from normjax.norms._running import RunningMoments, check_state, per_channel


def online_norm(
  x: Float[Array, "t *space c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: Pair | None = None,
  control: Pair | None = None,
  *,
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.999,
  backward_decay: float = 0.99,
  ecm: Compensation | None = "ac",
  clamp_value: float = 5.0,
  ls_epsilon: float = 1e-5,
  ls_group_size: int | None = None,
  ecm_first: bool = False,
  method: Method | None = None,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "t *space c"], Pair]:
  """Normalize each example with the statistics of the examples before it, then scale and shift it.

  z_t = (x_t - mean_{t-1}) / sqrt(var_{t-1} + epsilon) * scale + bias, with x (t, *space, c) whose
  first axis is time, and mean, var (c,). With m_t and s_t the mean and the variance of x_t over its
  space, delta_t = m_t - mean_{t-1} and a = decay,

    mean_t = mean_{t-1} + (1 - a) delta_t,
    var_t = a var_{t-1} + (1 - a) s_t + a (1 - a) delta_t^2.

  The output is z_t clamped to [-clamp_value, clamp_value] (ecm="ac"), or over the root of its mean
  square over space and channels plus ls_epsilon (ecm="ls"). The gradient is no derivative: with the
  normalized example n_t, its cotangent g_t, its divisor sigma_t and k = 1 - backward_decay,

    a_t = g_t - k v_{t-1} n_t,              v_t = v_{t-1} + mean(a_t n_t),
    dx_t = a_t / sigma_t - k u_{t-1},       u_t = u_{t-1} + mean(dx_t),

  so that dx_t and a_t n_t average to zero over time, as gradients through exact statistics do.

  Args:
    x: floating input, time first and channels last; space may be empty.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: `(mean, var)`, each (c,) and float32 or wider; constants for the gradient. None: zeros
      and ones.
    control: `(u, v)`, likewise. Its cotangent is its increment: differentiate with respect to it,
      and add (`normjax.carried`). Give each call in a loss its own. None: zeros.
    use_running_average: evaluate with `state`, which stays; the gradient is then the derivative.
    epsilon: added to the variance. 0 is allowed; a running variance of 0 then gives NaN.
    decay: share of the old value in the running mean and variance, in (0, 1).
    backward_decay: likewise in the control of the gradient.
    ecm: what keeps outputs bounded, "ac" (activation clamping), "ls" (layer scaling) or None. With
      None, v diverges where the mean square of n_t stays above 2 / (1 - backward_decay).
    clamp_value: bound of "ac"; no gradient passes at or beyond it.
    ls_epsilon: added to the mean square of "ls".
    ls_group_size: adjacent channels that "ls" scales together; None: all.
    ecm_first: whether `ecm` comes before scale and bias.
    method: "scan" runs the recurrences one example after the other, "associative" in parallel, with
      results equal up to rounding. None: a scan on CPUs.
    mask: True where a position enters the statistics and has a gradient; (t,), (t, *space) or
      (t, *space, 1), of sizes 1 or those of x. An example without any True is normalized with the
      state at its time, and leaves the state and the control alone.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`). Every device runs the
      stream of its shard from the same state, and the four new vectors are averaged: results depend
      on the number of devices. Without it devices have streams of their own, whose vectors,
      stacked, one averages to evaluate. Under `jit` a sharded batch is one stream anyway.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array, and the new `(mean, var)`, through which no gradient passes.

  Raises:
    ValueError: if x is not floating, is empty or has fewer than two axes, an epsilon is < 0, a
      decay is not inside (0, 1), clamp_value <= 0, ls_group_size does not divide c, an option is
      unknown, or scale, bias, state, control or mask have another shape.

  Reference:
    Chiley, Sharma, Thangarasa, Koliousis, Samar, "Online Normalization for Training Neural
    Networks", 2019, arXiv 1905.05894.

  Example:
    >>> y, (mean, var) = online_norm(jnp.array([[2.0], [2.0]]), decay=0.5)
    >>> print(y.ravel().round(1), mean, var)
    [2.  0.8] [1.5] [1.]
  """
  x, _ = prepare(x, -1, epsilon)
  c = x.shape[-1]
  if x.ndim < 2 or x.size == 0:
    raise ValueError(f"x must have shape (t, ..., c) and at least one entry, got {x.shape}")
  stream = Stream(decay, backward_decay, epsilon, method, axis_name)
  check_stream(stream)
  check_compensation(ecm, clamp_value, ls_epsilon, ls_group_size, c)
  state = (jnp.zeros(c), jnp.ones(c)) if state is None else state
  check_state(state, "mean, var", (c,))
  control = (jnp.zeros(c), jnp.zeros(c)) if control is None else control
  check_state(control, "u, v", (c,))
  mask = _as_mask(mask, x.shape)
  dtype = floating_dtype(x.dtype if dtype is None else dtype, "dtype")
  y = x.astype(statistics_dtype(x))
  if use_running_average:
    new, (mean, var) = state, (per_channel(v, y) for v in state)
    y = (y - mean) / jnp.sqrt(var + epsilon)
  else:
    y, new = stream_normalize(stream, y, state, control, mask)
  bound = lambda y: compensate(y, ecm, clamp_value, ls_epsilon, ls_group_size, mask)
  if ecm_first:
    y = bound(y)
  y = apply_affine(y, scale, bias, (x.ndim - 1,), y.dtype)
  if not ecm_first:
    y = bound(y)
  return y.astype(dtype), new


def check_stream(stream: Stream) -> None:
  """Raise unless the constants of a stream are in their ranges."""
  check_epsilon(stream.epsilon)
  check_method(stream.method)
  for name in ("decay", "backward_decay"):
    value = getattr(stream, name)
    if not 0 < value < 1:
      raise ValueError(
        f"{name} must be inside (0, 1), got {value}: it is the share of the old value"
      )


def _as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
  """Returns the mask of positions, given as such or as one of examples (t,), as (t, ..., 1)."""
  if mask is not None and jnp.ndim(mask) == 1:
    mask = jnp.asarray(mask).reshape(-1, *(1,) * (len(shape) - 2))
  mask = as_position_mask(mask, shape)
  return None if mask is None else jnp.broadcast_to(mask, (*shape[:-1], 1))


class OnlineNorm(RunningMoments):
  """Normalizes each example with the statistics of the examples before it, then scales and shifts.

  `online_norm` with the parameters `scale` and `bias`, the running statistics `mean` and `var`
  (`nnx.BatchStat`) and the control state `u` and `v` (`normjax.carried.GradCarried`, whose
  increments come out of the backward pass), all (num_features,). Call it once in a loss.

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old value in the running mean and variance.
    backward_decay: likewise in the control of the gradient.
    ecm: what keeps outputs bounded, "ac" (activation clamping), "ls" (layer scaling) or None.
    clamp_value: bound of "ac".
    ls_epsilon: added to the mean square of "ls".
    ls_group_size: adjacent channels that "ls" scales together; None: all.
    ecm_first: whether `ecm` comes before scale and bias.
    method: how recurrences run, "scan" or "associative"; None: a scan on CPUs.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis whose devices average the four vectors (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `online_norm`, and if the input does not have `num_features` entries.

  Reference:
    Chiley, Sharma, Thangarasa, Koliousis, Samar, "Online Normalization for Training Neural
    Networks", 2019, arXiv 1905.05894.

  Example:
    >>> norm = OnlineNorm(2, decay=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.full((2, 3, 2), 4.0))
    >>> print(norm.mean[...], norm.var[...])
    [3. 3.] [3.25 3.25]
  """

  def __init__(
    self,
    num_features: int,
    *,
    use_running_average: bool | None = False,
    epsilon: float = 1e-5,
    decay: float = 0.999,
    backward_decay: float = 0.99,
    ecm: Compensation | None = "ac",
    clamp_value: float = 5.0,
    ls_epsilon: float = 1e-5,
    ls_group_size: int | None = None,
    ecm_first: bool = False,
    method: Method | None = None,
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
    check_stream(Stream(decay, backward_decay, epsilon, method, axis_name))
    check_compensation(ecm, clamp_value, ls_epsilon, ls_group_size, num_features)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.epsilon, self.decay, self.backward_decay = epsilon, decay, backward_decay
    self.ecm: Compensation | None = ecm
    self.clamp_value, self.ls_epsilon, self.ls_group_size = clamp_value, ls_epsilon, ls_group_size
    self.ecm_first, self.dtype, self.axis_name = ecm_first, dtype, axis_name
    self.method: Method | None = method
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self._begin(num_features)
    self.u = GradCarried(jnp.zeros(num_features, jnp.float32))
    self.v = GradCarried(jnp.zeros(num_features, jnp.float32))

  def __call__(
    self,
    x: Float[Array, "t *space c"],
    use_running_average: bool | None = None,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "t *space c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    evaluates = self._evaluates(use_running_average)
    y, state = online_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      self._moments(),
      (self.u[...], self.v[...]),
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      backward_decay=self.backward_decay,
      ecm=self.ecm,
      clamp_value=self.clamp_value,
      ls_epsilon=self.ls_epsilon,
      ls_group_size=self.ls_group_size,
      ecm_first=self.ecm_first,
      method=self.method,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    self._keep(state, evaluates)
    return y
