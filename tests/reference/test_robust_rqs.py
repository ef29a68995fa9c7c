"""The two-bin spline, conditional maps and the Mahalanobis score against the authors' code."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from normjax import diagnostics, flows
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  load_cases,
)

CASES, META = load_cases("robust_rqs")
RAWS = ("raw_width", "raw_height", "raw_derivative")
GIVEN = r"x|cond|g|g_log_abs_det|g_log_det|raw_\w+|feature_net/.*|self_net/.*|train_features|query"
KINDS = {
  "layer_rq": flows.ModifiedRQSTransform(),
  "layer_affine": flows.ConditionalAffineTransform(),
  "layer_affine_reparam": flows.ConditionalAffineTransform(reciprocal=True),
}


def _recorded(case):
  return {name: v for name, v in CASES[case].items() if not re.fullmatch(GIVEN, name)}


def _spline(arrays, note):
  box = re.search(r"box \[-([\d.]+),", note)
  bound = float(box[1]) if box else 0.5
  raws = [jnp.asarray(arrays[name]) for name in RAWS]

  def loss(x, *raws):
    y, log_abs_det = flows.modified_spline(x, *raws, bound=bound)
    total = jnp.sum(y * arrays["g"]) + jnp.sum(log_abs_det * arrays["g_log_abs_det"])
    return total, (y, log_abs_det)

  @jax.jit
  def run(x, *raws):
    gradients, (y, log_abs_det) = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(x, *raws)
    inverse = flows.modified_spline_inverse(y, *raws, bound=bound)
    return y, log_abs_det, *gradients, *inverse

  names = ["y", "log_abs_det", "dx", *(f"d{name}" for name in RAWS)]
  names += ["inverse_x", "inverse_log_abs_det"]
  return dict(zip(names, run(jnp.asarray(arrays["x"]), *raws), strict=True))


def _network(weights, h):
  for i in range(3):
    h = h @ weights[f"w{i}"] + weights[f"b{i}"].reshape(1, 1, 1, -1)
    h = jax.nn.relu(h) if i < 2 else h
  return h


def _layer(arrays, transform):
  nets = {
    net: {name.split("/")[1]: jnp.asarray(v) for name, v in arrays.items() if name.startswith(net)}
    for net in ("feature_net", "self_net")
  }
  cond = jnp.asarray(arrays["cond"])

  def loss(x, nets):
    half = x.shape[-1] // 2
    raw = _network(nets["feature_net"], cond).reshape(*x.shape, transform.num_parameters)
    z, log_abs_det = transform.forward(x, raw)
    z1, z2 = z[..., :half], z[..., half:]
    raw = _network(nets["self_net"], jnp.concatenate([z1, cond], axis=-1))
    z2, step = transform.forward(z2, raw.reshape(*z2.shape, transform.num_parameters))
    log_det = jnp.sum(log_abs_det, axis=(1, 2, 3)) + jnp.sum(step, axis=(1, 2, 3))
    z = jnp.concatenate([z1, z2], axis=-1)
    return jnp.sum(z * arrays["g"]) + jnp.sum(log_det * arrays["g_log_det"]), (z, log_det)

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (dx, nets_bar), (z, log_det) = gradient(jnp.asarray(arrays["x"]), nets)
  bars = {f"d{net}/{name}": v for net, tree in nets_bar.items() for name, v in tree.items()}
  return {"z": z, "log_det": log_det, "dx": dx} | bars


@functools.cache
def _computed(case):
  arrays = CASES[case]
  if "raw_width" in arrays:
    return _spline(arrays, META["cases"][case])
  if "cond" in arrays:
    return _layer(arrays, KINDS[case])
  fit = diagnostics.fit_mahalanobis(jnp.asarray(arrays["train_features"]), ridge=0.0)
  score = diagnostics.mahalanobis_score(fit, jnp.asarray(arrays["query"]))
  return {"mean": fit.mean, "cov": fit.factor @ fit.factor.T, "score": score}


@pytest.mark.parametrize("case", CASES)
def test_case_matches(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_alterations_are_noticed(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
