"""The table of all bijectors: `ROWS` of every module here, one module per family."""

import importlib
import pkgutil

from tests.contracts.bijectors._row import BATCH, Row, real

ROWS: dict[str, Row] = {}
for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
  ROWS |= importlib.import_module(f"{__name__}.{_module}").ROWS

__all__ = ["BATCH", "ROWS", "Row", "real"]
