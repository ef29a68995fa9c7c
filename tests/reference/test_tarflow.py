"""TarFlow against its authors' code: values, samples with guidance, denoising, every gradient."""

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

CASES, META = load_cases("tarflow")
RATE = 0.1  # of the prior's running variance, prose in the file
GIVEN = r"x|z_sample|denoise_sigma|params/.*|prior_z\d+"
LAYER = {
  "attention.norm.weight": "attention_norm.scale",
  "attention.norm.bias": "attention_norm.bias",
  "attention.qkv.weight": "qkv.kernel",
  "attention.qkv.bias": "qkv.bias",
  "attention.proj.weight": "attention_out.kernel",
  "attention.proj.bias": "attention_out.bias",
  "mlp.norm.weight": "mlp_norm.scale",
  "mlp.norm.bias": "mlp_norm.bias",
  "mlp.main.0.weight": "mlp_in.kernel",
  "mlp.main.0.bias": "mlp_in.bias",
  "mlp.main.2.weight": "mlp_out.kernel",
  "mlp.main.2.bias": "mlp_out.bias",
}
BLOCK = {
  "pos_embed": "posemb",
  "class_embed": "class_embedding",
  "proj_in.weight": "proj_in.kernel",
  "proj_in.bias": "proj_in.bias",
  "proj_out.weight": "proj_out.kernel",
  "proj_out.bias": "proj_out.bias",
}


class Layout:
  """The recorded arrays hold patches as (channel, row, column), ours as (row, column, channel)."""

  def __init__(self, meta):
    self.side, self.patch, self.channels = meta["img"], meta["ps"], meta["C"]
    self.grid = self.side // self.patch
    features = np.arange(self.patch**2 * self.channels)
    self.features = features.reshape(self.channels, self.patch, self.patch).transpose(1, 2, 0)
    self.features = self.features.ravel()  # entry j of ours is entry features[j] of theirs

  def images(self, tokens):
    x = tokens.reshape(-1, self.grid, self.grid, self.channels, self.patch, self.patch)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(-1, self.side, self.side, self.channels)

  def tokens(self, images):
    x = images.reshape(-1, self.grid, self.patch, self.grid, self.patch, self.channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(len(images), self.grid**2, -1)

  def order(self, name, size):
    """Return which axis of a parameter holds features, and their order, or None."""
    if name == "proj_in.weight":
      return 0, self.features
    if name.startswith("proj_out"):
      parts = size // len(self.features)
      return -1, np.concatenate([i * len(self.features) + self.features for i in range(parts)])
    return None


def _places(case):
  """Yield (recorded name, our path, index in our stack, axis and order of features)."""
  layout = Layout(META["cases"][case])
  for name, value in CASES[case].items():
    if match := re.fullmatch(r"params/blocks\.(\d+)\.attn_blocks\.(\d+)\.(.*)", name):
      path = f"transformer.layers.blocks.{LAYER[match[3]]}"
      yield name, path, (int(match[1]), int(match[2])), None
    elif match := re.fullmatch(r"params/blocks\.(\d+)\.(.*)", name):
      order = layout.order(match[2], value.shape[-1])
      yield name, BLOCK[match[2]], (int(match[1]),), order
    elif name == "params/var":
      np.testing.assert_array_equal(value, 1)  # the prior at the start
    else:
      assert not name.startswith("params/"), name


def _variables(state):
  layers = nnx.to_flat_state(state["blocks"]["layers"])
  return {".".join(map(str, path)): variable for path, variable in layers}


def _flow(case, depth=None):
  meta = META["cases"][case]
  return flows.TarFlow(
    (meta["img"], meta["img"], meta["C"]), depth=depth or meta["blocks"], head_dim=meta["head"],
    block_depth=meta["layers"], emb_dim=meta["ch"], patch_size=meta["ps"],
    num_classes=meta.get("ncls"), volume_preserving=not meta.get("nvp", True),
    param_dtype=jnp.float64, rngs=nnx.Rngs(0),
  )  # fmt: skip


def _loaded(case):
  """Return the parameters and the other Variables of the recorded model."""
  _, params, rest = nnx.split(nnx.eval_shape(lambda: _flow(case)), nnx.Param, ...)
  values = {path: np.full(v.shape, np.nan) for path, v in _variables(params).items()}
  for name, path, index, order in _places(case):
    value = CASES[case][name].astype(np.float64)
    value = value if order is None else np.take(value, order[1], axis=order[0])
    values[path][index] = value.reshape(values[path][index].shape)
  for path, variable in _variables(params).items():
    assert not np.any(np.isnan(values[path])), path
    variable.set_value(jnp.asarray(values[path]))
  # The orders of the tokens, compiled without the initial values, which nobody asks for.
  rest = jax.jit(lambda: nnx.split(_flow(case), nnx.Param, ...)[2])()
  return params, rest


def _recorded_gradients(case, gradient):
  """Give the gradient of our parameters the names and layouts of the recorded one."""
  ours, gradients = _variables(gradient), {}
  for name, path, index, order in _places(case):
    value = np.asarray(ours[path])[index]
    value = value if order is None else np.take(value, np.argsort(order[1]), axis=order[0])
    gradients[f"d{name}"] = value.reshape(CASES[case][name].shape)
  return gradients


def _prior_is_the_last(case):
  """Return whether all variances are one: the state was recorded by reference, and updated."""
  variances = [v for name, v in CASES[case].items() if name.startswith("prior_var")]
  return len(variances) > 1 and all(np.array_equal(v, variances[-1]) for v in variances)


@functools.cache
def _computed(case):
  meta = META["cases"][case]
  layout = Layout(meta)
  label = jnp.asarray(meta["y"]) if "y" in meta else None
  # Their sampling cannot leave a label out for a part of the batch: it was given these.
  drawn = None if label is None else jnp.maximum(label, 0)

  def merged(params, rest, depth=None):
    """Return the flow, or its first `depth` blocks."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: _flow(case, depth)))
    first = lambda v: v[: depth or meta["blocks"]]
    return nnx.merge(graphdef, jax.tree.map(first, params), jax.tree.map(first, rest))

  def loss(params, rest, x):
    z, log_det = merged(params, rest).forward(x, label)
    logdet_mean = log_det / z[0].size
    loss = 0.5 * jnp.mean(z**2) - jnp.mean(logdet_mean)
    return loss, {"z": layout.tokens(z), "log_det": log_det, "logdet_mean": logdet_mean}

  def run(params, rest, arrays):
    x = arrays["x"]
    gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    (value, results), (params_bar, dx) = gradient(params, rest, x)
    results |= {"loss": value, "dx": dx, "x_tokens": layout.tokens(x)}
    flow = merged(params, rest)
    z = layout.images(arrays["z_sample"])
    steps = [name for name in arrays if name.startswith("prior_z")]
    variance = jnp.ones(arrays["z_sample"].shape[1:])
    for t in range(len(steps)):
      variance = flows.tracked_variance(variance, arrays[f"prior_z{t}"], rate=RATE)
      results[f"prior_var{t}"] = variance
    if _prior_is_the_last(case):
      results |= {f"prior_var{t}": variance for t in range(len(steps))}
    if "x_sample_learned_prior" in arrays:
      assert drawn is None
      wide = layout.images(arrays["z_sample"] * jnp.sqrt(variance)[None])
      found, _ = flow.inverse(jnp.concatenate([z, wide]))
      results["x_sample"], results["x_sample_learned_prior"] = jnp.split(found, 2)
    else:
      results["x_sample"], _ = flow.inverse(z, drawn)
    for name in arrays:
      if name == f"block_out{meta['blocks'] - 1}":
        results[name] = results["z"]
      elif match := re.fullmatch(r"block_out(\d+)", name):
        output, _ = merged(params, rest, int(match[1]) + 1).forward(x, label)
        results[name] = layout.tokens(output)
      elif match := re.fullmatch(r"x_sample_guidance([\d.]+)_(\w+)", name):
        results[name], _ = flow.guided_inverse(
          z, drawn, guidance=float(match[1]), guide_what=match[2],
          annealed=meta.get("annealed", False), attention_temperature=meta.get("atemp", 1.0),
        )  # fmt: skip
    if "denoise_sigma" in arrays:
      density = flows.Flow(flow, flows.StandardNormal(flow.shape))
      results["x_denoised"] = flows.denoise(
        density, results["x_sample"], arrays["denoise_sigma"], drawn
      )
    return results, params_bar

  # Compiled without optimizations: tests run each program once.
  run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
  arrays = {k: jnp.asarray(v) for k, v in CASES[case].items() if "params/" not in k}
  results, params_bar = run(*_loaded(case), arrays)
  return results | _recorded_gradients(case, params_bar)


def _recorded(case):
  return {k: v for k, v in CASES[case].items() if not re.fullmatch(GIVEN, k)}


def test_every_case_is_described():
  assert_described(CASES, META)


@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_arrays(case):
  assert_case_matches(_computed(case), _recorded(case), case)


@pytest.mark.parametrize("case", CASES)
def test_notices_an_altered_array(case):
  assert_alterations_are_noticed(_computed(case), _recorded(case), case)
