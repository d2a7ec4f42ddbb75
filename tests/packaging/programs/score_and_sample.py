"""A client, or a bundle opened in this process, where some packages cannot be imported.

Prints the bits per dimension of the images, and three samples, as JSON.

Usage: score_and_sample.py PACKAGE,PACKAGE,... HOST:PORT|REPOSITORY/MODEL IMAGES.npy
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from refused_imports import refuse_imports

refuse_imports(sys.argv[1].split(","))

import numpy as np  # noqa: E402  # after the packages are refused

import glowserve  # noqa: E402

_, _, source, images = sys.argv
with glowserve.open(source) if Path(source).is_dir() else glowserve.Client(source) as model:
    scores = model.score(np.load(images))
    samples = model.sample(3, seed=5)
print(json.dumps({"bits_per_dim": scores.bits_per_dim.tolist(), "samples": samples.images.tolist()}))
