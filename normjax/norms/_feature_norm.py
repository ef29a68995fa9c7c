"""Feature normalization in front of a classifier's head (https://arxiv.org/abs/2308.09565).

What layer normalization gives to federated learning under label shift is, the paper shows, the
normalization of the last feature, which this layer does alone.

What differs from the authors' code: a feature shorter than epsilon gives 0 with gradient 0, where
theirs is divided by epsilon and so passes gradients on times sqrt(c) / epsilon; the length is
computed without squares of large or small numbers. They reduce all axes but the first, which is
axis=(1, 2, 3) for images.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import check_features, matching
from normjax.norms._arguments import (
  as_mask,
  check_epsilon,
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._statistics import Reduction, mean_power, moments


def feature_norm(
  x: Float[Array, "*shape"],
  *,
  mode: str = "v",
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-12,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Scale each feature vector to one length, and center it first if asked.

  The letters of `mode`, from left to right, with x (..., c) -> (..., c) and all over `axis`:

      v   sqrt(c) * x / ||x||_2
      n   x / ||x||_2
      s   x - mean(x)

  "sv" is layer normalization without epsilon and affine.

  Args:
    x: floating input.
    mode: what to apply; "" applies nothing.
    axis: the axes of one feature vector, in increasing order.
    epsilon: vectors that are not longer than this become 0, with gradient 0.
    mask: True where an entry enters mean and length (c is then their number); rank of x, sizes 1 or
      those of x. Every entry is normalized, but those of a vector without any True become 0.
    axis_name: mapped axis over which the axes are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating, the mode has another letter, epsilon < 0, an axis is empty or
      does not exist, or the mask has another shape.

  Reference:
    Zhang et al., "Understanding the Role of Layer Normalization in Label-Skewed Federated
    Learning", 2023, arXiv 2308.09565.

  Example:
    >>> print(feature_norm(jnp.array([3.0, 4.0]), mode="n"))
    [0.6 0.8]
  """
  x, axes = prepare(x, axis, epsilon)
  _check_mode(mode)
  reduction = Reduction(axes, x.shape, as_mask(mask, x.shape), axis_name)
  y = x.astype(statistics_dtype(x))
  for letter in mode:
    y = moments(y, reduction)[0] if letter == "s" else _scaled(y, reduction, epsilon, letter)
  return y.astype(x.dtype if dtype is None else floating_dtype(dtype, "dtype"))


def _check_mode(mode: str) -> None:
  if set(mode) - set("nsv"):
    raise ValueError(f"mode must consist of the letters 'n', 's' and 'v', got {mode!r}")


def _scaled(
  x: Float[Array, "..."], reduction: Reduction, epsilon: float, letter: str
) -> Float[Array, "..."]:
  root = jnp.sqrt(reduction.count(x.dtype))
  rms = mean_power(reduction.keep(x), reduction, 2)
  long = rms * root > epsilon
  divisor = jnp.where(long, rms if letter == "v" else rms * root, jnp.ones_like(rms))
  return jnp.where(long, x / divisor, jnp.zeros_like(x))


class FeatureNorm(nnx.Module):
  """Scales each feature vector to one length, and centers it first if asked.

  `feature_norm`, without parameters: "v" gives length sqrt(num_features), "n" length 1, "s"
  subtracts the mean.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    mode: letters that are applied from left to right.
    axis: the axes of one feature vector.
    epsilon: vectors that are not longer than this become 0.
    dtype: dtype of the output; the default is that of the input.
    axis_name: mapped axis over which the axes are sharded.
    rngs: not used; every layer takes it.

  Raises:
    ValueError: as `feature_norm`, and if the input does not have `num_features` entries.

  Reference:
    Zhang et al., "Understanding the Role of Layer Normalization in Label-Skewed Federated
    Learning", 2023, arXiv 2308.09565.

  Example:
    >>> norm = FeatureNorm(2, mode="n", rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([3.0, 4.0])))
    [0.6 0.8]
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    mode: str = "v",
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    check_epsilon(epsilon)
    _check_mode(mode)
    self.num_features, self.axis = matching(num_features, axis)
    self.mode, self.epsilon, self.dtype, self.axis_name = mode, epsilon, dtype, axis_name

  def __call__(
    self, x: Float[Array, "*shape"], *, mask: Bool[Array, "..."] | None = None
  ) -> Float[Array, "*shape"]:
    """Normalize `x`."""
    check_features(x, self.num_features, self.axis)
    return feature_norm(
      x,
      mode=self.mode,
      axis=self.axis,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
