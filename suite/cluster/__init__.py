"""The parts of Ray that trials and engines need: a connection, and placement on the available machines."""

__all__ = ["connection", "placement"]
