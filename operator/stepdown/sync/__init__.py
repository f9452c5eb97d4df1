"""The keeper's side of sync: one service over the ledger, called in-process or over HTTP on a Unix socket."""
