"""CInC Flow: convolutions and quad-couplings, against the authors' code and an exact oracle."""

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

CASES, META = load_cases("cinc_flow")
INPUTS = {"x", "kernel", "bias", "g", "g_log_det", "z_sample", "block_kernel"}
CORNERS = {"z_TR": "top_right", "z_BL": "bottom_left", "z_BR": "bottom_right"}


def _is_input(array):
  return array in INPUTS or array.startswith("net")


def _with(layer, **values):
  """Return the arrays of a layer, each replaced by a given one: graphdef and params."""
  for name, value in values.items():
    assert getattr(layer, name).shape == value.shape
    getattr(layer, name)[...] = jnp.asarray(value)
  return nnx.split(layer, nnx.Param)


def _loss(graphdef, arrays):
  def loss(params, x):
    z, log_det = nnx.merge(graphdef, params).forward(x)
    total = jnp.sum(z * arrays["g"]) + jnp.sum(log_det * arrays["g_log_det"])
    return total, (z, log_det)

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _conv(arrays, meta):
  size = dict(kernel_size=meta["k"], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  layer = lambda **options: flows.CInCConv(meta["channels"], **size, **options)
  graphdef, params = _with(
    layer(), kernel=arrays["kernel"], bias=arrays["bias"].reshape(meta["channels"])
  )
  corners = {
    name: _with(layer(corner=corner, use_bias=False), kernel=arrays["kernel"])
    for name, corner in CORNERS.items()
  }
  block = _with(layer(tap="full", use_bias=False), kernel=arrays["block_kernel"])

  @jax.jit
  def run(params, x, z_sample):
    (_, (z, log_det)), (dparams, dx) = _loss(graphdef, arrays)(params, x)
    conv = nnx.merge(graphdef, params)
    got = {"z": z, "log_det": log_det, "dx": dx, "x_sample": conv.inverse(z_sample)[0]}
    got |= {f"d{name}": dparams[name][...] for name in ("kernel", "bias")}
    for name, (graph, state) in corners.items():
      got[name] = nnx.merge(graph, state).forward(x)[0]
    (_, (z, log_det)), (dparams, _) = _loss(block[0], arrays)(block[1], x)
    got |= {"block_z": z, "block_log_det": log_det, "block_dkernel": dparams["kernel"][...]}
    return got

  got = run(params, arrays["x"], arrays["z_sample"])
  ones = _with(layer(), kernel=jnp.ones(arrays["kernel"].shape))
  return got | {"mask": nnx.merge(*ones).effective_kernel()}


class _Net(nnx.Module):
  """The recorded conditioner: a relu network of one hidden layer on the channels."""

  def __init__(self, arrays):
    for name, value in arrays.items():
      setattr(self, name, nnx.Param(jnp.asarray(value)))

  def __call__(self, x):
    shift = lambda bias: bias[...].reshape(1, 1, 1, -1)
    hidden = jax.nn.relu(jnp.tensordot(x, self.w0[...], 1) + shift(self.b0))
    return jnp.tensordot(hidden, self.w1[...], 1) + shift(self.b1)


def _quad(arrays, meta):
  nets = []

  def make_net(in_features, out_features, *, rngs):
    prefix = f"net{len(nets) + 1}/"
    weights = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    assert weights["w0"].shape == (in_features, meta["width"])
    assert weights["w1"].shape == (meta["width"], out_features)
    nets.append(_Net(weights))
    return nets[-1]

  coupling = flows.QuadCoupling(meta["channels"], make_net, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(coupling, nnx.Param)

  @jax.jit
  def run(params, x):
    (_, (z, log_det)), (dparams, dx) = _loss(graphdef, arrays)(params, x)
    return {"z": z, "log_det": log_det, "dx": dx}, nnx.to_pure_dict(dparams)

  got, dparams = run(params, arrays["x"])
  for n, net in dparams["nets"].items():
    got |= {f"dnet{n + 1}/{name}": value for name, value in net.items()}
  return got


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  got = {"conv": _conv, "quad": _quad}[meta["kind"]](CASES[name], meta)
  return {k: np.asarray(v) for k, v in got.items()}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if not _is_input(k)}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
