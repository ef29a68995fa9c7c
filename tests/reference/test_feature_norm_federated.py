"""Feature norm and federated averaging against recorded numbers.

Sources: the authors' normalization helpers, and a float64 torch loop for the averaging.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.fedavg import fedavg_round
from normjax import norms
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("feature_norm_federated")


def _feature_norm(case, meta):
  axes = tuple(range(1, case["x"].ndim))

  @jax.jit
  def run(x):
    y, vjp = jax.vjp(lambda x: norms.feature_norm(x, mode=meta["mode"], axis=axes), x)
    return {"y": y, "dx": vjp(case["g"])[0]}

  return run(case["x"])


def _fedavg(case, meta):
  def loss_fn(params, state, batch):
    h = jax.nn.relu(batch["x"] @ params["W1"] + params["b1"][None])
    f = norms.feature_norm(h) if meta["feature_norm"] else h
    losses = optax.softmax_cross_entropy_with_integer_labels(f @ params["W2"], batch["labels"])
    return jnp.mean(losses), state

  clients = {"x": case["x"], "labels": case["labels"]}
  num_clients, n = case["labels"].shape
  full = jnp.broadcast_to(jnp.arange(n), (num_clients, meta["local_steps"], n))

  @jax.jit
  def run_round(params):
    params, _, _ = fedavg_round(
      loss_fn,
      params,
      {},
      clients,
      full,
      learning_rate=meta["lr"],
      weights=case["client_weights"],
    )
    return params

  params = {name.split("/")[1]: v for name, v in case.items() if name.startswith("params/")}
  got = {}
  for r in range(meta["rounds"]):
    params = run_round(params)
    got |= {f"global{r}/{name}": v for name, v in params.items()}
  return got


KINDS = {"feature_norm": _feature_norm, "fedavg": _fedavg}


def _recorded(name):
  inputs = {"x", "g", "client_weights", "labels"}
  return {k: v for k, v in CASES[name].items() if k not in inputs and not k.startswith("params/")}


@functools.cache
def _compute(name):
  meta = META["cases"][name]
  return {k: np.asarray(v) for k, v in KINDS[meta["kind"]](CASES[name], meta).items()}


def test_every_case_is_described_and_every_described_case_is_there():
  assert_described(CASES, META)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recorded_array_matches(name):
  assert_case_matches(_compute(name), _recorded(name), name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(_compute(name), _recorded(name), name)
