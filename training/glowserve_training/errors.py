"""What goes wrong in training and is not a bug.

TrainingError
├── DataError      the data cannot be read, is too little, or does not fit
├── CheckpointError  a file is no checkpoint, or one that this version cannot read
├── RunError       a run directory holds something else than what was asked for
└── DivergedError  the loss is no longer finite
"""

from __future__ import annotations


class TrainingError(Exception):
    """A sentence that says what was wrong with which value, and what to do."""


class DataError(TrainingError):
    """The data cannot be read, is too little, or does not fit."""


class CheckpointError(TrainingError):
    """A file is no checkpoint, or one that this version cannot read."""


class RunError(TrainingError):
    """A run directory holds something else than what was asked for."""


class DivergedError(TrainingError):
    """The loss is no longer finite."""
