"""One of several processes that race for names: `name_racer.py DIRECTORY RACER NUM_RACERS NUM_NAMES`.

Prints the numbers of the names it has won, and has them deleted by nobody.
"""

from __future__ import annotations

import sys

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.errors import NameEntryExistsError


def main(directory: str, racer: str, num_racers: int, num_names: int) -> None:
    won = []
    with FileNameResolver(directory) as resolver:
        resolver.add(f"ready/{racer}", "", delete_on_exit=False)
        for other in range(num_racers):
            resolver.wait(f"ready/{other}", timeout=120)
        for number in range(num_names):
            try:
                resolver.add(f"race/{number}", racer, delete_on_exit=False)
            except NameEntryExistsError:
                continue
            won.append(number)
    print(*won)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
