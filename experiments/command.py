"""Run a script from the command line, so that a user's mistake is one message and no traceback."""

import sys
import traceback
from collections.abc import Callable

from absl import app

from experiments import allocator


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
