"""`/openapi.json`: requests from the declarations of the options, answers as `results` has them.

The tests hold real answers against it, with a validator that is not ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from zeroshot.packaging.version import __version__
from zeroshot.serving.operations import OPERATIONS, SEARCH_FIELDS, Operation, field_schema
from zeroshot.tasks.search_options import SearchOptions

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
YES: Schema = {"type": "boolean"}
NAMES: Schema = {"type": "object", "additionalProperties": TEXT}
IMAGE: Schema = {"type": "string", "description": "data:image/jpeg;base64,..."}
ID: Schema = {"type": "string", "description": "The id of a served image."}


def listed(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def closed(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with exactly these properties, of which some may be missing."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


BECAUSE = listed(
    closed(
        {"anchor": TEXT, "share": NUMBER, "captions": listed(TEXT), "path": {**TEXT}},
    )
)
BECAUSE["items"]["properties"]["path"] = {"type": ["string", "null"]}
SIZE = {"width": WHOLE, "height": WHOLE}


def row_schema(schema: str, answer: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """A row: what all have, and the answer."""
    return closed(
        {
            "schema": {"type": "string", "enum": [schema]},
            "path": {"type": ["string", "null"]},
            "id": TEXT,
            **answer,
            "models": NAMES,
            "method": TEXT,
        },
        optional,
    )


CANDIDATE = closed(
    {
        "token": WHOLE,
        "text": TEXT,
        "probability": NUMBER,
        "penalty": NUMBER,
        "guide": NUMBER,
        "total": NUMBER,
    }
)
ROWS: dict[str, Schema] = {
    "caption": row_schema(
        "zeroshot.caption/1",
        {
            "caption": TEXT,
            "score": NUMBER,
            "scored": TEXT,
            "prompt": TEXT,
            "trace": listed(closed({"text": TEXT, "candidates": listed(CANDIDATE)})),
        },
        ("scored", "prompt", "trace"),
    ),
    "classify": row_schema(
        "zeroshot.classify/1",
        {
            "labels": listed(closed({"label": TEXT, "score": NUMBER, "cosine": NUMBER})),
            "abstained": YES,
            "scored": TEXT,
            "because": BECAUSE,
        },
        ("because",),
    ),
    "detect": row_schema(
        "zeroshot.detect/1",
        {
            **SIZE,
            "boxes": listed(
                closed(
                    {
                        "label": TEXT,
                        "score": NUMBER,
                        "box": listed(NUMBER, minItems=4, maxItems=4),
                        "spans": listed(listed(WHOLE)),
                    },
                    ("spans",),
                )
            ),
        },
    ),
    "segment": row_schema(
        "zeroshot.segment/1",
        {
            **SIZE,
            "regions": listed(
                closed(
                    {
                        "label": TEXT,
                        "score": NUMBER,
                        "pixels": WHOLE,
                        "share": NUMBER,
                        "rle": closed({"size": listed(WHOLE), "counts": TEXT}),
                    }
                )
            ),
            "scored": TEXT,
        },
    ),
    "ask": row_schema(
        "zeroshot.ask/1",
        {
            "questions": listed(
                closed(
                    {
                        "question": TEXT,
                        "answers": listed(closed({"answer": TEXT, "score": NUMBER})),
                    }
                )
            ),
            "scored": TEXT,
        },
    ),
    "search": row_schema(
        "zeroshot.search/1",
        {"query": TEXT, "rank": WHOLE, "score": NUMBER, "cosine": NUMBER, "because": BECAUSE},
        ("because",),
    ),
}
ERROR = closed(
    {
        "error": closed(
            {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": "null"},
                "code": {"type": "null"},
            }
        )
    }
)
INPUT: Schema = {
    "oneOf": [
        {"type": "string", "description": "A text, or an image as data:image/jpeg;base64,..."},
        closed({"image": IMAGE}),
        closed({"id": ID}),
        closed({"text": TEXT}),
    ]
}
EMBEDDINGS = closed(
    {
        "object": {"type": "string", "enum": ["list"]},
        "data": listed(
            closed(
                {
                    "object": {"type": "string", "enum": ["embedding"]},
                    "index": WHOLE,
                    "embedding": {"oneOf": [listed(NUMBER), TEXT]},
                }
            )
        ),
        "model": TEXT,
        "usage": closed({"prompt_tokens": WHOLE, "total_tokens": WHOLE}),
    }
)
MODELS = closed(
    {
        "object": {"type": "string", "enum": ["list"]},
        "data": listed(
            closed(
                {
                    "id": TEXT,
                    "object": {"type": "string", "enum": ["model"]},
                    "created": WHOLE,
                    "owned_by": TEXT,
                    "models": NAMES,
                    "can": {"type": "object", "additionalProperties": YES},
                    "cannot": NAMES,
                    "captioners": {"type": "object", "additionalProperties": YES},
                }
            )
        ),
    }
)


def document() -> Schema:
    """The whole document."""
    paths: dict[str, Any] = {
        f"/v1/{name}": {"post": _task(operation)}
        for name, operation in OPERATIONS.items()
        if name != "embed"
    }
    paths["/v1/embeddings"] = {"post": _embeddings()}
    paths["/v1/search"] = {"post": _search()}
    paths["/v1/models"] = {"get": _get("models", "The model set, and what it can do.", MODELS)}
    paths["/openapi.json"] = {"get": _get("openapi", "This document.", {"type": "object"})}
    health = closed({"status": {"type": "string", "enum": ["ok", "stopping"]}})
    paths["/healthz"] = {"get": _get("healthz", "Whether requests are taken.", health)}
    paths["/healthz"]["get"]["security"] = []
    metrics = _get("metrics", "Counts, in Prometheus' text format.", TEXT)
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": TEXT}}
    paths["/metrics"] = {"get": metrics}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "zeroshot serve",
            "version": __version__,
            "description": "Answers from frozen vision and language models, without training.",
        },
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {**ROWS, "error": ERROR},
        },
    }


def _answer(schema: Schema, about: str = "The row.") -> Schema:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _responses(schema: Schema, *refusals: str) -> dict[str, Any]:
    about = {
        "400": "A field that is wrong; the message says how.",
        "401": "A token is needed.",
        "403": "A request of another site.",
        "404": "No such id or model.",
        "408": "The body took too long.",
        "413": "The body, or the image, is too large.",
        "415": "Not an image that is read.",
        "421": "Another host name.",
        "501": "The model set cannot do this; the message says why.",
        "503": "Too many requests wait; Retry-After says when to ask again.",
    }
    every = ("400", "401", "403", "421", *refusals)
    error = {"$ref": "#/components/schemas/error"}
    found = {"200": _answer(schema)} | {code: _answer(error, about[code]) for code in every}
    return dict(sorted(found.items()))


def _get(name: str, about: str, schema: Schema) -> Schema:
    return {"operationId": name, "summary": about, "responses": _responses(schema)}


REFUSALS = ("404", "408", "413", "415", "501", "503")


def _task(operation: Operation) -> Schema:
    properties = {"image": IMAGE, "id": ID, **operation.schema}
    body: Schema = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "oneOf": [{"required": ["image"]}, {"required": ["id"]}],
    }
    if operation.required:
        body["required"] = list(operation.required)
    row = {"$ref": f"#/components/schemas/{operation.name}"}
    responses = _responses(row, *REFUSALS)
    if operation.name == "caption":
        events = "Events: word (text to append), then row; or error."
        responses["200"]["content"]["text/event-stream"] = {
            "schema": {"type": "string", "description": events}
        }
    binary = {"type": "string", "format": "binary"}
    return {
        "operationId": operation.name,
        "summary": operation.about,
        "description": "The image as the body, with the other fields in the query string, or JSON.",
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema, "explode": True}
            for name, schema in operation.schema.items()
            if schema.get("type") != "object"
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": body},
                "image/jpeg": {"schema": binary},
                "application/octet-stream": {"schema": binary},
            },
        },
        "responses": responses,
    }


def _embeddings() -> Schema:
    body = closed(
        {
            "input": {"oneOf": [*INPUT["oneOf"], listed(INPUT)]},
            "image": {"oneOf": [IMAGE, listed(IMAGE)]},
            "model": TEXT,
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "modality": {"type": "string", "enum": ["text", "image"]},
            "user": TEXT,
        },
        ("input", "image", "model", "encoding_format", "modality", "user"),
    )
    return {
        "operationId": "embeddings",
        "summary": "Unit embeddings of texts and images, in OpenAI's shape.",
        "requestBody": _json_body(body),
        "responses": _responses(EMBEDDINGS, *REFUSALS),
    }


def _search() -> Schema:
    import dataclasses

    options = {f.name: field_schema(f) for f in dataclasses.fields(SearchOptions)}
    terms = {"oneOf": [*INPUT["oneOf"], listed(INPUT)]}
    body = closed(
        {
            "query": INPUT,
            "plus": terms,
            "minus": terms,
            **{name: options[name] for name in SEARCH_FIELDS},
        },
        ("plus", "minus", *SEARCH_FIELDS),
    )
    rows = closed(
        {
            "object": {"type": "string", "enum": ["list"]},
            "data": listed({"$ref": "#/components/schemas/search"}),
        }
    )
    return {
        "operationId": "search",
        "summary": "The best images of the served folders for a query.",
        "requestBody": _json_body(body),
        "responses": _responses(rows, *REFUSALS),
    }


def _json_body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}
