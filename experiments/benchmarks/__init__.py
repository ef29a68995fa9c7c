"""What `experiments.bench` measures: works by name, each with its peers and its exact answer."""

from experiments.benchmarks._norms import WORKS
from experiments.benchmarks._work import Peer, Work

__all__ = ["WORKS", "Peer", "Work"]
