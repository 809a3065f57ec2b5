import getpass
import os
import platform
import signal
import threading
from pathlib import Path

import pytest
import torch

from zoo.errors import RunError, ZooWarning
from zoo.files import locked
from zoo.workflows import memory, session


def test_the_cpu_is_always_there() -> None:
    assert session.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "mps:0", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "", "CPU", "cuda:1:2"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(RunError, match=f"--device {name}: no such device; here: cpu"):
        session.resolve_device(name)


def test_without_a_gpu_cuda_is_refused_and_the_default_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(RunError, match=f"--device {name}: PyTorch finds no GPU on this machine; use --device cpu"):
            session.resolve_device(name)
    assert session.resolve_device(None) == torch.device("cpu")


def test_with_two_gpus_there_is_no_third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert session.resolve_device("cuda:1") == torch.device("cuda", 1)
    assert session.resolve_device(None) == torch.device("cuda", 0)
    with pytest.raises(RunError, match="here: cpu, cuda:0, cuda:1"):
        session.resolve_device("cuda:99")


def test_seeds_depend_on_every_part_of_the_key() -> None:
    keys = [(0, "partition", 1), (0, "partition", 2), (1, "partition", 1), (0, "dropout", 1), (0, "partition1"), (0,)]
    seeds = [session.derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [session.derive_seed(*key) for key in keys]


def test_seeds_are_the_same_for_ever() -> None:
    # A run that was started with an older version must go on with the same random numbers.
    assert session.derive_seed(0, "partition", 1) == 2692006806339236359


def test_the_environment_names_no_user_host_or_folder() -> None:
    facts = session.environment(torch.device("cpu")).model_dump()
    assert {"zoo", "python", "torch", "device", "num_threads"} <= set(facts)
    text = " ".join(str(value) for value in facts.values())
    for private in (platform.node(), getpass.getuser(), os.getcwd()):
        assert private not in text


def test_autocast_is_on_for_bf16_only() -> None:
    matrix = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with session.autocast(torch.device("cpu"), precision):
            assert (matrix @ matrix).dtype == dtype


def test_peak_memory_counts_what_was_used() -> None:
    before = memory.peak(torch.device("cpu"))
    torch.ones(50_000_000).sum()
    assert before > 10_000_000
    assert memory.peak(torch.device("cpu")) >= before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with session.stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def body() -> None:
        with session.stop_requests() as stop:
            handlers.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert handlers == [(False, signal.SIG_DFL)]


def test_an_apple_gpu_can_be_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RunError, match="--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu"):
        session.resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert session.resolve_device("mps") == torch.device("mps")
    with pytest.raises(RunError, match=r"no such device; here: cpu.*, mps"):
        session.resolve_device("mps:1")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_signals_of_batch_systems_ask_to_stop(signum: int) -> None:
    before = signal.signal(signum, signal.SIG_DFL)
    try:
        with session.stop_requests() as stop:
            os.kill(os.getpid(), signum)
            assert stop
        assert stop.name == signal.Signals(signum).name
        assert signal.getsignal(signum) == signal.SIG_DFL
    finally:
        signal.signal(signum, before)


def test_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    # A shell without job control starts its background processes with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with session.stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop
            assert "Ctrl-C: stops after this step; once more leaves at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_before_there_is_anything_to_save_a_signal_stops_at_once() -> None:
    with session.stop_requests() as stop:
        stop.at_once = True
        with pytest.raises(session.StoppedError, match="SIGTERM before the first step") as error:
            os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.exit_code == 143


def test_the_time_that_a_run_may_take_ends_it() -> None:
    with session.stop_requests(max_time_s=1e6) as stop:
        assert not stop
    with session.stop_requests(max_time_s=0.0) as stop:
        assert stop
    assert (stop.name, stop.signum) == ("--max-time", signal.SIGALRM)


def test_threads_by_the_thousand_are_refused() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RunError, match=r"--threads 4000000: this machine has \d+ cores; expected at most \d+"):
        session.start("cpu", 4_000_000)
    assert torch.get_num_threads() == before


def test_a_run_that_waits_for_the_cache_of_another_can_be_stopped(tmp_path: Path) -> None:
    held, over = threading.Event(), threading.Event()

    def other() -> None:
        with locked(tmp_path / ".lock", RunError):
            held.set()
            over.wait(timeout=60)

    def wait() -> None:
        with session.stop_requests() as stop:
            stop.at_once = True
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            with locked(tmp_path / ".lock", RunError):
                pass

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with (
        pytest.warns(ZooWarning, match="waiting for process"),
        pytest.raises(session.StoppedError, match="SIGTERM before the first step"),
    ):
        wait()
    over.set()
    thread.join()
