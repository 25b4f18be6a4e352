"""The inside of a hull: a process that forks a contained child for each program, so that none starts an interpreter.

    python -I -S -c <run the code objects of SOURCE_FD> CONTROL_FD UID

It is root of the hull's user namespace (bubblewrap's), has imported what is slow to import, and knows neither programs nor
tests. A request on CONTROL_FD is one packet: the CPU seconds, and a socket. The child is PID 1 of a new PID namespace, has a
network namespace to itself, takes new mount, IPC and user namespaces, a fresh /proc, /tmp and /dev/shm, gives up every
capability and the right to make user namespaces, and goes on as `sandbox_child.serve` on that socket. The answer, on the
same socket, is `Z` with a pidfd of the child, whose end is the end of all its descendants. Namespaces and mounts: the order
of containers/bubblewrap 0.8, `bubblewrap.c`.

A network namespace is handed to the next child once all processes in the last one's PID namespace have ended: their
sockets ended with them, and nobody without capabilities can leave anything else in it. Making one is a tenth of all work.
"""

import _socket
import ctypes
import fcntl
import gc
import os
import sys

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
MNT_DETACH = 2
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
KEYCTL = {"x86_64": 250, "aarch64": 219}
KEYCTL_JOIN_SESSION_KEYRING = 1

libc = ctypes.CDLL(None, use_errno=True)
for function in ("capset", "mount", "prctl", "setns", "syscall", "umount2", "unshare"):
    getattr(libc, function)  # looked up once, before the forks; the types of `give_up` likewise
CAPABILITY_HEADER = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
NO_CAPABILITIES = (ctypes.c_uint32 * 6)()


def call(name, *arguments):
    """A function of libc that returns -1 on failure. Raises OSError, which names it."""
    result = getattr(libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
    return result


def mount(source, target, kind, flags, options=None):
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), None if options is None else options.encode())


def write(path, text, folder=None):
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def loopback():
    """Bring up `lo`, as bubblewrap does, for programs that talk to themselves."""
    handle = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(handle.fileno(), SIOCGIFFLAGS, b"lo".ljust(40, b"\0"))
    flags = int.from_bytes(request[16:18], sys.byteorder) | IFF_UP
    fcntl.ioctl(handle.fileno(), SIOCSIFFLAGS, request[:16] + flags.to_bytes(2, sys.byteorder) + request[18:])
    handle.close()


def contain(uid, writable_bytes):
    """Put this process, PID 1 of its namespace, where it sees and touches nothing of the hull. Raises OSError."""
    os.setsid()
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    # The checker's files in /proc belong to the hull's root, whose user the program shares: hidepid=2 shows it only what it
    # may trace, and the checker is not among it.
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
    limits = os.open("/proc/sys/user", os.O_RDONLY | os.O_DIRECTORY)
    # Settings of its namespaces belong to its user; what else can be written there belongs to root, which it never is.
    mount("/proc/sys", "/proc/sys", None, MS_BIND | MS_REC)
    mount(None, "/proc/sys", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for path in ("/tmp", "/dev/shm"):
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={writable_bytes}")
    os.chdir("/tmp")
    call("unshare", CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{uid} 0 1")
    write("/proc/self/gid_map", f"{uid} 0 1")
    write("max_user_namespaces", "0", limits)  # of this namespace, in which alone the child has capabilities
    os.close(limits)
    if os.uname().machine in KEYCTL:  # a key kept in a session keyring would outlive the program
        call("syscall", KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
    give_up()


def give_up():
    """No capability now, and none by running a file later: no file's bits count any more, so the bounding set need not go."""
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("capset", CAPABILITY_HEADER, NO_CAPABILITIES)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def fork(own_pids):
    """fork(2), the child PID 1 of a new PID namespace; `own_pids` is a descriptor of the caller's."""
    call("unshare", CLONE_NEWPID)
    try:
        child = os.fork()
    except OSError:
        child = None
    if child != 0:
        call("setns", own_pids, CLONE_NEWPID)  # only then can the next be unshared
    return child


def enter_network(free):
    """Move to a network namespace that nobody uses, of the `free` or new, and return its descriptor."""
    if free:
        call("setns", free[-1], CLONE_NEWNET)
        return free.pop()
    call("unshare", CLONE_NEWNET)
    loopback()
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def reap(children, free):
    """Take the ended out of `children`, {PID: network}, and set their networks free.

    A child stays a zombie until the next request: its number is not used again.
    """
    while children and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)):
        free.append(children.pop(ended.si_pid))


def main(serve, control_fd, uid, writable_bytes, modules):
    """Answer requests until the other end of the control socket is closed."""
    control = _socket.socket(fileno=control_fd)
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    call("umount2", b"/dev/pts", MNT_DETACH)  # terminals would be shared by all programs
    for name in modules:
        __import__(name)
    gc.collect()
    gc.freeze()  # else each child's first collection writes to, and so copies, all of it
    null = os.open(os.devnull, os.O_RDWR)
    children, free = {}, []
    while True:
        seconds, ancillary, _, _ = control.recvmsg(64, _socket.CMSG_SPACE(4))
        if not seconds:
            return
        link = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
        reap(children, free)
        network = enter_network(free)
        child = fork(own_pids)
        if child == 0:
            try:
                for descriptor in (control_fd, own_pids, network, *free, *children.values()):
                    os.close(descriptor)
                for standard in (0, 1, 2):
                    os.dup2(null, standard)
                os.close(null)
                contain(uid, writable_bytes)
                serve(link, int(seconds), ())
            except BaseException as error:
                os.write(link, b"X" + str(error).encode())
            finally:
                os._exit(1)
        if child is None:
            free.append(network)
        else:
            children[child] = network
            pidfd = os.pidfd_open(child)
            reply = _socket.socket(fileno=link)
            try:
                reply.sendmsg([b"Z"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pidfd.to_bytes(4, sys.byteorder))])
            except OSError:  # whoever asked is gone
                os.kill(child, 9)
            reply.detach()
            os.close(pidfd)
        os.close(link)
