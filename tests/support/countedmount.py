"""A mount that keeps a file told how many requests of each kind it has served. Run as a program: FILE, and then what `kmsfs` takes."""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from kmsfs.cli.main import run
from kmsfs.mount.kernel import session, wire

COUNTS = Counter()


def main():
    told = Path(sys.argv.pop(1))
    dispatch = session.KernelSession.dispatch

    def counted(self, request):
        opcode = wire.IN_HEADER.unpack_from(request)[1]
        COUNTS[wire.Opcode(opcode).name if opcode in set(wire.Opcode) else str(opcode)] += 1
        dispatch(self, request)

    session.KernelSession.dispatch = counted
    threading.Thread(target=tell, args=(told,), daemon=True).start()
    run()


def tell(told):
    while True:
        told.with_suffix(".new").write_text(json.dumps(COUNTS))
        told.with_suffix(".new").replace(told)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
