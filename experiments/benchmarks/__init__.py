"""What `experiments.bench` measures: works by name, each with its peers and its exact answer."""

from experiments.benchmarks import _convolutions, _norms
from experiments.benchmarks._work import Peer, Work

WORKS = _norms.WORKS | _convolutions.WORKS

__all__ = ["WORKS", "Peer", "Work"]
