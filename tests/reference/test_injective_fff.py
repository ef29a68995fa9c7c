"""The loss of free-form flows against its authors' code: values and gradients of both nets."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from normjax import flows
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("injective_fff")
GIVEN = r"x|v|beta|(encoder|decoder)/.*"


def _net(weights, x):
  """The recorded nets: tanh MLPs of one hidden layer."""
  hidden = jnp.tanh(x @ weights["w0"] + weights["b0"].reshape(1, -1))
  return hidden @ weights["w1"] + weights["b1"].reshape(1, -1)


@functools.cache
def _computed(case):
  arrays, meta = CASES[case], META["cases"][case]
  x, v = jnp.asarray(arrays["x"]), jnp.asarray(arrays["v"])
  assert v.shape == (len(x), meta["latent_dim"], meta["hutchinson_samples"])
  nets = tuple(
    {
      k.removeprefix(f"{net}/"): jnp.asarray(a)
      for k, a in arrays.items()
      if k.startswith(f"{net}/")
    }
    for net in ("encoder", "decoder")
  )

  def loss(nets, term):
    encode, decode = (functools.partial(_net, weights) for weights in nets)
    values, parts = flows.injective_loss(encode, decode, x, v, beta=meta["beta"])
    return jnp.mean(values if term == "loss" else parts["surrogate"]), (values, parts)

  @jax.jit
  def run(nets):
    gradients, (values, parts) = jax.grad(lambda n: loss(n, "loss"), has_aux=True)(nets)
    surrogate, _ = jax.grad(lambda n: loss(n, "surrogate"), has_aux=True)(nets)
    encode, decode = (functools.partial(_net, weights) for weights in nets)
    one = lambda net: jax.vmap(jax.jacfwd(lambda x: net(x[None])[0]))
    results = {
      "z": parts["z"], "x_rec": parts["reconstruction"], "surrogate": parts["surrogate"],
      "loss_per_sample": values, "jac_encoder": one(encode)(x),
      "jac_decoder": one(decode)(parts["z"]),
      "encoder_half_logdet": flows.encoder_log_volume(encode, x),
      "decoder_neg_half_logdet": -flows.decoder_log_volume(decode, parts["z"]),
    }  # fmt: skip
    # All d probes give the trace.
    d = v.shape[1]
    every = jnp.broadcast_to(d**0.5 * jnp.eye(d)[None], (len(x), d, d))
    results["trace_exact"] = flows.volume_surrogate(encode, decode, x, every)[0]
    return results, gradients, surrogate

  results, gradients, surrogate = run(nets)
  for net, gradient in zip(("encoder", "decoder"), gradients, strict=True):
    results |= {f"d{net}/{name}": value for name, value in gradient.items()}
  results |= {f"dsurrogate_encoder/{name}": value for name, value in surrogate[0].items()}
  assert not any(leaf.any() for leaf in surrogate[1].values())
  return results


def _recorded(case):
  return {k: a for k, a in CASES[case].items() if not re.fullmatch(GIVEN, k)}


def test_the_file_describes_its_cases():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_arrays(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_notices_altered_arrays(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
