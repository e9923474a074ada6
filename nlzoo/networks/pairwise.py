"""The four pairwise forms of the non-local operation, exact in value and gradient, never holding an N x N matrix.

    y_i = 1 / C(x) * sum_j f(q_i, k_j) v_j        ("Non-local Neural Networks", equation 1; the forms: section 3.2)

Shapes: B independent problems; Nq queries and Nk keys; D channels of q and k, C channels of v and y.

What is unusual: `gaussian` goes through fused attention, `dot` contracts k with v first, `concat` sorts. Where the
keys are so few that all pairs take no more room than the operands, the plain formula is faster and is used instead;
`direct` says where, by shape alone, so the same shapes always take the same way. Everything is differentiable once.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.errors import UsageError

FEW_KEYS = 128  # concat: up to here the plain formula is the faster one (docs/nonlocal.md)
FEW_PAIRS = 2**22  # softmax: up to here the plain formula too; 16 MiB in float32
CHUNK = 2**21  # softmax: pairs held at a time where no fused kernel serves; 8 MiB, twice in backward
BLOCK = 64  # concat: channels summed at a time, which bounds the memory and stays in cache


def gaussian(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """f = exp(scale * q_i . k_j) over its sum over the keys: a softmax (paper, equations 2 and 3).

    q (B, Nq, D), k (B, Nk, D), v (B, Nk, C), of one floating dtype or under autocast; returns (B, Nq, C).
    The gaussian form has q = k = x; the embedded one q = theta(x), k = phi(x).
    The paper has scale = 1, its authors' code D ** -0.5. Raises `UsageError` for shapes that do not fit.
    """
    _check(q, k, v)
    if _is_direct("gaussian", q, k, v):
        return _plain(q, k, v, scale)
    if not torch.compiler.is_compiling() and not _fused(q, k, v):  # a compiler would unroll the loop over the chunks
        return _Chunked.apply(q, k, v, scale)[0].to(v.dtype)
    width = v.shape[2]
    q, k, v = _fit_kernels(q, k, v)
    y = F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)
    return y if y.shape[2] == width else y[..., :width]  # a slice of everything would still cost a copy backwards


embedded = gaussian


def dot(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """f = q_i . k_j / Nk (paper, equation 4): q (k^T v) / Nk, or (q k^T / Nk) v where that is the cheaper order.

    Shapes, dtypes and errors as for `gaussian`. Half precision is computed in float32: the rounding errors of k^T v
    are common to all queries and do not average out, and float16 overflows.
    """
    _check(q, k, v)
    dtype, keys = v.dtype, k.shape[1]
    few = _is_direct("dot", q, k, v)
    with _no_autocast(q):
        q, k, v = _wide(q), _wide(k).transpose(1, 2), _wide(v)
        y = (q @ k / keys) @ v if few else q @ (k @ v / keys)
    return y.to(dtype)


def concat(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """f = relu(w . [q_i, k_j]) / Nk (paper, equation 5), with w (2 D,).

    w . [q_i, k_j] = a_i + b_j, so with the keys sorted by falling b the ReLU keeps a prefix of them, and prefix sums
    of v and b v give every y_i: O(N log N) time, O(N C) memory. Shapes, dtypes and errors as for `gaussian`.
    """
    _check(q, k, v)
    d, keys = q.shape[2], k.shape[1]
    if w.shape != (2 * d,):
        raise UsageError(f"w has shape {tuple(w.shape)}; q has {d} channels, so it must be ({2 * d},)")
    with _no_autocast(q):  # a + b may cancel, so neither is rounded to half precision
        a, b = _wide(q) @ _wide(w[:d]), _wide(k) @ _wide(w[d:])
        if _is_direct("concat", q, k, v):
            pairs = (a.unsqueeze(2) + b.unsqueeze(1)).relu()
            return (pairs @ _wide(v) / keys).to(v.dtype)
    return _ReluMean.apply(a, b, v)


def direct(form: str, problems: int, queries: int, keys: int, d: int, c: int) -> bool:
    """Whether this form, at this shape, is computed by the plain formula, holding problems x queries x keys numbers.

    Softmax: where keys <= d + c, so that the pairs take no more room than q and y, or where all are 4 million at most.
    Dot: where it costs fewer multiply-adds; the pairs then take less room than q, k, v and y. Concat: to 128 keys.
    Never in an exported graph, which has to serve every N.
    """
    if torch.compiler.is_exporting():
        return False
    if form == "dot":
        return queries * keys * (d + c) < (queries + keys) * d * c
    if form == "concat":
        return keys <= FEW_KEYS
    return keys <= d + c or problems * queries * keys <= FEW_PAIRS


def _is_direct(form: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    return direct(form, q.shape[0], q.shape[1], k.shape[1], q.shape[2], v.shape[2])


def cost(form: str, problems: int, queries: int, keys: int, d: int, c: int, itemsize: int = 4) -> tuple[int, int]:
    """Multiply-adds of both products of `problems` such problems, and bytes held between them, as computed here."""
    pairs = queries * keys
    if direct(form, problems, queries, keys, d, c):
        products = (queries + keys) * d + pairs * (c + 1) if form == "concat" else pairs * (d + c)
        return problems * products, problems * pairs * itemsize
    if form == "dot":
        return problems * (queries + keys) * d * c, problems * d * c * max(itemsize, 4)
    if form == "concat":  # w_f, then the prefix sums, of which a block of channels is held
        return problems * (queries + keys) * (d + 2 * c), problems * 8 * (queries + 2 * keys) * min(c, BLOCK)
    chunk = 4 * max(CHUNK, 16 * problems * keys) if d != c else 0  # where the fused kernel wants d = c
    return problems * pairs * (d + c), problems * queries * 4 + chunk  # and the log-sums of the softmax


# -- softmax ----------------------------------------------------------------------------------------------------------


def _fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention has a kernel here that never holds the pairs (its fallback, "math", does) and is as accurate.

    CPU: flash, for every width (1024 tried) if v is as wide as q; padding would do, but wastes more than chunks do.
    Not in half precision: its gradients came out 1.4 times worse than the plain formula's. CUDA: flash up to 256
    channels, memory-efficient beyond, neither in float64; torch is asked.
    """
    kind = q.device.type
    if kind == "meta":  # shapes only: nothing is held
        return True
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype
    if kind == "cpu":
        return q.shape[2] == v.shape[2] and dtype in (torch.float32, torch.float64)
    if kind != "cuda":
        return False
    operands = [t.to(dtype) for t in _fit_kernels(q, k, v)]
    make_params: Any = torch.backends.cuda.SDPAParams  # whose stub lacks arguments
    params = make_params(*operands, None, 0.0, False, False)
    flash = torch.backends.cuda.can_use_flash_attention(params)
    return flash or torch.backends.cuda.can_use_efficient_attention(params)


def _fit_kernels(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, C) -> (B, 1, N, C), contiguous, with zero channels added where a fused kernel would refuse."""
    d, c = q.shape[2], v.shape[2]
    if q.device.type == "cuda":  # widths in multiples of 8
        to_d, to_c = d + -d % 8, c + -c % 8
    else:  # one width
        to_d = to_c = max(d, c)
    if to_d != d:  # padding by nothing would still copy
        q, k = F.pad(q, (0, to_d - d)), F.pad(k, (0, to_d - d))
    if to_c != c:
        v = F.pad(v, (0, to_c - c))
    q, k, v = (t.contiguous().unsqueeze(1) for t in (q, k, v))
    return q, k, v


class _Chunked(torch.autograd.Function):
    """`gaussian`, some queries at a time; y in float32 at least. Backward computes their pairs again.

    By hand, and not by `checkpoint`: in place and with the softmax's log-sums kept, which costs half as much beside
    the products.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        with _no_autocast(q):
            wide_k, wide_v = _wide(k) * scale, _wide(v)
            y, log_sums = wide_v.new_empty(*q.shape[:2], v.shape[2]), wide_k.new_empty(*q.shape[:2], 1)
            for rows in _chunks(q, k):
                pairs = _wide(q[:, rows]) @ wide_k.mT
                log_sums[:, rows] = pairs.logsumexp(2, keepdim=True)
                y[:, rows] = pairs.sub_(log_sums[:, rows]).exp_() @ wide_v
        return y, log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *operands, ctx.scale = inputs
        ctx.save_for_backward(*operands, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, log_sums = ctx.saved_tensors
        with _no_autocast(q):
            wide_k, wide_v = _wide(k) * ctx.scale, _wide(v)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(wide_k), torch.zeros_like(wide_v)
            for rows in _chunks(q, k):
                part, dpart = _wide(q[:, rows]), dy[:, rows]
                weights = (part @ wide_k.mT).sub_(log_sums[:, rows]).exp_()
                dv.baddbmm_(weights.mT, dpart)
                own = (dpart * y[:, rows]).sum(2, keepdim=True)  # sum_j weights_ij dweights_ij
                dpairs = (dpart @ wide_v.mT).sub_(own).mul_(weights)
                dq[:, rows] = dpairs @ wide_k
                dk.baddbmm_(dpairs.mT, part)
        return dq, dk.mul_(ctx.scale).to(k.dtype), dv.to(v.dtype), None


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of the queries that make at most `CHUNK` pairs, but for 16 rows at least."""
    rows = max(16, CHUNK // (k.shape[0] * k.shape[1]))
    return [slice(start, start + rows) for start in range(0, q.shape[1], rows)]


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(1, 2) * scale).softmax(2) @ v


# -- concat -----------------------------------------------------------------------------------------------------------


class _ReluMean(torch.autograd.Function):
    """y_i = sum_j relu(a_i + b_j) v_j / Nk: (B, Nq), (B, Nk), (B, Nk, C) -> (B, Nq, C)."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        plan = _plan(a, b)
        parts = [_sums(plan, part)[0].div_(b.shape[1]).to(v.dtype) for part in v.split(BLOCK, 2)]
        return torch.cat(parts, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, v = ctx.saved_tensors
        forth, back = _plan(a, b), _plan(b, a)  # dv is the same sum with queries and keys exchanged
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        dv: list[Tensor] = []
        for part, dpart in zip(v.split(BLOCK, 2), dy.split(BLOCK, 2), strict=True):
            da += (_sums(forth, part)[1] * dpart).sum(2)
            weighted, active = _sums(back, dpart)
            db += (active * part).sum(2)
            dv.append(weighted.div_(b.shape[1]).to(v.dtype))
        return da.div_(b.shape[1]), db.div_(b.shape[1]), torch.cat(dv, 2)


Plan = tuple[Tensor, Tensor, Tensor, Tensor]


def _plan(a: Tensor, b: Tensor) -> Plan:
    """How to sum over the j with a_i + b_j > 0, for a (B, Nq) and b (B, Nk); rows are counted through the batch."""
    problems = torch.arange(b.shape[0], device=b.device).unsqueeze(1)
    middle = b.mean(1, keepdim=True)  # a + middle and b - middle have the same sums, and smaller ones to cancel
    b, order = b.sort(dim=1, descending=True)
    ends = torch.searchsorted(-b, a.contiguous())  # how many keys have -b_j < a_i; a tie is 0, as ReLU's gradient is
    keys = b.shape[1]
    order, ends = order + problems * keys, ends + problems * (keys + 1)
    return (a + middle).unsqueeze(2), (b - middle).unsqueeze(2), order, ends


def _sums(plan: Plan, v: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j relu(a_i + b_j) v_j and sum_j [a_i + b_j > 0] v_j, each (B, Nq, C), in float32 at least."""
    a, b, order, ends = plan
    v = _wide(v.flatten(0, 1).index_select(0, order.flatten())).unflatten(0, order.shape)

    def prefix(terms: Tensor) -> Tensor:
        sums = F.pad(terms.cumsum(1), (0, 0, 1, 0)).flatten(0, 1)
        return sums.index_select(0, ends.flatten()).unflatten(0, ends.shape)

    active = prefix(v)
    return prefix(v * b).addcmul_(a, active), active


# -- all --------------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _no_autocast(x: Tensor) -> AbstractContextManager:
    kind = x.device.type  # a device such as meta has no autocast
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 3:
        raise UsageError(f"q, k and v must be (B, N, C); they are {shapes}")
    if q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        raise UsageError(f"q (B, Nq, D), k (B, Nk, D) and v (B, Nk, C) do not fit together: {shapes}")
    if k.shape[1] == 0:
        raise UsageError(f"there are no keys: {shapes}")
