"""Every parser of foreign bytes against bytes that nobody meant: `./run fuzz`.

A parser returns or raises an error of ours, in time and memory bounded by the input's size.
"""
