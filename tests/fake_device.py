"""A stand-in for a device other than the CPU: no float64, no mixing with host tensors, and waits are counted.

    with FakeDevice() as device:
        model.to("mps")           # the numbers stay on the CPU; what is computed from them counts as on the device
        losses = model(ids.to("mps"), labels=ids.to("mps")).loss.cpu().double()
    device.waits                  # where the host waited for the device

The fake device is PyTorch's `mps`, so that the branches of the libraries for it run.  It refuses, at each operation of
forward and backward passes, what MPS or CUDA refuse: float64 (MPS), and a device tensor together with a host tensor
that has a dimension (both).
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import is_torch_mps_available

MPS = torch.device("mps", 0)
WIDE = (torch.float64, torch.complex128)
# Operations after which the host needs a value from the device.
WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
INDEXED = {"index", "index_put_", "_index_put_impl_", "_unsafe_index"}


class DeviceError(RuntimeError):
    """What a real device would have refused."""


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested arguments."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


class FakeDevice(AbstractContextManager):
    """Everything inside the `with` believes that there is an Apple GPU.

    Attributes:
        waits: the line of the project or of a library at which the host waited for the device, once for each wait.
        operations: the names of the operations of the device.
        random_states: those that its generator was set to.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.operations: set[str] = set()
        self.random_states: list[torch.Tensor] = []
        self._storages: dict[int, StorageWeakRef] = {}  # of device tensors; a weak reference keeps its address taken
        self.calls: list[bool] = []  # whether each Python call under way is one of the device
        self._opened = ExitStack()

    def __enter__(self) -> FakeDevice:
        for owner, name, value in (
            (torch.backends.mps, "is_available", True),
            (torch.backends.mps, "is_built", True),
            (torch.backends.mps, "is_macos_or_newer", True),
            (torch.accelerator, "is_available", True),
            (torch.accelerator, "current_accelerator", MPS),
            (torch.mps, "empty_cache", None),  # Trainer calls it
            (torch.mps, "get_rng_state", torch.arange(44, dtype=torch.uint8)),
            (torch, "Event", mock.Mock()),  # for `generate`
        ):
            self._opened.enter_context(mock.patch.object(owner, name, return_value=value))
        self._opened.enter_context(mock.patch.object(torch.mps, "set_rng_state", self.random_states.append))
        self._opened.enter_context(mock.patch.dict(os.environ))  # transformers and accelerate write into it
        _forget()
        self._opened.callback(_forget)
        self._opened.enter_context(_Operations(self))
        self._opened.enter_context(_Calls(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.close()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device."""
        with torch._C.DisableTorchFunction():
            known = self._storages.get(tensor.untyped_storage()._cdata)
        return known is not None

    def take(self, tensors: Any) -> Any:
        """Put the storage of tensors on the device, and return them."""
        for tensor in tensors_in(tensors):
            if tensor.dtype in WIDE:
                raise DeviceError(f"{tensor.dtype} on the device")
            with torch._C.DisableTorchFunction():
                storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage)
        if len(self._storages) > 10_000:
            self._storages = {at: weak for at, weak in self._storages.items() if not weak.expired()}
        return tensors

    def wait(self) -> None:
        """Count a wait of the host for the device."""
        frame: Any = sys._getframe()
        while "/torch/" in (name := frame.f_code.co_filename) or name == __file__:
            frame = frame.f_back
        self.waits.append(f"{name}:{frame.f_lineno} {linecache.getline(name, frame.f_lineno).strip()}")

    def moved(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`Tensor.to`."""
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            there, dtype = self.holds(args[0]), args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
            if device is not None and device.type not in (MPS.type, "cpu"):
                return tensor.to(device, dtype, copy=copy)
            there = self.holds(tensor) if device is None else device.type == MPS.type
        dtype, here = dtype or tensor.dtype, self.holds(tensor)
        if here == there:
            return tensor.to(dtype, copy=copy)
        if here:
            self.wait()
        if dtype in WIDE and (there or dtype != tensor.dtype):
            raise DeviceError(f"{dtype} on the device; move to the CPU first")  # MPS converts before it copies
        moved = tensor.to(dtype, copy=True)
        if there:
            return self.take(moved)
        with torch._C.DisableTorchFunction():
            del self._storages[moved.untyped_storage()._cdata]
        return moved


class _Calls(TorchFunctionMode):
    """Sees each call of a function or attribute of torch, which says where new tensors are."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = dict(kwargs or {}), self.device
        ours = any(map(device.holds, tensors_in([args, kwargs])))
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return MPS if ours else func(*args)
        if func is torch.Tensor.to:
            return device.moved(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return device.moved(args[0], "cpu")
        if ours and func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise DeviceError("can't convert mps:0 device type tensor to numpy; use Tensor.cpu() first")
        if ours and func is torch.Tensor.tolist:
            device.wait()
        if kwargs.get("device") is not None:
            ours = torch.device(kwargs["device"]).type == MPS.type
            kwargs["device"] = "cpu" if ours else kwargs["device"]
        if ours and any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            raise DeviceError(f"{func.__name__}: a generator of the host draws on the device")
        device.calls.append(ours)
        try:
            if func is torch.Tensor.backward:  # runs Python: hooks, and what checkpointing computes again
                with self:
                    names = ("tensors", "grad_tensors", "retain_graph", "create_graph", "inputs")
                    given = dict(zip(names, args, strict=False)) | kwargs
                    return torch.autograd.backward(given.pop("tensors"), given.pop("gradient", None), **given)
            made = func(*args, **kwargs)
        finally:
            device.calls.pop()
        # `torch.tensor` and `deepcopy` fill a storage without an operation that could be seen.
        return (
            device.take(made) if ours and func in (torch.tensor, torch.as_tensor, torch.Tensor.__deepcopy__) else made
        )


class _Operations(TorchDispatchMode):
    """Sees each operation, those of backward passes too."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self.device
        given = list(tensors_in([args, kwargs]))
        held = [tensor for tensor in given if device.holds(tensor)]
        if not held:
            made = func(*args, **kwargs)
            on_device = not given and device.calls and device.calls[-1]  # a factory inside a call of the device
            return device.take(made) if on_device else made
        name = func._schema.name.removeprefix("aten::")
        hosted = [tensor for tensor in given if not device.holds(tensor)]
        if name == "copy_":
            if args[0].dtype in WIDE and args[1].dtype != args[0].dtype:
                raise DeviceError("copy_ into float64: MPS converts before it copies; move to the CPU first")
            if not device.holds(args[0]) and not (args[2:] or [kwargs.get("non_blocking")])[0]:
                device.wait()
            return func(*args, **kwargs)
        if name in INDEXED and device.holds(args[0]):  # indices may be on the host
            hosted = [tensor for tensor in hosted if not any(tensor is index for index in args[1])]
        if name in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1]):
            device.wait()
        if apart := [tensor for tensor in hosted if tensor.dim() or (tensor is args[0] and name.endswith("_"))]:
            raise DeviceError(f"{name}: a host tensor {tuple(apart[0].shape)} meets a device tensor")
        if name in WAITING:
            device.wait()
        device.operations.add(name)
        return device.take(func(*args, **kwargs))


def _forget() -> None:
    """Let accelerate and transformers look for the device anew."""
    is_torch_mps_available.cache_clear()
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
