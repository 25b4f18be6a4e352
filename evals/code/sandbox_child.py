"""The inside of the sandbox: two processes, so that the code under test never holds what decides its verdict.

This file is compiled once, by `sandbox.py`. It runs as the program of one sandbox, or in a hull (`sandbox_zygote.py`) as the
child of a process that is ready for any.

The *worker* runs the generated code and answers calls of its functions. The *checker*, its parent, runs the tests, whose
function calls go to the worker as plain data and come back as plain data: a result cannot compare itself, the expected
values are not in the worker's memory, and the checker alone reads the verdict token, after the worker was forked and only
where nobody of the same user may look (PR_SET_DUMPABLE). Standard library only, as few imports as possible.

The report: `S` when the program starts, then `T<token><8 bytes: length of the output><output>` when the tests ran to
their end, or `F<traceback>`. Only the token counts; all else on the descriptor is hearsay.
"""

import marshal
import os
import resource
import select
import sys

ADDRESS_SPACE = 4 << 30
FILE_SIZE = 64 << 20
PROCESSES = 64
OPEN_FILES = 256
MESSAGE_BYTES = 1 << 30
PR_SET_DUMPABLE = 4
# Classes of the standard library whose values are rebuilt on the other side from what __reduce__ says.
VALUES = {
    ("fractions", "Fraction"),
    ("decimal", "Decimal"),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta")),
}


class OutOfTime(BaseException):
    """A call took longer than the tests allow it; not an Exception, so that no test swallows it."""


class Remote:
    """The checker's stand-in for an object that lives in the worker; never equal to anything but itself."""

    def __init__(self, channel, number):
        self.__dict__.update(_channel=channel, _number=number)

    def __call__(self, *args, **named):
        return self._channel.call(self._number, args, named)

    def __getattr__(self, name):
        return self._channel.ask("attribute", self._number, name)

    def __setattr__(self, name, value):
        self._channel.ask("set", self._number, (name, value))

    def __iter__(self):
        return iter(self._channel.ask("list", self._number, None))

    def __len__(self):
        return self._channel.ask("length", self._number, None)

    def __getitem__(self, key):
        return self._channel.ask("item", self._number, key)


def pack(value, keep):
    """Plain data as they are; all else with tags, what is neither kept on this side under a number by `keep(object)`."""
    try:
        return b"P" + marshal.dumps(value)
    except ValueError:
        return b"T" + marshal.dumps(_tagged(value, keep))


def _tagged(value, keep):
    kind = type(value)
    if kind is Remote:
        return (..., "object", value._number)
    if value is None or kind in (bool, int, float, complex, str, bytes):
        return value
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return base([_tagged(item, keep) for item in value])
    if issubclass(kind, dict):
        return {_tagged(key, keep): _tagged(item, keep) for key, item in value.items()}
    for base in (int, float, complex, str, bytes):
        if issubclass(kind, base):
            return base(value)
    if kind is range:
        return (..., "range", (value.start, value.stop, value.step))
    if (kind.__module__, kind.__qualname__) in VALUES:
        return (..., "value", (kind.__module__, kind.__qualname__, value.__reduce__()[1]))
    if kind is type(sys):
        return (..., "module", value.__name__)
    if kind is type and getattr(__import__("builtins"), value.__name__, None) is value:
        return (..., "builtin", value.__name__)
    return (..., "object", keep(value))


def unpack(data, fetch):
    """What `pack` wrote; `fetch(number)` gives the object kept under a number."""
    value = marshal.loads(memoryview(data)[1:])
    return _untagged(value, fetch) if data[:1] == b"T" else value


def _untagged(value, fetch):
    kind = type(value)
    if kind is tuple and len(value) == 3 and value[0] is ...:
        _, what, content = value
        if what == "object":
            return fetch(content)
        if what == "range":
            return range(*content)
        if what == "module":
            return __import__(content, fromlist=["_"]) if content in sys.stdlib_module_names else None
        if what == "builtin":
            return getattr(__import__("builtins"), content)
        module, name, arguments = content
        if (module, name) not in VALUES:
            raise ValueError(f"{module}.{name} is not passed between processes")
        return getattr(__import__(module), name)(*arguments)
    if kind in (list, tuple, set, frozenset):
        return kind([_untagged(item, fetch) for item in value])
    if kind is dict:
        return {_untagged(key, fetch): _untagged(item, fetch) for key, item in value.items()}
    return value


def send(descriptor, data):
    data = len(data).to_bytes(8, "little") + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor, seconds=None):
    """One message; raises EOFError when the other side is gone, OutOfTime when its first byte is late."""
    if seconds is not None and not select.select([descriptor], [], [], seconds)[0]:
        raise OutOfTime(f"a call took longer than {seconds:.1f} s")
    size = int.from_bytes(_exactly(descriptor, 8), "little")
    if size > MESSAGE_BYTES:
        raise EOFError("the program wrote to the descriptor of its answers")
    return _exactly(descriptor, size)


def _exactly(descriptor, size):
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError("the program ended before its tests did")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def work(requests, answers):
    """The worker: runs what it is sent, until it is killed."""
    namespace, objects = {}, []

    def keep(value):
        objects.append(value)
        return len(objects) - 1

    operations = {
        # Empty globals, as the reference harness runs its samples: `__name__` is not "__main__".
        "load": lambda _, code: exec(compile(code, "<program>", "exec"), namespace),
        "global": lambda _, name: (name in namespace, namespace.get(name)),
        "attribute": lambda number, name: getattr(objects[number], name),
        "set": lambda number, pair: setattr(objects[number], *pair),
        "list": lambda number, _: list(objects[number]),
        "length": lambda number, _: len(objects[number]),
        "item": lambda number, key: objects[number][key],
    }
    while True:
        operation, number, watch, content = marshal.loads(receive(requests))
        try:
            argument, changed = unpack(content, objects.__getitem__), None
            if operation == "call":
                args, named = argument
                result = objects[number](*args, **named)
                if watch and any(type(a) in (list, dict, set) for a in args):
                    before = unpack(content, objects.__getitem__)[0]
                    changed = {i: a for i, a in enumerate(args) if type(a) in (list, dict, set) and a != before[i]}
            else:
                result = operations[operation](number, argument)
            answer = b"R" + pack((result, changed), keep)
        except BaseException as error:
            import traceback  # slow to import, and most programs raise nothing

            trace = "".join(traceback.format_exception(error, limit=-3))[-2000:]
            answer = b"E" + marshal.dumps((type(error).__name__, str(error)[:500], trace))
        send(answers, answer)


class Channel:
    """The checker's end of the pipes to the worker."""

    def __init__(self, requests, answers):
        self.requests, self.answers = requests, answers
        self.limit = None
        """Seconds that one call may take; None: as long as the whole program."""
        self.watch = True
        """Whether calls that change their arguments change the tests' own."""
        self.trace = ""
        """Traceback of the last exception in the worker."""

    def ask(self, operation, number, argument):
        return self._exchange(operation, number, argument)[0]

    def call(self, number, args, named):
        result, changed = self._exchange("call", number, (args, named))
        for index, content in (changed or {}).items():
            if type(args[index]) is list:
                args[index][:] = content
            else:
                args[index].clear()
                args[index].update(content)
        return result

    def _exchange(self, operation, number, argument):
        try:
            send(self.requests, marshal.dumps((operation, number, self.watch, pack(argument, _refuse))))
            answer = receive(self.answers, self.limit)
        except BrokenPipeError:
            raise EOFError("the program ended before its tests did") from None
        if answer[:1] == b"R":
            return unpack(memoryview(answer)[1:], lambda kept: Remote(self, kept))
        name, message, self.trace = marshal.loads(memoryview(answer)[1:])
        kind = getattr(__import__("builtins"), name, None)
        kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
        try:
            raised = kind(message)
        except TypeError:  # UnicodeDecodeError and its like want more arguments
            raised = RuntimeError(f"{name}: {message}")
        raise raised


def _refuse(value):
    raise TypeError(f"the tests pass a {type(value).__name__}, which cannot travel to the program")


class Tools:
    """What tests may use under the name `harness`."""

    def __init__(self, channel, data):
        self.channel, self.data, self.output = channel, data, b""

    def allow(self, seconds):
        """Give each call from now on so many seconds, and do not copy changed arguments back."""
        self.channel.limit, self.channel.watch = seconds, False


def check(channel, code, given, tests, names, data):
    """Run the tests against the code; returns the output they left. Raises what they raise."""
    channel.ask("load", 0, code)
    namespace = {}
    exec(compile(given, "<given>", "exec"), namespace)
    for name in names:
        there, value = channel.ask("global", 0, name)
        if there:
            namespace[name] = value
        else:
            namespace.pop(name, None)
    tools = namespace["harness"] = Tools(channel, data)
    exec(compile(tests, "<tests>", "exec"), namespace)
    return tools.output


def limit(cpu_seconds):
    """Cap this process and its children; the kernel is asked to kill them first when memory runs out."""
    for what, most in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    handle = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(handle, b"1000")
    os.close(handle)


def _libc_prctl():
    """prctl(2) of libc, without the half of the start-up time that importing ctypes takes."""
    import _ctypes

    class Int(_ctypes._SimpleCData):
        _type_ = "i"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL
        _restype_ = Int

    return Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"))


_PRCTL = _libc_prctl()  # made once in a hull: its children have it by being forked


def prctl(option, value):
    """prctl(2). Raises OSError."""
    if _PRCTL(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}, {value}) failed")


def serve(link, cpu_seconds, modules):
    """Test the program that comes over the socket `link`, report there, and end this process.

    The program, and the token that it must not see, are read only once the worker is forked and has closed its copy.
    """
    limit(cpu_seconds)
    prctl(PR_SET_DUMPABLE, 0)
    for name in modules:
        __import__(name)
    requests_in, requests_out = os.pipe()
    answers_in, answers_out = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    worker = os.fork()
    if worker == 0:
        try:
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            for descriptor in (link, requests_out, answers_in, null):
                os.close(descriptor)
            prctl(PR_SET_DUMPABLE, 1)
            work(requests_in, answers_out)
        finally:
            os._exit(1)
    os.close(requests_in)
    os.close(answers_out)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    token, *parts = marshal.loads(receive(link))
    os.write(link, b"S")
    channel = Channel(requests_out, answers_in)
    try:
        output = check(channel, *parts)
    except BaseException:
        import traceback

        text = traceback.format_exc(limit=-3) if not channel.trace else channel.trace
        os.write(link, b"F" + text.encode(errors="replace")[-2000:])
    else:
        rest = b"T" + token + len(output).to_bytes(8, "little") + output
        while rest:
            rest = rest[os.write(link, rest) :]
    os._exit(0)  # no atexit handlers, no waiting for the worker: whoever reads the report kills all that is left
