"""Save, restore and load training state: Orbax underneath, checked bit by bit, nothing unpickled.

A workdir holds `record.json` (which model, which config, which versions) and `checkpoints/STEP/`.
`Checkpointer` is what a training script uses; `load` gives the trained model back anywhere.
"""

from normjax.checkpoint._build import build
from normjax.checkpoint._checkpointer import Checkpointer
from normjax.checkpoint._load import load
from normjax.checkpoint._record import versions
from normjax.checkpoint._split import from_state, to_state

__all__ = ["Checkpointer", "build", "from_state", "load", "to_state", "versions"]
