"""All partition logs of one node's data directory: found and recovered at start, checkpointed, kept small, closed cleanly."""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from itertools import count, islice
from typing import Any, Final

from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.errors import KafkaStorageError, StorageError
from raftlog.ids import METADATA_TOPIC, NodeId, Offset, TopicId, TopicPartition
from raftlog.storage import checkpoints
from raftlog.storage.checkpoints import MetaProperties
from raftlog.storage.handles import OpenFiles
from raftlog.storage.log import Log
from raftlog.storage.segment import Segment
from raftlog.topic_config import TopicConfig

logger = logging.getLogger(__name__)

FLUSH_LOOK_MS: Final = 1000  # Between two looks for records that waited for `flush.ms`; less where a topic's is less.
FLUSH_LOOK_MS_MIN: Final = 10
DELETED_SUFFIX: Final = "-delete"
STRAY_SUFFIX: Final = "-stray"
FILE_NAME_CHARACTERS_MAX: Final = 255
IDENTIFIED_AT_ONCE_MAX: Final = 32  # New logs whose ids are synced before rolled segments and checkpoints have their turn again.
_NO_TOPIC_ID: Final = TopicId(int=0)
_PARTITION_DIRECTORY: Final = re.compile(r"([a-zA-Z0-9._-]+)-(\d+)")


def _log_failure(error: Exception) -> None:
    logger.error("the log directory failed: %s", error)


class LogManager:
    """The logs of `log.dirs`, but for `__cluster_metadata-0`, which belongs to the quorum."""

    def __init__(self, environment: Environment, settings: Settings) -> None:
        self.directory = settings.data_directory
        self.directory_id = uuid.UUID(int=0)  # Of meta.properties; set by `open`.
        self.on_storage_error: Callable[[Exception], object] = _log_failure  # Told of what fails while nobody waits for it.
        self._settings = settings
        self._environment = environment
        self._files = environment.files
        self._handles = OpenFiles(environment.files)
        self._default_config = TopicConfig.resolve(settings, {})
        self._logs: dict[TopicPartition, Log] = {}
        self._high_watermarks: dict[TopicPartition, Offset] = {}
        self._cleaned_offsets: dict[TopicPartition, Offset] = {}
        self._written: dict[str, dict[TopicPartition, Offset]] = {}  # The checkpoints as they are on disk.
        self._to_flush: set[TopicPartition] = set()
        self._to_remove: list[tuple[int, int, Segment]] = []  # A heap by when, in monotonic ms.
        self._removal_numbers = count()
        self._to_identify: dict[TopicPartition, None] = {}  # New ones, whose topic ids are not on disk.
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unlock: Callable[[], None] | None = None
        self._checkpointing = asyncio.Lock()  # Of two writes of one file the later must win.

    @property
    def logs(self) -> Mapping[TopicPartition, Log]:
        return self._logs

    @property
    def high_watermarks(self) -> Mapping[TopicPartition, Offset]:
        """As last checkpointed."""
        return self._high_watermarks

    @property
    def cleaned_offsets(self) -> Mapping[TopicPartition, Offset]:
        """Below which a compacted log was cleaned; a hint, which may be older than the log."""
        return self._cleaned_offsets

    def get(self, topic_partition: TopicPartition) -> Log | None:
        return self._logs.get(topic_partition)

    def reconfigure(self, settings: Settings) -> None:
        """Other settings from now on. Logs hear of those that are their topics' defaults from whoever knows the topics."""
        self._settings = settings
        self._default_config = TopicConfig.resolve(settings, {})

    # --- opening ------------------------------------------------------------------------------------------------------

    async def open(self, cluster_id: str, node_id: NodeId) -> None:
        """Lock the directory, check or write meta.properties, recover every partition. Raises StorageError, one line."""
        files = self._files
        files.make_directory(self.directory)
        self._unlock = files.lock(self._path(checkpoints.LOCK))
        try:
            self._identify(cluster_id, node_id)
            await self._open_logs()
        except BaseException:
            self.abandon()
            raise
        self._spawn(self._maintain())
        self._spawn(self._flush_regularly())

    def _identify(self, cluster_id: str, node_id: NodeId) -> None:
        path = self._path(checkpoints.META_PROPERTIES)
        if self._files.exists(path):
            found = checkpoints.read(self._files, path, MetaProperties.parse)
            if found.cluster_id != cluster_id:
                raise StorageError(f"wrong cluster id: {path} says {found.cluster_id}, this node is of {cluster_id}")
            if found.node_id != node_id:
                raise StorageError(f"wrong node id: {path} says {found.node_id}, this node is {node_id}")
            self.directory_id = found.directory_id
            if found.directory_id != _NO_TOPIC_ID:
                return
        self.directory_id = self._random_id()
        self._files.replace(path, MetaProperties(cluster_id, node_id, self.directory_id).format())

    def _random_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._environment.random.getrandbits(128), version=4)

    async def _open_logs(self) -> None:
        clean = self._take_clean_mark()
        recovery_points = self._read_checkpoint(checkpoints.RECOVERY_POINTS)
        log_starts = self._read_checkpoint(checkpoints.LOG_STARTS)
        self._high_watermarks = self._read_checkpoint(checkpoints.HIGH_WATERMARKS)
        self._cleaned_offsets = self._read_checkpoint(checkpoints.CLEANED_OFFSETS)
        found = self._find_directories()
        if found and not clean:
            logger.info("%s was not closed cleanly: checking %d partitions above their recovery points", self.directory, len(found))

        async def open_one(name: TopicPartition) -> None:
            log = await Log.open(
                self._files,
                self._path(str(name)),
                topic_partition=name,
                config=self._default_config,
                clock=self._environment.clock,
                recovery_point=recovery_points.get(name, 0),
                log_start_offset=log_starts.get(name, 0),
                clean_shutdown=clean,
                handles=self._handles,
            )
            self._add(log)
            await asyncio.sleep(0)  # Whoever else is on this loop goes on.

        await _a_few_at_once((open_one(name) for name in found), at_once=self._at_once(len(found)))

    def _take_clean_mark(self) -> bool:
        """Whether the last shutdown was clean; the next one is not, until it is."""
        path = self._path(checkpoints.CLEAN_SHUTDOWN)
        if not self._files.exists(path):
            return False
        self._files.remove(path)
        self._files.sync_directory(self.directory)
        return True

    def _read_checkpoint(self, name: str) -> dict[TopicPartition, Offset]:
        path = self._path(name)
        if not self._files.exists(path):
            return {}
        offsets = checkpoints.read(self._files, path, checkpoints.parse_offsets)
        self._written[name] = dict(offsets)
        return offsets

    def _find_directories(self) -> list[TopicPartition]:
        found = []
        for name in self._files.list(self.directory):
            match = _PARTITION_DIRECTORY.fullmatch(name)
            if name.endswith(DELETED_SUFFIX):
                self._spawn(self._remove_tree(self._path(name)))
            elif match is not None and match[1] != METADATA_TOPIC:
                found.append(TopicPartition(match[1], int(match[2])))
        return found

    def _add(self, log: Log) -> None:
        log.on_rolled = self._rolled
        log.on_cut = self._cut
        log.on_deleted = self._deleted
        log.on_start_moved = self._work.set
        self._logs[log.topic_partition] = log

    # --- partitions come and go ---------------------------------------------------------------------------------------

    def create(self, topic_partition: TopicPartition, topic_id: TopicId, config: TopicConfig) -> Log:
        """A new log; an existing one with this topic id is returned, reconfigured. One of another id is deleted first.

        Raises KafkaStorageError.
        """
        log = self._logs.get(topic_partition)
        if log is not None and log.topic_id not in (topic_id, _NO_TOPIC_ID):
            self.delete(topic_partition)
            log = None
        try:
            if log is not None:
                log.reconfigure(config)
                if log.topic_id != topic_id:
                    log.adopt(topic_id)
                    self._to_identify[topic_partition] = None
                    self._work.set()
                return log
            self._forget_earlier(topic_partition)
            log = Log.create(
                self._files,
                self._path(str(topic_partition)),
                topic_partition=topic_partition,
                topic_id=topic_id,
                config=config,
                clock=self._environment.clock,
                handles=self._handles,
            )
        except StorageError as error:
            raise KafkaStorageError(str(error)) from error
        self._add(log)
        self._to_identify[topic_partition] = None
        self._work.set()
        return log

    def delete(self, topic_partition: TopicPartition) -> None:
        """Take the log out of use at once (its directory is renamed); its files go in the background. Missing is fine.

        Raises KafkaStorageError when the directory can't be renamed; the log is out of use all the same.
        """
        renamed = self._take_out(topic_partition, DELETED_SUFFIX)
        if renamed is not None:
            self._spawn(self._remove_tree(renamed))

    def set_aside(self, topic_partition: TopicPartition) -> None:
        """Take the log out of use, but keep its files: its directory gets the suffix `-stray`, as in Kafka. Missing is fine.

        For a log that nobody is known to have deleted: should the metadata be what was lost, the records are not.
        Raises KafkaStorageError as `delete` does.
        """
        renamed = self._take_out(topic_partition, STRAY_SUFFIX)
        if renamed is not None:
            logger.warning("%s is not assigned to this broker: its log is set aside as %s", topic_partition, renamed)

    def _forget_earlier(self, topic_partition: TopicPartition) -> None:
        """What the checkpoints say of a deleted log must not be taken for a new one's of the same name after a crash.

        Seldom, so it may wait for the disk: only where the topic comes back before the checkpoints were written anew. All
        that is gone is left out at once. Synced, since a torn checkpoint keeps the node from starting after a loss of power.
        """
        for name, offsets in self._written.items():
            if topic_partition in offsets:
                kept = {known: offset for known, offset in offsets.items() if known in self._logs}
                self._files.replace(self._path(name), checkpoints.format_offsets(kept))
                self._written[name] = kept

    def _take_out(self, topic_partition: TopicPartition, ending: str) -> str | None:
        """Rename the directory of a log and forget the log; the new path, None where there is no such log."""
        log = self._logs.pop(topic_partition, None)
        if log is None:
            return None
        self._high_watermarks.pop(topic_partition, None)
        self._cleaned_offsets.pop(topic_partition, None)
        self._to_flush.discard(topic_partition)
        log.abandon()
        suffix = f".{self._random_id().hex}{ending}"
        renamed = self._path(str(topic_partition)[: FILE_NAME_CHARACTERS_MAX - len(suffix)] + suffix)
        try:
            self._files.rename(log.directory, renamed)
        except StorageError as error:
            raise KafkaStorageError(str(error)) from error
        log.moved(renamed)
        self._work.set()
        return renamed

    async def _remove_tree(self, directory: str) -> None:
        """Remove a deleted partition file by file, off the event loop: where the disk is told of freed blocks, even a small one takes ms."""
        try:
            await self._files.sync_directory_later(self.directory)
            for name in self._files.list(directory):
                await self._files.remove_later(f"{directory}/{name}")
            self._files.remove_tree(directory)
        except StorageError as error:
            logger.warning("a deleted partition stays until the next start: %s", error)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _rolled(self, name: TopicPartition) -> None:
        self._to_flush.add(name)
        self._work.set()

    def _cut(self, name: TopicPartition) -> None:
        if name in self._cleaned_offsets:
            self._cleaned_offsets[name] = min(self._cleaned_offsets[name], self._logs[name].log_end_offset)
        self._work.set()

    def _deleted(self, segment: Segment, delay_ms: int) -> None:
        due_ms = self._environment.clock.monotonic_ms() + delay_ms
        heapq.heappush(self._to_remove, (due_ms, next(self._removal_numbers), segment))

    async def _remove_due(self) -> None:
        """Remove the files of segments that were deleted long enough ago; those still there at a stop go at the next start."""
        while self._to_remove and self._to_remove[0][0] <= self._environment.clock.monotonic_ms():
            segment = heapq.heappop(self._to_remove)[2]
            try:
                await segment.remove_later()
            except StorageError as error:
                logger.warning("the files of a deleted segment stay until the next start: %s", error)

    async def _maintain(self) -> None:
        """Flush rolled segments, keep the checkpoints up to date, forget idle producers."""
        interval_s = self._settings.log_flush_offset_checkpoint_interval_ms / 1000
        while True:
            try:
                async with asyncio.timeout(interval_s):  # Not wait_for: until 3.12 that one can swallow a cancellation.
                    await self._work.wait()
            except TimeoutError:
                self._expire_producers()
            self._work.clear()
            await self._flush_rolled()
            try:
                await self._checkpoint_logs()
                await self._identify_new()
            except StorageError as error:
                self.on_storage_error(error)

    async def _identify_new(self) -> None:
        """Bring the topic ids of new logs to disk, some at a time: after a loss of power a log without one is set aside as a stray."""
        names = list(islice(self._to_identify, IDENTIFIED_AT_ONCE_MAX))
        identified = []
        for name in names:
            del self._to_identify[name]
            log = self._logs.get(name)
            if log is None or log.has_identity_on_disk:
                continue
            try:
                await log.sync_identity()
            except StorageError:
                if log is self._logs.get(name):  # Else it was deleted meanwhile.
                    raise
                continue
            identified.append(log)
        if identified:
            await self._files.sync_directory_later(self.directory)
            for log in identified:
                log.identity_is_synced()
        if self._to_identify:
            self._work.set()

    async def _flush_rolled(self) -> None:
        while self._to_flush:
            log = self._logs.get(self._to_flush.pop())
            if log is not None:
                await self._flush(log)

    async def _flush(self, log: Log) -> None:
        try:
            await log.flush()
        except KafkaStorageError as error:
            if log is self._logs.get(log.topic_partition):  # Else it was deleted meanwhile.
                self.on_storage_error(error)

    async def _flush_regularly(self) -> None:
        """Bring records to disk that have waited for their topic's `flush.ms`; remove files that have waited to go."""
        pause_ms = FLUSH_LOOK_MS
        while True:
            await asyncio.sleep(pause_ms / 1000)
            await self._remove_due()
            pause_ms = FLUSH_LOOK_MS
            for log in list(self._logs.values()):
                pause_ms = min(pause_ms, max(log.config.flush_ms, FLUSH_LOOK_MS_MIN))
                if log.is_flush_due(self._environment.clock.monotonic_ms()):
                    await self._flush(log)

    def _expire_producers(self) -> None:
        now_ms = self._environment.clock.monotonic_ms()
        for log in self._logs.values():
            log.producers.expire(now_ms, expiration_ms=self._settings.producer_id_expiration_ms)

    async def _checkpoint_logs(self) -> None:
        await self._write(checkpoints.RECOVERY_POINTS, {name: log.recovery_point for name, log in self._logs.items()})
        await self.checkpoint_log_starts()
        await self._checkpoint_cleaned()

    async def checkpoint_cleaned(self, name: TopicPartition, offset: Offset) -> None:
        """The log is compacted below `offset`: write `cleaner-offset-checkpoint`. Raises StorageError."""
        if name in self._logs:
            self._cleaned_offsets[name] = offset
            await self._checkpoint_cleaned()

    async def _checkpoint_cleaned(self) -> None:
        async with self._checkpointing:
            if self._cleaned_offsets or checkpoints.CLEANED_OFFSETS in self._written:
                await self._write(checkpoints.CLEANED_OFFSETS, self._cleaned_offsets)

    async def checkpoint_log_starts(self) -> None:
        """Write `log-start-offset-checkpoint`: of the logs that begin within what is still on disk. Raises StorageError."""
        async with self._checkpointing:
            await self._write_log_starts()

    async def _write_log_starts(self) -> None:
        starts = {name: log.log_start_offset for name, log in self._logs.items() if log.log_start_offset > log.first_base_offset}
        await self._write(checkpoints.LOG_STARTS, starts)

    async def checkpoint_high_watermarks(self, high_watermarks: Mapping[TopicPartition, Offset]) -> None:
        """Write `replication-offset-checkpoint`. Logs that aren't named keep what was checkpointed before. Raises StorageError."""
        self._high_watermarks.update(high_watermarks)
        await self._write(checkpoints.HIGH_WATERMARKS, self._high_watermarks)

    async def _write(self, name: str, offsets: Mapping[TopicPartition, Offset]) -> None:
        if self._written.get(name) == offsets:
            return
        content = checkpoints.format_offsets(offsets)
        self._written[name] = dict(offsets)  # Before it is: a log that is created meanwhile must find its name there.
        try:
            await self._files.replace_later(self._path(name), content)
        except BaseException:
            del self._written[name]
            raise

    # --- closing ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close every log cleanly, write the checkpoints and `.kafka_cleanshutdown`, release the lock.

        A log that can't be closed is logged; the next start then checks all of them.
        """
        if self._unlock is None:
            return
        await self._stop_tasks()
        failures: list[str] = []

        async def close_one(log: Log) -> None:
            try:
                await log.close()
            except KafkaStorageError as error:
                failures.append(str(error))

        await _a_few_at_once((close_one(log) for log in self._logs.values()), at_once=self._at_once(len(self._logs)))
        try:
            await self._checkpoint_logs()
            if not failures and not any(log.failed for log in self._logs.values()):
                await self._files.replace_later(self._path(checkpoints.CLEAN_SHUTDOWN), b'{"version":0,"brokerEpoch":-1}')
        except StorageError as error:
            failures.append(str(error))
        for failure in failures:
            logger.error("%s is not closed cleanly: %s", self.directory, failure)
        self._release()

    def abandon(self) -> None:
        """Let go of everything as a crash does: nothing is flushed, written or marked."""
        for task in self._tasks:
            task.cancel()
        for log in self._logs.values():
            log.abandon()
        self._release()

    def _release(self) -> None:
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    async def _stop_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _at_once(self, count: int) -> int:
        """How many of so many logs are opened or closed at a time."""
        return min(count, self._settings.num_recovery_threads_per_data_dir)

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"


async def _a_few_at_once(work: Iterable[Coroutine[Any, Any, None]], *, at_once: int) -> None:
    """Run all, `at_once` at a time: more would only wait for the same disk. The first error is raised after those running have ended."""
    waiting = iter(work)

    async def run() -> None:
        for one in waiting:
            await one

    results = await asyncio.gather(*(run() for _ in range(at_once)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
