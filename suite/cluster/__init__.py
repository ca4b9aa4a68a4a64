"""Ray, as far as trials and engines need it: a connection, and what fits on the machines that there are."""

__all__ = ["connection", "placement"]
