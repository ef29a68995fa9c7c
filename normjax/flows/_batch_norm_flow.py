"""Batch normalization as a flow layer (arXiv 1605.08803, 1705.07057).

What differs from other implementations: the running statistics never move in `forward`. They move
in `update_statistics`, a function that is called once per training step, so that a flow may be
traced, scanned and differentiated at will; and the variance is the biased one throughout.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from normjax._sizes import check_sizes
from normjax.flows._act_norm import scaling_log_det
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_features
from normjax.flows._flow import T, copied, visit_from_data
from normjax.flows._widened import widened


class BatchNormFlow(Bijector):
  """Normalizes every channel over the batch, then scales and shifts it.

  z = exp(log_scale) (x - mean) / sqrt(var + epsilon) + bias, x and z (B, C) or (B, H, W, C)
  log_det (B,) = H W sum(log_scale - log(var + epsilon) / 2)

  In training mean and var are those of the batch, gradients flow through them, and there is no
  inverse; in evaluation (`eval()`) they are running averages, which `update_statistics` moves and
  `init_from_data` sets to those of a batch.

  Args:
    features: C.
    epsilon: added to the variance, above 0.
    decay: share of the old running value in the new one, in [0, 1).
    use_running_average: whether to evaluate.
    param_dtype: dtype of the parameters; statistics are float32 or wider.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if an argument is out of range; in training, if there is only one position, or at
      a call of `inverse`.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> from normjax import flows
    >>> layer = flows.BatchNormFlow(1)
    >>> layer.forward(jnp.array([[1.0], [3.0]]))[0].round(3)
    Array([[-1.],
           [ 1.]], dtype=float32)
  """

  use_running_average: bool

  def __init__(
    self,
    features: int,
    *,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    use_running_average: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    check_sizes(features=features)
    if not epsilon > 0 or not 0 <= decay < 1:
      raise ValueError(f"epsilon must be above 0 and decay in [0, 1), got {epsilon} and {decay}")
    self.features, self.epsilon, self.decay = features, float(epsilon), float(decay)
    self.use_running_average = use_running_average
    self.log_scale = nnx.Param(jnp.zeros((features,), param_dtype))
    self.bias = nnx.Param(jnp.zeros((features,), param_dtype))
    dtype = jnp.promote_types(param_dtype, jnp.float32)
    self.mean = nnx.BatchStat(jnp.zeros((features,), dtype))
    self.var = nnx.BatchStat(jnp.ones((features,), dtype))

  def set_view(self, use_running_average: bool | None = None) -> None:
    """Set the mode, for `nnx.view`.

    Args:
      use_running_average: whether to normalize with running statistics.
    """
    if use_running_average is not None:
      self.use_running_average = use_running_average

  @property
  def constant_logdet(self):
    """Whether it is that of the running statistics."""
    return self.use_running_average

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    check_features("x", x, self.features)
    rows = widened(x).reshape(-1, self.features)
    mean, var = self._running(rows.dtype) if self.use_running_average else self._moments(rows)
    log_gain = self._log_gain(var)
    z = (rows - mean[None]) * jnp.exp(log_gain)[None] + self._bias(rows.dtype)
    return z.reshape(x.shape).astype(x.dtype), scaling_log_det(x, log_gain)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)` with the running statistics."""
    check_features("z", z, self.features)
    if not self.use_running_average:
      raise ValueError(
        "use_running_average must be True to invert, since statistics of the batch are those of "
        "data: call eval() first, got False"
      )
    rows = widened(z).reshape(-1, self.features)
    mean, var = self._running(rows.dtype)
    log_gain = self._log_gain(var)
    x = (rows - self._bias(rows.dtype)) * jnp.exp(-log_gain)[None] + mean[None]
    return x.reshape(z.shape).astype(z.dtype), -scaling_log_det(z, log_gain)

  def data_init(self, x, cond=None):
    """Set the running statistics to those of `x`, or move them; return the latent."""
    check_features("x", x, self.features)
    decay = 0.0 if self.starts_from_data else self.decay
    new = self._moments(widened(x).reshape(-1, self.features))
    for kept, value in zip((self.mean, self.var), new, strict=True):
      value = jax.lax.stop_gradient(value).astype(kept.dtype)
      kept[...] = decay * kept[...] + (1 - decay) * value
    return self.forward(x, cond)[0]

  def _running(self, dtype) -> tuple[Array, Array]:
    return self.mean[...].astype(dtype), self.var[...].astype(dtype)

  def _moments(self, rows) -> tuple[Array, Array]:
    if rows.shape[0] < 2:
      raise ValueError(
        f"x must have more than one position to train on, got {rows.shape[0]}: give a larger "
        "batch, or evaluate"
      )
    mean = jnp.mean(rows, axis=0)
    return mean, jnp.mean((rows - mean[None]) ** 2, axis=0)

  def _log_gain(self, var):
    return self.log_scale[...].astype(var.dtype) - jnp.log(var + self.epsilon) / 2

  def _bias(self, dtype):
    return self.bias[...].astype(dtype)[None]


def update_statistics(flow: T, x: Float[Array, "b *event"], cond: PyTree | None = None) -> T:
  """Return a flow with the running statistics of every `BatchNormFlow` moved towards a batch's.

  mean <- decay mean + (1 - decay) mean(x_k), var likewise, x_k (B, ...) the input of layer k

  Everything else stays. In a training step it takes one more pass through the layers, which a
  compiler finds to be the pass of the loss; statistics leave the loss as auxiliary output:
  `nnx.update(flow, nnx.state(flows.update_statistics(flow, x), nnx.BatchStat))`.

  Args:
    flow: a bijector, or a `Flow`; it is left as it is.
    x: a batch of data.
    cond: what the flow is conditioned on, if it is.

  Returns:
    A new flow of the same structure that shares nothing with the old one.

  Raises:
    ValueError: if `flow` is neither.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> from normjax import flows
    >>> layer = flows.BatchNormFlow(1, decay=0.5)
    >>> flows.update_statistics(layer, jnp.array([[1.0], [3.0]])).mean[...]
    Array([1.], dtype=float32)
  """
  new, visited = copied(flow), copied(flow)
  for _, module in nnx.iter_modules(visited):
    if isinstance(module, Bijector):
      module.starts_from_data = False
  visit_from_data(visited, x, cond)
  nnx.update(new, nnx.state(visited, nnx.BatchStat))
  return new
