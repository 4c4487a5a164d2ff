"""Pictures of one's own as records: importers list what there is, the pipeline decodes, checks and writes it."""
