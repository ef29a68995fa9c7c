"""Sylvester flows (arXiv 1803.05649): planar flows with many hyperplanes at once.

What differs from the authors' code: the factors' diagonals are kept a little below 1, so that no
rounding makes their product -1; the orthogonal factor is a product of reflections, one matrix for
all examples, and what a condition moves is the shift; and there is an inverse, by substitution.
"""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_vectors
from normjax.flows._conditional_parameters import ConditionalParameters
from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._linear import householder_product, matmul
from normjax.flows._widened import widened

_LARGEST_DIAGONAL = 0.999


def sylvester(
  x: Float[Array, "b d"],
  q: Float[Array, "d m"],
  r: Float[Array, "m m"],
  r_tilde: Float[Array, "m m"],
  bias: Float[Array, "*b m"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Bend the space across m hyperplanes, whose effects on each other are triangular.

  z = x + Q R tanh(R' Q^T x + bias) for columns x,  x and z (b, d)
  log_det (b,) = sum_i log(1 + R_ii R'_ii (1 - tanh(.)_i^2))

  It is invertible where all R_ii R'_ii are above -1; this function does not look.

  Args:
    x: (b, d).
    q: Q, m <= d orthonormal columns.
    r: R, whose upper triangle is read.
    r_tilde: R', likewise.
    bias: (m,) or one for each example (b, m).

  Returns:
    `(z, log_det)`; log_det is float32 or wider.

  Raises:
    ValueError: if shapes disagree.

  Reference:
    van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational
    inference", 2018, arXiv 1803.05649.

  Example:
    >>> x, zeros = jnp.ones((1, 2)), jnp.zeros((2, 2))
    >>> sylvester(x, jnp.eye(2), zeros, jnp.eye(2), jnp.zeros(2))[1]
    Array([0.], dtype=float32)
  """
  wide, q, r, r_tilde, bias = _parameters("x", x, q, r, r_tilde, bias)
  bend = jnp.tanh(matmul(matmul(wide, q), r_tilde.T) + bias)
  z = wide + matmul(matmul(bend, r.T), q.T)
  return z.astype(x.dtype), _log_det(bend, r, r_tilde)


def sylvester_inverse(
  z: Float[Array, "b d"],
  q: Float[Array, "d m"],
  r: Float[Array, "m m"],
  r_tilde: Float[Array, "m m"],
  bias: Float[Array, "*b m"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Undo `sylvester` by substitution, from the last hyperplane to the first.

  v + R tanh(R' v + bias) = Q^T z: entry i holds v_i to v_m only, so v_i is the root of an
  increasing function once v_i+1 to v_m are known;  x = z - Q R tanh(R' v + bias)

  Args:
    z: (b, d).
    q: as for `sylvester`.
    r: as for `sylvester`.
    r_tilde: as for `sylvester`.
    bias: as for `sylvester`.

  Returns:
    `(x, log_det)`, with log_det = log|det dx/dz| (b,).

  Raises:
    ValueError: if shapes disagree.

  Reference:
    van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational
    inference", 2018, arXiv 1803.05649.

  Example:
    >>> parameters = jnp.eye(2), 0.5 * jnp.eye(2), jnp.ones((2, 2)), jnp.zeros(2)
    >>> z, _ = sylvester(jnp.array([[0.25, 0.75]]), *parameters)
    >>> sylvester_inverse(z, *parameters)[0].round(4)
    Array([[0.25, 0.75]], dtype=float32)
  """
  wide, q, r, r_tilde, bias = _parameters("z", z, q, r, r_tilde, bias)
  target = matmul(wide, q)

  def solve(carry, i):
    v, bend = carry  # entries i + 1 and on are found, the others zero
    take = lambda a: lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False)
    row, row_tilde = r[i], r_tilde[i]
    known = take(bias) + jnp.sum(row_tilde[None] * v, axis=1)
    rest = take(target) - jnp.sum(row[None] * bend, axis=1)
    v_i = invert_monotone(lambda a: a + row[i] * jnp.tanh(row_tilde[i] * a + known), rest)
    put = lambda a, a_i: lax.dynamic_update_index_in_dim(a, a_i, i, axis=1)
    return (put(v, v_i), put(bend, jnp.tanh(row_tilde[i] * v_i + known))), None

  zeros = jnp.zeros_like(target)
  (_, bend), _ = lax.scan(solve, (zeros, zeros), jnp.arange(q.shape[1]), reverse=True)
  x = wide - matmul(matmul(bend, r.T), q.T)
  return x.astype(z.dtype), -_log_det(bend, r, r_tilde)


class SylvesterFlow(Bijector):
  """Applies `sylvester` with an orthogonal factor made of reflections.

  z = x + Q R tanh(R' Q^T x + bias),  x and z (B, D);  log_det (B,) as in `sylvester`
  diag(R) = 0.999 tanh(raw), and so diag(R')

  A network of the condition, if there is one, moves the bias. R starts at zero, so that a new layer
  is the identity, Q and R' at random.

  Args:
    features: D.
    num_planes: M, the columns of Q, at most D; None: D.
    cond_dim: features of the condition (B, C), or None.
    width: units of its network.
    depth: residual blocks of its network.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a size is below 1, or `num_planes` above `features`.

  Reference:
    van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational
    inference", 2018, arXiv 1803.05649.

  Example:
    >>> layer = SylvesterFlow(3, num_planes=2, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((2, 3)))[1]
    Array([0., 0.], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    *,
    num_planes: int | None = None,
    cond_dim: int | None = None,
    width: int = 64,
    depth: int = 1,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    count = features if num_planes is None else num_planes
    if not 1 <= count <= features:
      raise ValueError(f"num_planes must be 1 to features = {features}, got {num_planes}")
    self.features, self.num_planes = features, count
    normal = lambda *shape: nnx.Param(
      nnx.initializers.normal(1.0)(rngs.params(), shape, param_dtype)
    )
    self.vectors = normal(count, features)
    self.r = nnx.Param(jnp.zeros((count, count), param_dtype))
    self.r_tilde = normal(count, count)
    self.parameters = ConditionalParameters(
      {"bias": (count,)},
      cond_dim=cond_dim,
      width=width,
      depth=depth,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  def _factors(self, x, cond):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    q = householder_product(self.vectors[...].astype(dtype))[:, : self.num_planes]
    bias = self.parameters(x, cond)["bias"]
    return q, _triangle(self.r[...].astype(dtype)), _triangle(self.r_tilde[...].astype(dtype)), bias

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    check_batch("x", x, (self.features,))
    return sylvester(x, *self._factors(x, cond))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`, by one root per hyperplane and example."""
    check_batch("z", z, (self.features,))
    return sylvester_inverse(z, *self._factors(z, cond))


def _triangle(raw):
  return jnp.triu(raw, 1) + jnp.diag(_LARGEST_DIAGONAL * jnp.tanh(jnp.diagonal(raw)))


def _parameters(name, x, q, r, r_tilde, bias):
  check_vectors(name, x)
  d, m = x.shape[1], r.shape[0]
  if q.shape != (d, m):
    raise ValueError(f"q must have shape {(d, m)}, got {q.shape}")
  for label, value in (("r", r), ("r_tilde", r_tilde)):
    if value.shape != (m, m):
      raise ValueError(f"{label} must have shape {(m, m)}, got {value.shape}")
  if bias.shape not in ((m,), (x.shape[0], m)):
    raise ValueError(f"bias must have shape {(m,)} or {(x.shape[0], m)}, got {bias.shape}")
  wide = widened(x)
  q, r, r_tilde, bias = (p.astype(wide.dtype) for p in (q, r, r_tilde, bias))
  return wide, q, jnp.triu(r), jnp.triu(r_tilde), jnp.broadcast_to(bias, (x.shape[0], m))


def _log_det(bend, r, r_tilde):
  product = jnp.diagonal(r) * jnp.diagonal(r_tilde)
  return jnp.sum(jnp.log1p(product[None] * (1 - bend**2)), axis=1)
