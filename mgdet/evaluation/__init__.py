"""How good a detector is: COCO average precision, the divergence of its two tasks, and pictures of both."""

from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.candidates import match_candidates
from mgdet.evaluation.coco import coco_ap
from mgdet.evaluation.divergence import DivergenceAccumulator, DivergenceConfig
from mgdet.evaluation.evaluator import EvaluationConfig, Evaluator
from mgdet.evaluation.spearman import spearman_by_group
from mgdet.evaluation.voc import voc_ap

__all__ = [
    "DetectionArrays",
    "DivergenceAccumulator",
    "DivergenceConfig",
    "EvaluationConfig",
    "Evaluator",
    "coco_ap",
    "match_candidates",
    "spearman_by_group",
    "voc_ap",
]
