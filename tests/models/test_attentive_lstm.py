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
  run = jax.jit(lambda a, mask: nnx.clone(lstm)(a, mask=mask))
  return lstm, run


def test_with_a_norm_that_is_the_identity_it_is_the_lstm_of_flax():
  lstm = AttentiveLSTM(D, H, use_running_average=True, epsilon=0.0, rngs=nnx.Rngs(0))
  cell = nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(1))
  lstm.forward.kernel[...] = cell.dense_i.kernel[...]
  lstm.forward.recurrent_kernel[...] = cell.dense_h.kernel[...]
  lstm.forward.bias[...] = cell.dense_h.bias[...] = jnp.asarray(RNG.normal(size=4 * H), jnp.float32)
  np.testing.assert_allclose(lstm(A), nnx.RNN(cell)(A), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_gives_zeros(frame):
  _, run = frame
  whole, y = run(A, MASK | True), run(A, MASK)
  np.testing.assert_array_equal(y[1, 4:], 0)
  np.testing.assert_allclose(y[:, :4], whole[:, :4], rtol=1e-6)
  np.testing.assert_array_equal(run(jnp.where(MASK[..., None], A, jnp.nan), MASK), y)
  np.testing.assert_allclose(run(A, None), whole, rtol=1e-6)
  front = run(jnp.roll(A, 2, 1), jnp.roll(MASK, 2, 1))
  np.testing.assert_allclose(front[1], jnp.roll(y[1], 2, 0), rtol=1e-5)


def test_frame_by_frame_is_the_whole_sequence(frame):
  lstm, run = frame
  whole = run(A, MASK)

  @jax.jit
  def one_by_one(a, mask):
    step = lambda carry, xs: nnx.clone(lstm).stream(carry, xs[0][:, None], mask=xs[1][:, None])
    inputs = (jnp.swapaxes(a, 0, 1), jnp.swapaxes(mask, 0, 1))
    return jax.lax.scan(step, lstm.initial_carry(len(a)), inputs)[1][:, :, 0]

  np.testing.assert_allclose(jnp.swapaxes(one_by_one(A, MASK), 0, 1), whole, rtol=1e-5, atol=1e-6)
  carry, first = lstm.stream(lstm.initial_carry(2), A[:, :4], mask=MASK[:, :4])
  _, second = lstm.stream(carry, A[:, 4:], mask=MASK[:, 4:])
  pieces = jnp.concatenate([first, second], 1)
  np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)


def test_training_is_not_evaluation_and_stream_evaluates_nonetheless(frame):
  lstm, run = frame
  modal = nnx.clone(lstm)
  modal.train()
  before = np.array(modal.forward.norm.mean)
  _, streamed = modal.stream(modal.initial_carry(2), A, mask=MASK)
  np.testing.assert_allclose(streamed, run(A, MASK), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(modal.forward.norm.mean, before)
  assert not np.allclose(modal(A, mask=MASK), streamed)
  # One step of the recursion, over the projections of valid frames.
  x = np.asarray((A @ lstm.forward.kernel[...])[MASK])
  wanted = 0.9 * before + 0.1 * x.mean(0)
  np.testing.assert_allclose(modal.forward.norm.mean, wanted, rtol=1e-5)


def test_the_second_direction_reads_backwards_with_its_own_norm():
  both = _lstm(bidirectional=True, scheme="utterance")
  y = both(A, mask=MASK)
  single = AttentiveLSTM(D, H, scheme="utterance", window=3, summary_features=4, score_features=2,
                         rngs=nnx.Rngs(0))  # fmt: skip
  fresh = _lstm(bidirectional=True, scheme="utterance")
  for half, direction, turn in ((y[..., :H], fresh.forward, 1), (y[..., H:], fresh.backward, -1)):
    params = nnx.state(getattr(both, "forward" if turn == 1 else "backward"), nnx.Param)
    nnx.update(direction, params)
    nnx.update(single.forward, params)
    alone = single(A[:, ::turn], mask=MASK[:, ::turn])[:, ::turn]
    np.testing.assert_allclose(half, alone, rtol=1e-5, atol=1e-6)
  means = [np.asarray(d.norm.mean) for d in (both.forward, both.backward)]
  assert not np.allclose(*means)


@pytest.mark.parametrize("scheme", ["frame", "utterance"])
def test_gradient_is_that_of_finite_differences(scheme):
  with jax.enable_x64(True):
    graphdef, params, rest = nnx.split(_lstm(scheme=scheme), nnx.Param, ...)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    f = jax.jit(lambda p, a: nnx.merge(graphdef, p, rest, copy=True)(a, mask=MASK))
    assert f(params, A.astype(jnp.float64)).dtype == jnp.float64
    check_grads(f, (params, A.astype(jnp.float64)), order=1, modes=["rev"], eps=1e-5)


def test_sixteen_bit_input_is_computed_in_float32(frame):
  _, run = frame
  a = A.astype(jnp.bfloat16)
  y = run(a, MASK)
  assert y.dtype == jnp.bfloat16
  wide = run(a.astype(jnp.float32), MASK)
  np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


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
    with pytest.raises(ValueError, match="stream needs scheme='frame' and bidirectional=False"):
      other = _lstm(**options)
      other.stream(other.initial_carry(2), A)
