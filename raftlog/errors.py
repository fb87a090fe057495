"""Exceptions, each tied to one Kafka error code, so that whoever catches one knows what to answer.

`core` and `broker` raise them for a peer's mistakes; the router and the handlers turn them into the code and message
of the response. Local conditions that no client caused (a bad file, a bad setting) are `RaftlogError`s of their own.
Source: https://kafka.apache.org/protocol#protocol_error_codes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from kio.schema.errors import ErrorCode

__all__ = ["ApiError", "ConfigError", "ErrorCode", "RaftlogError", "StorageError", "error_for"]


MESSAGE_CHARS_MAX: Final = 1000  # What a peer sent may be in a message, and must neither fill a log nor exceed an int16 length.


class RaftlogError(Exception):
    """Anything raftlog reports to a person as one clear line."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


class ConfigError(RaftlogError):
    """A setting is unknown, ill-typed, out of range or at odds with another: the node does not start."""


class StorageError(RaftlogError):
    """A file or directory is missing, foreign, damaged beyond recovery, or the disk refused: names the path."""


class ApiError(RaftlogError):
    """A request, or one item of it, is refused with `code`; `str()` is the message for the client.

    Of a record batch, `record_errors` says which of its records are at fault, by their index in it, and why (KIP-467).
    """

    code: ClassVar[ErrorCode] = ErrorCode.unknown_server_error

    def __init__(self, *args: object, record_errors: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(*args)
        self.record_errors = record_errors

    @property
    def retriable(self) -> bool:
        """Whether Kafka's clients try again by themselves on this code."""
        return self.code.retriable


class OffsetOutOfRange(ApiError):
    code = ErrorCode.offset_out_of_range


class CorruptMessage(ApiError):
    code = ErrorCode.corrupt_message


class UnknownTopicOrPartition(ApiError):
    code = ErrorCode.unknown_topic_or_partition


class LeaderNotAvailable(ApiError):
    code = ErrorCode.leader_not_available


class NotLeaderOrFollower(ApiError):
    code = ErrorCode.not_leader_or_follower


class RequestTimedOut(ApiError):
    code = ErrorCode.request_timed_out


class BrokerNotAvailable(ApiError):
    code = ErrorCode.broker_not_available


class ReplicaNotAvailable(ApiError):
    code = ErrorCode.replica_not_available


class MessageTooLarge(ApiError):
    code = ErrorCode.message_too_large


class OffsetMetadataTooLarge(ApiError):
    code = ErrorCode.offset_metadata_too_large


class CoordinatorLoadInProgress(ApiError):
    code = ErrorCode.coordinator_load_in_progress


class CoordinatorNotAvailable(ApiError):
    code = ErrorCode.coordinator_not_available


class NotCoordinator(ApiError):
    code = ErrorCode.not_coordinator


class InvalidTopic(ApiError):
    code = ErrorCode.invalid_topic_exception


class RecordListTooLarge(ApiError):
    code = ErrorCode.record_list_too_large


class NotEnoughReplicas(ApiError):
    code = ErrorCode.not_enough_replicas


class NotEnoughReplicasAfterAppend(ApiError):
    code = ErrorCode.not_enough_replicas_after_append


class InvalidRequiredAcks(ApiError):
    code = ErrorCode.invalid_required_acks


class IllegalGeneration(ApiError):
    code = ErrorCode.illegal_generation


class InconsistentGroupProtocol(ApiError):
    code = ErrorCode.inconsistent_group_protocol


class InvalidGroupId(ApiError):
    code = ErrorCode.invalid_group_id


class UnknownMemberId(ApiError):
    code = ErrorCode.unknown_member_id


class InvalidSessionTimeout(ApiError):
    code = ErrorCode.invalid_session_timeout


class RebalanceInProgress(ApiError):
    code = ErrorCode.rebalance_in_progress


class InvalidCommitOffsetSize(ApiError):
    code = ErrorCode.invalid_commit_offset_size


class TopicAuthorizationFailed(ApiError):
    code = ErrorCode.topic_authorization_failed


class UnsupportedSaslMechanism(ApiError):
    code = ErrorCode.unsupported_sasl_mechanism


class IllegalSaslState(ApiError):
    code = ErrorCode.illegal_sasl_state


class UnsupportedVersion(ApiError):
    code = ErrorCode.unsupported_version


class TopicAlreadyExists(ApiError):
    code = ErrorCode.topic_already_exists


class InvalidPartitions(ApiError):
    code = ErrorCode.invalid_partitions


class InvalidReplicationFactor(ApiError):
    code = ErrorCode.invalid_replication_factor


class InvalidReplicaAssignment(ApiError):
    code = ErrorCode.invalid_replica_assignment


class InvalidConfig(ApiError):
    code = ErrorCode.invalid_config


class NotController(ApiError):
    code = ErrorCode.not_controller


class InvalidRequest(ApiError):
    code = ErrorCode.invalid_request


class UnsupportedForMessageFormat(ApiError):
    code = ErrorCode.unsupported_for_message_format


class PolicyViolation(ApiError):
    code = ErrorCode.policy_violation


class OutOfOrderSequenceNumber(ApiError):
    code = ErrorCode.out_of_order_sequence_number


class DuplicateSequenceNumber(ApiError):
    code = ErrorCode.duplicate_sequence_number


class InvalidProducerEpoch(ApiError):
    code = ErrorCode.invalid_producer_epoch


class InvalidTxnState(ApiError):
    code = ErrorCode.invalid_txn_state


class TransactionalIdAuthorizationFailed(ApiError):
    code = ErrorCode.transactional_id_authorization_failed


class KafkaStorageError(ApiError):
    code = ErrorCode.kafka_storage_error


class LogDirNotFound(ApiError):
    code = ErrorCode.log_dir_not_found


class ReassignmentInProgress(ApiError):
    code = ErrorCode.reassignment_in_progress


class UnknownProducerId(ApiError):
    code = ErrorCode.unknown_producer_id


class FetchSessionIdNotFound(ApiError):
    code = ErrorCode.fetch_session_id_not_found


class InvalidFetchSessionEpoch(ApiError):
    code = ErrorCode.invalid_fetch_session_epoch


class FetchSessionTopicIdError(ApiError):
    code = ErrorCode.fetch_session_topic_id_error


class FencedLeaderEpoch(ApiError):
    code = ErrorCode.fenced_leader_epoch


class UnknownLeaderEpoch(ApiError):
    code = ErrorCode.unknown_leader_epoch


class UnsupportedCompressionType(ApiError):
    code = ErrorCode.unsupported_compression_type


class StaleBrokerEpoch(ApiError):
    code = ErrorCode.stale_broker_epoch


class OffsetNotAvailable(ApiError):
    code = ErrorCode.offset_not_available


class MemberIdRequired(ApiError):
    code = ErrorCode.member_id_required


class PreferredLeaderNotAvailable(ApiError):
    code = ErrorCode.preferred_leader_not_available


class GroupMaxSizeReached(ApiError):
    code = ErrorCode.group_max_size_reached


class FencedInstanceId(ApiError):
    code = ErrorCode.fenced_instance_id


class EligibleLeadersNotAvailable(ApiError):
    code = ErrorCode.eligible_leaders_not_available


class ElectionNotNeeded(ApiError):
    code = ErrorCode.election_not_needed


class NoReassignmentInProgress(ApiError):
    code = ErrorCode.no_reassignment_in_progress


class GroupSubscribedToTopic(ApiError):
    code = ErrorCode.group_subscribed_to_topic


class InvalidRecord(ApiError):
    code = ErrorCode.invalid_record


class UnstableOffsetCommit(ApiError):
    code = ErrorCode.unstable_offset_commit


class InconsistentVoterSet(ApiError):
    code = ErrorCode.inconsistent_voter_set


class InvalidUpdateVersion(ApiError):
    code = ErrorCode.invalid_update_version


class FeatureUpdateFailed(ApiError):
    code = ErrorCode.feature_update_failed


class SnapshotNotFound(ApiError):
    code = ErrorCode.snapshot_not_found


class PositionOutOfRange(ApiError):
    code = ErrorCode.position_out_of_range


class UnknownTopicId(ApiError):
    code = ErrorCode.unknown_topic_id


class DuplicateBrokerRegistration(ApiError):
    code = ErrorCode.duplicate_broker_registration


class ThrottlingQuotaExceeded(ApiError):
    code = ErrorCode.throttling_quota_exceeded


class UnknownSubscriptionId(ApiError):
    code = ErrorCode.unknown_subscription_id


class TelemetryTooLarge(ApiError):
    code = ErrorCode.telemetry_too_large


class BrokerIdNotRegistered(ApiError):
    code = ErrorCode.broker_id_not_registered


class InconsistentTopicId(ApiError):
    code = ErrorCode.inconsistent_topic_id


class InconsistentClusterId(ApiError):
    code = ErrorCode.inconsistent_cluster_id


class IneligibleReplica(ApiError):
    code = ErrorCode.ineligible_replica


class NewLeaderElected(ApiError):
    code = ErrorCode.new_leader_elected


class NonEmptyGroup(ApiError):
    code = ErrorCode.non_empty_group


class GroupIdNotFound(ApiError):
    code = ErrorCode.group_id_not_found


class InvalidTimestamp(ApiError):
    code = ErrorCode.invalid_timestamp


class FencedMemberEpoch(ApiError):
    code = ErrorCode.fenced_member_epoch


class UnreleasedInstanceId(ApiError):
    code = ErrorCode.unreleased_instance_id


class UnsupportedAssignor(ApiError):
    code = ErrorCode.unsupported_assignor


class StaleMemberEpoch(ApiError):
    code = ErrorCode.stale_member_epoch


class InvalidRegistration(ApiError):
    code = ErrorCode.invalid_registration


class UnknownControllerId(ApiError):
    code = ErrorCode.unknown_controller_id


class InvalidRegularExpression(ApiError):
    code = ErrorCode.invalid_regular_expression


_BY_CODE: dict[ErrorCode, type[ApiError]] = {cls.code: cls for cls in ApiError.__subclasses__()}


def error_for(code: int, message: str | None = None) -> ApiError:
    """The exception for a code that a peer answered; one without a class of its own comes as `ApiError` subclass."""
    known = ErrorCode(code)
    cls = _BY_CODE.get(known)
    if cls is None:
        cls = type(known.name, (ApiError,), {"code": known})
        _BY_CODE[known] = cls
    return cls(message or known.name)
