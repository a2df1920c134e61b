"""The table of the compiled ops: one row per schema of the namespace `pyramid`, checked row by row in test_ops.py.

A new op needs a row in a file cases_<op>.py that is listed here, or test_coverage.py fails.
"""

from ops import (
    cases_bit_quantize,
    cases_code_logsumexp,
    cases_interval_attention,
    cases_joint_bit_entropy,
    cases_level_resample,
    cases_nearest_code,
    cases_pyramid_sum,
)
from ops.case import Op

OPS: tuple[Op, ...] = (
    *cases_nearest_code.OPS,
    *cases_bit_quantize.OPS,
    *cases_code_logsumexp.OPS,
    *cases_joint_bit_entropy.OPS,
    *cases_interval_attention.OPS,
    *cases_level_resample.OPS,
    *cases_pyramid_sum.OPS,
)
