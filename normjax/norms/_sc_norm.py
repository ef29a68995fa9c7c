"""Style-controlling normalization, SCNorm (https://arxiv.org/abs/2303.02328).

SCNorm mixes the amplitudes of an image with those of its instance normalization, and keeps the
phases.

What differs from the authors' code: half the spectrum, and `method="closed_form"`. Instance
normalization is affine in each image and channel and removes the constant bin, so that the mixture
of amplitudes is that of the images themselves: a learned way between InstanceNorm and identity.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import (
  apply_affine,
  check_features,
  make_param,
  matching,
  new_param,
  value_or,
)
from normjax.norms._arguments import check_epsilon, statistics_dtype
from normjax.norms._instance_norm import instance_norm
from normjax.norms._spectrum import (
  Method,
  amplitude,
  as_whole_images,
  check_method,
  check_temperature,
  compose,
  mixed,
  mixing,
  phasor,
  spectrum,
)


def sc_norm(
  x: Float[Array, "b h w c"],
  logits: Float[Array, " 2"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  temperature: float = 0.1,
  epsilon: float = 1e-5,
  method: Method = "fft",
  mask: Any = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b h w c"]:
  """Mix the amplitudes of images with those of their instance normalization, and keep phases.

  y = F^-1((w_0 * |F(xi)| + w_1 * |F(x)|) * exp(i arg F(x))) * scale + bias, with w = softmax(logits
  / temperature), xi = (x - mean) / sqrt(var + epsilon) over each image and channel, and F the
  transform over (h, w); x (b, h, w, c) -> y (b, h, w, c). In closed form,
  y = (w_0 * xi + w_1 * x) * scale + bias.

  The transform's amplitudes are at least 3.2e-3: an image without variance becomes its own mean
  plus noise of this size, where the closed form has none, and w_0 * 3.2e-3 / (h * w) is left of
  every mean.

  Args:
    x: floating images, channels last.
    logits: weights before the softmax, of the normalized and of the given amplitudes.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    temperature: divides the logits.
    epsilon: added to the variance.
    method: "fft" computes as the authors do; "closed_form" is faster and has no floor.
    mask: must be None; here for code that passes one to every norm.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized images.

  Raises:
    ValueError: if x is not floating or does not have 4 axes, epsilon < 0, the logits are not two,
      the temperature is not positive, a mask is given, the method is unknown, or scale or bias have
      another shape.

  Reference:
    Lee, Bae and Kim, "Decompose, Adjust, Compose: Effective Normalization by Playing with
    Frequency for Domain Generalization", 2023, arXiv 2303.02328.

  Example:
    >>> x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    >>> y = sc_norm(x, jnp.zeros(2), method="closed_form")  # half of each
    >>> [round(float(v), 2) for v in y.ravel()]
    [-0.17, 0.78, 1.72, 2.67]
  """
  x = as_whole_images(x, mask, method)
  wide = x.astype(statistics_dtype(x))
  normalized = instance_norm(wide, epsilon=epsilon)
  weights = mixing(logits, temperature, wide.dtype)
  if method == "fft":
    f = spectrum(wide)
    y = compose(phasor(f), mixed(weights, amplitude(spectrum(normalized)), amplitude(f)), wide)
  else:
    y = mixed(weights, normalized, wide)
  return apply_affine(y, scale, bias, (3,), x.dtype if dtype is None else dtype)


class SCNorm(nnx.Module):
  """Mixes the amplitudes of images with those of their instance normalization, keeps phases.

  y = F^-1((w_0 * |F(xi)| + w_1 * |F(x)|) * exp(i arg F(x))) * scale + bias: `sc_norm` with the
  parameters `scale` and `bias` (num_features,) and `logits` (2,).

  Args:
    num_features: number of channels.
    temperature: divides the logits.
    epsilon: added to the variance.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    logits_init: initializer of `logits`; zeros mix half and half.
    method: "fft" or "closed_form".
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `sc_norm`, and if the input does not have `num_features` channels.

  Reference:
    Lee, Bae and Kim, "Decompose, Adjust, Compose: Effective Normalization by Playing with
    Frequency for Domain Generalization", 2023, arXiv 2303.02328.

  Example:
    >>> norm = SCNorm(3, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 3)
  """

  def __init__(
    self,
    num_features: int,
    *,
    temperature: float = 0.1,
    epsilon: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    logits_init: Initializer = nnx.initializers.zeros,
    method: Method = "fft",
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_method(method)
    check_temperature(temperature)
    self.num_features, self.temperature = num_features, temperature
    self.epsilon, self.dtype = epsilon, dtype
    self.method: Method = method
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self.logits = new_param(logits_init, (2,), param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Any = None,
  ) -> Float[Array, "b h w c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    return sc_norm(
      x,
      self.logits[...],
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      temperature=self.temperature,
      epsilon=self.epsilon,
      method=self.method,
      mask=mask,
      dtype=self.dtype,
    )
