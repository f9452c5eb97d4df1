"""What a cluster is asked to be: the command and the fixture say it, the supervisor reads it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Size = Literal["control-plane", "node"]


@dataclass(frozen=True, slots=True)
class Options:
    size: Size = "control-plane"
    keep: bool = False
    """True: runs until `cluster-down`. False: until nobody holds it any more."""
    audit_policy: str | None = None
    """A file: the API server writes an audit log by it."""
    apiserver_args: tuple[str, ...] = ()
    """Further flags of the API server."""

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        given = json.loads(text)
        return cls(**{**given, "apiserver_args": tuple(given["apiserver_args"])})

    @property
    def audit(self) -> Path | None:
        return None if self.audit_policy is None else Path(self.audit_policy).absolute()
