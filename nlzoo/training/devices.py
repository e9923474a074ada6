"""What a device can do, and what is asked of it: which one, precision, fast kernels, memory that runs out."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..core.errors import OutOfMemory, UsageError
from ..core.recipe_spec import Recipe
from ..core.text import did_you_mean, printable

_TENSOR_CORES = (7, 0)  # compute capability from which on fp16 is faster than float32
_OUT_OF_MEMORY = (  # how libraries say it that do not raise `torch.OutOfMemoryError`
    "out of memory",  # CUDA's runtime, MPS, XPU
    "can't allocate memory",  # torch's allocator of a CPU
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # no room for the workspace of any algorithm
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


def resolve(device: str | torch.device | None) -> torch.device:
    """The given device, or else the GPU where there is one: CUDA's, since nothing here was tried on Apple's yet.

    Sets torch's switches for speed there. Raises `UsageError` for a device that cannot compute here.
    """
    usable = [f"cuda:{number}" for number in range(torch.cuda.device_count())] + ["cpu"]
    chosen = usable[0].partition(":")[0] if device is None else device
    if torch.backends.mps.is_available():
        usable.append("mps")
    try:
        torch.zeros(1, device=chosen).item()  # a meta tensor has no value
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f" ({str(error).splitlines()[0]})" if str(chosen).startswith("cuda") else ""
        meant = did_you_mean(str(chosen).lower().replace("gpu", "cuda"), usable)
        raise UsageError(
            f"device {printable(str(chosen))!r} cannot be used here{reason}; these can: {', '.join(usable)}",
            f"{meant} omit --device to take the first of them; nlzoo doctor shows why a GPU is not among them".lstrip(),
        ) from None
    resolved = torch.device(chosen)
    if resolved.type == "cuda":
        torch.backends.cudnn.benchmark = True  # clips are of one size
        torch.set_float32_matmul_precision("high")  # TF32, as torch has it for convolutions anyhow
    return resolved


def precision(recipe: Recipe, device: torch.device, training: bool = True) -> tuple[str, str]:
    """`(bf16, fp16 or fp32, why)`: what the recipe's precision means on `device`, in training or in answers.

    Answers of a CPU are float32, whatever its training. Raises `UsageError` for bf16 on a GPU that would emulate it.
    """
    name = recipe.precision
    if device.type == "cpu" and not training:
        return "fp32", "answers of a CPU are float32"
    if device.type != "cuda":
        if name != "auto":
            return name, "as given"
        if device.type == "cpu" and cpu_has_bf16():
            return "bf16", "this processor has it; answers are float32"
        return "fp32", "neither a GPU nor a processor with bf16"
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise UsageError("this GPU has no bf16", "use precision=fp16 or precision=fp32")
    if name != "auto":
        return name, "as given"
    if has_bf16:
        return "bf16", "this GPU has it"
    if torch.cuda.get_device_capability(device) >= _TENSOR_CORES:
        return "fp16", "this GPU has no bf16; the loss is scaled"
    return "fp32", "this GPU has neither bf16 nor fast fp16"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; others emulate it, slowly. An older torch cannot be asked.

    ARM's (`bf16`, `sve_bf16`) were not measured, and count as none.
    """
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def autocast(recipe: Recipe, device: torch.device, training: bool = True) -> torch.autocast:
    """The context of a forward pass in the recipe's `precision`. fp16 needs `scaler` in training."""
    kind, _ = precision(recipe, device, training)
    return torch.autocast(device.type, torch.float16 if kind == "fp16" else torch.bfloat16, enabled=kind != "fp32")


def scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients are fp16; otherwise it hands everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision(recipe, device)[0] == "fp16")


# --- memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says, in any library's words, that the device has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Gives back what a failed attempt held; to be called outside of `except`, where its traceback holds it still."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Out of memory, in whatever words, as `OutOfMemory`; `what` was being computed."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"the device ran out of memory with {what}",
            "end other programs that use it (nvidia-smi lists them), or use --device cpu",
        ) from error


class InParts:
    """`function` over the rows of a tensor, `most` at a time, and half as many wherever memory is too short."""

    def __init__(self, function: Callable[[Tensor], Tensor], most: int) -> None:
        self.function, self.most = function, most

    def __call__(self, rows: Tensor) -> Tensor:
        """The results, concatenated. Raises `OutOfMemory` where a single row is too much."""
        done: list[Tensor] = []
        first = 0
        while first < len(rows):
            part = rows[first : first + self.most]
            try:
                with memory_errors("a single clip"):
                    result = self.function(part)
            except OutOfMemory:
                if len(part) == 1:
                    raise
                result = None
            if result is None:  # outside of `except`, where the traceback would hold what the attempt computed
                free_memory()
                self.most //= 2
            else:
                done.append(result)
                first += self.most
        return torch.cat(done)
