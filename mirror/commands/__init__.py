"""The commands of `mirror`: options in, one library call, the result printed.

What is here is needed before anything else is loaded (`mirror.__main__`).
"""

INTERRUPTED = 130
MESSAGE = "interrupted; run the same command again"
