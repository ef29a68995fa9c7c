"""Densities, pixel conventions, toy energies and reversible gradients against recorded numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from normjax import flows
from tests.flows.affine_coupling import AffineCoupling, alternating_orders
from tests.reference.fixtures import altered, assert_matches, load_cases

CASES, _ = load_cases("flow_training")

# Recorded bits/dim -> (recorded pixels, levels, low): the conventions are prose in the file.
CONVENTIONS = {
  "unit_interval": ("x_unit", 256.0, 0.0),
  "pm1_scaled_255": ("x_pm1", 127.5, -1.0),
  "pm1_scaled_256": ("x_pm1_256", 128.0, -1.0),
}
BASES = {
  "normal": lambda shape: flows.DiagonalNormal(shape, param_dtype="float64"),
  "logistic": lambda shape: flows.Logistic(shape, trainable=True, param_dtype="float64"),
  "laplace": lambda shape: flows.Laplace(shape, trainable=True, param_dtype="float64"),
  "student_t": lambda shape, nu: flows.StudentT(
    shape, nu=nu, trainable=True, param_dtype="float64"
  ),
}


def _potentials(arrays):
  z = jnp.asarray(arrays["z"])
  return {name: flows.POTENTIALS[name](z) for name in arrays if name != "z"}


def _bits_per_dim(bijector, x, levels):
  flow = flows.Flow(bijector, flows.StandardNormal(x.shape[1:]))
  return flows.bits_per_dim(flow.log_prob(x), x.shape[1:], levels)


def _bpd(arrays):
  image, noise = jnp.asarray(arrays["image_uint8"]), jnp.asarray(arrays["u"])
  results = {}
  for name, (pixels, levels, low) in CONVENTIONS.items():
    x = flows.dequantize(image, noise, levels=levels, low=low)
    results |= {pixels: x, name: _bits_per_dim(flows.Chain([]), x, levels)}
  return results


def _logit(arrays):
  # The recorded map starts from the images and the noise of the bits/dim case.
  x = flows.dequantize(jnp.asarray(CASES["bpd"]["image_uint8"]), jnp.asarray(CASES["bpd"]["u"]))
  bijector = flows.Logit(float(arrays["alpha"]))
  y, log_det = bijector.forward(x)
  bpd = _bits_per_dim(bijector, x, 256.0)
  return {"y": y, "log_det_unit_to_logit": log_det, "bpd": bpd}


def _reversible(arrays, memory):
  x, g, g_log_det = (jnp.asarray(arrays[name]) for name in ("x", "g", "g_log_det"))
  # `layer<i>/<weight>` and `layer<i>/d<weight>`, stacked over the layers.
  length = 1 + max(int(name[5:].split("/")[0]) for name in arrays if name.startswith("layer"))
  weights = [name.split("/")[1] for name in arrays if name.startswith("layer0/d")]
  weights = [name.removeprefix("d") for name in weights]
  stack = lambda name: jnp.stack([arrays[f"layer{i}/{name}"] for i in range(length)])
  orders = alternating_orders(x.shape[1], length)
  scan = flows.Scan(
    lambda rngs, xs: AffineCoupling(xs[0], **xs[1]),
    length,
    (orders, {name: stack(name) for name in weights}),
    memory=memory,
    rngs=nnx.Rngs(0),
  )
  graphdef, params, rest = nnx.split(scan, nnx.Param, ...)

  def loss(params, x):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x)
    return jnp.sum(z * g) + jnp.sum(log_det * g_log_det), (z, log_det)

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (params_bar, dx), (z, log_det) = gradients(params, x)
  results = {"z": z, "log_det": log_det, "dx": dx}
  for name, gradient in nnx.to_pure_dict(params_bar)["layers"].items():
    results |= {f"layer{i}/d{name}": gradient[i] for i in range(length)}
  return results


def _base(arrays):
  x = jnp.asarray(arrays["x"])
  results = {}
  for name in arrays.keys() - {"x", "loc", "log_scale"}:
    law, nu = re.fullmatch(r"(.*?)([\d.]*)", name).groups()
    base = BASES[law](x.shape[1:], *([float(nu)] if nu else []))
    base.loc[...], base.log_scale[...] = (
      jnp.asarray(arrays["loc"]),
      jnp.asarray(arrays["log_scale"]),
    )
    results[name] = base.log_prob(x)
  return results


# What the file gives and how to compute the rest of it.
INPUTS = {
  "potentials": r"z",
  "bpd": r"image_uint8|u",
  "logit": r"alpha",
  "reversible": r"x|g|g_log_det|layer\d+/[wb]\d",
  "base": r"x|loc|log_scale",
}
COMPUTE = {
  "potentials": _potentials,
  "bpd": _bpd,
  "logit": _logit,
  "reversible": functools.partial(_reversible, memory="reversible"),
  "base": _base,
}


@functools.cache
def _computed(case):
  return COMPUTE[case](CASES[case])


RECORDED = [
  (case, name)
  for case, arrays in CASES.items()
  for name in arrays
  if not re.fullmatch(INPUTS.get(case, ""), name)
]


@pytest.mark.parametrize(("case", "name"), RECORDED)
def test_matches_the_recorded_array(case, name):
  assert_matches(_computed(case)[name], CASES[case][name], f"{case}/{name}")


@pytest.mark.parametrize(("case", "name"), RECORDED)
def test_notices_an_altered_array(case, name):
  with pytest.raises(AssertionError, match=name):
    assert_matches(_computed(case)[name], altered(CASES[case][name]), name)


@pytest.mark.parametrize("memory", ["store", "remat"])
def test_stored_activations_give_the_recorded_gradients(memory):
  for name, actual in _reversible(CASES["reversible"], memory).items():
    assert_matches(actual, CASES["reversible"][name], f"{memory}: {name}")
