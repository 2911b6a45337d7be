"""Every command against every fault at every request: `./run faults`.

A case is one command, one fault and the number of the request that it strikes. It ends well if the
command says that it succeeded and everything is there, or if it says why it failed and the same
command, run again without the fault, completes. Meanwhile no tag may lead to what is missing.
"""
