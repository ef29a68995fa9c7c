"""Train an experiment, resume it, evaluate it: the one training loop.

  python -m experiments.train --config=experiments/configs/jet_digits.py --workdir=runs/jet_digits

Append `:tiny` to the config file for a run of seconds, `--config.KEY=VALUE` to change a value. Run
the same command again to resume. SIGTERM saves and exits with 143.
"""

import contextlib
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import command, data, evaluate, sample, sharding, tasks, workdirs
from experiments.metrics import MetricWriter, Progress
from experiments.optimizer import make_optimizer
from experiments.step import make_steps
from normjax import checkpoint

FLAGS = flags.FLAGS


@contextlib.contextmanager
def sigterm_sets(stop: threading.Event):
  """Let SIGTERM set `stop` instead of ending the process."""
  before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def check_numbers(config, held_out: int, devices: int) -> None:
  """Raise a ValueError where the loop would fail only after it has begun.

  Args:
    config: of the run.
    held_out: examples of the curve.
    devices: that share each batch.
  """
  for name in ("total_steps", "log_every", "eval_every", "save_every"):
    if config[name] < 1:
      raise ValueError(f"config.{name} must be at least 1, got {config[name]}")
  if config.batch_size % devices:
    raise ValueError(
      f"config.batch_size must be a multiple of the {devices} devices, got {config.batch_size}"
    )
  if min(config.eval.batch_size, held_out) < devices:
    raise ValueError(
      f"config.eval.batch_size and the held-out examples must be at least the {devices} devices, "
      f"got {config.eval.batch_size} and {held_out}"
    )


def train(config, workdir: str, mesh_string: str = "", distributed: bool = False) -> bool:
  """Train to the end or to SIGTERM; return whether the end was reached."""
  # -- Devices -----------------------------------------------------------------------------------
  if distributed:
    sharding.initialize()
  sharding.ensure_devices(mesh_string)
  mesh = sharding.make_mesh(mesh_string)
  batch_sharding, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)

  # -- Task: data, model, loss -------------------------------------------------------------------
  task = tasks.make(config)
  optimizer = make_optimizer(config.optimizer, config.total_steps)
  batches = data.batches(
    task.dataset.train, config.batch_size, config.seed,
    process_index=jax.process_index(), process_count=jax.process_count(),
  )  # fmt: skip
  logging.info("%s; %d devices", task.dataset.description, mesh.size)

  # -- State: shapes first, then values from a checkpoint or the seed ----------------------------
  steps = make_steps(task, optimizer, config.ema_decay)
  init = lambda: steps.init(config.seed)
  abstract = jax.eval_shape(init)
  shardings = sharding.state_shardings(abstract, mesh)
  train_step = jax.jit(
    steps.train, donate_argnums=0, in_shardings=(shardings, batch_sharding),
    out_shardings=(shardings, replicated),
  )  # fmt: skip
  mean_score = lambda *arguments: jnp.mean(steps.score(*arguments))
  evaluation_step = jax.jit(mean_score, out_shardings=replicated)
  held_out = task.evaluation_arrays(config.eval.examples)
  total = data.num_examples(held_out)
  check_numbers(config, total, mesh.size)
  size = min(config.eval.batch_size, total)
  size -= size % mesh.size
  # Only whole batches: one shape to compile, and the mean of means is the mean.
  whole = total - total % size
  held_out = {name: array[:whole] for name, array in held_out.items()}

  def held_out_score(state):
    passes = data.batches(
      held_out, size, shuffle=False, repeat=False,
      process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    put = [sharding.put_batch(b, batch_sharding) for b in passes]
    key = jax.random.key(config.seed + 1)
    scores = [evaluation_step(state, b, jax.random.fold_in(key, i)) for i, b in enumerate(put)]
    return float(np.mean([np.asarray(score) for score in scores]))

  record = {"model": task.model, "config": config.to_dict()}
  stop = threading.Event()
  with contextlib.ExitStack() as exits:
    if not distributed:
      # Among several processes JAX itself listens: see Checkpointer.reached_preemption.
      exits.enter_context(sigterm_sets(stop))
    if jax.process_index() == 0:
      exits.enter_context(workdirs.alone(workdir))
    checkpointer = exits.enter_context(
      checkpoint.Checkpointer(
        workdir, record, max_to_keep=config.keep, save_every=config.save_every
      )
    )
    if checkpointer.latest_step is None:
      state, start = jax.jit(init, out_shardings=shardings)(), 0
      if steps.start is not None:
        # Once, and from the same examples on every device: a run that resumes never comes here.
        from_data = jax.jit(
          steps.start, donate_argnums=0, in_shardings=(shardings, replicated),
          out_shardings=shardings,
        )  # fmt: skip
        state = from_data(state, tasks.spread(task.dataset.train, config.batch_size))
    else:
      wanted = sharding.with_shardings(abstract, shardings)
      state, start = checkpointer.restore(wanted, batches)
      logging.info("resumed at step %d of %d", start, config.total_steps)

    # -- Loop --------------------------------------------------------------------------------------
    writer = exits.enter_context(contextlib.closing(MetricWriter(workdir, start)))
    progress = exits.enter_context(contextlib.closing(Progress(config.total_steps, start)))
    pending = []  # (step, metrics) on the device, not looked at yet
    begin = time.monotonic()

    def look():
      """Fetch what is pending; stop at the first number that is not finite."""
      for step, metrics in jax.device_get(pending):
        for name, value in metrics.items():
          if not np.isfinite(value):
            # A state is known to be good once the loss of the step after it is finite: the update
            # that ruins a model is taken at a step whose own loss still is.
            good = [k for k in checkpointer.steps if k < step - 1]
            last = f"step {good[-1]} in {workdir}/checkpoints" if good else "none was saved"
            raise FloatingPointError(
              f"{name} is {value} at step {step}; last good checkpoint: {last}"
            )
      last = {k: float(v) for k, v in jax.device_get(pending[-1][1]).items()} if pending else {}
      pending.clear()
      return last

    step, ends = start, stop.is_set()
    while step < config.total_steps and not ends:
      batch = sharding.put_batch(next(batches), batch_sharding)
      state, metrics = train_step(state, batch)
      step += 1
      pending.append((step, metrics))
      final = step == config.total_steps
      if step % config.log_every == 0 or final:
        logged = look() | {"seconds": time.monotonic() - begin}
        writer.write(step, logged)
        progress.update(step, logged)
      if step % config.eval_every == 0 or final:
        score = {f"test_{task.metric}": held_out_score(state)}
        writer.write(step, score)
        progress.update(step, score)
      # Looked at once: a signal that comes later takes another step, so that none ends unsaved.
      ends = stop.is_set() or checkpointer.reached_preemption(step)
      if final or ends or checkpointer.should_save(step):
        look()
        checkpointer.save(step, state, batches, force=True)
  return step == config.total_steps


def main(argv):
  """Run an experiment to its end, then evaluate it and draw its pictures."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdir=DIR")
  config, workdir, distributed = FLAGS.config, FLAGS.workdir, FLAGS.distributed
  logging.set_verbosity(logging.INFO)
  if not train(config, workdir, FLAGS.mesh, distributed):
    print(f"Stopped early; run the same command to resume from {workdir}.")
    sys.exit(143)
  if distributed:
    print(f"Trained. Evaluate with: python -m experiments.evaluate --workdir={workdir}")
    return
  sample.run(workdir)
  evaluate.run(workdir)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", help_string="Experiment: file.py[:tiny].")
  command.define_path("workdir", None, "Where checkpoints, curves and pictures go.")
  flags.DEFINE_string("mesh", "", 'Devices: "data:8", "data:2,fsdp:4"; empty: one.')
  flags.DEFINE_bool("distributed", False, "Join the processes of several hosts.")
  flags.mark_flags_as_required(["config", "workdir"])
  command.run(main, trains=True)
