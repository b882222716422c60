"""How good a detector is: COCO average precision, the divergence of its two tasks, and pictures of both."""

from mgdet.evaluation.coco import Backend, CocoResult, DetectionArrays, coco_ap
from mgdet.evaluation.divergence import (
    CandidateBatch,
    DivergenceAccumulator,
    DivergenceConfig,
    DivergenceResult,
    Population,
    match_candidates,
    spearman_by_group,
)
from mgdet.evaluation.evaluator import EvaluationConfig, EvaluationResult, Evaluator

__all__ = [
    "Backend",
    "CandidateBatch",
    "CocoResult",
    "DetectionArrays",
    "DivergenceAccumulator",
    "DivergenceConfig",
    "DivergenceResult",
    "EvaluationConfig",
    "EvaluationResult",
    "Evaluator",
    "Population",
    "coco_ap",
    "match_candidates",
    "spearman_by_group",
]
