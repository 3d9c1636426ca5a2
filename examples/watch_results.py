"""Watch the results of a pipeline that runs somewhere, and count the classes of every stream.

    python examples/watch_results.py FOLDER mqtt://HOST     # slices that `split` or `har-edge slice` wrote
    python examples/watch_results.py                        # a small pipeline on this machine

Results that were made before this program connected are not among them.
"""

import sys
from collections import Counter

import har_edge

counts: dict[str, Counter[str]] = {}


def count(results: har_edge.ResultWatcher) -> None:
    """Count the classes until there are no more results."""
    for result in results:
        counts.setdefault(result.stream, Counter())[result.label] += 1


if len(sys.argv) > 1:
    with har_edge.watch(sys.argv[1], broker=sys.argv[2], limit=100) as results:
        count(results)
else:
    with har_edge.LocalCluster("int8", stages=2) as cluster, cluster.watch(limit=20, timeout_s=30) as results:
        cluster.replay("subject7", "subject8", windows=10)
        count(results)
for stream, labels in sorted(counts.items()):
    print(stream, ", ".join(f"{label} {number}" for label, number in labels.most_common()))
