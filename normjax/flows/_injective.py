"""Free-form injective flows, https://arxiv.org/abs/2306.01843: any encoder and decoder as a flow.

With latents of full dimension they are free-form flows, https://arxiv.org/abs/2310.16624.
If encoder f: R^D -> R^d and decoder g: R^d -> R^D invert each other, the gradient of the encoder's
log-volume log det(f' f'^T) / 2 is that of

  S(x) = (1/K) sum_k v_k^T f'(x) stop_gradient(g'(z) v_k),  z = f(x):

one forward-mode product through the decoder and one reverse-mode product through the encoder per
probe v_k, and no determinant. As in the authors' code f' is taken at the data, off the decoder's
manifold: on it the objective diverges. Both choices can be made here, for comparison.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_vectors
from normjax.flows._widened import widened

JACOBIAN_PLACES = ("data", "reconstruction")
ESTIMATORS = ("encoder", "decoder")


def orthogonal_probes(
  key: Array, n: int, latent_dim: int, num_probes: int = 1, dtype=jnp.float32
) -> Float[Array, "n d K"]:
  """Draw orthogonal probe vectors for each of n examples.

  V (n, d, K) = sqrt(d) Q,  Q R = a Gaussian (d, K) per example

  E[V V^T] / K = I; with K = d it is exact, so that `volume_surrogate` is an exact trace.

  Args:
    key: a PRNG key.
    n: how many examples.
    latent_dim: d.
    num_probes: K, 1 to d.
    dtype: of the probes.

  Returns:
    V (n, d, K).

  Raises:
    ValueError: if `num_probes` is not in 1 to `latent_dim`.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> v = flows.orthogonal_probes(jax.random.key(0), 1, 3, 2)[0]
    >>> bool(abs(v.T @ v - 3 * jax.numpy.eye(2)).max() < 1e-5)
    True
  """
  if not 1 <= num_probes <= latent_dim:
    raise ValueError(f"num_probes must be 1 to latent_dim = {latent_dim}, got {num_probes}")
  gaussian = jax.random.normal(key, (n, latent_dim, num_probes), dtype)
  return math.sqrt(latent_dim) * jnp.linalg.qr(gaussian)[0]


def volume_surrogate(
  encode: Callable[[Array], Array],
  decode: Callable[[Array], Array],
  x: Float[Array, "b D"],
  probes: Float[Array, "b d K"],
  *,
  jacobian_at: str = "data",
  estimator: str = "encoder",
) -> tuple[Float[Array, "b"], Float[Array, "b d"], Float[Array, "b D"]]:
  """Return a number whose gradient estimates that of the encoder's log-volume.

  S = (1/K) sum_k v_k^T f' stop_gradient(g'(z) v_k)  (b,)

  The value is an estimate of tr(f' g'), d for nets that invert each other: not a likelihood.

  Args:
    encode: f, maps (b, D) to (b, d) one example at a time.
    decode: g, maps (b, d) to (b, D) likewise.
    x: data.
    probes: V (b, d, K), as `orthogonal_probes` draws them.
    jacobian_at: where f' is taken: at the "data", or at stop_gradient(g(f(x))), the
      "reconstruction", known to diverge.
    estimator: "encoder", or "decoder" for -(1/K) sum_k stop_gradient(v_k^T f') g'(z) v_k, which
      differentiates the decoder's log-volume (with its sign changed).

  Returns:
    `(S, z, g(z))`; z and g(z) carry gradients.

  Raises:
    ValueError: if shapes do not fit, d > D, or there is no such option.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> half, double = lambda x: x / 2, lambda z: 2 * z
    >>> flows.volume_surrogate(half, double, jnp.ones((1, 4)), 2 * jnp.eye(4)[None])[0]
    Array([4.], dtype=float32)
  """
  if jacobian_at not in JACOBIAN_PLACES:
    raise ValueError(f"jacobian_at must be one of {JACOBIAN_PLACES}, got {jacobian_at!r}")
  if estimator not in ESTIMATORS:
    raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
  check_vectors("x", x)
  if probes.ndim != 3 or probes.shape[0] != x.shape[0]:
    raise ValueError(f"probes must have shape ({x.shape[0]}, d, K), got {probes.shape}")
  if probes.shape[1] > x.shape[1]:
    raise ValueError(
      f"probes must have at most {x.shape[1]} rows (features of x), got {probes.shape}"
    )
  directions = jnp.moveaxis(probes, 2, 0).astype(x.dtype)  # (K, b, d)
  z, encoder_vjp = jax.vjp(encode, x)
  _check_output("encode", z, probes.shape[:2])
  push = lambda v: jax.jvp(decode, (z,), (v.astype(z.dtype),))
  x_rec, pushed = jax.vmap(push, out_axes=(None, 0))(directions)  # g'(z) v_k (K, b, D)
  _check_output("decode", x_rec, x.shape)
  if jacobian_at == "reconstruction":
    _, encoder_vjp = jax.vjp(encode, jax.lax.stop_gradient(x_rec))
  (pulled,) = jax.vmap(encoder_vjp)(directions.astype(z.dtype))  # v_k^T f' (K, b, D)
  if estimator == "encoder":
    sign, pushed = 1, jax.lax.stop_gradient(pushed)
  else:
    sign, pulled = -1, jax.lax.stop_gradient(pulled)
  products = jnp.sum(widened(pulled) * widened(pushed), axis=2)
  return sign * jnp.mean(products, axis=0), z, x_rec


def injective_loss(
  encode: Callable[[Array], Array],
  decode: Callable[[Array], Array],
  x: Float[Array, "b D"],
  probes: Float[Array, "b d K"],
  *,
  beta: float | Array = 10.0,
  nll_weight: float | Array = 1.0,
  jacobian_at: str = "data",
  estimator: str = "encoder",
) -> tuple[Float[Array, "b"], dict[str, Array]]:
  """Return the training loss of a free-form injective flow per example.

  loss = beta |x - g(z)|^2 + nll_weight (-log N(z; 0, I) - S),  z = f(x), S as in `volume_surrogate`

  Its value is no likelihood: evaluate with `injective_log_prob`. `x` should carry noise of some
  standard deviation sigma; for linear nets beta >= 1 / (2 sigma^2) finds the principal components.

  Args:
    encode: f, maps (b, D) to (b, d) one example at a time; close over conditions.
    decode: g, maps (b, d) to (b, D) likewise.
    x: data with noise.
    probes: V (b, d, K), as `orthogonal_probes` draws them.
    beta: weight of the squared error, a sum over features.
    nll_weight: weight of the rest; may rise from 0 to 1 in a warm-up.
    jacobian_at: as for `volume_surrogate`.
    estimator: as for `volume_surrogate`.

  Returns:
    `(loss, parts)`: the loss (b,), and the arrays "z" (b, d), "reconstruction" (b, D),
    "squared_error" (b,) and "surrogate" (b,).

  Raises:
    ValueError: as `volume_surrogate`.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843. Draxler et al., "Free-form Flows: Make Any Architecture a Normalizing Flow",
    2023, arXiv 2310.16624.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> x = jax.random.normal(jax.random.key(0), (5, 3))
    >>> probes = flows.orthogonal_probes(jax.random.key(1), 5, 2)
    >>> pad = lambda z: jax.numpy.pad(z, ((0, 0), (0, 1)))
    >>> loss, parts = flows.injective_loss(lambda x: x[:, :2], pad, x, probes)
    >>> bool(abs(parts["squared_error"] - x[:, 2] ** 2).max() < 1e-6)
    True
  """
  surrogate, z, x_rec = volume_surrogate(
    encode, decode, x, probes, jacobian_at=jacobian_at, estimator=estimator
  )
  squared_error = jnp.sum((widened(x) - widened(x_rec)) ** 2, axis=1)
  loss = beta * squared_error - nll_weight * (_log_normal(z) + surrogate)
  parts = {
    "z": z, "reconstruction": x_rec, "squared_error": squared_error, "surrogate": surrogate
  }  # fmt: skip
  return loss, parts


def encoder_log_volume(
  encode: Callable[[Array], Array], x: Float[Array, "b D"]
) -> Float[Array, "b"]:
  """Return the exact log-volume change of an encoder, by one reverse-mode product per latent.

  log det(f'(x) f'(x)^T) / 2  (b,)

  Args:
    encode: f, maps (b, D) to (b, d) one example at a time, d <= D.
    x: data.

  Returns:
    The log-volumes (b,), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or d > D.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.encoder_log_volume(lambda x: x[:, :2], jnp.ones((1, 3)))
    Array([0.], dtype=float32)
  """
  check_vectors("x", x)
  z, vjp = jax.vjp(encode, x)
  if z.ndim != 2 or z.shape[0] != x.shape[0] or z.shape[1] > x.shape[1]:
    raise ValueError(f"encode must map {x.shape} to (b, d) with d <= D, got {z.shape}")
  (rows,) = jax.vmap(vjp)(_units(z))  # (d, b, D)
  return _log_volume(jnp.moveaxis(rows, 0, 2))


def decoder_log_volume(
  decode: Callable[[Array], Array], z: Float[Array, "b d"]
) -> Float[Array, "b"]:
  """Return the exact log-volume change of a decoder, by one forward-mode product per latent.

  log det(g'(z)^T g'(z)) / 2  (b,)

  Args:
    decode: g, maps (b, d) to (b, D) one example at a time, d <= D.
    z: latents.

  Returns:
    The log-volumes (b,), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or d > D.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> volume = flows.decoder_log_volume(lambda z: jnp.concatenate([z, z], 1), jnp.ones((1, 1)))
    >>> round(float(volume[0]), 4)  # log of the length sqrt(2)
    0.3466
  """
  check_vectors("z", z)
  push = lambda v: jax.jvp(decode, (z,), (v,))
  x, columns = jax.vmap(push, out_axes=(None, 0))(_units(z))  # (d, b, D)
  if x.ndim != 2 or x.shape[0] != z.shape[0] or x.shape[1] < z.shape[1]:
    raise ValueError(f"decode must map {z.shape} to (b, D) with D >= d, got {x.shape}")
  return _log_volume(jnp.moveaxis(columns, 0, 2))


def injective_log_prob(
  encode: Callable[[Array], Array], decode: Callable[[Array], Array], x: Float[Array, "b D"]
) -> Float[Array, "b"]:
  """Return the exact log-density on the decoder's manifold at the reconstruction of x.

  log p(g(z)) = log N(z; 0, I) - log det(g'(z)^T g'(z)) / 2,  z = f(x)

  It is a density of the manifold's d-dimensional volume, which says nothing of how far `x` is from
  the manifold: report the squared error with it. With d = D and exact inverses it is log p(x).

  Args:
    encode: f, maps (b, D) to (b, d) one example at a time.
    decode: g, maps (b, d) to (b, D) likewise.
    x: data.

  Returns:
    log p (b,) in nats, float32 or wider.

  Raises:
    ValueError: if shapes do not fit or d > D.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> half, double = lambda x: x / 2, lambda z: 2 * z
    >>> log_prob = flows.injective_log_prob(half, double, jnp.zeros((1, 1)))
    >>> round(float(log_prob[0]), 4)  # N(0, 4) at 0
    -1.6121
  """
  check_vectors("x", x)
  z = encode(x)
  return _log_normal(z) - decoder_log_volume(decode, z)


def _units(z) -> Float[Array, "d b d"]:
  """Return the unit vectors of the latents, the same ones for each example."""
  units = jnp.eye(z.shape[1], dtype=z.dtype)[:, None, :]
  return jnp.broadcast_to(units, (z.shape[1], *z.shape))


def _log_volume(columns: Float[Array, "b D d"]) -> Float[Array, "b"]:
  # The Gram matrix would square the condition number; R of QR has the same determinant.
  triangle = jnp.linalg.qr(widened(columns), mode="r")
  return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))), axis=1)


def _log_normal(z) -> Float[Array, "b"]:
  return jnp.sum(jax.scipy.stats.norm.logpdf(widened(z)), axis=1)


def _check_output(name: str, output, shape: tuple[int, ...]) -> None:
  if output.shape != shape:
    raise ValueError(f"{name} must return shape {shape}, got {output.shape}")
