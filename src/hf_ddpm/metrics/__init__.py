"""How good samples are, in numbers whose network and sample count are fixed."""

from hf_ddpm.metrics.digits import (
    DigitFeatures,
    DigitScore,
    DigitStatistics,
    digit_score,
    digit_statistics,
    frechet_distance,
)

__all__ = ["DigitFeatures", "DigitScore", "DigitStatistics", "digit_score", "digit_statistics", "frechet_distance"]
