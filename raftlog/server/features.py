"""The features part of ApiVersions: what this node supports, and what the cluster has finalized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raftlog.core.metadata.image import MetadataImage


def describe_features(image: MetadataImage, supported: Mapping[str, tuple[int, int]]) -> Mapping[str, Any]:
    """Fields of the ApiVersions response, by kio's names. The epoch of finalized features is the metadata offset."""
    return {
        "supported_features": [{"name": name, "min_version": low, "max_version": high} for name, (low, high) in supported.items()],
        "finalized_features_epoch": image.offset - 1,
        "finalized_features": [
            {"name": name, "max_version_level": level, "min_version_level": level} for name, level in image.features.items() if level > 0
        ],
        "zk_migration_ready": False,
    }
