import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows


def moved(layer, rng):
  params = jax.tree.map(lambda v: 0.3 * rng.standard_normal(v.shape), nnx.state(layer, nnx.Param))
  nnx.update(layer, params)
  return layer


@pytest.mark.parametrize(
  ("dim", "width", "depth", "residual", "cond_dim", "rate"),
  [(1, 3, 2, True, 3, 0.25), (3, 7, 2, True, 3, 0.25), (5, 3, 2, False, None, 0.25)],
)
def test_the_inverse_computes_each_unit_once_and_right(dim, width, depth, residual, cond_dim, rate):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    layer = flows.MaskedAutoregressive(
      dim, width=width, depth=depth, residual=residual, cond_dim=cond_dim, dropout_rate=rate,
      param_dtype=jnp.float64, rngs=nnx.Rngs(0),
    )  # fmt: skip
    graphdef, state = nnx.split(moved(layer, rng))
    x = jnp.asarray(rng.standard_normal((4, dim)))
    cond = None if cond_dim is None else jnp.asarray(rng.standard_normal((4, cond_dim)))

    @jax.jit
    def there_and_back(state, x):
      layer = nnx.merge(graphdef, state)
      z, log_det = layer.forward(x, cond)
      return *layer.inverse(z, cond), z, -log_det

    found, log_det, z, wanted, x = map(np.asarray, (*there_and_back(state, x), x))
  assert np.abs(z - x).max() > 0.1
  np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(log_det, wanted, rtol=1e-12, atol=1e-12)


def products(program):
  """Return how many multiplications the matrix products of a program take, scans included."""
  total = 0
  for eqn in program.eqns:
    if eqn.primitive.name == "dot_general":
      (axes, _), _ = eqn.params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      total += np.prod([left[a] for a in axes]) * np.prod(eqn.outvars[0].aval.shape)
    inner = [v.jaxpr for v in eqn.params.values() if hasattr(v, "jaxpr")]
    total += eqn.params.get("length", 1) * sum(map(products, inner))
  return total


def test_the_inverse_takes_the_products_of_about_one_pass():
  layer = flows.MaskedAutoregressive(16, width=60, depth=2, rngs=nnx.Rngs(0))
  x = jnp.ones((4, 16))
  forward, inverse = (products(jax.make_jaxpr(f)(x).jaxpr) for f in (layer.forward, layer.inverse))
  assert forward > 4 * 4 * 60 * 60
  assert 0.9 * forward < inverse < 1.5 * forward
