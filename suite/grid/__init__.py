"""From a grid file to a plan: strict YAML, cells, stages, keys and a cost estimate. No torch."""
