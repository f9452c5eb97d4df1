"""What can go wrong, in one place.

ClusterError
├── BuildError        a binary or an image could not be had
├── MachineError      this machine lacks what the size needs (root, Linux, a package)
├── StateError        the state folder is another's, or in use
└── StartError        the cluster did not become ready; the message ends with the logs' last lines
"""


class ClusterError(Exception):
    """Everything below; the command prints it without a traceback."""


class BuildError(ClusterError):
    pass


class MachineError(ClusterError):
    pass


class StateError(ClusterError):
    pass


class StartError(ClusterError):
    pass
