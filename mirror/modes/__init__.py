"""The cluster's registry module: settings, addressing, transitions, required images, configuration.

In every mode one fixed logical address names all images; what lies behind it depends on the mode.
Settings, addressing and planning are pure: they are functions of values and open no connection.
"""

from mirror.modes import outcomes

__all__ = ["outcomes"]
