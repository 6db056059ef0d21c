"""Plain reference implementations of the editing methods, which the package is compared with.

One request at a time, every forward pass in full, δ added by a hook, torch's Adam, and the
closed forms as dense systems in float64. No caches, no sharing of work, nothing cut short:
slow, and short enough to be checked by eye against ROME (arXiv 2202.05262), MEMIT
(2210.07229) and AlphaEdit (2410.02355). Only the modules' names come from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.data.request import EditRequest
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.models.families import family_of, oriented, weight_of
from errata.models.tokens import TokenRow

Place = Literal["block", "mlp"]
Solve = Callable[[Tensor, Tensor, int], Tensor]


class Found(NamedTuple):
    """The result of one target search."""

    initial: Tensor  # h₀: (d,)
    delta: Tensor  # δ: (d,)
    losses: Tensor  # (evaluations, 4): total, NLL, weighted KL, weighted decay
    least: float  # probability of the least likely target token in any context, at the end


def place_of(model: PreTrainedModel, block: int, place: Place) -> nn.Module:
    """Return the module whose output is modified."""
    family = family_of(model)
    return family.block(model, block) if place == "block" else family.mlp(model, block)


def state_of(output: Any, rows: int = 1) -> Tensor:
    """Return the hidden state of a module's output: (rows, tokens, d)."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state.view(rows, -1, state.shape[-1])


def with_state(output: Any, state: Tensor) -> Any:
    """Return a module's output with another hidden state."""
    if isinstance(output, tuple):
        return (state.view(output[0].shape), *output[1:])
    return state.view(output.shape)


@contextmanager
def cut_after(model: PreTrainedModel, block: int) -> Iterator[None]:
    """Skip all blocks after `block`, so that norm and head read its output."""
    path, _, name = family_of(model).blocks.rpartition(".")
    parent, blocks = model.get_submodule(path), model.get_submodule(family_of(model).blocks)
    setattr(parent, name, nn.ModuleList(list(blocks)[: block + 1]))
    try:
        yield
    finally:
        setattr(parent, name, blocks)


def search(
    model: PreTrainedModel,
    rewrite: Rewrite,
    block: int,
    place: Place,
    settings: Search,
    holds: float = 0.5,
) -> Found:
    """Find δ for one request by running all its texts in full at every step."""
    lines = [*rewrite.rows, rewrite.essence]
    width = max(len(row.ids) for row in lines)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in lines])
    line, positions = torch.arange(len(lines)), torch.tensor([row.position for row in lines])
    delta = torch.zeros(model.config.get_text_config().hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    seen: list[Tensor] = []

    def push(_: nn.Module, args: Any, output: Any) -> Any:
        state = state_of(output, len(lines))
        seen.append(state[0, positions[0]].detach().clone())
        moved = state.index_put((line, positions), delta.expand(len(lines), -1), accumulate=True)
        return with_state(output, moved)

    handle = place_of(model, block, place).register_forward_hook(push)
    losses, before = [], None
    until = family_of(model).block_count(model) - 1
    if settings.loss_block is not None:
        until = min(until, max(settings.loss_block, block))
    try:
        most = max(settings.steps, settings.max_steps or 0)
        for step in range(most):
            said = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            answers = said
            if until < family_of(model).block_count(model) - 1:
                with cut_after(model, until):
                    answers = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            now = said[-1, rewrite.essence.position]
            before = now.detach() if before is None else before
            nll = torch.stack([nll_of(answers[i], row) for i, row in enumerate(rewrite.rows)])
            kl = settings.kl_weight * (now.exp() * (now - before)).sum()
            decay = settings.weight_decay * delta.norm() / seen[0].norm() ** 2
            loss = nll.mean() + kl + decay
            losses.append(torch.stack([loss, nll.mean(), kl, decay]).detach().double())
            least = min(least_of(answers[i], row) for i, row in enumerate(rewrite.rows))
            enough = loss < settings.stop_at or step >= settings.steps - 1
            if (enough and (least >= holds or settings.max_steps is None)) or step == most - 1:
                break
            (delta.grad,) = torch.autograd.grad(loss, delta)
            optimizer.step()
            longest = settings.clamp * seen[0].norm()
            if delta.detach().norm() > longest:
                with torch.no_grad():
                    delta.mul_(longest / delta.norm())
    finally:
        handle.remove()
    return Found(seen[0], delta.detach(), torch.stack(losses), least)


def nll_of(said: Tensor, row: TokenRow) -> Tensor:
    """Return the mean negative log-probability of a row's targets at its last places."""
    start = len(row.ids) - len(row.targets)
    picked = [said[start + i, target] for i, target in enumerate(row.targets)]
    return -torch.stack(picked).sum() / len(row.targets)


def least_of(said: Tensor, row: TokenRow) -> float:
    """Return the smallest probability of a row's targets at its last places."""
    start = len(row.ids) - len(row.targets)
    return min(
        float(said[start + i, target].detach().exp()) for i, target in enumerate(row.targets)
    )


@torch.no_grad()
def read(model: PreTrainedModel, module: nn.Module, side: str, row: TokenRow) -> Tensor:
    """Return a module's input or output at a row's position."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        value = state_of(output)
        if side == "input":
            value = state_of(args[0] if args else kwargs["hidden_states"])
        seen.append(value[0, row.position].clone())

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        model(input_ids=torch.tensor([row.ids]), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def key(model: PreTrainedModel, rewrite: Rewrite, block: int) -> Tensor:
    """Return the mean over groups of the mean key within each: (d_in,)."""
    write = family_of(model).mlp_out(model, block)
    groups = [[read(model, write, "input", row) for row in group] for group in rewrite.keys]
    return torch.stack([torch.stack(group).mean(0) for group in groups]).mean(0)


def memit(K: Tensor, R: Tensor, C: Tensor, weight: float) -> Tensor:
    """Return Δ (d_out, d_in) = R ((λ C + K Kᵀ)⁻¹ K)ᵀ for K (d_in, n), R (d_out, n)."""
    K, R, C = K.double(), R.double(), C.double()
    return (R @ torch.linalg.solve(weight * C + K @ K.T, K).T).float()


def alphaedit(K: Tensor, R: Tensor, P: Tensor, memory: Tensor, ridge: float) -> Tensor:
    """Return Δ with Δᵀ = (P (K Kᵀ + memory) + ε I)⁻¹ P K Rᵀ; `memory` sums earlier K Kᵀ."""
    K, R, P = K.double(), R.double(), P.double()
    unit = torch.eye(len(P), dtype=torch.float64)
    system = P @ (K @ K.T + memory.double()) + ridge * unit
    return torch.linalg.solve(system, P @ K @ R.T).T.float()


def projector(C: Tensor, threshold: float) -> Tensor:
    """Return P = U₀U₀ᵀ, U₀ the left singular vectors of C whose singular value is below."""
    U, S, _ = torch.linalg.svd(C.double())
    return U[:, S < threshold] @ U[:, S < threshold].T


def rome(k: Tensor, bare: Tensor, lack: Tensor, C: Tensor | None) -> Tensor:
    """Return Δ = v uᵀ with u = C⁻¹ k̄, normalised, and v = (v* - W k₀) / (k₀ · u).

    `bare` is k₀ and `lack` is v* - W k₀.
    """
    u = k.double() if C is None else torch.linalg.inv(C.double()) @ k.double()
    u = u / u.norm()
    return torch.outer(lack.double() / (bare.double() @ u), u).float()


@contextmanager
def borrowed(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Restore the named weights at the end."""
    before = {name: weight_of(model, name)[1].detach().clone() for name in names}
    try:
        yield
    finally:
        for name, tensor in before.items():
            weight_of(model, name)[1].data.copy_(tensor)


def add(model: PreTrainedModel, block: int, delta: Tensor) -> None:
    """Add Δ (d_out, d_in) to the MLP output matrix of a block."""
    write = family_of(model).mlp_out(model, block)
    write.weight.data.add_(oriented(write, delta))


@torch.no_grad()
def put_out(model: PreTrainedModel, rewrite: Rewrite, value: Tensor, block: int) -> Tensor:
    """Return a block's output on the bare prompt if its matrix outputs `value` there."""
    row = rewrite.keys[0][0]

    def say(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        place = (torch.tensor([0]), torch.tensor([row.position]))
        return with_state(output, state_of(output).index_put(place, value))

    handle = family_of(model).mlp_out(model, block).register_forward_hook(say)
    try:
        return read(model, family_of(model).block(model, block), "output", row)
    finally:
        handle.remove()


@torch.no_grad()
def before_norm(model: PreTrainedModel, rewrite: Rewrite, change: Tensor, block: int) -> Tensor:
    """Return the change of the matrix output for which the norm's output changes by `change`.

    Among all y as long as what it says now, the one whose norm is nearest to what is wanted.
    """
    family, row = family_of(model), rewrite.keys[0][0]
    y = read(model, family.mlp_out(model, block), "output", row).double()
    if family.scale is not None:
        return change.double() / getattr(model.config, family.scale)
    norm = family.block(model, block).get_submodule(str(family.block_post_norm))
    gain = (norm(y.float()).double() / y).diag()  # n(y) = gain @ y for all y of this length
    goal, unit = gain @ y + change.double(), torch.eye(len(y), dtype=torch.float64)
    weight, step = -float(torch.linalg.eigvalsh(gain.T @ gain)[0]), 1e6
    while step > 1e-14:  # the least weight at which the ridge regression is short enough
        found = torch.linalg.solve(gain.T @ gain + (weight + step) * unit, gain.T @ goal)
        weight += step if found.norm() > y.norm() else 0.0
        step /= 2
    return found * (y.norm() / found.norm()) - y


def edit_blocks(
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    wanted: Tensor,
    blocks: Sequence[int],
    solve: Solve,
) -> dict[int, Tensor]:
    """Spread target values (n, d) over blocks from below; `solve(K, R, block)` gives each Δ.

    Behind a norm or a factor they are what the last block's matrix shall say.
    """
    family, deltas = family_of(model), {}
    if not family.adds_unchanged:
        saying = [
            put_out(model, r, value, blocks[-1]) for r, value in zip(rewrites, wanted, strict=True)
        ]
        wanted = torch.stack(saying)
    with borrowed(model, [family.weight_name(block) for block in blocks]):
        for done, block in enumerate(blocks):
            last = family.block(model, blocks[-1])
            K = torch.stack([key(model, rewrite, block) for rewrite in rewrites], dim=1)
            says = [read(model, last, "output", rewrite.keys[0][0]) for rewrite in rewrites]
            R = (wanted - torch.stack(says)).T / (len(blocks) - done)
            if not family.adds_unchanged:
                shares = zip(rewrites, R.T, strict=True)
                R = torch.stack([before_norm(model, r, share, block) for r, share in shares], dim=1)
            deltas[block] = solve(K, R, block)
            add(model, block, deltas[block])
    return deltas


def edit_ranks(
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    wanted: Tensor,
    block: int,
    C: Tensor | None,
) -> Tensor:
    """Edit one block sequentially, a rank-one update per request; return the sum of the Δ."""
    family, total = family_of(model), []
    write = family.mlp_out(model, block)
    with borrowed(model, [family.weight_name(block)]):
        for rewrite, value in zip(rewrites, wanted, strict=True):
            bare = rewrite.keys[0][0]
            lack = value - read(model, write, "output", bare)
            k0 = read(model, write, "input", bare)
            total.append(rome(key(model, rewrite, block), k0, lack, C))
            add(model, block, total[-1])
    return torch.stack(total).sum(0)


def position(
    tokenizer: PreTrainedTokenizerBase, text: str, span: tuple[int, int], where: str
) -> int:
    """Return the token at `where` by asking for the tokens of the subject's end characters."""
    coded = tokenizer(text)
    count, (start, end) = len(coded["input_ids"]), span
    first, last = coded.char_to_token(start), coded.char_to_token(end - 1)
    named: Mapping[str, int] = {
        "subject_first": first,
        "subject_last": last,
        "subject_first_after_last": min(last + 1, count - 1),
        "last": count - 1,
    }
    return named[where]


def texts(request: EditRequest, prefixes: Sequence[str]) -> list[str]:
    """Return the request's texts without a target, the bare one first."""
    return [prefix + request.text for prefix in ("", *prefixes)]
