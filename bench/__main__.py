"""``python -m bench``, and the command ``bench``."""

from bench.shipped import module


def main() -> None:
    """Run the command line."""
    module("cli").main(prog_name="bench")


if __name__ == "__main__":
    main()
