"""Energy-based flows against the authors' code: energies, scores, losses and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.step import moving_average
from normjax import flows
from tests.reference.fixtures import (
  assert_alterations_are_noticed,
  assert_case_matches,
  assert_described,
  load_cases,
)

CASES, META = load_cases("ebflow")
FLOWS = sorted(META["cases"])
INPUTS = ("x", "params/", "layers.", "mask", "rademacher_v", "noise", "fd_", "contrastive_x_fake")


def _linear(weight, bias=None):
  size = weight.shape[0]
  zeros = nnx.initializers.zeros
  layer = flows.InvertibleLinear(
    size, bias_init=None if bias is None else zeros, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  layer.weight[...] = weight
  if layer.bias is not None:
    layer.bias[...] = bias
  return layer


def _network(network, arrays, rows, columns):
  """Set a coupling's network from layers 0, 2, ..., the last, with activations between them."""
  layers = sorted({int(name.split(".")[0]) for name in arrays})
  linear = [i for i in layers if f"{i}.weight" in arrays]
  first, *hidden, last = linear
  network.first.linear.kernel[...] = arrays[f"{first}.weight"][rows]
  network.first.linear.bias[...] = arrays[f"{first}.bias"]
  stack = lambda key: jnp.stack([arrays[f"{i}.{key}"] for i in hidden])
  network.hidden.blocks.linear.kernel[...] = stack("weight")
  network.hidden.blocks.linear.bias[...] = stack("bias")
  network.last.kernel[...] = arrays[f"{last}.weight"][:, columns]
  network.last.bias[...] = arrays[f"{last}.bias"][columns]
  if network.first.beta is not None:
    betas = [arrays[f"{i + 1}.beta"] for i in linear[:-1]]
    network.first.beta[...] = betas[0]
    network.hidden.blocks.beta[...] = jnp.stack(betas[1:])


def _under(params, prefix):
  return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def _coupling(mask, params, meta):
  # A 1 of theirs conditions, a 1 of ours is transformed.
  order, kept = flows.mask_to_order(1 - mask)
  s_net, t_net = _under(params, "s_net."), _under(params, "t_net.")
  count = sum(name.endswith("weight") for name in s_net)
  layer = flows.SmoothAffineCoupling(
    order, num_conditioning=kept, width=s_net["0.weight"].shape[1], depth=count - 1,
    shift_activation=meta["t_activation"], param_dtype=jnp.float64, rngs=nnx.Rngs(0),
  )  # fmt: skip
  for network, arrays in ((layer.scale, s_net), (layer.shift, t_net)):
    _network(network, arrays, order[:kept], order[kept:])
  return layer


def _act_norm(loc, scale):
  layer = flows.ActNorm(scale.shape[-1], param_dtype=jnp.float64)
  layer.log_scale[...] = jnp.log(scale[0])
  layer.shift[...] = (scale * loc)[0]
  return layer


def _flow(name, params):
  """Build the chain of a case from its meta; parameters may be traced."""
  arrays, meta = CASES[name], META["cases"][name]
  layers = []
  for i, kind in enumerate(meta["layers"]):
    own = _under(params, f"layers.{i}.")
    if kind == "linear":
      layers.append(_linear(own["linear_layer.weight"], own["linear_layer.bias"]))
    elif kind == "masked_linear":
      layers.append(_linear(own["weights"] * arrays[f"mask{i}"]))
    elif kind == "masked_coupling":
      layers.append(_coupling(arrays[f"layers.{i}.mask"], own, meta))
    elif kind == "actnorm":
      layers.append(_act_norm(own["loc"], own["scale"]))
    else:
      assert kind == "smooth_leaky_relu"
      layers.append(flows.SmoothLeakyReLU(meta["alpha"]))
  return flows.Flow(flows.Chain(layers), flows.StandardNormal(arrays["x"].shape[1:]))


def _losses(energy, arrays):
  x, v, epsilon = arrays["x"], arrays["fd_direction_times_eps"], arrays["fd_eps"]
  length = np.linalg.norm(v, axis=1)
  # A guard against division by zero makes their steps shorter than e by up to 2e-7 of it.
  one = lambda x, v, e: flows.finite_difference_score_matching(energy, x[None], v[None], e)[0]
  return {
    "ssm": flows.sliced_score_matching(energy, x, arrays["rademacher_v"][None]),
    "dsm": flows.denoising_score_matching(energy, x, arrays["noise"], float(arrays["noise_std"])),
    "fdssm": jax.vmap(one)(x, v, length) * (length / epsilon) ** 2,
    "contrastive": flows.contrastive_loss(energy, x, arrays["contrastive_x_fake"]),
  }


@functools.cache
def _compute(name):
  arrays = {k: jnp.asarray(v) for k, v in CASES[name].items()}
  x, dim = arrays["x"], arrays["x"].shape[1]
  params = _under(arrays, "params/")

  def losses(params):
    found = _losses(_flow(name, params).energy, CASES[name])
    means = {k: jnp.mean(v) for k, v in found.items()}
    return means, means

  @jax.jit
  def run(params):
    flow = _flow(name, params)
    z, log_det = flow.bijector.forward(x)
    varying = flow.bijector.forward_varying(x)[1]
    # The authors' constant is log(2 pi^(D/2)), which is a normal's for D = 2 only.
    constant = dim / 2 * jnp.log(2 * jnp.pi) - jnp.log(2 * jnp.pi ** (dim / 2))
    return (
      {
        "z": z,
        "full_log_det_exact": log_det,
        "neg_energy_logdet_part": varying,
        "neg_energy": -flow.energy(x) + constant,
        "score": flows.score(flow.energy, x),
        "score of log_prob": jax.grad(lambda x: flow.log_prob(x).sum())(x),
      },
      jax.jacrev(losses, has_aux=True)(params),
    )

  got, (gradients, values) = run(params)
  np.testing.assert_allclose(got.pop("score of log_prob"), got["score"], rtol=1e-11, atol=1e-11)
  for loss, value in values.items():
    got[f"{loss}_loss"] = value
    got |= {f"{loss}_dparams/{k}": v for k, v in gradients[loss].items()}
  return {k: np.asarray(v) for k, v in got.items()}


def _recorded(name):
  return {k: v for k, v in CASES[name].items() if not k.startswith(INPUTS)}


def _ema():
  arrays = CASES["ema"]
  decay = META["ema"]["decay"]
  mean, got = jnp.asarray(arrays["p0"]), {}
  for t in range(1, sum(name.startswith("shadow") for name in arrays) + 1):
    mean = moving_average(mean, arrays[f"p{t}"], decay, t)
    got[f"shadow{t}"] = np.asarray(mean)
  return got


def _map():
  arrays = CASES["map"]
  pixels = flows.dequantize(arrays["image_uint8"], arrays["u"])
  # Theirs squeezes by (p + c)(1 - 2 c), c = 1e-6, where `Logit(c)` has p (1 - 2 c) + c.
  preprocess = flows.Chain([
    flows.ElementwiseAffine(-1e-6, 1 / (1 - 2e-6)),
    flows.Logit(0.0),
    flows.ElementwiseAffine(0.0, float(arrays["alpha"])),
  ])  # fmt: skip
  y, log_det = preprocess.forward(pixels)
  return {"y": np.asarray(y), "log_det": np.asarray(log_det - pixels.shape[1] * np.log(256))}


COMPUTED = {name: functools.partial(_compute, name) for name in FLOWS}
COMPUTED |= {"ema": functools.cache(_ema), "map": functools.cache(_map)}
RECORDED = {name: functools.partial(_recorded, name) for name in FLOWS}
RECORDED["ema"] = lambda: {k: v for k, v in CASES["ema"].items() if k.startswith("shadow")}
RECORDED["map"] = lambda: {k: v for k, v in CASES["map"].items() if k in ("y", "log_det")}


def test_every_case_is_described():
  assert_described({k: v for k, v in CASES.items() if k not in ("ema", "map")}, META)


@pytest.mark.parametrize("name", sorted(COMPUTED))
def test_every_recorded_array_matches(name):
  assert_case_matches(COMPUTED[name](), RECORDED[name](), name)


@pytest.mark.parametrize("name", sorted(COMPUTED))
def test_every_altered_array_is_noticed(name):
  assert_alterations_are_noticed(COMPUTED[name](), RECORDED[name](), name)
