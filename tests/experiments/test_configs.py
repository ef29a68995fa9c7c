import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import tasks
from experiments.configs import common
from normjax import checkpoint

FOLDER = Path(common.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "common"))


def get_config(name, *mode):
  return importlib.import_module(f"experiments.configs.{name}").get_config(*mode)


def test_all_experiments_are_here():
  assert {"jet_digits", "jet_fashion", "jet_imagenet64", "jet_patches"} <= set(NAMES)
  assert {"tarflow_digits", "tarflow_fashion", "tarflow_patches"} <= set(NAMES)
  assert {"classify_digits", "classify_fashion", "classify_fashion_m"} <= set(NAMES)
  assert {"glow_digits", "glow_fashion", "glow_patches"} <= set(NAMES)
  assert {"low_light_patches", "super_resolution_patches"} <= set(NAMES)
  assert {"inpaint_fashion", "inpaint_patches", "spade_digits", "table_magic"} <= set(NAMES)


@pytest.mark.parametrize("mode", ["", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_configs_have_the_common_keys_and_are_json(name, mode):
  config = get_config(name, mode)
  kind = getattr(common, f"{config.task}_config")
  reference = kind(config.flow) if config.task == "density" else kind()
  flat, expected = ({k for k, _ in flatten(c.to_dict())} for c in (config, reference))
  assert {k for k in flat if not k.startswith("data.options")} == expected - {"data.options"}
  json.dumps(config.to_dict())
  tiny = get_config(name, "tiny")
  assert tiny.total_steps <= 12
  assert config.eval_every <= config.total_steps
  assert config.eval.batch_size <= config.eval.examples


def flatten(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", NAMES)
def test_unknown_modes_are_refused(name):
  with pytest.raises(ValueError, match="mode must be empty or 'tiny', got 'small'"):
    get_config(name, "small")


@pytest.mark.parametrize("name", NAMES)
def test_configs_do_not_share_state(name):
  get_config(name).optimizer.lr = 7.0
  assert get_config(name).optimizer.lr != 7.0


@pytest.mark.parametrize("name", ["glow_digits", "jet_digits", "jet_imagenet64", "tarflow_digits"])
def test_full_models_can_be_built(name):
  config = get_config(name)
  if name == "jet_imagenet64":
    config.data = get_config(name, "tiny").data
  task = tasks.make(config)
  model = nnx.eval_shape(lambda: checkpoint.build(task.model, nnx.Rngs(0)))
  params = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert all(leaf.dtype == np.float32 for leaf in params)
  assert sum(leaf.size for leaf in params) > 10_000
