"""stub"""


def remove() -> None: ...
