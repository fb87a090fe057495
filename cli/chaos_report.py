"""The report of a chaos run: one HTML file that needs nothing else, with the run's timeline as inline SVG."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .chaos_timeline import Band, Sample, Timeline

if TYPE_CHECKING:
    from .chaos_run import Outcome

WIDTH: Final = 1100
LEFT: Final = 110
LANE_HEIGHT: Final = 20
RATE_HEIGHT: Final = 120
GAP: Final = 18
TICKS: Final = 10
ANOMALIES_SHOWN_MAX: Final = 200
BAND_COLOURS: Final = {"down": "#c0392b", "died": "#8e44ad", "paused": "#d4a017", "cut": "#2c5aa0", "slow": "#3aa6b9", "disk full": "#d35400"}
NODE_COLOURS: Final = ("#4e79a7", "#59a14f", "#edc948", "#b07aa1", "#76b7b2")
NOBODY: Final = "#222222"
STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1140px;color:#222;background:#fff}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin-top:1.8em}
.verdict{display:inline-block;padding:.25em .8em;border-radius:4px;color:#fff;font-weight:600}
.passed{background:#2e7d32}.failed{background:#b71c1c}
table{border-collapse:collapse}td,th{padding:.25em .9em .25em 0;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right}code{font-size:.85em}svg text{font:11px system-ui,sans-serif;fill:#333}
.key span{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em;vertical-align:-1px}
"""


def write(path: Path, outcome: Outcome, *, title: str, seed: int) -> None:
    """Raises OSError."""
    path.write_text(page(outcome, title=title, seed=seed), encoding="utf-8")


def page(outcome: Outcome, *, title: str, seed: int) -> str:
    verdict = "passed" if outcome.passed else "failed"
    counts = outcome.verdict
    facts = (
        f"{counts.operations:,} operations, {counts.sends_acknowledged:,} writes acknowledged, {outcome.unsure:,} unsure, "
        f"{counts.records_read:,} records read; clients: {', '.join(outcome.libraries)}; seed {seed}; {time.strftime('%Y-%m-%d %H:%M')}"
    )
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}: {verdict}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)} <span class='verdict {verdict}'>{verdict}</span></h1><p>{html.escape(facts)}</p>",
        picture(outcome.timeline),
        _key(outcome.timeline),
        *_problems(outcome),
        *_resumptions(outcome.timeline),
        *_anomalies(outcome),
        "<h2>What happened</h2><table>",
        *(f"<tr><td class='n'>{event.at_s:.1f}</td><td>{html.escape(event.text)}</td></tr>" for event in outcome.timeline.events),
        "</table></html>",
    ]
    return "\n".join(parts)


def picture(timeline: Timeline) -> str:
    """Faults above, acknowledged writes per second, leaders and ISR below."""
    seconds = max(1.0, timeline.now_s())
    scale = (WIDTH - LEFT) / seconds
    shapes: list[str] = []
    top = 0.0
    for lane in sorted({band.lane for band in timeline.bands}):
        shapes.append(_label(lane, top))
        shapes += _bands([band for band in timeline.bands if band.lane == lane], top=top, scale=scale, seconds=seconds)
        top += LANE_HEIGHT
    top += GAP
    shapes += _rates(timeline.rates(), top=top, scale=scale)
    top += RATE_HEIGHT + GAP
    count = max((len(sample.view.partitions) for sample in timeline.samples), default=0)
    for number in range(count):
        shapes.append(_label(f"partition {number}", top))
        shapes += _leaders(timeline.samples, number, top=top, scale=scale, seconds=seconds)
        top += LANE_HEIGHT
    shapes += _axis(seconds, top=top, scale=scale)
    return f"<svg viewBox='0 0 {WIDTH} {top + 24:.0f}' width='100%' role='img'>{''.join(shapes)}</svg>"


def _label(text: str, top: float) -> str:
    return f"<text x='0' y='{top + 14:.0f}'>{html.escape(text)}</text>"


def _rectangle(left_s: float, right_s: float, *, top: float, height: float, scale: float, fill: str, title: str, opacity: float = 1.0) -> str:
    x, width = LEFT + left_s * scale, max(1.0, (right_s - left_s) * scale)
    return (
        f"<rect x='{x:.1f}' y='{top:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{fill}' fill-opacity='{opacity}'>"
        f"<title>{html.escape(title)}</title></rect>"
    )


def _bands(bands: list[Band], *, top: float, scale: float, seconds: float) -> Iterator[str]:
    for band in bands:
        end_s = seconds if band.end_s is None else band.end_s
        title = f"{band.label}, {band.start_s:.1f} s to {end_s:.1f} s"
        fill = BAND_COLOURS.get(band.kind, "#777777")
        yield _rectangle(band.start_s, end_s, top=top + 2, height=LANE_HEIGHT - 4, scale=scale, fill=fill, title=title)


def _rates(rates: list[int], *, top: float, scale: float) -> Iterator[str]:
    highest = max(rates, default=0) or 1
    yield _label("writes/s", top)
    yield f"<text x='60' y='{top + 14:.0f}'>{highest}</text>"
    bottom = top + RATE_HEIGHT
    points = [f"{LEFT + second * scale:.1f},{bottom - rate * RATE_HEIGHT / highest:.1f}" for second, rate in enumerate(rates)]
    if points:
        last = LEFT + (len(rates) - 1) * scale
        outline = " ".join([f"{LEFT},{bottom}", *points, f"{last:.1f},{bottom}"])
        yield f"<polygon points='{outline}' fill='#2e7d32' fill-opacity='.35' stroke='#2e7d32'/>"
    yield f"<line x1='{LEFT}' x2='{WIDTH}' y1='{bottom}' y2='{bottom}' stroke='#999'/>"


def _leaders(samples: list[Sample], number: int, *, top: float, scale: float, seconds: float) -> Iterator[str]:
    """The leader's colour above, the ISR as one thin stripe per member below."""
    for sample, end_s in zip(samples, [*(sample.at_s for sample in samples[1:]), seconds], strict=True):
        if number >= len(sample.view.partitions):
            continue
        partition = sample.view.partitions[number]
        title = f"leader {partition.leader}, epoch {partition.leader_epoch}, ISR {', '.join(map(str, partition.isr))} ({sample.at_s:.1f} s)"
        fill = _node_colour(partition.leader)
        yield _rectangle(sample.at_s, end_s, top=top + 2, height=8, scale=scale, fill=fill, title=title)
        stripe = 7 / max(1, partition.replicas)
        for place, member in enumerate(partition.isr):
            y = top + 11 + place * stripe
            yield _rectangle(sample.at_s, end_s, top=y, height=stripe, scale=scale, fill=_node_colour(member), title=title, opacity=0.55)


def _node_colour(node_id: int) -> str:
    return NODE_COLOURS[(node_id - 1) % len(NODE_COLOURS)] if node_id >= 0 else NOBODY


def _axis(seconds: float, *, top: float, scale: float) -> Iterator[str]:
    step = next((size for size in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600) if seconds / size <= TICKS), 7200)
    for tick in range(0, int(seconds) + 1, step):
        x = LEFT + tick * scale
        yield f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{top:.0f}' stroke='#ccc' stroke-width='.5'/>"
        anchor = "middle" if x < WIDTH - GAP else "end"  # The last one must not be cut off.
        yield f"<text x='{x:.1f}' y='{top + 14:.0f}' text-anchor='{anchor}'>{tick} s</text>"


def _key(timeline: Timeline) -> str:
    kinds = sorted({band.kind for band in timeline.bands} & set(BAND_COLOURS))
    nodes = sorted({partition.leader for sample in timeline.samples for partition in sample.view.partitions if partition.leader >= 0})
    faults = "".join(f"<span style='background:{BAND_COLOURS[kind]}'></span>{kind}" for kind in kinds)
    leaders = "".join(f"<span style='background:{_node_colour(node)}'></span>node {node}" for node in nodes)
    return f"<p class='key'>{faults}{leaders}<span style='background:{NOBODY}'></span>no leader · below the leader: the ISR</p>"


def _problems(outcome: Outcome) -> Iterator[str]:
    if outcome.problems:
        yield "<h2>Problems</h2><ul>"
        yield from (f"<li>{html.escape(problem)}</li>" for problem in outcome.problems)
        yield "</ul>"


def _resumptions(timeline: Timeline) -> Iterator[str]:
    if not timeline.resumptions:
        return
    yield "<h2>Time without writes</h2><table><tr><th>scenario</th><th class='n'>at s</th><th class='n'>took s</th><th class='n'>limit s</th>"
    yield "<th class='n'>all in sync after s</th></tr>"
    for one in timeline.resumptions:
        took = "never" if one.took_s is None else f"{one.took_s:.2f}"
        in_sync = "never" if one.in_sync_s is None else f"{one.in_sync_s:.1f}"
        yield f"<tr><td>{html.escape(one.scenario)}</td><td class='n'>{one.at_s:.1f}</td><td class='n'>{took}</td>"
        yield f"<td class='n'>{one.limit_s:.0f}</td><td class='n'>{in_sync}</td></tr>"
    yield "</table>"


def _anomalies(outcome: Outcome) -> Iterator[str]:
    found = outcome.verdict.anomalies
    yield f"<h2>Anomalies: {len(found) or 'none'}</h2>"
    if not found:
        return
    yield "<table><tr><th>kind</th><th>what</th><th>proving operations</th></tr>"
    for anomaly in found[:ANOMALIES_SHOWN_MAX]:
        proof = "<br>".join(f"<code>{html.escape(operation.describe())}</code>" for operation in anomaly.proof)
        yield f"<tr><td>{anomaly.kind}</td><td>{html.escape(anomaly.message)}</td><td>{proof}</td></tr>"
    yield "</table>"
    if len(found) > ANOMALIES_SHOWN_MAX:
        yield f"<p>and {len(found) - ANOMALIES_SHOWN_MAX} more</p>"
