"""The two-bin spline, conditional maps and the Mahalanobis score against the authors' code."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

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


class _Pointwise(nnx.Module):
  """The networks of the record: three linear maps of every pixel, with relu between them."""

  def __init__(self, arrays, net):
    for name, value in arrays.items():
      if name.startswith(f"{net}/"):
        setattr(self, name.split("/")[1], nnx.Param(jnp.asarray(value)))

  def __call__(self, h):
    for i in range(3):
      weight, bias = getattr(self, f"w{i}")[...], getattr(self, f"b{i}")[...]
      h = h @ weight + bias.reshape(1, 1, 1, -1)
      h = jax.nn.relu(h) if i < 2 else h
    return h


def _layer(arrays, transform):
  def part(kind, net):
    make_net = lambda in_features, out_features, *, rngs: _Pointwise(arrays, net)
    return kind(
      arrays["x"].shape[-1], transform, cond_features=arrays["cond"].shape[-1], make_net=make_net,
      rngs=nnx.Rngs(0),
    )  # fmt: skip

  parts = [part(flows.FeatureConditional, "feature_net"), part(flows.SelfConditional, "self_net")]
  graphdef, params, rest = nnx.split(flows.Chain(parts), nnx.Param, ...)

  def loss(x, params):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x, jnp.asarray(arrays["cond"]))
    return jnp.sum(z * arrays["g"]) + jnp.sum(log_det * arrays["g_log_det"]), (z, log_det)

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (dx, bars), (z, log_det) = gradient(jnp.asarray(arrays["x"]), params)
  bars = nnx.to_pure_dict(bars)["bijectors"]
  named = {
    f"d{net}/{name}": value
    for i, net in enumerate(("feature_net", "self_net"))
    for name, value in bars[i]["network"].items()
  }
  return {"z": z, "log_det": log_det, "dx": dx} | named


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
