"""What travels: `mirror` as one file, as a Debian package and as an image, for a place without
Python and without a network (docs/adr/0030-one-file-with-its-interpreter.md)."""
