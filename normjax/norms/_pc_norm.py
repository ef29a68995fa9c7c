"""Phase-consistent normalization, PCNorm (https://arxiv.org/abs/2303.02328).

The paper reads the amplitudes of an image's spectrum as its style and the phases as its content.
BatchNorm changes both; PCNorm takes the amplitudes that BatchNorm gives and keeps the phases.

What differs from the authors' code: half the spectrum (the other half is its mirror image), and
`method="closed_form"`. Since BatchNorm is affine in each channel, it changes no phase but that of
the constant bin, whose phase is a sign. So PCNorm is BatchNorm except that each image's mean keeps
the sign it had. This needs no transform, and has no floor under the amplitudes.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import check_decay, check_epsilon, statistics_dtype
from normjax.norms._batch_norm import batch_norm
from normjax.norms._running import Moments, RunningMoments
from normjax.norms._spectrum import Method, as_whole_images, check_method, with_phase_of


def pc_norm(
  x: Float[Array, "b h w c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  state: Moments | None = None,
  *,
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  axis_name: str | None = None,
  method: Method = "fft",
  mask: Any = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "b h w c"], Moments]:
  """Give images the amplitudes of their batch normalization and let them keep their phases.

  y = F^-1(|F(xn)| * exp(i arg F(x))) * scale + bias, with xn = (x - m) / s the batch normalization
  of x, s = sqrt(var + epsilon), and F the transform of each image and channel over (h, w); x
  (b, h, w, c) -> y (b, h, w, c). With m_i (b, 1, 1, c) the mean of each image this is, in closed
  form, y = ((x - m_i) / s + sign(m_i) * |m_i - m| / s) * scale + bias.

  y jumps by 2 |m_i - m| / s where m_i crosses 0. The transform's amplitudes are at least 3.2e-3:
  a channel without variance becomes noise of this size there, and its bias in closed form.

  Args:
    x: floating images, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    state: running `(mean, var)`, each (c,) and float32 or wider. None: zeros and ones.
    use_running_average: evaluate with the running values, which stay as they are.
    epsilon: added to the variance.
    decay: share of the old running value in the new one, in [0, 1).
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    method: "fft" computes as the authors do; "closed_form" is faster and has no floor.
    mask: must be None; here for code that passes one to every norm.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized images, and the new state.

  Raises:
    ValueError: if x is not floating or does not have 4 axes, a mask is given, the method is
      unknown, and as `batch_norm`.

  Reference:
    Lee, Bae and Kim, "Decompose, Adjust, Compose: Effective Normalization by Playing with
    Frequency for Domain Generalization", 2023, arXiv 2303.02328.

  Example:
    >>> x = jnp.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]).reshape(2, 1, 3, 1)
    >>> y, _ = pc_norm(x, epsilon=0.0)  # both means are positive, and stay so
    >>> [round(float(v), 2) for v in y.ravel()]
    [0.46, 0.93, 1.39, 0.46, 0.93, 1.39]
  """
  x = as_whole_images(x, mask, method)
  wide = x.astype(statistics_dtype(x))
  normalized, state = batch_norm(
    wide,
    state=state,
    use_running_average=use_running_average,
    epsilon=epsilon,
    decay=decay,
    axis_name=axis_name,
  )
  y = with_phase_of(wide, normalized, method)
  return apply_affine(y, scale, bias, (3,), x.dtype if dtype is None else dtype), state


class PCNorm(RunningMoments):
  """Gives images the amplitudes of their batch normalization and lets them keep their phases.

  y = F^-1(|F(xn)| * exp(i arg F(x))) * scale + bias: `pc_norm` with the parameters `scale` and
  `bias` and the running statistics `mean` and `var`, all (num_features,).

  Args:
    num_features: number of channels.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old running value in the new one.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    method: "fft" or "closed_form".
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `pc_norm`, and if the input does not have `num_features` channels.

  Reference:
    Lee, Bae and Kim, "Decompose, Adjust, Compose: Effective Normalization by Playing with
    Frequency for Domain Generalization", 2023, arXiv 2303.02328.

  Example:
    >>> norm = PCNorm(3, method="closed_form", rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 3)
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
    method: Method = "fft",
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_decay(decay)
    check_method(method)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.epsilon, self.decay, self.dtype, self.axis_name = epsilon, decay, dtype, axis_name
    self.method: Method = method
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self._begin(num_features)

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    use_running_average: bool | None = None,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Any = None,
  ) -> Float[Array, "b h w c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    evaluates = self._evaluates(use_running_average)
    y, state = pc_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      self._moments(),
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      axis_name=self.axis_name,
      method=self.method,
      mask=mask,
      dtype=self.dtype,
    )
    self._keep(state, evaluates)
    return y
