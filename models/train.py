"""Trains the three sample networks on scikit-learn's handwritten digits and exports them to ONNX.

    python models/train.py                     # all three, a few minutes on one core
    python models/train.py vgg_digits          # only the named ones

For development only: needs `torch==2.13.0`, `scikit-learn`, `onnx` and `onnxruntime`. Writes into
this folder

* `<network>.onnx`: `image` [batch, 1, 16, 16] float32 -> `logits` [batch, 10] float32, with every
  BatchNormalization left in the file, as inference nodes, so that there is something to fuse;
* `digits.npz`: the held-out images and their labels, which no network was trained on;
* `accuracy.json`: what onnxruntime measures on `digits.npz`.

Nothing is selected on the held-out images: the number of epochs is fixed and the last weights are
the ones exported. Seeds are fixed and one thread is used, so one machine gives the same files
twice; another processor may round differently.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from networks import NETWORKS
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

FOLDER = Path(__file__).resolve().parent
SEED = 2024
SIDE = 16  # pixels; the digits come as 8x8, too small for stacked 5x5 kernels
HELD_OUT = 600
OPSET = 17

EPOCHS = 30
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 0.05
WEIGHT_DECAY = 3e-2  # strong, or a thousand steps leave the full-rank noise of the initial weights
MAX_SHIFT = 1  # pixels of the 16x16 image


def split_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels, stratified by class.

    Images [N, 1, 16, 16] float32 in 0..1, enlarged bilinearly from 8x8 (all values are multiples
    of 1/256, hence exact); labels [N] int64.
    """
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16
    images = interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target).long()
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=digits.target, random_state=SEED
    )
    return images[train], labels[train], images[held_out], labels[held_out]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to MAX_SHIFT pixels, zeros moving in: [N, 1, H, W] -> the same."""
    padded = pad(images, [MAX_SHIFT] * 4)
    offsets = torch.randint(2 * MAX_SHIFT + 1, (len(images), 2), generator=generator).tolist()
    crops = [
        image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(crops)


def batches(
    images: Tensor, labels: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, shifted batches; the incomplete last one is dropped."""
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(BATCH_SIZE):
        if len(chosen) == BATCH_SIZE:
            yield shifted(images[chosen], generator), labels[chosen]


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Fits `network` in place: SGD with momentum and a one-cycle schedule.

    Only kernels and matrices decay, not biases and the scales of batch normalization.
    """
    generator = torch.Generator().manual_seed(SEED)
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=PEAK_LEARNING_RATE,
        epochs=EPOCHS,
        steps_per_epoch=len(images) // BATCH_SIZE,
        cycle_momentum=False,
    )
    network.train()
    for epoch in range(EPOCHS):
        losses = []
        for batch, targets in batches(images, labels, generator):
            loss = cross_entropy(network(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1:2d}  training loss {np.mean(losses):.4f}", flush=True)


def export(network: nn.Module, path: Path) -> None:
    """Writes `network` as an inference graph whose BatchNormalization nodes are not folded."""
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its retirement
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, SIDE, SIDE),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            # In the default mode, EVAL, the exporter folds BatchNormalization into Conv itself.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )
    model = onnx.load(path)
    strip_source_paths(model)
    check_batch_norms(model, sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def strip_source_paths(model: onnx.ModelProto) -> None:
    """Removes the doc strings and metadata, where torch writes stack traces with local paths."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for holder in (model, graph, *graph.node, *values):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")


def check_batch_norms(model: onnx.ModelProto, expected: int) -> None:
    """Raises ValueError unless `expected` BatchNormalization nodes are there, for inference."""
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if len(nodes) != expected:
        raise ValueError(f"{len(nodes)} BatchNormalization nodes exported, {expected} expected")
    for node in nodes:
        training_mode = any(a.name == "training_mode" and a.i for a in node.attribute)
        if training_mode or len(node.output) != 1:
            raise ValueError(f"{node.name} was exported in training mode")


def measure(path: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Top-1 under onnxruntime, elements of all initializers, bytes of the file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return {
        "top1": round(float(np.mean(logits.argmax(axis=1) == labels)), 4),
        "parameters": sum(math.prod(w.dims) for w in onnx.load(path).graph.initializer),
        "bytes": path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the sample networks.")
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(NETWORKS)}")
    names = parser.parse_args().networks or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown network: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    train_images, train_labels, images, labels = split_digits()
    np.savez_compressed(FOLDER / "digits.npz", image=images.numpy(), labels=labels.numpy())
    for name in names:
        print(name)
        start = time.perf_counter()
        torch.manual_seed(SEED)
        network = NETWORKS[name]()
        train(network, train_images, train_labels)
        export(network, FOLDER / f"{name}.onnx")
        print(f"  {time.perf_counter() - start:.0f} s")

    paths = [path for name in NETWORKS if (path := FOLDER / f"{name}.onnx").exists()]
    accuracy = {path.name: measure(path, images.numpy(), labels.numpy()) for path in paths}
    (FOLDER / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    for file, figures in accuracy.items():
        print(file, figures)


if __name__ == "__main__":
    main()
