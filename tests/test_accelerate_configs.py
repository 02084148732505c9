"""Each launch configuration, through accelerate's own parser, to the environment that it would export.

No process is started: `prepare_*_env` are the functions that the launchers call just before they start one.
"""

import dataclasses
import logging
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
NAMES = ["cpu", "cpu_two_processes", "fsdp2", "multi_gpu", "multi_machine", "one_gpu", "zero2", "zero3"]

# Entries of these sections are copied to the launcher's arguments by name; accelerate checks none of them.
SECTIONS = ("fsdp_config", "deepspeed_config", "mpirun_config")


def resolved(path, *flags):
    """The launcher's arguments after the configuration was merged into them."""
    args = launch_command_parser().parse_args(["--config_file", str(path), *flags, "train.py"])
    args, _, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""  # set by `launch_command` itself before it goes on
    return args


def launch_environment(name, *flags):
    """What the chosen launcher would export, by the choice that accelerate's `launch_command` makes."""
    args = resolved(CONFIGS / f"{name}.yaml", *flags)
    if args.use_deepspeed:
        return args, prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.multi_gpu:
        return args, prepare_multi_gpu_env(args)
    return args, prepare_simple_launcher_cmd_env(args)[1]


def keys_of(config):
    """All keys, those inside a section too."""
    for key, value in config.items():
        yield key
        if isinstance(value, dict):
            yield from value


def uncommented_keys(text):
    """Keys whose line does not follow a comment.

    A section's first entry needs its own comment, so only the line directly above counts.
    """
    lines = text.splitlines()
    return [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if line.strip() and not line.strip().startswith("#") and not above.strip().startswith("# ")
    ]


@pytest.fixture(autouse=True)
def _a_quiet_machine(monkeypatch):
    """The outer process may itself run under a launcher or with its threads set."""
    for name in ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_the_folder_holds_what_is_tested_here():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_has_three_to_eight_keys_with_a_reason_above_each(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert 3 <= len(list(keys_of(yaml.safe_load(text)))) <= 8
    assert uncommented_keys(text) == []
    assert f"accelerate_configs/{name}.yaml" in text  # the command that uses it


def test_a_key_without_its_reason_is_seen():
    assert uncommented_keys("# why\na: 1\nb: 2\n# why\nc:\n  d: 3\n") == ["b: 2", "d: 3"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_loads_it(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes >= 1


def test_accelerate_itself_refuses_an_unknown_key_at_the_top_alone(tmp_path):
    """Why the next test exists."""
    path = tmp_path / "wrong.yaml"
    path.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_verzion: 2\n")
    load_config_from_file(str(path))
    path.write_text("distributed_type: FSDP\nnum_processez: 2\n")
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(path))


@pytest.mark.parametrize("name", NAMES)
def test_sections_hold_names_that_the_launcher_knows(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    arguments = vars(launch_command_parser().parse_args(["train.py"]))
    for section in SECTIONS:
        assert set(config.get(section, {})) <= set(arguments)


def test_fsdp_names_are_fields_of_the_plugin():
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    fields = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    # The launcher's name is the field's with `fsdp_` before it, but for the version, which has it already.
    assert {key if key in fields else key.removeprefix("fsdp_") for key in config} <= fields
    assert "verzion" not in fields


def test_cpu_runs_one_process_on_the_cpu_and_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        args, environ = launch_environment("cpu")
    assert caplog.records == []
    assert args.num_processes == 1
    assert environ["ACCELERATE_USE_CPU"] == "True"
    assert environ["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environ["OMP_NUM_THREADS"] == "2"
    assert "MASTER_ADDR" not in environ  # the mark of a launch that lost its second process


def test_cpu_threads_can_be_chosen_on_the_command_line():
    _, environ = launch_environment("cpu", "--num_cpu_threads_per_process", "7")
    assert environ["OMP_NUM_THREADS"] == "7"


def test_without_its_thread_count_accelerate_would_speak(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    path = tmp_path / "cpu.yaml"
    path.write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    with caplog.at_level(logging.WARNING):
        resolved(path)
    assert "--num_cpu_threads_per_process" in caplog.text


def test_cpu_two_processes_goes_through_torchrun():
    args, environ = launch_environment("cpu_two_processes", "--main_process_port", "0")
    assert args.multi_gpu
    assert not args.use_cpu
    assert args.nproc_per_node == "2"
    assert environ["OMP_NUM_THREADS"] == "1"
    assert environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_the_obvious_way_to_two_cpu_processes_would_start_one(tmp_path):
    """The control: MULTI_CPU chooses no launcher of several processes, though MASTER_ADDR is exported."""
    path = tmp_path / "obvious.yaml"
    path.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\nmain_process_port: 29500\n")
    args = resolved(path)
    assert [args.multi_gpu, args.use_fsdp, args.use_deepspeed] == [False, False, False]
    command, environ = prepare_simple_launcher_cmd_env(args)
    assert command[1:] == ["train.py"]
    assert "MASTER_ADDR" in environ
    assert "WORLD_SIZE" not in environ


def test_one_gpu_hides_the_others():
    args, environ = launch_environment("one_gpu")
    assert args.num_processes == 1
    assert environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert environ["ACCELERATE_USE_CPU"] == "False"
    assert environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2", "zero2", "zero3"])
def test_the_command_line_decides_how_many_gpus(name):
    assert launch_environment(name, "--main_process_port", "0")[0].nproc_per_node == "2"
    args, environ = launch_environment(name, "--main_process_port", "0", "--num_processes", "8")
    assert args.nproc_per_node == "8"
    assert environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_multi_gpu_shards_nothing():
    _, environ = launch_environment("multi_gpu", "--main_process_port", "0")
    assert "ACCELERATE_USE_FSDP" not in environ
    assert "ACCELERATE_USE_DEEPSPEED" not in environ


def test_fsdp2_exports_version_two(tmp_path):
    args, environ = launch_environment("fsdp2", "--main_process_port", "0")
    assert args.use_fsdp
    expected = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }
    assert {key: environ[key] for key in expected} == expected
    path = tmp_path / "fsdp.yaml"  # the control: version 2 is not what one gets unasked
    path.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_verzion: 2\n")
    assert prepare_multi_gpu_env(resolved(path, "--main_process_port", "0"))["FSDP_VERSION"] == "1"


def test_fsdp2_settings_make_a_plugin(monkeypatch):
    _, environ = launch_environment("fsdp2", "--main_process_port", "0")
    for key, value in environ.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


@pytest.mark.parametrize(("name", "stage"), [("zero2", "2"), ("zero3", "3")])
def test_zero_exports_its_stage_and_leaves_the_batch_to_trainer(name, stage):
    args, environ = launch_environment(name, "--main_process_port", "0")
    assert args.use_deepspeed
    assert environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environ
    assert "ACCELERATE_GRADIENT_CLIPPING" not in environ


def test_zero3_saves_whole_weights_and_draws_them_whole():
    _, environ = launch_environment("zero3", "--main_process_port", "0")
    assert environ["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_each_machine_starts_its_share_and_meets_rank_zero():
    # Rank 1: rank 0 would look whether its port is free, which depends on the machine of the test.
    args, environ = launch_environment("multi_machine", "--machine_rank", "1", "--main_process_ip", "10.9.8.7")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    # Static: rank 0 waits at this address, the others come to it.  (`same_network` in a file is not read.)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.9.8.7:29500")
    assert environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
