"""What `bench.control_plane` measures with: an API server, the operator and four proxies as processes. `scene` first."""
