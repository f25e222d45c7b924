"""Metrics of the quality of samples, for a fixed network and a fixed number of samples."""

from hf_ddpm.metrics.digits import DigitFeatures, DigitScore, digit_score, digit_statistics
from hf_ddpm.metrics.frechet import FeatureStatistics, StatisticsAccumulator, feature_statistics, frechet_distance
from hf_ddpm.metrics.inception_score import InceptionScore, InceptionScoreAccumulator
from hf_ddpm.metrics.kernel import KernelDistance, kernel_distance
from hf_ddpm.metrics.neighbours import (
    DensityCoverage,
    Memorisation,
    PrecisionRecall,
    density_coverage,
    memorisation,
    precision_recall,
)

__all__ = [
    "DensityCoverage",
    "DigitFeatures",
    "DigitScore",
    "FeatureStatistics",
    "InceptionScore",
    "InceptionScoreAccumulator",
    "KernelDistance",
    "Memorisation",
    "PrecisionRecall",
    "StatisticsAccumulator",
    "density_coverage",
    "digit_score",
    "digit_statistics",
    "feature_statistics",
    "frechet_distance",
    "kernel_distance",
    "memorisation",
    "precision_recall",
]
