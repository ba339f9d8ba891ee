"""Schemas as strict as the API server's: closed, defaults not required, CEL rules evaluated."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any


class Schemas:
    """The shared schemas of CRDs and charts (`index.json` names each CRD's file)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text("utf-8"))
        entries = index if isinstance(index, list) else index.get("schemas", index.get("crds"))
        self._files = {(e["apiVersion"], e["kind"]): e["file"] for e in entries}
        self._closed = cache(self._load)

    def knows(self, manifest: dict[str, Any]) -> bool:
        return (manifest["apiVersion"], manifest["kind"]) in self._files

    def faults(self, manifest: dict[str, Any]) -> list[str]:
        """What an API server with strict field validation would refuse in a custom resource."""
        validator, schema = self._closed(self._files[manifest["apiVersion"], manifest["kind"]])
        body = without_nulls(manifest)
        found = [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(body)]
        return found + list(cel_faults(schema, body, ""))

    def _load(self, file: str) -> tuple[Any, Any]:
        from jsonschema import Draft7Validator

        schema = json.loads((self.folder / file).read_text("utf-8"))
        schema = schema.get("schema", schema.get("openAPIV3Schema", schema))
        close(schema)
        return Draft7Validator(schema), schema


def close(schema: Any) -> None:
    """Refuse unknown fields, require no field that has a default, let integers be strings where the CRD does."""
    if isinstance(schema, list):
        for each in schema:
            close(each)
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        if "required" in schema:
            schema["required"] = [n for n in schema["required"] if "default" not in properties.get(n, {})]
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for value in list(schema.values()):
        close(value)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def cel_faults(schema: Any, value: Any, path: str) -> Iterator[str]:
    """The CRD's own rules that do not compare with an older version."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not holds(rule["rule"], value):
            yield f"{path or '.'}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from cel_faults(child, value[name], f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            yield from cel_faults(schema["items"], item, f"{path}[{number}]")


@cache
def _program(rule: str) -> Any:
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def holds(rule: str, value: Any) -> bool:
    import celpy

    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))
