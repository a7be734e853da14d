"""Shared by all tests: quiet threads, no network, a toy network and a way to wake zero-initialised layers."""
import os
import signal

os.environ.setdefault("DIFFUSION_COURSE_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch
from promises import CASES, DONE, KINDS, SKIPPED, promised_but_not_done
from torch import nn

from diffusion_course.diffusion.schedules import broadcast
from diffusion_course.training import container

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


class Toy(nn.Module):
    """A fixed smooth network without weights: enough to tell samplers apart."""

    def forward(self, x, t, label=None):
        t = broadcast(t, x)
        x = torch.sin(x * (1 + t)) * 0.5 + 0.1 * t
        return x if label is None else x + 0.1 * broadcast(label.to(x), x)


class Gaussian:
    """The exact denoiser of data from N(mean, std^2)."""

    def __init__(self, schedule, mean=0.3, std=0.6):
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, x, t):
        return self.estimate(x, t)[0]

    def estimate(self, x, t):
        alpha, sigma = self.schedule.at(t, x)
        return (alpha * self.std**2 * x + sigma**2 * self.mean) / (alpha**2 * self.std**2 + sigma**2), None

    def add_noise(self, x0, t, noise):
        alpha, sigma = self.schedule.at(t, x0)
        return alpha * x0 + sigma * noise

    def flow(self, x, t, s):
        """Where the probability-flow ODE takes x from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule.at(t, x), self.schedule.at(s, x)
        spread = (alpha_s**2 * self.std**2 + sigma_s**2) / (alpha_t**2 * self.std**2 + sigma_t**2)
        return alpha_s * self.mean + spread.sqrt() * (x - alpha_t * self.mean)


class OracleAR1:
    """The exact denoiser of videos whose pixels are independent stationary AR(1) processes in time.

    The test bed of the addendum to the cards: samplers of videos have known variance and autocorrelation on
    it.  With `mismatched`, a caricature of a network that was only trained on equal levels of noise.
    """

    def __init__(self, schedule, rho=0.95, mismatched=False):
        self.schedule, self.rho, self.mismatched = schedule, rho, mismatched

    def covariance(self, frames):
        place = torch.arange(frames)
        return self.rho ** (place[:, None] - place).abs().double()

    def __call__(self, x, t, **cond):
        return self.estimate(x, t)[0]

    def estimate(self, x, t, **cond):
        t = (t if t.ndim == 2 else t[:, None].expand(-1, x.shape[2]))[0].double()      # [F], for all samples
        alpha, sigma = self.schedule(t)
        exact_alpha, exact_sigma = alpha, sigma
        if self.mismatched:
            snr = ((alpha**2 / sigma**2).log().mean()).exp()
            alpha = (snr / (1 + snr)).sqrt().expand_as(alpha)
            sigma = (1 / (1 + snr)).sqrt().expand_as(sigma)
        S = self.covariance(x.shape[2])
        gain = S * alpha @ torch.linalg.inv(alpha[:, None] * S * alpha + (sigma**2).diag())
        x0 = torch.einsum("ij,bcjhw->bcihw", gain.to(x.dtype), x)
        if self.mismatched:                                    # keep the noise it believes in
            levels = (alpha, sigma, exact_alpha, exact_sigma)
            a, s, ea, es = (v[None, None, :, None, None].to(x) for v in levels)
            x0 = (x - es * (x - a * x0) / s) / ea
        return x0, None

    add_noise = Gaussian.add_noise


# ---- how often the package was held to what SECURITY.md promises

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A marked test is one case, unless it counts them itself."""
    before = CASES.copy()
    yield
    for kind in KINDS:
        if item.get_closest_marker(kind) and CASES[kind] == before[kind]:
            CASES[kind] += 1
    item.user_properties.append(("cases", dict(CASES - before)))               # of this one of two processes


def pytest_runtest_logreport(report):
    """What is skipped, since this system cannot do it, does not count as lacking."""
    for kind in KINDS:
        SKIPPED[kind] += report.skipped and kind in report.keywords
    if report.when == "call" and report.passed:
        DONE.update(dict(report.user_properties).get("cases", {}))


def lacking(config) -> dict[str, int]:
    """What SECURITY.md says and a run of all tests did not do."""
    whole = config.args == ["tests"] and not (config.option.keyword or config.option.markexpr)
    return promised_but_not_done() if whole else {}


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and not hasattr(session.config, "workerinput") and lacking(session.config):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    if DONE:
        terminalreporter.write_line(", ".join(f"{DONE[kind]} {KINDS[kind]}" for kind in KINDS))
    if missing := lacking(config):
        terminalreporter.write_line(f"SECURITY.md says more: {missing}", red=True)


def wake(module):
    """Give every zero-initialised weight a value: a network that outputs zero passes any test of equality."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        if p.requires_grad and not p.any():
            with torch.no_grad():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return module


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def double():
    """Tables and new tensors in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def resumed_equals_unbroken(trainer, batches):
    """A run that stops half-way and is resumed ends as one that does not; trainer(folder) makes it.

    Returns the tensors of its state.
    """
    half = len(batches) // 2
    unbroken = trainer("a")
    whole = [p.loss for p in unbroken.run(batches)]
    list(trainer("b").run(batches, half))
    again = trainer("b")
    assert again.resume() == half and [p.loss for p in again.run(batches)] == whole[half:]
    a, b = (container.read(run.folder / "state.safetensors")[0] for run in (unbroken, again))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return a
