"""The picture of a profile."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from normjax.diagnostics._profile import STATISTICS, Profile


def draw_profile(
  found: Profile | dict[str, Profile], path: str | Path, statistic: str = "rms"
) -> Path:
  """Draw one statistic of activations and gradients against the layer, on a logarithmic scale.

  Args:
    found: one profile, or several by their names, which the legend shows.
    path: the file to write; its ending chooses the format.
    statistic: a name in `STATISTICS`; its size is drawn.

  Returns:
    The path.

  Raises:
    ValueError: if there is no such statistic, or matplotlib is not installed.

  Example:
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax.diagnostics import profile
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
    >>> file = Path(tempfile.mkdtemp()) / "profile.png"
    >>> draw_profile(profile(model, jnp.ones((2, 4))), file).name
    'profile.png'
  """
  if statistic not in STATISTICS:
    raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
  if importlib.util.find_spec("matplotlib") is None:
    raise ValueError("path can only be drawn with matplotlib: pip install matplotlib")
  Figure = importlib.import_module("matplotlib.figure").Figure  # noqa: N806

  profiles = {"": found} if isinstance(found, Profile) else found
  longest = max(len(p.names) for p in profiles.values())
  figure = Figure(figsize=(max(6.0, 0.28 * longest + 2), 5.2), layout="constrained")
  axes: Any = figure.subplots(2, 1, sharex=True)
  for name, one in profiles.items():
    for axis, values in zip(axes, (one.activations, one.gradients), strict=True):
      axis.plot(range(len(one.names)), abs(values[statistic]), marker="o", markersize=3, label=name)
  for axis, what in zip(axes, ("output", "gradient of the loss"), strict=True):
    axis.set(yscale="log", ylabel=f"{statistic.replace('_', ' ')} of {what}")
    axis.grid(axis="y", color="0.93")
    axis.spines[["top", "right"]].set_visible(False)
  names = max((p.names for p in profiles.values()), key=len)
  axes[1].set_xticks(range(len(names)), names, rotation=90, fontsize=7)
  if len(profiles) > 1:
    axes[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
  figure.savefig(path, dpi=130)
  return Path(path)
