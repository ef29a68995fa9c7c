"""Power normalization ("PowerNorm", https://arxiv.org/abs/2003.07845).

Follows the authors' code where it departs from the paper, with the paper's way as an option: the
backward pass divides by the quadratic mean of the batch also after the warm-up
(`backward_denominator`); it uses the carried statistic also during the warm-up, whose gradient is
thus not the exact one (`warmup_backward`); padded positions enter the mean of the gradients
(`mask_backward`). The running value is a cumulative *and* an exponential average in the warm-up.
What differs from the code: devices combine sums and counts, and a batch without any valid position
is evaluated and leaves all state alone.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from normjax.carried import GradCarried
from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import as_position_mask, prepare, statistics_dtype
from normjax.norms._mean_square import as_counter, check_positions, evaluated
from normjax.norms._power_training import PowerRule, train
from normjax.norms._rms_norm import rms_norm
from normjax.norms._running import RunningMode, check_state, evaluation_affine

State = tuple[Float[Array, " c"], Int[Array, ""]]


def power_norm(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: State | None = None,
  err: Float[Array, " c"] | None = None,
  *,
  use_running_average: bool = False,
  num_groups: int | None = 1,
  warmup_iters: int = 10_000,
  epsilon: float = 1e-5,
  group_epsilon: float = 1e-5,
  decay: float = 0.9,
  backward_decay: float = 0.9,
  backward_denominator: Literal["batch", "running"] = "batch",
  warmup_backward: Literal["carried", "exact"] = "carried",
  mask_backward: bool = False,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], State]:
  """Divide each channel by its running quadratic mean, then scale and shift it.

  With x (..., c) -> y (..., c): h is x over its root mean square in each of `num_groups` groups of
  channels, and y = z * scale + bias with z = h / sqrt(m + epsilon). At step k of training, m is the
  mean b (c,) of h^2 over the valid positions while k <= warmup_iters and phi after that, and phi
  moves: phi <- phi * (k - 1) / k + b / k if k < warmup_iters, and always
  phi <- decay * phi + (1 - decay) * b. In evaluation m = phi.

  The backward pass of training is not the derivative. From the cotangent dz it computes
  a = dz - (1 - backward_decay) * err * z and dh = a / sqrt(b + epsilon), and the "gradient" of
  `err` is its increment, the mean of a * z over all positions (see `normjax.carried`). It has no
  forward mode.

  Args:
    x: floating input of two axes or more, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: `(phi, iters)`, the running mean square (c,), float32 or wider, and the number of
      training steps done, an integer. None: ones and 0.
    err: what the backward passes accumulate, (c,), float32 or wider. None: zeros.
    use_running_average: evaluate with phi; the state stays as it is.
    num_groups: contiguous groups of channels that are divided by their root mean square at each
      position first; the authors take the number of attention heads. None: none.
    warmup_iters: training steps that use the batch's own statistics. Set `iters` to 0 to warm up
      again.
    epsilon: added to the mean square of channels. 0 is allowed; a channel of zeros then gives NaN.
    group_epsilon: added to the mean square of groups.
    decay: share of the old running value in the new one, in [0, 1).
    backward_decay: 1 minus the rate at which `err` enters the gradient, in [0, 1).
    backward_denominator: what dh divides by after the warm-up: "batch" takes b as the authors' code
      does, "running" takes phi as the paper does.
    warmup_backward: "carried" as above, or "exact": the derivative, with err left alone.
    mask_backward: whether masked positions stay out of the mean of a * z. Without it they must hold
      finite values.
    mask: True where a position enters the statistics; (...), or (..., 1), of sizes 1 or those of x.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`, with `check_vma`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array and the new state. A batch without any valid position is evaluated.

  Raises:
    ValueError: if x is not floating or has one axis only, an epsilon or warmup_iters is negative, a
      decay is outside [0, 1), num_groups does not divide c, an option is unknown, or scale, bias,
      state, err or mask have another shape.

  Reference:
    Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", 2020,
    arXiv 2003.07845.

  Example:
    >>> import jax
    >>> x, err = jnp.array([[0.0, 4.0], [2.0, 0.0]]), jnp.zeros(2)
    >>> y, (phi, iters) = power_norm(x, err=err, num_groups=None)
    >>> print(y[0].round(3), phi, iters)
    [0.    1.414] [2. 8.] 1
    >>> loss = lambda err: jnp.sum(power_norm(x, err=err, num_groups=None)[0])
    >>> increment = jax.grad(loss)(err)
    >>> print(increment.round(3))
    [0.707 0.707]
  """
  rule = PowerRule(
    num_groups,
    warmup_iters,
    epsilon,
    group_epsilon,
    decay,
    backward_decay,
    backward_denominator,
    warmup_backward,
    mask_backward,
    axis_name,
  )
  x, _ = prepare(x, -1, epsilon)
  check_positions(x)
  c = x.shape[-1]
  rule.check(c)
  phi, iters = (jnp.ones(c), 0) if state is None else state
  err = jnp.zeros(c) if err is None else jnp.asarray(err)
  phi, iters = jnp.asarray(phi), as_counter(iters, "iters")
  check_state((phi, err), "phi, err", (c,))
  mask = as_position_mask(mask, x.shape)
  h = x.astype(statistics_dtype(x))
  if num_groups is not None:
    grouped = h.reshape(*x.shape[:-1], num_groups, c // num_groups)
    h = rms_norm(grouped, epsilon=group_epsilon).reshape(x.shape)
  if use_running_average or x.size == 0:
    y = evaluated(h, phi, epsilon)
  else:
    y, phi, iters = train(rule, h, phi, iters, err, mask)
  y = apply_affine(y, scale, bias, (x.ndim - 1,), x.dtype if dtype is None else dtype)
  return y, (phi, iters)


class PowerNorm(RunningMode):
  """Divides each channel by its running quadratic mean, then scales and shifts it.

  y = z * scale + bias, z = h / sqrt(m + epsilon): `power_norm` with the parameters `scale` and
  `bias`, the running mean square `phi` and `err`, all (num_features,), and the step counter
  `iters`. `err` is a `GradCarried`: train with `normjax.carried`.

  Args:
    num_features: size of the last axis.
    use_running_average: whether to evaluate with the running value; a call, `train()`, `eval()` and
      `nnx.view` may set it later.
    num_groups: groups of channels that are divided by their root mean square first; None: none.
    warmup_iters: training steps that use the batch's own statistics.
    epsilon: added to the mean square of channels.
    group_epsilon: added to the mean square of groups.
    decay: share of the old running value in the new one.
    backward_decay: 1 minus the rate at which `err` enters the gradient.
    backward_denominator: "batch" or, after the warm-up, "running".
    warmup_backward: "carried" or "exact".
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
    ValueError: as `power_norm`, and if the input does not have `num_features` entries.

  Reference:
    Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", 2020,
    arXiv 2003.07845.

  Example:
    >>> norm = PowerNorm(4, num_groups=2, rngs=nnx.Rngs(0))
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
    num_groups: int | None = 1,
    warmup_iters: int = 10_000,
    epsilon: float = 1e-5,
    group_epsilon: float = 1e-5,
    decay: float = 0.9,
    backward_decay: float = 0.9,
    backward_denominator: Literal["batch", "running"] = "batch",
    warmup_backward: Literal["carried", "exact"] = "carried",
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
    self.num_groups, self.warmup_iters = num_groups, warmup_iters
    self.epsilon, self.group_epsilon = epsilon, group_epsilon
    self.decay, self.backward_decay = decay, backward_decay
    self.backward_denominator, self.warmup_backward = backward_denominator, warmup_backward
    self.mask_backward, self.axis_name = mask_backward, axis_name
    PowerRule(**self._options()).check(num_features)
    self.dtype = dtype
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self.phi = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
    self.iters = nnx.BatchStat(jnp.zeros((), jnp.int32))
    self.err = GradCarried(jnp.zeros(num_features, jnp.float32))

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
    y, state = power_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      (self.phi[...], self.iters[...]),
      self.err[...],
      use_running_average=evaluates,
      mask=mask,
      dtype=self.dtype,
      **self._options(),
    )
    if not evaluates:
      self.phi[...], self.iters[...] = state
    return y

  def _options(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(PowerRule)}

  def restart_warmup(self) -> None:
    """Set `iters` to 0, for training on another task: the next steps use their own statistics."""
    self.iters[...] = jnp.zeros_like(self.iters[...])

  def evaluation_affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns the scale and shift of which evaluation is y = x * scale + shift.

    Raises:
      ValueError: unless num_groups is None, as groups are divided by what each position holds.
    """
    if self.num_groups is not None:
      raise ValueError(
        f"num_groups must be None for evaluation to be an affine map, got {self.num_groups}"
      )
    inverse = jax.lax.rsqrt(self.phi[...] + self.epsilon)
    return evaluation_affine(inverse, self.scale, self.bias)
