"""What studies share: a file of results that grows row by row, and how samples are measured."""
import json
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.data.captions import words
from diffusion_course.data.download import repository_data
from diffusion_course.evaluation.clip_probes import caption_right, load_probe, look, readable
from diffusion_course.evaluation.frechet import bootstrap, frechet_distance, statistics


class Study:
    """data/results/NAME.json, or another file: facts, and lists of rows.  What is there is not done again."""

    def __init__(self, name, out=None, **facts):
        self.out = Path(out or (repository_data() or Path("data")) / "results" / f"{name}.json")
        self.results = json.loads(self.out.read_text()) if self.out.exists() else facts
        for key, value in facts.items():
            if self.results[key] != value:
                raise SystemExit(f"{self.out} has {key}={self.results[key]}, not {value}; choose another "
                                 "--out")

    def has(self, part, **key):
        """Whether a row of that part has these entries."""
        return any(all(row[name] == value for name, value in key.items())
                   for row in self.results.get(part, []))

    def add(self, part, row):
        """One more row, written at once."""
        self.results.setdefault(part, []).append(row)
        self.write()
        print(part, json.dumps({key: value for key, value in row.items() if key != "losses"}), flush=True)

    def write(self):
        part = self.out.with_name(self.out.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        part.replace(self.out)


class Eye:
    """Measures samples beside all `real` images [N, 1, H, W] with the frame probe."""

    def __init__(self, real):
        self.probe = load_probe("frame_probe")
        self.real = statistics(look(self.probe, real)[0])

    def measured(self, x, text=None, label=None):
        """Frechet distance and its spread, shares of what can be read and of what is as was asked for."""
        features, said = look(self.probe, x.clamp(-1, 1))
        frechet, spread = bootstrap(frechet_distance, features, self.real)
        row = {"frechet": frechet, "spread": spread, "readable": readable(said).float().mean().item()}
        if text is not None:
            row["caption"] = caption_right(said, words(text)).float().mean().item()
        if label is not None:
            row["right"] = (said["digits"].argmax(1) == label).float().mean().item()
        return row


def drawn(recipe, n, seed=0, batch=128, **options):
    """n samples; tensors among the options have what each is asked for."""
    parts = [{name: value[i:i + batch] if isinstance(value, torch.Tensor) else value
              for name, value in options.items()} for i in range(0, n, batch)]
    return torch.cat([recipe.draw(min(batch, n - batch * i), seed + i, **part)
                      for i, part in enumerate(parts)])


def gflops(net, *args, **cond):
    """1e9 floating-point operations of one evaluation of one image."""
    # on a CPU the counter does not see the fused kernel of attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(*args, **cond)
    return counter.get_total_flops() / len(args[0]) / 1e9


def thinned(losses, to=100):
    """So many means of equal parts of the losses."""
    size = max(1, len(losses) // to)
    parts = [losses[i:i + size] for i in range(0, len(losses) - size + 1, size)]
    return [round(sum(part) / len(part), 5) for part in parts]
