"""The commands of `mirror`: options in, one library call, the result printed."""
