"""The library `datasets` with its reports off. Everything here imports it by this module; lint forbids other imports.

It reports each `load_dataset` to Hugging Face, also that of a local file, unless $HF_UPDATE_DOWNLOAD_COUNTS is off when
it is imported; its requests to the hub tell what runs here, unless $HF_HUB_DISABLE_TELEMETRY is on. Values that the
user has set stay.
"""

from __future__ import annotations

import os

for _name, _off in (("HF_UPDATE_DOWNLOAD_COUNTS", "0"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
    os.environ[_name] = os.environ.get(_name) or _off

import datasets  # noqa: E402

__all__ = ["datasets"]
