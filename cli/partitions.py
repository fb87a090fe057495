"""Which partitions a command is about: `orders`, `orders:0,2-4`, `log*`, looked up in the cluster's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from raftlog.ids import TopicPartition

from .errors import CliError, UsageProblem

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

    from .brokers import Brokers

PARTITIONS_METAVAR: Final = "TOPIC[:PARTITIONS]..."
PARTITIONS_HELP: Final = "Such as orders, orders:0,2-4 or 'log*'."
PARTITIONS_MAX: Final = 1_000_000  # A range is spelt out: a slip in it must not fill the memory.
PATTERN_CHARACTERS: Final = frozenset("*?[")  # None of them may be in a topic's name.


class Choice(NamedTuple):
    """A topic's name or pattern, and the partitions of it that are meant; None: all."""

    topic: str
    partitions: tuple[int, ...] | None = None


def parse_choice(text: str) -> Choice:
    """`orders`, `orders:0,2-4`. Raises UsageProblem."""
    topic, separator, numbers = text.partition(":")
    if not topic or (separator and not numbers):
        raise UsageProblem(f"{text!r} is not like orders or orders:0,2-4")
    return Choice(topic, parse_numbers(numbers) if separator else None)


def parse_choices(texts: Sequence[str] | None) -> list[Choice]:
    """Raises UsageProblem."""
    return [parse_choice(text) for text in texts or ()]


def parse_numbers(text: str) -> tuple[int, ...]:
    """`0,2-4` as 0, 2, 3, 4: each once, in the order given. Raises UsageProblem."""
    numbers: dict[int, None] = {}
    for part in text.split(","):
        first, separator, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not separator)):
            raise UsageProblem(f"{text!r} is not like 0,2-4")
        chosen = range(int(first), int(last or first) + 1)
        if not 0 < len(chosen) <= PARTITIONS_MAX:
            raise UsageProblem(f"{part!r} is no range of at most {PARTITIONS_MAX:,} numbers, the lower one first")
        numbers.update(dict.fromkeys(chosen))
    return tuple(numbers)


def topics_of(metadata: Fields, *, internal: bool) -> dict[str, Fields]:
    """The topics of a Metadata response by name, sorted; Kafka's own ones, such as __consumer_offsets, where `internal`."""
    found = {topic.name: topic for topic in metadata.topics if int(topic.error_code) == 0}
    return {name: topic for name, topic in sorted(found.items()) if internal or not (topic.is_internal or name.startswith("__"))}


def choose(metadata: Fields, choices: Sequence[Choice], *, internal: bool = False) -> list[TopicPartition]:
    """The chosen partitions, each once, sorted; all when nothing is chosen. An internal topic is chosen by its name, or where `internal`.

    Raises CliError for a topic or partition that does not exist, and for a pattern that no topic has.
    """
    numbers = {
        name: sorted(partition.partition_index for partition in topic.partitions) for name, topic in topics_of(metadata, internal=True).items()
    }
    eligible = topics_of(metadata, internal=internal)
    chosen: set[TopicPartition] = set()
    for choice in choices or [Choice("*")]:
        for name in _names(choice.topic, numbers, eligible, must_be=bool(choices)):
            wanted = numbers[name] if choice.partitions is None else choice.partitions
            missing = sorted(set(wanted) - set(numbers[name]))
            if missing:
                raise CliError(f"no partition {missing[0]} in {name!r}: it has {_range(numbers[name])}")
            chosen.update(TopicPartition(name, number) for number in wanted)
    return sorted(chosen)


def find(brokers: Brokers, choices: Sequence[Choice], *, internal: bool = False) -> list[TopicPartition]:
    """`choose` among what the cluster has now. Raises CliError."""
    return choose(brokers.patiently(brokers.metadata), choices, internal=internal)


def _names(wanted: str, all_topics: Mapping[str, object], eligible: Mapping[str, object], *, must_be: bool) -> list[str]:
    if PATTERN_CHARACTERS.isdisjoint(wanted):
        names = [wanted] if wanted in all_topics else []
    else:
        names = [name for name in eligible if fnmatchcase(name, wanted)]
    if must_be and not names:
        raise CliError(f"no such topic: {wanted!r}")
    return names


def _range(numbers: Sequence[int]) -> str:
    return f"0 to {numbers[-1]}" if numbers else "none"


def grouped(partitions: Sequence[TopicPartition]) -> dict[str, list[int]]:
    """Partition numbers by topic, as most requests want them."""
    topics: dict[str, list[int]] = {}
    for topic, number in partitions:
        topics.setdefault(topic, []).append(number)
    return topics
