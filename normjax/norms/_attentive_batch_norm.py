"""Attentive batch normalization for sequences, after https://arxiv.org/abs/2001.00129.

Only the abstract of the paper is public: batch normalization in LSTM acoustic models whose scale
and shift an auxiliary network generates, with attention, per frame or per utterance. Everything
beyond these words is our concrete design: the network that summarizes a frame, the additive score,
the causal window of the frame scheme, the biased running variance, and initial values with which
the layer is a plain BatchNorm. Its closest relative is dynamic layer normalization
(https://arxiv.org/abs/1707.06065), which generates scale and shift from a summary of the utterance.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import check_features, make_param, matching, new_param, value_or
from normjax.norms._arguments import (
  as_floating,
  as_position_mask,
  check_decay,
  check_epsilon,
  statistics_dtype,
)
from normjax.norms._attentive_context import (
  WEIGHTS,
  Scheme,
  as_weights,
  attentive_context,
  check_scheme,
)
from normjax.norms._batch_norm import batch_norm
from normjax.norms._running import Moments, RunningMoments, per_channel

_glorot = nnx.initializers.glorot_uniform()


def attentive_batch_norm(
  x: Float[Array, "b t c"],
  a: Float[Array, "b n d"],
  weights: Mapping[str, ArrayLike],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: Moments | None = None,
  *,
  scheme: Scheme = "frame",
  window: int = 5,
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "b t c"], Moments]:
  """Normalize each channel over batch and time, with a scale and a bias that attention generates.

  y_t = (scale + c_t @ scale_kernel) * (x_t - mean) / sqrt(var + epsilon) + bias + c_t @ bias_kernel
  with x (b, t, c) -> y (b, t, c), and the context c_t (k,) = sum_i alpha_ti s_i of the summaries
  s_i = tanh(a_i @ summary_kernel + summary_bias), i <= n. The attention alpha_t is the softmax of
  e_i = tanh(s_i @ score_kernel + score_bias) @ score_vector: over the valid frames of the sequence
  in the scheme "utterance", where c_t is the same for all t, and over those with t - window < i <=
  t in the scheme "frame", which hence needs no later frames. Without any valid frame c_t = 0.

  This is our design of a method of which only the abstract is public.

  Args:
    x: floating sequences to normalize, channels last.
    a: sequences that generate the affine, usually the input of the layer. It may start earlier than
      x, with n > t: its last t frames are those of x, and earlier ones enter attention only.
    weights: `summary_kernel` (d, k), `summary_bias` (k,), `score_kernel` (k, s), `score_bias` (s,),
      `score_vector` (s,), `scale_kernel` (k, c) and `bias_kernel` (k, c).
    scale: gain (c,) to which the generated one is added. None: ones.
    bias: shift (c,) to which the generated one is added. None: zeros.
    state: running `(mean, var)`, each (c,) and float32 or wider. None: zeros and ones.
    scheme: "frame" or "utterance".
    window: frames that the scheme "frame" attends to; 1 is no attention.
    use_running_average: evaluate with the running values, which stay as they are.
    epsilon: added to the variance.
    decay: share of the old running value in the new one, in [0, 1).
    mask: True where a frame of `a` is valid; (b, n), or (b, n, 1), of sizes 1 or those of
      `a`. Others enter neither statistics nor attention, and y is 0 there.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized sequences, and the new state, whose variance is the biased one.

  Raises:
    ValueError: if x or a are not floating or have other axes, a weight is missing, unknown or of
      another shape, scale or bias are not (c,), the scheme is unknown, window < 1 in the scheme
      "frame", the mask has another shape, and as `batch_norm`.

  Reference:
    Ding, Guo, Dai and Du, "Attentive batch normalization for LSTM-based acoustic modeling of
    speech recognition", 2020, arXiv 2001.00129.

  Example:
    >>> one, zero = jnp.ones((1, 1)), jnp.zeros(1)
    >>> weights = dict(summary_kernel=one, summary_bias=zero, score_kernel=one, score_bias=zero)
    >>> weights |= dict(score_vector=zero, scale_kernel=one, bias_kernel=0 * one)
    >>> x, a = jnp.array([[[-1.0], [1.0]]]), jnp.array([[[0.0], [9.0]]])
    >>> y, _ = attentive_batch_norm(x, a, weights, window=1)  # scales 1 + tanh(0), 1 + tanh(9)
    >>> [round(float(v), 2) for v in y.ravel()]
    [-1.0, 2.0]
  """
  x, a = as_floating(x), as_floating(a, "a")
  _check_frames(x.shape, a.shape)
  check_scheme(scheme, window)
  wide = statistics_dtype(x)
  arrays = as_weights(weights, a.shape[2], x.shape[2], wide)
  start = a.shape[1] - x.shape[1]
  valid = jnp.ones((*a.shape[:2], 1), bool)
  positions = as_position_mask(mask, a.shape)
  if positions is not None:
    valid = jnp.broadcast_to(positions, valid.shape)
    # Whatever stands at padding would meet a gradient of 0 there, and NaN * 0 is NaN.
    a, x = jnp.where(valid, a, 0), jnp.where(valid[:, start:], x, 0)
  context = attentive_context(a.astype(wide), arrays, valid[..., 0], scheme, window, start)
  y, state = batch_norm(
    x,
    _added("scale", scale, 1.0, context @ arrays["scale_kernel"]),
    _added("bias", bias, 0.0, context @ arrays["bias_kernel"]),
    state,
    use_running_average=use_running_average,
    epsilon=epsilon,
    decay=decay,
    mask=None if mask is None else valid[:, start:],
    axis_name=axis_name,
    var_estimator="biased",
    masked_output="zero",
    dtype=dtype,
  )
  return y, state


def _check_frames(shape: tuple[int, ...], a_shape: tuple[int, ...]) -> None:
  if len(shape) != 3:
    raise ValueError(f"x must be sequences (batch, time, channels), got shape {shape}")
  if len(a_shape) != 3 or a_shape[0] != shape[0] or a_shape[1] < shape[1]:
    raise ValueError(
      f"a must be {shape[0]} sequences of {shape[1]} frames or more, as x is of shape {shape}, got "
      f"shape {a_shape}"
    )


def _added(
  name: str, own: ArrayLike | None, default: float, generated: Float[Array, "b t c"]
) -> Float[Array, "b t c"]:
  if own is None:
    return default + generated
  own = jnp.asarray(own)
  if own.shape != generated.shape[-1:]:
    raise ValueError(f"{name} must have shape {generated.shape[-1:]}, got {own.shape}")
  return per_channel(own, generated) + generated


def _symmetric_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
  """Draw from U(-1 / sqrt(n), 1 / sqrt(n)), n the length of the vector."""
  limit = shape[0] ** -0.5
  return jax.random.uniform(key, shape, dtype, -limit, limit)


class AttentiveBatchNorm(RunningMoments):
  """Normalizes each channel over batch and time, with an affine that attention generates.

  y_t = (scale + c_t @ scale_kernel) * (x_t - mean) / sqrt(var + epsilon) + bias + c_t @ bias_kernel
  with the context c_t of `attentive_batch_norm`, whose weights are parameters; `scale` and `bias`
  and the running statistics `mean` and `var` are (num_features,). At first the two kernels are
  zero, and the layer is a plain BatchNorm.

  This is our design of a method of which only the abstract is public.

  Args:
    num_features: size c of the last axis of x.
    input_features: size d of the last axis of `a`.
    summary_features: size k of the summary of a frame.
    score_features: hidden size s of the attention score.
    scheme: "frame", or "utterance", which needs the whole sequence.
    window: frames that the scheme "frame" attends to.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old running value in the new one.
    use_scale: whether there is a `scale` (ones at first); without it the gain starts at 1 as well.
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of x.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    kernel_init: initializer of `summary_kernel` and `score_kernel`.
    affine_init: initializer of `scale_kernel` and `bias_kernel`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `attentive_batch_norm`, if a size is not positive, and if x does not have
      `num_features` channels.

  Reference:
    Ding, Guo, Dai and Du, "Attentive batch normalization for LSTM-based acoustic modeling of
    speech recognition", 2020, arXiv 2001.00129.

  Example:
    >>> norm = AttentiveBatchNorm(4, 3, scheme="utterance", rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 5, 4)), jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
  """

  def __init__(
    self,
    num_features: int,
    input_features: int,
    *,
    summary_features: int = 64,
    score_features: int = 32,
    scheme: Scheme = "frame",
    window: int = 5,
    use_running_average: bool | None = False,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    kernel_init: Initializer = _glorot,
    affine_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_decay(decay)
    check_scheme(scheme, window)
    sizes = {"d": input_features, "k": summary_features, "s": score_features, "c": num_features}
    if min(sizes.values()) < 1:
      raise ValueError(
        "input_features, summary_features and score_features must be positive, got "
        f"{input_features}, {summary_features} and {score_features}"
      )
    self.num_features, self.use_running_average = num_features, use_running_average
    self.scheme: Scheme = scheme
    self.window, self.epsilon, self.decay = window, epsilon, decay
    self.dtype, self.axis_name = dtype, axis_name
    zeros = nnx.initializers.zeros
    for name, init in {
      "summary_kernel": kernel_init,
      "summary_bias": zeros,
      "score_kernel": kernel_init,
      "score_bias": zeros,
      "score_vector": _symmetric_uniform,
      "scale_kernel": affine_init,
      "bias_kernel": affine_init,
    }.items():
      shape = tuple(sizes[letter] for letter in WEIGHTS[name])
      setattr(self, name, new_param(init, shape, param_dtype, rngs))
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self._begin(num_features)

  def __call__(
    self,
    x: Float[Array, "b t c"],
    a: Float[Array, "b n d"],
    use_running_average: bool | None = None,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "b t c"]:
    """Normalize `x` as `a` says; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    evaluates = self._evaluates(use_running_average)
    y, state = attentive_batch_norm(
      x,
      a,
      {name: getattr(self, name)[...] for name in WEIGHTS},
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      self._moments(),
      scheme=self.scheme,
      window=self.window,
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    self._keep(state, evaluates)
    return y
