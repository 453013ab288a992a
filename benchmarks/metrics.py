"""Metrics that a user of two of the zoo's networks would give: `--metric metrics.py:text_mask_iou`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

_TEXT = 0.3
"""Probability above which PP-OCR's own post-processing takes a pixel for text."""

_masks: dict[bytes, np.ndarray] = {}


def text_mask_iou(outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> float:
    """IoU of the text mask of ppocrv3_det with the original's for the same pictures."""
    (pictures,) = batch.values()
    (found,) = outputs.values()
    expected, mask = _original(pictures), found > _TEXT
    union = np.count_nonzero(expected | mask)
    return np.count_nonzero(expected & mask) / union if union else 1.0


def _original(pictures: np.ndarray) -> np.ndarray:
    key = hashlib.sha256(np.ascontiguousarray(pictures).tobytes()).digest()
    if key not in _masks:
        session = _session()
        _masks[key] = session.run(None, {session.get_inputs()[0].name: pictures})[0] > _TEXT
    return _masks[key]


@cache
def _session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(os.environ["GRAPHOPT_ZOO"]) / "models" / "ppocrv3_det.onnx"
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def error_within_db(loss: float, psnr: float, rms: float) -> float:
    """The relative output error that costs `loss` dB of a network's PSNR (dB, peak 1).

    The original misses the truth by mse_orig = 10^(-psnr / 10). An error that is not correlated with
    that miss adds mse_add to it, and costs 10 log10(1 + mse_add / mse_orig) dB. Hence

        mse_add = mse_orig (10^(loss / 10) - 1),   relative error = sqrt(mse_add) / rms

    with rms of the output, which a super-resolution network has in common with its input.
    """
    return float(np.sqrt(10 ** (-psnr / 10) * (10 ** (loss / 10) - 1)) / rms)


SUPER_RESOLUTION_ERROR = int(1e3 * error_within_db(0.1, psnr=29.63, rms=0.510)) / 1e3 - 0.001
"""--max-error for 0.1 dB of super_resolution10, a tenth and more to spare: the error need not be quite
uncorrelated with the miss. The readers give no high resolution to score with, so the
budget is set beforehand from two facts about the original: its published score, 29.63 dB, and the root
mean square of the inputs that its reader gives, 0.510."""
