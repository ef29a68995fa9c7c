"""The LSTM with attentive batch norm: against flax's, masks, directions, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from normjax.models import AttentiveLSTM

D, H = 3, 4
RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.normal(size=(2, 6, D)), jnp.float32)
MASK = jnp.arange(6)[None] < jnp.array([[6], [4]])


def _lstm(**options):
  """Return a model whose every Variable differs from its initial value."""
  sizes = {"window": 3, "summary_features": 4, "score_features": 2}
  lstm = AttentiveLSTM(D, H, **(sizes | options), rngs=nnx.Rngs(0))
  move = lambda v: jnp.asarray(v + RNG.uniform(0.1, 0.6, size=v.shape), v.dtype)
  nnx.update(lstm, jax.tree.map(move, nnx.state(lstm)))
  return lstm


@pytest.fixture(scope="module")
def frame():
  lstm = _lstm(use_running_average=True)
  return lstm, _jitted(lstm)


def _jitted(lstm):
  """Return `run(a, mask) -> (y, model's Variables afterwards)`."""
  graphdef, state = nnx.split(lstm)

  @jax.jit
  def run(a, mask):
    merged = nnx.merge(graphdef, state, copy=True)
    return merged(a, mask=mask), nnx.state(merged)

  return run


def test_with_a_norm_that_is_the_identity_it_is_the_lstm_of_flax():
  lstm = AttentiveLSTM(D, H, use_running_average=True, epsilon=0.0, rngs=nnx.Rngs(0))
  cell = nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(1))
  lstm.forward.kernel[...] = cell.dense_i.kernel[...]
  lstm.forward.recurrent_kernel[...] = cell.dense_h.kernel[...]
  lstm.forward.bias[...] = cell.dense_h.bias[...] = jnp.asarray(RNG.normal(size=4 * H), jnp.float32)
  zeros = jnp.zeros((2, H))
  _, theirs = jax.jit(lambda a: jax.lax.scan(cell, (zeros, zeros), a))(jnp.swapaxes(A, 0, 1))
  theirs = jnp.swapaxes(theirs, 0, 1)
  np.testing.assert_allclose(_jitted(lstm)(A, None)[0], theirs, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_gives_zeros(frame):
  _, run = frame
  whole, y = run(A, MASK | True)[0], run(A, MASK)[0]
  np.testing.assert_array_equal(y[1, 4:], 0)
  np.testing.assert_allclose(y[:, :4], whole[:, :4], rtol=1e-6)
  np.testing.assert_array_equal(run(jnp.where(MASK[..., None], A, jnp.nan), MASK)[0], y)
  front = run(jnp.roll(A, 2, 1), jnp.roll(MASK, 2, 1))[0]
  np.testing.assert_allclose(front[1], jnp.roll(y[1], 2, 0), rtol=1e-5)


@pytest.mark.parametrize("piece", [1, 3])
def test_piece_by_piece_is_the_whole_sequence(frame, piece):
  lstm, run = frame
  graphdef, state = nnx.split(lstm)

  @jax.jit
  def stream(a, mask):
    def step(carry, inputs):
      a, mask = inputs
      return nnx.merge(graphdef, state, copy=True).stream(carry, a, mask=mask)

    cut = lambda v: jnp.swapaxes(v.reshape(len(v), -1, piece, *v.shape[2:]), 0, 1)
    carry, pieces = jax.lax.scan(step, lstm.initial_carry(len(a)), (cut(a), cut(mask)))
    return jnp.swapaxes(pieces, 0, 1).reshape(*a.shape[:2], H)

  np.testing.assert_allclose(stream(A, MASK), run(A, MASK)[0], rtol=1e-5, atol=1e-6)


def test_streams_evaluate_also_in_training_and_training_moves_statistics(frame):
  lstm, run = frame
  graphdef, state = nnx.split(lstm)

  @jax.jit
  def both(a, mask):
    model = nnx.merge(graphdef, state, copy=True)
    model.train()
    _, streamed = model.stream(model.initial_carry(len(a)), a, mask=mask)
    still = model.forward.norm.mean[...]
    return streamed, still, model(a, mask=mask), model.forward.norm.mean[...]

  streamed, still, trained, moved = both(A, MASK)
  before = np.array(lstm.forward.norm.mean)
  np.testing.assert_allclose(streamed, run(A, MASK)[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(still, before)
  assert not np.allclose(trained, streamed)
  # One step of the recursion, over the projections of valid frames.
  x = (np.asarray(A) @ np.asarray(lstm.forward.kernel))[np.asarray(MASK)]
  np.testing.assert_allclose(moved, 0.9 * before + 0.1 * x.mean(0), rtol=1e-5)


def test_the_second_direction_reads_backwards_with_its_own_norm():
  options = {"scheme": "utterance", "summary_features": 4, "score_features": 2}
  both = _lstm(bidirectional=True, scheme="utterance")
  y, after = _jitted(both)(A, MASK)
  single = AttentiveLSTM(D, H, **options, rngs=nnx.Rngs(0))
  graphdef, _ = nnx.split(single)
  run = jax.jit(lambda state, a, mask: nnx.merge(graphdef, state, copy=True)(a, mask=mask))
  for half, direction, turn in ((y[..., :H], both.forward, 1), (y[..., H:], both.backward, -1)):
    nnx.update(single.forward, nnx.state(direction))
    alone = run(nnx.state(single), A[:, ::turn], MASK[:, ::turn])[:, ::turn]
    np.testing.assert_allclose(half, alone, rtol=1e-5, atol=1e-6)
  for name in ("forward", "backward"):
    old, new = getattr(both, name).norm.mean[...], after[name]["norm"]["mean"][...]
    assert not np.allclose(old, new)


def test_gradient_is_that_of_finite_differences():
  with jax.enable_x64(True):
    graphdef, params, rest = nnx.split(_lstm(), nnx.Param, ...)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    f = jax.jit(lambda p, a: nnx.merge(graphdef, p, rest, copy=True)(a, mask=MASK))
    a = A.astype(jnp.float64)
    assert f(params, a).dtype == jnp.float64
    check_grads(f, (params, a), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


def test_sixteen_bit_input_is_computed_in_float32(frame):
  _, run = frame
  a = A.astype(jnp.bfloat16)
  y = run(a, MASK)[0]
  assert y.dtype == jnp.bfloat16
  wide = run(a.astype(jnp.float32), MASK)[0]
  np.testing.assert_allclose(y, wide, rtol=float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("must be positive, got 0, 4", {"in_features": 0}),
    ("must be positive, got 3, -1", {"hidden_features": -1}),
    ("scheme must be 'frame' or 'utterance', got 'word'", {"scheme": "word"}),
    ("window must be 1 or more frames, got 0", {"window": 0}),
  ],
)
def test_bad_constructor_arguments(error, options):
  sizes = {"in_features": D, "hidden_features": H}
  with pytest.raises(ValueError, match=error):
    AttentiveLSTM(**(sizes | options), rngs=nnx.Rngs(0))


def test_bad_calls(frame):
  lstm, _ = frame
  with pytest.raises(ValueError, match="a must be floating, got int32"):
    lstm(jnp.ones((2, 6, D), jnp.int32))
  for shape in ((2, D), (2, 6, D + 1)):
    with pytest.raises(ValueError, match=r"a must have shape \(batch, time, in_features=3\)"):
      lstm(jnp.ones(shape))
  for mask in (MASK[:1], MASK[..., None], MASK.astype(jnp.int32)):
    with pytest.raises(ValueError, match=r"mask must be boolean of shape \(2, 6\)"):
      lstm(A, mask=mask)
  for options in ({"scheme": "utterance"}, {"bidirectional": True}):
    other = AttentiveLSTM(D, H, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="stream needs scheme='frame' and bidirectional=False"):
      other.stream(other.initial_carry(2), A)
