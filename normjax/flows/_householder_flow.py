"""Householder flows (arXiv 1611.09630): reflections that depend on the condition.

What differs from the paper: a network gives all vectors at once, where the paper computes each from
the one before, and adds them to trained ones. `HouseholderLinear` is the layer without a condition,
of images too: it multiplies the reflections out once, where these reflect each example.
"""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._checks import check_vectors
from normjax.flows._conditional_parameters import ParametricFlow
from normjax.flows._reversible import log_det_zeros
from normjax.flows._safe_length import direction_and_length
from normjax.flows._widened import widened


def householder(
  x: Float[Array, "b d"], vectors: Float[Array, "*b k d"]
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Reflect each example at hyperplanes, one after the other.

  z = x prod_i (I - 2 v_i v_i^T / |v_i|^2),  x and z (b, d);  log_det (b,) = 0

  The first reflection is the leftmost factor. A zero vector reflects nothing.

  Args:
    x: (b, d).
    vectors: the normals v_i of the hyperplanes, (k, d) or those of each example (b, k, d).

  Returns:
    `(z, log_det)`; log_det is float32 or wider.

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
    arXiv 1611.09630.

  Example:
    >>> householder(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]]))[0]
    Array([[-1.,  2.]], dtype=float32)
  """
  return _reflected("x", x, vectors, reverse=False)


def householder_inverse(
  z: Float[Array, "b d"], vectors: Float[Array, "*b k d"]
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Undo `householder`: reflect at the same hyperplanes, the last one first.

  x = z prod_i (I - 2 v_i v_i^T / |v_i|^2),  i = k to 1,  x and z (b, d);  log_det (b,) = 0

  Args:
    z: (b, d).
    vectors: as for `householder`.

  Returns:
    `(x, log_det)`; log_det is float32 or wider.

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
    arXiv 1611.09630.

  Example:
    >>> vectors = jnp.array([[3.0, 0.0], [1.0, 1.0]])
    >>> householder_inverse(householder(jnp.array([[1.0, 2.0]]), vectors)[0], vectors)[0].round(4)
    Array([[1., 2.]], dtype=float32)
  """
  return _reflected("z", z, vectors, reverse=True)


class HouseholderFlow(ParametricFlow):
  """Applies `householder` with trained vectors, which a network of the condition may move.

  z = x Q,  Q = prod_i (I - 2 v_i v_i^T / |v_i|^2),  x and z (B, D);  log_det (B,) = 0

  The vectors start as normal numbers, so that Q is random, and the same for all conditions.

  Args:
    features: D.
    num_reflections: how many vectors there are; None: D, with which Q can be every orthogonal
      matrix of its determinant, (-1)^num_reflections.
    rngs: the stream `params`.
    **options: `cond_dim`, features of the condition (B, C), or None; `width` of its network, 64,
      and `depth`, 1 residual block; `param_dtype`.

  Raises:
    ValueError: if a size is below 1.

  Reference:
    Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
    arXiv 1611.09630.

  Example:
    >>> layer = HouseholderFlow(3, num_reflections=2, cond_dim=1, rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 3)), jnp.zeros((2, 1)))
    >>> jnp.linalg.norm(z, axis=1).round(4), log_det
    (Array([1.7321, 1.7321], dtype=float32), Array([0., 0.], dtype=float32))
  """

  function, inverse_function = staticmethod(householder), staticmethod(householder_inverse)

  def __init__(
    self, features: int, *, num_reflections: int | None = None, rngs: nnx.Rngs, **options
  ):
    count = features if num_reflections is None else num_reflections
    check_sizes(features=features, num_reflections=count)
    shapes = {"vectors": (count, features)}
    super().__init__(features, shapes, {"vectors": 1.0}, rngs=rngs, **options)

  @property
  def constant_logdet(self):
    """True: it is zero."""
    return True


def _reflected(name, x, vectors, reverse):
  check_vectors(name, x)
  batch, features = x.shape
  fits = vectors.ndim in (2, 3) and vectors.shape[:-2] in ((), (batch,))
  if not fits or vectors.shape[-1] != features:
    raise ValueError(
      f"vectors must have shape (k, {features}) or ({batch}, k, {features}), got {vectors.shape}"
    )
  wide = widened(x)
  normals, _ = direction_and_length(vectors.astype(wide.dtype))
  each = jnp.moveaxis(normals.reshape(-1, *vectors.shape[-2:]), 1, 0)  # (k, 1 or b, d)

  def reflect(x, normal):
    return x - 2 * jnp.sum(x * normal, axis=1, keepdims=True) * normal, None

  return lax.scan(reflect, wide, each, reverse=reverse)[0].astype(x.dtype), log_det_zeros(x)
