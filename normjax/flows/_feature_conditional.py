"""The two sub-steps of conditional image flows: conditioned on features, and on itself as well.

Paper: "On the Robustness of Normalizing Flows for Inverse Problems in Imaging", arXiv 2212.04319,
whose code first maps all channels as features of the measurement say, then half of them as these
features and the other half say. There each map is affine, or the two-bin spline; here it is any
`Transform`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_features
from normjax.flows._coupling import Coupling
from normjax.flows._glow_network import GlowNetwork
from normjax.flows._quad_coupling import MakeNet
from normjax.flows._transforms import Transform, apply_to_event
from normjax.flows._widened import widened


class FeatureConditional(Bijector):
  """Transforms every entry as features of the condition at its pixel and around it say.

  z_i = transform(x_i; net(cond)_i),  x and z (B, ..., C), cond (B, ..., F) of the same pixels
  log_det (B,) = sum_i log|dz_i / dx_i|

  net (B, ..., F) -> (B, ..., C P) gives the P parameters of each channel in turn. By default it is
  conv3 -> relu -> conv1 -> relu -> conv3 times exp(3 logs), the last of which is zero at first.

  Args:
    features: C.
    transform: what happens to each entry, with P parameters.
    cond_features: F.
    width: channels inside the default network.
    make_net: `make_net(in_features, out_features, rngs=rngs)` builds another network.
    param_dtype: dtype of the default network's parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1. Calls raise it unless `cond` has F channels and x's pixels.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> from normjax.flows import ModifiedRQSTransform
    >>> layer = FeatureConditional(3, ModifiedRQSTransform(), cond_features=5, rngs=nnx.Rngs(0))
    >>> x, cond = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 4, 4, 5))
    >>> bool(jnp.all(layer.forward(x, cond)[0] == x))  # a new one is the identity
    True
  """

  def __init__(
    self,
    features: int,
    transform: Transform,
    *,
    cond_features: int,
    width: int = 64,
    make_net: MakeNet | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(features=features, cond_features=cond_features, width=width)
    self.features, self.cond_features, self.transform = features, cond_features, transform
    make_net = make_net or _convolutional(width, param_dtype)
    self.network = make_net(cond_features, features * transform.num_parameters, rngs=rngs)

  def forward(self, x, cond=None):
    """Return `(transform(x), log_det)`."""
    return apply_to_event(self.transform.forward, x, self._raw("x", x, cond))

  def inverse(self, z, cond=None):
    """Return `(transform^-1(z), log_det)`."""
    return apply_to_event(self.transform.inverse, z, self._raw("z", z, cond))

  def _raw(self, name, x, cond):
    check_features(name, x, self.features)
    raw = self.network(_pixels(cond, x, self.cond_features))
    return _parameters(raw, x, self.transform)


class SelfConditional(Coupling):
  """Transforms the last half of the channels as the first half and features of the condition say.

  z1 = x1,  z2_i = transform(x2_i; net(x1, cond)_i),  x and z (B, ..., C), cond (B, ..., F)
  log_det (B,) = sum_i log|dz2_i / dx2_i|

  x1 has C / 2 channels, rounded down. net (B, ..., C // 2 + F) -> (B, ..., (C - C // 2) P) as in
  `FeatureConditional`.

  Args:
    features: C, at least 2.
    transform: what happens to each transformed entry, with P parameters.
    cond_features: F.
    width: channels inside the default network.
    make_net: `make_net(in_features, out_features, rngs=rngs)` builds another network.
    param_dtype: dtype of the default network's parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if `features` is below 2 or another size below 1. Calls raise it unless `cond` has F
      channels and x's pixels.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> from normjax.flows import ConditionalAffineTransform
    >>> transform = ConditionalAffineTransform()
    >>> layer = SelfConditional(3, transform, cond_features=5, rngs=nnx.Rngs(0))
    >>> z, _ = layer.forward(jnp.ones((2, 4, 4, 3)), jnp.ones((2, 4, 4, 5)))
    >>> z[0, 0, 0].round(2)
    Array([1.  , 0.88, 0.88], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    transform: Transform,
    *,
    cond_features: int,
    width: int = 64,
    make_net: MakeNet | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(2, features=features)
    check_sizes(cond_features=cond_features, width=width)
    self.features, self.cond_features, self.elementwise = features, cond_features, transform
    kept = features // 2
    make_net = make_net or _convolutional(width, param_dtype)
    self.network = make_net(
      kept + cond_features, (features - kept) * transform.num_parameters, rngs=rngs
    )

  def split(self, x):
    """Return the first and the last half of the channels."""
    check_features("x", x, self.features)
    return x[..., : self.features // 2], x[..., self.features // 2 :]

  def join(self, x1, x2):
    """Undo `split`."""
    return jnp.concatenate([x1, x2], axis=-1)

  def conditioner(self, x1, cond):
    """Return the network's outputs (B, ..., (C - C // 2) P), float32 or wider."""
    cond = _pixels(cond, x1, self.cond_features)
    return self.network(jnp.concatenate([widened(x1), cond], axis=-1))

  def transform(self, x2, theta):
    """Return `(z2, log_det)`."""
    return apply_to_event(self.elementwise.forward, x2, _parameters(theta, x2, self.elementwise))

  def untransform(self, y2, theta):
    """Undo `transform`."""
    return apply_to_event(self.elementwise.inverse, y2, _parameters(theta, y2, self.elementwise))


def _pixels(cond, x, features: int) -> jax.Array:
  """Return `cond`, float32 or wider, if it has this many features at each pixel of `x`."""
  shape = (*x.shape[:-1], features)
  if cond is None or cond.shape != shape:
    found = None if cond is None else cond.shape
    raise ValueError(f"cond must have shape {shape}, got {found}")
  return widened(cond)


def _convolutional(width: int, param_dtype: DTypeLike) -> MakeNet:
  return functools.partial(
    GlowNetwork, width=width, use_act_norm=False, edge_bias=False, param_dtype=param_dtype
  )


def _parameters(raw: jax.Array, x: jax.Array, transform: Transform) -> Float[Array, "*x p"]:
  """Return the parameters of each entry, channel by channel."""
  return raw.reshape(*x.shape, transform.num_parameters)
