"""Exact rewrites of trained models that leave the function as it is."""

from normjax.convert._fold_norm import fold_norm, fold_norm_into

__all__ = ["fold_norm", "fold_norm_into"]
