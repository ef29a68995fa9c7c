"""Splines, couplings and autoregressive flows against the public reference library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("rqs")
RAWS = ("unnorm_widths", "unnorm_heights", "unnorm_derivatives")
GIVEN = {"x", "context", "g", "g_log_det", *RAWS}


def _is_given(name):
  return name in GIVEN or name.startswith("params/")


def _recorded(case):
  return {name: value for name, value in CASES[case].items() if not _is_given(name)}


def _spline(case):
  arrays, meta = CASES[case], META["cases"][case]
  if "tail_bound" in meta:
    low, high = -meta["tail_bound"], meta["tail_bound"]
    box = {"left": low, "right": high, "bottom": low, "top": high}
  else:
    box = {side: meta[side] for side in ("left", "right", "bottom", "top")}
  options = box | {
    "min_width": meta["min_bin_width"],
    "min_height": meta["min_bin_height"],
    "min_derivative": meta["min_derivative"],
    "identity_init": meta.get("enable_identity_init", False),
  }
  forward = functools.partial(flows.rational_quadratic_spline, **options)
  inverse = functools.partial(flows.rational_quadratic_spline_inverse, **options)
  raws, g = [jnp.asarray(arrays[name]) for name in RAWS], jnp.asarray(arrays["g"])

  def run(spline, value):
    def loss(value, *raws):
      out, log_abs_det = spline(value, *raws)
      return jnp.sum(out * g) + jnp.sum(log_abs_det * g[:, ::-1]), (out, log_abs_det)

    gradients, outputs = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(value, *raws)
    return *outputs, *gradients

  names = ["dx", *(f"d{name}" for name in RAWS)]
  results = dict(
    zip(
      ["y", "log_abs_det", *names],
      jax.jit(run, static_argnums=0)(forward, jnp.asarray(arrays["x"])),
      strict=True,
    )
  )
  names = ["inverse_dy", *(f"inverse_d{name}" for name in RAWS)]
  back = jax.jit(run, static_argnums=0)(inverse, jnp.asarray(arrays["y"]))
  return results | dict(zip(["inverse_x", "inverse_log_abs_det", *names], back, strict=True))


def _bijector(case):
  arrays, meta = CASES[case], META["cases"][case]
  dim = arrays["x"].shape[1]
  spline = None
  if "num_bins" in meta:
    minima = [meta[name] for name in ("min_bin_width", "min_bin_height", "min_derivative")]
    assert minima == [1e-3] * 3  # what the layers have
    spline = {"num_bins": meta["num_bins"], "tail_bound": meta["tail_bound"]}
  options = {
    "width": meta["width"], "depth": meta["num_blocks"], "param_dtype": jnp.float64,
    "cond_dim": arrays["context"].shape[1] if "context" in arrays else None, "rngs": nnx.Rngs(0),
  }  # fmt: skip
  assert meta["activation"] == "relu"
  if "mask" in meta:
    order, num_conditioning = flows.mask_to_order(meta["mask"])
    options["num_conditioning"] = num_conditioning
    if spline is None:
      return flows.AffineCoupling(order, **options)
    return flows.RQSCoupling(order, **spline, **options)
  transform = None if spline is None else flows.RQSTransform(**spline)
  return flows.MaskedAutoregressive(dim, transform, residual=meta["residual"], **options)


def _ours(name):
  """Return where we keep a recorded parameter, as a path."""
  parts = name.split(".")[1:]
  leaf = {"weight": "kernel", "bias": "bias", "mask": "mask"}[parts[-1]]
  layer = {"initial_layer": ("first",), "final_layer": ("last",)}.get(parts[0])
  if layer is None:
    inner = {"context_layer": "gate", "linear": "linear0"}.get(parts[2]) or f"linear{parts[3]}"
    return ("network", "blocks", "blocks", inner, leaf), int(parts[1])
  return ("network", *layer, leaf), None


def _affine_columns(case, path, size):
  """Return the recorded column of each of ours: they put all shifts before all scales."""
  if not _is_affine_coupling(case) or path[1] != "last":
    return np.arange(size)
  return np.arange(size).reshape(2, -1)[::-1].T.ravel()


def _is_affine_coupling(case):
  meta = META["cases"][case]
  return "mask" in meta and "num_bins" not in meta


def _get(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _flow(case):
  arrays = CASES[case]
  bijector = _bijector(case)
  graphdef, params, rest = nnx.split(bijector, nnx.Param, ...)
  params = nnx.to_pure_dict(params)
  params = jax.tree.map(lambda v: np.full(v.shape, np.nan), params)
  names = [name.removeprefix("params/") for name in arrays if name.startswith("params/")]
  for name in names:
    path, block = _ours(name)
    columns = _affine_columns(case, path, arrays[f"params/{name}"].shape[-1])
    place = _get(params, path)
    place[... if block is None else block] = arrays[f"params/{name}"][..., columns]
  params = jax.tree.map(jnp.asarray, params)
  cond = jnp.asarray(arrays["context"]) if "context" in arrays else None

  def loss(params, x):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x, cond)
    return jnp.sum(z * arrays["g"]) + jnp.sum(log_det * arrays["g_log_det"]), (z, log_det)

  @jax.jit
  def run(params, x):
    (params_bar, dx), (z, log_det) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    x_from_z, inverse_log_det = nnx.merge(graphdef, params, rest).inverse(z, cond)
    results = {"z": z, "log_det": log_det, "dx": dx, "x_from_z": x_from_z}
    return results | {"inverse_log_det": inverse_log_det}, params_bar

  results, params_bar = run(params, jnp.asarray(arrays["x"]))
  for name in names:
    path, block = _ours(name)
    value = np.asarray(_get(params_bar, path)[... if block is None else block])
    columns = _affine_columns(case, path, value.shape[-1])
    results[f"dparams/{name}"] = value[..., np.argsort(columns)]
  for name in arrays:
    if name.endswith(".mask"):
      layer = bijector
      for part in _ours(name)[0][:-1]:
        layer = getattr(layer, part)
      results[name] = layer.mask().astype(np.float64)
  return results


@functools.cache
def _computed(case):
  return _spline(case) if "unnorm_widths" in CASES[case] else _flow(case)


def test_fixture_is_described():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_case_matches(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_alterations_are_noticed(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
