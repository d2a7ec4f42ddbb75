"""ONNX Runtime with its telemetry off. Everything here imports ONNX Runtime by this module; lint forbids other imports.

Since 1.29, ONNX Runtime reports to Microsoft about each session, and keeps files in the home folder, unless it finds
$ORT_DISABLE_TELEMETRY when it is imported: `disable_telemetry_events` comes after the first report. A value that the
user has set stays, and so does the choice of a program that imported ONNX Runtime before this module.
"""

from __future__ import annotations

import os

if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime"]
