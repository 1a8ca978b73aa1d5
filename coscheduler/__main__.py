"""`python -m coscheduler` is the command line."""

from coscheduler.cli import main

if __name__ == "__main__":
    main()
