"""The operator: the same core as `stepdown run`, over the objects of a cluster. `run` is the process; READ IT FIRST."""
