"""The commands of `mirror`, one module each: options in, one library call, results printed."""
