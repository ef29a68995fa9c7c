"""The memory allocator of CPU runs: large buffers are kept and not given back at every call.

glibc returns buffers over 32 MB to the system when they are freed, and XLA's CPU client pays their
page faults again in the next step: two to three times the time of a large norm. These settings are
read when a process starts, so a script that trains sets them and starts itself once more.
`NORMJAX_ALLOCATOR=default` leaves everything as it is.
"""

import importlib.metadata
import importlib.util
import os
import sys

POOLED = {
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "8589934592",
  "MALLOC_TOP_PAD_": "268435456",
}


def pool_on_cpu() -> None:
  """Start this process again with the pooled allocator, unless it has it or needs none."""
  if wanted(os.environ):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **POOLED})


def wanted(environ) -> bool:
  """Return whether a process with this environment shall be started again.

  Raises:
    ValueError: if `NORMJAX_ALLOCATOR` is neither "pooled" nor "default".
  """
  choice = environ.get("NORMJAX_ALLOCATOR", "pooled")
  if choice not in ("pooled", "default"):
    raise ValueError(f"NORMJAX_ALLOCATOR must be 'pooled' or 'default', got {choice!r}")
  # Settings of the user's own stay, and so does a process that was started again.
  untouched = not any(name in environ for name in POOLED)
  return choice == "pooled" and sys.platform == "linux" and untouched and _on_cpu(environ)


def _on_cpu(environ) -> bool:
  """Return whether JAX will run on CPU, without starting it: that must wait for the flags."""
  if chosen := environ.get("JAX_PLATFORMS"):
    return chosen == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
