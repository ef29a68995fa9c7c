"""Energies of flows and their objectives: closed forms, limits, refusals, extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

RNG = np.random.default_rng(0)


def _normal(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.standard_normal(shape), dtype)


@pytest.fixture(scope="module")
def dense():
  """A moved flow over (2, 1, 2) images, as (graphdef, params, x, log_prob parts) in float64."""
  with jax.enable_x64(True):
    flow = models.ebflow_dense((2, 1, 2), num_layers=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    params = jax.tree.map(lambda p: p + 0.3 * _normal(*p.shape, dtype=p.dtype), params)
    return graphdef, params, rest, _normal(5, 2, 1, 2, dtype=jnp.float64)


def test_score_and_normalizer(dense):
  graphdef, params, rest, x = dense

  @jax.jit
  def run(params, x):
    flow = nnx.merge(graphdef, params, rest)
    whole = flows.Flow(flows.Inverted(flows.Inverted(flows.SmoothLeakyReLU(0.7))), flow)
    return {
      "score": flows.score(flow.energy, x),
      "true score": jax.grad(lambda x: flow.log_prob(x).sum())(x),
      "log_z": flows.log_normalizer(flow, x),
      "rest": -flow.energy(x) - flow.log_prob(x),
      "nested": whole.energy(x) + whole.log_prob(x) + flows.log_normalizer(flow, x),
    }

  with jax.enable_x64(True):
    got = {k: np.asarray(v) for k, v in run(params, x).items()}
  np.testing.assert_allclose(got["score"], got["true score"], rtol=1e-11)
  np.testing.assert_allclose(got["log_z"], np.full(5, got["log_z"][0]), rtol=1e-12)
  np.testing.assert_allclose(got["log_z"], got["rest"], rtol=1e-12)
  assert abs(got["log_z"][0]) > 0.01
  np.testing.assert_allclose(got["nested"], 0, atol=1e-12)


def _gaussian(size, key):
  """Return a linear layer as a flow: log p = -|W^T x + b|^2 / 2 + log|det W| - D log(2 pi) / 2."""
  layer = flows.InvertibleLinear(
    size, weight_init=nnx.initializers.normal(0.6), bias_init=nnx.initializers.normal(0.5),
    rngs=nnx.Rngs(key),
  )  # fmt: skip
  return flows.Flow(layer, flows.StandardNormal((size,)))


def test_gaussian_in_closed_form():
  flow, x = _gaussian(3, 1), _normal(2, 3)
  weight, bias = np.asarray(flow.bijector.weight[...]), np.asarray(flow.bijector.bias[...])
  z = np.asarray(x) @ weight + bias
  half = np.sum(z**2, 1) / 2 + 1.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(flow.energy(x), half, rtol=1e-5)
  log_det = np.linalg.slogdet(weight)[1]
  np.testing.assert_allclose(flow.log_prob(x), log_det - half, rtol=1e-5)
  # Directions that are all the same basis: v^T H v sums to the trace, and SSM is exact.
  basis = jnp.sqrt(3.0) * jnp.broadcast_to(jnp.eye(3)[:, None], (3, 2, 3))
  exact = np.sum((z @ weight.T) ** 2, 1) / 2 - np.trace(weight @ weight.T)
  found = flows.sliced_score_matching(flow.energy, x, basis)
  np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_contrastive_gradient_is_that_of_likelihood():
  flow = _gaussian(2, 2)
  graphdef, params = nnx.split(flow)
  x, z = _normal(7, 2), RNG.standard_normal((7, 2))

  def contrastive(params, samples):
    return flows.contrastive_loss(nnx.merge(graphdef, params).energy, x, samples)

  def nll(params):
    return -nnx.merge(graphdef, params).log_prob(x).mean()

  # Latents whose first two moments are those of the base make the expectation exact.
  z = z - z.mean(0)
  z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / 7)).T
  samples = flow.bijector.inverse(jnp.asarray(z, jnp.float32))[0]
  for a, b in zip(
    jax.tree.leaves(jax.grad(contrastive)(params, samples)),
    jax.tree.leaves(jax.grad(nll)(params)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  through = jax.grad(lambda x: flows.contrastive_loss(flow.energy, x[:3], x))(samples)
  np.testing.assert_array_equal(through[3:], 0)


def test_denoising_optimum_is_the_precision_of_noisy_data():
  x, noise = _normal(20000, 1), _normal(20000, 1)
  std, precision = 0.7, jnp.linspace(0.2, 1.5, 400)

  @jax.jit
  def loss(precision):
    energy = lambda x: precision / 2 * jnp.sum(x**2, 1)
    return flows.denoising_score_matching(energy, x, noise, std).mean()

  best = precision[np.argmin(jax.lax.map(loss, precision))]
  np.testing.assert_allclose(best, 1 / (1 + std**2), atol=0.02)


def test_finite_differences_tend_to_the_sliced_loss(dense):
  graphdef, params, rest, x = dense
  with jax.enable_x64(True):
    w = _normal(*x.shape, dtype=jnp.float64)
    unit = w / jnp.sqrt(jnp.sum(w**2, axis=(1, 2, 3), keepdims=True))

    @jax.jit
    def run(params):
      energy = nnx.merge(graphdef, params, rest).energy
      sliced = flows.sliced_score_matching(energy, x, 2 * unit[None])  # sqrt(D) = 2
      s = flows.score(energy, x)
      along = 2 * jnp.sum(s * unit, axis=(1, 2, 3)) ** 2  # D (s . unit)^2 / 2
      wanted = sliced - 0.5 * jnp.sum(s**2, axis=(1, 2, 3)) + along
      differences = [flows.finite_difference_score_matching(energy, x, w, e) for e in (0.1, 0.01)]
      return wanted, differences

    wanted, differences = jax.tree.map(np.asarray, run(params))
  errors = [np.max(np.abs(v - wanted)) for v in differences]
  # The error falls with the square of the step.
  assert errors[1] < 1e-2 * np.max(np.abs(wanted))
  np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.1)


def test_trained_without_determinants_in_every_objective(dense):
  graphdef, params, rest, x = dense

  def loss(params, x):
    energy = nnx.merge(graphdef, params, rest).energy
    return sum(
      jnp.mean(v)
      for v in (
        flows.sliced_score_matching(energy, x, jnp.ones((2, *x.shape), x.dtype)),
        flows.denoising_score_matching(energy, x, jnp.ones_like(x), 0.5),
        flows.finite_difference_score_matching(energy, x, jnp.ones_like(x), 0.1),
        flows.contrastive_loss(energy, x, x + 1),
      )
    )

  with jax.enable_x64(True):
    text = str(jax.make_jaxpr(jax.grad(loss))(params, x))
    gradients = jax.tree.leaves(jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params, x)))
  assert " = lu" not in text
  assert " = triangular_solve" not in text
  assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradients)


def test_scan_takes_second_derivatives_whatever_its_memory():
  layer = lambda rngs: flows.Chain([flows.LULinear(2, rngs=rngs), flows.SmoothLeakyReLU(0.4)])
  found = []
  for memory in ("store", "reversible"):
    stack = flows.Scan(layer, 2, memory=memory, rngs=nnx.Rngs(0))
    flow = flows.Flow(stack, flows.StandardNormal((2,)))
    loss = lambda x, flow=flow: flows.sliced_score_matching(flow.energy, x, jnp.ones((1, 3, 2)))
    found.append(jax.jit(loss)(jnp.arange(6.0).reshape(3, 2)))
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_smooth_leaky_relu_at_extremes():
  layer = flows.SmoothLeakyReLU(0.3)
  z = jnp.array([[0.0, 1e-30, -1e-30, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 0.7]])

  @jax.jit
  def run(z):
    x, log_det = layer.inverse(z)
    gradient = jax.grad(lambda z: layer.inverse(z)[0].sum())(z)
    second = jax.grad(lambda z: jax.grad(lambda z: layer.inverse(z)[0].sum())(z).sum())(z)
    forward = jax.grad(lambda x: layer.forward(x)[0].sum() + layer.forward(x)[1].sum())(z)
    return x, log_det, gradient, second, forward, layer.forward(x)[0]

  x, _, gradient, second, _, again = arrays = run(z)
  assert all(np.all(np.isfinite(a)) for a in arrays)
  keep = np.abs(z) < 1e38  # the others have roots beyond the largest number
  np.testing.assert_allclose(again[keep], z[keep], rtol=1e-6, atol=1e-7)
  # dx/dz = 1 / f'(x) and d2x/dz2 = -f'' / f'^3.
  sigmoid = 1 / (1 + np.exp(-np.asarray(x, np.float64)[0, -1]))
  slope, bend = 0.3 + 0.7 * sigmoid, 0.7 * sigmoid * (1 - sigmoid)
  np.testing.assert_allclose(gradient[0, -1], 1 / slope, rtol=1e-5)
  np.testing.assert_allclose(second[0, -1], -bend / slope**3, rtol=1e-5)
  np.testing.assert_allclose(gradient[0, 5:7], [1, 1 / 0.3], rtol=1e-6)


def test_padded_conv_is_its_matrix():
  conv = flows.PaddedConv(2, kernel_init=nnx.initializers.normal(0.3), rngs=nnx.Rngs(0))
  x = _normal(2, 2, 3, 2)
  z, log_det = conv.forward(x)
  matrix = conv.matrix(2, 3)
  np.testing.assert_allclose(z.reshape(2, 12), x.reshape(2, 12) @ matrix, atol=1e-5)
  np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1] * np.ones(2), rtol=1e-4)
  corner = np.einsum("abc,abcd->d", np.asarray(x)[0, :2, :2], np.asarray(conv.kernel)[1:, 1:])
  np.testing.assert_allclose(z[0, 0, 0], corner, rtol=1e-4)


def test_inpainting_draws_from_the_conditional_density():
  precision = np.array([[2.0, 0.8, -0.6], [0.8, 1.5, 0.4], [-0.6, 0.4, 1.2]])
  mean, step, walks = np.array([1.0, -2.0, 0.5]), 0.3, 4000
  known = np.zeros((2 * walks, 3), bool)
  known[:walks, 0] = known[walks:, 1:] = True  # the first half knows one entry, the other half two
  start = jnp.broadcast_to(jnp.array([[2.5, 0.7, -1.3]]), (2 * walks, 3))

  def energy(x):
    d = x - jnp.asarray(mean, x.dtype)[None]
    return jnp.sum(d @ jnp.asarray(precision, x.dtype) * d, axis=1) / 2

  draw = jax.jit(
    lambda key: flows.inpaint(energy, start, known, key, step_size=step, num_steps=250)
  )
  x = np.asarray(draw(jax.random.key(0)))
  np.testing.assert_array_equal(x[known], start[known])
  for rows, k, u in ((x[:walks], [0], [1, 2]), (x[walks:], [1, 2], [0])):
    inner = precision[np.ix_(u, u)]
    offset = np.asarray(start)[0, k] - mean[k]
    center = mean[u] - np.linalg.solve(inner, precision[np.ix_(u, k)] @ offset)
    covariance = np.linalg.inv(inner)
    error = np.sqrt(np.diag(covariance) / walks)
    assert np.all(np.abs(rows[:, u].mean(0) - center) < 4 * error)
    # Walks of this step have the covariance P^-1 (1 - h^2 P / 4)^-1.
    walked = covariance @ np.linalg.inv(np.eye(len(u)) - step**2 * inner / 4)
    found = np.cov(rows[:, u].T).reshape(walked.shape)
    assert np.all(np.abs(found - walked) < 5 * np.max(walked) * np.sqrt(2 / walks))


def test_inpainting_with_one_mask_for_all_is_its_own_walk():
  energy, key = flows.StandardNormal((2, 2)).energy, jax.random.key(0)
  x, known = _normal(3, 2, 2), jnp.array([[True, False], [False, True]])
  options = {"step_size": 0.1, "num_steps": 3}
  found = flows.inpaint(energy, x, known, key, **options)
  np.testing.assert_array_equal(found[:, known], x[:, known])
  free = flows.langevin(energy, x, key, **options)
  np.testing.assert_allclose(found[:, ~known], free[:, ~known], rtol=1e-6)
  assert np.all(found[:, ~known] != x[:, ~known])


@pytest.mark.parametrize("start", ["identity", "negative_identity", "orthogonal"])
def test_dense_starts(start):
  flow = models.ebflow_dense((2,), num_layers=1, start=start, initial_bias=0.5, rngs=nnx.Rngs(0))
  z, log_det = flow.bijector.forward(jnp.array([[1.0, -2.0]]))
  np.testing.assert_allclose(log_det, 0, atol=1e-6)
  wanted = {"identity": [1.5, -1.5], "negative_identity": [-0.5, 2.5]}
  if start in wanted:
    np.testing.assert_allclose(z[0], wanted[start])
  else:
    np.testing.assert_allclose(jnp.sum((z - 0.5) ** 2), 5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ebflow_conv", "ebflow_dense", "ebflow_coupling"])
def test_programs_do_not_grow_with_depth(name):
  def size(length):
    def loss(x):
      if name == "ebflow_conv":
        flow = models.ebflow_conv((1, 3, 1), num_layers=length, rngs=nnx.Rngs(0))
        x = x.reshape(2, 1, 3, 1)
      elif name == "ebflow_dense":
        flow = models.ebflow_dense((3,), num_layers=length, rngs=nnx.Rngs(0))
      else:
        flow = models.ebflow_coupling(3, num_blocks=length, width=4, rngs=nnx.Rngs(0))
      return flows.denoising_score_matching(flow.energy, x, x, 1.0)

    return str(jax.make_jaxpr(loss)(jnp.ones((2, 3)))).count("\n")

  assert size(3) == size(6)


def test_refusals():
  x, energy = jnp.ones((2, 3)), flows.StandardNormal((3,)).energy
  for call, message in (
    (lambda: flows.SmoothLeakyReLU(0.0), "alpha must be in"),
    (lambda: flows.SmoothLeakyReLU(1.5), "alpha must be in"),
    (lambda: flows.denoising_score_matching(energy, x, x, 0.0), "std must be above 0"),
    (lambda: flows.denoising_score_matching(energy, x, x[:, :2], 1.0), "noise must have x's shape"),
    (lambda: flows.finite_difference_score_matching(energy, x, x, -0.1), "epsilon must be above 0"),
    (lambda: flows.finite_difference_score_matching(energy, x, x[:1], 0.1), "directions must"),
    (lambda: flows.sliced_score_matching(energy, x, x), "directions must have shape"),
    (lambda: flows.sliced_score_matching(energy, x, jnp.ones((0, 2, 3))), "with k >= 1"),
    (lambda: flows.contrastive_loss(energy, x, x[:, :2]), "samples must have shape"),
    (lambda: flows.score(jnp.sum, x), "energy must return shape"),
    (lambda: flows.contrastive_loss(jnp.sum, x, x), "energy must return shape"),
    (
      lambda: flows.finite_difference_score_matching(lambda x: x[:, :1], x, x, 0.1),
      r"energy must return shape \(6,\), got \(6, 1\)",
    ),
    (lambda: flows.score(energy, jnp.ones((2, 3), int)), "x must be floating"),
    (
      lambda: flows.langevin(energy, x, jax.random.key(0), step_size=0.0, num_steps=3),
      "step_size must be above 0",
    ),
    (
      lambda: flows.langevin(energy, x, jax.random.key(0), step_size=0.1, num_steps=0),
      "num_steps must be at least 1",
    ),
    (
      lambda: flows.inpaint(energy, x, x > 0, jax.random.key(0), step_size=-0.1, num_steps=3),
      "step_size must be above 0",
    ),
    (
      lambda: flows.inpaint(energy, x, x, jax.random.key(0), step_size=0.1, num_steps=3),
      r"known must be boolean of shape \(2, 3\) or \(3,\), got float32",
    ),
    (
      lambda: flows.inpaint(energy, x, x[0, :1] > 0, jax.random.key(0), step_size=1, num_steps=3),
      "known must be boolean of shape",
    ),
    (lambda: flows.PaddedConv(2, kernel_size=2, rngs=nnx.Rngs(0)), "kernel_size must be an odd"),
    (lambda: flows.PaddedConv(4, rngs=nnx.Rngs(0)).matrix(32, 32), "at most 3072 entries"),
    (
      lambda: flows.SmoothAffineCoupling(jnp.arange(2), shift_activation="relu", rngs=nnx.Rngs(0)),
      "shift_activation must be one of",
    ),
    (lambda: models.ebflow_dense((2,), num_layers=0, rngs=nnx.Rngs(0)), "num_layers must"),
    (lambda: models.ebflow_dense((2,), start="zero", rngs=nnx.Rngs(0)), "start must be one of"),
    (lambda: models.ebflow_coupling(2, num_blocks=0, rngs=nnx.Rngs(0)), "num_blocks must"),
    (lambda: models.ebflow_coupling(1, rngs=nnx.Rngs(0)), "dim must be at least 2, got 1"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


def test_a_singular_layer_has_no_normalizer():
  layer = flows.InvertibleLinear(2, weight_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
  flow = flows.Flow(layer, flows.StandardNormal((2,)))
  with pytest.raises(ValueError, match="finite log-normalizer"):
    flows.log_normalizer(flow, jnp.ones((1, 2)))
