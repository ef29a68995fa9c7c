"""Jet against its authors' code: values, samples, bits per dimension, every gradient."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from normjax import flows
from tests.reference.fixtures import altered, assert_matches, load_cases

CASES, META = load_cases("jet")
GIVEN = r"image_uint8|dequant_u|z_sample|context|params/.*"
RECORDED = [
  (case, name) for case, arrays in CASES.items() for name in arrays if not re.fullmatch(GIVEN, name)
]
GRADIENTS = [(case, name) for case, name in RECORDED if re.match("dx|dparams/", name)]
LEVELS = 127.5  # bins per unit of x in the authors' map of bytes to [-1, 1]


def _shape(case):
  return tuple(META["cases"][case][side] for side in ("H", "W", "C"))


def _params(case, fill=lambda value: value.astype(np.float64)):
  """Return the recorded parameter tree, flat, with `fill(value)` for every trainable array."""
  names = [name for name in CASES[case] if name.startswith("params/")]
  values = {name.removeprefix("params/"): CASES[case][name] for name in names}
  return {n: v if n.endswith("FREEZE_ME") else fill(v) for n, v in values.items()}


def _load(case, params, memory="store"):
  case = META["cases"][case] | {"shape": _shape(case)}
  return flows.jet_from_big_vision(
    params, case["shape"], patch_size=case["ps"], scale_factor=case["scale_factor"], memory=memory
  )


def _recorded_names(case, gradient):
  """Give the gradient of our parameters the names and layouts of the recorded tree."""
  # Numbered entries sent through the loader tell where it puts each entry of each array.
  count = itertools.count()
  number = lambda value: np.reshape([next(count) for _ in range(value.size)], value.shape)
  numbers = _params(case, lambda value: number(value).astype(np.float64))
  places = nnx.to_pure_dict(nnx.state(_load(case, numbers), nnx.Param))
  flat = np.full(next(count), np.nan)
  for place, value in zip(jax.tree.leaves(places), jax.tree.leaves(gradient), strict=True):
    flat[np.asarray(place).astype(int)] = value
  return {
    f"dparams/{name}": flat[value.astype(int)]
    for name, value in numbers.items()
    if not name.endswith("FREEZE_ME")
  }


@functools.cache
def _computed(case, memory):
  arrays = CASES[case]
  graphdef, params, rest = nnx.split(_load(case, _params(case), memory), nnx.Param, ...)
  noise = jnp.asarray(arrays["dequant_u"], jnp.float64)
  x = flows.dequantize(jnp.asarray(arrays["image_uint8"]), noise, levels=LEVELS, low=-1.0)
  context = arrays.get("context")
  base = flows.StandardNormal(x.shape[1:])

  def loss(params, x):
    jet = nnx.merge(graphdef, params, rest)
    z, log_det = jet.forward(x, context)
    bpd = flows.bits_per_dim(base.log_prob(z) + log_det, x.shape[1:], LEVELS)
    return jnp.mean(bpd), {"z": z, "log_det": log_det, "bpd_per_example": bpd}

  # Compiled without optimizations: tests run each program once.
  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
  def run(params, x, z_sample):
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (loss_bpd, results), (params_bar, dx) = gradient(params, x)
    if memory == "store":  # what is rebuilt for a gradient leaves the inverse as it is
      jet = nnx.merge(graphdef, params, rest)
      twice = None if context is None else jnp.concatenate([context, context])
      found, log_dets = jet.inverse(jnp.concatenate([results["z"], z_sample]), twice)
      x_from_z, x_sample = jnp.split(found, 2)
      inverse_log_det, x_sample_log_det = jnp.split(log_dets, 2)
      results |= {"x_from_z": x_from_z, "inverse_log_det": inverse_log_det}
      results |= {"x_sample": x_sample, "x_sample_log_det": x_sample_log_det}
    return results | {"loss_bpd": loss_bpd, "dx": dx}, params_bar

  # The recorded noise is rounded to float32, the recorded x is not.
  results, params_bar = run(params, jnp.asarray(arrays["x"]), jnp.asarray(arrays["z_sample"]))
  return results | {"x": x} | _recorded_names(case, nnx.to_pure_dict(params_bar))


def _compare(case, name, expected, memory="store"):
  actual = _computed(case, memory)[name]
  if name == "x":
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-10, err_msg=name)
  else:
    assert_matches(actual, expected, name)


@pytest.mark.parametrize(("case", "name"), RECORDED)
def test_matches_the_recorded_array(case, name):
  _compare(case, name, CASES[case][name])


@pytest.mark.parametrize(("case", "name"), GRADIENTS)
def test_rebuilt_activations_give_the_recorded_gradient(case, name):
  _compare(case, name, CASES[case][name], "reversible")


@pytest.mark.parametrize(("case", "name"), RECORDED)
def test_notices_an_altered_array(case, name):
  with pytest.raises(AssertionError, match=name):
    _compare(case, name, altered(CASES[case][name]))


@pytest.mark.parametrize("case", CASES)
def test_a_new_jet_has_the_recorded_couplings(case):
  meta = META["cases"][case]
  theirs = {
    "kinds": "kinds",
    "channels_coupling_projs": "channel_projections",
    "spatial_coupling_projs": "spatial_projections",
  }
  options = {ours: meta[name] for name, ours in theirs.items() if name in meta}

  @jax.jit
  def orders():  # compiled without the parameters, which nobody asks for
    jet = flows.Jet(
      _shape(case), depth=meta["depth"], block_depth=1, emb_dim=2, num_heads=1,
      patch_size=meta["ps"], rngs=nnx.Rngs(0), **options,
    )  # fmt: skip
    layers = jet.couplings.layers
    return layers.feature_order[...], layers.half_order[...]

  spatial = CASES[case]["params/spatial_coupling_masks-FREEZE_ME"]
  channel = CASES[case]["params/channel_coupling_masks-FREEZE_ME"]
  tokens = np.arange(2 * spatial.shape[1]).reshape(-1, 2)
  features = np.arange(channel.shape[1])
  for i, (feature_order, half_order) in enumerate(zip(*orders(), strict=True)):
    if np.any(spatial[i]):
      assert not np.any(channel[i])
      np.testing.assert_array_equal(feature_order, features)
      # t' = t S: token m of the result is the one in whose row column m has its one.
      np.testing.assert_array_equal(half_order, tokens[np.argmax(spatial[i], axis=0)].ravel())
    else:
      np.testing.assert_array_equal(np.sort(feature_order), features)
      np.testing.assert_array_equal(half_order, tokens.T.ravel())


def test_nested_and_flat_trees_are_the_same():
  case = next(iter(CASES))
  flat = _params(case)
  nested = traverse_util.unflatten_dict(flat, sep="/")
  for one, other in zip(
    jax.tree.leaves(nnx.state(_load(case, flat))),
    jax.tree.leaves(nnx.state(_load(case, nested))),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)


def test_wrong_trees_are_refused():
  case = next(iter(CASES))
  good = _params(case)
  without = lambda *parts: {k: v for k, v in good.items() if not any(p in k for p in parts)}
  with pytest.raises(ValueError, match="unknown entry 'couplings/dnn/head/bias'"):
    _load(case, good | {"couplings/dnn/head/bias": np.zeros(2)})
  with pytest.raises(ValueError, match="unknown entries.*final_norm/gain"):
    _load(case, good | {"couplings/dnn/vit/encoder_norm/gain": np.zeros(2)})
  with pytest.raises(ValueError, match=r"lacks \['posemb'\].*big_vision"):
    _load(case, without("posemb"))
  with pytest.raises(ValueError, match=r"lacks \['spatial'\]"):
    _load(case, without("spatial_coupling"))
  with pytest.raises(ValueError, match=r"lacks \['final_proj/bias'\]"):
    _load(case, without("final_proj/bias"))
  with pytest.raises(ValueError, match=r"must number the blocks 0, 1, \.\.\., got"):
    _load(case, {k.replace("encoderblock_0", "encoderblock_9"): v for k, v in good.items()})
  bias = "couplings/dnn/final_proj/bias"
  with pytest.raises(ValueError, match="final_proj/bias must have shape"):
    _load(case, good | {bias: good[bias][:, :-1]})
  meta = META["cases"][case]
  with pytest.raises(ValueError, match="must have shape"):
    flows.jet_from_big_vision(good, (meta["H"], 2 * meta["W"], meta["C"]), patch_size=meta["ps"])
