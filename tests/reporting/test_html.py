from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from graphopt.reporting.html import render_html, typeset

VOID = {"meta", "br", "rect"}


class Page(HTMLParser):
    """Visible text and tags; fails when tags do not nest."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def page(samples):
    return Page(render_html(samples.optimize_report()))


def test_the_verdict_and_the_proof_are_there(page):
    for part in (
        "2.31× faster (95% 2.25–2.38) at batch 1",
        "40% fewer MACs, 21% smaller, top-1 76.32% → 75.98%, error 3.2% of 5% allowed",
        "verified on 512 held-out samples",
        "(95% 2.25–2.38); 2.22× predicted from the layers, 2.31× measured. 1 thread",
        "Latency, batch 1 2.95 ms 1.28 ms 2.31× 2.25–2.38",
        "MACs 154 M 93.0 M −40%",
        "Parameters 2.20 M 1.73 M −21%",
        "File size 8.80 MB 6.95 MB −21%",
        "logits passed enable_all float32 3.2% 0.41 29.9 0.999494 98.63%",
        "class passed enable_all int64 – – – – – 0%",
        "fuse-conv-bn exact 6 −6 0 −2,688",
        "input-bottleneck rank=112 fit=asymmetric shrinkage=0.05 37.7 M → 18.4 M 726 µs → 390 µs",
        "kernel-pair at /features/features.0/Conv : error 6.1% above the budget",
        "not faster on this target: 0.97x",
        "result would be larger than 1 MB",
        "dynamic batch taken as 1",
    ):
        assert part in page.text


def test_the_models_of_a_frontier(samples):
    page = Page(render_html(samples.pareto_report()))
    assert "vgg8.opt.1.onnx 1.18× (1.15–1.20) 1.18× (1.15–1.20) 0.4% 76.31%" in page.text
    assert "vgg8.opt.3.onnx 2.31× (2.25–2.38)" in page.text
    assert "fall of the metric" in page.text
    assert page.tags.count("circle") == 3
    assert "Models" not in Page(render_html(samples.optimize_report())).text


def test_provenance(page, samples):
    report = samples.optimize_report()
    assert report.command in page.text
    for part in (report.input.sha256, report.output.sha256, "opset ai.onnx 21", "seed cpu, 0"):
        assert part in page.text
    assert "8,803,112 bytes" in page.text
    limits = "output error at most 5%, metric drop at most 0.01, speed-up 2.00×"
    assert f"Budget {limits}; bound by max_error Target" in page.text
    for name, version in report.versions.items():
        assert f"{name} {version}" in page.text


def test_every_site_is_listed(page, samples):
    report = samples.optimize_report()
    for entry in report.rewrites:
        assert " + ".join(entry.site) in page.text
    for entry in report.declined:
        assert entry.site[0] in page.text


@pytest.mark.parametrize("name", ["optimize_report", "hostile_report", "audit_report"])
def test_self_contained(samples, name):
    document = render_html(getattr(samples, name)())
    tags = set(Page(document).tags)
    assert not tags & {"script", "link", "img", "iframe", "object", "base", "a", "form"}
    assert "url(" not in document
    assert "@import" not in document
    assert not re.search(r"https?://", document)
    assert "<style>" in document


def test_hostile_names_stay_text(samples):
    document = render_html(samples.hostile_report())
    page = Page(document)
    assert "<script" not in document
    assert not any(key.startswith("on") for key, _ in page.attributes)
    assert page.text.count("<script>alert('x')</script>") > 20
    assert "\x1b" not in document


def test_hostile_audit_stays_text(samples):
    report = samples.audit_report()
    layers = tuple(
        replace(
            layer,
            name=samples.HOSTILE,
            op_type=samples.HOSTILE,
            savings=tuple(replace(saving, rewrite=samples.HOSTILE) for saving in layer.savings),
        )
        for layer in report.layers
    )
    document = render_html(replace(report, layers=layers, notes=(samples.HOSTILE,)))
    assert "<script" not in document
    assert "&lt;script&gt;" in document
    Page(document)


def test_missing_parts_are_said_not_hidden(samples):
    report = replace(samples.optimize_report(), output=None, verification=None, latency=())
    text = Page(render_html(report)).text
    assert "vgg8.onnx → nothing written" in text
    assert "latency not measured" in text
    assert "NOT VERIFIED: nothing was compared with the original." in text
    assert "Output nothing written" in text
    assert "verified on" not in text


def test_nothing_done(samples):
    report = samples.optimize_report()
    report = replace(report, rewrites=(), declined=(), after=report.before, latency=())
    text = Page(render_html(report)).text
    assert "No rewrite was applied." in text
    assert "Nothing was declined." in text


def test_a_failure_is_red_and_says_where(samples):
    first, *others = samples.checks()
    proof = replace(
        samples.verification(), passed=False, outputs=(replace(first, passed=False), *others)
    )
    document = render_html(replace(samples.optimize_report(), verification=proof))
    assert '<div class="verdict bad">' in document
    assert "logits FAILED disable_all" in Page(document).text


def test_estimates_are_called_estimates(samples):
    text = Page(render_html(samples.lossless_report())).text
    assert "Estimates: nothing of this was tried, measured or verified." in text
    assert "--max-error 0.01 : perhaps 40% fewer MACs" in text
    assert "so the error is only indicative" in text


def test_bars_show_the_ratio(samples):
    report = samples.optimize_report()
    document = render_html(report)
    ratio = 100 * report.after.macs / report.before.macs
    assert f'<rect class="new" width="{ratio:.2f}"' in document
    grown = replace(report.after, macs=4 * report.before.macs)
    document = render_html(replace(report, after=grown))
    assert '<rect class="old" width="25.00"' in document


def test_audit(samples):
    text = Page(render_html(samples.audit_report())).text
    for part in (
        "audit, nothing was written",
        "Weight error up to 5% 60% fewer MACs",
        "the outputs were not compared",
        "/features/features.3/Conv Conv 1×64×32×32 25% 37.7 M 36.9 k 755 µs",
        "61% two-sided rank=32 error 4.4%, 2.27×",
        "nothing found",
        "graphopt audit models/vgg8.onnx",
    ):
        assert part in text


def test_rendering_is_deterministic(samples):
    report = samples.optimize_report()
    assert render_html(report) == render_html(report)


def test_paths_that_are_not_unicode(samples):
    report = replace(samples.optimize_report(), command="graphopt optimize \udcff.onnx")
    document = render_html(report)
    assert "graphopt optimize ?.onnx" in Page(document).text
    assert document.encode("utf-8")


@pytest.mark.parametrize(
    ("plain", "printed"),
    [
        ("2.31x faster (95% 2.25-2.38)", "2.31× faster (95% 2.25–2.38)"),
        ("812 us", "812 µs"),
        ("-58%", "−58%"),
        ("2.1e-07", "2.1e−07"),
        ("-", "–"),
        ("max bus", "max bus"),
    ],
)
def test_typeset(plain, printed):
    assert typeset(plain) == printed
