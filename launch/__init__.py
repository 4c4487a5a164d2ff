"""How it runs: recipes, topology, one entry per role and local emulation."""
