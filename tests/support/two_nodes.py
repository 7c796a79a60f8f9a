"""Two Ray nodes on this machine: ``python two_nodes.py ADDRESS_FILE``; they live until standard input closes."""

import sys
from pathlib import Path

from ray.cluster_utils import Cluster

# Ray's "CPU" is a slot for an actor here, and a "GPU" one for a training rank: none of either is looked for.
NODE = {"num_cpus": 8, "num_gpus": 1, "object_store_memory": 300 * 2**20}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        Path(sys.argv[1]).write_text(cluster.address)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
