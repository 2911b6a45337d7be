"""`python -m mirror`: the command line."""

from mirror.cli import main

if __name__ == "__main__":
    main()
