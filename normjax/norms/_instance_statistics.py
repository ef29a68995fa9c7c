"""Mean and standard deviation of each channel of each example, the style of a feature map.

The statistics of AdaIN (https://arxiv.org/abs/1703.06868). The paper divides the sum of squares by
n, its code and all that follow it by n - 1; `ddof` chooses, and the default is the code's.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from normjax.norms._arguments import (
  as_floating,
  as_position_mask,
  check_epsilon,
  statistics_dtype,
)
from normjax.norms._nearest_resize import nearest_resize
from normjax.norms._statistics import Reduction, moments, safe_root


class InstanceMoments(NamedTuple):
  """Moments of an array (b, *spatial, c) over its spatial axes, which stay at size 1.

  `deviations` has the shape of the input and is 0 under the mask. `defined` says where more than
  `ddof` positions entered; elsewhere the variance is 0.
  """

  deviations: Float[Array, "b *spatial c"]
  mean: Float[Array, "b *ones c"]
  variance: Float[Array, "b *ones c"]
  defined: Bool[Array, "..."]


def instance_moments(
  x: ArrayLike, mask: Bool[Array, "..."] | None, ddof: int, name: str = "x"
) -> InstanceMoments:
  """Returns the moments in the dtype of statistics, or raises."""
  x = as_floating(x, name)
  if x.ndim < 3:
    raise ValueError(f"{name} must have shape (b, *spatial, c), got {x.shape}")
  if ddof not in (0, 1):
    raise ValueError(f"ddof must be 0 (divide by n) or 1 (by n - 1), got {ddof}")
  wide = x.astype(statistics_dtype(x))
  reduction = Reduction(tuple(range(1, x.ndim - 1)), x.shape, mask)
  positions = x[0, ..., 0].size
  if positions <= ddof:
    raise ValueError(
      f"{name} must have more than {ddof} positions for a variance with ddof={ddof}, got shape "
      f"{x.shape}" + ("; ddof=0 takes one" if positions == 1 else "")
    )
  deviations, mean, variance = moments(wide, reduction)
  n = reduction.count(wide.dtype)
  defined = n > ddof
  free = jnp.where(defined, n - ddof, jnp.ones_like(n))
  variance = jnp.where(defined, variance * (n / free), jnp.zeros_like(variance))
  return InstanceMoments(reduction.keep(deviations), mean, variance, defined)


def fitted_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
  """Returns a mask (b, *any) or (b, *any, 1) resized to the positions of an array, or raises."""
  if mask is None:
    return None
  mask = jnp.asarray(mask)
  if mask.ndim == len(shape) - 1:
    mask = mask[..., None]
  if mask.ndim == len(shape):
    mask = nearest_resize(mask, shape[1:-1])
  return as_position_mask(mask, shape)


def instance_statistics(
  x: Float[Array, "b *spatial c"],
  mask: Bool[Array, "..."] | None = None,
  *,
  epsilon: float = 1e-5,
  ddof: int = 1,
) -> tuple[Float[Array, "b *ones c"], Float[Array, "b *ones c"]]:
  """Measure the mean and the standard deviation of each channel of each example.

  mean = sum(x) / n and std = sqrt(sum((x - mean)^2) / (n - ddof) + epsilon) over the n valid
  positions of an example, with x (b, *spatial, c) -> both (b, 1, ..., 1, c).

  Args:
    x: floating input with the batch first and channels last: images (b, h, w, c), tokens (b, n, c).
    mask: True where a position enters; (b, *spatial), or with a last axis 1, of sizes 1 or those
      of x.
    epsilon: added to the variance, under the root.
    ddof: 1 for the unbiased variance, 0 for the biased one.

  Returns:
    Mean and standard deviation, float32 or wider. Where `ddof` or fewer positions are valid, the
    variance counts as 0.

  Raises:
    ValueError: if x is not floating or has no spatial axis, or no more than ddof positions; if
      epsilon < 0, ddof is neither 0 nor 1, or the mask has another shape.

  Reference:
    Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance
    Normalization", 2017, arXiv 1703.06868.

  Example:
    >>> mean, std = instance_statistics(jnp.array([[[1.0], [2.0], [3.0]]]))
    >>> print(mean.ravel(), std.ravel().round(3))
    [2.] [1.]
  """
  check_epsilon(epsilon)
  moments = instance_moments(x, as_position_mask(mask, jnp.shape(x)), ddof)
  return moments.mean, safe_root(moments.variance + epsilon)
