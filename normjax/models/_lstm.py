"""An LSTM classifier of sequences with a norm on what enters the gates.

Normalizing the input's part of the gates over the whole sequence, and not the recurrent part, is
the place that works for batch statistics (Laurent et al. 2015; Amodei et al., "Deep Speech 2",
2015, arXiv 1512.02595).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.models._norm import make_norm


class LSTMClassifier(nnx.Module):
  """Classifies sequences by the mean of an LSTM's states, with a norm on the input projection.

  g_t = norm(W x_t) + U h_{t-1} + b, cut into i, f, o, u; c_t = sigmoid(f + 1) c_{t-1} + sigmoid(i)
  tanh(u); h_t = sigmoid(o) tanh(c_t); logits = V mean_t(h_t) + v; x (batch, time, in_features) ->
  logits (batch, num_classes). Time is a `lax.scan`.

  Args:
    in_features: features of a frame.
    num_classes: number of logits.
    width: features of the state.
    norm: a key of `normjax.norms.NAMES`, or None for no norm.
    norm_options: further arguments of that norm.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1, there is no such norm or option, or x has another rank or
      number of features.

  Reference:
    Laurent et al., "Batch Normalized Recurrent Neural Networks", 2015, arXiv 1510.01378.

  Example:
    >>> model = LSTMClassifier(3, 10, width=8, norm="layer_norm", rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 5, 3))).shape
    (2, 10)
  """

  def __init__(
    self,
    in_features: int,
    num_classes: int,
    *,
    width: int = 64,
    norm: str | None = "batch_norm",
    norm_options: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    check_sizes(in_features=in_features, num_classes=num_classes, width=width)
    self.in_features, self.width = in_features, width
    self.input = nnx.Linear(in_features, 4 * width, use_bias=False, rngs=rngs)
    self.norm = make_norm(norm, 4 * width, norm_options, rngs)
    init = nnx.initializers.orthogonal()
    self.recurrent = nnx.Linear(width, 4 * width, kernel_init=init, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b k"]:
    """Return the logits (batch, num_classes)."""
    if x.ndim != 3 or x.shape[-1] != self.in_features:
      raise ValueError(f"x must have shape (batch, time, {self.in_features}), got {x.shape}")
    entering = jnp.moveaxis(self.norm(self.input(x)), 1, 0)
    recurrent: Any = self.recurrent
    kernel, bias = recurrent.kernel[...], recurrent.bias[...]

    def step(state, entering):
      h, c = state
      i, f, o, u = jnp.split(entering + h @ kernel + bias.reshape(1, -1), 4, axis=-1)
      c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (h, c), h

    zeros = jnp.zeros((len(x), self.width), entering.dtype)
    _, states = jax.lax.scan(step, (zeros, zeros), entering)
    return self.head(jnp.mean(states, axis=0))
