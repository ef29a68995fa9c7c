"""Cross-modal AdaIN of StyleStudio (https://arxiv.org/abs/2412.08503).

A diffusion model attends to a text prompt and to a style image. Where adapters add both outputs,
StyleStudio gives the text output the moments of the image output. The authors' code has no epsilon,
and 0 is the default here; 1e-5 is better for training.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.norms._adaptive_instance_norm import content_and_style, renormalized
from normjax.norms._arguments import check_epsilon, floating_dtype
from normjax.norms._statistics import safe_root


def cross_modal_adaptive_instance_norm(
  content: Float[Array, "b n c"],
  style: Float[Array, "b m c"],
  *,
  epsilon: float = 0.0,
  ddof: int = 1,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b n c"]:
  """Give the tokens of one attention the moments of those of another, channel by channel.

  y = (content - mean_c) / std_c * std_s + mean_s over tokens, with content (b, n, c) -> y (b, n, c)
  and style (b, m, c); y stands for the usual sum of both.

  Args:
    content: floating output of the cross-attention to the text.
    style: floating output of the cross-attention to the style image, of the same queries. Pass the
      conditional rows only: under guidance the others stay as they are.
    epsilon: added to both variances. 0 is fine: a constant channel then becomes mean_s, too.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    dtype: dtype of the output; the default is that of `content`.

  Returns:
    The tokens with new moments.

  Raises:
    ValueError: if an input is not floating or not (b, tokens, c), batch or channels differ, there
      are no more than ddof tokens, epsilon < 0, or ddof is neither 0 nor 1.

  Reference:
    Lei et al., "StyleStudio: Text-Driven Style Transfer with Selective Control of Style Elements",
    2024, arXiv 2412.08503.

  Example:
    >>> text, image = jnp.array([[[1.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
    >>> print(cross_modal_adaptive_instance_norm(text, image).ravel())
    [10. 30.]
  """
  check_epsilon(epsilon)
  if jnp.ndim(content) != 3:
    raise ValueError(f"content must be tokens (b, n, c), got shape {jnp.shape(content)}")
  c, s = content_and_style(content, style, ddof)
  y = renormalized(c, safe_root(c.variance + epsilon), safe_root(s.variance + epsilon), s.mean)
  given = jnp.asarray(content).dtype
  return y.astype(floating_dtype(given if dtype is None else dtype, "dtype"))
