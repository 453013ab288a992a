from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from graphopt.reporting.json_file import (
    FOLDER,
    SCHEMA_FILES,
    json_schema,
    render_json,
    render_schema,
)
from graphopt.reporting.schema import AuditReport, OptimizeReport


@pytest.mark.parametrize("name", SCHEMA_FILES)
def test_published_schema_is_up_to_date(name):
    published = (FOLDER / name).read_text(encoding="utf-8")
    assert published == render_schema(SCHEMA_FILES[name]), (
        "run: python -m graphopt.reporting.json_file"
    )


@pytest.mark.parametrize("report", SCHEMA_FILES.values())
def test_schema_is_a_valid_schema(report):
    jsonschema.Draft202012Validator.check_schema(json_schema(report))


@pytest.mark.parametrize(
    "name",
    ["optimize_report", "pareto_report", "lossless_report", "hostile_report", "audit_report"],
)
def test_reports_follow_their_schema(samples, name):
    report = getattr(samples, name)()
    plain = json.loads(render_json(report))
    jsonschema.validate(plain, json_schema(type(report)))
    assert next(iter(plain)) == "schema_version"


def test_report_with_everything_optional_missing_follows_its_schema(samples):
    report = replace(
        samples.optimize_report(), output=None, verification=None, latency=(), rewrites=()
    )
    plain = json.loads(render_json(report))
    jsonschema.validate(plain, json_schema(OptimizeReport))
    assert plain["output"] is None


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("seed",), "0"),
        (("schema_version",), "0.9"),
        (("input", "bytes"), 1.5),
        (("rewrites", 0, "kind"), "lossy"),
        (("rewrites", 0, "before", "latency_us"), "fast"),
        (("rewrites", 7, "options", "rank"), [32]),
        (("verification", "outputs", 0, "level"), "enable_some"),
        (("latency", 0, "input_shapes", "image"), [1, None]),
        (("budget", "unknown"), 1),
    ],
)
def test_schema_refuses_what_the_dataclasses_refuse(samples, path, wrong):
    plain = json.loads(render_json(samples.optimize_report()))
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, json_schema(OptimizeReport))


def test_schema_requires_every_field(samples):
    plain = json.loads(render_json(samples.audit_report()))
    for field in plain:
        missing = {key: value for key, value in plain.items() if key != field}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(missing, json_schema(AuditReport))


def test_schema_describes_its_objects():
    schema = json_schema()
    assert schema["description"].startswith("Everything `graphopt optimize` did")
    assert schema["$defs"]["Samples"]["properties"]["source"] == {"enum": ["synthetic", "data"]}
    assert schema["$defs"]["Totals"]["properties"]["operators"] == {
        "type": "object",
        "additionalProperties": {"type": "integer"},
    }
    assert all(part["description"] for part in schema["$defs"].values())


def test_figures_that_are_not_finite_become_null(samples):
    first, *others = samples.checks()
    odd = replace(first, sqnr_db=math.inf, cosine=math.nan, max_abs=-math.inf)
    proof = replace(samples.verification(), outputs=(odd, *others))
    plain = json.loads(render_json(replace(samples.optimize_report(), verification=proof)))
    check = plain["verification"]["outputs"][0]
    assert (check["sqnr_db"], check["cosine"], check["max_abs"]) == (None, None, None)
    jsonschema.validate(plain, json_schema())


def test_numpy_figures_are_written_as_numbers(samples):
    entry = replace(samples.optimize_report().rewrites[-1], options={"rank": np.int64(32)})
    entry = replace(entry, measured_error=np.float32(0.5))
    plain = json.loads(render_json(replace(samples.optimize_report(), rewrites=(entry,))))
    assert plain["rewrites"][0]["options"] == {"rank": 32}
    assert plain["rewrites"][0]["measured_error"] == 0.5


def test_arrays_do_not_belong_into_a_report(samples):
    report = replace(samples.optimize_report(), notes=(np.zeros(2),))
    with pytest.raises(TypeError, match="ndarray"):
        render_json(report)


def test_rendering_is_deterministic_and_ascii(samples):
    report = replace(samples.optimize_report(), notes=("naïve \udcff path",))
    text = render_json(report)
    assert text == render_json(report)
    assert text.isascii()
    assert text.endswith("}\n")
