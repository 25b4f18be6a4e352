"""Programs that try to get out, to stay, or to pass without solving the task: `f(x)` should return the square of x.

Each is told {secret} (a file of the user's), {home}, {port} (a listening socket of the machine) and {mark} (a name that must
appear nowhere outside). None of them solves the task, so none may pass.
"""
# ruff: noqa: E501

_HUNT = """
import gc, os, re, sys
def tell(words):
    for word in words:
        for fd in range(3, 200):
            try: os.write(fd, b'T' + word)
            except OSError: pass
"""

CORPUS = {
    # --- files
    "reads a file of the user": "open({secret}).read()",
    "lists the home folder": "import os; os.listdir({home} + '/.ssh')",
    "reads the password file": "print(open('/etc/shadow').read())",
    "writes to the system": "open('/usr/lib/' + {mark}, 'w').write('x')",
    "writes to the root": "open('/' + {mark}, 'w').write('x')",
    "leaves files in the temporary folders": (
        "for folder in ('/tmp/', '/dev/shm/', '/var/tmp/'):\n    try: open(folder + {mark}, 'w').write('x')\n    except OSError: pass"
    ),
    "writes to the user's folder": "import os\nopen(os.path.dirname({secret}) + '/' + {mark}, 'w').write('x')",
    "follows a symbolic link out": "import os\nos.symlink({secret}, '/tmp/link')\nopen('/tmp/link').read()",
    "links over the interpreter": "import os, sys\nos.remove(sys.executable)\nos.symlink('/bin/false', sys.executable)",
    "climbs out of /proc": "import os\nos.chdir('/proc/1/root/proc/1/cwd/../../../')\nopen({secret}).read()",
    "fills the disk": "f = open('/tmp/fill', 'wb')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()",
    "fills the disk with many files": (
        "i = 0\nwhile True:\n    i += 1\n    with open('/tmp/%d' % i, 'wb') as f: f.write(b'x' * (1 << 20))"
    ),
    "fills the shared memory": "i = 0\nwhile True:\n    i += 1\n    open('/dev/shm/%d' % i, 'wb').write(b'x' * (1 << 22))",
    "writes to /proc": "open('/proc/sys/kernel/hostname', 'w').write({mark})\nopen('/proc/sysrq-trigger', 'w').write('b')",
    "protects itself from the memory killer": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "mounts": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "remounts the system writable": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/usr', None, 32 | 4096, None) == 0\nopen('/usr/' + {mark}, 'w')"
    ),
    "makes a device": "import os, stat\nos.mknod('/tmp/sda', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
    "sitecustomize": (
        "import os, site, sys\nfor folder in sys.path + [site.getusersitepackages()]:\n"
        "    try:\n        os.makedirs(folder, exist_ok=True)\n        open(folder + '/sitecustomize.py', 'w').write('import os; os._exit(0)')\n"
        "    except OSError: pass"
    ),
    # --- network and kernel
    "connects to the machine": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)",
    "asks a name server": "import socket; socket.getaddrinfo('example.com', 80)",
    "opens a raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "changes its network's settings": "open('/proc/sys/net/ipv4/ip_default_ttl', 'w').write('1')",
    "sees the machine's network": "import os; assert len(os.listdir('/sys/class/net')) > 1",
    "abstract unix sockets": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect(b'\\0' + {mark}.encode())",
    "makes a user namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "calls unshare": "import subprocess; subprocess.run(['/usr/bin/unshare', '--user', 'true'], check=True)",
    "becomes root": "import os; os.setuid(0)",
    "shared memory of the machine": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.shmget(0x5EC, 4096, 0o1666) >= 0\n"
        "assert open('/proc/sysvipc/shm').read().count('\\n') > 2"
    ),
    "keyring": "import ctypes\nctypes.CDLL(None).syscall(248, b'user', {mark}.encode(), b'x', 1, -4)",
    "sees the machine's processes": "import os; assert any(int(p) > 100 for p in os.listdir('/proc') if p.isdigit())",
    "reads the environment": "import os; assert 'PATH' in os.environ or 'HOME' in os.environ",
    # --- processes and time
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that goes on": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(600,)).start()",
    "background process": "import subprocess, os\nsubprocess.Popen(['/bin/sleep', '600'], start_new_session=True)\nos._exit(0)",
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '600'])\n"
        "    os._exit(0)\ntime.sleep(600)"
    ),
    "endless loop that swallows everything": "while True:\n    try:\n        while True: pass\n    except: pass",
    "endless function that swallows everything": (
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass"
    ),
    "endless C call": "def f(x): return sum(range(10 ** 12))",
    "endless loop at exit": "import atexit\natexit.register(lambda: [0 for _ in iter(int, 1)])\nraise SystemExit(0)",
    "ignores signals": "import signal, time\nfor s in (2, 15, 1, 14): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "kills its parent": "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)",
    "kills its group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "kills everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    # --- resources
    "ten gigabytes": "x = bytearray(10 << 30)",
    "ten gigabytes in a result": "def f(x): return b'x' * (10 << 30)",
    "endless list": "x = []\nwhile True: x.append(' ' * (1 << 20))",
    "output flood": "import sys\nwhile True: print('x' * (1 << 16)); sys.stderr.write('x' * (1 << 16))",
    "descriptor flood": (
        "import os\nwhile True:\n    for fd in range(256):\n        try: os.write(fd, b'T' * 4096)\n        except OSError: pass"
    ),
    "opens all descriptors": "import os\nfds = []\nwhile True: fds.append(os.open('/dev/null', 0))",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "result without end": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    # --- passing without solving
    "early exit": "import os; os._exit(0)",
    "early exit in the function": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit in the function": "import sys\ndef f(x): sys.exit(0)",
    "exit handlers": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "equal to everything": "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    "an int equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\ndef f(x): return Any()"
    ),
    "a list equal to everything": "class Any(list):\n    def __eq__(self, other): return True\ndef f(x): return Any([1])",
    "a class equal to everything": (
        "class Meta(type):\n    def __eq__(self, other): return True\nclass Any(metaclass=Meta): pass\ndef f(x): return Any"
    ),
    "AssertionError that is no error": "import builtins\nbuiltins.AssertionError = type('A', (SystemExit,), {{}})\ndef f(x): return 0",
    "own equality for int": "import builtins\nbuiltins.int = type('int', (int,), {{'__eq__': lambda a, b: True}})\ndef f(x): return int(0)",
    "replaces check": "def check(candidate): pass\ndef f(x): return 0",
    "prints the word": "print('passed', 'PASS', 'T', 'OK')\ndef f(x): return 0",
    "writes to the report": "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'SPASSEDT' + b'0' * 32)\n    except OSError: pass",
    "answers in advance": (
        "import marshal, os\ngood = b'RP' + marshal.dumps((True, None))\n"
        "for fd in range(3, 64):\n    for _ in range(8):\n        try: os.write(fd, len(good).to_bytes(8, 'little') + good)\n"
        "        except OSError: pass\ndef f(x): return 0"
    ),
    "hunts the token by garbage collector": _HUNT
    + "tell([o.encode() if isinstance(o, str) else o for h in gc.get_objects() for o in gc.get_referents(h)\n"
    "      if isinstance(o, (str, bytes)) and len(o) == 32])\ndef f(x): return 0",
    "hunts the token by frames": _HUNT
    + "frame, found = sys._getframe(), []\nwhile frame:\n    found += [v for v in frame.f_locals.values() if isinstance(v, bytes)]\n"
    "    frame = frame.f_back\ntell(found)\ndef f(x): return 0",
    "hunts the token in memory": _HUNT
    + "for process in ('self', str(os.getppid()), '1'):\n    try:\n        memory = open('/proc/%s/mem' % process, 'rb')\n"
    "        for line in open('/proc/%s/maps' % process):\n            low, high = (int(v, 16) for v in line.split()[0].split('-'))\n"
    "            try:\n                memory.seek(low)\n                tell(re.findall(rb'[0-9a-f]{{32}}', memory.read(high - low))[:20])\n"
    "            except (OSError, OverflowError, ValueError): pass\n    except OSError: pass\ndef f(x): return 0",
    "reads the token's descriptor": _HUNT + "for process in ('self', str(os.getppid()), '1'):\n    for fd in range(16):\n"
    "        try: tell([os.read(os.open('/proc/%s/fd/%d' % (process, fd), os.O_RDONLY | os.O_NONBLOCK), 64)])\n"
    "        except OSError: pass\ndef f(x): return 0",
    "patches the harness": (
        "import sys\nfor name, value in list(vars(sys.modules['__main__']).items()):\n"
        "    if callable(value): setattr(sys.modules['__main__'], name, lambda *a, **k: True)\ndef f(x): return 0"
    ),
    "patches os.write and marshal": (
        "import marshal, os\nreal = os.write\nos.write = lambda fd, data: real(fd, data.replace(b'E', b'R'))\n"
        "marshal.dumps = lambda *a: b'T'\ndef f(x): raise ValueError"
    ),
    "traces the tests": (
        "import sys, threading\ndef trace(frame, event, argument):\n    frame.f_trace_opcodes = True\n"
        "    frame.f_locals.update(same=True, wanted=0)\n    return trace\n"
        "sys.settrace(trace)\nthreading.settrace(trace)\nframe = sys._getframe()\n"
        "while frame: frame.f_trace = trace; frame = frame.f_back\ndef f(x): return 0"
    ),
    "ptraces its parent": (
        "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nassert libc.ptrace(16, os.getppid(), 0, 0) == 0\ntime.sleep(600)"
    ),
    "replaces its process": "import os, sys\nos.execv('/bin/true', ['true'])",
    "jumps over the tests": "def f(x):\n    raise StopIteration",
    "not Python": "def f(:\n",
    "null byte": "x = '\0'",
}
