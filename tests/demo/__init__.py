"""The two demos tell one story: on this machine (`make demo`), and on a cluster with real pods (`make demo-cluster`)."""
