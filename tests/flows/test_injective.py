"""Free-form flows: what the surrogate's gradient is, and what training with it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _normal(seed, shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def _nets():
  a, b = 0.7 * _normal(0, (2, 4)), 0.7 * _normal(1, (4, 2))
  return lambda x: jnp.tanh(x @ a.T), lambda z: jnp.sin(z @ b.T)


def test_single_probes_are_unbiased_and_orthogonal_ones_vary_less():
  encode, decode = _nets()
  n = 10_000
  x = jnp.tile(_normal(2, (1, 4)), (n, 1))
  draw = jax.jit(lambda v: flows.volume_surrogate(encode, decode, x, v)[0])
  every = draw(flows.orthogonal_probes(jax.random.key(0), n, 2, 2))
  np.testing.assert_allclose(every, every[0], rtol=1e-4)  # the exact trace
  one = draw(flows.orthogonal_probes(jax.random.key(1), n, 2))
  assert abs(np.mean(one) - every[0]) < 3 * np.std(one) / np.sqrt(n)
  gaussian = draw(jax.random.normal(jax.random.key(2), (n, 2, 1)))
  assert np.std(one) < np.std(gaussian)
  assert np.std(one) > 1e-3


@pytest.mark.usefixtures("x64")
def test_linear_pair_has_the_gradient_of_the_log_volume():
  a, x = _normal(0, (2, 4)), _normal(1, (3, 4))
  pinv = jnp.linalg.pinv(a)
  probes = flows.orthogonal_probes(jax.random.key(0), 3, 2, 2, x.dtype)
  volume = lambda a: 0.5 * jnp.linalg.slogdet(a @ a.T)[1]

  def surrogate(a, pinv, **options):
    encode, decode = lambda x: x @ a.T, lambda z: z @ pinv.T
    return jnp.mean(flows.volume_surrogate(encode, decode, x, probes, **options)[0])

  for place in ("data", "reconstruction"):
    encoder_bar, decoder_bar = jax.grad(surrogate, (0, 1))(a, pinv, jacobian_at=place)
    np.testing.assert_allclose(encoder_bar, jax.grad(volume)(a), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(decoder_bar, 0)
  encoder_bar, decoder_bar = jax.grad(surrogate, (0, 1))(a, pinv, estimator="decoder")
  np.testing.assert_array_equal(encoder_bar, 0)
  expected = -jax.grad(lambda g: 0.5 * jnp.linalg.slogdet(g.T @ g)[1])(pinv)
  np.testing.assert_allclose(decoder_bar, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_jacobian_is_taken_where_asked():
  encode, decode = _nets()
  x = _normal(2, (3, 4))
  probes = flows.orthogonal_probes(jax.random.key(0), 3, 2, 2, x.dtype)
  for place, at in (("data", x), ("reconstruction", decode(encode(x)))):
    actual, z, _ = flows.volume_surrogate(encode, decode, x, probes, jacobian_at=place)
    jacobians = zip(
      jax.vmap(jax.jacfwd(lambda x: encode(x[None])[0]))(at),
      jax.vmap(jax.jacfwd(lambda z: decode(z[None])[0]))(z),
      strict=True,
    )
    np.testing.assert_allclose(actual, [np.trace(f @ g) for f, g in jacobians], rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_invertible_linear_pair_has_the_gradient_of_a_flow():
  a, x = _normal(0, (3, 3)), _normal(1, (5, 3))
  inverse = jnp.linalg.inv(a)
  probes = flows.orthogonal_probes(jax.random.key(0), 5, 3, 3, x.dtype)

  def loss(a):
    return jnp.mean(flows.injective_loss(lambda x: x @ a.T, lambda z: z @ inverse.T, x, probes)[0])

  def nll(a):
    normal = jnp.sum(jax.scipy.stats.norm.logpdf(x @ a.T), axis=1)
    return -jnp.mean(normal) - jnp.linalg.slogdet(a)[1]

  np.testing.assert_allclose(jax.grad(loss)(a), jax.grad(nll)(a), rtol=1e-9)
  log_prob = flows.injective_log_prob(lambda x: x @ a.T, lambda z: z @ inverse.T, x)
  np.testing.assert_allclose(-jnp.mean(log_prob), nll(a), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_linear_nets_find_the_principal_components():
  sigma, d = 0.5, 2
  basis = np.linalg.qr(_normal(0, (4, 4)))[0]
  variances = np.array([4.0, 2.0, 0.0, 0.0]) + sigma**2
  # Points whose empirical covariance is exactly basis diag(variances) basis^T.
  x = jnp.asarray(basis * np.sqrt(4 * variances)).T
  x = jnp.concatenate([x, -x])
  np.testing.assert_allclose(x.T @ x / 8, (basis * variances) @ basis.T, atol=1e-12)
  probes = jnp.broadcast_to(d**0.5 * jnp.eye(d)[None], (8, d, d))

  def loss(nets):
    a, b = nets
    encode, decode = lambda x: x @ a.T, lambda z: z @ b.T
    return jnp.mean(flows.injective_loss(encode, decode, x, probes, beta=1 / (2 * sigma**2))[0])

  step = lambda nets, _: (jax.tree.map(lambda p, g: p - 0.02 * g, nets, jax.grad(loss)(nets)), None)
  start = (0.3 * _normal(1, (d, 4)), 0.3 * _normal(2, (4, d)))
  (a, b), _ = jax.jit(lambda nets: jax.lax.scan(step, nets, length=5000))(start)
  for net in (a.T, b):
    q = np.linalg.qr(net)[0]
    cosines = np.linalg.svd(basis[:, :d].T @ q)[1]
    assert np.all(np.arccos(np.minimum(cosines, 1)) < 1e-2)
  np.testing.assert_allclose(a @ (x.T @ x / 8) @ a.T, np.eye(d), atol=1e-2)  # whitened


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"jacobian_at": "origin"}, "jacobian_at must be one of"),
    ({"estimator": "both"}, "estimator must be one of"),
    ({"probes": jnp.ones((3, 2))}, "probes must have shape"),
    ({"probes": jnp.ones((3, 5, 1))}, "probes must have at most 4 rows"),
    ({"probes": jnp.ones((3, 3, 1))}, "encode must return shape"),
    ({"decode": lambda z: z}, "decode must return shape"),
    ({"x": jnp.ones((3,))}, "x must have shape"),
  ],
)
def test_bad_arguments_are_refused(options, message):
  encode, decode = lambda x: x[:, :2], lambda z: jnp.concatenate([z, z], axis=1)
  given = {"encode": encode, "decode": decode, "x": jnp.ones((3, 4)), "probes": jnp.ones((3, 2, 1))}
  with pytest.raises(ValueError, match=message):
    flows.injective_loss(**given | options)


def test_more_probes_than_latents_are_refused():
  with pytest.raises(ValueError, match="num_probes must be 1 to latent_dim = 2, got 3"):
    flows.orthogonal_probes(jax.random.key(0), 1, 2, 3)
  with pytest.raises(ValueError, match="d <= D"):
    flows.encoder_log_volume(lambda x: jnp.tile(x, (1, 2)), jnp.ones((1, 2)))
  with pytest.raises(ValueError, match="D >= d"):
    flows.decoder_log_volume(lambda z: z[:, :1], jnp.ones((1, 2)))


def test_model_of_full_dimension_starts_as_two_identities():
  flow = models.InjectiveFlow(3, 3, width=4, num_blocks=2, rngs=nnx.Rngs(0))
  x = _normal(0, (5, 3)).astype(jnp.float32)
  np.testing.assert_array_equal(flow.encode(x), x)
  np.testing.assert_array_equal(flow.decode(x), x)
  assert np.all(flow.sample(jax.random.key(0), 2, temperature=0.0) == 0)


@pytest.mark.usefixtures("x64")
def test_model_has_the_dtype_asked_for():
  def run():
    flow = models.InjectiveFlow(3, 2, width=4, param_dtype="float64", rngs=nnx.Rngs(0))
    return nnx.to_pure_dict(nnx.state(flow, nnx.Param)), flow.sample(jax.random.key(0), 2)

  assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(run))} == {"float64"}


@pytest.mark.parametrize("graph", [True, False])
def test_conditional_model_trains_in_both_nnx_modes(graph):
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    flow = models.InjectiveFlow(4, 2, width=8, num_blocks=2, cond_dim=1, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(flow)
    x = _normal(0, (16, 4)).astype(jnp.float32)
    cond = x[:, :1] * 3
    probes = flows.orthogonal_probes(jax.random.key(0), 16, 2)

    def loss(params):
      flow = nnx.merge(graphdef, params)
      encode, decode = lambda x: flow.encode(x, cond), lambda z: flow.decode(z, cond)
      return jnp.mean(flows.injective_loss(encode, decode, x, probes)[0])

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(5):
      value, gradient = step(params)
      losses.append(value)
      params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
  assert np.all(np.diff(losses) < 0)
  assert np.abs(flow.encode(x, cond) - flow.encode(x, -cond)).max() > 1e-3
  with pytest.raises(ValueError, match="cond must be"):
    flow.encode(x)
  with pytest.raises(ValueError, match=r"z must have shape \(b, 2\)"):
    flow.decode(x, cond)
  with pytest.raises(ValueError, match=r"x must have shape \(b, 4\) and be floating, .* int"):
    flow.encode(x.astype(int), cond)


def test_bad_sizes_of_the_model_are_refused():
  with pytest.raises(ValueError, match="latent_dim must be at most dim = 2, got 3"):
    models.InjectiveFlow(2, 3, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("x64")
def test_cycles_are_what_they_say():
  encode, decode = _nets()
  x0, noise, latents = _normal(2, (5, 4)), _normal(3, (5, 4)), _normal(4, (3, 2))
  z = encode(x0 + 0.1 * noise)
  reconstruction = decode(z)
  square = lambda a, b: np.sum((np.asarray(a) - np.asarray(b)) ** 2, axis=1)
  expected = {
    "latent": square(z, encode(reconstruction)),
    "latent_fixed": square(z, encode(reconstruction)),
    "clean": square(x0, reconstruction),
    "sampled_latent": square(latents, encode(decode(latents))),
    "sampled_data": square(decode(latents), decode(encode(decode(latents)))),
  }
  terms = flows.injective_cycles(encode, decode, z, reconstruction, clean=x0, latents=latents)
  assert terms.keys() == expected.keys()
  for name, term in terms.items():
    assert np.all(expected[name] > 1e-3)
    np.testing.assert_allclose(term, expected[name], rtol=1e-10)
  plain = flows.injective_cycles(encode, decode, z, reconstruction)
  assert plain.keys() == {"latent", "latent_fixed"}
  # The decoder gets a gradient from "latent", and none from "latent_fixed".
  slope = lambda name: jax.grad(
    lambda t: flows.injective_cycles(encode, decode, z, t * reconstruction)[name].sum()
  )(1.0)
  assert slope("latent_fixed") == 0
  assert abs(slope("latent")) > 1e-3
  for options, match in [
    ({"clean": x0[:2]}, r"clean must have shape \(5, 4\), got \(2, 4\)"),
    ({"latents": x0}, r"latents must have shape \(5, 2\), got \(5, 4\)"),
  ]:
    with pytest.raises(ValueError, match=match):
      flows.injective_cycles(encode, decode, z, reconstruction, **options)
  with pytest.raises(ValueError, match=r"reconstruction must have shape \(5, 4\), got \(2, 4\)"):
    flows.injective_cycles(encode, decode, z, reconstruction[:2])
  with pytest.raises(ValueError, match=r"encode\(reconstruction\) must have shape \(5, 2\)"):
    flows.injective_cycles(lambda x: x, decode, z, reconstruction)
