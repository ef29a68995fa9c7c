"""Assembled networks in which the norms of this library stand where their papers put them."""

from normjax.models._inpainting import InpaintingGenerator
from normjax.models._spade import FADEResBlock, SPADEGenerator, SPADEResBlock, TSITStage

__all__ = ["FADEResBlock", "InpaintingGenerator", "SPADEGenerator", "SPADEResBlock", "TSITStage"]
