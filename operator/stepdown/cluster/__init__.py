"""The only door to the API server: plain dicts in and out, errors of our own. `watch` and `sync` call it."""
