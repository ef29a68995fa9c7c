"""An LSTM layer with attentive batch normalization, after https://arxiv.org/abs/2001.00129.

Only the abstract of the paper is public. Here the projection of the input is normalized, for the
whole sequence ahead of the scan over time, and the recurrent term is not; see
`normjax.norms.attentive_batch_norm` for what else is our design.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms import AttentiveBatchNorm

Carry = dict[str, Array]
_lecun, _orthogonal = nnx.initializers.lecun_normal(), nnx.initializers.orthogonal()


class AttentiveLSTM(nnx.Module):
  """Runs an LSTM over sequences whose input projections attentive batch norm normalizes.

  i, f, g, o = split(ABN(a_t @ kernel) + h @ recurrent_kernel + bias); c <- sigmoid(f) * c +
  sigmoid(i) * tanh(g); h <- sigmoid(o) * tanh(c), with a (b, t, d) -> h (b, t, hidden_features),
  twice as wide if bidirectional. The attention of ABN is over the inputs a. Frames outside of the
  mask leave h and c alone, and give zeros.

  With the scheme "frame", `stream` evaluates a sequence in pieces as they come in.

  Args:
    in_features: size d of the last axis of the input.
    hidden_features: width of h and c.
    bidirectional: whether a second LSTM, with a norm of its own, reads each sequence backwards; its
      outputs are appended.
    scheme: which frames ABN attends to, "frame" or "utterance".
    window: frames that the scheme "frame" attends to.
    summary_features: width of ABN's summary of a frame.
    score_features: hidden width of ABN's attention score.
    use_running_average: whether to evaluate with the running values; a call, `train()`, `eval()`
      and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old running value in the new one.
    dtype: dtype of the output, the input's if None; all is computed in float32 or wider.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of `kernel`.
    recurrent_kernel_init: initializer of `recurrent_kernel`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is not positive, the input does not have shape (b, t, in_features), the
      mask is not boolean of shape (b, t), and as `attentive_batch_norm`.

  Reference:
    Ding, Guo, Dai and Du, "Attentive batch normalization for LSTM-based acoustic modeling of
    speech recognition", 2020, arXiv 2001.00129.

  Example:
    >>> lstm = AttentiveLSTM(3, 8, bidirectional=True, rngs=nnx.Rngs(0))
    >>> lstm(jnp.ones((2, 5, 3))).shape
    (2, 5, 16)
  """

  def __init__(
    self,
    in_features: int,
    hidden_features: int,
    *,
    bidirectional: bool = False,
    scheme: Literal["frame", "utterance"] = "frame",
    window: int = 5,
    summary_features: int = 64,
    score_features: int = 32,
    use_running_average: bool | None = False,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: Initializer = _lecun,
    recurrent_kernel_init: Initializer = _orthogonal,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    if in_features < 1 or hidden_features < 1:
      raise ValueError(
        f"in_features and hidden_features must be positive, got {in_features}, {hidden_features}"
      )
    self.in_features, self.hidden_features = in_features, hidden_features
    self.bidirectional, self.dtype = bidirectional, dtype

    def direction():
      norm = AttentiveBatchNorm(
        4 * hidden_features,
        in_features,
        scheme=scheme,
        window=window,
        summary_features=summary_features,
        score_features=score_features,
        use_running_average=use_running_average,
        epsilon=epsilon,
        decay=decay,
        param_dtype=param_dtype,
        axis_name=axis_name,
        rngs=rngs,
      )
      inits = (kernel_init, recurrent_kernel_init, bias_init)
      return _Direction(in_features, hidden_features, norm, inits, param_dtype, rngs)

    self.forward = direction()
    self.backward = direction() if bidirectional else nnx.data(None)

  def __call__(
    self,
    a: Float[Array, "b t d"],
    use_running_average: bool | None = None,
    *,
    mask: Bool[Array, "b t"] | None = None,
  ) -> Float[Array, "b t h"]:
    """Return the outputs of all frames; `mask` is True where a frame is valid."""
    a, valid = self._checked(a, mask)
    zeros = jnp.zeros((a.shape[0], self.hidden_features), _wide(a))
    valid_or_none = None if mask is None else valid
    gates = self.forward.gates(a, valid_or_none, a.shape[1], use_running_average)
    outputs = self.forward.run((zeros, zeros), gates, valid)[1]
    if self.backward is not None:
      flipped = None if mask is None else valid[:, ::-1]
      gates = self.backward.gates(a[:, ::-1], flipped, a.shape[1], use_running_average)
      reverse = self.backward.run((zeros, zeros), gates, valid[:, ::-1])[1]
      outputs = jnp.concatenate([outputs, reverse[:, ::-1]], -1)
    return outputs.astype(a.dtype if self.dtype is None else self.dtype)

  def initial_carry(self, batch_size: int, dtype: DTypeLike = jnp.float32) -> Carry:
    """Return what `stream` starts from, for inputs of this dtype: no frame seen, h and c zero."""
    earlier = max(self.forward.norm.window - 1, 0)
    frames = jnp.zeros((batch_size, earlier, self.in_features), dtype)
    state = jnp.zeros((batch_size, self.hidden_features), _wide(frames))
    valid = jnp.zeros((batch_size, earlier), bool)
    return {"hidden": state, "cell": state, "frames": frames, "valid": valid}

  def stream(
    self, carry: Carry, a: Float[Array, "b t d"], *, mask: Bool[Array, "b t"] | None = None
  ) -> tuple[Carry, Float[Array, "b t h"]]:
    """Evaluate the next frames of sequences, with the running statistics.

    The outputs of all pieces together are those of the whole sequences. Raises ValueError if the
    model is bidirectional or has the scheme "utterance", as both need later frames.
    """
    if self.bidirectional or self.forward.norm.scheme != "frame":
      raise ValueError(
        "stream needs scheme='frame' and bidirectional=False, got "
        f"scheme={self.forward.norm.scheme!r} and bidirectional={self.bidirectional}"
      )
    a, valid = self._checked(a, mask)
    frames = jnp.concatenate([carry["frames"], a.astype(carry["frames"].dtype)], 1)
    known = jnp.concatenate([carry["valid"], valid], 1)
    gates = self.forward.gates(frames, known, a.shape[1], True)
    (hidden, cell), outputs = self.forward.run((carry["hidden"], carry["cell"]), gates, valid)
    new = {"hidden": hidden, "cell": cell, "frames": frames[:, a.shape[1] :]}
    new["valid"] = known[:, a.shape[1] :]
    return new, outputs.astype(a.dtype if self.dtype is None else self.dtype)

  def _checked(self, a: Array, mask: Array | None) -> tuple[Array, Bool[Array, "b t"]]:
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
      raise ValueError(f"a must be floating, got {a.dtype}: cast it first, to float32 say")
    if a.ndim != 3 or a.shape[2] != self.in_features:
      raise ValueError(
        f"a must have shape (batch, time, in_features={self.in_features}), got {a.shape}"
      )
    if mask is None:
      return a, jnp.ones(a.shape[:2], bool)
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_ or mask.shape != a.shape[:2]:
      raise ValueError(f"mask must be boolean of shape {a.shape[:2]}, got {mask.dtype}{mask.shape}")
    return a, mask


class _Direction(nnx.Module):
  """Holds the parameters of one LSTM and runs it."""

  def __init__(
    self,
    in_features: int,
    hidden_features: int,
    norm: AttentiveBatchNorm,
    inits: tuple[Initializer, Initializer, Initializer],
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    width = 4 * hidden_features
    new = lambda init, shape: nnx.Param(init(rngs.params(), shape, param_dtype))
    self.norm = norm
    self.kernel = new(inits[0], (in_features, width))
    self.recurrent_kernel = new(inits[1], (hidden_features, width))
    self.bias = new(inits[2], (width,))

  def gates(
    self,
    a: Float[Array, "b n d"],
    mask: Bool[Array, "b n"] | None,
    num_frames: int,
    use_running_average: bool | None,
  ) -> Float[Array, "b t g"]:
    """Return the input's part in the gates of the last frames; earlier ones are for attention."""
    a = a.astype(_wide(a))
    x = a[:, a.shape[1] - num_frames :] @ self.kernel[...].astype(a.dtype)
    y = self.norm(x, a, use_running_average, mask=mask)
    return y + self.bias[...].reshape(1, 1, -1).astype(y.dtype)

  def run(
    self,
    state: tuple[Float[Array, "b h"], Float[Array, "b h"]],
    gates: Float[Array, "b t g"],
    valid: Bool[Array, "b t"],
  ) -> tuple[tuple[Array, Array], Float[Array, "b t h"]]:
    """Return the last h and c, and h of all frames, zero where a frame is not valid."""
    recurrent = self.recurrent_kernel[...].astype(gates.dtype)

    def step(state, inputs):
      (hidden, cell), (gates, valid) = state, inputs
      i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
      new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
      state = (jnp.where(valid, new_hidden, hidden), jnp.where(valid, new_cell, cell))
      return state, jnp.where(valid, new_hidden, 0)

    by_time = (jnp.swapaxes(gates, 0, 1), jnp.swapaxes(valid, 0, 1)[..., None])
    state, outputs = jax.lax.scan(step, state, by_time)
    return state, jnp.swapaxes(outputs, 0, 1)


def _wide(a: Array) -> jnp.dtype:
  return jnp.promote_types(a.dtype, jnp.float32)
