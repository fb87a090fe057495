"""A Kafka cluster in Python: Kafka's wire protocol, Kafka's data-directory format and KRaft's metadata log.

Two logs carry everything. The metadata log, replicated by a Raft quorum of controllers, says which brokers, topics,
partitions, leaders and in-sync replicas there are. The partition logs hold the events; each has one leader, and its
followers fetch from it.

The map of this tree. Imports go downward only; what is marked PURE decides without clock, socket, file or task:

    testing/      a whole cluster inside a test's process; pytest fixtures; virtual time, simulated network and disk
    server/       a node put together: node.py (start to stop), broker_role.py, controller_role.py, run.py (as a process),
                  router.py (request to handler), handlers/ (one family of APIs per file), metrics.py
    dump.py       what is in a data directory's files, for `raftlog log dump`
    broker/       what a broker does: replicas.py (partitions it hosts), roles.py (who leads and follows, by the image),
                  fetchers.py (following), coordinators.py (groups),
                  metadata.py (the image it sees), channel.py (to the controller), lifecycle.py (registration, heartbeats),
                  dynamic_settings.py (settings that change at run time)
    quorum/       the metadata log's consensus: quorum.py (its face), raft.py, journal.py; controller.py decides on top of it
    network/      sockets: connection.py (server's end), peers.py (client's end), listener.py
    storage/      disk: log.py (one partition), segment.py, indexes.py, manager.py (all of a node), files.py (the only opener)
    core/         PURE decisions: metadata/ (records, image), controller/, replication/, coordinators/, log/, telemetry/
    protocol/     PURE bytes to values: messages.py (any API), produce.py and fetch.py (packed by hand), batches.py (records)
    config.py     a node's settings           topic_config.py   a topic's           config_types.py   what a config is
                  client_metrics_config.py   what clients are asked to push                   group_config.py   a consumer group's
    environment.py  clock, chance, disk and network as arguments
    ids.py        nouns                       errors.py         exceptions, each with its Kafka error code
"""
