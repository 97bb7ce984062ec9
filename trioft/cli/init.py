"""
As process 1 of a container there is nobody else who takes in the processes that programs leave behind: hooks, for one.

So the real work is done by a child, and process 1 does what an init has to: it hands signals on, and waits for all.
"""

from __future__ import annotations

import os
import signal

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_THE_TERMINAL = 0x80  # SI_KERNEL: everybody in the foreground has got it already


def become_init() -> None:
    """If this is process 1, go on in a child, for whose end it waits; it ends then with the same exit code."""
    if os.getpid() != 1 or not hasattr(signal, "sigwaitinfo"):
        return
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, (*_HANDED_ON, signal.SIGCHLD))
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        return
    while True:
        told = signal.sigwaitinfo((*_HANDED_ON, signal.SIGCHLD))
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != _FROM_THE_TERMINAL:
                os.kill(child, told.si_signo)
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
            if not pid:
                break
