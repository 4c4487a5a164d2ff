"""Writes a job as Kubernetes manifests: `downpour kubernetes`.

| file | what is in it |
|---|---|
| `command` | the command line; which files there are, and writing them |
| `names` | names, hosts, ports, labels, paths, and checks of user input by Kubernetes' rules |
| `deployment` | the requested job, and every role's command line |
| `sizes` | memory of a shard, worker, chief and evaluator, computed from the layout |
| `pods` | a role's pod: container, probes, resources, security context, volumes |
| `jobs` | the four Indexed Jobs |
| `objects` | Service, NetworkPolicies, disruption budget, account, recipe, claim |
| `jobset`, `tfjob` | the same job as one JobSet or TFJob |
| `overlays` | kustomizations: the base, and spot machines, cert-manager, a claim as arena |
| `text` | documents as YAML with comments |

Documents are plain dicts, lists and scalars; a key "#key" is the comment above `key` and no part of the document.
Pure but for `sizes`, which builds the model, and `command`, which writes.
"""
