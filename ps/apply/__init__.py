"""How gradients change a shard's vector: admission, gradient sources, compiled loops, locked regions, the updater."""
