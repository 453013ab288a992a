"""Networks of Keras' own applications, channels last, for what its exporter on PyTorch makes of them.

Every convolution stands between two Transposes, every BatchNormalization is arithmetic on the last axis.
Statistics are those of a batch of random pictures, scales and shifts are drawn, as in networks_torch.py.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # before the import: Keras settles it once

import keras
import numpy as np

APPLICATIONS = {
    "mobilenet_v2": keras.applications.MobileNetV2,
    "resnet50": keras.applications.ResNet50,
    "densenet121": keras.applications.DenseNet121,
    "inception_v3": keras.applications.InceptionV3,
}
_SIDE = {"inception_v3": 299}
_SMALL = 96


def export(network: str, path: Path, *, small: bool) -> None:
    """Write an application with random weights to `path`; the batch stays open."""
    keras.utils.set_random_seed(0)
    keras.config.set_image_data_format("channels_last")
    side = _SMALL if small else _SIDE.get(network, 224)
    model = APPLICATIONS[network](weights=None, input_shape=(side, side, 3))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(0.0, 0.2, layer.beta.shape))
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.6, 1.4, layer.gamma.shape))
            layer.momentum = 0.0  # the statistics become those of the one batch that follows
    model(rng.standard_normal((4, side, side, 3)).astype(np.float32), training=True)
    model(np.zeros((1, side, side, 3), np.float32))  # the exporter wants it called
    model.export(str(path), format="onnx", verbose=False)
