"""A trained model from a workdir, in one line and without the training code."""

from typing import Any

import jax
from etils import epath
from flax import nnx

from normjax.checkpoint import _record, _storage
from normjax.checkpoint._build import build
from normjax.checkpoint._split import from_state, to_state

_WEIGHTS = ("ema", "params")


def load(
  path: epath.PathLike,
  step: int | None = None,
  *,
  weights: str | None = None,
  sharding: jax.sharding.Sharding | None = None,
) -> Any:
  """Return the trained model of a workdir.

  Builds the model that the workdir's record describes, without computing its initial values, and
  reads only its parameters and other Variables (no optimizer state), verified leaf by leaf.

  Args:
    path: a workdir that a `Checkpointer` wrote.
    step: which checkpoint; the newest if None.
    weights: "params", or "ema" for their running mean; None takes the mean if there is one.
    sharding: where every array goes; the first device if None.

  Returns:
    The model, an `nnx.Module` as its constructor makes it (in particular in training mode where it
    has modes).

  Raises:
    ValueError: if there is no such workdir or step, the record names what normjax does not have,
      or the checkpoint is damaged or of another tree.

  Example:
    >>> import tempfile
    >>> from flax import nnx
    >>> from normjax import checkpoint
    >>> spec = {"class": "normjax.norms.LayerNorm", "kwargs": {"num_features": 2}}
    >>> workdir = tempfile.mkdtemp()
    >>> _, params, rest = checkpoint.to_state(checkpoint.build(spec, nnx.Rngs(0)))
    >>> with checkpoint.Checkpointer(workdir, {"model": spec, "config": {}}) as checkpointer:
    ...   _ = checkpointer.save(1, {"params": params, "rest": rest}, force=True)
    >>> checkpoint.load(workdir).scale.shape
    (2,)
  """
  if weights not in (None, *_WEIGHTS):
    raise ValueError(f"weights must be one of {_WEIGHTS} or None, got {weights!r}")
  _storage.quiet_orbax()
  directory = epath.Path(path).expanduser().absolute()
  record = _record.read_record(directory)
  root = directory / _storage.ROOT
  step = _storage.choose_step(root, step)

  structure = []

  def init():
    graphdef, params, rest = to_state(build(record["model"], nnx.Rngs(0)))
    structure.append(graphdef)
    return params, rest

  params, rest = jax.eval_shape(init)

  def wanted(leaves):
    name = weights or ("ema" if any(leaf.startswith("ema/") for leaf in leaves) else "params")
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      {name: params, "rest": rest},
    )

  state, _ = _storage.read(root, step, wanted, partial=True)
  return from_state(structure[0], state.get("ema", state.get("params")), state["rest"])
