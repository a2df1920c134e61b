"""Times the ops beside what a user would call otherwise: `pyramid bench ops`, or python -m pyramid.ops.bench.

A case (one file of them a kind of op) makes one set of inputs, ours and its rivals; measure.py times them in turn;
report.py says what came out, in lines for people and in JSON.
"""

from pyramid.ops.bench import attention, bits, codes, levels
from pyramid.ops.bench.measure import KEYS, Case, Contest, Row, Skipped, rows_of, run
from pyramid.ops.bench.report import Report

OPS = (
    "nearest_code",
    "code_logsumexp",
    "bit_quantize",
    "joint_bit_entropy",
    "interval_attention",
    "level_resample",
    "pyramid_sum",
)


def default_cases(device: str = "cpu") -> list[Case]:
    """Every op, in the order of `OPS`; larger cases on CUDA."""
    return [*codes.cases(device), *bits.cases(device), *attention.cases(device), *levels.cases(device)]


__all__ = ["KEYS", "OPS", "Case", "Contest", "Report", "Row", "Skipped", "default_cases", "rows_of", "run"]
