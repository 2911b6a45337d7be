"""Measures `mirror` against other tools that copy images, on this machine: `./run bench`."""
