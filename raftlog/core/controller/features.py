"""Levels of the cluster's features: finalized all together, or none of them.

Source: KIP-584, KIP-778, KIP-1022; Kafka's FeatureControlManager, with its messages.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final

from raftlog.config import Settings
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.entities import FeatureRange
from raftlog.core.metadata.features import KRAFT_VERSION_FEATURE, SUPPORTED_FEATURES
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ErrorCode, InvalidUpdateVersion

NOT_SERVED: Final = FeatureRange(0, 0)
KRAFT_VERSION: Final = 0  # The voters are those of the settings, which never change.


class UpgradeType(enum.IntEnum):
    """What the asker agrees to; a safe downgrade loses no metadata."""

    UNKNOWN = 0
    UPGRADE = 1
    SAFE_DOWNGRADE = 2
    UNSAFE_DOWNGRADE = 3


def decide_update_features(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """UpdateFeatures v0-v2 (key 57): finalize other levels. `validate_only` included.

    The first feature that can't have its level refuses them all, at the top of the answer. `results` name each feature where all
    went well, for v0 and v1; v2 has no such field. Of a feature that is named twice the last counts.
    """
    updates = {update.feature: update for update in request.feature_updates}
    try:
        for update in updates.values():
            _check(image, settings.node_id, [voter.node_id for voter in settings.voters], update)
    except InvalidUpdateVersion as error:
        message = f"The update failed for all features since the following feature had an error: {error}"
        return Decision((), {"error_code": error.code, "error_message": message, "results": ()})
    records = [
        r.FeatureLevelRecord(name=name, feature_level=update.max_version_level)
        for name, update in updates.items()
        if update.max_version_level != level_of(image, name)
    ]
    results = [{"feature": name, "error_code": ErrorCode.none, "error_message": None} for name in updates]
    reply = {"error_code": ErrorCode.none, "error_message": None, "results": results}
    return Decision([] if request.validate_only else records, reply)


def level_of(image: MetadataImage, feature: str) -> int:
    """The finalized level; a feature that is not finalized has level 0."""
    if feature == r.METADATA_VERSION_FEATURE:
        return image.metadata_version
    if feature == KRAFT_VERSION_FEATURE:
        return KRAFT_VERSION
    return image.features.get(feature, 0)


def _check(image: MetadataImage, node_id: int, voters: Iterable[int], update: Any) -> None:
    """Raises InvalidUpdateVersion."""
    feature, level, present = update.feature, update.max_version_level, level_of(image, update.feature)
    upgrade_type = _upgrade_type(update)
    if upgrade_type is UpgradeType.UNKNOWN:
        raise _refusal(feature, level, "The controller does not support the given upgrade type.")
    if level < 0:
        raise _refusal(feature, level, "A feature version cannot be less than 0.")
    if feature == KRAFT_VERSION_FEATURE and level != present:
        raise _refusal(feature, level, "The voters of this cluster are those of its settings, which needs version 0.")
    if feature != KRAFT_VERSION_FEATURE:
        _check_served(image, node_id, set(voters), feature, level)
    if level < present and upgrade_type is UpgradeType.UPGRADE:
        problem = "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe downgrade."
        raise _refusal(feature, level, problem)
    if level > present and upgrade_type is not UpgradeType.UPGRADE:
        raise _refusal(feature, level, "Can't downgrade to a newer version.")
    if feature == r.METADATA_VERSION_FEATURE and any(level < changed <= present for changed in r.RECORDS_CHANGED_AT):
        # What the higher level brought to the records would have to be taken out of all of them again.
        if upgrade_type is UpgradeType.UNSAFE_DOWNGRADE:
            raise InvalidUpdateVersion(f"Invalid metadata.version {level}. Unsafe metadata downgrade is not supported in this version.")
        problem = "Refusing to perform the requested downgrade because it might delete metadata information."
        raise InvalidUpdateVersion(f"Invalid metadata.version {level}. {problem}")


def _upgrade_type(update: Any) -> UpgradeType:
    if update.allow_downgrade:  # Only v0 has it, and no other type.
        return UpgradeType.SAFE_DOWNGRADE
    known = update.upgrade_type in UpgradeType.__members__.values()
    return UpgradeType(update.upgrade_type) if known else UpgradeType.UNKNOWN


def _check_served(image: MetadataImage, node_id: int, voters: set[int], feature: str, level: int) -> None:
    """Whether this release, and every broker and other controller that has registered, can run at that level."""
    if feature not in SUPPORTED_FEATURES:
        raise _refusal(feature, level, f"Local controller {node_id} does not support this feature.")
    nodes = [(f"Local controller {node_id}", FeatureRange(*SUPPORTED_FEATURES[feature]))]
    nodes += [(f"Broker {broker.node_id}", broker.features.get(feature, NOT_SERVED)) for broker in image.brokers.values()]
    others = (image.controllers[voter] for voter in sorted(voters - {node_id}) if voter in image.controllers)
    nodes += [(f"Controller {controller.node_id}", controller.features.get(feature, NOT_SERVED)) for controller in others]
    for node, served in nodes:
        if served.minimum <= level <= served.maximum:
            continue
        if served.maximum == 0:
            raise _refusal(feature, level, f"{node} does not support this feature.")
        levels = str(served.minimum) if served.minimum == served.maximum else f"{served.minimum}-{served.maximum}"
        raise _refusal(feature, level, f"{node} only supports versions {levels}")


def _refusal(feature: str, level: int, problem: str) -> InvalidUpdateVersion:
    return InvalidUpdateVersion(f"Invalid update version {level} for feature {feature}. {problem}")
