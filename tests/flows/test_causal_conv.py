"""Causal convolutions against dense matrices written down from the definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows
from normjax.flows import _causal_conv
from normjax.flows._causal_conv import Order, ordered_conv, ordered_conv_inverse

SIGNS = {"top_left": (1, 1), "top_right": (1, -1), "bottom_left": (-1, 1), "bottom_right": (-1, -1)}


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


def kernel_of(rng, height, width, c, own):
  """Draw a kernel whose own tap, at column `own` of the last row, is well-conditioned."""
  kernel = 0.4 * rng.standard_normal((height, width, c, c))
  kernel[-1, own] += 2 * np.eye(c)
  kernel[-1, own + 1 :] = 0
  return kernel


def dense_of(kernel, own, h, w, signs=(1, 1), dilation=1):
  """Return the matrix (h w c, h w c) with z.ravel() = x.ravel() @ matrix, tap by tap."""
  height, width, c, _ = kernel.shape
  matrix = np.zeros((h, w, c, h, w, c))
  for i, j, a, b in itertools.product(range(h), range(w), range(height), range(width)):
    from_i = i - signs[0] * (height - 1 - a) * dilation
    from_j = j - signs[1] * (own - b) * dilation
    if 0 <= from_i < h and 0 <= from_j < w:
      matrix[from_i, from_j, :, i, j, :] += kernel[a, b]
  return matrix.reshape(h * w * c, h * w * c)


def flat(x):
  return np.asarray(x).reshape(x.shape[0], -1)


@pytest.mark.parametrize("by_rows", [False, True], ids=["diagonals", "rows"])
@pytest.mark.parametrize(
  ("k", "corner", "dilation"),
  [
    (1, "top_left", 1), (2, "top_right", 1), (3, "bottom_left", 1), (4, "bottom_right", 1),
    (2, "top_left", 3), (3, "bottom_right", 2),
  ],
)  # fmt: skip
def test_both_directions_are_the_dense_matrix(k, corner, dilation, by_rows, monkeypatch):
  monkeypatch.setattr(_causal_conv, "_ROWS_FROM", 0 if by_rows else np.inf)
  rng, (h, w, c) = np.random.default_rng(k), (5, 3, 2)
  kernel, x = kernel_of(rng, k, k, c, k - 1), rng.standard_normal((2, h, w, c))
  matrix = dense_of(kernel, k - 1, h, w, SIGNS[corner], dilation)
  options = dict(corner=corner, dilation=dilation)
  run = lambda x, kernel: (
    flows.causal_conv(x, kernel, **options),
    flows.causal_conv_inverse(x, kernel, **options),
  )
  z, back = jax.jit(run)(x, kernel)
  np.testing.assert_allclose(flat(z), flat(x) @ matrix, atol=1e-12)
  np.testing.assert_allclose(flat(back), np.linalg.solve(matrix.T, flat(x).T).T, atol=1e-12)
  log_det = h * w * np.linalg.slogdet(kernel[-1, -1])[1]
  np.testing.assert_allclose(np.linalg.slogdet(matrix)[1], log_det, rtol=1e-12)


@pytest.mark.parametrize("by_rows", [False, True], ids=["diagonals", "rows"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_reading_order_is_the_dense_matrix(dilation, by_rows, monkeypatch):
  monkeypatch.setattr(_causal_conv, "_ROWS_FROM", 0 if by_rows else np.inf)
  rng, (h, w, c) = np.random.default_rng(0), (4, 5, 2)
  kernel, x = kernel_of(rng, 2, 3, c, 1), rng.standard_normal((2, h, w, c))
  matrix = dense_of(kernel, 1, h, w, dilation=dilation)
  order = Order((), right=1, dilation=dilation)
  both = lambda x, kernel: (ordered_conv(x, kernel, order), ordered_conv_inverse(x, kernel, order))
  z, back = jax.jit(both)(x, kernel)
  np.testing.assert_allclose(flat(z), flat(x) @ matrix, atol=1e-12)
  np.testing.assert_allclose(flat(back), np.linalg.solve(matrix.T, flat(x).T).T, atol=1e-12)


def test_a_singular_own_tap_makes_the_whole_map_singular():
  kernel = kernel_of(np.random.default_rng(0), 2, 2, 2, 1)
  kernel[-1, -1] = [[1.0, 2.0], [2.0, 4.0]]
  h, w = 3, 2
  assert np.linalg.matrix_rank(dense_of(kernel, 1, h, w)) < h * w * 2
  kernel[-1, -1, 1, 1] = 5.0
  assert np.linalg.matrix_rank(dense_of(kernel, 1, h, w)) == h * w * 2


def _dense_inverse(z, kernel):
  """Return the inverse by a dense solve of the same kernel, for automatic derivatives."""
  b, h, w, c = z.shape
  basis = jnp.eye(h * w * c).reshape(-1, h, w, c)
  matrix = flows.causal_conv(basis, kernel, corner="top_right").reshape(h * w * c, -1)
  return jnp.linalg.solve(matrix.T, z.reshape(b, -1).T).T.reshape(z.shape)


def test_derivatives_of_both_modes_and_orders_are_those_of_a_dense_solve():
  rng = np.random.default_rng(0)
  z, kernel = rng.standard_normal((2, 2, 3, 2)), kernel_of(rng, 2, 2, 2, 1)
  dz, dkernel = rng.standard_normal(z.shape), 0.1 * rng.standard_normal(kernel.shape)

  def derivatives(inverse):
    loss = lambda *args: jnp.sum(jnp.sin(inverse(*args)))
    gradient = jax.grad(loss, argnums=(0, 1))
    along = lambda *args: sum(map(jnp.vdot, gradient(*args), (dz, dkernel)))
    return {
      "reverse": gradient(z, kernel),
      "forward": jax.jvp(inverse, (z, kernel), (dz, dkernel)),
      "forward over reverse": jax.jvp(gradient, (z, kernel), (dz, dkernel)),
      "reverse over reverse": jax.grad(along, argnums=(0, 1))(z, kernel),
      "kernels": jax.vmap(inverse, (None, 0))(z, jnp.stack([kernel, kernel + dkernel])),
    }

  ours = lambda z, kernel: flows.causal_conv_inverse(z, kernel, corner="top_right")
  found = jax.jit(lambda: derivatives(ours))()
  for mode, expected in jax.jit(lambda: derivatives(_dense_inverse))().items():
    for one, other in zip(jax.tree.leaves(found[mode]), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-11, err_msg=mode)


def scans(function, *args):
  """Return the scans of a traced program as (steps, whether it stacks an output per step)."""
  found = []

  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "scan":
        stacks = len(eqn.outvars) > eqn.params["num_carry"]
        found.append((eqn.params["length"], stacks))
      if eqn.primitive.name == "custom_linear_solve":
        visit(eqn.params["jaxprs"].solve.jaxpr)  # only one of the four is run
      else:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
          if hasattr(inner, "eqns"):
            visit(getattr(inner, "jaxpr", inner))

  visit(jax.make_jaxpr(function)(*args).jaxpr)
  return found


def test_steps_are_diagonals_and_no_step_is_stored():
  z, kernel = jnp.ones((2, 7, 5, 1)), jnp.ones((3, 3, 1, 1))
  assert scans(flows.causal_conv_inverse, z, kernel) == [(7 + 5 - 1, False)]
  gradient = jax.grad(lambda *args: jnp.sum(flows.causal_conv_inverse(*args) ** 2), (0, 1))
  assert scans(gradient, z, kernel) == [(11, False)] * 2  # the solution, and its cotangent


def test_many_channels_go_row_by_row():
  z, kernel = jnp.ones((2, 7, 5, 64)), jnp.ones((3, 3, 64, 64))
  assert jax.default_backend() == "cpu"
  assert [steps for steps, _ in scans(flows.causal_conv_inverse, z, kernel)] == [7, 5]


def test_narrow_images_are_solved_in_float32():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(kernel_of(rng, 2, 2, 1, 1), jnp.bfloat16)
  z = jnp.asarray(rng.standard_normal((1, 6, 6, 1)), jnp.bfloat16)
  inverse = jax.jit(flows.causal_conv_inverse)
  x = inverse(z, kernel)
  wide = inverse(z.astype(jnp.float32), kernel.astype(jnp.float32))
  assert x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(x, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kernel": (2, 3, 2, 2)}, r"kernel must have shape \(k, k, c, c\), got \(2, 3, 2, 2\)"),
    ({"kernel": (2, 2, 2, 3)}, r"kernel must have shape"),
    ({"kernel": (2, 2, 2)}, r"kernel must have shape"),
    ({"kernel": (0, 0, 2, 2)}, r"kernel must have k >= 1"),
    ({"x": (1, 3, 3, 1)}, r"must have shape \(b, h, w, 2\), none of it zero, got \(1, 3, 3, 1\)"),
    ({"x": (1, 0, 3, 2)}, r"must have shape"),
    ({"x": (3, 3, 2)}, r"must have shape"),
    ({"dtype": int}, "must be floating"),
    ({"corner": "left"}, r"corner must be one of .*top_left.*, got 'left'"),
    ({"dilation": 0}, r"dilation must be an int of at least 1, got 0"),
    ({"dilation": 1.0}, r"dilation must be an int of at least 1, got 1.0"),
  ],
)
@pytest.mark.parametrize("function", [flows.causal_conv, flows.causal_conv_inverse])
def test_wrong_input_is_refused(function, change, message):
  given = {"x": (1, 3, 3, 2), "kernel": (2, 2, 2, 2), "corner": "top_left", "dilation": 1}
  given |= {"dtype": float} | change
  with pytest.raises(ValueError, match=message):
    function(
      jnp.ones(given["x"], given["dtype"]),
      jnp.ones(given["kernel"]),
      corner=given["corner"],
      dilation=given["dilation"],
    )
