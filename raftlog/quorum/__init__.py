"""The metadata quorum: a Raft log of controllers' decisions, which is the Kafka log `__cluster_metadata-0`.

quorum.py      its face to the rest of the node, on the event loop
voter.py       one voter without sockets: the order in which things are decided, written, said and applied
raft.py        the engine, pysyncobj, behind the rules of guards.py
syncobj.py     pysyncobj itself: an own copy of it, checked
journal.py     the log on the disk            snapshots.py   .checkpoint files, bootstrap.checkpoint
transport.py   connections between voters     messages.py    what they say, as bytes
identity.py    which directory is whose       states.py      the values that users see
controller.py  the active controller, deciding on top of it
"""
