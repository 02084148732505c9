"""Trials on Slurm: with stand-ins for its commands, and (slow) on a real Slurm of two nodes on this machine."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from slurm_cluster import missing, slurm
from submitit.core.utils import DelayedSubmission

from lm_trials.console import UsageError
from lm_trials.trials import run
from lm_trials.trials import slurm as module
from lm_trials.trials.graph import Job
from lm_trials.trials.slurm import Slurm, SlurmArguments

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_INS = {
    "srun": "",
    "squeue": 'cat "$SLURM_QUEUE"',
    # A queue of lines `number|state|reason|name`, as --format=%A|%T|%r|%j has them.
    "sbatch": """
        grep -q -- --partition=nowhere "$1" && { echo "sbatch: error: invalid partition" >&2; exit 1; }
        number=$(($(wc -l < "$SLURM_QUEUE") + 1))
        echo "$number|PENDING|Priority|$(sed -n 's/^#SBATCH --job-name=//p' "$1")" >> "$SLURM_QUEUE"
        echo "Submitted batch job $number"
    """,
}


def job(name: str, *after: str) -> Job:
    return Job(name, ("train", "--seed", "0"), after, "stage", Path("runs/t") / name)


JOBS = [job("a"), job("b"), job("a2", "a"), job("a3", "a2"), job("ab", "a", "b")]


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Path:
    """The file that the stand-ins of Slurm's commands keep their queue in."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setattr("submitit.core.core.PicklingExecutor._throttle", lambda self: None)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return tmp_path / "queue"


def cluster(**flags) -> Slurm:
    return Slurm(Path("runs/t"), 3, SlurmArguments(**flags))


def script(number: str) -> list[str]:
    return Path(f"runs/t/logs/slurm/{number}_submission.sh").read_text().splitlines()


def end(queue: Path, **states: str) -> None:
    """Change the states of jobs in the queue."""
    lines = [line.split("|", 3) for line in queue.read_text().splitlines()]
    changed = [(number, states.get(name.partition("@")[0], state), *rest, name) for number, state, *rest, name in lines]
    queue.write_text("".join(f"{'|'.join(line)}\n" for line in changed))


def test_each_job_waits_for_those_it_depends_on(queue):
    numbers = cluster().submit(JOBS)
    assert list(numbers) == [each.name for each in JOBS]
    depends = {name: [line for line in script(number) if "dependency" in line] for name, number in numbers.items()}
    assert depends["a"] == depends["b"] == []
    assert depends["a3"] == [f"#SBATCH --dependency=afterok:{numbers['a2']}"]
    assert depends["ab"] == [f"#SBATCH --dependency=afterok:{numbers['a']}:{numbers['b']}"]


def test_the_flags_reach_sbatch_and_srun(queue):
    arguments = {"partition": "short", "gpus_per_node": 1, "timeout_min": 90, "slurm": ["account=physics", "mem=32G"]}
    (number,) = cluster(**arguments).submit(JOBS[:1]).values()
    lines = script(number)
    wanted = ["partition=short", "gpus-per-node=1", "time=90", "cpus-per-task=3", "account=physics", "mem=32G"]
    assert {f"#SBATCH --{flag}" for flag in (*wanted, "requeue", "kill-on-invalid-dep=yes")} <= set(lines)
    assert "export OMP_NUM_THREADS=3" in lines
    (command,) = (line for line in lines if line.startswith("srun "))
    assert f"--output={Path('runs/t/logs/a.log').resolve()}" in command
    assert "--cpus-per-task=3" in command
    assert not any("gpus" in line for line in script(*cluster().submit(JOBS[1:2]).values()))


def test_what_is_queued_is_not_submitted_again_and_what_has_ended_is(queue):
    first = cluster().submit(JOBS)
    end(queue, a="RUNNING", b="FAILED", ab="CANCELLED")
    second = cluster().submit(JOBS)
    assert {name for name in first if first[name] != second[name]} == {"b", "ab"}
    assert f"#SBATCH --dependency=afterok:{first['a']}:{second['b']}" in script(second["ab"])
    assert Slurm(Path("runs/other"), 3, SlurmArguments()).submit(JOBS)["a"] not in {*first.values(), *second.values()}


def test_what_waits_for_a_job_that_ended_is_submitted_again_with_it(queue):
    """Slurm cancels it some seconds later, and those that wait for it after them."""
    first = cluster().submit(JOBS)
    end(queue, a="CANCELLED")
    second = cluster().submit(JOBS)
    assert {name for name in first if first[name] != second[name]} == {"a", "a2", "a3", "ab"}
    assert f"#SBATCH --dependency=afterok:{second['a2']}" in script(second["a3"])
    queue.write_text("".join(reversed(queue.read_text().splitlines(keepends=True))))
    assert cluster().submit(JOBS) == second  # while those of before are not cancelled yet


def test_a_measurement_is_not_queued_again_at_its_time_limit(queue):
    """It would start from its beginning each time."""
    measurement = Job("a/evaluate-1", ("evaluate",), ("a",), "measure", JOBS[0].folder, Path("runs/t/a/1.json"))
    preparation = Job("prepare/1", ("prepare",), (), "prepare", None, Path("data/1.json"))
    jobs = [JOBS[0], measurement, preparation]
    numbers = cluster().submit(jobs).values()
    found = [DelayedSubmission.load(f"runs/t/logs/slurm/{number}_submitted.pkl") for number in numbers]
    assert [each._timeout_countdown for each in found] == [100, 0, 100]


def test_a_finished_job_is_neither_submitted_nor_waited_for(queue):
    JOBS[0].folder.mkdir(parents=True)
    (JOBS[0].folder / "finished.json").touch()
    numbers = cluster().submit(JOBS)
    assert "a" not in numbers
    assert not any("dependency" in line for line in script(numbers["a2"]))


class Watcher:
    """Lets the jobs end as planned, and keeps what is told of them."""

    def __init__(self, queue: Path, *plan: dict[str, str]) -> None:
        self.queue, self.plan, self.events, self.running = queue, list(plan), [], []

    def event(self, job, what):
        self.events.append((job.name, what))

    def show(self, running, open_jobs):
        self.running.append(set(running))
        if self.plan:
            end(self.queue, **self.plan.pop(0))
        elif open_jobs:
            raise KeyboardInterrupt


def test_jobs_are_followed_to_their_ends(queue):
    watcher = Watcher(
        queue,
        {"a": "RUNNING", "b": "RUNNING"},
        {"a": "PENDING", "b": "COMPLETED"},
        {"a": "RUNNING"},
        {"a": "TIMEOUT", "a2": "CANCELLED", "a3": "CANCELLED", "ab": "CANCELLED"},
    )
    failed, blocked = cluster().run(JOBS, watcher)
    assert [each.name for each in failed] == ["a"]
    assert [each.name for each in blocked] == ["a2", "a3", "ab"]
    told = [("a", "started"), ("b", "started"), ("b", "finished"), ("a", "started"), ("a", "failed")]
    assert watcher.events == told
    assert watcher.running == [set(), {"a", "b"}, set(), {"a"}, set()]


def test_a_job_that_slurm_has_forgotten_is_judged_by_its_folder(queue):
    JOBS[0].folder.mkdir(parents=True)

    class Forgetting(Watcher):
        def show(self, running, open_jobs):
            (JOBS[0].folder / "finished.json").touch()
            self.queue.write_text("")

    watcher = Forgetting(queue)
    failed, _ = cluster().run(JOBS[:2], watcher)
    assert [each.name for each in failed] == ["b"]
    assert watcher.events == [("a", "finished"), ("b", "failed")]


def test_ctrl_c_leaves_the_jobs_in_the_queue(queue, capsys):
    with pytest.raises(KeyboardInterrupt):
        cluster().run(JOBS, Watcher(queue, {"a": "COMPLETED"}))
    assert "4 jobs stay in Slurm's queue" in (told := capsys.readouterr().err)
    assert "scancel 2 3 4 5" in told
    assert cluster().submit(JOBS[1:]) == {"b": "2", "a2": "3", "a3": "4", "ab": "5"}


def test_a_mistake_is_one_line_before_anything_is_submitted(queue, monkeypatch):
    with pytest.raises(UsageError, match=r"--slurm account is not KEY=VALUE"):
        cluster(slurm=["account"])
    with pytest.raises(UsageError, match="contains %, which Slurm replaces"):
        Slurm(Path("runs/50%j"), 3, SlurmArguments())
    with pytest.raises(UsageError, match=r"sbatch refused a \(sbatch: error: invalid partition\)"):
        cluster(partition="nowhere").submit(JOBS)
    assert queue.read_text() == ""
    queue.unlink()
    with pytest.raises(UsageError, match=r"squeue failed .*No such file"):
        cluster()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'lm_trials\[slurm\]'"):
        cluster()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="sbatch not found"):
        cluster()


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ("job_name=x", "sets sbatch's --job-name; remove it"),
        ("job=x", "sets sbatch's --job-name; remove it"),
        *(
            (f"{flag}=x", f"sets sbatch's --{flag}; ")
            for flag in ("output", "dependency", "requeue", "signal", "array")
        ),
        ("clusters=x", "sets sbatch's --clusters; remove it"),
        ("cpus-per-task=2", "sets sbatch's --cpus-per-task; use --threads"),
        ("time=10", "sets sbatch's --time; use --timeout_min"),
    ],
)
def test_a_flag_of_sbatch_that_is_set_already_is_refused(queue, pair, text):
    with pytest.raises(UsageError, match=f"--slurm {pair}: the trial {text}"):
        cluster(slurm=["mem=1G", pair])
    cluster(slurm=["mem=1G", "time-min=5", "exclude=node1"])


def test_a_variable_of_sbatch_does_not_rename_the_jobs(queue, monkeypatch):
    """sbatch prefers variables to what its file says: another name, and all would be submitted twice."""
    for name in ("SBATCH_JOB_NAME", "SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    cluster()
    assert {name for name in os.environ if name.startswith("SBATCH_")} == {"SBATCH_PARTITION", "SBATCH_ACCOUNT"}
    cluster(partition="short")
    assert {name for name in os.environ if name.startswith("SBATCH_")} == {"SBATCH_ACCOUNT"}


def test_a_job_that_was_cancelled_before_it_started_is_told_so(queue, capsys):
    cluster().run(JOBS[:2], Watcher(queue, {"a": "CANCELLED", "b": "FAILED"}, {}, {}))
    assert capsys.readouterr().err == "a: CANCELLED in Slurm, job 1\n"


def test_a_time_limit_that_leaves_no_time_to_train_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["t.yaml", "--executor", "slurm", "--timeout_min", "4"])
    assert "--timeout_min 4 must be at least 5" in capsys.readouterr().err


TRIAL = """
claim: A higher learning rate leaves a lower loss.
seeds: [0]
stages:
  pretrain:
    program: train
    dataset_name: tiny
    data_cache_dir: {data}
    vocab_size: 400
    model_type: llama
    config_overrides: {shape}
    block_size: 32
    per_device_train_batch_size: 4
    max_steps: {steps}
    save_steps: 100
    save_total_limit: 1
    num_sampled_stories: 0
    report_to: none
    use_cpu: true
    arms: {{low: {{learning_rate: 0.001}}, high: {{learning_rate: 0.003}}}}
  delete: {{program: train, after: pretrain, <<: &later {{dataset_name: tiny, data_cache_dir: {data}, block_size: 32,
    per_device_train_batch_size: 4, max_steps: 100, save_strategy: "no", num_sampled_stories: 0, report_to: none,
    use_cpu: true}}}}
  recover: {{program: train, after: delete, <<: *later}}
measure: [evaluate --dataset_name tiny --data_cache_dir {data} --use_cpu]
primary: {{measure: loss, dataset: tiny, contrast: low - high}}
"""
SIX = [f"{stage}-{arm}-s0" for stage in ("pretrain", "delete", "recover") for arm in ("low", "high")]


def digests(runs: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights of each of the six runs."""
    return {name: hashlib.sha256((runs / name / "model.safetensors").read_bytes()).hexdigest() for name in SIX}


def until(holds, what: str, seconds: float = 900):
    """Wait for something, and return it."""
    stop = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < stop, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_trial_on_slurm_has_the_weights_of_a_local_one(tiny_data, tiny_shape, tmp_path):
    """Six runs in three stages: one is preempted, one is stopped by its time limit, and a node is drained."""
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "cluster.yaml").write_text(TRIAL.format(data=tiny_data, shape=tiny_shape, steps=700))
    command = [sys.executable, "-m", "lm_trials.cli", "run", "cluster.yaml", "--threads", "1", "--runs_dir"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, "local"], cwd=tmp_path, env=environment, check=True)

    short = Path(tempfile.mkdtemp(prefix="slurm"))  # sockets need a short path
    runs = tmp_path / "by_slurm" / "cluster"
    with slurm(short) as found:
        environment |= found

        def ask(*words: str) -> str:
            answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
            print(f"$ {' '.join(words)}\n{answer}", flush=True)
            return answer

        def jobs() -> dict[str, list[list[str]]]:
            answer = subprocess.run(
                ["squeue", "--noheader", "--states=all", "--format=%j|%A|%T|%N"],
                env=environment, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            queue: dict[str, list[list[str]]] = {}
            for line in answer.splitlines():
                name, *rest = line.split("|")
                queue.setdefault(name.partition("@")[0], []).append(rest)
            return queue

        def start() -> subprocess.Popen:
            flags = ["by_slurm", "--executor", "slurm", "--timeout_min", "30"]
            return subprocess.Popen(
                [*command, *flags], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
            )  # fmt: skip

        def training(name: str) -> bool:
            return any((runs / name).glob("checkpoint-*"))

        first = start()
        until(lambda: training("pretrain-low-s0"), "a checkpoint")
        preempted = jobs()["pretrain-low-s0"][0][2]
        ask("sbatch", "--partition=urgent", f"--nodelist={preempted}", "--output=/dev/null", "--wrap=true")
        until(lambda: training("pretrain-high-s0"), "a checkpoint")
        ((number, _, drained),) = jobs()["pretrain-high-s0"]
        ask("scancel", "--signal=USR2", number)  # as Slurm does before the time limit
        ask("scontrol", "update", f"nodename={drained}", "state=drain", "reason=test")
        ask("squeue", "--states=all", "--format=%.5A %.10T %.8N %.20r %j")
        first.send_signal(signal.SIGINT)
        assert "jobs stay in Slurm's queue" in first.communicate(timeout=300)[1]
        assert first.returncode == 128 + signal.SIGINT
        told = subprocess.run(
            [*command[:3], "status", "cluster.yaml", "--runs_dir", "by_slurm"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        print(told)
        assert " Dependency" in told
        assert "--runs_dir by_slurm --executor slurm" in told
        second = start()
        told = second.communicate(timeout=3000)[1]
        print(told)
        assert second.returncode == 0
        ask("squeue", "--states=all", "--format=%.5A %.10T %.8N %.20r %j")
        ask("sinfo", "--Node", "--partition=long")
        queue = jobs()
        del queue["wrap"]  # which preempted the other
        assert {name: len(of) for name, of in queue.items()} == dict.fromkeys(
            [*SIX, *(f"recover-{arm}-s0/evaluate-1" for arm in ("low", "high"))], 1
        )
        nodes = {name: of[0][2] for name, of in queue.items()}
        assert set(nodes.values()) == {"node1", "node2"} - {drained}  # the drained node got nothing more
    shutil.rmtree(short)
    logs = {name: (runs / "logs" / f"{name}.log").read_text() for name in SIX}
    assert ["resuming" in logs[name] for name in SIX] == [True, True, False, False, False, False]
    assert ["DUE TO PREEMPTION" in logs[name] for name in SIX[:2]] == [True, False]
    assert ["Stopped after update" in logs[name] for name in SIX[:2]] == [True, True]
    assert ["Calling checkpoint method" in logs[name] for name in SIX[:2]] == [False, True]  # submitit requeued one
    print(*(f"{digest}  {name}" for name, digest in digests(runs).items()), sep="\n")
    assert digests(runs) == digests(tmp_path / "local" / "cluster")
    assert len(set(digests(runs).values())) == 6
