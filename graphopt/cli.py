"""The command line: parse, call, print. No logic, and nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from graphopt._version import __version__
from graphopt.errors import GraphoptError, InputError, InterruptError
from graphopt.postponing import postpone_sympy

if TYPE_CHECKING:
    from graphopt.progress import Progress
    from graphopt.reporting.schema import AuditReport, OptimizeReport

app = typer.Typer(
    name="graphopt",
    help="Make an ONNX network cheaper, prove that it still computes the same, say what was done.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(
        help="Inputs: an .npz, a folder of them or of pictures, or file.py:function.",
        show_default=False,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(help="Inputs to measure on, instead of a held-out part of --data."),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="<key=value,...>",
        help="How pictures become inputs: imagenet, or size=224,mean=0.5,std=0.5,color=bgr.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(help="file.py:function(outputs, batch) -> float, instead of top-1 accuracy."),
]
MaxError = Annotated[
    float | None, typer.Option(help="Allowed relative error of every output (0.02 = 2 %).")
]
MaxDrop = Annotated[
    float | None, typer.Option(help="Allowed fall of the metric (0.005 = half a point).")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="<input:shape>",
        help="Shape of an input with open dimensions: image:1x3x224x224.",
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads to measure with.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Names = Annotated[
    str | None, typer.Option(help="Rewrites to use, comma-separated (see `graphopt passes`).")
]


@app.command()
def optimize(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: MODEL.opt.onnx.")
    ] = None,
    data: Data = None,
    max_error: MaxError = None,
    max_drop: MaxDrop = None,
    speedup: Annotated[
        float | None, typer.Option(help="Speed-up to reach with the least error (2 = twice).")
    ] = None,
    ranks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<layer=rank,...>",
            help="Factor these layers like this, and no others: conv1=64,conv2=two-sided:64x64.",
            show_default=False,
        ),
    ] = None,
    eval_data: EvalData = None,
    preprocess: Preprocess = None,
    metric: MetricOption = None,
    shape: ShapeOption = None,
    threads: Threads = 1,
    seed: Seed = 0,
    target: Annotated[
        Literal["ort-cpu", "npu"],
        typer.Option(
            help="ort-cpu: take what is measured faster. npu: convolutions wherever possible."
        ),
    ] = "ort-cpu",
    passes: Names = None,
    skip: Annotated[str | None, typer.Option(help="Rewrites not to use.")] = None,
    freeze_initializers: Annotated[
        bool, typer.Option("--freeze-initializers", help="Freeze initializers listed as inputs.")
    ] = False,
    keep_initializers: Annotated[
        bool, typer.Option("--keep-initializers", help="Keep them overridable.")
    ] = False,
    grow: Annotated[
        bool, typer.Option("--grow", help="Let folding and composing make the file bigger.")
    ] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the input file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but write the model.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not run the models (exact rewrites only).")
    ] = False,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Measure no latency.")] = False,
    on_fail: Annotated[
        Literal["rollback", "stop"],
        typer.Option(help="When the proof fails: drop the rewrite to blame, or stop."),
    ] = "rollback",
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="<folder>",
            help="Keep statistics in this folder, and go on from what an interrupted run kept.",
        ),
    ] = None,
    pareto: Annotated[
        int | None,
        typer.Option(
            min=2, max=100, help="Write so many models, from close to the original to the budget."
        ),
    ] = None,
    dense: Annotated[
        bool,
        typer.Option("--dense", help="A map of answers for pictures larger than it was made for."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every site.")] = False,
) -> None:
    """Optimize a model. Lossless unless a budget (--max-error, --max-drop, --speedup) is given."""
    if freeze_initializers and keep_initializers:
        raise InputError("--freeze-initializers and --keep-initializers contradict each other")
    from graphopt.options import Options
    from graphopt.planning.budget import Budget

    options = Options(
        budget=Budget(max_error, max_drop, speedup),
        data=data,
        eval_data=eval_data,
        preprocess=preprocess,
        metric=metric,
        shapes=_shapes(shape),
        threads=threads,
        seed=seed,
        target=target,
        passes=None if passes is None else _names(passes),
        skip=() if skip is None else _names(skip),
        freeze="freeze" if freeze_initializers else "keep" if keep_initializers else "auto",
        grow=grow,
        dry_run=dry_run,
        verify=not no_verify,
        bench=not no_bench,
        in_place=in_place,
        on_fail=on_fail,
        output=output,
        resume=resume,
        pareto=pareto,
        dense=dense,
        ranks=None if ranks is None else ",".join(ranks),
    )
    from graphopt.destination import output_paths

    _check_reports([report, html, junit], models=[model, *output_paths(model, options)])
    from graphopt.pipeline import optimize as run

    with _resumable(resume), _progress(quiet or json) as progress:
        result = run(model, options, progress, shlex.join(["graphopt", *sys.argv[1:]]))
    _write_reports(result, report, html)
    if junit is not None:
        from graphopt.reporting.junit import render_junit

        _write(junit, render_junit(result))
    if json:
        _print_json(result)
    elif not quiet:
        from graphopt.reporting.terminal import print_optimize

        print_optimize(result, _console(), verbose=verbose)


@app.command()
def audit(
    model: Model,
    shape: ShapeOption = None,
    threads: Threads = 1,
    passes: Names = None,
    skip: Annotated[str | None, typer.Option(help="Rewrites not to use.")] = None,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Measure no latency.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a model costs, layer by layer, and what each rewrite would save. Writes no model."""
    from graphopt.auditing import audit as run
    from graphopt.options import Options

    options = Options(
        shapes=_shapes(shape),
        threads=threads,
        passes=None if passes is None else _names(passes),
        skip=() if skip is None else _names(skip),
        bench=not no_bench,
        verify=not no_bench,
    )
    _check_reports([report, html], models=[model])
    with _progress(quiet or json) as progress:
        result = run(model, options, progress, shlex.join(["graphopt", *sys.argv[1:]]))
    _write_reports(result, report, html)
    if json:
        _print_json(result)
    elif not quiet:
        from graphopt.reporting.terminal import print_audit

        print_audit(result, _console())


@app.command()
def verify(
    original: Model,
    other: Annotated[Path, typer.Argument(help="The .onnx file to compare.", show_default=False)],
    data: Data = None,
    preprocess: Preprocess = None,
    max_error: MaxError = None,
    max_drop: MaxDrop = None,
    metric: MetricOption = None,
    shape: ShapeOption = None,
    threads: Threads = 1,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Compare two models on the same inputs. Exit code 3 if the second is off by too much."""
    from graphopt.comparing import verify as run
    from graphopt.options import Options
    from graphopt.planning.budget import Budget

    options = Options(
        budget=Budget(max_error, max_drop),
        data=data,
        preprocess=preprocess,
        metric=metric,
        shapes=_shapes(shape),
        threads=threads,
        seed=seed,
    )
    with _progress(quiet) as progress:
        result = run(original, other, options, progress)
    if not quiet:
        from graphopt.reporting.terminal import print_verification

        print_verification(result, _console())
    raise typer.Exit(0 if result.passed else 3)


@app.command()
def bench(
    original: Model,
    other: Annotated[Path, typer.Argument(help="The .onnx file to time.", show_default=False)],
    shape: ShapeOption = None,
    threads: Threads = 1,
    seed: Seed = 0,
) -> None:
    """Time two models in turn and print the ratio with its 95 % interval."""
    from graphopt.comparing import bench as run
    from graphopt.options import Options
    from graphopt.reporting.terminal import print_latency

    with _progress(False) as progress:
        progress.stage("Timing")
        result = run(original, other, Options(shapes=_shapes(shape), threads=threads, seed=seed))
    print_latency(result, _console())


@app.command()
def passes() -> None:
    """List the rewrites that --passes and --skip take."""
    from rich.table import Table

    from graphopt.rewrites import all_rewrites

    table = Table("name", "kind", "what it does", box=None, pad_edge=False)
    for rewrite in all_rewrites():
        first = (type(rewrite).__doc__ or "").strip().splitlines()[0]
        table.add_row(rewrite.name, rewrite.kind, first)
    _console().print(table)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback does it)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> NoReturn:
    """Run the command line; every error ends in one line and its exit code."""
    code = None
    postpone_sympy()
    try:
        code = app(prog_name="graphopt", standalone_mode=False)
    except GraphoptError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = InterruptError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("GRAPHOPT_DEBUG"):
            raise
        if hasattr(error, "format_message"):  # Typer's; the class has moved between versions
            _fail(_usage(error), 2)
        text = " ".join(str(error).split())
        _fail(f"internal error: {type(error).__name__}: {text} (GRAPHOPT_DEBUG=1 shows where)", 1)
    if code == InterruptError.exit_code:
        _fail("interrupted; nothing was written", code)
    raise SystemExit(code or 0)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = "graphopt" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')} (see `{command} --help`)"


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"graphopt: {' '.join(message.split())}\n")
    raise SystemExit(code)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError("--passes and --skip take names of rewrites: see `graphopt passes`")
    return names


def _shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.lower().split("x"))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise InputError(f"--shape {text!r} is not of the form input:1x3x224x224")
        shapes[name] = shape
    return shapes


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    from graphopt.progress import Silent

    if quiet or not sys.stderr.isatty():
        yield Silent()
        return
    from graphopt.watching import watch

    with watch() as progress:
        yield progress


@contextmanager
def _resumable(folder: Path | None) -> Iterator[None]:
    """Say on an interrupt where the statistics are, if a folder holds any."""
    try:
        yield
    except KeyboardInterrupt:
        from graphopt.records import RUN_FILE

        if folder is None or not (folder / RUN_FILE).is_file():
            raise
        raise InterruptError(
            f"interrupted; no model was written, what was gathered is in {folder} "
            "(the same command goes on from there)"
        ) from None


def _check_reports(files: Sequence[Path | None], *, models: Sequence[Path]) -> None:
    taken = {model.resolve() for model in models}
    for file in files:
        if file is None:
            continue
        if file.resolve() in taken:
            raise InputError(f"a report cannot be written to {file}: something else goes by it")
        _check_writable(file)
        taken.add(file.resolve())


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file name to write")
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: the folder {folder} does not exist")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"cannot write {path}: no permission")


def _write_reports(
    result: OptimizeReport | AuditReport, report: Path | None, html: Path | None
) -> None:
    if report is not None:
        from graphopt.reporting.json_file import render_json

        _write(report, render_json(result))
    if html is not None:
        from graphopt.reporting.html import render_html

        _write(html, render_html(result))


def _print_json(result: OptimizeReport | AuditReport) -> None:
    from graphopt.reporting.json_file import render_json

    sys.stdout.write(render_json(result))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
