"""Studies: grids of trainings over data, labels, capacity, epochs or initial values, their fits, tables and plots."""
