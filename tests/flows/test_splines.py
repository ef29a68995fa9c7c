"""What splines promise: identities, knots, bounds, and finite gradients whatever comes in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows

BOX = {"left": -3.0, "right": 3.0, "bottom": -3.0, "top": 3.0}
POINTS = jnp.array([-1e30, -3.0, -2.0, 0.0, 1.5, 3.0, 1e30])


def _rows(raw):
  return jnp.broadcast_to(jnp.asarray(raw)[None], (POINTS.size, len(raw)))


def _linear(spline):
  return lambda x, *raws: spline(x, *raws, **BOX, identity_init=True)


SPLINES = {
  "forward": _linear(flows.rational_quadratic_spline),
  "inverse": _linear(flows.rational_quadratic_spline_inverse),
}


@pytest.mark.parametrize("direction", SPLINES)
def test_zeros_are_the_identity(direction):
  raws = [jnp.zeros((POINTS.size, n)) for n in (4, 4, 3)]
  y, log_abs_det = SPLINES[direction](POINTS, *raws)
  np.testing.assert_allclose(y, POINTS, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(log_abs_det, 0, atol=1e-5)


@pytest.mark.parametrize("direction", SPLINES)
def test_everything_is_finite_at_extreme_values(direction):
  def loss(x, *raws):
    y, log_abs_det = SPLINES[direction](x, *raws)
    return jnp.sum(jnp.where(jnp.abs(x) < 10, y, 0)) + jnp.sum(log_abs_det), (y, log_abs_det)

  run = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
  extremes = (-1e38, -50.0, 0.0, 50.0, 1e38)
  for w, h, d in itertools.product(extremes, repeat=3):
    raws = _rows([w, 0.0, -w]), _rows([0.0, h, 1.0]), _rows([d, -d])
    for leaf in jax.tree.leaves(run(POINTS, *raws)):
      assert np.all(np.isfinite(leaf)), (w, h, d)


def test_tails_have_slope_one_and_points_outside_raise():
  raws = [jnp.asarray(np.random.default_rng(0).normal(size=(2, n)), jnp.float32) for n in (4, 4, 3)]
  y, log_abs_det = flows.rational_quadratic_spline(jnp.array([-3.0, 3.0]), *raws, **BOX)
  np.testing.assert_allclose(y, [-3, 3], rtol=1e-6)
  np.testing.assert_allclose(log_abs_det, 0, atol=1e-5)
  bounded = [*raws[:2], jnp.zeros((2, 5))]
  with pytest.raises(ValueError, match="x must lie in"):
    flows.rational_quadratic_spline(jnp.array([0.5, 1.5]), *bounded)
  with pytest.raises(ValueError, match="y must lie in"):
    flows.rational_quadratic_spline_inverse(jnp.array([0.5, 1.5]), *bounded)


def test_knots_go_to_knots_with_their_slopes():
  rng = np.random.default_rng(1)
  widths, heights, derivatives = (rng.normal(size=n) for n in (4, 4, 5))
  share = lambda raw: 1e-3 + (1 - 4e-3) * np.exp(raw) / np.exp(raw).sum()
  knots = lambda low, size, raw: low + size * np.concatenate([[0], np.cumsum(share(raw))])
  x, y = knots(-1.0, 3.0, widths), knots(2.0, 5.0, heights)
  box = {"left": -1.0, "right": 2.0, "bottom": 2.0, "top": 7.0}
  with jax.enable_x64(True):
    raws = [
      jnp.broadcast_to(jnp.asarray(r)[None], (5, r.size)) for r in (widths, heights, derivatives)
    ]
    found, log_slope = flows.rational_quadratic_spline(jnp.asarray(x), *raws, **box)
    back, _ = flows.rational_quadratic_spline_inverse(jnp.asarray(y), *raws, **box)
  np.testing.assert_allclose(found, y, rtol=1e-12)
  np.testing.assert_allclose(back, x, atol=1e-12)
  np.testing.assert_allclose(np.exp(log_slope), 1e-3 + np.log1p(np.exp(derivatives)), rtol=1e-9)


def test_one_bin_of_slope_one_is_a_line():
  x, raw = jnp.linspace(-3, 3, 7), jnp.zeros((7, 1))
  y, log_slope = flows.rational_quadratic_spline(x, raw, raw, jnp.zeros((7, 0)), **BOX)
  np.testing.assert_allclose(y, x, atol=1e-6)
  np.testing.assert_allclose(log_slope, 0, atol=1e-6)


def test_modified_spline_never_moves_a_point_by_more_than_its_box():
  rng = np.random.default_rng(0)
  value = jnp.asarray(rng.normal(size=10_000), jnp.float32)
  raws = [jnp.asarray(v, jnp.float32) for v in 10 ** rng.uniform(-2, 30, (3, 10_000))]
  raws = [v * jnp.asarray(rng.choice([-1, 1], 10_000), jnp.float32) for v in raws]
  for spline in (flows.modified_spline, flows.modified_spline_inverse):
    run = lambda value, *raws, spline=spline: jnp.sum(jnp.stack(spline(value, *raws)))
    out, _ = spline(value, *raws)
    assert np.all(np.abs(out - value) <= 1.001)
    assert np.any(np.abs(out - value) > 0.3)
    for gradient in jax.jit(jax.grad(run, argnums=(0, 1, 2, 3)))(value, *raws):
      assert np.all(np.isfinite(gradient))
  raw = jnp.array([[0.0, -20.0]])
  x, _ = flows.ConditionalAffineTransform().inverse(jnp.ones(1), raw)
  np.testing.assert_allclose(x, 1e4, rtol=1e-3)
