"""Strict validation of documents: Kubernetes' own kinds, JobSet and TFJob by their CRDs, cert-manager's by a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from packaging.version import Version
from referencing import Registry, Resource

VERSIONS = sorted(set(kubernetes_validate.utils.all_versions()), key=Version)[-3:]

_SCHEMAS = Path(__file__).parent / "schemas"
_CRDS = {"jobset.x-k8s.io/v1alpha2": "jobset.yaml", "kubeflow.org/v1": "tfjob.yaml"}

# Written down by hand from cert-manager's API reference: the fields that we use, no others.
_STRING = {"type": "string", "minLength": 1}
_SPECS = {
    "Issuer": {"selfSigned": {"type": "object", "maxProperties": 0}, "ca": {"required": ["secretName"]}},
    "Certificate": {
        "isCA": {"type": "boolean"},
        "commonName": {**_STRING, "maxLength": 64},
        "secretName": _STRING,
        "duration": {"pattern": "^[0-9]+h$"},
        "dnsNames": {"type": "array", "items": _STRING},
        "usages": {"items": {"enum": ["digital signature", "server auth", "client auth"]}},
        "privateKey": {
            "properties": {
                "algorithm": {"enum": ["ECDSA"]},
                "size": {"enum": [256]},
                "rotationPolicy": {"enum": ["Always", "Never"]},
            },
            "additionalProperties": False,
        },
        "issuerRef": {
            "properties": {"name": _STRING, "kind": {"enum": ["Issuer"]}},
            "required": ["name", "kind"],
            "additionalProperties": False,
        },
    },
}


# Likewise from the API reference of the Prometheus operator.
_ANY_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed_object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


_DURATION = {"type": "string", "pattern": "^(0|([0-9]+[smhd])+)[a-z]?$"}
_OPERATOR_SPECS = {
    "PodMonitor": _closed_object(
        ["selector", "podMetricsEndpoints"],
        selector=_closed_object(["matchLabels"], matchLabels=_ANY_STRINGS),
        podMetricsEndpoints={
            "type": "array",
            "items": _closed_object(
                ["port", "path", "interval", "relabelings"],
                port=_STRING,
                path=_STRING,
                interval=_DURATION,
                relabelings={
                    "type": "array",
                    "items": _closed_object(
                        ["sourceLabels", "regex", "targetLabel"],
                        sourceLabels={"type": "array", "items": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
                        regex=_STRING,
                        targetLabel={"type": "string", "pattern": "^[a-z_]+$"},
                    ),
                },
            ),
        },
    ),
    "PrometheusRule": _closed_object(
        ["groups"],
        groups={
            "type": "array",
            "items": _closed_object(
                ["name", "rules"],
                name=_STRING,
                rules={
                    "type": "array",
                    "items": _closed_object(
                        ["alert", "expr", "for", "labels", "annotations"],
                        **{"alert": _STRING, "expr": _STRING, "for": _DURATION},
                        labels=_ANY_STRINGS,
                        annotations=_ANY_STRINGS,
                    ),
                },
            ),
        },
    ),
}


def check(document: dict[str, Any], versions: Sequence[str] = VERSIONS) -> None:
    """Raises `jsonschema.ValidationError` unless a document is valid, in every version, with no unknown field."""
    api = document["apiVersion"]
    if api == "cert-manager.io/v1":
        spec = {"properties": _SPECS[document["kind"]], "additionalProperties": False}
        jsonschema.validate(document, _custom(spec))
    elif api == "monitoring.coreos.com/v1":
        jsonschema.validate(document, _custom(_OPERATOR_SPECS[document["kind"]]))
    elif api in _CRDS:
        validator, kind = _crd(api)
        assert document["kind"] == kind
        validator.validate(document)
    else:
        for version in versions:
            _kubernetes(document["kind"], api, version).validate(document)


@cache
def _kubernetes(kind: str, api: str, version: str) -> jsonschema.Draft202012Validator:
    """As `kubernetes-validate --strict` makes it for each document anew, which takes seconds."""
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema, registry = (
        Resource.from_contents(kubernetes_validate.utils.schema_contents(f"{folder}/{file}.json", version))
        for file in (f"{kind.lower()}-{name}", "_definitions")
    )
    return jsonschema.Draft202012Validator(schema.contents, registry=registry @ (schema @ Registry()))


@cache
def _crd(api: str) -> tuple[jsonschema.Draft202012Validator, str]:
    definition = yaml.safe_load((_SCHEMAS / _CRDS[api]).read_text())["spec"]
    (version,) = (version for version in definition["versions"] if f"{definition['group']}/{version['name']}" == api)
    schema = _closed(version["schema"]["openAPIV3Schema"])
    # Every object has this; a CRD says no more of it than that it is an object.
    schema["properties"]["metadata"] = {
        "properties": {key: {} for key in ("name", "namespace", "labels", "annotations")},
        "additionalProperties": False,
    }
    return jsonschema.Draft202012Validator(schema), definition["names"]["kind"]


def _closed(schema: Any) -> Any:
    """Refuses fields that a schema does not name, at every depth, unless it says that others are kept."""
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: ({name: _closed(sub) for name, sub in value.items()} if key == "properties" else _closed(value))
              for key, value in schema.items()}  # fmt: skip
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    return closed


def _custom(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"required": ["name", "labels"], "properties": {k: {} for k in ("name", "namespace", "labels")},
                         "additionalProperties": False},
            "spec": spec,
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }  # fmt: skip
