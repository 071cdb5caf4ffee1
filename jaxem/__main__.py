"""`python -m jaxem`: the command line."""

from jaxem.cli.app import main

if __name__ == "__main__":
    main()
