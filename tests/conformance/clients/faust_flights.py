"""Flights as a stream, with Faust: running totals, windows and a join, whose state outlives this program in changelog topics.

Usage: faust_flights.py BOOTSTRAP DATA_DIRECTORY. A file DATA_DIRECTORY/ready says that its state is restored and its streams flow.
Ends with SIGTERM.
"""

import sys
from datetime import datetime, timedelta
from pathlib import Path

import faust

bootstrap, data_directory = sys.argv[1:]
app = faust.App(
    "faust",
    broker=f"kafka://{bootstrap.replace(',', ';kafka://')}",
    store="memory://",
    datadir=data_directory,
    topic_partitions=2,
    topic_replication_factor=3,
    broker_commit_interval=0.5,
    web_enabled=False,
)
flights = app.topic("flights", key_type=str, key_serializer="raw", value_serializer="json")
airlines = app.topic("airlines", key_type=str, key_serializer="raw", value_serializer="json")
outputs = {name: app.topic(f"faust-{name}", key_type=str, key_serializer="raw", value_serializer="json") for name in ("totals", "hours", "named")}

names = app.Table("names", default=str)
totals = app.Table("totals", default=lambda: {"flights": 0, "cancelled": 0, "delay_min": 0})
hours = app.Table("hours", default=lambda: [0, 0]).tumbling(timedelta(hours=1), expires=timedelta(days=36500))


class Readiness(faust.Sensor):
    """Faust 0.15.3 empties its agents' queues at the end of a rebalance, after records have begun to come: those are skipped."""

    def on_rebalance_end(self, app, state):
        Path(data_directory, "ready").touch()


app.sensors.add(Readiness())


@app.agent(airlines)
async def learn(stream):
    async for carrier, airline in stream.items():
        names[carrier] = airline["name"]


@app.agent(flights)
async def follow(stream):
    async for carrier, flight in stream.items():
        # State: what each carrier has so far, as a fold over its flights.
        so_far = totals[carrier]
        so_far["flights"] += 1
        so_far["cancelled"] += flight["dep_delay"] is None
        so_far["delay_min"] += flight["dep_delay"] or 0
        totals[carrier] = so_far
        await outputs["totals"].send(key=carrier, value=so_far)

        # A window: the mean delay of each carrier in each hour of the calendar, by the time of the flight.
        if flight["dep_delay"] is not None:
            scheduled_s = datetime.fromisoformat(flight["time_hour"]).timestamp()
            window = hours.relative_to(scheduled_s)[carrier]
            count, delay_min = window.value()
            count, delay_min = count + 1, delay_min + flight["dep_delay"]
            hours.relative_to(scheduled_s)[carrier] = [count, delay_min]
            mean = {"start": int(scheduled_s * 1000), "flights": count, "delay_min": delay_min, "mean_min": delay_min / count}
            await outputs["hours"].send(key=carrier, value=mean)

        # A join: each flight with the name of its airline, a table that another topic fills.
        await outputs["named"].send(key=carrier, value={**flight, "airline": names[carrier]})


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--loglevel=warn", "--without-web"]
    app.main()
