"""Layer-wise learning rates (`optimizer.llrd`): parameter groups divided by module, the slower the nearer to the input.

Which parameters are weights, norms and biases, and what an optimizer does with each, stays what the library's
`build_optimizer` decided; only the rate differs. Used by `trainer.py`; `schedule.py` turns rates into those of a step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

KIND, MODULE, FACTOR = "kind", "module", "rate_factor"
"""What a divided group says beside the optimizer's own keys: the library's group that it was a part of, the index of
its module, and its part of the base rate."""


def divide_by_module(optimizer: Any, layers: Any, decay_rate: float) -> None:
    """Give every module groups of its own with the rate base x decay_rate^(head - module); frozen parameters have none.

    Args:
        optimizer: Fresh from the library: no step was made.
        layers: The network's modules in order (`model.model`); the last one is the head.
        decay_rate: In (0, 1].
    """
    head = len(layers) - 1
    module_of = {parameter: index for index, layer in enumerate(layers) for parameter in layer.parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for kind, group in enumerate(groups):
        parts = defaultdict(list)
        for parameter in group["params"]:
            if parameter.requires_grad:
                parts[module_of[parameter]].append(parameter)
        if not parts:  # of no module, but results.csv has a column for its rate
            optimizer.add_param_group({**group, "params": [], KIND: kind, MODULE: head, FACTOR: 1.0})
        for index, parameters in sorted(parts.items()):
            factor = decay_rate ** (head - index)
            own = {"params": parameters, "lr": group["lr"] * factor, KIND: kind, MODULE: index, FACTOR: factor}
            optimizer.add_param_group({**group, **own})


def rates_by_kind(optimizer: Any) -> dict[int, Any]:
    """Return one group for each of the library's: itself, or of its parts the one with the highest rate."""
    return {group.get(KIND, number): group for number, group in enumerate(optimizer.param_groups)}


def rates_by_module(optimizer: Any) -> dict[str, float]:
    """Return the rate of every divided group, named after its module; nothing where none is divided."""
    return {
        f"{group[MODULE]:02d}_{group['param_group']}_{group[KIND]}": group["lr"]
        for group in optimizer.param_groups
        if MODULE in group and group["params"]
    }


def table(optimizer: Any, layers: Any) -> Iterator[str]:
    """Yield the divided groups as lines: a module and its rate after warm-up, its parameters and their weight decay."""
    rows: dict[tuple[int, float], list[Any]] = defaultdict(list)
    for group in optimizer.param_groups:
        if group["params"]:
            rows[group[MODULE], group["initial_lr"]].append(group)
    yield f"  {'module':<14} {'rate':>10} {'weights':>11} {'decay':>8} {'norms, biases (no decay)':>25}"
    for (index, rate), groups in sorted(rows.items(), key=lambda row: row[0]):
        counts = {True: 0, False: 0}
        for group in groups:
            counts[group["param_group"] in ("weight", "muon")] += sum(p.numel() for p in group["params"])
        decays = [group["weight_decay"] for group in groups if group["param_group"] in ("weight", "muon")]
        decay = f"{decays[0]:.3g}" if decays else "-"
        name = f"{index} {type(layers[index]).__name__}"
        yield f"  {name:<14} {rate:>10.3g} {counts[True]:>11,} {decay:>8} {counts[False]:>25,}"
