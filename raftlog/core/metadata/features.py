"""The features of a cluster: levels that are finalized by records, and the ranges that raftlog's nodes serve.

Source: KIP-584, KIP-778; KAFKA-18979 (`kraft.version` is never a FeatureLevelRecord).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from raftlog.core.metadata import records as r

KRAFT_VERSION_FEATURE: Final = "kraft.version"
GROUP_VERSION_FEATURE: Final = "group.version"
GROUP_VERSION: Final = 1  # The consumer protocol (KIP-848).

# What a broker or controller of this release registers with, and answers to ApiVersions.
SUPPORTED_FEATURES: Final[Mapping[str, tuple[int, int]]] = {
    r.METADATA_VERSION_FEATURE: (r.METADATA_VERSION_MIN, r.METADATA_VERSION),
    GROUP_VERSION_FEATURE: (0, GROUP_VERSION),
}


def bootstrap_records() -> list[r.MetadataRecord]:
    """What a new cluster's metadata log begins with: its finalized features, in one metadata transaction."""
    return [
        r.BeginTransactionRecord(name="Bootstrap records"),
        r.FeatureLevelRecord(name=r.METADATA_VERSION_FEATURE, feature_level=r.METADATA_VERSION),
        r.FeatureLevelRecord(name=GROUP_VERSION_FEATURE, feature_level=GROUP_VERSION),
        r.EndTransactionRecord(),
    ]
