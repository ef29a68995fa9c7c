"""Kernel couplings against an oracle written from the paper's equations."""

import functools
import re

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

CASES, META = load_cases("ferumal")
KERNELS = {"se": "squared_exponential"}  # the others have the file's names
OURS = {"aux_points": "points"}  # likewise
GIVEN = r"x|layer\d+/(?!d).*"  # no parameter's name starts with a d, as gradients' do


def _layer(arrays, kernel):
  mask = arrays["conditioner_mask"]
  order = np.argsort(1 - mask, kind="stable")  # features keep their order within the two parts
  layer = flows.KernelCoupling(
    order, int(mask.sum()), num_points=len(arrays["aux_points"]), kernel=kernel,
    param_dtype=jnp.float64, rngs=nnx.Rngs(0),
  )  # fmt: skip
  for name in [name for name in arrays if re.fullmatch("(?!d|conditioner).*", name)]:
    getattr(layer, OURS.get(name, name))[...] = jnp.asarray(arrays[name])
  return layer


@functools.cache
def _computed(case):
  arrays, meta = CASES[case], META["cases"][case]
  kernel = KERNELS.get(meta["kernel"], meta["kernel"])
  pick = lambda start: {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
  chain = flows.Chain([_layer(pick(f"layer{i}/"), kernel) for i in range(meta["layers"])])
  flow = flows.Flow(chain, flows.StandardNormal(arrays["x"].shape[1:]))
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)

  def loss(params, x):
    flow = nnx.merge(graphdef, params, rest)
    z, log_det = flow.bijector.forward(x)
    nll = -(flow.base.log_prob(z) + log_det)
    return jnp.mean(nll), {"z": z, "log_det": log_det, "nll": nll}

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (params_bar, dx), results = gradient(params, jnp.asarray(arrays["x"]))
  theirs = {ours: name for name, ours in OURS.items()}
  for i, layer in nnx.to_pure_dict(params_bar)["bijector"]["bijectors"].items():
    results |= {f"layer{i}/d{theirs.get(name, name)}": value for name, value in layer.items()}
  return results | {"dx": dx}


def _recorded(case):
  return {k: v for k, v in CASES[case].items() if not re.fullmatch(GIVEN, k)}


def test_the_file_describes_its_cases():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_arrays(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_notices_altered_arrays(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
