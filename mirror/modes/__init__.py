"""The cluster's registry module: settings, addresses, switches, required images. Mostly pure."""

from mirror.modes import outcomes

__all__ = ["outcomes"]
