"""One error for every name that doesn't exist: it says which do, and which was probably meant."""

import difflib
from collections.abc import Iterable


def check_name(argument: str, name: str, known: Iterable[str]) -> None:
  """Raise a ValueError unless `name` is one of `known`.

  Args:
    argument: what the error calls the name.
    name: what came.
    known: what would be right.
  """
  known = list(known)
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}{hint}")
