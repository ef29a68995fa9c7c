"""Bases of flows: densities against scipy, samples against densities, one row per class."""

import dataclasses
import inspect
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from scipy import stats

from normjax import flows
from tests.flows.test_bases import BASES

LOC, LOG_SCALE = (0.7, -1.2), (0.3, -0.4)


@dataclasses.dataclass(frozen=True)
class Row:
  """Constructor arguments as in a JSON file, and the same law in scipy."""

  options: dict
  law: Callable  # law(loc, scale) -> frozen scipy distribution
  mass_atol: float = 1e-4  # error of a midpoint rule


ROWS = {
  "DiagonalNormal": Row({}, stats.norm),
  "Laplace": Row({"trainable": True}, stats.laplace),
  "Laplace/fixed": Row({}, stats.laplace),
  "Logistic": Row({"trainable": True}, stats.logistic),
  "Logistic/fixed": Row({}, stats.logistic),
  "StandardNormal": Row({}, stats.norm),
  "StudentT": Row({"nu": 1.5, "trainable": True}, lambda loc, s: stats.t(1.5, loc, s)),
  "StudentT/learned nu": Row(
    {"nu": 2.5, "trainable_nu": True}, lambda loc, s: stats.t(2.5, loc, s)
  ),
  "TruncatedNormal": Row(
    {"low": -1.5, "high": 1.5, "trainable": True},
    lambda loc, s: stats.truncnorm(-1.5, 1.5, loc, s),
    mass_atol=2e-2,
  ),
  # scipy's uniform begins at loc and is scale wide. A rule's error at a jump is a step's mass.
  "Uniform": Row(
    {"low": [-1.0, 0.5], "high": [2.0, 1.0]}, lambda loc, s: stats.uniform(loc, s), mass_atol=2e-2
  ),
}


def _make(name, dtype="float64"):
  options = json.loads(json.dumps(ROWS[name].options))
  base = getattr(flows, name.split("/")[0])([2], param_dtype=dtype, rngs=nnx.Rngs(0), **options)
  if getattr(base, "loc", None) is not None:
    base.loc[...] = jnp.asarray(LOC, dtype)
    base.log_scale[...] = jnp.asarray(LOG_SCALE, dtype)
  return base


def _laws(name):
  """Return one frozen scipy law per entry of the event."""
  base, row = _make(name), ROWS[name]
  if name == "Uniform":
    low, high = np.array(row.options["low"]), np.array(row.options["high"])
    return [row.law(a, b - a) for a, b in zip(low, high, strict=True)]
  moved = base.loc is not None
  loc, log_scale = (LOC, LOG_SCALE) if moved else (np.zeros(2), np.zeros(2))
  return [row.law(a, s) for a, s in zip(loc, np.exp(log_scale), strict=True)]


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


def test_table_has_a_row_per_public_class():
  members = [getattr(flows, name) for name in flows.__all__]
  public = {
    member.__name__
    for member in members
    if inspect.isclass(member) and issubclass(member, flows.Distribution)
  }
  elsewhere = {"DependentFlow", "Resampled", "VonMises"}
  tested = {name.split("/")[0] for name in [*ROWS, *BASES]} | elsewhere
  assert public - {"Distribution"} == tested
  with pytest.raises(TypeError, match="abstract"):
    flows.Distribution()


@pytest.mark.parametrize("name", ROWS)
def test_log_prob_is_scipys(name):
  z = np.random.default_rng(0).normal(size=(64, 2)) * 2
  expected = sum(law.logpdf(z[:, i]) for i, law in enumerate(_laws(name)))
  actual = _make(name).log_prob(jnp.asarray(z))
  assert actual.dtype == jnp.float64
  np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ROWS)
def test_density_integrates_to_one(name):
  # Midpoints of t, z = tan(t): the whole plane, heavy tails included.
  steps = 500
  t = (np.arange(steps) + 0.5) * np.pi / steps - np.pi / 2
  z, weight = np.tan(t), np.pi / steps / np.cos(t) ** 2
  grid = np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1).reshape(-1, 2)
  density = np.exp(jax.jit(_make(name).log_prob)(jnp.asarray(grid)))
  mass = np.sum(density.reshape(steps, steps) * weight[:, None] * weight[None])
  np.testing.assert_allclose(mass, 1, rtol=0, atol=ROWS[name].mass_atol)


def _draw(name, seed=1, temperature=1.0):
  # One shape and dtype for all tests: each compiles samplers anew.
  base = _make(name, "float32")
  return base.sample(jax.random.key(seed), 4000, temperature=temperature)


@pytest.mark.parametrize("name", ROWS)
def test_samples_follow_the_density(name):
  z = _draw(name)
  assert z.shape == (4000, 2)
  assert z.dtype == jnp.float32
  for i, law in enumerate(_laws(name)):
    assert stats.kstest(np.asarray(z[:, i], np.float64), law.cdf).pvalue > 1e-3
  assert abs(stats.spearmanr(z[:, 0], z[:, 1]).statistic) < 0.06  # entries are independent
  assert np.all(np.isfinite(_make(name, "float32").log_prob(z)))


@pytest.mark.parametrize("name", ROWS)
def test_temperature_spreads_around_the_centre(name):
  centre = np.array([[law.median() for law in _laws(name)]])
  np.testing.assert_allclose(_draw(name, temperature=0.0), np.tile(centre, (4000, 1)), rtol=1e-6)
  spread = np.asarray(_draw(name)) - centre
  for temperature in (0.6, 1.7):
    tempered = np.asarray(_draw(name, temperature=temperature)) - centre
    np.testing.assert_allclose(tempered, temperature * spread, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.std(tempered), temperature * np.std(spread), rtol=1e-4)


@pytest.mark.parametrize("name", ["DiagonalNormal", "Uniform"])
def test_temperature_may_be_traced(name):
  sample = lambda temperature: _draw(name, temperature=temperature)
  np.testing.assert_allclose(jax.jit(sample)(0.6), sample(0.6), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_samples_depend_on_the_key_alone(name):
  np.testing.assert_array_equal(_draw(name), _draw(name))
  assert np.mean(_draw(name) != _draw(name, seed=2)) > 0.99


@pytest.mark.parametrize("name", ROWS)
def test_bad_arguments_are_refused(name):
  base, key = _make(name), jax.random.key(0)
  for n in (0, -1, 2.0):
    with pytest.raises(ValueError, match=r"n must be an int of at least 1"):
      base.sample(key, n)
  for temperature in (-0.1, float("nan")):
    with pytest.raises(ValueError, match="temperature must be at least 0"):
      base.sample(key, 1, temperature=temperature)
  with pytest.raises(ValueError, match="temperature must be a scalar"):
    base.sample(key, 1, temperature=jnp.ones(1))
  for shape in ((2,), (1, 3), (1, 2, 1), (0, 2)):
    with pytest.raises(ValueError, match=r"z must have shape \(b, 2\)"):
      base.log_prob(jnp.zeros(shape))
  with pytest.raises(ValueError, match="z must be floating"):
    base.log_prob(jnp.zeros((1, 2), int))
  for shape in (2, (2, 0), (2.0,), "22", [None]):
    with pytest.raises(ValueError, match="shape must be"):
      type(base)(shape)


@pytest.mark.parametrize("name", ROWS)
def test_log_prob_is_wide_and_the_same_in_both_nnx_modes(name):
  z = jnp.full((3, 2), 0.75, jnp.bfloat16)
  base = _make(name, "bfloat16")
  assert base.log_prob(z).dtype == jnp.float32
  assert jax.eval_shape(lambda: base.sample(jax.random.key(0), 2)).dtype == jnp.float32

  def run():
    base = _make(name)
    graphdef, state = nnx.split(base)
    run = jax.jit(lambda state, z: nnx.merge(graphdef, state).log_prob(z))
    return run(state, z.astype(jnp.float64))

  with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
    tree = run()
  np.testing.assert_array_equal(tree, run())


@pytest.mark.parametrize("name", ["DiagonalNormal", "Laplace", "Logistic", "StudentT"])
def test_gradients_of_parameters(name):
  z = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2)))
  graphdef, state = nnx.split(_make(name))
  likelihood = jax.jit(lambda state: jnp.sum(nnx.merge(graphdef, state).log_prob(z)))
  assert len(jax.tree.leaves(state)) == 2
  check_grads(likelihood, (state,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(jax.grad(likelihood)(state)))


def test_diagonal_normal_is_stationary_at_the_moments():
  z = jnp.asarray(np.random.default_rng(4).normal(size=(50, 2)) * 3 + 1)
  base = flows.DiagonalNormal((2,), param_dtype="float64")
  base.loc[...], base.log_scale[...] = jnp.mean(z, axis=0), jnp.log(jnp.std(z, axis=0))
  graphdef, state = nnx.split(base)
  gradient = jax.grad(lambda state: jnp.mean(nnx.merge(graphdef, state).log_prob(z)))(state)
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_allclose(leaf, 0, atol=1e-12)


def test_student_t_learns_nu():
  base = _make("StudentT/learned nu")
  z = jnp.asarray(np.random.default_rng(5).normal(size=(5, 2)))
  graphdef, state = nnx.split(base)
  likelihood = lambda state: jnp.sum(nnx.merge(graphdef, state).log_prob(z))
  (gradient,) = jax.tree.leaves(jax.grad(likelihood)(state))
  step = 1e-5
  for i in range(2):
    up, down = (np.sum(stats.t.logpdf(z[:, i], 2.5 * np.exp(s))) for s in (step, -step))
    np.testing.assert_allclose(gradient[i], (up - down) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("nu", [1e4, 1e7])
def test_student_t_becomes_normal_in_float32(nu):
  # Differences of log-Gammas would be off by whole nats here.
  z = jnp.linspace(-3, 3, 8, dtype=jnp.float32).reshape(4, 2)
  with jax.enable_x64(False):
    heavy = flows.StudentT((2,), nu=nu, trainable_nu=True).log_prob(z)
    normal = flows.StandardNormal((2,)).log_prob(z)
  assert heavy.dtype == jnp.float32
  np.testing.assert_allclose(heavy, normal, rtol=0, atol=50 / nu + 2e-6)


def test_student_t_has_tails_to_the_largest_number():
  with jax.enable_x64(False):
    z = jnp.array([[0.0], [1e-30], [-1e4], [1e30], [3e38]])
    log_prob = flows.StudentT((1,), nu=3.0).log_prob
    value, slope = jax.jit(lambda z: (log_prob(z), jax.grad(lambda z: log_prob(z).sum())(z)))(z)
  exact = np.asarray(z, np.float64)
  np.testing.assert_allclose(value, stats.t(3.0).logpdf(exact)[:, 0], rtol=1e-6)
  np.testing.assert_allclose(slope, -4 * (exact / 3) / (1 + exact**2 / 3), rtol=1e-5, atol=1e-37)


def test_student_t_refuses_bad_nu():
  for nu in (0, np.inf):
    with pytest.raises(ValueError, match=f"nu must be above 0 and finite, got {nu}"):
      flows.StudentT((2,), nu=nu)


def test_logistic_tails_are_finite_in_float32():
  log_prob = flows.Logistic((1,)).log_prob(jnp.array([[-300.0], [300.0]], jnp.float32))
  np.testing.assert_allclose(log_prob, [-300, -300], rtol=1e-6)


def test_uniform_box_has_sharp_edges():
  box = _make("Uniform")
  z = jnp.array([[-1.0, 1.0], [2.0, 0.5], [2.0001, 0.7], [0.0, 0.4999]])
  np.testing.assert_allclose(box.log_prob(z), [-np.log(1.5), -np.log(1.5), -np.inf, -np.inf])


def test_uniform_samples_stay_in_the_box_in_float32():
  box = flows.Uniform((1000,), low=0.1, high=0.3)
  z = box.sample(jax.random.key(0), 1000)
  assert np.all(np.isfinite(box.log_prob(z)))
  assert np.any(np.isinf(box.log_prob(box.sample(jax.random.key(0), 10, temperature=1.1))))


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"low": 1.0, "high": 1.0}, "low must be below high"),
    ({"low": [0.0, 2.0], "high": 1.0}, "low must be below high"),
    ({"low": [0.0, -np.inf]}, "low must be below high, both finite"),
    ({"low": [0.0, 0.0, 0.0]}, "low must be a scalar or have shape"),
    ({"high": [[1.0, 1.0]]}, "high must be a scalar or have shape"),
  ],
)
def test_uniform_refuses_bad_corners(options, match):
  with pytest.raises(ValueError, match=match):
    flows.Uniform((2,), **options)


@pytest.mark.parametrize("name", ROWS)
def test_abstract_construction(name):
  # Checkpoints rebuild modules from shapes alone.
  abstract = nnx.eval_shape(lambda: _make(name))
  concrete = nnx.state(_make(name))
  shapes = lambda state: [leaf.shape for leaf in jax.tree.leaves(state)]
  assert shapes(nnx.state(abstract)) == shapes(concrete)
