"""The converters' process; the reason of a failure is its last line on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

from pdd_core.errors import PDDError


def main() -> None:
    """Convert as the command line says."""
    part, *words = sys.argv[1:]
    paths = [Path(word) for word in words]
    try:
        if part == "device":
            from pdd_cli.convert.device import to_device_file

            to_device_file(*paths)
        else:
            from pdd_cli.convert.cloud import to_cloud_folder

            to_cloud_folder(*paths)
    except PDDError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
