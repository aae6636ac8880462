"""`python -m timeviper`: the command line without its script on the path."""

from timeviper.cli.main import main

if __name__ == "__main__":  # not where a tool imports all modules
    main()
