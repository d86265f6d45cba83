"""Ray cluster of one node on the loopback interface: ray_head FOLDER CORES.

It prints its address and runs until its standard input is closed. `ray start` is not used, because `ray stop`
stops all Ray clusters of the machine.
"""

import sys

import ray

ray.init(
    address="local",
    num_cpus=int(sys.argv[2]),
    include_dashboard=False,
    _node_ip_address="127.0.0.1",
    _temp_dir=sys.argv[1],
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
