"""Chaos without a cluster: scenario files, what is refused, histories on their way, the checker's command, picture and report."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from raftlog_cli import chaos_report, chaos_scenario
from raftlog_cli.chaos import make_options
from raftlog_cli.chaos_cluster import ChaosCluster, recovery_points
from raftlog_cli.chaos_history import RackReads, Recorder, Tail
from raftlog_cli.chaos_near import ReadReplicas
from raftlog_cli.chaos_run import Outcome
from raftlog_cli.chaos_timeline import Band, Resumption, Timeline
from raftlog_cli.chaos_view import leader_rows, sparkline
from raftlog_cli.chaos_watch import PartitionView, TopicView, TopicWatch
from raftlog_cli.errors import CliError, UsageProblem
from raftlog_cli.main import run
from raftlog_cli.nodefiles import read_properties

from raftlog.testing import histories

STEP = '[[steps]]\ndo = "kill"\nnodes = "leader"\n'
HEAD = 'title = "t"\nabout = "a"\nwrites_resume_within_s = 5\n'


def options(name: str | None = None, at_random: bool = False, *, bootstrap: str | None = None, seed: int | None = 1, nodes: int = 3):  # type: ignore[no-untyped-def]
    return make_options(name, at_random, bootstrap=bootstrap, minutes=1, seed=seed, nodes=nodes, rate=10, history=None, keep=None)


class TestScenarios:
    def test_those_that_come_with_raftlog_are_whole(self) -> None:
        found = chaos_scenario.load_all()
        assert len(found) >= 15
        for name, scenario in found.items():
            assert scenario.name == name
            assert scenario.writes_resume_within_s > 0
            assert len(scenario.about) > 20

    def test_every_action_is_used_by_some_scenario(self) -> None:
        used = {step.do for scenario in chaos_scenario.load_all().values() for step in scenario.steps}
        assert used == set(chaos_scenario.ACTIONS) - {"stop"}

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (HEAD, "steps"),
            (HEAD + "steps = []\n", "no steps"),
            (HEAD + STEP.replace("kill", "explode"), "unknown action 'explode'"),
            (HEAD + STEP + "colour = 3\n", "takes no colour"),
            (HEAD + '[[steps]]\ndo = "kill"\n', "needs 'nodes'"),
            (HEAD + '[[steps]]\ndo = "cut"\nnodes = "leader"\ndirection = "up"\n', "direction"),
            (HEAD + 'measure = "luck"\n' + STEP, "measure"),
            (HEAD + 'colour = "red"\n' + STEP, "colour"),
            ("title = ", "Invalid value"),
        ],
    )
    def test_a_wrong_file_is_refused_with_its_name_and_reason(self, text: str, says: str) -> None:
        with pytest.raises(CliError, match=r"scenario x\.toml") as raised:
            chaos_scenario.parse(text, "x.toml")
        assert says in str(raised.value)

    def test_a_file_of_ones_own(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(HEAD + STEP, encoding="utf-8")
        assert chaos_scenario.load(str(path)).name == "mine"
        with pytest.raises(UsageProblem, match="no such file"):
            chaos_scenario.load(str(tmp_path / "other.toml"))
        with pytest.raises(UsageProblem, match="there are damaged-tail"):
            chaos_scenario.load("mine")

    def test_a_seed_repeats_its_random_rounds(self) -> None:
        def rounds(seed: int) -> list[chaos_scenario.Scenario]:
            scenarios = list(chaos_scenario.load_all().values())
            return list(itertools.islice(chaos_scenario.random_rounds(scenarios, random.Random(seed), nodes=3), 20))

        assert rounds(7) == rounds(7)
        assert rounds(7) != rounds(8)


class TestOptions:
    def test_faults_need_a_scenario_or_chance(self) -> None:
        with pytest.raises(UsageProblem, match="either --scenario"):
            options()
        with pytest.raises(UsageProblem, match="either --scenario"):
            options("kill-leader", True)

    def test_a_cluster_of_somebody_else_gets_no_faults(self) -> None:
        with pytest.raises(UsageProblem, match="gets no faults"):
            options("kill-leader", bootstrap="127.0.0.1:9092")
        assert list(options(bootstrap="127.0.0.1:9092").rounds) == []

    def test_only_where_no_node_is_cut_off_are_group_offsets_read_during_the_faults(self) -> None:
        assert not options("kill-leader").isolates
        assert options("pause-leader").isolates
        assert options(at_random=True).isolates


class TestHistory:
    def test_what_is_recorded_can_be_followed_parsed_and_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        tail = Tail(path)
        tail.follow()  # Before anybody wrote.
        one, two = (Recorder(str(path), process=f"p{number}", number=number) for number in (1, 2))
        first = one.invoke("send", partition="t-0", value=1, acks="all", ordered=True, idempotent=True)
        second = two.invoke("send", partition="t-0", value=2, acks="all", ordered=True, idempotent=True)
        tail.follow()
        one.end(first, "ok", offset=0)
        two.end(second, "info", error="_MSG_TIMED_OUT")
        one.whole("poll", began_ns=5, records=[["t-0", 0, 1]])
        tail.follow()
        assert (tail.acknowledged, tail.unsure, tail.records_polled) == (1, 1, 1)
        assert sum(tail.per_second.values()) == 1
        assert tail.resumed_ns("t-0", after_ns=0) is not None
        assert tail.resumed_ns("t-0", after_ns=2**62) is None
        assert tail.resumed_ns("t-1", after_ns=0) is None
        with path.open(encoding="utf-8") as file:
            operations = histories.parse(file)
        assert [operation.outcome for operation in operations] == ["ok", "info", "ok"]
        assert histories.check(operations).is_clean

    def test_half_a_line_waits_for_its_rest(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        line = json.dumps({"id": 1, "type": "invoke", "f": "send", "process": "p", "time_ns": 1, "partition": "t-0", "value": 1}) + "\n"
        end = json.dumps({"id": 1, "type": "ok", "time_ns": 2, "offset": 0}) + "\n"
        tail = Tail(path)
        path.write_text(line + end[:10], encoding="utf-8")
        tail.follow()
        assert tail.acknowledged == 0
        path.write_text(line + end, encoding="utf-8")
        tail.follow()
        assert tail.acknowledged == 1


class TestFollowerReads:
    RACKS = ("rack-1", "rack-2")

    def statistics(self, *, broker: int, leader: int, received: int) -> str:
        """As librdkafka's, without what isn't looked at."""
        partitions = {"0": {"broker": broker, "leader": leader, "rxmsgs": received}, "-1": {"broker": -1, "leader": -1, "rxmsgs": 0}}
        return json.dumps({"topics": {"t": {"partitions": partitions}}})

    def test_what_came_from_a_follower_is_told_once(self) -> None:
        replicas = ReadReplicas("t", "rack-1")
        for broker, received in ((2, 5), (2, 9), (1, 12), (1, 20), (1, 23)):  # Until 9 from the leader; who sent the next 3 is not known.
            replicas.look(self.statistics(broker=broker, leader=2, received=received))
        assert replicas.tell() == {"rack": "rack-1", "from_followers": {"t-0": (1, 11)}}
        replicas.look(self.statistics(broker=1, leader=1, received=30))  # It leads now.
        assert replicas.tell() == {"rack": "rack-1", "from_followers": {}}

    def test_statistics_before_anything_was_read(self) -> None:
        ReadReplicas("t", "rack-1").look(json.dumps({"topics": {}}))

    def test_the_run_knows_who_was_read_from_and_for_how_long_nobody_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = RackReads()
        assert not reads.have_all_read(self.RACKS, ["t-0"], since_ns=1)
        for time_ns, rack, followers in ((10, "rack-1", {"t-0": [1, 4]}), (20, "rack-2", {}), (30, "rack-1", {"t-1": [3, 2]})):
            reads.take({"rack": rack, "time_ns": time_ns, "records": [["t-0", time_ns, 1]], "from_followers": followers})
        assert reads.from_followers == 6
        assert reads.followers(since_ns=0) == {1: 1, 3: 1}
        assert reads.followers(since_ns=11) == {3: 1}
        assert reads.have_all_read(self.RACKS, ["t-0"], since_ns=20)
        assert not reads.have_all_read(self.RACKS, ["t-0"], since_ns=21)
        monkeypatch.setattr("time.monotonic_ns", lambda: 35)
        assert reads.longest_silence_s(self.RACKS, ["t-0"], since_ns=1) == 20e-9  # Of rack 1, which read at 10 and 30.
        assert reads.longest_silence_s(self.RACKS, ["t-0"], since_ns=15) == 15e-9

    def test_racks_are_for_those_who_ask_for_them(self) -> None:
        assert options("follower-reads").in_racks
        assert not options("kill-leader").in_racks
        rounds = chaos_scenario.random_rounds(list(chaos_scenario.load_all().values()), random.Random(1), nodes=3)
        assert not any(scenario.in_racks for scenario in itertools.islice(rounds, 100))


class TestCheckCommand:
    def write(self, path: Path, *events: dict[str, object]) -> str:
        path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        return str(path)

    def sent(self) -> list[dict[str, object]]:
        return [
            {"id": 1, "type": "invoke", "f": "send", "process": "p1", "time_ns": 1, "partition": "t-0", "value": 41, "acks": "all"},
            {"id": 1, "type": "ok", "time_ns": 2, "offset": 0},
        ]

    def read(self, *values: int) -> list[dict[str, object]]:
        return [
            {"id": 2, "type": "invoke", "f": "final_read", "process": "r", "time_ns": 3, "partition": "t-0"},
            {"id": 2, "type": "ok", "time_ns": 4, "records": [["t-0", offset, value] for offset, value in enumerate(values)]},
        ]

    def test_a_clean_history_is_status_0(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["chaos", "check", self.write(tmp_path / "h", *self.sent(), *self.read(41))]) == 0
        assert "no anomalies" in capsys.readouterr().out

    def test_an_anomaly_is_status_1_and_shows_its_proof(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.write(tmp_path / "h", *self.sent(), *self.read())
        assert run(["chaos", "check", path]) == 1
        printed = capsys.readouterr().out
        assert "lost_write" in printed
        assert "#1 p1 send ok" in printed
        assert run(["chaos", "check", path, "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert not found["clean"]
        assert [anomaly["kind"] for anomaly in found["anomalies"]] == ["lost_write"]

    def test_what_is_no_history_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "h").write_text("nonsense\n", encoding="utf-8")
        assert run(["chaos", "check", str(tmp_path / "h")]) == 1
        assert "line 1 is not an event" in capsys.readouterr().err
        assert run(["chaos", "check", str(tmp_path / "none")]) == 1

    def test_the_list_names_every_scenario(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["chaos", "list", "--json"]) == 0
        assert {item["name"] for item in json.loads(capsys.readouterr().out)} == set(chaos_scenario.load_all())


class TestCluster:
    def test_each_node_has_its_own_way_to_every_other(self, tmp_path: Path) -> None:
        cluster = ChaosCluster(3, directory=tmp_path, settings={"num.partitions": "7"}, seed=1)
        try:
            files = {number: read_properties(tmp_path / f"node-{number}" / "server.properties") for number in (1, 2, 3)}
        finally:
            cluster.close()
        voters = {number: dict(part.split("@") for part in pairs["controller.quorum.voters"].split(",")) for number, pairs in files.items()}
        assert len({voters[dialler][str(target)] for dialler in voters for target in voters}) == 9
        for number, pairs in files.items():
            assert pairs["num.partitions"] == "7"
            assert f"CONTROLLER://{voters[number][str(number)]}" in pairs["listeners"]
            listeners, advertised = (dict(item.split("://") for item in pairs[name].split(",")) for name in ("listeners", "advertised.listeners"))
            assert advertised["PLAINTEXT"] == listeners["PLAINTEXT"]
            assert advertised["INTERNAL"] != listeners["INTERNAL"]

    def test_only_what_was_not_fsynced_is_damaged(self, tmp_path: Path) -> None:
        cluster = ChaosCluster(3, directory=tmp_path, settings={}, seed=1)
        try:
            data = cluster.data(1)
            contents = bytes(range(250)) * 40
            for name in ("synced-0", "loose-0", "__cluster_metadata-0"):
                (data / name).mkdir()
                (data / name / f"{0:020}.log").write_bytes(contents)
            (data / "recovery-point-offset-checkpoint").write_text("0\n1\nsynced 0 5\n", encoding="utf-8")
            assert recovery_points(data) == {"synced-0": 5}
            lines = cluster.damage(1)
        finally:
            cluster.close()
        after = {name: (data / name / f"{0:020}.log").read_bytes() for name in ("synced-0", "loose-0", "__cluster_metadata-0")}
        assert after["synced-0"] == contents
        assert after["loose-0"] != contents
        assert after["__cluster_metadata-0"].startswith(contents)
        assert len(lines) == 2


class TestPicture:
    def timeline(self) -> Timeline:
        timeline = Timeline(began_s=0.0)
        timeline.bands.append(Band("node 1", "down", "killed <1>", 2.0, 5.0))
        timeline.acknowledged = {0: 10, 1: 0, 2: 20}
        timeline.sample(TopicView(1.0, 1, 1, frozenset({1, 2}), (PartitionView(1, 0, (1, 2), 2), PartitionView(2, 0, (2,), 2))))
        timeline.sample(TopicView(2.0, 1, 1, frozenset({1, 2}), (PartitionView(1, 0, (1, 2), 2), PartitionView(2, 0, (2,), 2))))
        timeline.event("killed <1>")
        timeline.resumptions.append(Resumption("kill-leader", 3.0, 6.0, None))
        return timeline

    def test_a_view_that_shows_nothing_new_is_not_kept(self) -> None:
        assert len(self.timeline().samples) == 1

    def test_cells_of_the_live_view(self) -> None:
        assert sparkline([0, 1, 10]) == " ▁█"
        assert sparkline([]) == ""
        timeline = self.timeline()
        timeline.samples = [type(timeline.samples[0])(1.0, timeline.samples[0].view)]
        assert [row.plain for row in leader_rows(timeline, 0, 3)] == [" 11", " 22"]

    def test_the_report_is_one_file_that_needs_no_other(self, tmp_path: Path) -> None:
        send = histories.Operation(1, "send", "p<1>", 1, "ok", 2, {"partition": "t-0", "value": 4})
        verdict = histories.Verdict((histories.Anomaly("lost_write", "4 is gone", (send,)),), 1, 1, 0)
        outcome = Outcome(verdict, self.timeline(), ["too slow"], ("librdkafka",), tmp_path / "h", 0)
        page = chaos_report.page(outcome, title="A <title>", seed=3)
        assert not outcome.passed
        assert "<svg" in page and "lost_write" in page and "too slow" in page and "never" in page
        assert "killed &lt;1&gt;" in page and "<1>" not in page
        assert "http" not in page


class TestWatch:
    def test_the_newest_view_is_that_of_the_highest_epochs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.monotonic", lambda: 10.0)
        watch = TopicWatch({1: ("h", 1), 2: ("h", 2)}, "t")
        stale = TopicView(9.9, 1, 1, frozenset({1, 2}), (PartitionView(1, 3, (1, 2), 2),))
        fresh = TopicView(9.5, 2, 2, frozenset({1, 2}), (PartitionView(2, 4, (1, 2), 2),))
        watch._views = {1: stale, 2: fresh}
        assert watch.newest() is fresh
        assert watch.agree_since(9.0)
        assert not watch.agree_since(9.7)
