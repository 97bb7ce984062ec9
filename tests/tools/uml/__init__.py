"""
The kernel's own clients of CIFS and NFS, with real servers, and its FAT, inside User-Mode Linux: a kernel that is a
program.

``boot``     on the host: starts the kernel, collects what the checks say
``guest``    the first process inside: mounts, modules, server, share; then the checks, one line of JSON for each
``servers``  smbd and nfsd on the loopback of the guest, and the mount of what they share; a disk with FAT
``checks``   what trioft promises on a share, one function for each promise

The guest sees the files of the host, read-only, and so runs the same Python with the same trioft. All that it writes
is in its memory. It needs no privileges, and has no network but its own loopback.
"""
