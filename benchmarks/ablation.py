"""What each part of the method is worth: all on, then one off at a time, at the same speed-up.

Read the KL column first. The score is a count of right answers over some hundred images: it moves by
half a point when four of them change their minds, in either direction. The KL divergence from the
original uses every image and every class, and has far less noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness import error, fidelity, print_table, score, speedup_text
from runs import Bench, Result, of_zoo

SPEEDUPS = {"vgg8_cifar10": 3.0, "cnn5x5_cifar10": 3.0, "resnet20_cifar10": 1.3}

HEAD = (
    "method",
    "error, held out",
    "drop, held out",
    "KL, nats",
    "agreement",
    "top-1",
    "speed-up",
    "s",
)


def parse_networks(text: str) -> dict[str, float]:
    """`a,b=2.5` -> speed-up of each network; without a number that of SPEEDUPS.

    Raises:
        ValueError: A network without a speed-up, or a speed-up that is no number.
    """
    found = {}
    for item in text.split(","):
        name, equals, number = item.partition("=")
        if not equals and name not in SPEEDUPS:
            raise ValueError(f"give {name} a speed-up: {name}=2.0")
        found[name] = float(number) if equals else SPEEDUPS[name]
    return found


def methods() -> Iterator[tuple[str, dict[str, bool]]]:
    """All on, then each switch of Method off alone."""
    from graphopt.planning.method import Method

    yield "all on", {}
    for part in fields(Method):
        yield f"no {part.name}", {part.name: False}


def ablate(bench: Bench, networks: dict[str, float]) -> list[Result]:
    """Print a table for each network; the results of all runs."""
    results = []
    for name, target in networks.items():
        rows = []
        for label, method in methods():
            job = of_zoo(bench.zoo, name, {"speedup": target}, bench.threads, method=method)

            def examine(file: Path, name: str = name) -> dict[str, Any]:
                return {
                    "score": asdict(score(bench.zoo, name, file)),
                    "fidelity": asdict(fidelity(bench.zoo, name, file)),
                }

            result = bench.run(f"ablation: {name} at {target:g}x, {label}", job, examine)
            rows.append(row(label, result))
            results.append(result)
        before = score(bench.zoo, name).text
        title = f"{name} at {target:g}x (the original scores {before})"
        print_table(title, HEAD, rows, markdown=bench.markdown)
    return results


def row(label: str, result: Result) -> tuple[str, ...]:
    if result.report is None:
        return (label, result.shortcoming, *[""] * (len(HEAD) - 3), f"{result.seconds:.0f}")
    proof, fidelity = result.report["verification"], result.extra["fidelity"]
    drop = proof["metric_before"] - proof["metric_after"]
    return (
        label,
        f"{error(result.report):.4f}",
        f"{100 * drop:.2f} pt",
        f"{fidelity['divergence']:.4f}",
        f"{fidelity['agreement']:.1%}",
        f"{result.extra['score']['value']:.2%}",
        speedup_text(result.report),
        f"{result.seconds:.0f}",
    )
