"""`orderfleet`, or `python -m workers`: the command line, started quickly."""

import gc


def main() -> None:
    """Run the command that was typed."""
    gc.disable()  # imports leave no garbage: looking for it took a tenth of their time
    from workers import cli

    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
