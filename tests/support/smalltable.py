"""A mount whose inode table may have as many entries as the first argument says, and that keeps a file told how many it has.

Run as a program: COUNT FILE, and then what `kmsfs` takes. With `names` after COUNT, as on a kernel that cannot prune.
"""

import sys
import threading
import time
from pathlib import Path

from kmsfs.cli.main import run
from kmsfs.mount import vfs_open
from kmsfs.mount.kernel import notify, pruning


def main():
    count, way, told = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    sys.argv[1:4] = []
    pruning.most_nodes = lambda _memory_bytes: count
    vfs_open._RESTING_MAX = count // 4
    begin = pruning.Pruner.start

    def start(self):
        begin(self)
        threading.Thread(target=tell, args=(self._vfs.nodes, told), daemon=True).start()

    pruning.Pruner.start = start
    if way == "names":
        notify.KernelNotifier.prune = lambda _self, _node_ids: False
    run()


def tell(nodes, told):
    most = 0
    while True:
        most = max(most, len(nodes))
        told.with_suffix(".new").write_text(f"{len(nodes)} {most}")
        told.with_suffix(".new").replace(told)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
