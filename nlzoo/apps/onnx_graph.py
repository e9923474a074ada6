"""The ONNX graph of a network: written layer by layer, for every batch, number of frames and size.

Unusual: no tracer. The layers are few and known (`portable.network_nlzoo.KINDS`), so the graph is written down in
milliseconds, has no shape of an example in it and none but operators that every runtime has. Whoever writes it compares
what it computes with the network.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ..core.errors import NlzooError, WeightsError
from ..core.model_spec import ModelSpec
from .portable import network_nlzoo as plain

OPSET = 17  # LayerNormalization and all before it; onnxruntime 1.12, TensorRT 8.5
IR_VERSION = 8  # of that opset
INPUT, OUTPUT = "clips", "logits"
DIMENSIONS = ("batch", 3, "frames", "height", "width")
MOST_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB


def write(net: plain.ResNet, metadata: Mapping[str, str]) -> bytes:
    """The `.onnx` file of `net`: float32 `clips` (B, 3, T, H, W), normalised, to float32 `logits` (B, classes).

    Where the network is in half precision, so is all up to the mean over frames and positions. Raises `WeightsError`
    for more than `MOST_BYTES`.
    """
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    if size > MOST_BYTES:
        raise WeightsError(f"the network has {size:,} bytes; an ONNX file holds {MOST_BYTES:,} at most")
    writer = _Writer(net)
    outputs = net.get_submodule("fc").out_features
    graph = helper.make_graph(
        writer.nodes,
        "nlzoo",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, DIMENSIONS)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (DIMENSIONS[0], outputs))],
        writer.tensors,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="nlzoo"
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def quantize(file: Path) -> None:
    """Weights of 8 bits, and activations that are rounded to 8 bits while it runs, in place.

    Unsigned and a scale for each tensor: of what onnxruntime offers that was the nearest to float32, and the fastest.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it recommends a step that is for graphs of other exporters
    try:
        quantize_dynamic(file, file, weight_type=QuantType.QUInt8)
    finally:
        logging.disable(logging.NOTSET)


class Session(nn.Module):
    """A `.onnx` file in onnxruntime on the CPU, as a network that can be asked like ours."""

    def __init__(self, file: Path | bytes, spec: ModelSpec | None = None):
        super().__init__()
        self.spec = spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with _in_words():
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def __deepcopy__(self, memo: object) -> "Session":
        return self  # nothing in it can be changed, and onnxruntime's part cannot be copied

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        with _in_words():
            return torch.from_numpy(self.session.run([OUTPUT], {INPUT: clips.contiguous().numpy()})[0])


@contextmanager
def _in_words() -> Iterator[None]:
    """An error of onnxruntime's, whose kinds have nothing in common, as one of ours."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:300]
        raise NlzooError(f"onnxruntime {onnxruntime.__version__} cannot run the exported network: {reason}") from error


class _Writer:
    """The nodes and tensors of a network, in order."""

    def __init__(self, net: plain.ResNet):
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.names = {module: name for name, module in net.named_modules()}
        self.constants: dict[tuple, str] = {}
        self.real = next(net.parameters()).dtype
        x = INPUT if self.real == torch.float32 else self.cast(INPUT, self.real)
        y = self.chain(net.children(), x)
        self.nodes.append(helper.make_node("Identity", [y], [OUTPUT]))

    # --- nodes and tensors

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; the output's name."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def tensor(self, name: str, value: torch.Tensor) -> str:
        self.tensors.append(numpy_helper.from_array(value.detach().contiguous().numpy(), name))
        return name

    def constant(self, *values: float, dtype: torch.dtype = torch.int64, scalar: bool = False) -> str:
        """A list of integers, or a number."""
        key = values, dtype, scalar
        if key not in self.constants:
            value = torch.tensor(values[0] if scalar else values, dtype=dtype)
            self.constants[key] = self.tensor(f"constant_{len(self.constants)}", value)
        return self.constants[key]

    def number(self, value: float, dtype: torch.dtype | None = None) -> str:
        return self.constant(value, dtype=dtype or self.real, scalar=True)

    def parameter(self, module: nn.Module, name: str, shape: tuple[int, ...] | None = None) -> str:
        value = getattr(module, name)
        full = f"{self.names[module]}.{name}"
        return self.tensor(full, value if shape is None else value.reshape(shape))

    def cast(self, x: str, dtype: torch.dtype) -> str:
        return self.add("Cast", x, to=TensorProto.FLOAT if dtype == torch.float32 else TensorProto.FLOAT16)

    def transpose(self, x: str, *order: int) -> str:
        return self.add("Transpose", x, perm=order)

    def reshape(self, x: str, *shape: int) -> str:
        """To `shape`, where 0 keeps a size and -1 is the rest."""
        return self.add("Reshape", x, self.constant(*shape))

    def mean(self, x: str, *axes: int, keep: bool = True) -> str:
        return self.add("ReduceMean", x, axes=axes, keepdims=int(keep))

    # --- layers

    def chain(self, layers: Any, x: str) -> str:
        for layer in layers:
            x = self.layer(layer, x)
        return x

    def layer(self, module: nn.Module, x: str) -> str:
        """The output of a layer; its class is one of `plain.KINDS`."""
        return _LAYERS[type(module)](self, module, x)

    def conv(self, conv: Any, x: str) -> str:
        if conv.replicate:
            first = self.add("Slice", x, self.constant(0), self.constant(1), self.constant(2))
            last = self.add("Slice", x, self.constant(-1), self.constant(2**31 - 1), self.constant(2))
            x = self.add("Concat", *[first] * conv.replicate, x, *[last] * conv.replicate, axis=2)
        bias = [] if conv.bias is None else [self.parameter(conv, "bias")]
        return self.add("Conv", x, self.parameter(conv, "weight"), *bias, **_window(conv), group=conv.groups)

    def branches(self, branches: Any, x: str) -> str:
        return self.add("Concat", *(self.layer(branch, x) for branch in branches.children()), axis=1)

    def batch_norm(self, norm: Any, x: str) -> str:
        names = ("weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", x, *(self.parameter(norm, name) for name in names), epsilon=norm.eps)

    def group_norm(self, norm: Any, x: str) -> str:
        frames = self.transpose(x, 0, 2, 1, 3, 4)
        groups = self.reshape(frames, 0, 0, norm.num_groups, -1)
        centred = self.add("Sub", groups, self.mean(groups, 3))
        variance = self.mean(self.add("Mul", centred, centred), 3)
        scale = self.add("Sqrt", self.add("Add", variance, self.number(norm.eps)))
        y = self.add("Reshape", self.add("Div", centred, scale), self.add("Shape", frames))
        y = self.add("Mul", y, self.parameter(norm, "weight", (-1, 1, 1)))
        return self.transpose(self.add("Add", y, self.parameter(norm, "bias", (-1, 1, 1))), 0, 2, 1, 3, 4)

    def max_pool(self, pool: Any, x: str) -> str:
        return self.add("MaxPool", x, **_window(pool), ceil_mode=int(pool.ceil_mode))

    def temporal_max_pool(self, pool: Any, x: str) -> str:
        pad = (pool.kernel - 1) // 2
        pads = (pad, 0, 0, pad, 0, 0)
        return self.add("MaxPool", x, kernel_shape=(pool.kernel, 1, 1), strides=(2, 1, 1), pads=pads)

    def avg_pool(self, pool: Any, x: str) -> str:
        window = _window(pool)
        del window["dilations"]
        counted = int(pool.count_include_pad)
        return self.add("AveragePool", x, **window, ceil_mode=int(pool.ceil_mode), count_include_pad=counted)

    def blur_pool(self, pool: Any, x: str) -> str:
        left, right, top, bottom = pool.padding
        x = self.add("Pad", x, self.constant(0, 0, 0, top, left, 0, 0, 0, bottom, right), mode=pool.mode)
        kernel = torch.tensor(pool.filt, dtype=self.real)
        height, width = kernel.shape
        name = self.names[pool]
        weight = self.tensor(f"{name}.filt", kernel.expand(pool.channels, 1, 1, height, width))
        window = {"kernel_shape": (1, height, width), "strides": (1, pool.stride, pool.stride)}
        return self.add("Conv", x, weight, **window, group=pool.channels)

    def squeeze_excite(self, se: Any, x: str) -> str:
        weights = self.mean(x, 3, 4)
        for conv, act in ((se.fc1, se.act), (se.fc2, se.gate)):
            shape = (conv.out_channels, conv.in_channels, 1, 1, 1)
            bias = [] if conv.bias is None else [self.parameter(conv, "bias")]
            weights = self.layer(act, self.add("Conv", weights, self.parameter(conv, "weight", shape), *bias))
        return self.add("Mul", x, weights)

    def eca(self, eca: Any, x: str) -> str:
        taps, pad = eca.conv.kernel_size[0], eca.conv.padding[0]
        means = self.reshape(self.transpose(self.mean(x, 3, 4), 0, 3, 1, 2, 4), 0, 1, 0, -1)  # (B, 1, C, T)
        weight = self.parameter(eca.conv, "weight", (1, 1, taps, 1))
        weights = self.layer(eca.gate, self.add("Conv", means, weight, kernel_shape=(taps, 1), pads=(pad, 0, pad, 0)))
        return self.add("Mul", x, self.reshape(self.transpose(weights, 0, 2, 3, 1), 0, 0, 0, 0, 1))

    def block(self, block: Any, x: str) -> str:
        *layers, last = [layer for name, layer in block._modules.items() if name != "downsample"]
        shortcut = self.layer(block.downsample, x) if "downsample" in block._modules else x
        return self.layer(last, self.add("Add", self.chain(layers, x), shortcut))

    def global_pool(self, pool: Any, x: str) -> str:
        x = x if self.real == torch.float32 else self.cast(x, torch.float32)
        return self.mean(x, 2, 3, 4, keep=False)

    def head(self, head: Any, x: str) -> str:
        bias = [] if head.bias is None else [self.parameter(head, "bias")]
        return self.add("Gemm", x, self.parameter(head, "weight"), *bias, transB=1)

    def silu(self, _: Any, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def gelu(self, gelu: Any, x: str) -> str:
        if gelu.approximate != "none":
            raise WeightsError("a GELU that is approximated cannot be exported to ONNX")
        erf = self.add("Erf", self.add("Mul", x, self.number(0.5**0.5)))
        return self.add("Mul", self.add("Mul", x, self.number(0.5)), self.add("Add", erf, self.number(1.0)))

    # --- the non-local block

    def non_local(self, block: Any, x: str) -> str:
        pooled = "none" if block.span == "time" else block.subsample
        keys = self.halve(x) if pooled == "before" else x
        q, k = x, keys
        if block.form != "gaussian":
            q, k = self.conv(block.theta, q), self.conv(block.phi, k)
        v = self.conv(block.g, keys)
        if pooled == "after":
            k, v = self.halve(k), self.halve(v)
        inner = block.g.out_channels
        d = block.w_z.out_channels if block.form == "gaussian" else inner
        q, k, v = self.rows(q, d, block.span), self.rows(k, d, block.span), self.rows(v, inner, block.span)
        z = self.unrows(self.layer_rows(block.w_z, self.combine(block, q, k, v)), x, block.span)
        return self.add("Add", x, self.batch_norm(block.bn, z) if "bn" in block._modules else z)

    def combine(self, block: Any, q: str, k: str, v: str) -> str:
        """`(…, Nq, C)` of q `(…, Nq, D)`, k `(…, Nk, D)` and v `(…, Nk, C)`."""
        if block.form in ("gaussian", "embedded"):
            pairs = self.add("MatMul", self.add("Mul", q, self.number(block.scale)), self.turned(k, block.span))
            return self.add("MatMul", self.add("Softmax", pairs, axis=-1), v)
        half = self.real != torch.float32
        if half:  # sums over all keys
            q, k, v = (self.cast(x, torch.float32) for x in (q, k, v))
        axis = {"spacetime": 1, "space": 2, "time": 3}[block.span]
        keys = self.add("Cast", self.add("Gather", self.add("Shape", k), self.constant(axis)), to=TensorProto.FLOAT)
        if block.form == "dot":
            y = self.add("MatMul", q, self.add("Div", self.add("MatMul", self.turned(k, block.span), v), keys))
        else:
            first, second = block.w_f.weight.float().reshape(2, -1, 1)
            name = self.names[block]
            a = self.add("MatMul", q, self.tensor(f"{name}.w_f.q", first))
            b = self.add("MatMul", k, self.tensor(f"{name}.w_f.k", second))
            pairs = self.add("Relu", self.add("Add", a, self.turned(b, block.span)))
            y = self.add("Div", self.add("MatMul", pairs, v), keys)
        return self.cast(y, self.real) if half else y

    def layer_rows(self, conv: Any, rows: str) -> str:
        """A 1x1x1 convolution of `(…, N, C)`."""
        weight = self.tensor(f"{self.names[conv]}.weight", conv.weight.flatten(1).t())
        return self.add("Add", self.add("MatMul", rows, weight), self.parameter(conv, "bias"))

    def halve(self, x: str) -> str:
        return self.add("MaxPool", x, kernel_shape=(1, 2, 2), strides=(1, 2, 2))

    def rows(self, x: str, channels: int, span: str) -> str:
        """`(B, C, T, H, W)` to `(…, positions, C)`: (B, THW, C), (B, T, HW, C) or (B, H, W, T, C)."""
        if span == "time":
            return self.transpose(x, 0, 3, 4, 2, 1)
        if span == "space":
            return self.transpose(self.reshape(self.transpose(x, 0, 2, 1, 3, 4), 0, 0, channels, -1), 0, 1, 3, 2)
        return self.transpose(self.reshape(x, 0, channels, -1), 0, 2, 1)

    def unrows(self, y: str, x: str, span: str) -> str:
        """The inverse of `rows`, with the shape of x."""
        if span == "time":
            return self.transpose(y, 0, 4, 3, 1, 2)
        if span == "space":
            frames = self.add("Shape", self.transpose(x, 0, 2, 1, 3, 4))
            return self.transpose(self.add("Reshape", self.transpose(y, 0, 1, 3, 2), frames), 0, 2, 1, 3, 4)
        return self.add("Reshape", self.transpose(y, 0, 2, 1), self.add("Shape", x))

    def turned(self, x: str, span: str) -> str:
        """`(…, N, C)` to `(…, C, N)`."""
        return self.transpose(x, *{"spacetime": (0, 2, 1), "space": (0, 1, 3, 2), "time": (0, 1, 2, 4, 3)}[span])


def _window(layer: Any) -> dict[str, Any]:
    """Kernel, strides, pads and dilations of a convolution or pool."""
    sizes = {name: _three(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")}
    kernel, stride, padding, dilation = sizes.values()
    return {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding), "dilations": dilation}


def _three(value: Any) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def _simple(operator: str, *attributes: str) -> Callable[..., str]:
    """A layer that is one operator."""
    names = {"negative_slope": "alpha"}

    def layer(writer: _Writer, module: Any, x: str) -> str:
        return writer.add(operator, x, **{names[name]: getattr(module, name) for name in attributes})

    return layer


_LAYERS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Sequential: lambda writer, layers, x: writer.chain(layers, x),
    plain.Conv: _Writer.conv,
    plain.Block: _Writer.block,
    plain.Branches: _Writer.branches,
    nn.BatchNorm3d: _Writer.batch_norm,
    plain.FrameGroupNorm: _Writer.group_norm,
    nn.MaxPool3d: _Writer.max_pool,
    nn.AvgPool3d: _Writer.avg_pool,
    plain.BlurPool: _Writer.blur_pool,
    plain.TemporalMaxPool: _Writer.temporal_max_pool,
    plain.GlobalAveragePool: _Writer.global_pool,
    plain.SqueezeExcite: _Writer.squeeze_excite,
    plain.Eca: _Writer.eca,
    plain.NonLocal: _Writer.non_local,
    plain.Head: _Writer.head,
    nn.ReLU: _simple("Relu"),
    nn.Sigmoid: _simple("Sigmoid"),
    nn.LeakyReLU: _simple("LeakyRelu", "negative_slope"),
    nn.SiLU: _Writer.silu,
    nn.GELU: _Writer.gelu,
}
