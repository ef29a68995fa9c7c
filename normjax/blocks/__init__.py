"""Residual blocks: where normalization stands in a residual branch."""

from normjax.blocks._attention import softmax_attention
from normjax.blocks._encoder_block import EncoderBlock
from normjax.blocks._repeat import Repeat

__all__ = ["EncoderBlock", "Repeat", "softmax_attention"]
