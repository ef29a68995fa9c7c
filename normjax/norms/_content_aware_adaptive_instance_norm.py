"""Content-aware AdaIN of AttenST (https://arxiv.org/abs/2503.07307).

The initial latent of a diffusion model gets moments between those of content and style. The weights
0.4 and 0.6 are the constants of the authors' script, and so is epsilon, which they add to the
deviation and not to the variance.
"""

import warnings

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.norms._adaptive_instance_norm import content_and_style, renormalized
from normjax.norms._arguments import check_epsilon, floating_dtype
from normjax.norms._statistics import safe_root


def content_aware_adaptive_instance_norm(
  content: Float[Array, "b *spatial c"],
  style: Float[Array, "b *style_spatial c"],
  *,
  content_weight: float = 0.4,
  style_weight: float = 0.6,
  epsilon: float = 1e-4,
  ddof: int = 1,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b *spatial c"]:
  """Give content features moments between their own and those of style features.

  y = (content - mean_c) / (std_c + epsilon) * (w_s * std_s + w_c * std_c) + w_s * mean_s + w_c *
  mean_c per example and channel, with content (b, *spatial, c) -> y of the same shape.

  Args:
    content: floating features whose layout is kept.
    style: floating features; other spatial sizes are welcome.
    content_weight: w_c, the share of the content's moments.
    style_weight: w_s, the share of the style's moments. A warning says if both do not add up to 1.
    epsilon: added to the standard deviation that divides, outside of the root.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    dtype: dtype of the output; the default is that of `content`.

  Returns:
    The content with new moments.

  Raises:
    ValueError: if an input is not floating, batch, channels or ranks differ, an input has no more
      than ddof positions, epsilon < 0, or ddof is neither 0 nor 1.

  Reference:
    Huang et al., "AttenST: A Training-Free Attention-Driven Style Transfer Framework with
    Pre-Trained Diffusion Models", 2025, arXiv 2503.07307.

  Example:
    >>> content, style = jnp.array([[[1.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
    >>> print(content_aware_adaptive_instance_norm(content, style, epsilon=0.0).ravel())
    [ 6.4 19.2]
  """
  check_epsilon(epsilon)
  if abs(content_weight + style_weight - 1) > 1e-6:
    warnings.warn(
      f"content_weight + style_weight is {content_weight + style_weight} and not 1: the output is "
      "scaled by it",
      stacklevel=2,
    )
  c, s = content_and_style(content, style, ddof)
  std_c, std_s = safe_root(c.variance), safe_root(s.variance)
  std = style_weight * std_s + content_weight * std_c
  mean = style_weight * s.mean + content_weight * c.mean
  y = renormalized(c, std_c + epsilon, std, mean)
  given = jnp.asarray(content).dtype
  return y.astype(floating_dtype(given if dtype is None else dtype, "dtype"))
