"""The scores of images: the table of what each number means, and how they are computed."""

from glowserve.scores.asked import MAX_IMPORTANCE_SAMPLES, NOTHING_ELSE, Asked
from glowserve.scores.calibration import Calibration
from glowserve.scores.results import Scores
from glowserve.scores.scorer import ForwardOutput, Likelihoods, Scorer
from glowserve.scores.table import COLUMNS, TABLE, Needs, Score
from glowserve.scores.usual_parts import Part, UsualParts

__all__ = [
    "COLUMNS",
    "MAX_IMPORTANCE_SAMPLES",
    "NOTHING_ELSE",
    "TABLE",
    "Asked",
    "Calibration",
    "ForwardOutput",
    "Likelihoods",
    "Needs",
    "Part",
    "Score",
    "Scorer",
    "Scores",
    "UsualParts",
]
