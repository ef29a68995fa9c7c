"""Bases whose entries depend on each other or on a condition: densities against scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from scipy import special, stats

from normjax import flows

KEY = jax.random.key(0)
N = 3000  # draws of every sampling test: one shape to compile
LABELS = np.arange(N) % 4
CONTEXT = np.stack([np.cos(np.arange(N)), np.sin(np.arange(N))], axis=1)


def _moved(base, seed=0):
  """Give a base random parameters of order one."""
  rng = np.random.default_rng(seed)
  move = lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.6, p.dtype)
  nnx.update(base, jax.tree.map(move, nnx.state(base, nnx.Param)))
  return base


def _linear(outputs, dtype):
  return nnx.Linear(2, outputs, param_dtype=dtype, rngs=nnx.Rngs(1))


def _gaussian_mixture(dtype, network=None):
  options = {"network": network, "max_log_scale": 2.0, "param_dtype": dtype}
  return flows.GaussianMixture([2], 3, **options, rngs=nnx.Rngs(0))


def _mixture(dtype, network=None):
  box = flows.Uniform((2,), low=-1.0, high=2.0, param_dtype=dtype)
  parts = [box, flows.DiagonalNormal((2,), param_dtype=dtype), flows.Laplace((2,))]
  return flows.Mixture(parts, network=network, param_dtype=dtype)


def _conditional(dtype):
  options = {"max_log_scale": 2.0, "param_dtype": dtype}
  return flows.ConditionalDiagonalNormal([2], _linear(4, dtype), **options)


def _joint(dtype):
  parts = [f((1,), param_dtype=dtype) for f in (flows.DiagonalNormal, flows.Laplace)]
  return flows.Joint(parts, [1, 1])


def _nested(dtype):
  inner = flows.Flow(
    flows.ElementwiseAffine(1.0, -2.0), flows.MultivariateNormal((2,), param_dtype=dtype)
  )
  return flows.Flow(flows.ElementwiseAffine(-5.0, 0.1), inner)


# name -> (make(dtype), what it is conditioned on)
BASES = {
  "ClassConditionalNormal": (
    lambda dtype: flows.ClassConditionalNormal([2], 3, param_dtype=dtype), LABELS
  ),
  "ConditionalDiagonalNormal": (_conditional, CONTEXT),
  "Flow": (_nested, None),
  "GaussianMixture": (_gaussian_mixture, None),
  "GaussianMixture/network": (lambda dtype: _gaussian_mixture(dtype, _linear(15, dtype)), CONTEXT),
  "Joint": (_joint, None),
  "Mixture": (_mixture, None),
  "Mixture/network": (lambda dtype: _mixture(dtype, _linear(3, dtype)), CONTEXT),
  "MultivariateNormal": (lambda dtype: flows.MultivariateNormal([2], param_dtype=dtype), None),
}  # fmt: skip


def _normal(z, loc, log_scale):
  return stats.norm.logpdf(z, loc, np.exp(log_scale)).sum(axis=-1)


def _network(p, cond):
  """Return what a linear network says (b, outputs), or a zero without one."""
  if "network" not in p:
    return np.zeros((1, 1))
  return cond @ p["network"]["kernel"] + p["network"]["bias"]


def _log_weights(p, cond):
  """Return those of a mixture, (b, 3) or (1, 3)."""
  return special.log_softmax(p["logits"] + _network(p, cond)[:, :3], axis=1)


def _gaussians(p, cond):
  """Return loc and log_scale of a Gaussian mixture, (b, 3, 2) or (1, 3, 2)."""
  rows = _network(p, cond) + np.zeros((1, 15))
  loc, raw = (rows[:, i : i + 6].reshape(-1, 3, 2) for i in (3, 9))
  return p["loc"] + loc, p["log_scale"] + 2 * np.tanh(raw / 2)


def _expected(name, base, z, cond):
  """Return log p(z) (b,) by scipy."""
  p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(base)))
  if name == "MultivariateNormal":
    scale = np.diag(np.exp(p["log_diagonal"])) + np.tril(p["lower"], -1)
    return stats.multivariate_normal.logpdf(z, p["loc"], scale @ scale.T)
  if name == "Flow":  # u = (x + 5) / 0.1, v = (u - 1) / -2
    inner = base.base.base
    v = ((z + 5) / 0.1 - 1) / -2
    return _expected("MultivariateNormal", inner, v, None) - 2 * np.log(0.1 * 2)
  if name == "Joint":
    normal = p["components"][0]
    return _normal(z[:, :1], normal["loc"], normal["log_scale"]) + stats.laplace.logpdf(z[:, 1])
  if name == "ClassConditionalNormal":
    return _normal(z, p["loc"][cond], p["log_scale"][cond])
  if name == "ConditionalDiagonalNormal":
    loc, raw = np.split(_network(p, cond), 2, axis=1)
    return _normal(z, loc, 2 * np.tanh(raw / 2))
  if name.startswith("GaussianMixture"):
    each = _normal(z[:, None], *_gaussians(p, cond))
  else:
    normal = p["components"][1]
    each = np.stack([
      stats.uniform(-1, 3).logpdf(z).sum(axis=1),
      _normal(z, normal["loc"], normal["log_scale"]),
      stats.laplace.logpdf(z).sum(axis=1),
    ], axis=1)  # fmt: skip
  return special.logsumexp(each + _log_weights(p, cond), axis=1)


@functools.cache
def _sampled(name):
  """Return draws at temperatures 0, 1, 0.5 from one key, and their log-densities."""
  make, cond = BASES[name]
  base = _moved(make("float32"))
  graphdef, state = nnx.split(base)

  @jax.jit
  def run(state, cond):
    base = nnx.merge(graphdef, state)
    draw = lambda t: base.sample(jax.random.key(1), N, cond, t)
    draws = [draw(0.0), draw(1.0), draw(jnp.float32(0.5))]
    return *draws, base.log_prob(draws[1], cond)

  cond = None if cond is None else jnp.asarray(cond, None if cond is LABELS else "float32")
  return base, *(np.asarray(a) for a in run(state, cond))


@pytest.mark.parametrize("name", BASES)
def test_log_prob_is_scipys_in_both_nnx_modes(name):
  make, cond = BASES[name]
  z = np.random.default_rng(2).normal(size=(16, 2)) * 1.5
  z = z * 0.1 - 5 if name == "Flow" else z
  cond = None if cond is None else cond[:16]
  with jax.enable_x64(True):

    def run():
      base = _moved(make("float64"))
      graphdef, state = nnx.split(base)
      likelihood = lambda state, z: nnx.merge(graphdef, state).log_prob(z, cond)
      return base, np.asarray(jax.jit(likelihood)(state, jnp.asarray(z)))

    base, actual = run()
    expected = _expected(name, base, z, cond)
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
      np.testing.assert_array_equal(run()[1], actual)
  assert actual.dtype == np.float64
  np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.parametrize("name", BASES)
def test_samples_follow_the_density(name):
  base, _, z, _, log_prob = _sampled(name)
  assert z.shape == (N, 2)
  assert z.dtype == np.float32
  cond = BASES[name][1]
  z64 = np.asarray(z, np.float64)
  np.testing.assert_allclose(log_prob, _expected(name, base, z64, cond), rtol=2e-4, atol=2e-4)
  law = _scipy_draws(name, base, cond)
  for i in range(2):
    assert stats.ks_2samp(z64[:, i], law[:, i]).pvalue > 1e-3
  assert stats.ks_2samp(z64.sum(axis=1), law.sum(axis=1)).pvalue > 1e-3
  assert stats.ks_2samp(z64[:, 0] - z64[:, 1], law[:, 0] - law[:, 1]).pvalue > 1e-3


def _scipy_draws(name, base, cond):
  """Draw from the same law by numpy, given what scipy's density above says of the parameters."""
  rng = np.random.default_rng(3)
  p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(base)))
  eps = rng.normal(size=(N, 2))
  if name == "MultivariateNormal":
    scale = np.diag(np.exp(p["log_diagonal"])) + np.tril(p["lower"], -1)
    return rng.multivariate_normal(p["loc"], scale @ scale.T, size=N)
  if name == "Flow":
    return (_scipy_draws("MultivariateNormal", base.base.base, None) * -2 + 1) * 0.1 - 5
  if name == "Joint":
    normal = p["components"][0]
    first = normal["loc"] + np.exp(normal["log_scale"]) * eps[:, :1]
    return np.concatenate([first, rng.laplace(size=(N, 1))], axis=1)
  if name == "ClassConditionalNormal":
    return p["loc"][cond] + np.exp(p["log_scale"][cond]) * eps
  if name == "ConditionalDiagonalNormal":
    loc, raw = np.split(_network(p, cond), 2, axis=1)
    return loc + np.exp(2 * np.tanh(raw / 2)) * eps
  choice = np.argmax(_log_weights(p, cond) + rng.gumbel(size=(N, 3)), axis=1)
  if name.startswith("GaussianMixture"):
    loc, log_scale = (np.broadcast_to(m, (N, 3, 2)) for m in _gaussians(p, cond))
    row = np.arange(N)
    return loc[row, choice] + np.exp(log_scale[row, choice]) * eps
  normal = p["components"][1]
  draws = [
    rng.uniform(-1, 2, size=(N, 2)),
    normal["loc"] + np.exp(normal["log_scale"]) * eps,
    rng.laplace(size=(N, 2)),
  ]
  return np.stack(draws)[choice, np.arange(N)]


@pytest.mark.parametrize("name", BASES)
def test_temperature_spreads_around_the_centre(name):
  # Of the component in a mixture, of the condition, and through both flows of a nested one.
  _, centre, z, half, _ = _sampled(name)
  np.testing.assert_allclose(half - centre, 0.5 * (z - centre), rtol=1e-3, atol=2e-5)
  assert np.std(z - centre) > 0.05
  centres = {"ClassConditionalNormal": 4, "GaussianMixture": 3, "Mixture": 3, "Mixture/network": 3}
  if name not in ("ConditionalDiagonalNormal", "GaussianMixture/network"):
    assert len(np.unique(np.round(centre, 4), axis=0)) == centres.get(name, 1)


def _likelihood(name, dtype, cond):
  graphdef, params, rest = nnx.split(_moved(BASES[name][0](dtype)), nnx.Param, ...)
  run = lambda params, z: jnp.sum(nnx.merge(graphdef, params, rest).log_prob(z, cond))
  return jax.jit(run), params


@pytest.mark.parametrize("name", ["GaussianMixture", "Mixture", "MultivariateNormal"])
def test_gradients_of_parameters(name):
  with jax.enable_x64(True):
    likelihood, params = _likelihood(name, "float64", None)
    z = jnp.asarray(np.random.default_rng(4).normal(size=(5, 2)))
    check_grads(lambda p: likelihood(p, z), (params,), 1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_gradients_are_finite_far_out(name):
  far = jnp.asarray([[1e4, -1e4], [0.0, 1e-30], [1e15, -1e15], [-3.0, 3.0]], jnp.float32)
  cond = BASES[name][1]
  cond = None if cond is None else jnp.asarray(cond[:4], "int32" if cond is LABELS else "float32")
  likelihood, params = _likelihood(name, "float32", cond)
  for leaf in jax.tree.leaves(jax.jit(jax.grad(likelihood, (0, 1)))(params, far)):
    assert np.all(np.isfinite(leaf))


def test_a_mixture_without_support_has_no_density_and_no_gradient():
  boxes = [flows.Uniform((1,)), flows.Uniform((1,), low=2.0, high=3.0)]
  graphdef, params, rest = nnx.split(flows.Mixture(boxes), nnx.Param, ...)
  z = jnp.array([[0.5], [1.5]])
  log_prob = lambda params: nnx.merge(graphdef, params, rest).log_prob(z)
  np.testing.assert_allclose(log_prob(params), [np.log(0.5), -np.inf])
  (slope,) = jax.tree.leaves(jax.jit(jax.jacrev(log_prob))(params))
  np.testing.assert_allclose(slope, [[0.5, -0.5], [0, 0]])


def test_blocks_of_a_joint_get_the_condition_and_keep_their_energies():
  normal = _moved(flows.ConditionalDiagonalNormal((3,), nnx.Linear(2, 6, rngs=nnx.Rngs(0))))
  scaled = flows.Flow(flows.ElementwiseAffine(1.0, [2.0, 3.0]), flows.Laplace((2,)))
  joint = flows.Joint([normal, scaled], [3, 2])

  @jax.jit
  def run(cond):
    x, log_prob = joint.sample_and_log_prob(KEY, 4, cond, 0.5)
    same, energy = joint.sample(KEY, 4, cond, 0.5), joint.energy(x, cond)
    return x, same, log_prob, energy, normal.log_prob(x[:, :3], cond), scaled.log_prob(x[:, 3:])

  x, same, log_prob, energy, *parts = map(np.asarray, run(jnp.asarray(CONTEXT[:4], "float32")))
  np.testing.assert_array_equal(x, same)
  np.testing.assert_allclose(log_prob, parts[0] + parts[1], rtol=1e-5)
  # The flow's energy leaves out its constant determinant.
  np.testing.assert_allclose(energy, -log_prob - np.log(6), rtol=1e-5)


def test_no_label_has_a_prior_of_its_own():
  base = _moved(flows.ClassConditionalNormal((2,), 3))
  z = jnp.ones((2, 2))
  null = jnp.full(2, base.null_label)
  np.testing.assert_array_equal(base.log_prob(z), base.log_prob(z, null))
  assert np.all(base.log_prob(z) != base.log_prob(z, jnp.zeros(2, int)))


def test_truncated_normal_far_out_in_float32():
  # Where Phi is close to 1 it has no digits left in float32.
  for low, high in ((6.0, 7.0), (-9.0, -8.5), (-1.0, 3.0)):
    base = flows.TruncatedNormal((1,), low=low, high=high)
    law = stats.truncnorm(low, high)
    z = base.sample(jax.random.key(0), N)
    assert stats.kstest(np.asarray(z[:, 0], np.float64), law.cdf).pvalue > 1e-3
    expected = law.logpdf(np.asarray(z[:, 0], np.float64))
    np.testing.assert_allclose(base.log_prob(z), expected, rtol=1e-4, atol=1e-5)
    outside = jnp.array([[low - 0.01], [high + 0.01]])
    np.testing.assert_array_equal(base.log_prob(outside), -np.inf)


@pytest.mark.parametrize("k", [1e-3, 0.7, 20.0, 1e5])
def test_von_mises_is_scipys(k):
  with jax.enable_x64(True):
    base = flows.VonMises([1], concentration=k, trainable=True, param_dtype="float64")
    base.loc[...] = jnp.array([0.6])
    z = 0.6 + np.linspace(-3, 3, 31)[:, None] / np.sqrt(1 + k)
    for turned in (z, z + 2 * np.pi):
      expected = stats.vonmises(k, loc=0.6).logpdf(turned[:, 0])
      np.testing.assert_allclose(base.log_prob(jnp.asarray(turned)), expected, rtol=1e-7, atol=1e-7)
  base = flows.VonMises((1,), concentration=k)
  draw = jax.jit(lambda t: base.sample(KEY, 20_000, temperature=t))
  z, half = (np.asarray(draw(t)[:, 0], np.float64) for t in (1.0, 0.5))
  assert np.all(np.abs(z) <= np.float32(np.pi))
  assert stats.kstest(z, stats.vonmises(k).cdf).pvalue > 1e-3
  inner = np.abs(z) < 3.14  # pi itself may be wrapped to -pi
  np.testing.assert_allclose(half[inner], z[inner] / 2, rtol=1e-3, atol=1e-6)


def test_von_mises_learns():
  with jax.enable_x64(True):
    base = flows.VonMises((2,), concentration=2.0, trainable=True, param_dtype="float64")
    base.loc[...] = jnp.array([0.6, -3.0])
    graphdef, params = nnx.split(base)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    likelihood = jax.jit(lambda params: jnp.sum(nnx.merge(graphdef, params).log_prob(z)))
    check_grads(likelihood, (params,), 1, modes=["rev"], atol=1e-6, rtol=1e-6)
    # Samples move with loc; they are wrapped at the end of the circle.
    moved = base.sample(KEY, 500)
    np.testing.assert_allclose(
      np.mean(np.cos(moved - base.loc[...][None]), axis=0), 0.698, atol=0.06
    )
    assert np.all(np.abs(moved) <= np.pi)
  # Of angles that are all but equal, and of a parameter that is no number, the loop ends as well.
  for concentration, end in ((1e30, 0), (np.nan, np.nan)):
    base = flows.VonMises((2,), trainable=True)
    base.log_concentration[...] = jnp.full(2, np.log(concentration), "float32")
    np.testing.assert_allclose(base.sample(KEY, 2), end, atol=1e-6)
  for concentration in (0.0, np.inf):
    with pytest.raises(ValueError, match="concentration must be above 0 and finite"):
      flows.VonMises((1,), concentration=concentration)


def test_resampled_is_the_law_of_the_first_accepted_proposal():
  with jax.enable_x64(True):
    network = nnx.Linear(1, 1, param_dtype="float64", rngs=nnx.Rngs(0))
    network.kernel[...], network.bias[...] = jnp.array([[2.0]]), jnp.array([-1.5])
    normal = flows.StandardNormal((1,), param_dtype="float64")
    base = flows.Resampled(normal, network, max_proposals=3, num_samples=4000)
    z = np.linspace(-8, 8, 2001)
    a = special.expit(2 * z - 1.5)
    accept = np.sum(a * stats.norm.pdf(z)) * (z[1] - z[0])
    last = (1 - accept) ** 2
    density = stats.norm.pdf(z) * ((1 - last) * a / accept + last)
    graphdef, params = nnx.split(base)
    run = jax.jit(lambda params, z: nnx.merge(graphdef, params).log_prob(z))
    actual = np.exp(run(params, jnp.asarray(z)[:, None]))
    np.testing.assert_allclose(actual, density, rtol=0.05)  # Z by 4000 draws
    check_grads(
      lambda p: run(p, jnp.asarray(z)[::400, None]),
      (params,),
      1,
      modes=["rev"],
      atol=1e-6,
      rtol=1e-6,
    )
    draws = np.asarray(jax.jit(lambda: base.sample(KEY, N))())[:, 0]
    cumulative = np.cumsum(density) * (z[1] - z[0])
    assert stats.kstest(draws, lambda x: np.interp(x, z, cumulative)).pvalue > 1e-3
    # Where everything is accepted, and where hardly anything is, it is the proposals' law.
    for bias in (200.0, -200.0):
      network.kernel[...], network.bias[...] = jnp.zeros((1, 1)), jnp.array([bias])
      params = nnx.split(base)[1]
      points = jnp.linspace(-2, 2, 5)[:, None]
      np.testing.assert_allclose(run(params, points), normal.log_prob(points), rtol=1e-10)
  for make, match in [
    (lambda: flows.Resampled(network, network), "base must be a flows.Distribution"),
    (lambda: flows.Resampled(normal, 3), "network must be callable"),
    (lambda: flows.Resampled(normal, network, max_proposals=1), "max_proposals must be at least 2"),
    (lambda: flows.Resampled(normal, network, num_samples=0), "num_samples must be at least 1"),
  ]:
    with pytest.raises(ValueError, match=match):
      make()


def test_bad_arguments_are_refused():
  rngs, key = nnx.Rngs(0), jax.random.key(0)
  normal = flows.StandardNormal((2,))
  for make, match in [
    (lambda: flows.Joint([normal], [1, 1]), "sizes must have 1 entries"),
    (lambda: flows.Joint([normal], [0]), r"sizes\[0\] must be at least 1"),
    (lambda: flows.Joint([normal, 3], [2, 2]), "components must be a list of Distributions"),
    (lambda: flows.Joint([normal], [3]).sample(key, 4), r"must draw \(n, ..., 3\), got \(4, 2\)"),
    (lambda: flows.Mixture([]), "components must be a list of Distributions"),
    (lambda: flows.Mixture(normal), "components must be a list of Distributions"),
    (lambda: flows.Mixture([normal, flows.Chain([])]), "components must be a list of"),
    (lambda: flows.Mixture([normal, normal]), "the same object twice"),
    (lambda: flows.Mixture([normal], network=3), "network must be callable"),
    (
      lambda: flows.Mixture([normal], network=jnp.zeros_like).sample(key, 2, jnp.ones((2, 3))),
      r"network must return shape \(2, 1\) for 2 conditions, got \(2, 3\)",
    ),
    (
      lambda: flows.GaussianMixture((2,), 1, max_log_scale=0.0, rngs=rngs),
      "max_log_scale must be above 0",
    ),
    (lambda: flows.GaussianMixture((2,), 0, rngs=rngs), "num_components must be at least 1"),
    (lambda: flows.GaussianMixture((2,), 1, spread=-1.0, rngs=rngs), "spread must be at least 0"),
    (lambda: flows.ClassConditionalNormal((2,), 0), "num_classes must be at least 1"),
    (lambda: flows.ConditionalDiagonalNormal((2,), 3), "network must be callable"),
    (
      lambda: flows.ConditionalDiagonalNormal((2,), abs, max_log_scale=0.0),
      "max_log_scale must be above 0",
    ),
    (lambda: flows.TruncatedNormal((2,), low=1.0, high=1.0), "low must be below high"),
    (lambda: flows.TruncatedNormal((2,), high=np.inf), "low must be below high, both finite"),
    (lambda: flows.TruncatedNormal((2,), low=11.0, high=12.0), r"must reach into \[-10, 10\]"),
    (lambda: flows.MultivariateNormal((2.0,)), "shape must be"),
    (lambda: flows.GaussianMixture("22", 1, rngs=rngs), "shape must be"),
  ]:
    with pytest.raises(ValueError, match=match):
      make()
  cases = {n: make("float32") for n, (make, _) in BASES.items() if not n.startswith("Mixture")}
  for name, base in cases.items():
    with pytest.raises(
      ValueError, match=r"must have shape \(b, (\.\.\., )?2\)|scalar or have shape"
    ):
      base.log_prob(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="n must be an int of at least 1"):
      base.sample(key, 0)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
      base.sample(key, 1, temperature=-1.0)
    if name == "ClassConditionalNormal":
      with pytest.raises(ValueError, match="cond must be integer labels"):
        base.log_prob(jnp.zeros((2, 2)), jnp.zeros(2))
      with pytest.raises(ValueError, match="cond must be labels 0 to 2, or 3 for none, got"):
        base.sample(key, 2, jnp.array([0, 4]))
    if name in ("ConditionalDiagonalNormal", "GaussianMixture/network"):
      match = r"network must return shape \(2, (4|15)\) for 2 conditions"
      with pytest.raises(ValueError, match=match):
        base.log_prob(jnp.zeros((2, 2)), jnp.zeros((3, 2)))
