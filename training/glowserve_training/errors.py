"""The errors of training that a user can cause or must act on.

TrainingError
├── DataError              the images cannot be read, are too few, or do not fit on the disk
│   ├── HeldOutError       the images that were held out in training are no longer there
│   └── TooFewImagesError  too few of them can be read for each of the splits
├── CheckpointError        a file is not a checkpoint, or not one that this version can read
├── RunError               a run directory cannot be used or written
└── DivergedError          training diverged and lower learning rates did not help
"""

from __future__ import annotations


class TrainingError(Exception):
    """A sentence that names the wrong value and says what to do."""


class DataError(TrainingError):
    """The images cannot be read, are too few, or do not fit on the disk."""


class HeldOutError(DataError):
    """The images that were held out in training are no longer there."""


class TooFewImagesError(DataError):
    """A source has too few images that can be read for each of its splits."""


class CheckpointError(TrainingError):
    """A file is not a checkpoint, or not one that this version can read."""


class RunError(TrainingError):
    """A run directory cannot be used or written."""


class DivergedError(TrainingError):
    """Training diverged and lower learning rates did not help."""
