"""Saving and resuming a training run."""

import operator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from normjax.checkpoint import _manifest, _record, _storage
from normjax.checkpoint._files import ListedPyTreeHandler


class Checkpointer:
  """Saves training state in a workdir and brings it back bit for bit.

  The state is one pytree of arrays, by convention a dict with `params`, `rest`, `opt`, `key`,
  `step` and perhaps `ema` (see `load`). Saves are asynchronous and atomic: a process killed at any
  moment leaves the last complete step as the newest. In a run of several processes every one of
  them makes every call.

  Args:
    directory: the workdir, local or of any kind that Orbax knows. New or empty, or one with the
      same record.
    record: `{"model": spec, "config": {...}}`, both JSON; see `build` for the spec. Versions are
      added.
    max_to_keep: how many steps to retain; None keeps all.
    save_every: `save` without `force` saves the multiples of this.

  Raises:
    ValueError: if the directory holds another experiment, or files but no record; nothing in it is
      touched. Other versions than recorded are only logged.

  Example:
    >>> import jax, jax.numpy as jnp, tempfile
    >>> from normjax import checkpoint
    >>> record = {"model": {"class": "normjax.norms.LayerNorm"}, "config": {"lr": 0.1}}
    >>> state = {"step": jnp.int32(3), "key": jax.random.key(0)}
    >>> with checkpoint.Checkpointer(tempfile.mkdtemp(), record, save_every=3) as checkpointer:
    ...   saved = checkpointer.save(3, state)
    ...   restored, step = checkpointer.restore(jax.eval_shape(lambda: state))
    >>> saved, step, int(restored["step"])
    (True, 3, 3)
  """

  def __init__(
    self,
    directory: epath.PathLike,
    record: dict[str, Any],
    *,
    max_to_keep: int | None = 3,
    save_every: int = 1000,
  ):
    if max_to_keep is not None and max_to_keep < 1:
      raise ValueError(f"max_to_keep must be at least 1 or None, got {max_to_keep}")
    if save_every < 1:
      raise ValueError(f"save_every must be at least 1, got {save_every}")
    _storage.quiet_orbax()
    self.directory = epath.Path(directory).expanduser().absolute()
    self.save_every = save_every
    _record.open_record(self.directory, record)
    self._root = self.directory / _storage.ROOT
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(_storage.STATE, ocp.args.PyTreeSave, ListedPyTreeHandler())
    registry.add(_storage.MANIFEST, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    self._manager = ocp.CheckpointManager(
      self._root,
      handler_registry=registry,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, cleanup_tmp_directories=True, save_root_metadata=False
      ),
    )

  @property
  def latest_step(self) -> int | None:
    """The newest saved step, or None."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """All saved steps, oldest first."""
    return sorted(self._manager.all_steps())

  def should_save(self, step: int) -> bool:
    """Return whether `save(step, ...)` would save without `force`."""
    return (step > 0 and step % self.save_every == 0) or self.reached_preemption(step)

  def reached_preemption(self, step: int) -> bool:
    """Return whether some process was told to end, at a step on which all processes agree.

    In a run of several processes JAX itself listens to SIGTERM, so install no handler there: it
    would replace JAX's. In a single process this is always False.
    """
    return self._manager.reached_preemption(step)

  def save(
    self, step: int, state: PyTree, data_iterator: Any = None, *, force: bool = False
  ) -> bool:
    """Save a step if it is due; returns before the files are written.

    Args:
      step: the number of finished steps.
      state: pytree of arrays, typed keys included. Its buffers may be donated afterwards.
      data_iterator: iterator of a grain dataset, or None.
      force: save whether or not the step is due.

    Returns:
      Whether a checkpoint was written. A step that is already there with the same contents (a
      resumed run) is not written again.

    Raises:
      ValueError: if the step is there with other contents, or newer ones are.
    """
    step = operator.index(step)
    if not (force or self.should_save(step)):
      return False
    manifest = _manifest.make_manifest(state, data_iterator)
    if step in self._manager.all_steps():
      self.wait()
      if _storage.read_manifest(self._root, step) == manifest:
        return False
      raise ValueError(
        f"step {step} in {self._root} already holds another state; it was not overwritten"
      )
    newest = self.latest_step
    if newest is not None and step < newest:
      raise ValueError(
        f"step {step} is older than step {newest} in {self._root}: nothing was saved"
      )
    args = {
      _storage.STATE: ocp.args.PyTreeSave(state),
      _storage.MANIFEST: ocp.args.JsonSave(manifest),
    }
    return self._manager.save(step, args=ocp.args.Composite(**args), force=True)

  def restore(
    self, abstract_state: PyTree, data_iterator: Any = None, step: int | None = None
  ) -> tuple[PyTree, int]:
    """Read a step back, verified leaf by leaf, onto the devices of the abstract state.

    Args:
      abstract_state: the state's tree with `jax.ShapeDtypeStruct` leaves; their shardings may
        differ from those of the save. Leaves without one go to the first device.
      data_iterator: iterator to be set to where it was, or None.
      step: which step; the newest if None.

    Returns:
      `(state, step)`.

    Raises:
      ValueError: if there is no such step; if its tree is another one (every differing leaf is
        named); if anything in it is missing, unreadable or changed (the steps that are intact are
        named). Nothing is changed or deleted, and no other step is restored instead.
    """
    self.wait()
    step = _storage.choose_step(self._root, step)
    state, manifest = _storage.read(self._root, step, lambda _: abstract_state)
    if data_iterator is not None:
      states = manifest["data"] or []
      if len(states) != jax.process_count():
        raise ValueError(
          f"the checkpoint of step {step} in {self._root} has the data positions of {len(states)} "
          f"processes, this run has {jax.process_count()}"
        )
      data_iterator.set_state(states[jax.process_index()])
    return state, step

  def wait(self) -> None:
    """Block until every save so far is on disk; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait, then release threads and files."""
    self._manager.close()

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_) -> None:
    self.close()
