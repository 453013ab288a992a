"""The models that the peers are compared on: made, drawn or found, each a file in one folder.

    python benchmarks/exports.py NAME FOLDER [--small]     writes FOLDER/NAME.onnx

`ts-NETWORK` is a network of networks_torch.py through PyTorch's TorchScript exporter as it is called by
default, `bn-NETWORK` the same without the fusions that this exporter makes itself, `dynamo-NETWORK` the
exporter on torch.export without its own optimizer. `keras-NETWORK` is an application of Keras, channels
last, through Keras' exporter (networks_keras.py). `light_*` are the networks that the onnx package ships,
`light_*+` those with random weights: as shipped, their outputs are constant and prove nothing. The others
are the zoo's.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

EXPORTERS = ("ts", "bn", "dynamo")
TORCH = (
    "vgg16_bn",
    "resnet50",
    "googlenet",
    "mobilenet_v2",
    "se_resnet18",
    "densenet121",
    "repvgg_a0",
)
KERAS = ("mobilenet_v2", "resnet50", "densenet121", "inception_v3")
LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)

_OPSET = 18
_CONFORMANCE = Path(__file__).parents[1] / "tests" / "conformance"


def names(zoo: Path | None) -> list[str]:
    """All models there are to compare on."""
    found = [f"{exporter}-{network}" for network in TORCH for exporter in EXPORTERS]
    found += [f"keras-{network}" for network in KERAS]
    found += [f"light_{name}{drawn}" for name in LIGHT for drawn in ("", "+")]
    if zoo is not None:
        found += sorted(path.stem for path in (zoo / "models").glob("*.onnx"))
    return found


def made(name: str, folder: Path, zoo: Path | None, *, small: bool) -> Path:
    """The file of a model, made in a process of its own if the folder has none.

    Raises:
        ValueError: It cannot be made here (PyTorch is missing, say).
    """
    path = folder / f"{name}.onnx"
    if path.is_file():
        return path
    if zoo is not None and (zoo / "models" / path.name).is_file():
        shutil.copyfile(zoo / "models" / path.name, path)
        return path
    command = [sys.executable, __file__, name, str(folder), *["--small"] * small]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"{name} cannot be made: {last or f'exit code {done.returncode}'}")
    return path


def export(name: str, path: Path, *, small: bool) -> None:
    """Write `EXPORTER-NETWORK`; the batch stays open."""
    import torch
    from networks_torch import NETWORKS, module_of

    exporter, _, network = name.partition("-")
    module, picture = module_of(NETWORKS[network], small=small)
    interface = {"input_names": ["x"], "output_names": ["y"], "opset_version": _OPSET}
    if exporter == "dynamo":
        torch.onnx.export(
            module,
            (picture,),
            str(path),
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            **interface,
        )
        return
    kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    torch.onnx.export(
        module,
        (picture,),
        str(path),
        dynamo=False,
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        **interface,
        **(kept if exporter == "bn" else {}),
    )


def light(name: str, path: Path) -> None:
    """Write a light model, with `+` after its name as the conformance tests draw its weights."""
    import onnx

    sys.path.append(str(_CONFORMANCE))
    import conformance_tools
    import test_light

    source = test_light.LIGHT / f"{name.removesuffix('+')}.onnx"
    if not name.endswith("+"):
        shutil.copyfile(source, path)
        return
    model = test_light.with_random_weights(onnx.load(source))
    onnx.save(test_light.with_settled_scores(model, conformance_tools), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="few channels, small pictures")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    part = args.folder / f".{args.name}.part"
    if args.name.startswith("light_"):
        light(args.name, part)
    elif args.name.startswith("keras-"):
        import networks_keras

        part = part.with_suffix(".part.onnx")  # Keras wants the ending
        networks_keras.export(args.name.removeprefix("keras-"), part, small=args.small)
    else:
        export(args.name, part, small=args.small)
    part.replace(args.folder / f"{args.name}.onnx")


if __name__ == "__main__":
    main()
