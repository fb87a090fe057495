"""Flights as a stream, with Quix Streams: running totals, windows and a join, whose state outlives this program in changelog topics.

Usage: quix_flights.py BOOTSTRAP STATE_DIRECTORY. Ends with SIGTERM.
"""

import sys
from datetime import datetime, timedelta

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum
from quixstreams.models import TopicConfig

bootstrap, state_directory = sys.argv[1:]
app = Application(bootstrap, consumer_group="quix", state_dir=state_directory, auto_offset_reset="earliest", commit_interval=0.5, loglevel="WARNING")
outputs = TopicConfig(num_partitions=2, replication_factor=3)


def scheduled_ms(flight, _headers, _timestamp, _type):
    """Windows go by the time of the flight, not of the record."""
    return int(datetime.fromisoformat(flight["time_hour"]).timestamp() * 1000)


flights = app.dataframe(app.topic("flights", timestamp_extractor=scheduled_ms)).drop(["tailnum", "dest"])
airlines = app.dataframe(app.topic("airlines", timestamp_extractor=lambda *_: 0))


# State: what each carrier has so far, as a fold over its flights.
def total(flight, state):
    totals = state.get("totals", {"flights": 0, "cancelled": 0, "delay_min": 0})
    totals["flights"] += 1
    totals["cancelled"] += flight["dep_delay"] is None
    totals["delay_min"] += flight["dep_delay"] or 0
    state.set("totals", totals)
    return totals


flights.apply(total, stateful=True).to_topic(app.topic("quix-totals", config=outputs))

# A window: the mean delay of each carrier in each hour of the calendar.
departed = flights.filter(lambda flight: flight["dep_delay"] is not None)
hours = departed.tumbling_window(timedelta(hours=1), grace_ms=timedelta(days=3)).agg(flights=Count(), delay_min=Sum("dep_delay")).current()
hours["mean_min"] = hours["delay_min"] / hours["flights"]
hours.to_topic(app.topic("quix-hours", config=outputs))

# A join: each flight with the name of its airline, which was known before.
named = flights.join_asof(
    airlines, how="inner", on_merge=lambda flight, airline: {**flight, "airline": airline["name"]}, grace_ms=timedelta(days=36500)
)
named.to_topic(app.topic("quix-named", config=outputs))

app.run()
