"""Plans in JSON, as Kafka's own tools write and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CliError


def read_plan(path: Path) -> list[Any]:
    """The partitions of a plan of version 1. Raises CliError."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise CliError(f"{path} is not JSON: {error}") from None
    items = document.get("partitions") if isinstance(document, dict) else None
    if not isinstance(items, list) or document.get("version", 1) != 1:
        raise CliError(f'{path} is not a plan of version 1: {{"version": 1, "partitions": […]}}')
    return items


def write_plan(path: Path, document: Mapping[str, Any]) -> None:
    """Raises CliError."""
    try:
        path.write_text(json.dumps(document) + "\n", "utf-8")
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or str(error)).lower()}") from None
