"""Plays Kubernetes for the manifests of `downpour kubernetes`: they are executed, not only validated.

| file | whose part it plays |
|---|---|
| `fields` | the API server's: a field that nobody here acts on is refused |
| `network` | the network's: an address of its own for every pod, on one bridge; names as the DNS gives them |
| `volumes` | volumes: emptyDir, ConfigMap, Secret, claim |
| `container` | the container runtime's: namespaces, a root file system of its own, user, memory limit |
| `probes` | the kubelet's probes, over gRPC |
| `pod` | the rest of the kubelet: init containers, restarts, SIGTERM and SIGKILL |
| `indexed_job`, `tfjob`, `jobset` | the controllers of Jobs, TFJobs and JobSets |
| `cluster` | everything together, and what a user of kubectl does |

One thread does everything, in `Cluster.tick`. Needs root, `ip` and `setpriv`. Not played are scheduling,
network policies, limits of processors, seccomp, image pulls (an image is this machine's /usr and this checkout).
"""
