"""A transform of single entries whose parameters are trained: marginals of any density.

In other libraries: the piecewise CDFs of nflows, the element-wise transforms of zuko.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_shape, is_concrete
from normjax.flows._conditional_parameters import ConditionalParameters
from normjax.flows._transforms import Transform, apply_to_event


class Elementwise(Bijector):
  """Applies a transform to every entry, with trained parameters of its own.

  z_i = transform(x_i; raw_i),  x and z (B, *shape), raw (*shape, P)
  log_det (B,) = sum_i log|dz_i/dx_i|

  Raw parameters start at zero; `init_from_data` starts those of mixtures from the marginals of a
  batch (`GaussianizationTransform`, `LogisticMixtureTransform`). A network of the condition, if
  there is one, moves them.

  Args:
    transform: what happens to each entry.
    shape: the event shape, a tuple or list of ints.
    cond_dim: features of the condition (B, C), or None.
    width: units of its network.
    depth: residual blocks of its network.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`, which only a network of the condition needs.

  Raises:
    ValueError: if `shape` is no sequence of positive ints, a size is below 1, or there is a
      `cond_dim` but no `rngs`.

  Example:
    >>> from normjax import flows
    >>> layer = Elementwise(flows.AdditiveTransform(), (3,))
    >>> layer.forward(jnp.ones((2, 3)))[0].shape
    (2, 3)
  """

  def __init__(
    self,
    transform: Transform,
    shape: Sequence[int],
    *,
    cond_dim: int | None = None,
    width: int = 64,
    depth: int = 1,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    self.transform, self.shape = transform, check_shape(shape)
    self.parameters = ConditionalParameters(
      {"raw": (*self.shape, transform.num_parameters)}, cond_dim=cond_dim, width=width,
      depth=depth, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    return self._run("x", x, cond, self.transform.forward)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`."""
    return self._run("z", z, cond, self.transform.inverse)

  def data_init(self, x, cond=None):
    """Set the raw parameters to the transform's `init_raw` of `x`, if any; return the latent."""
    check_batch("x", x, self.shape)
    raw = self.transform.init_raw(x) if self.starts_from_data else None
    if raw is not None:
      values = self.parameters.values["raw"]
      values[...] = raw.astype(values.dtype)
    return self.forward(x, cond)[0]

  def check_initialized(self):
    """Raise ValueError if `init_from_data` had no finite batch; under jit there is no check."""
    raw = self.parameters.values["raw"][...]
    if is_concrete(raw) and not np.all(np.isfinite(raw)):
      raise ValueError(
        "x must be finite at every Elementwise that starts from it, got NaN or infinity"
      )

  def _run(self, name, x, cond, method):
    check_batch(name, x, self.shape)
    raw = self.parameters(x, cond)["raw"]
    raw = jnp.broadcast_to(raw, (*x.shape, self.transform.num_parameters))
    return apply_to_event(method, x, raw)
