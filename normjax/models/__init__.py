"""Whole networks, assembled from the parts of normjax."""

from normjax.models._attentive_lstm import AttentiveLSTM

__all__ = ["AttentiveLSTM"]
