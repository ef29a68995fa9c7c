import importlib
from pathlib import Path

import pytest

from experiments import train
from experiments.configs import common
from tests.e2e import runs

FOLDER = Path(common.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*_*.py") if path.stem != "__init__")


# These differ from another experiment of their task in its data and sizes alone.
SIBLINGS = {
  "classify_fashion", "classify_fashion_m", "glow_fashion", "glow_patches", "inpaint_fashion",
  "jet_fashion", "jet_imagenet64", "jet_patches", "low_light_patches", "tarflow_fashion",
  "tarflow_patches",
}  # fmt: skip


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=pytest.mark.slow) if n in SIBLINGS else n for n in NAMES]
)
def test_tiny_modes_train(name, tmp_path):
  config = importlib.import_module(f"experiments.configs.{name}").get_config("tiny")
  config.update(total_steps=2, eval_every=2, save_every=2)
  workdir = tmp_path / "run"
  assert train.train(config, str(workdir))
  losses = runs.losses(workdir)
  assert len(losses) == 2
  # The squared error of an injective flow is a sum over pixels, times 10; that of a score on noise
  # of deviation 0.1 starts at 50.
  bound = {"injective_digits": 2000, "ebflow_conv_digits": 100}.get(name, 20)
  assert all(0 < loss < bound for loss in losses)
  metrics = dict.fromkeys(("ebflow", "glow", "jet", "low", "super", "tarflow"), "bits_per_dim")
  metrics |= {"classify": "error", "inpaint": "hole_mse", "spade": "l1", "table": "nats"}
  metrics |= {"injective": "squared_error"}
  metric = f"test_{metrics[name.split('_')[0]]}"
  assert runs.curve(workdir)[-1].keys() == {"step", metric}
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
