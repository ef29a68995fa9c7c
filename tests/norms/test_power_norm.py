"""Power normalization: identities of its statistics and its gradient, options, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms

_RNG = np.random.default_rng(0)
X = np.float32(_RNG.normal(size=(4, 3, 6)) * np.arange(1, 7))
G = np.float32(_RNG.normal(size=X.shape))
MASK = _RNG.random((4, 3)) < 0.6
SCALE, BIAS, PHI, ERR = np.float32(np.linspace([0.5, -1, 2, -1], [2, 1, 3, 1], 6).T)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)


@functools.cache
def compiled(options):
  """Return a jitted training step with all that its backward pass gives."""

  @jax.jit
  def step(phi, iters, err, mask):
    f = lambda x, err: norms.power_norm(
      x, None, None, (phi, iters), err, mask=mask, **dict(options)
    )
    y, vjp, state = jax.vjp(f, X, err, has_aux=True)
    return y, state, *vjp(G)

  return step


def run(mask=None, iters=5, phi=PHI, err=ERR, **options):
  """Return y, the state, dh (the gradient of x without groups) and the increment of err."""
  options = {"num_groups": None, "warmup_iters": 0, **options}
  return compiled(tuple(options.items()))(phi, iters, err, mask)


def mean(v):
  return v.reshape(-1, v.shape[-1]).mean(0)


def wide(v):
  return v.reshape(1, 1, -1)


@pytest.mark.parametrize("num_groups", [None, 1, 3])
def test_warmup_is_the_batch_variant_of_the_grouped_input(num_groups):
  h = X
  if num_groups is not None:
    groups = X.reshape(4, 3, num_groups, -1)
    h = (groups / jnp.sqrt(jnp.mean(groups**2, -1, keepdims=True) + 1e-2)).reshape(X.shape)
  options = {"num_groups": num_groups, "group_epsilon": 1e-2, "epsilon": 1e-3}
  y, _ = jax.jit(lambda x: norms.power_norm(x, SCALE, BIAS, mask=MASK, **options))(X)
  close(y, norms.power_norm_v(h, SCALE, BIAS, epsilon=1e-3, mask=MASK)[0])


def test_after_the_warmup_the_value_from_before_the_step_normalizes():
  last, first = run(iters=4, warmup_iters=5), run(iters=5, warmup_iters=5)
  close(last[0], X / wide(jnp.sqrt(mean(X**2) + 1e-5)))
  close(first[0], X / wide(jnp.sqrt(PHI + 1e-5)))


def test_running_value_is_averaged_twice_before_the_end_of_the_warmup_and_once_after():
  b = mean(X**2)
  for k, cumulative in ((2, PHI / 2 + b / 2), (4, PHI * 3 / 4 + b / 4), (5, PHI), (6, PHI)):
    _, (phi, iters), _, _ = run(iters=k - 1, warmup_iters=5, decay=0.7)
    close(phi, 0.7 * cumulative + 0.3 * b)
    assert iters == k


def test_running_value_of_constant_batches_in_closed_form():
  state = jnp.ones(6), jnp.zeros((), jnp.int32)
  for _ in range(5):
    _, state = norms.power_norm(X, None, None, state, num_groups=None, warmup_iters=0, decay=0.8)
  close(state[0], 0.8**5 + mean(X**2) * (1 - 0.8**5))


@pytest.mark.parametrize("denominator", ["batch", "running"])
@pytest.mark.parametrize("mask_backward", [False, True])
def test_backward_pass_is_that_of_the_definition(denominator, mask_backward):
  y, _, dh, increment = run(
    mask=MASK, backward_decay=0.7, backward_denominator=denominator, mask_backward=mask_backward
  )
  a = G - 0.3 * wide(ERR) * y
  counted = MASK if mask_backward else np.ones_like(MASK)
  close(increment, np.asarray(a * y)[counted].mean(0))
  square = (X**2)[MASK].mean(0) if denominator == "batch" else PHI
  close(dh, a / wide(np.sqrt(square + 1e-5)))


def test_decay_near_one_does_not_project():
  _, _, dh, _ = run(backward_decay=1 - 1e-7)
  close(dh, G / wide(jnp.sqrt(mean(X**2) + 1e-5)))


@pytest.mark.parametrize("mask", [None, MASK])
def test_exact_warmup_is_the_derivative_and_leaves_err_alone(mask):
  derivative = jax.jit(jax.grad(lambda x, mask: jnp.sum(norms.power_norm_v(x, mask=mask)[0] * G)))
  # The first step after the warm-up is not.
  for iters, warm in ((2, True), (3, False)):
    _, _, dh, increment = run(mask=mask, iters=iters, warmup_iters=3, warmup_backward="exact")
    exact = derivative(X, mask)
    assert np.allclose(dh, exact, rtol=1e-4, atol=1e-5) == warm
    assert np.all(increment == 0) == warm


def test_err_contracts_to_where_gradients_do_not_correlate_with_outputs():
  """e <- e (1 - r mean(z^2)) + mean(dz z) has the fixed point mean(dz z) / (r mean(z^2))."""
  step = lambda err, _: (err + run(err=err, backward_decay=0.8, phi=mean(X**2))[3], None)
  err, _ = jax.lax.scan(step, ERR, None, length=100)
  z = run(phi=mean(X**2))[0]
  close(err, mean(G * z) / (0.2 * mean(z**2)), rtol=1e-4)


def test_every_rank_gives_the_same():
  norm = jax.jit(norms.power_norm)
  flat = norm(X.reshape(12, 6), SCALE, BIAS, mask=MASK.reshape(12))
  for shape in ((4, 3, 6), (2, 2, 3, 6)):
    y, state = norm(X.reshape(shape), SCALE, BIAS, mask=MASK.reshape(shape[:-1]))
    close(y.reshape(12, 6), flat[0])
    close(state[0], flat[1][0])


def test_permuted_positions_give_permuted_outputs():
  order = _RNG.permutation(4)
  for norm in map(jax.jit, (norms.power_norm, norms.power_norm_v, norms.unified_norm)):
    close(norm(X[order], mask=MASK[order])[0], norm(X, mask=MASK)[0][order])


@pytest.mark.parametrize("norm", [norms.power_norm, norms.power_norm_v, norms.unified_norm])
def test_no_positions_at_all_change_nothing(norm):
  y, after = norm(jnp.ones((0, 6)))
  assert y.shape == (0, 6)
  _, before = norm(X, use_running_average=True)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
    np.testing.assert_array_equal(a, b)


def test_gradient_of_the_batch_variant_is_orthogonal_to_the_output():
  f = lambda x: norms.power_norm_v(x, epsilon=0.0, mask=MASK)[0]
  y, vjp = jax.vjp(f, X)
  (dx,) = vjp(np.where(MASK[..., None], G, 0))
  close(mean(dx * y), np.zeros(6))
  close(np.asarray(y**2)[MASK].mean(0), np.ones(6))


def test_batch_variant_moves_its_running_value_and_evaluates_with_it():
  _, phi = norms.power_norm_v(X, None, None, PHI, decay=0.7, mask=MASK)
  close(phi, 0.7 * PHI + 0.3 * (X**2)[MASK].mean(0))
  y, kept = norms.power_norm_v(X, SCALE, BIAS, PHI, use_running_average=True, epsilon=0.1)
  close(y, X / wide(jnp.sqrt(PHI + 0.1)) * wide(SCALE) + wide(BIAS))
  np.testing.assert_array_equal(kept, PHI)


@pytest.mark.parametrize(
  ("cls", "options"),
  [
    (norms.PowerNorm, {"num_groups": None}),
    (norms.PowerNormV, {}),
    (norms.UnifiedNorm, {}),
    (norms.UnifiedNorm, {"use_scale": False}),
    (norms.PowerNormV, {"use_bias": False}),
    (norms.PowerNormV, {"param_dtype": jnp.bfloat16}),
  ],
)
def test_evaluation_is_an_affine_map_that_folds_into_the_layers_around_it(cls, options):
  layer = cls(6, epsilon=1e-3, use_running_average=True, rngs=nnx.Rngs(0), **options)
  layer.phi[...] = PHI
  for param, value in ((layer.scale, SCALE), (layer.bias, BIAS)):
    if param is not None:
      param[...] = value.astype(param.dtype)
  scale, shift = layer.evaluation_affine()
  assert scale.shape == shift.shape == (6,)
  assert scale.dtype == shift.dtype == jnp.float32
  close(X * wide(scale) + wide(shift), layer(X))
  kernel = np.float32(_RNG.normal(size=(6, 6)))
  after = X @ (scale[:, None] * kernel) + wide(BIAS + shift @ kernel)
  close(after, layer(X) @ kernel + wide(BIAS), rtol=1e-4, atol=1e-5)
  before = X @ (kernel * scale[None]) + wide(BIAS * scale + shift)
  close(before, layer(X @ kernel + wide(BIAS)), rtol=1e-4, atol=1e-5)


def test_groups_are_no_affine_map():
  with pytest.raises(ValueError, match="num_groups must be None for evaluation"):
    norms.PowerNorm(6, num_groups=2, rngs=nnx.Rngs(0)).evaluation_affine()


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("num_groups must divide the 6 channels, got 4", {"num_groups": 4}),
    ("num_groups must divide", {"num_groups": 0}),
    (r"decay must be in \[0, 1\), got 1", {"decay": 1.0}),
    (r"decay must be in \[0, 1\), got -0.1", {"decay": -0.1}),
    (r"backward_decay must be in \[0, 1\), got 1", {"backward_decay": 1.0}),
    ("warmup_iters must be an integer >= 0, got -1", {"warmup_iters": -1}),
    ("group_epsilon must be >= 0, got -1", {"group_epsilon": -1}),
    ("epsilon must be >= 0, got -1", {"epsilon": -1}),
    ("backward_denominator must be", {"backward_denominator": "both"}),
    ("warmup_backward must be", {"warmup_backward": "paper"}),
  ],
)
def test_bad_options(error, options):
  with pytest.raises(ValueError, match=error):
    norms.power_norm(X, **options)
  with pytest.raises(ValueError, match=error):
    norms.PowerNorm(6, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
  ("error", "arguments"),
  [
    ("mask must have the shape", {"mask": jnp.ones((4, 2), bool)}),
    ("mask must be boolean", {"mask": jnp.ones((4, 3))}),
    (r"scale must have shape \(6,\)", {"scale": jnp.ones(5)}),
    (r"phi must have shape \(6,\)", {"state": (jnp.ones(5), 0)}),
    ("float32 or wider; phi", {"state": (jnp.ones(6, jnp.float16), 0)}),
    ("state must hold iters as one integer", {"state": (jnp.ones(6), 0.0)}),
    ("state must hold iters as one integer", {"state": (jnp.ones(6), jnp.zeros(1, int))}),
    (r"err must have shape \(6,\)", {"err": jnp.ones(5)}),
  ],
)
def test_bad_arrays(error, arguments):
  with pytest.raises(ValueError, match=error):
    norms.power_norm(X, **arguments)


@pytest.mark.parametrize("norm", [norms.power_norm, norms.power_norm_v, norms.unified_norm])
def test_a_vector_and_integers_are_no_batch(norm):
  with pytest.raises(ValueError, match="x must have 2 axes or more"):
    norm(jnp.ones(6))
  with pytest.raises(ValueError, match="x must be floating"):
    norm(jnp.ones((2, 6), jnp.int32))


def test_bad_arguments_of_the_batch_variant():
  with pytest.raises(ValueError, match=r"phi must have shape \(6,\)"):
    norms.power_norm_v(X, phi=jnp.ones(5))
  with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
    norms.PowerNormV(6, decay=1.0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="mask must have the shape"):
    norms.power_norm_v(X, mask=jnp.ones((3, 3), bool))
