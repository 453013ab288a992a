"""Reports as JSON, and the JSON Schema that describes them.

`python -m graphopt.reporting.json_file` writes the published schema files anew; a test fails when
they no longer follow from the dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from graphopt.reporting.schema import (
    SCHEMA_VERSION,
    AuditReport,
    OptimizeReport,
    report_to_dict,
)

FOLDER = Path(__file__).parent
SCHEMA_FILES: dict[str, type[OptimizeReport] | type[AuditReport]] = {
    "optimize.schema.json": OptimizeReport,
    "audit.schema.json": AuditReport,
}

_JSON_TYPES: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "null",
}


def render_json(report: OptimizeReport | AuditReport) -> str:
    """`report` as indented JSON in the order of its fields, ending in a line end.

    JSON has no infinity and no NaN: a figure that is not finite becomes null (the SQNR of two
    identical outputs, for one). Characters beyond ASCII are escaped, so that the file can be
    written and read under any locale.
    """
    return json.dumps(_plain(report_to_dict(report)), indent=2, allow_nan=False) + "\n"


def json_schema(
    report: type[OptimizeReport] | type[AuditReport] = OptimizeReport,
) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the files that `render_json` makes of `report`."""
    definitions: dict[str, Any] = {}
    body = _object_schema(report, definitions)
    body["properties"] = {
        "schema_version": {"const": SCHEMA_VERSION},
        **{name: part for name, part in body["properties"].items() if name != "schema_version"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:graphopt:{report.__name__}:{SCHEMA_VERSION}",
        "title": report.__name__,
        **body,
        "$defs": dict(sorted(definitions.items())),
    }


def render_schema(report: type[OptimizeReport] | type[AuditReport]) -> str:
    """The text of a published schema file."""
    return json.dumps(json_schema(report), indent=2) + "\n"


def write_schemas(folder: Path = FOLDER) -> list[Path]:
    """Write the published schema files into `folder`; returns their paths."""
    for name, report in SCHEMA_FILES.items():
        (folder / name).write_text(render_schema(report), encoding="utf-8")
    return [folder / name for name in SCHEMA_FILES]


def _plain(value: Any) -> Any:
    """`value` with lists for tuples, Python numbers for numpy's, null for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"a report holds plain values only, not {type(value).__name__}")


def _object_schema(record: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one dataclass; dataclasses that it refers to are added to `definitions`."""
    hints = get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    return {
        "description": (record.__doc__ or "").strip().partition("\n")[0],
        "type": "object",
        "properties": {name: _type_schema(hints[name], definitions) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _type_schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one type annotation. Raises TypeError for a type a report may not hold."""
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # taken first: a dataclass may refer to itself
            definitions[hint.__name__] = _object_schema(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return _union_schema(arguments, definitions)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _type_schema(arguments[0], definitions)}
    if origin is dict and arguments[0] is str:
        return {
            "type": "object",
            "additionalProperties": _type_schema(arguments[1], definitions),
        }
    raise TypeError(f"no JSON Schema for {hint!r}")


def _union_schema(members: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    """Plain types as one list of types, anything else as alternatives."""
    if all(member in _JSON_TYPES for member in members):
        return {"type": [_JSON_TYPES[member] for member in members]}
    return {"anyOf": [_type_schema(member, definitions) for member in members]}


if __name__ == "__main__":
    for path in write_schemas():
        print(path)
