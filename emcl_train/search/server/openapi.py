"""The document of the API, OpenAPI 3.1, from the table that the server itself reads requests by."""

from typing import Any

from emcl_train.search.server.questions import PARAMETERS, Parameter

NUMBER = {"type": "number"}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _said(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


MOMENT = _object(
    id=_said(TEXT, "the content of its file and its number in it"),
    file=_said(TEXT, "path inside the folder that was indexed; a text, which may hold anything"),
    also_at=_said(_list(TEXT), "other files with the same content"),
    start=_said(NUMBER, "seconds from the file's first frame"),
    end=NUMBER,
    score=_said(_or_null(NUMBER), "inner product with the query; null where nothing was compared"),
    below=_said(FLAG, "whether the score is below the cut-off"),
    thumbnail=_said(TEXT, "address of its picture"),
    media=_said(TEXT, "address of its film"),
)
FOUND = {
    "cutoff": _said(_or_null(NUMBER), "the score below which 95 % of unrelated queries stay; null if there is none"),
    "fits": _said(_or_null(FLAG), "whether any moment reaches the cut-off; null without one"),
    "said": _said(TEXT, "what came of it in words, where there is something to say"),
    "results": _list({"$ref": "#/components/schemas/Moment"}),
}
SCHEMAS = {
    "Moment": MOMENT,
    "Error": _object(error=_said(TEXT, "what was expected, what came, and the way out")),
    "Library": _object(
        name=TEXT,
        moments={"type": "integer"},
        model=_object(label=TEXT, fingerprint=TEXT, random=_said(FLAG, "whether its weights are random")),
        cutting=_said(TEXT, "how files were cut into moments"),
        roots=_said(_list(TEXT), "names of the folders that were indexed"),
        refines=_said(FLAG, "whether there are refined vectors"),
        cutoff=_object(plain=_or_null(NUMBER), refined=_or_null(NUMBER)),
        damaged=_object(count={"type": "integer"}, files=_list(_object(file=TEXT, reason=TEXT))),
    ),
    "Search": _object(query=TEXT, refined=FLAG, minimum=_or_null(NUMBER), **FOUND),
    "Like": _object(of={"$ref": "#/components/schemas/Moment"}, refined=FLAG, **FOUND),
    "Neighbours": _object(of={"$ref": "#/components/schemas/Moment"}, **FOUND),
    "Playing": _object(
        moment={"$ref": "#/components/schemas/Moment"},
        media=_said(TEXT, "address for a player"),
        type=TEXT,
        way={"enum": ["as it is", "remuxed", "transcoded"]},
        why=_said(TEXT, "why it is played in this way"),
        begin=_said(NUMBER, "which second of the file, from its first frame, is second 0 of the media"),
        end=_said(_or_null(NUMBER), "up to which second of the file the media goes; null: to its end"),
        more=_said(FLAG, "whether the file goes on in the next part"),
        muted=_said(FLAG, "whether its sound could not be decoded"),
    ),
}
SUMMARIES = {
    "/api/library": ("What this library is", "Library"),
    "/api/search": ("Moments that words describe, the best first", "Search"),
    "/api/like": ("Moments that are like one of them", "Like"),
    "/api/neighbours": ("Moments before and behind one in its file", "Neighbours"),
    "/api/playing": ("How a moment is played, after what it needs has been converted", "Playing"),
    "/api/openapi.json": ("This document", None),
    "/thumbnail/{id}": ("Picture of a moment", "image/webp"),
    "/media/{id}": ("Film with a moment; takes ranges", "video/*"),
}
REFUSALS = {
    "400": "a parameter is missing, wrong, there twice, or not known",
    "403": "a page of another site or origin asks",
    "404": "there is no such moment, or its file is gone or another one",
    "405": "the method is neither GET nor HEAD",
    "421": "the Host header names another server",
    "500": "the library or the server failed; the terminal of the server says why",
    "503": "it cannot be done now; Retry-After, where too many ask at once, says when to ask again",
}


def document(name: str, version: str) -> dict[str, Any]:
    """The document.

    Args:
        name: of the library.
        version: of the program.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"emcl-train serve: {name}",
            "version": version,
            "description": "Searches one library of videos. Only GET and HEAD; errors are JSON with a sentence.",
        },
        "paths": {path: {"get": _operation(path, parameters)} for path, parameters in PARAMETERS.items()},
        "components": {"schemas": SCHEMAS},
    }


def _operation(path: str, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    summary, gives = SUMMARIES[path]
    if gives is None:
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    elif "/" in gives:
        content = {gives: {"schema": {}}}
    else:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{gives}"}}}
    answers: dict[str, Any] = {"200": {"description": "the answer", "content": content}}
    if path.startswith(("/media", "/thumbnail")):
        answers["304"] = {"description": "If-None-Match has its ETag: it is still the same"}
    if path.startswith("/media"):
        answers["206"] = {"description": "the range that was asked for", "content": content}
        answers["416"] = {"description": "there is no such range", "content": _ERROR}
    for status, description in REFUSALS.items():
        answers[status] = {"description": description, "content": _ERROR}
    return {
        "summary": summary,
        "operationId": path.strip("/").replace("/{id}", "").replace("/", "_").replace(".", "_"),
        "parameters": [_parameter(parameter) for parameter in parameters],
        "responses": answers,
    }


_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "path" if parameter.in_path else "query",
        "required": parameter.required,
        "description": parameter.says,
        "schema": parameter.schema,
    }
