"""Run a script from the command line, so that a user's mistake is one message and no traceback."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags

from experiments import allocator

N = TypeVar("N", int, float)


class _PathParser(flags.ArgumentParser):
  """Takes ~ for the home folder: shells leave it as it is in --out=~/x."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help_string: str) -> None:
  """Define a flag that names a file or a folder."""
  flags.DEFINE(_PathParser(), name, default, help_string, serializer=flags.ArgumentSerializer())


def numbers(name: str, texts: Sequence[str], kind: type[N]) -> list[N]:
  """Return the numbers of a list flag.

  Raises:
    ValueError: if one is no number of that kind.
  """
  try:
    return [kind(text) for text in texts]
  except ValueError:
    what = "whole numbers like 1,16" if kind is int else "numbers like 0.7,1.0"
    raise ValueError(f"--{name} must be {what}, got {','.join(texts)!r}") from None


def seeds(texts: Sequence[str]) -> list[int]:
  """Return the seeds of a flag --seeds.

  Raises:
    ValueError: if there is none, or one is no number.
  """
  if not texts or not all(seed.isdecimal() for seed in texts):
    raise ValueError(f"--seeds must be numbers like 0,1,2, got {','.join(texts)!r}")
  return [int(seed) for seed in texts]


def run(main: Callable[[list[str]], None], *, trains: bool = False) -> None:
  """Parse the flags, call `main(argv)` and exit; the code is 2 after a message of ours.

  Errors that this project did not raise itself keep their traceback: they are its mistakes. On CPU
  a script that trains starts once more with another memory allocator: see `experiments.allocator`.
  """
  try:
    if trains:
      allocator.pool_on_cpu()
    app.run(main, flags_parser=_parse)
  except (ValueError, FloatingPointError) as error:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"].split(".")[0] not in ("normjax", "experiments", "__main__"):
      raise
    _fail(str(error))
  except OSError as error:
    _fail(str(error))


def _parse(argv: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    # ml_collections wraps the KeyError that names the nearest key.
    if not isinstance(error.args[0], KeyError):
      raise
    _fail("--config has no key " + "; ".join(error.args[0].args[0].splitlines()))


def _fail(message: str):
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)
