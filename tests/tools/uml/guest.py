"""
The first process of a guest: makes it a machine with a server and a share, runs the checks, and switches it off.

What the checks find goes to the console, one line of JSON each. It is started by ``boot``, never by hand: it mounts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uml.checks import Ground

SECONDS = 200
PATHS = "/usr/sbin:/usr/bin:/sbin:/bin"


def main(server: str) -> None:
    """Run all checks on the shares of this server."""
    begun = time.monotonic()
    limit = threading.Timer(SECONDS, switch_off)  # also where nobody waits for the end any more
    limit.daemon = True
    limit.start()
    try:
        say(booted=os.uname().release)
        make_machine()
        from uml.checks import CHECKS, PLAN, Ground
        from uml.servers import shares_of

        for share in shares_of(server):
            names = {f"{share.name}-{name}": CHECKS[name] for name in PLAN[server][share.name]}
            for name in names:
                (share.where / name).mkdir()  # what lies below the mount point: nothing must ever arrive there
            share.mount()
            for name, check in names.items():
                judge(check, Ground(share, name))
            share.unmount()
    except BaseException:
        say(check="machine", failure=traceback.format_exc() + last_words(), seconds=time.monotonic() - begun)
    finally:
        switch_off()


def switch_off() -> None:
    Path("/proc/sysrq-trigger").write_text("o")
    time.sleep(60)  # the kernel does it in a moment; the first process must not end before


def judge(check: Callable[[Ground], None], ground: Ground) -> None:
    begun, failure = time.monotonic(), None
    try:
        check(ground)
    except BaseException:
        failure = traceback.format_exc()
    ground.stop_all()
    if failure is not None:
        failure += ground.said() + last_words()
    ground.clear()
    say(check=ground.root.name, failure=failure, seconds=round(time.monotonic() - begun, 1))


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def last_words() -> str:
    """Return what the kernel said last."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=10, check=False)
    return "\nThe guest's kernel:\n" + "\n".join(done.stdout.splitlines()[-15:])


def make_machine() -> None:
    """Kernel filesystems, memory for all that is written, the loopback, and a way for the kernel to load modules."""
    if os.getpid() != 1 or not os.uname().machine:
        raise SystemExit("this is the first process of a guest, and nothing for a host")
    os.environ.update(PATH=PATHS, HOME="/run", TMPDIR="/run/tmp", LC_ALL="C.UTF-8")
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/var/log")):
        subprocess.run(["mount", "-t", kind, kind, where], check=True, timeout=10)
    os.mkdir("/run/tmp")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    release = os.uname().release
    os.makedirs("/run/kernel/lib/modules")
    os.symlink(f"/usr/lib/uml/modules/{release}", f"/run/kernel/lib/modules/{release}")
    helper = Path("/run/kernel/modprobe")
    helper.write_text('#!/bin/sh\nexec modprobe -d /run/kernel "$@"\n')
    helper.chmod(0o755)
    Path("/proc/sys/kernel/modprobe").write_text(f"{helper}\n")


if __name__ == "__main__":
    main(sys.argv[1])
