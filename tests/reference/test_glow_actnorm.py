"""ActNorm, linear layers, the squeeze and a whole Glow against recorded numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("glow_actnorm")


def _loss(bijector, arrays, to_state):
  """Return forward's outputs and the gradients by `to_state`'s argument and by x.

  The loss is sum(z g) + sum(log_det g_log_det), with weights of 1 where no g_log_det is recorded.
  """
  graphdef, params, rest = nnx.split(bijector, nnx.Param, ...)

  def loss(recorded, x):
    nnx.replace_by_pure_dict(params, to_state(recorded))
    z, log_det = nnx.merge(graphdef, params, rest).forward(x)
    weights = arrays.get("g_log_det", np.ones(len(x)))
    return jnp.sum(z * arrays["g"]) + jnp.sum(log_det * weights), (z, log_det)

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def _act_norm(arrays, ddof, eps, note):
  x_init, x = jnp.asarray(arrays["x_init"]), jnp.asarray(arrays["x"])
  layer = flows.ActNorm(x.shape[-1], ddof=ddof, epsilon=eps, param_dtype=jnp.float64)
  layer = flows.init_from_data(layer, x_init)
  y_init, log_det_init = layer.forward(x_init)
  recorded = {"log_scale": layer.log_scale[...], "shift": layer.shift[...]}
  (bar, dx), (y, log_det) = _loss(layer, arrays, lambda recorded: recorded)(recorded, x)
  gradients = {f"d{name}": value for name, value in bar.items()}
  outputs = {"y_init": y_init, "log_det_init": log_det_init, "y": y, "log_det": log_det, "dx": dx}
  return outputs | recorded | gradients


def _act_norm_glow(arrays, eps, ddof, logscale_factor, note):
  x = jnp.asarray(arrays["x_init"])
  layer = flows.ActNorm(x.shape[-1], ddof=ddof, epsilon=eps, param_dtype=jnp.float64)
  layer = flows.init_from_data(layer, x)
  y, log_det = layer.forward(x)
  # y = (x + b) exp(factor logs)
  log_scale, shift = layer.log_scale[...], layer.shift[...]
  return {
    "b": shift * jnp.exp(-log_scale),
    "logs": log_scale / logscale_factor,
    "y_init": y,
    "log_det": log_det,
  }


def _dense(arrays, note):
  x = jnp.asarray(arrays["x"])
  layer = flows.InvertibleLinear(x.shape[-1], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  run = _loss(layer, arrays, lambda kernel: {"weight": kernel})
  (dkernel, dx), (z, log_det) = run(jnp.asarray(arrays["kernel"]), x)
  return {"z": z, "log_det": log_det, "dx": dx, "dkernel": dkernel}


def _lu(arrays, note):
  x = jnp.asarray(arrays["x"])
  layer = flows.LULinear(x.shape[-1], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  layer.order[...] = jnp.argmax(arrays["perm_matrix"], axis=0)
  layer.sign_s[...] = jnp.asarray(arrays["sign_s"])
  recorded = {name: jnp.asarray(arrays[name]) for name in ("lower", "upper", "log_s")}
  (bar, dx), (z, log_det) = _loss(layer, arrays, lambda recorded: recorded)(recorded, x)
  nnx.update(layer, recorded)
  gradients = {f"d{name}": value for name, value in bar.items()}
  return {"kernel": layer.kernel(x.dtype), "z": z, "log_det": log_det, "dx": dx} | gradients


def _lu_vectors(arrays, eps, note):
  x = jnp.asarray(arrays["x"])
  d = x.shape[-1]
  layer = flows.SoftplusLULinear(d, epsilon=eps, param_dtype=jnp.float64)
  recorded = {
    name.removeprefix("params/"): jnp.asarray(value)
    for name, value in arrays.items()
    if name.startswith("params/")
  }

  def to_state(recorded):
    zeros = jnp.zeros((d, d))
    return {
      "lower": zeros.at[np.tril_indices(d, -1)].set(recorded["lower_entries"]),
      "upper": zeros.at[np.triu_indices(d, 1)].set(recorded["upper_entries"]),
      "raw_diagonal": recorded["unconstrained_upper_diag"],
      "bias": recorded["bias"],
    }

  (bar, dx), (z, log_det) = _loss(layer, arrays, to_state)(recorded, x)
  gradients = {f"dparams/{name}": value for name, value in bar.items()}
  return {"z": z, "log_det": log_det, "dx": dx} | gradients


def _squeeze(arrays, factor, note):
  x = jnp.asarray(arrays["x"])
  orders = [name.removeprefix("y_") for name in arrays if name.startswith("y_")]
  return {f"y_{o}": flows.Squeeze(factor, order=o).forward(x)[0] for o in orders}


def _glow(arrays, num_levels, num_steps, width, bins, logscale_factor, note):
  shape = arrays["x"].shape[1:]
  glow = models.Glow(
    shape, num_levels=num_levels, num_steps=num_steps, width=width, convolution="1x1_dense",
    use_act_norm=False, rngs=nnx.Rngs(0),
  )  # fmt: skip
  graphdef, params, rest = nnx.split(glow, nnx.Param, ...)
  recorded = {
    name.removeprefix("params/"): jnp.asarray(value, jnp.float64)
    for name, value in arrays.items()
    if name.startswith("params/")
  }

  def conv(p, prefix, inner):
    leaf = {"kernel": p[f"{prefix}/kernel"], "bias": p[f"{prefix}/bias"]}
    leaf = {"conv": {"conv": leaf} if inner else leaf}
    return leaf | ({"logs": p[f"{prefix}/logs"]} if inner else {})

  def step(p, prefix):
    log_scale = logscale_factor * p[f"{prefix}/actnorm/logs"]
    return {
      0: {"log_scale": log_scale, "shift": p[f"{prefix}/actnorm/b"] * jnp.exp(log_scale)},
      1: {"weight": p[f"{prefix}/conv1x1/kernel"]},
      2: {
        "network": {
          "conv_0": conv(p, f"{prefix}/coupling/conv0", False),
          "conv_1": conv(p, f"{prefix}/coupling/conv1", False),
          "head": conv(p, f"{prefix}/coupling/conv2", True),
        }
      },
    }

  def to_state(p):
    levels, priors = {}, {}
    for i in range(num_levels):
      steps = [step(p, f"level{i}/step{j}") for j in range(num_steps)]
      levels[i] = {"layers": {"bijectors": jax.tree.map(lambda *v: jnp.stack(v), *steps)}}
      if i < num_levels - 1:
        priors[i] = {"conv": conv(p, f"level{i}/split", True)}
    top = {name: p[f"prior/{name}"] for name in ("bias", "logs")}
    return {"bijector": {"levels": levels, "priors": priors, "top": top}}

  x = flows.dequantize(
    jnp.asarray(arrays["image_uint8"]), jnp.asarray(arrays["u"]), levels=bins, low=-0.5
  )

  def loss(recorded, x):
    nnx.replace_by_pure_dict(params, to_state(recorded))
    glow = nnx.merge(graphdef, params, rest)
    bits = flows.bits_per_dim(glow.log_prob(x), shape, bins)
    return jnp.mean(bits), (bits, glow.bijector.forward(x)[0], glow.bijector.latents(x))

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  (value, (bits, eps, (latents, log_det, log_prior))), (bar, dx) = run(recorded, x)
  results = {
    "x": x, "log_det": log_det, "log_prior": log_prior, "bits_per_dim": bits, "loss": value,
    "dx": dx,
  }  # fmt: skip
  starts = np.cumsum([z[0].size for z in latents])[:-1]
  for i, (z, e) in enumerate(zip(latents, jnp.split(eps, starts, axis=1), strict=True)):
    results |= {f"z{i}": z, f"eps{i}": e.reshape(z.shape)}
  return results | {f"dparams/{name}": gradient for name, gradient in bar.items()}


# What the file gives, by the name of a case, and how to compute the rest of it.
INPUTS = r"x_init|g|g_log_det|params/.*|perm_matrix|lower|upper|log_s|sign_s|image_uint8|u"
COMPUTE = {
  r"actnorm\dd": (_act_norm, "x"),
  r"actnorm_glow": (_act_norm_glow, "x"),
  r"conv1x1_dense": (_dense, "x|kernel"),
  r"conv1x1_lu": (_lu, "x"),
  r"lu_linear": (_lu_vectors, "x"),
  r"squeeze": (_squeeze, "x"),
  r"glow": (_glow, ""),
}


def _entry(case):
  return next(entry for pattern, entry in COMPUTE.items() if re.fullmatch(pattern, case))


@functools.cache
def _computed(case):
  return _entry(case)[0](CASES[case], **META["cases"][case])


def _recorded(case):
  pattern = f"{INPUTS}|{_entry(case)[1]}"
  return {name: v for name, v in CASES[case].items() if not re.fullmatch(pattern, name)}


def test_cases_are_described():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_arrays(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_notices_altered_arrays(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
