"""What `experiments.bench` measures: works by name, each with its peers and its exact answer."""

from experiments.benchmarks import _authors, _convolutions, _flows, _image_flows, _norms
from experiments.benchmarks._work import Peer, Work

WORKS: dict[str, Work] = {
  **_norms.WORKS,
  **_authors.WORKS,
  **_convolutions.WORKS,
  **_flows.WORKS,
  **_image_flows.WORKS,
}

__all__ = ["WORKS", "Peer", "Work"]
