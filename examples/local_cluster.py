"""Run a model on this machine as on three devices, replay a recording through it, and print the classes.

    python examples/local_cluster.py

Starts an MQTT broker, three stages and a sensor for each source, each a process of its own. Without recordings
(`har-edge data fetch`) the samples are synthetic.
"""

import har_edge

with har_edge.LocalCluster("int8", stages=3) as cluster:
    cluster.replay("subject7", windows=10)
    for result in cluster.results():
        print(result.stream, result.seq, result.label)
