// For User-Mode Linux on processors whose XSAVE area is larger than the kernel was built for (those with AMX have 11 KB).
//
// UML 6.1 keeps 2,696 bytes of a process's extended registers. Reading that much is well, as the host's kernel cuts what
// it answers; but on setting it insists on all of it, and UML panics. Preloaded, this puts itself in front of ptrace():
// what is to be set is put into the area as it is, which is then set as a whole.
#define _GNU_SOURCE
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202

static char area[64 << 10] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...) {
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, long), address = va_arg(rest, long), data = va_arg(rest, long), word;
    va_end(rest);

    if (request == PTRACE_SETREGSET && address == NT_X86_XSTATE) {
        struct iovec *given = (struct iovec *)data, whole = {area, sizeof area};
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &whole) < 0)
            return -1;
        memcpy(area, given->iov_base, given->iov_len < whole.iov_len ? given->iov_len : whole.iov_len);
        return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, address, &whole);
    }
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long result = syscall(SYS_ptrace, request, pid, address, &word);  // the system call stores what it found
        return result < 0 ? result : word;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
