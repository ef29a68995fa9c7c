"""Rotations from skew-symmetric matrices, by the exponential or by Cayley's map."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.scipy.linalg import expm
from jax.typing import DTypeLike

from normjax.flows._linear import Linear, check_size, matmul


def _cayley(skew):
  eye = jnp.eye(skew.shape[0], dtype=skew.dtype)
  return jnp.linalg.solve(eye + skew, eye - skew)


_MAPS = {"cayley": _cayley, "exp": expm}


class RotationLinear(Linear):
  """Multiplies the last axis by an orthogonal matrix of determinant 1.

  z = x Q,  A = weight - weight^T (C, C),  x and z (B, C) or (B, H, W, C);  log_det = 0
  Q = exp(A), every rotation ("exp"), or (I + A)^-1 (I - A), those without the eigenvalue -1 and
  cheaper ("cayley")

  Args:
    features: C.
    method: "cayley" or "exp".
    param_dtype: dtype of the parameters.
    rngs: the stream `params`; the weight starts small, Q near the identity.

  Raises:
    ValueError: if `features` is below 1 or there is no such method.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.RotationLinear(2, method="exp", rngs=nnx.Rngs(0))
    >>> layer.weight[...] = jnp.array([[0.0, jnp.pi / 2], [0.0, 0.0]])
    >>> layer.kernel().round(3) + 0.0  # a right angle
    Array([[ 0.,  1.],
           [-1.,  0.]], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    *,
    method: Literal["cayley", "exp"] = "cayley",
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if method not in _MAPS:
      raise ValueError(f"method must be one of {sorted(_MAPS)}, got {method!r}")
    self.features, self.bias, self.method = check_size(features), None, method
    init = nnx.initializers.normal(features**-0.5)
    self.weight = nnx.Param(init(rngs.params(), (features, features), param_dtype))

  def _q(self, dtype):
    weight = self.weight[...].astype(dtype)
    return _MAPS[self.method](weight - weight.T)

  def multiply(self, x):
    """Return x Q."""
    return matmul(x, self._q(x.dtype))

  def solve(self, z):
    """Return z Q^T."""
    return matmul(z, self._q(z.dtype).T)

  def log_abs_det(self, dtype):
    """Return zero."""
    return jnp.zeros((), dtype)
