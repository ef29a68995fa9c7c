"""AdaIN and FAdaIN: the moments of style features for content features.

AdaIN is https://arxiv.org/abs/1703.06868; TSIT (https://arxiv.org/abs/2007.12072) calls it FAdaIN
where it injects style features before each block at every scale, with the strength `alpha`. As in
both codes, and unlike the paper's text, the variance is unbiased (`ddof`).
"""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._arguments import check_epsilon, entries, floating_dtype
from normjax.norms._instance_statistics import InstanceMoments, fitted_mask, instance_moments
from normjax.norms._statistics import safe_root


def adaptive_instance_norm(
  content: Float[Array, "b *spatial c"],
  style: Float[Array, "b *style_spatial c"],
  *,
  alpha: ArrayLike = 1.0,
  epsilon: float = 1e-5,
  ddof: int = 1,
  content_mask: Bool[Array, "..."] | None = None,
  style_mask: Bool[Array, "..."] | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b *spatial c"]:
  """Give content features the mean and the deviation of style features, channel by channel.

  t = (content - mean_c) / std_c * std_s + mean_s and y = alpha * t + (1 - alpha) * content, with
  content (b, *spatial, c) -> y of the same shape, moments of style (b, *any, c), and std =
  sqrt(var + epsilon) per example and channel.

  Args:
    content: floating features whose layout is kept.
    style: floating features whose moments are taken; other spatial sizes are welcome.
    alpha: strength in [0, 1].
    epsilon: added to both variances.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    content_mask: True where content is changed and enters its moments; (b, *any), or with a last
      axis 1, resized to the content by `nearest_resize`.
    style_mask: True where style enters its moments, likewise.
    dtype: dtype of the output; the default is that of `content`.

  Returns:
    The content with new moments. Examples with no more than `ddof` valid positions, of content or
    style, come back as they are.

  Raises:
    ValueError: if content or style is not floating, batch, channels or ranks differ, an input has
      no more than ddof positions, alpha is outside [0, 1], epsilon < 0, ddof is neither 0 nor 1, or
      a mask is not boolean or does not fit.

  Reference:
    Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance
    Normalization", 2017, arXiv 1703.06868; Jiang et al., "TSIT: A Simple and Versatile Framework
    for Image-to-Image Translation", 2020, arXiv 2007.12072.

  Example:
    >>> content, style = jnp.array([[[1.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
    >>> print(adaptive_instance_norm(content, style, alpha=0.5, epsilon=0.0).ravel())
    [ 5.5 16.5]
  """
  check_epsilon(epsilon)
  alpha = _strength(alpha)
  content_mask = fitted_mask(content_mask, jnp.shape(content))
  style_mask = fitted_mask(style_mask, jnp.shape(style))
  c, s = content_and_style(content, style, ddof, content_mask, style_mask)
  y = renormalized(c, safe_root(c.variance + epsilon), safe_root(s.variance + epsilon), s.mean)
  content = jnp.asarray(content)
  kept = content.astype(y.dtype)
  y = alpha.astype(y.dtype) * y + (1 - alpha).astype(y.dtype) * kept
  changed = c.defined & s.defined
  y = jnp.where(changed if content_mask is None else changed & content_mask, y, kept)
  return y.astype(floating_dtype(content.dtype if dtype is None else dtype, "dtype"))


# TSIT's name for the same map.
feature_adaptive_instance_norm = adaptive_instance_norm


def _strength(alpha: ArrayLike) -> Array:
  value = entries(alpha)
  if jnp.ndim(alpha) != 0 or (value is not None and not 0 <= value <= 1):
    raise ValueError(f"alpha must be a number in [0, 1], got {alpha}")
  return jnp.asarray(alpha)


def content_and_style(
  content: ArrayLike,
  style: ArrayLike,
  ddof: int,
  content_mask: Bool[Array, "..."] | None = None,
  style_mask: Bool[Array, "..."] | None = None,
) -> tuple[InstanceMoments, InstanceMoments]:
  """Returns the moments of both, or raises if they do not belong together."""
  a, b = jnp.shape(content), jnp.shape(style)
  if len(a) != len(b) or a[:1] != b[:1] or a[-1:] != b[-1:]:
    raise ValueError(
      f"style must have the rank, the batch and the channels of content {a}, got shape {b}"
    )
  return (
    instance_moments(content, content_mask, ddof, "content"),
    instance_moments(style, style_mask, ddof, "style"),
  )


def renormalized(
  content: InstanceMoments, std: Array, new_std: Array, new_mean: Array
) -> Float[Array, "b *spatial c"]:
  """Returns deviations / std * new_std + new_mean; a channel without deviations is new_mean."""
  return content.deviations / jnp.where(std > 0, std, jnp.ones_like(std)) * new_std + new_mean
