"""Replication of one partition as transcripts: commands, `----`, what came of them.

`REWRITE_TRANSCRIPTS=1 pytest tests/scenarios/replication` writes the outputs anew; read the difference before committing it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest
from replication_model import Cluster, FetchAnswer, FetchRequest, Node

from raftlog.core.replication.leader import IsrChange

TRANSCRIPTS = sorted(pathlib.Path(__file__).parent.glob("*.txt"))


class Stage:
    """Runs the commands of one transcript. Nodes: kill restart fence unfence elect reassign cancel image; messages: ask serve take isr alter hear."""

    def __init__(self) -> None:
        self.cluster = Cluster((1,), min_insync=1)
        self.requests: dict[str, FetchRequest] = {}
        self.answers: dict[str, FetchAnswer] = {}
        self.changes: dict[int, IsrChange] = {}
        self.alter_answers: dict = {}

    def run(self, line: str) -> str:
        command, *arguments = line.split()
        method: Callable[..., str] = getattr(self, f"do_{command}")
        before = len(self.cluster.acked)
        found = [method(*arguments)]
        breach = self.cluster.violation()
        acked = [value for _, value in self.cluster.acked[before:]]
        if acked:
            found.append(f"acknowledged: {' '.join(acked)}")
        if breach is not None:
            found.append(f"LOST: {breach}")
        return "\n".join(found)

    def _node(self, name: str) -> Node:
        return self.cluster.nodes[int(name)]

    def do_cluster(self, node_ids: str, min_insync: str, spare: str = "spare=") -> str:
        self.cluster = Cluster(_listed(node_ids), min_insync=int(min_insync.removeprefix("min.insync=")), spare=_listed(spare.removeprefix("spare=")))
        return self.do_state()

    def do_reassign(self, node_ids: str) -> str:
        self.cluster.reassign(_listed(node_ids))
        return self.do_state()

    def do_cancel(self) -> str:
        self.cluster.cancel()
        return self.do_state()

    def do_state(self) -> str:
        state = self.cluster.committed
        fenced = [node_id for node_id, broker in state.brokers.items() if broker.fenced]
        lines = [f"committed: leader={state.leader} epoch={state.leader_epoch} isr={_ids(state.isr)} fenced={_ids(fenced)}"]
        if state.adding or state.removing:
            lines[0] += f" adding={_ids(state.adding)} removing={_ids(state.removing)}"
        lines += [self._describe(node) for node in self.cluster.nodes.values()]
        return "\n".join(lines)

    def _describe(self, node: Node) -> str:
        log = " ".join(f"{value}/{epoch}" for epoch, value in node.log) or "empty"
        if not node.alive:
            return f"{node.node_id}: dead [{log}]"
        if node.leading is not None:
            leading = node.leading
            pending = f" maximal={_ids(leading.maximal_isr)}" if leading.pending else ""
            waiting = f" waiting={len(node.waiting)}" if node.waiting else ""
            return f"{node.node_id}: leads {leading.leader_epoch} hw={leading.high_watermark} isr={_ids(leading.isr)}{pending}{waiting} [{log}]"
        if node.following is not None:
            return f"{node.node_id}: follows {node.following.leader} in {node.following.leader_epoch} hw={node.high_watermark} [{log}]"
        return f"{node.node_id}: knows nothing yet [{log}]"

    def do_produce(self, node: str, value: str, acks: str = "acks=all") -> str:
        return self._node(node).produce(value, acks_all=acks == "acks=all", now_ms=self.cluster.now_ms)

    def do_fetch(self, *nodes: str) -> str:
        return "\n".join(self._round(node) for node in nodes)

    def _round(self, node: str) -> str:
        self.do_ask(node, "round")
        self.do_serve("round")
        return f"{node}: {self.do_take('round')}"

    def do_ask(self, node: str, name: str) -> str:
        request = self._node(node).ask()
        assert request is not None, f"node {node} follows nobody"
        self.requests[name] = request
        return f"from {request.fetch_offset} in epoch {request.leader_epoch}, last fetched epoch {request.last_fetched_epoch}"

    def do_serve(self, name: str) -> str:
        request = self.requests[name]
        answer = self.answers[name] = self._node(str(request.leader)).serve(request, self.cluster.now_ms)
        if answer.diverging is not None:
            return f"diverging: epoch {answer.diverging[0]} ends at {answer.diverging[1]}"
        return answer.error.name if answer.error else f"{len(answer.entries)} records, hw={answer.high_watermark}"

    def do_take(self, name: str) -> str:
        return self._node(str(self.requests[name].follower)).take(self.answers[name])

    def do_isr(self, node: str) -> str:
        change = self._node(node).expand() or self._node(node).shrink(self.cluster.now_ms)
        if change is None:
            return "no change"
        self.changes[int(node)] = change
        members = " ".join(f"{member}@{epoch}" for member, epoch in change.isr)
        return f"asks for {members} at partition epoch {change.partition_epoch}"

    def do_alter(self, node: str) -> str:
        answer = self.alter_answers[node] = self.cluster.alter(int(node), self.changes[int(node)])
        return answer.error.name if answer.error else f"committed isr={_ids(answer.isr)} partition epoch {answer.partition_epoch}"

    def do_hear(self, node: str) -> str:
        return self._node(node).hear(self.alter_answers[node], self.cluster.now_ms)

    def do_image(self, *nodes: str) -> str:
        for node in nodes or tuple(map(str, self.cluster.nodes)):
            self.cluster.show_image(int(node))
        return self.do_state()

    def do_wait(self, duration_ms: str) -> str:
        self.cluster.now_ms += int(duration_ms)
        return f"at {self.cluster.now_ms} ms"

    def do_kill(self, node: str) -> str:
        self.cluster.kill(int(node))
        return "ok"

    def do_restart(self, node: str) -> str:
        self.cluster.restart(int(node))
        return self.do_state()

    def do_fence(self, node: str) -> str:
        self.cluster.fence(int(node))
        return self.do_state()

    def do_unfence(self, node: str) -> str:
        self.cluster.unfence(int(node))
        return self.do_state()

    def do_elect(self, node: str) -> str:
        self.cluster.elect(int(node))
        return self.do_state()

    def do_unclean(self, node: str) -> str:
        self.cluster.elect_uncleanly(int(node))
        return self.do_state()


def _listed(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def _ids(node_ids: object) -> str:
    return ",".join(map(str, sorted(node_ids))) or "none"  # type: ignore[call-overload]


def play(text: str) -> str:
    """The transcript with its outputs as they come."""
    stage = Stage()
    blocks = []
    for block in text.strip().split("\n\n"):
        commands = block.split("\n----")[0].splitlines()
        outputs = [stage.run(line) for line in commands if not line.startswith("#")]
        blocks.append("\n".join([*commands, "----", *outputs]) if outputs else "\n".join(commands))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: pathlib.Path) -> None:
    found = play(path.read_text())
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(found)
    assert found == path.read_text()
