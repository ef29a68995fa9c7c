"""Emerging and periodic convolutions against the authors' code and an exact oracle."""

import fnmatch
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
  load_cases,
)

CASES, META = load_cases("emerging")
INPUTS = {"x", "kernel", "kernel1", "kernel2", "bias", "g", "g_log_det"}


def _crop(kernel, name):
  """Return the taps that the layer keeps of a masked (k, k) kernel, in its orientation."""
  size = kernel.shape[0] // 2 + 1
  return kernel[::-1, ::-1][:size, :size] if name == "kernel1" else kernel[:size, :size]


def _uncrop(kept, name):
  """Undo `_crop`, with zeros for the other taps."""
  size = kept.shape[0] - 1
  kernel = jnp.pad(kept, ((0, size), (0, size), (0, 0), (0, 0)))
  return kernel[::-1, ::-1] if name == "kernel1" else kernel


def _run(arrays, graphdef, params):
  def loss(params, x):
    z, log_det = nnx.merge(graphdef, params).forward(x)
    total = jnp.sum(z * arrays["g"]) + jnp.sum(log_det * arrays["g_log_det"])
    return total, (z, log_det)

  @jax.jit
  def run(params, x, z):
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, (there, log_det)), (dparams, dx) = gradient(params, x)
    back, back_log_det = nnx.merge(graphdef, params).inverse(z)
    return {"z": there, "log_det": log_det, "dx": dx}, dparams, back, back_log_det

  got, dparams, back, back_log_det = run(params, arrays["x"], arrays["z"])
  np.testing.assert_allclose(back, arrays["x"], rtol=0, atol=1e-9)
  np.testing.assert_allclose(back_log_det, -arrays["log_det"], rtol=1e-9)
  return got, {f"d{name}": value for name, value in nnx.to_pure_dict(dparams).items()}


def _emerging(arrays):
  k, _, c, _ = arrays["kernel1"].shape
  layer = flows.EmergingConv(c, kernel_size=k, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  names = ("kernel1", "kernel2")
  for name in names:
    getattr(layer, name)[...] = jnp.asarray(_crop(arrays[name], name))
  layer.bias[...] = jnp.asarray(arrays["bias"]).reshape(c)
  got, gradients = _run(arrays, *nnx.split(layer, nnx.Param))
  for name in names:
    got[f"d{name}"] = _uncrop(gradients.pop(f"d{name}"), name)
  # What is halfway back: the second convolution undone.
  z = jnp.asarray(arrays["z"] - arrays["bias"].reshape(1, 1, 1, c))
  got["mid_from_z"] = jax.jit(flows.causal_conv_inverse)(z, layer.effective_kernels()[1])
  for name in names:
    getattr(layer, name)[...] = jnp.ones_like(getattr(layer, name)[...])
  for n, kernel in enumerate(layer.effective_kernels(), 1):
    got[f"mask{n}"] = _uncrop(kernel, f"kernel{n}")
  return got | gradients


def _periodic(arrays):
  k, _, c, _ = arrays["kernel"].shape
  layer = flows.PeriodicConv(c, kernel_size=k, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  layer.kernel[...] = jnp.asarray(arrays["kernel"])
  layer.bias[...] = jnp.asarray(arrays["bias"]).reshape(c)
  got, gradients = _run(arrays, *nnx.split(layer, nnx.Param))
  return got | gradients


@functools.cache
def _compute(name):
  kind = next(kind for kind in META["cases"] if fnmatch.fnmatch(name, kind))
  got = {"emerging*": _emerging, "periodic*": _periodic}[kind](CASES[name])
  return {k: np.asarray(v) for k, v in got.items()}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if k not in INPUTS}


def test_every_kind_of_case_is_there():
  assert all(fnmatch.filter(CASES, kind) for kind in META["cases"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
