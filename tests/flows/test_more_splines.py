"""Linear, quadratic, cubic and circular splines: values, slopes, ends, boxes, extreme numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

from normjax import flows

BOX = {"left": -1.0, "right": 2.0, "bottom": 2.0, "top": 7.0}
SQUARE = {"left": -3.0, "right": 3.0, "bottom": -1.0, "top": 5.0}
RNG = np.random.default_rng(0)
W, H, D = RNG.normal(size=(3, 4))


def _shares(raw, minimum=1e-3):
  return minimum + (1 - raw.size * minimum) * np.exp(raw) / np.exp(raw).sum()


def _edges(shares, low, high):
  return low + (high - low) * np.concatenate([[0], np.cumsum(shares)])


def _rows(n, *raws):
  return [jnp.broadcast_to(jnp.asarray(raw)[None], (n, raw.size)) for raw in raws]


def _both(spline, inverse, x, raws, box):
  """Return y, log y', its derivative by jax, and x again, in float64."""
  with jax.enable_x64(True):
    x, raws = jnp.asarray(x), _rows(len(x), *raws)

    @jax.jit
    def run(x, *raws):
      forward = lambda x: spline(x, *raws, **box)
      (y, log_slope), (slope, _) = jax.jvp(forward, (x,), (jnp.ones_like(x),))
      return y, log_slope, slope, *inverse(y, *raws, **box)

    return [np.asarray(v) for v in run(x, *raws)]


def _check(spline, inverse, raws, box, inner=1e-9):
  """Return y at 100 points after the checks that all splines pass."""
  x = np.linspace(box["left"] + inner, box["right"] - inner, 100)
  y, log_slope, slope, back, log_back = _both(spline, inverse, x, raws, box)
  np.testing.assert_allclose(np.exp(log_slope), slope, rtol=1e-9)
  np.testing.assert_allclose(back, x, atol=1e-10)
  np.testing.assert_allclose(log_back, -log_slope, atol=1e-8)
  assert np.all(np.diff(y) > 0)
  np.testing.assert_allclose(y[[0, -1]], [box["bottom"], box["top"]], atol=1e-7)
  return x, y, slope


def test_linear_spline_is_interpolation():
  x, y, _ = _check(flows.linear_spline, flows.linear_spline_inverse, [H], BOX)
  knots = np.linspace(-1, 2, 5), _edges(_shares(H), 2, 7)
  np.testing.assert_allclose(y, np.interp(x, *knots), rtol=1e-12)


def test_quadratic_spline_integrates_its_slopes():
  raw = np.append(H, 0.7)
  x, _, slope = _check(flows.quadratic_spline, flows.quadratic_spline_inverse, [W, raw], BOX)
  widths = _shares(W)
  v = np.logaddexp(raw, 0) + 1e-3
  v = 1e-3 + 0.999 * v / np.sum(widths * (v[1:] + v[:-1]) / 2)
  expected = np.interp(x, _edges(widths, -1, 2), v * 5 / 3)
  np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_quadratic_tails_have_slope_one():
  raws = [W, H[:3]]
  _, _, slope = _check(flows.quadratic_spline, flows.quadratic_spline_inverse, raws, SQUARE)
  np.testing.assert_allclose(slope[[0, -1]], 1, rtol=1e-7)
  assert np.ptp(slope) > 0.3


def test_cubic_spline_is_hermite_with_steffens_slopes():
  ends = np.array([0.5, -2.0])
  x, y, slope = _check(flows.cubic_spline, flows.cubic_spline_inverse, [W, D, ends], BOX)
  knots_x, knots_y = _edges(_shares(W), -1, 2), _edges(_shares(D), 2, 7)
  w, h = np.diff(knots_x), np.diff(knots_y)
  delta = h / w
  middle = (w[1:] * delta[:-1] + w[:-1] * delta[1:]) / (w[1:] + w[:-1])
  inner = np.minimum(2 * np.minimum(delta[1:], delta[:-1]), middle)
  end = 3 * (1e-3 + 0.998 / (1 + np.exp(-ends)))
  slopes = np.concatenate([[end[0] * delta[0]], inner, [end[1] * delta[-1]]])
  expected = CubicHermiteSpline(knots_x, knots_y, slopes)
  np.testing.assert_allclose(y, expected(x), rtol=1e-11)
  np.testing.assert_allclose(slope, expected(x, 1), rtol=1e-9)


def test_circular_spline_has_one_slope_at_both_ends():
  box = {"left": -np.pi, "right": np.pi, "bottom": -np.pi, "top": np.pi}
  spline = flows.rational_quadratic_spline, flows.rational_quadratic_spline_inverse
  _, _, slope = _check(*spline, [W, H, D], box)
  np.testing.assert_allclose(slope[0], slope[-1], rtol=1e-7)
  np.testing.assert_allclose(slope[0], 1e-3 + np.logaddexp(D[0], 0), rtol=1e-7)


@pytest.mark.parametrize("name", ["linear", "cubic", "quadratic", "rational", "modified"])
def test_tails_go_on_from_the_corners(name):
  x = jnp.array([-1e30, -5.0, 4.0, 1e30], jnp.float32)
  zeros = lambda n: jnp.zeros((4, n))
  y, log_slope = {
    "linear": lambda: flows.linear_spline(x, zeros(4), **SQUARE, tails=True),
    "cubic": lambda: flows.cubic_spline(x, zeros(4), zeros(4), zeros(2), **SQUARE, tails=True),
    "quadratic": lambda: flows.quadratic_spline(x, zeros(4), zeros(3), **SQUARE),
    "rational": lambda: flows.rational_quadratic_spline(x, zeros(4), zeros(4), zeros(3), **SQUARE),
    "modified": lambda: flows.modified_spline(
      x, *(zeros(1)[:, 0] for _ in range(3)), box=tuple(SQUARE.values())
    ),
  }[name]()
  np.testing.assert_allclose(y, [-1e30, -3, 6, 1e30], rtol=1e-6)
  np.testing.assert_array_equal(log_slope, 0)


TRANSFORMS = {
  "linear": flows.LinearSplineTransform(3),
  "quadratic": flows.QuadraticSplineTransform(3),
  "cubic": flows.CubicSplineTransform(3),
  "circular": flows.CircularRQSTransform(3),
  "rational": flows.RQSTransform(3, raw_scale=6**-0.5),
  "shift": flows.CircularShiftTransform(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_everything_is_finite_at_extreme_values(name):
  transform = TRANSFORMS[name]
  x = jnp.array([-1e30, -1e4, -3.0, -1.0, -1e-30, 0.0, 1.5, 3.0, 1e4, 1e30])
  pattern = jnp.asarray(np.random.default_rng(2).choice([-1, 0, 1], (8, 1, 16)), jnp.float32)

  def loss(x, raw):
    (y, up), (back, down) = transform.forward(x, raw), transform.inverse(x, raw)
    total = jnp.sum(jnp.where(jnp.abs(x) < 10, y + back, 0)) + jnp.sum(up) + jnp.sum(down)
    return total, (y, up, back, down)

  raws = jnp.concatenate([size * pattern for size in (0.0, 1.0, 50.0, 1e4, 1e30)])
  raws = jnp.broadcast_to(raws, (40, x.size, 16))[..., : transform.num_parameters]
  run = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1), has_aux=True), in_axes=(None, 0)))
  for leaf in jax.tree.leaves(run(x, raws)):
    assert np.all(np.isfinite(leaf))


def test_circular_transforms_wrap():
  transform = flows.CircularRQSTransform(3, bound=2.0)
  raw = jnp.asarray(RNG.normal(size=(1, transform.num_parameters)), jnp.float32)
  raw = jnp.broadcast_to(raw, (3, transform.num_parameters))
  x = jnp.array([-1.5, 0.3, 1.9])
  y, log_slope = transform.forward(x, raw)
  turned = transform.forward(x + 4.0, raw)
  np.testing.assert_allclose(turned[0], y, atol=1e-5)
  np.testing.assert_allclose(turned[1], log_slope, atol=1e-4)
  assert np.all((y >= -2) & (y <= 2))
  assert np.all(np.abs(y - x) > 1e-3)
  np.testing.assert_allclose(transform.inverse(y, raw)[0], x, atol=1e-5)
  shift = flows.CircularShiftTransform(bound=2.0)
  turned, _ = shift.forward(jnp.array([1.5]), jnp.array([[1.0]]))
  np.testing.assert_allclose(turned, -1.5, rtol=1e-6)


def test_bad_arguments_are_refused():
  x, zeros = jnp.array([0.5, 1.5]), jnp.zeros
  for spline in (flows.linear_spline, flows.linear_spline_inverse):
    with pytest.raises(ValueError, match="must lie in"):
      spline(x, zeros((2, 3)))
  with pytest.raises(ValueError, match="y must be floating, got int32"):
    flows.cubic_spline_inverse(jnp.arange(2), zeros((2, 3)), zeros((2, 3)), zeros((2, 2)))
  with pytest.raises(ValueError, match=r"raw_heights must have shape .*, K >= 1\), got \(2,\)"):
    flows.linear_spline(x, zeros(2))
  with pytest.raises(ValueError, match=r"raw_heights must have shape .* 5 or 3\), got \(2, 4\)"):
    flows.quadratic_spline(x, zeros((2, 4)), zeros((2, 4)))
  with pytest.raises(ValueError, match="top - bottom must be right - left"):
    flows.quadratic_spline(x, zeros((2, 4)), zeros((2, 3)), top=2.0)
  with pytest.raises(ValueError, match="raw_ends must have shape"):
    flows.cubic_spline(x, zeros((2, 4)), zeros((2, 4)), zeros((2, 3)))
  with pytest.raises(ValueError, match="min_height must be in"):
    flows.cubic_spline(x, zeros((2, 4)), zeros((2, 4)), zeros((2, 2)), min_height=0.3)
  for box in ((0.0, 0.0, 0.0, 1.0), (0.0, 1.0, -np.inf, 1.0)):
    with pytest.raises(ValueError, match="left and bottom must be below right and top, all finite"):
      flows.modified_spline(x, x, x, x, box=box)
  with pytest.raises(ValueError, match="bound must be above 0 and finite, got inf"):
    flows.modified_spline(x, x, x, x, bound=np.inf)
  for options, message in (
    ({"bound": -1.0}, "bound must be above 0 and finite, got -1"),
    ({"minimum": 0.5}, "minimum must be inside"),
  ):
    with pytest.raises(ValueError, match=message):
      flows.ModifiedRQSTransform(**options)
  with pytest.raises(ValueError, match="epsilon must be above 0 and finite, got 0"):
    flows.ConditionalAffineTransform(epsilon=0.0)
  with pytest.raises(ValueError, match="num_bins must be at least 2 with tails"):
    flows.QuadraticSplineTransform(1)
  with pytest.raises(ValueError, match="low must be below high"):
    flows.LinearSplineTransform(2, low=1.0, high=1.0)
  with pytest.raises(ValueError, match="bound must be above 0 and finite"):
    flows.CircularShiftTransform(bound=0.0)
