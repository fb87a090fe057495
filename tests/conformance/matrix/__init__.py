"""The matrix client x feature: what of Kafka's everyday work each client can do against three real nodes.

    features.py        the rows: groups of named checks
    producing.py, consuming.py, grouping.py, administering.py   the checks, each a function of a Bench
    bench.py           one client before one cluster, and a reference client that reads back what it did
    client.py          what a client is asked for: verbs, of which it may lack some
    confluent.py, aiokafka_client.py, kafka_python_client.py    clients in this process
    members.py         their group members, each in a thread
    kcat.py, programs.py                                        clients as programs of their own (Go, JavaScript, Java)
    java_tools.py      the command-line tools of Apache Kafka
    outcome.py         works, FAILS or not offered
    table.py           the cells as Markdown

`tests/conformance/test_matrix.py` runs the Python clients and kcat; `scripts/conformance` runs any and writes the tables.
"""
