"""Every refusal and failure in the one shape that OpenAI's clients read: message, type, param, code."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException

from octavo.errors import (
    ContextLengthError,
    EngineError,
    GrammarError,
    OctavoError,
    OverloadError,
    TemplateError,
    UsageError,
)

RETRY_SECONDS = 2
# Where a field may have several types, pydantic puts the name of each into the path.
NAME_OF_TYPE = re.compile(r"str|int|bool|constrained-str|(list|dict|function-[a-z]+)\[.*\]|[A-Z]\w+")
# The official clients try again after any 5xx, unless they are told not to.
NO_RETRY = {"x-should-retry": "false"}
RETRY = {"retry-after": str(RETRY_SECONDS)}


class ApiError(HTTPException):
    """What a client is told instead of an answer; `param` names the field of its request that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kind[429] = "rate_limit_error"
        fallback = "invalid_request_error" if self.status_code < 500 else "server_error"
        return {
            "error": {
                "message": self.detail,
                "type": kind.get(self.status_code, fallback),
                "param": self.param,
                "code": self.code,
            }
        }


# What is told of each kind of exception: status, code, the field to blame, headers. The first that fits counts.
KINDS: tuple[tuple[type[Exception], int, str, str | None, Mapping[str, str]], ...] = (
    (OverloadError, 429, "queue_full", None, RETRY),
    (EngineError, 503, "engine_stopped", None, RETRY),
    (ContextLengthError, 400, "context_length_exceeded", None, {}),
    (GrammarError, 400, "invalid_grammar", "response_format", {}),
    (TemplateError, 400, "chat_template_error", "messages", {}),
    (UsageError, 400, "invalid_value", None, {}),
    (OctavoError, 500, "model_error", None, NO_RETRY),
)


def api_error(error: Exception) -> ApiError:
    """What a client is told of an exception; of a mistake of ours only that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        message = "the reply took longer than this server allows"
        return ApiError(504, message, "time_limit", headers=NO_RETRY)
    for kind, status, code, param, headers in KINDS:
        if isinstance(error, kind):
            return ApiError(status, str(error), code, param, headers)
    message = "the server made a mistake, which its log describes"
    return ApiError(500, message, "internal_error", headers=NO_RETRY)


def validation_error(problem: Mapping[str, Any], unsupported: frozenset[str]) -> ApiError:
    """What pydantic says of a body, as a 400 that names the field; `unsupported` are known and not offered."""
    if problem["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", "invalid_json")
    path = [str(part) for part in problem["loc"][1:] if not NAME_OF_TYPE.fullmatch(str(part))]
    field = ".".join(path) or None
    if problem["type"] == "extra_forbidden" or (path and path[0] in unsupported):
        message = f"{field} is not supported by this server; leave it out"
        return ApiError(400, message, "unsupported_parameter", field)
    return ApiError(400, f"{field or 'the body'}: {problem['msg']}", "invalid_value", field)
