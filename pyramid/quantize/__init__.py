"""Quantizers: one file, one paper, one interface (base.py); level_stack.py makes a pyramid of them, whose levels
are combined as residual.py or average.py say."""

from pyramid.quantize.average import AveragePyramid
from pyramid.quantize.base import Quantized, Quantizer
from pyramid.quantize.bits import BitQuantizer
from pyramid.quantize.fsq import FSQQuantizer
from pyramid.quantize.level_stack import LevelConfig, PyramidQuantizer, QuantizedChunk
from pyramid.quantize.residual import ResidualPyramid
from pyramid.quantize.vq import VectorQuantizer
from pyramid.quantize.words import WordQuantizer

COMBINATIONS: dict[str, type[PyramidQuantizer]] = {"residual": ResidualPyramid, "average": AveragePyramid}

__all__ = [
    "COMBINATIONS",
    "AveragePyramid",
    "BitQuantizer",
    "FSQQuantizer",
    "LevelConfig",
    "Quantized",
    "PyramidQuantizer",
    "QuantizedChunk",
    "Quantizer",
    "ResidualPyramid",
    "VectorQuantizer",
    "WordQuantizer",
]
