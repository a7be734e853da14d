"""What lessons would cost on Colab's T4, computed: python tests/benchmarks/t4.py [LESSON ...]

Every lesson runs at its t4 preset on this CPU, in a kernel that counts operations and launches.  What
repeats itself is done a few times and counted as often as it is asked for: the steps of a training, and the
evaluations of a network.  So samples are meaningless (`same` is off), and an adaptive solver stops early.

Minutes are those of the smoke preset (imports, figures) + operations / RATE + launches * LAUNCH.  Memory is
the peak of this process, on a CPU and in full precision.  Neither was measured on a T4.
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

import nbformat

RATE = 6.5e12  # operations per second: a tenth of the T4's 65e12 in half precision, for networks this small
LAUNCH = 15e-6  # seconds that Python and the driver take for an operation
OUT = "DIFFUSION_COURSE_COUNTS"  # where a kernel leaves what it has counted


def count() -> None:
    """In the kernel, before the first cell: count everything, and do what repeats itself once."""
    import torch
    from IPython import get_ipython
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from diffusion_course.classroom import lesson, panel, widgets
    from diffusion_course.training.trainer import Progress, Trainer

    class Counter(TorchDispatchMode):
        flops, launches = 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function._overloadpacket in flop_registry:
                self.flops += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.launches += not function.is_view
            return out

        def now(self):
            return self.flops, self.launches

        def add(self, more, times=1):
            self.flops, self.launches = (a + times * b for a, b in zip(self.now(), more))

    def less(a, b):
        return tuple(x - y for x, y in zip(a, b))

    def watch(run, total, *args, **kwargs):
        """Three real steps of a training, the last of them as often as there were to be steps."""
        marks = []
        known.clear()
        for _, step in zip(range(3), run):
            known.clear()
            marks.append(counter.now())
            yield step
        for _ in range(total - len(marks)):
            counter.add(less(marks[-1], marks[-2]))
            yield step

    def train(self, batches, steps=None, bar=False):
        """Trainer.run, in this way."""
        total = self.total - self.step if steps is None else steps
        for number, step in enumerate(watch(run(self, batches, min(3, total)), total), 1):
            yield Progress(number, step.tensor)

    def thrifty(self, *args, **kwargs):
        """A module that no other has called: it computes twice for each shape, then answers with that."""
        given, grad = (*args, *kwargs.values()), torch.is_grad_enabled()
        key = id(self), grad, str([getattr(value, "shape", value) for value in given])
        calls, out, cost, _ = known.get(key, (0, None, None, None))
        if self in inside or calls >= 2 and not isinstance(out, torch.Tensor):
            return call(self, *args, **kwargs)
        if calls < 2:
            before = counter.now()
            inside.update(self.modules())
            try:
                out = call(self, *args, **kwargs)
            finally:
                inside.difference_update(self.modules())
            kept = out.detach() if isinstance(out, torch.Tensor) else None
            known[key] = calls + 1, kept, less(counter.now(), before), self
            return out
        counter.add(cost, 3 if grad else 1)                    # the way back takes twice as much
        if not grad:
            return out
        inputs = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
        weights = [p for p in self.parameters() if p.requires_grad]
        return out + 0 * sum(x.sum() for x in inputs + weights[:1] + weights[-2:])

    counter, known, inside = Counter(), {}, set()
    counter.__enter__()
    run = Trainer.run
    call, torch.nn.Module.__call__ = torch.nn.Module.__call__, thrifty
    lesson.same = widgets.explore = lambda *args, **kwargs: None
    panel.watch, Trainer.run = watch, train
    get_ipython().events.register(
        "post_run_cell", lambda result: Path(os.environ[OUT]).write_text(json.dumps(counter.now())))


def compute(number: str, out: Path) -> None:
    """Run a lesson in this way, and keep what it would cost."""
    from diffusion_course.classroom import costs, curriculum, runner

    lesson = curriculum.find(number)
    smoke = costs.read(out)[f"{lesson.number:02}"]["smoke"]["minutes"]
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "count.py").write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                                          "import t4; t4.count()\n")
        counts = Path(folder) / "counts.json"
        os.environ |= {"IPYTHONDIR": folder, OUT: str(counts)}
        nb = nbformat.read(curriculum.notebook(lesson), as_version=4)
        for cell in nb.cells:                                  # one that looks into a network may see nothing
            cell.metadata["tags"] = ["raises-exception"]
        nbformat.write(nb, Path(folder) / lesson.file)
        run = runner.run(Path(folder) / lesson.file, Path(folder) / "out", "t4")
        failed = sum(output.output_type == "error" for cell in nbformat.read(run.notebook, as_version=4).cells
                     for output in cell.get("outputs", ()))
        flops, launches = json.loads(counts.read_text())
    minutes = smoke + (flops / RATE + launches * LAUNCH) / 60
    print(f"{lesson.name}: {flops / 1e15:.3f} PFLOP, {launches:,} launches, {run.usage['memory']:.1f} GB, "
          f"{minutes:.1f} minutes (ran in {run.minutes:.1f}, {failed} cells failed)", flush=True)
    costs.add(lesson, "t4", {"minutes": minutes, "memory": run.usage["memory"], "how": "computed",
                             "device": "Colab T4", "flops": flops, "launches": launches}, out)


if __name__ == "__main__":
    from diffusion_course.classroom.curriculum import LESSONS, ready

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lessons", nargs="*", default=[str(one.number) for one in LESSONS if ready(one)])
    parser.add_argument("--out", type=Path, default=Path("data/results/costs.json"))
    options = parser.parse_args()
    for number in options.lessons:
        compute(number, options.out)
