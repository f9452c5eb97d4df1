"""What can go wrong with sync before a message is read."""


class TlsError(Exception):
    """A certificate or key cannot be read, written or used."""
