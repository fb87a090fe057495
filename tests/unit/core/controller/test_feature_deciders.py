"""UpdateFeatures: what is refused and why, and that an answer's levels are all finalized or none."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from raftlog.config import Settings
from raftlog.core.controller.features import UpgradeType, decide_update_features, level_of
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ErrorCode
from raftlog.protocol.messages import Fields, decode_request, decode_response, encode_request_body, encode_response

SETTINGS = Settings(node_id=1, controller_quorum_voters=("1@h:1", "2@h:2"))
UPGRADE, SAFE, UNSAFE = UpgradeType.UPGRADE, UpgradeType.SAFE_DOWNGRADE, UpgradeType.UNSAFE_DOWNGRADE
KEY = 57
METADATA, GROUPS = "metadata.version", "group.version"
PREFIX = "The update failed for all features since the following feature had an error: "


def image_of(*records: r.MetadataRecord, metadata_version: int = 25, group_version: int = 0) -> MetadataImage:
    levels = [r.FeatureLevelRecord(name=METADATA, feature_level=metadata_version), r.FeatureLevelRecord(name=GROUPS, feature_level=group_version)]
    return MetadataImage().apply_batch([*levels, *records], offset=2 + len(records), epoch=1)[0]


def served(**ranges: tuple[int, int]) -> tuple[r.RecordFeature, ...]:
    names = {"metadata": METADATA, "groups": GROUPS}
    return tuple(r.RecordFeature(name=names[key], min_supported_version=low, max_supported_version=high) for key, (low, high) in ranges.items())


def broker(node_id: int, **ranges: tuple[int, int]) -> r.RegisterBrokerRecord:
    return r.RegisterBrokerRecord(
        broker_id=node_id,
        incarnation_id=uuid.UUID(int=node_id),
        broker_epoch=1,
        end_points=(),
        features=served(**ranges),
        rack=None,
        fenced=True,
        in_controlled_shutdown=False,
        log_dirs=(),
    )


def controller(node_id: int, **ranges: tuple[int, int]) -> r.RegisterControllerRecord:
    return r.RegisterControllerRecord(controller_id=node_id, incarnation_id=uuid.UUID(int=node_id), end_points=(), features=served(**ranges))


def ask(
    image: MetadataImage, *updates: tuple[str, int, int], version: int = 2, validate_only: bool = False
) -> tuple[Fields, MetadataImage, list[r.MetadataRecord]]:
    """The answer as its asker reads it, the image after it, and the records that made that."""
    items = [{"feature": name, "max_version_level": level, "upgrade_type": int(kind)} for name, level, kind in updates]
    for item in items if version == 0 else ():
        item["allow_downgrade"] = item.pop("upgrade_type") != UPGRADE
    fields: dict[str, Any] = {"timeout": 1000, "feature_updates": items}
    if version >= 1:
        fields["validate_only"] = validate_only
    request = decode_request(KEY, version, memoryview(encode_request_body(KEY, version, fields)))
    decision = decide_update_features(image, request, settings=SETTINGS)
    _, answer = decode_response(KEY, version, encode_response(KEY, version, 1, decision.reply))
    records = list(decision.records)
    return answer, image.apply_batch(records, offset=image.offset + len(records), epoch=1)[0], records


def refusal(image: MetadataImage, *update: tuple[str, int, int], version: int = 2) -> str:
    """Why it was refused, whole."""
    answer, _, records = ask(image, *update, version=version)
    assert answer.error_code is ErrorCode.invalid_update_version and not records
    assert not answer.results
    assert answer.error_message.startswith(PREFIX)
    return str(answer.error_message.removeprefix(PREFIX))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_what_was_bootstrapped_without_groups_gets_them(version: int) -> None:
    answer, after, _ = ask(image_of(), (GROUPS, 1, UPGRADE), version=version)
    assert (answer.error_code, answer.error_message) == (ErrorCode.none, None)
    assert after.features == {METADATA: 25, GROUPS: 1}
    told = [(each.feature, each.error_code, each.error_message) for each in answer.results]
    assert told == ([(GROUPS, ErrorCode.none, None)] if version < 2 else [])


def test_trying_and_asking_for_what_is_there_change_nothing() -> None:
    image = image_of()
    assert ask(image, (GROUPS, 1, UPGRADE), validate_only=True)[2] == []
    assert refusal(image, (GROUPS, 2, UPGRADE)) == "Invalid update version 2 for feature group.version. Local controller 1 only supports versions 0-1"
    for update in ((GROUPS, 0, UPGRADE), (GROUPS, 0, SAFE), (METADATA, 25, UPGRADE), ("kraft.version", 0, UPGRADE)):
        answer, _, records = ask(image, update)
        assert (answer.error_code, records) == (ErrorCode.none, [])


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_downgrade_must_be_asked_for(version: int) -> None:
    image = image_of(group_version=1)
    assert refusal(image, (GROUPS, 0, UPGRADE), version=version).endswith("without setting the upgrade type to either safe or unsafe downgrade.")
    assert refusal(image_of(), (GROUPS, 1, SAFE), version=version).endswith("Can't downgrade to a newer version.")
    _, after, _ = ask(image, (GROUPS, 0, SAFE), version=version)
    assert after.features == {METADATA: 25} and level_of(after, GROUPS) == 0


def test_metadata_versions_move_as_far_as_records_stay_what_they_are() -> None:
    for present, level in ((25, 24), (25, 23), (22, 19), (20, 19)):
        assert level_of(ask(image_of(metadata_version=present), (METADATA, level, SAFE))[1], METADATA) == level
    for present, level in ((19, 25), (24, 25)):
        assert level_of(ask(image_of(metadata_version=present), (METADATA, level, UPGRADE))[1], METADATA) == level
    for present, level in ((25, 22), (23, 22), (24, 19)):
        image = image_of(metadata_version=present)
        assert refusal(image, (METADATA, level, SAFE)).endswith("because it might delete metadata information.")
        assert refusal(image, (METADATA, level, UNSAFE)).endswith("Unsafe metadata downgrade is not supported in this version.")
    assert refusal(image_of(), (METADATA, 26, UPGRADE)).endswith("Local controller 1 only supports versions 19-25")
    assert refusal(image_of(metadata_version=19), (METADATA, 18, UNSAFE)).endswith("Local controller 1 only supports versions 19-25")


def test_every_node_must_serve_the_level() -> None:
    """Also one that is down: it would not be let in again."""
    able = {"metadata": (7, 27), "groups": (0, 1)}
    assert ask(image_of(broker(5, **able), controller(2, **able)), (GROUPS, 1, UPGRADE))[1].features[GROUPS] == 1
    old = image_of(broker(5, **able), broker(6, metadata=(7, 21)))
    assert refusal(old, (GROUPS, 1, UPGRADE)).endswith("Broker 6 does not support this feature.")
    assert level_of(ask(old, (GROUPS, 0, SAFE))[1], GROUPS) == 0
    older = image_of(broker(5, metadata=(20, 24), groups=(0, 1)), metadata_version=24)
    assert refusal(older, (METADATA, 25, UPGRADE)).endswith("Broker 5 only supports versions 20-24")
    assert refusal(image_of(controller(2, metadata=(25, 25))), (METADATA, 24, SAFE)).endswith("Controller 2 only supports versions 25")
    assert ask(image_of(controller(9, metadata=(25, 25))), (METADATA, 24, SAFE))[2], "node 9 is no voter any more"


def test_what_nobody_knows() -> None:
    image = image_of(group_version=1)
    assert refusal(image, ("transaction.version", 2, UPGRADE)).endswith("Local controller 1 does not support this feature.")
    assert refusal(image, ("kraft.version", 1, UPGRADE)).endswith("The voters of this cluster are those of its settings, which needs version 0.")
    assert refusal(image, (GROUPS, 0, 0)).endswith("The controller does not support the given upgrade type.")
    assert refusal(image, (GROUPS, 0, 4)).endswith("The controller does not support the given upgrade type.")
    assert refusal(image, (GROUPS, -1, SAFE)).endswith("A feature version cannot be less than 0.")


def test_one_that_fails_stops_all_others() -> None:
    image = image_of(metadata_version=24)
    assert refusal(image, (METADATA, 25, UPGRADE), (GROUPS, 7, UPGRADE)).startswith("Invalid update version 7 for feature group.version.")
    _, after, records = ask(image, (METADATA, 25, UPGRADE), (GROUPS, 1, UPGRADE))
    assert after.features == {METADATA: 25, GROUPS: 1} and len(records) == 2
    assert ask(image)[0].error_code is ErrorCode.none
