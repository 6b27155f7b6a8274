"""Somebody else's validator agrees that the document is OpenAPI 3.1."""

from __future__ import annotations

import json

import msgspec
import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from perdure.api.openapi import document


def test_the_document_is_valid() -> None:
    validate(json.loads(msgspec.json.encode(document("0.1.0"))))


def test_a_planted_error_is_found() -> None:
    planted = json.loads(msgspec.json.encode(document("0.1.0")))
    del planted["info"]["title"]
    with pytest.raises(OpenAPIValidationError):
        validate(planted)
