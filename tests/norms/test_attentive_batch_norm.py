"""What attention may see, what it generates, and the error of every bad argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms

B, T, D, C, K, S = 2, 6, 3, 4, 5, 2
SHAPES = {
  "summary_kernel": (D, K),
  "summary_bias": (K,),
  "score_kernel": (K, S),
  "score_bias": (S,),
  "score_vector": (S,),
  "scale_kernel": (K, C),
  "bias_kernel": (K, C),
}
RNG = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
WEIGHTS = {name: draw(*shape) for name, shape in SHAPES.items()}
X, A = draw(B, T, C), draw(B, T, D)
MASK = jnp.arange(T)[None] < jnp.array([[T], [4]])
SCHEMES = ["frame", "utterance"]
norm = jax.jit(
  norms.attentive_batch_norm,
  static_argnames=("scheme", "window", "use_running_average", "epsilon"),
)


def generated(a, mask=MASK, **options):
  """Return the scale and the bias (b, t, c) that are generated, without their constant parts."""
  run = lambda x: norm(x, a, WEIGHTS, mask=mask, use_running_average=True, epsilon=0.0, **options)[
    0
  ]
  bias = run(jnp.zeros((len(a), a.shape[1], C)))
  return run(jnp.ones((len(a), a.shape[1], C))) - bias - 1, bias


def contexts(**options):
  """Return c_t of every frame in float64, by loops over the definition."""
  w = {name: np.asarray(value, np.float64) for name, value in WEIGHTS.items()}
  s = np.tanh(np.asarray(A, np.float64) @ w["summary_kernel"] + w["summary_bias"])
  e = np.tanh(s @ w["score_kernel"] + w["score_bias"]) @ w["score_vector"]
  c = np.zeros((B, T, K))
  for b in range(B):
    for t in range(T):
      first, end = (
        (0, T) if options["scheme"] == "utterance" else (t - options["window"] + 1, t + 1)
      )
      seen = [i for i in range(max(first, 0), end) if MASK[b, i]]
      if seen:
        alpha = np.exp(e[b, seen]) / np.sum(np.exp(e[b, seen]))
        assert np.isclose(alpha.sum(), 1)
        c[b, t] = alpha @ s[b, seen]
  return c


@pytest.mark.parametrize("options", [
  {"scheme": "utterance"},
  {"scheme": "frame", "window": 1},
  {"scheme": "frame", "window": 3},
  {"scheme": "frame", "window": 50},
], ids=str)  # fmt: skip
def test_scale_and_bias_are_those_of_the_definition(options):
  c = contexts(**options)
  for got, kernel in zip(generated(A, **options), ("scale_kernel", "bias_kernel"), strict=True):
    wanted = np.where(MASK[..., None], c @ np.asarray(WEIGHTS[kernel], np.float64), 0)
    np.testing.assert_allclose(jnp.where(MASK[..., None], got, 0), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_generating_kernels_it_is_masked_batch_norm(scheme):
  plain = WEIGHTS | {"scale_kernel": jnp.zeros((K, C)), "bias_kernel": jnp.zeros((K, C))}
  scale, bias, g = draw(C), draw(C), draw(B, T, C)
  y, vjp, state = jax.vjp(
    lambda x: norm(x, A, plain, scale, bias, mask=MASK, scheme=scheme), X, has_aux=True
  )
  batch_norm = lambda x: norms.batch_norm(
    x, scale, bias, mask=MASK, var_estimator="biased", masked_output="zero"
  )
  wanted, wanted_vjp, wanted_state = jax.vjp(batch_norm, X, has_aux=True)
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(vjp(g)[0], wanted_vjp(g)[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(state, wanted_state, rtol=1e-6)


def test_a_new_module_is_a_plain_batch_norm():
  options = {"summary_features": K, "score_features": S, "rngs": nnx.Rngs(0)}
  fresh = norms.AttentiveBatchNorm(C, D, **options)
  plain = norms.BatchNorm(C, var_estimator="biased", rngs=nnx.Rngs(0))
  np.testing.assert_allclose(fresh(X, A), plain(X), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(fresh.var, plain.var, rtol=1e-6)
  assert np.all(np.abs(fresh.score_vector) <= S**-0.5)
  assert np.std(fresh.score_vector) > 0


def test_utterances_have_one_affine_whatever_the_order_of_frames():
  given = generated(A, scheme="utterance")
  order = jnp.array([3, 0, 2, 1, 4, 5])  # valid frames among themselves
  for shown, permuted in zip(given, generated(A[:, order], scheme="utterance"), strict=True):
    np.testing.assert_allclose(shown[0], jnp.broadcast_to(shown[0, :1], (T, C)), rtol=1e-5)
    np.testing.assert_allclose(permuted[:, :4], shown[:, :4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_frame_scheme_is_causal(scheme):
  given, changed = (
    generated(A, None, scheme=scheme),
    generated(A.at[:, 4:].add(1), None, scheme=scheme),
  )
  for a, b in zip(given, changed, strict=True):
    assert np.array_equal(a[:, :4], b[:, :4]) == (scheme == "frame")
    assert not np.allclose(a[:, 4:], b[:, 4:])


def test_earlier_frames_of_a_enter_attention_only():
  whole, _ = norm(X, A, WEIGHTS, mask=MASK, window=3, use_running_average=True)
  tail, _ = norm(X[:, 2:], A, WEIGHTS, mask=MASK, window=3, use_running_average=True)
  np.testing.assert_allclose(tail, whole[:, 2:], rtol=1e-5, atol=1e-6)
  _, (mean, _) = norm(X[:, 2:], A, WEIGHTS, mask=MASK, window=3)
  np.testing.assert_allclose(mean, 0.1 * jnp.mean(X[:, 2:][MASK[:, 2:]], 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nan_at_padding_reaches_no_gradient(scheme):
  def loss(weights, x, a):
    return jnp.sum(norm(x, a, weights, mask=MASK, scheme=scheme, window=3)[0] ** 3)

  grads = jax.jit(jax.grad(loss, (0, 1, 2)))
  junk = lambda v: jnp.where(MASK[..., None], v, jnp.nan)
  clean, dirty = grads(WEIGHTS, X, A), grads(WEIGHTS, junk(X), junk(A))
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  assert all(np.any(v != 0) for v in jax.tree.leaves(clean))


def test_single_frames_train_and_sequences_of_padding_give_zeros():
  y, _ = norm(X[:, :1], A[:, :1], WEIGHTS)
  assert np.all(np.isfinite(y))
  y, state = norm(X, A, WEIGHTS, mask=MASK.at[0].set(False))
  np.testing.assert_array_equal(y[0], 0)
  assert np.all(np.isfinite(y))
  assert np.all(np.isfinite(state))


@pytest.mark.parametrize(
  ("error", "change"),
  [
    ("x must be floating", {"x": jnp.ones((B, T, C), jnp.int32)}),
    ("a must be floating", {"a": jnp.ones((B, T, D), jnp.int32)}),
    ("x must be sequences", {"x": jnp.ones((T, C))}),
    ("a must be 2 sequences of 6 frames or more", {"a": jnp.ones((B, T - 1, D))}),
    ("a must be 2 sequences of 6 frames or more", {"a": jnp.ones((B + 1, T, D))}),
    ("a must be 2 sequences of 6 frames or more", {"a": jnp.ones((T, D))}),
    (r"summary_kernel of shape \(4, 5\), got \(3, 5\)", {"a": jnp.ones((B, T, D + 1))}),
    (r"scale_kernel of shape \(5, 3\), got \(5, 4\)", {"x": jnp.ones((B, T, C - 1))}),
    (r"score_vector of shape \(2,\)", {"weights": WEIGHTS | {"score_vector": jnp.ones((2, 1))}}),
    ("weights must be summary_kernel, .* got bias_kernel", {"weights": {"bias_kernel": 0.0}}),
    (r"scale must have shape \(4,\), got \(1, 1, 4\)", {"scale": jnp.ones((1, 1, C))}),
    (r"bias must have shape \(4,\), got \(3,\)", {"bias": jnp.ones(C - 1)}),
    ("scheme must be 'frame' or 'utterance', got 'word'", {"scheme": "word"}),
    ("window must be 1 or more frames, got 0", {"window": 0}),
    ("mask must be boolean", {"mask": jnp.ones((B, T))}),
    ("mask must have the shape", {"mask": jnp.ones((B, T + 1), bool)}),
    ("epsilon must be >= 0", {"epsilon": -1e-5}),
    (r"decay must be in \[0, 1\)", {"decay": 1.0}),
    ("state must be", {"state": (jnp.ones(C), jnp.ones(C + 1))}),
  ],
)
def test_bad_arguments(error, change):
  arguments = {"x": X, "a": A, "weights": WEIGHTS} | change
  with pytest.raises(ValueError, match=error):
    jax.eval_shape(lambda: norms.attentive_batch_norm(**arguments))


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("one positive size per normalized axis", {"num_features": 0}),
    ("must be positive, got 3, 0 and 32", {"summary_features": 0}),
    ("scheme must be", {"scheme": "word"}),
    ("window must be", {"window": 0}),
    ("epsilon must be", {"epsilon": -1.0}),
    ("decay must be", {"decay": 1.5}),
    ("param_dtype must be", {"param_dtype": jnp.int32}),
  ],
)
def test_bad_constructor_arguments(error, options):
  with pytest.raises(ValueError, match=error):
    norms.AttentiveBatchNorm(
      **({"num_features": C, "input_features": D} | options), rngs=nnx.Rngs(0)
    )
