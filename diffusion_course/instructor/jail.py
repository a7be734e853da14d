"""Where the code of a submission runs: a process that cannot read the solutions, or write, or call out.

    python -I -m diffusion_course.instructor.jail SCRATCH IN OUT

It reads requests from the file descriptor IN and answers on OUT.  What comes in is pickled by the grader;
what goes out is JSON and the bytes of tensors, so nothing that a submission says is ever unpickled.  The lock
is Landlock, of Linux since 5.13: once set, neither the process nor a child of it can undo it.
"""
import ctypes
import json
import os
import pickle
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

READ, WRITE, TRUNCATE, READ_FOLDER = 1 << 2, 1 << 1, 1 << 14, 1 << 3           # rights of Landlock
CHANGE_FOLDER = sum(1 << n for n in (4, 5, 7, 8, 9, 10, 12, 13))               # remove, make, rename
CREATE, ADD, RESTRICT, NO_NEW_PRIVILEGES = 444, 445, 446, 38   # system calls, and an option of prctl


def landlock() -> int:
    """The version of Landlock that this kernel has; 0 if none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE, None, 0, 1))


def lock(readable: list[Path], writable: list[Path]) -> None:
    """From now on nothing can be read but `readable`, or written but `writable`; no program, no network.

    An OSError if the kernel refuses.
    """
    version, libc = landlock(), ctypes.CDLL(None, use_errno=True)
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)             # newer kernels have more
    everything = (1 << rights) - 1
    fields = [everything, *[0b11] * (version >= 4), *[0b11] * (version >= 6)]  # files; network; signals
    rules = struct.pack(f"{len(fields)}Q", *fields)

    def call(number, *args):
        if (result := libc.syscall(number, *args)) < 0:
            raise OSError(ctypes.get_errno(), "this kernel refuses to lock the process")
        return result

    ruleset = call(CREATE, rules, len(rules), 0)
    for paths, of_file, of_folder in ((readable, READ, READ_FOLDER),
                                      (writable, READ | WRITE | TRUNCATE, READ_FOLDER | CHANGE_FOLDER)):
        for path in paths:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            granted = everything & (of_file | of_folder if path.is_dir() else of_file)
            call(ADD, ruleset, 1, struct.pack("=Qi", granted, place), 0)
            os.close(place)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot give up its privileges")
    call(RESTRICT, ruleset, 0)
    os.close(ruleset)


def around(root: Path, hidden: Path) -> Iterator[Path]:
    """root without what is hidden in it, in as few paths as there can be."""
    if root not in (hidden, *hidden.parents):
        yield root
    elif root != hidden:
        for child in root.iterdir():
            yield from around(child, hidden)


def needed(solutions: Path) -> list[Path]:
    """What Python, torch and this package must read: not the solutions, nor other people's files."""
    system = [sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/proc", "/sys", "/dev",
              "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts"]
    roots = {Path(path).resolve() for path in (*system, solutions.parent) if Path(path).exists()}
    return [path for root in roots for path in around(root, solutions) if path.exists()]


# ---- what is said

def send(stream, header: dict, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(struct.pack("<QQ", len(text), len(data)) + text + data)
    stream.flush()


def plain(value, data: bytearray):
    """What a function returned as JSON; the numbers of tensors go to the end of data."""
    import numpy as np
    import torch

    if isinstance(value, (np.ndarray, np.generic, complex)):
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).contiguous()
        data += value.resolve_conj().resolve_neg().numpy().tobytes()
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if value is None or value is ...:
        return None
    if isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [plain(item, data) for item in value]}
    if isinstance(value, Iterator):                            # a generator
        return plain([item for item, _ in zip(value, range(10_000))], data)
    return {"other": type(value).__name__}


def objects(args: tuple) -> list:
    """The arguments that a function may change: modules, and others with attributes."""
    return [a for a in args if hasattr(a, "__dict__") and type(a).__name__ not in ("Tensor", "function")]


def state_of(thing) -> list[tuple]:
    """What it is made of, for the grader's own copy to be changed alike: (kind, name, value)."""
    parts = {"buffer": getattr(thing, "_buffers", {}), "parameter": getattr(thing, "_parameters", {}),
             "attribute": {name: value for name, value in vars(thing).items() if not name.startswith("_")}}
    return [(kind, name, value) for kind, values in parts.items() for name, value in values.items()]


def said(error: BaseException, cells: list[str]) -> dict:
    """An error, with the line of the submission that it comes from."""
    import traceback
    names = {f"<cell {n}>": code.splitlines() for n, code in enumerate(cells)}
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in names]
    text = str(error)[:2000]
    if places:
        text += f" (line {places[-1].lineno}: {names[places[-1].filename][places[-1].lineno - 1].strip()})"
    return {"error": type(error).__name__, "text": text.strip()}


def main() -> None:
    scratch = Path(sys.argv[1])
    source, sink = os.fdopen(int(sys.argv[2]), "rb"), os.fdopen(int(sys.argv[3]), "wb")
    os.chdir(scratch)
    for limit, most in (resource.RLIMIT_FSIZE, 2**28), (resource.RLIMIT_CPU, 1800), (resource.RLIMIT_CORE, 0):
        resource.setrlimit(limit, (most, most))
    if landlock():
        lock(needed(Path(__file__).resolve().parents[1] / "exercises"), [scratch, Path("/dev/null")])
    import inspect
    from types import ModuleType

    import torch

    torch.set_num_threads(1)
    exercises = sys.modules["diffusion_course.exercises"] = ModuleType("diffusion_course.exercises")
    for name in "check", "hint", "solution", "progress":       # a submission calls them; here they are silent
        setattr(exercises, name, lambda *args, **kwargs: None)
    names, cells = {"__name__": "__main__"}, []
    send(sink, {})                                             # ready
    while size := source.read(8):
        request = pickle.loads(source.read(struct.unpack("<Q", size)[0]))
        answer, data = {}, bytearray()
        try:
            match request:
                case "run", code:
                    cells.append(code)
                    exec(compile(code, f"<cell {len(cells) - 1}>", "exec"), names)
                case "look", name:
                    known = callable(names.get(name))
                    answer = {"arguments": list(inspect.signature(names[name]).parameters) if known else None}
                case "call", name, args:
                    torch.default_generator.manual_seed(0)
                    out = plain(names[name](*args), data)
                    answer = {"out": out, "after": plain([state_of(thing) for thing in objects(args)], data)}
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            answer = said(error, cells)
        send(sink, answer, bytes(data))


if __name__ == "__main__":
    main()
